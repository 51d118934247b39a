"""One view foretold from another, under dictionaries that share which atoms are on (`rnnc.bayes.msbdl`).

link = learn(model, [noisy, clean], source=0, target=1)
codes = transform(model, [unseen, None])
clean = foretold(model, link, codes)             # [L, N_target]
power = prior_power(model, codes.gamma, 1)       # [L, N_target], for a Wiener gain
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rnnc.bayes.codes import Codes, Model, transform
from rnnc.bayes.coupled import owners

Array = jax.Array


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "bias"], meta_fields=["source", "target"])
@dataclass(frozen=True, kw_only=True)
class Link:
    """The affine map mu_target = W^T mu_source + b.

    Args:
      weight: W [M_source, M_target].
      bias: b [M_target].
      source, target: numbers of the two views.
    """

    weight: Array
    bias: Array
    source: int = 0
    target: int = 1


def learn(
    model: Model,
    views: Sequence[ArrayLike],
    *,
    source: int = 0,
    target: int = 1,
    kind: Literal["full", "own"] = "full",
    ridge: float = 1e-2,
    passes: int = 30,
) -> Link:
    """Fit the map by least squares with a ridge: from the mean that the source alone gives to the one that all give.

    Args:
      model: learned from these or other samples.
      views: [L, N_j] each; others than source and target may be None.
      source, target: which view is seen, which foretold.
      kind: "full": every atom may speak for every other. "own": only atoms of the same root.
      ridge: weight of |W|^2 against the mean square of the source's codes, above 0.
      passes: as for `transform`.

    >>> import numpy as np
    >>> model = Model(dictionaries=(jnp.eye(2),) * 2, noise=jnp.full(2, 0.01), scale=jnp.ones(2), prior=jnp.ones(2))
    >>> y = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    >>> link = learn(model, [y, 3 * y], ridge=1e-6)
    >>> seen = foretold(model, link, transform(model, [y, None]))
    >>> bool(jnp.mean(jnp.square(seen - 3 * y)) < 0.01 * jnp.mean(jnp.square(3 * y)))
    True

    Source: section 7.3 a of our survey. Given gamma alone the target's mean is zero, for the signs of its code are
    free; the map ties them to the source's.
    """
    count = len(model.dictionaries)
    if len(views) != count:
        raise ValueError(f"views: are {len(views)}, must be {count}")
    for name, view in (("source", source), ("target", target)):
        if not 0 <= view < count or views[view] is None:
            raise ValueError(f"{name}: is {view}, must be a view that is there, 0 to {count - 1}")
    if kind not in ("full", "own"):
        raise ValueError(f"kind: is {kind!r}, must be 'full' or 'own'")
    if not ridge > 0:
        raise ValueError(f"ridge: is {ridge}, must be above 0")
    x = transform(model, [y if j == source else None for j, y in enumerate(views)], passes).means[source]
    y = transform(model, views, passes).means[target]
    roots = owners([d.shape[1] for d in model.dictionaries])
    same = jnp.asarray(roots[source][:, None] == roots[target][None], x.dtype)
    mean_x, mean_y = jnp.mean(x, axis=0), jnp.mean(y, axis=0)
    x, y = x - mean_x[None], y - mean_y[None]
    square, cross = x.T @ x, x.T @ y
    weak = ridge * jnp.trace(square) / len(square) + jnp.finfo(x.dtype).tiny
    if kind == "full":
        weight = jnp.linalg.solve(square + weak * jnp.eye(len(square), dtype=x.dtype), cross)
    else:
        weight = jax.vmap(partial(_own, square, weak), in_axes=(1, 1), out_axes=1)(cross, same)
    return Link(weight=weight, bias=mean_y - mean_x @ weight, source=source, target=target)


def _own(square: Array, weak: Array, cross: Array, allowed: Array) -> Array:
    """The regression of one target atom on the source atoms that are allowed, [M_source]."""
    inner = square * allowed[:, None] * allowed[None] + jnp.diag(jnp.where(allowed > 0, weak, 1.0).astype(square.dtype))
    return jnp.linalg.solve(inner, cross * allowed)


def foretold(model: Model, link: Link, codes: Codes) -> Array:
    """The target view [L, N_target] from the codes of samples whose source view was seen.

    y_target = scale D_target (W^T mu_source + b)
    """
    mean = codes.means[link.source] @ link.weight + link.bias[None]
    return (mean @ model.dictionaries[link.target].T) * model.scale[link.target]


def prior_power(model: Model, gamma: Array, view: int) -> Array:
    """diag(D Gamma D^T) of a view in the units of its data, [L, N]: how much power its atoms may have in each number.

    G = power / (power + noise) is a Wiener gain.

    >>> model = Model(dictionaries=(jnp.eye(2),), noise=jnp.ones(1), scale=jnp.full(1, 2.0), prior=jnp.ones(2))
    >>> prior_power(model, jnp.array([[1.0, 3.0]]), 0).tolist()
    [[4.0, 12.0]]

    Source: section 7.3 a of our survey.
    """
    owner = owners([d.shape[1] for d in model.dictionaries])[view]
    return gamma[:, owner] @ jnp.square(model.dictionaries[view]).T * jnp.square(model.scale[view])
