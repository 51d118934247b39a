"""Other tuners on the same problems, for comparisons: Mango and Optuna, where they are installed.

All get as many evaluations in batches of the same size, and give the best value after each batch, the first after the
initial ones.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats

from rnnc.config import ConfigError
from rnnc.search.settings import Settings
from rnnc.search.space import Configuration, Space
from rnnc.search.tune import tune
from rnnc.search.values import Choice, Ordered, Uniform

Score = Callable[[Configuration], float]
Method = Callable[[Space, Score, int, int, int], list[float]]  # space, score, seed, iterations, batch -> best values


def ours(settings: Settings) -> Method:
    """This library's tuner, with settings whose seed and size are to be filled in."""

    def run(space: Space, score: Score, seed: int, iterations: int, batch: int) -> list[float]:
        import dataclasses

        trials = batch * (iterations + 1)
        result = tune(score, space, dataclasses.replace(settings, trials=trials, batch=batch, seed=seed))
        return curve([o.value for o in result.outcomes], iterations, batch)

    return run


def mango(strategy: str) -> Method:
    """arm-mango with "clustering" or "penalty", 5,000 candidates and a random batch first, else as by default."""

    def run(space: Space, score: Score, seed: int, iterations: int, batch: int) -> list[float]:
        tuner = _installed("mango", "arm-mango").Tuner
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  it draws from the global generator
        values: list[float] = []

        def objective(configurations: Sequence[Configuration]) -> list[float]:
            found = [score(c) for c in configurations]
            values.extend(found)
            return found

        options = {"num_iteration": iterations, "initial_random": batch, "batch_size": batch, "domain_size": 5000}
        kinds = {p.name: _scipy(p.values) for p in space.parameters}
        tuner(kinds, objective, {**options, "parallel_strategy": strategy, "log_progress": False}).maximize()
        return curve(values, iterations, batch)

    return run


def optuna(sampler: str) -> Method:
    """Optuna by ask and tell with its "tpe" (told to lie about what is open, as its manual has it) or "gp"."""

    def run(space: Space, score: Score, seed: int, iterations: int, batch: int) -> list[float]:
        library = _installed("optuna", "optuna")
        library.logging.set_verbosity(library.logging.ERROR)
        samplers = library.samplers
        made = samplers.TPESampler(seed=seed, constant_liar=True) if sampler == "tpe" else samplers.GPSampler(seed=seed)
        study = library.create_study(direction="maximize", sampler=made)
        values: list[float] = []
        for _ in range(iterations + 1):
            asked = [study.ask() for _ in range(batch)]
            found = [score({p.name: _suggested(trial, p.name, p.values) for p in space.parameters}) for trial in asked]
            for trial, value in zip(asked, found):
                study.tell(trial, value)
            values += found
        return curve(values, iterations, batch)

    return run


def curve(values: Sequence[float], iterations: int, batch: int) -> list[float]:
    """Best value after each batch, the initial one first.

    >>> curve([1.0, 3.0, 2.0, 4.0], 1, 2)
    [3.0, 4.0]
    """
    best = np.fmax.accumulate(np.asarray(values, float))
    return [float(best[min(batch * (i + 1), len(best)) - 1]) for i in range(iterations + 1)]


def _installed(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"--methods: {module} is not installed; install {package}, or leave it out") from None


def _scipy(values: Any) -> Any:
    """As Mango's spaces have it."""
    if isinstance(values, Choice | Ordered):
        return list(values.values) if isinstance(values, Choice) else values.values
    if isinstance(values, Uniform) and values.log:
        return scipy.stats.loguniform(values.low, values.high)
    return scipy.stats.uniform(values.low, values.high - values.low)


def _suggested(trial: Any, name: str, values: Any) -> Any:
    if isinstance(values, Choice):
        return trial.suggest_categorical(name, list(values.values))
    if isinstance(values, Ordered):
        return trial.suggest_int(name, values.values[0], values.values[-1])
    return trial.suggest_float(name, values.low, values.high, log=values.log)
