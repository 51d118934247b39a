"""A Gaussian process that is fitted in milliseconds: Matern 5/2, a length scale for each dimension, noise."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

# What may be found, for inputs in 0 .. 1 and outputs of unit spread
LENGTHS, NOISES, SCALES = (0.005, 20.0), (1e-6, 0.3), (0.05, 20.0)
FITTED_ON = 120  # points at most that decide the hyperparameters; all points decide the prediction
JITTER = 1e-8


@dataclass(frozen=True)
class Gaussian:
    """A fitted process.

    k(a, b) = s (1 + r + r^2 / 3) exp(-r),  r = sqrt(5 sum_d ((a_d - b_d) / l_d)^2),  y = f(x) + N(0, n)

    Args:
      x: inputs [N, D], in 0 .. 1.
      lengths: l [D].
      scale, noise: s and n.
      factor: lower Cholesky factor of k(x, x) + n [N, N].
      weights: (k(x, x) + n)^-1 y [N].
    """

    x: np.ndarray
    lengths: np.ndarray
    scale: float
    noise: float
    factor: np.ndarray
    weights: np.ndarray

    def covariance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """k of a [A, D] and b [B, D] -> [A, B], before anything is known."""
        return self.scale * _matern(cdist(a / self.lengths, b / self.lengths))

    def seen(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean [M] at x [M, D], and [N, M] whose inner products are what the data explain of k."""
        cross = self.covariance(self.x, x)
        return cross.T @ self.weights, solve_triangular(self.factor, cross, lower=True, check_finite=False)

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and standard deviation of f at x [M, D] -> [M], [M].

        >>> process = fit(np.array([[0.0], [1.0]]), np.array([-1.0, 1.0]))
        >>> mean, spread = process.predict(np.array([[0.0], [0.5]]))
        >>> bool(spread[0] < spread[1])
        True
        """
        mean, explained = self.seen(x)
        return mean, np.sqrt(np.maximum(self.scale - np.sum(explained**2, axis=0), 1e-12))


def fit(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Gaussian:
    """Fit to x [N, D] in 0 .. 1 and y [N], of about zero mean and unit spread: the most probable hyperparameters.

    Priors: log l ~ N(log 0.4 + log(D) / 2, 1), log s ~ N(0, 1), log n ~ N(log 1e-4, 2).

    Args:
      x, y: the data.
      seed: draws the points that decide the hyperparameters, where there are more than `FITTED_ON`.

    Source: Mango's surrogate, section 6.2 of our survey: Matern 5/2 by scikit-learn with one length scale, maximum
    likelihood from 10 starts. Ours has a length scale for each dimension, and priors in place of most starts.
    """
    chosen = np.arange(len(x))
    if len(x) > FITTED_ON:
        best = np.argsort(y)[-FITTED_ON // 4 :]
        rest = np.setdiff1d(chosen, best)
        drawn = np.random.default_rng(seed).choice(rest, FITTED_ON - len(best), replace=False)
        chosen = np.sort(np.concatenate([best, drawn]))
    lengths, scale, noise = _hyperparameters(x[chosen], y[chosen])
    k = scale * _matern(cdist(x / lengths, x / lengths))
    factor = cholesky(k + (noise + JITTER * scale) * np.eye(len(x)), lower=True, check_finite=False)
    weights = cho_solve((factor, True), y, check_finite=False)
    return Gaussian(x=x, lengths=lengths, scale=scale, noise=noise, factor=factor, weights=weights)


def _matern(r: np.ndarray) -> np.ndarray:
    """Of scaled distances, before the factor sqrt(5)."""
    r = np.sqrt(5.0) * r
    return (1 + r + r * r / 3) * np.exp(-r)


def _hyperparameters(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The most probable of two descents, from smooth and from rough; of one where there are many points."""
    n, d = x.shape
    prior = _prior(d)
    squares = np.array([cdist(column[:, None], column[:, None], "sqeuclidean") for column in x.T]).reshape(d, n, n)
    bounds = [tuple(np.log(LENGTHS))] * d + [tuple(np.log(SCALES)), tuple(np.log(NOISES))]
    starts = [prior[0], prior[0] + np.concatenate([np.full(d, -1.2), [0.0, 0.0]])][: 2 if n < 40 else 1]
    options = {"maxiter": 30, "maxfun": 40, "ftol": 1e-5}
    found = [
        minimize(_energy, s, (squares, y, prior), jac=True, bounds=bounds, method="L-BFGS-B", options=options)
        for s in starts
    ]
    theta = min(found, key=lambda result: result.fun).x
    return np.exp(theta[:d]), float(np.exp(theta[d])), float(np.exp(theta[d + 1]))


def _prior(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of the logarithms of l [D], s and n, see `fit`."""
    mean = np.concatenate([np.full(d, np.log(0.4) + 0.5 * np.log(max(d, 1))), [0.0, np.log(1e-4)]])
    return mean, np.concatenate([np.ones(d), [1.0, 2.0]])


def _energy(
    theta: np.ndarray, squares: np.ndarray, y: np.ndarray, prior: tuple[np.ndarray, np.ndarray]
) -> tuple[float, np.ndarray]:
    """Negative log posterior of theta = log (l, s, n), but for a constant, and its gradient.

    squares [D, N, N] are (a_d - b_d)^2.  dk / d log l_d = s 5/3 (1 + r) exp(-r) (a_d - b_d)^2 / l_d^2
    """
    d, n = len(squares), len(y)
    inverse, scale, noise = np.exp(-2 * theta[:d]), np.exp(theta[d]), np.exp(theta[d + 1])
    r = np.sqrt(5 * np.tensordot(inverse, squares, 1))
    decay = np.exp(-r)
    k = scale * (1 + r + r * r / 3) * decay
    try:
        factor = cholesky(k + (noise + JITTER * scale) * np.eye(n), lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return 1e25, np.zeros_like(theta)
    alpha = cho_solve((factor, True), y, check_finite=False)
    inner = cho_solve((factor, True), np.eye(n), check_finite=False) - np.outer(alpha, alpha)
    off = (theta - prior[0]) / prior[1]
    value = 0.5 * y @ alpha + np.log(np.diag(factor)).sum() + 0.5 * off @ off
    slope = inner * (scale * 5 / 3 * (1 + r) * decay)
    lengths = [0.5 * np.sum(slope * squares[i]) * inverse[i] for i in range(d)]
    ends = [0.5 * np.sum(inner * k), 0.5 * noise * np.trace(inner)]
    return value, np.array([*lengths, *ends]) + off / prior[1]
