"""Planted dictionaries: samples whose atoms are known, and how many of them a learner finds again."""

from typing import NamedTuple

import numpy as np

from rnnc.bayes.coupled import owners

FOUND = 0.99


class Planted(NamedTuple):
    """Atoms with norm 1, [size, M_j] for each view, and the samples [L, size] float32 made of them."""

    atoms: tuple[np.ndarray, ...]
    views: tuple[np.ndarray, ...]


def plant(
    seed: int,
    *,
    atoms: tuple[int, ...] = (50, 50),
    size: int = 20,
    samples: int = 1000,
    on: int = 3,
    snr_db: float = 20,
) -> Planted:
    """Draw Gaussian atoms and samples of `on` roots each, the same in all views; each view draws its own coefficients.

    All atoms of a root that is on are on, with independent Gaussian coefficients; the noise is white.

    >>> planted = plant(0, atoms=(10, 20), samples=30)
    >>> [view.shape for view in planted.views], recovered(planted.atoms[1], planted.atoms[1])
    ([(30, 20), (30, 20)], 1.0)

    Source: protocol of K-SVD, section 7.2 of our survey.
    """
    rng = np.random.default_rng(seed)
    roots = min(atoms)
    active = np.argsort(rng.random((samples, roots)), axis=1) < on
    dictionaries, views = [], []
    for count, owner in zip(atoms, owners(atoms)):
        d = rng.standard_normal((size, count))
        d /= np.linalg.norm(d, axis=0)
        clean = (active[:, owner] * rng.standard_normal((samples, count))) @ d.T
        noise = rng.standard_normal(clean.shape)
        noise *= np.linalg.norm(clean) / np.linalg.norm(noise) * 10 ** (-snr_db / 20)
        dictionaries.append(d)
        views.append((clean + noise).astype(np.float32))
    return Planted(tuple(dictionaries), tuple(views))


def noise_share(snr_db: float) -> float:
    """Share of the energy that is noise.

    >>> noise_share(0.0)
    0.5
    """
    return 1 / (1 + 10 ** (snr_db / 10))


def alike(planted: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """|cos| of every planted with every learned atom, [M, M_learned]."""
    norm = np.maximum(np.linalg.norm(learned, axis=0), 1e-30)
    return np.abs(planted.T @ (np.asarray(learned, np.float64) / norm))


def recovered(planted: np.ndarray, learned: np.ndarray, owner: np.ndarray | None = None) -> float:
    """Share of the planted roots whose atoms are found: of one atom, a learned one with |cos| above 0.99.

    Atoms of one root are on together with coefficients of their own, so that only their span can be known. It is found
    if as many learned atoms, those that lie in it most, span it: the cosine of the largest angle is above 0.99.

    Args:
      planted, learned: [size, M] each.
      owner: the root of each planted atom, [M]; None: each has its own.

    >>> d = np.eye(4)
    >>> turned = np.array([[0.6, 0.8, 0, 0], [-0.8, 0.6, 0, 0], [0, 0, 1, 0], [0, 0, 0.1, 1]]).T
    >>> recovered(d, turned), recovered(d, turned, np.array([0, 0, 1, 1]))
    (0.5, 1.0)
    >>> recovered(d, d[:, 1:], np.array([0, 0, 1, 1]))
    0.5
    """
    owner = np.arange(planted.shape[1]) if owner is None else owner
    unit = learned / np.maximum(np.linalg.norm(learned, axis=0), 1e-30)
    found = []
    for root in np.unique(owner):
        span = np.linalg.qr(planted[:, owner == root])[0]
        most = np.argsort(np.linalg.norm(span.T @ unit, axis=0))[::-1][: span.shape[1]]
        cosines = np.linalg.svd(span.T @ np.linalg.qr(unit[:, most])[0], compute_uv=False)
        found.append(cosines[-1] > FOUND)
    return float(np.mean(found))


def paired(planted: tuple[np.ndarray, ...], learned: tuple[np.ndarray, ...]) -> float:
    """Share of learned atoms that are nearest to a planted atom of the same root in their own view as in the first."""
    owner = owners([d.shape[1] for d in planted])
    nearest = [who[alike(p, d).argmax(axis=0)] for p, d, who in zip(planted, learned, owner)]
    lead = min(range(len(learned)), key=lambda j: learned[j].shape[1])
    pairs = [near == nearest[lead][who] for j, (near, who) in enumerate(zip(nearest, owner)) if j != lead]
    return float(np.mean(np.concatenate(pairs)))
