"""A study in one SQLite file: every trial is there before it runs, and again when it has ended.

One process at a time may write to it, the controller; another is refused until that one has ended or died.
"""

import contextlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FORMAT = 1
LOST = "#lost"  # in a failed trial's metrics: not the objective failed, but what computed it
DEADLY = 5
State = Literal["waiting", "running", "done", "failed"]
_HELD: set[str] = set()  # files that this process controls; the operating system only keeps others out

_TABLES = """
CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS trials (
  number INTEGER PRIMARY KEY, batch INTEGER NOT NULL, space TEXT NOT NULL, configuration TEXT NOT NULL,
  origin TEXT NOT NULL, level REAL NOT NULL, parent INTEGER,
  state TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'done', 'failed')),
  value REAL, metrics TEXT NOT NULL DEFAULT '{}', reason TEXT NOT NULL DEFAULT '', starts INTEGER NOT NULL DEFAULT 0,
  began REAL, ended REAL,
  CHECK ((state = 'done') = (value IS NOT NULL)));
"""


class StoreError(ValueError):
    """The study's file cannot be used: which, why, what to do."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluation, as the store knows it.

    Args:
      number: from 0, in the order of proposals.
      batch: which proposal it came from; -1: known before the study.
      space: name of its space; empty where there is one.
      configuration: packed as the space packs it.
      origin: "known", "first", "start", "model" or "promoted".
      level: how much of the full effort it gets, 0 to 1.
      parent: number of the trial that it repeats with more effort.
      state: "waiting", "running", "done" (it has a value) or "failed" (it has a reason).
      value: its score, finite.
      metrics: what else the objective told.
      reason: why it failed; empty if it did not.
      starts: how often it was started.
      began, ended: seconds since the epoch, of its last start and of its end.
    """

    number: int
    batch: int
    space: str
    configuration: str
    origin: str
    level: float = 1.0
    parent: int | None = None
    state: State = "waiting"
    value: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    starts: int = 0
    began: float | None = None
    ended: float | None = None


class Store:
    """The file of a study.

    Args:
      path: the file; ":memory:" for none.
      write: control the study: no other process may at the same time.

    Raises:
      StoreError: no such file to read, a damaged one, one of another format, or one that another process controls.

    >>> store = Store(":memory:")
    >>> store.add([Trial(number=0, batch=0, space="", configuration="{}", origin="start")])
    >>> store.start(0); store.finish(0, 1.5)
    True
    >>> store.finish(0, 2.5)  # a second result is not counted
    False
    >>> [(trial.state, trial.value) for trial in store.trials()]
    [('done', 1.5)]
    """

    def __init__(self, path: Path | str, write: bool = True):
        self.path = str(path)
        self._lock = None
        memory = self.path == ":memory:"
        if not write and not Path(self.path).exists():
            raise StoreError(f"{path}: no such file, must be that of a study")
        if write and not memory:
            Path(self.path).absolute().parent.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path)
        try:
            mode = "" if write or memory else _reading(self.path)
            uri = ":memory:" if memory else Path(self.path).absolute().as_uri() + mode
            self._base = sqlite3.connect(uri, uri=not memory, timeout=30, isolation_level=None)
            self._base.row_factory = sqlite3.Row
            if write:
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=FULL")
                self._base.executescript(_TABLES)
                self._base.execute("INSERT OR IGNORE INTO study VALUES ('format', ?)", (str(FORMAT),))
            found = self.note("format")
        except sqlite3.DatabaseError as error:
            self.close()
            raise StoreError(f"{path}: cannot be read as a study: {error}") from None
        if found != str(FORMAT):
            self.close()
            raise StoreError(f"{path}: has format {found}, must be {FORMAT}")

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"{self.path}: cannot be written: {error}; make room and resume") from error

    def close(self) -> None:
        """Give up control."""
        base = getattr(self, "_base", None)
        if base is not None:
            base.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            _HELD.discard(os.path.realpath(self.path))

    def note(self, key: str) -> str | None:
        """A note about the study."""
        row = self._base.execute("SELECT value FROM study WHERE key = ?", (key,)).fetchone()
        return row["value"] if row else None

    def trials(self, state: State | None = None) -> list[Trial]:
        """All trials, or those of one state, in the order of their numbers."""
        rows = self._base.execute("SELECT * FROM trials WHERE ? IN ('', state) ORDER BY number", (state or "",))
        return [Trial(**{**dict(row), "metrics": json.loads(row["metrics"])}) for row in rows]

    def add(self, trials: Sequence[Trial], notes: Mapping[str, str] | None = None) -> None:
        """Add trials, and notes with them; all or none."""
        columns = ("number", "batch", "space", "configuration", "origin", "level", "parent", "state", "value")
        rows = [tuple(getattr(trial, column) for column in columns) for trial in trials]
        with self._all_or_none():
            self._base.executemany("INSERT INTO study VALUES (?, ?)", list((notes or {}).items()))
            self._base.executemany(
                f"INSERT INTO trials ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})", rows
            )

    def start(self, number: int) -> None:
        """A trial begins to run."""
        self._base.execute(
            "UPDATE trials SET state = 'running', began = ?, starts = starts + 1"
            " WHERE number = ? AND state = 'waiting'",
            (time.time(), number),
        )

    def finish(
        self, number: int, value: float | None, metrics: Mapping[str, Any] | None = None, reason: str = ""
    ) -> bool:
        """A running trial has ended, with a value or for a reason. False: it did not run, and nothing is changed."""
        good = value is not None and math.isfinite(value)
        done = self._base.execute(
            "UPDATE trials SET state = ?, value = ?, metrics = ?, reason = ?, ended = ?"
            " WHERE number = ? AND state = 'running'",
            (
                "done" if good else "failed",
                value if good else None,
                json.dumps({str(k): v for k, v in (metrics or {}).items()}, default=_plain),
                "" if good else reason,
                time.time(),
                number,
            ),
        )
        return done.rowcount == 1

    def reopen(self, blameless: bool = False) -> int:
        """Let trials that ran when their controller ended wait again; how many.

        One that ran in `DEADLY` controllers that died has failed, lest it kills them for ever. If it was not to blame
        for the end, this start does not count.
        """
        if blameless:
            return self._base.execute(
                "UPDATE trials SET state = 'waiting', starts = starts - 1 WHERE state = 'running'"
            ).rowcount
        self._base.execute(
            "UPDATE trials SET state = 'failed', reason = ?, metrics = ?, ended = ?"
            " WHERE state = 'running' AND starts >= ?",
            (f"its controller died {DEADLY} times while it ran", json.dumps({LOST: True}), time.time(), DEADLY),
        )
        return self._base.execute("UPDATE trials SET state = 'waiting' WHERE state = 'running'").rowcount

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")


def _plain(value: Any) -> Any:
    """Numbers of numpy and JAX as those of Python; what else JSON does not know as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _reading(path: str) -> str:
    """How SQLite is to open a file that is only read; it needs a file beside it unless nothing is in its log."""
    kept = Path(path + "-wal").exists() or os.access(Path(path).absolute().parent, os.W_OK)
    return "?mode=ro" if kept else "?mode=ro&immutable=1"


def _locked(path: str) -> int:
    """A lock beside the file that the operating system gives back when this process dies, however it does."""
    import fcntl

    name = os.path.realpath(path)
    if name in _HELD:
        raise _controlled(path, "this one")
    try:
        lock = os.open(name + ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StoreError(f"{name}.lock: {error.strerror}, must be a place to write to") from None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise _controlled(path, holder or "unknown") from None
    _HELD.add(name)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _controlled(path: str, holder: str) -> StoreError:
    return StoreError(f"{path}: is controlled by another run (process {holder}); stop it, or choose another file")
