"""What a model costs on chips: instructions of each layer in a frame, counted in emulators; see `bench`."""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rnnc.config import ConfigError
from rnnc.export import emulate, work
from rnnc.export.emulate import CORES, Core
from rnnc.model import Enhancer
from rnnc.recipes import console
from rnnc.recipes.console import Reporter
from rnnc.recipes.enhance import MODELS, shipped
from rnnc.recipes.run import load_model

CAUTION = (
    "Instructions are not cycles: no waiting for flash, no two at once, no vector beats. A frame is one that is not "
    "skipped."
)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.bench kernels",
        description="Count the instructions that a model's layers take in a frame on each core whose tools are there.",
    )
    parser.add_argument(
        "--model", default="tinylstm", help="a model file or a shipped one (default: the dense TinyLSTMs network)"
    )
    options(parser)
    parser.add_argument("--compiler", choices=("gcc", "clang"), help="only this one, where a core has two")
    parser.add_argument("--sound", action="store_true", help="count the front end too: a frame is one hop of sound")
    args = parser.parse_args(argv)
    return status(lambda reporter: _kernels(args, reporter))


def options(parser: argparse.ArgumentParser) -> None:
    """Add what all commands have that count: which cores, and where the result goes."""
    names = sorted({core.name for core in CORES.values()})
    parser.add_argument("--core", action="append", choices=names, help="(repeatable; default: all)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write what was found there too")


def status(work: Callable[[Reporter], None]) -> int:
    """`console.status`, to which a tool that fails is an error of the command."""

    def told(reporter: Reporter) -> None:
        try:
            work(reporter)
        except emulate.EmulatorError as error:
            raise ConfigError(str(error)) from None

    return console.status(told)


def _kernels(args: argparse.Namespace, reporter: Reporter) -> None:
    trained, _ = load_model(shipped("--model", args.model, ".rnnc", MODELS))
    if not trained.model.formats:
        reporter.say("the model computes in floating point: counted as with 8-bit weights and inputs of its matrices")
    enhancer = work.integers(trained)
    rows: list[dict[str, object]] = []
    for core in chosen(args.core, args.compiler, reporter):
        rows += _rows(core, enhancer, args.sound, reporter)
    if not rows:
        raise ConfigError("kernels: no core's tools are installed; the lines above name them")
    reporter.say(CAUTION)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def chosen(names: Sequence[str] | None, compiler: str | None, reporter: Reporter) -> list[Core]:
    """The cores of these names (all, if there are none) whose tools are there; says what others lack."""
    found = []
    for core in CORES.values():
        if (names and core.name not in names) or (compiler and (compiler == "clang") != ("clang" in core.compiler)):
            continue
        tools = () if core.emulator else ("valgrind",)
        if lack := emulate.missing(core, *tools):
            reporter.say(f"left out: {lack}")
        else:
            found.append(core)
    return found


def _rows(core: Core, enhancer: Enhancer, sound: bool, reporter: Reporter) -> list[dict[str, object]]:
    """The rows of one core, one for each layer and one for the frame; printed."""
    with tempfile.TemporaryDirectory() as folder:
        method, (counted,) = work.instructions(core, [enhancer], Path(folder), sound=sound)
    layers, compiler = work.layers(enhancer), core.version()
    rows = [
        {"layer": layer.name, "kind": layer.kind, "macs": layer.macs, "instructions": count}
        for layer, count in zip(layers, counted)
    ]
    if sound:
        rows.append({"layer": "front", "kind": "front", "macs": 0, "instructions": counted[-1]})
    kinds = dict.fromkeys(kind for layer in layers for kind in layer.products)
    total = {"layer": "frame", "kind": "+".join(kinds), "macs": sum(layer.macs for layer in layers)}
    rows.append({**total, "instructions": sum(counted)})
    reporter.say(f"{core.name}, {compiler}, {core.macro or 'plain kernels'}; counted by {method}")
    reporter.say(f"{'layer':8s} {'kind':16s} {'MACs':>9s} {'instructions':>12s} {'per MAC':>8s}")
    for row in rows:
        each = f"{row['instructions'] / row['macs']:8.2f}" if row["macs"] else ""
        reporter.say(f"{row['layer']:8s} {row['kind']:16s} {row['macs']:9,d} {row['instructions']:12,d} {each}")
    return [{"core": core.name, "compiler": compiler, **row} for row in rows]
