"""Digits told from their left and right halves: codes that the halves share against early fusion of the halves."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnc.bayes import msbdl, task
from rnnc.bayes.msbdl import Codes, Model, Msbdl, transform
from rnnc.bayes.task import Task, TaskState
from rnnc.recipes import tasks

ARMS = ("raw pixels", "concatenated", "joint")
DECAYS = (1e-4, 1e-3, 1e-2)  # each arm tries these on the validation items
ATOMS = 48  # of each half; twice as many where the halves are side by side, so that there are as many codes
Part = tuple[Sequence[np.ndarray], np.ndarray]


def split(seed: int, source: str = "digits") -> list[Part]:
    """Training, validation and test items, drawn anew for each seed: ([left, right], labels) each.

    The mean of the training items is taken off.

    >>> [(len(y), [half.shape[1] for half in halves]) for halves, y in split(0)]
    [(1100, [32, 32]), (200, [32, 32]), (497, [32, 32])]
    """
    parts = tasks.load(source, None)
    three = (parts.train, parts.valid, parts.test)
    x, y = (np.concatenate([np.asarray(part[i]) for part in three]) for i in (0, 1))
    order = np.random.default_rng(seed).permutation(len(x))
    valid, scored = len(parts.valid.x), len(parts.test.x)
    cuts = (order[valid + scored :], order[:valid], order[valid : valid + scored])
    x = x - x[cuts[0]].mean(axis=0)
    middle = x.shape[2] // 2
    return [
        ([part.reshape(len(at), -1) for part in (x[at][:, :, :middle], x[at][:, :, middle:])], y[at]) for at in cuts
    ]


def measure(arm: str, seed: int, sweeps: int) -> dict[str, Any]:
    """Test accuracy of a linear classifier on fixed features and, for codes, after the labels moved the atoms too."""
    train, valid, test = split(seed)
    if arm == "raw pixels":
        return {"fixed": _raw(train, valid, test)}
    if arm == "concatenated":
        train, valid, test = (([np.concatenate(halves, axis=1)], y) for halves, y in (train, valid, test))
    views = len(train[0])
    config = Msbdl(
        atoms=(2 * ATOMS // views,) * views,
        sweeps=sweeps,
        anneal=0.03 ** (0.5 / sweeps),
        review_every=max(1, sweeps // 6),
    )
    key = jax.random.key(seed)
    model = msbdl.fit(config, train[0], msbdl.start(config, train[0], key)).model()
    tried = [_tried(decay, model, (train, valid, test), key) for decay in DECAYS]
    fixed, moved = zip(*tried)
    return {"fixed": _chosen(fixed), "moved": _chosen(moved), "noise_share": [float(n) for n in _share(model)]}


def _share(model: Model) -> np.ndarray:
    return np.asarray(model.noise) * [len(d) for d in model.dictionaries]


def _tried(decay: float, model: Model, parts: Sequence[Part], key: jax.Array) -> list[tuple[float, float]]:
    """(validation, test) accuracy with atoms as they are, and with atoms that the labels moved."""
    (views, labels), *scored = parts
    how = Task(classes=10, epochs=6, decay=decay, passes=6)
    first = task.begin(how, model, views, labels, key)
    last = task.fit(how, views, labels, first)
    return [tuple(_accuracy(state, how, part) for part in scored) for state in (first, last)]  # pyright: ignore


def _accuracy(state: TaskState, how: Task, part: Part) -> float:
    codes: Codes = transform(state.model, part[0], how.passes)
    return _right(task.logits(state, codes), part[1])


def _raw(*parts: Part) -> float:
    train, valid, test = (jnp.asarray(np.concatenate(halves, axis=1)) for halves, _ in parts)
    spread = jnp.sqrt(jnp.mean(jnp.square(train)))
    tried = []
    for decay in DECAYS:
        weight, bias = task.linear(train / spread, parts[0][1], 10, decay)
        scores = [x / spread @ weight + bias[None] for x in (valid, test)]
        tried.append(tuple(_right(s, part[1]) for s, part in zip(scores, parts[1:])))
    return _chosen(tried)


def _right(scores: jax.Array, labels: np.ndarray) -> float:
    return float(np.mean(np.argmax(np.asarray(scores), axis=1) == labels))


def _chosen(tried: Sequence[tuple[float, float]]) -> float:
    """The second number of the pair whose first is the largest; of several, the first pair."""
    return max(tried, key=lambda pair: pair[0])[1]
