"""Laws of every structure, against its dense matrix in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import STRUCTURES, count, each_arith, each_structure, macs, normal

from rnnc.arith import Float

INIT = jax.nn.initializers.lecun_normal()
SHAPES = ((7, 28), (1, 3))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def _assert_product(found, x, w, rounding):
    """found = x w, within the bound of a sum of n products whose factors, too, are rounded: (n + 3) u |x| |w|."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    bound = (w.shape[0] + 3) * rounding * (np.abs(x) @ np.abs(w))
    assert (np.abs(np.asarray(found, np.float64) - x @ w) <= bound).all()


@each_structure
@each_arith
@each_shape
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_apply_is_the_product_with_the_dense_matrix(structure, arith, shape, batch, key):
    w = structure.init(key, shape, INIT)
    x = normal(1, *batch, shape[0])
    y = structure.apply(arith.arith, "gx", w, x)
    assert y.dtype == getattr(arith.arith, "dtype", None) or jnp.float32
    assert y.shape == (*batch, shape[1])
    _assert_product(y, x, structure.dense(w), arith.rounding)


@each_structure
@each_shape
@pytest.mark.parametrize("batch", [(3,), (2, 3)], ids=str)
def test_adjoint_is_the_product_with_the_transposed_matrix(structure, shape, batch, key):
    w = structure.init(key, shape, INIT)
    dy = normal(2, *batch, shape[1])
    _assert_product(structure.adjoint(w)(dy), dy, structure.dense(w).T, 2.0**-24)


@each_structure
@each_shape
def test_adjoint_keeps_the_type_of_half_gradients(structure, shape, key):
    w = structure.init(key, shape, INIT)
    dy = normal(2, 3, shape[1]).astype(jnp.bfloat16)
    dx = structure.adjoint(w)(dy)
    assert dx.dtype == jnp.bfloat16
    _assert_product(dx, dy.astype(jnp.float32), structure.dense(w).T, 2.0**-9)


@each_structure
@each_shape
def test_adjoint_is_the_derivative_of_apply(structure, shape, key):
    """Within 1e-5: float32, in another order."""
    w = structure.init(key, shape, INIT)
    x, dy = normal(1, 3, shape[0]), normal(2, 3, shape[1])
    (dx,) = jax.vjp(lambda x: structure.apply(Float(), "gx", w, x), x)[1](dy)
    np.testing.assert_allclose(structure.adjoint(w)(dy), dx, rtol=0, atol=1e-5)


@each_structure
@each_shape
def test_cost_is_what_the_program_does(structure, shape, key):
    w = structure.init(key, shape, INIT)
    cost = structure.cost(shape)
    x = normal(1, 1, shape[0])
    assert cost.macs == count(lambda w, x: structure.apply(Float(), "gx", w, x), w, x, of=macs)
    assert cost.parameters == sum(a.size for a in jax.tree.leaves(w))


@each_structure
@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (128, 128)], ids=str)
def test_init_has_the_variance_of_its_initializer(structure, shape, key):
    """1 / n for `lecun_normal`, within 5%: the variance of 16,384 draws is known to about 1%."""
    w = np.asarray(structure.dense(structure.init(key, shape, INIT)), np.float64)
    np.testing.assert_allclose(np.mean(w**2), 1 / shape[0], rtol=0.05)
    assert abs(np.mean(w)) < 5 / np.sqrt(w.size * shape[0])


@each_structure
def test_init_is_a_function_of_the_key_and_keeps_the_type(structure, key):
    first, again = (structure.init(key, (5, 7), INIT, jnp.bfloat16) for _ in range(2))
    other = structure.init(jax.random.key(1), (5, 7), INIT, jnp.bfloat16)
    for name, leaf in first.items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, again[name])
        assert (leaf != other[name]).any()


def test_structures_are_values():
    """They are static arguments of compiled functions: equal ones hash equally, different ones differ."""
    for _, structure in STRUCTURES:
        assert structure == type(structure)(**vars(structure))
        assert hash(structure) == hash(type(structure)(**vars(structure)))
    assert len({structure for _, structure in STRUCTURES}) == len(STRUCTURES)
