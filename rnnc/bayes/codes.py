"""Codes of samples under dictionaries of several views that share which atoms are on; views may be missing."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rnnc.bayes.coupled import SMALLEST_GAMMA, infer

Array = jax.Array
CHUNK = 1024  # samples that `transform` takes at once
T = TypeVar("T")


class Codes(NamedTuple):
    """gamma [L, M], and mu_j [L, M_j] of each view; zero for a view that is not there."""

    gamma: Array
    means: tuple[Array, ...]


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True, kw_only=True)
class Model:
    """What `transform` needs.

    Args:
      dictionaries: [N_j, M_j] each, of views that are divided by their scale.
      noise: [J], variance of the noise in each number of a view that is divided by its scale.
      scale: [J], root of the mean energy |y|^2 of the samples that were learned from.
      prior: [M], mean of gamma over them.
    """

    dictionaries: tuple[Array, ...]
    noise: Array
    scale: Array
    prior: Array


def arrays(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a `Model` or a state by name, as `np.savez` takes them.

    >>> model = Model(dictionaries=(jnp.eye(2),), noise=jnp.ones(1), scale=jnp.ones(1), prior=jnp.ones(2))
    >>> sorted(arrays(model))
    ['dictionaries.0', 'noise', 'prior', 'scale']
    """
    found = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        several = isinstance(value, tuple)
        found |= {f"{field.name}.{i}": a for i, a in enumerate(value)} if several else {field.name: value}
    return {name: np.asarray(array) for name, array in found.items()}


def restored(kind: type[T], table: Mapping[str, np.ndarray]) -> T:
    """The `Model` or state whose `arrays` these are.

    Raises:
      ValueError: an array is missing.
    """
    views = max(1, sum(name.startswith("dictionaries.") for name in table))
    several = ("dictionaries", "cross", "square")
    try:
        return kind(
            **{
                field.name: tuple(jnp.asarray(table[f"{field.name}.{j}"]) for j in range(views))
                if field.name in several
                else jnp.asarray(table[field.name])
                for field in dataclasses.fields(cast(Any, kind))
            }
        )
    except KeyError as missing:
        raise ValueError(f"restored: array {missing} is missing; given: {', '.join(sorted(table))}") from None


def transform(model: Model, views: Sequence[ArrayLike | None], passes: int = 30) -> Codes:
    """Codes of samples under learned dictionaries; a view that is None says nothing about gamma.

    Args:
      model: what was learned.
      views: [L, N_j] each, or None; at least one is there.
      passes: EM steps of gamma, which begins at the mean of those learned.

    >>> model = Model(dictionaries=(jnp.eye(2),) * 2, noise=jnp.full(2, 0.01), scale=jnp.ones(2), prior=jnp.ones(2))
    >>> gamma, means = transform(model, [np.array([[2.0, 0.0]]), None])
    >>> (gamma > 0.1).tolist(), means[0].round(1).tolist(), means[1].tolist()
    ([[True, False]], [[2.0, 0.0]], [[0.0, 0.0]])
    """
    if passes < 0:
        raise ValueError(f"passes: is {passes}, must be 0 or more")
    given = fitting(model, views, some=True)
    count = next(len(y) for y in given if y is not None)
    parts = [
        jax.block_until_ready(  # see `coupled.in_turn`
            _coded(model, tuple(None if y is None else jnp.asarray(y[at : at + CHUNK]) for y in given), passes)
        )
        for at in range(0, count, CHUNK)
    ]
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)


@partial(jax.jit, static_argnames="passes")
def _coded(model: Model, views: tuple[Array | None, ...], passes: int) -> Codes:
    count = next(len(y) for y in views if y is not None)
    ready = [None if y is None else y / s for y, s in zip(views, model.scale)]
    gamma = jnp.broadcast_to(jnp.maximum(model.prior, SMALLEST_GAMMA)[None], (count, len(model.prior)))
    return Codes(*infer(model.dictionaries, model.noise, gamma, ready, passes))


def fitting(model: Model, views: Sequence[ArrayLike | None], some: bool = False) -> list[Any]:
    """As `checked`, and each view has as many numbers as the atoms of its dictionary."""
    found = checked(views, [d.shape[1] for d in model.dictionaries], some)
    for j, (y, d) in enumerate(zip(found, model.dictionaries)):
        if y is not None and y.shape[1] != len(d):
            raise ValueError(f"views[{j}]: has {y.shape[1]} numbers a sample, must have {len(d)}")
    return [None if y is None else y.astype(d.dtype) for y, d in zip(found, model.dictionaries)]


def checked(views: Sequence[ArrayLike | None], atoms: Sequence[int], some: bool = False) -> list[Any]:
    """The views as arrays of one float dtype; None stays where only some need to be there."""
    if len(views) != len(atoms):
        raise ValueError(f"views: are {len(views)}, must be {len(atoms)}, one for each number of atoms")
    found = [None if some and y is None else np.asarray(y) for y in views]
    there = [(j, y) for j, y in enumerate(found) if y is not None]
    if not there:
        raise ValueError("views: none is there, must be one or more")
    for j, y in there:
        if y.ndim != 2 or not y.size or y.dtype.kind not in "fiu":
            raise ValueError(f"views[{j}]: is {y.dtype} {list(y.shape)}, must be real numbers [samples, size]")
        if len(y) != len(there[0][1]):
            raise ValueError(f"views[{j}]: has {len(y)} samples, must have {len(there[0][1])} like the first")
        if not some and not np.any(y):
            raise ValueError(f"views[{j}]: is silent, must hold a sample that is not zero")
    wide = np.result_type(np.float32, *(y.dtype for _, y in there if y.dtype.kind == "f"))
    dtype = jax.dtypes.canonicalize_dtype(wide)
    with np.errstate(over="ignore"):
        found = [None if y is None else y.astype(dtype) for y in found]
    for j, y in enumerate(found):
        if y is not None and not np.all(np.isfinite(y)):
            raise ValueError(f"views[{j}]: holds NaN, infinity or what {dtype} cannot hold, must be finite")
    return found
