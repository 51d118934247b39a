"""What a search may change: named values, conditions between them, a constraint on all of them.

A configuration is a dict from names, for instance dotted keys of a recipe, to values.
"""

import contextlib
import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rnnc.search.values import Choice, SpaceError, Uniform, Values, as_values, same, told

Configuration = dict[str, Any]
MOST_DRAWS = 100_000  # without one that meets the constraint
ENOUGH_DRAWS = 20_000  # with one


@dataclass(frozen=True)
class When:
    """Values that exist only where others are so: `When(range(2, 6), {"kernel": "poly"})`.

    Args:
      values: a list, a range, or anything else that a space takes.
      given: names that stand before this one, each with a value or a list of values that it must have.
    """

    values: Any
    given: Mapping[str, Any]


@dataclass(frozen=True)
class _Parameter:
    name: str
    values: Values
    given: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def active(self, configuration: Mapping[str, Any]) -> bool:
        """Whether it is there, by what stands before it."""
        return all(
            name in configuration and any(same(configuration[name], a) for a in allowed) for name, allowed in self.given
        )


class Space:
    """Named values, with conditions and a constraint.

    Args:
      parameters: by name: a list (a choice without an order), a range, an object with `rvs`, `Uniform`, `loguniform`,
        `Ordered`, or a `When` around one of them.
      constraint: whether a configuration may be tried; one that may not costs no trial.

    Raises:
      SpaceError: no parameters, a name that is no word, values of no known kind, a condition on a name that does not
        stand before it or on a value that this never has.

    >>> from rnnc.search.values import loguniform
    >>> space = Space({"rate": loguniform(-4, 2), "cell": ["lstm", "skip"], "cost": When([1, 2], {"cell": "skip"})})
    >>> space.at(np.array([[0.5, 0.1, 0.9], [0.5, 0.9, 0.9]]))
    [{'rate': 0.001, 'cell': 'lstm'}, {'rate': 0.001, 'cell': 'skip', 'cost': 2}]

    Source: Mango's spaces, section 6.1 of our survey, where values are not scaled by default. Ours always are,
    integers by their rank; conditions are ours, and so is a constraint on one configuration (there: on a list).
    """

    def __init__(
        self, parameters: Mapping[str, Any], constraint: Callable[[Configuration], bool] | None = None
    ) -> None:
        if not parameters:
            raise SpaceError("space: is empty, must name one parameter or more")
        if constraint is not None and not callable(constraint):
            raise SpaceError(f"constraint: is {constraint!r}, must be a function of a configuration")
        self.constraint = constraint
        self.parameters: tuple[_Parameter, ...] = ()
        for name, values in parameters.items():
            self.parameters += (self._parameter(name, values),)

    def _parameter(self, name: Any, values: Any) -> _Parameter:
        if not isinstance(name, str) or not name.strip():
            raise SpaceError(f"space: name {name!r}, must be a word")
        given: tuple[tuple[str, tuple[Any, ...]], ...] = ()
        if isinstance(values, When):
            known = {p.name: p for p in self.parameters}
            for other, allowed in values.given.items():
                if other not in known:
                    raise SpaceError(f"{name}: depends on {other!r}, must be one before it: {_nearest(other, known)}")
                allowed = tuple(allowed) if isinstance(allowed, list | tuple | range) else (allowed,)
                for value in allowed:
                    _named(f"{name}: depends on {other}, which", known[other].values.place, value)
                given += ((other, allowed),)
            values = values.values
        return _Parameter(name, _named(name, as_values, values), given)

    @property
    def names(self) -> list[str]:
        return [p.name for p in self.parameters]

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Which columns of `encode` each name has."""
        ends = np.cumsum([p.values.width for p in self.parameters])
        return {p.name: slice(int(end) - p.values.width, int(end)) for p, end in zip(self.parameters, ends)}

    @property
    def width(self) -> int:
        """Columns of `encode`."""
        return sum(p.values.width for p in self.parameters)

    @property
    def count(self) -> float:
        """How many configurations there are at most."""
        return math.prod(p.values.count for p in self.parameters)

    def at(self, u: np.ndarray) -> list[Configuration]:
        """Configurations at places u [N, parameters] in [0, 1), whatever the constraint."""
        columns = [p.values.at(u[:, i]) for i, p in enumerate(self.parameters)]
        made: list[Configuration] = [{} for _ in u]
        for parameter, column in zip(self.parameters, columns):
            for configuration, value in zip(made, column):
                if parameter.active(configuration):
                    configuration[parameter.name] = value
        return made

    def allows(self, configuration: Configuration) -> bool:
        """What the constraint says."""
        return self.constraint is None or bool(self.constraint(dict(configuration)))

    def sample(self, count: int, rng: np.random.Generator) -> list[Configuration]:
        """Draw configurations that the constraint allows; fewer where it allows few.

        Raises:
          SpaceError: none of `MOST_DRAWS` was allowed.
        """
        found: list[Configuration] = []
        drawn = 0
        while len(found) < count:
            batch = self.at(rng.random((max(count - len(found), 16), len(self.parameters))))
            drawn += len(batch)
            found += [c for c in batch if self.allows(c)]
            if not found and drawn >= MOST_DRAWS:
                raise SpaceError(f"constraint: allows none of {drawn:,} configurations drawn, must allow some")
            if found and drawn >= ENOUGH_DRAWS:
                break
        return found[:count]

    def near(self, configuration: Configuration, step: float, rng: np.random.Generator) -> Configuration:
        """A configuration some of whose values are about `step` of their ranges away, whatever the constraint."""
        active = [name for name in self.names if name in configuration]
        moved = {name for name in active if rng.random() < 0.5} or {active[int(rng.integers(len(active)))]}
        made: Configuration = {}
        for p in self.parameters:
            if not p.active(made):
                continue
            if p.name not in configuration:
                made[p.name] = p.values.at(rng.random(1))[0]
            elif p.name in moved:
                made[p.name] = p.values.near(configuration[p.name], step, rng)
            else:
                made[p.name] = configuration[p.name]
        return made

    def encode(self, configurations: Sequence[Configuration]) -> np.ndarray:
        """Configurations -> [N, width] in 0 .. 1; what does not exist stands in the middle."""
        x = np.full((len(configurations), self.width), 0.5)
        for p in self.parameters:
            rows = [i for i, c in enumerate(configurations) if p.name in c]
            if rows:
                x[rows, self.slices[p.name]] = p.values.encode([configurations[i][p.name] for i in rows])
        return x

    def check(self, configuration: Mapping[str, Any]) -> Configuration:
        """The configuration in the order of the space.

        Raises:
          SpaceError: a name or a value is not of this space, or one is missing.
        """
        for name in configuration:
            if name not in self.names:
                raise SpaceError(f"{name}: no parameter of this space; {_nearest(name, self.names)}")
        made: Configuration = {}
        for p in self.parameters:
            if p.active(made) != (p.name in configuration):
                state = "is missing, must be given" if p.active(made) else "is given, must be left out"
                raise SpaceError(f"{p.name}: {state} in {dict(configuration)}")
            if p.active(made):
                _named(p.name, p.values.place, configuration[p.name])
                made[p.name] = configuration[p.name]
        return made

    def pack(self, configuration: Configuration) -> str:
        """A configuration as JSON; a choice that JSON cannot hold is written as its place in the list."""
        return json.dumps({k: _plain(v, self._choices(k)) for k, v in configuration.items()})

    def unpack(self, text: str) -> Configuration:
        """What `pack` wrote."""
        made = {}
        for name, value in json.loads(text).items():
            place = isinstance(value, dict) and set(value) == {"#"}
            made[name] = self._choices(name)[value["#"]] if place else value
        return made

    def _choices(self, name: str) -> Sequence[Any]:
        values = next((p.values for p in self.parameters if p.name == name), None)
        return values.values if isinstance(values, Choice) else ()

    def describe(self) -> Any:
        """Plain data that tell two spaces apart, but for their constraints."""
        return [[p.name, p.values.describe(), [[n, [told(v) for v in a]] for n, a in p.given]] for p in self.parameters]


def parse(table: Mapping[str, Any], constraint: Callable[[Configuration], bool] | None = None) -> Space:
    """A space from the table of a recipe.

    Args:
      table: by dotted key: a list of choices, or `{low, high}` with `log = true` for a logarithmic scale, `step` for
        integers, and `when = {key = value or list}`; `{values, when}` for choices under a condition.
      constraint: see `Space`.

    Raises:
      SpaceError: as `Space`, or an entry of another form.

    >>> space = parse({"train.steps": {"low": 100, "high": 300, "step": 100}, "cell": ["lstm", "gru"]})
    >>> space.at(np.array([[0.9, 0.9]]))
    [{'train.steps': 300, 'cell': 'gru'}]
    """
    return Space({name: _named(name, _entry, entry) for name, entry in table.items()}, constraint)


_ENTRY = ("low", "high", "log", "step", "values", "when")


def _entry(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    for key in entry:
        if key not in _ENTRY:
            raise SpaceError(f"unknown key {key!r}; {_nearest(key, _ENTRY)}")
    if ("values" in entry) == ("low" in entry or "high" in entry):
        raise SpaceError(f"is {entry!r}, must have either low and high, or values")
    if "when" in entry:
        if not isinstance(entry["when"], dict):
            raise SpaceError(f"when: is {entry['when']!r}, must be a table of names and values")
        return When(_entry({k: v for k, v in entry.items() if k != "when"}), entry["when"])
    if "values" in entry:
        return entry["values"]
    low, high, step, log = (entry.get(key) for key in ("low", "high", "step", "log"))
    for key, bound in (("low", low), ("high", high)):
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise SpaceError(f"{key}: is {bound!r}, must be a number")
    if not isinstance(log, bool | None):
        raise SpaceError(f"log: is {log!r}, must be true or false")
    if step is None:
        return Uniform(float(low), float(high), log=bool(log))  # type: ignore[arg-type]
    if log or not all(type(v) is int for v in (low, high, step)) or step < 1 or low > high:  # type: ignore[operator]
        raise SpaceError(f"is {entry!r}, must have integers low to high and a step from 1 on, without log")
    return range(low, high + 1, step)  # type: ignore[arg-type, operator]


def _named(name: str, make: Callable[[Any], Any], value: Any) -> Any:
    """`make` of a value, with the name in front of what it refuses."""
    try:
        return make(value)
    except ValueError as error:
        raise SpaceError(f"{name}: {error}") from None


def _plain(value: Any, choices: Sequence[Any]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    with contextlib.suppress(TypeError, ValueError):
        if same(json.loads(json.dumps(value)), value) and not _marked(value):
            return value
    return {"#": next(i for i, known in enumerate(choices) if same(known, value))}


def _marked(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"#"}


def _nearest(name: object, names: Any) -> str:
    near = difflib.get_close_matches(str(name), list(names), 1, 0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"there are {', '.join(names)}"
