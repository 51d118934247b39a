"""Noise made on the spot: a table of generators, `(rng, n, rate_hz) -> float32 [n]` of unit RMS.

Each call draws its own parameters, so one generator is a family of noises. All consume only the given
generator.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft
import scipy.signal

from rnnc.audio import mumble as _mumble
from rnnc.audio import voices as _voices

Noise = Callable[[np.random.Generator, int, int], np.ndarray]


def unit(x: np.ndarray) -> np.ndarray:
    """float32 copy of x without its mean, at unit RMS; silence stays silence.

    Example:
        >>> unit(np.array([0.0, 4.0]))
        array([-1.,  1.], dtype=float32)
    """
    x = x - np.mean(x)
    rms = np.sqrt(np.mean(np.square(x)))
    return (x / rms if rms > 0 else x).astype(np.float32)


def coloured(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """White to brown noise: 0 to -6.5 dB per octave above 40 Hz, its level wandering by a few dB."""
    slope = rng.uniform(0.0, 1.08)
    return unit(_shaped(rng, n, rate_hz, lambda hz: np.maximum(hz, 40.0) ** -slope) * _swell(rng, n, rate_hz))


def babble(rng: np.random.Generator, n: int, rate_hz: int, voices: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """6 to 12 voices at once, each at its own level and offset.

    Args:
        rng: consumed.
        n: samples.
        rate_hz: sample rate, Hz.
        voices: signals [n_i] to draw from, repeated where short; None: source-filter voices.

    Example:
        >>> babble(np.random.default_rng(0), 8000, 16000).shape
        (8000,)
    """
    out = np.zeros(n)
    for _ in range(int(rng.integers(6, 13))):
        if voices is None:
            x = _mumble.mumble(_voices.draw(rng), n / rate_hz, rate_hz, rng)
        else:
            x = voices[int(rng.integers(len(voices)))]
        x = np.roll(np.resize(x, n), int(rng.integers(n)))
        out += unit(x) * 10 ** (rng.uniform(-8.0, 0.0) / 20)
    return unit(out)


def engine(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """Harmonics of a drifting 30..120 Hz (motor, mains hum) over low noise."""
    f0_hz = rng.uniform(30.0, 120.0) * (1 + rng.uniform(0.0, 0.25) * _wander(rng, n, rate_hz, 0.4))
    count = int(rng.integers(6, 25))
    gains = np.arange(1, count + 1) ** -rng.uniform(0.5, 1.3) * rng.uniform(0.2, 1.0, count)
    hum = _harmonics(rng, f0_hz, gains, rate_hz)
    edge_hz = rng.uniform(200.0, 1500.0)
    rumble = _shaped(rng, n, rate_hz, lambda hz: 1 / (1 + (hz / edge_hz) ** 2))
    return unit(unit(hum) + rng.uniform(0.1, 0.8) * unit(rumble))


def wind(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """Low-passed noise in gusts; a stronger gust is also brighter."""
    edge_hz = rng.uniform(80.0, 400.0)
    gust = np.exp(rng.uniform(0.5, 1.3) * _wander(rng, n, rate_hz, rng.uniform(0.4, 1.5)))
    low = unit(_shaped(rng, n, rate_hz, lambda hz: 1 / (1 + (hz / edge_hz) ** 2)))
    high = unit(_shaped(rng, n, rate_hz, lambda hz: hz / (1 + (hz / (5 * edge_hz)) ** 3)))
    return unit(low * gust + rng.uniform(0.05, 0.3) * high * gust**2)


def rain(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """Drops or crackle: 50 to 2,000 random impulses a second through a few resonators, over hiss."""
    hits = rng.random(n) < np.exp(rng.uniform(np.log(50.0), np.log(2000.0))) / rate_hz
    impulses = hits * rng.exponential(1.0, n) * rng.choice([-1.0, 1.0], n)
    out = np.zeros(n)
    for _ in range(int(rng.integers(2, 5))):
        ring = _ring(rng, rate_hz, hz=(700.0, 6500.0), decay_s=(0.0008, 0.006))
        out += rng.uniform(0.3, 1.0) * scipy.signal.oaconvolve(impulses, ring)[:n]
    hiss = _shaped(rng, n, rate_hz, lambda hz: hz / (hz + 1000.0))
    return unit(unit(out) + rng.uniform(0.0, 0.5) * unit(hiss))


def alarm(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """Beeps, two-tone horns or sweeping sirens of 350..3,000 Hz, with a faint noise floor."""
    low_hz = rng.uniform(350.0, 1800.0)
    high_hz = low_hz * rng.choice([1.0, 1.25, 1.5, rng.uniform(1.1, 1.65)])
    turn = np.arange(n) / rate_hz * rng.uniform(0.3, 4.0) + rng.random()
    sweep = 0.5 - 0.5 * np.cos(2 * np.pi * turn) if rng.random() < 0.4 else (turn % 1.0 < 0.5).astype(float)
    on = _soften((turn % 1.0 < rng.uniform(0.3, 0.8)).astype(float), rate_hz) if rng.random() < 0.6 else 1.0
    gains = rng.uniform(0.05, 1.0, 4) ** np.arange(4)
    tone = _harmonics(rng, low_hz + (high_hz - low_hz) * sweep, gains, rate_hz)
    return unit(unit(tone * on) + rng.uniform(0.01, 0.1) * rng.standard_normal(n))


def clatter(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """Dishes, tools, doors: 1 to 8 hits a second, each a bundle of ringing modes, in a quiet room."""
    out = 0.004 * _shaped(rng, n, rate_hz, lambda hz: 1 / (hz + 100.0) ** 0.5)
    base_hz = rng.uniform(150.0, 2500.0)
    for at in _moments(rng, n, rate_hz, rng.uniform(1.0, 8.0)):
        hit = np.zeros(int(0.35 * rate_hz))
        for _ in range(int(rng.integers(3, 8))):
            ring = _ring(rng, rate_hz, hz=(base_hz, min(4 * base_hz, 7000.0)), decay_s=(0.004, 0.07))
            hit[: len(ring)] += rng.uniform(0.1, 1.0) * ring[: len(hit)]
        knock = np.exp(-np.arange(len(hit)) / (rng.uniform(0.001, 0.006) * rate_hz))
        hit += rng.uniform(0.1, 0.8) * knock * rng.standard_normal(len(hit))
        stop = min(at + len(hit), n)
        out[at:stop] += rng.uniform(0.15, 1.0) * hit[: stop - at]
    return unit(out)


def machinery(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """Pumps, drills, presses: bands of noise, their amplitude beating 1 to 40 times a second."""
    out = np.zeros(n)
    beat_hz = np.exp(rng.uniform(0.0, np.log(40.0)))
    for _ in range(int(rng.integers(1, 5))):
        band = unit(_band(rng, n, rate_hz, np.exp(rng.uniform(np.log(150.0), np.log(6000.0)))))
        phase = 2 * np.pi * np.cumsum(beat_hz * (1 + 0.05 * _wander(rng, n, rate_hz, 0.5))) / rate_hz
        out += band * np.exp(rng.uniform(0.5, 2.5) * np.cos(phase + rng.uniform(0, 2 * np.pi)))
    return unit(out)


def fan(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """Steady broadband flow with a blade tone of 60..400 Hz and its harmonics."""
    edge_hz, slope = rng.uniform(150.0, 1200.0), rng.uniform(0.5, 1.3)
    flow = unit(_shaped(rng, n, rate_hz, lambda hz: 1 / (1 + (hz / edge_hz) ** (2 * slope))))
    blade_hz = rng.uniform(60.0, 400.0) * (1 + 0.01 * _wander(rng, n, rate_hz, 0.5))
    tone = unit(_harmonics(rng, blade_hz, rng.uniform(0.1, 1.0, 5) / np.arange(1, 6), rate_hz))
    return unit(flow + rng.uniform(0.02, 0.4) * tone)


def traffic(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """Vehicles passing: each swells, brightens and fades (8 to 25 m/s, 3 to 15 m away), over a rumble."""
    seconds = n / rate_hz
    out = 0.15 * unit(_shaped(rng, n, rate_hz, lambda hz: 1 / (1 + (hz / 150.0) ** 2)))
    time = np.arange(n) / rate_hz
    for _ in range(1 + int(rng.poisson(0.35 * seconds))):
        distance = np.hypot(rng.uniform(3.0, 15.0), rng.uniform(8.0, 25.0) * (time - rng.uniform(0, seconds)))
        near = np.min(distance) / distance
        edge_hz = rng.uniform(200.0, 900.0)
        tyres = unit(_band(rng, n, rate_hz, rng.uniform(600.0, 1500.0), octaves=1.0))
        motor = unit(_shaped(rng, n, rate_hz, lambda hz, edge_hz=edge_hz: 1 / (1 + (hz / edge_hz) ** 2)))
        out += rng.uniform(0.3, 1.0) * (motor * near + rng.uniform(0.2, 1.0) * tyres * near**2)
    return unit(out)


def keyboard(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """Typing: 3 to 11 keys a second in bursts, each a click and a softer release, in a quiet room."""
    impulses = np.zeros(n)
    for at in _moments(rng, n, rate_hz, rng.uniform(3.0, 11.0)):
        if np.sin(at / rate_hz * 1.7) > -0.6:  # typing pauses
            impulses[at] += rng.uniform(0.4, 1.0)
            impulses[min(at + int(rng.uniform(0.05, 0.12) * rate_hz), n - 1)] += rng.uniform(0.1, 0.4)
    thump = _ring(rng, rate_hz, hz=(180.0, 600.0), decay_s=(0.004, 0.012))
    click = np.convolve(_ring(rng, rate_hz, hz=(1800.0, 5500.0), decay_s=(0.001, 0.004)), [1, -0.6])
    burst = rng.standard_normal(len(click)) * np.exp(-np.arange(len(click)) / (0.0015 * rate_hz))
    out = sum(g * scipy.signal.oaconvolve(impulses, k)[:n] for g, k in ((0.7, thump), (1.0, click), (0.5, burst)))
    return unit(out + 0.004 * _shaped(rng, n, rate_hz, lambda hz: 1 / (hz + 100.0) ** 0.5))


def music(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """Chords of three or four decaying tones with harmonics, 1 to 4 chords a second, over a slow bass."""
    step = max(int(rate_hz / rng.uniform(1.0, 4.0)), 1)
    scale = np.array([0, 2, 4, 5, 7, 9, 11])
    root_hz, bright = rng.uniform(90.0, 440.0), rng.uniform(0.4, 1.6)
    gains = np.arange(1, 9) ** -bright
    out = np.zeros(n)
    for start in range(0, n, step):
        length = min(3 * step, n - start)
        decay = np.exp(-np.arange(length) / (rng.uniform(0.5, 2.0) * step))
        edges = np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.01 * rate_hz)
        degree = int(rng.integers(7))
        for third in range(int(rng.integers(3, 5))):
            octave, note = divmod(degree + 2 * third, 7)
            f0_hz = np.full(length, root_hz * 2 ** (octave + scale[note] / 12))
            out[start : start + length] += decay * np.minimum(edges, 1.0) * _harmonics(rng, f0_hz, gains, rate_hz)
    bass = _harmonics(rng, np.full(n, root_hz / 2), np.array([1.0, 0.5, 0.2]), rate_hz)
    return unit(out + 0.3 * bass * (1 + _wander(rng, n, rate_hz, 2.0)) + 1e-3 * rng.standard_normal(n))


NOISES: dict[str, Noise] = {
    f.__name__: f
    for f in (
        *(coloured, babble, engine, wind, rain, alarm),
        *(clatter, machinery, fan, traffic, keyboard, music),
    )
}


def _shaped(rng: np.random.Generator, n: int, rate_hz: int, gain: Callable) -> np.ndarray:
    """[n] Gaussian noise with the magnitude response `gain(hz)`."""
    size = scipy.fft.next_fast_len(n, real=True)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    return np.fft.irfft(spectrum * gain(scipy.fft.rfftfreq(size, 1 / rate_hz)), size)[:n]


def _band(rng: np.random.Generator, n: int, rate_hz: int, centre_hz: float, octaves: float = 0.5) -> np.ndarray:
    """[n] noise around a centre: Gaussian over log frequency, standard deviation in octaves."""
    return _shaped(rng, n, rate_hz, lambda hz: np.exp(-0.5 * (np.log2(np.maximum(hz, 1.0) / centre_hz) / octaves) ** 2))


def _wander(rng: np.random.Generator, n: int, rate_hz: int, hz: float) -> np.ndarray:
    """[n] slow random curve, about -2..2, straight between knots `hz` times a second."""
    knots = np.arange(0.0, n + 2 * rate_hz / hz, rate_hz / hz)
    return np.interp(np.arange(n), knots, np.clip(rng.standard_normal(len(knots)), -2.0, 2.0))


def _swell(rng: np.random.Generator, n: int, rate_hz: int) -> np.ndarray:
    """[n] positive gain, wandering by 0 to 4 dB (one standard deviation), up to twice a second."""
    return 10 ** (rng.uniform(0.0, 4.0) * _wander(rng, n, rate_hz, rng.uniform(0.1, 2.0)) / 20)


def _harmonics(rng: np.random.Generator, f0_hz: np.ndarray, gains: np.ndarray, rate_hz: int) -> np.ndarray:
    """[n] sum of gains[k] sin((k+1) phase + random), dropped above 0.45 of the rate."""
    phase = 2 * np.pi * np.cumsum(f0_hz) / rate_hz
    top_hz = np.max(f0_hz)
    kept = [(k, g) for k, g in enumerate(gains, 1) if k * top_hz < 0.45 * rate_hz]
    return sum((g * np.sin(k * phase + rng.uniform(0, 2 * np.pi)) for k, g in kept), np.zeros(len(f0_hz)))


def _ring(
    rng: np.random.Generator, rate_hz: int, *, hz: tuple[float, float], decay_s: tuple[float, float]
) -> np.ndarray:
    """A decaying sine: frequency (at most 0.45 of the rate) and 1/e time from the ranges; 60 dB long."""
    tau = rng.uniform(*decay_s) * rate_hz
    omega = 2 * np.pi * min(rng.uniform(*hz) / rate_hz, 0.45)
    k = np.arange(int(6.9 * tau) + 1)
    return np.exp(-k / tau) * np.sin(omega * k + rng.uniform(0.0, np.pi))


def _moments(rng: np.random.Generator, n: int, rate_hz: int, per_s: float) -> np.ndarray:
    """Sorted samples of a Poisson process inside 0..n-1; at least one."""
    return np.sort(rng.integers(0, n, 1 + rng.poisson(per_s * n / rate_hz)))


def _soften(gate: np.ndarray, rate_hz: int) -> np.ndarray:
    """[n] gate with edges of about 5 ms."""
    width = max(rate_hz // 200, 1)
    return np.convolve(gate, np.hanning(width + 2)[1:-1] / np.sum(np.hanning(width + 2)), "same")
