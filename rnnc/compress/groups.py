"""Pruning of whole units with learned thresholds, and the smaller dense model that remains.

Every group is one unit of a recurrent layer or one neuron of the rectified layer, with all weights that vanish if it
is removed. All of it follows from one table: which axis of which parameter is indexed by which layer's units.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnc.compress.prune import NO_PARAMS, Params, Pruner, Table, matched, named, project, replaced
from rnnc.model import Model
from rnnc.structure import Dense

Array = jax.Array
Axes = dict[str, tuple[str | None, ...]]
DENSE = "dense"  # the layer of rectified neurons
SMALLEST_THRESHOLD = 1e-6


class Frozen(NamedTuple):
    """State of `Groups.wrap`: that of the optimiser inside, and which groups stay (all of them until `end`)."""

    inner: Any
    keep: Table


@dataclass(frozen=True, kw_only=True)
class Groups(Pruner):
    """Drop whole groups g of weights whose norm is below a threshold that their layer k learns.

    r_g = 1(||w_g|| >= tau_k),  w' = r w;  minimise  loss(w') + weight sum_g r_g ||w_g||

    Backward, 1(.) has the slope of a sigmoid of width 0.1 times the layer's median norm. A layer keeps its largest
    group whatever happens. At `end` the choice is final: dropped weights are zero, thresholds and penalty are off.

    With a `target`, the thresholds are f tau_k with one common factor f, set so that the share of all parameters that
    remains falls from 1 to the target along Zhu and Gupta's ramp; the layers still learn who gives how much.

    Args:
      weight: of the penalty, above 0; without a target the one knob of the size.
      target: share of the parameters that remains, met from below; 0: as many as the thresholds say.
      end: the step at which the choice is final.
      speed: thresholds move this many times faster than weights, above 0.
      only: patterns of the layers that may shrink: "layers.0", "layers.1", ... and "dense".

    >>> from flax import nnx
    >>> from rnnc.model import Enhancer
    >>> model = Model(units=(8,), hidden=8)
    >>> params = nnx.to_pure_dict(nnx.state(Enhancer(model, rngs=nnx.Rngs(0)), nnx.Param))
    >>> pruner = Groups(target=0.5, end=1)
    >>> tree = pruner.attach(params, model)
    >>> tx = pruner.wrap(optax.sgd(0.1))
    >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, tree), tx.init(tree), tree)
    >>> small, cut = pruner.finish(optax.apply_updates(tree, updates), model)
    >>> size(cut) <= 0.5 * size(params)
    True

    Source: TinyLSTMs, section 1.3 of our survey. Ours: what a group is, the initial thresholds (0.1 times the layer's
    smallest norm), the sigmoid's width, the largest group that stays, `target`, `speed` and `end`.
    """

    weight: float = 1e-4
    target: float = 0.0
    end: int = 1000
    speed: float = 10.0
    only: tuple[str, ...] = ("layers.*", DENSE)

    def __post_init__(self) -> None:
        for name in ("weight", "speed"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be above 0")
        if not 0 <= self.target < 1:
            raise ValueError(f"target: is {self.target}, must be 0 or more and below 1")
        if self.end < 1:
            raise ValueError(f"end: is {self.end}, must be 1 or more")

    def attach(self, params: Params, model: Model) -> Params:
        """{"model": the parameters, "tau": a number per layer (softplus gives the threshold), "step": 0}.

        Raises:
          ValueError: the model's matrices have no rows and columns to cut, or a pattern meets no layer.
        """
        check(model)
        chosen = matched(widths(params), self.only)
        start = {layer: 0.1 * jnp.min(norm) for layer, norm in norms(params).items() if layer in chosen}
        tau = {layer: jnp.log(jnp.expm1(jnp.maximum(t, SMALLEST_THRESHOLD))) for layer, t in start.items()}
        return {"model": params, "tau": tau, "step": jnp.zeros(())}

    def apply(self, tree: Params) -> Params:
        """The parameters with dropped groups at zero; differentiable in weights and thresholds."""
        learning = tree["step"] < self.end
        whole = tree["model"]
        return jax.tree.map(lambda a, b: jnp.where(learning, a, b), masked(whole, self.gates(tree)), whole)

    def penalty(self, tree: Params) -> Array:
        """weight sum_g r_g ||w_g||, over all layers that may shrink; 0 from `end` on."""
        size = norms(tree["model"])
        total = sum((jnp.sum(r * size[layer]) for layer, r in self.gates(tree).items()), start=jnp.zeros(()))
        return jnp.where(tree["step"] < self.end, self.weight * total, 0.0)

    def gates(self, tree: Params) -> Table:
        """r of each layer that may shrink: 0 or 1 forward, a sigmoid backward."""
        size, result = norms(tree["model"]), {}
        keep, factor = self.kept(tree)
        for layer, raw in tree["tau"].items():
            width = 0.1 * jax.lax.stop_gradient(jnp.median(size[layer])) + SMALLEST_THRESHOLD
            soft = jax.nn.sigmoid((size[layer] - factor * jax.nn.softplus(raw)) / width)
            result[layer] = keep[layer].astype(soft.dtype) + (soft - jax.lax.stop_gradient(soft))
        return result

    def kept(self, tree: Params) -> tuple[Table, Array]:
        """Which groups stay, and the common factor of the thresholds."""
        tree = jax.lax.stop_gradient(tree)
        size = norms(tree["model"])
        ratio = {layer: size[layer] / jax.nn.softplus(raw) for layer, raw in tree["tau"].items()}
        if self.target:
            return self._affordable(ratio, tree)
        return {layer: (r >= 1) | _first(r) for layer, r in ratio.items()}, jnp.ones(())

    def budget(self, params: Params, step: Array) -> Array:
        """How many parameters may remain after a number of steps."""
        full = size(params)
        t = jnp.clip(step / self.end, 0.0, 1.0)
        share = self.target + (1 - self.target) * (1 - t) ** 3
        return jnp.where(step < self.end, jnp.floor(share * full), float(int(self.target * full)))

    def _affordable(self, ratio: Table, tree: Params) -> tuple[Table, Array]:
        """The groups of the largest ||w_g|| / tau_k, as many as the budget allows, and the least ratio among them."""
        layers = list(ratio)
        flat = jnp.concatenate([ratio[layer] for layer in layers])
        needed = jnp.concatenate([_first(ratio[layer]) for layer in layers])
        owner = np.repeat(np.arange(len(layers)), [ratio[layer].size for layer in layers])
        order = jnp.argsort(jnp.where(needed, jnp.inf, flat), descending=True)
        one = jnp.asarray(np.eye(len(layers), dtype=np.int32)[owner])[order]
        _, counts = jax.lax.scan(lambda have, more: (have + more, have + more), jnp.zeros_like(one[0]), one)
        sizes = size(tree["model"], {layer: counts[:, i] for i, layer in enumerate(layers)})
        fit = jnp.sum(sizes.astype(jnp.float32) <= self.budget(tree["model"], tree["step"]))
        rank = jnp.zeros(flat.size, order.dtype).at[order].set(jnp.arange(flat.size, dtype=order.dtype))
        keep = needed | (rank < fit.astype(rank.dtype))
        parts = jnp.split(keep, np.cumsum([ratio[layer].size for layer in layers])[:-1])
        return dict(zip(layers, parts)), jnp.min(jnp.where(keep, flat, jnp.inf))

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """`tx` for the tree of `attach`; it counts the steps, and freezes the choice at `end`."""

        def init(params: Params) -> Frozen:
            keep = {layer: jnp.ones(n, bool) for layer, n in widths(params["model"]).items()}
            return Frozen(tx.init(params), keep)

        def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Frozen]:
            if params is None:
                raise ValueError(NO_PARAMS)
            changes: Any
            changes, inner = tx.update(updates, state.inner, params)
            learning = params["step"] < self.end
            tau = {layer: jnp.where(learning, self.speed * u, 0.0) for layer, u in changes["tau"].items()}
            changes = {**changes, "tau": tau, "step": jnp.ones(())}
            moved: Any = optax.apply_updates(params, changes)
            keep = jax.lax.cond(
                moved["step"] == self.end, lambda: {**state.keep, **self.kept(moved)[0]}, lambda: state.keep
            )
            masks = _masks(axes(params["model"]), keep, named(params["model"]))
            return {**changes, "model": project(changes["model"], params["model"], masks)}, Frozen(inner, keep)

        return optax.GradientTransformation(init, update)

    def finish(self, tree: Params, model: Model) -> tuple[Model, Params]:
        """The smaller model and its parameters: what `apply` gives, without the zeros."""
        tree = jax.tree.map(jnp.asarray, tree)
        if tree["step"] < self.end:
            keep = jax.jit(self.kept)(tree)[0]
        else:
            keep = {layer: (n > 0) | _first(n) for layer, n in norms(tree["model"]).items() if layer in tree["tau"]}
        return cut(model, tree["model"], keep)


def check(model: Model) -> None:
    """Raise ValueError where a model's recurrent matrices are not `Dense`: theirs have no columns to cut."""
    for side in ("kernel", "recurrent"):
        structure = getattr(model, side)
        if not isinstance(structure, Dense):
            raise ValueError(f"Groups: model.{side} is {structure}, must be Dense() to be cut unit by unit")


def widths(params: Params) -> dict[str, Any]:
    """Units of each recurrent layer and neurons of the rectified layer, by name."""
    layers = {f"layers.{k}": cell["recurrent"]["w"].shape[0] for k, (_, cell) in enumerate(_stack(params))}
    return {**layers, DENSE: params["dense"]["bias"].shape[0]}


def axes(params: Params) -> Axes:
    """Which layer's units index each axis of each parameter; an axis may hold them several times, gate by gate.

    A gate that skips frames reads the units of the last layer.

    Raises:
      ValueError: a parameter that is no part of an enhancer with dense matrices.
    """
    stack = _stack(params)
    last = len(stack) - 1
    table: Axes = {
        "layers.0.cell.gate.kernel": (f"layers.{last}", None),
        "layers.0.cell.gate.bias": (None,),
        "dense.kernel": (f"layers.{last}", DENSE),
        "dense.bias": (DENSE,),
        "mask.kernel": (DENSE, None),
        "mask.bias": (None,),
    }
    for k, (cell, _) in enumerate(stack):
        unit = f"layers.{k}"
        table[f"{cell}.kernel.w"] = (f"layers.{k - 1}" if k else None, unit)
        table[f"{cell}.recurrent.w"] = (unit, unit)
        table |= {f"{cell}.{name}": (unit,) for name in ("bias", "recurrent_bias")}
        table |= {f"{cell}.{name}": (None,) for name in ("alpha", "beta")}
    found = named(params)
    if unknown := sorted(found.keys() - table.keys()):
        raise ValueError(f"Groups: cannot tell which units {unknown[0]!r} belongs to; can cut {', '.join(table)}")
    return {path: table[path] for path in found}


@jax.jit
def norms(params: Params) -> Table:
    """||w_g|| of each group [units], by layer; a weight on two axes of one group counts once."""
    table, leaves = axes(params), named(params)
    squares = {layer: jnp.zeros(n) for layer, n in widths(params).items()}
    for path, layers in table.items():
        square = jnp.square(jnp.asarray(leaves[path], jnp.float32))
        for axis, layer in enumerate(layers):
            if layer is None:
                continue
            n = squares[layer].size
            if axis and layer == layers[0]:
                square = square * jnp.tile(1 - jnp.eye(n), (1, square.shape[1] // n))
            by_index = jnp.sum(square, axis=tuple(a for a in range(square.ndim) if a != axis))
            squares[layer] = squares[layer] + jnp.sum(by_index.reshape(-1, n), axis=0)
    some = {layer: s > 0 for layer, s in squares.items()}
    return {
        layer: jnp.where(some[layer], jnp.sqrt(jnp.where(some[layer], s, 1.0)), 0.0) for layer, s in squares.items()
    }


def masked(params: Params, gates: Table) -> Params:
    """The parameters times the gates of all groups they belong to; a layer without gates is left as it is."""
    table, leaves = axes(params), named(params)
    return replaced(params, {path: leaves[path] * mask for path, mask in _masks(table, gates, leaves).items()})


def size(params: Params, counts: dict[str, Any] | None = None) -> Any:
    """How many numbers the parameters are, if `counts` groups remain of the layers it names; counts may be arrays."""
    given, total = {**widths(params), **(counts or {})}, 0
    full, leaves = widths(params), named(params)
    for path, layers in axes(params).items():
        numbers = 1
        for n, layer in zip(leaves[path].shape, layers):
            numbers = numbers * (n if layer is None else n // full[layer] * given[layer])
        total = total + numbers
    return total


def cut(model: Model, params: Params, keep: Table) -> tuple[Model, Params]:
    """The model that has only the groups that `keep` names True, and its parameters.

    Its enhancer computes what the larger one computes from `masked` parameters, up to the rounding of shorter sums.

    Args:
      model: its sizes; its matrices must be `Dense`.
      params: nested dict of its parameters.
      keep: booleans [units] by layer; a layer that is not named stays whole.

    Raises:
      ValueError: nothing of a layer remains, or the matrices are not `Dense`.
    """
    check(model)
    chosen = {layer: np.asarray(keep.get(layer, np.ones(n, bool))) for layer, n in widths(params).items()}
    for layer, mask in chosen.items():
        if not mask.any():
            raise ValueError(f"Groups: {layer} would keep none of {mask.size} groups, must keep 1 or more")
    leaves, shorter = named(params), {}
    for path, layers in axes(params).items():
        leaf = np.asarray(leaves[path])
        for axis, layer in enumerate(layers):
            if layer is not None:
                leaf = np.compress(np.tile(chosen[layer], leaf.shape[axis] // chosen[layer].size), leaf, axis)
        shorter[path] = leaf
    *units, hidden = (int(mask.sum()) for mask in chosen.values())
    return dataclasses.replace(model, units=tuple(units), hidden=hidden), replaced(params, shorter)


def _masks(table: Axes, gates: Table, leaves: Table) -> Table:
    """The product of the gates on all axes of each leaf, in its shape; leaves without gates are left out."""
    result: Table = {}
    for path, layers in table.items():
        for axis, layer in enumerate(layers):
            if layer is None or layer not in gates:
                continue
            gate, shape = gates[layer], leaves[path].shape
            along = jnp.tile(gate, shape[axis] // gate.size).reshape(
                [-1 if a == axis else 1 for a in range(len(shape))]
            )
            whole = jnp.broadcast_to(along, shape)
            result[path] = result[path] * whole if path in result else whole
    return result


def _stack(params: Params) -> list[tuple[str, Params]]:
    """Path and parameters of each recurrent layer's cell, the lowest first; a gate that skips frames holds them all."""
    first = params["layers"][0]["cell"]
    if "gate" in first:
        return [(f"layers.0.cell.cells.{k}", cell) for k, cell in sorted(first["cells"].items())]
    return [(f"layers.{k}.cell", layer["cell"]) for k, layer in sorted(params["layers"].items())]


def _first(numbers: Array) -> Array:
    """True at the largest, of equal ones at the first."""
    return jnp.arange(numbers.size) == jnp.argmax(numbers)
