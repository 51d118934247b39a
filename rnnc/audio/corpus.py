"""The default corpus: speech and noise made on the spot and cached, so a first training needs no download.

Layout: `speech/SPLIT/SPEAKER/*.flac`, `noise/SPLIT/FAMILY/*.flac` and `corpus.json`, the splits being train,
valid and test. Speakers, sentences and noise seeds of the splits are disjoint; every split has every noise
family.
"""

import functools
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rnnc.audio import io, mumble, noises, sentences, voices

VERSION = 1  # goes up when the same parameters give other samples
KINDS = ("espeak", "synthetic")
LEVEL_DB = -26.0  # active level of speech and RMS of noise, dBFS
EVAL_MINUTES = 1.5  # of valid and of test, speech and noise each; a quarter of train where that is less
SPEAKER_S = {"train": 30.0, "valid": 10.0, "test": 10.0}
CLIP_S = {"train": 10.0, "valid": 4.0, "test": 4.0}  # about, of a noise file
_BABBLE_CLIPS = 2  # of each speaker, for the babble of the split

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What decides every sample of a corpus (on one platform and one version of espeak-ng).

    Attributes:
        seed: 0 or more.
        speech_minutes: of train, more than 0, at most 6,000.
        noise_minutes: the same.
        rate_hz: 8,000 to 48,000.
        kind: `espeak`, or `synthetic` for speech-like sound without espeak-ng.
        version: of the generators.
    """

    seed: int = 0
    speech_minutes: float = 20.0
    noise_minutes: float = 10.0
    rate_hz: int = 16000
    kind: str = "espeak"
    version: int = VERSION

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require(0 < self.speech_minutes <= 6000, "speech_minutes", self.speech_minutes, "more than 0, up to 6000")
        _require(0 < self.noise_minutes <= 6000, "noise_minutes", self.noise_minutes, "more than 0, up to 6000")
        _require(8000 <= self.rate_hz <= 48000, "rate_hz", self.rate_hz, "8000 to 48000")
        _require(self.kind in KINDS, "kind", self.kind, " or ".join(KINDS))

    def seconds(self, what: str, split: str) -> float:
        """Seconds of `speech` or `noise` in a split."""
        minutes = self.speech_minutes if what == "speech" else self.noise_minutes
        return 60 * (minutes if split == "train" else min(EVAL_MINUTES, minutes / 4))


def default_folder(
    seed: int = 0,
    *,
    speech_minutes: float = 20.0,
    noise_minutes: float = 10.0,
    rate_hz: int = 16000,
    kind: str = "espeak",
) -> Path:
    """Where a corpus is cached: under `$RNNC_CACHE`, else `$XDG_CACHE_HOME/rnnc`, else `~/.cache/rnnc`.

    Args: as for `make`.

    Example:
        >>> default_folder(3).name
        'corpus-v1-espeak-20min-10min-16000hz-seed3'
    """
    cache = os.environ.get("RNNC_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "rnnc")
    name = f"corpus-v{VERSION}-{kind}-{speech_minutes:g}min-{noise_minutes:g}min-{rate_hz}hz-seed{seed}"
    return Path(cache).expanduser() / name


def make(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    speech_minutes: float = 20.0,
    noise_minutes: float = 10.0,
    rate_hz: int = 16000,
    kind: str = "espeak",
    on_progress: Progress | None = None,
) -> Path:
    """Makes a corpus, or returns at once where the folder already holds this very one.

    It is built in a hidden folder beside `folder` and renamed when complete: an interrupted build leaves
    nothing (after a kill, that hidden folder, `.NAME.XXXX.partial`).

    Args:
        folder: to be made; its parents too.
        seed: 0 or more.
        speech_minutes: of train; valid and test have 1.5 minutes each, or a quarter of this if less.
        noise_minutes: the same for noise; at least one file per family.
        rate_hz: 8,000 to 48,000 Hz.
        kind: `espeak`, or `synthetic` where espeak-ng is absent.
        on_progress: called with (steps done, steps in all) after each speaker and each noise family.

    Returns:
        The folder.

    Raises:
        ValueError: a parameter is out of range; the folder holds something else; no espeakng-loader.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as t:
        ...     made = make(f"{t}/corpus", speech_minutes=0.05, noise_minutes=0.05, kind="synthetic")
        ...     sorted(p.name for p in made.iterdir())
        ['corpus.json', 'noise', 'speech']
    """
    parameters = Parameters(
        seed=seed, speech_minutes=speech_minutes, noise_minutes=noise_minutes, rate_hz=rate_hz, kind=kind
    )
    folder = Path(folder)
    if _holds(folder, parameters):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        _build(partial, parameters, on_progress or (lambda done, total: None))
        _publish(partial, folder, parameters)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _require(right: bool, name: str, given: object, allowed: str) -> None:
    if not right:
        raise ValueError(f"corpus: bad {name}, given {given!r}, allowed: {allowed}")


def _holds(folder: Path, parameters: Parameters) -> bool:
    """Whether the folder is this corpus; an error if it is anything else but absent or empty."""
    found = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))["parameters"]
    if found == asdict(parameters):
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"corpus: {folder} holds something else, found {found or 'no corpus.json'}, "
            f"wanted {asdict(parameters)}; give another folder or remove it"
        )
    return False


def _publish(partial: Path, folder: Path, parameters: Parameters) -> None:
    """Renames the finished build; where another process was faster, its equal corpus stays."""
    try:
        os.replace(partial, folder)
    except OSError:
        if not _holds(folder, parameters):
            raise


def _build(folder: Path, parameters: Parameters, on_progress: Progress) -> None:
    """Writes all files, `corpus.json` last."""
    speakers = {split: _speaker_count(parameters, split) for split in sentences.SPLITS}
    total = sum(speakers.values()) + len(sentences.SPLITS) * len(noises.NOISES)
    done, minutes = 0, {}
    for split in sentences.SPLITS:
        crowd: list[np.ndarray] = []
        seconds = {"speech": 0.0, "noise": 0.0}
        for k in range(speakers[split]):
            wanted_s = parameters.seconds("speech", split) * (k + 1) / speakers[split] - seconds["speech"]
            name, clips = _speaker(parameters, split, k, wanted_s)
            seconds["speech"] += _write(folder / "speech" / split / name, clips, parameters.rate_hz)
            crowd += clips[:_BABBLE_CLIPS]
            on_progress(done := done + 1, total)
        for family in noises.NOISES:
            clips = list(_noise(parameters, split, family, crowd))
            seconds["noise"] += _write(folder / "noise" / split / family, clips, parameters.rate_hz)
            on_progress(done := done + 1, total)
        minutes[split] = {what: round(s / 60, 3) for what, s in seconds.items()}
    record = {"parameters": asdict(parameters), "minutes": minutes, "speakers": speakers}
    (folder / "corpus.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _speaker_count(parameters: Parameters, split: str) -> int:
    return max(2, round(parameters.seconds("speech", split) / SPEAKER_S[split]))


def _rng(parameters: Parameters, split: str, *path: int) -> np.random.Generator:
    """A generator of its own for each split, kind of sound and index."""
    return np.random.default_rng([parameters.seed, sentences.SPLITS.index(split), *path])


def _speaker(parameters: Parameters, split: str, k: int, seconds: float) -> tuple[str, list[np.ndarray]]:
    """(folder name, clips of one or two sentences) of a speaker; whole clips until `seconds` are reached."""
    rng = _rng(parameters, split, 0, k)
    speaker = voices.draw(rng)
    count = int(seconds / 3) + 1  # a clip has 5 s on average
    if parameters.kind == "espeak":
        texts = [_text(rng, split) for _ in range(count)]
        raw = voices.speak(speaker, texts, parameters.rate_hz, rng)
    else:
        raw = [mumble.mumble(speaker, rng.uniform(3.0, 7.0), parameters.rate_hz, rng) for _ in range(count)]
    clips: list[np.ndarray] = []
    for x in raw:
        if seconds <= 0 and clips:
            break
        clips.append(voices.record(x, speaker, parameters.rate_hz, rng, LEVEL_DB))
        seconds -= len(clips[-1]) / parameters.rate_hz
    return f"{split}{k:03d}-{speaker.accent}", clips


def _text(rng: np.random.Generator, split: str) -> str:
    return " ".join(sentences.draw(rng, split) for _ in range(int(rng.integers(1, 3))))


def _noise(parameters: Parameters, split: str, family: str, crowd: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The clips of one family, at `LEVEL_DB` RMS, lower where the peak would pass 0.98."""
    seconds = parameters.seconds("noise", split) / len(noises.NOISES)
    count = max(1, round(seconds / CLIP_S[split]))
    n = max(round(seconds / count * parameters.rate_hz), parameters.rate_hz // 2)
    generate = functools.partial(noises.babble, voices=crowd) if family == "babble" else noises.NOISES[family]
    for i in range(count):
        x = generate(_rng(parameters, split, 1, zlib.crc32(family.encode()), i), n, parameters.rate_hz)
        yield x * np.float32(min(10 ** (LEVEL_DB / 20), 0.98 / np.max(np.abs(x))))


def _write(folder: Path, clips: list[np.ndarray], rate_hz: int) -> float:
    """Writes `000.flac` and on; returns their seconds."""
    folder.mkdir(parents=True)
    for i, x in enumerate(clips):
        io.write(folder / f"{i:03d}.flac", x, rate_hz)
    return sum(map(len, clips)) / rate_hz
