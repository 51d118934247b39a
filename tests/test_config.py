"""Laws of the configuration: what is wrong is named with its place, and what is written is read back equal."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnc import config
from rnnc.config import ConfigError
from rnnc.model import Model
from rnnc.recipes.enhance import Enhance


@dataclass(frozen=True)
class Square:
    side: float = 1.0

    def __post_init__(self) -> None:
        if self.side <= 0:
            raise ValueError(f"side: is {self.side}, must be above 0")


@dataclass(frozen=True)
class Disc:
    radius: float = 1.0
    cut: Square = Square()


@dataclass(frozen=True)
class Frame:
    width: int
    inner: Disc = Disc(2.0, Square(3.0))
    outer: Square | None = Square(4.0)


@dataclass(frozen=True)
class Toy:
    steps: int = 3
    rate: float = 0.5
    name: str = "toy"
    loud: bool = False
    mode: Literal["fast", "slow"] = "fast"
    folders: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    shape: Square | Disc = field(default_factory=Disc)
    extra: Square | None = None


WRONG = {
    "unknown": ({"stpes": 1}, r"^stpes: unknown key\. Did you mean 'steps'\? Valid keys: steps, rate, name"),
    "far": ({"zzzzzz": 1}, r"^zzzzzz: unknown key\. Valid keys: steps"),
    "nested": ({"shape": {"kind": "disc", "cut": {"sdie": 1}}}, r"^shape\.cut\.sdie: .*'shape\.cut\.side'"),
    "string for int": ({"steps": "3"}, r"^steps: is '3', must be of type int"),
    "float for int": ({"steps": 3.0}, r"^steps: is 3\.0, must be of type int"),
    "bool for int": ({"steps": True}, r"^steps: is True, must be of type int"),
    "bool for float": ({"rate": False}, r"^rate: is False, must be of type float"),
    "int for bool": ({"loud": 1}, r"^loud: is 1, must be of type bool"),
    "int for string": ({"name": 1}, r"^name: is 1, must be of type str"),
    "nan": ({"rate": float("nan")}, r"^rate: is nan, must be finite"),
    "infinity": ({"rate": float("-inf")}, r"^rate: is -inf, must be finite"),
    "huge integer": ({"rate": 10**400}, r"^rate: is 1.*, must be finite"),
    "literal": ({"mode": "slwo"}, r"^mode: is 'slwo', must be one of 'fast', 'slow'\. Did you mean 'slow'\?"),
    "literal list": ({"mode": ["fast"]}, r"^mode: is \['fast'\], must be one of"),
    "no list": ({"folders": "a"}, r"^folders: is 'a', must be a list"),
    "list item": ({"sizes": [1, "2"]}, r"^sizes\[1\]: is '2', must be of type int"),
    "no section": ({"shape": 3}, r"^shape: is 3, must be a section"),
    "no kind": ({"shape": {"side": 1.0}}, r"^shape\.kind: is None, must be one of 'square', 'disc'"),
    "other kind": ({"shape": {"kind": "cube"}}, r"^shape\.kind: is 'cube', must be one of"),
    "key of the other kind": ({"shape": {"kind": "disc", "side": 1.0}}, r"^shape\.side: unknown key"),
    "range": ({"shape": {"kind": "square", "side": -1}}, r"^shape: side: is -1\.0, must be above 0"),
    "range below": ({"extra": {"side": 0}}, r"^extra: side: is 0\.0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_place(case):
    table, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        config.build(Toy, table)


def test_tables_become_values():
    table = {"rate": 2, "folders": ["a", "b"], "shape": {"kind": "square", "side": 4}, "extra": {}}
    assert config.build(Toy, table) == Toy(rate=2.0, folders=("a", "b"), shape=Square(4.0), extra=Square())
    assert type(config.build(Toy, table).rate) is float
    assert config.build(Toy, {}) == Toy()


ENHANCE = {
    "train.steps=0": r"^train: steps: is 0, must be 1 or more",
    "train.learning_rate=0.0": r"^train: learning_rate: is 0\.0, must be above 0",
    "train.final_rate=1.5": r"^train: final_rate: is 1\.5",
    "mix.room=1.5": r"^mix: room: is 1\.5, must be a probability",
    "mix.snr_low_db=30": r"^mix: snr_low_db: is 30\.0, must not exceed snr_high_db",
    "mix.level_db=nan": r"^mix\.level_db: is nan, must be finite",
    "mix.seconds=0.1": r"^mix: seconds: is 0\.1, must be 0\.5 to 60",
    "mix.speed_most=3": r"^mix: speed_most",
    "model.power=0": r"^model: power",
    "model.units=[0]": r"^model: units: is \[0\]",
    "model.cell=gur": r"^model\.cell: is 'gur', must be one of 'lstm', 'gru', 'fastrnn'\. Did you mean 'gru'\?",
    "model.bands.high_hz=9000": r"^model: bands\.high_hz: is 9000\.0, must be at most 8000",
    "model.bands.low_hz=7600": r"^model\.bands: ",
    "model.stft.hop=100": r"^model\.stft: stft: window is 512, hop is 100",
    "loss.hop=0": r"^loss: stft: ",
    "loss.power=2": r"^loss: power",
    'data.speech=["a"]': r"^data: speech and noise: give folders for both",
    "data.corpus.kind=espaek": r"^data\.corpus\.kind: .*Did you mean 'espeak'\?",
    "seed=-1": r"^seed: is -1, must be 0 to ",
    "seed=99999999999999999999": r"^seed: is 9+, must be 0 to ",
}


@pytest.mark.parametrize("override", ENHANCE)
def test_ranges_of_the_recipe_are_named_with_their_place(override):
    with pytest.raises(ConfigError, match=ENHANCE[override]):
        config.load(Enhance, None, (override,))


def test_a_section_in_part_keeps_the_rest_of_what_stands_there():
    table = {"width": 1, "inner": {"radius": 5.0}}
    assert config.build(Frame, table) == Frame(1, Disc(5.0, Square(3.0)))
    assert config.build(Frame, {"width": 1, "inner": {"cut": {"side": 6.0}}}) == Frame(1, Disc(2.0, Square(6.0)))
    assert config.build(Frame, {"width": 1, "outer": {}}) == Frame(1)
    with pytest.raises(ConfigError, match=r"^inner\.cut: side: is -1\.0"):
        config.build(Frame, {"width": 1, "inner": {"cut": {"side": -1}}})


def test_what_must_be_given_is_named():
    with pytest.raises(ConfigError, match=r"^frame\.width: is missing, must be given"):
        config.build(Frame, {}, "frame")


def test_overrides():
    given = ("steps=7", "name=bare word", 'shape.kind="square"', "shape.side=2", "sizes=[5]", "loud=true")
    assert config.load(Toy, None, given) == Toy(steps=7, name="bare word", shape=Square(2.0), sizes=(5,), loud=True)
    table = {"shape": {"kind": "square", "side": 3.0}}
    assert config.merge(table, ("shape.side=2",)) == {"shape": {"kind": "square", "side": 2}}
    assert table == {"shape": {"kind": "square", "side": 3.0}}, "merge must not change what it is given"
    assert config.load(Toy, None, ("steps=1", "steps=2")).steps == 2


@pytest.mark.parametrize("text", ["steps", "=3", "  =3"])
def test_override_without_a_key_or_value(text):
    with pytest.raises(ConfigError, match=r"must read key=value"):
        config.load(Toy, None, (text,))


def test_override_into_a_value():
    with pytest.raises(ConfigError, match="steps is a value, not a section"):
        config.merge({"steps": 3}, ("steps.x=1",))


def test_override_wins_over_the_file(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("steps = 5\nrate = 0.25\n")
    assert config.load(Toy, path, ("steps=6",)) == Toy(steps=6, rate=0.25)


@pytest.mark.parametrize("content", [b"steps = ", b"steps = 1\nsteps = 2\n", b"\xff\xfe", b"[a]\n[a]\n", b"= 1"])
def test_files_that_are_no_toml(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml: cannot be read as TOML"):
        config.load(Toy, path)


def test_missing_file_and_folder_for_a_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such configuration file"):
        config.load(Toy, tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        config.load(Toy, tmp_path)


finite = st.floats(allow_nan=False, allow_infinity=False)
squares = st.builds(Square, st.floats(1e-300, 1e300))
text = st.text(st.characters(exclude_categories=["Cs"]))  # no lone surrogates: no file can hold them
toys = st.builds(
    Toy,
    steps=st.integers(-(2**63), 2**63 - 1),
    rate=finite,
    name=text,
    loud=st.booleans(),
    mode=st.sampled_from(["fast", "slow"]),
    folders=st.lists(text, max_size=3).map(tuple),
    sizes=st.lists(st.integers(-9, 9), max_size=3).map(tuple),
    shape=squares | st.builds(Disc, finite, squares),
    extra=st.none() | squares,
)


@given(toys)
@settings(max_examples=300, deadline=None)
def test_dump_and_load_are_inverse(tmp_path_factory, toy):
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(config.dump(toy), encoding="utf-8")
    again = config.load(Toy, path)
    assert again == toy
    assert config.digest(again) == config.digest(toy)


@given(toys, toys)
@settings(deadline=None)
def test_digest_tells_configurations_apart(a, b):
    assert (config.digest(a) == config.digest(b)) == (config.to_table(a) == config.to_table(b))


def test_the_recipe_comes_back_equal(tmp_path):
    given = ("seed=3", "model.cell=gru", "mix.room=0", "data.rooms=2", "train.learning_rate=1e-5")
    enhance = config.load(Enhance, None, given)
    path = tmp_path / "c.toml"
    path.write_text(config.dump(enhance))
    assert config.load(Enhance, path) == enhance != Enhance()


def _leaves(table, at=()):
    for key, value in table.items():
        yield from _leaves(value, (*at, key)) if isinstance(value, dict) else [(*at, key)]


@pytest.mark.parametrize("name", [".".join(leaf) for leaf in _leaves(config.to_table(Enhance())) if leaf[-1] != "kind"])
def test_digest_sees_every_field(name):
    """Another value, written past the checks, changes the digest."""
    before = config.digest(Enhance())
    assert config.digest(Enhance()) == before
    enhance = Enhance()
    *parents, last = name.split(".")
    parts = [enhance]
    for parent in parents:
        parts.append(getattr(parts[-1], parent))
    copies = [dataclasses.replace(part) for part in parts]
    for outer, parent, inner in zip(copies, parents, copies[1:]):
        object.__setattr__(outer, parent, inner)
    value = getattr(copies[-1], last)
    other = (*value, "x") if isinstance(value, tuple) else value + "x" if isinstance(value, str) else not value
    object.__setattr__(copies[-1], last, value + 1 if type(value) in (int, float) else other)
    assert config.digest(copies[0]) != before


def test_digest_is_the_same_in_every_process():
    assert config.digest(Toy()) == "f660f91df5c93013836af5ee248ec0c6233c4ef7bb818f4f835ececd1d9f403f"
    assert config.digest(Model()) == config.digest(config.build(Model, config.to_table(Model())))
