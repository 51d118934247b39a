"""What the layers of an exported model do in a frame: their multiply-accumulates by kernel, their instructions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from rnnc import steps
from rnnc.arith import Formats
from rnnc.cells import Cell, Skip
from rnnc.cost import GATE_ELEMENTWISE
from rnnc.export import emulate, model
from rnnc.export.emulate import Core
from rnnc.export.records import Array, Struct, Structs
from rnnc.fixed import Format
from rnnc.model import Enhancer

Exportable = Cell | Skip | Sequence[Cell] | Enhancer
IMAGE_BYTES = 3_000_000  # of model data that fit into the smallest memory of a board
FRAMES = 2  # the last one is counted
THIN = 16  # inputs of a factor whose rows kernels may hold
VECTOR = 16  # columns that kernels take at once, or in one turn of a loop


class Products(NamedTuple):
    """What matrices of one kind do.

    Args:
      macs: multiply-accumulates; a weight that is not stored (where they are stored row by row) makes none.
      sums: how many sums they go into, those between two factors too.
      inputs: how many numbers the matrices take, once for each block of outputs.
      calls: how often kernels begin with neighbouring rows of a matrix.
      fours: of rows, in all calls; kernels take rows by fours, and a rest of fewer as one.
      rests: of those fours, how many have columns over after vectors of 16.
      padded: multiply-accumulates with the rests filled up.
      marks: of the maps of what is stored, row by row, that are looked at; none where all of it is.
      thin, thin_calls, thin_weights: of factors of few inputs, which meet many lines: multiply-accumulates with an odd
        input filled up, rows' groups times lines, and weights. Kernels may hold fours of such rows (and twos of up to 4
        inputs); the terms from `calls` to `marks` leave out what they hold.
    """

    macs: int
    sums: int
    inputs: int
    calls: int = 0
    fours: int = 0
    rests: int = 0
    padded: int = 0
    marks: int = 0
    thin: int = 0
    thin_calls: int = 0
    thin_weights: int = 0


NOTHING = Products(0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A layer in a frame that is not skipped.

    Args:
      name: as `model.sizes` has it.
      products: of each kind of kernel: dense, lowrank, kron, hybrid, sparse.
      elementwise: other multiplications, additions and activations, as `rnnc.cost` counts them.
    """

    name: str
    products: Mapping[str, Products]
    elementwise: int

    @property
    def kind(self) -> str:
        """The kinds of its kernels, joined."""
        return "+".join(self.products)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all kinds."""
        return sum(products.macs for products in self.products.values())


def layers(given: Exportable) -> list[Work]:
    """The layers of a model, in their order: cells, the gate of a stack that skips, dense layers.

    >>> from flax import nnx
    >>> from rnnc.arith import Fixed, Formats
    >>> from rnnc.cells import GRUCell
    >>> from rnnc.structure import LowRank
    >>> cell = GRUCell(6, 8, kernel=LowRank(rank=2), arith=Fixed(formats=Formats()), rngs=nnx.Rngs(0))
    >>> (work,) = layers(cell)
    >>> dict(work.products)  # doctest: +NORMALIZE_WHITESPACE
    {'lowrank': Products(macs=84, sums=30, inputs=18, calls=6, fours=9, rests=9, padded=120, marks=0, thin=0,
                         thin_calls=0, thin_weights=0),
     'dense': Products(macs=192, sums=24, inputs=8, calls=1, fours=6, rests=6, padded=192, marks=0, thin=0,
                       thin_calls=0, thin_weights=0)}
    """
    top = model.root(given)
    stack = top if top.kind == "rnnc_stack" else _struct(top, "stack")
    found = [_cell(f"cell{i}", cell) for i, cell in enumerate(_structs(stack, "cell"))]
    if "skip" in stack.fields:
        gate = _struct(_struct(stack, "skip"), "gate")
        products = {"dense": _rows(gate, 1, 1, _number(gate, "inputs"))}
        found.append(Work(name="gate", products=products, elementwise=GATE_ELEMENTWISE))
    dense = _structs(top, "layer") if top is not stack else ()
    for name, layer in zip(("dense", "mask"), dense):
        mat = _struct(layer, "mat")
        kind, products = _products(mat)
        found.append(Work(name=name, products={kind: products}, elementwise=2 * _number(mat, "outputs")))
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
        taken = [inputs(given, end) for given, end in zip(batch, ends)]
        counts = emulate.count(core, image, taken, [_beginnings(given) + end for given, end in zip(batch, ends)])
        method = counts.method
        found += [np.diff([0, *beginnings]).tolist() for beginnings in counts.models]
    return method, found


def integers(enhancer: Enhancer) -> Enhancer:
    """A model of integers as it is; one of floating point with 8-bit weights and inputs, for what it would take.

    Its formats are usual ones, on which neither bytes nor instructions depend.
    """
    sizes = enhancer.model
    if sizes.formats:
        return enhancer
    wide, taken = Format(16, 12), Format(8, 5)
    formats = (Formats(x=wide, x_in=taken, h_in=taken, h=wide),) * (len(sizes.units) + 2)
    graph, _ = nnx.split(nnx.eval_shape(lambda: Enhancer(replace(sizes, formats=formats), rngs=nnx.Rngs(0))))
    return nnx.merge(graph, nnx.state(enhancer))


def _batches(models: Sequence[Exportable]) -> list[list[Exportable]]:
    """Models in their order, as many together as an image holds; a number takes two bytes at most."""
    batches, room = [], 0
    for given in models:
        parts = given if isinstance(given, Sequence) else [given]
        taken = sum(2 * leaf.size for part in parts for leaf in jax.tree.leaves(nnx.state(part, nnx.Param)))
        if taken > room:
            batches.append([])
            room = IMAGE_BYTES
        batches[-1].append(given)
        room -= taken
    return batches


def _cells(given: Exportable) -> list[Cell]:
    if isinstance(given, Enhancer):
        below = [rnn.cell for rnn in given.layers]
        return _cells(below[0]) if isinstance(below[0], Skip) else [cell for cell in below if isinstance(cell, Cell)]
    return list(given.cells) if isinstance(given, Skip) else [given] if isinstance(given, Cell) else list(given)


def _beginnings(given: Exportable) -> int:
    """As many as it has layers."""
    skips = given.model.skip if isinstance(given, Enhancer) else isinstance(given, Skip)
    return len(_cells(given)) + skips + (2 if isinstance(given, Enhancer) else 0)


def inputs(given: Exportable, sound: bool = False) -> np.ndarray:
    """Random numbers of 16 bits, as many as `emulate.count` wants of a model."""
    n = _cells(given)[0].in_features
    if sound and isinstance(given, Enhancer):
        n = max(n, given.model.stft.hop)
    return np.random.default_rng(0).integers(-32768, 32768, (FRAMES, n)).astype(np.int16)


def _cell(name: str, cell: Struct) -> Work:
    step = steps.STEPS[str(cell.fields["step"]).removeprefix("RNNC_").lower()]
    times = 2 if _number(cell, "joint") and not step.additive else 1  # to [x; 0] and to [0; h]
    total: dict[str, Products] = {}
    for side in ("kernel", "recurrent"):
        if side in cell.fields:
            kind, products = _products(_struct(cell, side))
            total[kind] = _sum(total.get(kind, NOTHING), *(times * [products]))
    per_unit = step.elementwise + step.bias + step.recurrent_bias
    return Work(name=name, products=total, elementwise=per_unit * _number(cell, "m"))


def _products(mat: Struct) -> tuple[str, Products]:
    """The kind of a structured matrix, and what it does."""
    kind, top, blocks = mat.fields["kind"], _number(mat, "top"), _number(mat, "blocks")
    inputs = blocks * _number(mat, "inputs")
    if kind == "RNNC_DENSE":
        plain = _struct(mat, "plain")
        return "sparse" if "map" in plain.fields else "dense", _rows(plain, 1, 1, inputs)
    first, second = _struct(mat, "first"), _struct(mat, "second")
    if kind == "RNNC_LOWRANK":
        return "lowrank", _sum(_rows(first, 1, blocks, inputs), _rows(second, 1, blocks))
    terms = _number(mat, "terms")
    lines, across = _number(second, "inputs") // terms, _number(first, "outputs") // blocks // terms
    products = _sum(_rows(first, lines, blocks * terms, inputs), _rows(second, across, blocks))
    if not top:
        return "kron", products
    return "hybrid", _sum(products, _rows(_struct(mat, "plain"), 1, blocks))


def _rows(plain: Struct, times: int, parts: int, inputs: int = 0) -> Products:
    """All rows of a plain matrix so many times, in so many parts of neighbouring ones."""
    rows, columns, stored = _number(plain, "outputs"), _number(plain, "inputs"), _stored(plain)
    if times > 1 and columns <= THIN and "map" not in plain.fields:
        thin = {"thin": times * rows * (columns + columns % 2), "thin_calls": times * parts, "thin_weights": stored}
        left = times * parts * (rows // parts % (4 if columns > 4 else 2) > 0)
        return Products(times * stored, times * rows, inputs, left, left, left, **thin)
    fours = -(-rows // parts // 4) * parts
    padded = stored * 4 * fours // rows
    marks = rows * columns // _number(plain, "block") if "map" in plain.fields else 0
    rests = fours if columns % VECTOR and "map" not in plain.fields else 0
    return Products(times * stored, times * rows, inputs, *(times * n for n in (parts, fours, rests, padded, marks)))


def _sum(*products: Products) -> Products:
    return Products(*map(sum, zip(*products)))


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
