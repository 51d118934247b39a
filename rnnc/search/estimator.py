"""scikit-learn's search with this tuner: `SearchCV` stands where `RandomizedSearchCV` does."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

try:
    from sklearn.model_selection._search import BaseSearchCV  # its hook `_run_search` is documented for subclasses
except ImportError as error:
    raise ImportError("rnnc.search.estimator: needs scikit-learn; install rnnc[demo]") from error

from rnnc.search.scheduler import Failure, SchedulerError, Score, reason
from rnnc.search.settings import Settings, TuneError
from rnnc.search.space import Configuration, Space
from rnnc.search.study import as_spaces
from rnnc.search.tune import tune


class SearchCV(BaseSearchCV):
    """Cross-validated search for an estimator's parameters, as `RandomizedSearchCV`, but by Bayesian optimisation.

    Args:
      estimator: any of scikit-learn's, a pipeline too.
      space: its parameters' values: a mapping or a `Space`; see there.
      settings: how to search; `trials` in all, `batch` at a time (0: five). Scores are always maximised; halving and
        asynchronous search are not to be had here.
      scoring, n_jobs, refit, cv, verbose, pre_dispatch, error_score, return_train_score: as in scikit-learn. With
        several scores `refit` names the one to search by. A candidate with an undefined score is a failed trial; one
        of a batch of which no fit succeeds is missing in `cv_results_`.

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> from rnnc.search.values import loguniform
    >>> search = SearchCV(SVC(), {"C": loguniform(-3, 5), "kernel": ["linear", "rbf"]}, Settings(trials=12))
    >>> search = search.fit(*load_iris(return_X_y=True))
    >>> bool(search.best_score_ > 0.96), len(search.cv_results_["params"]), sorted(search.best_params_)
    (True, 12, ['C', 'kernel'])
    """

    def __init__(
        self,
        estimator: Any,
        space: Mapping[str, Any] | Space,
        settings: Settings | None = None,
        *,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Any = "2*n_jobs",
        error_score: Any = np.nan,
        return_train_score: bool = False,
    ):
        self.space, self.settings = space, settings
        super().__init__(
            estimator=estimator,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )

    def _run_search(self, evaluate_candidates: Callable[[list[Configuration]], Mapping[str, Any]]) -> None:
        """Called by `fit`: candidates go to scikit-learn in batches, which computes them on `n_jobs` workers."""
        settings = self.settings or Settings()
        settings = dataclasses.replace(settings, batch=settings.batch or 5, maximise=True, metric="")
        spaces, failures = as_spaces(self.space), list[Exception]()
        for name, wrong in (
            ("halving", settings.halving is not None),
            ("asynchronous", settings.asynchronous),
            ("space", len(spaces) > 1),
        ):
            if wrong:
                raise TuneError(f"{name}: SearchCV has one space and gives each trial all of the data, in batches")
        (space,) = spaces.values()

        def score_by(results: Mapping[str, Any]) -> str:
            name = "mean_test_score" if "mean_test_score" in results else f"mean_test_{self.refit}"
            if name not in results:
                raise TuneError(f"refit: is {self.refit!r}, must name the score to search by")
            return name

        def schedule(score: Score, configurations: Iterable[Configuration]) -> Iterator[tuple[Configuration, Any]]:
            batch = list(configurations)
            try:
                results = evaluate_candidates(batch)
            except Exception as error:
                failures.append(error)
                if "fits failed" not in str(error):  # of all fits of a batch, which is no reason to give up
                    raise SchedulerError(str(error)) from error
                yield from ((configuration, Failure(reason(error))) for configuration in batch)
                return
            yield from zip(batch, np.asarray(results[score_by(results)], float)[-len(batch) :].tolist())

        try:
            found = tune(lambda configuration: math.nan, space, settings, scheduler=schedule)  # its score never counts
        except SchedulerError as error:
            raise error.__cause__ or error from None
        if found.best is None and failures:
            raise failures[-1]
