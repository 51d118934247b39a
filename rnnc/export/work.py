"""What the layers of an exported model do in a frame: their multiply-accumulates by kernel, their instructions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rnnc import steps
from rnnc.cells import Cell, Skip
from rnnc.cost import GATE_ELEMENTWISE
from rnnc.export import emulate, model
from rnnc.export.emulate import Core
from rnnc.export.records import Array, Struct, Structs
from rnnc.model import Enhancer

Exportable = Cell | Skip | Sequence[Cell] | Enhancer
IMAGE_BYTES = 3_000_000  # of model data that fit into the smallest memory of a board
FRAMES = 3  # the last one is counted


@dataclass(frozen=True, kw_only=True)
class Work:
    """A layer in a frame that is not skipped.

    Args:
      name: as `model.sizes` has it.
      macs: multiply-accumulates of each kind of kernel: dense, lowrank, kron, hybrid, sparse; a weight that is not
        stored (where they are stored row by row) makes none.
      elementwise: other multiplications, additions and activations, as `rnnc.cost` counts them.
    """

    name: str
    macs: Mapping[str, int]
    elementwise: int

    @property
    def kind(self) -> str:
        """The kinds of its kernels, joined."""
        return "+".join(self.macs)

    @property
    def total_macs(self) -> int:
        """Of all kinds."""
        return sum(self.macs.values())


def layers(given: Exportable) -> list[Work]:
    """The layers of a model, in their order: cells, the gate of a stack that skips, dense layers.

    >>> from flax import nnx
    >>> from rnnc.arith import Fixed, Formats
    >>> from rnnc.cells import GRUCell
    >>> from rnnc.structure import LowRank
    >>> cell = GRUCell(6, 8, kernel=LowRank(rank=2), arith=Fixed(formats=Formats()), rngs=nnx.Rngs(0))
    >>> layers(cell)
    [Work(name='cell0', macs={'lowrank': 84, 'dense': 192}, elementwise=112)]
    """
    top = model.root(given)
    stack = top if top.kind == "rnnc_stack" else _struct(top, "stack")
    found = [_cell(f"cell{i}", cell) for i, cell in enumerate(_structs(stack, "cell"))]
    if "skip" in stack.fields:
        gate = _struct(_struct(stack, "skip"), "gate")
        found.append(Work(name="gate", macs={"dense": _stored(gate)}, elementwise=GATE_ELEMENTWISE))
    dense = _structs(top, "layer") if top is not stack else ()
    for name, layer in zip(("dense", "mask"), dense):
        mat = _struct(layer, "mat")
        found.append(Work(name=name, macs=dict([_macs(mat)]), elementwise=2 * _number(mat, "outputs")))
    return found


def instructions(
    core: Core, models: Sequence[Exportable], folder: Path, *, flags: Sequence[str] = ("-O2",)
) -> tuple[str, list[list[int]]]:
    """Executed instructions of every layer of every model in a frame on a core, and how they were counted.

    Args:
      core: one of `emulate.CORES`, say.
      models: any number of them; they are built into as few images as hold them.
      folder: for the images; made if it is not there.
      flags: for the compiler.

    Raises:
      EmulatorError: a tool is missing, or fails.
      ExportError: the kernels cannot run a model.
    """
    method, found = "", []
    for number, batch in enumerate(_batches(models)):
        here = folder / str(number)
        sources = [model.write(here, f"m{i}", given, layout=core.layout) for i, given in enumerate(batch)]
        image = emulate.build(core, sources, here, flags=flags)
        inputs = [_inputs(given) for given in batch]
        counts = emulate.count(core, image, inputs, [len(layers(given)) for given in batch])
        method = counts.method
        found += [np.diff([0, *beginnings]).tolist() for beginnings in counts.models]
    return method, found


def _batches(models: Sequence[Exportable]) -> list[list[Exportable]]:
    """Models in their order, as many together as an image holds."""
    batches, room = [], 0
    for given in models:
        taken = sum(size.flash for size in model.sizes(given))
        if taken > room:
            batches.append([])
            room = IMAGE_BYTES
        batches[-1].append(given)
        room -= taken
    return batches


def _inputs(given: Exportable) -> np.ndarray:
    """Random numbers as large as the model takes them."""
    stack = _struct(top, "stack") if (top := model.root(given)).kind == "rnnc_net" else top
    n = _number(_structs(stack, "cell")[0], "n")
    return np.random.default_rng(0).integers(-32768, 32768, (FRAMES, n)).astype(np.int16)


def _cell(name: str, cell: Struct) -> Work:
    step = steps.STEPS[str(cell.fields["step"]).removeprefix("RNNC_").lower()]
    total: Counter[str] = Counter()
    for side in ("kernel", "recurrent"):
        if side in cell.fields:
            kind, macs = _macs(_struct(cell, side))
            total[kind] += macs
    if _number(cell, "joint") and not step.additive:  # applied to [x; 0] and to [0; h]
        total = Counter({kind: 2 * macs for kind, macs in total.items()})
    per_unit = step.elementwise + step.bias + step.recurrent_bias
    return Work(name=name, macs=dict(total), elementwise=per_unit * _number(cell, "m"))


def _macs(mat: Struct) -> tuple[str, int]:
    """The kind of a structured matrix and its multiply-accumulates."""
    kind, top = mat.fields["kind"], _number(mat, "top")
    if kind == "RNNC_DENSE":
        plain = _struct(mat, "plain")
        return "sparse" if "map" in plain.fields else "dense", _stored(plain)
    first, second = _struct(mat, "first"), _struct(mat, "second")
    if kind == "RNNC_LOWRANK":
        return "lowrank", _stored(first) + _stored(second)
    blocks, terms = _number(mat, "blocks"), _number(mat, "terms")
    lines, outer = _number(second, "inputs") // terms, _number(first, "outputs") // blocks // terms
    macs = lines * _stored(first) + outer * _stored(second)
    return ("hybrid", macs + _stored(_struct(mat, "plain"))) if top else ("kron", macs)


def _stored(plain: Struct) -> int:
    """How many weights of a plain matrix are stored."""
    kept = plain.fields.get("map")
    if isinstance(kept, Array):
        return _number(plain, "block") * int(np.unpackbits(kept.data).sum())
    return _number(plain, "outputs") * _number(plain, "inputs")


def _number(struct: Struct, field: str) -> int:
    value = struct.fields[field]
    assert isinstance(value, int)
    return value


def _struct(struct: Struct, field: str) -> Struct:
    value = struct.fields[field]
    assert isinstance(value, Struct)
    return value


def _structs(struct: Struct, field: str) -> tuple[Struct, ...]:
    value = struct.fields[field]
    assert isinstance(value, Structs)
    return value.items
