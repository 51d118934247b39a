"""A ladder of compressed denoisers: `python -m rnnc.recipes.ladder [report]`.

At its foot stands a trained dense model. Every rung starts from the foot or from an earlier rung, changes something (a
structure, pruning, skipped updates), trains on and is scored on the same pairs. One report draws quality against bytes
and against multiply-accumulates. A rung is a run folder of `enhance`; what is done is read off the folders, so a ladder
that was stopped goes on where it was.
"""

import argparse
import dataclasses
import difflib
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnc import config as configs
from rnnc import container
from rnnc.audio.data import Sources
from rnnc.config import ConfigError
from rnnc.recipes import console, enhance, ladder_report, machine, report
from rnnc.recipes.console import Reporter
from rnnc.recipes.enhance import Enhance
from rnnc.recipes.evaluate import evaluate
from rnnc.recipes.ladder_report import scored
from rnnc.recipes.run import Run, commit, load_model
from rnnc.train.loop import Train

FOOT = "tinylstm"  # the model to start from where a recipe names none


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One model of a ladder.

    Args:
      name: its folder's; letters, digits and ".", "_", "-". What stands before the first "-" is the family that it is
        drawn with.
      start: whose model it starts from: the foot or an earlier rung.
      changes: tables of `Enhance`, laid over those that all rungs share.
    """

    name: str
    start: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """A foot and rungs.

    Args:
      foot: name of the model to start from.
      model: its file.
      common: tables of `Enhance` for all rungs, without its model: that is always the start's.
      rungs: in their order; each starts from the foot or from one before it.
    """

    foot: str
    model: Path
    common: Mapping[str, Any]
    rungs: tuple[Rung, ...]

    def steps(self) -> list[Rung]:
        """The foot, which starts from itself and is only scored, then the rungs."""
        return [Rung(name=self.foot, start=self.foot), *self.rungs]

    def digest(self) -> str:
        """sha256 of what the recipe, its overrides and the folders say, in hex."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def parse(table: Mapping[str, Any]) -> Ladder:
    """Make a ladder of a recipe's table.

    Args:
      table: `start` (a model's file or the name of a shipped one), tables of `Enhance` without `model`, and `rungs`: a
        list of tables with `name`, `start` and tables of `Enhance`.

    Raises:
      ConfigError: a rung has no proper name or that of another, or starts from one that is not before it; a rung's
        configuration is wrong.

    >>> ladder = parse({"rungs": [{"name": "dense"}, {"name": "short", "start": "dense", "train": {"steps": 9}}]})
    >>> [(rung.name, rung.start) for rung in ladder.rungs]
    [('dense', 'tinylstm'), ('short', 'dense')]
    """
    common = {key: value for key, value in table.items() if key not in ("start", "rungs")}
    if "model" in common:
        raise ConfigError("model: must be left out, every rung takes it from its start; a rung may change it")
    model = enhance.shipped("start", str(table.get("start", FOOT)), ".rnnc", enhance.MODELS)
    rungs = _rungs(table.get("rungs"), model.stem)
    ladder = Ladder(foot=model.stem, model=model, common=common, rungs=rungs)
    models = {ladder.foot: _model(model)}
    for rung in ladder.steps():  # what can be known before the start is trained: a pruned one may come out smaller
        models[rung.name] = configs.to_table(_config(ladder, rung, models[rung.start], str(model)))["model"]
    return ladder


def _rungs(given: Any, foot: str) -> tuple[Rung, ...]:
    if not isinstance(given, list) or not given or not all(isinstance(item, dict) for item in given):
        raise ConfigError("rungs: a ladder needs one table [[rungs]] or more")
    names = [item.get("name") for item in given]
    rungs = []
    for i, item in enumerate(given):
        where, name, start = f"rungs[{i}]", item.get("name"), item.get("start", foot)
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise ConfigError(f"{where}.name: is {name!r}, must be letters, digits, '.', '_' and '-'")
        if name in (foot, *names[:i]):
            raise ConfigError(f"{where}.name: is {name!r}, which is taken; every rung and the foot need their own")
        if start not in (foot, *names[:i]):
            why = "must come before" if start in names else "no such rung." + _nearest(start, [foot, *names[:i]])
            raise ConfigError(f"{where}.start: is {start!r}, {why} {name}: {', '.join([foot, *names[:i]])}")
        changes = {key: value for key, value in item.items() if key not in ("name", "start")}
        rungs.append(Rung(name=name, start=start, changes=changes))
    return tuple(rungs)


def _nearest(name: object, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def lay(over: Mapping[str, Any], under: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested table over another; a section that names its `kind` replaces the one under it.

    >>> lay({"train": {"steps": 5}, "kernel": {"kind": "dense"}}, {"seed": 1, "kernel": {"kind": "kron", "terms": 2}})
    {'seed': 1, 'kernel': {'kind': 'dense'}, 'train': {'steps': 5}}
    """
    table = dict(under)
    for key, value in over.items():
        below = table.get(key)
        merges = isinstance(value, Mapping) and "kind" not in value
        table[key] = lay(value, below if isinstance(below, Mapping) else {}) if merges else value
    return table


def _model(file: Path) -> dict[str, Any]:
    """Section `model` of the configuration that a model's file was made with."""
    return configs.to_table(load_model(file)[0].model)


def _config(ladder: Ladder, rung: Rung, model: Mapping[str, Any], start: str) -> Enhance:
    """Configuration of a rung that starts from a model of the given section and file."""
    table = {**lay(rung.changes, {**ladder.common, "model": model}), "start": start}
    try:
        return configs.build(Enhance, table)
    except ConfigError as error:
        raise ConfigError(f"rung {rung.name}: {error}") from None


class Climb:
    """A ladder and the folder that it is climbed in.

    Args:
      ladder: what to train and score.
      out: folder of the rungs' folders, of result.json, table.md and report.html.
      reporter: told how far it is.
      command: noted with every result.
    """

    def __init__(self, ladder: Ladder, out: Path, reporter: Reporter, command: str):
        self.ladder, self.out, self.reporter, self.command = ladder, out, reporter, command
        self._sources: tuple[Any, Sources] | None = None

    def run(self, rung: Rung) -> Run:
        """The folder of a rung."""
        return Run(self.out / rung.name)

    def start(self, rung: Rung) -> Path:
        """File of the model that a rung starts from."""
        return self.ladder.model if rung.start == self.ladder.foot else Run(self.out / rung.start).model

    def config(self, rung: Rung) -> Enhance:
        """Complete configuration of a rung; needs the model of its start. Of the foot: of what it is scored on."""
        ladder = self.ladder
        if rung.name == ladder.foot:
            ladder = dataclasses.replace(
                ladder, common={key: ladder.common[key] for key in ("seed", "data", "mix") if key in ladder.common}
            )
        return _config(ladder, rung, _model(self.start(rung)), str(self.start(rung)))

    def check(self, rungs: Sequence[Rung], resume: bool) -> None:
        """Before anything is trained: every rung has a start, and what is there may be gone on with."""
        ready = [rung.name for rung in rungs] + [r.name for r in self.ladder.steps() if scored(self.run(r))]
        for rung in rungs:
            if rung.start not in ready:
                raise ConfigError(f"{rung.name}: starts from {rung.start}, which is not trained yet; add it to --only")
            run = self.run(rung)
            if not scored(run) and run.checkpoints.exists() and not resume:
                raise ConfigError(f"{run.folder}: holds a rung without scores; add --resume to go on with it")
            if scored(run) and self.start(rung).exists() and not self._same(rung):
                raise ConfigError(
                    f"{run.config}: differs from the ladder's; move that folder away, or choose another --out"
                )

    def _same(self, rung: Rung) -> bool:
        before = configs.load(Enhance, self.run(rung).config)
        return dataclasses.replace(before, start="") == dataclasses.replace(self.config(rung), start="")

    def climb(self, rungs: Sequence[Rung], resume: bool) -> None:
        """Train and score the rungs that have no scores yet; all results are written after each."""
        self.check(rungs, resume)
        for i, rung in enumerate(rungs):
            if scored(self.run(rung)):
                self.reporter.say(f"{rung.name}: scored already")
            else:
                self.reporter.say(f"{rung.name}: {i + 1} of {len(rungs)}, from {rung.start}")
                self._climb_one(rung, resume)
            self.write()

    def _climb_one(self, rung: Rung, resume: bool) -> None:
        config, run = self.config(rung), self.run(rung)
        sources = self._open(config)
        about = {"pairs": config.data.pairs or "mixed", "command": self.command}
        if rung.name == self.ladder.foot:
            run.folder.mkdir(parents=True, exist_ok=True)
            container.replace(run.config, configs.dump(config))
            evaluate(run, self.ladder.model, lambda rate_hz: sources.test, about, self.reporter)
        else:
            enhance.train(config, run, resume, self.reporter, self.command, sources)
            evaluate(run, run.model, lambda rate_hz: sources.test, about, self.reporter)
        report.write(run.folder)

    def _open(self, config: Enhance) -> Sources:
        """What rungs draw from; opened once as long as they draw from the same."""
        wanted = (config.data, config.mix, config.model.rate_hz, config.seed)
        if self._sources is None or self._sources[0] != wanted:
            self._sources = None
            self._sources = (wanted, enhance.open_sources(config, self.reporter))
        return self._sources[1]

    def write(self) -> None:
        """Write result.json, table.md and report.html from the rungs' folders."""
        plan = [{"name": rung.name, "start": rung.start} for rung in self.ladder.steps()]
        origin = {"commit": commit(), "command": self.command, "config_sha256": self.ladder.digest()}
        ladder_report.write(self.out, {**origin, "rungs": plan})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    words = list(sys.argv[1:] if argv is None else argv)
    return console.status(lambda reporter: _dispatch(args, words, reporter))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.ladder",
        description="Compress a trained denoiser step by step, each rung from an earlier one, and draw quality against "
        "size and work. Without folders: on a corpus made on the spot.",
        epilog="Rungs that have scores are left as they are; --resume goes on with one that has none yet.",
    )
    parser.add_argument("stage", nargs="?", choices=("report",), help="only draw the report of --out anew")
    enhance.options(parser, "runs/ladder")
    parser.add_argument("--only", metavar="NAME", nargs="+", action="extend", help="train and score these rungs alone")
    return parser


def _dispatch(args: argparse.Namespace, words: list[str], reporter: Reporter) -> None:
    if args.stage == "report":
        return _say(args.out, ladder_report.redraw(args.out), reporter)
    table = enhance.table(args, enhance.recipe(args.config or "ladder"))
    train = configs.build(Train, table.get("train", {}), "train")
    machine.prepare(train.batch, train.devices)
    ladder = parse(table)
    rungs = _chosen(ladder, args.only)
    climb = Climb(ladder, args.out, reporter, shlex.join(["python", "-m", "rnnc.recipes.ladder", *words]))
    climb.climb(rungs, args.resume)
    return _say(args.out, ladder_report.redraw(args.out), reporter)


def _chosen(ladder: Ladder, only: Sequence[str] | None) -> list[Rung]:
    """The foot and the rungs asked for, in the ladder's order."""
    steps = ladder.steps()
    names = [rung.name for rung in steps]
    for name in only or ():
        if name not in names:
            raise ConfigError(f"--only {name}: no such rung.{_nearest(name, names)} Rungs: {', '.join(names)}")
    return [rung for rung in steps if only is None or rung.name in (ladder.foot, *only)]


def _say(out: Path, table: str, reporter: Reporter) -> None:
    reporter.say(table)
    reporter.say(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
