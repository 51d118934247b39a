"""The front end in integers: C is its twin bit for bit, both are near floating point, and no sound hurts."""

import ctypes
import shutil
import subprocess
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from members import quick

from kernels import KERNELS, WARNINGS, build, compiler, pointer
from rnnc import fixed
from rnnc.audio import front
from rnnc.audio.stft import Bands, Stft
from rnnc.chip import Chip
from rnnc.compress.quantise import Quantise, calibrated
from rnnc.export import host, model, records
from rnnc.model import Enhancer, Model

SMALL = Model(rate_hz=16000, units=(12,), hidden=8, cell="gru", bands=Bands(count=24))
TINY = replace(SMALL, rate_hz=4000, bands=Bands(count=9, low_hz=50.0, high_hz=1900.0))
MODELS = {
    "64/32": replace(TINY, stft=Stft(window=64, hop=32)),
    "64/1": replace(TINY, stft=Stft(window=64, hop=1), power=1.0),
    "128/64": replace(TINY, stft=Stft(window=128, hop=64), power=0.05),
    "256/128": replace(SMALL, stft=Stft(window=256, hop=128), cell="lstm", units=(12, 9)),
    "512/256": replace(SMALL, bands=Bands(count=128)),
    "512/128": replace(SMALL, stft=Stft(window=512, hop=128), bands=Bands(count=25, hold_edges=False)),
    "1024/256": replace(SMALL, stft=Stft(window=1024, hop=256), skip=True),
    "2048/1024": replace(SMALL, rate_hz=48000, stft=Stft(window=2048, hop=1024), bands=Bands(high_hz=2e4)),
}
each_model = pytest.mark.parametrize("name", MODELS)


@cache
def _enhancer(name: str, mask_bias: float = 0.0) -> Enhancer:
    """Weights that make masks of all sizes; formats from noise."""
    plain = Enhancer(MODELS[name], rngs=nnx.Rngs(0))
    louder = lambda a: 3.0 * a if a.ndim > 1 else a + 0.2 * jax.random.normal(jax.random.key(a.size), a.shape)
    weights = jax.tree.map(louder, nnx.state(plain, nnx.Param))
    if MODELS[name].skip:
        gate = weights["layers"][0]["cell"]["gate"]
        gate["bias"].set_value(gate["bias"].get_value() - 1.0)
    if mask_bias:
        kernel, bias = weights["mask"]["kernel"], weights["mask"]["bias"]
        kernel.set_value(0.0 * kernel.get_value())
        bias.set_value(0.0 * bias.get_value() + mask_bias)
    nnx.update(plain, weights)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 20 * MODELS[name].stft.window)).astype(np.float32)
    chip = Enhancer(calibrated(plain, [noise], Quantise()), rngs=nnx.Rngs(0))
    nnx.update(chip, weights)
    return chip


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """name -> the library of that model."""

    @cache
    def make(name: str, mask_bias: float = 0.0) -> ctypes.CDLL:
        folder = tmp_path_factory.mktemp("model")
        return build(folder, model.write(folder, "sound", _enhancer(name, mask_bias)))

    return make


def _hostile(window: int) -> np.ndarray:
    """Sound that asks for the largest and the smallest numbers: int16."""
    rng, n = np.random.default_rng(7), 4 * window
    bits = rng.integers(0, 2, n)
    parts = [
        rng.normal(0, 1000, n),
        np.zeros(n),
        32767 * np.ones(n),
        -32768 * np.ones(n),
        np.where(np.arange(n) % 2, 32767, -32768),
        np.where(np.arange(n) // (window // 8) % 2, 32767, -32768),
        np.where(bits, 32767, -32768),
        rng.integers(-32768, 32768, n),
        np.where(np.arange(n) % window == window // 2, -32768, 0),
        rng.integers(-1, 2, n),
        np.where(np.cos(2 * np.pi * np.arange(n) ** 2 / n / 4) > 0, 32767, -32768),
        32767 * np.sin(2 * np.pi * 5.3 * np.arange(n) / window),
    ]
    return np.clip(np.concatenate(parts), -32768, 32767).astype(np.int16)


def _frames(window: int) -> np.ndarray:
    """Frames of it [n, window], at all phases."""
    x = _hostile(window)
    return np.lib.stride_tricks.sliding_window_view(x, window)[:: window // 4 + 3].copy()


class Parts:
    """The functions of one front end in C, on many frames one after the other."""

    def __init__(self, library: ctypes.CDLL, front_end: front.Front):
        self._library, self._own = library, front_end
        self._front = ctypes.c_void_p.in_dll(library, "sound_denoiser")  # the first field points to the front end
        self._work = np.zeros(front_end.stft.window, np.int32)

    def analyse(self, frames: np.ndarray) -> np.ndarray:
        spectra = np.zeros((len(frames), self._own.stft.window + 2), np.int32)
        for x, y in zip(frames, spectra):
            self._library.rnnc_front_analyse(self._front, pointer(x), pointer(y), pointer(self._work))
        return spectra

    def features(self, spectra: np.ndarray) -> np.ndarray:
        features = np.zeros((len(spectra), self._own.bands.count), np.int16)
        for x, y in zip(spectra, features):
            self._library.rnnc_front_features(self._front, pointer(x), pointer(y), pointer(self._work))
        return features

    def synthesise(self, spectra: np.ndarray, masks: np.ndarray, least: int = 0) -> np.ndarray:
        stft = self._own.stft
        unfinished, out = np.zeros(stft.tail, np.int32), np.zeros((len(spectra), stft.hop), np.int16)
        for x, mask, y in zip(spectra.copy(), masks, out):
            arrays = (pointer(a) for a in (x, unfinished, y, self._work))
            self._library.rnnc_front_synthesise(self._front, pointer(mask), least, *arrays)
        return out.ravel()


def _pairs(spectra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return spectra[:, 0::2], spectra[:, 1::2]


def _masks(count: int, bands: int) -> np.ndarray:
    masks = np.random.default_rng(3).integers(0, 32768, (count, bands)).astype(np.int16)
    masks[::5], masks[1::5], masks[2::5, ::2] = 32767, 0, 32767
    return masks


@each_model
def test_the_parts_in_c_are_those_of_the_twin(name, libraries):
    """Bins, features and sound of frames of every kind: no number differs."""
    ours, frames = _enhancer(name).model.front, _frames(MODELS[name].stft.window)
    parts = Parts(libraries(name), ours)
    spectra = parts.analyse(frames)
    twin = quick(ours.analyse)(jnp.asarray(frames))
    np.testing.assert_array_equal(_pairs(spectra), twin)
    features = parts.features(spectra)
    np.testing.assert_array_equal(features, quick(ours.features)(twin))
    np.testing.assert_array_equal(features, quick(ours.heard)(jnp.asarray(frames)))
    assert np.ptp(features.astype(int)) > 1 << ours.x.frac  # it does something
    masks = _masks(len(frames), ours.bands.count)
    sound = quick(lambda z, g: ours.finish(ours.stft.overlapped(ours.synthesise(z, g))))
    for least in (0, 9000, 32767):
        added = sound(twin, jnp.maximum(ours.gains(jnp.asarray(masks)), least))
        found = parts.synthesise(spectra, masks, least)[ours.stft.tail :]
        np.testing.assert_array_equal(found, added)
        assert np.ptp(found.astype(int)) > 30000


def _streamed(denoiser: host.Denoiser, x: np.ndarray, largest: int) -> np.ndarray:
    """In blocks of 0 to `largest` samples."""
    cuts = np.cumsum(np.random.default_rng(0).integers(0, largest + 1, 4 * len(x) // largest + 4))
    return np.concatenate([denoiser.process(part) for part in np.split(x, cuts[cuts < len(x)])])


@each_model
def test_sound_in_c_is_that_of_the_twin(name, libraries):
    """A whole denoiser: a batch, a stream in JAX, C in blocks of any size, each after a reset; no sample differs."""
    chip, x = Chip(_enhancer(name)), _hostile(MODELS[name].stft.window)
    if MODELS[name].stft.overlap > 16:
        x = x[::7]
    graph, state = nnx.split(chip)
    whole = np.asarray(quick(lambda state, x: nnx.merge(graph, state)(x))(state, jnp.asarray(x, jnp.int32)[None])[0])
    assert len(np.unique(whole)) > 200  # it does something
    denoiser = host.Denoiser(libraries(name), "sound")
    late = denoiser.latency_samples
    assert late == chip.model.stft.window - 1
    longer = np.append(x, np.zeros(late, np.int16))
    for largest, samples in ((1, 4 * late), (7, 12 * late), (3 * late, len(longer)), (len(x), len(longer))):
        denoiser.reset()
        found = _streamed(denoiser, longer[:samples], largest)
        assert not found[: chip.model.stft.hop - 1].any()
        np.testing.assert_array_equal(found[late:], whole[: samples - late])
    np.testing.assert_array_equal(denoiser.denoise(x), whole)


@pytest.mark.parametrize("name", ["512/128", "1024/256"])
def test_a_stream_of_the_twin_is_its_batch(name, libraries):
    chip, x = Chip(_enhancer(name)), _hostile(MODELS[name].stft.window)[3000:30000]
    stream = chip.stream(2)
    assert stream.latency_samples == chip.model.stft.window - 1
    for cut in (0, 9000):
        parts = [stream.push(np.stack([x[:cut], -1 - x[:cut]])), stream.push(np.stack([x[cut:], -1 - x[cut:]]))]
        found = np.concatenate([*parts, stream.flush()], axis=1)
        denoiser = host.Denoiser(libraries(name), "sound")
        np.testing.assert_array_equal(found, [denoiser.denoise(x), denoiser.denoise(-1 - x)])


def test_out_may_be_in(libraries):
    x = _hostile(512)
    denoiser, expected = host.Denoiser(libraries("512/256"), "sound"), None
    expected = denoiser.process(x)
    denoiser.reset()
    process, memory = libraries("512/256").rnnc_denoiser_process, denoiser.memory[0]
    data, same = ctypes.byref(ctypes.c_char.in_dll(libraries("512/256"), "sound_denoiser")), x.copy()
    assert process(data, pointer(memory), pointer(same), pointer(same), len(same)) == 0
    np.testing.assert_array_equal(same, expected)


def test_channels_are_apart(libraries):
    x = _hostile(512)[:6000].reshape(2, 3000)
    both = host.Denoiser(libraries("512/256"), "sound", channels=2).denoise(x)
    one = host.Denoiser(libraries("512/256"), "sound")
    np.testing.assert_array_equal(both, [one.denoise(x[0]), one.denoise(x[1])])


def _snr_db(wanted: np.ndarray, found: np.ndarray) -> float:
    wanted, found = np.asarray(wanted, np.float64), np.asarray(found, np.float64)
    return 10 * np.log10(np.sum(wanted**2) / np.sum((found - wanted) ** 2))


@each_model
def test_spectra_are_near_those_of_floating_point(name, libraries):
    """Noise of 16-bit sound: the error of a bin is as small as that of a sample; loud sound is off by 2^-15 of it."""
    stft = MODELS[name].stft
    rng = np.random.default_rng(1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(stft.window) / stft.window)
    for level, most in ((300.0, 0.5), (30000.0, 3.0)):
        frames = np.clip(rng.normal(0, level, (50, stft.window)), -32768, 32767).astype(np.int16)
        re, im = _pairs(Parts(libraries(name), _enhancer(name).model.front).analyse(frames))
        wanted = np.fft.rfft(frames * hann)
        found = (re + 1j * im) * (stft.window / 2) / 2**13
        rounding = np.sqrt(np.sum(hann**2) / 12)  # of a bin, from the rounding of the sound itself
        assert np.sqrt(np.mean(np.abs(found - wanted) ** 2)) < most * rounding


@each_model
def test_features_are_near_those_of_floating_point(name, libraries):
    """Sound from silence to full scale: within 2^-10 of the level's power, a step of the format and the least bin."""
    sizes, enhancer = MODELS[name], _enhancer(name)
    rng, ours = np.random.default_rng(1), enhancer.model.front
    frames = rng.normal(0, 1, (300, sizes.stft.window)) * 10 ** rng.uniform(1, 4.3, (300, 1))
    frames = np.clip(frames, -32768, 32767).astype(np.int16)
    frames[:3] = 0
    parts = Parts(libraries(name), ours)
    found = parts.features(parts.analyse(frames)) * ours.x.step
    wanted = np.asarray(enhancer.features(sizes.stft.transform(jnp.asarray(frames, jnp.float32) / 32768)))
    level = wanted * sizes.feature_spread + sizes.feature_mean
    bound = 2.0**-10 * level / sizes.feature_spread + ours.x.step
    inside = (wanted > ours.x.range[0]) & (wanted < ours.x.range[1])
    assert inside.mean() > 0.9
    assert (np.abs(found - wanted)[3:] <= bound[3:])[inside[3:]].mean() > 0.999
    assert np.abs(found - wanted)[inside].max() < 0.1


@each_model
def test_a_mask_of_ones_gives_the_sound_back(name, libraries):
    """Soft sound to the sample, for all errors are below half of one; loud sound within 2^-14 of itself (84 dB)."""
    stft, rng = MODELS[name].stft, np.random.default_rng(2)
    parts = Parts(libraries(name), _enhancer(name).model.front)
    for level in (300.0, 20000.0):
        x = np.clip(rng.normal(0, level, 60 * stft.window), -32768, 32767).astype(np.int16)
        frames = np.asarray(stft.framed(jnp.asarray(x, jnp.int32))).astype(np.int16)
        masks = np.full((len(frames), MODELS[name].bands.count), 32767, np.int16)
        y = parts.synthesise(parts.analyse(frames), masks, least=32767)[stft.tail :][: len(x)]
        assert _snr_db(x, y) > 84 if level > 300.0 else np.array_equal(x, y)


def test_logarithms_are_near_the_true_ones_and_the_same_in_c(tmp_path):
    """All small numbers and many large ones: log2 within 2^-13, exp2 within 2^-13 of itself and one."""
    source = tmp_path / "probe.c"
    source.write_text(
        '#include "rnnc_fixed.h"\n#include "rnnc_tables.h"\n'
        "void probe(int n, const int32_t *v, int32_t *l, int32_t *e);\n"
        "void probe(int n, const int32_t *v, int32_t *l, int32_t *e)\n{ for (int i = 0; i < n; i++) {"
        " l[i] = rnnc_log2(rnnc_log2_table, (uint32_t)v[i]);"
        " e[i] = rnnc_exp2(rnnc_exp2_table, v[i] % (30 << 15)); } }\n"
    )
    rng = np.random.default_rng(0)
    v = np.concatenate([np.arange(1, 70000), 2 ** rng.uniform(0, 31, 30000), [2**31 - 1]]).astype(np.int32)
    found = np.zeros((2, len(v)), np.int32)
    build(tmp_path, source).probe(len(v), pointer(v), pointer(found[0]), pointer(found[1]))
    np.testing.assert_array_equal(found[0], fixed.log2(jnp.asarray(v)))
    np.testing.assert_array_equal(found[1], fixed.exp2(jnp.asarray(v % (30 << 15))))
    assert np.abs(found[0] / 2**15 - np.log2(v)).max() < 2**-13
    true = 2.0 ** (v % (30 << 15) / 2**15)
    assert (np.abs(found[1] - true) <= 2**-13 * true + 1).all()


def test_zeros_are_counted_without_the_compiler_too(tmp_path):
    """`rnnc_clz` as it is where there is no __GNUC__."""
    source = tmp_path / "probe.c"
    source.write_text(
        '#undef __GNUC__\n#include "rnnc_fixed.h"\n'
        "void probe(int n, const int32_t *v, int32_t *zeros);\n"
        "void probe(int n, const int32_t *v, int32_t *zeros)\n"
        "{ for (int i = 0; i < n; i++) { zeros[i] = rnnc_clz((uint32_t)v[i]); } }\n"
    )
    v = np.concatenate([2 ** np.arange(31), 2 ** np.arange(1, 32) - 1, [-1]]).astype(np.int32)
    zeros = np.zeros_like(v)
    build(tmp_path, source).probe(len(v), pointer(v), pointer(zeros))
    np.testing.assert_array_equal(zeros, [32 - int(a).bit_length() for a in v.view(np.uint32)])


@pytest.mark.parametrize("least", [0, 3277, 32767])
def test_the_limit_holds(least, libraries):
    """A mask near nothing: what comes out is `least` times what came in, here and in the twin."""
    chip = Chip(_enhancer("512/256", -100.0), least)
    x = np.clip(np.random.default_rng(0).normal(0, 3000, 20000), -32768, 32767).astype(np.int16)
    denoiser = host.Denoiser(libraries("512/256", -100.0), "sound")
    denoiser.limit(least)
    found = denoiser.denoise(x)  # resets, and the limit stays
    np.testing.assert_array_equal(found, quick(chip)(jnp.asarray(x, jnp.int32)))
    if least:
        assert _snr_db(x * (least / 32768), found) > 50
    else:
        assert np.abs(found).max() <= 8  # the least gain that the table of the sigmoid gives is 11 / 32768


class Memory:
    """A denoiser's memory with marks before and behind it, at any alignment."""

    MARK = 0x5A

    def __init__(self, count: int, shift: int = 0):
        self.whole = np.full(count + 64, self.MARK, np.uint8)
        start = -self.whole.ctypes.data % 8 + 8 + shift
        self.inside = slice(start, start + count)
        self.address = ctypes.c_void_p(self.whole.ctypes.data + start)

    def untouched(self) -> bool:
        outside = np.delete(self.whole, np.arange(*self.inside.indices(len(self.whole))))
        return bool((outside == self.MARK).all())


@each_model
def test_the_memory_is_what_the_sizes_say(name, libraries):
    """Bytes by the exporter's table, all within the block, at any multiple of 4; the front end's share too."""
    library, table = libraries(name), model.sizes(_enhancer(name))
    data = ctypes.byref(ctypes.c_char.in_dll(library, "sound_denoiser"))
    needed = library.rnnc_denoiser_state_bytes(data)
    assert needed == sum(size.state for size in table) + max(size.scratch for size in table)
    memory, x = Memory(needed, shift=4), _hostile(MODELS[name].stft.window)
    assert library.rnnc_denoiser_init(data, memory.address, needed) == 0
    assert library.rnnc_denoiser_process(data, memory.address, pointer(x), pointer(x.copy()), len(x)) == 0
    assert memory.untouched()
    denoiser = host.Denoiser(library, "sound")
    assert denoiser.memory.nbytes == -(-needed // 4) * 4


def test_every_error_has_a_code(libraries):
    code = records.CONSTANTS
    library = libraries("512/256")
    data = ctypes.byref(ctypes.c_char.in_dll(library, "sound_denoiser"))
    needed = library.rnnc_denoiser_state_bytes(data)
    memory, odd, x = Memory(needed), Memory(needed, shift=2), np.zeros(8, np.int16)
    init, process = library.rnnc_denoiser_init, library.rnnc_denoiser_process
    reset, limit = library.rnnc_denoiser_reset, library.rnnc_denoiser_limit
    calls = {
        "init": lambda data, memory: init(data, memory, needed),
        "process": lambda data, memory: process(data, memory, pointer(x), pointer(x), len(x)),
        "reset": reset,
        "limit": lambda data, memory: limit(data, memory, 0),
    }
    for call in calls.values():
        assert call(None, memory.address) == call(data, None) == code["RNNC_NULL"]
        assert call(data, odd.address) == code["RNNC_MISALIGNED"]
    for name in ("process", "reset", "limit"):
        assert calls[name](data, memory.address) == code["RNNC_NOT_READY"]
    assert init(data, memory.address, needed - 1) == code["RNNC_TOO_SMALL"]
    assert calls["process"](data, memory.address) == code["RNNC_NOT_READY"]
    assert calls["init"](data, memory.address) == code["RNNC_OK"]
    for name in ("process", "reset", "limit"):
        assert calls[name](data, memory.address) == code["RNNC_OK"]
    for least, wanted in ((-1, "RNNC_BAD_LIMIT"), (32768, "RNNC_BAD_LIMIT"), (32767, "RNNC_OK")):
        assert limit(data, memory.address, least) == code[wanted]
    assert process(data, memory.address, None, pointer(x), 8) == code["RNNC_NULL"]
    assert process(data, memory.address, pointer(x), None, 8) == code["RNNC_NULL"]
    other = ctypes.byref(ctypes.c_char.in_dll(libraries("512/128"), "sound_denoiser"))
    assert calls["process"](other, memory.address) == code["RNNC_NOT_READY"]
    assert library.rnnc_denoiser_state_bytes(None) == library.rnnc_denoiser_latency(None) == 0


def test_models_whose_sizes_do_not_fit_are_refused(libraries):
    """Each size of the front end, and each part of the model, changed alone."""
    library = libraries("512/256")
    pair = (ctypes.c_void_p * 2).in_dll(library, "sound_denoiser")
    front_bytes, net_bytes = (bytearray(ctypes.string_at(address, 64)) for address in pair)
    assert np.frombuffer(front_bytes[:6], np.uint16).tolist() == [512, 256, 128]

    def status(front_end: bytes | None, net: bytes | None) -> int:
        blocks = [ctypes.create_string_buffer(bytes(b), len(b)) if b is not None else None for b in (front_end, net)]
        changed = (ctypes.c_void_p * 2)(*(ctypes.addressof(b) if b is not None else None for b in blocks))
        memory = Memory(100000)
        found = library.rnnc_denoiser_init(changed, memory.address, 100000)
        assert (library.rnnc_denoiser_state_bytes(changed) == 0) == (found != 0)
        return found

    assert status(front_bytes, net_bytes) == records.CONSTANTS["RNNC_OK"]
    bad = records.CONSTANTS["RNNC_BAD_MODEL"]
    assert status(None, net_bytes) == status(front_bytes, None) == bad
    for sizes in ((32, 16, 128), (500, 250, 128), (4096, 256, 128), (512, 0, 128), (512, 200, 128), (512, 512, 128)):
        assert status(bytearray(np.array(sizes, np.uint16).tobytes()) + front_bytes[6:], net_bytes) == bad
    assert status(bytearray(np.array((512, 256, 127), np.uint16).tobytes()) + front_bytes[6:], net_bytes) == bad
    assert status(front_bytes, bytearray(8) + net_bytes[8:]) == bad  # no stack
    assert status(front_bytes, net_bytes[:8] + bytearray(1) + net_bytes[9:]) == bad  # no layer


def test_digital_silence_stays_silent(libraries):
    for name in MODELS:
        assert not host.Denoiser(libraries(name), "sound").process(np.zeros(9999, np.int16)).any()


MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "sound.h"
int main(void)
{
    enum { MOST = 777 };
    const uint32_t bytes = rnnc_denoiser_state_bytes(&sound_denoiser);
    void *memory = malloc(bytes);
    int16_t *x = malloc(MOST * sizeof *x);
    if (!memory || !x || rnnc_denoiser_init(&sound_denoiser, memory, bytes) != RNNC_OK) {
        return 1;
    }
    for (size_t n; (n = fread(x, sizeof *x, MOST, stdin)) > 0;) {
        if (rnnc_denoiser_process(&sound_denoiser, memory, x, x, (uint32_t)n) != RNNC_OK) {
            return 2;
        }
        fwrite(x, sizeof *x, n, stdout);
    }
    free(memory); free(x);
    return 0;
}
"""
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.mark.parametrize("name", ["64/1", "512/256", "1024/256", "2048/1024"])
def test_compilers_agree_and_sanitizers_are_silent(name, libraries, tmp_path):
    """gcc and clang at -O0 and -O3 and with address and undefined-behaviour checks: the same bytes."""
    compiler()
    source, main = model.write(tmp_path, "sound", _enhancer(name)), tmp_path / "main.c"
    main.write_text(MAIN)
    x = _hostile(MODELS[name].stft.window)
    found = {}
    for cc in filter(shutil.which, ("gcc", "clang")):
        for flags in (("-O0",), ("-O3",), SANITIZERS):
            program = tmp_path / "program"
            files = [*KERNELS.glob("*.c"), source, main]
            subprocess.run([cc, *WARNINGS, *flags, f"-I{KERNELS}", f"-I{tmp_path}", *files, "-o", program], check=True)
            done = subprocess.run([program], input=x.tobytes(), capture_output=True)
            assert (done.returncode, done.stderr) == (0, b"")
            found[cc, flags] = done.stdout
    if not found:
        pytest.skip("neither gcc nor clang on this machine")
    assert set(found.values()) == {host.Denoiser(libraries(name), "sound").process(x).tobytes()}


ROUNDINGS = {
    "window": ("(frame[i] * weight[i]) >> 2", "(frame[i] * weight[i] + 2) >> 2"),
    "pass": ("y[0] = (ac_re + bd_re) >> 2", "y[0] = (ac_re + bd_re + 2) >> 2"),
    "last pass": ("(a_c_im - b_d_re) >> 2", "(a_c_im - b_d_re + 2) >> 2"),
    "turn": ("(int64_t)im * w.re) >> 32", "(int64_t)im * w.re + (INT64_C(1) << 31)) >> 32"),
    "split": (", im = (a[1] - b[1]) >> 1", ", im = (a[1] - b[1] + 1) >> 1"),
    "magnitude": ("(32 << RNNC_LOG_FRAC)) >> 1", "(32 << RNNC_LOG_FRAC) + 1) >> 1"),
    "level": ("sum >> 15", "(sum + (1 << 14)) >> 15"),
    "power": ("(int64_t)log * front->power) >> 15", "(int64_t)log * front->power + (1 << 14)) >> 15"),
    "feature": ("rnnc_exp2_table, log) - front->mean", "rnnc_exp2_table, log) - front->mean - 128"),
    "gain": ("* part) >> front->place_frac", "* part + 1) >> front->place_frac"),
    "masked": ("spectrum[2 * k] * g) >> 15", "spectrum[2 * k] * g + (1 << 14)) >> 15"),
    "unfinished": ("w + (INT64_C(1) << 31)", "w + (INT64_C(1) << 30)"),
}


def test_one_wrong_rounding_is_seen(tmp_path):
    """Each rounding in turn, changed in C: some bin, feature or sample is another."""
    ours, frames = _enhancer("512/256").model.front, _frames(512)
    twin = quick(ours.analyse)(jnp.asarray(frames))
    features = np.asarray(quick(ours.features)(twin))
    masks = _masks(len(frames), ours.bands.count)
    sound = lambda z, g: ours.finish(ours.stft.overlapped(ours.synthesise(z, g)))
    wanted = np.asarray(quick(sound)(twin, ours.gains(jnp.asarray(masks))))
    source = model.write(tmp_path, "sound", _enhancer("512/256"))
    for name, (right, wrong) in ROUNDINGS.items():
        broken = tmp_path / name.replace(" ", "_")
        shutil.copytree(KERNELS, broken)
        text = (broken / "front.c").read_text()
        assert text.count(right) == 1, name
        (broken / "front.c").write_text(text.replace(right, wrong))
        parts = Parts(build(broken, source, kernels=broken), ours)
        spectra = parts.analyse(frames)
        same = [np.array_equal(_pairs(spectra), twin), np.array_equal(parts.features(spectra), features)]
        same.append(np.array_equal(parts.synthesise(spectra, masks)[ours.stft.tail :], wanted))
        assert not all(same), name


@pytest.mark.parametrize(
    ("stft", "message"),
    [
        (Stft(window=400, hop=100), "front end: stft: window is 400, must be a power of two from 64 to 2048"),
        (Stft(window=32, hop=16), "window is 32"),
        (Stft(window=4096, hop=1024), "window is 4096"),
    ],
)
def test_windows_that_the_chip_has_not(stft, message, tmp_path):
    """Such a model trains in integers on floating-point features, as it loads; as sound to sound it is refused."""
    plain = Enhancer(replace(SMALL, stft=stft), rngs=nnx.Rngs(0))
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 9000)).astype(np.float32)
    chip = Enhancer(calibrated(plain, [noise], Quantise()), rngs=nnx.Rngs(0))
    assert chip(jnp.asarray(noise)).shape == noise.shape
    with pytest.raises(model.ExportError, match=message):
        model.write(tmp_path / "out", "sound", chip)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"window is \d+, must be"):
        Chip(chip)


def test_a_mean_beyond_the_features_is_refused():
    with pytest.raises(ValueError, match=r"mean: is 600.0, must be below 179.2 for features of frac 12"):
        front.Front(mean=600.0)


def test_a_chip_takes_integers():
    with pytest.raises(ValueError, match="chip: the model computes in floating point"):
        Chip(Enhancer(SMALL, rngs=nnx.Rngs(0)))
    stream = Chip(_enhancer("512/256")).stream()
    with pytest.raises(ValueError, match="stream: block is of float64, must be of int16"):
        stream.push(np.zeros((1, 5)))


def test_training_hears_what_the_chip_hears(libraries):
    """The features of an enhancer with formats are those of C on the rounded sound."""
    enhancer, rng = _enhancer("512/256"), np.random.default_rng(0)
    stft, ours = enhancer.model.stft, enhancer.model.front
    frames = stft.framed(jnp.asarray(rng.normal(0, 0.1, 5000), jnp.float32))
    found = np.asarray(enhancer.heard(frames, stft.transform(frames))) * 2.0**ours.x.frac
    parts = Parts(libraries("512/256"), ours)
    rounded = np.clip(np.floor(np.asarray(frames, np.float64) * 32768 + 0.5), -32768, 32767).astype(np.int16)
    np.testing.assert_array_equal(found, parts.features(parts.analyse(rounded)))


@pytest.mark.slow
def test_a_day_of_sound(libraries):
    """24 h through C: no drift against floating point from the first minute to the last, and the memory stays."""
    enhancer = _enhancer("512/256")
    plain = Enhancer(replace(enhancer.model, formats=()), rngs=nnx.Rngs(0))
    nnx.update(plain, nnx.state(enhancer, nnx.Param))
    denoiser, minute, rate_hz = host.Denoiser(libraries("512/256"), "sound"), 60 * 16000, 16000
    size, late, snr_db = denoiser.memory.shape, denoiser.latency_samples, {}
    shape = np.hanning(rate_hz // 4)  # syllables
    for i in range(24 * 60):
        rng = np.random.default_rng(i)
        loud = np.repeat(10 ** rng.uniform(-2, 0, minute // len(shape)), len(shape)) * np.tile(
            shape, minute // len(shape)
        )
        x = np.clip(rng.normal(0, 1, minute) * (6000 * loud + 60), -32768, 32767).astype(np.int16)
        y = denoiser.process(x)
        if i in (0, 24 * 60 - 1):
            wanted = np.asarray(plain(jnp.asarray(x, jnp.float32) / 32768)) * 32768
            settled = slice(10 * rate_hz, minute - late)  # the state of floating point starts from silence
            snr_db[i] = _snr_db(wanted[settled], y[late:][settled])
    assert denoiser.memory.shape == size
    assert min(snr_db.values()) > 25
    assert abs(snr_db[0] - snr_db[24 * 60 - 1]) < 1
