"""Calibration: which integers the layers of a trained denoiser need, seen on sound.

The layers run in floating point, with an arithmetic that notes at every point how far the numbers would be from
rounded and saturated ones, for each frac that could be chosen. The frac with the smallest sum of squares is taken.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnnc import steps
from rnnc.arith import WEIGHT_BITS, Float, Formats
from rnnc.audio import front
from rnnc.cells import RNN, Skip
from rnnc.fixed import Format
from rnnc.model import Enhancer, Model
from rnnc.skip import unroll_skip
from rnnc.steps import Carry, Core, Params
from rnnc.structure import Joint
from rnnc.unroll import unroll

Array = jax.Array
Errors = dict[str, Array]
FRACS = tuple(range(15, -5, -1))  # of equal ones the first is taken


@dataclass(frozen=True, kw_only=True)
class Quantise:
    """How the numbers of a denoiser become integers.

    Args:
      weight_bits: of all matrices, 2 to 8, or 16 (of those that take 8 bits; others then have 8).
      activation_bits: of what the matrices take, 8 or 16; every other point has 16.
      batches: batches of training mixtures that the ranges are read from.
      reread: steps of the training after which they are read anew, ascending.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    batches: int = 4
    reread: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise ValueError(f"weight_bits: is {self.weight_bits}, must be 2 to 8, or 16")
        if self.activation_bits not in (8, 16):
            raise ValueError(f"activation_bits: is {self.activation_bits}, must be 8 or 16")
        if self.batches < 1:
            raise ValueError(f"batches: is {self.batches}, must be 1 or more")
        if list(self.reread) != sorted({step for step in self.reread if step > 0}):
            raise ValueError(f"reread: is {list(self.reread)}, must be ascending steps from 1")


def calibrated(enhancer: Enhancer, noisy: Iterable[np.ndarray], quantise: Quantise) -> Model:
    """The enhancer's model with formats for its weights and for the sound it hears.

    Args:
      enhancer: trained; formats that it has already are not looked at.
      noisy: batches of signals [B, n] at its rate.
      quantise: how many bits there are.

    >>> enhancer = Enhancer(Model(units=(8,), hidden=8), rngs=nnx.Rngs(0))
    >>> model = calibrated(enhancer, [np.ones((2, 4000), np.float32)], Quantise(activation_bits=8))
    >>> [formats.x_in.bits for formats in model.formats]
    [8, 8, 8]

    Source: section 1.4 of our survey chooses ranges by learning; ours are read off, which needs no extra parameters.
    """
    plain = replace(enhancer.model, formats=())
    graph, _ = nnx.split(nnx.eval_shape(lambda: Enhancer(plain, rngs=nnx.Rngs(0))))
    weights = nnx.state(enhancer)
    total: list[Errors] = []
    for batch in noisy:
        found = _layers(graph, weights, quantise.activation_bits, jnp.asarray(batch))
        total = jax.tree.map(np.add, total, found) if total else jax.tree.map(np.asarray, found)
    if not total:
        raise ValueError("calibrated: there is no batch, must be one or more")
    formats: list[Formats] = []
    for errors in total:
        formats.append(_formats(errors, formats[-1].h if formats else None, quantise))
    return replace(plain, formats=tuple(formats))


def cell_formats(core: Core, params: Params, xs: Array, quantise: Quantise) -> Formats:
    """Formats of one cell, from what it does on sequences.

    Args:
      core: the cell, in floating point.
      params: its parameters.
      xs: inputs [T, B, n]; the cell starts from silence.
      quantise: how many bits there are.

    >>> from rnnc.steps import GRU
    >>> core = Core(step=GRU)
    >>> formats = cell_formats(core, core.init(jax.random.key(0), 3, 8), 5.0 * jnp.ones((9, 2, 3)), Quantise())
    >>> formats.x_in, formats.x_in.range
    (Format(bits=8, frac=4), (-8.0, 7.9375))
    """
    return _formats(_cell_errors(core, quantise.activation_bits, params, xs), None, quantise)


def _formats(errors: Errors, x: Format | None, quantise: Quantise) -> Formats:
    """The best formats of a layer; its input's is given, or chosen too."""
    best, taken = partial(_best, errors), quantise.activation_bits
    return Formats(
        x=x or best("x", 16),
        x_in=best("gx.in", taken),
        x_mid=best("gx.mid", 16),
        h_in=best("gh.in", taken),
        h_mid=best("gh.mid", 16),
        h=best("h", 16),
        c=best("c", 16),
        hn=best("hn", 16),
        weight_bits=quantise.weight_bits,
    )


def _best(errors: Errors, point: str, bits: int) -> Format:
    """The frac of least error; of a point that does not occur, a usual one."""
    return Format(bits, FRACS[int(np.argmin(errors[point]))] if point in errors else bits - 4)


@dataclass(frozen=True, kw_only=True)
class _Watch(Float):
    """Floating point that notes what passes its points.

    Args:
      taken: bits of what the matrices take.
      errors: sum of squared errors by point, for each of `FRACS`.
    """

    taken: int
    errors: Errors = field(default_factory=dict, compare=False)

    def see(self, point: str, a: Array) -> Array:
        bits = self.taken if point.endswith(".in") else 16
        self.errors[point] = self.errors.get(point, 0.0) + _errors(a, bits)
        return a

    def dot(self, point: str, source: str, x: Array, w: Array) -> Array:
        return super().dot(point, source, self.see(source, x), w)

    def store(self, point: str, a: Array) -> Array:
        return self.see(point, a)

    def relu(self, point: str, a: Array) -> Array:
        return self.see(point, super().relu(point, a))


def _errors(a: Array, bits: int) -> Array:
    """Sum of squares of what rounding and saturating to so many bits costs, for each of `FRACS`."""

    def one(scale: Array) -> Array:
        q = jnp.clip(jnp.floor(a * scale + 0.5), -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
        return jnp.sum(jnp.square(q / scale - a))

    return jax.lax.map(one, jnp.asarray([2.0**frac for frac in FRACS], jnp.float32))


def _heard(enhancer: Enhancer, noisy: Array) -> Array:
    """Features [B, T, bands] as the chip's front end computes them, but for their last rounding."""
    stft = enhancer.model.stft
    frames = stft.framed(noisy)
    if front.unfit(stft):
        return enhancer.features(stft.transform(frames))
    fine = replace(enhancer.model.front, x=Format(24, 15))
    return fine.heard(front.pcm(frames)).astype(jnp.float32) * np.float32(fine.x.step)


@partial(jax.jit, static_argnums=(0, 2))
def _layers(graph: Any, weights: Any, taken: int, noisy: Array) -> list[Errors]:
    """The errors of every layer on one batch."""
    enhancer = nnx.merge(graph, weights)
    x = jnp.swapaxes(_heard(enhancer, noisy), 0, 1)
    found: list[Errors] = []
    for rnn in enhancer.layers:
        for core, params, before, inputs, after in _frames(rnn, x):
            found.append(_seen(core, taken, params, before, inputs, after))
            x = core.output(after)
    for layer, last in ((enhancer.dense, False), (enhancer.mask, True)):
        watch = _Watch(taken=taken)
        params = {"kernel": layer.kernel[...], "bias": layer.bias[...]}
        x = steps.dense(watch, params, x.reshape(-1, x.shape[-1]), sigmoid=last)
        found.append(watch.errors)
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _cell_errors(core: Core, taken: int, params: Params, xs: Array) -> Errors:
    m = core.matrices(params)[0].shape[1] // core.step.gates
    first = core.carry((xs.shape[1],), m)
    every: Any = unroll(core, True, params, first, xs)
    return _seen(core, taken, params, *_side_by_side(first, xs, every[1]))


def _seen(core: Core, taken: int, params: Params, before: Carry, inputs: Array, after: Carry) -> Errors:
    """What a cell's points see on frames side by side."""
    watch = _Watch(taken=taken)
    watch.see("x", inputs)
    for name, state in zip(("c", "h")[-core.step.state :], jax.tree.leaves(after)):
        watch.see(name, state)
    if isinstance(core.recurrent, Joint):  # no matrix takes h alone, but a layer behind may
        watch.see("gh.in", core.output(after))
    replace(core, arith=watch)(params, before, inputs)
    return watch.errors


def _side_by_side(first: Carry, xs: Array, after: Carry) -> tuple[Carry, Array, Carry]:
    """The states before, the inputs and the states after of all steps, with one axis for time and batch."""
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), first, after)
    return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), (before, xs, after))


def _frames(rnn: RNN, x: Array) -> Sequence[tuple[Core, Params, Carry, Array, Carry]]:
    """Of each cell: core, parameters, state before, input and state after of all frames, the frames side by side."""
    carry, weights = rnn.cell.initialize_carry(x.shape[1:]), rnn.cell.weights()
    if isinstance(rnn.cell, Skip):
        every: Any = unroll_skip(rnn.cell.core, True, weights, carry, x)
        parts = list(zip(rnn.cell.core.cores, weights["cells"], carry.cells, every[1].cells))
    else:
        every: Any = unroll(rnn.cell.core, True, weights, carry, x)
        parts = [(rnn.cell.core, weights, carry, every[1])]
    found = []
    for core, params, first, after in parts:
        found.append((core, params, *_side_by_side(first, x, after)))
        x = core.output(after)
    return found
