"""Exported models on emulated chips: the bytes of this machine's C code, and instructions that are counted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels import WARNINGS, core
from rnnc import cells
from rnnc.arith import Fixed, Formats
from rnnc.audio.stft import Bands, Stft
from rnnc.export import emulate, model
from rnnc.export.emulate import CORES
from rnnc.export.model import Layout
from rnnc.fixed import Format
from rnnc.model import Enhancer, Model
from rnnc.structure import Dense, Hybrid, Joint, Kron, LowRank

FRAMES = 24
SOUND = 60  # hops
LAYOUTS = get_args(Layout)
FLAGS = ("-O2", *WARNINGS[1:])
PAIRS = {
    "dense": (Dense(), Dense()),
    "lowrank": (LowRank(rank=9), LowRank(rank=5, stacked=True)),
    "kron": (Kron(target_ratio=4), Kron(terms=2, stacked=True)),
    "hybrid": (Hybrid(rows=4), Hybrid(rows=12, stacked=True)),
    "joint": (Dense(), Joint()),
    "jointkron": (Kron(target_ratio=4), Joint()),
}
SIZES = ((40, 36), (21, 18))  # whole steps of four and more; a rest of every width
NET = Model(
    rate_hz=4000,
    stft=Stft(window=64, hop=32),
    bands=Bands(count=24, low_hz=50.0, high_hz=1900.0),
    units=(32, 20),
    hidden=19,
)


class Case(NamedTuple):
    """An exported model by the layout of its weights, its inputs, and in how many beginnings it is counted."""

    name: str
    sources: dict[str, Path]
    inputs: np.ndarray
    beginnings: int


def _formats(kind: str, bits: int = 8, weight_bits: int = 8) -> Formats:
    h = {"lstm": Format(bits, bits - 1), "gru": Format(16, 15), "fastrnn": Format(16, 13)}[kind]
    taken = Format(bits, bits - 3)
    return Formats(x=h, x_in=taken, h_in=taken, h=h, weight_bits=weight_bits)


def _drawn(make: Callable, kept: float = 1.0, block: int = 1):
    """What `make` makes, with weights that saturate gates here and there; so many blocks of them are kept."""
    graph, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)

    def drawn(a: jax.ShapeDtypeStruct) -> np.ndarray:
        normal = rng.standard_normal(a.shape)
        if a.ndim < 2:
            return (0.3 * normal).astype(np.float32)
        rows = rng.random((-(-a.shape[-2] // block), a.shape[-1])) < kept
        spread = 3.0 * normal / np.sqrt(a.shape[-2]) * np.repeat(rows, block, axis=0)[: a.shape[-2]]
        return spread.astype(np.float32)

    return nnx.merge(graph, jax.tree.map(drawn, shapes))


def _cell(kind: str, pair: str, size: tuple[int, int], formats: Formats, kept: float = 1.0, block: int = 1):
    kernel, recurrent = PAIRS[pair]
    options = {"kernel": kernel, "recurrent": recurrent, "arith": Fixed(formats=formats)}
    return _drawn(lambda: cells.CELLS[kind](*size, **options, rngs=nnx.Rngs(0)), kept, block)


def _skip(kind: str, *sizes: tuple[int, int]):
    """A stack that skips many frames."""
    arith = Fixed(formats=_formats(kind))
    stack = lambda rngs: [cells.CELLS[kind](*size, arith=arith, rngs=rngs) for size in sizes]
    return _sleepy(_drawn(lambda: cells.Skip(stack(nnx.Rngs(0)), rngs=nnx.Rngs(0))))


def _net(**options) -> Enhancer:
    formats = (Formats(x=Format(16, 12), h=Format(16, 15)), *(Formats(x=Format(16, 15), h=Format(16, 15)),) * 3)
    net = _drawn(lambda: Enhancer(replace(NET, formats=formats, **options), rngs=nnx.Rngs(0)))
    if net.model.skip:
        _sleepy(net.layers[0].cell)
    return net


def _sleepy(skip: cells.Skip) -> cells.Skip:
    skip.gate["bias"].set_value(jnp.full((1,), -2.0))
    return skip


def _models() -> dict:
    found = {
        f"{kind}_{pair}_{size[1]}": _cell(kind, pair, size, _formats(kind))
        for i, kind in enumerate(cells.CELLS)
        for j, pair in enumerate(PAIRS)
        for size in (SIZES if j == 0 else SIZES[(i + j) % 2 :][:1])
    }
    for kind in cells.CELLS:
        found[f"{kind}_sparse"] = _cell(kind, "dense", SIZES[0], _formats(kind), kept=0.2)
        found[f"{kind}_blocks"] = _cell(kind, "dense", SIZES[0], _formats(kind), kept=0.2, block=4)
        found[f"{kind}_skip"] = _skip(kind, SIZES[0])
    found["wide"] = _cell("gru", "dense", SIZES[1], _formats("gru", bits=16))
    found["sixteen"] = _cell("lstm", "dense", SIZES[1], _formats("lstm", weight_bits=16))
    found["four_odd"] = _cell("lstm", "dense", SIZES[1], _formats("lstm", weight_bits=4))
    found["four_blocks"] = _cell("lstm", "dense", SIZES[0], _formats("lstm", weight_bits=4), kept=0.2, block=4)
    found["four_kron"] = _cell("gru", "kron", SIZES[0], _formats("gru", weight_bits=4))
    found["two_skip"] = _skip("gru", (40, 36), (36, 20))
    return found | {"net": _net(), "net_skip": _net(skip=True, cell="gru")}


def _case(folder: Path, name: str, given) -> Case:
    """Inputs that are random, silent and extreme."""
    if isinstance(given, Enhancer):
        form, n, beginnings = given.model.formats[0].x, given.model.bands.count, 4 + given.model.skip
    else:
        stack = list(given.cells) if isinstance(given, cells.Skip) else [given]
        form, n = stack[0].core.arith.formats.x, stack[0].in_features
        beginnings = len(stack) + isinstance(given, cells.Skip)
    q = np.random.default_rng(n).integers(form.lowest, form.highest + 1, (FRAMES, n))
    q[8:11], q[14:16], q[16:18] = 0, form.highest, form.lowest
    sources = {layout: model.write(folder / layout, name, given, layout=layout) for layout in LAYOUTS}
    return Case(name, sources, q.astype(np.int16), beginnings)


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    folder = tmp_path_factory.mktemp("models")
    return [_case(folder, name, given) for name, given in _models().items()]


def _image(chip: emulate.Core, cases: list[Case], folder: Path) -> Path:
    return emulate.build(chip, [case.sources[chip.layout] for case in cases], folder, flags=FLAGS)


@pytest.fixture(scope="module")
def expected(cases, tmp_path_factory) -> list[emulate.Result]:
    here = core("host")
    return emulate.run(here, _image(here, cases, tmp_path_factory.mktemp("host")), [case.inputs for case in cases])


def _assert_equal(cases: list[Case], found: list[emulate.Result], wanted: list[emulate.Result]) -> None:
    for case, one, other in zip(cases, found, wanted):
        for what in emulate.Result._fields:
            message = f"{case.name}: {what}"
            np.testing.assert_array_equal(getattr(one, what), getattr(other, what), err_msg=message)


CHIPS = [key for key in CORES if key != "host"]


@pytest.mark.parametrize("key", CHIPS)
def test_a_chip_gives_the_numbers_of_this_machine(key, cases, expected, tmp_path):
    """Cells x structures, 4, 8 and 16 bits, wide inputs, pruned ones, stacks that skip, networks: y, state, updates."""
    chip = core(key)
    _assert_equal(cases, emulate.run(chip, _image(chip, cases, tmp_path), [case.inputs for case in cases]), expected)


@pytest.fixture(scope="module")
def sound(cases) -> tuple[list[Case], np.ndarray]:
    """The denoisers, and hops of tone, noise, silence, a full-scale square wave, and random bits."""
    rng, count = np.random.default_rng(4), SOUND * NET.stft.hop
    at = np.arange(count)
    noisy = np.clip(6000 * np.sin(at / 7) + 3000 * rng.standard_normal(count), -32768, 32767)
    noisy[count // 4 : count // 3] = 0
    noisy[count // 2 : 2 * count // 3] = np.where(at % 50 < 25, 32767, -32768)[count // 2 : 2 * count // 3]
    noisy[-count // 8 :] = rng.integers(-32768, 32768, count // 8)
    return [case for case in cases if case.name.startswith("net")], noisy.astype(np.int16).reshape(SOUND, -1)


def _heard(chip: emulate.Core, sound: tuple[list[Case], np.ndarray], folder: Path) -> list[emulate.Result]:
    denoisers, hops = sound
    sources = [case.sources[chip.layout] for case in denoisers]
    image = emulate.build(chip, sources, folder, sound=True, flags=FLAGS)
    return emulate.run(chip, image, [hops] * len(denoisers))


@pytest.fixture(scope="module")
def heard(sound, tmp_path_factory) -> list[emulate.Result]:
    return _heard(core("host"), sound, tmp_path_factory.mktemp("heard"))


@pytest.mark.parametrize("key", CHIPS)
def test_a_chip_gives_the_sound_of_this_machine(key, sound, heard, tmp_path):
    """Whole denoisers, from samples to samples."""
    _assert_equal(sound[0], _heard(core(key), sound, tmp_path), heard)


def test_the_denoisers_do_something(sound, heard):
    """So that equal sound means an equal denoiser: loud output, of many values, and not what came in."""
    hops = sound[1]
    for case, result in zip(sound[0], heard):
        assert len(np.unique(result.y)) > 500, case.name
        assert np.ptp(result.y.astype(int)) > 10000, case.name
        late = NET.stft.window - 1
        assert np.corrcoef(result.y.ravel()[late:], hops.ravel()[:-late])[0, 1] < 0.999, case.name


def test_the_models_do_something(cases, expected):
    """So that equal numbers mean equal arithmetic: outputs use their range, and what may skip does."""
    for case, (y, state, updates) in zip(cases, expected):
        name = case.name
        assert np.ptp(y.astype(int)) > (8000 if np.abs(y.astype(int)).max() > 127 else 60), name
        assert 0 < updates < FRAMES if "skip" in name else updates == FRAMES, name
        assert np.ptp(state.astype(int)) > 30, name


COUNTED = ("lstm_dense_36", "gru_sparse", "two_skip", "net_skip")


def _counts(key: str, cases: list[Case], folder: Path) -> emulate.Counts:
    chosen = [case for case in cases if case.name in COUNTED]
    chip = CORES[key]
    inputs = [case.inputs[:2] for case in chosen]
    return emulate.count(chip, _image(chip, chosen, folder), inputs, [case.beginnings for case in chosen])


@pytest.mark.parametrize("key", ["m4", "rv32", "host", "host-avx2"])
def test_counts_repeat_exactly(key, cases, tmp_path):
    """Twice the same, more for each further layer, and at least an instruction for each weight, or for a vector's."""
    core(key, *(["valgrind"] if not CORES[key].emulator else []))
    first, second = _counts(key, cases, tmp_path / "a"), _counts(key, cases, tmp_path / "b")
    assert first == second
    for one in first.models:
        assert all(np.diff([0, *one]) > 0)
    assert first.models[0][0] > (40 + 36) * 4 * 36 / (16 if CORES[key].macro == "RNNC_AVX2" else 1)


@pytest.mark.parametrize("key", [key for key in CHIPS if CORES[key].emulator])
def test_without_a_plugin_the_clock_counts(key, cases, tmp_path, monkeypatch):
    """Two ways that know nothing of each other: to within the clock's two ends."""
    core(key)
    plugin = _counts(key, cases, tmp_path)
    monkeypatch.setattr(emulate, "_plugin", lambda core, folder: None)
    clock = _counts(key, cases, tmp_path)
    assert (plugin.method, clock.method) == ("QEMU plugin", "QEMU -icount and counter")
    for one, other in zip(plugin.models, clock.models):
        np.testing.assert_allclose(one, other, rtol=0, atol=4)


@pytest.mark.parametrize(
    ("key", "tools"),
    [("m4", ("arm-none-eabi-gcc", "gcc-arm-none-eabi")), ("rv32", ("qemu-system-riscv32", "qemu-system-misc"))],
)
def test_a_missing_tool_is_named_with_its_package(key, tools, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    name = CORES[key].name
    tool, package = tools
    assert f"{tool} (package {package})" in emulate.missing(CORES[key])
    with pytest.raises(emulate.EmulatorError, match=f"{name}: .* is not installed"):
        emulate.build(CORES[key], [], tmp_path)


def test_a_compiler_that_refuses_is_quoted(tmp_path):
    here = core("host")
    (tmp_path / "wrong.c").write_text("int x = ;")
    (tmp_path / "wrong.h").write_text("extern const rnnc_stack wrong;")
    with pytest.raises(emulate.EmulatorError, match="expected expression"):
        emulate.build(here, [tmp_path / "wrong.c"], tmp_path)


def test_an_image_that_fails_is_no_result(cases, tmp_path):
    """Too many frames for its memory: its own status, not numbers."""
    chip = core("m4")
    chosen = cases[:1]
    inputs = [np.zeros((6000, chosen[0].inputs.shape[1]), np.int16)]
    with pytest.raises(emulate.EmulatorError, match="failed with status 4"):
        emulate.run(chip, _image(chip, chosen, tmp_path), inputs)
