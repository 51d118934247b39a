"""What is known of a sparse x >= 0 behind y = Phi x + v, given the variances of its prior: five E-steps.

x_m has the density of N(0, gamma_m) cut to x >= 0, v is normal of variance sigma2. Their exact posterior, N(mu, Sigma)
cut to the positive orthant, has no closed moments. The members approximate them; all are written for one problem,
phi [N, M] and y [N], and meet many by `vmap`. An atom whose gamma is 0 is off: its x is 0.

Source: R-SBL (Nalci et al. 2018), section 8.1 of our survey, for `Diagonal`, `LMMSE`, `MCMC` and `AMP`. What is ours or
recalled each member's docstring names.
"""

import abc
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rnnc.bayes.moments import draw, rectified

Array = jax.Array


class State(NamedTuple):
    """What an E-step hands to its next run: arrays [M], which go with the columns, and [N], with the rows."""

    columns: tuple[Array, ...] = ()
    rows: tuple[Array, ...] = ()


class Estimate(NamedTuple):
    """Of x: mean [M], second moment [M], the expected |y - Phi x|^2, and the objective: -2 log p(y | gamma), about.

    At `mode` [M] is the top of the normal, cut at 0: an estimate without the mean's bias on atoms that are off
    (of `LMMSE`, the mean).
    """

    mean: Array
    mode: Array
    second: Array
    residual: Array
    objective: Array


class Normal(NamedTuple):
    """N(mu, Sigma) before it is cut: mu [M], the diagonal of Sigma [M], tr(Phi Sigma Phi^T) by atoms [M], evidence.

    evidence = log|S| + r^T S^-1 r,  S = sigma2 I + Phi Gamma Phi^T
    """

    mu: Array
    variance: Array
    trace: Array
    evidence: Array


def normal(phi: Array, r: Array, gamma: Array, sigma2: Array) -> Normal:
    """The posterior of x ~ N(0, diag(gamma)) given r = phi x + v, by the Cholesky factor of the N x N matrix S.

    Args:
      phi: [N, M].
      r: [N].
      gamma: [M], 0 or more.
      sigma2: above 0.

    >>> found = normal(jnp.array([[1.0, 0.0]]), jnp.array([2.0]), jnp.array([1.0, 1.0]), jnp.array(1.0))
    >>> found.mu.round(3).tolist(), found.variance.tolist()
    ([1.0, 0.0], [0.5, 1.0])

    Source: section 8.1 of our survey.
    """
    identity = jnp.eye(len(r), dtype=phi.dtype)
    chol = jnp.linalg.cholesky((phi * gamma[None]) @ phi.T + sigma2 * identity)
    inverse = lax.linalg.triangular_solve(chol, identity, left_side=True, lower=True)
    white, b = inverse @ phi, inverse @ r
    share = jnp.clip(gamma * jnp.sum(white**2, axis=0), 0, 1 - jnp.finfo(phi.dtype).eps)  # of gamma that is now known
    evidence = 2 * jnp.sum(jnp.log(jnp.diagonal(chol))) + b @ b
    return Normal(gamma * (b @ white), gamma * (1 - share), sigma2 * share, evidence)


def _energy(phi: Array, y: Array, x: Array) -> Array:
    return jnp.sum((y - phi @ x) ** 2)


@dataclass(frozen=True)
class EStep(abc.ABC):
    """Base of the members.

    stochastic: two runs differ, so that the caller must average.
    rotated: the rows of phi and y must first be rotated by phi's singular vectors.
    """

    stochastic = False
    rotated = False

    def start(self, y: Array, gamma: Array) -> State:
        """The state before the first run."""
        return State()

    @abc.abstractmethod
    def run(
        self, phi: Array, y: Array, gamma: Array, sigma2: Array, state: State, key: Array
    ) -> tuple[Estimate, State]:
        """Estimate x; see the module for shapes."""


@dataclass(frozen=True)
class Gaussian(EStep):
    """No rectification: the moments of N(mu, Sigma) itself, which is ordinary SBL; its objective is exact."""

    def run(
        self, phi: Array, y: Array, gamma: Array, sigma2: Array, state: State, key: Array
    ) -> tuple[Estimate, State]:
        mu, variance, trace, evidence = normal(phi, y, gamma, sigma2)
        residual = _energy(phi, y, mu) + trace.sum()
        return Estimate(mu, jnp.maximum(mu, 0), mu**2 + variance, residual, evidence), state


@dataclass(frozen=True)
class Diagonal(EStep):
    """Sigma's diagonal in place of Sigma: each x_m is a cut normal by itself. Exact if Phi^T Phi is diagonal.

    Ours: the objective, evidence - 2 sum log(2 P(x_m > 0)), which is exact where the moments are; and the part of the
    residual that comes from the spread of x, tr(Phi Sigma Phi^T), with each atom's share scaled as its variance is.
    """

    def run(
        self, phi: Array, y: Array, gamma: Array, sigma2: Array, state: State, key: Array
    ) -> tuple[Estimate, State]:
        mu, variance, trace, evidence = normal(phi, y, gamma, sigma2)
        on = gamma > 0
        spread = jnp.where(on, variance, 1)
        mean, second, log_mass = (jnp.where(on, m, 0) for m in rectified(jnp.where(on, mu, 0), jnp.sqrt(spread)))
        residual = _energy(phi, y, mean) + jnp.sum(trace * (second - mean**2) / spread)
        objective = evidence - 2 * jnp.sum(jnp.where(on, log_mass + jnp.log(2.0), 0))
        return Estimate(mean, jnp.maximum(mu, 0), second, residual, objective), state


@dataclass(frozen=True)
class LMMSE(EStep):
    """The best linear estimate from the first two moments of the prior, cut at 0.

    m0 = sqrt(2 gamma / pi),  C = (1 - 2 / pi) gamma,  x = m0 + C Phi^T (sigma2 I + Phi C Phi^T)^-1 (y - Phi m0)

    Ours: x is cut before its square is taken; the objective is that of a normal y of these moments.
    """

    def run(
        self, phi: Array, y: Array, gamma: Array, sigma2: Array, state: State, key: Array
    ) -> tuple[Estimate, State]:
        prior = jnp.sqrt(2 * gamma / jnp.pi)
        mu, variance, trace, evidence = normal(phi, y - phi @ prior, (1 - 2 / jnp.pi) * gamma, sigma2)
        x = jnp.maximum(prior + mu, 0)
        return Estimate(x, x, x**2 + variance, _energy(phi, y, x) + trace.sum(), evidence), state


@dataclass(frozen=True)
class MCMC(EStep):
    """Gibbs sampling of the exact posterior, coordinate by coordinate; the chain goes on from one EM step to the next.

    x_m | rest ~ N(b / a, 1 / a) cut to x >= 0,  a = |phi_m|^2 / sigma2 + 1 / gamma_m,  b = phi_m^T (y - rest) / sigma2

    Args:
      sweeps: over all coordinates in one EM step, of which the moments are the average.
      burn: sweeps before them.

    The sampler is recalled. Ours: the objective, which is that of `Diagonal`.
    """

    sweeps: int = 20
    burn: int = 5
    stochastic = True

    def __post_init__(self) -> None:
        if self.sweeps < 1 or self.burn < 0:
            raise ValueError(f"MCMC: sweeps = {self.sweeps}, burn = {self.burn}; must be 1 or more, and 0 or more")

    def start(self, y: Array, gamma: Array) -> State:
        return State(columns=(jnp.zeros_like(gamma),))

    def run(
        self, phi: Array, y: Array, gamma: Array, sigma2: Array, state: State, key: Array
    ) -> tuple[Estimate, State]:
        on, energy = gamma > 0, jnp.sum(phi**2, axis=0)
        precision = energy / sigma2 + 1 / jnp.where(on, gamma, 1)
        atoms = phi.T

        def sweep(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            x, *sums = carry
            keys = jax.random.split(jax.random.fold_in(key, i), len(x))

            def coordinate(m: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
                x, r = at
                mean = (atoms[m] @ r + energy[m] * x[m]) / (sigma2 * precision[m])
                new = jnp.where(on[m], draw(keys[m], mean, 1 / jnp.sqrt(precision[m])), 0)
                return x.at[m].set(new), r + atoms[m] * (x[m] - new)

            x, r = lax.fori_loop(0, len(x), coordinate, (x, y - phi @ x))
            counts = jnp.where(i >= self.burn, 1 / self.sweeps, 0).astype(x.dtype)
            added = (x, x**2, r @ r)
            return x, *(total + counts * a for total, a in zip(sums, added))

        x = jnp.where(on, state.columns[0], 0)
        start = (x, jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros_like(sigma2))
        x, mean, second, residual = lax.fori_loop(0, self.burn + self.sweeps, sweep, start)
        likely, _ = Diagonal().run(phi, y, gamma, sigma2, State(), key)
        return Estimate(mean, likely.mode, second, residual, likely.objective), State(columns=(x,))


@dataclass(frozen=True)
class AMP(EStep):
    """Generalised approximate message passing: cut normals one by one, coupled by sums; no matrix is inverted.

    tp = |A|^2 tx;  p = A x - tp s;  s = (y - p) / (tp + sigma2);  tr = 1 / (|A|^2^T (1 / (tp + sigma2)));
    r = x + tr A^T s;  (x, tx) = the moments of x given r ~ N(x, tr)

    Args:
      rounds: of it in one EM step.
      damping: share of the old messages that is kept; 0 or more and below 1.

    Ours: A = U^T Phi, with U of Phi's singular vectors, so that designs that are not like independent ones do not
    make it diverge; the damping; and the objective, |y - Phi x|^2 / sigma2 + N log sigma2 + sum log gamma over the
    atoms that are on, which needs no matrix and is no bound of anything.
    """

    rounds: int = 5
    damping: float = 0.3
    rotated = True

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 <= self.damping < 1:
            raise ValueError(
                f"AMP: rounds = {self.rounds}, damping = {self.damping}; must be 1 or more, and 0 or more and below 1"
            )

    def start(self, y: Array, gamma: Array) -> State:
        return State(columns=(jnp.zeros_like(gamma), gamma), rows=(jnp.zeros_like(y),))

    def run(
        self, phi: Array, y: Array, gamma: Array, sigma2: Array, state: State, key: Array
    ) -> tuple[Estimate, State]:
        on, square = gamma > 0, phi**2
        prior = jnp.where(on, gamma, 1)

        def turn(_: int, at: tuple[Array, ...]) -> tuple[Array, ...]:
            x, tx, s = at[:3]
            tp = square @ tx
            weight = 1 / (tp + sigma2)
            s = self.damping * s + (1 - self.damping) * (y - phi @ x + tp * s) * weight
            tr = 1 / (weight @ square)
            r = x + tr * (s @ phi)
            narrow = prior * tr / (prior + tr)
            mu = narrow * r / tr
            mean, second = (jnp.where(on, m, 0) for m in rectified(mu, jnp.sqrt(narrow))[:2])
            kept = jnp.where(on, self.damping, 0)
            x = kept * x + (1 - kept) * mean
            tx = kept * tx + (1 - kept) * jnp.maximum(second - mean**2, 0)
            return x, tx, s, mean, second, jnp.where(on, jnp.maximum(mu, 0), 0)

        x, tx = (jnp.where(on, a, 0) for a in state.columns)
        zero = jnp.zeros_like(x)
        x, tx, s, mean, second, mode = lax.fori_loop(0, self.rounds, turn, (x, tx, state.rows[0], zero, zero, zero))
        tp, left = square @ tx, _energy(phi, y, mean)
        residual = left + jnp.sum(tp * sigma2 / (tp + sigma2))
        objective = left / sigma2 + len(y) * jnp.log(sigma2) + jnp.sum(jnp.where(on, jnp.log(prior), 0))
        return Estimate(mean, mode, second, residual, objective), State(columns=(x, tx), rows=(s,))


ESTEPS = {member.__name__.lower(): member for member in (Diagonal, LMMSE, MCMC, AMP, Gaussian)}
