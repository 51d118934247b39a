"""Tune a recipe: `python -m rnnc.recipes.tune [report]`; or the tuner against others: `... tune benchmark`.

Trials are short trainings of `enhance`; any of its keys can be searched. What is best on the validation pairs is
written as a recipe, best.toml. A study that was stopped, however, goes on with --resume.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnc import config as configs
from rnnc import container, cost
from rnnc.audio.data import Sources
from rnnc.config import ConfigError
from rnnc.recipes import console, enhance, tune_bench, tune_report
from rnnc.recipes.console import Reporter
from rnnc.recipes.enhance import Enhance
from rnnc.recipes.ladder import lay
from rnnc.recipes.run import Run, commit
from rnnc.search import space as spaces
from rnnc.search.cluster import Dask
from rnnc.search.propose import Bayes
from rnnc.search.scheduler import Processes, Serial
from rnnc.search.settings import Halving, Outcome, Result, Settings, TuneError
from rnnc.search.space import Configuration, Space
from rnnc.search.store import Store
from rnnc.search.study import Study
from rnnc.search.values import SpaceError

OUT, STUDY = "runs/tune", "study.db"
METRIC = "si_sdr_db"
FREE = ("trials", "patience")  # what a resumed study may change
PROBES = 64


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """Section `tuner` of a recipe: how a study goes; see `Settings`.

    Args:
      trials: trainings in all.
      batch: proposals at a time; 0: one for each worker.
      seed: of the proposals; that of the trainings is the recipe's.
      patience: batches without a new best after which the study ends; 0: never.
      budget_bytes: models of more bytes, in floating point, are not tried; 0: any size.
      limit_s: a training that takes longer has failed; 0: none does.
      bayes, halving: see there; without `bayes` proposals are random.
    """

    trials: int = 30
    batch: int = 0
    seed: int = 0
    patience: int = 0
    budget_bytes: int = 0
    limit_s: float = 0.0
    bayes: Bayes | None = Bayes()
    halving: Halving | None = None

    def __post_init__(self) -> None:
        for name in ("budget_bytes", "limit_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 0 or more")
        self.settings()

    def settings(self) -> Settings:
        """As the search takes it."""
        return Settings(
            metric=METRIC, **{k: getattr(self, k) for k in ("trials", "batch", "seed", "patience", "bayes", "halving")}
        )


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The objective: a short training. It can be sent to other processes, which need to see the same folders.

    Args:
      table: the recipe that is tuned, as its tables.
      folder: every configuration has a run folder here, by the digest of its recipe.
      command: noted with every run.
    """

    table: Mapping[str, Any]
    folder: Path
    command: str

    def recipe(self, configuration: Configuration) -> Enhance:
        """The recipe with the configuration's dotted keys laid over it."""
        over: dict[str, Any] = {}
        for name, value in configuration.items():
            *parents, last = name.split(".")
            place = over
            for parent in parents:
                place = place.setdefault(parent, {})
                if not isinstance(place, dict):
                    raise ConfigError(f"{name}: {parent} is a value, not a section")
            place[last] = {**place.get(last, {}), **value} if isinstance(value, dict) else value
        return configs.build(Enhance, lay(over, self.table))

    def run(self, configuration: Configuration) -> Run:
        """The run folder of a configuration."""
        return Run(self.folder / configs.digest(self.recipe(configuration))[:12])

    def __call__(self, configuration: Configuration) -> dict[str, float]:
        """Train, or go on with a training that was stopped; SI-SDR in dB at its best, bytes, products, seconds."""
        config, run = self.recipe(configuration), self.run(configuration)
        with _alone(run.folder):
            if "train" not in run.results():
                enhance.train(config, run, True, _Silent(), self.command, _sources(self.recipe({}), config))
                shutil.rmtree(run.checkpoints, ignore_errors=True)
        result = run.results()
        valid = [e["valid"] for e in run.lines() if "valid" in e]
        best = max((v[METRIC] for v in valid), default=float("nan"))
        sizes = {key: result["model"][key] for key in ("bytes", "macs_per_frame")}
        return {
            METRIC: best,
            "noisy_" + METRIC: valid[0]["noisy_" + METRIC],
            **sizes,
            "seconds": result["train"]["seconds"],
        }


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for whoever else is in a run folder: a worker of a cluster may outlive its controller."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Silent(Reporter):
    """Says nothing: several trainings run at once."""

    def say(self, text: str) -> None: ...

    def progress(self, task: str, done: int, of: int, note: str = "") -> None: ...


_opened: list[tuple[Any, Sources]] = []


def _sources(base: Enhance, config: Enhance) -> Sources:
    """What a training draws from, mixed as it says; all choose on the pairs that the recipe itself would.

    Opened once in each process as long as it is the same sound.
    """
    wanted = (config.data, base.mix, config.model.rate_hz, config.seed)
    if not _opened or _opened[0][0] != wanted:
        _opened.clear()
        in_rooms = dataclasses.replace(config, mix=dataclasses.replace(base.mix, room=1.0))  # rooms for all
        _opened.append((wanted, enhance.open_sources(in_rooms, _Silent())))
    found = _opened[0][1]
    return dataclasses.replace(found, train=dataclasses.replace(found.train, config=config.mix))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe of this module, read: how to search, where, and for what."""

    tuner: Tuner
    space: Space
    trainer: Trainer
    text: str  # all that may not change when a study is resumed, as JSON


def parse(table: Mapping[str, Any], out: Path, command: str) -> Plan:
    """Make a plan of a recipe's table.

    Args:
      table: `base`, the recipe to tune (its file or the name of a shipped one; absent: the defaults), `tuner`, `space`
        by dotted keys, and tables of `Enhance` that are laid over the base.

    Raises:
      ConfigError, SpaceError: a wrong key or value; a key to search that no recipe has; a budget that nothing meets.
    """
    given = dict(table)
    tuner = configs.build(Tuner, given.pop("tuner", {}), "tuner")
    space_table, base = given.pop("space", {}), given.pop("base", "")
    if not isinstance(space_table, dict) or not space_table:
        raise ConfigError("space: must be a table of dotted keys, each with a list of choices or {low, high}")
    if not isinstance(base, str):
        raise ConfigError(f"base: is {base!r}, must be a recipe's file or name")
    full = lay(given, configs.read(enhance.recipe(base)) if base else {})
    trainer = Trainer(table=full, folder=out / "trials", command=command)
    space = spaces.parse(space_table, lambda configuration: _fits(trainer, tuner, configuration))
    _probe(trainer, space)
    for level in tuner.halving.levels if tuner.halving else ():
        try:
            trainer.recipe({tuner.halving.key: level})  # pyright: ignore
        except ConfigError as error:
            raise ConfigError(f"tuner.halving: {error}") from None
    fixed = {**dataclasses.asdict(tuner), **dict.fromkeys(FREE, None)}
    text = json.dumps({"tuner": fixed, "space": space.describe(), "recipe": full}, sort_keys=True)
    return Plan(tuner=tuner, space=space, trainer=trainer, text=text)


def _fits(trainer: Trainer, tuner: Tuner, configuration: Configuration) -> bool:
    """Whether a configuration is a valid recipe within the budget."""
    try:
        config = trainer.recipe(configuration)
    except ConfigError:
        return False
    return not tuner.budget_bytes or model_bytes(config) <= tuner.budget_bytes


def model_bytes(config: Enhance) -> int:
    """Size of a model's parameters in floating point."""
    return sum(layer.bytes for layer in cost.layers(config.model))


def _probe(trainer: Trainer, space: Space) -> None:
    """Build recipes from all over the space: one that can never be built says why."""
    import numpy as np

    trainer.recipe({})
    errors: dict[str, int] = {}
    for configuration in space.at(np.random.default_rng(0).random((PROBES, len(space.parameters)))):
        try:
            trainer.recipe(configuration)
        except ConfigError as error:
            if any(words in str(error) for words in ("unknown key", "must be of type", "must be one of")):
                raise ConfigError(f"space: {error}") from None
            errors[str(error)] = errors.get(str(error), 0) + 1
    if sum(errors.values()) == PROBES:
        raise ConfigError(f"space: no configuration is a valid recipe; {max(errors, key=lambda e: errors[e])}")


def own(trainer: Trainer, space: Space) -> Configuration | None:
    """The recipe's own values in the space, if they lie in it: the trial to be improved upon."""
    table, found = configs.to_table(trainer.recipe({})), {}
    for parameter in space.parameters:
        place: Any = table
        for part in parameter.name.split("."):
            place = place.get(part) if isinstance(place, dict) else None
        if place is not None and parameter.active(found):
            found[parameter.name] = place
    try:
        found = space.check(found)
    except SpaceError:
        return None
    return found if space.allows(found) else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    command = shlex.join(["python", "-m", "rnnc.recipes.tune", *words])
    return console.status(
        lambda reporter: _dispatch(args, command, reporter),
        "stopped; the same command with --resume goes on from there",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.tune",
        description="Search a recipe's keys for the best short training; without folders on a corpus made on the spot.",
        epilog="The recipe that won is OUT/best.toml; report.html tells how it was found.",
    )
    parser.add_argument(
        "stage", nargs="?", choices=("report", "benchmark"), help="draw the report of --out anew; compare"
    )
    enhance.options(parser, OUT)
    parser.add_argument(
        "--scheduler",
        metavar="WHO",
        default="processes",
        help="serial, processes (the default), dask (a cluster on this machine), or a Dask scheduler's address, tcp://...",
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, default=0, help="of processes and dask; 0: one for each core"
    )
    tune_bench.options(parser.add_argument_group("benchmark"))
    return parser


def _dispatch(args: argparse.Namespace, command: str, reporter: Reporter) -> None:
    if args.stage == "benchmark":
        out = Path("runs/tune_benchmark") if args.out == Path(OUT) else args.out
        return tune_bench.benchmark(args, out, command, reporter)
    if args.stage == "report":
        return _say(args.out, tune_report.redraw(args.out), reporter)
    plan = parse(enhance.table(args, enhance.recipe(args.config or "tune")), args.out, command)
    search(plan, args, command, reporter)


def search(plan: Plan, args: argparse.Namespace, command: str, reporter: Reporter) -> None:
    """Do the study, or go on with it, and write what has come out after each trial."""
    began = time.monotonic()
    if Run(args.out).results() and not (args.out / STUDY).exists():
        raise ConfigError(f"{args.out}: holds results of something else; choose another --out")
    with Store(args.out / STUDY) as store, _scheduler(args, plan.tuner) as scheduler:
        note = args.out / "study.json"
        if args.resume and note.exists() and note.read_text(encoding="utf-8") != plan.text:
            raise ConfigError(f"{note}: differs from the recipe given; --resume needs the same one")

        def written(result: Result) -> dict[str, Any]:
            if result.best is not None:
                container.replace(args.out / "best.toml", configs.dump(plan.trainer.recipe(result.best.configuration)))
            origin = {"commit": commit(), "command": command, "seconds": time.monotonic() - began}
            return tune_report.write(args.out, plan.space, result, origin)

        def observe(outcome: Outcome) -> None:
            _say_trial(outcome, reporter)
            found = study.result()
            ended = [o for o in found.outcomes if o.trial.state in ("done", "failed")]
            reporter.progress("tuning", len(ended), plan.tuner.trials)
            written(found)

        study = Study(plan.trainer, plan.space, plan.tuner.settings(), scheduler, store, observe=observe)
        mine = own(plan.trainer, plan.space)
        study.open(args.resume, first=[mine] if mine else [])
        container.replace(note, plan.text)
        result = study.run()
        _say(args.out, written(result), reporter)
        if result.best is None:
            raise TuneError(f"no trial has a score; the last: {result.outcomes[-1].trial.reason or 'was not in full'}")


def _scheduler(args: argparse.Namespace, tuner: Tuner) -> Any:
    """Who trains, as a context."""
    limit_s = tuner.limit_s or None
    if args.workers and args.scheduler not in ("processes", "dask"):
        raise ConfigError(f"--workers: is {args.workers}, but --scheduler {args.scheduler} has its own; leave it out")
    if args.scheduler == "serial":
        if limit_s:
            raise ConfigError("tuner.limit_s: cannot be kept by --scheduler serial, must be 0 there")
        return _Here()
    if args.scheduler == "processes":
        return Processes(args.workers, limit_s)
    if args.scheduler == "dask" or "://" in args.scheduler:
        return Dask(None if args.scheduler == "dask" else args.scheduler, args.workers, limit_s)
    raise ConfigError(f"--scheduler: is {args.scheduler!r}, must be serial, processes, dask or tcp://HOST:PORT")


class _Here(Serial):
    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *_: object) -> None: ...


def _say_trial(outcome: Outcome, reporter: Reporter) -> None:
    trial = outcome.trial
    values = ", ".join(f"{k}={tune_report.short(v)}" for k, v in outcome.configuration.items())
    what = f"{outcome.value:.3f} dB" if trial.state == "done" else f"failed: {trial.reason}"
    reporter.say(f"trial {trial.number}: {what} ({values})")


def _say(out: Path, result: Mapping[str, Any], reporter: Reporter) -> None:
    if result["best"]:
        reporter.say(f"best: trial {result['best']['number']}, {result['best']['value']:.3f} dB; {result['train']}")
    reporter.say(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
