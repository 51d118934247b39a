"""Compare ways to make small classifiers smaller, at equal bytes: `python -m rnnc.recipes.classify`.

Bare, it does so for scikit-learn's digits, read row by row. Every finished method is saved; --resume skips it.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rnnc import config as configs
from rnnc import container
from rnnc.config import ConfigError
from rnnc.cost import FLOAT_BYTES
from rnnc.recipes import classify_report, console, machine, methods, tasks
from rnnc.recipes.classifier import Fitted, Recurrent, fit, in_integers
from rnnc.recipes.console import Reporter, chosen, duration
from rnnc.recipes.methods import Method
from rnnc.recipes.run import Run, commit
from rnnc.recipes.tasks import Parts


@dataclass(frozen=True, kw_only=True)
class Task:
    """One set, one network, and how it is trained; the same for all methods.

    Args:
      source: which set; `rnnc.recipes.tasks` lists them.
      cell: lstm, gru or fastrnn; mlp: dense layers, no recurrent one.
      units: of the recurrent layer, one number; of the hidden layers of an mlp.
      epochs: passes over the training part, 1 or more.
      batch: items of a step, 1 or more.
      rates: peak learning rates of Adam, each above 0; every method takes the one that does best on its validation
        with the first seed.
      ratios: further sizes to compare at, how many times smaller than the dense recurrent layer (mlp: than all
        weights); each above 1.
    """

    source: Literal["digits", "mnist", "usps", "spoken", "keywords"] = "digits"
    cell: Literal["lstm", "gru", "fastrnn", "mlp"] = "lstm"
    units: tuple[int, ...] = (32,)
    epochs: int = 60
    batch: int = 32
    rates: tuple[float, ...] = (3e-3, 1e-2)
    ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.units or min(self.units) < 1 or (self.cell != "mlp" and len(self.units) != 1):
            raise ValueError(f"units: is {list(self.units)}, must be one number from 1; for an mlp, one or more")
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 1 or more")
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f"rates: is {list(self.rates)}, must be one or more numbers above 0")
        if any(ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"ratios: is {list(self.ratios)}, must be numbers above 1")


@dataclass(frozen=True, kw_only=True)
class Classify:
    """Everything that decides a table. A TOML file and --set name only what differs from this.

    Args:
      seeds: trainings per method, 1 or more.
      seed: the first of them.
      digits .. lenet: the tasks; the sizes are those of the Kronecker papers, where they have the task.

    Source: sections 2.2 and 9.2 of our survey. The spoken sets stand in for Speech Commands, digits for nothing.
    """

    seeds: int = 3
    seed: int = 0
    digits: Task = Task(ratios=(10.0,))
    mnist: Task = Task(source="mnist", units=(40,), epochs=16, batch=100, rates=(1e-2, 4e-2), ratios=(10.0, 20.0))
    usps: Task = Task(source="usps", cell="fastrnn", epochs=40, batch=64, rates=(3e-3, 1e-2))
    spoken_lstm: Task = Task(source="spoken", units=(118,), epochs=30, rates=(3e-3,))
    spoken_gru: Task = Task(source="spoken", cell="gru", units=(154,), epochs=30, rates=(3e-3,))
    keywords_lstm: Task = Task(source="keywords", units=(118,), epochs=30, rates=(3e-3,))
    keywords_gru: Task = Task(source="keywords", cell="gru", units=(154,), epochs=30, rates=(3e-3,))
    lenet: Task = Task(
        source="mnist", cell="mlp", units=(300, 100), epochs=20, batch=128, rates=(2e-3,), ratios=(25.0, 50.0)
    )

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds: is {self.seeds}, must be 1 or more")
        if not 0 <= self.seed < 2**31 - self.seeds:
            raise ValueError(f"seed: is {self.seed}, must be 0 to {2**31 - 1 - self.seeds}")


TASKS = tuple(field.name.replace("_", "-") for field in fields(Classify) if field.type is Task)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    words = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "-m", "rnnc.recipes.classify", *words])
    stopped = "stopped; the same command with --resume goes on from the last finished method"
    return console.status(lambda reporter: _run(args, command, reporter), stopped)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.classify",
        description="Train small classifiers, dense and compressed in several ways to equal bytes, and compare them.",
    )
    parser.add_argument(
        "--task", metavar="NAME", nargs="+", default=["digits"], help=f"all, or some of: {', '.join(TASKS)}"
    )
    parser.add_argument("--data", metavar="DIR", type=Path, help="folder of the sets; digits needs none")
    parser.add_argument("--config", metavar="FILE.toml", type=Path, help="what differs from the defaults")
    parser.add_argument("--set", metavar="A.B=VALUE", action="append", default=[], help="override one key")
    parser.add_argument("--seeds", metavar="N", type=int, help="trainings per method")
    parser.add_argument("--method", metavar="NAME", nargs="+", default=[], help="only these (dense, kron-10x, ...)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/classify"), help="folder (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep what --out holds and do the rest")
    return parser


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One method of one task, still to be trained."""

    name: str
    task: Task
    parts: Parts
    method: Method
    dense_bytes: int
    seeds: int

    @property
    def epoch(self) -> float:
        """Proportional to the time of one epoch of one training, about."""
        return len(self.parts.train.x) * self.method.work

    @property
    def work(self) -> float:
        """Of all trainings: one for each learning rate, and one for each further seed."""
        return self.task.epochs * (len(self.task.rates) + self.seeds - 1) * self.epoch


class _Clock:
    """Tells how far the trainings are and how long the rest will take, by the work done."""

    def __init__(self, jobs: Sequence[_Job], reporter: Reporter):
        self._left, self._whole = sum(job.work for job in jobs), sum(job.work for job in jobs)
        self._began, self._reporter = time.monotonic(), reporter

    def tick(self, job: _Job, members: int, epoch: int, valid: float) -> None:
        """After an epoch of so many trainings side by side."""
        self._left -= members * job.epoch
        spent = time.monotonic() - self._began
        left = duration(spent * self._left / (self._whole - self._left))
        note = f"validation {valid:.1f} %, {left} left for all"
        self._reporter.progress(f"{job.name} {job.method.name}", epoch, job.task.epochs, note)


def _run(args: argparse.Namespace, command: str, reporter: Reporter) -> None:
    config = _config(args)
    names = chosen("--task", TASKS if args.task == ["all"] else args.task, TASKS)
    run, digest = Run(args.out), configs.digest(config)
    rows = run.going_on(args.resume, digest).get("rows", [])
    machine.prepare(machine.ITEMS_A_DEVICE * (os.cpu_count() or 1))
    jobs = [job for name in names for job in _jobs(name, config, args.data, args.method)]
    run.folder.mkdir(parents=True, exist_ok=True)
    container.replace(run.config, configs.dump(config))
    result = run.update(commit=commit(), command=command, config_sha256=digest, rows=rows)
    left = [job for job in jobs if (job.name, job.method.name) not in {(row["task"], row["method"]) for row in rows}]
    if len(left) < len(jobs):
        reporter.say(f"{len(jobs) - len(left)} of {len(jobs)} methods were finished before")
    clock = _Clock(left, reporter)
    for job in left:
        found = _train(job, range(config.seed, config.seed + config.seeds), clock)
        result = run.update(rows=result["rows"] + found)
        mean = np.mean([row["accuracy"] for row in found if row["method"] == job.method.name])
        reporter.say(f"{job.name} {job.method.name}: {mean:.2f} % at {found[0]['bytes']:,} bytes")
    for text in classify_report.table(result):
        reporter.say(text)
    reporter.say(f"report: {classify_report.write(run.folder, result)}")


def _config(args: argparse.Namespace) -> Classify:
    """The defaults, then the file, then --set and --seeds."""
    table = configs.read(args.config) if args.config else {}
    seeds = (f"seeds={args.seeds}",) if args.seeds is not None else ()
    return configs.build(Classify, configs.merge(table, (*args.set, *seeds)))


@cache
def _parts(source: str, folder: Path | None) -> Parts:
    return tasks.load(source, folder)


def _jobs(name: str, config: Classify, folder: Path | None, only: Sequence[str]) -> list[_Job]:
    """All methods of a task, or those asked for."""
    task: Task = getattr(config, name.replace("-", "_"))
    parts = _parts(task.source, folder)
    frames, inputs = parts.train.x.shape[1:]
    try:
        if task.cell == "mlp":
            found = methods.perceptron((frames * inputs, *task.units, parts.classes), task.ratios)
        else:
            found = methods.recurrent(task.cell, task.units[0], inputs, frames, parts.classes, task.ratios)
    except ValueError as error:
        raise ConfigError(f"{name.replace('-', '_')}: {error}") from None
    wanted = chosen("--method", only, [method.name for method in found]) or [method.name for method in found]
    dense_bytes = FLOAT_BYTES * found[0].numbers
    return [
        _Job(name=name, task=task, parts=parts, method=method, dense_bytes=dense_bytes, seeds=config.seeds)
        for method in found
        if method.name in wanted
    ]


def _train(job: _Job, seeds: range, clock: _Clock) -> list[dict[str, Any]]:
    """The rows of one method: the learning rate that does best on validation with the first seed, then all seeds."""
    first = _fit(job, [(seeds[0], rate) for rate in job.task.rates], clock)
    rate, best = max(zip(job.task.rates, first), key=lambda trial: trial[1].valid)
    rest = _fit(job, [(seed, rate) for seed in seeds[1:]], clock) if len(seeds) > 1 else []
    found = list(zip(seeds, [best, *rest]))
    rows = [_row(job, seed, rate, one) for seed, one in found]
    network = job.method.network
    if isinstance(network, Recurrent) and job.method.pruner is None:
        rows += [_whole(job, network, row, one) for row, (_, one) in zip(rows, found)]
    return rows


def _fit(job: _Job, members: list[tuple[int, float]], clock: _Clock) -> list[Fitted]:
    task, method = job.task, job.method
    steps = task.epochs * max(1, len(job.parts.train.x) // task.batch)
    return fit(
        method.network,
        method.wrap(steps),
        job.parts,
        members=members,
        epochs=task.epochs,
        batch=task.batch,
        observe=lambda epoch, valid: clock.tick(job, len(members), epoch, valid),
    )


def _row(job: _Job, seed: int, rate: float, found: Fitted) -> dict[str, Any]:
    kept = job.method.stored(found.params)
    return {
        "task": job.name,
        "method": job.method.name,
        "seed": seed,
        "bytes": kept.bytes,
        "accuracy": round(found.test, 3),
        "valid_accuracy": round(found.valid, 3),
        "ratio": round(job.dense_bytes / kept.bytes, 3),
        "parameters": kept.numbers,
        "macs": job.method.macs,
        "epochs": found.epoch,
        "rate": rate,
    }


def _whole(job: _Job, network: Recurrent, row: dict[str, Any], found: Fitted) -> dict[str, Any]:
    """The row of the same network in integers."""
    accuracy, size = in_integers(network, found.params, job.parts)
    changes = {"method": f"{row['method']}-8bit", "accuracy": round(accuracy, 3), "bytes": size}
    known = {key: value for key, value in row.items() if key != "valid_accuracy"}
    return {**known, **changes, "ratio": round(job.dense_bytes / size, 3)}


if __name__ == "__main__":
    sys.exit(main())
