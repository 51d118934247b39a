"""A study in progress: what is in the store, what follows from it, and what the scheduler makes of that."""

import contextlib
import dataclasses
import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from rnnc.search import propose
from rnnc.search.propose import Bayes, Known
from rnnc.search.scheduler import Failure, Scheduler, SchedulerError, Score
from rnnc.search.settings import Outcome, Result, Settings, TuneError
from rnnc.search.space import Configuration, Space
from rnnc.search.store import LOST, Store, StoreError, Trial
from rnnc.search.values import SpaceError, same

SPACE = "space"  # the key under which a configuration names its space, where there are several
FRUITLESS = 3  # batches in a row of which no result came back: the scheduler is broken

Spaces = Space | Mapping[str, Any]


class Study:
    """A search that can be taken up at any time; see `rnnc.search.tune.tune`."""

    def __init__(
        self,
        score: Score,
        space: Spaces,
        settings: Settings,
        scheduler: Scheduler,
        store: Store,
        stop: Callable[[Result], bool] | None = None,
        observe: Callable[[Outcome], None] | None = None,
    ):
        self.score, self.settings, self.scheduler, self.store = score, settings, scheduler, store
        self.spaces = as_spaces(space)
        self._stop, self._observe = stop, observe
        self._running: dict[int, tuple[Trial, Configuration]] = {}
        self._until = time.monotonic() + settings.seconds if settings.seconds else math.inf
        if settings.halving:
            for spec in self.spaces.values():
                if settings.halving.key in spec.names:
                    raise TuneError(f"halving.key: {settings.halving.key} is a parameter of the space, must be none")

    def open(
        self, resume: bool, known: Sequence[tuple[Configuration, float]] = (), first: Sequence[Configuration] = ()
    ) -> None:
        """Begin the study, or take up the one in the store."""
        before = self.store.note("study")
        if before is not None and not self.settings.batch:  # there may be other workers now
            self._batch = int(json.loads(before)["batch"])
        mine = json.dumps(self._describe(), sort_keys=True)
        if before is None:
            return self.store.add(self._first(known, first), {"study": mine})
        if not resume:
            raise StoreError(f"{self.store.path}: holds a study; resume it (--resume), or choose another file")
        if before != mine:
            theirs = json.loads(before)
            differ = [key for key, value in self._describe().items() if value != theirs.get(key)]
            raise StoreError(f"{self.store.path}: holds a study with other {', '.join(differ)}; it needs the same ones")
        self.store.reopen()

    def run(self) -> Result:
        """Search until the trials are used up, or something else ends it."""
        try:
            return self._run()
        except BaseException:  # Ctrl-C, too: not what runs is to blame
            with contextlib.suppress(sqlite3.Error):
                self.store.reopen(blameless=True)
            raise

    def _run(self) -> Result:
        fruitless = 0
        while self._extend():
            before = self._ended
            for configuration, result in self._compute():
                self._record(configuration, result)
            for number in list(self._running):
                self._finish(number, Failure("no result came back", lost=True))
            heard = self._ended > before
            fruitless = 0 if heard else fruitless + 1
            if fruitless >= FRUITLESS:
                raise TuneError(f"scheduler: nothing came back of {FRUITLESS} batches, must yield results")
        return self.result()

    def result(self) -> Result:
        """All trials so far."""
        trials = self.store.trials()
        outcomes = [Outcome(configuration=self.configuration(t), trial=t) for t in trials]
        return Result(outcomes=outcomes, maximise=self.settings.maximise)

    def configuration(self, trial: Trial) -> Configuration:
        """What the objective gets for a trial."""
        made = self.spaces[trial.space].unpack(trial.configuration)
        if self.settings.halving:
            levels = self.settings.halving.levels
            made[self.settings.halving.key] = levels[round(trial.level * (len(levels) - 1))]
        return {SPACE: trial.space, **made} if len(self.spaces) > 1 else made

    def _describe(self) -> dict[str, Any]:
        """What may not change between a study and its resumption."""
        settings = dataclasses.asdict(self.settings)
        free = ("trials", "patience", "seconds")
        spaces = {name: space.describe() for name, space in self.spaces.items()}
        described = {"spaces": spaces, **{k: v for k, v in settings.items() if k not in free}}
        described["batch"] = self._batch
        return json.loads(json.dumps(described))

    @cached_property
    def _batch(self) -> int:
        return self.settings.batch or int(getattr(self.scheduler, "workers", 1))

    def _first(self, known: Sequence[tuple[Configuration, float]], first: Sequence[Configuration]) -> list[Trial]:
        """What is known, what is to be tried first, and the first of our own."""
        trials: list[Trial] = []
        taken: dict[str, set[str]] = {name: set() for name in self.spaces}

        def note(configuration: Configuration, origin: str, **more: Any) -> None:
            name, own = self._split(configuration)
            checked = self.spaces[name].check(own)
            if origin == "first" and not self.spaces[name].allows(checked):
                raise SpaceError(f"first: holds {dict(configuration)}, which the constraint does not allow")
            packed = self.spaces[name].pack(checked)
            taken[name].add(packed)
            number, batch = len(trials), 0 if origin != "known" else -1
            level = self._levels[0] if origin != "known" else 1.0
            trials.append(
                Trial(number=number, batch=batch, space=name, configuration=packed, origin=origin, level=level, **more)
            )

        for entry in known:
            if not (isinstance(entry, tuple) and len(entry) == 2 and _finite(entry[1])):
                raise TuneError(f"known: holds {entry!r}, must hold pairs of a configuration and a finite number")
            note(entry[0], "known", state="done", value=float(entry[1]))
        for configuration in first:
            note(configuration, "first")
        bayes = self.settings.bayes or Bayes(quasi=False)
        share = max(0, min(bayes.start, self.settings.trials) - len(trials))
        for i, (name, space) in enumerate(self.spaces.items()):
            count = -(-share // len(self.spaces))
            for configuration in propose.begin(space, count, bayes, self.settings.seed + i, taken[name]):
                note({SPACE: name, **configuration} if len(self.spaces) > 1 else configuration, "start")
        return trials[: sum(t.origin == "known" for t in trials) + self.settings.trials]

    def _split(self, configuration: Configuration) -> tuple[str, Configuration]:
        own = dict(configuration)
        name = own.pop(SPACE, None) if len(self.spaces) > 1 else next(iter(self.spaces))
        if name not in self.spaces:
            raise SpaceError(f"{SPACE}: is {name!r}, must be one of {', '.join(self.spaces)}")
        return name, own

    @cached_property
    def _levels(self) -> list[float]:
        """0 to 1, one for each level of effort."""
        count = len(self.settings.halving.levels) if self.settings.halving else 1
        return [i / (count - 1) for i in range(count)] if count > 1 else [1.0]

    # What comes next

    def _extend(self) -> bool:
        """See to it that a trial waits; False: the study has ended."""
        trials = self.store.trials()
        if any(t.state == "waiting" for t in trials):
            return True
        room = self.settings.trials - sum(t.origin != "known" for t in trials)
        if room <= 0 or time.monotonic() >= self._until or self._out_of_patience(trials):
            return False
        if self._stop is not None and self._stop(self.result()):
            return False
        new = self._promoted(trials, room) or self._proposed(trials)[:room]
        self.store.add(new)
        return bool(new)

    def _promoted(self, trials: Sequence[Trial], room: int) -> list[Trial]:
        """The best of a level that has ended, at the next one; no more than there is room for."""
        if not self.settings.halving or not trials:
            return []
        batch = max(t.batch for t in trials)
        level = max((t.level for t in trials if t.batch == batch), default=1.0)
        here = [t for t in trials if t.batch == batch and t.level == level and t.origin != "known"]
        done = [t for t in here if t.state == "done"]
        if level >= 1 or not done:
            return []
        kept = min(room, max(1, round(self.settings.halving.keep * len(here))))
        best = sorted(done, key=lambda t: (-self._good(t), t.number))[:kept]
        above = self._levels[self._levels.index(level) + 1]
        return [
            dataclasses.replace(_fresh(t), number=len(trials) + i, origin="promoted", level=above, parent=t.number)
            for i, t in enumerate(sorted(best, key=lambda t: t.number))
        ]

    def _proposed(self, trials: Sequence[Trial]) -> list[Trial]:
        batch, count = max((t.batch for t in trials), default=-1) + 1, 1 if self.settings.asynchronous else self._batch
        known = {name: self._known(name, trials) for name in self.spaces}
        if self.settings.bayes is None:
            chosen = propose.drawn(self.spaces, known, count, batch, self.settings.seed)
        else:
            chosen = propose.propose(self.spaces, known, count, batch, self.settings.bayes, self.settings.seed)
        return [
            Trial(
                number=len(trials) + i,
                batch=batch,
                space=name,
                configuration=self.spaces[name].pack(configuration),
                origin="model" if self.settings.bayes else "start",
                level=self._levels[0],
            )
            for i, (name, configuration) in enumerate(chosen)
        ]

    def _known(self, name: str, trials: Sequence[Trial]) -> Known:
        """What the trials tell of a space."""
        own = [t for t in trials if t.space == name]
        done = [t for t in own if t.state == "done"]
        lost = [t for t in own if t.state == "failed" and t.metrics.get(LOST)]
        failed = [t for t in own if t.state == "failed" and not t.metrics.get(LOST)]
        unpack = self.spaces[name].unpack
        return Known(
            tried=[unpack(t.configuration) for t in done],
            values=[self._good(t) for t in done],
            failed=[unpack(t.configuration) for t in failed],
            open=[unpack(t.configuration) for t in own if t.state in ("waiting", "running")]
            + [unpack(t.configuration) for t in lost],
            levels=[t.level for t in done],
        )

    def _good(self, trial: Trial) -> float:
        """The value of a trial that is done, the higher the better."""
        assert trial.value is not None
        return trial.value if self.settings.maximise else -trial.value

    def _out_of_patience(self, trials: Sequence[Trial]) -> bool:
        done = [t for t in trials if t.state == "done" and t.level >= 1]
        if not self.settings.patience or not done:
            return False
        best = max(done, key=lambda t: (self._good(t), -t.number))
        return max(t.batch for t in trials) - best.batch >= self.settings.patience

    # What is computed

    _ended = 0

    def _compute(self) -> Iterator[tuple[Configuration, Any]]:
        """What the scheduler gives; if it raises, what it had been given has failed."""
        try:
            yield from self.scheduler(self.score, self._feed())
        except (SchedulerError, SpaceError, StoreError, TuneError, sqlite3.Error):  # nothing can work
            raise
        except Exception as error:
            for number in list(self._running):
                self._finish(number, Failure(f"scheduler: {type(error).__name__}: {error}"[:500], lost=True))

    def _feed(self) -> Iterator[Configuration]:
        """Configurations of the trials that wait; the trial runs when its configuration is taken."""
        while self._extend() if self.settings.asynchronous else True:
            trial = next(iter(self.store.trials("waiting")), None)
            if trial is None:
                return
            self.store.start(trial.number)
            configuration = self.configuration(trial)
            self._running[trial.number] = (trial, configuration)
            yield configuration

    def _record(self, configuration: Configuration, result: Any) -> None:
        """Enter what came back for a configuration; what nobody waits for is left alone."""
        found = [n for n, (_, c) in self._running.items() if c is configuration]
        found = found or [n for n, (_, c) in self._running.items() if _equal(c, configuration)]
        if found:
            self._ended += 1
            self._finish(found[0], result)

    def _finish(self, number: int, result: Any) -> None:
        trial, configuration = self._running.pop(number)
        value, metrics, reason = self._judged(result)
        self.store.finish(number, value, metrics, reason)
        if self._observe is not None:
            state = "failed" if value is None else "done"
            ended = dataclasses.replace(trial, state=state, value=value, metrics=metrics, reason=reason)
            self._observe(Outcome(configuration=configuration, trial=ended))

    def _judged(self, result: Any) -> tuple[float | None, dict[str, Any], str]:
        """Value, metrics and reason of a result."""
        if isinstance(result, Failure):
            return None, {LOST: True} if result.lost else {}, result.reason
        metrics = dict(result) if isinstance(result, Mapping) else {}
        if isinstance(result, Mapping):
            if self.settings.metric not in result:
                return (
                    None,
                    metrics,
                    f"gave no {self.settings.metric!r}, but {', '.join(map(str, result)) or 'nothing'}",
                )
            result = result[self.settings.metric]
        if result is None or isinstance(result, str | bytes | bool):
            return None, metrics, f"gave {result!r}, must be a number"
        try:
            value = float(result)
        except Exception:
            return None, metrics, f"gave a {type(result).__name__}, must be a number"
        return (value, metrics, "") if math.isfinite(value) else (None, metrics, f"gave {value}, must be finite")


def as_spaces(given: Spaces) -> dict[str, Space]:
    """Spaces by name; one alone has no name."""
    if isinstance(given, Space):
        return {"": given}
    if given and all(isinstance(value, Space) for value in given.values()):
        for name, space in given.items():
            if SPACE in space.names:
                raise SpaceError(f"{name}: has a parameter {SPACE!r}, must have none: that key names the space")
        return dict(given)
    return {"": Space(given)}


def _equal(a: Configuration, b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())


def _fresh(trial: Trial) -> Trial:
    return Trial(number=0, batch=trial.batch, space=trial.space, configuration=trial.configuration, origin=trial.origin)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
