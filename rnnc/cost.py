"""What a model costs: the only place that counts. Per layer and per frame, for one channel, in floating point."""

import itertools
from dataclasses import dataclass

from rnnc import cells
from rnnc.model import Model
from rnnc.steps import Step
from rnnc.structure import Structure

FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Cost of one layer for one frame.

    Args:
      name, kind, shape: which layer.
      parameters: stored numbers.
      macs: multiply-accumulates in matrix products.
      elementwise: other multiplications, additions and activations.
      values: numbers in working memory: inputs, outputs, state, intermediate results.
    """

    name: str
    kind: str
    shape: str
    parameters: int
    macs: int
    elementwise: int
    values: int

    @property
    def bytes(self) -> int:
        """Size of the parameters."""
        return self.parameters * FLOAT_BYTES

    @property
    def ram_bytes(self) -> int:
        """Size of the working memory."""
        return self.values * FLOAT_BYTES


def cell(name: str, step: Step, kernel: Structure, recurrent: Structure, n: int, m: int) -> Layer:
    """A recurrent layer of n inputs and m units."""
    width = step.gates * m
    w, u = kernel.cost((n, width)), recurrent.cost((m, width))
    biases = (step.bias + step.recurrent_bias) * m
    return Layer(
        name=name,
        kind=step.name,
        shape=f"{n} -> {m}",
        parameters=w.parameters + u.parameters + biases + len(step.scalars),
        macs=w.macs + u.macs,
        elementwise=biases + step.elementwise * m,
        values=n + step.state * m + 2 * width + max(w.scratch, u.scratch),
    )


def dense(name: str, n: int, m: int) -> Layer:
    """A dense layer with bias and activation."""
    shape = f"{n} -> {m}"
    return Layer(
        name=name,
        kind="dense",
        shape=shape,
        parameters=n * m + m,
        macs=n * m,
        elementwise=2 * m,
        values=n + m,
    )


def layers(model: Model) -> list[Layer]:
    """The layers of an `Enhancer`, without its transforms, in their order.

    >>> costs = layers(Model())
    >>> sum(c.parameters for c in costs), sum(c.macs for c in costs)
    (968960, 966656)

    Source: TinyLSTMs' sizes, section 1.1 of our survey: 966,656 multiply-accumulates, 968,960 parameters.
    """
    step = cells.CELLS[model.cell].step
    widths = [model.bands.count] + [model.units] * model.layers
    recurrent = [
        cell(f"{model.cell}{i}", step, model.kernel, model.recurrent, n, m)
        for i, (n, m) in enumerate(itertools.pairwise(widths))
    ]
    return [
        *recurrent,
        dense("dense", model.units, model.hidden),
        dense("mask", model.hidden, model.bands.count),
    ]
