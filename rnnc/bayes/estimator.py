"""R-SBL as an estimator of scikit-learn, which must be installed: `pip install "rnnc[demo]"`."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from rnnc.bayes import rsbl
from rnnc.bayes.esteps import ESTEPS
from rnnc.bayes.priors import PRIORS


class RectifiedSBL(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Linear regression with sparse coefficients of 0 or more, by `rsbl.fit`; no intercept.

    Args:
      estep: "diagonal", "lmmse", "mcmc", "amp" or "gaussian" (not rectified), or a member with options.
      prior: "flat", "laplace" or "studentt", or a member with options.
      sigma2: variance of the noise; None: learnt.
      point, prune, tolerance, iterations: as for `rsbl.fit`.
      random_state: an integer, the seed of a sampler.

    After `fit`, coef_ [M] or [targets, M], gamma_ of the same shape, sigma2_ and n_iter_. A ConvergenceWarning says
    that a target needs more iterations, or has failed.

    >>> X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> RectifiedSBL(sigma2=1e-4, point="mode").fit(X, X @ [0.0, 2.0]).coef_.round(2).tolist()
    [0.0, 2.0]

    Source: R-SBL, section 8 of our survey.
    """

    def __init__(
        self,
        *,
        estep: Any = "diagonal",
        prior: Any = "flat",
        sigma2: float | None = None,
        point: str = "mean",
        prune: float = 1e-5,
        tolerance: float = 1e-5,
        iterations: int = 500,
        random_state: int = 0,
    ):
        self.estep = estep
        self.prior = prior
        self.sigma2 = sigma2
        self.point = point
        self.prune = prune
        self.tolerance = tolerance
        self.iterations = iterations
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> "RectifiedSBL":
        """Estimate the coefficients: X [samples, M], y [samples] or [samples, targets]."""
        checks: dict[str, Any] = {"X": X, "y": y, "dtype": np.float64, "multi_output": True, "y_numeric": True}
        X, y = validate_data(self, **checks)
        estep = _member("estep", self.estep, ESTEPS)
        found = rsbl.fit(
            X,
            np.asarray(y, np.float64).T,
            estep=estep,
            prior=_member("prior", self.prior, PRIORS),
            sigma2=self.sigma2,
            point=self.point,
            prune=self.prune,
            tolerance=self.tolerance,
            iterations=self.iterations,
            seed=self.random_state or 0,
        )
        if not found.converged.all() and not estep.stochastic:
            left = np.sum(~found.converged)
            text = f"RectifiedSBL: {left} of {found.converged.size} targets did not converge; see iterations, sigma2"
            warnings.warn(text, ConvergenceWarning, stacklevel=2)
        self.coef_, self.gamma_ = found.x, found.gamma
        self.sigma2_, self.n_iter_ = found.sigma2, int(found.iterations.max())
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """X [samples, M] -> what is expected of y."""
        check_is_fitted(self)
        checks: dict[str, Any] = {"X": X, "reset": False, "dtype": np.float64}
        return validate_data(self, **checks) @ self.coef_.T


def _member(name: str, given: Any, members: dict[str, Any]) -> Any:
    """A member by its name, or as it is."""
    if isinstance(given, str):
        if given not in members:
            raise ValueError(f"{name}: is {given!r}, must be one of {', '.join(members)}")
        return members[given]()
    return given
