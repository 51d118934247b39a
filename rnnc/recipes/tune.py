"""Tune a recipe: `python -m rnnc.recipes.tune`; or the tuner against others: `... tune benchmark`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rnnc.recipes import console, tune_bench


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m rnnc.recipes.tune", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    bench = stages.add_parser("benchmark", help="the tuner against others")
    tune_bench.options(bench)
    bench.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/tune_benchmark"), help="(%(default)s)")
    args = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "rnnc.recipes.tune", *words])
    return console.status(lambda reporter: tune_bench.benchmark(args, command, reporter))


if __name__ == "__main__":
    sys.exit(main())
