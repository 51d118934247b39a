"""Views of one thing that share which atoms are on: the posterior of their codes, and the variances they share.

y_j = D_j x_j + v_j,  x_j[m] ~ N(0, gamma[owner_j[m]]),  v_j ~ N(0, noise_j I)

gamma [B, M] belongs to root atoms and is common to all views. Every atom of a view is owned by one root: by its own
where all views have as many atoms (one to one), by that of its group where they have not (atom to subspace).
B is the batch, N_j the size of view j, M_j its atoms. The dtype is that of the arrays.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Owner = np.ndarray
SMALLEST_GAMMA = 1e-10  # of views whose mean energy is 1


class Posterior(NamedTuple):
    """What one view says about its code x [B, M_j], given gamma.

    Args:
      mean: mu [B, M_j].
      variance: the diagonal of Sigma [B, M_j].
      root: A [B, N_j, M_j] with Sigma = Gamma - Gamma A^T A Gamma.
      cost: log |S| + y^T S^-1 y [B] for S = noise I + D Gamma D^T: -2 log p(y), but for a constant.
    """

    mean: Array
    variance: Array
    root: Array
    cost: Array


def owners(atoms: Sequence[int]) -> tuple[Owner, ...]:
    """The root of each atom, [M_j] for each view; a view with the fewest atoms has one for each root.

    A view of more atoms gives its first ones to the first root, and so on, in groups as equal as they can be.

    >>> [owner.tolist() for owner in owners((2, 5))]
    [[0, 1], [0, 0, 0, 1, 1]]

    Source: MSBDL, section 7.1 of our survey. Recalled: that a root which is off turns its group off.
    Ours: which view holds the roots, and that groups are equal.
    """
    return tuple(np.arange(count) * min(atoms) // count for count in atoms)


def posterior(dictionary: Array, variances: Array, noise: Array, y: Array) -> Posterior:
    """The posterior of x, by one N x N Cholesky factor for each sample.

    S = noise I + D Gamma D^T = C C^T,  A = C^-1 D,  mu = Gamma A^T C^-1 y,  Sigma = Gamma - Gamma A^T A Gamma

    Args:
      dictionary: D [N, M].
      variances: the diagonal of Gamma [B, M], above 0.
      noise: variance of v, a scalar above 0; where it is below 4 eps of the trace of D Gamma D^T, which no factor
        bears, it is taken as that.
      y: [B, N].

    >>> p = posterior(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.array(1.0), jnp.array([[4.0]]))
    >>> round(float(p.mean[0, 0]), 5), round(float(p.variance[0, 0]), 5)
    (2.0, 0.5)

    Source: MSBDL, section 7.1 of our survey.
    """
    n, m = dictionary.shape
    pairs = (dictionary[:, None, :] * dictionary[None, :, :]).reshape(n * n, m)  # D Gamma D^T as one matrix product
    eye = jnp.eye(n, dtype=y.dtype)[None]
    energy = variances @ jnp.sum(jnp.square(dictionary), axis=0)  # the trace of D Gamma D^T
    level = jnp.maximum(noise, 4 * jnp.finfo(y.dtype).eps * energy)
    factor = jnp.linalg.cholesky((variances @ pairs.T).reshape(-1, n, n) + level[:, None, None] * eye)
    whiten = lax.linalg.triangular_solve(factor, jnp.broadcast_to(eye, factor.shape), left_side=True, lower=True)
    root = (whiten.reshape(-1, n) @ dictionary).reshape(-1, n, m)
    white = jnp.einsum("bij,bj->bi", whiten, y)
    mean = variances * jnp.einsum("bnm,bn->bm", root, white)
    variance = jnp.maximum(variances - jnp.square(variances) * jnp.sum(jnp.square(root), axis=1), 0)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)
    return Posterior(mean, variance, root, log_det + jnp.sum(jnp.square(white), axis=1))


def in_turn(
    dictionaries: Sequence[Array], variances: Sequence[Array], noise: Array, y: Sequence[Array]
) -> list[Posterior]:
    """`posterior` of each view [B, N_j] under its noise [J], each after the one before.

    The order is no matter of mathematics: a batched factor of jaxlib holds a thread of XLA's pool while it waits for
    its parts, so that two at once, where there are two threads, wait for ever. Zero times a result of the view before
    is a zero that must be waited for.

    >>> one, two = in_turn([jnp.eye(2)] * 2, [jnp.ones((1, 2))] * 2, jnp.ones(2), [jnp.ones((1, 2)), jnp.zeros((1, 2))])
    >>> one.mean.round(3).tolist(), two.mean.tolist()
    ([[0.5, 0.5]], [[0.0, 0.0]])
    """
    found: list[Posterior] = []
    for j, given in enumerate(zip(dictionaries, variances, y)):
        level = noise[j] + 0 * found[-1].cost[0] if found else noise[j]
        found.append(posterior(*given[:2], level, given[2]))
    return found


def second_moment(found: Posterior, variances: Array) -> Array:
    """sum over the batch of Sigma + mu mu^T, [M, M].

    >>> p = posterior(jnp.ones((1, 1)), jnp.ones((2, 1)), jnp.array(1.0), jnp.array([[4.0], [0.0]]))
    >>> second_moment(p, jnp.ones((2, 1))).round(4).tolist()
    [[5.0]]
    """
    spread = (found.root * variances[:, None, :]).reshape(-1, variances.shape[1])
    return jnp.diag(jnp.sum(variances, axis=0)) - spread.T @ spread + found.mean.T @ found.mean


def gathered(values: Array, owner: Owner, roots: int) -> Array:
    """Sums [B, M] of values [B, M_j] over the atoms of each root.

    >>> gathered(jnp.array([[1.0, 2.0, 4.0]]), np.array([0, 0, 1]), 2).tolist()
    [[3.0, 4.0]]
    """
    if values.shape[1] == roots:
        return values
    return values @ jnp.asarray(owner[:, None] == np.arange(roots)[None], values.dtype)


def group_mean(values: Sequence[Array], owner: Sequence[Owner], roots: int) -> Array:
    """Means [B, M] of values [B, M_j] over all atoms of each root in all views.

    >>> group_mean([jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 5.0, 6.0]])], owners((2, 3)), 2).tolist()
    [[3.0, 4.0]]
    """
    count = sum(np.bincount(who, minlength=roots) for who in owner)
    total = sum(gathered(each, who, roots) for each, who in zip(values, owner))
    return jnp.asarray(total) / jnp.asarray(count, values[0].dtype)[None]


def shared(found: Sequence[Posterior], owner: Sequence[Owner], roots: int) -> Array:
    """The EM step of gamma [B, M]: the mean of mu^2 + Sigma over all atoms of a root in the views given.

    Source: MSBDL, section 7.1 of our survey; there for one-to-one coupling. Ours: the mean over groups, which is the
    exact step for variances that a group shares.
    """
    power = [jnp.square(one.mean) + one.variance for one in found]
    return jnp.maximum(group_mean(power, owner, roots), SMALLEST_GAMMA)


def infer(
    dictionaries: Sequence[Array],
    noise: Array,
    gamma: Array,
    views: Sequence[Array | None],
    passes: int,
) -> tuple[Array, tuple[Array, ...]]:
    """Fit gamma to the views that are there.

    Args:
      dictionaries: [N_j, M_j] each.
      noise: [J].
      gamma: [B, M], where the EM passes begin.
      views: [B, N_j] each, or None; at least one is there.
      passes: steps of EM over gamma, 0 or more.

    Returns:
      gamma [B, M], and mu_j [B, M_j] of each view under it. The mean of a view that is not there is zero: given gamma,
      views are independent.
    """
    owner = owners([d.shape[1] for d in dictionaries])
    there = [j for j, y in enumerate(views) if y is not None]

    def look(gamma: Array) -> list[Posterior]:
        seen = [jnp.asarray(views[j]) for j in there]
        return in_turn(
            [dictionaries[j] for j in there], [gamma[:, owner[j]] for j in there], noise[np.array(there)], seen
        )

    def again(gamma: Array, _: None) -> tuple[Array, None]:
        return shared(look(gamma), [owner[j] for j in there], gamma.shape[1]), None

    gamma, _ = lax.scan(again, gamma, None, length=passes)
    found = dict(zip(there, look(gamma)))
    zero = [jnp.zeros((len(gamma), d.shape[1]), gamma.dtype) for d in dictionaries]
    return gamma, tuple(found[j].mean if j in found else zero[j] for j in range(len(dictionaries)))
