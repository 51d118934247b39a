"""Kernels for one kind of core give the bits of exact whole numbers, for every way that weights may lie in memory."""

import ctypes
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from kernels import Stack, build, pointer
from rnnc import cells, fixed
from rnnc.arith import Fixed, Formats
from rnnc.export import model
from rnnc.fixed import SUM, Format
from rnnc.structure import Dense, Hybrid, Kron, LowRank, Structure

MID = Format(16, 11)
# name: structure, shapes of its weights for n inputs and m outputs, blocks [inputs, outputs] that are kept or left out
DENSE = lambda n, m: {"w": (n, m)}
MATRICES = {
    "dense": (Dense(), DENSE, 48, 24, None),
    "dense-odd": (Dense(), DENSE, 35, 21, None),
    "dense-thin": (Dense(), DENSE, 19, 3, None),
    "lowrank": (LowRank(rank=8), lambda n, m: {"u": (2, n, 8), "v": (2, 8, m // 2)}, 32, 40, None),
    "lowrank-odd": (LowRank(rank=5), lambda n, m: {"u": (1, n, 5), "v": (1, 5, m)}, 13, 18, None),
    "kron": (Kron(), lambda n, m: {"a": (2, 1, 4, 2), "b": (2, 1, m // 8, n // 2)}, 40, 64, None),
    "kron-terms": (Kron(), lambda n, m: {"a": (1, 3, 2, 6), "b": (1, 3, m // 2, n // 6)}, 18, 14, None),
    "kron-a-first": (Kron(), lambda n, m: {"a": (1, 2, 4, 16), "b": (1, 2, m // 4, n // 16)}, 32, 8, None),
    "hybrid": (
        Hybrid(rows=4),
        lambda n, m: {"top": (2, n, 4), "a": (2, 1, 4, 4), "b": (2, 1, (m // 2 - 4) // 4, n // 4)},
        24,
        40,
        None,
    ),
    "few": (Dense(), DENSE, 48, 24, (1, 1)),
    "row-fours": (Dense(), DENSE, 48, 22, (4, 1)),
    "squares": (Dense(), DENSE, 48, 22, (4, 4)),
    "pairs": (Dense(), DENSE, 38, 16, (2, 4)),
}
BITS = ((8, 8), (8, 16), (4, 8), (4, 16), (16, 8))  # of weights and of x
LAYOUTS = ("rows", "tiles")
CORES = ("plain", "dsp", "avx2")


def core_flags(core: str) -> tuple[str, ...]:
    """Of this machine's compiler for the kernels of a core, Cortex-M's with its instructions in C."""
    if core == "avx2" and " avx2 " not in Path("/proc/cpuinfo").read_text(errors="replace"):
        pytest.skip("this machine has no AVX2")
    acle = f"-I{Path(__file__).parent / 'acle'}"
    return {"plain": (), "dsp": ("-DRNNC_DSP", acle), "avx2": ("-DRNNC_AVX2", "-mavx2")}[core]


def _weights(name: str, bits: int) -> dict[str, np.ndarray]:
    """On their grids: of all sizes, the first output as large as can be, the second one zero; left out where sparse."""
    _, shapes, n, m, block = MATRICES[name]
    rng, largest = np.random.default_rng(len(name)), (1 << bits - 1) - 1
    weights = {}
    for key, shape in shapes(n, m).items():
        inputs = -1 if key in "ab" else -2  # of a matrix [outputs, inputs], or [inputs, outputs]
        q = np.moveaxis(rng.integers(-largest, largest + 1, shape).astype(np.float64), inputs, -1)
        q[..., 0, :], q[..., 1:2, :] = largest * np.sign(q[..., 0, :] + 0.5), 0
        if block:
            chosen = rng.random((m // block[1] + 1, n // block[0] + 1)) < 0.2
            q *= np.kron(chosen, np.ones(block[::-1]))[:m, :n]
        q *= 2.0 ** -rng.integers(3, 14, q.shape[:-1])[..., None]
        weights[key] = np.moveaxis(q, -1, inputs)
    return weights


def _write(folder: Path, name: str, bits: int, x_bits: int, layout: model.Layout) -> Path:
    """A matrix as C."""
    structure = MATRICES[name][0]
    source = model._Source(f"{name}_{bits}_{x_bits}_{layout}".replace("-", "_"), layout)
    formats = Formats(weight_bits=bits)
    w = _weights(name, bits if x_bits == 8 or bits < 16 else 8)
    mat = model._mat(source, "w", structure, w, Format(x_bits, x_bits - 3), MID, formats)
    source.struct("", "rnnc_mat", mat.fields, public=True)
    path = folder / f"{source.name}.c"
    path.write_text("\n".join(['#include "rnnc.h"', f"extern const rnnc_mat {source.name};", *source.lines]))
    return path


def _dot(w: np.ndarray, x: np.ndarray, bits: int, source: Format, target: Format) -> np.ndarray:
    """x [T, n] times rows w [m, n] in unbounded numbers, rounded once and saturated."""
    bits = Formats(weight_bits=bits).bits_for(source)
    frac = np.asarray(fixed.weight_frac(w, (1,), bits)).ravel()
    q = np.ldexp(w, frac[:, None]).astype(np.int64)
    exact = (x.astype(np.int64) @ q.T) * 2.0 ** (target.frac - frac - source.frac)
    return np.clip(np.floor(exact + 0.5), target.lowest, target.highest).astype(np.int64)


def _product(structure: Structure, w: dict[str, np.ndarray], x: np.ndarray, bits: int, form: Format) -> np.ndarray:
    """What a matrix makes of x [T, n], from the definition of its structure."""
    if isinstance(structure, Dense):
        return _dot(w["w"].T, x, bits, form, SUM)
    parts = []
    for g in range(len(next(iter(w.values())))):
        if "top" in w:
            parts.append(_dot(w["top"][g].T, x, bits, form, SUM))
        if isinstance(structure, LowRank):
            parts.append(_dot(w["v"][g].T, _dot(w["u"][g].T, x, bits, form, MID), bits, MID, SUM))
            continue
        a, b = w["a"][g], w["b"][g]
        grid, b_first = x.reshape(len(x), a.shape[2], b.shape[2]), _cheaper(a.shape[1:], b.shape[1:])
        first, second = (b, a) if b_first else (a, b)
        lines = grid if b_first else grid.swapaxes(1, 2)
        flat = lines.reshape(-1, lines.shape[2])
        mids = [_dot(term, flat, bits, form, MID).reshape(*lines.shape[:2], -1) for term in first]
        joined = np.concatenate(mids, axis=1).swapaxes(1, 2)  # [T, outputs of first, terms x lines]
        rows = np.concatenate(list(second), axis=1)
        out = _dot(rows, joined.reshape(-1, joined.shape[2]), bits, MID, SUM).reshape(*joined.shape[:2], -1)
        parts.append((out.swapaxes(1, 2) if b_first else out).reshape(len(x), -1))
    return np.concatenate(parts, axis=1)


def _cheaper(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether to apply B before A, shapes (outputs, inputs)."""
    return a[1] * b[0] * (b[1] + a[0]) <= a[0] * b[1] * (a[1] + b[0])


@cache
def _matrices(folder: Path) -> list[tuple[str, int, int, Path]]:
    folder.mkdir()
    cases = [(name, *bits) for name in MATRICES for bits in BITS]
    return [(*case, _write(folder, *case, layout)) for case in cases for layout in LAYOUTS]


@pytest.mark.parametrize("core", CORES)
def test_products_are_those_of_whole_numbers(core, tmp_path, tmp_path_factory):
    """Every structure, order and size of weights; random, silent and extreme x, which need not lie at a word."""
    flags, matrices = core_flags(core), _matrices(tmp_path_factory.getbasetemp() / "matrices")
    library = build(tmp_path, *(path for *_, path in matrices), flags=flags)
    for name, bits, x_bits, path in matrices:
        structure, _, n, m, _ = MATRICES[name]
        form, q_bits = Format(x_bits, x_bits - 3), bits if x_bits == 8 or bits < 16 else 8
        x = np.random.default_rng(1).integers(form.lowest, form.highest + 1, (12, n)).astype(np.int16)
        x[4], x[5], x[6] = 0, form.highest, form.lowest
        expected = _product(structure, _weights(name, q_bits), x, bits, form)
        assert np.ptp(expected) > 1000
        mat = ctypes.byref(ctypes.c_char.in_dll(library, path.stem))
        scratch = np.zeros(library.rnnc_mat_scratch(mat), np.int32)
        for odd in (0, 1):
            for given, wanted in zip(x, expected):
                room, y = np.zeros(n + 1, np.int16), np.full(m, 5, np.int32)
                room[odd : odd + n] = given
                library.rnnc_matvec(mat, pointer(room[odd:][:n]), pointer(y), pointer(scratch))
                np.testing.assert_array_equal(y - 5, wanted, err_msg=f"{path.stem}, {odd}")


def test_all_orders_of_weights_are_tried(tmp_path_factory):
    """Every way to store a matrix is among those of the test above."""
    matrices = _matrices(tmp_path_factory.getbasetemp() / "matrices")
    stored = "\n".join(path.read_text() for *_, path in matrices)
    found = set(re.findall(r"\.bits = (\d+), \.tile = (\d)[^}]*?(map|steps|shifts) = ", stored))
    assert {(bits, tile, "shifts") for bits, tile in ("40", "80", "44", "84")} | {("16", "0", "shifts")} <= found
    assert {
        ("8", "0", "map"),
        ("8", "1", "steps"),
        ("8", "4", "steps"),
        ("4", "4", "steps"),
        ("4", "0", "map"),
    } <= found


def test_terms_fit_their_byte():
    w = {"a": np.ones((1, 256, 2, 2)), "b": np.ones((1, 256, 2, 2))}
    with pytest.raises(model.ExportError, match="w: has 256 terms, must be 255 at most"):
        model._mat(model._Source("m", "rows"), "w", Kron(), w, Format(8, 5), MID, Formats())


@pytest.mark.parametrize("core", CORES)
def test_arrays_are_moved_as_whole_numbers_are(core, tmp_path):
    """Every number of 16 bits by every shift to several widths, against `fixed`'s definition; odd counts, anywhere."""
    source = tmp_path / "probe.c"
    source.write_text(
        '#include "core.h"\n'
        "void probe(const int16_t *from, int16_t *to, uint32_t count, int s, int bits);\n"
        "void probe(const int16_t *from, int16_t *to, uint32_t count, int s, int bits)\n"
        "{ rnnc_move(from, to, count, s, bits); }\n"
    )
    probe = build(tmp_path, source, flags=core_flags(core)).probe
    numbers = np.random.default_rng(0).permutation(np.arange(-32768, 32768))[:-1].astype(np.int16)
    for s in range(-30, 31):
        for bits in (2, 8, 11, 16):
            form, out = Format(bits, 0), np.zeros(len(numbers) + 2, np.int16)
            probe(pointer(numbers[s & 1 :]), pointer(out[1:]), len(numbers) - (s & 1), s, bits)
            exact = np.clip(np.floor(numbers[s & 1 :] * 2.0**-s + 0.5), form.lowest, form.highest)
            np.testing.assert_array_equal(out[1 : len(exact) + 1], exact, err_msg=f"{s}, {bits}")
            assert out[0] == 0
            assert not out[len(exact) + 1 :].any()


@pytest.mark.parametrize("core", CORES[1:])
def test_cells_are_those_of_the_plain_kernels(core, tmp_path):
    """Gates and states, which other tests hold to Python for the plain kernels, with formats that shift either way."""
    flags, sources = core_flags(core), {}
    for kind in cells.CELLS:
        for bits, h, c in ((8, Format(16, 15), Format(16, 12)), (16, Format(9, 8), Format(16, 9))):
            taken = Format(bits, bits - 3)
            formats = Formats(x=taken, x_in=taken, h_in=taken, h=h, c=c, hn=Format(16, bits))
            cell = cells.CELLS[kind](11, 13, arith=Fixed(formats=formats), rngs=nnx.Rngs(0))
            name = f"{kind}{bits}"
            sources[name] = (model.write(tmp_path, name, cell, layout="tiles"), bits)
    for folder in ("plain", core):
        (tmp_path / folder).mkdir()
    files = [path for path, _ in sources.values()]
    plain, fast = build(tmp_path / "plain", *files), build(tmp_path / core, *files, flags=flags)
    for name, (_, bits) in sources.items():
        form = Format(bits, 0)
        x = np.random.default_rng(6).integers(form.lowest, form.highest + 1, (40, 11)).astype(np.int16)
        expected = Stack(plain, name, 13).run(x)[0]
        assert expected.astype(int).std() > 15
        np.testing.assert_array_equal(Stack(fast, name, 13).run(x)[0], expected, err_msg=name)
