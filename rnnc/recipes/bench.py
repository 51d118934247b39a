"""Speed, measured side by side: `python -m rnnc.recipes.bench train|structures|kernels|gains|latency|budget`.

A training step (forward, backward, Adam) of the TinyLSTMs-size model is timed for our cells, `flax.nnx`, `flax.linen`
and, where it is installed, PyTorch. Every competitor keeps its own process; steps are taken in turn, one process at a
time, so that all see the same machine. Ratios are of medians, to `linen.RNN(OptimizedLSTMCell)`; lower is faster.
`structures` does the same for our LSTM with compressed matrices, with skipping and in integers (8-bit weights, 8- or
16-bit inputs of the matrices); ratios are to the dense one. `kernels` counts instructions of a model's C code on chips,
`gains` those of a layer with each structure, `latency` those of random models, and fits lines to them; `budget` says
whether a model fits chips. They have options of their own.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rnnc.recipes import machine

BATCH, FRAMES, BANDS, UNITS, HIDDEN = 16, 250, 128, 256, 128
LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One competitor: a cell, who runs it, and whether the process keeps freed memory as recipes do."""

    cell: str
    variant: str
    recipe: bool = False
    structure: str = "dense"


ENTRIES = (
    Entry(cell="lstm", variant="linen"),
    Entry(cell="lstm", variant="nnx"),
    Entry(cell="lstm", variant="torch"),
    Entry(cell="lstm", variant="rnnc, library alone"),
    Entry(cell="lstm", variant="rnnc", recipe=True),
    Entry(cell="lstm", variant="linen, memory kept", recipe=True),
    Entry(cell="gru", variant="linen"),
    Entry(cell="gru", variant="rnnc", recipe=True),
    Entry(cell="fastrnn", variant="rnnc", recipe=True),
)
STRUCTURES = tuple(
    Entry(cell="lstm", variant=f"rnnc, {name}", recipe=True, structure=name)
    for name in (
        "dense",
        "kron stacked",
        "kron 16x",
        "low rank 64",
        "hybrid 25 %",
        "hybrid 16x",
        "skip",
        "int8",
        "int16",
    )
)
ALL = {"train": (ENTRIES, "ratio_to_linen"), "structures": (STRUCTURES, "ratio_to_dense")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["kernels"], ["gains"], ["latency"], ["budget"]):  # these import JAX, which workers set up first
        from rnnc.recipes import bench_budget, bench_gains, bench_kernels, bench_latency

        commands = {"kernels": bench_kernels, "gains": bench_gains, "latency": bench_latency, "budget": bench_budget}
        return commands[words[0]].main(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.bench",
        description="Time training steps of our cells, Flax and PyTorch side by side.",
        epilog="kernels: instructions of a model on chips; gains: of a layer with each structure; latency: lines "
        "through random models'; budget: whether a model fits chips. They have options of their own: kernels --help.",
    )
    parser.add_argument("what", choices=tuple(ALL), help="train: us and others; structures: our own, one to another")
    parser.add_argument(
        "--cores", type=int, nargs="+", help="numbers of cores to measure on (default: 1 and all up to 2)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each competitor (%(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there too")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    available = sorted(os.sched_getaffinity(0))
    cores = args.cores or sorted({1, min(2, len(available))})
    if args.rounds < 1 or min(cores) < 1 or max(cores) > len(available):
        print(f"error: --rounds must be 1 or more, --cores 1 to {len(available)}", file=sys.stderr)
        return 2
    if args.worker is not None:
        _serve(ALL[args.what][0][args.worker], cores[0])
        return 0
    rows = [row for count in cores for row in _measure(args.what, count, args.rounds)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _measure(what: str, cores: int, rounds: int) -> list[dict[str, object]]:
    """Rows of all competitors on so many cores; printed as they are known. The first one is the measure."""
    entries, ratio = ALL[what]
    chosen = [e for e in entries if e.variant != "torch" or importlib.util.find_spec("torch")]
    print(f"{cores} core(s): starting {len(chosen)} competitors", flush=True)
    workers = [_start(what, entries.index(entry), cores) for entry in chosen]
    try:
        for worker in workers:
            _ask(worker)  # compiled and warm
        times: list[list[float]] = [[] for _ in workers]
        for _ in range(rounds):
            for worker, taken in zip(workers, times):
                taken.append(_ask(worker))
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    medians = [statistics.median(taken) for taken in times]
    rows = []
    print(f"{'cell':8s} {'variant':20s} {'ratio':>6s} {'frames/s':>9s}  cores")
    for entry, median in zip(chosen, medians):
        row = {
            "cell": entry.cell,
            "variant": entry.variant,
            "cores": cores,
            ratio: round(median / medians[0], 3),
            "frames_per_s": round(BATCH * FRAMES / median),
        }
        rows.append(row)
        print(f"{entry.cell:8s} {entry.variant:20s} {row[ratio]:6.3f} {row['frames_per_s']:9d}  {cores}")
    return rows


def _start(what: str, index: int, cores: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "rnnc.recipes.bench",
        what,
        "--worker",
        str(index),
        "--cores",
        str(cores),
    ]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(worker: subprocess.Popen[str]) -> float:
    """Have a worker take one step; its seconds."""
    assert worker.stdin
    assert worker.stdout
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write("\n")
        worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit(f"error: a competitor ended with status {worker.wait()}; it says why above")
    return float(answer)


def _serve(entry: Entry, cores: int) -> None:
    """A worker: one step for each line read."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if entry.recipe:
        machine.prepare(BATCH, cores)
    elif entry.variant.startswith("rnnc"):
        import jax

        jax.config.update("jax_num_cpu_devices", cores)
    step = _torch(cores) if entry.variant == "torch" else _jax(entry)
    for _ in range(3):
        step()
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(time.perf_counter() - began, flush=True)


def _jax(entry: Entry) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    ours = entry.variant.startswith("rnnc")
    init, apply = _linen(entry) if entry.variant.startswith("linen") else _nnx(entry)
    rng = np.random.default_rng(0)
    batch = tuple(rng.random((BATCH, FRAMES, BANDS), np.float32) for _ in range(2))
    params, optimizer = init(jax.random.key(0), batch[0][:1]), optax.adam(1e-3)

    def step(params, state, x, y):
        def loss(params):
            return jnp.mean(jnp.square(apply(params, x) - y))

        value, gradients = jax.value_and_grad(loss)(params)
        if ours:
            value, gradients = jax.lax.pmean((value, gradients), "data")
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    if ours:  # data parallel over the cores, as in training
        mesh = Mesh(np.array(jax.devices()), ("data",))
        specs = (P(), P(), P("data"), P("data"))
        step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
        params, state = jax.device_put((params, state), NamedSharding(mesh, P()))
        batch = jax.device_put(batch, NamedSharding(mesh, P("data")))
    compiled = jax.jit(step, donate_argnums=(0, 1))
    held = [params, state]

    def run() -> None:
        held[0], held[1], value = compiled(held[0], held[1], *batch)
        jax.block_until_ready((held[0], value))

    return run


def _linen(entry: Entry):
    from flax import linen as nn

    cell = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[entry.cell]

    class Masker(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(LAYERS):
                x = nn.RNN(cell(UNITS))(x)
            return nn.sigmoid(nn.Dense(BANDS)(nn.relu(nn.Dense(HIDDEN)(x))))

    model = Masker()
    return model.init, model.apply


def _nnx(entry: Entry):
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from rnnc import cells
    from rnnc.arith import Fake, Formats
    from rnnc.fixed import Format
    from rnnc.structure import Dense, Hybrid, Kron, LowRank

    rngs = nnx.Rngs(0)
    structure = {
        "kron stacked": Kron(stacked=True),
        "kron 16x": Kron(target_ratio=16.0),
        "low rank 64": LowRank(rank=64, stacked=True),
        "hybrid 25 %": Hybrid(rows=LAYERS * UNITS // 2, stacked=True),
        "hybrid 16x": Hybrid(target_ratio=16.0),
    }.get(entry.structure, Dense())
    widths = [BANDS] + [UNITS] * LAYERS
    if entry.variant == "nnx":
        layers = [nnx.RNN(nnx.OptimizedLSTMCell(n, m, rngs=rngs), rngs=False) for n, m in itertools.pairwise(widths)]
    else:
        bits = {"int8": 8, "int16": 16}.get(entry.structure)
        wide, taken = Format(16, 15), Format(bits or 8, (bits or 8) - 1)
        arith = Fake(formats=Formats(x=wide, x_in=taken, h_in=taken, h=wide)) if bits else None
        make = partial(cells.CELLS[entry.cell], kernel=structure, recurrent=structure, arith=arith, rngs=rngs)
        stack = [make(n, m) for n, m in itertools.pairwise(widths)]
        alone = [cells.Skip(stack, rngs=rngs)] if entry.structure == "skip" else stack
        layers = [cells.RNN(cell) for cell in alone]

    class Masker(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List(layers)
            self.dense = nnx.Linear(UNITS, HIDDEN, rngs=rngs)
            self.mask = nnx.Linear(HIDDEN, BANDS, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:  # the carry is given, since nnx.RNN's own random stream cannot be in a gradient
                x = layer(x, initial_carry=(jnp.zeros((len(x), UNITS)),) * 2 if entry.variant == "nnx" else None)
            return jax.nn.sigmoid(self.mask(jax.nn.relu(self.dense(x))))

    graph, params, rest = nnx.split(Masker(), nnx.Param, ...)
    return lambda key, x: params, lambda params, x: nnx.merge(graph, params, rest)(x)


def _torch(cores: int) -> Callable[[], None]:
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(cores)
    torch.manual_seed(0)
    rnn = torch.nn.LSTM(BANDS, UNITS, LAYERS, batch_first=True)
    head = torch.nn.Sequential(
        torch.nn.Linear(UNITS, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, BANDS), torch.nn.Sigmoid()
    )
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], 1e-3)
    x, y = torch.rand(2, BATCH, FRAMES, BANDS)

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(head(rnn(x)[0]), y).backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    sys.exit(main())
