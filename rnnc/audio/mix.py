"""Noisy speech made on the fly: speech and noise in rooms, at drawn levels, as a pure function of (seed, step).

An item takes a stretch of one speaker, one or more noises and now and then another talker, sends them through rooms,
tilts their spectra, scales the disturbance to a drawn SNR and the whole to a drawn level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.signal
import soxr

from rnnc.audio import rooms
from rnnc.audio.io import Clip

ACTIVE_BELOW_PEAK_DB = 32.0  # a 10 ms frame is speech if its energy lies within this of the 95th percentile
PEAK = 0.97  # louder mixtures are scaled down to it
ACTIVE_LEAST = 0.25  # of a stretch of speech; three draws, then the last is taken


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How items are mixed. Probabilities are in 0 .. 1; levels of speech count its active frames.

    Args:
      seconds: length of an item.
      snr_low_db, snr_high_db: range of speech over the sum of the noises, drawn uniformly.
      second_noise: probability of a second noise, up to 10 dB below the first.
      talker: probability of an interfering talker.
      talker_low_db, talker_high_db: range of speech over the interfering talker.
      room: probability that speech and disturbances sound in a room.
      early_ms: the target keeps reflections up to this time after the direct sound; 0: all of them.
      level_db: mean level of the active speech over full scale.
      level_spread_db: it is drawn within plus or minus this.
      tilt: probability of a random second-order spectral shape, for each source.
      speed: probability that a source plays faster or slower.
      speed_most: by at most this factor, in pitch too.

    Source: the random filter is RNNoise's (Valin 2018); levels and SNR as in common enhancement benchmarks.
    """

    seconds: float = 4.0
    snr_low_db: float = -6.0
    snr_high_db: float = 18.0
    second_noise: float = 0.3
    talker: float = 0.15
    talker_low_db: float = 3.0
    talker_high_db: float = 20.0
    room: float = 0.3
    early_ms: float = 0.0
    level_db: float = -26.0
    level_spread_db: float = 8.0
    tilt: float = 0.5
    speed: float = 0.3
    speed_most: float = 1.12

    def __post_init__(self) -> None:
        for name in ("second_noise", "talker", "room", "tilt", "speed"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be a probability, 0 to 1")
        for low, high in (("snr_low_db", "snr_high_db"), ("talker_low_db", "talker_high_db")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}: is {getattr(self, low)}, must not exceed {high}, {getattr(self, high)}")
        if not 0.5 <= self.seconds <= 60.0:
            raise ValueError(f"seconds: is {self.seconds}, must be 0.5 to 60")
        if not 1.0 <= self.speed_most <= 2.0:
            raise ValueError(f"speed_most: is {self.speed_most}, must be 1 to 2")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Clips to draw from: a speaker by the root of its total length, then a clip by its length.

    >>> pool = Pool.of([Clip(path="a", speaker="anna", samples=np.ones(16000, np.int16))])
    >>> pool.draw(np.random.default_rng(0), 100).shape
    (100,)
    """

    groups: tuple[tuple[Clip, ...], ...]
    weights: np.ndarray = field(repr=False)

    @staticmethod
    def of(clips: Sequence[Clip]) -> "Pool":
        """Group clips by speaker (noise: by category)."""
        if not clips:
            raise ValueError("mix: the pool is empty, must hold one clip or more")
        names = sorted({clip.speaker for clip in clips})
        groups = tuple(tuple(c for c in clips if c.speaker == name) for name in names)
        weights = np.sqrt([sum(len(c.samples) for c in group) for group in groups])
        return Pool(groups=groups, weights=weights / weights.sum())

    def draw(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        """A stretch of one speaker [samples], from a random place; short clips are joined in random order."""
        group = self.groups[rng.choice(len(self.groups), p=self.weights)]
        lengths = np.array([len(c.samples) for c in group], float)
        pieces, have = [], 0
        while have < samples:
            clip = group[rng.choice(len(group), p=lengths / lengths.sum())].samples
            spare = len(clip) - (samples - have)
            start = int(rng.integers(spare + 1)) if spare > 0 else 0
            piece = clip[start : start + samples - have].astype(np.float32) / 32768.0
            pieces.append(_faded(piece - piece.mean()))
            have += len(piece)
        return np.concatenate(pieces)


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Batches of (noisy, target), each a pure function of (seed, step).

    noisy = target + scaled disturbance, exactly, in float32.

    Args:
      config: how to mix.
      speech, noise: what to draw from.
      rooms: (impulse response, index of its direct path) to draw from; may be empty only where config.room is 0.
      rate_hz: rate of the clips.
      seed: everything drawn follows from it.
    """

    config: Mix
    speech: Pool
    noise: Pool
    rooms: tuple[tuple[np.ndarray, int], ...]
    rate_hz: int
    seed: int

    def __post_init__(self) -> None:
        if self.config.room > 0 and not self.rooms:
            raise ValueError(f"mix: room is {self.config.room} but there are no rooms; give some or set room = 0")

    def batch(self, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch of a step: noisy and target, float32 [size, samples] each."""
        items = [self.item(step, i) for i in range(size)]
        return np.stack([noisy for noisy, _ in items]), np.stack([target for _, target in items])

    def item(self, step: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One item of a batch: noisy and target, float32 [samples] each."""
        c, rng = self.config, np.random.default_rng((self.seed, step, index))
        n = round(c.seconds * self.rate_hz)
        in_room = rng.random() < c.room
        speech = self._source(rng, self.speech, n, _is_active)
        speech, target = self._speech_in_room(rng, speech, in_room)
        target_power = active_power(target, self.rate_hz)
        noise = self._unit(rng, self.noise, n, in_room)
        if rng.random() < c.second_noise:
            noise = noise + _amplitude(-rng.uniform(0, 10)) * self._unit(rng, self.noise, n, in_room)
        snr_db = rng.uniform(c.snr_low_db, c.snr_high_db)
        disturbance = (speech - target) + noise * _gain(target_power, mean_power(noise), snr_db)
        if rng.random() < c.talker:
            other = self._in_room(rng, self._source(rng, self.speech, n, _is_active), in_room)
            below_db = rng.uniform(c.talker_low_db, c.talker_high_db)
            disturbance = disturbance + other * _gain(target_power, active_power(other, self.rate_hz), below_db)
        level = _amplitude(c.level_db + rng.uniform(-1, 1) * c.level_spread_db) / np.sqrt(target_power + 1e-12)
        peak = np.abs(target + disturbance).max() * level
        level = np.float32(level * min(1.0, PEAK / max(peak, 1e-9)))
        target = (target * level).astype(np.float32)
        return target + (disturbance * level).astype(np.float32), target

    def _source(self, rng: np.random.Generator, pool: Pool, n: int, good: Callable[..., bool]) -> np.ndarray:
        """A stretch of a pool, tilted and played at another speed; drawn again where it is not `good`."""
        c = self.config
        factor = np.exp(rng.uniform(-1, 1) * np.log(c.speed_most)) if rng.random() < c.speed else 1.0
        need = int(np.ceil(n * factor)) + 8
        for _ in range(3):
            x = pool.draw(rng, need)
            if good(x, self.rate_hz):
                break
        if factor != 1.0:
            x = soxr.resample(x, factor, 1.0, quality="MQ")
        return tilt(rng, x[:n]) if rng.random() < c.tilt else x[:n]

    def _unit(self, rng: np.random.Generator, pool: Pool, n: int, in_room: bool) -> np.ndarray:
        """A noise of unit power."""
        noise = self._in_room(rng, self._source(rng, pool, n, _is_heard), in_room)
        return noise / np.sqrt(mean_power(noise) + 1e-12)

    def _in_room(self, rng: np.random.Generator, x: np.ndarray, in_room: bool) -> np.ndarray:
        if not in_room:
            return x
        return rooms.convolve(x, *self.rooms[rng.integers(len(self.rooms))])

    def _speech_in_room(self, rng: np.random.Generator, x: np.ndarray, in_room: bool) -> tuple[np.ndarray, np.ndarray]:
        """What the microphone hears of the talker, and the part of it that is the target."""
        if not in_room:
            return x, x
        response, direct = self.rooms[rng.integers(len(self.rooms))]
        heard = rooms.convolve(x, response, direct)
        if not self.config.early_ms:
            return heard, heard
        return heard, rooms.convolve(x, rooms.early(response, direct, self.rate_hz, self.config.early_ms), direct)


def mean_power(x: np.ndarray) -> float:
    """Mean square of x [n]."""
    return float(np.mean(np.square(x)))


def active_power(x: np.ndarray, rate_hz: int) -> float:
    """Mean square of the active 10 ms frames of x [n]; the mean over all of them if x is shorter than a frame."""
    energy = _energies(x, rate_hz)
    return float(energy[_active(energy)].mean()) if len(energy) else mean_power(x)


def tilt(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Shape the spectrum of x [n] by a random second-order filter, coefficients within 3/8. Source: Valin 2018."""
    b1, b2, a1, a2 = rng.uniform(-0.375, 0.375, 4).astype(np.float32)
    one = np.float32(1)
    return np.asarray(scipy.signal.lfilter(np.array([one, b1, b2]), np.array([one, a1, a2]), x), np.float32)


def _energies(x: np.ndarray, rate_hz: int) -> np.ndarray:
    frame = rate_hz // 100
    return np.square(x[: len(x) // frame * frame]).reshape(-1, frame).mean(axis=1)


def _active(energy: np.ndarray) -> np.ndarray:
    return energy >= np.percentile(energy, 95) * 10 ** (-ACTIVE_BELOW_PEAK_DB / 10)


def _is_active(x: np.ndarray, rate_hz: int) -> bool:
    energy = _energies(x, rate_hz)
    return bool(energy.max() > 1e-8 and _active(energy).mean() > ACTIVE_LEAST)


def _is_heard(x: np.ndarray, rate_hz: int) -> bool:
    return mean_power(x) > 1e-9


def _amplitude(db: float) -> float:
    return 10.0 ** (db / 20.0)


def _gain(power: float, other: float, ratio_db: float) -> float:
    """The factor that brings `other` power to `ratio_db` below `power`."""
    return float(np.sqrt(power / (other + 1e-12)) * _amplitude(-ratio_db))


def _faded(x: np.ndarray, samples: int = 160) -> np.ndarray:
    """Raised-cosine fades at both ends, so that joins do not click."""
    k = min(samples, len(x) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(k) + 0.5) / max(k, 1))).astype(np.float32)
    x[:k] *= ramp
    x[len(x) - k :] *= ramp[::-1]
    return x
