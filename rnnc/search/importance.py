"""Which parameters decide the score, by the process that was fitted to the trials."""

from collections.abc import Sequence

import numpy as np

from rnnc.search import gaussian, propose
from rnnc.search.space import Configuration, Space

GRID, OTHERS = 24, 48


def importance(
    space: Space, tried: Sequence[Configuration], values: Sequence[float], seed: int = 0
) -> dict[str, float]:
    """Share of the expected score's variance that each parameter explains alone, 0 to 1; all 0 where nothing is known.

    Var_p(E_others[mu]) / Var(mu),  mu the posterior mean, over the whole space

    Args:
      space: what was searched.
      tried: configurations.
      values: theirs, the higher the better; they are warped as for proposals.
      seed: of the draws.

    >>> from rnnc.search.values import Uniform
    >>> space = Space({"x": Uniform(0, 1), "y": Uniform(0, 1)})
    >>> tried = space.sample(30, np.random.default_rng(0))
    >>> shares = importance(space, tried, [c["x"] + 0.1 * c["y"] for c in tried])
    >>> shares["x"] > 0.8 > 0.1 > shares["y"]
    True

    Source: the first-order part of functional ANOVA (Hutter et al. 2014), there on random forests; Mango has none.
    """
    names = space.names
    if len(tried) < 3 or np.ptp(values) == 0 or not space.width:
        return dict.fromkeys(names, 0.0)
    rng = np.random.default_rng(seed)
    process = gaussian.fit(space.encode(tried), propose.warp(np.asarray(values, float)), seed)
    others = rng.random((OTHERS, len(names)))
    shares = {}
    for i, name in enumerate(names):
        places = np.repeat(others[None], GRID, axis=0)
        places[:, :, i] = ((np.arange(GRID) + 0.5) / GRID)[:, None]
        mean, _ = process.predict(space.encode(space.at(places.reshape(-1, len(names)))))
        mean = mean.reshape(GRID, OTHERS)
        shares[name] = float(mean.mean(axis=1).var() / (mean.var() or 1.0))
    return shares
