"""How a study goes, and what comes out of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rnnc.search.propose import Bayes
from rnnc.search.space import Configuration
from rnnc.search.store import Trial


class TuneError(ValueError):
    """The study cannot be done: what, what was given, what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Successive halving: a batch is tried with little effort, and what does best with more.

    Args:
      key: the name under which a configuration says how much is spent, such as "train.steps"; no parameter of a space.
      levels: its values, whole numbers from the least to the most; only trials with the most can be the best.
      keep: share of a batch that goes from one level to the next, at least one.

    Source: successive halving (Jamieson and Talwalkar 2016), as an option beside Mango's search. The process sees the
    effort as one more input.
    """

    key: str
    levels: tuple[int, ...]
    keep: float = 1 / 3

    def __post_init__(self) -> None:
        if not self.key:
            raise TuneError("halving.key: is empty, must be the name of what is spent")
        if len(self.levels) < 2 or list(self.levels) != sorted(set(self.levels)):
            raise TuneError(f"halving.levels: is {list(self.levels)}, must be two or more, rising")
        if not 0 < self.keep < 1:
            raise TuneError(f"halving.keep: is {self.keep}, must be above 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a study goes.

    Args:
      trials: evaluations in all, failed ones too, those known before not.
      batch: proposals at a time; 0: as many as the scheduler has workers when the study begins, or one.
      maximise: the highest value is the best, else the lowest.
      metric: which number of the objective's table is the value; empty: the objective gives a number.
      seed: of all proposals.
      bayes: how to propose; None: at random.
      halving: with rising effort; None: all with full effort.
      asynchronous: propose whenever a worker is free; then proposals depend on the order of results.
      patience: batches without a new best after which the study ends; 0: never.
      seconds: after which nothing more is proposed; 0: never.
    """

    trials: int = 50
    batch: int = 0
    maximise: bool = True
    metric: str = ""
    seed: int = 0
    bayes: Bayes | None = Bayes()
    halving: Halving | None = None
    asynchronous: bool = False
    patience: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("batch", 0), ("seed", 0), ("patience", 0), ("seconds", 0)):
            if not getattr(self, name) >= least:
                raise TuneError(f"{name}: is {getattr(self, name)}, must be {least} or more")
        if self.asynchronous and self.halving:
            raise TuneError("asynchronous: is true beside halving, must be false: a level ends before the next begins")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trial with its configuration.

    Args:
      configuration: as the objective got it.
      trial: the rest; see there.
    """

    configuration: Configuration
    trial: Trial

    @property
    def value(self) -> float:
        """Its score; NaN where it has none."""
        return math.nan if self.trial.value is None else self.trial.value


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out of a study: all trials in their order."""

    outcomes: Sequence[Outcome]
    maximise: bool

    @cached_property
    def best(self) -> Outcome | None:
        """The best trial with full effort, the first of equals; None: there is none."""
        done = [o for o in self.outcomes if o.trial.state == "done" and o.trial.level >= 1]
        return max(done, key=lambda o: o.value if self.maximise else -o.value, default=None)

    def history(self) -> list[float]:
        """The best value so far after each trial with full effort; NaN before the first."""
        sign, best, found = (1 if self.maximise else -1), -math.inf, []
        for outcome in self.outcomes:
            if outcome.trial.level >= 1:
                best = max(best, sign * outcome.value) if outcome.trial.state == "done" else best
                found.append(math.nan if best == -math.inf else sign * best)
        return found
