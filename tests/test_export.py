"""A whole network in C: the same bits as the model that was trained, and as many bytes as it says."""

import shutil
import subprocess
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from members import SMALL, quick, thorough

from kernels import KERNELS, WARNINGS, Net, Stack, build, compiler
from rnnc import cells, fixed
from rnnc.arith import Fixed, Formats
from rnnc.compress.quantise import Quantise, calibrated
from rnnc.export import host, model
from rnnc.fixed import Format
from rnnc.model import Enhancer, Model
from rnnc.structure import Dense, Joint, Kron, LowRank

MODELS = {
    "dense": SMALL,
    "skip": replace(SMALL, skip=True),
    "gru": replace(SMALL, cell="gru", kernel=LowRank(rank=3)),
    "fastrnn": replace(SMALL, cell="fastrnn", kernel=Kron(target_ratio=3), recurrent=Joint()),
}
FRAMES = 60


@cache
def _trained(sizes: Model, bits: int, weight_bits: int = 8) -> Enhancer:
    """Weights loud enough that gates and formats saturate here and there; formats from noise."""
    plain = Enhancer(sizes, rngs=nnx.Rngs(0))
    louder = lambda a: 2.0 * a if a.ndim > 1 else a + 0.2 * jax.random.normal(jax.random.key(a.size), a.shape)
    weights = jax.tree.map(louder, nnx.state(plain, nnx.Param))
    if sizes.skip:
        gate = weights["layers"][0]["cell"]["gate"]
        gate["bias"].set_value(gate["bias"].get_value() - 2.0)
    nnx.update(plain, weights)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 4000)).astype(np.float32)
    chip = Enhancer(
        calibrated(plain, [noise, noise[:1]], Quantise(activation_bits=bits, weight_bits=weight_bits)), rngs=nnx.Rngs(0)
    )
    nnx.update(chip, weights)
    return chip


def _features(enhancer: Enhancer) -> tuple[np.ndarray, jax.Array]:
    """q [T, B, bands], and the same as real numbers: random, silent and extreme ones."""
    form = enhancer.model.formats[0].x
    q = np.random.default_rng(1).normal(0, 2.0 ** (form.frac + 0.5), (FRAMES, 2, enhancer.model.bands.count))
    q = np.clip(np.round(q), form.lowest, form.highest).astype(np.int16)
    q[20:25], q[40:43] = 0, form.highest
    return q, jnp.asarray(q, jnp.float32) * np.float32(form.step)


@pytest.mark.parametrize(
    ("name", "bits", "weight_bits"), [(n, b, 8) for n in MODELS for b in (8, 16)] + [("dense", 8, 4), ("skip", 8, 16)]
)
def test_the_network_in_c_is_the_trained_one(name, bits, weight_bits, tmp_path):
    """Features -> mask in any chunks, with the state and the scratch that the table of sizes says."""
    enhancer = _trained(MODELS[name], bits, weight_bits)
    q, real = _features(enhancer)
    graph, weights = nnx.split(enhancer)
    compiled = thorough if bits == 8 else quick
    _, levels = compiled(lambda weights, x: nnx.merge(graph, weights).levels(x))(weights, real)
    whole = np.asarray(levels) * 32768.0
    assert np.ptp(whole) > 8000  # it does something
    library = build(tmp_path, model.write(tmp_path, "denoiser", enhancer))
    for b in range(q.shape[1]):
        net = Net(library, "denoiser", enhancer.model.bands.count)
        parts = [net.run(q[i:j, b]) for i, j in ((0, 1), (1, 2), (2, 33), (33, FRAMES))]
        np.testing.assert_array_equal(np.concatenate([y for y, _ in parts]), whole[:, b])
        updates = sum(count for _, count in parts)
        assert 0 < updates < FRAMES if enhancer.model.skip else updates == FRAMES
    table = model.network_sizes(enhancer)
    assert sum(size.state for size in table) == net.state.nbytes
    assert max(size.scratch for size in table) == net.scratch.nbytes


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("bits", [4, 8])
def test_pruned_weights_are_left_out(block, bits, tmp_path):
    """Only the kept blocks are stored, and the result is that of the whole matrix."""
    formats = Formats(h=Format(16, 15), x=Format(16, 12), x_in=Format(16, 12), weight_bits=bits)
    cell = cells.GRUCell(32, 20, arith=Fixed(formats=formats), rngs=nnx.Rngs(0))
    whole = model.sizes(cell)[0].flash
    rng, weights = np.random.default_rng(2), cell.weights()
    for side in ("kernel", "recurrent"):
        w = np.array(3 * weights[side]["w"])
        kept = rng.random((w.shape[0] // block, 1, w.shape[1])) < 0.15
        weights[side]["w"] = jnp.asarray((w.reshape(-1, block, w.shape[1]) * kept).reshape(w.shape))
    cell.set_weights(weights)
    ready = cell.core.prepared(weights)
    grids = [np.asarray(ready[side]["w"]).reshape(-1, block, 60) for side in ("kernel", "recurrent")]
    stored = sum(-(-int((w != 0).any(axis=1).sum()) * block * bits // 8) for w in grids)  # blocks that hold something
    index = 60 * (-(-32 // block // 8) + -(-20 // block // 8)) + 2 * 60 * 4  # maps and starts
    shifts_and_bias = 2 * 60 + 2 * 60
    flash = model.sizes(cell)[0].flash
    assert flash == shifts_and_bias + index + stored < whole
    q = rng.integers(-32768, 32768, (40, 32)).astype(np.int16)
    last, carry = [], cell.initialize_carry((1, 32)).astype(jnp.int32)
    graph, state = nnx.split(cells.RNN(cell, time_major=True))
    run = quick(lambda state, x, carry: nnx.merge(graph, state)(x, initial_carry=carry))
    last = run(state, jnp.asarray(q[:, None], jnp.int32), carry)[:, 0]
    assert np.ptp(last) > 8000
    library = build(tmp_path, model.write(tmp_path, "pruned", cell))
    np.testing.assert_array_equal(Stack(library, "pruned", 20).run(q)[0], last)


@pytest.mark.parametrize("name", ["dense", "skip"])
def test_flash_is_what_the_object_holds(name, tmp_path):
    """Arrays lie in the object's read-only data; what else is there are the C structures."""
    if not shutil.which("nm"):
        pytest.skip("no nm on this machine")
    enhancer, out = _trained(MODELS[name], 8), tmp_path / "model.o"
    source = model.write(tmp_path, "denoiser", enhancer)
    subprocess.run([compiler(), "-c", "-fPIC", f"-I{KERNELS}", "-o", out, source], check=True)
    listed = subprocess.run(["nm", "-S", out], check=True, capture_output=True, text=True).stdout.splitlines()
    arrays = [int(size, 16) for _, size, kind, _ in map(str.split, listed) if kind == "r"]
    assert sum(arrays) == sum(size.flash for size in model.sizes(enhancer))


MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "denoiser.h"
int main(void)
{
    enum { IN = 12, OUT = 12, MOST = 60 };
    int16_t *x = malloc(MOST * IN * sizeof *x), *y = malloc(MOST * OUT * sizeof *y);
    int16_t *state = malloc(rnnc_net_state(&denoiser) * sizeof *state);
    int32_t *scratch = malloc(rnnc_net_scratch(&denoiser) * sizeof *scratch);
    if (!x || !y || !state || !scratch) {
        return 1;
    }
    const uint32_t frames = (uint32_t)fread(x, IN * sizeof *x, MOST, stdin);
    rnnc_net_reset(&denoiser, state);
    rnnc_net_run(&denoiser, frames, x, y, state, scratch);
    fwrite(y, OUT * sizeof *y, frames, stdout);
    free(x); free(y); free(state); free(scratch);
    return 0;
}
"""
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.mark.parametrize("name", MODELS)
def test_compilers_agree_and_sanitizers_are_silent(name, tmp_path):
    """gcc and clang at -O0, -O2 and -O3 and with address and undefined-behaviour checks: the same bytes."""
    enhancer = _trained(MODELS[name], 8)
    q, _ = _features(enhancer)
    source, main = model.write(tmp_path, "denoiser", enhancer), tmp_path / "main.c"
    main.write_text(MAIN)
    found = {}
    for cc in filter(shutil.which, ("gcc", "clang")):
        for flags in (("-O0",), ("-O2",), ("-O3",), SANITIZERS):
            program = tmp_path / "program"
            files = [*KERNELS.glob("*.c"), source, main]
            subprocess.run([cc, *WARNINGS, *flags, f"-I{KERNELS}", f"-I{tmp_path}", *files, "-o", program], check=True)
            done = subprocess.run([program], input=q[:, 0].tobytes(), capture_output=True)
            assert (done.returncode, done.stderr) == (0, b"")
            found[cc, flags] = done.stdout
    if not found:
        pytest.skip("neither gcc nor clang on this machine")
    library = build(tmp_path, source)
    expected = Net(library, "denoiser", 12).run(q[:, 0])[0].tobytes()
    assert len(expected) == FRAMES * 12 * 2
    assert set(found.values()) == {expected}


@pytest.mark.parametrize("name", ["dense", "skip"])
def test_c_runs_in_a_jitted_function(name, tmp_path):
    """Through XLA, chunk after chunk and mapped over a batch: what ctypes gives."""
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler on this machine")
    enhancer = _trained(MODELS[name], 8)
    q, _ = _features(enhancer)
    source = model.write(tmp_path, "denoiser", enhancer)
    run = host.in_jax(source, Net, 12)
    library = build(tmp_path, source)
    silence = Net(library, "denoiser", 12).state
    expected = np.stack([Net(library, "denoiser", 12).run(q[:, b])[0] for b in range(2)])

    @jax.jit
    def twice(x, state):
        first, state = run(x[:25], state)
        second, _ = run(x[25:], state)
        return jnp.concatenate([first, second])

    np.testing.assert_array_equal(twice(jnp.asarray(q[:, 0]), jnp.asarray(silence)), expected[0])
    both = jax.jit(jax.vmap(twice, in_axes=(1, None)))(jnp.asarray(q), jnp.asarray(silence))
    np.testing.assert_array_equal(both, expected)


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(host.HostError, match="no compiler: cc, gcc, clang are not installed and CC is not set"):
        host.build(tmp_path)


def test_a_floating_point_network_is_refused(tmp_path):
    with pytest.raises(model.ExportError, match="computes in floating point"):
        model.write(tmp_path / "out", "denoiser", Enhancer(SMALL, rngs=nnx.Rngs(0)))
    assert not (tmp_path / "out").exists()


def test_formats_that_do_not_meet_are_refused():
    lone = Formats()
    for formats, message in (((lone,) * 3, "formats: holds 3, must hold 4"), ((lone,) * 4, "0 gives .*, 1 takes")):
        with pytest.raises(ValueError, match=message):
            replace(SMALL, formats=formats)


def test_a_fraction_is_the_one_of_least_error():
    """Against every candidate, on numbers with rare large ones; a matrix's input has the bits that were asked for."""
    enhancer = _trained(replace(SMALL, kernel=Dense()), 8)
    for formats in enhancer.model.formats:
        assert (formats.x_in.bits, formats.h_in.bits, formats.x.bits, formats.h.bits) == (8, 8, 16, 16)
    x = np.asarray(_noise_features(enhancer))
    costs = {frac: np.square(_rounded(x, Format(8, frac)) - x).sum() for frac in range(15, -5, -1)}
    assert enhancer.model.formats[0].x_in.frac == min(costs, key=lambda frac: costs[frac])


def _noise_features(enhancer: Enhancer) -> jax.Array:
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 4000)).astype(np.float32)
    both = np.concatenate([noise, noise[:1]])
    return enhancer.features(enhancer.model.stft.analyse(jnp.asarray(both)))


def _rounded(x: np.ndarray, form: Format) -> np.ndarray:
    return np.asarray(fixed.quantise(x, form)) * form.step
