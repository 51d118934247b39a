"""The integers of training are those of the chip: `Fake` = `Fixed` = C, without a single bit of difference."""

import ctypes
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from members import M, N, quick

from kernels import KERNELS, Stack, build, pointer
from rnnc import cells, fixed
from rnnc.arith import Fake, Fixed, Formats
from rnnc.export import model, tables
from rnnc.fixed import Format
from rnnc.skip import frames_to_skip, updates
from rnnc.structure import Dense, Hybrid, Joint, Kron, LowRank
from rnnc.unroll import unroll

PAIRS = {
    "dense": (Dense(), Dense()),
    "lowrank": (LowRank(rank=3), LowRank(rank=2, stacked=True)),
    "kron": (Kron(shape_a=(4, 2), shape_b=(2, 3)), Kron(terms=2, stacked=True)),
    "kron-a-first": (Kron(shape_a=(2, 3), shape_b=(4, 2)), Kron(shape_a=(1, 4), shape_b=(8, 2), terms=2)),
    "hybrid": (Hybrid(rows=2), Hybrid(rows=4, stacked=True)),
    "joint": (Dense(), Joint()),
    "joint-kron": (Kron(target_ratio=2), Joint()),
}
T, B = 60, 3


def _formats(cell: str, bits: int, weight_bits: int = 8) -> Formats:
    """h is the state of GRU and FastRNN, with 16 bits; a stack's upper layer takes it as it is."""
    h = {"lstm": Format(bits, bits - 1), "gru": Format(16, 15), "fastrnn": Format(16, 13)}[cell]
    taken = Format(bits, bits - 3)
    return Formats(x=h, x_in=taken, h_in=taken, h=h, weight_bits=weight_bits)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("bits", [2, 8, 16, 24])
def test_requant_in_c_is_that_of_python_and_of_whole_numbers(bits, tmp_path):
    """Over edges and random numbers and every shift, against unbounded integers."""
    source = tmp_path / "probe.c"
    source.write_text(
        '#include "rnnc_fixed.h"\n'
        "void probe(int n, const int32_t *v, int s, int bits, int32_t *out);\n"
        "void probe(int n, const int32_t *v, int s, int bits, int32_t *out)\n"
        "{ for (int i = 0; i < n; i++) out[i] = rnnc_requant(v[i], s, bits); }\n"
    )
    probe = build(tmp_path, source).probe
    edges = [e + d for k in range(31) for e in (1 << k, -(1 << k)) for d in (-1, 0, 1) if abs(e + d) <= 1 << 30]
    drawn = np.random.default_rng(0).integers(-(1 << 30), 1 << 30, 3000)
    v = np.array([*edges, *drawn], np.int32)
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    twin = jax.jit(fixed.requant, static_argnums=2)
    for s in range(-30, 31):
        out = np.zeros_like(v)
        probe(len(v), pointer(v), s, bits, pointer(out))
        exact = [max(low, min(high, math.floor(int(a) / 2**s + 0.5) if s > 0 else int(a) << -s)) for a in v]
        np.testing.assert_array_equal(out, exact, err_msg=f"shift {s}")
        np.testing.assert_array_equal(twin(v, s, bits), exact, err_msg=f"shift {s}")


def test_tables_in_c_are_those_of_python(tmp_path):
    """All inputs; the tables lie within 4 of 32768 of the true functions."""
    assert tables.HEADER.read_text() == tables.text()
    source = tmp_path / "probe.c"
    source.write_text(
        '#include "rnnc_fixed.h"\n#include "rnnc_tables.h"\n'
        "void probe(int32_t *s, int32_t *t);\n"
        "void probe(int32_t *s, int32_t *t)\n{ for (int32_t v = -32768; v < 32768; v++) {"
        " s[v + 32768] = rnnc_lookup(rnnc_sigmoid_table, v); t[v + 32768] = rnnc_lookup(rnnc_tanh_table, v); } }\n"
    )
    found = np.zeros((2, 65536), np.int32)
    build(tmp_path, source).probe(pointer(found[0]), pointer(found[1]))
    v = np.arange(-32768, 32768, dtype=np.int32)
    real = v / 4096
    for ours, table, true in zip(found, (fixed.SIGMOID, fixed.TANH), (1 / (1 + np.exp(-real)), np.tanh(real))):
        np.testing.assert_array_equal(ours, fixed.lookup(table, jnp.asarray(v)))
        assert np.abs(ours - 32768 * true).max() < 4


def _cell(kind: str, pair: str, arith, n: int = N, m: int = M):
    kernel, recurrent = PAIRS[pair]
    return cells.CELLS[kind](n, m, kernel=kernel, recurrent=recurrent, arith=arith, rngs=nnx.Rngs(1))


def _loud(cell, scale: float):
    """Weights that drive gates into saturation, and biases."""

    def louder(a):
        return scale * a if a.ndim > 1 else a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape)

    drawn = jax.tree.map(louder, cell.weights())
    cell.set_weights(drawn)
    return cell


def _inputs(form: Format, n: int = N) -> np.ndarray:
    """q [T, B, n]: random numbers, silence, and the largest ones of both signs."""
    q = np.random.default_rng(3).integers(form.lowest, form.highest + 1, (T, B, n))
    q[20:30] = 0
    q[30:40] = form.highest
    q[40:45] = form.lowest
    return q.astype(np.int32)


def _real(q: np.ndarray, form: Format) -> jax.Array:
    return jnp.asarray(q, jnp.float32) * np.float32(form.step)


@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _outputs(graph, state, xs, carry):
    return nnx.merge(graph, state)(xs, initial_carry=carry)


def _unrolled(cell, xs):
    """The last carry and all outputs [T, B, m], the state being of the kind of xs; compiled once for equal cells."""
    carry = jax.tree.map(lambda a: a if a.shape[-1] == 1 else a.astype(xs.dtype), cell.initialize_carry(xs.shape[1:]))
    graph, state = nnx.split(cells.RNN(cell, time_major=True, return_carry=True))
    return _outputs(graph, state, xs, carry)


CASES = [(kind, pair, 8, 8) for kind in cells.CELLS for pair in PAIRS]
CASES += [
    (kind, pair, bits, weight)
    for kind in cells.CELLS
    for pair, bits, weight in (("dense", 16, 8), ("kron", 16, 4), ("hybrid", 8, 16))
]


@pytest.mark.parametrize(("kind", "pair", "bits", "weight_bits"), CASES)
def test_training_chip_and_c_are_one(kind, pair, bits, weight_bits, tmp_path):
    """Small weights and ones that saturate; random, silent and extreme inputs; any chunks."""
    formats = _formats(kind, bits, weight_bits)
    q = _inputs(formats.x)
    for scale, name in ((1.0, "small"), (4.0, "large")):
        fake = _loud(_cell(kind, pair, Fake(formats=formats)), scale)
        chip = _loud(_cell(kind, pair, Fixed(formats=formats)), scale)
        _, real = _unrolled(fake, _real(q, formats.x))
        _, whole = _unrolled(chip, jnp.asarray(q))
        whole = np.asarray(whole)
        assert np.ptp(whole) * formats.h.step > 0.25  # it does something
        np.testing.assert_array_equal(np.asarray(real) * 2.0**formats.h.frac, whole)
        folder = tmp_path / name
        library = build(folder, model.write(folder, name, chip))
        for b in range(B):
            stack = Stack(library, name, M)
            parts = [stack.run(q[i:j, b].astype(np.int16))[0] for i, j in ((0, 1), (1, 25), (25, T))]
            np.testing.assert_array_equal(np.concatenate(parts), whole[:, b])


@pytest.mark.parametrize("kind", cells.CELLS)
def test_gradients_of_training_are_those_of_its_steps(kind):
    """The unroller's own backward pass against automatic differentiation of a plain loop; saturation stops both."""
    formats = _formats(kind, 8)
    xs = _real(_inputs(formats.x), formats.x)[:25]
    cell = _cell(kind, "kron", Fake(formats=formats))
    core, weights, carry = cell.core, cell.weights(), cell.initialize_carry(xs.shape[1:])

    def ours(weights):
        return jnp.sum(jnp.cos(3 * unroll(core, False, core.prepared(weights), carry, xs)[1]))

    def plain(weights):
        ready = core.prepared(weights)

        def step(carry, x):
            carry = core(ready, carry, x)
            return carry, core.output(carry)

        return jnp.sum(jnp.cos(3 * jax.lax.scan(step, carry, xs)[1]))

    found, wanted = (quick(jax.grad(f))(weights) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted)
    assert all(float(jnp.abs(a).max()) > 1e-3 for a in jax.tree.leaves(found))


def test_what_saturates_has_no_gradient():
    """Sums before an activation, results at their format's bounds, and inputs that are put on a grid."""
    A, at = Fake(formats=Formats(c=Format(16, 12))), jnp.array([1.0, 3.9, 4.1, -9.0])
    double = lambda a: A.add("in", A.at("gx", a), A.at("gx", a))
    for activation, slope in ((A.sigmoid, lambda a: 1 / (2 + 2 * np.cosh(a))), (A.tanh, lambda a: 1 / np.cosh(a) ** 2)):
        found = jax.grad(lambda a, activation=activation: jnp.sum(A.array(activation("i", double(a)))))(at)
        np.testing.assert_allclose(found[:2], 2 * slope(2 * at[:2]), atol=1e-4)
        np.testing.assert_array_equal(found[2:], 0.0)
    summed = jax.grad(lambda a: jnp.sum(A.array(A.add("c", A.at("fc", a), A.at("ig", a)))))(at)
    np.testing.assert_array_equal(summed, [2.0, 2.0, 0.0, 0.0])
    put = jax.grad(lambda a: jnp.sum(A.constant("bias", a)))(jnp.array([1.0, 7.9, 8.1, -9.0]))
    np.testing.assert_array_equal(put, [1.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("kinds", [("lstm",), ("gru", "gru"), ("fastrnn",), ("lstm", "lstm")])
def test_skipping_stacks_are_one(kinds, tmp_path):
    def stack(arith):
        layers = [_loud(_cell(kind, "dense", arith, N if i == 0 else M), 2.0) for i, kind in enumerate(kinds)]
        skip = cells.Skip(layers, rngs=nnx.Rngs(2))
        gate = skip.weights()["gate"]
        skip.gate = nnx.Dict(kernel=nnx.Param(3 * gate["kernel"]), bias=nnx.Param(gate["bias"] - 2.5))
        return skip

    formats = _formats(kinds[0], 8)
    q = _inputs(formats.x)
    carry, real = _unrolled(stack(Fake(formats=formats)), _real(q, formats.x))
    last, whole = _unrolled(stack(Fixed(formats=formats)), jnp.asarray(q))
    np.testing.assert_array_equal(np.asarray(real) * 2.0**formats.h.frac, whole)
    library = build(tmp_path, model.write(tmp_path, "sleepy", stack(Fixed(formats=formats))))
    for b in range(B):
        ours = Stack(library, "sleepy", M)
        y, count = ours.run(q[:, b].astype(np.int16))
        np.testing.assert_array_equal(y, np.asarray(whole)[:, b])
        assert count == float(updates(carry)[b]) == float(updates(last)[b])
        assert 0 < count < T
        assert ours.sleep() == int(frames_to_skip(carry)[b])


# SNR in dB against floating point of LiteRT's kernels on random weights, with 8 and with 16 bits for x and h
BASELINES = {("lstm", 8): 22.1, ("lstm", 16): 24.8, ("gru", 8): 23.4, ("gru", 16): 30.6}


@pytest.mark.parametrize(("kind", "bits"), BASELINES)
def test_streams_stay_near_floating_point(kind, bits):
    """2,000 steps of 128 units: well above the usual integer kernels, and no worse at the end than at the beginning."""
    x = np.random.default_rng(0).normal(0, 1, (2000, 4, 128)).astype(np.float32)
    taken = Format(bits, 5 if bits == 8 else 12)
    formats = Formats(x=Format(16, 12), x_in=taken, h_in=Format(bits, bits - 1), h=Format(16, 15), c=Format(16, 12))
    make = lambda arith: cells.CELLS[kind](128, 128, arith=arith, rngs=nnx.Rngs(0))
    (_, real), (_, whole) = (
        _unrolled(make(arith), jnp.asarray(np.floor(x * 4096 + 0.5) / 4096, jnp.float32))
        for arith in (None, Fake(formats=formats))
    )
    real, whole = np.asarray(real, np.float64), np.asarray(whole, np.float64)
    snr_db = lambda part: 10 * np.log10(np.sum(real[part] ** 2) / np.sum((real - whole)[part] ** 2))
    assert snr_db(slice(None)) > BASELINES[kind, bits] + 10
    assert abs(snr_db(slice(1500, None)) - snr_db(slice(500))) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", cells.CELLS)
def test_a_million_steps_are_one(kind, tmp_path):
    """Python and C after 1,000,000 steps, in chunks."""
    formats, steps, chunk = _formats(kind, 8), 1_000_000, 50_000
    chip = _loud(_cell(kind, "hybrid", Fixed(formats=formats)), 2.0)
    ours = Stack(build(tmp_path, model.write(tmp_path, "unit", chip)), "unit", M)
    graph, state = nnx.split(cells.RNN(chip, time_major=True, return_carry=True))
    run = jax.jit(lambda state, xs, carry: nnx.merge(graph, state)(xs, initial_carry=carry))
    carry = jax.tree.map(lambda a: a.astype(jnp.int32), chip.initialize_carry((1, N)))
    rng = np.random.default_rng(0)
    for _ in range(steps // chunk):
        q = rng.integers(formats.x.lowest, formats.x.highest + 1, (chunk, N)).astype(np.int16)
        carry, whole = run(state, jnp.asarray(q[:, None], jnp.int32), carry)
        np.testing.assert_array_equal(ours.run(q)[0], whole[:, 0])


TINY = Formats(x=Format(8, 20), x_in=Format(8, 20), x_mid=Format(16, 3))


def test_the_exporter_refuses(tmp_path):
    """What the kernels cannot run, with the part's name; nothing is written."""
    integers = Fixed(formats=_formats("lstm", 8))
    cell = _cell("lstm", "dense", integers)
    wide = Fixed(formats=Formats(x=Format(16, 12), x_in=Format(16, 12)))
    thin = cells.LSTMCell(N, M, kernel=LowRank(rank=2), arith=Fixed(formats=TINY), rngs=nnx.Rngs(0))
    thin.set_weights(jax.tree.map(lambda a: a * 2.0**-18, thin.weights()))
    for given, message in (
        (("Name", cell), "name: is 'Name'"),
        (("unit", _cell("lstm", "dense", None)), "layer 0: its arithmetic is floating point"),
        (("unit", [cell, _cell("lstm", "dense", integers, n=M + 1)]), f"layer 1: takes {M + 1} numbers"),
        (("unit", thin), r"cell0_kernel_u, output 0: its sum would be shifted by \d+, must be -30 to 30"),
        (("unit", _cell("gru", "dense", wide, n=3000)), r"cell0_kernel_w, output \d+: its sum can reach"),
        (("unit", _cell("lstm", "dense", Fixed(formats=Formats(c=Format(16, -1))))), "cell0: c has frac -1, must be 0"),
        (("unit", _cell("gru", "dense", Fixed(formats=Formats(h=Format(16, -2))))), "cell0: h has frac -2, must be 0"),
    ):
        with pytest.raises(model.ExportError, match=message):
            model.write(tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def test_one_wrong_rounding_is_seen(tmp_path):
    """The comparison above fails when C rounds halves down once: every cell has places where they meet."""
    broken = tmp_path / "kernels"
    broken.mkdir()
    for path in KERNELS.glob("*.[ch]"):
        text, wrong = path.read_text(), "(s > 0 ? (INT32_C(1) << s >> 1) - 1 : 0)"
        (broken / path.name).write_text(text.replace("((INT32_C(1) << s) >> 1)", wrong))
    assert (broken / "rnnc_fixed.h").read_text() != (KERNELS / "rnnc_fixed.h").read_text()
    for kind in cells.CELLS:
        formats = _formats(kind, 8)
        q = _inputs(formats.x)
        chip = _cell(kind, "dense", Fixed(formats=formats))
        _, whole = _unrolled(chip, jnp.asarray(q))
        library = build(tmp_path / kind, model.write(tmp_path / kind, "unit", chip), kernels=broken)
        found = np.stack([Stack(library, "unit", M).run(q[:, b].astype(np.int16))[0] for b in range(B)], axis=1)
        assert (found != np.asarray(whole)).any(), kind


@pytest.mark.parametrize(("bits", "most"), [(8, 516), (16, 511)])
def test_training_refuses_what_float32_cannot_hold(bits, most):
    A = Fake(formats=Formats(weight_bits=bits))
    dot = lambda n, size: A.dot("gx", "x", jnp.full((1, n), -4.0), jnp.full((n, 2), size))
    assert dot(most, -1.0).shape == (1, 2)
    with pytest.raises(ValueError, match=f"sum over {most + 1} .* {bits} bits may be inexact .* at most {most} inputs"):
        dot(most + 1, -1.0)


@pytest.mark.parametrize("size", [1.0, 0.1, 60.0])
def test_sums_of_two_bytes_are_exact(size):
    """16-bit weights at their extremes and drawn, fully loud inputs: `Fake` against numpy's 64-bit whole numbers."""
    formats, rng = Formats(weight_bits=16), np.random.default_rng(0)
    w = size * rng.uniform(-1, 1, (511, 40)).astype(np.float32)
    w[:, 0], w[:, 1], w[:, 2] = size, -size, np.where(np.arange(511) % 2, size, -size * 255 / 256)
    q = rng.integers(-128, 128, (7, 511))
    q[0], q[1], q[2] = -128, 127, np.where(np.arange(511) % 2, 127, -128)
    A, x = Fake(formats=formats), jnp.asarray(q, jnp.float32) * np.float32(formats["gx.in"].step)
    ready = A.weight("gx.in", jnp.asarray(w), (0,))
    frac = np.asarray(fixed.weight_frac(ready, (0,), 16))
    weights = np.ldexp(np.asarray(ready, np.float64), frac).astype(np.int64)
    assert np.abs(weights).max() > 16000  # all 16 bits are used
    s = frac.astype(np.int64) + formats["gx.in"].frac - fixed.FRAC_IN
    sums = q @ weights
    exact = np.where(s > 0, (sums + (1 << np.maximum(s - 1, 0))) >> np.maximum(s, 0), sums << np.maximum(-s, 0))
    found = np.asarray(A.dot("gx", "gx.in", x, ready), np.float64) * 2.0**fixed.FRAC_IN
    fits = np.abs(sums) < 1 << 30  # what the exporter admits
    assert fits.mean() > 0.9
    np.testing.assert_array_equal(found[fits], np.clip(exact, -(1 << 23), (1 << 23) - 1)[fits])
