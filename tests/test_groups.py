"""Laws of pruning by whole units: what a group is, how thresholds learn, and that the cut model computes the same."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from members import assert_close, assert_equal, normal, quick

from rnnc.audio.stft import Bands, Stft
from rnnc.compress import groups
from rnnc.compress.groups import Groups, cut, masked, norms, size, widths
from rnnc.compress.prune import named
from rnnc.model import Enhancer, Model
from rnnc.structure import LowRank
from rnnc.train import checkpoint

SMALL = Model(stft=Stft(window=64, hop=32), bands=Bands(count=7, low_hz=300.0, high_hz=7000.0))
MODELS = (
    dataclasses.replace(SMALL, cell="lstm", units=(6, 8), hidden=5),
    dataclasses.replace(SMALL, cell="gru", units=(9,), hidden=4),
    dataclasses.replace(SMALL, cell="fastrnn", units=(5, 6, 7), hidden=8),
    dataclasses.replace(SMALL, cell="gru", units=(4, 5), hidden=6, skip=True),
)
each_model = pytest.mark.parametrize("model", MODELS, ids=["lstm", "gru", "fastrnn", "skip"])
END = 8


@functools.cache
def _params(model: Model) -> Any:
    """Parameters of an enhancer, none of them zero."""
    shapes = nnx.state(nnx.eval_shape(lambda: Enhancer(model, rngs=nnx.Rngs(0))), nnx.Param)
    leaves, structure = jax.tree.flatten(nnx.to_pure_dict(shapes))
    return jax.tree.unflatten(structure, [0.4 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


@functools.cache
def _run_gains(model: Model) -> Any:
    graph = nnx.split(nnx.eval_shape(lambda: Enhancer(model, rngs=nnx.Rngs(0))), nnx.Param)[0]
    return quick(lambda params, features: nnx.merge(graph, params).gains(features)[1])


def _gains(model: Model, params: Any) -> jax.Array:
    return _run_gains(model)(params, normal(99, 6, 2, model.bands.count))


def _keep(model: Model, seed: int = 3) -> Any:
    """About half of the groups of each layer, and one of them at least."""
    drawn = {layer: np.random.default_rng(seed).random(n) < 0.5 for layer, n in widths(_params(model)).items()}
    return {layer: jnp.asarray(mask | (np.arange(mask.size) == 1)) for layer, mask in drawn.items()}


def _floats(keep: Any) -> Any:
    return {layer: mask.astype(jnp.float32) for layer, mask in keep.items()}


# --- groups -------------------------------------------------------------------------------------------------


@each_model
def test_the_cut_model_computes_what_the_masked_one_does(model):
    """To float32's rounding of sums of at most 20 terms, through the steps: 1e-5 of gains of about one half."""
    params, keep = _params(model), _keep(model)
    small, shorter = cut(model, params, keep)
    assert small.units == tuple(int(keep[f"layers.{k}"].sum()) for k in range(len(model.units)))
    assert small.hidden == int(keep["dense"].sum())
    whole = _gains(model, params)
    found, wanted = _gains(small, shorter), _gains(model, masked(params, _floats(keep)))
    assert_close(found, wanted, 1e-5)
    assert float(jnp.max(jnp.abs(whole - wanted))) > 1e-2


@each_model
def test_a_group_is_all_that_vanishes_with_its_unit(model):
    """Its size and norm are those of what the cut takes away."""
    params = _params(model)
    square = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in named(params).values())
    found = norms(params)
    for layer, n in widths(params).items():
        for unit in range(n):
            _, rest = cut(model, params, {layer: jnp.arange(n) != unit})
            left = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in named(rest).values())
            # float32 sums of squares, of about a hundred numbers
            assert float(found[layer][unit]) == pytest.approx(np.sqrt(square - left), rel=1e-5)
            assert sum(leaf.size for leaf in named(rest).values()) == size(params, {layer: n - 1})


def test_the_published_count_of_a_unit():
    """4 (n + m + 1) + 4 (m - 1) numbers of its LSTM layer, and 4 of each unit of the next or one of each neuron."""
    model, params = MODELS[0], _params(MODELS[0])
    (m, after), n, hidden = model.units, model.bands.count, model.hidden
    first, second = (size(params) - size(params, {f"layers.{k}": model.units[k] - 1}) for k in (0, 1))
    assert first == 4 * (n + m + 1) + 4 * (m - 1) + 4 * after
    assert second == 4 * (m + after + 1) + 4 * (after - 1) + hidden


@each_model
def test_size_counts_numbers(model):
    params, keep = _params(model), _keep(model)
    assert size(params) == sum(leaf.size for leaf in named(params).values())
    counts = {layer: int(mask.sum()) for layer, mask in keep.items()}
    assert size(params, counts) == sum(leaf.size for leaf in named(cut(model, params, keep)[1]).values())


# --- thresholds ---------------------------------------------------------------------------------------------


@each_model
def test_thresholds_begin_below_every_group(model):
    params, pruner = _params(model), Groups()
    tree = pruner.attach(params, model)
    for layer, norm in norms(params).items():
        assert float(jax.nn.softplus(tree["tau"][layer])) == pytest.approx(0.1 * float(norm.min()), rel=1e-5)
    assert_equal(quick(pruner.apply)(tree), params)
    total = sum(float(norm.sum()) for norm in norms(params).values())
    assert float(quick(pruner.penalty)(tree)) == pytest.approx(1e-4 * total, rel=1e-5)


def _raised(pruner: Groups, model: Model) -> Any:
    """A tree whose thresholds are 0.97 times the layers' median norms."""
    tree = pruner.attach(_params(model), model)
    middle = {layer: 0.97 * jnp.median(norm) for layer, norm in norms(tree["model"]).items()}
    return {**tree, "tau": {layer: jnp.log(jnp.expm1(t)) for layer, t in middle.items()}}


@each_model
def test_groups_below_the_threshold_are_off(model):
    pruner = Groups(weight=0.5)
    tree = _raised(pruner, model)
    wanted = {layer: norm >= 0.97 * jnp.median(norm) for layer, norm in norms(tree["model"]).items()}
    assert_equal(quick(pruner.apply)(tree), masked(tree["model"], _floats(wanted)))
    total = sum(float(jnp.sum(jnp.where(wanted[k], norm, 0.0))) for k, norm in norms(tree["model"]).items())
    assert float(quick(pruner.penalty)(tree)) == pytest.approx(0.5 * total, rel=1e-5)


def test_the_gradient_of_a_gate_is_that_of_a_sigmoid():
    """d r_g / d tau = -s (1 - s) / width with s = sigmoid((norm - tau) / width), width = 0.1 median norm."""
    model, pruner = MODELS[0], Groups()
    tree = _raised(pruner, model)
    norm = np.asarray(norms(tree["model"])["dense"], np.float64)
    tau, width = 0.97 * np.median(norm), 0.1 * np.median(norm)
    s = 1 / (1 + np.exp(-(norm - tau) / width))
    found = quick(jax.jacobian(lambda raw: pruner.gates({**tree, "tau": {**tree["tau"], "dense": raw}})["dense"]))(
        tree["tau"]["dense"]
    )
    inner = 1 - np.exp(-tau)  # softplus' at its inverse of tau
    np.testing.assert_allclose(found, -s * (1 - s) / width * inner, rtol=1e-3)  # e-4 of the width in tau

    def gate(bias: jax.Array) -> jax.Array:
        whole = tree["model"]
        return pruner.gates({**tree, "model": {**whole, "dense": {**whole["dense"], "bias": bias}}})["dense"]

    bias = np.asarray(tree["model"]["dense"]["bias"])
    slopes = np.diag(quick(jax.jacobian(gate))(jnp.asarray(bias)))
    np.testing.assert_allclose(slopes, s * (1 - s) / width * bias / norm, rtol=1e-3)


def test_a_layer_keeps_its_largest_group():
    model, pruner = MODELS[0], Groups()
    tree = pruner.attach(_params(model), model)
    tree["tau"] = {layer: jnp.array(100.0) for layer in tree["tau"]}
    for layer, gate in quick(pruner.gates)(tree).items():
        assert np.flatnonzero(gate).tolist() == [int(np.argmax(norms(tree["model"])[layer]))]


def test_gradients_are_finite_where_a_group_is_zero():
    model, pruner = MODELS[1], Groups(target=0.5, end=END)
    keep = _floats(_keep(model))
    tree = {**pruner.attach(_params(model), model), "model": masked(_params(model), keep)}
    total = lambda t: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(pruner.apply(t))) + pruner.penalty(t)
    for leaf in jax.tree.leaves(quick(jax.grad(total))(tree)):
        assert np.isfinite(leaf).all()


# --- runs ---------------------------------------------------------------------------------------------------


@functools.cache
def _training(pruner: Groups) -> Any:
    """tree -> state, and (tree, state) -> the next of both: towards given parameters."""
    inner = optax.adam(0.02)

    def update(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            return inner.update(*args)

    tx = pruner.wrap(optax.GradientTransformation(inner.init, update))

    def loss(tree: Any) -> jax.Array:
        seen = named(pruner.apply(tree)).values()
        far = (jnp.square(w.ravel() - 0.5 * jnp.sin(jnp.arange(w.size, dtype=w.dtype))) for w in seen)
        return sum(map(jnp.sum, far), start=jnp.zeros(())) + pruner.penalty(tree)

    def advance(tree: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(tree), state, tree)
        return optax.apply_updates(tree, updates), state

    return quick(tx.init), quick(advance)


def _run(pruner: Groups, tree: Any, state: Any, steps: int) -> Any:
    for _ in range(steps):
        tree, state = _training(pruner)[1](tree, state)
    return tree, state


RUNS = (
    (Groups(weight=1e-3, target=0.4, end=END, only=("layers.0", "dense")), MODELS[0]),
    (Groups(weight=0.3, end=END, speed=100.0), MODELS[1]),
)
each_run = pytest.mark.parametrize(("pruner", "model"), RUNS, ids=["target", "thresholds"])


@each_run
def test_what_is_stored_is_what_was_trained(pruner, model):
    """Before the end and after it; then the choice stays, and only what is kept learns."""
    tree = pruner.attach(_params(model), model)
    state = _training(pruner)[0](tree)
    for steps in (END - 2, 2, 3):
        tree, state = _run(pruner, tree, state, steps)
        small, shorter = pruner.finish(tree, model)
        assert_close(_gains(small, shorter), _gains(model, quick(pruner.apply)(tree)), 1e-5)  # as in the law of the cut
    zeros = {path: np.asarray(leaf) == 0 for path, leaf in named(tree["model"]).items()}
    assert float(quick(pruner.penalty)(tree)) == 0.0
    later, _ = _run(pruner, tree, state, 2)
    for path, leaf in named(later["model"]).items():
        np.testing.assert_array_equal(np.asarray(leaf) == 0, zeros[path])
        assert not (np.asarray(leaf) == np.asarray(named(tree["model"])[path]))[~zeros[path]].any()
    assert_equal(later["tau"], tree["tau"])
    assert size(shorter) < 0.9 * size(_params(model))
    for layer in set(widths(_params(model))) - set(tree["tau"]):
        assert widths(shorter)[layer] == widths(_params(model))[layer]


@each_run
def test_a_run_that_was_stopped_ends_with_the_same_bits(pruner, model, tmp_path):
    start = pruner.attach(_params(model), model)
    state = _training(pruner)[0](start)
    whole = _run(pruner, start, state, END + 4)
    for stop in (END - 3, END + 1):
        checkpoint.save(tmp_path / str(stop), stop, _run(pruner, start, state, stop))
        found = checkpoint.restore(tmp_path / str(stop), (start, state))
        assert found
        assert_equal(_run(pruner, *found[1], END + 4 - stop), whole)


@pytest.mark.parametrize(
    ("model", "target"), tuple(zip(MODELS, (0.2, 0.34, 0.8, 0.5))), ids=["lstm", "gru", "fastrnn", "skip"]
)
def test_a_target_is_met_from_below_by_the_largest_ratios(model, target):
    pruner, params = Groups(target=target, end=END), _params(model)
    tree = {**pruner.attach(params, model), "step": jnp.array(float(END))}
    keep = {layer: np.asarray(mask) for layer, mask in quick(pruner.kept)(tree)[0].items()}
    assert size(params, {layer: mask.sum() for layer, mask in keep.items()}) <= target * size(params)
    ratio = {k: np.asarray(n / jax.nn.softplus(tree["tau"][k])) for k, n in norms(params).items()}
    best = max((r, layer) for layer, mask in keep.items() for r in ratio[layer][~mask])
    more = {layer: mask.sum() + (layer == best[1]) for layer, mask in keep.items()}
    assert size(params, more) > target * size(params)
    for layer, mask in keep.items():
        assert mask[np.argmax(ratio[layer])]
        others = mask & (np.arange(mask.size) != np.argmax(ratio[layer]))
        assert not others.any() or ratio[layer][others].min() >= best[0]


@pytest.mark.parametrize("step", [0, 3, 7, 8, 30])
def test_the_budget_falls_along_the_ramp(step):
    pruner, params = Groups(target=0.3, end=8), _params(MODELS[0])
    t = min(step / 8, 1.0)
    wanted = (0.3 + 0.7 * (1 - t) ** 3) * size(params)
    assert abs(float(pruner.budget(params, jnp.array(float(step)))) - wanted) <= 1  # it is a whole number


# --- errors -------------------------------------------------------------------------------------------------


def test_only_dense_matrices_are_cut():
    model = dataclasses.replace(MODELS[0], kernel=LowRank(rank=2))
    with pytest.raises(ValueError, match=r"model\.kernel is LowRank\(.*must be Dense\(\)"):
        Groups().attach(_params(MODELS[0]), model)
    with pytest.raises(ValueError, match=r"model\.kernel is LowRank\("):
        cut(model, _params(MODELS[0]), _keep(MODELS[0]))


def test_a_parameter_of_unknown_place_is_named():
    params = {**_params(MODELS[0]), "rate": {"kernel": jnp.ones(8)}}
    with pytest.raises(ValueError, match=r"which units 'rate\.kernel' belongs to; can cut .*layers\.1\.cell\.ker"):
        groups.axes(params)


def test_a_layer_needs_a_group():
    with pytest.raises(ValueError, match=r"layers\.1 would keep none of 8 groups, must keep 1 or more"):
        cut(MODELS[0], _params(MODELS[0]), {"layers.1": jnp.zeros(8, bool)})


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match=r"'layers\.2' meets no leaf\. Nearest path: 'layers\..'"):
        Groups(only=("layers.2",)).attach(_params(MODELS[0]), MODELS[0])


@pytest.mark.parametrize(("name", "value"), [("weight", 0.0), ("speed", -1.0), ("target", 1.0), ("end", 0)])
def test_ranges(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: is {value}, must be"):
        Groups(**{name: value})
