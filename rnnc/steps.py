"""One time step of each cell, written once as a pure function of named points.

A step sees the two matrix products already done: zx = x W + b and zh = h U (+ b), each [..., gates * m]. The rest is
elementwise. `Core` joins a step with the structures of W and U and an arithmetic; the Flax shells (`rnnc.cells`,
`rnnc.linen`) and the unroller (`rnnc.unroll`) are thin over it. Gate order: i,f,g,o in LSTM and r,z,n in GRU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from rnnc.arith import Arithmetic, Float
from rnnc.structure import Dense, Initializer, Joint, Structure

Array = jax.Array
Carry = Any  # an array [..., m], or a tuple of them
Params = dict[str, Any]


def lstm(A: Arithmetic, carry: tuple[Array, Array], zx: Array, zh: Array, scalars: Params) -> tuple[Array, Array]:
    """Long short-term memory: c' = f c + i g, h' = o tanh(c').

    Args:
      carry: (c, h), each [..., m].
      zx, zh: [..., 4 m], gates i, f, g, o.
      scalars: none.

    Source: Hochreiter and Schmidhuber 1997 with forget gate; gate order and bias as Flax's LSTM cells have them.
    """
    c = A.at("c", carry[0])
    i, f, g, o = A.split(A.add("in", A.at("gx", zx), A.at("gh", zh)), 4)
    i, f, o, g = A.sigmoid("i", i), A.sigmoid("f", f), A.sigmoid("o", o), A.tanh("g", g)
    c = A.add("c", A.mul("fc", f, c), A.mul("ig", i, g))
    return A.array(c), A.array(A.mul("h", o, A.tanh("tc", c)))


def gru(A: Arithmetic, carry: Array, zx: Array, zh: Array, scalars: Params) -> Array:
    """Gated recurrent unit: n = tanh(xn + r hn), h' = (1 - z) n + z h.

    Args:
      carry: h [..., m].
      zx, zh: [..., 3 m], gates r, z, n.
      scalars: none.

    Source: Cho et al. 2014, reset after the recurrent product, as Flax's GRU cells have it.
    """
    xr, xz, xn = A.split(A.at("gx", zx), 3)
    hr, hz, hn = A.split(A.at("gh", zh), 3)
    r = A.sigmoid("r", A.add("in", xr, hr))
    z = A.sigmoid("z", A.add("in", xz, hz))
    n = A.tanh("n", A.add("in", xn, A.mul("rh", r, A.store("hn", hn))))
    h = A.add("h", A.mul("zn", A.complement("1-z", z), n), A.mul("zh", z, A.at("h", carry)))
    return A.array(h)


def fastrnn(A: Arithmetic, carry: Array, zx: Array, zh: Array, scalars: Params) -> Array:
    """FastRNN: h~ = tanh(zx + zh), h' = sigmoid(beta) h + sigmoid(alpha) h~.

    Args:
      carry: h [..., m].
      zx, zh: [..., m].
      scalars: alpha and beta, each [1]; they start at -3 and 3.

    Source: Kusupati et al. 2018 (FastGRNN), equations as in its reference code.
    """
    candidate = A.tanh("n", A.add("in", A.at("gx", zx), A.at("gh", zh)))
    beta, alpha = (A.spread(A.sigmoid(name, A.at("scalar", scalars[name])), carry.shape) for name in ("beta", "alpha"))
    return A.array(A.add("h", A.mul("bh", beta, A.at("h", carry)), A.mul("an", alpha, candidate)))


class Step(NamedTuple):
    """A step function and what a caller must know about it.

    Args:
      name: the name in configurations and tables.
      pointwise: (arithmetic, carry, zx, zh, scalars) -> carry.
      gates: how many times m the products are wide.
      state: how many arrays the carry holds; the last is h, the output.
      bias: width of the bias on the input product, in m.
      recurrent_bias: width of the bias on the recurrent product, in m; narrower than `gates`: for the last gates.
      scalars: trainable scalars and their initial values.
      elementwise: multiplications, additions and activations of `pointwise`, per unit; the biases come on top.
      additive: whether zx and zh only ever meet in their sum, so that one product of [x; h] can make it.
      kernel_init, recurrent_init, bias_init: how W, U and the biases are drawn, gate by gate.
    """

    name: str
    pointwise: Callable[..., Carry]
    gates: int
    state: int
    bias: int
    recurrent_bias: int
    scalars: tuple[tuple[str, float], ...]
    elementwise: int
    additive: bool
    kernel_init: Initializer = initializers.lecun_normal()
    recurrent_init: Initializer = initializers.orthogonal()
    bias_init: Initializer = initializers.zeros


LSTM = Step("lstm", lstm, gates=4, state=2, bias=0, recurrent_bias=4, scalars=(), elementwise=13, additive=True)
GRU = Step("gru", gru, gates=3, state=1, bias=3, recurrent_bias=0, scalars=(), elementwise=11, additive=False)
FASTRNN = Step(
    "fastrnn",
    fastrnn,
    gates=1,
    state=1,
    bias=1,
    recurrent_bias=0,
    scalars=(("alpha", -3.0), ("beta", 3.0)),
    elementwise=5,
    additive=True,
    kernel_init=initializers.normal(0.1),
    recurrent_init=initializers.normal(0.1),
    bias_init=initializers.ones,
)
STEPS = {step.name: step for step in (LSTM, GRU, FASTRNN)}


@dataclass(frozen=True, kw_only=True)
class Core:
    """A step with the structures of its two matrices and an arithmetic: one cell, without its numbers.

    carry' = step(carry, x W + b, h U + b'), for x [..., n] and h [..., m].

    Args:
      step: one of `STEPS`.
      kernel: structure of W, [n, gates m]; with a `Joint` recurrent matrix of [W; U], [n + m, gates m].
      recurrent: structure of U, [m, gates m], or `Joint()`.
      arith: what the operations mean.

    >>> core = Core(step=GRU)
    >>> params = core.init(jax.random.key(0), 3, 8)
    >>> core(params, core.carry((2,), 8), jnp.ones((2, 3))).shape
    (2, 8)
    """

    step: Step
    kernel: Structure = Dense()
    recurrent: Structure | Joint = Dense()
    arith: Arithmetic = Float()

    def init(
        self,
        key: Array,
        n: int,
        m: int,
        *,
        kernel_init: Initializer | None = None,
        recurrent_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> Params:
        """Draw the parameters of a cell with n inputs and m units; an initializer of None is the step's own."""
        step, keys = self.step, jax.random.split(key, 4)
        inits = {"kernel": kernel_init or step.kernel_init, "recurrent": recurrent_init or step.recurrent_init}
        params: Params = {
            side: structure.init(k, shape, inits[side], dtype, step.gates)
            for k, (side, structure, shape) in zip(keys, self.sides(n, m))
        }
        for k, (name, width) in zip(keys[2:], (("bias", step.bias), ("recurrent_bias", step.recurrent_bias))):
            if width:
                params[name] = (bias_init or step.bias_init)(k, (width * m,), dtype)
        for name, value in step.scalars:
            params[name] = jnp.full((1,), value, dtype)
        return params

    def sides(self, n: int, m: int) -> list[tuple[str, Structure, tuple[int, int]]]:
        """Name, structure and shape of each matrix of a cell with n inputs and m units."""
        width = self.step.gates * m
        if isinstance(self.recurrent, Joint):
            return [("kernel", self.kernel, (n + m, width))]
        return [("kernel", self.kernel, (n, width)), ("recurrent", self.recurrent, (m, width))]

    def carry(self, batch: tuple[int, ...], m: int, dtype: DTypeLike = jnp.float32) -> Carry:
        """The state of silence: zeros [*batch, m], two of them for an LSTM."""
        zeros = jnp.zeros((*batch, m), dtype)
        return zeros if self.step.state == 1 else (zeros,) * self.step.state

    def input_product(self, params: Params, x: Array) -> Array:
        """zx = x W + b: [..., n] -> [..., gates m]; of a joint matrix, [x; 0] W + b."""
        if isinstance(self.recurrent, Joint):
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, self._rows(params) - x.shape[-1])])
        x = self.arith.move("gx.in", "x", x)
        return self._biased("bias", params, "gx", self.kernel.apply(self.arith, "gx", params["kernel"], x))

    def recurrent_product(self, params: Params, h: Array) -> Array:
        """zh = h U + b': [..., m] -> [..., gates m]; of a joint matrix, [0; h] W + b'."""
        if isinstance(self.recurrent, Joint):
            h = self.arith.move("gx.in", "h", h)
            h = jnp.pad(h, [(0, 0)] * (h.ndim - 1) + [(self._rows(params) - h.shape[-1], 0)])
            z = self.kernel.apply(self.arith, "gx", params["kernel"], h)
        else:
            h = self.arith.move("gh.in", "h", h)
            z = self.recurrent.apply(self.arith, "gh", params["recurrent"], h)
        return self._biased("recurrent_bias", params, "gh", z)

    def recurrent_adjoint(self, params: Params) -> Callable[[Array], Array]:
        """The function dzh [..., gates m] -> dh [..., m]; what does not depend on dzh is computed once, here."""
        if not isinstance(self.recurrent, Joint):
            return self.recurrent.adjoint(params["recurrent"])
        whole, m = self.kernel.adjoint(params["kernel"]), self.kernel.shape(params["kernel"])[1] // self.step.gates
        return lambda dz: whole(dz)[..., -m:]

    def matrices(self, params: Params) -> tuple[Array, Array]:
        """W [n, gates m] and U [m, gates m], written out."""
        w = self.kernel.dense(params["kernel"])
        if not isinstance(self.recurrent, Joint):
            return w, self.recurrent.dense(params["recurrent"])
        m = w.shape[1] // self.step.gates
        return w[:-m], w[-m:]

    def _rows(self, params: Params) -> int:
        return self.kernel.shape(params["kernel"])[0]

    def _biased(self, name: str, params: Params, point: str, z: Array) -> Array:
        return z if name not in params else self.arith.bias(point, z, _like(params[name], z))

    def prepared(self, params: Params) -> Params:
        """The parameters as the arithmetic can use them: in integers, on their grids. Made once, before any loop."""
        ready = dict(params)
        for side in ("kernel", "recurrent"):
            if side in params:
                grids, point = getattr(self, side).grids(params[side]), {"kernel": "gx", "recurrent": "gh"}[side]
                ready[side] = {
                    name: self.arith.weight(f"{point}.{grids[name][0]}", w, grids[name][1])
                    for name, w in params[side].items()
                }
        for name in ("bias", "recurrent_bias"):
            if name in params:
                ready[name] = self.arith.constant("bias", params[name])
        return ready | {name: self.arith.constant("scalar", params[name]) for name, _ in self.step.scalars}

    def scalars(self, params: Params) -> Params:
        """The trainable scalars among the parameters."""
        return {name: params[name] for name, _ in self.step.scalars}

    def pointwise(self, carry: Carry, zx: Array, zh: Array, scalars: Params) -> Carry:
        """The elementwise part of the step."""
        return self.step.pointwise(self.arith, carry, zx, zh, scalars)

    def output(self, carry: Carry) -> Array:
        """h [..., m], what the next layer sees."""
        return carry[-1] if self.step.state > 1 else carry

    def __call__(self, params: Params, carry: Carry, x: Array) -> Carry:
        """One whole step: x [..., n] and a carry of [..., m] -> the next carry.

        A joint matrix is applied once where the step allows it (`Step.additive`), else to [x; 0] and to [0; h].
        """
        h = self.output(carry)
        if isinstance(self.recurrent, Joint) and self.step.additive:
            x, h = self.arith.move("gx.in", "x", x), self.arith.move("gx.in", "h", h)
            both = jnp.concatenate([x, h.astype(x.dtype)], axis=-1)
            zx = self._biased("bias", params, "gx", self.kernel.apply(self.arith, "gx", params["kernel"], both))
            zh = self._biased("recurrent_bias", params, "gh", jnp.zeros_like(zx))
        else:
            zx, zh = self.input_product(params, x), self.recurrent_product(params, h)
        return self.pointwise(carry, zx, zh, self.scalars(params))


def dense(A: Arithmetic, params: Params, x: Array, *, sigmoid: bool = False) -> Array:
    """A layer without memory: y = relu(x W + b), or sigmoid(x W + b).

    Args:
      params: {"kernel" [n, m], "bias" [m]}.
      x: [..., n], stored at the point x.
      sigmoid: the activation; in integers its result has 16 bits, a relu's is stored at the point h.

    Returns:
      y [..., m].

    >>> dense(Float(), {"kernel": -jnp.ones((3, 2)), "bias": jnp.array([1.0, 4.0])}, jnp.ones(3)).tolist()
    [0.0, 1.0]
    """
    z = A.dot("gx", "gx.in", A.move("gx.in", "x", x), A.weight("gx.in", params["kernel"], (0,)))
    z = A.at("gx", A.bias("gx", z, _like(A.constant("bias", params["bias"]), z)))
    return A.array(A.sigmoid("mask", z) if sigmoid else A.relu("h", z))


def _like(bias: Array, z: Array) -> Array:
    """Give the bias the axes of z; one that is narrower than z belongs to the last gates."""
    bias = jnp.pad(bias, (z.shape[-1] - bias.shape[0], 0)) if bias.shape[0] < z.shape[-1] else bias
    return bias.reshape((1,) * (z.ndim - 1) + (-1,))
