"""NNX cells that stand in for Flax's own, and an `RNN` that trains them faster.

`LSTMCell`, `GRUCell` and `FastRNNCell` keep Flax's contract (`cell(carry, x) -> (carry, y)`, `initialize_carry`), so
they run in `nnx.RNN`, `nnx.Bidirectional`, `nnx.jit` and `nnx.bridge`. `RNN` has `nnx.RNN`'s signature and results.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.recurrent import flip_sequences
from jax.typing import DTypeLike

from rnnc import steps
from rnnc.arith import Arithmetic, Float
from rnnc.skip import GATE_INIT, SkipCarry, SkipCore, first_carry, unroll_skip
from rnnc.steps import Carry, Core, Params, Step
from rnnc.structure import Dense, Initializer, Joint, Structure
from rnnc.unroll import unroll

Array = jax.Array


class Cell(nnx.RNNCellBase):
    """What the three cells share: parameters around a `steps.Core`. Use a subclass.

    Args:
      in_features: n, the width of x.
      hidden_features: m, the width of the state and of the output.
      kernel: structure of the input matrix [n, gates m].
      recurrent: structure of the recurrent matrix [m, gates m]; `Joint()`: `kernel` is that of both, [n + m, gates m].
      kernel_init, recurrent_kernel_init, bias_init: `jax.nn.initializers`, applied gate by gate; None: the cell's own.
      arith: arithmetic; None: floating point in `dtype`.
      dtype: type of the matrix products (None: that of the operands).
      param_dtype: type of the parameters and of the initial carry.
      rngs: source of the initial weights (stream `params`).
    """

    step: Step

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        kernel: Structure = Dense(),
        recurrent: Structure | Joint = Dense(),
        kernel_init: Initializer | None = None,
        recurrent_kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        arith: Arithmetic | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _positive(type(self).__name__, in_features=in_features, hidden_features=hidden_features)
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.param_dtype = param_dtype
        self.core = Core(step=self.step, kernel=kernel, recurrent=recurrent, arith=arith or Float(dtype=dtype))
        params = self.core.init(
            rngs.params(),
            in_features,
            hidden_features,
            kernel_init=kernel_init,
            recurrent_init=recurrent_kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )
        self.set_weights(params)

    def set_weights(self, params: Params) -> None:
        """Replace all parameters by a tree as `weights` returns it."""
        for name, value in params.items():
            leaf = (
                nnx.Dict({k: nnx.Param(v) for k, v in value.items()}) if isinstance(value, dict) else nnx.Param(value)
            )
            setattr(self, name, leaf)

    def weights(self) -> Params:
        """The parameters as a plain tree of arrays: kernel, recurrent, biases, scalars."""
        step = self.core.step
        names = [name for name, width in (("bias", step.bias), ("recurrent_bias", step.recurrent_bias)) if width]
        names += [name for name, _ in step.scalars]
        sides = ("kernel",) if isinstance(self.core.recurrent, Joint) else ("kernel", "recurrent")
        matrices = {side: {k: p[...] for k, p in getattr(self, side).items()} for side in sides}
        return {**matrices, **{name: getattr(self, name)[...] for name in names}}

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step: carry and inputs [..., n] -> the next carry and the output [..., m]."""
        _width(type(self).__name__, inputs, self.in_features)
        carry = self.core(self.core.prepared(self.weights()), carry, inputs)
        return carry, self.core.output(carry)

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Carry:
        """The initial carry for inputs of `input_shape` = (*batch, n): zeros, or drawn by `carry_init` from `rngs`."""
        batch = tuple(input_shape[:-1])
        zeros = self.core.carry(batch, self.hidden_features, self.param_dtype)
        if carry_init is None:
            return zeros
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        if stream is None:
            raise ValueError(f"{type(self).__name__}.initialize_carry: carry_init needs rngs, got None")
        return jax.tree.map(lambda z: carry_init(stream(), z.shape, z.dtype), zeros)

    @property
    def num_feature_axes(self) -> int:
        """One: the last axis."""
        return 1


class LSTMCell(Cell):
    """Long short-term memory, a stand-in for `nnx.LSTMCell` and `nnx.OptimizedLSTMCell`.

    i, f, g, o = x W + h U + b;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    The arguments are those of `Cell`; the carry is (c, h), each [..., m].

    >>> cell = LSTMCell(3, 8, rngs=nnx.Rngs(0))
    >>> nnx.RNN(cell)(jnp.ones((2, 5, 3))).shape
    (2, 5, 8)

    Source: see `rnnc.steps.lstm`.
    """

    step = steps.LSTM

    @classmethod
    def from_flax(cls, cell: nnx.LSTMCell | nnx.OptimizedLSTMCell, **options: Any) -> Self:
        """A cell with the weights of a Flax LSTM; `options` are those of the constructor."""
        if isinstance(cell, nnx.LSTMCell):
            kernel = jnp.concatenate([g.kernel[...] for g in (cell.ii, cell.if_, cell.ig, cell.io)], axis=-1)
            hidden = (cell.hi, cell.hf, cell.hg, cell.ho)
            recurrent = jnp.concatenate([g.kernel[...] for g in hidden], axis=-1)
            bias = jnp.concatenate([_bias(g) for g in hidden])
        elif isinstance(cell, nnx.OptimizedLSTMCell):
            kernel, recurrent, bias = cell.dense_i.kernel[...], cell.dense_h.kernel[...], _bias(cell.dense_h)
        else:
            raise _foreign(cls, cell, "nnx.LSTMCell or nnx.OptimizedLSTMCell")
        params = {"kernel": {"w": kernel}, "recurrent": {"w": recurrent}, "recurrent_bias": bias}
        return _filled(cls, cell, params, options)

    def to_flax(self) -> nnx.OptimizedLSTMCell:
        """Flax's own cell with these weights; structures are written out as dense matrices."""
        return _emptied(nnx.OptimizedLSTMCell, self, bias_of="dense_h")


class GRUCell(Cell):
    """Gated recurrent unit, a stand-in for `nnx.GRUCell`.

    r, z = sigmoid(x W + b + h U);  n = tanh(x Wn + bn + r (h Un));  h' = (1 - z) n + z h

    The arguments are those of `Cell`; the carry is h [..., m].

    >>> cell = GRUCell(3, 8, rngs=nnx.Rngs(0))
    >>> nnx.RNN(cell)(jnp.ones((2, 5, 3))).shape
    (2, 5, 8)

    Source: see `rnnc.steps.gru`. `flax.linen.GRUCell` has one bias more, inside the reset; `rnnc.linen.GRUCell` too.
    """

    step = steps.GRU

    @classmethod
    def from_flax(cls, cell: nnx.GRUCell, **options: Any) -> Self:
        """A cell with the weights of Flax's GRU; `options` are those of the constructor."""
        if not isinstance(cell, nnx.GRUCell):
            raise _foreign(cls, cell, "nnx.GRUCell")
        matrices = {"kernel": {"w": cell.dense_i.kernel[...]}, "recurrent": {"w": cell.dense_h.kernel[...]}}
        return _filled(cls, cell, {**matrices, "bias": _bias(cell.dense_i)}, options)

    def to_flax(self) -> nnx.GRUCell:
        """Flax's own cell with these weights; structures are written out as dense matrices."""
        return _emptied(nnx.GRUCell, self, bias_of="dense_i")


class FastRNNCell(Cell):
    """FastRNN: a plain recurrent cell with a trained residual connection.

    h~ = tanh(x W + b + h U);  h' = sigmoid(beta) h + sigmoid(alpha) h~

    The arguments are those of `Cell`; the carry is h [..., m]. alpha and beta are trained, from -3 and 3.

    >>> cell = FastRNNCell(3, 8, rngs=nnx.Rngs(0))
    >>> nnx.RNN(cell)(jnp.ones((2, 5, 3))).shape
    (2, 5, 8)

    Source: see `rnnc.steps.fastrnn`.
    """

    step = steps.FASTRNN


CELLS = {cell.step.name: cell for cell in (LSTMCell, GRUCell, FastRNNCell)}


class Skip(nnx.RNNCellBase):
    """Lets a stack of cells sleep: one gate decides on which frames all of them are updated; else all is held.

    The equations are those of `rnnc.skip.SkipCore`; the output is h of the top cell. The carry is a
    `rnnc.skip.SkipCarry`; `rnnc.skip.updates` of it is the number of frames that were not skipped, which a loss can
    charge for, and `rnnc.skip.frames_to_skip` tells for how long the stack will sleep.

    Args:
      cells: a cell of this module, or several, the lowest first.
      longest: most frames in a row that are skipped, 1 to 2048.
      kernel_init: how the gate's weights [m, 1] are drawn; its bias starts at 1, so that few frames are skipped.
      rngs: source of the gate's weights (stream `params`).

    >>> from rnnc.skip import updates
    >>> rngs = nnx.Rngs(0)
    >>> rnn = RNN(Skip([LSTMCell(3, 8, rngs=rngs), LSTMCell(8, 4, rngs=rngs)], rngs=rngs), return_carry=True)
    >>> carry, y = rnn(jnp.ones((2, 5, 3)))
    >>> y.shape, updates(carry).shape
    ((2, 5, 4), (2,))

    Source: Skip RNN, section 1.5 of our survey; see `rnnc.skip.SkipCore` for where we differ.
    """

    def __init__(
        self,
        cells: Cell | Sequence[Cell],
        *,
        longest: int = 512,
        kernel_init: Initializer = GATE_INIT,
        rngs: nnx.Rngs,
    ):
        stack = [cells] if isinstance(cells, nnx.Module) else list(cells)
        for cell in stack:
            if not isinstance(cell, Cell):
                raise TypeError(f"Skip: cells hold a {type(cell).__name__}, must be cells of rnnc.cells")
        self.core = SkipCore(cores=tuple(cell.core for cell in stack), longest=longest)
        for lower, upper in itertools.pairwise(stack):
            if lower.hidden_features != upper.in_features:
                raise ValueError(
                    f"Skip: a cell of {upper.in_features} inputs follows one of {lower.hidden_features} units"
                )
        self.cells = nnx.List(stack)
        self.in_features = stack[0].in_features
        self.hidden_features = stack[-1].hidden_features
        self.param_dtype = stack[0].param_dtype
        gate = self.core.init_gate(rngs.params(), self.hidden_features, kernel_init, stack[-1].param_dtype)
        self.gate = nnx.Dict({name: nnx.Param(value) for name, value in gate.items()})

    def set_weights(self, params: Params) -> None:
        """Replace all parameters by a tree as `weights` returns it."""
        for cell, weights in zip(self.cells, params["cells"], strict=True):
            cell.set_weights(weights)
        self.gate = nnx.Dict({name: nnx.Param(value) for name, value in params["gate"].items()})

    def weights(self) -> Params:
        """The parameters as a plain tree of arrays: cells, a list, and gate."""
        gate = {name: value[...] for name, value in self.gate.items()}
        return {"cells": [cell.weights() for cell in self.cells], "gate": gate}

    def __call__(self, carry: SkipCarry, inputs: Array) -> tuple[SkipCarry, Array]:
        """One step: inputs [..., n] -> the next carry and the output [..., m]."""
        _width("Skip", inputs, self.in_features)
        carry = self.core(self.core.prepared(self.weights()), carry, inputs)
        return carry, self.core.output(carry)

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> SkipCarry:
        """The initial carry for inputs of `input_shape` = (*batch, n): those of the cells, about to update."""
        return first_carry(tuple(cell.initialize_carry(input_shape, rngs, carry_init) for cell in self.cells))

    @property
    def num_feature_axes(self) -> int:
        """One: the last axis."""
        return 1


class RNN(nnx.Module):
    """`nnx.RNN` for the cells of this module, with a faster forward and backward pass.

    y_t, c_t = cell(c_{t-1}, x_t) for t = 1 .. T

    Same arguments and same results as `nnx.RNN`: inputs are [*batch, T, n], or [T, *batch, n] with `time_major`.
    The cell is not called step by step: `rnnc.unroll` or `rnnc.skip` runs its core (see there for rounding).

    Args:
      cell: a cell of this module.
      time_major: the time axis comes first.
      return_carry: return (carry, outputs) instead of outputs.
      reverse: process the sequence from its end.
      keep_order: with `reverse`, give the outputs in the order of the inputs.
      unroll: accepted for `nnx.RNN`'s sake; must be 1 (unrolling gained nothing).
      rngs: only used by cells whose initial carry is random; accepted for `nnx.RNN`'s sake.

    >>> rnn = RNN(GRUCell(3, 8, rngs=nnx.Rngs(0)))
    >>> rnn(jnp.ones((2, 5, 3))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        cell: Cell | Skip,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        rngs: nnx.Rngs | nnx.RngStream | bool = True,
    ):
        if not isinstance(cell, Cell | Skip):
            raise TypeError(f"rnnc.cells.RNN: cell is {type(cell).__name__}; only rnnc.cells run here, use nnx.RNN")
        if unroll != 1:
            raise ValueError(f"rnnc.cells.RNN: unroll is {unroll}, must be 1")
        self.cell = cell
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Any:
        """Run the cell over `inputs`; options given here win over the constructor's.

        Args:
          inputs: [*batch, T, n] or, time-major, [T, *batch, n]; any number of batch axes.
          initial_carry: as `cell.initialize_carry` makes it, arrays [*batch, ...]; None: that.
          seq_lengths: [*batch] integers in 1 .. T; the carry returned is that of each sequence's last step.

        Returns:
          outputs [*batch, T, m] (time-major: [T, *batch, m]), or (carry, outputs).
        """
        return_carry = _default(return_carry, self.return_carry)
        time_major = _default(time_major, self.time_major)
        reverse = _default(reverse, self.reverse)
        keep_order = _default(keep_order, self.keep_order)
        _width("rnnc.cells.RNN", inputs, self.cell.in_features, axes=2)

        def flip(x: Array) -> Array:
            return flip_sequences(x, seq_lengths, num_batch_dims=inputs.ndim - 2, time_major=time_major)

        if reverse:
            inputs = flip(inputs)
        xs = inputs if time_major else jnp.moveaxis(inputs, -2, 0)
        carry, outputs = self._run(xs, initial_carry, seq_lengths if return_carry else None)
        if not time_major:
            outputs = jnp.moveaxis(outputs, 0, -2)
        if reverse and keep_order:
            outputs = flip(outputs)
        return (carry, outputs) if return_carry else outputs

    def _run(self, xs: Array, carry: Carry | None, seq_lengths: Array | None) -> tuple[Carry, Array]:
        """xs [T, *batch, n] -> last carry, outputs [T, *batch, m]; all batch axes are one inside."""
        batch = xs.shape[1:-1]
        core, run = self.cell.core, unroll_skip if isinstance(self.cell, Skip) else unroll
        if carry is None:
            carry = self.cell.initialize_carry((*batch, xs.shape[-1]))
        carry = jax.tree.map(lambda a: jnp.broadcast_to(a, (*batch, a.shape[-1])).reshape(-1, a.shape[-1]), carry)
        flat = xs.reshape(xs.shape[0], -1, xs.shape[-1])
        weights = core.prepared(self.cell.weights())
        carry, ys = cast(tuple[Any, Any], run(core, seq_lengths is not None, weights, carry, flat))
        if seq_lengths is not None:
            last = seq_lengths.reshape(-1) - 1
            carry = jax.tree.map(lambda a: a[last, jnp.arange(a.shape[1])], ys)
            ys = core.output(ys)
        shaped = jax.tree.map(lambda a: a.reshape(*batch, a.shape[-1]), carry)
        return shaped, ys.reshape(*xs.shape[:-1], ys.shape[-1])


def _default(given: bool | None, otherwise: bool) -> bool:
    return otherwise if given is None else given


def _positive(where: str, **sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{where}: {name} is {value}, must be 1 or more")


def _width(where: str, inputs: Array, features: int, axes: int = 1) -> None:
    if inputs.ndim < axes or inputs.shape[-1] != features:
        shape = "[..., " + "T, " * (axes - 1) + f"{features}]"
        raise ValueError(f"{where}: inputs are {list(inputs.shape)}, must be {shape} (or time first)")


def _bias(linear: nnx.Linear) -> Array:
    assert linear.bias is not None
    return linear.bias[...]


def _foreign(cls: type, cell: Any, allowed: str) -> TypeError:
    return TypeError(f"{cls.__name__}.from_flax: cell is {type(cell).__name__}, must be {allowed}")


def _filled(cls: type, cell: Any, params: Params, options: dict[str, Any]) -> Any:
    """A cell of ours with given dense weights."""
    sizes = (
        cell.in_features if hasattr(cell, "in_features") else params["kernel"]["w"].shape[0],
        cell.hidden_features,
    )
    ours = cls(*sizes, dtype=cell.dtype, param_dtype=cell.param_dtype, rngs=nnx.Rngs(0), **options)
    for side in ("kernel", "recurrent"):
        structure = getattr(ours.core, side)
        if structure != Dense():
            raise ValueError(
                f"{cls.__name__}.from_flax: {side} is {structure}, must be Dense() to take weights as they are"
            )
    ours.set_weights(params)
    return ours


def _emptied(make: Callable[..., Any], cell: Cell, *, bias_of: str) -> Any:
    """Flax's cell with the weights of ours."""
    dtype = cell.core.arith.dtype if isinstance(cell.core.arith, Float) else None
    theirs = make(cell.in_features, cell.hidden_features, dtype=dtype, param_dtype=cell.param_dtype, rngs=nnx.Rngs(0))
    params, core = cell.weights(), cell.core
    theirs.dense_i.kernel[...], theirs.dense_h.kernel[...] = core.matrices(params)
    getattr(theirs, bias_of).bias[...] = params["bias"] if "bias" in params else params["recurrent_bias"]
    return theirs
