"""What `rnnc.cost` counts, against the parameters that are there and the products that are made."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from members import CELLS, count, each_cell, each_structure, macs

from rnnc import cost
from rnnc.model import Enhancer, Model
from rnnc.steps import STEPS, Core


def _models(name, row):
    model = Model(cell=name, units=(8, 12), hidden=11, kernel=row.kernel, recurrent=row.recurrent)
    return model, dataclasses.replace(model, skip=True)


def _shapes(model):
    """The graph and the shapes of an enhancer's parameters; nothing is drawn."""
    return nnx.split(nnx.eval_shape(lambda: Enhancer(model, rngs=nnx.Rngs(0))))


def test_tinylstm():
    """The sizes of TinyLSTMs' published model."""
    layers = cost.layers(Model())
    assert sum(layer.macs for layer in layers) == 966_656
    assert sum(layer.parameters for layer in layers) == 968_960
    assert f"{sum(layer.bytes for layer in layers) / 1e6:.2f}" == "3.88"
    assert [layer.name for layer in layers] == ["lstm0", "lstm1", "dense", "mask"]


@each_cell
@each_structure
def test_parameters_are_those_of_the_enhancer(row, structure):
    for model in _models(row.name, structure):
        state = nnx.to_pure_dict(_shapes(model)[1])
        layers = cost.layers(model)
        parts = [*state["layers"].values(), state["dense"], state["mask"]]
        if model.skip:
            stack = parts[0]["cell"]
            parts = [*stack["cells"].values(), stack["gate"], *parts[1:]]
        found = [sum(math.prod(a.shape) for a in jax.tree.leaves(part)) for part in parts]
        assert [layer.parameters for layer in layers] == found


@each_cell
@each_structure
def test_macs_are_the_products_of_one_frame(row, structure):
    """All matrix products from features to gains, less the one that spreads bands over bins and has no weights."""
    for model in _models(row.name, structure):
        graph, state = _shapes(model)
        frame = jnp.zeros((1, 1, model.bands.count))
        made = count(lambda state, x, graph=graph: nnx.merge(graph, state).gains(x), state, frame, of=macs)
        spread = np.prod(model.bands.spread(model.rate_hz, model.stft.bins).shape)
        assert sum(layer.macs for layer in cost.layers(model)) == made - spread


def test_skipped_frames_cost_nothing():
    model = dataclasses.replace(Model(), skip=True)
    always, half = (cost.summary(model, {"w": np.ones(3, np.float32)}, (), rate) for rate in (1.0, 0.5))
    assert half["macs_per_frame"] == round(0.5 * sum(layer.macs for layer in cost.layers(model)))
    assert always["macs_per_frame"] == 966_656 + 256
    assert half["update_rate"] == 0.5
    assert cost.summary(Model(), {"w": np.ones(3, np.float32)}, (), 0.5)["update_rate"] == 1.0


def test_what_is_pruned_is_stored_with_its_index():
    """Against hand counts: 30 of 1,000 numbers by their columns, 300 of them by a bitmap, 990 of them whole."""
    for kept, index in ((30, 2 * 30 + 4 * 11), (300, 125), (990, None)):
        w = np.zeros(1000, np.float32)
        w[:kept] = 1.0
        found = cost.stored({"a.kernel.w": w.reshape(10, 100), "bias": np.zeros(7)}, ("*.kernel.w",))
        numbers = 1007 if index is None else kept + 7
        assert (found.numbers, found.index_bytes) == (numbers, index or 0)
        assert found.bytes == found.ideal_bytes + found.index_bytes == 4 * numbers + (index or 0)
        assert found.macs_saved == 1007 - numbers


def test_ram_is_all_states_and_the_largest_layer():
    layers = cost.layers(Model(units=(3, 2), hidden=5))
    found = cost.summary(Model(units=(3, 2), hidden=5), {}, (), 1.0)["ram_bytes"]
    assert found == 4 * (2 * 3 + 2 * 2 + max(128 + 2 * 12, 3 + 2 * 8, 2 + 5, 5 + 128))
    assert [layer.state for layer in layers] == [6, 4, 0, 0]


def test_a_layer_by_hand():
    """3 inputs, 2 units: 4 gates of 2 x (3 + 2) products and 2 biases; 13 operations a unit beside the biases."""
    row = cost.cell("l", Core(step=STEPS["lstm"]), 3, 2)
    assert (row.macs, row.parameters, row.bytes, row.elementwise) == (40, 48, 192, 8 + 26)
    row = cost.dense("d", 3, 2)
    assert (row.macs, row.parameters, row.bytes, row.elementwise) == (6, 8, 32, 4)


def test_every_cell_has_a_cost():
    assert {row.name for row in CELLS} == set(STEPS)
    with pytest.raises(KeyError):
        cost.layers(Model(cell="none"))  # pyright: ignore[reportArgumentType]
