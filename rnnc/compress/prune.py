"""Pruning by magnitude, and the face that every way of pruning shows to a training loop.

A mask multiplies any leaf of a parameter tree: a dense matrix, a low-rank or a Kronecker factor. Leaves are named by
their dotted paths ("layers.0.cell.kernel.w"). Masks live in the optimiser's state, so a checkpoint holds them.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array
Params = Any  # a tree of arrays
Table = dict[str, Array]  # leaves by their dotted paths
Model = TypeVar("Model")
MATRICES = ("*.kernel.w", "*.recurrent.w")
NO_PARAMS = "update: params is None, must be the parameters: tx.update(gradients, state, params)"


class Pruner:
    """What a training loop asks of a way of pruning; the answers here are those of one that works in place.

    tree = attach(params, model);  loss(apply(tree)) + penalty(tree) is minimised by wrap(tx);
    model, params = finish(tree, model).

    Args:
      end: the number of steps after which the support is final; what is trained on is a fine-tuning. A model of an
        earlier step is not yet as small as it was asked to be.
    """

    end: int = 0

    def attach(self, params: Params, model: Any) -> Params:
        """The tree that is trained, from the parameters of a model."""
        return params

    def apply(self, tree: Params) -> Params:
        """The parameters that the model sees; differentiable."""
        return tree

    def penalty(self, tree: Params) -> Array:
        """What is added to the loss, a scalar."""
        return jnp.zeros(())

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimiser of the tree, around any optimiser."""
        return tx

    def finish(self, tree: Params, model: Model) -> tuple[Model, Params]:
        """The model and its parameters, as they are stored."""
        return model, tree


class Masked(NamedTuple):
    """State of `Magnitude.wrap`: that of the optimiser inside, a mask for each pruned leaf, and the steps done."""

    inner: Any
    masks: Table
    count: Array


@dataclass(frozen=True, kw_only=True)
class Magnitude(Pruner):
    """Drop the smallest weights, ever more of them: after step k the share s_k of the blocks is zero.

    s_k = s - s (1 - t)^3,  t = (k - begin) / (end - begin) in 0 .. 1

    After `end` exactly round(s blocks) blocks are zero, of equal ones the first, and stay so.

    Args:
      sparsity: s, 0 or more and below 1.
      begin, end: first and last step of the ramp.
      every: steps between new masks.
      block: rows and columns that are kept or dropped together. A matrix is [inputs, outputs], y = x W: (4, 1) is four
        inputs of one output, (1, 4) one input of four outputs. The score of a block is its Euclidean norm.
      scope: "leaf": the share s of each leaf; "all": of all of them together.
      only: patterns of the leaves' dotted paths; "*.kernel.w" holds at any depth.

    Raises:
      ValueError: (from `init`) a pattern meets no leaf, or a block does not divide one.

    >>> params = {"kernel": {"w": jnp.arange(1.0, 9.0).reshape(2, 4)}}
    >>> tx = Magnitude(sparsity=0.5, end=1, only=("kernel.w",)).wrap(optax.sgd(1.0))
    >>> zeros = jax.tree.map(jnp.zeros_like, params)
    >>> updates, _ = tx.update(zeros, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"]["w"].tolist()
    [[0.0, 0.0, 0.0, 0.0], [5.0, 6.0, 7.0, 8.0]]

    Source: the ramp of Zhu and Gupta, section 2.5 of our survey, the baseline of the Kronecker papers. Ours: blocks,
    one threshold for all leaves, and that a dropped weight may come back until `end`, if a step makes it large.
    """

    sparsity: float = 0.9
    begin: int = 0
    end: int = 1000
    every: int = 20
    block: tuple[int, int] = (1, 1)
    scope: Literal["leaf", "all"] = "leaf"
    only: tuple[str, ...] = MATRICES

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity: is {self.sparsity}, must be 0 or more and below 1")
        if not 0 <= self.begin < self.end:
            raise ValueError(f"begin: is {self.begin}, must be 0 to {self.end - 1}, before end")
        if self.every < 1:
            raise ValueError(f"every: is {self.every}, must be 1 or more")
        if len(self.block) != 2 or min(self.block) < 1:
            raise ValueError(f"block: is {self.block}, must be two numbers from 1: rows and columns")

    def at(self, step: Array) -> Array:
        """The sparsity s_k after a number of steps."""
        t = jnp.clip((step - self.begin).astype(jnp.float32) / (self.end - self.begin), 0.0, 1.0)
        return self.sparsity * (1 - (1 - t) ** 3)

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """`tx`, after whose every step the dropped weights are exactly zero."""

        def init(params: Params) -> Masked:
            leaves = matched(params, self.only)
            for path, leaf in leaves.items():
                self._tiles(path, leaf)
            masks = {path: jnp.ones(leaf.shape, bool) for path, leaf in leaves.items()}
            return Masked(tx.init(params), masks, jnp.zeros((), jnp.int32))

        def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Masked]:
            if params is None:
                raise ValueError(NO_PARAMS)
            updates, inner = tx.update(updates, state.inner, params)
            step = state.count + 1
            moved = named(optax.apply_updates(params, updates))
            due = (step >= self.begin) & (step < self.end) & ((step - self.begin) % self.every == 0)
            masks = jax.lax.cond(
                due | (step == self.end),
                lambda: self.masks({path: moved[path] for path in state.masks}, step),
                lambda: state.masks,
            )
            return project(updates, params, masks), Masked(inner, masks, step)

        return optax.GradientTransformation(init, update)

    def masks(self, leaves: Table, step: Array) -> Table:
        """True where a weight stays after `step` steps."""
        scores = {path: self._scores(path, leaf) for path, leaf in leaves.items()}
        together = [scores] if self.scope == "all" else [{path: score} for path, score in scores.items()]
        kept = {}
        for some in together:
            blocks = sum(score.size for score in some.values())
            drop = jnp.round(self.at(step) * blocks).astype(jnp.int32)
            kept |= largest(some, jnp.where(step < self.end, drop, round(self.sparsity * blocks)))
        return {path: self._spread(kept[path]).reshape(leaf.shape) for path, leaf in leaves.items()}

    def _tiles(self, path: str, leaf: Array) -> Array:
        """[..., rows, columns] -> [matrices, rows of blocks, rows, columns of blocks, columns]."""
        (rows, columns), (r, c) = (1, 1, *leaf.shape)[-2:], self.block
        if rows % r or columns % c:
            raise ValueError(
                f"Magnitude: block is {self.block}, but {path} is {list(leaf.shape)}; must divide its last two axes"
            )
        return jnp.reshape(leaf, (-1, rows // r, r, columns // c, c))

    def _scores(self, path: str, leaf: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(self._tiles(path, leaf).astype(jnp.float32)), axis=(2, 4)))

    def _spread(self, kept: Array) -> Array:
        return jnp.repeat(jnp.repeat(kept, self.block[0], axis=1), self.block[1], axis=2)


def largest(scores: Table, drop: Array) -> Table:
    """True for the scores that remain when the `drop` smallest of all go; of equal ones the first go.

    >>> largest({"a": jnp.array([3.0, 1.0]), "b": jnp.array([1.0, 2.0])}, jnp.array(1))["a"].tolist()
    [True, False]
    """
    flat = jnp.concatenate([score.reshape(-1) for score in scores.values()])
    order = jnp.argsort(flat)  # stable
    kept = jnp.zeros(flat.size, bool).at[order].set(jnp.arange(flat.size) >= drop)
    at = np.cumsum([score.size for score in scores.values()])[:-1]
    parts = jnp.split(kept, at)
    return {path: part.reshape(score.shape) for part, (path, score) in zip(parts, scores.items())}


def project(updates: Params, params: Params, masks: Table) -> Params:
    """Updates after which masked weights are exactly zero: u where the mask is True, -w elsewhere."""
    u, w = named(updates), named(params)
    return replaced(updates, {path: jnp.where(mask, u[path], -w[path]) for path, mask in masks.items()})


def support(params: Params, only: Iterable[str] = ("*",)) -> Table:
    """True where a weight is not zero, for the leaves that the patterns meet.

    >>> support({"kernel": {"w": jnp.array([0.0, 2.0])}, "bias": jnp.zeros(2)}, ("kernel.*",))["kernel.w"].tolist()
    [False, True]
    """
    return {path: leaf != 0 for path, leaf in matched(params, only).items()}


def matched(params: Params, only: Iterable[str]) -> Table:
    """The leaves whose dotted paths one of the patterns meets ("*.w" meets "w" too).

    Raises:
      ValueError: a pattern meets no leaf.
    """
    leaves = named(params)
    chosen = {
        pattern: {path for path in leaves if fnmatchcase(path, pattern) or fnmatchcase(f".{path}", pattern)}
        for pattern in only
    }
    for pattern, found in chosen.items():
        if not found:
            near = difflib.get_close_matches(pattern.removeprefix("*."), leaves, 1, 0.0)
            hint = f" Nearest path: {near[0]!r}." if near else ""
            raise ValueError(f"only: {pattern!r} meets no leaf.{hint} Paths: {', '.join(leaves)}")
    return {path: leaf for path, leaf in leaves.items() if any(path in found for found in chosen.values())}


def named(params: Params) -> Table:
    """The leaves of a tree by their dotted paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def replaced(params: Params, table: Table) -> Params:
    """The tree with the leaves of `table` in place of its own."""
    leaves = named(params)
    return jax.tree.unflatten(jax.tree.structure(params), [table.get(path, leaf) for path, leaf in leaves.items()])
