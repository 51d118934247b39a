"""From folders, or from the corpus made on the spot, to what a run needs: a mixer to train on and pairs to score."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from rnnc.audio import corpus, io, rooms
from rnnc.audio.io import AudioError, Clip, Pair
from rnnc.audio.mix import Mix, Mixer, Pool

SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)  # of the pairs made for validation and test
HELD_OUT = 0.06  # of the speakers (noises: of the files), for validation and again for test
log = logging.getLogger("rnnc")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The corpus made on the spot, used where no folders are given.

    Args:
      kind: `espeak` speaks sentences, `synthetic` hums (no espeak-ng needed).
      speech_minutes, noise_minutes: for training; validation and test come on top.
    """

    kind: Literal["espeak", "synthetic"] = "espeak"
    speech_minutes: float = 20.0
    noise_minutes: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where sound comes from.

    Args:
      speech, noise: folders for training; both or none (none: the corpus).
      rir: folders of room impulse responses; none: simulated rooms.
      rooms: number of simulated rooms.
      valid: folder with clean/ and noisy/ to choose the model on; "": held-out speakers and noises, mixed once.
      pairs: folder with clean/ and noisy/ to score the model on; "": likewise, others.
      valid_items, test_items: number of pairs mixed where no folder is given.
      corpus: what is made where no folders are given.
    """

    speech: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    rir: tuple[str, ...] = ()
    rooms: int = 150
    valid: str = ""
    pairs: str = ""
    valid_items: int = 40
    test_items: int = 60
    corpus: Corpus = Corpus()

    def __post_init__(self) -> None:
        if bool(self.speech) != bool(self.noise):
            raise ValueError("speech and noise: give folders for both, or for none to use the corpus made on the spot")
        for name in ("valid_items", "test_items", "rooms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 1 or more")


@dataclass(kw_only=True)
class Sources:
    """What `open_sources` found.

    Args:
      train: batches to train on.
      valid, test: pairs, float32 at the mixer's rate.
      skipped: (path, reason) of files that were passed over.
      minutes: of training speech and noise.
    """

    train: Mixer
    valid: list[Pair]
    test: list[Pair]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    minutes: dict[str, float] = field(default_factory=dict)


def open_sources(config: Data, mix: Mix, rate_hz: int, seed: int, progress: Progress) -> Sources:
    """Load, split and prepare everything that a training run draws from.

    Args:
      config, mix: what and how.
      rate_hz: rate of all sound.
      seed: of the corpus, the splits, the rooms and the mixtures.
      progress: called with (what, done, of how many).

    Raises:
      AudioError: a folder is missing or holds nothing usable, or too few speakers to hold some out.
    """
    skipped: list[tuple[str, str]] = []
    speech = _clips(config, "speech", rate_hz, seed, progress, skipped)
    noise = _clips(config, "noise", rate_hz, seed, progress, skipped)
    responses = _responses(config, mix, rate_hz, seed, progress, skipped)

    def mixer(part: str, mix: Mix, salt: int) -> Mixer:
        pools = Pool.of(speech[part]), Pool.of(noise[part])
        return Mixer(config=mix, speech=pools[0], noise=pools[1], rooms=responses, rate_hz=rate_hz, seed=seed + salt)

    plain = dataclasses.replace(mix, room=0.0, talker=0.0, tilt=0.0, speed=0.0, level_spread_db=0.0)

    def pairs(folder: str, part: str, items: int, salt: int) -> list[Pair]:
        return io.pairs(folder, rate_hz) if folder else fixed_pairs(mixer(part, plain, salt), items)

    valid = pairs(config.valid, "valid", config.valid_items, 1)
    test = pairs(config.pairs, "test", config.test_items, 2)
    total = {
        k: sum(len(c.samples) for c in v["train"]) / rate_hz / 60 for k, v in (("speech", speech), ("noise", noise))
    }
    return Sources(train=mixer("train", mix, 0), valid=valid, test=test, skipped=skipped, minutes=total)


def fixed_pairs(mixer: Mixer, items: int) -> list[Pair]:
    """Pairs at each of `SNRS_DB` in turn, mixed once from the mixer's pools and seed."""
    made = []
    for i in range(items):
        snr_db = SNRS_DB[i % len(SNRS_DB)]
        config = dataclasses.replace(mixer.config, snr_low_db=snr_db, snr_high_db=snr_db)
        noisy, clean = dataclasses.replace(mixer, config=config).item(0, i)
        made.append(Pair(id=f"m{i:03d}_{snr_db:+.0f}dB", clean=clean, noisy=noisy, snr_db=snr_db, speaker=None))
    return made


def hold_out(clips: Sequence[Clip], seed: int, by: Literal["speaker", "file"]) -> dict[str, list[Clip]]:
    """Split clips into train, valid and test; no speaker (or file) is in two of them.

    >>> clips = [Clip(path=f"{i}", speaker=f"s{i}", samples=np.ones(9, np.int16)) for i in range(50)]
    >>> {part: len(some) for part, some in hold_out(clips, 0, "speaker").items()}
    {'train': 44, 'valid': 3, 'test': 3}
    """
    keys = sorted({c.speaker if by == "speaker" else c.path for c in clips})
    if len(keys) < 3 and by == "speaker":
        return hold_out(clips, seed, "file")
    if len(keys) < 3:
        raise AudioError(
            f"{clips[0].path}: {len(keys)} file(s) usable beside it, 3 or more are needed to hold some out for "
            "validation and test"
        )
    order = np.random.default_rng((seed, len(keys))).permutation(len(keys))
    count = max(1, round(HELD_OUT * len(keys)))
    place = {keys[k]: ("valid" if i < count else "test" if i < 2 * count else "train") for i, k in enumerate(order)}
    parts: dict[str, list[Clip]] = {"train": [], "valid": [], "test": []}
    for clip in clips:
        parts[place[clip.speaker if by == "speaker" else clip.path]].append(clip)
    return parts


def _clips(
    config: Data, kind: str, rate_hz: int, seed: int, progress: Progress, skipped: list[tuple[str, str]]
) -> dict[str, list[Clip]]:
    """Clips of one kind in three parts; a part that a folder of pairs replaces stays in train."""

    def load(folders: Sequence[str | Path]) -> list[Clip]:
        found = io.load_all(
            folders, rate_hz, kind=kind, on_progress=lambda done, of: progress(f"loading {kind}", done, of)
        )
        skipped.extend(found.skipped)
        return found.clips

    folders = config.speech if kind == "speech" else config.noise
    if folders:
        clips = load(folders)
        if config.valid and config.pairs:
            return {"train": clips}
        return hold_out(clips, seed, "speaker" if kind == "speech" else "file")
    made = _corpus(config.corpus, rate_hz, seed, progress)
    return {part: load([made / kind / part]) for part in ("train", "valid", "test")}


def _corpus(config: Corpus, rate_hz: int, seed: int, progress: Progress) -> Path:
    options = {**dataclasses.asdict(config), "seed": seed, "rate_hz": rate_hz}
    folder = corpus.default_folder(**options)
    return corpus.make(folder, **options, on_progress=lambda done, of: progress("making the corpus", done, of))


def _responses(
    config: Data, mix: Mix, rate_hz: int, seed: int, progress: Progress, skipped: list[tuple[str, str]]
) -> tuple[tuple[np.ndarray, int], ...]:
    """Room responses with the index of their direct path: the loudest sample of a file, known of a simulated one."""
    if not mix.room:
        return ()
    if not config.rir:
        made = []
        for i in range(config.rooms):
            room = rooms.room(np.random.default_rng((seed, i)), rate_hz)
            made.append((room.rir, room.direct_sample))
            progress("simulating rooms", i + 1, config.rooms)
        return tuple(made)
    found = []
    for path in io.scan(config.rir, "room response").files:
        try:
            response = io.read(path, rate_hz)
            if not response.any():
                raise AudioError(f"{path}: digitally silent, a room response has a direct path")
            found.append((response, int(np.argmax(np.abs(response)))))
        except AudioError as error:
            skipped.append((str(path), str(error)))
            log.warning("skipped %s", error)
    if not found:
        raise AudioError(f"{config.rir[0]}: no usable room response in {len(skipped)} files")
    return tuple(found)
