"""What to try next: quasi-random at first, then batches by upper confidence bounds of a Gaussian process.

A proposal is a pure function of what is known, of the number of the batch and of the seed, so that a search that was
stopped goes on with the same proposals.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import cdist
from scipy.stats import yeojohnson, yeojohnson_llf

from rnnc.search import gaussian
from rnnc.search.space import Configuration, Space

NEAREST, FARTHEST = -4.0, -0.5  # decades of the steps that candidates are away from good configurations
NEAR = 5  # good configurations that candidates are sought around
CLOSE = 1e-7  # in every column: the same configuration


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of one space.

    Args:
      tried: configurations with a value.
      values: theirs, the higher the better.
      failed: configurations that have none and never will; they count as the worst.
      open: configurations whose values are to come, or were lost.
      levels: of those in `tried`, how much was spent on them, 0 to 1; empty: all on all.
    """

    tried: Sequence[Configuration] = ()
    values: Sequence[float] = ()
    failed: Sequence[Configuration] = ()
    open: Sequence[Configuration] = ()
    levels: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Bayes:
    """How to propose.

    Args:
      start: configurations before the first model.
      quasi: they are spread evenly, by a shifted lattice; else drawn.
      strategy: how the others of a batch differ from the first. "hallucinate": each is chosen as if those before it had
        given what is expected of them; "cluster": one from each cluster of the best quarter of the candidates.
      alpha: spreads above the mean that a bound is; None: as in the Srinivas schedule, times `schedule`.
      schedule: see alpha.
      candidates: drawn afresh for each batch; half as many lie around the best configurations known.
      explore, explore_decay, explore_least: the share of a batch that is drawn at random: it begins at `explore`, falls
        by a factor with every batch, and never below the least.

    Raises:
      ValueError: one of them is out of its range.

    Source: Mango's optimiser, section 6.2 of our survey. There a whole batch is random with a probability that starts
    at 1; candidates are drawn from the whole space alone; values are only normalised, here a power transform brings
    them near to normal; the process is fitted anew for each hallucinated point and its bound widened, here its
    variance is updated in closed form and alpha stays.
    """

    start: int = 5
    quasi: bool = True
    strategy: Literal["hallucinate", "cluster"] = "hallucinate"
    alpha: float | None = 2.0
    schedule: float = 0.2
    candidates: int = 1000
    explore: float = 0.2
    explore_decay: float = 0.9
    explore_least: float = 0.0

    def __post_init__(self) -> None:
        for name in ("start", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 1 or more")
        for name in ("explore", "explore_decay", "explore_least"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 0 to 1")
        if self.alpha is not None and not self.alpha >= 0:
            raise ValueError(f"alpha: is {self.alpha}, must be 0 or more")
        if not self.schedule >= 0:
            raise ValueError(f"schedule: is {self.schedule}, must be 0 or more")
        if self.strategy not in ("hallucinate", "cluster"):
            raise ValueError(f"strategy: is {self.strategy!r}, must be 'hallucinate' or 'cluster'")

    def exploring(self, batch: int) -> float:
        """Share of a batch, from 0, that is drawn at random."""
        return max(self.explore_least, self.explore * self.explore_decay**batch)

    def factor(self, batch: int, candidates: int) -> float:
        """alpha: as given, or `schedule` times sqrt(2 ln(candidates t^2 pi^2 / 0.6)), t = batch + 1."""
        if self.alpha is not None:
            return self.alpha
        return self.schedule * math.sqrt(2 * math.log(candidates * (batch + 1) ** 2 * math.pi**2 / 0.6))


def lattice(count: int, dimensions: int, rng: np.random.Generator, skip: int = 0) -> np.ndarray:
    """Evenly spread points [count, dimensions] in [0, 1): a lattice with a drawn shift.

    u_i = frac(shift + i a),  a_d = g^-d,  g^(D + 1) = g + 1

    >>> points = lattice(64, 2, np.random.default_rng(0))
    >>> counts, _, _ = np.histogram2d(*points.T, bins=4, range=[[0, 1], [0, 1]])
    >>> int(counts.min()), int(counts.max())
    (3, 5)
    """
    g = 2.0
    for _ in range(64):
        g = (1 + g) ** (1 / (dimensions + 1))
    a = g ** -np.arange(1.0, dimensions + 1)
    return (rng.random(dimensions) + np.arange(skip + 1, skip + count + 1)[:, None] * a) % 1.0


def begin(space: Space, count: int, options: Bayes, seed: int, taken: Collection[str] = ()) -> list[Configuration]:
    """The first configurations, which the constraint allows; no two are equal, nor any to one that is taken (packed).

    Fewer, where there are no others.
    """
    found: dict[str, Configuration] = {}

    def add(configurations: Iterable[Configuration]) -> None:
        for configuration in configurations:
            if space.allows(configuration) and (packed := space.pack(configuration)) not in taken:
                found.setdefault(packed, configuration)

    wanted = min(count, space.count - len(taken))
    for skip in range(0, 64 * count if options.quasi else 0, max(count, 1)):
        add(space.at(lattice(count, len(space.parameters), np.random.default_rng((seed, 0)), skip)))
        if len(found) >= wanted:
            break
    rng = np.random.default_rng((seed, int(options.quasi)))
    for _ in range(64):
        if len(found) >= wanted:
            break
        add(space.sample(count, rng))
    return list(found.values())[:count]


def warp(values: np.ndarray) -> np.ndarray:
    """Values -> about normal, of zero mean and unit spread, in the same order: a power transform.

    >>> out = warp(-np.exp(np.arange(9.0)))
    >>> bool(np.all(np.diff(out) < 0)), bool(abs(out).max() < 2)
    (True, True)
    """
    y = np.asarray(values, float)
    middle = np.median(y)
    scale = np.median(np.abs(y - middle)) or np.std(y) or 1.0
    y = (y - middle) / scale
    if len(y) > 2 and np.ptp(y) > 0:
        found: Any = minimize_scalar(lambda p: -yeojohnson_llf(p, y), bounds=(-1.0, 4.0), method="bounded")
        y = np.asarray(yeojohnson(y, found.x), float)
    return (y - y.mean()) / (y.std() or 1.0)


def propose(
    spaces: Mapping[str, Space], known: Mapping[str, Known], count: int, batch: int, options: Bayes, seed: int
) -> list[tuple[str, Configuration]]:
    """The next configurations, each with the name of its space; fewer where a space has no more.

    Args:
      spaces: by name. Of several, each has a process of its own, over values warped alike, and each place of a batch
        goes to the space with the highest bound.
      known: of each of them.
      count: how many, 1 or more.
      batch: its number, from 0.
      options, seed: how.

    Source: Mango's MetaTuner, section 6.2 of our survey, for several spaces; there a random one is taken with a
    probability that falls from 1 to 0.1, here only as often as a random configuration.
    """
    rng = np.random.default_rng((seed, 2, batch))
    alpha, at_random, values = options.factor(batch, options.candidates), options.exploring(batch), _warped(known)
    pools = {name: _Pool(space, known[name], values[name], options, rng, alpha) for name, space in spaces.items()}
    chosen: list[tuple[str, Configuration]] = []
    clustered = options.strategy == "cluster" and len(pools) == 1  # what is left of such a batch is drawn
    if clustered:
        ((name, pool),) = pools.items()
        chosen = [(name, c) for c in pool.clusters(count - int(rng.binomial(count, at_random)), rng)]
    while len(chosen) < count:
        alive = [name for name, pool in pools.items() if pool.alive.any()]
        if not alive:
            break
        if clustered or (rng.random() < at_random and (chosen or count == 1)):
            name = alive[int(rng.integers(len(alive)))]
            chosen.append((name, pools[name].take(pools[name].any(rng))))
        else:
            name = max(alive, key=lambda name: pools[name].bounds().max())
            chosen.append((name, pools[name].take(int(np.argmax(pools[name].bounds())))))
    return chosen


def _warped(known: Mapping[str, Known]) -> dict[str, np.ndarray]:
    """Values of all spaces on one scale, those tried first and then those failed, which count as the worst."""
    every = np.concatenate([np.asarray(k.values, float) for k in known.values()])
    warped = warp(every) if len(every) else every
    lowest, made, at = (warped.min() if len(warped) else 0.0), {}, 0
    for name, k in known.items():
        made[name] = np.concatenate([warped[at : at + len(k.tried)], np.full(len(k.failed), lowest)])
        at += len(k.tried)
    return made


class _Pool:
    """Candidates of one space under its process, which learns what was taken as if it had come out as expected."""

    def __init__(
        self, space: Space, known: Known, values: np.ndarray, options: Bayes, rng: np.random.Generator, alpha: float
    ):
        self.alpha = alpha
        self.configurations, self.x, self.everywhere = _candidates(space, known, options, rng)
        self.alive = np.ones(len(self.x), bool)
        tried = [*known.tried, *known.failed]
        x, points = space.encode(tried), np.concatenate([self.x, space.encode(known.open)])
        if min(known.levels, default=1.0) < 1.0:  # one more column: how much was spent; wanted is the most
            x = np.column_stack([x, [*known.levels, *[1.0] * len(known.failed)]])
            points = np.column_stack([points, np.ones(len(points))])
        if not len(x):  # nothing is known: as if its middle were average
            x, values = np.full((1, points.shape[1]), 0.5), np.zeros(1)
        self.process = gaussian.fit(x, values, int(rng.integers(2**31)))
        self.mean, self.explained = self.process.seen(points)
        self.points, self.variance = points, self.process.scale - np.sum(self.explained**2, axis=0)
        for i in range(len(self.x), len(points)):
            self._learn(i)

    def bounds(self) -> np.ndarray:
        """Upper confidence bounds of the candidates; those taken are at -infinity."""
        n = len(self.x)
        bound = self.mean[:n] + self.alpha * np.sqrt(np.maximum(self.variance[:n], 0))
        return np.where(self.alive, bound, -np.inf)

    def any(self, rng: np.random.Generator) -> int:
        """A candidate from everywhere, at random."""
        alive = np.flatnonzero(self.alive)
        return int(alive[int(rng.integers(max(1, np.sum(alive < self.everywhere))))])

    def take(self, i: int) -> Configuration:
        """Give a candidate away, and all that are the same."""
        self.alive &= np.abs(self.x - self.x[i]).max(axis=1, initial=0.0) > CLOSE
        self._learn(i)
        return self.configurations[i]

    def _learn(self, i: int) -> None:
        """Condition the variance on point i; its expected value leaves the mean as it is."""
        cross = self.process.covariance(self.points, self.points[i : i + 1])[:, 0]
        cross = cross - self.explained.T @ self.explained[:, i]
        row = cross / np.sqrt(max(self.variance[i], 0) + self.process.noise + gaussian.JITTER * self.process.scale)
        self.explained = np.vstack([self.explained, row])
        self.variance = self.variance - row**2

    def clusters(self, count: int, rng: np.random.Generator) -> list[Configuration]:
        """The best of each of `count` clusters of the quarter with the highest bounds."""
        bounds, taken = self.bounds(), []
        top = np.argsort(bounds)[::-1][: max(count, int(self.alive.sum()) // 4)]
        top = top[: int(self.alive.sum())]
        if count and len(top):
            _, labels = kmeans2(self.x[top], min(count, len(top)), minit="++", rng=rng)
            for label in np.unique(labels):
                i = top[labels == label][0]
                if self.alive[i]:
                    taken.append(self.take(int(i)))
        return taken


def _candidates(
    space: Space, known: Known, options: Bayes, rng: np.random.Generator
) -> tuple[list[Configuration], np.ndarray, int]:
    """Allowed configurations that are not known yet, first from everywhere, then around the best; their encoding; how
    many are from everywhere."""
    found = space.sample(options.candidates, rng)
    everywhere = len(found)
    for i in np.argsort(known.values)[::-1][:NEAR]:
        steps = 10 ** rng.uniform(NEAREST, FARTHEST, options.candidates // (2 * NEAR))
        near = [space.near(known.tried[i], step, rng) for step in steps]
        found += [c for c in near if space.allows(c)]
    x = space.encode(found)
    known_x = space.encode([*known.tried, *known.failed, *known.open])
    if len(known_x) and space.width:
        fresh = cdist(x, known_x, "chebyshev").min(axis=1) > CLOSE
    else:
        fresh = np.full(len(x), not len(known_x))
    return [c for c, f in zip(found, fresh) if f], x[fresh], int(fresh[:everywhere].sum())


def drawn(
    spaces: Mapping[str, Space], known: Mapping[str, Known], count: int, batch: int, seed: int
) -> list[tuple[str, Configuration]]:
    """As `propose`, but at random: configurations that are not known yet, where there are others."""
    rng, names = np.random.default_rng((seed, 3, batch)), list(spaces)
    chosen: list[tuple[str, Configuration]] = []
    seen = {name: {spaces[name].pack(c) for c in (*k.tried, *k.failed, *k.open)} for name, k in known.items()}
    for _ in range(64 * count):
        name = names[int(rng.integers(len(names)))]
        for configuration in spaces[name].sample(1, rng):
            if (packed := spaces[name].pack(configuration)) not in seen[name]:
                seen[name].add(packed)
                chosen.append((name, configuration))
        if len(chosen) == count:
            break
    return chosen
