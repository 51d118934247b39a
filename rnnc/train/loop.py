"""The training loop: one function that takes a loss over parameters and knows no cell.

A run is a pure function of its configuration and seed: batches follow from the step, so a run that was stopped at any
moment and resumed ends with the same bits as one that was not.
"""

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rnnc.train import checkpoint

Params = Any
Batch = tuple[np.ndarray, ...]


class TrainError(ValueError):
    """Training cannot go on: what, at which step, and what to do."""


class Interrupted(KeyboardInterrupt):
    """The user or the system asked to stop; the state is saved."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a run goes.

    Args:
      steps: length; the learning rate falls to its end over them.
      batch: items of a step, over all devices; a multiple of `devices`.
      learning_rate: the peak, for Adam.
      warmup_steps: the rate rises linearly over them, then falls along a half cosine.
      final_rate: the rate at the end, as a share of the peak.
      clip_norm: gradients with a larger global norm are scaled down to it.
      valid_every: steps between validations; each is followed by a checkpoint.
      patience: validations without a new best after which the run stops; 0: never.
      log_every: steps between lines of the log.
      devices: data-parallel devices; 0: all there are.
    """

    steps: int = 1200
    batch: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_rate: float = 0.01
    clip_norm: float = 1.0
    valid_every: int = 200
    patience: int = 0
    log_every: int = 20
    devices: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "valid_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 1 or more")
        for name in ("warmup_steps", "patience", "devices"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 0 or more")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be above 0")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate: is {self.final_rate}, must be 0 to 1")

    def due(self, step: int, every: int) -> bool:
        """Whether something that is done every so many steps, and at the end, is to be done after this step."""
        return step % every == 0 or step == self.steps

    def rate(self) -> optax.Schedule:
        """Learning rate by step."""
        warmup = min(self.warmup_steps, self.steps - 1)
        peak, end = self.learning_rate, self.learning_rate * self.final_rate
        return optax.warmup_cosine_decay_schedule(peak / max(warmup, 1), peak, warmup, self.steps, end)

    def optimizer(self) -> optax.GradientTransformation:
        """Clipping, then Adam."""
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), optax.adam(self.rate()))


class State(NamedTuple):
    """All that a run needs to go on; saved in every checkpoint."""

    params: Params
    optimizer: Any
    best_score: np.ndarray
    best_step: np.ndarray


def fit(
    config: Train,
    *,
    params: Params,
    loss: Callable[..., jax.Array],
    batch: Callable[[int], Batch],
    validate: Callable[[Params], dict[str, float]],
    score: str,
    keep: Callable[[Params, int], None],
    observe: Callable[[dict[str, Any]], None],
    folder: Path,
    resume: bool,
    wrap: Callable[[optax.GradientTransformation], optax.GradientTransformation] = lambda tx: tx,
    keep_from: int = 0,
    until: int | None = None,
) -> dict[str, Any]:
    """Train `params` on `loss`, validate, keep the best, and checkpoint after every validation.

    Args:
      config: how long and how fast.
      params: initial parameters, a tree of arrays.
      loss: (params, *batch) -> scalar; pure and jittable.
      batch: step (from 0) -> arrays [config.batch, ...]; a pure function.
      validate: params -> numbers by name.
      score: the name among them that must rise.
      keep: called with (params, step) at every new best.
      observe: called with one plain dict per event: {"step", "loss", ...} or {"step", "valid"}.
      folder: where checkpoints go.
      resume: go on from the newest checkpoint there, if any.
      wrap: what goes around the optimiser, for instance a way of pruning, whose masks are then part of its state.
      keep_from: no step before this one can be the best.
      until: return after this step, with a checkpoint to go on from; None: at the end.

    Returns:
      {"params", "steps", "best_step", "best_score"} of the run, {"seconds", "items_per_s"} of this call.

    Raises:
      TrainError: loss or gradients are not finite; the state before that step is what the last checkpoint holds.
      Interrupted: SIGINT or SIGTERM came; the state was saved.
    """
    mesh = _mesh(config)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    optimizer = wrap(config.optimizer())
    state, step = State(params, optimizer.init(params), np.array(-np.inf, np.float32), np.array(0, np.int32)), 0
    if resume and (found := checkpoint.restore(folder, state)):
        step, state = found
    observe({"event": "start", "step": step, "devices": mesh.size})
    advance = _step(loss, optimizer, mesh)
    params, opt = jax.device_put((state.params, state.optimizer), whole)
    best = state.best_score, state.best_step
    meter, end = _Meter(config, step), config.steps if until is None else min(until, config.steps)
    with _stop_signals() as stopped, _prefetched(batch, step, end) as batches:
        while step < end and not _out_of_patience(config, step, int(best[1])):
            numbers = next(batches)
            params, opt, report = advance(params, opt, *jax.device_put(numbers, split))
            if not report["finite"]:
                raise TrainError(_why(loss, params, numbers, step, report))
            step += 1
            if config.due(step, config.log_every):
                observe(meter.line(step, report))
            if config.due(step, config.valid_every):
                valid = validate(jax.device_get(params))
                better = valid[score] > best[0] or not best[0] > -np.inf  # the first is always kept
                if better and step >= keep_from:
                    best = np.array(valid[score], np.float32), np.array(step, np.int32)
                    keep(jax.device_get(params), step)
                observe({"step": step, "valid": valid, "best": int(best[1]) == step})
            if config.due(step, config.valid_every) or step == end or stopped:
                checkpoint.save(folder, step, State(jax.device_get(params), jax.device_get(opt), *best))
                meter.skip(step)
            if stopped:
                observe({"event": "interrupted", "step": step})
                raise Interrupted(step)
    ended = {"params": jax.device_get(params), "steps": step}
    return {**ended, "best_step": int(best[1]), "best_score": float(best[0]), **meter.total(step)}


class _Meter:
    """How fast a run goes."""

    def __init__(self, config: Train, step: int):
        self.items, self.rate = config.batch, config.rate()
        self.first = self.step = step
        self.began = self.time = time.monotonic()

    def line(self, step: int, report: dict[str, jax.Array]) -> dict[str, Any]:
        """A line of the log; the speed is that since the last line."""
        speed = (step - self.step) * self.items / (time.monotonic() - self.time)
        self.skip(step)
        line = {"step": step, "loss": float(report["loss"]), "grad_norm": float(report["grad_norm"])}
        seconds = self.time - self.began
        return {**line, "lr": float(np.asarray(self.rate(step - 1))), "items_per_s": speed, "seconds": seconds}

    def skip(self, step: int) -> None:
        """Do not count the time since the last line."""
        self.step, self.time = step, time.monotonic()

    def total(self, step: int) -> dict[str, float]:
        """Time and speed of the whole call, validation and checkpoints included."""
        seconds = time.monotonic() - self.began
        return {"seconds": seconds, "items_per_s": (step - self.first) * self.items / max(seconds, 1e-9)}


def _mesh(config: Train) -> Mesh:
    devices = jax.devices()
    count = config.devices or len(devices)
    if count > len(devices):
        raise TrainError(f"train.devices: is {count}, this machine offers {len(devices)}")
    if config.batch % count:
        raise TrainError(f"train.batch: is {config.batch}, must be a multiple of the {count} devices")
    return Mesh(np.array(devices[:count]), ("data",))


def _step(
    loss: Callable[..., jax.Array], optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[..., tuple[Params, Any, dict[str, jax.Array]]]:
    """(params, optimizer state, *batch) -> the next of both and a report; a step that is not finite changes nothing."""

    def step(params: Params, opt: Any, *batch: jax.Array):
        value, gradients = jax.value_and_grad(loss)(params, *batch)
        value, gradients = jax.lax.pmean((value, gradients), "data")
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, new_opt = optimizer.update(gradients, opt, params)
        new = optax.apply_updates(params, updates), new_opt
        params, opt = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (params, opt))
        return params, opt, {"loss": value, "grad_norm": norm, "finite": finite}

    whole, part = PartitionSpec(), PartitionSpec("data")

    def sharded(params: Params, opt: Any, *batch: jax.Array):
        specs = (whole, whole, *(part for _ in batch))
        return jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)(params, opt, *batch)

    return jax.jit(sharded, donate_argnums=(0, 1))


def _why(loss: Callable[..., jax.Array], params: Params, batch: Batch, step: int, report: Any) -> str:
    """Name what is not finite in a failed step."""
    gradients = jax.grad(loss)(jax.device_get(params), *batch)
    bad = [name for name, g in checkpoint.flatten(gradients).items() if not np.isfinite(g).all()]
    items = [i for i in range(len(batch[0])) if not all(np.isfinite(part[i]).all() for part in batch)]
    where = f"; batch items {items} hold NaN or infinity" if items else ""
    grads = f"; gradients not finite: {', '.join(bad[:4])}{' ...' if len(bad) > 4 else ''}" if bad else ""
    advice = "nothing of this step was kept; begin anew with a lower train.learning_rate or train.clip_norm"
    return f"step {step + 1}: loss is {float(report['loss'])}{grads}{where}; {advice}"


def _out_of_patience(config: Train, step: int, best_step: int) -> bool:
    return bool(config.patience) and step - best_step >= config.patience * config.valid_every


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM comes; the second signal acts at once."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def note(number: int, frame: Any) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _prefetched(batch: Callable[[int], Batch], first: int, last: int, depth: int = 3) -> Iterator[Iterator[Batch]]:
    """The batches of steps first .. last - 1 in order, made ahead of need by a thread."""
    made: queue.Queue[Any] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: Any) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                return made.put(item, timeout=0.1)

    def work() -> None:
        try:
            for step in range(first, last):
                if closed.is_set():
                    return
                put(batch(step))
        except Exception as error:  # carried to the consumer, which raises it
            put(error)

    def take() -> Iterator[Batch]:
        for _ in range(first, last):
            item = made.get()
            if isinstance(item, Exception):
                raise item
            yield item

    thread = threading.Thread(target=work, name="rnnc-batches", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        closed.set()
        thread.join()
