"""Multimodal sparse Bayesian dictionary learning: dictionaries for several views of the same samples.

All views of a sample share which atoms are on, by one variance per root atom and sample (`rnnc.bayes.coupled`). EM
learns the dictionaries, from all samples at once or from mini-batches, while the noise is annealed. From time to time
learning is reviewed. The atoms of the views are paired anew: at first a root's atoms may settle on different causes,
and EM alone does not get out of that. And the noise falls on only if that foretells hidden numbers better.

    state = fit(config, views, start(config, views, jax.random.key(0)))     # views: [L, N_j] each
    codes = transform(state.model(), [views[0], None])                      # gamma [L, M], means [L, M_j]
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from rnnc.bayes.coupled import (
    SMALLEST_GAMMA,
    Owner,
    group_mean,
    infer,
    owners,
    posterior,
    second_moment,
    shared,
)

Array = jax.Array
SMALLEST_NOISE = 1e-6  # of a view's energy
ALONE = 5  # EM passes that let each view speak for itself before atoms are paired
HIDDEN = 4  # a review hides one of so many numbers of a frame
REVIEWED = 512  # samples that a review looks at
CHUNK = 1024  # samples that `transform` takes at once


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
      noise_share: share of each view's energy at which the noise stays, 0 to below 1: one number for each view. None:
        found by reviews (the likelihood cannot tell: with a variance per sample and atom it asks for ever less noise).
      review_every: sweeps between reviews; 0: none.
      pairing: reviews pair the views' atoms.
      norm: "unit": every atom has norm 1. "root": the atoms of a root have mean square norm 1 and gamma takes the
        factor, which leaves the likelihood as it is.

    >>> Msbdl(atoms=(50, 50)).anneal
    0.985

    Source: MSBDL, section 7.1 of our survey. Ours or recalled: schedule of the noise, mini-batches, pairing, groups.
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


T = TypeVar("T", State, Model)


def arrays(state: State | Model) -> dict[str, np.ndarray]:
    """The arrays of a state or a model by name, as `np.savez` takes them.

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
    """The `State` or `Model` whose `arrays` these are.

    Raises:
      ValueError: an array is missing.
    """
    views = sum(name.startswith("dictionaries.") for name in table)
    several = ("dictionaries", "cross", "square")
    try:
        return kind(
            **{
                field.name: tuple(jnp.asarray(table[f"{field.name}.{j}"]) for j in range(views))
                if field.name in several
                else jnp.asarray(table[field.name])
                for field in dataclasses.fields(kind)
            }
        )
    except KeyError as missing:
        raise ValueError(f"restored: array {missing} is missing; given: {', '.join(sorted(table))}") from None


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
    given = _checked(views, config.atoms)
    count, roots = len(given[0]), min(config.atoms)
    if config.batch > count:
        raise ValueError(f"batch: is {config.batch}, must be at most the {count} samples")
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


def _checked(views: Sequence[ArrayLike | None], atoms: Sequence[int], some: bool = False) -> list[Any]:
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
        if not np.all(np.isfinite(y)):
            raise ValueError(f"views[{j}]: holds NaN or infinity, must be finite")
        if not some and not np.any(y):
            raise ValueError(f"views[{j}]: is silent, must hold a sample that is not zero")
    wide = np.result_type(np.float32, *(y.dtype for _, y in there if y.dtype.kind == "f"))
    dtype = jax.dtypes.canonicalize_dtype(wide)
    return [None if y is None else y.astype(dtype) for y in found]


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
    given = _checked(views, config.atoms)
    shapes = [(y.shape[1], count) for y, count in zip(given, config.atoms)]
    if [d.shape for d in state.dictionaries] != shapes or len(state.gamma) != len(given[0]):
        raise ValueError(
            f"state: is of {len(state.gamma)} samples and dictionaries {[list(d.shape) for d in state.dictionaries]}; "
            f"the views and the configuration have {len(given[0])} and {[list(shape) for shape in shapes]}"
        )
    ready = tuple(jnp.asarray(y) / s for y, s in zip(given, state.scale))
    for sweep in range(int(state.sweep), config.sweeps if until is None else until):
        if config.review_every and sweep and sweep % config.review_every == 0:
            state = _review(config, ready, state)
        done = state.cost  # apart: its shape grows, and one program serves all sweeps
        state = _sweep(config, ready, dataclasses.replace(state, cost=state.cost[:0]))
        state = dataclasses.replace(state, cost=jnp.concatenate([done, state.cost]))
    return state


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
    given = _checked(views, [d.shape[1] for d in model.dictionaries], some=True)
    for j, (y, d) in enumerate(zip(given, model.dictionaries)):
        if y is not None and y.shape[1] != len(d):
            raise ValueError(f"views[{j}]: has {y.shape[1]} numbers a sample, must have {len(d)}")
    count = next(len(y) for y in given if y is not None)
    parts = [
        _coded(model, tuple(None if y is None else jnp.asarray(y[at : at + CHUNK]) for y in given), passes)
        for at in range(0, count, CHUNK)
    ]
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)


@partial(jax.jit, static_argnames="passes")
def _coded(model: Model, views: tuple[Array | None, ...], passes: int) -> Codes:
    count = next(len(y) for y in views if y is not None)
    ready = [None if y is None else y / s for y, s in zip(views, model.scale)]
    gamma = jnp.broadcast_to(jnp.maximum(model.prior, SMALLEST_GAMMA)[None], (count, len(model.prior)))
    return Codes(*infer(model.dictionaries, model.noise, gamma, ready, passes))


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
    found = [
        posterior(d, gamma[:, w], state.noise[j], views[j]) for j, (d, w) in enumerate(zip(state.dictionaries, owner))
    ]
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
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), -1 - state.sweep)
    rows = jax.random.permutation(key, len(state.gamma))[:REVIEWED]
    some = tuple(y[rows] for y in views)
    if config.noise_share is None:
        fall = config.anneal ** (2 * config.review_every)
        lower = jnp.maximum(
            state.noise * fall, SMALLEST_NOISE / jnp.asarray([y.shape[1] for y in views], state.noise.dtype)
        )
        better = [
            hidden_loss(d, n, y, key) <= hidden_loss(d, old, y, key)
            for d, n, old, y in zip(state.dictionaries, lower, state.noise, some)
        ]
        state = dataclasses.replace(state, floor=jnp.where(jnp.stack(better), lower, state.noise))
    return _paired(config, some, state, rows) if config.pairing and len(views) > 1 else state


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
    gamma, _ = infer([dictionary[seen]], noise[None], flat, [y[:, seen]], 4 * ALONE)
    found = posterior(dictionary[seen], gamma, noise, y[:, seen])
    spread = jnp.einsum("bnm,hm->bhn", found.root * gamma[:, None, :], dictionary[hidden])
    variance = gamma @ jnp.square(dictionary[hidden]).T - jnp.sum(jnp.square(spread), axis=2) + noise
    variance = jnp.maximum(variance, noise)
    error = y[:, hidden] - found.mean @ dictionary[hidden].T
    return jnp.mean(jnp.square(error) / variance + jnp.log(variance))


def _paired(config: Msbdl, some: tuple[Array, ...], state: State, rows: Array) -> State:
    """Give every atom to the root whose own view's atom is on in the same samples, as the best assignment does."""
    owner, roots = owners(config.atoms), min(config.atoms)
    lead = config.atoms.index(roots)
    alone = [
        _alone(d, state.noise[j], state.gamma[rows][:, w], some[j])
        for j, (d, w) in enumerate(zip(state.dictionaries, owner))
    ]
    first = alone[lead]
    orders = []
    for j, (activity, w) in enumerate(zip(alone, owner)):
        gain = np.asarray(first.T @ activity)[w]  # [place, atom]
        orders.append(np.arange(len(w)) if j == lead else linear_sum_assignment(-gain)[1])
    return dataclasses.replace(
        state,
        dictionaries=tuple(d[:, o] for d, o in zip(state.dictionaries, orders)),
        cross=tuple(c[:, o] for c, o in zip(state.cross, orders)),
        square=tuple(c[o][:, o] for c, o in zip(state.square, orders)),
    )


@jax.jit
def _alone(dictionary: Array, noise: Array, gamma: Array, y: Array) -> Array:
    """How much each atom is on in each sample by this view alone, [B, M]; columns have norm 1."""
    gamma, _ = infer([dictionary], noise[None], gamma, [y], ALONE)
    on = jnp.sqrt(gamma)
    return on / jnp.linalg.norm(on, axis=0, keepdims=True)
