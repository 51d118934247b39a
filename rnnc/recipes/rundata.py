"""What a run folder holds, read for a report; and safe ways into its loosely shaped JSON.

A missing file or section is no error: it reads as None or as empty, and the report says so. A section of the
wrong type is one, and names itself.
"""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

Table = Mapping[str, object]
"""One JSON object."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """The lines of log.jsonl by kind: curves by step, events as they came."""

    train: list[Table]
    valid: list[Table]
    events: list[Table]
    broken: int  # lines that are no JSON object, such as a last line cut short


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder in memory; None where there is no such file."""

    folder: Path
    result: Table
    config: str | None
    log: Log | None
    examples: list[Table]


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One example: the file's bytes and what they decode to."""

    file: bytes
    audio: np.ndarray  # [T], mono, full scale 1
    rate_hz: int


def read(run: Path) -> Run:
    """Read a run folder, except for its sounds.

    Raises:
        ValueError: the folder is missing; result.json is missing or no JSON object; examples.json is no list
            of objects, or names an example outside its folder.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder; allowed: the folder of a run, holding result.json")
    result = _json(run / "result.json")
    if not isinstance(result, dict):
        raise ValueError(f"{run / 'result.json'}: given {type(result).__name__}, allowed: a JSON object")
    config, log = run / "config.toml", run / "log.jsonl"
    return Run(
        folder=run,
        result=result,
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else None,
        log=_log(log) if log.is_file() else None,
        examples=_examples(run / "examples" / "examples.json"),
    )


def sound(path: Path) -> Sound | str:
    """Read one example, mixed down to mono for its figure, or say in words why not."""
    if not path.is_file():
        return f"there is no file {path.name}."
    file = path.read_bytes()
    try:
        audio, rate_hz = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        return f"{path.name} is not readable as audio ({error.error_string})."
    return Sound(file=file, audio=audio.mean(axis=1), rate_hz=rate_hz)


def child(parent: Table, key: str) -> Table:
    """Return the object under `key`, empty if absent.

    Raises:
        ValueError: it is not an object.
    """
    found = parent.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{key}: given {type(found).__name__}, allowed: a JSON object")
    return found


def children(parent: Table, key: str) -> list[Table]:
    """Return the list of objects under `key`, empty if absent.

    Raises:
        ValueError: it is not a list of objects.
    """
    found = parent.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f"{key}: given {type(found).__name__}, allowed: a list of JSON objects")
    return found


def value(parent: Table, key: str) -> float:
    """Return the number under `key`, NaN if absent.

    Raises:
        ValueError: it is not a number.

    >>> value({"steps": 10}, "steps"), value({}, "steps")
    (10.0, nan)
    """
    found = parent.get(key)
    if found is None:
        return math.nan
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"{key}: given {found!r}, allowed: a number")
    return float(found)


def word(parent: Table, key: str) -> str:
    """Return what stands under `key` as text, empty if absent."""
    found = parent.get(key)
    return "" if found is None else str(found)


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; allowed: a JSON file") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); allowed: one JSON object") from error


def _log(path: Path) -> Log:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = [_record(line) for line in lines if line.strip()]
    kinds: dict[str, list[Table]] = {"event": [], "valid": [], "train": []}
    for record in records:
        if record is not None:
            kinds["event" if "event" in record else "valid" if "valid" in record else "train"].append(record)
    return Log(
        train=_by_step(kinds["train"]),
        valid=_by_step(kinds["valid"]),
        events=kinds["event"],
        broken=records.count(None),
    )


def _by_step(records: list[Table]) -> list[Table]:
    """Sort by step. A resumed run repeats the steps after its checkpoint: the later line of a step stands."""
    latest = {value(record, "step"): record for record in records if "step" in record}
    return [latest[step] for step in sorted(latest)]


def _record(line: str) -> Table | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _examples(path: Path) -> list[Table]:
    if not path.is_file():
        return []
    found = children({"examples.json": _json(path)}, "examples.json")
    for example in found:
        name = word(example, "name")
        if not name or Path(name).name != name:
            raise ValueError(f"{path}: name {name!r}, allowed: the plain name of a file in the same folder")
    return found
