"""Speech-like sound without a synthesiser of words, for smoke tests and machines without espeak-ng."""

import numpy as np
import scipy.signal

from rnnc.audio.voices import Speaker


def mumble(speaker: Speaker, seconds: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Speech-like sound by a source-filter model: syllables, melody, formants, fricatives and pauses.

    Args:
        speaker: gives pitch, formant scale and speed.
        seconds: length.
        rate_hz: sample rate, Hz.
        rng: consumed.

    Returns:
        float32 [round(seconds * rate_hz)], peak 0.5.

    Example:
        >>> from rnnc.audio.voices import draw
        >>> rng = np.random.default_rng(0)
        >>> mumble(draw(rng), 0.5, 16000, rng).shape
        (8000,)

    Source: Klatt 1980, "Software for a cascade/parallel formant synthesizer"; here four resonators
    in cascade, no zeros.
    """
    n = round(seconds * rate_hz)
    starts, stops = _syllables(speaker, n, rate_hz, rng)
    voiced = _glottis(speaker, n, rate_hz, rng)
    out = np.zeros(n)
    for start, stop in zip(starts, stops):
        hiss = int(min(rng.uniform(0.0, 0.12) * rate_hz, 0.5 * (stop - start))) if rng.random() < 0.6 else 0
        if hiss > 8:
            out[start : start + hiss] += _fricative(hiss, rate_hz, rng)
        vowel = slice(start + hiss // 2, stop)
        length = stop - vowel.start
        shape = np.sin(np.pi * np.arange(length) / length) ** 0.6
        out[vowel] += shape * _formants(voiced[vowel], speaker.formant, rate_hz, rng)
    return (0.5 * out / max(np.max(np.abs(out)), 1e-9)).astype(np.float32)


def _syllables(speaker: Speaker, n: int, rate_hz: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop samples: 1.4 syllables a word, a pause of 0.15 to 0.6 s after one syllable in nine."""
    mean_s = 60.0 / (1.4 * speaker.wpm)
    count = int(n / rate_hz / mean_s * 2) + 2
    length_s = mean_s * rng.uniform(0.6, 1.3, count)
    pause_s = np.where(rng.random(count) < 1 / 9, rng.uniform(0.15, 0.6, count), 0.0)
    stop = np.cumsum(length_s + pause_s) - pause_s
    start = np.round((stop - length_s) * rate_hz).astype(int)
    inside = start < n - rate_hz // 50
    return start[inside], np.minimum(np.round(stop * rate_hz).astype(int), n)[inside]


def _glottis(speaker: Speaker, n: int, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """[n] differentiated glottal pulses: rounded opening, sharp closure, jitter, aspiration."""
    knots = np.arange(0, n + rate_hz, rate_hz // 4)
    low, high = speaker.pitch_hz
    melody = np.interp(np.arange(n), knots, rng.uniform(low, high, len(knots)))
    jitter = np.interp(np.arange(n), np.arange(0, n + 200, 80), rng.normal(1.0, 0.01, (n + 279) // 80))
    phase = np.cumsum(melody * jitter / rate_hz) % 1.0
    flow = np.where(phase < 0.6, np.sin(np.pi * phase / 0.6) ** 2 * (phase / 0.6), 0.0)
    return np.diff(flow, prepend=0.0) * 4.0 + 0.01 * rng.standard_normal(n)


def _formants(source: np.ndarray, scale: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """[n] through four resonators of a random vowel, each of unit gain at zero frequency."""
    centres_hz = np.array([rng.uniform(280, 780), rng.uniform(850, 2300), rng.uniform(2300, 3000), 3600.0]) * scale
    sections = []
    for centre, width in zip(centres_hz, (70.0, 100.0, 150.0, 250.0)):
        radius = np.exp(-np.pi * width / rate_hz)
        a = [1.0, -2.0 * radius * np.cos(2 * np.pi * centre / rate_hz), radius**2]
        sections.append([sum(a), 0.0, 0.0, *a])
    return np.asarray(scipy.signal.sosfilt(sections, source))


def _fricative(n: int, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """[n] hiss above a random 2..5 kHz (at most 0.35 of the rate) under a raised window."""
    edge_hz = min(rng.uniform(2000.0, 5000.0), 0.35 * rate_hz)
    sos = scipy.signal.butter(2, edge_hz, "highpass", fs=rate_hz, output="sos")
    return rng.uniform(0.1, 0.5) * np.hanning(n) * scipy.signal.sosfilt(sos, rng.standard_normal(n))
