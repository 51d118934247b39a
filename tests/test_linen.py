"""Laws of every linen cell: parity with `flax.linen` and with the NNX cell of the same weights."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from members import CELLS, B, M, N, T, assert_close, assert_equal, each_cell, normal, quick

from rnnc import cells

FLAX = [(row, theirs) for row in CELLS for theirs in row.flax_linen]
each_flax = pytest.mark.parametrize(("row", "theirs"), FLAX, ids=[theirs.__name__ for _, theirs in FLAX])
STEPS = 3
BIAS = nn.initializers.normal(0.5)


def _pair(row, theirs, dtype=None):
    """Flax's cell with biases that are not zero, ours, and the parameters of both."""
    flax, ours = theirs(M, dtype=dtype), row.linen(M, dtype=dtype)
    x = jnp.zeros((1, N))
    shapes = jax.eval_shape(lambda: flax.init(jax.random.key(3), flax.initialize_carry(jax.random.key(0), x.shape), x))
    leaves, tree = jax.tree.flatten(shapes["params"])
    params = jax.tree.unflatten(tree, [0.4 * normal(80 + i, *leaf.shape) for i, leaf in enumerate(leaves)])
    return flax, params, ours, row.linen.from_flax(params)


def _apply(cell, params, x, **options):
    return nn.RNN(cell).apply({"params": {"cell": params}}, x, **options)


def _from_nnx(row):
    """An NNX cell and its weights for the linen cell, whose GRU has one bias more."""
    cell = row.nnx(N, M, bias_init=BIAS, rngs=nnx.Rngs(2))
    weights = cell.weights()
    extra = row.linen.step.recurrent_bias - row.nnx.step.recurrent_bias
    return cell, {"weights": weights | ({"recurrent_bias": jnp.zeros(extra * M)} if extra else {})}


# --- parity --------------------------------------------------------------------------------------------------


@each_flax
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_equal_to_flax(row, theirs, dtype):
    """The same bits; but Flax's LSTM and GRU make a product per gate where we make one: 8 roundings."""
    x = normal(1, B, T, N)
    tolerance = 0.0 if theirs is nn.OptimizedLSTMCell else 8 * 2.0 ** (-24 if dtype is None else -9)
    with jax.numpy_dtype_promotion("strict" if dtype is None else "standard"):
        flax, params, ours, weights = _pair(row, theirs, dtype)
        wanted, found = (
            quick(lambda p, cell=cell: _apply(cell, p, x, return_carry=True))(p)
            for cell, p in ((flax, params), (ours, weights))
        )
    assert [a.dtype for a in jax.tree.leaves(found)] == [a.dtype for a in jax.tree.leaves(wanted)]
    assert_close(found, wanted, tolerance)


@each_flax
def test_flax_and_back(row, theirs):
    _, params, ours, weights = _pair(row, theirs)
    assert_equal(ours.to_flax(weights), dict(params))


@each_cell
def test_own_parameters_have_the_form_that_from_flax_gives(row):
    """Fresh parameters have the names and sizes of those that are taken over."""
    x = normal(1, B, STEPS, N)
    fresh = jax.eval_shape(nn.RNN(row.linen(M)).init, jax.random.key(0), x)["params"]["cell"]
    _, weights = _from_nnx(row)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), fresh) == jax.tree.map(lambda a: (a.shape, a.dtype), weights)


@each_cell
def test_equal_to_the_nnx_cell(row):
    cell, weights = _from_nnx(row)
    x = normal(1, B, T, N)
    found = quick(lambda w: _apply(row.linen(M), w, x, return_carry=True))(weights)
    graph, state = nnx.split(cells.RNN(cell))
    assert_equal(found, quick(lambda s: nnx.merge(graph, s)(x, return_carry=True))(state))


# --- options -------------------------------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("time_major", [False, True], ids=["batch-first", "time-first"])
def test_all_options(row, time_major):
    """`nn.RNN` over our linen cell against `nnx.RNN` over our NNX cell, operation by operation: the same bits."""
    cell, weights = _from_nnx(row)
    x = normal(1, B, STEPS, N)
    carry = cell.initialize_carry((B, N), nnx.Rngs(5), nn.initializers.normal(0.5))
    directions = ({}, {"reverse": True}, {"reverse": True, "keep_order": True})
    limits = ({}, {"seq_lengths": jnp.array([2, 3, 1, 3])})
    carries = ({}, {"initial_carry": carry, "return_carry": True})
    with jax.disable_jit():
        for chosen in itertools.product(directions, limits, carries):
            options = {"time_major": time_major}
            for option in chosen:
                options |= option
            inputs = x.swapaxes(0, 1) if time_major else x
            assert_equal(_apply(row.linen(M), weights, inputs, **options), nnx.RNN(cell)(inputs, **options))


@each_flax
def test_bidirectional(row, theirs):
    """Within 4 roundings, as Flax makes a product per gate."""
    flax, params, ours, weights = _pair(row, theirs)
    x = normal(1, B, STEPS, N)
    both = []
    with jax.disable_jit():
        for cell, p in ((ours, weights), (flax, params)):
            p = {"forward_rnn": {"cell": p}, "backward_rnn": {"cell": jax.tree.map(lambda a: -a, p)}}
            module = nn.Bidirectional(nn.RNN(cell), nn.RNN(cell.clone()))
            both.append(module.apply({"params": p}, x, seq_lengths=jnp.array([2, 3, 1, 3]), return_carry=True))
    found, wanted = both
    assert_close(found, wanted, 4 * 2.0**-24)


@each_cell
def test_the_carry_starts_at_zero(row):
    carry = row.linen(M).initialize_carry(jax.random.key(0), (2, B, N))
    leaves = jax.tree.leaves(carry)
    assert len(leaves) == row.linen.step.state
    assert all((a == 0).all() and a.shape == (2, B, M) and a.dtype == jnp.float32 for a in leaves)
