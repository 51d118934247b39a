"""Whether models fit chips: the papers' figures, every limit by itself, and the shipped lines against counts."""

import json
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
from test_blob import made

from kernels import core
from rnnc.export import budget, emulate, firmware, latency, model, work
from rnnc.export.budget import MCUS, Budget, BudgetError
from rnnc.export.latency import KINDS
from rnnc.model import Enhancer
from rnnc.recipes import bench, bench_latency
from rnnc.recipes.enhance import MODELS
from rnnc.recipes.run import load_model

CORES = sorted({chip.core for chip in MCUS})
WORST = 0.25  # of a random model; the lines miss the layers that they were fitted to by up to 0.18
WHOLE = 0.1  # of a model of dense layers, sound to sound
F746 = budget.mcu("STM32F746")


@cache
def _shipped(name: str) -> Enhancer:
    return load_model(MODELS[0] / f"{name}.rnnc")[0]


@cache
def _need(name: str) -> Budget:
    return budget.needs(_shipped(name), [F746])[0]


def test_the_float_baseline_fails_on_compute_and_flash():
    """The paper's own finding: 968,960 numbers of 4 bytes and 1.93 MOps, where 0.5 MB and 1.55 MOps are allowed."""
    found = _need("tinylstm")
    front = model.sizes(work.integers(_shipped("tinylstm")), layout="tiles")[-1].flash
    assert found.flash_bytes == 4 * 968_960 + front + latency.read()["m7"].code_bytes
    assert found.ops == 2 * 966_656
    assert budget.limits(F746) == Budget(ops=1_550_000, flash_bytes=512 * 1024, sram_bytes=320 * 1024, ms=10)
    assert budget.limits(F746).over(found) == ["ops", "flash_bytes"]


def test_the_integer_third_fits():
    assert budget.limits(F746).over(_need("tinylstm-int8")) == []


@pytest.mark.parametrize("field", [field.name for field in fields(Budget)])
def test_each_limit_fails_by_itself(field):
    need = _need("tinylstm-int8")
    assert need.over(need) == []
    value = getattr(need, field)
    assert value > 0
    assert replace(need, **{field: value * 0.999}).over(need) == [field]
    assert need.over(replace(need, **{field: float("nan")})) == [field]  # what is not known does not fit


def test_memory_and_time_are_made_of_what_is_said():
    """RAM: what C asks for, a hop in and out, 1,280 bytes of stack. Time: the front end too, cycles over the clock."""
    chip = _shipped("tinylstm-int8")
    found, line = _need("tinylstm-int8"), latency.read()["m7"]
    sizes = model.sizes(chip, layout="tiles")
    assert found.sram_bytes == firmware.memory(sizes) + 4 * chip.model.stft.hop + 1280
    assert found.flash_bytes == sum(size.flash for size in sizes) + line.code_bytes
    front = line.front_instructions(chip.model.stft, chip.model.bands.count)
    assert front > 0.1 * line.instructions(work.layers(chip))
    assert found.ms * 216_000 == pytest.approx(line.instructions(work.layers(chip)) + front)


def test_the_chips_are_what_they_are_called():
    """Names differ in more than case, cores and their lines are there, no cycles without a reason."""
    fits = latency.read()
    assert len({chip.name.lower() for chip in MCUS}) == len(MCUS)
    for chip in MCUS:
        assert budget.mcu(chip.name.upper()) is chip
        known = emulate.CORES[chip.core]
        assert known.layout == chip.layout
        assert (fits[chip.core].core, set(fits[chip.core].lines)) == (known.name, set(KINDS))
        assert fits[chip.core].code_bytes > 5000
        assert chip.cycles >= 1
        assert chip.reason


@pytest.mark.parametrize(("name", "near"), [("STM32F748", "STM32F746"), ("nrf5430", "nRF5340"), ("rp2040", "RP2350")])
def test_an_unknown_chip_is_named_with_the_nearest(name, near):
    with pytest.raises(BudgetError, match=rf"chip '{name}': .* one of STM32F746, .*; did you mean {near}\?"):
        budget.mcu(name)


@pytest.fixture(scope="module")
def fresh() -> list[list]:
    """Random models that no line was fitted to, one of each kind."""
    return [bench_latency._random(1000 + i) for i in range(len(KINDS))]


@pytest.mark.parametrize("name", CORES)
def test_the_shipped_lines_predict_fresh_models(name, fresh, tmp_path):
    """Small factors above all depend on more than the lines know."""
    chip, line = core(name), latency.read()[name]
    _, counted = work.instructions(chip, fresh, tmp_path)
    ratios = [line.instructions(work.layers(m)) / sum(counts) for m, counts in zip(fresh, counted)]
    assert max(abs(ratio - 1) for ratio in ratios) < WORST, ratios


@pytest.mark.parametrize("name", CORES)
def test_the_shipped_lines_predict_the_shipped_models(name, tmp_path):
    """Sound to sound: the dense TinyLSTMs network with 8-bit weights, and the shipped third of it."""
    chip, line = core(name), latency.read()[name]
    models = [work.integers(_shipped("tinylstm")), _shipped("tinylstm-int8")]
    _, counted = work.instructions(chip, models, tmp_path, sound=True)
    for given, counts in zip(models, counted):
        front = line.front_instructions(given.model.stft, given.model.bands.count)
        assert front == pytest.approx(counts[-1], rel=0.1)
        assert line.instructions(work.layers(given)) + front == pytest.approx(sum(counts), rel=WHOLE)


def test_flash_is_what_a_compiler_makes(tmp_path):
    """All kernels and a denoiser's numbers, compiled: what is said, and the C structures."""
    chip, given = core("m4"), made("denoiser")[0]
    source = model.write(tmp_path, "m0", given, layout="tiles")
    compiled = emulate.code_bytes(chip, [source, *emulate.KERNELS.glob("*.c")], tmp_path)
    (stated,) = budget.needs(given, [budget.mcu("STM32F446")])
    assert 0 <= compiled - stated.flash_bytes < 2048  # the C structures


def test_the_benchmark_writes_lines_that_load(tmp_path, capsys):
    """Of one core; those of another that stood in the file stay."""
    core("m4")
    out = tmp_path / "lines.json"
    shipped = latency.read()
    latency.write(out, {"m33": shipped["m33"], "m4": shipped["m7"]}, {})
    assert bench.main(["latency", "--models", "5", "--core", "m4", "--json", str(out)]) == 0
    found = latency.read(out)
    assert found["m33"] == shipped["m33"]
    assert found["m4"].core == "m4"
    assert found["m4"].code_bytes == shipped["m4"].code_bytes
    assert found["m4"].front == shipped["m4"].front
    assert json.loads(out.read_text())["about"]["command"].endswith("--models 5 --json FILE")
    assert "r2 of MACs alone" in capsys.readouterr().out


def test_a_budget_is_had_without_an_export(capsys):
    assert bench.main(["budget", "--chip", "stm32f746"]) == 0
    fits = capsys.readouterr().out
    assert [line.endswith("yes") for line in fits.splitlines() if line.startswith("STM32F746 ")] == [True, False]
    assert bench.main(["budget", "--model", "tinylstm", "--chip", "STM32F746", "--chip", "nRF5340"]) == 0
    lines = capsys.readouterr().out
    assert "floating point" in lines
    assert lines.count("no: operations, flash") == 2
    assert bench.main(["budget", "--chip", "STM32F747"]) == 2
    assert "error: --chip: chip 'STM32F747': is not known" in capsys.readouterr().err


def test_the_firmware_folder_tells_its_budget(tmp_path):
    """In the report and in the README, the same lines for all chips."""
    given = made("denoiser")[0]
    report = firmware.write(tmp_path / "out", given, version="1")
    lines = budget.table(given)
    assert "\n".join(lines) in "\n".join(report)
    assert "\n".join(lines) in (tmp_path / "out" / "README.md").read_text()
    assert [line.split()[0] for line in lines[1:]][: len(MCUS)] == [chip.name for chip in MCUS]


def test_r2_is_as_stated():
    """The linearity that is claimed of each kind: of whole vectors and rests, Helium's kernels depend on more."""
    fits = latency.read()
    for name in CORES:
        assert min(line.r2 for line in fits[name].lines.values()) > 0.95
    assert np.isfinite([fits[name].per_elementwise for name in CORES]).all()
