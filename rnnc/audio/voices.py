"""Speakers: voices and recording channels drawn at random, spoken by espeak-ng."""

import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import soxr

from rnnc.audio import espeak

ENGLISH = (
    "en",
    "en-US",
    "en-US-nyc",
    "en-GB-x-rp",
    "en-GB-scotland",
    "en-GB-x-gbclan",
    "en-GB-x-gbcwmd",
    "en-029",
)
FOREIGN = (
    "af",
    "de",
    "es",
    "fi",
    "fr",
    "id",
    "it",
    "nl",
    "pl",
    "pt",
    "ro",
    "sv",
)  # read English by their own rules
EQ_HZ = (60.0, 180.0, 500.0, 1200.0, 2800.0, 5000.0, 8000.0)
ACTIVE_MARGIN_DB = 15.9  # ITU-T P.56: speech is active where it is at most this far below the active level
_FRAME_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A voice and the channel that records it.

    Attributes:
        accent: an espeak-ng language file, one of `ENGLISH` or `FOREIGN`.
        pitch_hz: lowest and highest fundamental of ordinary speech, 65..280 Hz.
        variant: further lines of an espeak-ng voice file: formants, breath, roughness.
        formant: vocal tract scale, 0.9 (long) .. 1.28 (short).
        wpm: speed, 130..210 words per minute.
        pitch_range: liveliness of the melody, 0 (monotone) .. 100.
        eq_db: gain of the channel at `EQ_HZ`.
        floor_db: breath and room noise against the active level.
    """

    accent: str
    pitch_hz: tuple[int, int]
    variant: str
    formant: float
    wpm: int
    pitch_range: int
    eq_db: tuple[float, ...]
    floor_db: float


def draw(rng: np.random.Generator) -> Speaker:
    """A random speaker: 2 of 3 with an English accent, half of them with a high voice.

    Example:
        >>> a, b = (draw(np.random.default_rng(1)) for _ in range(2))
        >>> a == b, 130 <= a.wpm <= 210
        (True, True)
    """
    high = rng.random() < 0.5
    formant = rng.uniform(1.06, 1.28) if high else rng.uniform(0.9, 1.08)
    low_hz = rng.uniform(135.0, 205.0) if high else rng.uniform(68.0, 125.0)
    tilt = rng.uniform(-1.5, 1.5) * np.log2(np.array(EQ_HZ) / 1000.0)
    eq_db = tilt + rng.uniform(-3.0, 3.0, len(EQ_HZ))
    return Speaker(
        accent=str(rng.choice(ENGLISH if rng.random() < 0.67 else FOREIGN)),
        pitch_hz=(round(low_hz), round(low_hz * rng.uniform(1.25, 1.6))),
        variant=_variant(rng, formant),
        formant=float(formant),
        wpm=int(rng.integers(130, 211)),
        pitch_range=int(rng.integers(30, 81)),
        eq_db=tuple(float(round(g, 2)) for g in eq_db),
        floor_db=float(rng.uniform(-62.0, -50.0)),
    )


def _variant(rng: np.random.Generator, formant: float) -> str:
    """Lines of an espeak-ng voice file: formant frequency, height and width in percent; source."""
    lines = []
    for i in range(9):
        own = formant * rng.uniform(0.95, 1.05)
        height, width = rng.integers(85, 116), rng.integers(80, 141)
        lines.append(f"formant {i} {round(100 * own)} {height} {width}")
    breath = rng.integers(0, 3, 8) * (rng.random() < 0.4)
    lines += [
        "breath " + " ".join(map(str, breath)),
        f"flutter {rng.integers(2, 9)}",
        f"roughness {rng.integers(0, 4)}",
        f"voicing {rng.integers(80, 121)}",
        f"consonants {rng.integers(85, 136)} {rng.integers(85, 136)}",
    ]
    return "\n".join(lines) + "\n"


def speak(speaker: Speaker, texts: Sequence[str], rate_hz: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Speaks texts by espeak-ng in a fresh child process, one signal for each.

    Args:
        speaker: the voice.
        texts: English sentences.
        rate_hz: wanted sample rate, Hz; the synthesiser's own is 22,050.
        rng: consumed: speed and pitch vary from text to text.

    Returns:
        float32 [n_i] in -1..1, as synthesised: no channel, no level. Equal arguments give equal samples.

    Raises:
        ValueError: the package espeakng-loader is not installed.
        RuntimeError: the synthesiser failed; its message is quoted.

    Source: espeak-ng, docs/voices.md (voice files) and speak_lib.h.
    """
    try:
        import espeakng_loader as loader
    except ImportError as error:
        raise ValueError(
            "voices.speak: espeak-ng is not installed; run pip install 'rnnc[demo]', or use kind='synthetic'"
        ) from error
    data = Path(loader.get_data_path())
    utterances = [_manner(speaker, text, rng) for text in texts]
    with tempfile.TemporaryDirectory(prefix="rnnc") as folder:
        voice = Path(folder, "voice")
        voice.write_text(_voice_file(speaker, data), encoding="utf-8")
        job = {"library": str(loader.get_library_path()), "data": str(data), "voice": str(voice)}
        answer = _run({**job, "utterances": utterances})
    native_hz, signals = _parse(answer, len(texts))
    return [soxr.resample(x, native_hz, rate_hz).astype(np.float32) for x in signals]


def _manner(speaker: Speaker, text: str, rng: np.random.Generator) -> list:
    """[text, words per minute, pitch 0..100, range 0..100]."""
    wpm = int(np.clip(speaker.wpm * rng.uniform(0.92, 1.08), 130, 210))
    return [text, wpm, int(rng.integers(42, 59)), int(speaker.pitch_range + rng.integers(-10, 11))]


def _voice_file(speaker: Speaker, data: Path) -> str:
    """The accent's own file without its name, then the speaker's lines, which override it."""
    found = [p for p in data.joinpath("lang").rglob(speaker.accent) if p.is_file()]
    if not found:
        raise ValueError(f"voices.speak: espeak-ng has no language file {speaker.accent!r} under {data}")
    lines = found[0].read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not re.match(r"\s*(name|maintainer|status|pitch)\b", line)]
    low, high = speaker.pitch_hz
    return "name speaker\n" + "\n".join(kept) + f"\npitch {low} {high}\n" + speaker.variant


def _run(job: dict) -> bytes:
    command = [sys.executable, "-I", "-S", espeak.__file__]
    done = subprocess.run(command, input=json.dumps(job).encode(), capture_output=True, check=False)
    if done.returncode != 0:
        message = done.stderr.decode(errors="replace").strip()[-500:]
        raise RuntimeError(f"voices.speak: espeak-ng ended with status {done.returncode}: {message}")
    return done.stdout


def _parse(answer: bytes, count: int) -> tuple[int, list[np.ndarray]]:
    """(rate in Hz, float32 signals); the layout is `espeak.main`'s."""
    (rate_hz,) = struct.unpack_from("=I", answer)
    at, signals = 4, []
    for _ in range(count):
        (n,) = struct.unpack_from("=I", answer, at)
        signals.append(np.frombuffer(answer, np.int16, n, at + 4).astype(np.float32) / 32768.0)
        at += 4 + 2 * n
    return rate_hz, signals


def active_level_db(x: np.ndarray, rate_hz: int) -> float:
    """Level in dBFS of the frames of 20 ms in which there is speech; -inf for silence.

    The fixed point of: the level is the mean power of the frames that are at most 15.9 dB below the level.

    Args:
        x: [n] in -1..1, at least one frame long.
        rate_hz: sample rate, Hz.

    Example:
        >>> round(active_level_db(np.r_[np.full(1600, 0.1), np.zeros(1600)], 16000), 3)
        -20.0

    Source: after ITU-T P.56 (2011), method B; frames instead of its envelope and hangover.
    """
    frame = round(_FRAME_S * rate_hz)
    power = np.mean(np.square(x[: len(x) // frame * frame], dtype=np.float64).reshape(-1, frame), axis=1)
    if not power.any():
        return -np.inf
    level = np.mean(power)
    for _ in range(20):
        level = np.mean(power[power > level * 10 ** (-ACTIVE_MARGIN_DB / 10)])
    return float(10 * np.log10(level))


def record(x: np.ndarray, speaker: Speaker, rate_hz: int, rng: np.random.Generator, level_db: float) -> np.ndarray:
    """Puts the speaker's channel on a clean signal: silence trimmed, equalised, a breath of noise, levelled.

    Args:
        x: [n] speech.
        speaker: gives `eq_db` and `floor_db`.
        rate_hz: sample rate, Hz.
        rng: consumed by the noise.
        level_db: active level to reach, dBFS; lower where the peak would pass 0.98.

    Returns:
        float32 [m], m <= n, with 50 ms kept before and after the speech.
    """
    x = _trim(np.asarray(x, np.float64), rate_hz)
    y = _equalise(x, speaker.eq_db, rate_hz)
    level = active_level_db(y, rate_hz)
    hiss = _equalise(rng.standard_normal(len(y)), tuple(-3.0 * np.log2(np.array(EQ_HZ) / 1000.0)), rate_hz)
    y += hiss / np.std(hiss) * 10 ** ((level + speaker.floor_db) / 20)
    gain = 10 ** ((level_db - active_level_db(y, rate_hz)) / 20)
    return (y * min(gain, 0.98 / np.max(np.abs(y)))).astype(np.float32)


def _trim(x: np.ndarray, rate_hz: int) -> np.ndarray:
    loud = np.flatnonzero(np.abs(x) > 1e-3 * np.max(np.abs(x)))
    keep = rate_hz // 20
    return x[max(loud[0] - keep, 0) : loud[-1] + keep] if len(loud) else x


def _equalise(x: np.ndarray, gains_db: tuple[float, ...], rate_hz: int) -> np.ndarray:
    """[n] with zero phase: gains at `EQ_HZ`, linear in dB over log frequency, and nothing below 40 Hz."""
    size = scipy.fft.next_fast_len(len(x) + rate_hz // 10, real=True)
    hz = scipy.fft.rfftfreq(size, 1 / rate_hz)
    gain = 10 ** (np.interp(np.log(np.maximum(hz, 1.0)), np.log(EQ_HZ), gains_db) / 20)
    gain *= 1 / (1 + (40.0 / np.maximum(hz, 1e-3)) ** 4)
    return np.fft.irfft(np.fft.rfft(x, size) * gain, size)[: len(x)]
