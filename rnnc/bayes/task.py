"""Dictionaries bent to a task: a linear classifier on the codes of all views, whose loss also moves the atoms.

state = begin(task, model, views, labels, jax.random.key(0))   # the classifier alone, on the codes as they are
state = fit(task, views, labels, state)                        # classifier and dictionaries
classes = jnp.argmax(logits(state, transform(state.model, unseen, task.passes)), axis=1)
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from rnnc.bayes.codes import Codes, Model, fitting, transform
from rnnc.bayes.coupled import in_turn, infer, owners

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Task:
    """How classifier and dictionaries learn from labels.

    Args:
      classes: 2 or more.
      epochs: passes over all samples.
      batch: samples of a gradient step.
      rate: of Adam for the classifier, above 0.
      atom_rate: of Adam for the atoms, 0 or more; 0: they stay.
      decay: weight of |W|^2 / 2, 0 or more.
      passes: EM steps of gamma, as for `transform`.

    Source: task-driven variant, section 7.1 of our survey, which knows only that it exists. Ours: the loss, that gamma
    is held while the gradient is taken, Adam, unit norms after every step.
    """

    classes: int
    epochs: int = 10
    batch: int = 100
    rate: float = 3e-3
    atom_rate: float = 3e-3
    decay: float = 1e-3
    passes: int = 10

    def __post_init__(self) -> None:
        for name, least in (("classes", 2), ("epochs", 0), ("batch", 1), ("passes", 0), ("atom_rate", 0), ("decay", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be {least} or more")
        if not self.rate > 0:
            raise ValueError(f"rate: is {self.rate}, must be above 0")


class Params(NamedTuple):
    """What the gradient moves: D_j [N_j, M_j] each, W [sum of M_j, classes], b [classes]."""

    dictionaries: tuple[Array, ...]
    weight: Array
    bias: Array


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True, kw_only=True)
class TaskState:
    """All that `fit` goes on with; a tree of plain arrays.

    Args:
      model: with the atoms as they are now.
      weight, bias: of the classifier, on the means of all views side by side divided by `spread`.
      spread: root mean square of the codes at the beginning.
      moments: of Adam.
      epoch: how many are done.
      key: data of the random key.
    """

    model: Model
    weight: Array
    bias: Array
    spread: Array
    moments: optax.OptState
    epoch: Array
    key: Array


def linear(
    features: Array, labels: ArrayLike, classes: int, decay: float, steps: int = 500, rate: float = 0.03
) -> tuple[Array, Array]:
    """Multinomial logistic regression on all samples at once: W [F, classes] and b [classes] after so many Adam steps.

    Minimises mean cross entropy + decay |W|^2 / 2.

    >>> w, b = linear(jnp.array([[-1.0], [1.0]]), [0, 1], 2, decay=0.01)
    >>> jnp.argmax(jnp.array([[-3.0], [2.0]]) @ w + b[None], axis=1).tolist()
    [0, 1]
    """
    labels = jnp.asarray(labels)
    tx = optax.adam(rate)

    @jax.jit
    def run(features: Array, labels: Array) -> tuple[Array, Array]:
        first = (jnp.zeros((features.shape[1], classes), features.dtype), jnp.zeros(classes, features.dtype))

        def loss(params: tuple[Array, Array]) -> Array:
            return _entropy(features @ params[0] + params[1][None], labels) + decay / 2 * jnp.sum(jnp.square(params[0]))

        def step(carry, _):
            params, state = carry
            with jax.numpy_dtype_promotion("standard"):  # Adam counts in integers
                updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = lax.scan(step, (first, tx.init(first)), None, length=steps)
        return cast(tuple[Array, Array], params)

    return run(features, labels)


def begin(task: Task, model: Model, views: Sequence[ArrayLike], labels: ArrayLike, key: Array) -> TaskState:
    """The state before the first epoch: a classifier that is fitted to the codes of the model as it is.

    Args:
      task: how to learn.
      model: dictionaries learned without labels.
      views: [L, N_j] each, all there.
      labels: [L], 0 to classes - 1.
      key: of the order of the samples.

    Raises:
      ValueError: labels are of another number than the samples, or of classes that there are not.
    """
    views = fitting(model, views)
    given = _labels(task, labels, len(views[0]))
    means = jnp.concatenate(transform(model, views, task.passes).means, axis=1)
    spread = jnp.sqrt(jnp.mean(jnp.square(means))) + jnp.finfo(means.dtype).tiny
    weight, bias = linear(means / spread, given, task.classes, task.decay)
    params = Params(model.dictionaries, weight, bias)
    moments = _optimiser(task).init(params)
    epoch = jnp.zeros((), jnp.int32)
    return TaskState(
        model=model,
        weight=weight,
        bias=bias,
        spread=spread,
        moments=moments,
        epoch=epoch,
        key=jax.random.key_data(key),
    )


def fit(
    task: Task, views: Sequence[ArrayLike], labels: ArrayLike, state: TaskState, until: int | None = None
) -> TaskState:
    """Go on until so many epochs are done in all (None: `task.epochs`); stopping in between changes no number."""
    ready = tuple(jnp.asarray(y, state.spread.dtype) for y in fitting(state.model, views))
    given = jnp.asarray(_labels(task, labels, len(ready[0])))
    if task.batch > len(given):
        raise ValueError(f"batch: is {task.batch}, must be at most the {len(given)} samples")
    for _ in range(int(state.epoch), task.epochs if until is None else until):
        state = _epoch(task, ready, given, state)
    return jax.block_until_ready(state)


def logits(state: TaskState, codes: Codes) -> Array:
    """[L, classes] from the codes of `transform(state.model, views, task.passes)`."""
    return jnp.concatenate(codes.means, axis=1) / state.spread @ state.weight + state.bias[None]


def loss(
    task: Task, model: Model, spread: Array, params: Params, views: Sequence[Array], labels: Array, gamma: Array
) -> Array:
    """Mean cross entropy + decay |W|^2 / 2, as a function of `params` where gamma [B, M] is given.

    mu_j = Gamma D_j^T (noise_j I + D_j Gamma D_j^T)^-1 y_j;  logits = W^T [mu_1; mu_2; ...] / spread + b
    """
    owner = owners([d.shape[1] for d in params.dictionaries])
    scaled = [y / scale for y, scale in zip(views, model.scale)]
    found = in_turn(params.dictionaries, [gamma[:, who] for who in owner], model.noise, scaled)
    scores = jnp.concatenate([one.mean for one in found], axis=1) / spread @ params.weight + params.bias[None]
    return _entropy(scores, labels) + task.decay / 2 * jnp.sum(jnp.square(params.weight))


def _entropy(scores: Array, labels: Array) -> Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))


def _optimiser(task: Task) -> optax.GradientTransformation:
    rates = {"atoms": optax.adam(task.atom_rate), "classifier": optax.adam(task.rate)}
    return optax.partition(rates, Params("atoms", "classifier", "classifier"))  # pyright: ignore


@partial(jax.jit, static_argnames="task")
def _epoch(task: Task, views: tuple[Array, ...], labels: Array, state: TaskState) -> TaskState:
    """One pass over all samples in a random order, but for those that do not fill a batch."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.epoch)
    order = jax.random.permutation(key, len(labels))
    batches = order[: len(order) // task.batch * task.batch].reshape(-1, task.batch)
    model, tx = state.model, _optimiser(task)
    prior = jnp.broadcast_to(model.prior[None], (task.batch, len(model.prior)))

    def step(carry: tuple[Params, optax.OptState], rows: Array) -> tuple[tuple[Params, optax.OptState], None]:
        params, moments = carry
        some = [y[rows] for y in views]
        scaled = [y / scale for y, scale in zip(some, model.scale)]
        gamma, _ = infer(params.dictionaries, model.noise, prior, scaled, task.passes)
        gradient = jax.grad(partial(loss, task, model, state.spread))(params, some, labels[rows], gamma)
        with jax.numpy_dtype_promotion("standard"):  # Adam counts in integers
            updates, moments = tx.update(gradient, moments, params)
        params = cast(Params, optax.apply_updates(cast(optax.Params, params), updates))
        unit = tuple(d / jnp.linalg.norm(d, axis=0, keepdims=True) for d in params.dictionaries)
        return (params._replace(dictionaries=unit), moments), None

    first = Params(model.dictionaries, state.weight, state.bias)
    (params, moments), _ = lax.scan(step, (first, state.moments), batches)
    return dataclasses.replace(
        state,
        model=dataclasses.replace(model, dictionaries=params.dictionaries),
        weight=params.weight,
        bias=params.bias,
        moments=moments,
        epoch=state.epoch + 1,
    )


def _labels(task: Task, labels: ArrayLike, count: int) -> np.ndarray:
    given = np.asarray(labels)
    if given.shape != (count,) or given.dtype.kind not in "iu":
        raise ValueError(f"labels: are {given.dtype} {list(given.shape)}, must be {count} integers, one a sample")
    if given.min() < 0 or given.max() >= task.classes:
        raise ValueError(f"labels: are {given.min()} to {given.max()}, must be 0 to {task.classes - 1}")
    return given.astype(np.int32)
