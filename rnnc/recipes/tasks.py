"""Classification sets as arrays: images read row by row, spoken words as cepstra; one table of sources.

Every set comes as three parts: one to train on, one to choose the best epoch on, one to score once.
"""

import csv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import scipy.fft

from rnnc.audio import io
from rnnc.audio.stft import Bands, Stft
from rnnc.config import ConfigError

CEPSTRA = 10
WINDOW_S, HOP_S = 0.040, 0.020
BANDS = 40
HELD_OUT = {"digits": (200, 497), "mnist": (5000, 0), "usps": (1000, 0)}  # validation and test items taken from train


class Part(NamedTuple):
    """One part of a set: x [N, T, n] float32, y [N] int32 from 0."""

    x: np.ndarray | jax.Array
    y: np.ndarray | jax.Array


class Parts(NamedTuple):
    """A set: what to train on, to choose on, to score on; and how many classes it has."""

    train: Part
    valid: Part
    test: Part
    classes: int


def load(source: str, folder: Path | None) -> Parts:
    """Read a set.

    Args:
      source: one of `SOURCES`.
      folder: where the files lie; `digits` needs none.

    Raises:
      ConfigError: no folder, a missing or odd file, or scikit-learn is not there; the message says what is expected.
      AudioError: a sound file is missing or damaged.

    >>> parts = load("digits", None)
    >>> parts.train.x.shape, parts.valid.x.shape, parts.test.x.shape, parts.classes
    ((1100, 8, 8), (200, 8, 8), (497, 8, 8), 10)
    """
    reader, expected = SOURCES[source]
    if folder is None and expected:
        raise ConfigError(f"{source}: needs --data DIR, a folder that holds {expected}")
    return reader(source, Path(folder or "."))


def _digits(source: str, folder: Path) -> Parts:
    try:
        from sklearn import datasets
    except ImportError:
        raise ConfigError("digits: needs scikit-learn, which is not installed; try: pip install 'rnnc[demo]'") from None
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = np.asarray(images, np.float32).reshape(-1, 8, 8) / 16, np.asarray(labels, np.int32)
    valid, test = HELD_OUT[source]
    order = np.random.default_rng(0).permutation(len(x))
    cuts = (order[valid + test :], order[:valid], order[valid : valid + test])
    train, chosen, scored = (Part(x[i], y[i]) for i in cuts)
    return Parts(train, chosen, scored, 10)


def _images(source: str, folder: Path) -> Parts:
    path = folder / source / f"{source}.npz"
    side = 28 if source == "mnist" else 16
    train, test = (_image_part(path, split, side) for split in ("train", "test"))
    held = HELD_OUT[source][0]
    if len(train.x) <= held:
        held = len(train.x) // 5  # a small set of the same form
    order = np.random.default_rng(0).permutation(len(train.x))
    valid, rest = (Part(train.x[i], train.y[i]) for i in (order[:held], order[held:]))
    return Parts(rest, valid, test, 10)


def _image_part(path: Path, split: str, side: int) -> Part:
    names = (f"x_{split}", f"y_{split}")
    expected = f"{names[0]} [N, {side}, {side}] of uint8 and {names[1]} [N] from 0 to 9"
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            x, y = (arrays[name] for name in names)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, must be an .npz file with {expected}") from None
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: cannot be read ({error}), must be an .npz file with {expected}") from None
    fits = x.dtype == np.uint8 and x.shape[1:] == (side, side) and len(x) and y.shape == x.shape[:1]
    if not fits or y.dtype.kind not in "iu" or y.min() < 0 or y.max() > 9:
        raise ConfigError(f"{path}: holds {x.dtype} {list(x.shape)} and {y.dtype} {list(y.shape)}, must be {expected}")
    return Part(x.astype(np.float32) / 255, y.astype(np.int32))


def _spoken(source: str, folder: Path) -> Parts:
    """Spoken digits: the loudest 0.66 s of each at most; a shorter one ends with the last frame."""
    return _sounds(folder / "digits", ".flac", rate_hz=8000, frames=32)


def _keywords(source: str, folder: Path) -> Parts:
    return _sounds(folder / "keywords", ".ogg", rate_hz=16000, frames=49)


def _sounds(folder: Path, suffix: str, rate_hz: int, frames: int) -> Parts:
    """Parts of one sound file and one table each; features are standardised by those of the training part."""
    read = {split: _clips(folder / f"{split}{suffix}", rate_hz, frames) for split in ("train", "valid", "test")}
    names = sorted({label for _, labels in read.values() for label in labels})
    every = np.concatenate(read["train"][0])
    mean, spread = every.mean(axis=0), every.std(axis=0) + 1e-6

    def part(cepstra: list[np.ndarray], labels: list[str]) -> Part:
        x = np.zeros((len(cepstra), frames, CEPSTRA), np.float32)
        for row, one in zip(x, cepstra):
            row[frames - len(one) :] = (one - mean) / spread
        return Part(x, np.array([names.index(label) for label in labels], np.int32))

    return Parts(*(part(*read[split]) for split in ("train", "valid", "test")), classes=len(names))


def _clips(path: Path, rate_hz: int, frames: int) -> tuple[list[np.ndarray], list[str]]:
    """The cepstra and the labels of all clips that the table beside a sound file lists."""
    sound, found_hz = io.read_native(path, max_seconds=7200)
    if found_hz != rate_hz:
        raise ConfigError(f"{path}: its rate is {found_hz} Hz, must be {rate_hz} Hz")
    table = path.with_suffix(".csv")
    try:
        with open(table, encoding="utf-8", newline="") as file:
            rows = [
                (int(row["start"]), int(row.get("length") or rate_hz), row["label"]) for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        raise ConfigError(f"{table}: no such file, must be a table with the columns start, length, label") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{table}: bad table ({error}), must have the columns start, length (samples), label"
        ) from None
    if not rows:
        raise ConfigError(f"{table}: has no rows, must have at least one")
    longest = round((WINDOW_S + (frames - 1) * HOP_S) * rate_hz)
    mono, cepstra = sound.mean(axis=1), []
    for line, (start, length, label) in enumerate(rows, 2):
        if not (0 <= start < start + length <= len(mono)) or not label:
            raise ConfigError(
                f"{table}, line {line}: start {start}, length {length}, label {label!r}; must lie within "
                f"the {len(mono)} samples of {path.name} and have a label"
            )
        cepstra.append(mfcc(_loudest(mono[start : start + length], longest), rate_hz))
    return cepstra, [label for *_, label in rows]


def _loudest(x: np.ndarray, samples: int) -> np.ndarray:
    """The part of that many samples with the most energy; all of a shorter signal."""
    if len(x) <= samples:
        return x
    energy = np.concatenate([[0.0], np.cumsum(np.square(x, dtype=np.float64))])
    start = int(np.argmax(energy[samples:] - energy[:-samples]))
    return x[start : start + samples]


def mfcc(x: np.ndarray, rate_hz: int) -> np.ndarray:
    """Mel cepstra: the first 10 values of the orthonormal cosine transform of 40 log mel levels, [frames, 10].

    Windows of 40 ms (Hann) every 20 ms lie within the signal; one shorter than a window is padded with zeros.

    Args:
      x: [samples], full scale 1.
      rate_hz: its rate.

    >>> mfcc(np.sin(np.arange(16000) / 9.0), 16000).shape
    (49, 10)

    Source: Davis and Mermelstein 1980; sizes of the keyword task in section 4.2 of our survey.
    """
    window, hop = round(WINDOW_S * rate_hz), round(HOP_S * rate_hz)
    x = np.pad(x, (0, max(0, window - len(x))))
    frames = np.lib.stride_tricks.sliding_window_view(x, window)[::hop]
    magnitudes = np.abs(np.fft.rfft(frames * Stft(window=window, hop=hop).windows[0]))
    mel = Bands(count=BANDS, low_hz=60.0, high_hz=rate_hz * 0.475).gather(rate_hz, window // 2 + 1)
    levels = np.log(magnitudes @ mel + 1e-4)
    return np.asarray(scipy.fft.dct(levels, norm="ortho"), np.float32)[:, :CEPSTRA]


SOURCES: dict[str, tuple[Callable[[str, Path], Parts], str]] = {
    "digits": (_digits, ""),
    "mnist": (_images, "mnist/mnist.npz"),
    "usps": (_images, "usps/usps.npz"),
    "spoken": (_spoken, "digits/{train,valid,test}.flac and .csv"),
    "keywords": (_keywords, "keywords/{train,valid,test}.ogg and .csv"),
}
"""How each set is read, and which files it needs."""
