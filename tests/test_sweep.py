"""Random matrices on emulated cores: what the kernels give at every size equals the plain kernels of this machine.

Structures, widths up to 180 in both directions, weights of 4, 8 and 16 bits, both layouts, kept blocks: all products in
one image. Nothing is read or written outside of inputs, outputs, scratch and weights.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kernels import KERNELS, core
from rnnc.arith import Formats
from rnnc.export import emulate, model
from rnnc.export.records import Array, Struct
from rnnc.fixed import Format
from rnnc.structure import Dense, Hybrid, Kron, LowRank

HEADER = """#ifndef SWEEP_H
#define SWEEP_H
#include "rnnc.h"
typedef struct {
    const rnnc_mat *mat;
    uint32_t bytes[3]; /* of weights: plain, first, second */
} sweep_matrix;
extern const sweep_matrix sweep_matrices[];
extern const uint32_t sweep_count;
#endif
"""
BITS = ((8, 8), (8, 16), (4, 8), (4, 16), (16, 8))  # of weights and of x
KINDS = ("dense", "pruned", "lowrank", "kron", "thin", "hybrid")


def _weights(rng: np.random.Generator, kind: str) -> tuple[object, dict[str, tuple[int, ...]]]:
    """A structure and the shapes of its weights."""
    blocks, n, m = int(rng.integers(1, 5)), int(rng.integers(1, 181)), int(rng.integers(1, 181))
    if kind in ("dense", "pruned"):
        return Dense(), {"w": (n, m)}
    if kind == "lowrank":
        rank = int(rng.integers(1, 40))
        return LowRank(rank=rank), {"u": (blocks, n, rank), "v": (blocks, rank, -(-m // blocks))}
    terms, (m1, n1, m2, n2) = int(rng.integers(1, 4)), rng.integers(1, 14, 4)
    if kind == "thin":  # the first factor has a few rows of a few inputs, which meet many lines side by side
        m1, n1, m2, n2 = int(rng.integers(20, 60)), int(rng.integers(4, 20)), *map(int, rng.integers(1, 5, 2))
    elif rng.random() < 0.5:  # one factor is large
        m1, n2 = int(rng.integers(1, 70)), int(rng.integers(1, 40))
    factors = {"a": (blocks, terms, m1, n1), "b": (blocks, terms, m2, n2)}
    if kind in ("kron", "thin"):
        return Kron(), factors
    rows = int(rng.integers(1, 20))
    return Hybrid(rows=rows), {"top": (blocks, n1 * n2, rows)} | factors


def _drawn(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]], bits: int, kind: str) -> dict[str, np.ndarray]:
    """On their grids: of all sizes, with rows of zeros and of the largest, and left out in blocks where pruned."""
    largest, weights = (1 << bits - 1) - 1, {}
    for key, shape in shapes.items():
        inputs = -1 if key in "ab" else -2
        q = np.moveaxis(rng.integers(-largest, largest + 1, shape).astype(np.float64), inputs, -1)
        q[..., 0, :] = largest * np.sign(q[..., 0, :] + 0.5)
        q[..., q.shape[-2] // 2, :] *= rng.random() < 0.8
        if kind == "pruned":
            block = ((1, 1), (1, 2), (1, 4), (4, 2), (4, 4))[rng.integers(5)]
            kept = rng.random([-(-size // b) for size, b in zip(q.shape, block)]) < rng.choice([0.02, 0.2])
            q *= np.kron(kept, np.ones(block))[: q.shape[0], : q.shape[1]]
        q *= 2.0 ** -rng.integers(1, 12, q.shape[:-1])[..., None]
        weights[key] = np.moveaxis(q, -1, inputs)
    return weights


def _bytes(mat: Struct, part: str) -> int:
    plain = mat.fields.get(part)
    held = plain.fields["weights"] if isinstance(plain, Struct) else None
    return held.data.nbytes if isinstance(held, Array) else 0


def _written(folder: Path, count: int, seed: int) -> list[np.ndarray]:
    """sweep.h and sweep.c with so many matrices of every kind; returns the inputs of each, for both placements."""
    rng = np.random.default_rng(seed)
    rows, inputs, text = [], [], ['#include "sweep.h"']
    while len(rows) < count * len(KINDS):
        i = len(rows)
        kind, (bits, x_bits) = KINDS[i % len(KINDS)], BITS[i // len(KINDS) % len(BITS)]
        layout = ("rows", "tiles")[int(rng.integers(2))]
        source = model._Source(f"m{i}", layout)
        structure, shapes = _weights(rng, kind)
        w = _drawn(rng, shapes, bits if x_bits == 8 or bits < 16 else 8, kind)
        taken, mid = Format(x_bits, x_bits - 3), Format(*((8, 5), (16, 9), (16, 11), (16, 14))[int(rng.integers(4))])
        try:
            mat = model._mat(source, "w", structure, w, taken, mid, Formats(weight_bits=bits))
        except model.ExportError:  # a sum could overflow
            continue
        source.struct("", "rnnc_mat", mat.fields)
        text += source.lines
        sizes = ", ".join(str(_bytes(mat, part)) for part in ("plain", "first", "second"))
        rows.append(f"    {{&m{i}, {{{sizes}}}}},")
        n = int(mat.fields["inputs"])
        x = rng.integers(taken.lowest, taken.highest + 1, (2, n))
        x[0, rng.random(n) < 0.2] = taken.lowest
        inputs.append(x.astype(np.int16))
    text += ["const sweep_matrix sweep_matrices[] = {", *rows, "};", f"const uint32_t sweep_count = {len(rows)};", ""]
    (folder / "sweep.h").write_text(HEADER)
    (folder / "sweep.c").write_text("\n".join(text))
    return inputs


def _kernels(folder: Path) -> Path:
    """The kernels with this sweep in the place of the image that runs models."""
    kernels = folder / "kernels"
    shutil.copytree(KERNELS, kernels, dirs_exist_ok=True)
    shutil.copy(Path(__file__).parent / "sweep_image.c", kernels / "targets" / "image.c")
    for name in ("sweep.h", "sweep.c"):
        shutil.copy(folder / name, kernels / name)
    return kernels


def _outputs(key: str, folder: Path, inputs: list[np.ndarray], *flags: str) -> np.ndarray:
    """What a core computes."""
    chip, here = core(key), folder / key / flags[0]
    image = emulate.build(chip, [], here, kernels=_kernels(folder), flags=flags)
    emulate._emulate(chip, image, "run", [np.concatenate([x.ravel() for x in inputs])[None]])
    return np.fromfile(here / "out.bin", np.int32)


CORES = ("m55", "m55-clang", "m4", "host-avx2")


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, list[np.ndarray], np.ndarray]:
    """A folder with matrices, their inputs, and what the plain kernels of this machine make of them."""
    return _swept(tmp_path_factory.mktemp("sweep"), 20, 0)


def _swept(folder: Path, count: int, seed: int) -> tuple[Path, list[np.ndarray], np.ndarray]:
    inputs = _written(folder, count, seed)
    wanted = _outputs("host", folder, inputs, "-O2")
    assert len(np.unique(wanted)) > 1000
    return folder, inputs, wanted


@pytest.mark.parametrize("key", CORES)
def test_random_products_are_those_of_the_plain_kernels(key, swept):
    folder, inputs, wanted = swept
    np.testing.assert_array_equal(_outputs(key, folder, inputs, "-O2"), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "flag"), [(1, "-O1"), (2, "-O2"), (3, "-O3"), (4, "-Os")])
def test_more_random_products(seed, flag, tmp_path):
    """As above, 1,440 matrices, at every level of optimisation, on all cores with kernels of their own."""
    folder, inputs, wanted = _swept(tmp_path, 60, seed)
    for key in (*CORES, "m7", "m33"):
        found = _outputs(key, folder, inputs, flag)
        np.testing.assert_array_equal(found, wanted, err_msg=f"{key} {flag}, seed {seed}")


@pytest.mark.parametrize("key", ["m4", "m55"])
@pytest.mark.parametrize("at", ["parts[0].before[PAGE - 1]", "parts[PARTS].before[0]"])
def test_a_trespass_fails(key, at, tmp_path):
    """So that an image that ends has kept within its bounds: a read of the byte before them, or behind."""
    inputs = _written(tmp_path, 1, 0)
    with pytest.raises(emulate.EmulatorError, match="failed with status"):
        _outputs(key, tmp_path, inputs, "-O1", f"-DSWEEP_TRESPASS=(void)*(volatile uint8_t *)&{at}")
