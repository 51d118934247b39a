"""The tuner in scikit-learn's search: its results are scikit-learn's own, its contract that of RandomizedSearchCV."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from rnnc.search.estimator import SearchCV
from rnnc.search.importance import importance
from rnnc.search.propose import Bayes
from rnnc.search.settings import Halving, Settings, TuneError
from rnnc.search.space import Space, When
from rnnc.search.values import SpaceError, Uniform, loguniform

X, Y = load_iris(return_X_y=True)
SPACE = {
    "svc__C": loguniform(-5, 6),
    "svc__kernel": ["linear", "rbf"],
    "svc__gamma": When(loguniform(-4, 4), {"svc__kernel": "rbf"}),
}


def _search(**more) -> SearchCV:
    pipeline = make_pipeline(StandardScaler(), SVC())
    return SearchCV(pipeline, SPACE, Settings(trials=15, batch=5), cv=3, **more)


def test_scores_are_those_of_cross_validation():
    search = _search().fit(X, Y)
    results = search.cv_results_
    assert len(results["params"]) == 15
    for params, mean in list(zip(results["params"], results["mean_test_score"]))[::5]:
        assert mean == pytest.approx(cross_val_score(clone(search.estimator).set_params(**params), X, Y, cv=3).mean())
    assert search.best_score_ == max(results["mean_test_score"])
    assert search.best_params_ == results["params"][search.best_index_]
    refitted = clone(search.estimator).set_params(**search.best_params_).fit(X, Y)
    np.testing.assert_array_equal(search.predict(X), refitted.predict(X))


def test_it_is_an_estimator():
    search = _search(scoring=["accuracy", "f1_macro"], refit="f1_macro")
    again = clone(search).fit(X, Y)
    assert again.best_score_ == max(again.cv_results_["mean_test_f1_macro"])
    assert again.fit(X, Y).best_params_ == clone(search).fit(X, Y).best_params_, "the same seed, the same search"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning", "ignore:One or more of the test scores")
def test_candidates_that_fail_cost_a_trial():
    space = {"C": [-1.0, 1.0, 2.0, 3.0]}
    search = SearchCV(SVC(), space, Settings(trials=4, batch=2), cv=3).fit(X, Y)
    assert np.isnan(search.cv_results_["mean_test_score"]).sum() == 1
    assert search.best_params_["C"] > 0
    with pytest.raises(SpaceError, match="C: is 3, must be"):
        SearchCV(SVC(), {"C": 3}).fit(X, Y)


class Wrong(SVC):
    """Raises what is no failure of a fit's."""

    def fit(self, X, y):
        raise RuntimeError("no memory")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning", "ignore:One or more of the test scores")
def test_what_fails_altogether_is_told_and_costs_no_more():
    space = {"C": [-float(i) for i in range(8)] + [1.0, 2.0, 3.0]}
    search = SearchCV(SVC(), space, Settings(trials=11, batch=1, bayes=Bayes(start=1)), cv=3).fit(X, Y)
    assert search.best_params_["C"] > 0
    results = search.cv_results_
    means = [cross_val_score(SVC(**params), X, Y, cv=3).mean() for params in results["params"]]
    np.testing.assert_allclose(results["mean_test_score"], means)
    assert len(means) == 3
    with pytest.raises(ValueError, match="fits failed"):
        SearchCV(SVC(), {"C": [-1.0, -2.0]}, Settings(trials=2, batch=1), cv=3).fit(X, Y)
    with pytest.raises(RuntimeError, match="no memory"):
        SearchCV(Wrong(), {"C": [1.0, 2.0]}, Settings(trials=2), cv=3, error_score="raise").fit(X, Y)


def test_the_search_learns_from_the_scores_of_each_batch():
    """Each batch has scores of its own, and high ones are sought, whatever `maximise` says."""
    told = []
    space = {"C": loguniform(-5, 8)}
    settings = Settings(trials=20, batch=4, maximise=False)
    search = SearchCV(SVC(), space, settings, cv=3).fit(X, Y)
    for params, mean in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"]):
        told.append((params["C"], mean))
    late = [mean for _, mean in told[12:]]
    assert np.mean(late) > np.mean([mean for _, mean in told[:5]])


@pytest.mark.parametrize(
    ("name", "space", "settings"),
    [
        ("halving", {"C": [1.0]}, Settings(halving=Halving(key="max_iter", levels=(1, 9)))),
        ("asynchronous", {"C": [1.0]}, Settings(asynchronous=True)),
        ("space", {"a": Space({"C": [1.0]}), "b": Space({"C": [2.0]})}, Settings()),
    ],
)
def test_what_it_cannot_do_is_refused(name, space, settings):
    with pytest.raises(TuneError, match=f"{name}: SearchCV"):
        SearchCV(SVC(), space, settings).fit(X, Y)


def test_importance_finds_what_matters():
    space = Space({"a": Uniform(0, 1), "b": ["u", "v"], "c": range(10), "d": When(Uniform(0, 1), {"b": "v"})})
    tried = space.sample(60, np.random.default_rng(0))
    for name, score in (
        ("a", lambda c: np.sin(3 * c["a"]) + 0.05 * c["c"] / 9),
        ("b", lambda c: 2.0 * (c["b"] == "u") + 0.2 * c["a"]),
        ("c", lambda c: -abs(c["c"] - 4) + 0.3 * c["a"]),
    ):
        shares = importance(space, tried, [float(score(c)) for c in tried])
        assert max(shares, key=lambda n: shares[n]) == name
        assert shares[name] > 0.7
        assert all(0 <= share <= 1 for share in shares.values())
    assert set(importance(space, tried, [1.0] * 60).values()) == {0.0}


def test_several_scores_need_one_to_search_by():
    search = _search(scoring=["accuracy", "f1_macro"], refit=False)
    with pytest.raises(TuneError, match="refit: is False, must name the score to search by"):
        search.fit(X, Y)
