"""The denoiser's front end in the chip's integers: int16 sound -> features, mask -> sound. Twin of kernels/front.c.

Functions on arrays take frames or streams in any leading axes, whole numbers in int32; the results are those of C bit
for bit. `Tables` holds what both read.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from rnnc import fixed
from rnnc.audio.stft import Bands, Stft
from rnnc.fixed import Format

Array = jax.Array
Complex = tuple[Array, ...]  # real and imaginary parts
SMALLEST, LARGEST = 64, 2048  # windows
HEADROOM = 13  # bits of a windowed sample below the int16 ones
FEATURE_GUARD, SOUND_GUARD = 8, 2  # more bits before a feature is rounded; of unfinished sound
PIECE = 64  # frames that `heard` takes at a time, so that they stay in a cache
FLOOR = 1e-5  # added to magnitudes, in squares, of sound between -1 and 1


def unfit(stft: Stft) -> str | None:
    """Why the chip has no front end for such frames; None where it has one.

    >>> unfit(Stft(window=400, hop=100))
    'window is 400, must be a power of two from 64 to 2048'
    """
    good = SMALLEST <= stft.window <= LARGEST and stft.window & (stft.window - 1) == 0
    return None if good else f"window is {stft.window}, must be a power of two from {SMALLEST} to {LARGEST}"


def pcm(x: Array) -> Array:
    """Sound between -1 and 1 as int16 numbers: floor(2^15 x + 1/2), saturated.

    >>> pcm(jnp.array([0.5, -1.0, 1.0])).tolist()
    [16384, -32768, 32767]
    """
    return fixed.quantise(x, Format(16, 15))


@dataclass(frozen=True, kw_only=True)
class Front:
    """Window, transform, bands and compression, and the way back, in fixed point; kernels/SEMANTICS.md says how.

    Args:
      stft: window, a power of two from 64 to 2048, and hop.
      bands: mel bands of the features and of the mask.
      rate_hz: sample rate.
      power, mean, spread: features are (level^power - mean) / spread.
      x: their format.

    >>> front = Front(stft=Stft(window=64, hop=32), bands=Bands(count=8))
    >>> spectra = front.analyse(1000 * jnp.ones((3, 64), jnp.int32))
    >>> spectra[0].shape, front.features(spectra).shape
    ((3, 33), (3, 8))
    """

    stft: Stft = Stft()
    bands: Bands = Bands()
    rate_hz: int = 16000
    power: float = 0.3
    mean: float = 0.6
    spread: float = 0.35
    x: Format = Format(16, 12)

    def __post_init__(self) -> None:
        if (why := unfit(self.stft)) is not None:
            raise ValueError(f"stft: {why}")
        if abs(self.tables.mean) >= 1 << 29:
            most = self.spread * 2.0 ** (29 - FEATURE_GUARD - self.x.frac)
            raise ValueError(f"mean: is {self.mean}, must be below {most} for features of frac {self.x.frac}")

    @cached_property
    def tables(self) -> "Tables":
        """What the chip reads."""
        return _tables(self)

    def analyse(self, frames: Array) -> Complex:
        """Frames [..., window] int16 -> spectra [..., bins], in units of 2^-13 M with M = window / 2."""
        x = _first(frames)
        x = (x * _column(self.tables.analysis[_mirrored(self.stft.window)])) >> 2
        z = self._transform((x[0::2], x[1::2]))
        again = tuple(jnp.concatenate([part, part[:1]]) for part in z)
        return tuple(_last(part, frames) for part in self._split(again))

    def features(self, spectra: Complex) -> Array:
        """Spectra [..., bins] -> features [..., bands]."""
        return self._compressed(self._levels(spectra))

    def heard(self, frames: Array) -> Array:
        """Frames [..., window] int16 -> features [..., bands]: of many frames faster than `features` of `analyse`."""
        flat = frames.reshape(-1, self.stft.window)
        pieces = -(-len(flat) // PIECE)
        padded = jnp.pad(flat, [(0, pieces * PIECE - len(flat)), (0, 0)]).reshape(pieces, PIECE, -1)
        levels = jax.lax.map(lambda piece: self._levels(self.analyse(piece)), padded)
        whole = levels.reshape(pieces * PIECE, -1)[: len(flat)]
        return self._compressed(whole).reshape(*frames.shape[:-1], -1)

    def _levels(self, spectra: Complex) -> Array:
        """Spectra [..., bins] -> the mean magnitude of each band [..., bands]."""
        re, im = (_first(part) for part in spectra)
        return _last(_gathered(self.tables, _magnitude(re, im, self.tables.least)), spectra[0])

    def _compressed(self, levels: Array) -> Array:
        """Levels of the bands -> features."""
        t = self.tables
        log = jnp.clip(_scaled(fixed.log2(levels), t.power, 15) + t.offset, 0, (29 << fixed.LOG_FRAC) - 1)
        return fixed.requant(fixed.exp2(log) - t.mean, FEATURE_GUARD, self.x.bits)

    def gains(self, mask: Array) -> Array:
        """Mask [..., bands], Q0.15 -> gains of the bins [..., bins], Q0.15."""
        t, levels = self.tables, _first(mask)
        low, part = t.place >> t.place_frac, t.place & ((1 << t.place_frac) - 1)
        below, above = levels[low], levels[low + (part > 0)]
        between = below + (((above - below) * _column(part)) >> t.place_frac)
        bins = np.arange(self.stft.bins)
        return _last(between * _column((t.first <= bins) & (bins <= t.last)), mask)

    def synthesise(self, spectra: Complex, gains: Array) -> Array:
        """Spectra and gains [..., bins] -> windowed frames [..., window], to be added where they overlap."""
        re, im = (_first(_scaled(part, g, 15)) for part, g in zip(spectra, (gains, -gains)))
        re, im = self._transform(tuple(part[:-1] for part in self._split((re, im))))
        x = jnp.stack([re, -im], axis=1).reshape(self.stft.window, -1)
        y = _product(x, self.tables.synthesis[_mirrored(self.stft.window)], self.tables.synthesis_shift)
        return _last(y, spectra[0])

    def finish(self, sums: Array) -> Array:
        """Added frames -> int16 sound."""
        return fixed.requant(sums, HEADROOM + SOUND_GUARD - (self.stft.window.bit_length() - 2), 16)

    def _transform(self, z: Complex) -> Complex:
        """Numbers [M, frames] -> their transform, divided by M, in passes of 4 and at the end one of 4 or 2."""
        n, s, half = self.stft.window // 2, 1, self.stft.window // 2
        while n > 1:
            radix = 4 if n > 2 else 2
            parts = [part.reshape(radix, n // radix, s, -1) for part in z]
            a, *others = [(parts[0][i], parts[1][i]) for i in range(radix)]
            turns = _sums_of_four(a, *others) if radix == 4 else _sums_of_two(a, *others)
            step = 2 * half // n
            k = np.arange(n // radix).reshape(-1, 1, 1) * step
            y = [_turned(v, self._twiddle(j * k), 15 + radix // 2) for j, v in enumerate(turns)]
            z = tuple(jnp.stack([v[part] for v in y], axis=1).reshape(half, -1) for part in (0, 1))
            n, s = n // radix, s * radix
        return z

    def _twiddle(self, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """exp(-2 pi j k / window), Q0.15."""
        sine = self.tables.sine.astype(np.int32)
        return -sine[k + self.stft.window // 4], sine[k]

    def _split(self, z: Complex) -> Complex:
        """Between a complex transform [M + 1, frames], the last like the first, and a real one of 2 M."""
        half = self.stft.window // 2
        (ar, ai), (br, bi) = ([part[: half // 2 + 1] for part in z], [part[: half // 2 - 1 : -1] for part in z])
        sine, k = self.tables.sine.astype(np.int32), np.arange(half // 2 + 1).reshape(-1, 1)
        o_re, o_im = _turned((ar - br, ai + bi), (sine[k], sine[k + half // 2]), 16)
        e_re, e_im = (ar + br) >> 1, (ai - bi) >> 1
        low, high = (e_re + o_re, e_im + o_im), (e_re - o_re, o_im - e_im)
        return tuple(jnp.concatenate([a, b[-2::-1]]) for a, b in zip(low, high))


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The numbers of a front end, as `rnnc_front` in kernels/rnnc.h names and describes them."""

    sine: np.ndarray
    analysis: np.ndarray
    synthesis: np.ndarray
    synthesis_shift: int
    start: np.ndarray
    count: np.ndarray
    weights: np.ndarray
    place: np.ndarray
    place_frac: int
    first: int
    last: int
    least: int
    power: int
    offset: int
    mean: int


def _tables(front: Front) -> Tables:
    stft, bins = front.stft, front.stft.bins
    half = stft.window // 2
    analysis, synthesis = (window[: half + 1].astype(np.float64) for window in stft.windows)
    frac = 15 - math.floor(math.log2(synthesis.max()))
    gather = front.bands.gather(front.rate_hz, bins)
    weights = [_whole_weights(column) for column in gather.T]
    spread = front.bands.spread(front.rate_hz, bins).astype(np.float64)
    inside = np.flatnonzero(spread.sum(axis=0) > 0.5)
    place_frac = 16 - max(front.bands.count - 1, 1).bit_length()
    place = np.round(np.arange(front.bands.count) @ spread * (1 << place_frac))
    power = round(front.power * (1 << 15))
    unit = half.bit_length() - 1 - HEADROOM - 15  # log2 of the spectra's, for sound between -1 and 1
    guard = front.x.frac + FEATURE_GUARD
    offset = power / (1 << 15) * unit + guard - math.log2(front.spread)
    sine = np.round(-np.sin(2 * np.pi * np.arange(stft.window) / stft.window) * (1 << 15))
    return Tables(
        sine=sine.clip(-(1 << 15), (1 << 15) - 1).astype(np.int16),
        analysis=np.round(analysis * (1 << 15)).astype(np.uint16),
        synthesis=np.round(synthesis * (1 << frac)).clip(0, 65535).astype(np.uint16),
        synthesis_shift=frac - SOUND_GUARD,
        start=np.array([start for start, _ in weights], np.uint16),
        count=np.array([len(w) for _, w in weights], np.uint16),
        weights=np.concatenate([w for _, w in weights]).astype(np.uint16),
        place=place.clip(0, (front.bands.count - 1) << place_frac).astype(np.uint16),
        place_frac=place_frac,
        first=int(inside[0]) if len(inside) else bins,
        last=int(inside[-1]) if len(inside) else 0,
        least=max(1, round(FLOOR * 2.0**-unit)),
        power=power,
        offset=round(offset * (1 << fixed.LOG_FRAC)),
        mean=round(front.mean / front.spread * 2.0**guard),
    )


def _whole_weights(column: np.ndarray) -> tuple[int, np.ndarray]:
    """The first bin of a band, and its weights, Q1.15: their sum is 1, for the largest remainders are rounded up."""
    exact = column.astype(np.float64) / column.sum(dtype=np.float64) * (1 << 15)
    q = np.floor(exact).astype(np.int64)
    q[np.argsort(q - exact, kind="stable")[: (1 << 15) - q.sum()]] += 1
    bins = np.flatnonzero(q)
    return int(bins[0]), q[bins[0] : bins[-1] + 1]


def _mirrored(window: int) -> np.ndarray:
    """Where in one half of a symmetric window each sample's weight stands."""
    i = np.arange(window)
    return np.minimum(i, window - i)


def _first(a: Array) -> Array:
    """[..., n] -> [n, all others]: then every operation runs along them."""
    return a.reshape(-1, a.shape[-1]).T.astype(jnp.int32)


def _last(a: Array, like: Array) -> Array:
    """The axes of `like` again, but for the last."""
    return a.T.reshape(*like.shape[:-1], a.shape[0])


def _column(weights: np.ndarray) -> np.ndarray:
    return weights.astype(np.int32).reshape(-1, 1)


def _scaled(x: Array, w: Array | int, s: int) -> Array:
    """x w 2^-s, floors; s is 15 or more, |x| < 2^30, |w| at most 2^15."""
    return ((x >> 15) * w + (((x & 0x7FFF) * w) >> 15)) >> (s - 15)


def _product(x: Array, weights: np.ndarray, s: int) -> Array:
    """Rows times weights below 2^16, 2^-s of it, halves rounded up."""
    cut, w = min(s - 1, 14), _column(weights)
    part = (x >> cut) * w + (((x & ((1 << cut) - 1)) * w) >> cut)
    return (part + (1 << (s - 1 - cut))) >> (s - cut)


def _turned(z: Complex, w: tuple[np.ndarray, np.ndarray], s: int) -> Complex:
    """z w 2^-s, floors: products of 32 and 16 bits in two parts, so that none needs more than 32."""
    (re_high, im_high), (re_low, im_low) = ([part >> 15 for part in z], [part & 0x7FFF for part in z])

    def sum_of(x: np.ndarray, y: np.ndarray) -> Array:
        return (re_high * x + im_high * y + ((re_low * x + im_low * y) >> 15)) >> (s - 15)

    return sum_of(w[0], -w[1]), sum_of(w[1], w[0])


def _sums_of_four(a: Complex, b: Complex, c: Complex, d: Complex) -> list[Complex]:
    """A transform of four numbers."""
    ac, a_c = (a[0] + c[0], a[1] + c[1]), (a[0] - c[0], a[1] - c[1])
    bd, b_d = (b[0] + d[0], b[1] + d[1]), (b[0] - d[0], b[1] - d[1])
    return [
        (ac[0] + bd[0], ac[1] + bd[1]),
        (a_c[0] + b_d[1], a_c[1] - b_d[0]),
        (ac[0] - bd[0], ac[1] - bd[1]),
        (a_c[0] - b_d[1], a_c[1] + b_d[0]),
    ]


def _sums_of_two(a: Complex, b: Complex) -> list[Complex]:
    return [(a[0] + b[0], a[1] + b[1]), (a[0] - b[0], a[1] - b[1])]


def _magnitude(re: Array, im: Array, least: int) -> Array:
    """sqrt(re^2 + im^2 + least^2), within 2^-12 of it and one."""
    up = jax.lax.clz((re ^ (re >> 31)) | (im ^ (im >> 31)) | least) - 2
    parts = [jnp.abs(part << up).astype(jnp.uint32) for part in (re, im, jnp.full_like(re, least))]
    high, low = [part >> 15 for part in parts], [part & 0x7FFF for part in parts]
    squares = [x[0] * y[0] + x[1] * y[1] + x[2] * y[2] for x, y in ((high, high), (high, low), (low, low))]
    upper = (squares[0] + ((squares[1] + (squares[2] >> 16)) >> 14)) >> 2  # the sum of squares, less 32 bits
    log = fixed.log2(upper.astype(jnp.int32))
    return fixed.exp2(((log + (32 << fixed.LOG_FRAC)) >> 1) - (up << fixed.LOG_FRAC))


def _gathered(t: Tables, magnitudes: Array) -> Array:
    """Weighted means of the magnitudes of each band's bins."""
    high, low = magnitudes >> 14, magnitudes & 0x3FFF
    ends = np.cumsum(t.count)
    sums = [jnp.zeros((len(t.start), magnitudes.shape[1]), jnp.int32)] * 2
    for i in range(int(t.count.max())):
        has = i < t.count
        w = _column(np.where(has, t.weights[np.where(has, ends - t.count + i, 0)], 0))
        bins = np.where(has, t.start + i, 0)
        sums = [total + part[bins] * w for total, part in zip(sums, (high, low))]
    return (sums[0] + (sums[1] >> 14)) >> 1
