"""Progress on a terminal, plain lines elsewhere; what a command says when something stopped it."""

import difflib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rnnc.config import ConfigError
from rnnc.train import loop

PLAIN_EVERY_S = 10.0


class Reporter:
    """Says what a recipe is doing: bars on a terminal, a line every ten seconds elsewhere.

    Use it as a context manager; `say` prints a line, `progress` moves the bar of a task.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._bars = Progress(
            *columns,
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._live = self._console.is_terminal
        self._tasks: dict[str, Any] = {}
        self._spoke: dict[str, float] = {}

    def __enter__(self) -> "Reporter":
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False)
        sys.stdout.flush()

    def progress(self, task: str, done: int, of: int, note: str = "") -> None:
        """Move the bar of `task` to `done` of `of`, with a note beside it."""
        if self._live:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=of, note=note)
            self._bars.update(self._tasks[task], completed=done, total=of, note=note)
            if done >= of:
                self._bars.remove_task(self._tasks.pop(task))
        elif done >= of or time.monotonic() - self._spoke.get(task, 0.0) >= PLAIN_EVERY_S:
            self._spoke[task] = time.monotonic()
            self.say(f"{task}: {done}/{of} {note}".rstrip())


def chosen(option: str, given: Sequence[str], valid: Sequence[str]) -> list[str]:
    """The names given to an option, each known and once.

    >>> chosen("--task", ["a", "a"], ["a", "b"])
    ['a']
    """
    for name in given:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, 1, 0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{option} {name}: no such name.{hint} Valid names: {', '.join(valid)}")
    return list(dict.fromkeys(given))


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03.

    >>> duration(3723), duration(123)
    ('1:02:03', '2:03')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def status(work: Callable[[Reporter], None], stopped: str = "stopped") -> int:
    """Do the work of a command line and say on stderr what stopped it; returns the exit status.

    `stopped` is what to say after Ctrl-C where no step is being counted.
    """
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    try:
        with Reporter() as reporter:
            work(reporter)
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    except loop.Interrupted as stop:
        print(
            f"stopped after step {stop.args[0]}; the same command with --resume goes on from there",
            file=sys.stderr,
        )
        return 130
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    return 0
