"""How much of the work that a structure saves becomes instructions saved, layer by layer; see `bench`."""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from rnnc import cells
from rnnc.arith import Fixed, Formats
from rnnc.config import ConfigError
from rnnc.export import emulate, model, work
from rnnc.export.emulate import Core
from rnnc.export.host import KERNELS
from rnnc.fixed import Format
from rnnc.recipes.bench_kernels import CAUTION, chosen, options, status
from rnnc.recipes.bench_latency import drawn
from rnnc.recipes.console import Reporter
from rnnc.structure import Dense, Hybrid, Kron, LowRank, Structure

NO_PRODUCTS = """#include "rnnc.h"

int32_t rnnc_plain_output(const rnnc_plain *w, uint32_t row, const int16_t *x)
{
    return (void)w, (void)row, (void)x, 0;
}

uint32_t rnnc_mat_scratch(const rnnc_mat *mat)
{
    return (void)mat, 0;
}

void rnnc_matvec(const rnnc_mat *mat, const int16_t *x, int32_t *y, int32_t *scratch)
{
    (void)mat, (void)x, (void)y, (void)scratch;
}
"""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.bench gains",
        description="Count a layer with each structure beside the dense one, and what it takes besides its products.",
    )
    parser.add_argument("--cell", choices=sorted(cells.CELLS), default="lstm", help="(%(default)s)")
    parser.add_argument("--units", type=int, default=256, help="as many inputs, 32 or more (%(default)s)")
    options(parser)
    args = parser.parse_args(argv)
    return status(lambda reporter: _gains(args, reporter))


def _gains(args: argparse.Namespace, reporter: Reporter) -> None:
    if args.units < 32 or args.units % 4:
        raise ConfigError(f"--units: is {args.units}, must be a multiple of 4, 32 or more")
    layers = {name: _layer(args.cell, args.units, *made) for name, made in _structures(args.units).items()}
    rows: list[dict[str, object]] = []
    for core in chosen(args.core, None, reporter):
        rows += _rows(core, args.cell, layers, reporter)
    if not rows:
        raise ConfigError("gains: no core's tools are installed; the lines above name them")
    reporter.say(CAUTION)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _structures(units: int) -> dict[str, tuple[Structure, float]]:
    """Name -> of both matrices, and the share of blocks of 4 x 4 that is kept."""
    return {
        "dense": (Dense(), 1.0),
        **{f"kron {ratio}x": (Kron(target_ratio=ratio), 1.0) for ratio in (4, 8, 16)},
        **{f"kron {ratio}x stacked": (Kron(target_ratio=ratio, stacked=True), 1.0) for ratio in (8, 16)},
        **{f"hybrid {units // part} rows": (Hybrid(rows=units // part), 1.0) for part in (4, 8)},
        **{f"rank {units // part} stacked": (LowRank(rank=units // part, stacked=True), 1.0) for part in (4, 8)},
        **{f"blocks {share:.0%}": (Dense(), share) for share in (0.5, 0.3, 0.1)},
    }


def _layer(kind: str, units: int, structure: Structure, kept: float) -> cells.Cell:
    """A cell of 16-bit state whose matrices take 8 bits."""
    formats = Formats(x=Format(16, 12), h=Format(16, 12))
    options = {"kernel": structure, "recurrent": structure, "arith": Fixed(formats=formats)}
    graph, shapes = nnx.split(nnx.eval_shape(lambda: cells.CELLS[kind](units, units, **options, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda a: drawn(a, kept, rng), shapes))


def _rows(core: Core, kind: str, layers: dict[str, cells.Cell], reporter: Reporter) -> list[dict[str, object]]:
    """A row for each structure on one core; printed."""
    with tempfile.TemporaryDirectory() as folder:
        method, counted = work.instructions(core, list(layers.values()), Path(folder) / "all")
        gates = _gates(core, layers["dense"], Path(folder) / "gates")
    macs = [work.layers(layer)[0].macs for layer in layers.values()]
    units = layers["dense"].hidden_features
    reporter.say(f"{core.name}, {core.version()}, {core.macro or 'plain kernels'}; counted by {method}")
    reporter.say(f"{kind}, {units} units: {gates / units:.1f} instructions a unit besides products and their rounding")
    reporter.say(f"{'structure':20s} {'MACs':>9s} {'instructions':>12s} {'of MACs':>8s} {'gain':>6s} {'share':>6s}")
    rows = []
    for name, (count,), work_ in zip(layers, counted, macs):
        fewer, faster = macs[0] / work_, counted[0][0] / count
        reporter.say(f"{name:20s} {work_:9,d} {count:12,d} {fewer:7.2f}x {faster:5.2f}x {faster / fewer:6.0%}")
        row = {"core": core.name, "compiler": core.version(), "cell": kind, "structure": name, "macs": work_}
        rows.append(row | {"instructions": count, "mac_gain": fewer, "gain": faster, "gates": gates})
    return rows


def _gates(core: Core, layer: cells.Cell, folder: Path) -> int:
    """What a layer takes in a frame where products cost nothing."""
    kernels = folder / "kernels"
    shutil.copytree(KERNELS, kernels)
    (kernels / "matvec.c").write_text(NO_PRODUCTS, encoding="ascii")
    source = model.write(folder, "layer", layer, layout=core.layout)
    image = emulate.build(core, [source], folder, kernels=kernels)
    return emulate.count(core, image, [work.inputs(layer)], [1]).models[0][0]
