"""Every step against its equations in float64, written as loops over units and gates."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import CELLS, M, N, count, each_arith, each_cell, each_structure, elementwise, normal, quick

from rnnc.arith import Float
from rnnc.steps import FASTRNN, GRU, LSTM, STEPS, Core

FORMS = {getattr(row, form).step: f"{row.name}-{form}" for row in CELLS for form in ("linen", "nnx")}
each_step = pytest.mark.parametrize("step", FORMS, ids=FORMS.values())


def _sigmoid(a):
    return 1 / (1 + np.exp(-a))


def _row(x, w, column):
    """Entry `column` of x w."""
    return sum(x[k] * w[k, column] for k in range(len(x)))


def _lstm(w, carry, x):
    c, h = carry
    m = len(h)
    new_c, new_h = np.zeros(m), np.zeros(m)
    for j in range(m):
        z = {}
        for place, gate in enumerate("ifgo"):
            at = place * m + j
            z[gate] = _row(x, w["kernel"], at) + _row(h, w["recurrent"], at) + w["recurrent_bias"][at]
        new_c[j] = _sigmoid(z["f"]) * c[j] + _sigmoid(z["i"]) * np.tanh(z["g"])
        new_h[j] = _sigmoid(z["o"]) * np.tanh(new_c[j])
    return new_c, new_h


def _gru(w, carry, x):
    h = carry
    m = len(h)
    new = np.zeros(m)
    for j in range(m):
        zx, zh = {}, {}
        for place, gate in enumerate("rzn"):
            at = place * m + j
            zx[gate] = _row(x, w["kernel"], at) + w["bias"][at]
            zh[gate] = _row(h, w["recurrent"], at)
        if "recurrent_bias" in w:
            zh["n"] += w["recurrent_bias"][j]
        r, z = _sigmoid(zx["r"] + zh["r"]), _sigmoid(zx["z"] + zh["z"])
        new[j] = (1 - z) * np.tanh(zx["n"] + r * zh["n"]) + z * h[j]
    return new


def _fastrnn(w, carry, x):
    h = carry
    new = np.zeros(len(h))
    for j in range(len(h)):
        candidate = np.tanh(_row(x, w["kernel"], j) + _row(h, w["recurrent"], j) + w["bias"][j])
        new[j] = _sigmoid(w["beta"][0]) * h[j] + _sigmoid(w["alpha"][0]) * candidate
    return new


EQUATIONS = {"lstm": _lstm, "gru": _gru, "fastrnn": _fastrnn}


def _in_float64(core, params):
    plain = {name: np.asarray(a, np.float64) for name, a in params.items() if not isinstance(a, dict)}
    plain["kernel"], plain["recurrent"] = (np.asarray(a, np.float64) for a in core.matrices(params))
    return plain


@functools.cache
def _params(core):
    """Fresh parameters, but for biases and scalars that are like no other."""
    params = core.init(jax.random.key(0), N, M, bias_init=jax.nn.initializers.normal(0.5))
    return params | {name: jnp.array([0.3 * i - 0.5]) for i, (name, _) in enumerate(core.step.scalars)}


def _carry(step, batch, m):
    parts = tuple(0.8 * normal(20 + i, batch, m) for i in range(step.state))
    return parts if step.state > 1 else parts[0]


@each_step
@each_arith
@each_structure
def test_step_is_its_equations(step, structure, arith):
    """Within 32 roundings of numbers of size 1."""
    core = Core(step=step, kernel=structure.kernel, recurrent=structure.recurrent, arith=arith.arith)
    params = _params(replace(core, arith=Float()))
    x, carry = normal(1, 4, N), _carry(step, 4, M)
    with arith.exact_types():
        found = quick(core)(params, carry, x)
    weights = _in_float64(core, params)
    for b in range(4):
        at_b = jax.tree.map(lambda a, b=b: np.asarray(a[b], np.float64), carry)
        wanted = EQUATIONS[step.name](weights, at_b, np.asarray(x[b], np.float64))
        jax.tree.map(
            lambda f, w, b=b: np.testing.assert_allclose(f[b], w, rtol=0, atol=32 * arith.rounding), found, wanted
        )


def test_every_step_has_a_row():
    assert {row.nnx.step.name for row in CELLS} == set(STEPS) == set(EQUATIONS)


@each_step
def test_elementwise_operations_are_counted(step):
    core = Core(step=step)
    params = _params(core)
    z = jnp.zeros((1, step.gates * M))
    found = count(core.pointwise, core.carry((1,), M), z, z, core.scalars(params), of=elementwise)
    assert found == step.elementwise * M + len(step.scalars)


@each_arith
def test_derivatives_of_the_activations(arith):
    """sigmoid' = s (1 - s) and tanh' = 1 - t^2, for they are written by hand."""
    a = jnp.linspace(-6.0, 6.0, 41)
    slope = jax.grad(lambda a: jnp.sum(arith.arith.sigmoid("i", a)))(a)
    s = _sigmoid(np.asarray(a, np.float64))
    np.testing.assert_allclose(slope, s * (1 - s), rtol=0, atol=1e-6)
    slope = jax.grad(lambda a: jnp.sum(arith.arith.tanh("g", a)))(a)
    np.testing.assert_allclose(slope, 1 / np.cosh(np.asarray(a, np.float64)) ** 2, rtol=0, atol=1e-6)


def test_fastrnn_starts_as_in_its_paper(key):
    params = Core(step=FASTRNN).init(key, 50, 200)
    assert params["alpha"].tolist() == [-3.0]
    assert params["beta"].tolist() == [3.0]
    np.testing.assert_array_equal(params["bias"], np.ones(200, np.float32))
    for side in ("kernel", "recurrent"):  # normal with deviation 0.1, known to 1% from 10,000 draws or more
        np.testing.assert_allclose(np.std(params[side]["w"]), 0.1, rtol=0.04)


@each_step
def test_fresh_biases(step, key):
    params = Core(step=step).init(key, N, M)
    for name, width in (("bias", step.bias), ("recurrent_bias", step.recurrent_bias)):
        if width:
            np.testing.assert_array_equal(params[name], np.full(width * M, 1.0 if step is FASTRNN else 0.0, np.float32))
        else:
            assert name not in params


def test_gates_are_drawn_one_by_one(key):
    """Each gate's recurrent matrix is orthogonal by itself, and no two gates are alike."""
    for step in (LSTM, GRU):
        gates = np.split(np.asarray(Core(step=step).init(key, N, M)["recurrent"]["w"], np.float64), step.gates, axis=1)
        for i, gate in enumerate(gates):
            np.testing.assert_allclose(gate.T @ gate, np.eye(M), atol=1e-6)
            assert all(np.max(np.abs(gate - other)) > 0.1 for other in gates[:i])


def test_lstm_carry_is_memory_then_output():
    """All gates open: the memory, first in the carry, grows by one each step; the output, last, is its tanh."""
    core = Core(step=LSTM)
    params = jax.tree.map(jnp.zeros_like, _params(core)) | {"recurrent_bias": jnp.full((4 * M,), 50.0)}
    carry = core.carry((1,), M)
    for t in range(1, 4):
        carry = core(params, carry, jnp.ones((1, N)))
        np.testing.assert_allclose(carry[0], np.full((1, M), t), rtol=1e-6)
        np.testing.assert_allclose(carry[1], np.full((1, M), np.tanh(t)), rtol=1e-6)
        assert core.output(carry) is carry[1]


@each_cell
def test_same_key_same_parameters(row, key):
    core = Core(step=row.nnx.step)
    first, again, other = core.init(key, N, M), core.init(key, N, M), core.init(jax.random.key(1), N, M)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["kernel"]["w"] != other["kernel"]["w"]).all()


def test_float_casts_only_the_products():
    arith = Float(dtype=jnp.bfloat16)
    assert arith.dot("gx", "gx.in", jnp.ones((2, 3)), jnp.ones((3, 4))).dtype == jnp.bfloat16
    assert arith.add("h", jnp.ones(3), jnp.ones(3)).dtype == jnp.float32
