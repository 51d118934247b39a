"""Sparsity by reweighting: affine scaling of the weights, around any optimiser."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rnnc.compress.prune import MATRICES, NO_PARAMS, Params, Pruner, Table, largest, matched, named, project, replaced

Array = jax.Array
SMALLEST_SCALE = 1e-12  # a weight of a smaller scale is zero


class Scaled(NamedTuple):
    """State of `Affine.wrap`: that of the optimiser inside, the scale of each weight, and the steps done."""

    inner: Any
    scales: Table
    count: Array


@dataclass(frozen=True, kw_only=True)
class Affine(Pruner):
    """Affine-scaling sparsification: train q = w / S with plain decay, and renew the scale S from time to time.

    S = |w|^(1 - p/2), held for a round;  minimise f(S q) + weight ||q||^2 over q;  w = S q

    In all this minimises f(w) + weight' sum |w|^p: a weight near zero is pulled to it and hardly learns, a large one
    is nearly free. It goes from step `begin` to step `end`, where the small weights are dropped; before and after them
    training is plain.

    Args:
      p: 0 to 2; 1 is the sum of magnitudes, 0 of their logarithms, 2 plain weight decay.
      weight: of ||q||^2, 0 or more.
      begin: the step where the first round begins; below `end`.
      every: steps of a round. A new round begins with a fresh optimiser, but a learning-rate schedule goes on.
      end: the step of the drop.
      threshold: weights below this share of the largest of their leaf are dropped; 0 or more and below 1.
      sparsity: above 0: drop exactly round(sparsity * weights) of all leaves together instead, the smallest.
      group: what shares a scale and is dropped together: each "element", each "unit" (an output: a column of W
        [inputs, outputs]) or each "input" (a row). The size of a group is its norm; to drop an exact share, whose unit
        is then the group, the root of its mean square.
      only: patterns of the leaves' dotted paths; the others are trained as they are.

    Raises:
      ValueError: (from `init`) a pattern meets no leaf, or a leaf has no rows and columns to group.

    >>> params = {"w": jnp.array([1.0, 0.1])}
    >>> tx = Affine(weight=0.5, only=("w",)).wrap(optax.sgd(0.1))
    >>> updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
    >>> (10 * updates["w"] / params["w"]).round().tolist()
    [-1.0, -1.0]

    Source: AST (re-weighted learning), section 9 of our survey. Ours or recalled: the choice of S, rounds, threshold,
    groups, the exact share, and that it runs inside an optimiser.
    """

    p: float = 1.0
    weight: float = 1e-4
    begin: int = 0
    every: int = 150
    end: int = 3000
    threshold: float = 1e-3
    sparsity: float = 0.0
    group: Literal["element", "unit", "input"] = "element"
    only: tuple[str, ...] = MATRICES

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 2:
            raise ValueError(f"p: is {self.p}, must be 0 to 2")
        if not self.weight >= 0:
            raise ValueError(f"weight: is {self.weight}, must be 0 or more")
        for name in ("every", "end"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 1 or more")
        if not 0 <= self.begin < self.end:
            raise ValueError(f"begin: is {self.begin}, must be 0 or more and below end = {self.end}")
        for name in ("threshold", "sparsity"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 0 or more and below 1")

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """`tx`, working on q in place of w."""

        def init(params: Params) -> Scaled:
            leaves = matched(params, self.only)
            for path, leaf in leaves.items():
                if self.group != "element" and leaf.ndim < 2:
                    raise ValueError(
                        f"Affine: group is {self.group!r}, but {path} is {list(leaf.shape)}; needs two axes"
                    )
            scales = {path: jnp.ones_like(leaf) if self.begin else self.scale(leaf) for path, leaf in leaves.items()}
            return Scaled(tx.init(_divided(params, scales)), scales, jnp.zeros((), jnp.int32))

        def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Scaled]:
            if params is None:
                raise ValueError(NO_PARAMS)
            q, step = _divided(params, state.scales), state.count + 1
            decay = jnp.where((self.begin < step) & (step <= self.end), 2 * self.weight, 0.0)
            g, numbers = named(updates), named(q)
            pulled = {path: s * g[path] + decay.astype(s.dtype) * numbers[path] for path, s in state.scales.items()}
            dq, inner = tx.update(replaced(updates, pulled), state.inner, q)
            steps = named(dq)
            updates = replaced(dq, {path: s * steps[path] for path, s in state.scales.items()})
            moved = named(optax.apply_updates(params, updates))
            leaves = {path: moved[path] for path in state.scales}
            done = step - self.begin
            renew = ((done >= 0) & (done % self.every == 0) & (step < self.end)) | (step == self.end)
            scales = jax.lax.cond(renew, lambda: self._scales(leaves, step), lambda: state.scales)
            updates = project(updates, params, {path: s != 0 for path, s in scales.items()})
            inner = jax.lax.cond(
                renew,
                lambda: _renewed(inner, tx.init(_divided(optax.apply_updates(params, updates), scales))),
                lambda: inner,
            )
            return updates, Scaled(inner, scales, step)

        return optax.GradientTransformation(init, update)

    def scale(self, leaf: Array) -> Array:
        """S of a leaf, in its shape; zero below `SMALLEST_SCALE`."""
        scale = self._sizes(leaf) ** (1 - self.p / 2)
        return jnp.broadcast_to(jnp.where(scale < SMALLEST_SCALE, 0.0, scale), leaf.shape).astype(leaf.dtype)

    def keep(self, leaves: Table) -> Table:
        """True where a weight survives the drop."""
        sizes = {path: self._sizes(leaf) for path, leaf in leaves.items()}
        if self.sparsity:
            means = {path: size / (leaves[path].size / size.size) ** 0.5 for path, size in sizes.items()}
            drop = round(self.sparsity * sum(size.size for size in sizes.values()))
            kept = largest(means, jnp.array(drop))
        else:
            kept = {path: size >= self.threshold * jnp.max(size) for path, size in sizes.items()}
        return {path: jnp.broadcast_to(kept[path], leaf.shape) for path, leaf in leaves.items()}

    def _scales(self, leaves: Table, step: Array) -> Table:
        """Those of the next round, or the final support as zeros and ones."""

        def final() -> Table:
            return {path: keep.astype(leaves[path].dtype) for path, keep in self.keep(leaves).items()}

        return jax.lax.cond(step == self.end, final, lambda: {path: self.scale(leaf) for path, leaf in leaves.items()})

    def _sizes(self, leaf: Array) -> Array:
        """The norm of each group, [..., 1, columns] or [..., rows, 1]; of an element, its magnitude."""
        if self.group == "element":
            return jnp.abs(leaf)
        return jnp.linalg.norm(leaf, axis={"unit": -2, "input": -1}[self.group], keepdims=True)


def _divided(params: Params, scales: Table) -> Params:
    """q = w / S, zero where S is."""
    w = named(params)
    return replaced(
        params, {path: jnp.where(s == 0, 0.0, w[path] / jnp.where(s == 0, 1.0, s)) for path, s in scales.items()}
    )


def _renewed(state: Any, fresh: Any) -> Any:
    """The fresh state of an optimiser, but with the steps that its schedules have counted."""

    def schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(lambda old, new: old if schedule(old) else new, state, fresh, is_leaf=schedule)
