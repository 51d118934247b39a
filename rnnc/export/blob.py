"""A model as bytes, which C loads with every number checked: for updates over the air, or models on a file system."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rnnc.cells import Cell, Skip
from rnnc.container import replace
from rnnc.export.model import FORMAT_VERSION, Layout, top
from rnnc.export.records import CONSTANTS, FIELDS, Array, Struct, Structs, Value
from rnnc.model import Enhancer

MAGIC = b"RNNC"
KINDS = ("rnnc_stack", "rnnc_denoiser")


def write(path: Path, model: Cell | Skip | Sequence[Cell] | Enhancer, layout: Layout = "rows") -> None:
    """Write `packed(model, layout)` atomically."""
    replace(path, packed(model, layout))


def packed(model: Cell | Skip | Sequence[Cell] | Enhancer, layout: Layout = "rows") -> bytes:
    """The bytes that rnnc_blob_open of kernels/blob.c takes; its opening comment gives the layout.

    Args:
      model, layout: as for `rnnc.export.model.write`.

    Raises:
      ExportError: see there.

    >>> from flax import nnx
    >>> from rnnc.arith import Fixed, Formats
    >>> from rnnc.cells import GRUCell
    >>> from rnnc.fixed import Format
    >>> cell = GRUCell(3, 8, arith=Fixed(formats=Formats(h=Format(16, 15))), rngs=nnx.Rngs(0))
    >>> data = packed(cell)
    >>> data[:4], len(data) % 4, zlib.crc32(data)  # a whole with its checksum behind it has this one
    (b'RNNC', 0, 558161692)
    """
    return encoded(top(model, layout))


def encoded(whole: Struct) -> bytes:
    """The bytes of a structure of `KINDS`."""
    arrays: dict[int, Array] = {}
    words: list[int | Array] = [KINDS.index(whole.kind)]
    _words(whole.kind, whole, words)
    at = 12 + 4 * len(words)
    places = {}
    for array in (word for word in words if isinstance(word, Array)):
        places[id(array)], arrays[at] = at, array
        at += -(-array.data.nbytes // 4) * 4
    numbers = [places[id(word)] if isinstance(word, Array) else word for word in words]
    body = MAGIC + struct.pack("<II", FORMAT_VERSION, at + 4) + np.array(numbers, "<i4").tobytes()
    for array in arrays.values():
        body += array.data.tobytes() + bytes(-array.data.nbytes % 4)
    return body + struct.pack("<I", zlib.crc32(body))


def _words(held: str, value: Value, words: list[int | Array]) -> None:
    """Add what a field holds; see `FIELDS`."""
    if isinstance(value, Structs):
        for item in value.items:
            _words(item.kind, item, words)
    elif isinstance(value, Array):
        words.append(value)
    elif held.endswith("*"):
        words.append(int(isinstance(value, Struct)))
        if isinstance(value, Struct):
            _words(value.kind, value, words)
    elif held in FIELDS:
        given = value.fields if isinstance(value, Struct) else {}
        for name, inner in FIELDS[held].items():
            _words(inner, given.get(name, 0), words)
    else:
        assert isinstance(value, str | int)
        words.append(CONSTANTS[value] if isinstance(value, str) else value)
