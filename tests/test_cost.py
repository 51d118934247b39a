"""What `rnnc.cost` counts, against the parameters that are there and the products that are made."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from members import CELLS, count, each_cell, macs

from rnnc import cost
from rnnc.model import Enhancer, Model
from rnnc.steps import STEPS


def _models(name):
    return Model(cell=name), Model(cell=name, units=(7, 7, 7), hidden=11)


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
def test_parameters_are_those_of_the_enhancer(row):
    for model in _models(row.name):
        state = nnx.to_pure_dict(_shapes(model)[1])
        layers = cost.layers(model)
        parts = [*state["layers"].values(), state["dense"], state["mask"]]
        found = [sum(math.prod(a.shape) for a in jax.tree.leaves(part)) for part in parts]
        assert [layer.parameters for layer in layers] == found


@each_cell
def test_macs_are_the_products_of_one_frame(row):
    """All matrix products from features to gains, less the one that spreads bands over bins and has no weights."""
    for model in _models(row.name):
        graph, state = _shapes(model)
        frame = jnp.zeros((1, 1, model.bands.count))
        made = count(lambda state, x, graph=graph: nnx.merge(graph, state).gains(x), state, frame, of=macs)
        spread = np.prod(model.bands.spread(model.rate_hz, model.stft.bins).shape)
        assert sum(layer.macs for layer in cost.layers(model)) == made - spread


def test_a_layer_by_hand():
    """3 inputs, 2 units: 4 gates of 2 x (3 + 2) products and 2 biases; 13 operations a unit beside the biases."""
    row = cost.cell("l", STEPS["lstm"], Model().kernel, Model().recurrent, 3, 2)
    assert (row.macs, row.parameters, row.bytes, row.elementwise) == (40, 48, 192, 8 + 26)
    row = cost.dense("d", 3, 2)
    assert (row.macs, row.parameters, row.bytes, row.elementwise) == (6, 8, 32, 4)


def test_every_cell_has_a_cost():
    assert {row.name for row in CELLS} == set(STEPS)
    with pytest.raises(KeyError):
        cost.layers(Model(cell="none"))  # pyright: ignore[reportArgumentType]
