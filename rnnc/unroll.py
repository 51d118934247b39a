"""A core over time, with a backward pass of its own that keeps the matrix products large.

`jax.grad` of a plain scan forms the weight gradient step by step and saves more than it needs. Here the forward pass
takes the input product out of the loop and saves the activations; the backward loop carries only the gradient of the
state; the weight gradients are one product each, after the loop. It serves every cell, structure and arithmetic: the
loop's own derivative is `jax.vjp` of the step, taken while it runs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from rnnc.steps import Carry, Core, Params

Array = jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def unroll(core: Core, every_carry: bool, params: Params, carry: Carry, xs: Array) -> tuple[Carry, Carry]:
    """Run a core over a time-major sequence.

    carry_t = core(carry_{t-1}, xs_t) for t = 1 .. T.

    Without a gradient each step is computed by itself, so chunks of a sequence give exactly the numbers of the whole.
    With a gradient the input product is one matrix product over all steps, which may round differently (about one
    part in 10^6 of a product's size in float32).

    Args:
      core: the cell.
      every_carry: return the carry of every step instead of the output of every step.
      params: its parameters, as `core.init` makes them.
      carry: the initial state, arrays [B, m].
      xs: inputs [T, B, n].

    Returns:
      The last carry, and the outputs [T, B, m] (or the carries, arrays [T, B, m]).

    >>> from rnnc.steps import GRU
    >>> core = Core(step=GRU)
    >>> params = core.init(jax.random.key(0), 3, 8)
    >>> unroll(core, False, params, core.carry((2,), 8), jnp.ones((5, 2, 3)))[1].shape
    (5, 2, 8)
    """

    def step(carry: Carry, x: Array) -> tuple[Carry, Carry]:
        carry = core(params, carry, x)
        return carry, carry if every_carry else core.output(carry)

    return lax.scan(step, carry, xs)


def _forward(core: Core, every_carry: bool, params: Params, carry: Carry, xs: Array):
    zx = core.input_product(params, xs)
    scalars = core.scalars(params)
    recall = None

    def step(carry: Carry, zx: Array):
        nonlocal recall
        zh = core.recurrent_product(params, core.output(carry))
        new, pull = jax.vjp(core.pointwise, carry, zx, zh, scalars)
        saved, recall = distinct(pull)
        return new, (new if every_carry else core.output(new), saved)

    last, (ys, saved) = lax.scan(step, carry, zx)
    outputs = core.output(ys) if every_carry else ys
    before = jnp.concatenate([core.output(carry)[None].astype(outputs.dtype), outputs[:-1]])
    assert recall is not None
    return (last, ys), (params, carry, xs, before, Saved(saved, recall))


def _backward(core: Core, every_carry: bool, kept, cotangents):
    params, carry, xs, before, saved = kept
    d_last, d_ys = cotangents
    adjoint = core.recurrent_adjoint(params)
    to_carry = jax.vjp(core.output, carry)[1]
    shared = False

    def step(state, inputs):
        nonlocal shared
        d_carry, d_scalars = state
        d_y, numbers = inputs
        d_carry = _add(d_carry, d_y if every_carry else to_carry(d_y)[0])
        d_carry, d_zx, d_zh, d_s = saved.recall(numbers)(d_carry)
        shared = d_zx is d_zh
        (d_from_h,) = to_carry(adjoint(d_zh).astype(core.output(carry).dtype))
        return (_add(d_carry, d_from_h), _add(d_scalars, d_s)), (d_zh if shared else (d_zx, d_zh))

    zeros = jax.tree.map(jnp.zeros_like, core.scalars(params))
    (d_carry, d_scalars), d_z = lax.scan(step, (d_last, zeros), (d_ys, saved.numbers), reverse=True)
    d_zx, d_zh = (d_z, d_z) if shared else d_z
    d_in, d_xs = jax.vjp(core.input_product, params, xs)[1](d_zx)
    (d_rec,) = jax.vjp(lambda p: core.recurrent_product(p, before), params)[1](d_zh)
    return {**_add(d_in, d_rec), **d_scalars}, d_carry, d_xs


unroll.defvjp(_forward, _backward)


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)


def distinct(pull):
    """The arrays that a vjp function keeps, each once, and the way back from them to the function."""
    leaves, tree = jax.tree.flatten(pull)
    unique = {id(leaf): leaf for leaf in leaves}
    position = {key: i for i, key in enumerate(unique)}
    places = tuple(position[id(leaf)] for leaf in leaves)
    return list(unique.values()), lambda numbers: jax.tree.unflatten(tree, [numbers[i] for i in places])


@partial(jax.tree_util.register_dataclass, data_fields=["numbers"], meta_fields=["recall"])
class Saved:
    """Arrays stacked over time, with the function that makes a step's backward pass of them."""

    def __init__(self, numbers, recall):
        self.numbers = numbers
        self.recall = recall
