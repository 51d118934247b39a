"""Kinds of values: choices, numbers on a scale, numbers in order, distributions.

Every kind has one place in [0, 1) for each of its values (`at`), so that one stream of numbers, random or quasi-random,
draws from all; `encode` gives what a model of the objective sees.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

TABLE = 1024  # draws that stand for a distribution without quantiles


class SpaceError(ValueError):
    """The space is wrong: which name, what was given, what is allowed."""


class Values(Protocol):
    """One kind of values.

    Attributes:
      width: numbers that encode a value.
      count: how many values there are; infinity where they are dense.
    """

    @property
    def width(self) -> int: ...

    @property
    def count(self) -> float: ...

    def at(self, u: np.ndarray) -> list[Any]:
        """Values at places u [N] in [0, 1)."""
        ...

    def place(self, value: Any) -> float:
        """A place at which `at` gives the value; raises ValueError where it is none of the values."""
        ...

    def encode(self, values: Sequence[Any]) -> np.ndarray:
        """Values -> [N, width], each number in 0 .. 1."""
        ...

    def near(self, value: Any, step: float, rng: np.random.Generator) -> Any:
        """A value about `step` of the whole range away."""
        ...

    def describe(self) -> Any:
        """Plain data that tell two kinds apart."""
        ...


@dataclass(frozen=True)
class _Listed:
    """Some values, each as likely."""

    values: Sequence[Any]

    def __post_init__(self) -> None:
        if not len(self.values):
            raise SpaceError(f"is {self.values!r}, must have one value or more")

    @property
    def count(self) -> float:
        return len(self.values)

    def at(self, u: np.ndarray) -> list[Any]:
        return [self.values[i] for i in _index(u, len(self.values))]


@dataclass(frozen=True)
class Choice(_Listed):
    """One of some values without an order; one number each.

    >>> Choice(("lstm", "gru")).encode(["gru"]).tolist()
    [[0.0, 1.0]]
    """

    @property
    def width(self) -> int:
        return len(self.values) if len(self.values) > 1 else 0

    def place(self, value: Any) -> float:
        for i, known in enumerate(self.values):
            if same(known, value):
                return (i + 0.5) / len(self.values)
        raise ValueError(f"is {value!r}, must be one of {', '.join(map(repr, self.values))}")

    def encode(self, values: Sequence[Any]) -> np.ndarray:
        index = _index(np.array([self.place(v) for v in values]), len(self.values))
        return np.eye(len(self.values))[index][:, : self.width]

    def near(self, value: Any, step: float, rng: np.random.Generator) -> Any:
        return self.at(rng.random(1))[0] if rng.random() < max(step, 0.1) else value

    def describe(self) -> Any:
        return ["choice", *map(told, self.values)]


@dataclass(frozen=True)
class Uniform:
    """Real numbers from `low` to below `high`, on a logarithmic scale if wanted.

    >>> Uniform(1e-4, 1e-2, log=True).at(np.array([0.5]))
    [0.001]
    """

    low: float
    high: float
    log: bool = False
    width: int = field(default=1, init=False)
    count: float = field(default=math.inf, init=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SpaceError(f"is {self.low} to {self.high}, must be finite and rise")
        if self.log and self.low <= 0:
            raise SpaceError(f"begins at {self.low}, must be above 0 on a logarithmic scale")

    @property
    def _ends(self) -> tuple[float, float]:
        return (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)

    def at(self, u: np.ndarray) -> list[float]:
        low, high = self._ends
        x = low + np.asarray(u, float) * (high - low)
        return np.clip(10**x if self.log else x, self.low, self.high).tolist()

    def place(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ValueError(f"is {value!r}, must be a number of {self.low} to {self.high}")
        slack = 1e-12 * (abs(self.low) + abs(self.high))  # of rounding, in logarithms too
        if not self.low - slack <= value <= self.high + slack:
            raise ValueError(f"is {value!r}, must be {self.low} to {self.high}")
        low, high = self._ends
        return (min(max((math.log10(value) if self.log else value), low), high) - low) / (high - low)

    def encode(self, values: Sequence[Any]) -> np.ndarray:
        low, high = self._ends
        x = np.asarray(values, float)
        return (((np.log10(x) if self.log else x) - low) / (high - low))[:, None]

    def near(self, value: Any, step: float, rng: np.random.Generator) -> Any:
        return self.at(np.array([_reflect(self.place(value) + step * rng.standard_normal())]))[0]

    def describe(self) -> Any:
        return ["uniform", self.low, self.high, self.log]


@dataclass(frozen=True)
class Ordered(_Listed):
    """Some numbers in their order, such as those of a `range`; one number, by rank.

    >>> Ordered(range(16, 65, 16)).encode([16, 64]).tolist()
    [[0.0], [1.0]]
    """

    @property
    def width(self) -> int:
        return 1 if len(self.values) > 1 else 0

    def place(self, value: Any) -> float:
        try:
            return (self.values.index(value) + 0.5) / len(self.values)
        except ValueError:
            raise ValueError(f"is {value!r}, must be one of {self.values!r}") from None

    def encode(self, values: Sequence[Any]) -> np.ndarray:
        rank = np.array([self.values.index(v) for v in values], float)
        return (rank / max(len(self.values) - 1, 1))[:, None][:, : self.width]

    def near(self, value: Any, step: float, rng: np.random.Generator) -> Any:
        width = max(step, 0.7 / len(self.values))
        return self.at(np.array([_reflect(self.place(value) + width * rng.standard_normal())]))[0]

    def describe(self) -> Any:
        return ["ordered", repr(self.values)]


class Distribution:
    """Any object with `rvs`, such as a frozen distribution of scipy, of one variable or of several.

    One with `cdf` and `ppf` is used by its quantiles. Of any other, a table of draws stands for it: numbers by their
    rank, arrays by their place between the least and the largest of each component. `rvs` is then called with `size`
    and `random_state`; without them where it takes none, and then its draws are only repeatable if it is.

    >>> import scipy.stats
    >>> Distribution(scipy.stats.norm(5, 2)).at(np.array([0.5]))
    [5.0]
    """

    def __init__(self, distribution: Any):
        self.distribution = distribution
        self.quantiles = hasattr(distribution, "ppf") and hasattr(distribution, "cdf")
        kind = getattr(distribution, "dist", distribution)
        self.discrete = hasattr(kind, "pmf") and self.quantiles and not hasattr(kind, "pdf")
        self.table = [] if self.quantiles else _table(distribution)
        self.scalar = self.quantiles or all(isinstance(v, int | float) for v in self.table)
        if self.scalar and not self.quantiles:
            self.table.sort()
        self._box = None if self.scalar else np.stack([np.ravel(v) for v in self.table])

    @property
    def width(self) -> int:
        return 1 if self._box is None else self._box.shape[1]

    @property
    def count(self) -> float:
        return math.inf

    def at(self, u: np.ndarray) -> list[Any]:
        u = np.asarray(u, float)
        if not self.quantiles:
            return [self.table[i] for i in _index(u, len(self.table))]
        values = np.asarray(self.distribution.ppf(np.clip(u, 1e-9, 1 - 1e-9)))
        return values.astype(int).tolist() if self.discrete else values.tolist()

    def place(self, value: Any) -> float:
        if not self.scalar:
            return 0.5
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ValueError(f"is {value!r}, must be a number")
        if self.quantiles:
            below = self.distribution.cdf(value - 1) if self.discrete else None
            here = float(self.distribution.cdf(value))
            return min(here if below is None else (here + float(below)) / 2, 1 - 1e-9)
        return min(float(np.searchsorted(np.asarray(self.table), value)), TABLE - 1) / TABLE

    def encode(self, values: Sequence[Any]) -> np.ndarray:
        if self._box is None:
            return np.array([[self.place(v)] for v in values])
        low, high = self._box.min(axis=0), self._box.max(axis=0)
        return (np.stack([np.ravel(v) for v in values]) - low) / np.where(high > low, high - low, 1)

    def near(self, value: Any, step: float, rng: np.random.Generator) -> Any:
        if self.scalar:
            return self.at(np.array([_reflect(self.place(value) + step * rng.standard_normal())]))[0]
        distance = np.abs(self.encode(self.table) - self.encode([value])).max(axis=1)
        nearest = np.argsort(distance)[: max(2, round(step * TABLE))]
        return self.table[int(rng.choice(nearest))]

    def describe(self) -> Any:
        name = getattr(getattr(self.distribution, "dist", None), "name", type(self.distribution).__qualname__)
        given = (getattr(self.distribution, "args", ()), getattr(self.distribution, "kwds", {}))
        drawn = self.table[:8] if self.table else [f"{v:.6g}" for v in self.at(np.linspace(0.05, 0.95, 7))]
        return ["distribution", name, told(given), told(drawn)]


def loguniform(loc: float, scale: float) -> Uniform:
    """Log-uniform over [10^loc, 10^(loc + scale)].

    >>> loguniform(-4, 2)
    Uniform(low=0.0001, high=0.01, log=True, width=1, count=inf)

    Source: Mango's distribution of that name, section 6.1 of our survey.
    """
    return Uniform(10.0**loc, 10.0 ** (loc + scale), log=True)


def as_values(given: Any) -> Values:
    """The kind of values that something stands for; see `Space`.

    >>> as_values([1, 2]), as_values(range(3))
    (Choice(values=(1, 2)), Ordered(values=range(0, 3)))
    """
    if isinstance(given, Choice | Uniform | Ordered | Distribution):
        return given
    if isinstance(given, range):
        return Ordered(given)
    if isinstance(given, list | tuple):
        return Choice(tuple(v.item() if isinstance(v, np.generic) else v for v in given))
    if isinstance(given, np.ndarray):
        return Choice(tuple(given.tolist()))
    if callable(getattr(given, "rvs", None)):
        return Distribution(given)
    raise SpaceError(f"is {given!r}, must be a list, a range, an object with rvs, Uniform or loguniform")


def same(a: Any, b: Any) -> bool:
    """Whether two values are one: True is not 1, and 1.0 is not 1."""
    return a is b or (type(a) is type(b) and (np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)))


def told(value: Any) -> str:
    """A value as text that is the same in another process, where it lies at another address."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _table(distribution: Any) -> list[Any]:
    try:
        drawn = list(distribution.rvs(size=TABLE, random_state=np.random.RandomState(0)))
    except TypeError:
        drawn = [distribution.rvs() for _ in range(TABLE)]
    return [v.item() if isinstance(v, np.generic) else v.tolist() if isinstance(v, np.ndarray) else v for v in drawn]


def _index(u: np.ndarray, count: int) -> np.ndarray:
    return np.clip(np.floor(np.asarray(u, float) * count), 0, count - 1).astype(int)


def _reflect(u: float) -> float:
    """Fold a number back into 0 .. 1 at the ends."""
    u = abs(u) % 2
    return min(2 - u if u > 1 else u, 1 - 1e-12)
