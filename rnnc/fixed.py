"""The chip's arithmetic on whole numbers: one rounding, one saturation, two tables. Twin of kernels/rnnc_fixed.h.

A number is q 2^-frac with q a whole number; `Format` says how many bits q has and what frac is. The functions of
numbers work on int32 arrays; `saturate`, `shift`, `requant` and `lookup` have functions of the same names in C.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
FRAC_IN, FRAC_OUT = 12, 15  # of the activations' input and output
KNOT_BITS = 7  # a table has a knot every 2^7 inputs, 513 in all
LARGEST_FRAC = 20  # of a weight: smaller ones are zero
WIDEST = 1 << 30  # magnitudes that are shifted stay below it


@dataclass(frozen=True)
class Format:
    """How a number is stored: q in two's complement with so many bits, the value is q 2^-frac.

    >>> Format(8, 7).highest, Format(16, 12).range
    (127, (-8.0, 7.999755859375))
    """

    bits: int
    frac: int

    @property
    def highest(self) -> int:
        """The largest q."""
        return (1 << (self.bits - 1)) - 1

    @property
    def lowest(self) -> int:
        """The smallest q."""
        return -(1 << (self.bits - 1))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return math.ldexp(self.lowest, -self.frac), math.ldexp(self.highest, -self.frac)

    @property
    def step(self) -> float:
        """2^-frac."""
        return math.ldexp(1.0, -self.frac)


SUM = Format(24, FRAC_IN)
"""Products before an activation: as many bits as float32 holds exactly."""
INPUT = Format(16, FRAC_IN)
"""What the tables take; biases too."""
GATE = Format(16, FRAC_OUT)
"""What they give."""


def saturate(v: Array, bits: int) -> Array:
    """The nearest number that fits into so many bits, 2 to 31.

    >>> [int(saturate(jnp.int32(v), 8)) for v in (-129, 127, 128)]
    [-128, 127, 127]
    """
    return jnp.clip(v, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def shift(v: Array, s: int | Array) -> Array:
    """v 2^-s, halves rounded up: (v + 2^(s-1)) >> s; a negative s multiplies, and saturates at 2^30.

    Args:
      v: below 2^30 in magnitude.
      s: -30 to 30; a number, or an array that broadcasts with v.

    >>> [int(shift(jnp.int32(v), 1)) for v in (-3, -1, 1, 3)], int(shift(jnp.int32(-5), -3))
    ([-1, 0, 1, 2], -40)
    """
    if isinstance(s, int) and s >= 0:  # the general case in fewer operations
        return (v + ((1 << s) >> 1)) >> s
    right = jnp.maximum(s, 0)
    left = jnp.maximum(-jnp.asarray(s, jnp.int32), 0)
    limit = WIDEST >> left
    return jnp.clip((v + ((1 << right) >> 1)) >> right, -limit, limit) << left


def requant(v: Array, s: int | Array, bits: int) -> Array:
    """v 2^-s, rounded and saturated: how a result is stored.

    >>> int(requant(jnp.int32(1000), 2, 8)), int(requant(jnp.int32(-255), 1, 8))
    (127, -127)
    """
    return saturate(shift(v, s), bits)


def table(function: Callable[[float], float]) -> np.ndarray:
    """Knots of an activation, int16 [513]: function(k / 32 - 8) for k = 0 .. 512 as Q0.15, halves rounded up.

    >>> table(math.tanh)[[0, 256, 512]].tolist()
    [-32768, 0, 32767]
    """
    knots = [math.floor(math.ldexp(function(k / 32 - 8), FRAC_OUT) + 0.5) for k in range((1 << 16 - KNOT_BITS) + 1)]
    return np.clip(knots, GATE.lowest, GATE.highest).astype(np.int16)


SIGMOID = table(lambda a: 1 / (1 + math.exp(-a)))
TANH = table(math.tanh)


def lookup(knots: np.ndarray, v: Array) -> Array:
    """An activation of v, Q3.12 in 16 bits -> Q0.15: linear between the knots, halves rounded up.

    >>> lookup(SIGMOID, jnp.array([-32768, 0, 4096, 32767])).tolist(), int(lookup(TANH, jnp.int32(2048)))
    ([11, 16384, 23955, 32757], 15143)
    """
    knots = knots.astype(np.int32)
    rise = np.diff(knots, append=knots[-1])
    packed = jnp.asarray(knots[:-1] << 16 | (rise[:-1] & 0xFFFF))  # one load gives both
    at = packed[(v + 32768) >> KNOT_BITS]
    return (at >> 16) + (((at << 16 >> 16) * (v & ((1 << KNOT_BITS) - 1)) + (1 << KNOT_BITS - 1)) >> KNOT_BITS)


LOG_FRAC = 15  # of a logarithm
LOG2 = np.array([round(math.ldexp(math.log2(1 + k / 64), LOG_FRAC)) for k in range(65)], np.uint16)
"""log2(1 + k / 64), Q.15."""
EXP2 = np.array([round(math.ldexp(2 ** (k / 64) - 1, LOG_FRAC)) for k in range(65)], np.uint16)
"""2^(k / 64) - 1, Q.15."""


def log2(v: Array) -> Array:
    """The logarithm to the base 2 of v from 1 to 2^31 - 1, Q.15: linear between 65 knots of an octave, floors.

    >>> log2(jnp.array([1, 3, 1 << 30])).tolist()
    [0, 51936, 983040]
    """
    zeros = jax.lax.clz(v)
    m = v << zeros
    start, rise = _knots(LOG2, (m >> 25) & 63)
    return ((31 - zeros) << LOG_FRAC) + start + ((rise * ((m >> 9) & 0xFFFF)) >> 16)


def exp2(v: Array) -> Array:
    """2^v for v from 0 to 30 - 2^-15, Q.15: linear between 65 knots, the whole part of the result.

    >>> exp2(jnp.array([0, 51937, 29 << 15])).tolist()
    [1, 3, 536870912]
    """
    start, rise = _knots(EXP2, (v >> 9) & 63)
    m = (1 << LOG_FRAC) + start + ((rise * (v & 511)) >> 9)
    return (m << 14) >> (29 - (v >> LOG_FRAC))


def _knots(knots: np.ndarray, at: Array) -> tuple[Array, Array]:
    """The knot at a place, and the rise to the next."""
    knots = knots.astype(np.int32)
    packed = jnp.asarray(knots[:-1] << 16 | np.diff(knots))[at]  # one load gives both
    return (packed >> 16) & 0xFFFF, packed & 0xFFFF


def quantise(x: Any, form: Format) -> Array:
    """Real numbers to q: floor(x 2^frac + 1/2), saturated; exact for |x| 2^frac < 2^23.

    >>> quantise(jnp.array([0.3, -0.5, 1.0]), Format(8, 7)).tolist()
    [38, -64, 127]
    """
    scaled = jnp.floor(jnp.asarray(x, jnp.float32) * np.float32(math.ldexp(1.0, form.frac)) + np.float32(0.5))
    return jnp.clip(scaled, form.lowest, form.highest).astype(jnp.int32)


def weight_frac(w: Any, axes: tuple[int, ...], bits: int) -> Any:
    """The largest frac, 20 at most, with which numbers that differ along `axes` alone fit into so many bits.

    The same for numbers that are on that grid already. int32, the axes kept with size 1; of numpy's arrays in numpy.

    >>> weight_frac(jnp.array([[0.9, 0.0], [-0.2, 0.0]]), (0,), 8).tolist()
    [[7, 20]]
    """
    np_ = np if isinstance(w, np.ndarray) else jnp
    largest = np_.max(np_.abs(w.astype(np.float32)), axis=axes, keepdims=True)
    part, exponent = np_.frexp(largest)  # largest = part 2^exponent, part in 0.5 .. 1
    over = part * np.float32(1 << (bits - 1)) >= np.float32((1 << (bits - 1)) - 0.5)
    frac = np_.minimum(bits - 1 - exponent - over.astype(np.int32), LARGEST_FRAC)
    return np_.where(largest > 0, frac, np.int32(LARGEST_FRAC))


def power(frac: Array) -> Array:
    """2^frac exactly, float32, for frac of -126 to 127; exp2 may round.

    >>> power(jnp.array([-2, 7])).tolist()
    [0.25, 128.0]
    """
    return jax.lax.bitcast_convert_type((frac + 127) << 23, jnp.float32)


def round_half_up(x: Array, frac: Array) -> Array:
    """The nearest q 2^-frac, as a real number.

    >>> float(round_half_up(jnp.float32(0.3), jnp.int32(2)))
    0.25
    """
    return jnp.floor(x * power(frac) + np.float32(0.5)) * power(-frac)
