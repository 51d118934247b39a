"""Shapes of Kronecker factors, and warm starts: against enumeration, published sizes and singular values."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from members import CELLS, each_cell

from rnnc import cost, factors
from rnnc.audio.stft import Bands
from rnnc.compress import factor
from rnnc.model import Enhancer, Model
from rnnc.steps import STEPS, Core
from rnnc.structure import Dense, Hybrid, Joint, Kron, LowRank

SIZES = ((6, 8), (12, 12), (16, 24), (7, 8), (5, 7))  # inputs, outputs
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


@each_size
def test_shapes_are_all_there_are(size):
    n, m = size
    every = itertools.product(range(1, m + 1), range(1, n + 1), range(1, m + 1), range(1, n + 1))
    wanted = {
        ((m1, n1), (m2, n2)) for m1, n1, m2, n2 in every if m1 * m2 == m and n1 * n2 == n and m1 * n1 + m2 * n2 < n * m
    }
    found = factors.shapes(n, m)
    assert len(found) == len(set(found))
    assert {(f.a, f.b) for f in found} == wanted


@each_size
def test_rank_and_size_are_those_of_a_product(size):
    rng = np.random.default_rng(0)
    for f in factors.shapes(*size):
        a, b = rng.standard_normal(f.a), rng.standard_normal(f.b)
        assert np.linalg.matrix_rank(np.kron(a, b)) == f.rank
        assert a.size + b.size == f.parameters
        assert np.kron(a, b).shape == (f.outputs, f.inputs)


@each_size
def test_the_front_is_what_nothing_beats(size):
    def price(f):
        return np.array([f.parameters, f.macs, -f.rank])

    front, every = factors.pareto(*size), factors.shapes(*size)
    prices = {tuple(price(f)) for f in front}
    for f in every:
        beaten = any((price(g) <= price(f)).all() and (price(g) < price(f)).any() for g in every)
        assert (tuple(price(f)) in prices) != beaten


@pytest.mark.parametrize("ratio", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("size", [(128, 256), (256, 256), (384, 256), (256, 1024)], ids=str)
def test_a_chosen_pair_is_near_its_ratio_and_of_the_largest_rank(size, ratio):
    """Of pairs within 10 % of the wished size none has a larger rank; the denoiser's sizes all have such pairs."""
    wished = size[0] * size[1] / ratio
    found = factors.for_ratio(*size, ratio)
    near = [f for f in factors.shapes(*size) if wished / 1.1 <= f.parameters <= wished * 1.1]
    assert found in near
    assert found.rank == max(f.rank for f in near)


def test_sizes_without_factors_name_the_next_that_has_them():
    with pytest.raises(ValueError, match="179 outputs do not factor; the next size that does is 180"):
        factors.paper(256, 179)
    with pytest.raises(ValueError, match="7 outputs x 5 inputs have no Kronecker factors about 8 times smaller; 45"):
        factors.for_ratio(5, 7, 8.0)
    assert factors.for_ratio(5, 45, 8.0).parameters <= 1.1 * 5 * 45 / 8
    with pytest.raises(ValueError, match=r"target_ratio: is 0\.5, must be 1 or more"):
        factors.for_ratio(8, 8, 0.5)


# cell, inputs, units, classes; parameters of the dense and of the Kronecker layer; their ratio; KB of both models
PUBLISHED = {
    "mnist-lstm": ("lstm", 28, 40, 10, 11_040, 628, "17.6", "44.73", "4.05"),
    "kws-lstm": ("lstm", 10, 118, 12, 60_888, 2_488, "24.5", "243.42", "15.30"),
    "kws-gru": ("gru", 10, 154, 12, 76_230, 1_983, "38.4", "305.04", "15.01"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_of_the_published_models(name):
    """Factors per gate over [x; h] by the papers' rule, dense biases, a dense layer on top, 4 bytes a number."""
    cell, n, m, classes, *wanted = PUBLISHED[name]
    forms = Core(step=STEPS[cell]), Core(step=STEPS[cell], kernel=Kron(), recurrent=Joint())
    dense, kron = (cost.cell("l", core, n, m).parameters for core in forms)
    head = cost.dense("d", m, classes).parameters
    sizes = [f"{(layer + head) * cost.FLOAT_BYTES / 1024:.2f}" for layer in (dense, kron)]
    assert [dense, kron, f"{dense / kron:.1f}", *sizes] == wanted


# --- warm starts ---------------------------------------------------------------------------------------------


def _matrix(n, m, seed=0):
    return np.random.default_rng(seed).standard_normal((n, m))


def _lost(structure, w, gates):
    found = factor.project(structure, w, gates)
    return np.sum(np.square(np.asarray(structure.dense(found), np.float64) - w))


def _rearranged(w, m1, n1, m2, n2):
    """Row (i1, j1), column (i2, j2): the entry W^T[i1 m2 + i2, j1 n2 + j2], from loops."""
    table = np.zeros((m1 * n1, m2 * n2))
    for i1, i2, j1, j2 in np.ndindex(m1, m2, n1, n2):
        table[i1 * n1 + j1, i2 * n2 + j2] = w[j1 * n2 + j2, i1 * m2 + i2]
    return table


def _tail(matrix, kept):
    return np.sum(np.square(np.linalg.svd(matrix, compute_uv=False)[kept:]))


@pytest.mark.parametrize(("gates", "stacked"), [(1, False), (3, False), (3, True)], ids=str)
def test_what_is_lost_is_the_discarded_singular_values(gates, stacked):
    """To 1e-5 of the matrix: the weights are float32."""
    w = _matrix(12, 24)
    blocks = np.split(w, 1 if stacked else gates, axis=1)
    tolerance = {"rtol": 0, "atol": 1e-5 * np.sum(np.square(w))}
    wanted = sum(_tail(block, 3) for block in blocks)
    np.testing.assert_allclose(_lost(LowRank(rank=3, stacked=stacked), w, gates), wanted, **tolerance)
    for terms in (1, 2, 5):
        kron = Kron(terms=terms, stacked=stacked)
        (m1, n1), (m2, n2) = kron.factors(w.shape, gates)
        wanted = sum(_tail(_rearranged(block, m1, n1, m2, n2), terms) for block in blocks)
        np.testing.assert_allclose(_lost(kron, w, gates), wanted, **tolerance)
        hybrid = Hybrid(rows=4 if stacked else 2, rest=Kron(terms=terms), stacked=stacked)
        if len(blocks[0].T) - hybrid.rows in (6, 20, 22):
            rest = [block[:, hybrid.rows :] for block in blocks]
            (m1, n1), (m2, n2) = hybrid.rest.factors(rest[0].shape)
            wanted = sum(_tail(_rearranged(block, m1, n1, m2, n2), terms) for block in rest)
            np.testing.assert_allclose(_lost(hybrid, w, gates), wanted, **tolerance)


def test_a_matrix_of_the_structure_is_found_again():
    """Also with more terms than it has ranks."""
    a, b = _matrix(2, 3, 1), _matrix(4, 2, 2)
    for terms in (1, 9):
        assert _lost(Kron(shape_a=(2, 3), shape_b=(4, 2), terms=terms), np.kron(a, b).T, 1) < 1e-10
    assert _lost(LowRank(rank=2), _matrix(6, 2) @ _matrix(2, 8), 1) < 1e-10
    assert _lost(Dense(), np.float64(np.float32(_matrix(3, 4))), 1) == 0.0


SOURCE = Model(units=(12, 16), hidden=8, bands=Bands(count=24))
FULL = {  # structures that lose nothing: the new model computes what the trained one does
    "low-rank": (LowRank(rank=12), LowRank(rank=12, stacked=True)),
    "kron": (Kron(terms=99), Kron(terms=99)),
    "hybrid": (Hybrid(rows=4, rest=Kron(terms=99)), Hybrid(rows=4, rest=Kron(terms=99))),
    "hybrid-dense": (Hybrid(rows=4, rest=Kron(terms=99)), Dense()),
    "joint": (Kron(terms=99), Joint()),
    "dense": (Dense(), Dense()),
}


@functools.cache
def _drawn(model, seed):
    graph, state = nnx.split(Enhancer(model, rngs=nnx.Rngs(seed)), nnx.Param)
    return graph, jax.tree.map(np.asarray, nnx.to_pure_dict(state))


def _parts(model, seed):
    """Graph and parameters; the trees are the caller's own."""
    graph, params = _drawn(model, seed)
    return graph, jax.tree.map(lambda a: a, params)


@each_cell
@pytest.mark.parametrize("structures", FULL.values(), ids=FULL)
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
def test_a_start_in_full_structures_computes_the_same(row, structures, skip):
    """Within 1e-5 of outputs of size 0.5; a skipping stack whose gate is forced open is the bare one."""
    if skip and row is not CELLS[0] and structures is not FULL["kron"]:
        return  # the gate does not know the cell: one cell goes through all structures, the others through one
    source = dataclasses.replace(SOURCE, cell=row.name)
    if structures is FULL["low-rank"]:
        source = dataclasses.replace(source, units=(12, 12))
    target = dataclasses.replace(source, kernel=structures[0], recurrent=structures[1], skip=skip)
    graph, trained = _parts(source, 0)
    changed, fresh = _parts(target, 1)
    params = factor.start(trained, source, target, fresh)
    if skip:
        params["layers"][0]["cell"]["gate"]["bias"] = np.full(1, 50.0, np.float32)
    frames = np.random.default_rng(0).standard_normal((5, 2, 24)).astype(np.float32)
    found, wanted = (
        jax.jit(lambda p, x, g=g: nnx.merge(g, p).gains(x)[1])(p, frames)
        for g, p in ((changed, params), (graph, trained))
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.std(wanted) > 0.01


def test_other_differences_are_refused():
    _, trained = _parts(SOURCE, 0)
    for change in ({"units": (12, 12)}, {"hidden": 9}, {"cell": "gru"}):
        with pytest.raises(
            ValueError, match=f"start: {next(iter(change))} is .* only kernel, recurrent, skip, formats may"
        ):
            factor.start(trained, SOURCE, dataclasses.replace(SOURCE, **change), trained)
    with pytest.raises(ValueError, match="the trained model skips, the new one must too"):
        factor.start(trained, dataclasses.replace(SOURCE, skip=True), SOURCE, trained)


def test_units_come_in_order_of_their_energy():
    """The largest first, counted over all gates of both matrices."""
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(n, 3 * 5)) for n in (4, 5)]
    energy = [sum(float((w[:, unit::5] ** 2).sum()) for w in matrices) for unit in range(5)]
    assert factor.by_energy(matrices, 3).tolist() == sorted(range(5), key=lambda unit: -energy[unit])
