"""Tuning in parallel by Bayesian optimisation: propose, compute anywhere, record, go on after any fault.

The objective is a function of a configuration; the tuner knows nothing else of what it tunes. What is proposed follows
from the seed and from the results alone, not from their order within a batch, so that a study that was stopped goes on
to the trials of one that was not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from rnnc.search.scheduler import Scheduler, Score, Serial
from rnnc.search.settings import Outcome, Result, Settings
from rnnc.search.space import Configuration
from rnnc.search.store import Store
from rnnc.search.study import Spaces, Study


def tune(
    score: Score,
    space: Spaces,
    settings: Settings | None = None,
    *,
    scheduler: Scheduler | None = None,
    store: Path | str = ":memory:",
    resume: bool = False,
    known: Sequence[tuple[Configuration, float]] = (),
    first: Sequence[Configuration] = (),
    stop: Callable[[Result], bool] | None = None,
    observe: Callable[[Outcome], None] | None = None,
) -> Result:
    """Search a space for the configuration with the best score.

    Args:
      score: a configuration -> a number, or a table of numbers; where it raises, or gives None or what is not finite,
        the trial has failed.
      space: a `Space`, or what makes one; or several, by name: then configurations name theirs under "space".
      settings: how.
      scheduler: who computes; None: this process.
      store: file of the study; ":memory:": none.
      resume: go on with the study in that file, if there is one.
      known: results from before, as (configuration, value); they cost nothing.
      first: configurations to try first.
      stop: asked before each proposal whether to end.
      observe: told of every trial that ends.

    Raises:
      TuneError: settings that cannot be; a scheduler from which nothing comes back.
      SpaceError: the space, or a configuration given, is wrong.
      StoreError: the file holds a study and `resume` is false, or one of another space; another run controls it.

    >>> result = tune(lambda c: -(c["x"] - 3) ** 2, {"x": range(100)}, Settings(trials=20))
    >>> result.best.configuration, result.best.value
    ({'x': 3}, 0.0)

    Source: Mango, section 6 of our survey. There a lost batch is gone and the state of exploration lives in the
    settings; here every trial is on disk before it runs, and a proposal depends on results and seed alone.
    """
    settings = settings or Settings()
    with Store(store) as opened:
        study = Study(score, space, settings, scheduler or Serial(), opened, stop, observe)
        study.open(resume, known, first)
        return study.run()
