"""A line through the instructions of random models, for each kind of kernel on each core; see `bench`."""

import argparse
import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnnc import cells
from rnnc.arith import Fixed, Formats
from rnnc.export import latency, work
from rnnc.export.latency import KINDS
from rnnc.fixed import Format
from rnnc.recipes.bench_kernels import CAUTION, chosen, status
from rnnc.recipes.console import Reporter
from rnnc.recipes.run import commit
from rnnc.structure import Dense, Hybrid, Kron, LowRank, Structure

KEPT = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the blocks of a pruned model


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.bench latency",
        description="Count random models on each core whose tools are there, and fit lines by the kind of kernel.",
    )
    parser.add_argument("--models", type=int, default=75, help="how many random models, 5 or more (%(default)s)")
    parser.add_argument("--core", action="append", help="names of cores (repeatable; default: all)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the fits there")
    args = parser.parse_args(argv)
    return status(lambda reporter: _latency(args, reporter))


def _latency(args: argparse.Namespace, reporter: Reporter) -> None:
    models = [_random(i) for i in range(args.models)]
    layers = [layer for model in models for layer in work.layers(model)]
    fits = []
    for core in chosen(args.core, None, reporter):
        with tempfile.TemporaryDirectory() as folder:
            method, counted = work.instructions(core, models, Path(folder))
        fits.append(latency.fit(core.name, core.version(), layers, [n for model in counted for n in model]))
        reporter.say(f"{core.name}, {fits[-1].compiler}; {len(models)} models, {len(layers)} layers; by {method}")
        reporter.say("\n".join(_table(fits[-1])))
    reporter.say(CAUTION)
    if args.json:
        command = f"python -m rnnc.recipes.bench latency --models {args.models} --json FILE"
        found = {"command": command, "commit": commit(), "fits": [asdict(fit) for fit in fits]}
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _table(fit: latency.Latency) -> list[str]:
    lines = [f"{'kind':8s} {'layers':>6s}  per MAC  per sum  per input      r2   worst  r2 of MACs alone"]
    for kind, line in fit.lines.items():
        terms = f"{line.per_mac:8.3f} {line.per_sum:8.2f} {line.per_input:10.2f}"
        lines.append(f"{kind:8s} {line.layers:6d} {terms} {line.r2:7.4f} {line.worst:7.1%}  {line.macs_r2:.4f}")
    return [*lines, f"and {fit.per_elementwise:.2f} for each elementwise operation"]


def _random(number: int) -> list[cells.Cell]:
    """A stack of one or two cells of one kind of kernel: LSTM or GRU, 32 to 256 units."""
    rng = np.random.default_rng(number)
    kind, cell = KINDS[number % len(KINDS)], cells.CELLS[("lstm", "gru")[int(rng.integers(2))]]
    sizes = [4 * int(rng.integers(8, 65)) for _ in range(2 + int(rng.integers(2)))]
    stack = []
    for n, m in itertools.pairwise(sizes):
        structure = _structure(kind, n, m, cell.step.gates, rng)
        formats = Formats(x=Format(16, 12), h=Format(16, 12))
        options = {"kernel": structure, "recurrent": structure, "arith": Fixed(formats=formats)}
        graph, shapes = nnx.split(
            nnx.eval_shape(lambda n=n, m=m, options=options: cell(n, m, **options, rngs=nnx.Rngs(0)))
        )
        kept = float(rng.choice(KEPT)) if kind == "sparse" else 1.0
        stack.append(nnx.merge(graph, jax.tree.map(lambda a, kept=kept: _weights(a, kept, rng), shapes)))
    return stack


def _structure(kind: str, n: int, m: int, gates: int, rng: np.random.Generator) -> Structure:
    """One of a kind that fits both matrices of a cell."""
    while kind not in ("dense", "sparse"):
        ratio, stacked = float(rng.choice([2, 4, 8, 16])), bool(rng.integers(2))
        found = {
            "lowrank": LowRank(rank=4 * int(rng.integers(1, 9)), stacked=stacked),
            "kron": Kron(target_ratio=ratio, stacked=stacked),
            "hybrid": Hybrid(target_ratio=ratio, stacked=stacked),
        }[kind]
        try:
            for inputs in (n, m):
                found.cost((inputs, gates * m), gates)
            return found
        except ValueError:  # does not fit this size; another will
            continue
    return Dense()


def _weights(a: jax.ShapeDtypeStruct, kept: float, rng: np.random.Generator) -> jax.Array:
    """Normal numbers; of a pruned matrix so many blocks of 4 inputs by 4 outputs."""
    drawn = rng.standard_normal(a.shape).astype(np.float32)
    if a.ndim == 2 and kept < 1:
        blocks = rng.random((a.shape[0] // 4, a.shape[1] // 4)) < kept
        drawn *= np.kron(blocks, np.ones((4, 4), np.float32))
    return jnp.asarray(drawn)
