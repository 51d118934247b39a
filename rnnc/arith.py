"""Arithmetics: what `dot, add, mul, sigmoid, tanh` mean at a named point of a step.

A step (`rnnc.steps`) is written once. It calls an arithmetic for every operation and names the point where the
result is stored. `Float` ignores the names. `Fixed` looks up the number format of the point and computes what the chip
computes, on int32. `Fake` computes the same numbers as real ones, in float32, with gradients to train on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rnnc import fixed
from rnnc.fixed import INPUT, SUM, Format

Array = jax.Array


class Arithmetic(Protocol):
    """What a step may ask for. `point` names the place whose number format the result takes.

    Arrays are stored numbers: weights, inputs, states, matrix products. Inside a step they are operands: `at` reads an
    array that is stored at a point, `array` gives an operand back; operations take and give operands.
    """

    def weight(self, source: str, w: Array, axes: tuple[int, ...]) -> Array: ...
    def constant(self, point: str, a: Array) -> Array: ...
    def dot(self, point: str, source: str, x: Array, w: Array) -> Array: ...
    def bias(self, point: str, z: Array, b: Array) -> Array: ...
    def move(self, point: str, source: str, a: Array) -> Array: ...
    def at(self, point: str, a: Array) -> Any: ...
    def array(self, a: Any) -> Array: ...
    def real(self, a: Any) -> Array: ...
    def above(self, value: float) -> float: ...
    def split(self, a: Any, parts: int) -> list[Any]: ...
    def spread(self, a: Any, shape: tuple[int, ...]) -> Any: ...
    def store(self, point: str, a: Any) -> Any: ...
    def add(self, point: str, a: Any, b: Any) -> Any: ...
    def mul(self, point: str, a: Any, b: Any) -> Any: ...
    def complement(self, point: str, a: Any) -> Any: ...
    def relu(self, point: str, a: Any) -> Any: ...
    def sigmoid(self, point: str, a: Any) -> Any: ...
    def tanh(self, point: str, a: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Float:
    """Floating point; the points are ignored.

    Args:
      dtype: type of the matrix products (None: that of the operands). The state keeps its own type.

    >>> Float().dot("gx", "x", jnp.ones((2, 3)), jnp.ones((3, 4))).shape
    (2, 4)
    """

    dtype: DTypeLike | None = None

    def weight(self, source: str, w: Array, axes: tuple[int, ...]) -> Array:
        return w

    def constant(self, point: str, a: Array) -> Array:
        return a

    def dot(self, point: str, source: str, x: Array, w: Array) -> Array:
        """x w for x [..., n], w [n, m]; the leading axes are flattened, for one plain GEMM is the fastest."""
        if self.dtype is not None:
            x, w = x.astype(self.dtype), w.astype(self.dtype)
        return (x.reshape(-1, w.shape[0]) @ w).reshape(*x.shape[:-1], w.shape[1])

    def bias(self, point: str, z: Array, b: Array) -> Array:
        return z + b.astype(z.dtype)

    def move(self, point: str, source: str, a: Array) -> Array:
        return a

    def at(self, point: str, a: Array) -> Array:
        return a

    def array(self, a: Array) -> Array:
        return a

    def real(self, a: Array) -> Array:
        return a

    def above(self, value: float) -> float:
        return value

    def split(self, a: Array, parts: int) -> list[Array]:
        return jnp.split(a, parts, axis=-1)

    def spread(self, a: Array, shape: tuple[int, ...]) -> Array:
        return jnp.broadcast_to(a, shape)

    def store(self, point: str, a: Array) -> Array:
        return a

    def add(self, point: str, a: Array, b: Array) -> Array:
        return a + b

    def mul(self, point: str, a: Array, b: Array) -> Array:
        return a * b

    def complement(self, point: str, a: Array) -> Array:
        """1 - a."""
        return 1.0 - a

    def relu(self, point: str, a: Array) -> Array:
        return jax.nn.relu(a)

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


class Number(NamedTuple):
    """An operand of an integer arithmetic: an array, and the frac of what it holds."""

    array: Array
    frac: int


class Twin(NamedTuple):
    """An operand of `Fake`: a number as it is trained, as the chip has it, and the frac of that."""

    real: Array
    whole: Array
    frac: int


WIDE = 31  # bits of what is only added to something: no saturation
WEIGHT_BITS = (*range(2, 9), 16)
EXACT = 1 << 23  # sums of products of whole numbers are exact in float32 below it, with room for rounding


@dataclass(frozen=True, kw_only=True)
class Formats:
    """Where the points of a layer lie.

    The others follow: products are stored as `fixed.SUM`, biases as `fixed.INPUT`, gates as `fixed.GATE`.

    Args:
      x: the input as it comes.
      x_in, h_in: input and output as the matrices take them, 8 or 16 bits, say; a joint matrix takes both as x_in.
      x_mid, h_mid: between the two products of a structure.
      h: the output, which is GRU's and FastRNN's state.
      c: LSTM's memory.
      hn: GRU's recurrent product for the candidate, 16 bits.
      weight_bits: of all matrices, 2 to 8, or 16; every output of a matrix has a frac of its own. 16 bits meet numbers
        of 8 bits at most: what a matrix takes with more, such as the middle of a structure, meets weights of 8.
    """

    x: Format = Format(8, 5)
    x_in: Format = Format(8, 5)
    x_mid: Format = Format(16, 11)
    h_in: Format = Format(8, 7)
    h_mid: Format = Format(16, 12)
    h: Format = Format(8, 7)
    c: Format = Format(16, 12)
    hn: Format = Format(16, 11)
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise ValueError(f"weight_bits: is {self.weight_bits}, must be 2 to 8, or 16")
        for name in ("x", "x_in", "x_mid", "h_in", "h_mid", "h", "c", "hn"):
            form = getattr(self, name)
            if not (2 <= form.bits <= 16 and -8 <= form.frac <= 20):
                raise ValueError(f"{name}: is {form.bits} bits, frac {form.frac}; must be 2 to 16 bits, frac -8 to 20")

    def __getitem__(self, point: str) -> Format:
        """The format of a point of `rnnc.steps` or of a structure's product."""
        match point:
            case "x" | "h" | "c" | "hn":
                return getattr(self, point)
            case "gx.in" | "gx.mid" | "gh.in" | "gh.mid":
                return getattr(self, point[1:].replace(".", "_"))
            case "gx" | "gh" | "gp":
                return SUM
            case "fc" | "ig":
                return Format(WIDE, self.c.frac)
            case "zn" | "zh" | "bh" | "an":
                return Format(WIDE, self.h.frac)
            case "rh":
                return Format(WIDE, fixed.FRAC_IN)
            case "1-z":
                return Format(WIDE, fixed.FRAC_OUT)
            case "in" | "bias" | "scalar":
                return INPUT
        raise KeyError(f"{point}: no such point")

    def bits_for(self, form: Format) -> int:
        """Bits of the weights that meet numbers of a format: sums of 16 by 16 bits would not fit.

        >>> [Formats(weight_bits=16).bits_for(Format(bits, 0)) for bits in (8, 16)]
        [16, 8]
        """
        return self.weight_bits if form.bits <= 8 else min(self.weight_bits, 8)


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """The chip's arithmetic: stored arrays are int32 that fit their formats; weights and constants stay real numbers
    on their grids, as `weight` and `constant` make them.

    Args:
      formats: of the points.

    >>> A = Fixed(formats=Formats())
    >>> half = Number(jnp.int32(16384), 15)
    >>> square = A.mul("h", half, half)
    >>> int(square.array), square.frac
    (32, 7)

    Source: section 3.4 of our style guide; kernels/SEMANTICS.md is the contract.
    """

    formats: Formats

    def weight(self, source: str, w: Array, axes: tuple[int, ...]) -> Array:
        """w on its grid: numbers that differ along `axes` alone share a frac, the largest that holds them all.

        What is stored at `source` will be multiplied by them.
        """
        frac = fixed.weight_frac(w, axes, self.formats.bits_for(self.formats[source]))
        return fixed.round_half_up(w, frac)

    def constant(self, point: str, a: Array) -> Array:
        """a on the grid of its point, saturated."""
        form = self.formats[point]
        return fixed.quantise(a, form).astype(jnp.float32) * np.float32(form.step)

    def dot(self, point: str, source: str, x: Array, w: Array) -> Array:
        """x w for x [..., n] stored at `source`, w [n, m]; sums are exact, then rounded once."""
        target, form = self.formats[point], self.formats[source]
        frac = fixed.weight_frac(w, (0,), self.formats.bits_for(form))
        q = (w * fixed.power(frac)).astype(jnp.int32)
        sums = (x.reshape(-1, w.shape[0]) @ q).reshape(*x.shape[:-1], w.shape[1])
        s = (frac + form.frac - target.frac).reshape((1,) * (x.ndim - 1) + (-1,))
        return fixed.requant(sums, s, target.bits)

    def bias(self, point: str, z: Array, b: Array) -> Array:
        return z + fixed.quantise(b, self.formats["bias"])

    def move(self, point: str, source: str, a: Array) -> Array:
        """An array stored at one point as it is stored at another."""
        return self.store(point, Number(a, self.formats[source].frac)).array

    def at(self, point: str, a: Array) -> Number:
        if not jnp.issubdtype(a.dtype, jnp.integer):
            a = fixed.quantise(a, self.formats[point])
        return Number(a, self.formats[point].frac)

    def array(self, a: Number) -> Array:
        return a.array

    def real(self, a: Number) -> Array:
        return a.array.astype(jnp.float32) * np.float32(2.0**-a.frac)

    def above(self, value: float) -> float:
        """The next number that a gate can be."""
        return math.ceil(math.ldexp(value, fixed.FRAC_OUT)) / (1 << fixed.FRAC_OUT)

    def split(self, a: Number, parts: int) -> list[Number]:
        return [Number(part, a.frac) for part in jnp.split(a.array, parts, axis=-1)]

    def spread(self, a: Number, shape: tuple[int, ...]) -> Number:
        return Number(jnp.broadcast_to(a.array, shape), a.frac)

    def store(self, point: str, a: Number) -> Number:
        form = self.formats[point]
        return Number(fixed.requant(a.array, a.frac - form.frac, form.bits), form.frac)

    def add(self, point: str, a: Number, b: Number) -> Number:
        assert a.frac == b.frac, f"{point}: {a.frac}, {b.frac}"
        return self.store(point, Number(a.array + b.array, a.frac))

    def mul(self, point: str, a: Number, b: Number) -> Number:
        return self.store(point, Number(a.array * b.array, a.frac + b.frac))

    def complement(self, point: str, a: Number) -> Number:
        return Number((1 << a.frac) - a.array, a.frac)

    def relu(self, point: str, a: Number) -> Number:
        return self.store(point, Number(jnp.maximum(a.array, 0), a.frac))

    def sigmoid(self, point: str, a: Number) -> Number:
        return Number(fixed.lookup(fixed.SIGMOID, self.store("in", a).array), fixed.FRAC_OUT)

    def tanh(self, point: str, a: Number) -> Number:
        return Number(fixed.lookup(fixed.TANH, self.store("in", a).array), fixed.FRAC_OUT)


@dataclass(frozen=True, kw_only=True)
class Fake:
    """`Fixed` for training: the same numbers as real ones in float32, and a gradient.

    The gradient is that of the real operation at the rounded operands; it is zero where the result saturates. Matrix
    products run in float32, in two parts where one would not be exact; all else is `Fixed` itself.

    Args:
      formats: of the points.

    >>> A = Fake(formats=Formats())
    >>> a = A.at("h", jnp.float32(0.296875))  # 38 / 128
    >>> float(A.array(A.mul("h", a, a)))  # 11 / 128
    0.0859375

    Source: straight-through rounding as in section 1.4 of our survey; the rest is ours.
    """

    formats: Formats

    @property
    def chip(self) -> Fixed:
        """What it imitates."""
        return Fixed(formats=self.formats)

    def weight(self, source: str, w: Array, axes: tuple[int, ...]) -> Array:
        return _passed(self.chip.weight(source, jax.lax.stop_gradient(w), axes), w)

    def constant(self, point: str, a: Array) -> Array:
        return self._within(point, self.chip.constant(point, jax.lax.stop_gradient(a)), a)

    def dot(self, point: str, source: str, x: Array, w: Array) -> Array:
        flat, form = x.reshape(-1, w.shape[0]), self.formats[source]
        scale = np.float32(2.0 ** self.formats[point].frac)
        bits = self.formats.bits_for(form)
        largest = 128 if bits > 8 else (1 << bits - 1) - 1  # of a weight, or of its high or low byte
        if w.shape[0] * largest << 7 >= EXACT:
            raise ValueError(
                f"{point}: a sum over {w.shape[0]} inputs with weights of {bits} bits may be "
                f"inexact in float32; at most {(EXACT - 1) // (largest << 7)} inputs are not"
            )
        if bits > 8:
            y, whole = _of_bytes(
                flat @ jnp.concatenate(_bytes(w, fixed.weight_frac(jax.lax.stop_gradient(w), (0,), bits)), axis=1),
                1,
                scale,
            )
        elif w.shape[0] * largest * (form.highest + 1) < EXACT:
            y = flat @ w
            whole = jnp.floor(jax.lax.stop_gradient(y) * scale + 0.5)
        else:
            y, whole = _of_bytes(jnp.concatenate(_bytes(flat, jnp.int32(form.frac))) @ w, 0, scale)
        target = self.formats[point]
        exact = jnp.clip(whole, target.lowest, target.highest) / scale
        return self._within(point, exact, y).reshape(*x.shape[:-1], w.shape[1])

    def bias(self, point: str, z: Array, b: Array) -> Array:
        return z + b

    def move(self, point: str, source: str, a: Array) -> Array:
        if self.formats[point] == self.formats[source]:
            return a
        return self.store(point, self.at(source, a)).real

    def at(self, point: str, a: Array) -> Twin:
        frac = self.formats[point].frac
        return Twin(a, (jax.lax.stop_gradient(a) * np.float32(2.0**frac)).astype(jnp.int32), frac)

    def array(self, a: Twin) -> Array:
        return a.real

    def real(self, a: Twin) -> Array:
        return a.real

    def above(self, value: float) -> float:
        return self.chip.above(value)

    def split(self, a: Twin, parts: int) -> list[Twin]:
        both = (jnp.split(side, parts, axis=-1) for side in (a.real, a.whole))
        return [Twin(real, whole, a.frac) for real, whole in zip(*both)]

    def spread(self, a: Twin, shape: tuple[int, ...]) -> Twin:
        return Twin(jnp.broadcast_to(a.real, shape), jnp.broadcast_to(a.whole, shape), a.frac)

    def store(self, point: str, a: Twin) -> Twin:
        return self._through(point, "store", lambda a: a, a)

    def add(self, point: str, a: Twin, b: Twin) -> Twin:
        return self._through(point, "add", jnp.add, a, b)

    def mul(self, point: str, a: Twin, b: Twin) -> Twin:
        return self._through(point, "mul", jnp.multiply, a, b)

    def complement(self, point: str, a: Twin) -> Twin:
        return Twin(1.0 - a.real, self.chip.complement(point, Number(a.whole, a.frac)).array, a.frac)

    def relu(self, point: str, a: Twin) -> Twin:
        return self._through(point, "relu", jax.nn.relu, a)

    def sigmoid(self, point: str, a: Twin) -> Twin:
        return self._activated("sigmoid", lambda y: y * (1.0 - y), a)

    def tanh(self, point: str, a: Twin) -> Twin:
        return self._activated("tanh", lambda y: 1.0 - y * y, a)

    def _through(self, point: str, operation: str, real: Callable[..., Array], *operands: Twin) -> Twin:
        """The chip's result, with the gradient of the real operation; none where it lies at its format's bounds."""
        _, frac = found = getattr(self.chip, operation)(point, *(Number(a.whole, a.frac) for a in operands))
        whole, exact = found.array, found.array.astype(jnp.float32) * np.float32(2.0**-frac)
        form, wished = self.formats[point], real(*(a.real for a in operands))
        if form.bits > SUM.bits or point == "in":  # what an activation takes saturates in its slope
            return Twin(_passed(exact, wished), whole, frac)
        inside = (whole > form.lowest) & (whole < form.highest)
        return Twin(_passed_where(inside, exact, wished), whole, frac)

    def _activated(self, operation: str, slope: Callable[[Array], Array], a: Twin) -> Twin:
        """The chip's activation, with its slope at the result; none where that is the table's first or last value.

        All 2^16 results are made beforehand: what is read from a table is not computed anew by all who use it.
        """
        results = _results(operation)
        first, last = results[0], results[-1]
        within = lambda y: jnp.where((y > first) & (y < last), slope(y), 0.0)
        at = self.chip.store("in", Number(a.whole, a.frac)).array - INPUT.lowest
        y = jnp.asarray(results).at[at].get(mode="promise_in_bounds")
        whole = (y * np.float32(2.0**fixed.FRAC_OUT)).astype(jnp.int32)
        return Twin(_sloped(y, a.real, within), whole, fixed.FRAC_OUT)

    def _within(self, point: str, exact: Array, real: Array) -> Array:
        """`exact` with the gradient of `real` where both agree to a step: elsewhere it has saturated."""
        form = self.formats[point]
        if form.bits >= SUM.bits:
            return _passed(exact, real)
        return _passed_where(jnp.abs(jax.lax.stop_gradient(real) - exact) <= form.step, exact, real)


@cache
def _results(operation: str) -> np.ndarray:
    """What the chip's activation gives for every input, from the smallest on: float32 [65536]."""
    knots = {"sigmoid": fixed.SIGMOID, "tanh": fixed.TANH}[operation]
    with jax.ensure_compile_time_eval():
        every = fixed.lookup(knots, jnp.arange(INPUT.lowest, INPUT.highest + 1))
        return np.asarray(every) * np.float32(2.0**-fixed.FRAC_OUT)


def _bytes(a: Array, frac: Array) -> tuple[Array, Array]:
    """Numbers of 16 bits with that frac, in two parts: multiples of 256 2^-frac, and what is left, 8 bits of it."""
    q = a * fixed.power(frac)
    high = jnp.floor(jax.lax.stop_gradient(q) * np.float32(2.0**-8) + 0.5) * 256
    return high * fixed.power(-frac), (q - high) * fixed.power(-frac)


def _of_bytes(products: Array, axis: int, scale: np.float32) -> tuple[Array, Array]:
    """The product y, about, and floor(y scale + 1/2), exactly: from those of the two parts, side by side."""
    upper, lower = jnp.split(products, 2, axis=axis)
    top, rest = (jax.lax.stop_gradient(part) * scale for part in (upper, lower))
    return upper + lower, jnp.floor(top) + jnp.floor((top - jnp.floor(top)) + rest + 0.5)


@jax.custom_vjp
def _passed(exact: Array, real: Array) -> Array:
    """`exact` with the gradient of `real`."""
    return exact


@jax.custom_vjp
def _passed_where(inside: Array, exact: Array, real: Array) -> Array:
    """`exact` with the gradient of `real` where it is inside."""
    return exact


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sloped(y: Array, a: Array, slope: Callable[[Array], Array]) -> Array:
    """y as a function of a, whose derivative is slope(y)."""
    return y


_passed.defvjp(lambda exact, real: (exact, None), lambda _, d: (jnp.zeros_like(d), d))
_passed_where.defvjp(
    lambda inside, exact, real: (exact, inside), lambda inside, d: (None, jnp.zeros_like(d), jnp.where(inside, d, 0.0))
)
_sloped.defvjp(lambda y, a, slope: (y, y), lambda slope, y, d: (jnp.zeros_like(d), d * slope(y)))
