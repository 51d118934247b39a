"""Laws of skipping, for stacks of every cell and structure."""

import functools
import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from members import (
    CELLS,
    STRUCTURES,
    B,
    CellRow,
    M,
    N,
    StructureRow,
    T,
    assert_close,
    assert_equal,
    each_cell,
    normal,
    quick,
)

from rnnc import cells, linen
from rnnc.skip import LONGEST, SkipCore, frames_to_skip, updates
from rnnc.structure import Joint, Structure
from rnnc.train import checkpoint

LENGTHS = jnp.array([4, T, 1, 7])
OPEN = 50.0  # a gate's bias that makes its increment 1 in every float


class Stack(NamedTuple):
    """Cells of one kind, the lowest first, each with its structures; a lower one is wider than the top."""

    cell: CellRow
    structures: tuple[StructureRow, ...]

    def sizes(self) -> list[tuple[int, int, Structure, Structure | Joint]]:
        """Inputs, units and structures of each cell."""
        widths = [N, *[M + 2] * (len(self.structures) - 1), M]
        return [(n, m, row.kernel, row.recurrent) for n, m, row in zip(widths, widths[1:], self.structures)]

    def fresh(self) -> list[cells.Cell]:
        return [self.cell.nnx(n, m, kernel=k, recurrent=r, rngs=nnx.Rngs(0)) for n, m, k, r in self.sizes()]

    def make(self, **options) -> cells.Skip:
        """With a gate that moves so much with the state that sleeps of many lengths occur."""
        cell = nnx.eval_shape(lambda: cells.Skip(self.fresh(), rngs=nnx.Rngs(0), **options))
        cell.set_weights(_weights(self))
        return cell


@functools.cache
def _weights(stack: Stack):
    """Normal numbers."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: cells.Skip(stack.fresh(), rngs=nnx.Rngs(0)).weights()))
    params = jax.tree.unflatten(tree, [0.5 * normal(80 + i, *leaf.shape) for i, leaf in enumerate(leaves)])
    return params | {"gate": {"kernel": 4 * normal(7, M, 1), "bias": jnp.array([-2.0])}}


PAIRS = tuple(zip(STRUCTURES, (*STRUCTURES[1:], STRUCTURES[0])))  # every structure once below and once on top
STACKS = tuple(Stack(cell, pair) for cell, pair in zip(itertools.cycle(CELLS), PAIRS))
# The laws that are the business of the gate, not of the matrices, go through fewer; a single cell is one of them.
FEW = (*STACKS[-2:], Stack(CELLS[2], STRUCTURES[:1]))


def each_stack(stacks: tuple[Stack, ...] = STACKS):
    names = ["-".join((stack.cell.name, *(row.name for row in stack.structures))) for stack in stacks]
    return pytest.mark.parametrize("stack", stacks, ids=names)


def _drawn(cell, *batch):
    """A carry in which nothing is as at the start, so that some gates are about to open and some are not."""
    leaves, tree = jax.tree.flatten(cell.initialize_carry((*batch, N)))
    carry = jax.tree.unflatten(tree, [0.5 * normal(60 + i, *leaf.shape) for i, leaf in enumerate(leaves)])
    rng = np.random.default_rng(6)
    numbers = [jnp.asarray(rng.uniform(low, high, (*batch, 1)), jnp.float32) for low, high in ((0, 0.5), (0.05, 1))]
    return carry._replace(probability=numbers[0], increment=numbers[1], updates=jnp.full((*batch, 1), 3.0))


def _float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


# --- the equations ------------------------------------------------------------------------------------------------


def _reference(core, params, carry, xs, longest):
    """The reference code's order of operations, sequence by sequence, in numpy; the cells alone are ours."""
    candidates = jax.jit(lambda c, w, s, x: c(w, s, x), static_argnums=0)
    w, b = (np.asarray(params["gate"][name]) for name in ("kernel", "bias"))
    outputs, lasts = [], []
    for i in range(xs.shape[1]):
        states, ut, du, count = jax.tree.map(lambda a, i=i: np.asarray(a[i]), tuple(carry))
        ys = []
        for x in xs[:, i]:
            ut = ut + np.minimum(du, 1 - ut)
            u = float(ut[0] > 0.5)
            new = []
            for cell, weights, held in zip(core.cores, params["cells"], states):
                new.append(candidates(cell, weights, held, x))
                x = new[-1][-1] if cell.step.state > 1 else new[-1]
            top = new[-1][0] if core.cores[-1].step.state > 1 else new[-1]
            states = jax.tree.map(lambda a, b, u=u: u * np.asarray(a) + (1 - u) * np.asarray(b), tuple(new), states)
            share = np.maximum(1 / (1 + np.exp(-(np.asarray(top) @ w + b))), 0.5 / (longest + 0.5))
            du, ut, count = u * share + (1 - u) * du, (1 - u) * ut, count + u
            ys.append(states[-1][-1] if core.cores[-1].step.state > 1 else states[-1])
        outputs.append(np.stack(ys))
        lasts.append((states, ut, du, count))
    return jax.tree.map(lambda *a: np.stack(a), *lasts), np.stack(outputs, axis=1)


@each_stack(FEW)
def test_skipping_is_its_equations(stack):
    """Within 1e-12 in float64, where no probability of these comes so near to a half."""
    cell, steps = stack.make(longest=6), 12
    with jax.enable_x64(True):
        params, carry, xs = _float64((cell.weights(), _drawn(cell, B), normal(1, steps, B, N)))
        run = quick(lambda p, c, xs: cells.unroll_skip(cell.core, False, p, c, xs))
        last, ys = run(params, carry, xs)
        wanted, outputs = _reference(cell.core, params, carry, xs, 6)
        assert_close((tuple(last), ys), (wanted, outputs), 1e-12)
        assert 0 < np.mean(last.updates - 3) < steps - 1


@each_stack(FEW)
def test_an_open_gate_is_the_bare_stack(stack):
    """Operation by operation, for a compiler may round two programs differently: the same bits."""
    wanted = x = normal(1, B, 4, N)
    skip = stack.make()
    skip.set_weights(skip.weights() | {"gate": {"kernel": jnp.zeros((M, 1)), "bias": jnp.full((1,), OPEN)}})
    with jax.disable_jit():
        carry, found = cells.RNN(skip, return_carry=True)(x)
        for cell in skip.cells:
            wanted = cells.RNN(cell)(wanted)
    assert_equal(found, wanted)
    np.testing.assert_array_equal(updates(carry), np.full(B, 4, np.float32))


@each_stack(FEW)
def test_what_is_skipped_is_held_and_not_seen(stack):
    """On a skipped frame neither the states nor the output move, whatever the frame holds."""
    cell = stack.make(longest=5)
    graph, state = nnx.split(cell)
    step = jax.jit(lambda carry, x: nnx.merge(graph, state)(carry, x))
    carry, xs, slept = _drawn(cell, B), normal(1, 40, B, N), 0
    for x in xs:
        asleep = np.asarray(frames_to_skip(carry)) > 0
        x = jnp.where(jnp.asarray(asleep)[:, None], jnp.nan, x)
        before, (carry, y) = carry, step(carry, x)
        np.testing.assert_array_equal(updates(carry), np.asarray(updates(before)) + ~asleep)
        held, now = (jax.tree.map(lambda a, i=asleep: np.asarray(a)[i], c) for c in (before, carry))
        assert_equal(now.cells, held.cells)
        assert_equal(now.increment, held.increment)
        np.testing.assert_array_equal(np.asarray(y)[asleep], np.asarray(cell.core.output(before))[asleep])
        assert np.isfinite(y).all()
        slept += asleep.sum()
    assert 5 < slept < 40 * B - 20


# --- the gate -----------------------------------------------------------------------------------------------------


def _gates(core, probability, increment):
    """A carry of one cell with these gate numbers [B]."""
    carry = core.carry((len(probability),), (1,))
    return carry._replace(probability=probability[:, None], increment=increment[:, None])


@pytest.fixture
def bare() -> SkipCore:
    return cells.Skip(cells.FastRNNCell(1, 1, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)).core


def _sleeps(core, carry, frames):
    """[frames, B]: whether each of the coming frames is skipped, found by letting them pass."""

    def one(carry, _):
        after = core.combine(carry, carry.cells, jnp.zeros_like(carry.probability))
        return after, after.updates[:, 0] == carry.updates[:, 0]

    return np.asarray(jax.jit(lambda carry: jax.lax.scan(one, carry, length=frames))(carry)[1])


def test_frames_to_skip_is_what_happens(bare):
    """6,000 gates: increments of all sizes, among them those whose sums meet a half exactly or nearly."""
    rng = np.random.default_rng(0)
    shares = np.float32(np.concatenate([0.5 ** rng.uniform(0, 9, 2500), 0.5 / rng.integers(1, 512, 2500)]))
    shares = np.concatenate([shares, np.nextafter(shares[-1000:], np.float32(1))])
    begun = np.where(rng.random(len(shares)) < 0.5, 0, np.float32(rng.uniform(0, 0.5, len(shares)))).astype(np.float32)
    carry = _gates(bare, begun, shares)
    found = jax.jit(frames_to_skip)(carry)
    wanted = np.argmin(_sleeps(bare, carry, 514), axis=0)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, wanted)
    assert set(range(9)) < set(wanted.tolist())


def test_exactly_a_half_is_no_update(bare):
    carry = _gates(bare, np.zeros(4, np.float32), np.float32([0.5, np.nextafter(np.float32(0.5), 1), 0.25, 1.0]))
    assert _sleeps(bare, carry, 4).T.tolist() == [
        [True, False, True, False],  # after an update the increment is sigmoid(0) = 0.5
        [False, True, False, True],
        [True, True, False, True],
        [False, True, False, True],
    ]


@pytest.mark.parametrize("longest", [1, 3, 100, 512, 1000, LONGEST])
def test_the_longest_sleep(longest):
    """A gate that never wants to open does so after just so many frames."""
    cell = cells.Skip(cells.FastRNNCell(1, 1, rngs=nnx.Rngs(0)), longest=longest, rngs=nnx.Rngs(0))
    carry = cell.core.carry((1,), (1,))
    shut = cell.core.combine(carry, carry.cells, jnp.full((1, 1), -100.0))
    assert frames_to_skip(shut).tolist() == [longest]


def test_the_gate_opens_at_first(bare):
    """However the gate is; and a fresh one is open on every frame, for its bias is 1."""
    carry = bare.carry((3,), (1,))
    assert frames_to_skip(carry).tolist() == [0, 0, 0]
    fresh = cells.Skip(cells.FastRNNCell(1, 1, rngs=nnx.Rngs(0)), kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    carry, _ = cells.RNN(fresh, return_carry=True)(jnp.ones((3, 20, 1)))
    assert updates(carry).tolist() == [20, 20, 20]


# --- time, batches and Flax ---------------------------------------------------------------------------------------


@each_stack(FEW)
def test_chunks_are_the_whole(stack):
    rnn, x = cells.RNN(stack.make(), return_carry=True), np.asarray(normal(1, B, 30, N))
    graph, state = nnx.split(rnn)
    chunk = jax.jit(lambda carry, x: nnx.merge(graph, state)(x, initial_carry=carry))
    step = jax.jit(lambda carry, x: nnx.merge(graph, state).cell(carry, x[:, 0]))
    first = _drawn(rnn.cell, B)
    whole = chunk(first, x)
    for call, length in ((step, 1), (chunk, 7)):
        carry, parts = first, []
        for at in range(0, 30, length):
            carry, y = call(carry, x[:, at : at + length])
            parts.append(np.asarray(y).reshape(B, -1, M))
        assert_equal((carry, np.concatenate(parts, axis=1)), whole)


def _options():
    directions = ({}, {"reverse": True}, {"reverse": True, "keep_order": True})
    for direction in directions:
        for limit in ({}, {"seq_lengths": jnp.array([2, 3, 1, 3])}):
            yield direction | limit


@each_stack(FEW)
@pytest.mark.parametrize("time_major", [False, True], ids=["batch-first", "time-first"])
def test_all_options_of_flax(stack, time_major):
    """The same bits as `nnx.RNN`, operation by operation; and as each other for two batch axes, which Flax has not."""
    cell = stack.make()
    x, first = normal(1, B, 3, N), _drawn(cell, B)
    inputs = x.swapaxes(0, 1) if time_major else x
    with jax.disable_jit():
        for options in _options():
            options |= {"time_major": time_major, "initial_carry": first, "return_carry": True}
            wanted = nnx.RNN(cell)(inputs, **options)
            assert_equal(cells.RNN(cell)(inputs, **options), wanted)
            two = inputs.reshape((3, 2, 2, N) if time_major else (2, 2, 3, N))
            options["initial_carry"] = jax.tree.map(lambda a: a.reshape(2, 2, -1), first)
            if "seq_lengths" in options:
                options["seq_lengths"] = options["seq_lengths"].reshape(2, 2)
            carry, y = cells.RNN(cell)(two, **options)
            assert_equal(jax.tree.map(lambda a: a.reshape(B, -1), carry), wanted[0])
            assert_equal(y.reshape(wanted[1].shape), wanted[1])
        assert_equal(cells.RNN(cell)(inputs, time_major=time_major), nnx.RNN(cell)(inputs, time_major=time_major))


@each_cell
def test_bidirectional(row):
    x, (forward, backward) = normal(1, B, 3, N), (Stack(row, STRUCTURES[:1] * depth).make() for depth in (1, 2))
    options = {"return_carry": True, "seq_lengths": jnp.array([2, 3, 1, 3])}
    with jax.disable_jit():
        wanted = nnx.Bidirectional(nnx.RNN(forward), nnx.RNN(backward))(x, **options)
        found = nnx.Bidirectional(cells.RNN(forward), cells.RNN(backward))(x, **options)
    assert_equal(found, wanted)


def _to_linen(row, weights):
    """The weights of an NNX stack for the linen one, whose GRU has one bias more."""
    extra = row.linen.step.recurrent_bias - row.nnx.step.recurrent_bias
    params = {"gate": weights["gate"]}
    for i, w in enumerate(weights["cells"]):
        units = jax.tree.leaves(w["bias" if "bias" in w else "recurrent_bias"])[0].size // row.nnx.step.gates
        params[f"cells_{i}"] = {"weights": w | ({"recurrent_bias": jnp.zeros(extra * units)} if extra else {})}
    return params


@each_stack(FEW)
def test_linen_is_nnx(stack):
    cell, x = stack.make(longest=5), normal(1, B, T, N)
    parts = [stack.cell.linen(m, kernel=kernel, recurrent=recurrent) for _, m, kernel, recurrent in stack.sizes()]
    theirs = nn.RNN(linen.Skip(parts, longest=5))
    params = {"cell": _to_linen(stack.cell, cell.weights())}
    fresh = jax.eval_shape(theirs.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), fresh) == jax.tree.map(lambda a: (a.shape, a.dtype), params)
    found = quick(lambda p: theirs.apply({"params": p}, x, return_carry=True))(params)
    graph, state = nnx.split(cells.RNN(cell))
    assert_equal(found, quick(lambda s: nnx.merge(graph, s)(x, return_carry=True))(state))


# --- gradients ----------------------------------------------------------------------------------------------------


def _score(carry, y):
    """A scalar that every number of the outputs and of the last carry moves by another amount."""
    leaves = [y, *jax.tree.leaves(carry)]
    return sum(jnp.sum(jnp.sin(normal(40 + i, *a.shape).astype(a.dtype) * a)) for i, a in enumerate(leaves))


def _plain(core, floor, lengths, params, carry, xs):
    """Campos's equations with rounding as an addition that has no gradient, for JAX to differentiate step by step."""

    def one(carry, x):
        states, ut, du, count = carry
        ut = ut + jnp.where(du <= 1 - ut, du, 1 - ut)
        u = ut + jax.lax.stop_gradient(jnp.round(ut) - ut)
        new = []
        for cell, weights, held in zip(core.cores, params["cells"], states):
            new.append(cell(weights, held, x))
            x = cell.output(new[-1])
        c = new[-1][0] if isinstance(new[-1], tuple) else new[-1]
        share = jax.nn.sigmoid(c @ params["gate"]["kernel"] + params["gate"]["bias"][None])
        share = share + jax.lax.stop_gradient(jnp.maximum(share, floor) - share)
        states = jax.tree.map(lambda a, b: u * a + (1 - u) * b, tuple(new), states)
        carry = states, (1 - u) * ut, u * share + (1 - u) * du, count + u
        return carry, carry

    _, carries = jax.lax.scan(one, tuple(carry), xs)
    last = jax.tree.map(lambda a: a[lengths - 1, jnp.arange(a.shape[1])], carries)
    return _score(last, core.output(type(carry)(*carries)))


@each_stack()
def test_gradient_is_that_of_the_plain_scan(stack):
    """Within 1e-12 in float64: weights, first carry and inputs; from the last outputs or from any carry."""
    rnn = cells.RNN(stack.make(longest=4), time_major=True)
    graph, state = nnx.split(rnn)

    def ours(lengths, params, carry, xs):
        rnn = nnx.merge(graph, state)
        rnn.cell.set_weights(params)
        return _score(*rnn(xs, initial_carry=carry, seq_lengths=lengths, return_carry=True))

    with jax.enable_x64(True):
        at = _float64((rnn.cell.weights(), _drawn(rnn.cell, B), normal(1, T, B, N)))
        plain = quick(jax.value_and_grad(partial(_plain, rnn.cell.core, 0.5 / 4.5), (1, 2, 3)))
        given = LENGTHS if stack in FEW else None
        found = quick(jax.value_and_grad(partial(ours, given), (0, 1, 2)))(*at)
        assert_close(found, plain(jnp.full(B, T) if given is None else given, *at), 1e-12)
        assert all(np.any(g != 0) for g in jax.tree.leaves(found[1][0]))


def test_a_budget_shuts_the_gate(bare):
    """The count of updates has the gradient of the probabilities: 1 for each that an increment adds to."""
    carry = _gates(bare, np.zeros(1, np.float32), np.float32([0.125]))

    def count(increment):
        state = carry._replace(increment=increment)
        for _ in range(5):  # four frames of sleep, then an update at 0.625
            state = bare.combine(state, state.cells, jnp.zeros((1, 1)))
        return jnp.sum(state.updates)

    value, slope = jax.value_and_grad(count)(carry.increment)
    assert value == 1
    # by hand, with slopes dp of p and dd of the increment; u has the slope of p, and the gate gives 0.5 at an update
    p, dp, d, dd, total = 0.0, 0.0, 0.125, 1.0, 0.0
    for _ in range(5):
        p, dp = p + d, dp + dd
        u, total = float(p > 0.5), total + dp
        d, dd = u * 0.5 + (1 - u) * d, (1 - u) * dd + (0.5 - d) * dp
        p, dp = (1 - u) * p, (1 - u) * dp - p * dp
    np.testing.assert_allclose(slope, [[total]], rtol=1e-6)


# --- training -----------------------------------------------------------------------------------------------------


@functools.cache
def _trained():
    """A stack after some steps with a budget, and its optimiser."""
    model = cells.RNN(FEW[1].make(), return_carry=True)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    x = normal(1, B, T, N)

    def loss(model):
        carry, y = model(x)
        return jnp.mean(jnp.square(y - 0.1)) + 0.3 * jnp.mean(updates(carry))

    @nnx.jit
    def train(model, optimizer):
        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    return model, [float(train(model, optimizer)) for _ in range(40)], x


def test_training_with_a_budget_lowers_both():
    model, losses, x = _trained()
    before = cells.RNN(FEW[1].make(), return_carry=True)(x)[0]
    assert losses[-1] < 0.8 * losses[0]
    assert jnp.mean(updates(model(x)[0])) < jnp.mean(updates(before))


def test_checkpoint_round_trip(tmp_path):
    model, _, x = _trained()
    checkpoint.save(tmp_path, 1, nnx.to_pure_dict(nnx.state(model)))
    other = cells.RNN(FEW[1].make(), return_carry=True)
    state = nnx.state(other)
    found = checkpoint.restore(tmp_path, nnx.to_pure_dict(state))
    assert found
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, found[1]))
    nnx.update(other, state)
    assert "cell.gate.kernel" in checkpoint.flatten(found[1])
    assert_equal(other(x), model(x))


# --- errors -------------------------------------------------------------------------------------------------------


def _gru(n, m):
    return cells.GRUCell(n, m, rngs=nnx.Rngs(0))


ERRORS = {
    "chain": (
        lambda: cells.Skip([_gru(3, 4), _gru(5, 6)], rngs=nnx.Rngs(0)),
        ValueError,
        "Skip: a cell of 5 inputs follows one of 4 units",
    ),
    "foreign": (
        lambda: cells.Skip(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)),
        TypeError,
        r"Skip: cells hold a GRUCell, must be cells of rnnc\.cells",
    ),
    "none": (lambda: cells.Skip([], rngs=nnx.Rngs(0)), ValueError, "cores: is empty, must hold one cell or more"),
    "never": (
        lambda: cells.Skip(_gru(3, 4), longest=0, rngs=nnx.Rngs(0)),
        ValueError,
        f"longest: is 0, must be 1 to {LONGEST}",
    ),
    "width": (
        lambda: (skip := cells.Skip(_gru(3, 4), rngs=nnx.Rngs(0)))(skip.initialize_carry((2, 3)), jnp.ones((2, 4))),
        ValueError,
        r"Skip: inputs are \[2, 4\], must be \[\.\.\., 3\]",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    wrong, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        wrong()
