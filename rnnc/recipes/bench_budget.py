"""Whether a model fits chips, without exporting it; see `bench`."""

import argparse
from collections.abc import Sequence

from rnnc.config import ConfigError
from rnnc.export import budget
from rnnc.export.budget import BudgetError
from rnnc.recipes import console
from rnnc.recipes.console import Reporter
from rnnc.recipes.enhance import MODELS, READY, shipped
from rnnc.recipes.run import load_model


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.bench budget",
        description="Say what a model takes of chips (operations, flash, RAM, time of a frame), and whether it fits.",
    )
    parser.add_argument("--model", default=READY, help="a model file or a shipped one (%(default)s)")
    parser.add_argument("--chip", action="append", default=[], help="names of chips (repeatable; default: all)")
    args = parser.parse_args(argv)
    return console.status(lambda reporter: _budget(args, reporter))


def _budget(args: argparse.Namespace, reporter: Reporter) -> None:
    try:
        chips = [budget.mcu(name) for name in args.chip] or budget.MCUS
    except BudgetError as error:
        raise ConfigError(f"--chip: {error}") from None
    enhancer, _ = load_model(shipped("--model", args.model, ".rnnc", MODELS))
    if not enhancer.model.formats:
        reporter.say("the model computes in floating point, for which there are no kernels: 4 bytes a number, and the")
        reporter.say("time that it would take with 8-bit weights")
    for line in budget.table(enhancer, chips):
        reporter.say(line)
