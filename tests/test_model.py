"""Laws of the denoiser: streams equal batches, nothing looks ahead or across channels, files give the same model."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnnc import config, container
from rnnc.audio.stft import Bands, Stft
from rnnc.model import Enhancer, Model
from rnnc.recipes.run import load_model, save_model
from rnnc.structure import Joint, Kron, LowRank
from rnnc.train import checkpoint
from rnnc.train.checkpoint import CheckpointError

ROUNDING = 1e-5  # of float32 over a few layers, signals of about unit size
SMALL = Model(units=(12, 12), hidden=16, bands=Bands(count=24))
MODELS = {
    "lstm": SMALL,
    "gru": dataclasses.replace(SMALL, cell="gru", units=(12,)),
    "fastrnn": dataclasses.replace(SMALL, cell="fastrnn", units=(12, 12, 12)),
    "kron": dataclasses.replace(SMALL, kernel=Kron(), recurrent=Joint()),
    "skip": dataclasses.replace(SMALL, cell="gru", recurrent=LowRank(rank=3), skip=True),
    "hop of a quarter": dataclasses.replace(SMALL, stft=Stft(window=400, hop=100)),
}


def _enhancer(model: Model = SMALL, seed: int = 1) -> Enhancer:
    enhancer = Enhancer(model, rngs=nnx.Rngs(seed))
    if model.skip:
        enhancer.layers[0].cell.gate["bias"][...] = jnp.full(1, -1.0)  # else a fresh one skips nothing
    return enhancer


_whole = nnx.jit(lambda enhancer, x: enhancer(x))  # a whole batch at once, compiled once for a length


def _sound(channels: int, samples: int, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


def _streamed(stream, x: np.ndarray, sizes: list[int]) -> np.ndarray:
    cuts = np.cumsum([0, *sizes])
    out = [stream.push(x[:, a:b]) for a, b in itertools.pairwise(cuts)]
    return np.concatenate([*out, stream.push(x[:, cuts[-1] :]), stream.flush()], axis=1)


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """An enhancer of each kind, and its stream for two channels."""
    enhancer = _enhancer(MODELS[request.param])
    return enhancer, enhancer.stream(2)


def test_stream_equals_batch_for_any_blocks(pair):
    """Lengths around multiples of the hop, blocks of 0 to 70 hops, one stream for all: `flush` starts anew."""
    enhancer, stream = pair
    rng = np.random.default_rng(5)
    for n, largest in ((1, 2), (257, 50), (3000, 99), (3000, 700), (3000, 3000), (19001, 18000)):
        x, sizes = _sound(2, n, n), []
        while sum(sizes) < n:
            sizes.append(min(int(rng.integers(largest + 1)), n - sum(sizes)))
        y = _streamed(stream, x, sizes)
        assert y.shape == x.shape
        assert np.abs(y).max() > 1e-3
        np.testing.assert_allclose(y, _whole(enhancer, x), atol=ROUNDING)


def test_channels_are_independent(pair):
    enhancer, stream = pair
    a, b = _sound(2, 3000), _sound(2, 3000, 1)
    mixed = np.stack([a[0], b[1]])
    for enhance in (lambda x: np.asarray(_whole(enhancer, x)), lambda x: _streamed(stream, x, [1000])):
        both = enhance(mixed)
        np.testing.assert_array_equal(both[0], enhance(a)[0])
        np.testing.assert_array_equal(both[1], enhance(b)[1])
    alone = _streamed(enhancer.stream(1), a[:1], [777])
    np.testing.assert_allclose(alone[0], _whole(enhancer, a)[0], atol=ROUNDING)


def test_nothing_looks_ahead(pair):
    """What a stream has given is what the batch gives, whatever comes later."""
    enhancer, stream = pair
    x, other = _sound(2, 3000), _sound(2, 3000, 1)
    other[:, :1700] = x[:, :1700]
    finished = stream.push(x[:, :1700]).shape[1]
    stream.reset()
    assert finished >= 1700 - stream.latency_samples
    a, b = _whole(enhancer, x), _whole(enhancer, other)
    np.testing.assert_allclose(a[:, :finished], b[:, :finished], atol=ROUNDING)
    assert np.abs(a[:, 1700:] - b[:, 1700:]).max() > 1e-3


def test_latency(pair):
    """Sample n is out when n + latency_samples + 1 samples are in, and for some n no sooner."""
    _, stream = pair
    stream.reset()
    out, given = 0, []
    for _ in range(1300):
        out += stream.push(np.zeros((2, 1))).shape[1]
        given.append(out)  # [i]: after i + 1 samples
    stream.reset()
    late = [int(np.argmax(np.array(given) > n)) - n for n in range(600)]
    assert max(late) == stream.latency_samples


def test_a_stream_knows_how_long_it_sleeps(pair):
    """What it announces comes to pass, frame by frame, and the counts are those of the batch."""
    enhancer, stream = pair
    stream.reset()
    x, hop = _sound(2, 256 * 40), stream.stft.hop
    asleep = np.zeros(2, int)  # frames still to be skipped, as announced at the last update
    for at in range(0, 40 * hop, hop):
        before = stream.updates
        stream.push(x[:, at : at + hop])
        updated = stream.updates > before
        np.testing.assert_array_equal(updated, asleep == 0)
        asleep = np.where(updated, stream.frames_to_skip, asleep - 1)
        np.testing.assert_array_equal(asleep, stream.frames_to_skip)
    assert stream.frames == 40
    assert (stream.updates < 40).all() == enhancer.model.skip
    if enhancer.model.skip:
        _, rate = enhancer.run(x[:, : 40 * hop - (stream.stft.window - hop)])
        np.testing.assert_allclose(rate, stream.updates.mean() / 40, atol=0.02)  # one frame more or less at the end


def test_reset_forgets(pair):
    enhancer, stream = pair
    x = _sound(2, 3000)
    stream.push(_sound(2, 1234, 3))
    stream.reset()
    np.testing.assert_allclose(_streamed(stream, x, [300]), _whole(enhancer, x), atol=ROUNDING)


def test_nothing_in_nothing_out(pair):
    _, stream = pair
    stream.reset()
    assert stream.push(np.zeros((2, 0))).shape == (2, 0)
    assert stream.flush().shape == (2, 0)
    x = _sound(2, 900)
    whole = _streamed(stream, x, [])
    parts = _streamed(stream, x, [0, 400, 0, 0])
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("samples", [1, 300, 4000])
def test_a_mask_of_ones_gives_the_input_back(samples):
    enhancer = _enhancer()
    enhancer.mask.bias[...] = jnp.full_like(enhancer.mask.bias[...], 30.0)
    x = _sound(3, samples)
    np.testing.assert_allclose(_whole(enhancer, x), x, atol=ROUNDING)
    np.testing.assert_allclose(_streamed(enhancer.stream(3), x, []), x, atol=ROUNDING)


def test_a_mask_of_zeros_gives_silence():
    enhancer = _enhancer()
    enhancer.mask.bias[...] = jnp.full_like(enhancer.mask.bias[...], -100.0)
    assert np.abs(_whole(enhancer, _sound(1, 3000))).max() < 1e-12


def test_any_number_of_axes_before_the_samples():
    enhancer, x = _enhancer(), _sound(6, 700)
    y = _whole(enhancer, x)
    np.testing.assert_allclose(_whole(enhancer, x.reshape(2, 3, 700)), y.reshape(2, 3, 700), atol=ROUNDING)
    np.testing.assert_allclose(_whole(enhancer, x[0]), y[0], atol=ROUNDING)


def test_silence_and_loud_sound_stay_finite():
    enhancer = _enhancer()
    for x in (np.zeros((1, 2000), np.float32), 1e4 * _sound(1, 2000)):
        assert np.isfinite(_whole(enhancer, x)).all()


def test_features_of_a_known_spectrum():
    enhancer = _enhancer()
    spectra = np.full((1, 1, 257), 0.25 + 0.0j, np.complex64)
    model = enhancer.model
    wanted = (0.25**model.power - model.feature_mean) / model.feature_spread
    np.testing.assert_allclose(enhancer.features(jnp.asarray(spectra)), np.full((1, 1, 24), wanted), rtol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (2, 5, 1)])
def test_blocks_of_another_shape_are_refused(pair, shape):
    with pytest.raises(ValueError, match=r"stream: block is \[.*\], must be \[2, samples\]"):
        pair[1].push(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_blocks_that_are_not_finite_are_refused_and_leave_no_trace(pair, bad):
    enhancer, stream = pair
    stream.reset()
    x = _sound(2, 3000)
    broken = x[:, 700:].copy()
    broken[1, 3] = bad
    first = stream.push(x[:, :700])
    with pytest.raises(ValueError, match="block holds NaN or infinity, must be finite"):
        stream.push(broken)
    y = np.concatenate([first, stream.push(x[:, 700:]), stream.flush()], axis=1)
    np.testing.assert_allclose(y, _whole(enhancer, x), atol=ROUNDING)


def _params(enhancer: Enhancer):
    return nnx.to_pure_dict(nnx.split(enhancer, nnx.Param)[1])


def test_model_file_round_trip(pair, tmp_path):
    enhancer, path, x = pair[0], tmp_path / "m.rnnc", _sound(1, 2000)
    save_model(path, enhancer.model, _params(enhancer), {"seed": 3, "command": "x"})
    again, meta = load_model(path)
    assert again.model == enhancer.model
    assert (meta["seed"], meta["command"]) == (3, "x")
    np.testing.assert_array_equal(_whole(again, x), _whole(enhancer, x))
    assert np.abs(_whole(_enhancer(enhancer.model, seed=2), x) - _whole(enhancer, x)).max() > 1e-4


def _changed(change) -> tuple[dict, dict]:
    arrays = checkpoint.flatten(_params(_enhancer()))
    meta = {"kind": "enhancer", "model": config.to_table(SMALL)}
    change(arrays, meta)
    return arrays, meta


FOREIGN = {
    "another kind": (lambda a, m: m.update(kind="toy"), "holds a 'toy', must be 'enhancer'"),
    "no kind": (lambda a, m: m.pop("kind"), "holds a None"),
    "no model": (lambda a, m: m.pop("model"), r"m\.rnnc: model: is None, must be a section"),
    "unknown key": (lambda a, m: m["model"].update(wings=2), r"m\.rnnc: model\.wings: unknown key"),
    "other sizes": (lambda a, m: m["model"].update(units=[13, 13]), r"m\.rnnc: '.*' is float32\[.*\], must be"),
    "no array": (lambda a, m: a.pop("mask.bias"), r"m\.rnnc: holds no 'mask\.bias'"),
    "one array more": (lambda a, m: a.update(x=np.ones(2, np.float32)), r"m\.rnnc: .*'x'"),
    "huge sizes": (lambda a, m: m["model"].update(units=[10**9]), r"m\.rnnc: "),
    "many layers": (lambda a, m: m["model"].update(units=[1] * 10**6), r"m\.rnnc: "),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_files_that_hold_no_such_model(tmp_path, case):
    change, message = FOREIGN[case]
    arrays, meta = _changed(change)
    container.write(tmp_path / "m.rnnc", arrays, meta)
    with pytest.raises((container.ContainerError, CheckpointError, config.ConfigError), match=message):
        load_model(tmp_path / "m.rnnc")
