"""Who computes: anything that takes configurations and yields results as they come, in any order, or not all of them.

A scheduler is called as `scheduler(score, configurations)`; it draws from the iterator when it has room, and yields
`(configuration, result)`. A result is what `score` gave: a number, a table of numbers by name, None; or a `Failure`. A
configuration for which nothing comes back has failed. Here: in this process, and in processes of this machine.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any, Protocol

from rnnc.search.space import Configuration

Score = Callable[[Configuration], Any]
_READY = "ready"  # what a worker says once it has started; results come in a tuple
GRACE_S = 2.0  # from asking a process to end to killing it
STILLBORN = 3  # workers in a row that end before they begin: none can


class SchedulerError(ValueError):
    """The scheduler cannot work: what is missing, what was given."""


@dataclass(frozen=True)
class Failure:
    """A configuration without a value.

    Args:
      reason: one line.
      lost: it was not the objective that failed, as far as one can tell: its worker died or never answered.
    """

    reason: str
    lost: bool = False


class Scheduler(Protocol):
    """What computes scores; `workers` at a time."""

    def __call__(
        self, score: Score, configurations: Iterable[Configuration]
    ) -> Iterable[tuple[Configuration, Any]]: ...


def guarded(score: Score, configuration: Configuration) -> Any:
    """What the objective gives, or the Failure that it raises.

    >>> guarded(lambda c: 1 / c["x"], {"x": 0})
    Failure(reason='ZeroDivisionError: division by zero', lost=False)
    """
    try:
        return score(dict(configuration))
    except (Exception, SystemExit) as error:
        return Failure(reason(error))


def reason(error: BaseException) -> str:
    """An exception in one line, without the notes that others, JAX for one, have hung on it."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


@dataclass(frozen=True)
class Serial:
    """One after the other, in this process; a hanging objective hangs the search.

    >>> list(Serial()(lambda c: c["x"] ** 2, [{"x": 3}]))
    [({'x': 3}, 9)]
    """

    workers: int = field(default=1, init=False)

    def __call__(self, score: Score, configurations: Iterable[Configuration]) -> Iterator[tuple[Configuration, Any]]:
        for configuration in configurations:
            yield configuration, guarded(score, configuration)


class Processes:
    """Processes of this machine, each started afresh; the objective must be importable by them.

    A worker whose objective outlasts the time limit is killed, one that dies is replaced; either costs what it was
    computing and nothing else. Workers end when this process does, however it does; `multiprocessing` does not let
    them have processes of their own.

    Args:
      workers: how many; 0: one for every core.
      limit_s: seconds for one configuration, without a worker's start; None: for ever.
      method: how they start, as `multiprocessing` names it.
      prepare: called once in each worker, before anything else.

    Raises:
      SchedulerError: fewer than 0 workers, a limit that is not above 0, or an objective that cannot be sent.
    """

    def __init__(
        self,
        workers: int = 0,
        limit_s: float | None = None,
        method: str = "spawn",
        prepare: Callable[[], None] | None = None,
    ):
        if workers < 0:
            raise SchedulerError(f"workers: is {workers}, must be 0 or more")
        if limit_s is not None and not limit_s > 0:
            raise SchedulerError(f"limit_s: is {limit_s}, must be above 0")
        self.workers, self.limit_s, self.prepare = workers or cores(), limit_s, prepare
        self._context = multiprocessing.get_context(method)
        self._idle: list[_Worker] = []
        self._score: Score | None = None
        self._stillborn = 0  # workers in a row that ended before they began

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers that wait for work."""
        while self._idle:
            self._idle.pop().stop()

    def __call__(self, score: Score, configurations: Iterable[Configuration]) -> Iterator[tuple[Configuration, Any]]:
        if score is not self._score:  # an idle worker knows the objective that it was started with
            self.close()
            self._score = score
        source, busy = iter(configurations), []
        try:
            while True:
                while len(busy) < self.workers and (configuration := next(source, None)) is not None:
                    busy.append(self._begin(score, configuration))
                if not busy:
                    return
                for worker in _ended(busy):
                    busy.remove(worker)
                    configuration, result = worker.configuration, worker.result()
                    self._stillborn = self._stillborn + 1 if worker.stillborn else 0
                    if self._stillborn >= STILLBORN:
                        raise SchedulerError(
                            f"workers cannot start: {result.reason}, as they say above; the objective must be"
                            " importable by them, and a script's own work stand under `if __name__ == '__main__':`"
                        )
                    if worker.alive:
                        self._idle.append(worker)
                    yield configuration, result
        finally:
            for worker in busy:
                worker.stop()

    def _begin(self, score: Score, configuration: Configuration) -> "_Worker":
        while True:
            worker = self._idle.pop() if self._idle else _Worker(self._context, score, self.prepare, self.limit_s)
            if worker.send(configuration):
                return worker


class _Worker:
    """One process, and what it computes."""

    def __init__(self, context: Any, score: Score, prepare: Callable[[], None] | None, limit_s: float | None):
        self.limit_s = limit_s
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, score, prepare), daemon=True)
        try:
            self.process.start()
        except Exception as error:
            self.pipe.close()
            raise SchedulerError(
                f"score: {score!r} cannot be sent to a process ({error}), must be a function at the top of a module"
            ) from error
        finally:
            theirs.close()
        self.alive, self.ready, self.stillborn = True, False, False
        self.configuration: Configuration = {}
        self.until = math.inf

    def send(self, configuration: Configuration) -> bool:
        """Give it work; False: it has died meanwhile."""
        self.configuration = configuration
        if self.ready:
            self._count()
        try:
            self.pipe.send(configuration)
        except OSError:
            self.stop()
            return False
        return True

    def _count(self) -> None:
        """Time runs from now on."""
        self.until = time.monotonic() + self.limit_s if self.limit_s else math.inf

    def begins(self) -> bool:
        """Whether all that it has to say is that it has started up."""
        if self.ready or not self.process.is_alive() or not self.pipe.poll():
            return False
        with contextlib.suppress(EOFError, OSError):
            self.pipe.recv()
            self.ready = True
            self._count()
        return self.ready

    def result(self) -> Any:
        """What came out of a worker that is ready; it may have died of it."""
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                try:
                    said = self.pipe.recv()
                except (EOFError, OSError):
                    raise
                except Exception as error:
                    return Failure(f"its result cannot be received: {reason(error)}")
                if said != _READY:
                    return said[0]
                self.ready = True
            if self.process.is_alive() and time.monotonic() >= self.until:
                self.stop(at_once=True)
                return Failure(f"ran past the time limit of {self.limit_s:g} s")
        self.process.join(GRACE_S)
        code = self.process.exitcode
        self.stop(at_once=True)
        self.stillborn = not self.ready and (code or 0) >= 0
        return Failure(f"its process died: {_cause(code)}", lost=True)

    def stop(self, at_once: bool = False) -> None:
        self.alive = False
        self.pipe.close()
        if not at_once:
            self.process.terminate()
            self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    known = {s.value: s.name for s in signal.Signals}
    return f"signal {known.get(-code, -code)}"


def _ended(busy: list[_Worker]) -> list[_Worker]:
    """Wait until something happens; the workers that have answered, died or run out of time."""
    until = min(worker.until for worker in busy)
    waits = [handle for worker in busy for handle in (worker.pipe, worker.process.sentinel)]
    found = connection.wait(waits, None if until == math.inf else max(0.0, until - time.monotonic()))
    now = time.monotonic()
    some = [w for w in busy if w.pipe in found or w.process.sentinel in found or now >= w.until]
    return [w for w in some if not w.begins()]


def _work(pipe: Any, score: Score, prepare: Callable[[], None] | None) -> None:
    """The life of a worker."""
    os.setpgid(0, 0)  # Ctrl-C is for the parent, which ends its workers; an objective may set handlers of its own
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()
    with contextlib.suppress(OSError):
        pipe.send(_READY)
    while True:
        try:
            configuration = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = guarded(score, configuration)
        except KeyboardInterrupt:  # an objective that was asked to end, and saved what it had
            return
        try:
            pipe.send((result,))
        except OSError:
            return
        except Exception as error:  # a result that cannot be sent
            pipe.send((Failure(f"its result cannot be sent: {error}"),))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
