"""Multimodal sparse Bayesian dictionary learning: dictionaries for several views of the same samples.

All views of a sample share which atoms are on, by one variance per root atom and sample (`rnnc.bayes.coupled`). EM
learns the dictionaries, from all samples at once or from mini-batches, while the noise is annealed. From time to time
learning is reviewed. The atoms of the views are paired anew: at first a root's atoms may settle on different causes,
and EM alone does not get out of that. And the noise falls on only if that foretells hidden numbers better.

    state = fit(config, views, start(config, views, jax.random.key(0)))     # views: [L, N_j] each
    codes = transform(state.model(), [views[0], None])                      # gamma [L, M], means [L, M_j]
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from rnnc.bayes.codes import Codes as Codes
from rnnc.bayes.codes import Model as Model
from rnnc.bayes.codes import arrays as arrays
from rnnc.bayes.codes import checked
from rnnc.bayes.codes import restored as restored
from rnnc.bayes.codes import transform as transform
from rnnc.bayes.coupled import SMALLEST_GAMMA, Owner, group_mean, in_turn, owners, second_moment, shared
from rnnc.bayes.review import HIDDEN, hidden_loss, pairing

Array = jax.Array
SMALLEST_NOISE = 1e-6  # of a view's energy
REVIEWED = 512  # samples that a pairing looks at; half of them have numbers hidden


@dataclass(frozen=True, kw_only=True)
class Msbdl:
    """How dictionaries are learned.

    Args:
      atoms: M_j of each view, 1 or more; a view with the fewest holds the roots.
      sweeps: passes over all samples.
      batch: samples of one EM step, taken in a random order without those that do not fill a batch; 0: all of them.
        A step needs about 8 batch N (N + M) bytes for each view.
      forgetting: weight of the sums of earlier batches at each new one, 0 to below 1; 0: only the batch counts. With
        n batches a sweep, 1 - 1/n remembers about one sweep.
      anneal: factor of the noise's deviation after each sweep, above 0 to 1. It begins at the data's.
      noise_share: share of each view's energy at which the noise stays, 0 to below 1: one number for each view, at
        least 1e-6 whatever is given. None: found by reviews (the likelihood cannot tell: with a variance per sample
        and atom it asks for ever less noise).
      review_every: sweeps between reviews; 0: none.
      pairing: reviews pair the views' atoms.
      norm: "unit": every atom has norm 1. "root": the atoms of a root have mean square norm 1 and gamma takes the
        factor, which leaves the likelihood as it is.

    >>> Msbdl(atoms=(50, 50)).anneal
    0.985

    Source: MSBDL, section 7.1 of our survey, where each M-step estimates the noise anew; here it follows a schedule and
    is never estimated. Ours or recalled: that schedule, mini-batches, pairing, groups.
    """

    atoms: tuple[int, ...]
    sweeps: int = 400
    batch: int = 0
    forgetting: float = 0.0
    anneal: float = 0.985
    noise_share: tuple[float, ...] | None = None
    review_every: int = 20
    pairing: bool = True
    norm: Literal["unit", "root"] = "unit"

    def __post_init__(self) -> None:
        object.__setattr__(self, "atoms", tuple(self.atoms))
        if self.noise_share is not None:
            object.__setattr__(self, "noise_share", tuple(self.noise_share))
        if not self.atoms or any(count < 1 for count in self.atoms):
            raise ValueError(f"atoms: is {list(self.atoms)}, must hold one number for each view, each 1 or more")
        for name, least in (("sweeps", 1), ("batch", 0), ("review_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be {least} or more")
        if not 0 <= self.forgetting < 1:
            raise ValueError(f"forgetting: is {self.forgetting}, must be 0 or more and below 1")
        if not 0 < self.anneal <= 1:
            raise ValueError(f"anneal: is {self.anneal}, must be above 0 and at most 1")
        shares = self.noise_share
        if shares is not None and (len(shares) != len(self.atoms) or not all(0 <= share < 1 for share in shares)):
            raise ValueError(f"noise_share: is {shares}, must be {len(self.atoms)} numbers, 0 or more and below 1")
        if shares is None and not self.review_every:
            raise ValueError("noise_share: is not given and review_every is 0; one of them is needed")
        if self.norm not in ("unit", "root"):
            raise ValueError(f"norm: is {self.norm!r}, must be 'unit' or 'root'")


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True, kw_only=True)
class State:
    """All that learning goes on with; `arrays` and `restored` turn it into plain arrays and back.

    Args:
      dictionaries, noise, scale: as in `Model`.
      gamma: [L, M].
      cross: sums of y mu^T, [N_j, M_j] each.
      square: sums of Sigma + mu mu^T, [M_j, M_j] each.
      floor: [J], below which the noise does not fall before the next review.
      cost: [sweep], sum over all samples and views of log |S| + y^T S^-1 y in each sweep, before its steps.
      sweep: how many are done.
      key: data of the random key.
    """

    dictionaries: tuple[Array, ...]
    noise: Array
    scale: Array
    gamma: Array
    cross: tuple[Array, ...]
    square: tuple[Array, ...]
    floor: Array
    cost: Array
    sweep: Array
    key: Array

    def model(self) -> Model:
        """What was learned so far."""
        return Model(
            dictionaries=self.dictionaries,
            noise=self.noise,
            scale=self.scale,
            prior=jnp.mean(self.gamma, axis=0),
        )


def start(config: Msbdl, views: Sequence[ArrayLike], key: Array) -> State:
    """The state before the first sweep: atoms are samples, the same ones in all views; the noise is all there is.

    Args:
      config: how to learn.
      views: y_j [L, N_j]; features should have no mean. Zero samples and zero columns are fine.
      key: of the samples that become atoms, and of all that is random later.

    Raises:
      ValueError: views are none, of different lengths, of the wrong shape, not finite or silent; or there are fewer
        samples that are silent in no view than atoms.
    """
    given = _given(config, views)
    count, roots = len(given[0]), min(config.atoms)
    for j, y in enumerate(given):
        if config.noise_share is None and y.shape[1] < 2 * HIDDEN:
            raise ValueError(
                f"noise_share: must be given, views[{j}] has {y.shape[1]} numbers a sample, too few to hide"
            )
    scale = np.sqrt([np.mean(np.sum(np.square(y, dtype=np.float64), axis=1)) for y in given])
    loud = np.flatnonzero(np.all([np.any(y != 0, axis=1) for y in given], axis=0))
    places = [who + roots * _rank(who) for who in owners(config.atoms)]
    needed = 1 + max(int(place.max()) for place in places)
    if needed > len(loud):
        raise ValueError(
            f"atoms: are {list(config.atoms)}, need {needed} samples that no view is silent in, has {len(loud)}"
        )
    picked = np.asarray(jax.random.permutation(key, jnp.asarray(loud)))[:needed]
    atoms = [y[picked[place]].T.astype(np.float64) for y, place in zip(given, places)]
    dtype = given[0].dtype
    sizes = np.array([y.shape[1] for y in given])
    fall = config.anneal ** (2 * config.review_every)
    level = np.maximum(fall if config.noise_share is None else config.noise_share, SMALLEST_NOISE)
    return State(
        dictionaries=tuple(jnp.asarray(d / np.linalg.norm(d, axis=0), dtype) for d in atoms),
        noise=jnp.asarray(1 / sizes, dtype),
        scale=jnp.asarray(scale, dtype),
        gamma=jnp.full((count, roots), 1 / roots, dtype),
        cross=tuple(jnp.zeros(d.shape, dtype) for d in atoms),
        square=tuple(jnp.zeros((d.shape[1],) * 2, dtype) for d in atoms),
        floor=jnp.asarray(level / sizes, dtype),
        cost=jnp.zeros(0, dtype),
        sweep=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(key),
    )


def _rank(owner: Owner) -> np.ndarray:
    """How many atoms of the same root stand before each."""
    return np.arange(len(owner)) - np.searchsorted(owner, owner)


def _given(config: Msbdl, views: Sequence[ArrayLike]) -> list[Any]:
    """The views, checked, at least as many samples as a batch takes."""
    found = checked(views, config.atoms)
    if config.batch > len(found[0]):
        raise ValueError(f"batch: is {config.batch}, must be at most the {len(found[0])} samples")
    return found


def fit(config: Msbdl, views: Sequence[ArrayLike], state: State, until: int | None = None) -> State:
    """Learn on from `state` until so many sweeps are done in all (None: `config.sweeps`).

    Stopping and going on gives the same numbers, to the bit, as never stopping.

    >>> y = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    >>> config = Msbdl(atoms=(10, 10), sweeps=4)
    >>> first = start(config, [y, y], jax.random.key(0))
    >>> whole, half = fit(config, [y, y], first), fit(config, [y, y], first, until=2)
    >>> bool(jnp.all(fit(config, [y, y], half).gamma == whole.gamma))
    True

    Source: MSBDL, section 7.1 of our survey; see `Msbdl`.
    """
    given = _given(config, views)
    shapes = [(y.shape[1], count) for y, count in zip(given, config.atoms)]
    if [d.shape for d in state.dictionaries] != shapes or len(state.gamma) != len(given[0]):
        raise ValueError(
            f"state: is of {len(state.gamma)} samples and dictionaries {[list(d.shape) for d in state.dictionaries]}; "
            f"the views and the configuration have {len(given[0])} and {[list(shape) for shape in shapes]}"
        )
    ready = tuple(jnp.asarray(y.astype(s.dtype)) / s for y, s in zip(given, state.scale))
    for sweep in range(int(state.sweep), config.sweeps if until is None else until):
        if config.review_every and sweep and sweep % config.review_every == 0:
            state = _review(config, ready, state)
        done = state.cost  # apart: its shape grows, and one program serves all sweeps
        state = _sweep(config, ready, dataclasses.replace(state, cost=state.cost[:0]))
        state = dataclasses.replace(state, cost=jnp.concatenate([done, state.cost]))
    _check(state)
    return jax.block_until_ready(state)  # what comes next may factor, too; see `in_turn`


def _check(state: State) -> None:
    bad = np.flatnonzero(~np.isfinite(np.asarray(state.cost)))
    if len(bad):
        raise ValueError(f"noise_share: the posterior is not finite from sweep {bad[0]} on; it must be larger")


@partial(jax.jit, static_argnames="config")
def _sweep(config: Msbdl, views: tuple[Array, ...], state: State) -> State:
    """One pass over all samples, then a step of the noise."""
    if config.batch:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.sweep)
        order = jax.random.permutation(key, len(state.gamma))
        full = len(order) // config.batch * config.batch
        batches = order[:full].reshape(-1, config.batch)

        def step(state: State, rows: Array) -> tuple[State, Array]:
            return _step(config, tuple(y[rows] for y in views), state, rows)

        state, costs = lax.scan(step, state, batches)
        cost = jnp.sum(costs) * (len(order) / full)
    else:
        state, cost = _step(config, views, state, jnp.arange(len(state.gamma)))
    return dataclasses.replace(
        state,
        noise=jnp.maximum(state.noise * config.anneal**2, jnp.minimum(state.floor, state.noise)),
        cost=jnp.concatenate([state.cost, cost[None]]),
        sweep=state.sweep + 1,
    )


def _step(config: Msbdl, views: tuple[Array, ...], state: State, rows: Array) -> tuple[State, Array]:
    """One EM step from the samples at `rows`; and their cost before it."""
    owner, roots, gamma = owners(config.atoms), min(config.atoms), state.gamma[rows]
    found = in_turn(state.dictionaries, [gamma[:, w] for w in owner], state.noise, views)
    keep = config.forgetting
    cross = tuple(keep * old + y.T @ p.mean for old, y, p in zip(state.cross, views, found))
    square = tuple(keep * old + second_moment(p, gamma[:, w]) for old, p, w in zip(state.square, found, owner))
    learned = [updated(*sums) for sums in zip(cross, square, state.dictionaries)]
    norm = [jnp.linalg.norm(d, axis=0) for d in learned]
    all_gamma = state.gamma.at[rows].set(shared(found, owner, roots))
    if config.norm == "root":
        size = jnp.sqrt(group_mean([jnp.square(n)[None] for n in norm], owner, roots)[0])
        norm = [size[w] for w in owner]
        all_gamma = jnp.maximum(all_gamma * jnp.square(size)[None], SMALLEST_GAMMA)
        cross = tuple(c * n[None] for c, n in zip(cross, norm))
        square = tuple(c * n[None] * n[:, None] for c, n in zip(square, norm))
    new = dataclasses.replace(
        state,
        dictionaries=tuple(d / n[None] for d, n in zip(learned, norm)),
        gamma=all_gamma,
        cross=cross,
        square=square,
    )
    return new, jnp.sum(jnp.stack([jnp.sum(p.cost) for p in found]))


def updated(cross: Array, square: Array, old: Array) -> Array:
    """D = (sum y mu^T) (sum Sigma + mu mu^T)^-1, [N, M]; an atom that nothing uses stays as it is.

    >>> updated(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 1.0]])).round(3).tolist()
    [[2.0, 1.0]]
    """
    info = jnp.finfo(square.dtype)
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(square), 1e6 * info.tiny))
    ridge = 20 * info.eps * jnp.eye(len(size), dtype=square.dtype)
    factor = jax.scipy.linalg.cho_factor(square / size[:, None] / size[None] + ridge)
    learned = jax.scipy.linalg.cho_solve(factor, (cross / size[None]).T).T / size[None]
    used = jnp.all(jnp.isfinite(learned), axis=0) & (jnp.linalg.norm(learned, axis=0) > 1e-6)
    return jnp.where(used[None], learned, old)


def _review(config: Msbdl, views: tuple[Array, ...], state: State) -> State:
    """Pair the atoms of the views, and let the noise fall on where that foretells hidden numbers better."""
    _check(state)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), -1 - state.sweep)
    rows = jax.random.permutation(key, len(state.gamma))[:REVIEWED]
    some = tuple(y[rows] for y in views)
    if config.noise_share is None:
        fall = config.anneal ** (2 * config.review_every)
        lower = jnp.maximum(
            state.noise * fall, SMALLEST_NOISE / jnp.asarray([y.shape[1] for y in views], state.noise.dtype)
        )
        better = [
            float(hidden_loss(d, n, y[: REVIEWED // 2], key)) <= float(hidden_loss(d, old, y[: REVIEWED // 2], key))
            for d, n, old, y in zip(state.dictionaries, lower, state.noise, some)
        ]
        state = dataclasses.replace(state, floor=jnp.where(jnp.asarray(better), lower, state.noise))
    if not config.pairing or len(views) == 1:
        return state
    orders = pairing(state.dictionaries, state.noise, state.gamma[rows], some)
    return dataclasses.replace(
        state,
        dictionaries=tuple(d[:, o] for d, o in zip(state.dictionaries, orders)),
        cross=tuple(c[:, o] for c, o in zip(state.cross, orders)),
        square=tuple(c[o][:, o] for c, o in zip(state.square, orders)),
    )
