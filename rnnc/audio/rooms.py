"""Room impulse responses made on the spot: images for the early part, decaying noise for the late part."""

from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.signal

SOUND_M_S = 343.0
SIZE_M = ((2.2, 2.0, 2.2), (10.0, 8.0, 3.8))  # smallest and largest length, width, height
RT60_S = (0.1, 0.9)
EARLY_S = 0.06  # images up to here, noise after it
JITTER_M = 0.08  # displacement of each image, one axis, De Sena et al. section IV
HALF = 16  # half-width of the fractional-delay kernel and lead before the direct path, samples
_CROSS_HZ = 2000.0
_BLEND_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Room:
    """An impulse response and how it came about.

    Attributes:
        rir: float32 [n], the direct path is exactly 1.0 at `direct_sample`.
        direct_sample: index of the direct path.
        rt60_s: time in which sound below 2 kHz falls by 60 dB.
        rt60_high_s: the same above 2 kHz; shorter.
        size_m: length, width and height.
        distance_m: from the source to the microphone.
    """

    rir: np.ndarray
    direct_sample: int
    rt60_s: float
    rt60_high_s: float
    size_m: tuple[float, float, float]
    distance_m: float


def room(rng: np.random.Generator, rate_hz: int) -> Room:
    """A random shoebox room with a random talker and microphone.

    Early part: images of the source up to 60 ms after the direct path, each 1/distance, each reflection
    losing the share that Eyring's formula asks for, more at high frequencies. Late part: noise in two bands,
    each with its own exponential decay, at the level with which the images end.

    Args:
        rng: consumed.
        rate_hz: sample rate, Hz, at least 8,000.

    Returns:
        A room of 10 to 300 m3, T60 0.1 to 0.9 s (log-uniform), talker 0.3 to 3 m from the microphone.

    Example:
        >>> r = room(np.random.default_rng(0), 16000)
        >>> float(r.rir[r.direct_sample]), r.rir.dtype.name, 0.1 <= r.rt60_s <= 0.9
        (1.0, 'float32', True)

    Source: Allen and Berkley 1979 (images); Eyring 1930 (absorption); De Sena et al. 2015, "On the modeling
    of rectangular geometries in room acoustic simulations" (displaced images against sweeping echoes). We
    stop the images early and continue with noise, which costs milliseconds and fixes the late decay.
    """
    size = rng.uniform(*SIZE_M)
    rt60_s = float(np.exp(rng.uniform(*np.log(RT60_S))))
    rt60_high_s = rt60_s * float(rng.uniform(0.5, 0.95))
    source, microphone = _places(rng, size)
    rir = _early_part(rng, size, source, microphone, rt60_s, rt60_high_s, rate_hz)
    rir = _with_tail(rng, rir, rt60_s, rt60_high_s, rate_hz)
    return Room(
        rir=(rir / rir[HALF]).astype(np.float32),
        direct_sample=HALF,
        rt60_s=rt60_s,
        rt60_high_s=rt60_high_s,
        size_m=(float(size[0]), float(size[1]), float(size[2])),
        distance_m=float(np.linalg.norm(source - microphone)),
    )


def reflection(size_m: np.ndarray, rt60_s: float) -> float:
    """Pressure reflection factor of all walls for a wanted T60, by Eyring's formula.

    T60 = 0.161 V / (-S ln(1 - a)), and a reflection keeps sqrt(1 - a) of the pressure.

    Args:
        size_m: [3] length, width, height.
        rt60_s: more than 0.

    Returns:
        A factor in 0..1.

    Example:
        >>> round(reflection(np.array([5.0, 4.0, 2.5]), 0.4), 3)
        0.888

    Source: Eyring 1930, "Reverberation time in dead rooms".
    """
    length, width, height = size_m
    surface = 2 * (length * width + length * height + width * height)
    return float(np.exp(-0.5 * 0.161 * length * width * height / (surface * rt60_s)))


def images(
    size_m: np.ndarray, source_m: np.ndarray, microphone_m: np.ndarray, reach_m: float
) -> tuple[np.ndarray, np.ndarray]:
    """The images of a source in a shoebox within a reach of the microphone.

    On each axis of length L images are at (1 - 2p) s + 2mL after |m - p| + |m| bounces, p = 0, 1, m whole.

    Args:
        size_m: [3] the room, one corner at the origin.
        source_m: [3] inside the room.
        microphone_m: [3] inside the room.
        reach_m: largest distance.

    Returns:
        (float64 [K, 3] image minus microphone in metres, int [K] bounces), the source itself first.

    Example:
        >>> at, bounces = images(np.array([4.0, 4, 4]), np.array([1.0, 2, 2]), np.array([3.0, 2, 2]), 4.1)
        >>> at[0], sorted(bounces.tolist())
        (array([-2.,  0.,  0.]), [0, 1, 1])

    Source: Allen and Berkley 1979, equations 9 and 10.
    """
    offsets, counts = zip(*(_axis(*a, reach_m) for a in zip(size_m, source_m, microphone_m)))
    square = offsets[0][:, None, None] ** 2 + offsets[1][:, None] ** 2 + offsets[2] ** 2
    chosen = np.nonzero(square <= reach_m**2)
    at = np.stack([o[k] for o, k in zip(offsets, chosen)], axis=1)
    bounces = np.sum([c[k] for c, k in zip(counts, chosen)], axis=0)
    first = np.argsort(bounces, kind="stable")
    return at[first], bounces[first]


def early(rir: np.ndarray, direct_sample: int, rate_hz: int, early_ms: float = 50.0) -> np.ndarray:
    """The part of a response that helps understanding: the direct path and what follows within `early_ms`.

    Args:
        rir: [n].
        direct_sample: index of the direct path, 0..n-1.
        rate_hz: sample rate, Hz.
        early_ms: length after the direct path, ms.

    Returns:
        [m] the beginning of `rir`, m <= n; `rir` minus it is the late part.

    Example:
        >>> early(np.ones(4000), 100, 16000).shape
        (901,)
    """
    return rir[: direct_sample + 1 + round(early_ms * 1e-3 * rate_hz)]


def convolve(x: np.ndarray, rir: np.ndarray, direct_sample: int) -> np.ndarray:
    """Puts a signal in a room without moving it: the direct path of x[t] is in y[t].

    Args:
        x: [n] signal.
        rir: [m] response.
        direct_sample: index of the direct path in `rir`, 0..m-1.

    Returns:
        float32 [n]; what rings after the end is cut.

    Raises:
        ValueError: `direct_sample` is outside `rir`.

    Example:
        >>> convolve(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.5]), 1).round(6)
        array([1. , 2.5, 4. ], dtype=float32)
    """
    if not 0 <= direct_sample < len(rir):
        raise ValueError(f"rooms.convolve: direct_sample {direct_sample}, allowed: 0..{len(rir) - 1}")
    x, rir = np.asarray(x, np.float32), np.asarray(rir, np.float32)
    size = scipy.fft.next_fast_len(len(x) + len(rir) - 1, real=True)
    y = np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(rir, size), size)
    return y[direct_sample : direct_sample + len(x)]


def _places(rng: np.random.Generator, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[3] talker and [3] microphone, at least 0.3 m from the walls and 0.3 to 3 m apart."""
    while True:
        source, microphone = rng.uniform(0.3, size - 0.3), rng.uniform(0.3, size - 0.3)
        if 0.3 <= np.linalg.norm(source - microphone) <= 3.0:
            return source, microphone


def _axis(length: float, source: float, microphone: float, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Offsets [2(2M+1)] from the microphone along one axis, and bounces."""
    most = int(np.ceil((reach + length) / (2 * length)))
    m, p = np.meshgrid(np.arange(-most, most + 1), np.arange(2), indexing="ij")
    offset = (1 - 2 * p) * source + 2 * m * length - microphone
    return offset.ravel(), (np.abs(m - p) + np.abs(m)).ravel()


def _early_part(
    rng: np.random.Generator,
    size: np.ndarray,
    source: np.ndarray,
    microphone: np.ndarray,
    rt60_s: float,
    rt60_high_s: float,
    rate_hz: int,
) -> np.ndarray:
    """[HALF + early samples] the images, filtered once per bounce; the direct path is at `HALF`.

    All-positive images pile up below 1 kHz and ring too long there: from two bounces on, the sign is random.
    """
    n = HALF + round(EARLY_S * rate_hz)
    direct_m = float(np.linalg.norm(source - microphone))
    at, bounces = images(size, source, microphone, direct_m + SOUND_M_S * EARLY_S)
    at[1:] += rng.uniform(-JITTER_M, JITTER_M, at[1:].shape)
    distance = np.maximum(np.linalg.norm(at, axis=1), direct_m)
    loss = reflection(size, rt60_s)
    after_s = (distance - direct_m) / SOUND_M_S
    gain = loss**bounces * direct_m / distance
    gain *= _correction(after_s, gain, rt60_s) * np.where(bounces > 1, rng.choice([-1.0, 1.0], len(gain)), 1.0)
    audible = np.abs(gain) > 1e-4
    delay = after_s[audible] * rate_hz + HALF
    trains = _impulses(delay, gain[audible], bounces[audible], n)
    extra = reflection(size, rt60_high_s) / loss  # at half the rate, for each bounce
    return _dull(trains, extra)


def _correction(after_s: np.ndarray, gain: np.ndarray, rt60_s: float) -> np.ndarray:
    """[K] a loss per second that turns the images' decay, a line through their levels, into the asked one.

    Eyring's formula assumes a diffuse field; images of a shoebox with hard corners decay more slowly.
    """
    bins = np.arange(0.005, EARLY_S + 1e-9, 0.005)
    energy, _ = np.histogram(after_s, bins, weights=gain**2)
    heard = energy > 0
    if np.count_nonzero(heard) < 4:
        return np.ones_like(gain)
    slope, _ = np.polyfit(bins[:-1][heard], 10 * np.log10(energy[heard]), 1)
    return 10 ** ((-60.0 / rt60_s - slope) * after_s / 20)


def _impulses(delay: np.ndarray, gain: np.ndarray, bounces: np.ndarray, n: int) -> np.ndarray:
    """[bounces + 1, n] impulses (Hann-windowed sinc of 2 HALF taps), one row per number of bounces."""
    rows = int(np.max(bounces)) + 1
    whole = np.floor(delay).astype(int)
    taps = np.arange(1 - HALF, HALF + 1)
    t = taps - (delay - whole)[:, None]
    kernel = gain[:, None] * np.sinc(t) * (0.5 + 0.5 * np.cos(np.pi * t / HALF))
    index = np.minimum(whole[:, None] + taps, n)  # what falls behind the end goes to a spare column
    flat = (bounces[:, None] * (n + 1) + index).ravel()
    return np.bincount(flat, kernel.ravel(), rows * (n + 1)).reshape(rows, n + 1)[:, :n]


def _dull(trains: np.ndarray, extra: float) -> np.ndarray:
    """[n] sum of the rows, row k filtered k times: one pole, gain 1 at 0 Hz and `extra` at half the rate."""
    pole = (1 - extra) / (1 + extra)
    size = scipy.fft.next_fast_len(2 * trains.shape[1], real=True)
    spectra = np.fft.rfft(trains, size)
    response = (1 - pole) / (1 - pole * np.exp(-2j * np.pi * np.arange(spectra.shape[1]) / size))
    total = np.zeros(spectra.shape[1], complex)
    for row in spectra[::-1]:  # Horner's rule
        total = total * response + row
    return np.fft.irfft(total, size)[: trains.shape[1]]


def _with_tail(
    rng: np.random.Generator, head: np.ndarray, rt60_s: float, rt60_high_s: float, rate_hz: int
) -> np.ndarray:
    """[n] the images, blended over 10 ms into two bands of noise that decay for a further T60."""
    n = len(head) + int(rt60_s * rate_hz)
    blend = int(_BLEND_S * rate_hz)
    start = len(head) - blend
    seconds = np.arange(n - start) / rate_hz
    tail = np.zeros(n - start)
    for kind, t60 in (("lowpass", rt60_s), ("highpass", rt60_high_s)):
        sos = scipy.signal.butter(2, _CROSS_HZ, kind, fs=rate_hz, output="sos")
        noise = np.asarray(scipy.signal.sosfilt(sos, rng.standard_normal(n - start)))
        around = np.asarray(scipy.signal.sosfilt(sos, head))[start - blend :]
        level = np.sqrt(np.mean(around**2)) / np.std(noise)
        tail += level * noise * 10 ** (-3 * seconds / t60)
    rise = np.sin(0.5 * np.pi * np.minimum(np.arange(n - start) / blend, 1.0))
    out = np.concatenate([head, np.zeros(n - len(head))])
    out[start:] = out[start:] * np.sqrt(1 - rise**2) + tail * rise
    return out
