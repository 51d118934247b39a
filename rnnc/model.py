"""The denoiser: features -> recurrent layers -> mask over mel bands -> gains -> audio, in batches and in streams."""

import itertools
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnnc import cells, steps
from rnnc.arith import Arithmetic, Fake, Float, Formats
from rnnc.audio import front
from rnnc.audio.front import Front
from rnnc.audio.stft import Bands, Stft
from rnnc.fixed import Format
from rnnc.skip import SkipCarry, frames_to_skip, updates
from rnnc.steps import Core
from rnnc.structure import Dense, Hybrid, Joint, Kron, LowRank

Array = jax.Array
FLOOR = 1e-10  # added to squared magnitudes, so that their powers have finite slopes


@dataclass(frozen=True, kw_only=True)
class Model:
    """The sizes of an `Enhancer`; the defaults are the preset `tinylstm`.

    Args:
      rate_hz: sample rate.
      stft: window and hop.
      bands: mel bands of the features and of the mask.
      power: magnitudes of the bands are raised to it.
      feature_mean, feature_spread: what the result is centred by and divided by, so that speech at -26 dBFS has about
        zero mean and unit spread.
      cell: kind of the recurrent layers.
      units: width of each of them, the lowest first.
      hidden: width of the rectified layer before the mask.
      kernel, recurrent: structures of the recurrent layers' matrices.
      skip: one gate lets the recurrent layers sleep; the mask is held with them.
      formats: the integers that every layer computes in, the recurrent ones, dense and mask, in this order, as
        `rnnc.compress.quantise` finds them; empty: floating point.

    Source: TinyLSTMs (Fedorov et al. 2020), section 1.1 of our survey; outermost gains held, see `Bands`.
    """

    rate_hz: int = 16000
    stft: Stft = Stft(window=512, hop=256)
    bands: Bands = Bands(count=128, low_hz=125.0, high_hz=7500.0)
    power: float = 0.3
    feature_mean: float = 0.6
    feature_spread: float = 0.35
    cell: Literal["lstm", "gru", "fastrnn"] = "lstm"
    units: tuple[int, ...] = (256, 256)
    hidden: int = 128
    kernel: Dense | LowRank | Kron | Hybrid = Dense()
    recurrent: Dense | LowRank | Kron | Hybrid | Joint = Dense()
    skip: bool = False
    formats: tuple[Formats, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rate_hz", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 1 or more")
        if not self.units or min(self.units) < 1:
            raise ValueError(f"units: is {list(self.units)}, must be a list of numbers from 1, one per layer")
        if not 0.05 <= self.power <= 1.0:
            raise ValueError(f"power: is {self.power}, must be 0.05 to 1")
        if not self.feature_spread > 0:
            raise ValueError(f"feature_spread: is {self.feature_spread}, must be above 0")
        if self.bands.high_hz > self.rate_hz / 2:
            raise ValueError(f"bands.high_hz: is {self.bands.high_hz}, must be at most {self.rate_hz / 2}")
        if self.formats and len(self.formats) != len(self.units) + 2:
            raise ValueError(f"formats: holds {len(self.formats)}, must hold {len(self.units) + 2}, one for each layer")
        for i, (below, above) in enumerate(itertools.pairwise(self.formats)):
            if below.h != above.x:
                raise ValueError(f"formats: {i} gives {below.h}, {i + 1} takes {above.x}, must be equal")
        for core, n, m in self.cores():
            for _, structure, shape in core.sides(n, m):
                structure.cost(shape, core.step.gates)  # one that does not fit the sizes says so

    def cores(self) -> list[tuple[Core, int, int]]:
        """Each recurrent layer's cell, its inputs and its units, the lowest first."""
        step, sizes = cells.CELLS[self.cell].step, itertools.pairwise((self.bands.count, *self.units))
        make = partial(Core, step=step, kernel=self.kernel, recurrent=self.recurrent)
        return [(make(arith=arith), n, m) for arith, (n, m) in zip(self.ariths(), sizes)]

    @cached_property
    def front(self) -> Front:
        """The front end in integers; its features have the format of the first layer's input, without formats Q3.12.

        Raises:
          ValueError: the window is no power of two from 64 to 2048, or the features' mean has no place in their format.
        """
        return Front(
            stft=self.stft,
            bands=self.bands,
            rate_hz=self.rate_hz,
            power=self.power,
            mean=self.feature_mean,
            spread=self.feature_spread,
            x=self.formats[0].x if self.formats else Format(16, 12),
        )

    def ariths(self) -> list[Arithmetic]:
        """What each layer computes in: the recurrent ones, dense and mask."""
        return [Fake(formats=formats) for formats in self.formats] or [Float()] * (len(self.units) + 2)


class Enhancer(nnx.Module):
    """A recurrent denoiser with a real mask and the noisy phase.

    |X| -> bands -> power -> RNN layers -> Dense, relu -> Dense, sigmoid = mask [bands] -> gains [bins] -> gains X.
    A mask of ones gives the input back. With `Model.formats` all from the sound's rounding to 16 bits to the mask are
    the numbers that the chip computes (from the features' rounding, where the chip has no front end for the window);
    `rnnc.chip.Chip` computes the rest in integers too.

    Args:
      model: sizes.
      rngs: source of the initial weights.

    >>> enhancer = Enhancer(Model(units=(8,), hidden=8), rngs=nnx.Rngs(0))
    >>> enhancer(jnp.zeros((2, 1000))).shape
    (2, 1000)
    """

    sample = np.float32

    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        self.model = model
        make = cells.CELLS[model.cell]
        stack = [
            make(n, m, kernel=core.kernel, recurrent=core.recurrent, arith=core.arith, rngs=rngs)
            for core, n, m in model.cores()
        ]
        alone = [cells.Skip(stack, rngs=rngs)] if model.skip else stack
        self.layers = nnx.List(cells.RNN(cell, time_major=True, return_carry=True) for cell in alone)
        self.dense = nnx.Linear(model.units[-1], model.hidden, rngs=rngs)
        self.mask = nnx.Linear(model.hidden, model.bands.count, rngs=rngs)

    def features(self, spectra: Array) -> Array:
        """Spectra [..., bins] -> compressed band levels [..., bands]."""
        gather = jnp.asarray(self.model.bands.gather(self.model.rate_hz, self.model.stft.bins))
        magnitude = jnp.sqrt(jnp.square(spectra.real) + jnp.square(spectra.imag) + FLOOR)
        compressed = jnp.exp(self.model.power * jnp.log(_product(magnitude, gather)))
        return (compressed - self.model.feature_mean) / self.model.feature_spread

    def heard(self, frames: Array, spectra: Array) -> Array:
        """Frames [..., window] and their spectra [..., bins] -> features [..., bands]; with formats, the chip's."""
        if not self.model.formats or front.unfit(self.model.stft):
            return self.features(spectra)
        ours, x = self.model.front, self.model.formats[0].x
        return ours.heard(front.pcm(frames)).astype(jnp.float32) * np.float32(x.step)

    def levels(self, features: Array, carry: tuple | None = None) -> tuple[tuple, Array]:
        """Features [T, B, bands] and the layers' carries -> (carries, mask over the bands [T, B, bands])."""
        *_, dense, mask = ariths = self.model.ariths()
        x, after = ariths[0].constant("x", features), []
        for rnn, initial in zip(self.layers, carry or (None,) * len(self.layers)):
            last, x = rnn(x, initial_carry=initial)
            after.append(last)
        hidden = steps.dense(dense, _weights(self.dense), x)
        return tuple(after), steps.dense(mask, _weights(self.mask), hidden, sigmoid=True)

    def gains(self, features: Array, carry: tuple | None = None) -> tuple[tuple, Array]:
        """Features [T, B, bands] and the layers' carries -> (carries, gains of the bins [T, B, bins])."""
        carry, levels = self.levels(features, carry)
        spread = jnp.asarray(self.model.bands.spread(self.model.rate_hz, self.model.stft.bins))
        return carry, _product(levels, spread)

    def __call__(self, noisy: Array) -> Array:
        """Noisy signals [..., n] at `model.rate_hz` -> enhanced signals [..., n]."""
        return self.run(noisy)[0]

    def run(self, noisy: Array) -> tuple[Array, Array]:
        """Noisy signals [..., n] -> enhanced signals [..., n], and the mean share of frames that were not skipped."""
        stft = self.model.stft
        frames = stft.framed(noisy.reshape(-1, noisy.shape[-1]))
        spectra = stft.transform(frames)
        carry, gains = self.gains(jnp.swapaxes(self.heard(frames, spectra), 0, 1))
        rate = jnp.mean(updates(carry[0])) / spectra.shape[1] if self.model.skip else jnp.ones(())
        enhanced = stft.synthesise(spectra * jnp.swapaxes(gains, 0, 1).astype(spectra.dtype), noisy.shape[-1])
        return enhanced.reshape(noisy.shape), rate

    def silence(self, batch: int) -> tuple:
        """The state of a stream of `batch` channels before its first sample."""
        return self.model.stft.silence((batch,)), tuple(r.cell.initialize_carry((batch, 1)) for r in self.layers)

    def hop(self, state: tuple, block: Array) -> tuple[tuple, Array]:
        """One hop: block [B, hop] in -> block [B, hop] out, `stft.tail` samples late."""
        (past, unfinished), carry = state
        stft = self.model.stft
        past, frame = stft.push(past, block)
        spectrum = stft.transform(frame)
        carry, gains = self.gains(self.heard(frame, spectrum)[None], carry)
        unfinished, out = stft.pull(unfinished, stft.invert(spectrum * gains[0].astype(spectrum.dtype)))
        return ((past, unfinished), carry), out

    def stream(self, channels: int = 1) -> "Stream":
        """A stateful denoiser for blocks of any size."""
        return Stream(self, channels)


class Denoiser(Protocol):
    """What a stream runs: an `Enhancer`, or a `rnnc.chip.Chip`."""

    model: Model

    @property
    def sample(self) -> type[np.float32] | type[np.int16]: ...
    def silence(self, batch: int) -> tuple: ...
    def hop(self, state: tuple, block: Array) -> tuple[tuple, Array]: ...


class Stream:
    """An enhancer that takes sound as it comes and keeps its state.

    What `push` and `flush` return, joined, is what the enhancer returns for the joined input (to rounding, 1e-5).
    A sample leaves at most `latency_samples` samples after it came in.

    Args:
      enhancer: the denoiser.
      channels: signals enhanced side by side.

    >>> stream = Enhancer(Model(units=(8,), hidden=8), rngs=nnx.Rngs(0)).stream()
    >>> out = [stream.push(np.zeros((1, 700))), stream.flush()]
    >>> [x.shape[1] for x in out], stream.latency_samples
    ([256, 444], 511)
    """

    def __init__(self, enhancer: Denoiser, channels: int = 1):
        self.channels = channels
        self._sample = enhancer.sample
        self.stft = enhancer.model.stft
        self._graph, self._weights = nnx.split(enhancer)
        self._silence = enhancer.silence(channels)
        self.reset()

    @property
    def latency_samples(self) -> int:
        """window - 1: a sample's last frame must be complete."""
        return self.stft.window - 1

    @property
    def updates(self) -> np.ndarray:
        """How many frames since the last reset were not skipped, [channels]; all, where the model never skips."""
        skipping = self._skipping()
        return np.full(self.channels, float(self.frames)) if skipping is None else np.asarray(updates(skipping))

    @property
    def frames_to_skip(self) -> np.ndarray:
        """How many of the coming frames will be skipped, [channels]: for so long, the network may sleep."""
        skipping = self._skipping()
        return np.zeros(self.channels, np.int32) if skipping is None else np.asarray(frames_to_skip(skipping))

    def _skipping(self) -> SkipCarry | None:
        first = self._state[1][0]
        return first if isinstance(first, SkipCarry) else None

    def reset(self) -> None:
        """Forget everything heard."""
        self.frames = 0
        self._state = self._silence
        self._waiting = np.zeros((self.channels, 0), self._sample)
        self._taken = self._given = 0
        self._ahead = self.stft.tail

    def push(self, block: np.ndarray) -> np.ndarray:
        """Take [channels, n] samples, n >= 0; return those that are finished, [channels, k]."""
        block = np.asarray(block)
        if self._sample == np.int16 != block.dtype:
            raise ValueError(f"stream: block is of {block.dtype}, must be of int16")
        block = block.astype(self._sample)
        if block.ndim != 2 or block.shape[0] != self.channels:
            raise ValueError(f"stream: block is {list(block.shape)}, must be [{self.channels}, samples]")
        if not np.isfinite(block).all():
            raise ValueError("stream: block holds NaN or infinity, must be finite")
        self._taken += block.shape[1]
        return self._advance(block)

    def flush(self) -> np.ndarray:
        """The samples still inside, [channels, k]; the stream starts anew."""
        missing = self.stft.frames(self._taken) * self.stft.hop - self._taken if self._taken else 0
        rest = self._taken - self._given
        out = self._advance(np.zeros((self.channels, missing), self._sample))[:, :rest]
        self.reset()
        return out

    def _advance(self, block: np.ndarray) -> np.ndarray:
        hop = self.stft.hop
        self._waiting = np.concatenate([self._waiting, block], axis=1)
        count = self._waiting.shape[1] // hop
        hops = self._waiting[:, : count * hop].reshape(self.channels, count, hop).swapaxes(0, 1)
        self._waiting = self._waiting[:, count * hop :]
        out, at = [np.zeros((self.channels, 0), self._sample)], 0
        while at < count:
            size = 64 if count - at >= 64 else 1  # two compiled sizes serve every block
            self._state, blocks = _hops(self._graph, self._weights, self._state, hops[at : at + size])
            out.append(np.asarray(blocks, self._sample).swapaxes(0, 1).reshape(self.channels, -1))
            at += size
        self.frames += count
        done = np.concatenate(out, axis=1)
        skip = min(self._ahead, done.shape[1])  # the first samples out stand before the first one in
        self._ahead -= skip
        self._given += done.shape[1] - skip
        return done[:, skip:]


@partial(jax.jit, static_argnums=0)  # compiled once for all streams of equal enhancers
def _hops(graph, weights, state: tuple, blocks: Array) -> tuple[tuple, Array]:
    """Some hops: blocks [n, B, hop] in and out."""
    return jax.lax.scan(nnx.merge(graph, weights).hop, state, blocks)


def _weights(layer: nnx.Linear) -> steps.Params:
    assert layer.bias is not None
    return {"kernel": layer.kernel[...], "bias": layer.bias[...]}


def _product(x: Array, w: Array) -> Array:
    return (x.reshape(-1, w.shape[0]) @ w).reshape(*x.shape[:-1], w.shape[1])
