"""Structures: how one weight matrix is stored and applied.

A structure is a frozen dataclass that holds no numbers. Its weights are a flat dict of arrays, made by `init`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnc.arith import Arithmetic

Array = jax.Array
Weights = dict[str, Array]
Initializer = Callable[..., Array]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one product y = x W needs, counted in numbers, not bytes.

    Args:
      parameters: stored weights.
      macs: multiply-accumulates for one x.
      scratch: intermediate values that live beside x and y.
    """

    parameters: int
    macs: int
    scratch: int = 0


class Structure(Protocol):
    """A matrix W of `shape` = (n, m), applied as y = x W to x [..., n]."""

    def init(self, key: Array, shape: tuple[int, int], initializer: Initializer, dtype: DTypeLike) -> Weights: ...
    def apply(self, arith: Arithmetic, point: str, w: Weights, x: Array) -> Array: ...
    def adjoint(self, w: Weights) -> Callable[[Array], Array]: ...
    def dense(self, w: Weights) -> Array: ...
    def cost(self, shape: tuple[int, int]) -> Cost: ...


@dataclass(frozen=True)
class Dense:
    """The plain matrix: W = w, stored as one array [n, m].

    >>> s = Dense()
    >>> w = s.init(jax.random.key(0), (3, 5), jax.nn.initializers.lecun_normal())
    >>> s.dense(w).shape, s.cost((3, 5)).macs
    ((3, 5), 15)
    """

    def init(
        self, key: Array, shape: tuple[int, int], initializer: Initializer, dtype: DTypeLike = jnp.float32
    ) -> Weights:
        """Draw the weights; `initializer(key, shape, dtype)` is any of `jax.nn.initializers`."""
        return {"w": initializer(key, shape, dtype)}

    def apply(self, arith: Arithmetic, point: str, w: Weights, x: Array) -> Array:
        """y = x W for x [..., n]; y [..., m] is stored at `point`."""
        return arith.dot(point, x, w["w"])

    def adjoint(self, w: Weights) -> Callable[[Array], Array]:
        """The function dy -> dy W^T; the transposed matrix is made once, outside any loop that calls it."""
        transposed = w["w"].T
        return lambda dy: dy @ transposed.astype(dy.dtype)

    def dense(self, w: Weights) -> Array:
        """The matrix W [n, m] itself."""
        return w["w"]

    def cost(self, shape: tuple[int, int]) -> Cost:
        """n m weights, n m multiplications."""
        return Cost(parameters=shape[0] * shape[1], macs=shape[0] * shape[1])
