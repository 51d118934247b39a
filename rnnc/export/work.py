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
FRAMES = 2  # the last one is counted


@dataclass(frozen=True, kw_only=True)
class Work:
    """A layer in a frame that is not skipped.

    Args:
      name: as `model.sizes` has it.
      macs: multiply-accumulates of each kind of kernel: dense, lowrank, kron, hybrid, sparse; a weight that is not
        stored (where they are stored row by row) makes none.
      sums: of each kind, how many sums of products they go into; between two factors too.
      elementwise: other multiplications, additions and activations, as `rnnc.cost` counts them.
    """

    name: str
    macs: Mapping[str, int]
    sums: Mapping[str, int]
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
    [Work(name='cell0', macs={'lowrank': 84, 'dense': 192}, sums={'lowrank': 30, 'dense': 24}, elementwise=112)]
    """
    top = model.root(given)
    stack = top if top.kind == "rnnc_stack" else _struct(top, "stack")
    found = [_cell(f"cell{i}", cell) for i, cell in enumerate(_structs(stack, "cell"))]
    if "skip" in stack.fields:
        gate = _stored(_struct(_struct(stack, "skip"), "gate"))
        found.append(Work(name="gate", macs={"dense": gate}, sums={"dense": 1}, elementwise=GATE_ELEMENTWISE))
    dense = _structs(top, "layer") if top is not stack else ()
    for name, layer in zip(("dense", "mask"), dense):
        mat = _struct(layer, "mat")
        kind, macs, sums = _products(mat)
        elementwise = 2 * _number(mat, "outputs")
        found.append(Work(name=name, macs={kind: macs}, sums={kind: sums}, elementwise=elementwise))
    return found


def instructions(
    core: Core, models: Sequence[Exportable], folder: Path, *, sound: bool = False, flags: Sequence[str] = ("-O2",)
) -> tuple[str, list[list[int]]]:
    """How instructions were counted, and those of every layer of every model in a frame on a core.

    Args:
      core: one of `emulate.CORES`, say.
      models: any number of them; they are built into as few images as hold them.
      folder: for the images; made if it is not there.
      sound: of enhancers, count the front end too, behind the layers.
      flags: for the compiler.

    Raises:
      EmulatorError: a tool is missing, or fails.
      ExportError: the kernels cannot run a model.
    """
    method, found = "", []
    for number, batch in enumerate(_batches(models)):
        here = folder / str(number)
        sources = [model.write(here, f"m{i}", given, layout=core.layout) for i, given in enumerate(batch)]
        image = emulate.build(core, sources, here, sound=sound, flags=flags)
        ends = [sound and isinstance(given, Enhancer) for given in batch]
        inputs = [_inputs(given, end) for given, end in zip(batch, ends)]
        counts = emulate.count(core, image, inputs, [len(layers(given)) + end for given, end in zip(batch, ends)])
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


def _inputs(given: Exportable, sound: bool) -> np.ndarray:
    """Random numbers of 16 bits."""
    stack = _struct(top, "stack") if (top := model.root(given)).kind == "rnnc_net" else top
    n = _number(_structs(stack, "cell")[0], "n")
    if sound and isinstance(given, Enhancer):
        n = max(n, given.model.stft.hop)
    return np.random.default_rng(0).integers(-32768, 32768, (FRAMES, n)).astype(np.int16)


def _cell(name: str, cell: Struct) -> Work:
    step = steps.STEPS[str(cell.fields["step"]).removeprefix("RNNC_").lower()]
    times = 2 if _number(cell, "joint") and not step.additive else 1  # to [x; 0] and to [0; h]
    total_macs: Counter[str] = Counter()
    total_sums: Counter[str] = Counter()
    for side in ("kernel", "recurrent"):
        if side in cell.fields:
            kind, macs, sums = _products(_struct(cell, side))
            total_macs[kind] += times * macs
            total_sums[kind] += times * sums
    per_unit = step.elementwise + step.bias + step.recurrent_bias
    elementwise = per_unit * _number(cell, "m")
    return Work(name=name, macs=dict(total_macs), sums=dict(total_sums), elementwise=elementwise)


def _products(mat: Struct) -> tuple[str, int, int]:
    """The kind of a structured matrix, its multiply-accumulates and their sums."""
    kind, top = mat.fields["kind"], _number(mat, "top")
    if kind == "RNNC_DENSE":
        plain = _struct(mat, "plain")
        return "sparse" if "map" in plain.fields else "dense", _stored(plain), _number(plain, "outputs")
    first, second = _struct(mat, "first"), _struct(mat, "second")
    inner, outer = _number(first, "outputs"), _number(second, "outputs")
    if kind == "RNNC_LOWRANK":
        return "lowrank", _stored(first) + _stored(second), inner + outer
    blocks, terms = _number(mat, "blocks"), _number(mat, "terms")
    lines, across = _number(second, "inputs") // terms, inner // blocks // terms
    macs, sums = lines * _stored(first) + across * _stored(second), lines * inner + across * outer
    if not top:
        return "kron", macs, sums
    free = _struct(mat, "plain")
    return "hybrid", macs + _stored(free), sums + _number(free, "outputs")


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
