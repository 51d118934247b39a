"""Skipping frames: one gate that lets a whole stack of cells sleep, and knows for how long.

On a frame that is skipped every state of the stack is held, and so is all that follows from it. The gate adds up a
probability of updating; after each update it reads from the top cell's new state how fast to add. The time of the next
update is therefore known as soon as the last one is done, see `frames_to_skip`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from rnnc.steps import Carry, Core, Params
from rnnc.structure import Initializer
from rnnc.unroll import Saved, distinct

Array = jax.Array
GATE_INIT = initializers.glorot_uniform()
LONGEST = 2048  # float32 counts the frames of longer sleeps no more exactly


class SkipCarry(NamedTuple):
    """The state of a skipping stack; all gate numbers are [..., 1].

    Args:
      cells: the carry of each cell, the lowest first.
      probability: of updating, added up since the last update.
      increment: what each frame adds to it.
      updates: frames that were not skipped since this carry was made; float32 counts exactly to 2^24.
    """

    cells: tuple[Carry, ...]
    probability: Array
    increment: Array
    updates: Array


@dataclass(frozen=True, kw_only=True)
class SkipCore:
    """A stack of cells with one update gate, without its numbers.

    p = p' + min(d', 1 - p');  u = 1 if p > 0.5 else 0;  s = u s~ + (1 - u) s'
    d = u sigmoid(c~ w + b) + (1 - u) d';  the next p' is (1 - u) p

    s' and s~ are the held and the candidate states of all cells, c~ is the memory (of an LSTM) or the output (of other
    cells) of the top one's candidate; each cell sees the candidate output of the one below. p = 0 and d = 1 at first,
    so the first frame is an update. The gradient of u with respect to p is 1, as if it were not rounded; that of the
    sum of u is what `updates` carries.

    Args:
      cores: the cells, the lowest first.
      longest: d is at least so large that at most so many frames in a row are skipped, 1 to 2048; sigmoid keeps its
        gradient there.

    >>> from rnnc.steps import GRU
    >>> core = SkipCore(cores=(Core(step=GRU),))
    >>> params = {"cells": [core.cores[0].init(jax.random.key(0), 3, 8)], "gate": core.init_gate(jax.random.key(1), 8)}
    >>> carry = core(params, core.carry((2,), (8,)), jnp.ones((2, 3)))
    >>> core.output(carry).shape, updates(carry).tolist()
    ((2, 8), [1.0, 1.0])

    Source: Skip RNN, section 1.5 of our survey, order of its reference code. Ours: u is 0 at p = 0.5 exactly, the
    limit `longest`, states that start at zero and are not trained, and a stack whose cells feed each other (the
    published GRU stack feeds the first cell's input to all).
    """

    cores: tuple[Core, ...]
    longest: int = 512

    def __post_init__(self) -> None:
        if not self.cores:
            raise ValueError("cores: is empty, must hold one cell or more")
        if not 1 <= self.longest <= LONGEST:
            raise ValueError(f"longest: is {self.longest}, must be 1 to {LONGEST}")

    def init_gate(
        self,
        key: Array,
        m: int,
        kernel_init: Initializer = GATE_INIT,
        dtype: DTypeLike = jnp.float32,
    ) -> Params:
        """w [m, 1] and b [1] of the gate over a top cell of m units; b = 1, so that training begins with few skips."""
        return {"kernel": kernel_init(key, (m, 1), dtype), "bias": jnp.ones((1,), dtype)}

    def carry(self, batch: tuple[int, ...], units: Sequence[int], dtype: DTypeLike = jnp.float32) -> SkipCarry:
        """The state of silence for cells of so many units, about to update; the gate's numbers are float32 at least."""
        states = tuple(core.carry(batch, m, dtype) for core, m in zip(self.cores, units, strict=True))
        return first_carry(states)

    @property
    def _gated(self) -> str:
        """Where the gate reads the top cell: its memory or its output."""
        return "c" if self.cores[-1].step.state > 1 else "h"

    def prepared(self, params: Params) -> Params:
        """The parameters as the arithmetic can use them; see `rnnc.steps.Core.prepared`."""
        A, gate = self.cores[-1].arith, params["gate"]
        ready = {"kernel": A.weight(self._gated, gate["kernel"], (0,)), "bias": A.constant("bias", gate["bias"])}
        return {"cells": [core.prepared(w) for core, w in zip(self.cores, params["cells"])], "gate": ready}

    def candidates(self, params: Params, carry: SkipCarry, x: Array) -> list[Carry]:
        """The states of all cells if the frame x [..., n] is not skipped."""
        states = []
        for core, weights, held in zip(self.cores, params["cells"], carry.cells, strict=True):
            states.append(core(weights, held, x))
            x = core.output(states[-1])
        return states

    def gate(self, params: Params, c: Array) -> Array:
        """c w + b for the top cell's memory [..., m]: [..., 1]."""
        A = self.cores[-1].arith
        z = A.dot("gp", self._gated, c, params["kernel"])
        return A.bias("gp", z, params["bias"].reshape((1,) * z.ndim))

    def combine(self, carry: SkipCarry, candidates: Sequence[Carry], z: Array) -> SkipCarry:
        """The next state out of the last one, the candidates and z = c~ w + b."""
        probability = _grown(carry)
        u = _straight((probability > 0.5).astype(probability.dtype), probability)
        A = self.cores[-1].arith
        share = A.real(A.sigmoid("du", A.at("gp", z))).astype(u.dtype)
        increment = _straight(jnp.maximum(share, A.above(0.5 / (self.longest + 0.5))), share)
        return SkipCarry(
            tuple(jax.tree.map(partial(_mixed, u), new, held) for new, held in zip(candidates, carry.cells)),
            _mixed(u, jnp.zeros_like(probability), probability),
            _mixed(u, increment, carry.increment),
            carry.updates + u,
        )

    def memory(self, candidates: Sequence[Carry]) -> Array:
        """What the gate reads: c of a top LSTM, h of other cells."""
        return jax.tree.leaves(candidates[-1])[0]

    def output(self, carry: SkipCarry) -> Array:
        """h [..., m] of the top cell, held on skipped frames."""
        return self.cores[-1].output(carry.cells[-1])

    def __call__(self, params: Params, carry: SkipCarry, x: Array) -> SkipCarry:
        """One frame x [..., n]; params are {"cells": [of each core], "gate": of `init_gate`}."""
        states = self.candidates(params, carry, x)
        return self.combine(carry, states, self.gate(params["gate"], self.memory(states)))


def first_carry(states: tuple[Carry, ...]) -> SkipCarry:
    """A stack with these states [..., m] that updates on the next frame."""
    like = jax.tree.leaves(states)[0]
    kind = like.dtype if jnp.issubdtype(like.dtype, jnp.floating) else jnp.float32
    zero = jnp.zeros((*like.shape[:-1], 1), jnp.promote_types(kind, jnp.float32))
    return SkipCarry(states, zero, jnp.ones_like(zero), zero)


def updates(carry: SkipCarry) -> Array:
    """Frames [...] that were not skipped since the carry was made, as floats that have a gradient.

    A budget of frames is a loss: weight * mean(updates(carry)), after all frames.

    >>> from rnnc.steps import GRU
    >>> updates(SkipCore(cores=(Core(step=GRU),)).carry((2,), (8,))).tolist()
    [0.0, 0.0]
    """
    return carry.updates[..., 0]


def frames_to_skip(carry: SkipCarry) -> Array:
    """How many of the coming frames will be skipped, [...] int32: the state then is the present one, held.

    Exact, for it makes the additions that the frames will make; about 0.5 / increment.

    >>> from rnnc.steps import GRU
    >>> carry = SkipCore(cores=(Core(step=GRU),)).carry((), (8,))
    >>> frames_to_skip(carry).tolist(), frames_to_skip(carry._replace(increment=jnp.full(1, 0.125))).tolist()
    (0, 4)
    """

    def skipped(state: tuple[SkipCarry, Array]) -> Array:
        return (_grown(state[0]) <= 0.5) & (state[1] < LONGEST)

    def sleep(state: tuple[SkipCarry, Array]) -> tuple[SkipCarry, Array]:
        (carry, frames), more = state, skipped(state)
        probability = jnp.where(more, _grown(carry), carry.probability)
        return carry._replace(probability=probability), frames + more.astype(jnp.int32)

    frames = jnp.zeros(carry.probability.shape, jnp.int32)
    return lax.while_loop(lambda state: jnp.any(skipped(state)), sleep, (carry, frames))[1][..., 0]


def _grown(carry: SkipCarry) -> Array:
    """p' + min(d', 1 - p'), where d' keeps the gradient when both are equal."""
    left = 1.0 - carry.probability
    return carry.probability + jnp.where(carry.increment <= left, carry.increment, left)


@jax.custom_vjp
def _straight(value: Array, slope: Array) -> Array:
    """`value` with the gradient of `slope`."""
    return value


_straight.defvjp(lambda value, slope: (value, None), lambda _, d: (jnp.zeros_like(d), d))


def _mixed(u: Array, new: Array, held: Array) -> Array:
    """u new + (1 - u) held: one of the two exactly, with the gradient of the sum."""
    mixed = jnp.where(u > 0.5, new, held)
    if not jnp.issubdtype(held.dtype, jnp.floating):
        return mixed
    share = u.astype(held.dtype)
    return _straight(mixed, share * new + (1.0 - share) * held)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def unroll_skip(
    core: SkipCore, every_carry: bool, params: Params, carry: SkipCarry, xs: Array
) -> tuple[SkipCarry, SkipCarry | Array]:
    """Run a skipping stack over a time-major sequence; arguments and results are those of `rnnc.unroll.unroll`.

    Its backward pass is of the same make: it saves the activations, carries the gradient of the state alone, and forms
    each weight gradient by one product after the loop. Only the lowest cell's input product can leave the loop.

    >>> from rnnc.steps import GRU
    >>> core = SkipCore(cores=(Core(step=GRU),))
    >>> params = {"cells": [core.cores[0].init(jax.random.key(0), 3, 8)], "gate": core.init_gate(jax.random.key(1), 8)}
    >>> carry, ys = unroll_skip(core, False, params, core.carry((2,), (8,)), jnp.ones((5, 2, 3)))
    >>> ys.shape
    (5, 2, 8)
    """

    def step(carry: SkipCarry, x: Array):
        carry = core(params, carry, x)
        return carry, carry if every_carry else core.output(carry)

    return lax.scan(step, carry, xs)


def _forward(core: SkipCore, every_carry: bool, params: Params, carry: SkipCarry, xs: Array):
    recall: Callable[..., Any] | None = None

    def step(carry: SkipCarry, zx: Array):
        nonlocal recall
        states, layers, x = (), [], None
        for cell, weights, held in zip(core.cores, params["cells"], carry.cells):
            h = cell.output(held)
            zx = zx if x is None else cell.input_product(weights, x)
            zh = cell.recurrent_product(weights, h)
            state, pull = jax.vjp(cell.pointwise, held, zx, zh, cell.scalars(weights))
            layers.append((pull, x, h))
            states, x = (*states, state), cell.output(state)
        c = core.memory(states)
        new, pull = jax.vjp(core.combine, carry, states, core.gate(params["gate"], c))
        saved, recall = distinct((layers, pull, c))
        return new, (new if every_carry else core.output(new), saved)

    last, (ys, saved) = lax.scan(step, carry, core.cores[0].input_product(params["cells"][0], xs))
    assert recall is not None
    return (last, ys), (params, carry, xs, Saved(saved, recall))


def _backward(core: SkipCore, every_carry: bool, kept, cotangents):
    params, carry, xs, saved = kept
    d_last, d_ys = cotangents
    cells, weights = core.cores, params["cells"]
    adjoints = [cell.recurrent_adjoint(w) for cell, w in zip(cells, weights)]
    input_adjoints = [cell.kernel.adjoint(w["kernel"]) for cell, w in zip(cells, weights)]
    to_carry, to_top = jax.vjp(core.output, carry)[1], jax.vjp(core.memory, carry.cells)[1]
    to_states = [jax.vjp(cell.output, state)[1] for cell, state in zip(cells, carry.cells)]
    recall: Callable[..., Any] | None = None

    def step(state, inputs):
        nonlocal recall
        d_carry, d_scalars = state
        d_y, numbers = inputs
        layers, pull, c = saved.recall(numbers)
        d_carry, d_states, d_z = pull(_add(d_carry, d_y if every_carry else to_carry(d_y)[0]))
        (d_c,) = jax.vjp(partial(core.gate, params["gate"]), c)[1](d_z)
        d_states = list(_add(d_states, to_top(d_c)[0]))
        d_held, d_products, d_new = [], [], []
        for i, (pull, x, h) in reversed(list(enumerate(layers))):
            d_state, d_zx, d_zh, d_s = pull(d_states[i])
            d_held.insert(0, _add(d_state, to_states[i](adjoints[i](d_zh).astype(h.dtype))[0]))
            d_products.insert(0, (d_zx, d_zh))
            d_new.insert(0, d_s)
            if x is not None:  # from a joint matrix take the rows of x
                d_x = input_adjoints[i](d_zx)[..., : x.shape[-1]].astype(x.dtype)
                d_states[i - 1] = _add(d_states[i - 1], to_states[i - 1](d_x)[0])
        d_carry = d_carry._replace(cells=_add(d_carry.cells, tuple(d_held)))
        unique, recall = distinct((d_products, d_z))
        return (d_carry, _add(d_scalars, d_new)), unique

    zeros = jax.tree.map(jnp.zeros_like, [cell.scalars(w) for cell, w in zip(cells, weights)])
    (d_carry, d_scalars), unique = lax.scan(step, (d_last, zeros), (d_ys, saved.numbers), reverse=True)
    assert recall is not None
    (d_products, d_z), (layers, _, c) = recall(unique), saved.recall(saved.numbers)
    d_cells, d_xs = [], None
    for cell, w, (_, x, h), (d_zx, d_zh), d_s in zip(cells, weights, layers, d_products, d_scalars):
        d_in, d_x = jax.vjp(cell.input_product, w, xs if x is None else x)[1](d_zx)
        (d_rec,) = jax.vjp(lambda w, cell=cell, h=h: cell.recurrent_product(w, h), w)[1](d_zh)
        d_cells.append({**_add(d_in, d_rec), **d_s})
        d_xs = d_x if d_xs is None else d_xs
    (d_gate,) = jax.vjp(lambda p: core.gate(p, c), params["gate"])[1](d_z)
    return {"cells": d_cells, "gate": d_gate}, d_carry, d_xs


unroll_skip.defvjp(_forward, _backward)


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)
