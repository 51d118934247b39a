"""What a model costs: the only place that counts. Per layer and per frame, for one channel, in floating point."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from rnnc.model import Model
from rnnc.steps import Core
from rnnc.structure import Joint

FLOAT_BYTES, COLUMN_BYTES, ROW_BYTES = 4, 2, 4  # a number; a 16-bit column index and a 32-bit row start
GATE_ELEMENTWISE = 6  # of a skipping stack: bias, sigmoid, sum, minimum, comparison, product


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Cost of one layer for one frame.

    Args:
      name, kind, shape: which layer.
      parameters: stored numbers.
      macs: multiply-accumulates in matrix products, on a frame that is not skipped.
      elementwise: other multiplications, additions and activations, likewise.
      values: numbers in working memory: inputs, outputs, state, intermediate results.
      state: those of them that live from frame to frame.
      rate: share of the frames that the layer works on.
    """

    name: str
    kind: str
    shape: str
    parameters: int
    macs: int
    elementwise: int
    values: int
    state: int = 0
    rate: float = 1.0

    @property
    def bytes(self) -> int:
        """Size of the parameters, when all of them are stored."""
        return self.parameters * FLOAT_BYTES

    @property
    def ram_bytes(self) -> int:
        """Size of the working memory."""
        return self.values * FLOAT_BYTES

    @property
    def macs_per_frame(self) -> float:
        """Multiply-accumulates, the mean over all frames."""
        return self.rate * self.macs


def cell(name: str, core: Core, n: int, m: int, rate: float = 1.0) -> Layer:
    """A recurrent layer of n inputs and m units.

    A joint matrix is applied twice, to [x; 0] and to [0; h], by a step that needs both products apart (the GRU's).
    """
    step, width = core.step, core.step.gates * m
    costs = [structure.cost(shape, step.gates) for _, structure, shape in core.sides(n, m)]
    times = 2 if isinstance(core.recurrent, Joint) and not step.additive else 1
    biases = (step.bias + step.recurrent_bias) * m
    return Layer(
        name=name,
        kind=step.name,
        shape=f"{n} -> {m}",
        parameters=sum(cost.parameters for cost in costs) + biases + len(step.scalars),
        macs=times * sum(cost.macs for cost in costs),
        elementwise=biases + step.elementwise * m,
        values=n + step.state * m + 2 * width + max(cost.scratch for cost in costs),
        state=step.state * m,
        rate=rate,
    )


def dense(name: str, n: int, m: int, rate: float = 1.0) -> Layer:
    """A dense layer with bias and activation."""
    return Layer(
        name=name,
        kind="dense",
        shape=f"{n} -> {m}",
        parameters=n * m + m,
        macs=n * m,
        elementwise=2 * m,
        values=n + m,
        rate=rate,
    )


def layers(model: Model, update_rate: float = 1.0) -> list[Layer]:
    """The layers of an `Enhancer`, without its transforms, in their order.

    `update_rate` is the share of frames that a skipping model does not skip; on the others even its mask is held.

    >>> costs = layers(Model())
    >>> sum(c.parameters for c in costs), sum(c.macs for c in costs)
    (968960, 966656)

    Source: TinyLSTMs' sizes, section 1.1 of our survey: 966,656 multiply-accumulates, 968,960 parameters.
    """
    rate, units = update_rate if model.skip else 1.0, model.units[-1]
    gate = Layer(
        name="gate",
        kind="skip",
        shape=f"{units} -> 1",
        parameters=units + 1,
        macs=units,
        elementwise=GATE_ELEMENTWISE,
        values=3,
        state=2,
        rate=rate,
    )
    return [
        *(cell(f"{model.cell}{i}", core, n, m, rate) for i, (core, n, m) in enumerate(model.cores())),
        *([gate] if model.skip else []),
        dense("dense", units, model.hidden, rate),
        dense("mask", model.hidden, model.bands.count, rate),
    ]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Numbers as a sparse kernel would store them.

    Args:
      numbers: those that are not zero by pruning.
      index_bytes: what tells where they lie.
      macs_saved: multiplications by zero that it does not make.
    """

    numbers: int
    index_bytes: int
    macs_saved: int

    @property
    def ideal_bytes(self) -> int:
        """Without the index."""
        return self.numbers * FLOAT_BYTES

    @property
    def bytes(self) -> int:
        """With the index."""
        return self.ideal_bytes + self.index_bytes


def stored(params: Mapping[str, np.ndarray], pruned: tuple[str, ...] = ()) -> Stored:
    """Parameters by their dotted paths, those that the patterns `pruned` meet without their zeros.

    A pruned matrix is stored whole where its index would cost more than its zeros. Only plain matrices (paths that end
    in ".w") save multiplications; a factor's zeros save bytes alone.

    >>> w = np.zeros((10, 40), np.float32); w[0] = 1.0
    >>> kept = stored({"kernel.w": w, "bias": np.zeros(40)}, ("kernel.*",))
    >>> kept.numbers, kept.index_bytes, kept.bytes, kept.macs_saved
    (80, 50, 370, 360)
    """
    numbers = index = saved = 0
    for path, leaf in params.items():
        kept = int(np.count_nonzero(leaf))
        places = index_bytes(leaf.shape[-2:] if leaf.ndim > 1 else (1, leaf.size), kept)
        if any(fnmatchcase(path, pattern) for pattern in pruned) and places < (leaf.size - kept) * FLOAT_BYTES:
            numbers, index = numbers + kept, index + places
            saved += leaf.size - kept if path.endswith(".w") else 0
        else:
            numbers += leaf.size
    return Stored(numbers=numbers, index_bytes=index, macs_saved=saved)


def index_bytes(shape: tuple[int, ...], kept: int) -> int:
    """Bytes that tell where `kept` numbers of a matrix lie: compressed rows along its short side, or a bitmap.

    >>> index_bytes((68, 160), 266), index_bytes((68, 160), 2000)
    (808, 1360)

    Source: section 2.5 of our survey, where a pruned matrix counts with its index; the sizes of an index are ours.
    """
    return min(COLUMN_BYTES * kept + ROW_BYTES * (min(shape) + 1), -(-math.prod(shape) // 8))


def fitting(shape: tuple[int, ...], room: int) -> int:
    """The most numbers of a matrix that fit into so many bytes together with their index; below 0: none.

    >>> fitting((68, 160), 4 * 266 + 808), fitting((68, 160), 4 * 2000 + 1360)
    (266, 2000)
    """
    by_rows = (room - ROW_BYTES * (min(shape) + 1)) // (FLOAT_BYTES + COLUMN_BYTES)
    by_bitmap = (room - -(-math.prod(shape) // 8)) // FLOAT_BYTES
    return min(math.prod(shape), max(by_rows, by_bitmap))


def summary(
    model: Model, params: Mapping[str, np.ndarray], pruned: tuple[str, ...], update_rate: float
) -> dict[str, Any]:
    """The whole model in numbers: parameters, bytes (ideal and with index), work per frame, RAM.

    Args:
      model: its sizes.
      params: its parameters by their dotted paths.
      pruned: patterns of the pruned ones.
      update_rate: the measured share of frames that are not skipped.
    """
    costs, kept = layers(model, update_rate), stored(params, pruned)
    rate = costs[0].rate
    return {
        "parameters": kept.numbers,
        "bytes": kept.bytes,
        "ideal_bytes": kept.ideal_bytes,
        "macs_per_frame": round(sum(c.macs_per_frame for c in costs) - rate * kept.macs_saved),
        "elementwise_per_frame": round(sum(c.rate * c.elementwise for c in costs)),
        "ram_bytes": FLOAT_BYTES * (sum(c.state for c in costs) + max(c.values - c.state for c in costs)),
        "update_rate": rate,
    }
