"""Arithmetics: what `dot, add, mul, sigmoid, tanh` mean at a named point of a step.

A step (`rnnc.steps`) is written once. It calls an arithmetic for every operation and names the point where the
result is stored. `Float` ignores the names; an integer arithmetic looks up the number format of the point.
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Array = jax.Array


class Arithmetic(Protocol):
    """What a step may ask for. `point` names the place whose number format the result takes."""

    def dot(self, point: str, x: Array, w: Array) -> Array: ...
    def add(self, point: str, a: Array, b: Array) -> Array: ...
    def sub(self, point: str, a: Array, b: Array) -> Array: ...
    def mul(self, point: str, a: Array, b: Array) -> Array: ...
    def complement(self, point: str, a: Array) -> Array: ...
    def sigmoid(self, point: str, a: Array) -> Array: ...
    def tanh(self, point: str, a: Array) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class Float:
    """Floating point; the points are ignored.

    Args:
      dtype: type of the matrix products (None: that of the operands). The state keeps its own type.

    >>> Float().dot("gx", jnp.ones((2, 3)), jnp.ones((3, 4))).shape
    (2, 4)
    """

    dtype: DTypeLike | None = None

    def dot(self, point: str, x: Array, w: Array) -> Array:
        """x w for x [..., n], w [n, m]; the leading axes are flattened, for one plain GEMM is the fastest."""
        if self.dtype is not None:
            x, w = x.astype(self.dtype), w.astype(self.dtype)
        return (x.reshape(-1, w.shape[0]) @ w).reshape(*x.shape[:-1], w.shape[1])

    def add(self, point: str, a: Array, b: Array) -> Array:
        return a + b

    def sub(self, point: str, a: Array, b: Array) -> Array:
        return a - b

    def mul(self, point: str, a: Array, b: Array) -> Array:
        return a * b

    def complement(self, point: str, a: Array) -> Array:
        """1 - a."""
        return 1.0 - a

    def sigmoid(self, point: str, a: Array) -> Array:
        return _sigmoid(a)

    def tanh(self, point: str, a: Array) -> Array:
        return _tanh(a)


# The derivatives are functions of the result, so that the backward pass keeps one array per activation, not two.
@jax.custom_vjp
def _sigmoid(a: Array) -> Array:
    return jax.nn.sigmoid(a)


@jax.custom_vjp
def _tanh(a: Array) -> Array:
    return jnp.tanh(a)


def _keep(function):
    def forward(a: Array) -> tuple[Array, Array]:
        y = function(a)
        return y, y

    return forward


_sigmoid.defvjp(_keep(jax.nn.sigmoid), lambda y, dy: (dy * (y * (1.0 - y)),))
_tanh.defvjp(_keep(jnp.tanh), lambda y, dy: (dy * (1.0 - y * y),))
