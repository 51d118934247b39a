"""TOML to frozen dataclasses and back: strict keys, checked types, overrides by dotted names.

The configured class is the schema. A field typed `A | None` is a section that is off when absent; a field typed as a
union of dataclasses takes a table whose `kind` is the lower-case class name.
"""

import dataclasses
import difflib
import hashlib
import json
import sys
import tomllib
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(ValueError):
    """The configuration is wrong: where, what was given, what is allowed."""


def load(schema: type[T], path: Path | None = None, overrides: tuple[str, ...] = ()) -> T:
    """Read a TOML file, lay `overrides` over it and build `schema`, whose defaults fill the rest.

    Args:
      schema: a frozen dataclass whose fields all have defaults.
      path: TOML file; None: defaults alone.
      overrides: "a.b=value" with value in TOML syntax; a bare word is taken as a string.

    Raises:
      ConfigError: unreadable file, unknown key (with the nearest valid one), wrong type, value out of range.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Train:
    ...     steps: int = 10
    >>> load(Train, None, ("steps=20",)).steps
    20
    """
    return build(schema, merge(read(path) if path else {}, overrides))


def read(path: Path) -> dict[str, Any]:
    """The table in a TOML file."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from None


def merge(table: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """A copy of `table` with "a.b=value" overrides laid over it."""
    table = json.loads(json.dumps(table, default=str))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {override!r}: must read key=value, for instance train.steps=50")
        *parents, last = name.strip().split(".")
        place = table
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {override!r}: {parent} is a value, not a section")
        place[last] = _value(text.strip())
    return table


def build(schema: Any, table: Any, where: str = "", base: Any = None) -> Any:
    """Make a dataclass from a table, strictly.

    Args:
      schema: the dataclass.
      table: values by key; of a section that the dataclass has by default, those that differ from it.
      where: the dotted name for messages.
      base: an object of the dataclass that tells what the table does not; None: its defaults.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: is {table!r}, must be a section")
    hints = get_type_hints(schema)
    given = {f.name: f for f in dataclasses.fields(schema) if f.init}
    fields = {name: hints[name] for name in given}
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1, 0.5)
            hint = f" Did you mean {_join(where, near[0])!r}?" if near else ""
            raise ConfigError(f"{_join(where, key)}: unknown key.{hint} Valid keys: {', '.join(fields)}")
    told = {name: f.default if base is None else getattr(base, name) for name, f in given.items()}
    values = {key: _convert(fields[key], value, _join(where, key), told[key]) for key, value in table.items()}
    for name, f in given.items():
        if name not in values and base is None and f.default is f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(where, name)}: is missing, must be given")
    try:
        return schema(**values) if base is None else dataclasses.replace(base, **values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def dump(config: Any) -> str:
    """The complete configuration as TOML; `build` makes an equal object of it."""
    return "\n".join(_lines(to_table(config), "")) + "\n"


def to_table(config: Any) -> dict[str, Any]:
    """The complete configuration as nested plain tables; sections that are None are left out."""
    table: dict[str, Any] = {}
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            kinds = [t for t in get_args(hints[field.name]) if dataclasses.is_dataclass(t)]
            kind = {"kind": type(value).__name__.lower()} if len(kinds) > 1 else {}
            table[field.name] = {**kind, **to_table(value)}
        elif isinstance(value, tuple):
            table[field.name] = [to_table(v) if dataclasses.is_dataclass(v) else v for v in value]
        elif value is not None:
            table[field.name] = value
    return table


def digest(config: Any) -> str:
    """sha256 of the complete configuration, in hex."""
    return hashlib.sha256(json.dumps(to_table(config), sort_keys=True).encode()).hexdigest()


def _convert(hint: Any, value: Any, where: str, told: Any = None) -> Any:
    """A value of a table as the hint has it; `told` is what stands there without it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where, told)
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], 1, 0.5)
            hint_text = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where}: is {value!r}, must be one of {', '.join(map(repr, args))}.{hint_text}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: is {value!r}, must be a list")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where, told if type(told) is hint else None)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # also true for NaN
            raise ConfigError(f"{where}: is {value!r}, must be finite")
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: is {value!r}, must be of type {getattr(hint, '__name__', hint)}")
    return value


def _convert_union(args: tuple[Any, ...], value: Any, where: str, told: Any) -> Any:
    kinds: dict[str, Any] = {cast(type, a).__name__.lower(): a for a in args if dataclasses.is_dataclass(a)}
    if len(kinds) > 1 and isinstance(value, dict):
        table = dict(value)
        kind = table.pop("kind", None)
        if kind not in kinds:
            raise ConfigError(f"{where}.kind: is {kind!r}, must be one of {', '.join(map(repr, kinds))}")
        return build(kinds[kind], table, where)
    return _convert(next(a for a in args if a is not type(None)), value, where, told)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _lines(table: dict[str, Any], where: str) -> list[str]:
    """TOML lines: plain values first, then one [section] each."""
    plain = [f"{k} = {_literal(v)}" for k, v in table.items() if not isinstance(v, dict)]
    lines = [f"[{where}]", *plain] if where and plain else plain
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", *_lines(value, _join(where, key))] if value else ["", f"[{_join(where, key)}]"]
    return lines


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_literal(v)}" for k, v in value.items()) + " }"
    return repr(value)
