"""Looked at while dictionaries are learned: does less noise foretell better, and which atoms belong together?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from rnnc.bayes.coupled import infer, owners, posterior

Array = jax.Array
ALONE = 5  # EM passes that let each view speak for itself before atoms are paired
HIDDEN = 4  # one of so many numbers of a sample is hidden


@jax.jit
def hidden_loss(dictionary: Array, noise: Array, y: Array, key: Array) -> Array:
    """How badly a view's visible numbers foretell its hidden ones: the mean of e^2 / v + log v.

    A quarter of the numbers of y [B, N], the same of all samples, is hidden; e and v are error and variance of what
    the posterior of the code says about them.

    Source: ours.
    """
    n, m = dictionary.shape
    order = jax.random.permutation(key, n)
    hidden, seen = order[: n // HIDDEN], order[n // HIDDEN :]
    flat = jnp.full((len(y), m), 1 / m, y.dtype)
    gamma, _ = infer([dictionary[seen]], noise[None], flat, [y[:, seen]], 2 * ALONE)
    found = posterior(dictionary[seen], gamma, noise, y[:, seen])
    spread = jnp.einsum("bnm,hm->bhn", found.root * gamma[:, None, :], dictionary[hidden])
    variance = gamma @ jnp.square(dictionary[hidden]).T - jnp.sum(jnp.square(spread), axis=2) + noise
    variance = jnp.maximum(variance, noise)
    error = y[:, hidden] - found.mean @ dictionary[hidden].T
    return jnp.mean(jnp.square(error) / variance + jnp.log(variance))


def pairing(dictionaries: Sequence[Array], noise: Array, gamma: Array, views: Sequence[Array]) -> list[np.ndarray]:
    """The order of each view's atoms, [M_j], in which they suit their roots best.

    From the shared gamma each view goes on by itself for some passes. How much an atom is on then, over the samples, is
    compared with the atoms of the first view with the fewest; the best assignment by the sum of the cosines is taken.

    Args:
      dictionaries: [N_j, M_j] each.
      noise: [J].
      gamma: [B, M].
      views: [B, N_j] each.

    Source: ours. EM does not exchange atoms: a root whose atoms settled on two causes stays on where either is.
    """
    atoms = [d.shape[1] for d in dictionaries]
    owner, lead = owners(atoms), atoms.index(min(atoms))
    on = [np.asarray(_alone(d, noise[j], gamma[:, w], views[j])) for j, (d, w) in enumerate(zip(dictionaries, owner))]
    orders = []
    for j, w in enumerate(owner):
        gain = (on[lead].T @ on[j])[w]  # [place, atom]
        orders.append(np.arange(len(w)) if j == lead else linear_sum_assignment(-gain)[1])
    return orders


@jax.jit
def _alone(dictionary: Array, noise: Array, gamma: Array, y: Array) -> Array:
    """How much each atom is on in each sample by this view alone, [B, M]; columns have norm 1."""
    gamma, _ = infer([dictionary], noise[None], gamma, [y], ALONE)
    on = jnp.sqrt(gamma)
    return on / jnp.linalg.norm(on, axis=0, keepdims=True)
