"""Sparse non-negative least squares by rectified Gaussian scale mixtures (R-SBL)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from rnnc.bayes.esteps import Diagonal, EStep, State
from rnnc.bayes.priors import Flat, Prior

Array = jax.Array
STEPS = 10  # EM steps between two looks at who is done
RUNNING, CONVERGED, FAILED = range(3)
COMPACT = 1 << 18  # numbers of all the problems' designs from which leaving out atoms and problems pays
FLOOR = 1e-12  # of a learnt sigma2, in units of the mean square of y


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `fit` found; leading axes [...] are those of the problems.

    Args:
      x: [..., M] the estimate, 0 or more (with `Gaussian` its mean, of any sign).
      gamma: [..., M] variances of the prior; 0 where an atom was dropped.
      sigma2: [...] variance of the noise.
      iterations: [...] EM steps done.
      converged: [...] whether it stopped by itself. A sampler never does; one that diverged keeps its last finite x.
      objective: [...] -2 log p(y, gamma) up to a constant, as far as the E-step can tell it.
    """

    x: np.ndarray
    gamma: np.ndarray
    sigma2: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    objective: np.ndarray


@dataclass(frozen=True)
class _Settings:
    """What is the same for all problems, and decides what is compiled."""

    estep: EStep
    prior: Prior
    learn: bool
    mode: bool


class _Limits(NamedTuple):
    """What is the same for all problems, and is compiled once for all values."""

    prune: float
    tolerance: float
    iterations: int
    rows: int  # of phi as it was given


class _Carry(NamedTuple):
    """Problems between two EM steps, [B, ...], scaled so that y has mean square 1 and every column length 1."""

    x: Array
    gamma: Array
    sigma2: Array
    objective: Array
    iterations: Array
    status: Array
    state: State
    key: Array


class _Batch(NamedTuple):
    """Problems that are solved together: which they are, which atoms of each are left, and the arrays of these.

    units [B, M] times a scaled gamma is a gamma in the caller's units.
    """

    here: np.ndarray
    atoms: np.ndarray
    phi: Array
    y: Array
    units: Array
    carry: _Carry


def fit(
    phi: ArrayLike,
    y: ArrayLike,
    *,
    sigma2: ArrayLike | None = None,
    estep: EStep = Diagonal(),
    prior: Prior = Flat(),
    gamma: ArrayLike | None = None,
    point: str = "mean",
    prune: float = 1e-5,
    tolerance: float = 1e-5,
    iterations: int = 500,
    seed: int = 0,
    batch: int = 256,
    dtype: type = np.float64,
    tell: Callable[[int, int], None] | None = None,
) -> Result:
    """Find sparse x >= 0 with y = phi x + v, v ~ N(0, sigma2), by evidence maximisation.

    E: moments of x given y and gamma, by `estep`.  M: gamma_m by `prior` from E[x_m^2];  sigma2 = E|y - phi x|^2 / N

    Args:
      phi: [N, M] the design, for all problems, or [..., N, M], one for each. A column of zeros is dropped.
      y: [..., N], any number of right-hand sides; one that is all 0 gives x = 0.
      sigma2: variance of v, for all or [...]; None: learnt. Of noiseless data about 1e-6 of the mean of y^2; not below
        100 eps of it, with the eps of `dtype`.
      estep: `esteps.Diagonal`, `LMMSE`, `MCMC`, `AMP`, or for comparison `Gaussian`, which is ordinary SBL.
      prior: `priors.Flat`, `Laplace` or `StudentT`.
      gamma: [..., M] where to begin, 0 for an atom that is off; None: all alike. Of the last frame, for instance.
      point: "mean" of the posterior; or its "mode", max(mu, 0), which has no bias on the atoms that are
        off; of `LMMSE` both are the same.
      prune: an atom whose gamma falls below this share of the largest one's is dropped; 0 or more and below 1.
      tolerance: stop at a relative change of x below it; 0 or more.
      iterations: stop after so many EM steps, 1 or more.
      seed: of `MCMC`.
      batch: problems that are solved together, 1 or more; what is found does not depend on it but for rounding.
      dtype: of the computation; np.float32 is faster, and enough if sigma2 is 1e-3 of the mean of y^2 or more.
      tell: called with the number of problems done, and of all, as it goes on.

    Raises:
      ValueError: shapes that do not fit, numbers that are not finite, options out of range.

    >>> phi = np.eye(3)[:, [0, 1, 2, 2]]
    >>> found = fit(phi, [0.0, -1.0, 2.0], sigma2=0.01, point="mode")
    >>> found.x.round(1).tolist(), bool(found.converged)
    ([0.0, 0.0, 1.0, 1.0], True)

    Source: R-SBL (Nalci et al. 2018), section 8.1 of our survey. Ours: the scaling, the averaging of a sampler's steps,
    and that problems and atoms that are done with leave the batch. Recalled: pruning (there from 1e-6 on),
    stopping, and the mean as the paper's estimate.
    """
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype: is {dtype!r}, must be np.float32 or np.float64")
    for name, member, kind, kind_like in (("estep", estep, EStep, Diagonal()), ("prior", prior, Prior, Flat())):
        if not isinstance(member, kind):
            raise ValueError(f"{name}: is {member!r}, must be an object of a member, such as {kind_like}")
    if point not in ("mean", "mode"):
        raise ValueError(f"point: is {point!r}, must be 'mean' or 'mode'")
    for name, value, good, allowed in (
        ("prune", prune, 0 <= prune < 1, "0 or more and below 1"),
        ("tolerance", tolerance, tolerance >= 0, "0 or more"),
        ("iterations", iterations, iterations >= 1, "1 or more"),
        ("batch", batch, batch >= 1 and batch == int(batch), "a whole number from 1 on"),
    ):
        if not good:
            raise ValueError(f"{name}: is {value}, must be {allowed}")
    settings = _Settings(estep, prior, sigma2 is None, point == "mode")
    designs, targets, shape = _problems(phi, y, dtype)
    (count, n), m = targets.shape, designs.shape[-1]
    limits = _Limits(prune, tolerance, iterations, n)
    level, (designs, length) = _level(targets), _unit(designs)
    on, targets = (length > 0) & targets.any(axis=-1, keepdims=True), targets / level
    with np.errstate(all="ignore"):
        scale = level / np.broadcast_to(np.where(length > 0, length, 1), (count, m))
        fits = np.isfinite(scale**2) & (scale**2 > 0)
    if not fits.all():
        raise ValueError(f"phi: its columns and y are of sizes too far apart for {np.dtype(dtype)}; scale them")
    noise = 0.01 * level[:, 0] ** 2 if sigma2 is None else _spread("sigma2", sigma2, shape, (), dtype)
    least = 100 * np.finfo(dtype).eps
    if not (noise > np.where(targets.any(axis=-1), least * level[:, 0] ** 2, 0)).all():
        raise ValueError(f"sigma2: must be above 0, and above {least:.1g} of the mean of y^2 for {np.dtype(dtype)}")
    designs, targets = _shortened(designs, targets)
    begin = n / m * scale**2 if gamma is None else _spread("gamma", gamma, (*shape, m), (m,), dtype)
    if not (begin >= 0).all():
        raise ValueError("gamma: must be 0 or more")
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    arrays = (targets, noise / level[:, 0] ** 2, np.where(on, begin / scale**2, 0), scale**2)
    solved: dict[str, np.ndarray] = {}
    for first in range(0, count, batch):
        part = slice(first, min(first + batch, count))
        with jax.enable_x64(np.dtype(dtype) == np.float64):
            own = designs[part] if designs.ndim == 3 else designs
            found = _solve(settings, limits, own, *(a[part] for a in arrays), seed=seed, first=first)
        for name, value in found.items():
            solved.setdefault(name, np.empty((count, *value.shape[1:]), value.dtype))[part] = value
        if tell:
            tell(part.stop, count)
    return Result(
        x=(solved["x"] * scale).reshape(*shape, m),
        gamma=(solved["gamma"] * scale**2).reshape(*shape, m),
        sigma2=(solved["sigma2"] * level[:, 0] ** 2).reshape(shape),
        iterations=solved["iterations"].reshape(shape),
        converged=(solved["status"] == CONVERGED).reshape(shape),
        objective=(solved["objective"] + 2 * n * np.log(level[:, 0])).reshape(shape),
    )


def _problems(phi: ArrayLike, y: ArrayLike, dtype: type) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The designs [N, M] or [B, N, M], the right-hand sides [B, N], and the shape that B had."""
    designs, targets = _numbers("phi", phi, dtype), _numbers("y", y, dtype)
    if (
        designs.ndim < 2
        or targets.ndim < 1
        or designs.shape[-2] != targets.shape[-1]
        or 0 in (*designs.shape, *targets.shape)
    ):
        raise ValueError(f"phi, y: have shapes {designs.shape} and {targets.shape}, must be [..., N, M] and [..., N]")
    lead, (n, m) = designs.shape[:-2], designs.shape[-2:]
    try:
        shape = np.broadcast_shapes(lead, targets.shape[:-1])
    except ValueError:
        given = f"{designs.shape} and {targets.shape}"
        raise ValueError(f"phi, y: have shapes {given}, whose leading axes do not fit") from None
    if lead:
        designs = np.broadcast_to(designs, (*shape, n, m)).reshape(-1, n, m)
    return designs, np.broadcast_to(targets, (*shape, n)).reshape(-1, n), shape


def _level(targets: np.ndarray) -> np.ndarray:
    """Root mean squares of the right-hand sides [B, N] -> [B, 1]; 1 of one that is all 0."""
    with np.errstate(over="ignore", under="ignore"):
        level = np.sqrt(np.mean(targets**2, axis=-1, keepdims=True))
    if not np.isfinite(level).all() or (targets.any(axis=-1) & (level[:, 0] ** 2 == 0)).any():
        raise ValueError(f"y: its squares leave the range of {targets.dtype}; scale it")
    return np.where(level > 0, level, 1)


def _unit(designs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Designs [..., N, M] with columns of length 1, and the lengths they had [..., M]; 0 stays 0."""
    peak = np.max(np.abs(designs), axis=-2)
    designs = designs / np.where(peak > 0, peak, 1)[..., None, :]
    length = np.linalg.norm(designs, axis=-2)
    with np.errstate(over="ignore"):
        return designs / np.where(peak > 0, length, 1)[..., None, :], peak * length


def _shortened(designs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tall problems with M + 1 rows in place of N: R of phi = Q R, and what of y no x explains in the last."""
    n, m = designs.shape[-2:]
    if n <= m + 1:
        return designs, targets
    q, r = np.linalg.qr(designs)
    head = (targets[:, None, :] @ q)[:, 0]
    rest = np.linalg.norm(targets - (q @ head[..., None])[..., 0], axis=-1, keepdims=True)
    return np.concatenate([r, np.zeros_like(r[..., :1, :])], axis=-2), np.concatenate([head, rest], axis=-1)


def _numbers(name: str, a: ArrayLike, dtype: type) -> np.ndarray:
    found = np.asarray(a)
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{name}: has type {found.dtype}, must be real numbers")
    found = found.astype(dtype)
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: {np.sum(~np.isfinite(found))} of {found.size} numbers are not finite")
    return found


def _spread(name: str, a: ArrayLike, shape: tuple[int, ...], last: tuple[int, ...], dtype: type) -> np.ndarray:
    """An option of this shape or one that broadcasts to it -> [B, *last]."""
    found = _numbers(name, a, dtype)
    try:
        return np.broadcast_to(found, shape).reshape(-1, *last)
    except ValueError:
        raise ValueError(f"{name}: has shape {found.shape}, which does not fit {shape}") from None


def _solve(
    settings: _Settings,
    limits: _Limits,
    phi: np.ndarray,
    y: np.ndarray,
    sigma2: np.ndarray,
    gamma: np.ndarray,
    units: np.ndarray,
    *,
    seed: int,
    first: int,
) -> dict[str, np.ndarray]:
    """Solve scaled problems, those from number `first` on; fields of `_Carry` by name."""
    if settings.estep.rotated:
        u = np.linalg.eigh(phi @ np.swapaxes(phi, -1, -2))[1]
        phi, y = np.swapaxes(u, -1, -2) @ phi, (y[:, None] @ u)[:, 0]
    here = np.arange(len(y))
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(here + first)
    state = jax.vmap(settings.estep.start)(jnp.asarray(y), jnp.asarray(gamma))
    carry = _Carry(
        x=jnp.zeros_like(gamma),
        gamma=jnp.asarray(gamma),
        sigma2=jnp.asarray(sigma2),
        objective=jnp.zeros_like(sigma2),
        iterations=jnp.zeros(len(y), int),
        status=jnp.full(len(y), RUNNING),
        state=state,
        key=keys,
    )
    atoms = np.broadcast_to(np.arange(gamma.shape[1]), gamma.shape)
    batch = _Batch(here, atoms, jnp.asarray(phi), jnp.asarray(y), jnp.asarray(units), carry)
    solved = {name: np.zeros_like(getattr(carry, name)) for name in carry._fields[:6]}
    while True:
        batch = batch._replace(carry=_advance(settings, limits, batch.phi, batch.y, batch.units, batch.carry))
        running = _store(batch, solved) & (solved["iterations"][batch.here] < limits.iterations)
        if not running.any():
            return solved
        batch = _compact(batch, running)


def _store(batch: _Batch, solved: dict[str, np.ndarray]) -> np.ndarray:
    """Write what a batch has come to; returns which of its problems may go on."""
    for name, rows in solved.items():
        found = np.asarray(getattr(batch.carry, name))
        if rows.ndim == 2:
            wide = np.zeros((len(found), rows.shape[1]), rows.dtype)
            np.put_along_axis(wide, batch.atoms, found, axis=1)
            found = wide
        rows[batch.here] = found
    return np.asarray(batch.carry.status) == RUNNING


def _compact(batch: _Batch, running: np.ndarray) -> _Batch:
    """Leave out problems that are done and atoms that are off, where they are many enough to pay for it."""
    size, width = batch.atoms.shape
    if size * len(batch.y[0]) * width < COMPACT:
        return batch
    left = max(int(running.sum()), 1)
    size = size // 2 if left <= size // 2 else size
    kept = np.argsort(~running, kind="stable")[:size]
    on = np.asarray(batch.carry.gamma)[kept] > 0
    while 2 * width // 3 >= max(on.sum(axis=1).max(), 8):
        width = 2 * width // 3
    if batch.atoms.shape == (size, width):
        return batch
    columns = np.argsort(~on, axis=1, kind="stable")[:, :width]

    def taken(a: Array) -> Array:
        return jnp.take_along_axis(a[kept], columns, axis=1)

    carry = jax.tree.map(lambda a: a[kept], batch.carry._replace(x=None, gamma=None, state=None))
    state = State(tuple(map(taken, batch.carry.state.columns)), tuple(a[kept] for a in batch.carry.state.rows))
    phi = jnp.moveaxis(batch.phi.T[columns], 1, 2) if batch.phi.ndim == 2 else batch.phi[kept]
    return _Batch(
        batch.here[kept],
        np.take_along_axis(batch.atoms[kept], columns, axis=1),
        phi if batch.phi.ndim == 2 else jnp.take_along_axis(phi, columns[:, None], axis=2),
        batch.y[kept],
        taken(batch.units),
        carry._replace(x=taken(batch.carry.x), gamma=taken(batch.carry.gamma), state=state),
    )


@functools.partial(jax.jit, static_argnums=0)
def _advance(settings: _Settings, limits: _Limits, phi: Array, y: Array, units: Array, carry: _Carry) -> _Carry:
    """Some EM steps of each problem that runs."""
    step = jax.vmap(functools.partial(_step, settings, limits), in_axes=(0 if phi.ndim == 3 else None, 0, 0, 0))

    def turn(at: tuple[Array, _Carry]) -> tuple[Array, _Carry]:
        return at[0] + 1, step(phi, y, units, at[1])

    def go_on(at: tuple[Array, _Carry]) -> Array:
        running = (at[1].status == RUNNING) & (at[1].iterations < limits.iterations)
        return (at[0] < STEPS) & running.any()

    return lax.while_loop(go_on, turn, (jnp.zeros((), int), carry))[1]


def _step(settings: _Settings, limits: _Limits, phi: Array, y: Array, units: Array, old: _Carry) -> _Carry:
    """One EM step of one problem, if it runs. A sampler's second half is averaged (stochastic approximation)."""
    estep, t = settings.estep, old.iterations
    found, state = estep.run(phi, y, old.gamma, old.sigma2, old.state, jax.random.fold_in(old.key, t))
    late = jnp.maximum(t - limits.iterations // 2, 0).astype(y.dtype) if estep.stochastic else 0
    gamma, on = settings.prior.gamma(found.second * units) / units, old.gamma > 0
    penalty = jnp.sum(jnp.where(on, settings.prior.penalty(jnp.where(on, old.gamma * units, 1)), 0))
    x = found.mode if settings.mode else found.mean
    sigma2 = jnp.maximum(found.residual / limits.rows, FLOOR) if settings.learn else old.sigma2
    pairs = ((old.gamma, gamma), (old.x, x), (old.sigma2, sigma2))
    gamma, x, sigma2 = (before + (now - before) / (late + 1) for before, now in pairs)
    gamma = jnp.where(on & (gamma > limits.prune * gamma.max()), gamma, 0)
    penalty = penalty + (limits.rows - len(y)) * jnp.log(old.sigma2)  # of rows that were shortened
    still = jnp.sum((x - old.x) ** 2) <= limits.tolerance**2 * jnp.sum(x**2)
    fine = jnp.isfinite(gamma).all() & jnp.isfinite(x).all() & jnp.isfinite(sigma2)
    status = jnp.where(fine, jnp.where(still & (t > 0) & (not estep.stochastic), CONVERGED, RUNNING), FAILED)
    new = _Carry(x, gamma, sigma2, found.objective + penalty, t + 1, status, state, old.key)
    runs = (old.status == RUNNING) & (t < limits.iterations)
    kept = jax.tree.map(lambda a, b: jnp.where(runs & fine, a, b), new._replace(key=None), old._replace(key=None))
    return kept._replace(key=old.key, status=jnp.where(runs, status, old.status))
