"""Laws of every structure, against its dense matrix in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import count, each_arith, macs, normal, quick

from rnnc.arith import Float
from rnnc.structure import Dense, Hybrid, Kron, LowRank

INIT = jax.nn.initializers.lecun_normal()
STRUCTURES = {
    "dense": Dense(),
    "low-rank": LowRank(rank=3),
    "low-rank-ratio": LowRank(target_ratio=2.0),
    "low-rank-stacked": LowRank(rank=4, stacked=True),
    "kron": Kron(),
    "kron-terms": Kron(terms=3),
    "kron-ratio": Kron(target_ratio=1.4, terms=2),
    "kron-stacked": Kron(stacked=True),
    "hybrid": Hybrid(rows=2),
    "hybrid-ratio": Hybrid(target_ratio=1.3, rest=Kron(terms=2)),
    "hybrid-stacked": Hybrid(rows=2, stacked=True),
}
SHAPES = ((6, 32, 4), (12, 10, 1))  # inputs, outputs, gates
each_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@functools.cache
def _weights(structure, shape):
    *size, gates = shape
    return quick(lambda key: structure.init(key, tuple(size), INIT, jnp.float32, gates))(jax.random.key(0))


def _assert_product(found, x, structure, w, rounding, transposed=False):
    """found = x W, within the rounding of its sums: of at most 40 products each, in at most two stages.

    A bound on what cancels inside the structure: |x| |W|, with every array of its weights made positive.
    """
    matrix, bound = (np.asarray(quick(structure.dense)(v), np.float64) for v in (w, jax.tree.map(jnp.abs, w)))
    if transposed:
        matrix, bound = matrix.T, bound.T
    x = np.asarray(x, np.float64)
    allowed = (2 * 40 + 3) * rounding * (np.abs(x) @ bound)
    assert (np.abs(np.asarray(found, np.float64) - x @ matrix) <= allowed).all()


@each_structure
@each_arith
@each_shape
def test_apply_is_the_product_with_the_dense_matrix(structure, arith, shape):
    w = _weights(structure, shape)
    for batch in ((), (2, 3)):
        x = normal(1, *batch, shape[0])
        y = quick(lambda w, x: structure.apply(arith.arith, "gx", w, x))(w, x)
        assert y.dtype == (getattr(arith.arith, "dtype", None) or jnp.float32)
        assert y.shape == (*batch, shape[1])
        _assert_product(y, x, structure, w, arith.rounding)


def _explicit(structure, w, gates):
    """The matrix from its definition, entry by entry, gate after gate."""
    if isinstance(structure, Dense):
        return w["w"]
    blocks = []
    for g in range(1 if structure.stacked else gates):
        if isinstance(structure, LowRank):
            blocks.append(w["u"][g] @ w["v"][g])
            continue
        a, b = w["a"][g], w["b"][g]
        (terms, m1, n1), (_, m2, n2) = a.shape, b.shape
        block = np.zeros((n1 * n2, m1 * m2))
        for i1, i2, j1, j2 in np.ndindex(m1, m2, n1, n2):
            block[j1 * n2 + j2, i1 * m2 + i2] = sum(a[t, i1, j1] * b[t, i2, j2] for t in range(terms))
        blocks.append(np.concatenate([w["top"][g], block], axis=1) if isinstance(structure, Hybrid) else block)
    return np.concatenate(blocks, axis=1)


@each_structure
@each_shape
def test_dense_is_the_definition(structure, shape):
    w = _weights(structure, shape)
    wanted = _explicit(structure, jax.tree.map(lambda a: np.asarray(a, np.float64), w), shape[2])
    np.testing.assert_allclose(quick(structure.dense)(w), wanted, rtol=0, atol=1e-6)
    assert structure.shape(w) == shape[:2] == wanted.shape


@each_structure
@each_shape
@pytest.mark.parametrize(("dtype", "rounding"), [(jnp.float32, 2.0**-24), (jnp.bfloat16, 2.0**-9)])
def test_adjoint_is_the_product_with_the_transposed_matrix(structure, shape, dtype, rounding):
    w = _weights(structure, shape)
    dy = normal(2, 2, 3, shape[1]).astype(dtype)
    dx = quick(lambda w, dy: structure.adjoint(w)(dy))(w, dy)
    assert dx.dtype == dtype
    _assert_product(dx, dy.astype(jnp.float32), structure, w, rounding, transposed=True)


@each_structure
@each_shape
def test_gradients_are_those_of_the_dense_matrix(structure, shape):
    """The derivative of y = x W(w) in w, in float64, whichever order the products are made in."""
    with jax.enable_x64(True):
        w = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), _weights(structure, shape))
        x, dy = (jnp.asarray(np.asarray(normal(i, 3, k)), jnp.float64) for i, k in ((1, shape[0]), (2, shape[1])))
        ways = (lambda w, x: structure.apply(Float(), "gx", w, x)), (lambda w, x: x @ structure.dense(w))
        found, wanted = (quick(lambda w, x, dy, f=f: jax.vjp(f, w, x)[1](dy))(w, x, dy) for f in ways)
    jax.tree.map(lambda f, g: np.testing.assert_allclose(f, g, rtol=0, atol=1e-12), found, wanted)


@each_structure
@each_shape
def test_cost_is_what_the_program_does(structure, shape):
    w = _weights(structure, shape)
    cost = structure.cost(shape[:2], shape[2])
    x = normal(1, 1, shape[0])
    assert cost.macs == count(lambda w, x: structure.apply(Float(), "gx", w, x), w, x, of=macs)
    assert cost.parameters == sum(a.size for a in jax.tree.leaves(w))


class _Mids(Float):
    """Notes how many values are stored at middle points."""

    def dot(self, point, source, x, w):
        y = super().dot(point, source, x, w)
        if point.endswith(".mid"):
            sizes.append(y.size)
        return y


sizes = []


@each_structure
@each_shape
def test_scratch_is_what_lies_between_two_products(structure, shape):
    sizes.clear()
    args = _weights(structure, shape), normal(1, 1, shape[0])
    jax.eval_shape(lambda w, x: structure.apply(_Mids(), "gx", w, x), *args)
    assert structure.cost(shape[:2], shape[2]).scratch == sum(sizes)


@pytest.mark.parametrize("ratio", [2.0, 4.0, 16.0, 30.0])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", [LowRank, Hybrid])
def test_a_ratio_is_reached_and_no_more_is_lost_than_one_step(kind, stacked, ratio):
    """At least so many times fewer weights; with one more rank or free output there would be too many."""
    shape, gates = (384, 1024), 4
    whole = shape[0] * shape[1]
    structure = kind(target_ratio=ratio, stacked=stacked)
    kept = structure.cost(shape, gates).parameters
    step = {LowRank: "rank", Hybrid: "rows"}[kind]
    at = {LowRank: LowRank.rank_of, Hybrid: Hybrid.rows_of}[kind](structure, shape, gates)
    assert kept <= whole / ratio
    more = [kind(**{step: at + extra}, stacked=stacked) for extra in range(1, 4)]
    sizes = []
    for other in more:
        try:
            sizes.append(other.cost(shape, gates).parameters)
        except ValueError:  # the other outputs do not factor
            continue
    assert sizes
    assert min(sizes) > whole / ratio


@each_structure
@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (128, 128)], ids=str)
def test_init_has_the_variance_of_its_initializer(structure, shape, key):
    """1 / n for `lecun_normal`: of 16,384 draws known to about 1 %, of a product's to that of its measured target."""
    draw = quick(lambda key: structure.dense(structure.init(key, shape, INIT, jnp.float32, 4)))
    w = np.asarray(draw(key), np.float64)
    tolerance = 0.35 if isinstance(structure, LowRank) else 0.05  # (U V)^2 has its own sampling noise: few columns
    np.testing.assert_allclose(np.mean(w**2), 1 / shape[0], rtol=tolerance)
    assert abs(np.mean(w)) < 8 / np.sqrt(w.size * shape[0]) or not isinstance(structure, Dense)


@pytest.mark.parametrize("structure", [LowRank(rank=16), Kron()], ids=["low-rank", "kron"])
def test_variance_over_many_draws(structure, key):
    """The mean over 64 draws is that of the initializer, within 3 %."""
    keys = jax.random.split(key, 64)
    draw = quick(jax.vmap(lambda k: structure.dense(structure.init(k, (64, 48), INIT, jnp.float32))))
    np.testing.assert_allclose(np.mean(np.square(draw(keys))), 1 / 64, rtol=0.03)


@each_structure
def test_init_is_a_function_of_the_key_and_keeps_the_type(structure, key):
    draw = quick(lambda key: structure.init(key, (6, 32), INIT, jnp.bfloat16, 4))
    first, again, other = draw(key), draw(key), draw(jax.random.key(1))
    for name, leaf in first.items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, again[name])
        assert np.mean(leaf != other[name]) > 0.9


def test_gates_are_drawn_one_by_one(key):
    """The fan of an initializer is that of one gate, and no two gates are alike."""
    draw = jax.nn.initializers.variance_scaling(1.0, "fan_out", "normal")
    w = Dense().init(key, (100, 400), draw, jnp.float32, 4)["w"]
    np.testing.assert_allclose(np.var(w), 1 / 100, rtol=0.05)
    orthogonal = Kron().init(key, (16, 64), jax.nn.initializers.orthogonal(), jnp.float32, 4)
    for gate in np.split(np.asarray(Kron().dense(orthogonal), np.float64), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(16), atol=1e-5)


def test_structures_are_values():
    """They are static arguments of compiled functions: equal ones hash equally, different ones differ."""
    for structure in STRUCTURES.values():
        assert structure == type(structure)(**vars(structure))
        assert hash(structure) == hash(type(structure)(**vars(structure)))
    assert len(set(STRUCTURES.values())) == len(STRUCTURES)


ERRORS = {
    "none": (lambda: LowRank(), "LowRank: rank is 0 and target_ratio is 0, give one of them"),
    "both": (lambda: Hybrid(rows=2, target_ratio=4.0), "Hybrid: rows is 2 and target_ratio is 4, give one of them"),
    "rank": (lambda: LowRank(rank=7).cost((6, 8)), "rank is 7, must be at most 6 for a matrix of 6 x 8"),
    "rows": (lambda: Hybrid(rows=8).cost((6, 8)), "rows is 8, must be below the 8 outputs of a block"),
    "shapes": (
        lambda: Kron(shape_a=(2, 2), shape_b=(4, 4)).cost((6, 8)),
        "shape_a 2 x 2 and shape_b 4 x 4 make 8 outputs x 8 inputs, the matrix has 8 x 6",
    ),
    "one-shape": (lambda: Kron(shape_a=(2, 2)), "give shape_a and shape_b, or target_ratio, or none of them"),
    "prime": (lambda: Kron().cost((7, 8)), "7 inputs do not factor; the next size that does is 8"),
    "ratio": (lambda: LowRank(target_ratio=0.5), r"target_ratio: is 0\.5, must be 1 or more"),
    "stacked-rest": (lambda: Hybrid(rows=2, rest=Kron(stacked=True)), "rest.stacked: is true"),
    "no-rows": (lambda: Hybrid(target_ratio=40.0).cost((8, 8)), "no number of rows makes 8 outputs x 8 inputs 40"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    wrong, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        wrong()
