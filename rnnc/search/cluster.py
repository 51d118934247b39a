"""Computing on a Dask cluster."""

import contextlib
import importlib
import math
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rnnc.search.scheduler import Failure, SchedulerError, Score, cores, guarded, reason
from rnnc.search.space import Configuration


class Dask:
    """A Dask cluster: `Dask("tcp://host:8786")`, or one made on this machine.

    A task whose worker is lost goes to another, as Dask does it; it fails when it has cost four workers. A task that
    runs past the time limit costs its worker, which its nanny starts again.

    Args:
      address: of a scheduler; None: a cluster is started here.
      workers: of that cluster; at a given address, those that are there when the work begins.
      limit_s: seconds for one configuration on one worker, from when it is seen to run; None: for ever.
      timeout_s: for the cluster to answer.

    Raises:
      SchedulerError: `distributed` is not installed, or there is no cluster at the address.
    """

    def __init__(
        self, address: str | None = None, workers: int = 0, limit_s: float | None = None, timeout_s: float = 10.0
    ):
        try:
            distributed: Any = importlib.import_module("distributed")
        except ImportError:
            raise SchedulerError(
                "Dask: needs the package distributed; install rnnc[tune], or choose another scheduler"
            ) from None
        if workers < 0:
            raise SchedulerError(f"workers: is {workers}, must be 0 or more")
        if limit_s is not None and not limit_s > 0:
            raise SchedulerError(f"limit_s: is {limit_s}, must be above 0")
        self.limit_s = limit_s
        self._cluster: Any = None
        if address is None:
            self._cluster = distributed.LocalCluster(
                n_workers=workers or cores(), threads_per_worker=1, dashboard_address=None
            )
        try:
            self._client = distributed.Client(self._cluster or address, timeout=timeout_s)
        except (OSError, TimeoutError, ValueError) as error:
            raise SchedulerError(f"scheduler {address}: cannot be reached: {error}") from None
        self._distributed = distributed

    @property
    def workers(self) -> int:
        """Threads of the cluster now, 1 or more."""
        return max(1, sum(self._client.nthreads().values()))

    def __enter__(self) -> "Dask":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; one that was made here ends."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def __call__(self, score: Score, configurations: Iterable[Configuration]) -> Iterator[tuple[Configuration, Any]]:
        source, running = iter(configurations), {}
        try:
            while True:
                while len(running) < self.workers and (configuration := next(source, None)) is not None:
                    task = _Task(configuration)
                    running[self._client.submit(_watched, score, configuration, task.name, pure=False)] = task
                if not running:
                    return
                with contextlib.suppress(self._distributed.TimeoutError):
                    self._distributed.wait(list(running), timeout=self._patience(), return_when="FIRST_COMPLETED")
                ended = [future for future in running if future.done()]
                for future in ended:
                    yield running.pop(future).configuration, _outcome(future)
                for future in self._late(running):
                    task = running.pop(future)
                    yield task.configuration, self._stop(future, task)
        finally:
            self._client.cancel(list(running))

    def _patience(self) -> float:
        return min(self.limit_s / 4, 0.5) if self.limit_s else 5.0

    def _late(self, running: "dict[Any, _Task]") -> list[Any]:
        """Futures that have run for longer than the limit where they run now, as their workers told."""
        if not self.limit_s:
            return []
        told = {message["task"]: (when, message["worker"]) for when, message in self._client.get_events(_TOPIC) or ()}
        for task in running.values():
            if told.get(task.name, task.told) != task.told:
                task.told, task.since = told[task.name], time.monotonic()
        return [f for f, task in running.items() if time.monotonic() - task.since > self.limit_s]

    def _stop(self, future: Any, task: "_Task") -> Failure:
        future.cancel(force=True)
        with contextlib.suppress(Exception):  # a worker without a nanny stays as it is
            self._client.restart_workers([task.told[1]], timeout=10, raise_for_error=False)
        return Failure(f"ran past the time limit of {self.limit_s:g} s")


@dataclass
class _Task:
    """A configuration on the cluster: when and where it was last told to run, and since when that is known here."""

    configuration: Configuration
    told: tuple[float, str] = (0.0, "")
    since: float = math.inf
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


_TOPIC = "rnnc.search"


def _watched(score: Score, configuration: Configuration, task: str) -> Any:
    """Tell that it begins, then compute; on a worker."""
    worker = importlib.import_module("distributed").get_worker()
    worker.log_event(_TOPIC, {"task": task, "worker": worker.address})
    return guarded(score, configuration)


def _outcome(future: Any) -> Any:
    try:
        return future.result()
    except Exception as error:
        lost = type(error).__name__ in ("KilledWorker", "CancelledError", "FutureCancelledError")
        words = "its workers died" if lost else reason(error)
        return Failure(words, lost=lost)
