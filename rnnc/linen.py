"""Linen cells that stand in for `flax.linen`'s own in `flax.linen.RNN` and `flax.linen.Bidirectional`.

They are thin over `rnnc.steps`. The parameters of a cell are kernel, recurrent, biases and scalars, as in
`rnnc.cells.Cell.weights`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from rnnc import steps
from rnnc.arith import Arithmetic, Float
from rnnc.skip import GATE_INIT, SkipCarry, SkipCore, first_carry
from rnnc.steps import Carry, Core, Params, Step
from rnnc.structure import Dense, Initializer, Joint, Structure

Array = jax.Array


class Cell(nn.RNNCellBase):
    """What the three cells share: parameters around a `steps.Core`. Use a subclass.

    Args:
      features: m, the width of the state and of the output.
      kernel, recurrent: structures of the input matrix and of the recurrent one; `Joint()`: `kernel` is that of both.
      kernel_init, recurrent_kernel_init, bias_init: `jax.nn.initializers`, gate by gate; None: the cell's own.
      arith: arithmetic; None: floating point in `dtype`.
      dtype: type of the matrix products (None: that of the operands).
      param_dtype: type of the parameters and of the initial carry.
    """

    step: ClassVar[Step]
    features: int
    kernel: Structure = Dense()
    recurrent: Structure | Joint = Dense()
    kernel_init: Initializer | None = None
    recurrent_kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    arith: Arithmetic | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @property
    def core(self) -> Core:
        """The cell without its numbers."""
        arith = self.arith or Float(dtype=self.dtype)
        return Core(step=self.step, kernel=self.kernel, recurrent=self.recurrent, arith=arith)

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step: carry and inputs [..., n] -> the next carry and the output [..., m]."""
        carry = self.core(self.core.prepared(self._weights(inputs.shape[-1])), carry, inputs)
        return carry, self.core.output(carry)

    def _weights(self, n: int) -> Params:
        def init(key: Array) -> Params:
            return self.core.init(
                key,
                n,
                self.features,
                kernel_init=self.kernel_init,
                recurrent_init=self.recurrent_kernel_init,
                bias_init=self.bias_init,
                dtype=self.param_dtype,
            )

        return self.param("weights", init)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """Zeros for inputs of `input_shape` = (*batch, n); `rng` is not used."""
        return self.core.carry(tuple(input_shape[:-1]), self.features, self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        """One: the last axis."""
        return 1


class LSTMCell(Cell):
    """Long short-term memory, a stand-in for `nn.LSTMCell` and `nn.OptimizedLSTMCell`; see `rnnc.cells.LSTMCell`.

    >>> x = jnp.ones((2, 5, 3))
    >>> rnn = nn.RNN(LSTMCell(8))
    >>> rnn.apply(rnn.init(jax.random.key(0), x), x).shape
    (2, 5, 8)
    """

    step = steps.LSTM

    @staticmethod
    def from_flax(params: Params) -> Params:
        """The parameters {"weights": ...} of this cell, from those of `nn.LSTMCell` or `nn.OptimizedLSTMCell`."""
        w, u = ([params[side + gate] for gate in "ifgo"] for side in "ih")
        bias = jnp.concatenate([gate["bias"] for gate in u])
        return {"weights": {"kernel": _stack(w), "recurrent": _stack(u), "recurrent_bias": bias}}

    def to_flax(self, params: Params) -> Params:
        """The parameters of `nn.OptimizedLSTMCell` (and of `nn.LSTMCell`), from those of this cell."""
        weights, core = params["weights"], self.core
        w, u = (jnp.split(matrix, 4, axis=-1) for matrix in core.matrices(weights))
        b = jnp.split(weights["recurrent_bias"], 4)
        inputs = {"i" + gate: {"kernel": w[i]} for i, gate in enumerate("ifgo")}
        return {**inputs, **{"h" + gate: {"kernel": u[i], "bias": b[i]} for i, gate in enumerate("ifgo")}}


class GRUCell(Cell):
    """Gated recurrent unit, a stand-in for `nn.GRUCell`; see `rnnc.cells.GRUCell`.

    Like Flax's linen cell, and unlike its NNX cell, it has a bias in the reset: n = tanh(x Wn + bn + r (h Un + b')).

    >>> x = jnp.ones((2, 5, 3))
    >>> rnn = nn.RNN(GRUCell(8))
    >>> rnn.apply(rnn.init(jax.random.key(0), x), x).shape
    (2, 5, 8)
    """

    step = steps.GRU._replace(recurrent_bias=1)

    @staticmethod
    def from_flax(params: Params) -> Params:
        """The parameters {"weights": ...} of this cell, from those of `nn.GRUCell`."""
        w, u = ([params[side + gate] for gate in "rzn"] for side in "ih")
        bias = jnp.concatenate([gate["bias"] for gate in w])
        weights = {"kernel": _stack(w), "recurrent": _stack(u), "bias": bias, "recurrent_bias": u[2]["bias"]}
        return {"weights": weights}

    def to_flax(self, params: Params) -> Params:
        """The parameters of `nn.GRUCell`, from those of this cell."""
        weights, core = params["weights"], self.core
        w, u = (jnp.split(matrix, 3, axis=-1) for matrix in core.matrices(weights))
        b = jnp.split(weights["bias"], 3)
        inputs = {"i" + gate: {"kernel": w[i], "bias": b[i]} for i, gate in enumerate("rzn")}
        hidden: dict[str, Any] = {"h" + gate: {"kernel": u[i]} for i, gate in enumerate("rzn")}
        return {**inputs, **hidden, "hn": {"kernel": u[2], "bias": weights["recurrent_bias"]}}


class FastRNNCell(Cell):
    """FastRNN; see `rnnc.cells.FastRNNCell`.

    >>> x = jnp.ones((2, 5, 3))
    >>> rnn = nn.RNN(FastRNNCell(8))
    >>> rnn.apply(rnn.init(jax.random.key(0), x), x).shape
    (2, 5, 8)
    """

    step = steps.FASTRNN


class Skip(nn.RNNCellBase):
    """Lets a stack of cells sleep: one gate decides on which frames all of them are updated; see `rnnc.cells.Skip`.

    Args:
      cells: cells of this module, the lowest first.
      longest: most frames in a row that are skipped, 1 to 2048.
      kernel_init: how the gate's weights [m, 1] are drawn.
      param_dtype: type of the gate's weights.

    >>> x = jnp.ones((2, 5, 3))
    >>> rnn = nn.RNN(Skip([GRUCell(8), GRUCell(4)]), return_carry=True)
    >>> carry, y = rnn.apply(rnn.init(jax.random.key(0), x), x)
    >>> y.shape, carry.updates.shape
    ((2, 5, 4), (2, 1))
    """

    cells: Sequence[Cell]
    longest: int = 512
    kernel_init: Initializer = GATE_INIT
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, carry: SkipCarry, inputs: Array) -> tuple[SkipCarry, Array]:
        """One step: inputs [..., n] -> the next carry and the output [..., m]."""
        core = SkipCore(cores=tuple(cell.core for cell in self.cells), longest=self.longest)
        states, x = [], inputs
        for cell, held in zip(self.cells, carry.cells, strict=True):
            state, x = cell(held, x)
            states.append(state)
        gate = self.param("gate", lambda key: core.init_gate(key, x.shape[-1], self.kernel_init, self.param_dtype))
        carry = core.combine(carry, tuple(states), core.gate(gate, core.memory(states)))
        return carry, core.output(carry)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> SkipCarry:
        """The initial carries of the cells, about to update; `rng` is not used."""
        return first_carry(tuple(cell.initialize_carry(rng, input_shape) for cell in self.cells))

    @property
    def num_feature_axes(self) -> int:
        """One: the last axis."""
        return 1


def _stack(gates: list[Params]) -> Params:
    return {"w": jnp.concatenate([gate["kernel"] for gate in gates], axis=-1)}
