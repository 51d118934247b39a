"""Models that are wrong in more than one byte at once: each lie is told as if it were true, and found out."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from test_blob import MODELS, STATUSES, made

from kernels import build
from rnnc.export import blob, model
from rnnc.export.records import Array, Struct, Structs

Change = tuple[str, object]  # where, "front.hop" say, and a value, or a function of the old one
CELL = "cell.0."


def _told(value, path: Sequence[str], change):
    """The same tree with something else in one place; an array's numbers are what changes in it."""
    if path:
        if isinstance(value, Structs):
            items = [_told(item, path[1:], change) if i == int(path[0]) else item for i, item in enumerate(value.items)]
            return replace(value, items=tuple(items))
        return replace(value, fields={**value.fields, path[0]: _told(value.fields.get(path[0], 0), path[1:], change)})
    if isinstance(change, Callable) and isinstance(value, Array):
        return replace(value, numbers=change(value.data.copy()))
    return change(value) if isinstance(change, Callable) else change


def _at(index: int, number: int) -> Callable[[np.ndarray], np.ndarray]:
    def changed(numbers: np.ndarray) -> np.ndarray:
        numbers[index] = number
        return numbers

    return changed


def _all(number: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda numbers: np.full_like(numbers, number)


def _many(count: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda numbers: np.resize(numbers, count)


def _largest(numbers: np.ndarray) -> np.ndarray:
    """FF 7F: -1, and 127 + 1."""
    return _at(0, -1)(_at(1, 127)(numbers))


def _within(where: str, **fields: object) -> list[Change]:
    return [(f"{where}.{key.replace('__', '.')}", value) for key, value in fields.items()]


def _turned_round(value: Structs) -> Structs:
    return replace(value, items=value.items[::-1])


# name: the model, what is changed, and what loading says of it
LIES: dict[str, tuple[str, list[Change], str]] = {
    "sums are small": ("gru", [(CELL + "kernel.plain.sum_bits", 10)], "SUM"),
    "sums are at least as wide as x": ("gru", [(CELL + "kernel.plain.sum_bits", 7)], "SUM"),
    "sums fit": (
        "16-bits",
        [
            *((CELL + "kernel.plain.weights", lambda numbers: np.full_like(numbers, 127)), (CELL + "x_bits", 16)),
            *((CELL + "kernel.plain.x_bits", 16), (CELL + "kernel.plain.sum_bits", 31)),
        ],
        "SUM",
    ),
    "x is narrow": ("gru", [(CELL + "kernel.plain.x_bits", 4)], "SHAPE"),
    "cells chain": ("tiles", [("cell", _turned_round)], "SHAPE"),
    "layers chain": ("denoiser", [("net.layer", _turned_round)], "SHAPE"),
    "each band has a mask": (
        "denoiser",
        [(f"net.layer.1.mat.{where}", 3) for where in ("outputs", "top", "plain.outputs")],
        "SHAPE",
    ),
    "factors make up x": (
        "kron",
        [
            *((CELL + "kernel.first.outputs", 9), (CELL + "kernel.first.inputs", 2)),
            *((CELL + "kernel.x_line", 2), (CELL + "kernel.y_second", 3)),
            (CELL + "kernel.first.shifts", _many(9)),
        ],
        "SHAPE",
    ),
    "a term is a whole one": ("kron", [(CELL + "kernel.terms", 4)], "SHAPE"),
    "factors have the blocks": ("kron", _within(CELL + "kernel.second", outputs=11), "SHAPE"),
    "little scratch": (
        "kron-a-first",
        [
            *_within(CELL + "kernel", inputs=4000, outputs=4000, x_line=1, x_next=1, y_first=1, y_second=4000),
            *_within(CELL + "kernel.first", outputs=4000, inputs=1, weights=_many(4000), shifts=_many(4000)),
            *_within(CELL + "kernel.second", outputs=1, inputs=4000, weights=_many(4000), shifts=_many(1)),
        ],
        "RANGE",
    ),
    "scratch is counted": (
        "kron-a-first",
        [
            *_within(CELL + "kernel", inputs=65535, outputs=65535, x_line=1, x_next=65535, y_first=1, y_second=1),
            *_within(CELL + "kernel.first", outputs=65535, inputs=1, weights=_many(65535), shifts=_many(65535)),
            *_within(CELL + "kernel.second", outputs=1, inputs=65535, weights=_many(65535), shifts=_many(1)),
        ],
        "RANGE",
    ),
    "tiles are counted": (
        "tiles",
        _within(CELL + "kernel.plain", outputs=65535, inputs=65535, shifts=_many(65536)),
        "PLACE",
    ),
    "no weight of a tile is 128": ("tiles", [(CELL + "kernel.plain.weights", _largest)], "RANGE"),
    "a low rank takes all of x": ("joint", [(CELL + "kernel.first.inputs", 13)], "SHAPE"),
    "a low rank is one": ("joint", [(CELL + "kernel.first.outputs", 4)], "SHAPE"),
    "a low rank gives all of y": ("joint", [(CELL + "kernel.second.outputs", 31)], "SHAPE"),
    "a low rank has no terms": ("joint", [(CELL + "kernel.terms", 1)], "SHAPE"),
    "a low rank has no strides": ("joint", [(CELL + "kernel.y_first", 1)], "SHAPE"),
    "a dense matrix takes all of x": ("gru", [(CELL + "kernel.plain.inputs", 2)], "SHAPE"),
    "a dense matrix has its rows": ("gru", [(CELL + "kernel.plain.outputs", 11)], "SHAPE"),
    "a dense matrix gives all of y": ("gru", _within(CELL + "kernel", plain__outputs=11, top=11), "SHAPE"),
    "blocks make up y": ("hybrid-4-bits", _within(CELL + "kernel", outputs=33), "SHAPE"),
    "a kernel takes x": ("gru", _within(CELL + "kernel", plain__inputs=2, inputs=2), "SHAPE"),
    "a recurrent matrix takes h": ("gru", _within(CELL + "recurrent", plain__inputs=2, inputs=2), "SHAPE"),
    "a layer takes what is below": ("denoiser", _within("net.layer.0.mat", plain__inputs=2, inputs=2), "SHAPE"),
    "strides are those of an order": ("kron", [(CELL + "kernel.x_line", 1)], "SHAPE"),
    "rows of a tile are used together": (
        "tiles",
        [(CELL + "kernel.blocks", 4), (CELL + "kernel.top", 6)],
        "SHAPE",
    ),
    "nothing fills up a tile": ("tiles", [(CELL + "kernel.plain.weights", _at(5 * 8 + 2, 1))], "SHAPE"),
    "tiles of 16 bits": ("tiles", [(CELL + "kernel.plain.bits", 16)], "SHAPE"),
    "tiles of three": ("tiles", [(CELL + "kernel.plain.tile", 3)], "SHAPE"),
    "a map of nothing": ("gru", [(CELL + "kernel.plain.block", 1)], "SHAPE"),
    "a block divides a row": ("map", [(CELL + "kernel.plain.block", 3)], "SHAPE"),
    "rows follow each other": ("map", [(CELL + "kernel.plain.start", _at(1, 12))], "SHAPE"),
    "blocks begin at 0": ("steps", [(CELL + "kernel.plain.start", _at(0, 1))], "SHAPE"),
    "blocks end at the end": ("steps", [(CELL + "kernel.plain.start", _at(-1, 1 << 31))], "PLACE"),
    "a step leads on": ("steps", [(CELL + "kernel.plain.steps", _all(0))], "SHAPE"),
    "a step stays within": ("steps", [(CELL + "kernel.plain.steps", _all(3))], "SHAPE"),
    "shifts are short": ("gru", [(CELL + "kernel.plain.shifts", _at(0, 31))], "RANGE"),
    "the gate is of one row": ("denoiser", [("net.stack.skip.gate.outputs", 2)], "SHAPE"),
    "an update comes some day": ("denoiser", [("net.stack.skip.slowest", 0)], "RANGE"),
    "a layer has biases": ("denoiser", [("net.layer.0.bias", 0)], "SHAPE"),
    "sine": ("denoiser", [("front.sine", lambda numbers: -(numbers // 2))], "RANGE"),
    "analysis": ("denoiser", [("front.analysis", _at(3, 32769))], "RANGE"),
    "synthesis": ("denoiser", _within("front", hop=16, synthesis_shift=10, synthesis=_all(8191)), "SUM"),
    "synthesis is small": (
        "denoiser",
        [("front.synthesis_shift", 10), ("front.synthesis", lambda numbers: _at(3, 8192)(0 * numbers))],
        "RANGE",
    ),
    "a band ends before the end": ("denoiser", [("front.start", _at(-1, 33))], "SHAPE"),
    "weights add up": ("denoiser", [("front.weights", _at(0, 0))], "RANGE"),
    "gains lie between bands": ("denoiser", [("front.place", _at(9, 65535))], "RANGE"),
    "the last bin": ("denoiser", [("front.last", 33)], "SHAPE"),
    "the first bin": ("denoiser", [("front.first", 34)], "SHAPE"),
    "a window is a power of two": ("denoiser", [("front.window", 96)], "SHAPE"),
    "hops make up a window": ("denoiser", [("front.hop", 24)], "SHAPE"),
    "windows overlap": ("denoiser", [("front.hop", 64)], "SHAPE"),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Callable[[bytes], str]:
    """What loading says of bytes, without the prefix."""
    load = build(tmp_path_factory.mktemp("kernels")).rnnc_blob_open
    load.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]

    def status(data: bytes) -> str:
        whole, arena, loaded = np.frombuffer(data, np.uint32).copy(), np.zeros(2000, np.uint64), np.zeros(9, np.uint64)
        found = load(whole.ctypes.data, len(data), arena.ctypes.data, arena.nbytes, loaded.ctypes.data)
        return STATUSES[found].removeprefix("RNNC_BLOB_")

    return status


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_found_out(lie, opened):
    name, changes, expected = LIES[lie]
    tree = model.top(*made(name))
    assert opened(blob.encoded(tree)) == "OK"
    for path, change in changes:
        tree = _told(tree, path.split("."), change)
    assert opened(blob.encoded(tree)) == expected


def _numbers(value, path: str = "") -> list[str]:
    """Where a tree holds numbers."""
    if isinstance(value, Structs):
        return [found for i, item in enumerate(value.items) for found in _numbers(item, f"{path}{i}.")]
    if isinstance(value, Struct):
        return [found for key, inner in value.fields.items() for found in _numbers(inner, f"{path}{key}.")]
    return [] if isinstance(value, Array) else [path[:-1]]


@pytest.mark.parametrize("name", MODELS)
def test_no_number_can_be_just_any(name, opened):
    """Each one far too large, and far too small."""
    tree = model.top(*made(name))
    found = _numbers(tree)
    assert len(found) > 20
    for path in found:
        for wrong in (1 << 30, -(1 << 30)):
            told = blob.encoded(_told(tree, path.split("."), wrong))
            assert opened(told) in ("RANGE", "SHAPE"), (path, wrong)
