"""R-SBL as an estimator of scikit-learn: its own checks, and that it is `rsbl.fit`."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='scikit-learn comes with "rnnc[demo]"')

from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from rnnc.bayes import rsbl
from rnnc.bayes.esteps import MCMC
from rnnc.bayes.estimator import RectifiedSBL
from rnnc.bayes.priors import Laplace


@pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.SkipTestWarning", "ignore::sklearn.exceptions.ConvergenceWarning"
)
@parametrize_with_checks([RectifiedSBL(iterations=50)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_it_is_fit():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((10, 6)), rng.standard_normal((10, 2))
    options = {"sigma2": 0.1, "point": "mode"}
    found = RectifiedSBL(prior=Laplace(2.0), **options).fit(x, y)
    np.testing.assert_array_equal(found.coef_, rsbl.fit(x, y.T, prior=Laplace(2.0), **options).x)
    np.testing.assert_allclose(found.predict(x), x @ found.coef_.T)


def test_every_option_is_passed_on():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((10, 6)), rng.standard_normal(10)
    for given in ({"prune": 0.5}, {"tolerance": 0.3}, {"iterations": 5}, {"estep": MCMC(sweeps=2), "seed": 3}):
        own = {("random_state" if name == "seed" else name): value for name, value in given.items()}
        model = RectifiedSBL(sigma2=0.1, **own)
        if given.get("iterations") == 5:
            with pytest.warns(ConvergenceWarning, match="1 of 1 targets did not converge"):
                model.fit(x, y)
        else:
            model.fit(x, y)
        np.testing.assert_array_equal(model.coef_, rsbl.fit(x, y, sigma2=0.1, **given).x)
        plain = {name: value for name, value in given.items() if name == "estep"}
        assert np.any(model.coef_ != rsbl.fit(x, y, sigma2=0.1, **plain).x), "it makes a difference"


@pytest.mark.parametrize("option", [{"estep": "gibbs"}, {"prior": "cauchy"}])
def test_unknown_names(option):
    with pytest.raises(ValueError, match="must be one of"):
        RectifiedSBL(**option).fit(np.eye(2), [1.0, 2.0])
