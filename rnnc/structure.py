"""Structures: how one weight matrix is stored and applied.

A structure is a frozen dataclass that holds no numbers. Its weights are a flat dict of arrays, made by `init`.
The matrix of a cell with several gates is as wide as all of them. A compressed structure stores each gate's matrix by
itself, unless it is `stacked`; its arrays then begin with an axis [G], one entry per gate (stacked: one in all).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rnnc import factors
from rnnc.arith import Arithmetic, Float
from rnnc.factors import Factors

Array = jax.Array
Weights = dict[str, Array]
Initializer = Callable[..., Array]
Shape = tuple[int, int]
Grid = tuple[str, tuple[int, ...]]  # "in" or "mid", and axes: weights that differ along these alone share a frac


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
    """A matrix W of `shape` = (n, m), applied as y = x W to x [..., n]; m holds `gates` gates side by side."""

    def init(self, key: Array, shape: Shape, initializer: Initializer, dtype: DTypeLike, gates: int = 1) -> Weights: ...
    def apply(self, arith: Arithmetic, point: str, w: Weights, x: Array) -> Array: ...
    def adjoint(self, w: Weights) -> Callable[[Array], Array]: ...
    def dense(self, w: Weights) -> Array: ...
    def shape(self, w: Weights) -> Shape: ...
    def grids(self, w: Weights) -> dict[str, Grid]: ...
    def cost(self, shape: Shape, gates: int = 1) -> Cost: ...


@dataclass(frozen=True)
class Dense:
    """The plain matrix: W = w, stored as one array [n, m].

    >>> s = Dense()
    >>> w = s.init(jax.random.key(0), (3, 5), jax.nn.initializers.lecun_normal())
    >>> s.dense(w).shape, s.cost((3, 5)).macs
    ((3, 5), 15)
    """

    def init(
        self, key: Array, shape: Shape, initializer: Initializer, dtype: DTypeLike = jnp.float32, gates: int = 1
    ) -> Weights:
        """Draw the weights gate by gate; `initializer(key, shape, dtype)` is any of `jax.nn.initializers`."""
        return {"w": _draw(key, shape, initializer, dtype, gates)}

    def apply(self, arith: Arithmetic, point: str, w: Weights, x: Array) -> Array:
        """y = x W for x [..., n]; y [..., m] is stored at `point`."""
        return arith.dot(point, f"{point}.in", x, w["w"])

    def adjoint(self, w: Weights) -> Callable[[Array], Array]:
        """The function dy -> dy W^T; the transposed matrix is made once, outside any loop that calls it."""
        transposed = w["w"].T
        return lambda dy: dy @ transposed.astype(dy.dtype)

    def dense(self, w: Weights) -> Array:
        """The matrix W [n, m] itself."""
        return w["w"]

    def shape(self, w: Weights) -> Shape:
        """(n, m) of weights that `init` made."""
        n, m = w["w"].shape
        return n, m

    def grids(self, w: Weights) -> dict[str, Grid]:
        """What each array multiplies, and along which axes the weights of one output lie."""
        return {"w": ("in", (0,))}

    def cost(self, shape: Shape, gates: int = 1) -> Cost:
        """n m weights, n m multiplications."""
        return Cost(parameters=shape[0] * shape[1], macs=shape[0] * shape[1])


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """A product of two thin matrices: W = U V, U [n, r], V [r, m].

    Weights: u [G, n, r] and v [G, r, m / G].

    Args:
      rank: r, 1 or more; 0: from `target_ratio`.
      target_ratio: how many times fewer weights than the full matrix, 1 or more; r is the largest that reaches it.
      stacked: one U for all gates.

    >>> s = LowRank(rank=2)
    >>> w = s.init(jax.random.key(0), (6, 8), jax.nn.initializers.lecun_normal())
    >>> s.apply(Float(), "y", w, jnp.ones((3, 6))).shape, s.cost((6, 8))
    ((3, 8), Cost(parameters=28, macs=28, scratch=2))

    Source: the papers' baseline LMF, section 2.5 of our survey; there per gate.
    """

    rank: int = 0
    target_ratio: float = 0.0
    stacked: bool = False

    def __post_init__(self) -> None:
        _one_of("LowRank", rank=self.rank, target_ratio=self.target_ratio)

    def rank_of(self, shape: Shape, gates: int = 1) -> int:
        """r for a matrix of `shape`."""
        n, m = _block(shape, gates, self.stacked)
        rank = self.rank or max(1, int(n * m / (self.target_ratio * (n + m))))
        if rank > min(n, m):
            raise ValueError(f"LowRank: rank is {rank}, must be at most {min(n, m)} for a matrix of {n} x {m}")
        return rank

    def init(
        self, key: Array, shape: Shape, initializer: Initializer, dtype: DTypeLike = jnp.float32, gates: int = 1
    ) -> Weights:
        """Draw U and V by `initializer`, scaled so that W has the variance that `initializer` gives a full matrix."""
        return _draw_blocks(self, key, shape, initializer, dtype, gates)

    def draw(self, key: Array, shape: Shape, initializer: Initializer, dtype: DTypeLike) -> Weights:
        """The weights of one block of `shape`, as `init` draws each."""
        (n, m), r = shape, self.rank_of(shape)
        wanted, first, second = jax.random.split(key, 3)
        u, v = initializer(first, (n, r), dtype), initializer(second, (r, m), dtype)
        u, v = _to_power(_power(initializer(wanted, (n, m), dtype)) / r, u, v)
        return {"u": u, "v": v}

    def apply(self, arith: Arithmetic, point: str, w: Weights, x: Array) -> Array:
        """y = (x U) V; x U is stored at `point`.mid."""
        blocks, n, r = w["u"].shape
        mid = arith.dot(f"{point}.mid", f"{point}.in", x, jnp.moveaxis(w["u"], 0, 1).reshape(n, -1))
        parts = [arith.dot(point, f"{point}.mid", mid[..., g * r : (g + 1) * r], w["v"][g]) for g in range(blocks)]
        return jnp.concatenate(parts, axis=-1)

    def adjoint(self, w: Weights) -> Callable[[Array], Array]:
        """The function dy -> (dy V^T) U^T."""
        return _transpose(self, w)

    def dense(self, w: Weights) -> Array:
        """The matrix W [n, m]."""
        return jnp.concatenate(list(w["u"] @ w["v"]), axis=-1)

    def shape(self, w: Weights) -> Shape:
        """(n, m) of weights that `init` made."""
        return w["u"].shape[1], w["v"].shape[0] * w["v"].shape[2]

    def grids(self, w: Weights) -> dict[str, Grid]:
        """What each array multiplies, and along which axes the weights of one output lie."""
        return {"u": ("in", (1,)), "v": ("mid", (1,))}

    def cost(self, shape: Shape, gates: int = 1) -> Cost:
        """r (n + m) weights and multiplications per block."""
        n, m = _block(shape, gates, self.stacked)
        blocks, r = _blocks(gates, self.stacked), self.rank_of(shape, gates)
        return Cost(parameters=blocks * r * (n + m), macs=blocks * r * (n + m), scratch=blocks * r)


@dataclass(frozen=True, kw_only=True)
class Kron:
    """A sum of Kronecker products: W^T = sum_t A_t kron B_t, W[j1 n2 + j2, i1 m2 + i2] = sum_t A_t[i1, j1] B_t[i2, j2].

    It is applied without forming W, in the cheaper of two orders: with Z = x as [n1, n2], y = sum A (Z B^T).
    Weights: a [G, terms, m1, n1] and b [G, terms, m2, n2].

    Args:
      shape_a, shape_b: (m1, n1) and (m2, n2), outputs first, m1 m2 = m / G and n1 n2 = n; empty: chosen by
        `target_ratio`, or, when that is 0, by the papers' rule (`factors.paper`).
      terms: summands, 1 or more.
      target_ratio: how many times fewer weights than the full matrix, about (`factors.for_ratio`).
      stacked: one pair of factors for all gates.

    >>> s = Kron(shape_a=(2, 3), shape_b=(4, 2))
    >>> w = s.init(jax.random.key(0), (6, 8), jax.nn.initializers.lecun_normal())
    >>> s.apply(Float(), "y", w, jnp.ones((3, 6))).shape, s.cost((6, 8))
    ((3, 8), Cost(parameters=14, macs=28, scratch=4))

    Source: Kronecker products for RNN compression, section 2.1 of our survey; several terms as in section 2.4.
    """

    shape_a: tuple[int, ...] = ()
    shape_b: tuple[int, ...] = ()
    terms: int = 1
    target_ratio: float = 0.0
    stacked: bool = False

    def __post_init__(self) -> None:
        for name in ("shape_a", "shape_b"):
            shape = getattr(self, name)
            if len(shape) not in (0, 2) or any(size < 1 for size in shape):
                raise ValueError(f"{name}: is {list(shape)}, must be [outputs, inputs], each 1 or more, or empty")
        if self.terms < 1:
            raise ValueError(f"terms: is {self.terms}, must be 1 or more")
        if bool(self.shape_a) != bool(self.shape_b) or (self.shape_a and self.target_ratio):
            raise ValueError("Kron: give shape_a and shape_b, or target_ratio, or none of them")
        if self.target_ratio and not self.target_ratio >= 1:
            raise ValueError(f"target_ratio: is {self.target_ratio:g}, must be 1 or more")

    def factors(self, shape: Shape, gates: int = 1) -> Factors:
        """The shapes of A and B for a matrix of `shape`."""
        n, m = _block(shape, gates, self.stacked)
        if self.target_ratio:
            return factors.for_ratio(n, m, self.target_ratio * self.terms)
        if not self.shape_a:
            return factors.paper(n, m)
        (m1, n1), (m2, n2) = self.shape_a, self.shape_b
        if (m1 * m2, n1 * n2) != (m, n):
            raise ValueError(
                f"Kron: shape_a {m1} x {n1} and shape_b {m2} x {n2} make {m1 * m2} outputs x {n1 * n2} inputs, "
                f"the matrix has {m} x {n}"
            )
        return Factors((m1, n1), (m2, n2))

    def init(
        self, key: Array, shape: Shape, initializer: Initializer, dtype: DTypeLike = jnp.float32, gates: int = 1
    ) -> Weights:
        """Draw the factors by `initializer`, scaled so that W has the variance that it gives a full matrix."""
        return _draw_blocks(self, key, shape, initializer, dtype, gates)

    def draw(self, key: Array, shape: Shape, initializer: Initializer, dtype: DTypeLike) -> Weights:
        """The weights of one block of `shape`, as `init` draws each."""
        (m1, n1), (m2, n2) = self.factors(shape)
        wanted, first, second = jax.random.split(key, 3)
        a = jax.lax.map(lambda k: initializer(k, (n1, m1), dtype).T, jax.random.split(first, self.terms))
        b = jax.lax.map(lambda k: initializer(k, (n2, m2), dtype).T, jax.random.split(second, self.terms))
        a, b = _to_power(_power(initializer(wanted, shape, dtype)) / self.terms, a, b)
        return {"a": a, "b": b}

    def apply(self, arith: Arithmetic, point: str, w: Weights, x: Array) -> Array:
        """y = sum_t A_t (Z B_t^T); the inner product of the cheaper order is stored at `point`.mid."""
        blocks, terms, m1, n1 = w["a"].shape
        m2, n2 = w["b"].shape[2:]
        z = x.reshape(-1, n1, n2)
        if Factors((m1, n1), (m2, n2)).b_first:
            mid = arith.dot(f"{point}.mid", f"{point}.in", z, w["b"].reshape(-1, n2).T).reshape(
                -1, n1, blocks, terms, m2
            )
            inner = mid.transpose(2, 0, 4, 3, 1).reshape(blocks, -1, m2, terms * n1)
            outer = w["a"].transpose(0, 1, 3, 2).reshape(blocks, terms * n1, m1)
            parts = [jnp.swapaxes(arith.dot(point, f"{point}.mid", inner[g], outer[g]), 1, 2) for g in range(blocks)]
        else:
            mid = arith.dot(f"{point}.mid", f"{point}.in", jnp.swapaxes(z, 1, 2), w["a"].reshape(-1, n1).T)
            inner = mid.reshape(-1, n2, blocks, terms, m1).transpose(2, 0, 4, 3, 1).reshape(blocks, -1, m1, terms * n2)
            outer = w["b"].transpose(0, 1, 3, 2).reshape(blocks, terms * n2, m2)
            parts = [arith.dot(point, f"{point}.mid", inner[g], outer[g]) for g in range(blocks)]
        return jnp.stack(parts, axis=1).reshape(*x.shape[:-1], blocks * m1 * m2)

    def adjoint(self, w: Weights) -> Callable[[Array], Array]:
        """The function dy -> dy W^T, in the same order of products."""
        return _transpose(self, w)

    def dense(self, w: Weights) -> Array:
        """The matrix W [n, m]."""
        whole = jnp.sum(jax.vmap(jax.vmap(jnp.kron))(w["a"], w["b"]), axis=1)
        return jnp.concatenate(list(whole), axis=0).T

    def shape(self, w: Weights) -> Shape:
        """(n, m) of weights that `init` made."""
        (blocks, _, m1, n1), (m2, n2) = w["a"].shape, w["b"].shape[2:]
        return n1 * n2, blocks * m1 * m2

    def grids(self, w: Weights) -> dict[str, Grid]:
        """What each array multiplies, and along which axes the weights of one output lie.

        The outer product sums over the terms too.
        """
        (m1, n1), (m2, n2) = w["a"].shape[2:], w["b"].shape[2:]
        if Factors((m1, n1), (m2, n2)).b_first:
            return {"a": ("mid", (1, 3)), "b": ("in", (3,))}
        return {"a": ("in", (3,)), "b": ("mid", (1, 3))}

    def cost(self, shape: Shape, gates: int = 1) -> Cost:
        """m1 n1 + m2 n2 weights per block and term."""
        times, f = _blocks(gates, self.stacked) * self.terms, self.factors(shape, gates)
        return Cost(parameters=times * f.parameters, macs=times * f.macs, scratch=times * f.scratch)


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """The first outputs of each block free, the others a Kronecker product: W = [T, (A kron B)^T].

    Weights: top [G, n, rows], and a and b as in `Kron`.

    Args:
      rows: free outputs per block, 1 or more; 0: from `target_ratio`.
      target_ratio: how many times fewer weights than the full matrix, 1 or more; rows is the largest number that
        reaches it and leaves a number of others that factors.
      rest: the structure of the other outputs.
      stacked: one block for all gates.

    >>> s = Hybrid(rows=2)
    >>> w = s.init(jax.random.key(0), (6, 8), jax.nn.initializers.lecun_normal())
    >>> s.apply(Float(), "y", w, jnp.ones((3, 6))).shape, s.cost((6, 8))
    ((3, 8), Cost(parameters=24, macs=36, scratch=4))

    Source: HKP, section 2.3 of our survey; the papers keep the top rows of their transposed W.
    """

    rows: int = 0
    target_ratio: float = 0.0
    rest: Kron = Kron()
    stacked: bool = False

    def __post_init__(self) -> None:
        _one_of("Hybrid", rows=self.rows, target_ratio=self.target_ratio)
        if self.rest.stacked:
            raise ValueError("rest.stacked: is true; stacked is the Hybrid's own choice")

    def rows_of(self, shape: Shape, gates: int = 1) -> int:
        """Free outputs per block for a matrix of `shape`."""
        n, m = _block(shape, gates, self.stacked)
        if self.rows:
            if self.rows >= m:
                raise ValueError(f"Hybrid: rows is {self.rows}, must be below the {m} outputs of a block")
            return self.rows
        for rows in range(min(m - 1, int(m / self.target_ratio)), 0, -1):
            try:
                size = self.rest.cost((n, m - rows)).parameters
            except ValueError:  # does not factor
                continue
            if rows * n + size <= n * m / self.target_ratio:
                return rows
        raise ValueError(
            f"Hybrid: no number of rows makes {m} outputs x {n} inputs {self.target_ratio:g} times smaller"
        )

    def init(
        self, key: Array, shape: Shape, initializer: Initializer, dtype: DTypeLike = jnp.float32, gates: int = 1
    ) -> Weights:
        """Draw T as part of a full matrix, the rest as `Kron` does."""
        return _draw_blocks(self, key, shape, initializer, dtype, gates)

    def draw(self, key: Array, shape: Shape, initializer: Initializer, dtype: DTypeLike) -> Weights:
        """The weights of one block of `shape`, as `init` draws each."""
        (n, m), rows = shape, self.rows_of(shape)
        first, second = jax.random.split(key)
        rest = self.rest.draw(second, (n, m - rows), initializer, dtype)
        return {"top": initializer(first, shape, dtype)[:, :rows], **rest}

    def apply(self, arith: Arithmetic, point: str, w: Weights, x: Array) -> Array:
        """y = [x T, the rest of x]."""
        blocks, n, _ = w["top"].shape
        top = arith.dot(point, f"{point}.in", x, jnp.moveaxis(w["top"], 0, 1).reshape(n, -1))
        rest = self.rest.apply(arith, point, w, x)
        parts = [y.reshape(*x.shape[:-1], blocks, -1) for y in (top, rest)]
        return jnp.concatenate(parts, axis=-1).reshape(*x.shape[:-1], -1)

    def adjoint(self, w: Weights) -> Callable[[Array], Array]:
        """The function dy -> dy W^T."""
        return _transpose(self, w)

    def dense(self, w: Weights) -> Array:
        """The matrix W [n, m]."""
        rest = self.rest.dense(w)
        blocks, n, _ = w["top"].shape
        return jnp.concatenate([jnp.moveaxis(w["top"], 0, 1), rest.reshape(n, blocks, -1)], axis=-1).reshape(n, -1)

    def shape(self, w: Weights) -> Shape:
        """(n, m) of weights that `init` made."""
        blocks, n, rows = w["top"].shape
        return n, blocks * rows + self.rest.shape(w)[1]

    def grids(self, w: Weights) -> dict[str, Grid]:
        """What each array multiplies, and along which axes the weights of one output lie."""
        return {"top": ("in", (1,)), **self.rest.grids(w)}

    def cost(self, shape: Shape, gates: int = 1) -> Cost:
        """rows n free weights per block, and those of the rest."""
        n, m = _block(shape, gates, self.stacked)
        blocks, rows = _blocks(gates, self.stacked), self.rows_of(shape, gates)
        rest = self.rest.cost((n, m - rows))
        return Cost(
            parameters=blocks * (rows * n + rest.parameters),
            macs=blocks * (rows * n + rest.macs),
            scratch=blocks * rest.scratch,
        )


@dataclass(frozen=True)
class Joint:
    """In place of a recurrent matrix: the cell's input matrix holds both, applied to [x; h].

    W of a joint cell has n + m inputs, those of x first. It has no weights of its own.

    Source: the Kronecker papers' cells, section 2.1 of our survey.
    """


def _draw(key: Array, shape: Shape, initializer: Initializer, dtype: DTypeLike, gates: int) -> Array:
    """Each gate's matrix by itself, side by side."""
    one = (shape[0], shape[1] // gates)
    return jnp.concatenate([initializer(k, one, dtype) for k in jax.random.split(key, gates)], axis=-1)


def _one_of(where: str, **values: float) -> None:
    """One of two sizes is to be given, at least 1."""
    (first, a), (second, b) = values.items()
    if bool(a) == bool(b):
        raise ValueError(f"{where}: {first} is {a:g} and {second} is {b:g}, give one of them")
    for name, value in values.items():
        if value and not value >= 1:
            raise ValueError(f"{name}: is {value:g}, must be 1 or more")


def _blocks(gates: int, stacked: bool) -> int:
    return 1 if stacked else gates


def _block(shape: Shape, gates: int, stacked: bool) -> Shape:
    """The shape of what is stored as one block."""
    return shape[0], shape[1] // _blocks(gates, stacked)


@partial(jax.jit, static_argnums=(0, 2, 3, 4, 5))  # one program instead of dozens of small ones
def _draw_blocks(
    structure: "LowRank | Kron | Hybrid",
    key: Array,
    shape: Shape,
    initializer: Initializer,
    dtype: DTypeLike,
    gates: int,
) -> Weights:
    """Each block by itself, with an axis for them in front.

    One after the other: two batches of orthogonal matrices that XLA draws at once may wait for each other's threads.
    In a loop: blocks that are written out take minutes to compile.
    """
    block = _block(shape, gates, structure.stacked)
    keys = jax.random.split(key, _blocks(gates, structure.stacked))
    return jax.lax.map(lambda k: structure.draw(k, block, initializer, dtype), keys)


def _power(a: Array) -> Array:
    return jnp.mean(jnp.square(a))


def _to_power(power: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Scale two factors alike, so that the product of their mean squares is `power`."""
    scale = (power / (_power(first) * _power(second))) ** 0.25
    return first * scale, second * scale


def _transpose(structure: Structure, w: Weights) -> Callable[[Array], Array]:
    """dy [..., m] -> dy W^T [..., n] as the transpose of `apply`."""
    rows, _ = structure.shape(w)

    def back(dy: Array) -> Array:
        like = jax.ShapeDtypeStruct((*dy.shape[:-1], rows), dy.dtype)
        (dx,) = jax.linear_transpose(partial(structure.apply, Float(dtype=dy.dtype), "", w), like)(dy)
        return dx

    return back
