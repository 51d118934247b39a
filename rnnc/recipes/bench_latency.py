"""A line through the instructions of random models, for each kind of kernel on each core; see `bench`."""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnnc import cells
from rnnc.arith import Fixed, Formats
from rnnc.audio.stft import Bands, Stft
from rnnc.config import ConfigError
from rnnc.export import emulate, latency, work
from rnnc.export.emulate import Core
from rnnc.export.host import KERNELS
from rnnc.export.latency import KINDS, TERMS, Latency
from rnnc.fixed import Format
from rnnc.model import Enhancer, Model
from rnnc.recipes.bench_kernels import CAUTION, chosen, options, status
from rnnc.recipes.console import Reporter
from rnnc.recipes.run import commit
from rnnc.structure import Dense, Hybrid, Kron, LowRank, Structure

FRONTS = (
    (64, 32, 8),
    (128, 64, 8),
    (256, 128, 32),
    (256, 64, 16),
    (512, 256, 128),
    (512, 256, 32),
    (1024, 256, 64),
)
FRONTS += ((1024, 512, 128), (2048, 512, 128))  # window, hop, bands
KEPT = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the blocks of a pruned model


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.bench latency",
        description="Count random models on each core whose tools are there, and fit lines by the kind of kernel.",
    )
    parser.add_argument("--models", type=int, default=75, help="how many random models, 5 or more (%(default)s)")
    options(parser)
    args = parser.parse_args(argv)
    return status(lambda reporter: _latency(args, reporter))


def _latency(args: argparse.Namespace, reporter: Reporter) -> None:
    models = [_random(i) for i in range(args.models)]
    fronts = [_with_front(*sizes) for sizes in FRONTS]
    layers = [layer for model in models for layer in work.layers(model)]
    fits = {}
    for core in chosen(args.core, None, reporter):
        name = next(name for name, known in emulate.CORES.items() if known is core)
        fits[name] = _fitted(core, models, layers, fronts)
        reporter.say(f"{core.name}, {core.version()}; {len(models)} models, {len(layers)} layers")
        reporter.say("\n".join(_table(fits[name])))
        if args.json:  # what is done is kept
            command = f"python -m rnnc.recipes.bench latency --models {args.models} --json FILE"
            latency.write(args.json, fits, {"command": command, "commit": commit()})
    if not fits:
        raise ConfigError("latency: no core's tools are installed; the lines above name them")
    reporter.say(CAUTION)


def _fitted(core: Core, models: Sequence[list], layers: list[work.Work], fronts: Sequence[Enhancer]) -> Latency:
    """The lines of one core, and the bytes of its code."""
    with tempfile.TemporaryDirectory() as folder:
        _, counted = work.instructions(core, models, Path(folder))
        _, heard = work.instructions(core, fronts, Path(folder) / "sound", sound=True)
        code = 0 if not core.script else emulate.code_bytes(core, sorted(KERNELS.glob("*.c")), Path(folder) / "code")
    found = latency.fit(core.name, core.version(), layers, [n for model in counted for n in model])
    ends = [(model.model.stft, model.model.bands.count) for model in fronts]
    return replace(found, front=latency.fit_front(ends, [counts[-1] for counts in heard]), code_bytes=code)


def _table(fit: Latency) -> list[str]:
    terms = "  ".join(f"{term:>7s}" for term in TERMS)
    lines = [f"{'kind':8s} {'layers':>6s}  {terms}      r2   worst  r2 of MACs alone"]
    for kind, line in fit.lines.items():
        terms = "  ".join(f"{each:7.2f}" for each in line.per)
        lines.append(f"{kind:8s} {line.layers:6d}  {terms}  {line.r2:.4f} {line.worst:7.1%}  {line.macs_r2:.4f}")
    front = fit.front
    lines.append(f"and {fit.per_elementwise:.2f} for each elementwise operation; the front end {front.per_pass:.2f} a")
    lines.append(f"number and pass, {front.per_sample:.2f} a sample, {front.per_band:.2f} a band ({front.worst:.1%});")
    return [*lines, f"code {fit.code_bytes:,d} bytes"]


def _with_front(window: int, hop: int, bands: int) -> Enhancer:
    """A tiny network behind a front end of these sizes."""
    model = Model(stft=Stft(window=window, hop=hop), bands=Bands(count=bands), units=(4,), hidden=4)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Enhancer(model, rngs=nnx.Rngs(0))))
    return work.integers(nnx.merge(graph, jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes)))


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
        options |= {"kernel_init": nnx.initializers.zeros, "recurrent_kernel_init": nnx.initializers.zeros}
        graph, shapes = nnx.split(
            nnx.eval_shape(lambda n=n, m=m, options=options: cell(n, m, **options, rngs=nnx.Rngs(0)))
        )
        kept = float(rng.choice(KEPT)) if kind == "sparse" else 1.0
        stack.append(nnx.merge(graph, jax.tree.map(lambda a, kept=kept: drawn(a, kept, rng), shapes)))
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


def drawn(a: jax.ShapeDtypeStruct, kept: float, rng: np.random.Generator) -> jax.Array:
    """Normal numbers; of a pruned matrix so many blocks of 4 inputs by 4 outputs."""
    drawn = rng.standard_normal(a.shape).astype(np.float32)
    if a.ndim == 2 and kept < 1:
        blocks = rng.random((a.shape[0] // 4, a.shape[1] // 4)) < kept
        drawn *= np.kron(blocks, np.ones((4, 4), np.float32))
    return jnp.asarray(drawn)
