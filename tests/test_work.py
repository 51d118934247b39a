"""What layers do in a frame: multiply-accumulates as the cost model counts them, instructions as emulators do."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from members import CELLS, SMALL, STRUCTURES, each_cell, each_structure

from kernels import core
from rnnc import cells, cost
from rnnc.arith import Fixed, Formats
from rnnc.export import emulate, model, work
from rnnc.export.work import Products
from rnnc.fixed import Format
from rnnc.model import Enhancer
from rnnc.recipes import bench
from rnnc.recipes.run import save_model
from rnnc.structure import Kron


def _filled(make):
    """What `make` makes, its weights all 1."""
    graph, shapes = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(np.ones(a.shape, np.float32)), shapes))


@each_cell
@each_structure
def test_macs_are_those_of_the_cost_model(row, structure):
    """Counted off the exported structures, against the sizes' arithmetic."""
    options = {"kernel": structure.kernel, "recurrent": structure.recurrent, "arith": Fixed(formats=Formats())}
    cell = _filled(lambda: row.nnx(12, 16, **options, rngs=nnx.Rngs(0)))
    (found,) = work.layers(cell)
    wanted = cost.cell("cell0", cell.core, 12, 16)
    assert (found.name, found.macs, found.elementwise) == (wanted.name, wanted.macs, wanted.elementwise)


def test_kinds_are_those_of_the_structures():
    kinds = {"dense": "dense", "low-rank": "lowrank", "kron": "kron", "hybrid": "hybrid", "joint": "kron"}
    for structure in STRUCTURES:
        options = {"kernel": structure.kernel, "recurrent": structure.recurrent, "arith": Fixed(formats=Formats())}
        cell = _filled(lambda options=options: cells.GRUCell(12, 16, **options, rngs=nnx.Rngs(0)))
        assert work.layers(cell)[0].kind == kinds[structure.name]
    assert len(kinds) == len(STRUCTURES)


@pytest.mark.parametrize("skip", [False, True])
def test_a_network_has_the_layers_of_the_cost_model(skip):
    sizes = replace(SMALL, skip=skip, cell="gru", formats=(Formats(x=Format(16, 12), h=Format(16, 12)),) * 4)
    found = work.layers(_filled(lambda: Enhancer(sizes, rngs=nnx.Rngs(0))))
    wanted = cost.layers(sizes)
    assert [(w.macs, w.elementwise) for w in found] == [(c.macs, c.elementwise) for c in wanted]
    assert [w.name for w in found] == [c.name.replace("gru", "cell") for c in wanted]


def test_weights_that_are_not_stored_are_no_work():
    """Of a pruned matrix the kept blocks count; of one with few zeros all of it."""
    cell = _filled(lambda: cells.LSTMCell(16, 8, arith=Fixed(formats=Formats()), rngs=nnx.Rngs(0)))
    weights = cell.weights()
    kernel = np.zeros((16, 32), np.float32)
    kernel[:4, ::3] = 0.5  # a block of four inputs for every third output
    recurrent = np.ones((8, 32), np.float32)
    recurrent[0, :5] = 0
    cell.set_weights(weights | {"kernel": {"w": jnp.asarray(kernel)}, "recurrent": {"w": jnp.asarray(recurrent)}})
    (found,) = work.layers(cell)
    sparse = Products(4 * 11, 32, 16, calls=1, fours=8, padded=4 * 11, marks=4 * 32)
    dense = Products(8 * 32, 32, 8, calls=1, fours=8, rests=8, padded=8 * 32)
    assert found.products == {"sparse": sparse, "dense": dense}


def _kron(n: int, shape_a: tuple[int, int], shape_b: tuple[int, int]) -> Products:
    """What x [n] through A, then B, or the other way round, takes in a GRU of 12 units."""
    structure = Kron(shape_a=shape_a, shape_b=shape_b, stacked=True)
    cell = _filled(lambda: cells.GRUCell(n, 12, kernel=structure, arith=Fixed(formats=Formats()), rngs=nnx.Rngs(0)))
    return work.layers(cell)[0].products["kron"]


def test_rows_of_few_inputs_are_counted_apart():
    """x [3, 4] goes line by line through one factor, then through the other; an odd row is filled up."""
    found = _kron(12, (6, 4), (6, 3))
    lines = {4 * 6 * 3 + 6 * 6 * 4: 4, 3 * 6 * 4 + 6 * 6 * 3: 3}[found.macs]
    assert (found.thin, found.thin_calls) == (lines * 6 * 4 + 6 * 6 * 4, lines + 6)
    assert (found.thin_weights, found.calls, found.fours, found.padded) == (6 * 4 + 6 * 3, 0, 0, 0)


def test_factors_are_called_often():
    """Of 6 rows a kernel makes two fours; those of 20 inputs meet 3 lines, or 6."""
    found = _kron(60, (6, 20), (6, 3))
    calls = {20 * 6 * 3 + 6 * 6 * 20: 6, 3 * 6 * 20 + 6 * 6 * 3: 3}[found.macs]
    assert (found.calls, found.fours, found.padded) == (calls, 2 * calls, calls * 8 * 20)
    assert found.thin_weights == 6 * 3


@pytest.mark.parametrize("front", [[], ["front"]])
def test_the_benchmark_writes_a_row_for_each_layer(front, tmp_path, capsys):
    """One core and a small model, of floating point: rows of the fields that are promised; the frame is their sum."""
    core("m4")
    model, out = tmp_path / "model.rnnc", tmp_path / "rows.json"
    enhancer = _filled(lambda: Enhancer(SMALL, rngs=nnx.Rngs(0)))
    save_model(model, SMALL, jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(enhancer, nnx.Param))), {})
    sound = ["--sound"] if front else []
    assert bench.main(["kernels", "--model", str(model), "--core", "m4", "--json", str(out), *sound]) == 0
    rows = json.loads(out.read_text())
    assert [row["layer"] for row in rows] == ["cell0", "cell1", "dense", "mask", *front, "frame"]
    for row in rows:
        assert list(row) == ["core", "compiler", "layer", "kind", "macs", "instructions"]
        assert row["core"] == "m4"
        assert row["compiler"].startswith("gcc ")
        assert row["instructions"] > row["macs"] >= (row["layer"] != "front")
    assert [row["macs"] for row in rows[:4]] == [layer.macs for layer in cost.layers(SMALL)]
    for what in ("macs", "instructions"):
        assert sum(row[what] for row in rows[:-1]) == rows[-1][what]
    printed = capsys.readouterr().out
    assert "counted by QEMU" in printed
    assert "as with 8-bit weights" in printed


def test_the_benchmark_of_structures_holds_them_against_the_dense_layer(tmp_path, capsys):
    """Gains are ratios of what the rows say; without its products a layer takes less than with the fewest of them."""
    core("m4")
    out = tmp_path / "rows.json"
    assert bench.main(["gains", "--cell", "gru", "--units", "64", "--core", "m4", "--json", str(out)]) == 0
    dense, *rows = json.loads(out.read_text())
    assert (dense["macs"], dense["gain"]) == (3 * 64 * 128, 1)
    for row in rows:
        assert row["mac_gain"] == dense["macs"] / row["macs"] > 1
        assert row["gain"] == dense["instructions"] / row["instructions"]
        assert 0 < row["gates"] < row["instructions"]
    printed = capsys.readouterr().out
    assert f"{dense['gates'] / 64:.1f} instructions a unit besides" in printed
    assert bench.main(["gains", "--units", "30"]) == 2
    assert "--units: is 30, must be a multiple of 4" in capsys.readouterr().err


def test_a_frame_costs_the_same_whatever_is_heard(tmp_path):
    """Silence, full-scale squares, the extremes, noise: as many instructions, to the last one."""
    chip, frames, hop = core("m4"), 6, SMALL.stft.hop
    at, rng = np.arange(frames * hop), np.random.default_rng(0)
    heard = {
        "silence": np.zeros(frames * hop),
        "squares": np.where(at // 9 % 2, 32767, -32768),
        "lowest": np.full(frames * hop, -32768),
        "random": rng.integers(-32768, 32768, frames * hop),
        "soft": rng.normal(0, 30, frames * hop).round(),
    }
    sizes = replace(SMALL, formats=(Formats(x=Format(16, 12), h=Format(16, 12)),) * 4)
    source = model.write(tmp_path, "m0", Enhancer(sizes, rngs=nnx.Rngs(0)), layout=chip.layout)
    image = emulate.build(chip, [source], tmp_path, sound=True)
    inputs = {name: pcm.astype(np.int16).reshape(frames, hop) for name, pcm in heard.items()}
    counts = {name: emulate.count(chip, image, [pcm], [5]).models for name, pcm in inputs.items()}
    assert all(found == counts["silence"] for found in counts.values()), counts
    assert counts["silence"][0][-1] > 1000


def test_the_benchmark_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench.main(["kernels", "--core", "m4", "--core", "rv32"]) == 2
    printed, said = capsys.readouterr()
    assert "left out: m4: arm-none-eabi-gcc (package gcc-arm-none-eabi)" in printed
    assert "left out: rv32: riscv64-unknown-elf-gcc (package gcc-riscv64-unknown-elf)" in printed
    assert "no core's tools are installed" in said


def test_all_cells_are_in_the_tables():
    assert {row.name for row in CELLS} == set(cells.CELLS)
