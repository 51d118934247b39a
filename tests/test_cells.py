"""Laws of every NNX cell and of `rnnc.cells.RNN`: parity with Flax, time, batches, gradients, options, transforms."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge
from jax.sharding import Mesh, PartitionSpec
from members import (
    CELLS,
    FLOAT_MEMBERS,
    B,
    M,
    N,
    T,
    assert_close,
    assert_equal,
    drawn_carry,
    each_cell,
    each_member,
    normal,
    quick,
)

from rnnc import cells
from rnnc.structure import Dense

FLAX = [(row, theirs) for row in CELLS for theirs in row.flax_nnx]
each_flax = pytest.mark.parametrize(("row", "theirs"), FLAX, ids=[theirs.__name__ for _, theirs in FLAX])
LENGTHS = jnp.array([4, T, 1, 7])


def _run(rnn, x):
    """Carry and outputs of an RNN of either library, compiled."""
    graph, state = nnx.split(rnn)
    return quick(lambda state, x: nnx.merge(graph, state)(x, return_carry=True))(state, x)


# --- parity with Flax ----------------------------------------------------------------------------------------


def _flax(theirs, dtype=None):
    return theirs(N, M, bias_init=nnx.initializers.normal(0.5), dtype=dtype, rngs=nnx.Rngs(3))


@each_flax
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_equal_to_flax(row, theirs, dtype):
    """The same bits; but `nnx.LSTMCell` makes four products of our one, which may round otherwise: 8 roundings."""
    flax = _flax(theirs, dtype)
    ours = row.nnx.from_flax(flax)
    x = normal(1, B, T, N)
    tolerance = 8 * 2.0 ** (-24 if dtype is None else -9) if theirs is nnx.LSTMCell else 0.0
    with jax.numpy_dtype_promotion("strict" if dtype is None else "standard"):
        wanted = _run(nnx.RNN(flax), x)
        for rnn in (cells.RNN(ours), nnx.RNN(ours))[: 1 if dtype else 2]:
            found = _run(rnn, x)
            assert [a.dtype for a in jax.tree.leaves(found)] == [a.dtype for a in jax.tree.leaves(wanted)]
            assert_close(found, wanted, tolerance)


@each_flax
def test_flax_and_back(row, theirs):
    flax = _flax(theirs)
    ours = row.nnx.from_flax(flax)
    back = ours.to_flax()
    assert_equal(row.nnx.from_flax(back).weights(), ours.weights())
    if type(back) is theirs:
        assert_equal(nnx.to_pure_dict(nnx.state(back, nnx.Param)), nnx.to_pure_dict(nnx.state(flax, nnx.Param)))


# --- time and batch ------------------------------------------------------------------------------------------


@each_member()
def test_chunks_are_the_whole(member):
    """Chunks of any length, and single calls of the cell, give the bits of the whole sequence."""
    rnn, x = cells.RNN(member.make()), np.asarray(normal(1, B, 71, N))
    graph, state = nnx.split(rnn)
    chunk = jax.jit(lambda carry, x: nnx.merge(graph, state)(x, initial_carry=carry, return_carry=True))
    step = jax.jit(lambda carry, x: nnx.merge(graph, state).cell(carry, x[:, 0]))
    first = drawn_carry(rnn.cell, B)
    ways = ((step, 1), (chunk, 7), (chunk, 1), (chunk, 2), (chunk, 64))[
        : 5 if member.structure.name == "dense" and member in FLOAT_MEMBERS else 2
    ]
    with member.arith.exact_types():
        whole = chunk(first, x)
        for call, length in ways:
            carry, parts = first, []
            for at in range(0, 71, length):
                carry, y = call(carry, x[:, at : at + length])
                parts.append(np.asarray(y).reshape(B, -1, M))
            assert_equal((carry, np.concatenate(parts, axis=1)), whole)


@each_member()
def test_a_batch_is_its_single_sequences(member):
    """Within 32 roundings: a product of one row may be summed in another order."""
    rnn, x = cells.RNN(member.make()), normal(1, B, T, N)
    graph, state = nnx.split(rnn)
    f = quick(lambda carry, x: nnx.merge(graph, state)(x, initial_carry=carry, return_carry=True))
    first = drawn_carry(rnn.cell, B)
    with member.arith.exact_types():
        whole = f(first, x)
        for b in range(B):
            single = f(jax.tree.map(lambda a, b=b: a[b], first), x[b])
            assert_close(single, jax.tree.map(lambda a, b=b: a[b], whole), 32 * member.arith.rounding)


@each_member()
def test_same_seed_same_cell(member):
    first, again, other = (member.make(seed=seed).weights() for seed in (1, 1, 2))
    assert_equal(again, first)
    assert all((other["kernel"][name] != w).all() for name, w in first["kernel"].items())


@each_member()
def test_state_is_float32(member):
    cell = member.make()
    carry = cell.initialize_carry((B, N))
    with member.arith.exact_types():
        for rnn in (cells.RNN(cell), nnx.RNN(cell)):
            after, y = nnx.eval_shape(lambda rnn, x: rnn(x, return_carry=True), rnn, normal(1, B, T, N))
            assert {a.dtype for a in jax.tree.leaves((carry, after, y))} == {jnp.dtype(jnp.float32)}
    assert all((a == 0).all() and a.shape == (B, M) for a in jax.tree.leaves(carry))


# --- gradients -----------------------------------------------------------------------------------------------


def _score(carry, y):
    """A scalar that every entry of the outputs and of the last carry moves by another amount."""
    leaves = [y, *jax.tree.leaves(carry)]
    return sum(jnp.sum(jnp.sin(normal(40 + i, *a.shape).astype(a.dtype) * a)) for i, a in enumerate(leaves))


def _ours(graph, lengths, state, carry, x):
    rnn = nnx.merge(graph, state)
    return _score(*rnn(x, initial_carry=carry, seq_lengths=lengths, return_carry=True))


def _plain(graph, lengths, state, carry, x):
    cell = nnx.merge(graph, state).cell
    params = cell.weights()

    def one(carry, x):
        carry = cell.core(params, carry, x)
        return carry, carry

    _, carries = jax.lax.scan(one, carry, x.swapaxes(0, 1))
    last = jax.tree.map(lambda a: a[lengths - 1, jnp.arange(a.shape[1])], carries)
    return _score(last, cell.core.output(carries).swapaxes(0, 1))


@each_member()
def test_gradient_is_that_of_the_plain_scan(member):
    """Floats in float64, within 1e-12 and from every carry too; others within 64 roundings of the largest entry."""
    exact = member in FLOAT_MEMBERS
    rnn = cells.RNN(member.make())
    graph, state = nnx.split(rnn)
    at = jax.tree.map(np.asarray, (state, drawn_carry(rnn.cell, B), normal(1, B, T, N)))
    with member.arith.exact_types(), jax.enable_x64(exact):
        at = jax.tree.map(lambda a: a.astype(np.float64 if exact else np.float32), at)
        plain = quick(jax.value_and_grad(partial(_plain, graph), (1, 2, 3)))
        for given, lengths in ((None, jnp.full(B, T)), (LENGTHS, LENGTHS))[: 2 if exact else 1]:
            ours = quick(jax.value_and_grad(partial(_ours, graph, given), (0, 1, 2)))
            found = ours(*at)
            assert_close(found, plain(lengths, *at), 1e-12 if exact else 64 * member.arith.rounding)
            if exact:
                _assert_slopes(ours, found[1], at)


def _assert_slopes(f, gradient, at):
    """Differences of fourth order along a direction, to 1e-8; one array at a time, lest a large one hide others."""
    leaves, tree = jax.tree.flatten(at)
    for i, leaf in enumerate(leaves):
        assert leaf.dtype == jnp.float64
        way = np.asarray(normal(60 + i, *leaf.shape))
        there, back, far, behind = (
            f(*jax.tree.unflatten(tree, [*leaves[:i], leaf + h * way, *leaves[i + 1 :]]))[0]
            for h in (1e-5, -1e-5, 2e-5, -2e-5)
        )
        slope = np.sum(jax.tree.leaves(gradient)[i] * way)
        np.testing.assert_allclose((8 * (there - back) - (far - behind)) / 12e-5, slope, rtol=1e-8, atol=1e-8)


# --- options -------------------------------------------------------------------------------------------------

STEPS = 3
LAYOUTS = {"unbatched": (), "batched": (B,), "two-axes": (2, 2)}
ROWS = [(row, layout) for row in CELLS for layout in LAYOUTS if layout == "batched" or row is CELLS[0]]
DIRECTIONS = ({}, {"reverse": True}, {"reverse": True, "keep_order": True})


def _options(batch, carry):
    """All combinations."""
    lengths = jnp.array([2, 3, 1, 3]).reshape(batch) if batch else None  # Flax needs a batch axis for lengths
    limits = ({}, {"seq_lengths": lengths}) if batch else ({},)
    starts, returns = ({}, {"initial_carry": carry}), ({"return_carry": False}, {"return_carry": True})
    for chosen in itertools.product(DIRECTIONS, limits, starts, returns):
        yield {name: value for option in chosen for name, value in option.items()}


def _of_flax(cell, x, options, time_major, batch):
    """`nnx.RNN`; two batch axes are made one where it cannot select the carry with two."""
    if len(batch) < 2 or not ("seq_lengths" in options and options["return_carry"]):
        return nnx.RNN(cell)(x, time_major=time_major, **options)
    count = int(np.prod(batch))
    flat = {**options, "seq_lengths": options["seq_lengths"].reshape(count)}
    if "initial_carry" in options:
        flat["initial_carry"] = jax.tree.map(lambda a: a.reshape(count, M), options["initial_carry"])
    x = x.reshape((STEPS, count, N) if time_major else (count, STEPS, N))
    carry, y = nnx.RNN(cell)(x, time_major=time_major, **flat)
    shape = (STEPS, *batch, M) if time_major else (*batch, STEPS, M)
    return jax.tree.map(lambda a: a.reshape(*batch, M), carry), y.reshape(shape)


@pytest.mark.parametrize(("row", "layout"), ROWS, ids=[f"{row.name}-{layout}" for row, layout in ROWS])
@pytest.mark.parametrize("time_major", [False, True], ids=["batch-first", "time-first"])
def test_all_options_of_flax(row, layout, time_major):
    """Operation by operation, for compiling every combination would take minutes; within 4 roundings.

    The axes are the business of `RNN` alone: one cell goes through all layouts, the others through the usual one.
    """
    batch = LAYOUTS[layout]
    cell = row.nnx(N, M, bias_init=nnx.initializers.normal(0.5), rngs=nnx.Rngs(0))
    x = normal(1, *((STEPS, *batch, N) if time_major else (*batch, STEPS, N)))
    with jax.disable_jit():
        for options in _options(batch, drawn_carry(cell, *batch)):
            wanted = _of_flax(cell, x, options, time_major, batch)
            assert_close(cells.RNN(cell)(x, time_major=time_major, **options), wanted, 4 * 2.0**-24)


@each_cell
def test_options_of_the_constructor_are_defaults(row):
    cell = row.nnx(N, M, rngs=nnx.Rngs(0))
    options = {"time_major": True, "return_carry": True, "reverse": True, "keep_order": True}
    x = normal(1, STEPS, B, N)
    with jax.disable_jit():
        assert_equal(cells.RNN(cell, **options)(x), cells.RNN(cell)(x, **options))
        off = dict.fromkeys(options, False)
        assert_equal(cells.RNN(cell, **options)(x, **off), cells.RNN(cell)(x))


@each_cell
@pytest.mark.parametrize("lengths", [None, jnp.array([2, 3, 1, 3])], ids=["whole", "lengths"])
def test_bidirectional(row, lengths):
    x = normal(1, B, STEPS, N)
    forward, backward = (row.nnx(N, M, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    options = {"return_carry": True, "seq_lengths": lengths}
    with jax.disable_jit():
        wanted = nnx.Bidirectional(nnx.RNN(forward), nnx.RNN(backward))(x, **options)
        found = nnx.Bidirectional(cells.RNN(forward), cells.RNN(backward))(x, **options)
    assert_equal(found, wanted)


@each_cell
def test_a_drawn_carry(row):
    cell = row.nnx(N, M, rngs=nnx.Rngs(0))
    draw = nnx.initializers.normal(1.0)
    first = cell.initialize_carry((B, N), nnx.Rngs(5), draw)
    assert_equal(cell.initialize_carry((B, N), nnx.Rngs(5).carry, draw), first)
    leaves = jax.tree.leaves(first)
    assert len({a.tobytes() for a in map(np.asarray, leaves)}) == len(leaves) == cell.core.step.state
    assert all((a != 0).all() for a in leaves)


# --- Flax's transforms ---------------------------------------------------------------------------------------


@each_cell
def test_split_merge_and_training(row):
    """A gradient through `nnx.value_and_grad` under `nnx.jit`, and a step of plain descent with it."""
    rnn, x = cells.RNN(row.nnx(N, M, rngs=nnx.Rngs(0))), normal(1, B, T, N)
    graph, state = nnx.split(rnn)
    assert all(isinstance(v, nnx.Param) for v in jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable)))
    assert_equal(nnx.merge(graph, state).cell.weights(), rnn.cell.weights())
    before = nnx.to_pure_dict(state)

    def loss(rnn):
        return jnp.mean(jnp.square(rnn(x) - 0.3))

    optimizer = nnx.Optimizer(rnn, optax.sgd(0.5), wrt=nnx.Param)

    @nnx.jit
    def train(rnn, optimizer):
        value, gradient = nnx.value_and_grad(loss)(rnn)
        optimizer.update(rnn, gradient)
        return value, gradient

    value, gradient = train(rnn, optimizer)
    wanted = jax.tree.map(lambda p, g: p - 0.5 * g, before, nnx.to_pure_dict(gradient))
    assert_close(nnx.to_pure_dict(nnx.state(rnn)), wanted, 2 * 2.0**-24)
    assert all((g != 0).any() for g in jax.tree.leaves(gradient))
    assert train(rnn, optimizer)[0] < value


@each_cell
def test_bridge_to_linen(row):
    x = normal(1, B, STEPS, N)
    module = bridge.ToLinen(lambda rngs: cells.RNN(row.nnx(N, M, rngs=rngs)))
    with jax.disable_jit():
        variables = module.init(jax.random.key(0), x)
    cell = row.nnx(N, M, rngs=nnx.Rngs(1))
    kept = variables["params"]["cell"]
    cell.set_weights(jax.tree.map(lambda a: a.value if hasattr(a, "value") else a, dict(kept)))
    with jax.disable_jit():
        assert_equal(module.apply(variables, x), cells.RNN(cell)(x))


@each_cell
def test_two_devices_are_one(row):
    """Loss and gradient averaged over two devices: within 32 roundings, for the batch is summed in two halves."""
    rnn, x = cells.RNN(row.nnx(N, M, rngs=nnx.Rngs(0))), normal(1, B, T, N)
    graph, state = nnx.split(rnn)

    def loss(state, x):
        return jnp.mean(jnp.square(nnx.merge(graph, state)(x) - 0.3))

    def mean(state, x):
        return jax.lax.pmean(jax.value_and_grad(loss)(state, x), "data")

    assert len(jax.devices()) == 2
    mesh = Mesh(np.array(jax.devices()), ("data",))
    specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec()}
    found = quick(jax.shard_map(mean, mesh=mesh, check_vma=False, **specs))(state, x)
    assert_close(found, quick(jax.value_and_grad(loss))(state, x), 32 * 2.0**-24)


# --- errors --------------------------------------------------------------------------------------------------


class Other(Dense):
    """A structure that is not the dense one."""


def _cell(**options):
    return cells.GRUCell(N, M, rngs=nnx.Rngs(0), **options)


def _flax_gru():
    return nnx.GRUCell(N, M, rngs=nnx.Rngs(0))


ERRORS = {
    "width": (
        lambda: _cell()(jnp.zeros((B, M)), jnp.zeros((B, 5))),
        r"GRUCell: inputs are \[4, 5\], must be \[\.\.\., 6\]",
    ),
    "rnn-width": (
        lambda: cells.RNN(_cell())(jnp.zeros((B, T, 5))),
        r"RNN: inputs are \[4, 9, 5\], must be \[\.\.\., T, 6\]",
    ),
    "rnn-axes": (lambda: cells.RNN(_cell())(jnp.zeros(N)), r"RNN: inputs are \[6\], must be \[\.\.\., T, 6\]"),
    "unroll": (lambda: cells.RNN(_cell(), unroll=2), "RNN: unroll is 2, must be 1"),
    "foreign": (lambda: cells.RNN(_flax_gru()), r"cell is GRUCell; only rnnc\.cells run here, use nnx\.RNN"),
    "lstm-type": (
        lambda: cells.LSTMCell.from_flax(_flax_gru()),
        r"LSTMCell\.from_flax: cell is GRUCell, must be nnx\.LSTM",
    ),
    "gru-type": (
        lambda: cells.GRUCell.from_flax(_cell()),
        r"GRUCell\.from_flax: cell is GRUCell, must be nnx\.GRUCell",
    ),
    "kernel": (
        lambda: cells.GRUCell.from_flax(_flax_gru(), kernel=Other()),
        r"from_flax: kernel is Other\(\), must be",
    ),
    "recurrent": (lambda: cells.GRUCell.from_flax(_flax_gru(), recurrent=Other()), "from_flax: recurrent is"),
    "carry": (
        lambda: _cell().initialize_carry((B, N), carry_init=nnx.initializers.ones),
        r"GRUCell\.initialize_carry: carry_init needs rngs, got None",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    wrong, message = ERRORS[case]
    with pytest.raises(TypeError if case in ("foreign", "lstm-type", "gru-type") else ValueError, match=message):
        wrong()


@each_cell
@pytest.mark.parametrize("sizes", [(0, M), (N, 0), (N, -2)], ids=str)
def test_sizes_below_one(row, sizes):
    with pytest.raises(ValueError, match=rf"{row.nnx.__name__}: (in|hidden)_features is -?\d, must be 1 or more"):
        row.nnx(*sizes, rngs=nnx.Rngs(0))
