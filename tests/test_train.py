"""Laws of training: the loss, and a loop that can be stopped anywhere and ends with the same bits."""

import logging
import os
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from rnnc.train import checkpoint, loop
from rnnc.train.checkpoint import CheckpointError
from rnnc.train.loop import Interrupted, Train, TrainError, fit
from rnnc.train.loss import FLOOR, Loss

# --- loss --------------------------------------------------------------------------------------------------

LOSSES = [
    Loss(),
    Loss(complex_weight=0.0),
    Loss(power=1.0, complex_weight=1.0),
    Loss(snr_weight=0.5, snr_limit_db=20.0),
    Loss(window=400, hop=100, power=0.5),
]


def _signals(seed: int, n: int = 2000) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((3, n)).astype(np.float32)


def _reference(loss: Loss, enhanced: np.ndarray, clean: np.ndarray) -> float:
    """The formula of the docstring in float64."""

    def spectra(x: np.ndarray) -> np.ndarray:
        tail = loss.window - loss.hop
        padded = np.pad(x.astype(np.float64), ((0, 0), (tail, -x.shape[1] % loss.hop + tail)))
        window = scipy.signal.get_window("hann", loss.window)
        frames = np.lib.stride_tricks.sliding_window_view(padded, loss.window, axis=1)[:, :: loss.hop]
        return np.fft.rfft(frames * window)

    y, s = spectra(enhanced), spectra(clean)
    p = loss.power
    magnitude = [np.sqrt(np.abs(z) ** 2 + FLOOR) for z in (y, s)]
    distance = np.mean((magnitude[1] ** p - magnitude[0] ** p) ** 2)
    phase = np.mean(np.abs(s * magnitude[1] ** (p - 1) - y * magnitude[0] ** (p - 1)) ** 2)
    energy, error = (np.sum(x.astype(np.float64) ** 2, axis=1) for x in (clean, clean - enhanced))
    snr = np.log10(energy / (error + 10 ** (-loss.snr_limit_db / 10) * energy))
    return distance + loss.complex_weight * phase - loss.snr_weight * np.mean(snr)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_against_the_formula(loss):
    y, s = _signals(0), _signals(1)
    assert float(loss(jnp.asarray(y), jnp.asarray(s))) == pytest.approx(_reference(loss, y, s), rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_of_equal_signals_is_its_least(loss):
    x = jnp.asarray(_signals(0))
    least = -loss.snr_weight * loss.snr_limit_db / 10
    assert float(loss(x, x)) == pytest.approx(least, abs=1e-5 if loss.snr_weight else 0.0)
    assert float(loss(0.9 * x, x)) > least + 1e-5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-6, 1e4])
def test_gradient_is_finite_on_silence_and_loud_sound(loss, size):
    x, silence = size * jnp.asarray(_signals(0)), jnp.zeros((3, 2000))
    for enhanced, clean in ((x, silence), (silence, x), (x, x)):
        value, gradient = jax.value_and_grad(loss)(enhanced, clean)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


def test_losses_that_are_refused():
    for wrong in ({"power": 0.05}, {"power": 1.5}, {"complex_weight": -1.0}, {"snr_weight": -0.1}, {"hop": 100}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Loss(**wrong)


# --- the loop, on a linear regression -----------------------------------------------------------------------

TRUE = np.array([1.0, -2.0, 0.5], np.float32)
TOY = Train(steps=60, batch=8, learning_rate=0.1, warmup_steps=5, valid_every=10, log_every=1, devices=1)


def _start() -> dict:
    return {"w": np.zeros(3, np.float32), "deep": {"b": np.zeros((), np.float32)}}


def _loss(params, x, y):
    return jnp.mean(jnp.square(x @ params["w"] + jnp.broadcast_to(params["deep"]["b"], y.shape) - y))


def _batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    x = rng.standard_normal((8, 3)).astype(np.float32)
    return x, x @ TRUE + 1.0 + 0.1 * rng.standard_normal(8).astype(np.float32)


def _score(params) -> dict[str, float]:
    return {"score": -float(np.square(params["w"] - TRUE).sum())}


def _fit(folder, config=TOY, *, resume=False, observe=None, **changes):
    """A run of the toy; everything that it reported."""
    events, kept = [], []

    def watch(event):
        events.append(event)
        if observe:
            observe(event)

    parts = {"params": _start(), "loss": _loss, "batch": _batch, "validate": _score, **changes}
    keep = lambda params, step: kept.append((step, jax.tree.map(np.array, params)))
    options = {"score": "score", "keep": keep, "observe": watch, "folder": folder, "resume": resume}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        return fit(config, **parts, **options), events, kept


def _newest(folder) -> tuple[int, dict[str, np.ndarray]]:
    """Step and all arrays of the newest checkpoint."""
    params = _start()
    best = np.array(0, np.float32), np.array(0, np.int32)
    found = checkpoint.restore(folder, loop.State(params, TOY.optimizer().init(params), *best))
    assert found is not None
    return found[0], checkpoint.flatten(found[1])


def _identical(a, b) -> None:
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        np.testing.assert_array_equal(a[1][name], b[1][name], err_msg=name, strict=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed: its folder, result, events and kept parameters."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *_fit(folder)


def test_it_learns_and_keeps_the_best(whole):
    folder, result, events, kept = whole
    assert _loss(kept[-1][1], *_batch(999)) < 0.05 < _loss(_start(), *_batch(999))
    scores = {e["step"]: e["valid"]["score"] for e in events if "valid" in e}
    assert list(scores) == [10, 20, 30, 40, 50, 60]
    rising = [s for s in scores if scores[s] > max([-np.inf, *(scores[t] for t in scores if t < s)])]
    assert [step for step, _ in kept] == rising == [e["step"] for e in events if e.get("best")]
    assert result["steps"] == 60
    assert result["best_step"] == max(scores, key=scores.get)
    assert result["best_score"] == pytest.approx(max(scores.values()))
    for step, params in kept:
        assert _score(params)["score"] == scores[step]
    assert checkpoint.steps(folder) == [50, 60]


def test_a_run_in_legs_is_the_run(whole, tmp_path):
    """Stopped after a step that asks for nothing else, then another, gone on with each time: the same bits."""
    for until in (25, 47):
        result, _, _ = _fit(tmp_path, resume=True, until=until)
        assert result["steps"] == checkpoint.steps(tmp_path)[-1] == until
    result, events, _ = _fit(tmp_path, resume=True, until=1000)
    assert events[0]["step"] == 47
    _identical(_newest(tmp_path), _newest(whole[0]))
    assert (result["best_step"], result["best_score"]) == (whole[1]["best_step"], whole[1]["best_score"])
    jax.tree.map(np.testing.assert_array_equal, result["params"], whole[1]["params"])


def test_learning_rate_by_step(whole):
    events = [e for e in whole[2] if "lr" in e]
    assert [e["step"] for e in events] == list(range(1, 61))
    for event in events:
        i = event["step"] - 1
        share = i / 55 - 5 / 55
        falling = 0.001 + (0.1 - 0.001) * 0.5 * (1 + np.cos(np.pi * share))
        assert event["lr"] == pytest.approx(0.02 + (0.1 - 0.02) * i / 5 if i < 5 else falling, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs(tmp_path, steps):
    result, events, _ = _fit(tmp_path, Train(steps=steps, batch=8, devices=1))
    assert result["steps"] == steps
    assert all(np.isfinite(e["lr"]) and e["lr"] > 0 for e in events if "lr" in e)


def test_gradients_are_clipped(tmp_path):
    """With one step of a huge gradient, Adam's moments hold the clipped one."""
    loss = lambda params, x, y: 1e4 * _loss(params, x, y)
    _fit(tmp_path, Train(steps=1, batch=8, devices=1, clip_norm=0.5), loss=loss)
    table = _newest(tmp_path)[1]
    moment = np.sqrt(sum(np.square(a).sum() for name, a in table.items() if "mu" in name))
    assert moment == pytest.approx(0.1 * 0.5, rel=1e-5)


def test_patience(tmp_path):
    values = iter([1.0, 3.0, 2.0, 3.0, 2.5, 9.0])
    config = Train(steps=60, batch=8, valid_every=10, patience=3, devices=1)
    result, _, kept = _fit(tmp_path, config, validate=lambda params: {"score": next(values)})
    assert (result["steps"], result["best_step"], result["best_score"]) == (50, 20, 3.0)
    assert [step for step, _ in kept] == [10, 20]
    result, events, _ = _fit(tmp_path, config, resume=True, validate=lambda params: pytest.fail("it had stopped"))
    assert (result["steps"], result["best_step"]) == (50, 20)
    assert [e for e in events if "step" in e and "event" not in e] == []


class Stop(Exception):
    """Thrown by a test into the loop."""


@pytest.mark.parametrize("at", [1, 10, 11, 29, 59])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, whole, at):
    def stop(event):
        if event.get("step") == at:
            raise Stop

    with pytest.raises(Stop):
        _fit(tmp_path, observe=stop)
    result, events, kept = _fit(tmp_path, resume=True)
    assert events[0] == {"event": "start", "step": 10 * ((at - (at % 10 == 0)) // 10), "devices": 1}
    _identical(_newest(tmp_path), _newest(whole[0]))
    assert (result["best_step"], result["best_score"]) == (whole[1]["best_step"], whole[1]["best_score"])
    for step, params in kept[-1:]:
        last, wanted = whole[3][-1]
        _identical((step, checkpoint.flatten(params)), (last, checkpoint.flatten(wanted)))


def test_a_finished_run_resumed_changes_nothing(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "c")
    before = _newest(tmp_path / "c")
    result, _, kept = _fit(tmp_path / "c", resume=True)
    assert result["steps"] == 60
    assert kept == []
    _identical(_newest(tmp_path / "c"), before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, whole, number):
    before = signal.getsignal(number)

    def interrupt(event):
        if event.get("step") == 23 and "event" not in event:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        _fit(tmp_path, observe=interrupt)
    assert checkpoint.steps(tmp_path)[-1] == caught.value.args[0]
    assert caught.value.args[0] in (23, 24)
    assert signal.getsignal(number) is before
    _fit(tmp_path, resume=True)
    _identical(_newest(tmp_path), _newest(whole[0]))


def test_a_second_signal_stops_at_once(tmp_path):
    def interrupt(event):
        if event.get("step") == 3 and "event" not in event:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        _fit(tmp_path, observe=interrupt)
    assert not isinstance(caught.value, Interrupted)


def test_two_devices_equal_one(tmp_path, whole):
    """Means over halves round otherwise than the mean over all: a few units in the last place, over 60 steps."""
    if len(jax.devices()) < 2:
        pytest.fail("tests need two devices: conftest.py asks for them")
    _, events, _ = _fit(tmp_path, Train(**{**TOY.__dict__, "devices": 2}))
    assert events[0]["devices"] == 2
    two, one = _newest(tmp_path)[1], _newest(whole[0])[1]
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("devices", [1, 2])
def test_nan_in_a_batch_stops_in_that_step_and_reaches_no_checkpoint(tmp_path, devices):
    def batch(step):
        x, y = _batch(step)
        if step == 33:
            x[2, 1], y[5] = np.nan, np.inf
        return x, y

    where = r"^step 34: loss is nan; gradients not finite: deep\.b, w; batch items \[2, 5\] hold NaN or inf.*begin anew"
    with pytest.raises(TrainError, match=where):
        _fit(tmp_path, Train(**{**TOY.__dict__, "devices": devices}), batch=batch)
    assert checkpoint.steps(tmp_path) == [20, 30]
    assert all(np.isfinite(a).all() for a in _newest(tmp_path)[1].values())


def test_a_gradient_that_is_not_finite_stops_although_the_loss_is(tmp_path):
    loss = lambda params, x, y: _loss(params, x, y) + jnp.sqrt(jnp.sum(params["w"] * 0))
    with pytest.raises(TrainError, match=r"^step 1: loss is \d.*; gradients not finite: w; nothing"):
        _fit(tmp_path, loss=loss)
    assert checkpoint.steps(tmp_path) == []


def test_a_score_of_nan_gives_way_to_any_number(tmp_path):
    values = iter([np.nan, -1.0, np.nan, -2.0, np.nan, np.nan])
    result, _, kept = _fit(tmp_path, validate=lambda params: {"score": next(values)})
    assert [step for step, _ in kept] == [10, 20], "the first in any case, then the first that is a number"
    assert (result["best_step"], result["best_score"]) == (20, -1.0)


def test_impossible_devices(tmp_path):
    with pytest.raises(TrainError, match=r"train\.devices: is 99, this machine offers"):
        _fit(tmp_path, Train(devices=99))
    with pytest.raises(TrainError, match=r"train\.batch: is 7, must be a multiple of the 2 devices"):
        _fit(tmp_path, Train(batch=7, devices=2))


# --- checkpoints ---------------------------------------------------------------------------------------------


# Reads that orbax has under way when the first of them fails end after its event loop; they say so and that is all.
noisy = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def copy(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


@noisy
def test_a_damaged_checkpoint_is_passed_over(copy, whole, caplog):
    for file in _files(copy / "step_00000060"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level(logging.WARNING, "rnnc"):
        assert _newest(copy)[0] == 50
    assert "step_00000060: damaged, passed over" in caplog.text
    _fit(copy, resume=True)
    _identical(_newest(copy), _newest(whole[0]))


@noisy
def test_any_damage_is_noticed_or_harmless(whole, tmp_path, caplog):
    """Each file missing, emptied or with one bit flipped: the older checkpoint, or exactly the newest one."""
    good = {step: table for step, table in [_newest(whole[0])]}
    rng = np.random.default_rng(0)
    for file in _files(whole[0] / "step_00000060"):
        for kind in ("missing", "empty", "flip", "flip"):
            folder = tmp_path / "c"
            shutil.copytree(whole[0], folder)
            target, data = folder / file.relative_to(whole[0]), bytearray(file.read_bytes())
            if kind == "missing":
                target.unlink()
            elif kind == "empty" or not data:
                target.write_bytes(b"")
            else:
                at = int(rng.integers(len(data)))
                data[at] ^= 1 << int(rng.integers(8))
                target.write_bytes(data)
            step, table = _newest(folder)
            assert step in (50, 60), (file, kind)
            if step == 60:
                _identical((step, table), (60, good[60]))
            shutil.rmtree(folder)


@noisy
def test_nothing_but_damage_is_an_error(copy):
    for file in _files(copy):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of 2 checkpoints can be read; start without --resume"):
        _fit(copy, resume=True)


def test_no_checkpoint_at_all_starts_from_the_beginning(tmp_path):
    _, events, _ = _fit(tmp_path / "new", Train(steps=2, batch=8, devices=1), resume=True)
    assert events[0]["step"] == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": np.zeros(4, np.float32)}, r"'params\.w' is float32\[3\], must be float32\[4\]"),
        ({"w": np.zeros(3, np.float16)}, r"'params\.w' is float32\[3\], must be float16\[3\]"),
        ({"v": np.zeros(3, np.float32)}, r"holds no 'params\.v'"),
        ({}, r"holds 'optimizer.*\.w', which has no place here"),
    ],
)
def test_the_checkpoint_of_another_model(copy, params, message):
    with pytest.raises(CheckpointError, match=rf"step_00000060: .*{message}.*another model"):
        _fit(copy, resume=True, params={**params, "deep": {"b": np.zeros((), np.float32)}})


def test_a_file_system_that_takes_no_more(copy, capfd):
    """The kernel itself refuses writes beyond 64 KiB; the earlier checkpoints stay, later a save succeeds."""
    before, limits = _newest(copy), resource.getrlimit(resource.RLIMIT_FSIZE)
    state = {"w": np.random.default_rng(0).standard_normal(100_000).astype(np.float32)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step_00000070: cannot be written"):
            checkpoint.save(copy, 70, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.steps(copy) == [50, 60]
    assert capfd.readouterr().err == ""
    _identical(_newest(copy), before)
    checkpoint.save(copy, 70, state)
    assert sorted(p.name for p in copy.iterdir()) == ["step_00000060", "step_00000070"]


def test_leftovers_of_a_kill_are_swept(copy):
    for name in ("trash-step_00000040-77", "step_00000070.orbax-checkpoint-tmp-3"):
        (copy / name).mkdir()
    assert checkpoint.steps(copy) == [50, 60]
    checkpoint.save(copy, 70, {"w": np.ones(3, np.float32)})
    assert sorted(p.name for p in copy.iterdir()) == ["step_00000060", "step_00000070"]


def test_saving_a_step_again_replaces_it(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, 5, {"w": np.full(3, value, np.float32)})
    step, state = checkpoint.restore(tmp_path, {"w": np.zeros(3, np.float32)})
    assert (step, state["w"].tolist()) == (5, [2.0, 2.0, 2.0])


def test_every_kind_of_array_comes_back(tmp_path):
    state = {
        "float": np.array([1.5, -0.0, 1e-40], np.float32),
        "scalar": np.array(7, np.int32),
        "bool": np.array([True, False]),
        "half": np.array([[0.5]], np.float16),
        "list": [np.ones(2, np.float32), (np.zeros(1, np.int8),)],
    }
    checkpoint.save(tmp_path, 1, state)
    _, again = checkpoint.restore(tmp_path, jax.tree.map(np.zeros_like, state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state)):
        assert a.tobytes() == b.tobytes()
        assert (a.dtype, a.shape) == (b.dtype, b.shape)


# --- batches made ahead ----------------------------------------------------------------------------------------


def test_batches_come_in_order_and_not_far_ahead():
    made = []

    def batch(step):
        made.append(step)
        time.sleep(0.001 * (step % 3))
        return (np.array([step]),)

    with loop._prefetched(batch, 4, 30, depth=3) as batches:
        for step in range(4, 30):
            assert next(batches)[0].tolist() == [step]
            assert max(made) <= step + 5
        assert next(batches, None) is None
    assert made == list(range(4, 30))


def test_the_maker_of_batches_fails(tmp_path):
    def batch(step):
        if step == 7:
            raise OSError(5, "the disk is gone")
        return _batch(step)

    with pytest.raises(OSError, match="the disk is gone"):
        _fit(tmp_path, batch=batch)
    assert [t for t in threading.enumerate() if t.name == "rnnc-batches"] == []


def test_leaving_early_ends_the_thread():
    with loop._prefetched(lambda step: (np.zeros(1),), 0, 10**9) as batches:
        next(batches)
    assert [t for t in threading.enumerate() if t.name == "rnnc-batches"] == []
