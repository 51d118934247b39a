"""Small classifiers and their training: all seeds and learning rates of one method in one compiled function."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.nn import initializers
from jax.sharding import NamedSharding, PartitionSpec

from rnnc.arith import Fake, Formats
from rnnc.cells import CELLS
from rnnc.compress.quantise import Quantise, cell_formats
from rnnc.export import model as export
from rnnc.recipes.tasks import Part, Parts
from rnnc.steps import LSTM, Carry, Core
from rnnc.structure import Dense
from rnnc.unroll import unroll

Array = jax.Array
Params = dict[str, Any]
State = dict[str, Any]
Wrap = Callable[[optax.GradientTransformation], optax.GradientTransformation]
WARMUP = 0.1  # share of the steps over which the learning rate rises
optimised = jax.jit  # for what runs in every epoch
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # for what runs once
SETTLED = 0.6  # share of the epochs after which pruning is over and the best epoch is looked for


class Network(Protocol):
    """Items [B, T, n] -> a score for each class [B, classes]."""

    def init(self, key: Array) -> Params: ...
    def __call__(self, params: Params, x: Array) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """One recurrent layer whose last output feeds a dense layer.

    The structured matrices are written out before the loop over time: the same function and the same gradients, and
    every structure trains at the speed of the dense one. An LSTM's forget gate begins with a bias of 1, which Kronecker
    factors gain most from.

    Args:
      core: the cell.
      inputs, units, classes: n, m and the number of scores.

    >>> from rnnc.steps import GRU
    >>> network = Recurrent(core=Core(step=GRU), inputs=3, units=8, classes=5)
    >>> network(network.init(jax.random.key(0)), jnp.ones((2, 7, 3))).shape
    (2, 5)
    """

    core: Core
    inputs: int
    units: int
    classes: int

    def init(self, key: Array) -> Params:
        """{"cell": the core's, "head": {"w" [units, classes], "b" [classes]}}."""
        first, second = jax.random.split(key)
        cell = self.core.init(first, self.inputs, self.units)
        if self.core.step is LSTM:
            cell["recurrent_bias"] = cell["recurrent_bias"].at[self.units : 2 * self.units].set(1.0)
        return {"cell": cell, "head": _dense(second, self.units, self.classes)}

    def __call__(self, params: Params, x: Array) -> Array:
        """x [B, T, inputs] -> scores [B, classes]."""
        w, u = self.core.matrices(params["cell"])
        plain = Core(step=self.core.step, kernel=Dense(), recurrent=Dense())
        cell = {**params["cell"], "kernel": {"w": w}, "recurrent": {"w": u}}
        start = plain.carry((x.shape[0],), self.units)
        ended: tuple[Carry, Carry] = unroll(plain, False, cell, start, jnp.swapaxes(x, 0, 1))  # pyright: ignore
        return _apply(params["head"], plain.output(ended[0]))


@dataclass(frozen=True, kw_only=True)
class Perceptron:
    """Dense layers with ReLU between them; the whole item is one input. 784, 300, 100, 10 is LeNet-300-100.

    >>> network = Perceptron(widths=(6, 4, 3))
    >>> network(network.init(jax.random.key(0)), jnp.ones((2, 2, 3))).shape
    (2, 3)

    Source: LeCun et al. 1998; the network of the pruning literature in section 9.2 of our survey.
    """

    widths: tuple[int, ...]

    def init(self, key: Array) -> Params:
        """{"0": {"w" [n, m], "b" [m]}, "1": ...}."""
        pairs = list(zip(self.widths, self.widths[1:]))
        keys = jax.random.split(key, len(pairs))
        return {str(i): _dense(k, n, m) for i, (k, (n, m)) in enumerate(zip(keys, pairs))}

    def __call__(self, params: Params, x: Array) -> Array:
        """x [B, ...], its items as large as the first width -> scores [B, the last width]."""
        y, last = x.reshape(x.shape[0], -1), len(params) - 1
        for i in range(last):
            y = jax.nn.relu(_apply(params[str(i)], y))
        return _apply(params[str(last)], y)


def _dense(key: Array, n: int, m: int) -> Params:
    return {"w": initializers.lecun_normal()(key, (n, m), jnp.float32), "b": jnp.zeros(m)}


def _apply(layer: Params, x: Array) -> Array:
    return x @ layer["w"] + layer["b"][None]


class Fitted(NamedTuple):
    """One trained member: accuracies in percent, at its best epoch on the validation part."""

    valid: float
    test: float
    epoch: int
    params: Params


def fit(
    network: Network,
    wrap: Wrap,
    parts: Parts,
    *,
    members: list[tuple[int, float]],
    epochs: int,
    batch: int,
    observe: Callable[[int, float], None] = lambda epoch, valid: None,
) -> list[Fitted]:
    """Train one network several times: Adam with gradients clipped to norm 1, warm-up, cosine decay.

    Each member is trained by itself: its result does not depend on the others. The best epoch is looked for in the
    last 40 % of them, where pruning is over; of equal ones the last stands.

    Args:
      network: what to train.
      wrap: goes around the optimiser; pruning, or the identity.
      parts: the data.
      members: (seed, peak learning rate) of each; the seed draws weights and batches.
      epochs: passes over the training part, 1 or more.
      batch: items of a step; at most all of them.
      observe: told (epoch, mean validation accuracy in percent) after each epoch.

    Returns:
      One entry per member, in their order.
    """
    training = _Training(network=network, wrap=wrap, epochs=epochs, batch=batch, items=len(parts.train.x))
    arrange, spread = _devices(len(members))
    own, shared = PartitionSpec("member"), PartitionSpec()

    def each(states: State, seeds: Array, rates: Array, epoch: Array, train: Part, valid: Part) -> tuple[State, Array]:
        one = lambda member: training.advance(member[0], member[1], member[2], epoch, train, valid)
        return lax.map(one, (states, seeds, rates))

    run = optimised(arrange(each, (own, own, own, shared, shared, shared), (own, own)), donate_argnums=0)
    score = quick(arrange(lambda p, part: lax.map(lambda q: _accuracy(network, q, part), p), (own, shared), own))
    seeds, rates = (spread(np.array(column, kind), own) for column, kind in zip(zip(*members), (np.int32, np.float32)))
    states = jax.tree.map(lambda *leaves: spread(np.stack(leaves), own), *(training.begin(*one) for one in members))
    train, valid, test = (Part(*(spread(a, shared) for a in part)) for part in parts[:3])
    for epoch in range(1, epochs + 1):
        states, found = run(states, seeds, rates, spread(np.int32(epoch), shared), train, valid)
        observe(epoch, float(np.mean(found)))
    best = states["best"]
    columns = (np.asarray(a) for a in (best["valid"], score(best["params"], test), best["epoch"]))
    weights = jax.tree.map(np.asarray, best["params"])
    return [
        Fitted(float(v), float(t), int(e), jax.tree.map(lambda a, i=i: a[i], weights))
        for i, (v, t, e) in enumerate(zip(*columns))
    ]


@dataclass(frozen=True, kw_only=True)
class _Training:
    """The training of one member, in pure functions.

    Args:
      network, wrap, epochs, batch: as in `fit`.
      items: of the training part.
    """

    network: Network
    wrap: Wrap
    epochs: int
    batch: int
    items: int

    def optimiser(self, rate: Array | float) -> optax.GradientTransformation:
        """The rate rises over a tenth of the steps and falls as a cosine to 0."""
        steps = self.epochs * max(1, self.items // self.batch)
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, round(WARMUP * steps)), max(2, steps))
        adam = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(lambda step: rate * schedule(step)))
        return optax.chain(optax.clip_by_global_norm(1.0), self.wrap(adam))

    def begin(self, seed: int, rate: float) -> State:
        """The state before the first epoch: parameters, optimiser, and the best that was found."""
        params = self.network.init(jax.random.key(seed))
        best = {"params": params, "valid": jnp.float32(-1), "epoch": jnp.int32(0)}
        return {"params": params, "inner": self.optimiser(rate).init(params), "best": best}

    def advance(
        self, state: State, seed: Array, rate: Array, epoch: Array, train: Part, valid: Part
    ) -> tuple[State, Array]:
        """One epoch: the next state, and the validation accuracy."""
        tx = self.optimiser(rate)

        def loss(params: Params, x: Array, y: Array) -> Array:
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(self.network(params, x), y))

        def step(carry: Any, items: Array) -> Any:
            params, inner = carry
            gradients = jax.grad(loss)(params, train.x[items], train.y[items])
            updates, inner = tx.update(gradients, inner, params)
            return (optax.apply_updates(params, updates), inner), None

        order = jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), self.items)
        batch = min(self.batch, self.items)
        order = order[: self.items // batch * batch].reshape(-1, batch)
        (params, inner), _ = lax.scan(step, (state["params"], state["inner"]), order)
        found = {"params": params, "valid": _accuracy(self.network, params, valid), "epoch": epoch}
        better = (epoch > int(SETTLED * self.epochs)) & (found["valid"] >= state["best"]["valid"])
        best = jax.tree.map(partial(jnp.where, better), found, state["best"])
        return {"params": params, "inner": inner, "best": best}, found["valid"]


class Integers(NamedTuple):
    """A trained recurrent network with 8-bit weights: its accuracy in percent, and the bytes of its numbers."""

    accuracy: float
    bytes: int


def in_integers(network: Recurrent, params: Params, parts: Parts, items: int = 1000) -> Integers:
    """What the chip would make of a trained network, without any training in integers.

    The formats are read off so many training items; accuracy is that on the test items, by the numbers of the C code.
    """
    core, params = network.core, jax.tree.map(jnp.asarray, params)
    sequences = lambda part: jnp.swapaxes(jnp.asarray(part.x), 0, 1)
    formats = cell_formats(core, params["cell"], sequences(parts.train)[:, :items], Quantise())
    cell = CELLS[core.step.name](
        network.inputs,
        network.units,
        kernel=core.kernel,
        recurrent=core.recurrent,
        arith=Fake(formats=formats),
        rngs=nnx.Rngs(0),
    )
    cell.set_weights(params["cell"])
    last = replace(formats, x=formats.h, x_in=formats.h_in)
    right = _right(cell.core, last, cell.core.prepared(cell.weights()), params["head"], sequences(parts.test))
    head = network.units * network.classes + 3 * network.classes  # a shift and a bias of 16 bits for each class
    return Integers(100 * float(np.mean(right == np.asarray(parts.test.y))), export.sizes(cell)[0].flash + head)


@partial(jax.jit, static_argnums=(0, 1))
def _right(core: Core, last: Formats, cell: Params, head: Params, xs: Array) -> Array:
    """The class that is found for each sequence of xs [T, B, n]."""
    A, start = Fake(formats=last), core.carry((xs.shape[1],), core.matrices(cell)[0].shape[1] // core.step.gates)
    ended: tuple[Carry, Carry] = unroll(core, False, cell, start, core.arith.constant("x", xs))  # pyright: ignore
    h = A.move("gx.in", "x", core.output(ended[0]))
    scores = A.dot("gx", "gx.in", h, A.weight("gx.in", head["w"], (0,)))
    return jnp.argmax(A.bias("gx", scores, A.constant("bias", head["b"])[None]), axis=-1)


def _accuracy(network: Network, params: Params, part: Part) -> Array:
    """Items classified rightly, percent."""
    right = jnp.argmax(network(params, jnp.asarray(part.x)), axis=-1).astype(part.y.dtype) == part.y
    return 100 * jnp.mean(right.astype(jnp.float32))


def _devices(members: int) -> tuple[Callable[..., Any], Callable[..., Array]]:
    """Ways to spread the members over as many devices as divide them: around a function, and for an array."""
    count = max(n for n in range(1, jax.device_count() + 1) if members % n == 0)
    mesh = jax.make_mesh((count,), ("member",), devices=jax.devices()[:count])
    arrange = lambda f, i, o: jax.shard_map(f, mesh=mesh, in_specs=i, out_specs=o, check_vma=False)
    return arrange, lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
