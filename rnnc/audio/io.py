"""Reading and writing audio behind a guard: what enters is finite, bounded and named when it is refused.

Read are WAV (PCM, float), FLAC and Ogg (Vorbis, Opus), recognised by their first bytes, never by the suffix;
written are 16-bit WAV and FLAC. RF64, RIFX and every other container is refused. No header is believed: size,
rate, channels and length are checked before anything is allocated; only samples that were delivered count.
"""

import csv
import io
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus")
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")
SUBTYPES = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "VORBIS", "OPUS")
RATES_HZ = (1_000, 384_000)
CHANNELS = (1, 32)
MAX_BYTES = 2**30  # of a file on disk
MAX_VALUES = 2**27  # frames x channels in memory: 512 MiB of float32
MAX_AMPLITUDE = 1e4  # full scale is 1: larger ones are integers declared as float, or damage
MIN_SECONDS = 0.1  # of a training clip

_ALLOWED = "a WAV (PCM or float), FLAC or Ogg (Vorbis, Opus) file"
_BLOCK_VALUES = 2**18
_UNKNOWN_FRAMES = 2**62  # libsndfile's "length unknown" lies above
_LOG = logging.getLogger("rnnc")

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]


class AudioError(ValueError):
    """A file or folder is refused; the message is `PATH: what is wrong, what was found, what is allowed`."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The audio files of some folders: `files`, sorted inside each folder, folders in the order given."""

    files: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One loaded file. `samples`: int16 `[n]`, full scale 32768; `speaker`: the name of the file's folder."""

    path: str
    speaker: str
    samples: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """What `load_all` found: `clips` in the order of `scan`, and `skipped` as (path, reason)."""

    clips: list[Clip]
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Clean speech and its noisy version, float32 `[n]` each; `snr_db` and `speaker` if a table has them."""

    id: str
    clean: np.ndarray
    noisy: np.ndarray
    snr_db: float | None
    speaker: str | None


# --- one file in -------------------------------------------------------------------------------------------


def read_native(path: PathLike, *, max_seconds: float = 600.0) -> tuple[np.ndarray, int]:
    """Read a file as it is: all channels, at its own rate.

    A WAV or Ogg file that ends early yields the samples that are there; a FLAC that ends early is refused.

    Args:
        path: a regular WAV, FLAC or Ogg file.
        max_seconds: longest accepted duration in seconds, > 0.
    Returns:
        Samples, float32 `[n, channels]`, n >= 1, finite, |x| <= 1e4 (nominally 1), and the rate in Hz.
    Raises:
        AudioError: the file is missing, damaged, not of an allowed kind, or too large.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write(f"{folder}/a.wav", np.zeros((800, 2)), 8000)
        ...     samples, rate_hz = read_native(f"{folder}/a.wav")
        >>> samples.shape, rate_hz
        ((800, 2), 8000)
    """
    _check_file(path)
    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            _check_header(path, file, max_seconds)
            return _decode(path, file, max_seconds), file.samplerate
    except AudioError:
        raise
    except Exception as error:  # whatever hostile bytes do to the decoder, the caller sees one kind of error
        found = getattr(error, "error_string", None) or f"{type(error).__name__} {error}".strip()
        raise AudioError(f"{path}: cannot be decoded, found '{found}', allowed is {_ALLOWED}") from None


def read(path: PathLike, rate_hz: int = 16000, *, max_seconds: float = 600.0, mono: bool = True) -> np.ndarray:
    """Read a file at the rate wanted.

    Args:
        path: a regular WAV, FLAC or Ogg file.
        rate_hz: rate of the result in Hz; other files are resampled.
        max_seconds: longest accepted duration in seconds, > 0.
        mono: take the mean of the channels.
    Returns:
        float32 `[n]`, or `[n, channels]` without `mono`; finite.
    Raises:
        AudioError: as `read_native`.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write(f"{folder}/a.wav", np.zeros((800, 2)), 8000)
        ...     read(f"{folder}/a.wav").shape
        (1600,)
    """
    samples, from_hz = read_native(path, max_seconds=max_seconds)
    if mono:
        samples = samples.mean(axis=1, dtype=np.float32)
    return resample(samples, from_hz, rate_hz)


def resample(x: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Change the rate of x along its first axis.

    Args:
        x: `[n]` or `[n, channels]`.
        from_hz: its rate in Hz, 1000 to 384000.
        to_hz: the rate wanted in Hz, the same range.
    Returns:
        float32 `[about n * to_hz / from_hz]` or the same with channels; x itself (as float32) at equal rates.
    Raises:
        ValueError: a rate is out of range.
    Example:
        >>> resample(np.zeros(480), 48000, 16000).shape
        (160,)

    Source: soxr, quality "HQ" (20-bit precision).
    """
    for rate_hz in (from_hz, to_hz):
        if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
            raise ValueError(f"resample: rate out of range, {rate_hz} Hz given, {_span(RATES_HZ)} Hz allowed")
    x = np.asarray(x, np.float32)
    if from_hz == to_hz or not x.size:
        return x
    return soxr.resample(x, from_hz, to_hz, quality="HQ")


def to_int16(x: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1) as 16-bit integers, rounded and clipped: the inverse of reading 16-bit audio.

    Args:
        x: float array of any shape, finite.
    Returns:
        int16 array of the same shape.
    Example:
        >>> to_int16(np.array([-2.0, -1.0, 0.5, 1.0])).tolist()
        [-32768, -32768, 16384, 32767]
    """
    return np.clip(np.rint(np.asarray(x) * 32768.0), -32768, 32767).astype(np.int16)


def _check_file(path: PathLike) -> None:
    """Refuse what is not a regular, non-empty, moderately large file with a known beginning."""
    try:
        if not os.path.exists(path):
            raise AudioError(f"{path}: no such file, allowed is {_ALLOWED}")
        if not os.path.isfile(path):
            kind = "a folder" if os.path.isdir(path) else "a device or pipe"
            raise AudioError(f"{path}: not a regular file, found {kind}, allowed is {_ALLOWED}")
        size = os.path.getsize(path)
        if not 0 < size <= MAX_BYTES:
            raise AudioError(f"{path}: bad size, found {size} bytes, allowed are 1 to {MAX_BYTES}")
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read, found '{error.strerror}', allowed is {_ALLOWED}") from None
    wave = head[:4] == b"RIFF" and head[8:12] == b"WAVE"
    if not wave and head[:4] not in (b"fLaC", b"OggS"):
        raise AudioError(f"{path}: not audio, found first bytes {head[:12]!r}, allowed is {_ALLOWED}")


def _check_header(path: PathLike, file: soundfile.SoundFile, max_seconds: float) -> None:
    """Refuse a header that claims anything outside the limits at the top of this file."""
    kind, rate_hz, channels, frames = file.format, file.samplerate, file.channels, file.frames
    if kind not in FORMATS or file.subtype not in SUBTYPES:
        raise AudioError(f"{path}: encoding not allowed, found {kind} {file.subtype}, allowed is {_ALLOWED}")
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise AudioError(f"{path}: bad rate, found {rate_hz} Hz, allowed are {_span(RATES_HZ)} Hz")
    if not CHANNELS[0] <= channels <= CHANNELS[1]:
        raise AudioError(f"{path}: bad channel count, found {channels}, allowed are {_span(CHANNELS)}")
    if frames < _UNKNOWN_FRAMES:
        _check_length(path, frames, file, max_seconds)


def _check_length(path: PathLike, frames: int, file: soundfile.SoundFile, max_seconds: float) -> None:
    if frames <= 0:
        raise AudioError(f"{path}: no samples, found {frames} frames, allowed are 1 and more")
    if frames > max_seconds * file.samplerate:
        seconds = frames / file.samplerate
        raise AudioError(f"{path}: too long, found {seconds:.1f} s, allowed are {max_seconds:g} s")
    if frames * file.channels > MAX_VALUES:
        raise AudioError(f"{path}: too large, found {frames} x {file.channels} values, allowed {MAX_VALUES}")


def _decode(path: PathLike, file: soundfile.SoundFile, max_seconds: float) -> np.ndarray:
    """Decode block by block, so that a lying header costs one block; float32 `[n, channels]`."""
    blocks, frames, step = [], 0, max(1, _BLOCK_VALUES // file.channels)
    while len(block := file.read(step, dtype="float32", always_2d=True)):
        frames += len(block)
        _check_length(path, frames, file, max_seconds)
        peak = float(np.abs(block).max())
        if not peak <= MAX_AMPLITUDE:  # also true for NaN
            raise AudioError(
                f"{path}: bad samples, found peak {peak:g}, allowed are finite ones up to {MAX_AMPLITUDE:g}"
            )
        blocks.append(block)
    _check_length(path, frames, file, max_seconds)
    if frames < file.frames < _UNKNOWN_FRAMES:
        raise AudioError(f"{path}: cut short, found {frames} of {file.frames} frames, allowed are all")
    return np.concatenate(blocks)


def _span(limits: tuple[int, int]) -> str:
    return f"{limits[0]} to {limits[1]}"


# --- one file out ------------------------------------------------------------------------------------------


def write(path: PathLike, x: np.ndarray, rate_hz: int) -> int:
    """Write 16-bit WAV or FLAC, by the suffix. The file appears complete or not at all.

    Args:
        path: ends in .wav or .flac; an existing file is replaced.
        x: floating point `[n]` or `[n, channels]`, n >= 1, finite; nominal range [-1, 1], clipped to it.
        rate_hz: rate in Hz, 1000 to 384000.
    Returns:
        How many values lay outside [-1, 1] and were clipped.
    Raises:
        AudioError: suffix, shape, rate or values are not allowed, or the folder cannot take the file.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/a.flac", np.array([0.0, 1.5, -0.5]), 16000)
        1
    """
    x = np.asarray(x)
    kind = Path(path).suffix.lower()
    if kind not in (".wav", ".flac"):
        raise AudioError(f"{path}: cannot write this kind, found suffix '{kind}', allowed are .wav and .flac")
    if x.ndim not in (1, 2) or not x.size or not np.issubdtype(x.dtype, np.floating):
        raise AudioError(f"{path}: bad array, found {x.dtype} {x.shape}, allowed: floats [n] or [n, channels]")
    if not np.isfinite(x).all():
        raise AudioError(f"{path}: bad samples, found {np.sum(~np.isfinite(x))} not finite, allowed are none")
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise AudioError(f"{path}: bad rate, found {rate_hz} Hz, allowed are {_span(RATES_HZ)} Hz")
    _replace(path, _encode(path, to_int16(x), rate_hz, kind[1:].upper()))
    return int(np.sum(np.abs(x) > 1))


def _encode(path: PathLike, x: np.ndarray, rate_hz: int, kind: str) -> bytes:
    """The whole file in memory, so that the disk can fail only in `_replace`."""
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, x, rate_hz, format=kind, subtype="PCM_16")
    except (soundfile.SoundFileError, ValueError) as error:
        raise AudioError(
            f"{path}: {kind} cannot hold this, found {x.shape} at {rate_hz} Hz, allowed are up to 8 channels "
            f"in FLAC ({getattr(error, 'error_string', error)})"
        ) from None
    return buffer.getvalue()


def _replace(path: PathLike, data: bytes) -> None:
    """Write data beside path, flush it to the disk, then rename."""
    path = Path(path)
    part = path.parent / f".{secrets.token_hex(6)}.part"
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise AudioError(
            f"{path}: cannot be written, found '{error.strerror}', allowed is a writable folder with "
            f"{len(data)} bytes free"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink()


# --- many files --------------------------------------------------------------------------------------------


def scan(folders: PathLike | Iterable[PathLike], kind: str = "audio") -> Scan:
    """List the audio files below some folders, by suffix (any case), without hidden ones and linked folders.

    Args:
        folders: a folder or several; a file below two of them is listed once.
        kind: what they should hold ("speech", "noise"), for messages.
    Returns:
        The files, sorted by path inside each folder.
    Raises:
        AudioError: a folder does not exist, cannot be listed or holds no audio.
    Example:
        >>> scan("no/such/folder", "speech")
        Traceback (most recent call last):
        rnnc.audio.io.AudioError: no/such/folder: no such speech folder, found nothing, allowed is a folder
    """
    folders = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    if not folders:
        raise AudioError(f"{kind}: no folders, found an empty list, allowed are 1 and more")
    return Scan(files=tuple(dict.fromkeys(file for folder in folders for file in _files(Path(folder), kind))))


def _files(folder: Path, kind: str) -> list[Path]:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise AudioError(f"{folder}: no such {kind} folder, found {found}, allowed is a folder")

    def refuse(error: OSError) -> None:
        raise AudioError(f"{error.filename}: {kind} folder not readable, found '{error.strerror}'") from None

    files = [Path(at) / name for at, _, names in os.walk(folder, onerror=refuse) for name in names]
    audio = sorted(f for f in files if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not audio:
        raise AudioError(f"{folder}: no {kind}, found {len(files)} other files, allowed: {', '.join(SUFFIXES)}")
    return audio


def load_all(
    folders: PathLike | Iterable[PathLike], rate_hz: int, *, kind: str, on_progress: Progress | None = None
) -> Loaded:
    """Load every usable file of some folders; the others are named, with their reason, and skipped.

    Args:
        folders: as `scan`.
        rate_hz: rate of the clips in Hz.
        kind: what they should hold ("speech", "noise"), for messages.
        on_progress: called with (files done, files in all) after each file, from the calling thread.
    Returns:
        Clips of at least 0.1 s that are not digitally silent, clipped to [-1, 1], in the order of `scan`.
    Raises:
        AudioError: as `scan`, or no file is usable.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write(f"{folder}/a.wav", 0.5 * np.sin(np.arange(16000)), 16000)
        ...     loaded = load_all(folder, 16000, kind="speech")
        >>> len(loaded.clips), loaded.clips[0].samples.dtype, loaded.skipped
        (1, dtype('int16'), ())
    """
    files = scan(folders, kind).files
    clips, skipped = [], []
    for done, (file, result) in enumerate(_in_order(files, rate_hz), 1):
        if isinstance(result, Clip):
            clips.append(result)
        else:
            skipped.append((str(file), result))
            _LOG.warning("skipped %s: %s", file, result)
        if on_progress:
            on_progress(done, len(files))
    if not clips:
        raise AudioError(_nothing_left(kind, skipped))
    return Loaded(clips=clips, skipped=tuple(skipped))


def _in_order(files: Sequence[Path], rate_hz: int) -> Iterator[tuple[Path, Clip | str]]:
    """Decode with two threads, deliver in order; an interruption drops what has not begun."""
    pool = ThreadPoolExecutor(2)
    try:
        yield from zip(files, pool.map(lambda file: _clip(file, rate_hz), files))
    finally:
        pool.shutdown(cancel_futures=True)


def _clip(file: Path, rate_hz: int) -> Clip | str:
    """The file as a clip, or the reason why not."""
    try:
        samples = to_int16(read(file, rate_hz))
    except AudioError as error:
        return str(error).removeprefix(f"{file}: ")
    seconds = len(samples) / rate_hz
    if seconds < MIN_SECONDS:
        return f"too short, found {seconds:.3f} s, allowed are {MIN_SECONDS} s and more"
    if samples.min() == samples.max():
        return f"digitally silent, found {samples[0]} in all samples, allowed is sound"
    return Clip(path=str(file), speaker=file.absolute().parent.name, samples=samples)


def _nothing_left(where: str, skipped: Sequence[tuple[str, str]]) -> str:
    reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
    return f"{where}: nothing usable, found {len(skipped)} tried and all refused, first: {reasons}"


# --- pairs -------------------------------------------------------------------------------------------------


def pairs(folder: PathLike, rate_hz: int = 16000) -> list[Pair]:
    """Load `folder/clean/ID.*` with `folder/noisy/ID.*`, and what a table in the folder says about them.

    The table is `<folder name>.csv`, or else the only *.csv there, with columns `id`, `snr_db` and `speaker`.
    Files without partner or of unequal length are named and skipped.

    Args:
        folder: holds `clean/` and `noisy/`, matched by relative path without suffix.
        rate_hz: rate of the result in Hz.
    Returns:
        The pairs, sorted by id; clean and noisy of equal length.
    Raises:
        AudioError: a folder is missing or empty, the table is damaged, or no pair is left.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for side in ("clean", "noisy"):
        ...         Path(folder, side).mkdir()
        ...         _ = write(f"{folder}/{side}/a.wav", np.zeros(1600), 16000)
        ...     [(pair.id, pair.clean.shape, pair.snr_db) for pair in pairs(folder)]
        [('a', (1600,), None)]
    """
    folder = Path(folder)
    clean, noisy = (_by_id(folder / side, side) for side in ("clean", "noisy"))
    table = _table(folder)
    found, skipped = [], []
    for name in sorted(clean.keys() | noisy.keys()):
        try:
            x, y = _partners(name, clean, noisy, rate_hz)
        except AudioError as error:
            skipped.append((name, str(error)))
            _LOG.warning("skipped pair %s: %s", name, error)
            continue
        snr_db, speaker = table.get(name, (None, None))
        found.append(Pair(id=name, clean=x, noisy=y, snr_db=snr_db, speaker=speaker))
    if not found:
        raise AudioError(_nothing_left(str(folder), skipped))
    if skipped:
        _LOG.warning("%s: skipped %d of %d pairs", folder, len(skipped), len(skipped) + len(found))
    return found


def _by_id(folder: Path, kind: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in scan(folder, kind).files:
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            _LOG.warning("skipped %s: %s has the same name", file, found[name])
        found.setdefault(name, file)
    return found


def _partners(name: str, clean: dict[str, Path], noisy: dict[str, Path], rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    if name not in noisy or name not in clean:
        side = "clean" if name in clean else "noisy"
        raise AudioError(f"{name}: no partner, found only the {side} file, allowed are both")
    x, y = read(clean[name], rate_hz), read(noisy[name], rate_hz)
    if len(x) != len(y):
        raise AudioError(f"{name}: unequal lengths, found {len(x)} clean and {len(y)} noisy samples")
    return x, y


def _table(folder: Path) -> dict[str, tuple[float | None, str | None]]:
    """{id: (snr_db, speaker)} of the folder's table, empty where there is none."""
    named, every = folder / f"{folder.absolute().name}.csv", sorted(folder.glob("*.csv"))
    path = named if named.is_file() else every[0] if len(every) == 1 else None
    if path is None:
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        return {row["id"]: (_number(row.get("snr_db")), row.get("speaker") or None) for row in rows}
    except (OSError, ValueError, csv.Error) as error:
        raise AudioError(f"{path}: bad table, found '{error}', allowed are numbers in snr_db") from None
    except KeyError:
        raise AudioError(f"{path}: no column 'id', allowed are id, snr_db, speaker and others") from None


def _number(text: str | None) -> float | None:
    if not text:
        return None
    if not np.isfinite(value := float(text)):
        raise ValueError(f"{text} is not finite")
    return value
