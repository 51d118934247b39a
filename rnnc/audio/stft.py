"""Short-time spectra and mel bands, for whole signals and for streams.

A signal of n samples has T = ceil(n / hop) + window / hop - 1 frames: zeros stand before it and after it, so that
every sample lies in window / hop frames and comes back. Frame t ends with sample (t + 1) hop.
"""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Stft:
    """Hann analysis and the synthesis window that inverts it.

    S[t, k] = sum_i a[i] x[t hop + i - (window - hop)] exp(-2 pi j k i / window), a = periodic Hann;
    synthesis window s = a / sum_j a[. + j hop]^2.

    Args:
      window: samples of a frame, an even number.
      hop: samples between frames; divides `window`.

    >>> stft = Stft(window=512, hop=256)
    >>> x = jnp.sin(jnp.arange(1000) / 9.0)
    >>> spectra = stft.analyse(x)
    >>> spectra.shape, bool(jnp.allclose(stft.synthesise(spectra, 1000), x, atol=1e-6))
    ((5, 257), True)

    Source: Griffin and Lim 1984 (least-squares synthesis window); sizes of TinyLSTMs in `rnnc.model`.
    """

    window: int = 512
    hop: int = 256

    def __post_init__(self) -> None:
        if self.hop < 1 or self.window % 2 or self.window % self.hop or self.window // self.hop < 2:
            raise ValueError(
                f"stft: window is {self.window}, hop is {self.hop}; window must be even, and 2 or more times hop"
            )

    @property
    def bins(self) -> int:
        """Frequencies of a spectrum: window / 2 + 1."""
        return self.window // 2 + 1

    @property
    def overlap(self) -> int:
        """Frames that cover one sample."""
        return self.window // self.hop

    @property
    def tail(self) -> int:
        """Samples of the past that a frame needs, and of the future that an output waits for: window - hop."""
        return self.window - self.hop

    @cached_property
    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Analysis and synthesis windows, each [window]."""
        analysis = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        energy = (analysis**2).reshape(self.overlap, self.hop).sum(axis=0)
        return analysis.astype(np.float32), (analysis / np.tile(energy, self.overlap)).astype(np.float32)

    def frames(self, samples: int) -> int:
        """How many frames a signal of that many samples has."""
        return -(-samples // self.hop) + self.overlap - 1

    def analyse(self, x: Array) -> Array:
        """Signals [..., n] -> spectra [..., T, bins]."""
        return self.transform(self.framed(x))

    def framed(self, x: Array) -> Array:
        """Signals [..., n] -> frames [..., T, window]."""
        n = x.shape[-1]
        after = self.frames(n) * self.hop - n
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(self.tail, after)])
        blocks = x.reshape(*x.shape[:-1], -1, self.hop)
        count = self.frames(n)
        return jnp.concatenate([blocks[..., i : i + count, :] for i in range(self.overlap)], axis=-1)

    def transform(self, frames: Array) -> Array:
        """Frames [..., window] -> spectra [..., bins]."""
        return jnp.fft.rfft(frames * _like(self.windows[0], frames))

    def synthesise(self, spectra: Array, samples: int) -> Array:
        """Spectra [..., T, bins] -> signals [..., samples]."""
        return self.overlapped(self.invert(spectra))[..., :samples]

    def overlapped(self, frames: Array) -> Array:
        """Windowed frames [..., T, window] -> their sum where all frames are there, [..., (T - overlap + 1) hop]."""
        blocks = frames.reshape(*frames.shape[:-1], self.overlap, self.hop)
        count = frames.shape[-2] - self.overlap + 1
        last = self.overlap - 1
        total = sum(blocks[..., i : i + count, last - i, :] for i in range(self.overlap))
        assert isinstance(total, jax.Array)
        return total.reshape(*total.shape[:-2], -1)

    def invert(self, spectra: Array) -> Array:
        """Spectra [..., bins] -> windowed frames [..., window], to be added where they overlap."""
        frames = jnp.fft.irfft(spectra, self.window)
        return frames * _like(self.windows[1], frames)

    def silence(self, batch: tuple[int, ...] = ()) -> tuple[Array, Array]:
        """The state of a stream before its first sample: past samples and unfinished output, each [*batch, tail]."""
        return jnp.zeros((*batch, self.tail)), jnp.zeros((*batch, self.tail))

    def push(self, past: Array, block: Array) -> tuple[Array, Array]:
        """One hop in: (past [..., tail], block [..., hop]) -> (past, frame [..., window])."""
        frame = jnp.concatenate([past, block], axis=-1)
        return frame[..., self.hop :], frame

    def pull(self, unfinished: Array, frame: Array) -> tuple[Array, Array]:
        """One hop out: (unfinished [..., tail], windowed frame [..., window]) -> (unfinished, block [..., hop])."""
        total = jnp.concatenate([unfinished, jnp.zeros_like(frame[..., : self.hop])], axis=-1) + frame
        return total[..., self.hop :], total[..., : self.hop]


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Triangular mel bands: magnitudes -> band levels, and band gains -> gains of the bins.

    Centres c_0 .. c_{count-1} lie evenly on the mel scale strictly between `low_hz` and `high_hz`. `gather` averages
    magnitudes under each triangle; where bands are narrower than a bin the triangle is widened to reach one. `spread`
    interpolates gains linearly (in mel) between centres, so gains of one give ones inside the range.

    Args:
      count: number of bands.
      low_hz, high_hz: range; 0 <= low_hz < high_hz <= rate / 2.
      hold_edges: bins beyond the outermost centres take their gains; otherwise bins outside the range take 0.

    >>> bands = Bands()
    >>> gains = np.ones(128) @ bands.spread(16000, 257)
    >>> bool(np.allclose(gains, 1.0, atol=1e-6))
    True

    Source: TinyLSTMs' sizes (128 bands, 125 to 7500 Hz). We differ outside the range: holding the outermost gains costs
    nothing, gain 0 there costs a perfect mask 3.3 dB of SI-SDR.
    """

    count: int = 128
    low_hz: float = 125.0
    high_hz: float = 7500.0
    hold_edges: bool = True

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.low_hz < self.high_hz:
            raise ValueError(f"bands: {self.count} bands over {self.low_hz}..{self.high_hz} Hz is no range of bands")

    def _places(self, rate_hz: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
        """Mel edges [count + 2] and the bins' places [bins] on the mel scale."""
        if self.high_hz > rate_hz / 2:
            raise ValueError(f"bands: high_hz is {self.high_hz}, must be at most half the rate, {rate_hz / 2}")
        edges = np.linspace(_mel(self.low_hz), _mel(self.high_hz), self.count + 2)
        return edges, np.linspace(0, rate_hz / 2, bins)

    def gather(self, rate_hz: int, bins: int) -> np.ndarray:
        """Weights [bins, count], columns that sum to 1: levels = magnitudes @ weights."""
        edges, bins_hz = self._places(rate_hz, bins)
        edges_hz = _hz(edges)
        centre, width = edges_hz[1:-1], rate_hz / 2 / (bins - 1)
        below = np.maximum(centre - edges_hz[:-2], width)
        above = np.maximum(edges_hz[2:] - centre, width)
        distance = bins_hz[:, None] - centre
        triangle = np.maximum(0.0, 1.0 - np.abs(distance) / np.where(distance < 0, below, above))
        return (triangle / triangle.sum(axis=0)).astype(np.float32)

    def spread(self, rate_hz: int, bins: int) -> np.ndarray:
        """Weights [count, bins], columns that sum to 1 (0 outside the range without `hold_edges`)."""
        edges, bins_hz = self._places(rate_hz, bins)
        weights = np.array([np.interp(_mel(bins_hz), edges[1:-1], row) for row in np.eye(self.count)])
        if not self.hold_edges:
            weights[:, (bins_hz < self.low_hz) | (bins_hz > self.high_hz)] = 0.0
        return weights.astype(np.float32)


def _mel(hz):
    return 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)


def _hz(mel):
    return 700.0 * (10.0 ** (np.asarray(mel) / 2595.0) - 1.0)


def _like(window: np.ndarray, frames: Array) -> Array:
    return jnp.asarray(window).reshape((1,) * (frames.ndim - 1) + (-1,))
