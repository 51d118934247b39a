"""What an exported model consists of: constant arrays, and the structures of kernels/rnnc.h that refer to them.

The exporters make one tree of these; `rnnc.export.model` writes it as C, `rnnc.export.blob` as bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# The structures as kernels/rnnc.h declares them: fields in their order, each with what it holds. "int": a number or the
# name of a constant; "array": a pointer to numbers, or none; a structure's name: one within, with "*" a pointer to one,
# or none, with "[]" so many as the field before says.
FIELDS: dict[str, dict[str, str]] = {
    "rnnc_plain": {
        **dict.fromkeys(("outputs", "inputs", "bits", "tile", "block", "sum_bits", "x_bits"), "int"),
        **dict.fromkeys(("weights", "shifts", "map", "steps", "start"), "array"),
    },
    "rnnc_mat": {
        **dict.fromkeys(("kind", "inputs", "outputs", "blocks", "top"), "int"),
        **dict.fromkeys(("plain", "first", "second"), "rnnc_plain"),
        **dict.fromkeys(("terms", "mid_bits", "x_line", "x_next", "y_first", "y_second"), "int"),
    },
    "rnnc_cell": {
        **dict.fromkeys(("step", "n", "m", "joint"), "int"),
        **dict.fromkeys(("kernel", "recurrent"), "rnnc_mat"),
        **dict.fromkeys(("bias", "recurrent_bias"), "array"),
        **dict.fromkeys(("x_shift", "h_shift", "x_bits", "h_bits", "c_frac", "h_frac", "h_out_bits"), "int"),
        **dict.fromkeys(("hn_frac", "alpha", "beta"), "int"),
    },
    "rnnc_skip": {"gate": "rnnc_plain", "bias": "int", "slowest": "int"},
    "rnnc_stack": {"cells": "int", "cell": "rnnc_cell[]", "skip": "rnnc_skip*"},
    "rnnc_dense": {
        "mat": "rnnc_mat",
        "bias": "array",
        **dict.fromkeys(("activation", "x_shift", "x_bits", "y_frac", "y_bits"), "int"),
    },
    "rnnc_net": {"stack": "rnnc_stack*", "layers": "int", "layer": "rnnc_dense[]"},
    "rnnc_front": {
        **dict.fromkeys(("window", "hop", "bands", "first", "last", "synthesis_shift", "place_frac", "x_bits"), "int"),
        **dict.fromkeys(("sine", "analysis", "synthesis", "start", "count", "weights", "place"), "array"),
        **dict.fromkeys(("least", "power", "offset", "mean"), "int"),
    },
    "rnnc_denoiser": {"front": "rnnc_front*", "net": "rnnc_net*"},
}
CONSTANTS = {
    name: number
    for names in (
        ("RNNC_DENSE", "RNNC_LOWRANK", "RNNC_KRON"),
        ("RNNC_LSTM", "RNNC_GRU", "RNNC_FASTRNN"),
        ("RNNC_RELU", "RNNC_SIGMOID"),
        (
            *("RNNC_OK", "RNNC_NULL", "RNNC_MISALIGNED", "RNNC_TOO_SMALL"),
            *("RNNC_BAD_MODEL", "RNNC_NOT_READY", "RNNC_BAD_LIMIT"),
        ),
    )
    for number, name in enumerate(names)
}


@dataclass(frozen=True, eq=False)
class Array:
    """Constant numbers.

    Args:
      name: in C.
      kind: int8_t, uint8_t, int16_t, uint16_t, int32_t or uint32_t.
      numbers: any shape; flattened.
    """

    name: str
    kind: str
    numbers: np.ndarray

    @property
    def data(self) -> np.ndarray:
        """The numbers as they lie in memory: flat, little-endian.

        >>> Array("w", "int16_t", np.array([[1, -2]])).data.tobytes().hex()
        '0100feff'
        """
        return self.numbers.astype(np.dtype(self.kind.removesuffix("_t")).newbyteorder("<")).ravel()


@dataclass(frozen=True, eq=False)
class Struct:
    """A structure, within another one, or with a name of its own; fields that are not given are 0.

    >>> Struct("rnnc_skip", {"bias": -3, "slowest": 5}).text
    '{.bias = -3, .slowest = 5}'
    """

    kind: str
    fields: "Mapping[str, Value]"
    name: str = ""

    @property
    def text(self) -> str:
        """The structure in C: its name's address, or an initializer."""
        return f"&{self.name}" if self.name else "{" + ", ".join(self.lines) + "}"

    @property
    def lines(self) -> list[str]:
        """Its initializer in C, field by field."""
        return [f".{key} = {text(value)}" for key, value in self.fields.items()]


@dataclass(frozen=True, eq=False)
class Structs:
    """Structures that lie side by side, or pointers to them, under one name."""

    name: str
    items: tuple[Struct, ...]


Value = int | str | Array | Struct | Structs


def text(value: Value) -> str:
    """A field's value in C.

    >>> text(-3), text(Array("w", "int8_t", np.zeros(2)))
    ('-3', 'w')
    """
    return value.text if isinstance(value, Struct) else str(value) if isinstance(value, int | str) else value.name
