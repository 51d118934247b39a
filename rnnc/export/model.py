"""A trained stack of cells as C: constant data for kernels/, and a header that names it."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rnnc import fixed
from rnnc.arith import Fake, Fixed, Formats
from rnnc.cells import Cell, Skip
from rnnc.container import replace
from rnnc.export.tables import array
from rnnc.factors import Factors
from rnnc.fixed import FRAC_IN, FRAC_OUT, SUM, Format
from rnnc.steps import Core, Params
from rnnc.structure import Dense, Hybrid, Joint, Kron, LowRank

FORMAT_VERSION = 1
LIMIT = 1 << 30  # sums stay below it


class ExportError(ValueError):
    """A model that the kernels cannot run: which part, why, and what would do."""


@dataclass
class _Source:
    """The text of model.c while it grows: constant arrays, then what refers to them."""

    name: str
    lines: list[str] = field(default_factory=list)
    bytes: int = 0

    def array(self, what: str, kind: str, numbers: np.ndarray, comment: str) -> str:
        """Add an array; returns its name."""
        called = f"{self.name}_{what}"
        self.bytes += numbers.size * {"int8_t": 1, "int32_t": 4}[kind]
        self.lines += [f"/* {comment} */", f"static const {kind} {called}[{numbers.size}] = {{", *array(numbers), "};"]
        return called

    def struct(self, what: str, kind: str, body: Sequence[str]) -> str:
        """Add a structure; returns its name."""
        called = f"{self.name}_{what}"
        self.lines += [f"static const {kind} {called} = {{", *(f"    {line}," for line in body), "};"]
        return called


def write(folder: Path, name: str, cell: Cell | Skip | Sequence[Cell]) -> Path:
    """Write `name`.c and `name`.h: a constant `rnnc_stack` of that name, to compile with the files of kernels/.

    Args:
      folder: made if it is not there.
      name: a C identifier in lower case.
      cell: a cell, a stack (the lowest first) or a `Skip`; their arithmetic says the formats (`Fake` or `Fixed`).

    Returns:
      The path of `name`.c.

    Raises:
      ExportError: the name is no identifier, an arithmetic is floating point, two layers do not fit, or a sum of
        products could overflow.

    >>> import tempfile
    >>> from flax import nnx
    >>> from rnnc.cells import GRUCell
    >>> cell = GRUCell(3, 8, arith=Fixed(formats=Formats(h=Format(16, 15))), rngs=nnx.Rngs(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = write(Path(folder), "hello", cell).with_suffix(".h").read_text()
    >>> "extern const rnnc_stack hello;" in text
    True
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ExportError(f"name: is {name!r}, must be lower-case letters, digits and '_', a letter first")
    text, header = render(name, cell)
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / f"{name}.h", header)
    replace(folder / f"{name}.c", text)
    return folder / f"{name}.c"


def render(name: str, cell: Cell | Skip | Sequence[Cell]) -> tuple[str, str]:
    """The texts of `name`.c and `name`.h; see `write`."""
    stack = list(cell.cells) if isinstance(cell, Skip) else [cell] if isinstance(cell, Cell) else list(cell)
    source, names = _Source(name), []
    formats = before = _formats("layer 0", stack[0].core)
    for i, one in enumerate(stack):
        formats = _formats(f"layer {i}", one.core)
        if i and (before.h != formats.x or stack[i - 1].hidden_features != one.in_features):
            raise ExportError(
                f"layer {i}: takes {one.in_features} numbers as {tuple(formats.x)}, the one below gives "
                f"{stack[i - 1].hidden_features} as {tuple(before.h)}"
            )
        names.append(_cell(source, f"cell{i}", one, formats))
        before = formats
    skip = "0"
    if isinstance(cell, Skip):
        skip = f"&{_skip(source, cell)}"
    refs = ", ".join(f"&{called}" for called in names)
    source.lines += [f"static const rnnc_cell *const {name}_cells[] = {{{refs}}};", ""]
    source.lines += [f"const rnnc_stack {name} = {{.cells = {len(stack)}, .cell = {name}_cells, .skip = {skip}}};", ""]
    body = "\n".join(source.lines)
    digest = hashlib.sha256(body.encode()).hexdigest()
    top = f"/* Model {name}, format version {FORMAT_VERSION}, {source.bytes} bytes of numbers, sha256 {digest}. */\n"
    first = _formats("layer 0", stack[0].core)
    guard = f"{name.upper()}_H"
    notes = [
        f"/* {name}: {stack[0].in_features} numbers in, {stack[-1].hidden_features} out.",
        f" * in: q 2^-{first.x.frac}, {first.x.bits} bits; out: q 2^-{before.h.frac}, {before.h.bits} bits. */",
    ]
    opening = [top.rstrip(), f"#ifndef {guard}", f"#define {guard}", "", '#include "rnnc.h"', ""]
    header = "\n".join([*opening, *notes, f"extern const rnnc_stack {name};", "", "#endif", ""])
    return top + f'#include "{name}.h"\n\n' + body, header


def _formats(where: str, core: Core) -> Formats:
    if not isinstance(core.arith, Fake | Fixed):
        raise ExportError(f"{where}: its arithmetic is floating point; give its cell arith=Fixed(formats=...)")
    return core.arith.formats


def _cell(source: _Source, what: str, cell: Cell, formats: Formats) -> str:
    core, n, m = cell.core, cell.in_features, cell.hidden_features
    params = jax.tree.map(np.asarray, core.prepared(cell.weights()))
    joint = isinstance(core.recurrent, Joint)
    step, chip = core.step, Fixed(formats=formats)
    h_in = formats.x_in if joint else formats.h_in
    body = [f".step = RNNC_{step.name.upper()}", f".n = {n}", f".m = {m}", f".joint = {int(joint)}"]
    for side, point, mid in (("kernel", formats.x_in, formats.x_mid), ("recurrent", formats.h_in, formats.h_mid)):
        if side in params:
            structure, where = getattr(core, side), f"{what}_{side}"
            body.append(f".{side} = {_mat(source, where, structure, params[side], point, mid, formats.weight_bits)}")
    for key, field_name in (("bias", "bias"), ("recurrent_bias", "recurrent_bias")):
        if key in params:
            width = step.gates * m
            numbers = np.pad(np.asarray(fixed.quantise(params[key], SUM)), (width - params[key].size, 0))
            called = source.array(f"{what}_{key}", "int32_t", numbers, f"{what}: {key}, Q.{FRAC_IN}")
            body.append(f".{field_name} = {called}")
    h = formats.h
    body += [f".x_shift = {formats.x.frac - formats.x_in.frac}", f".x_bits = {formats.x_in.bits}"]
    body += [f".h_shift = {h.frac - h_in.frac}", f".h_bits = {h_in.bits}"]
    body += [f".c_frac = {formats.c.frac}", f".h_frac = {h.frac}", f".h_out_bits = {h.bits}"]
    body += [f".hn_frac = {formats.hn.frac}"]
    for key, _ in step.scalars:
        gate = chip.sigmoid(key, chip.at("scalar", params[key]))
        body.append(f".{key} = {int(gate.array[0])}")
    return source.struct(what, "rnnc_cell", body)


def _skip(source: _Source, skip: Skip) -> str:
    top = skip.cells[-1].core
    formats = _formats("skip", top)
    gate = jax.tree.map(np.asarray, skip.core.prepared(skip.weights())["gate"])
    memory = formats.c if top.step.state > 1 else formats.h
    plain = _plain(source, "gate", gate["kernel"].T, memory, SUM, formats.weight_bits)
    slowest = int(top.arith.above(0.5 / (skip.core.longest + 0.5)) * (1 << FRAC_OUT))
    bias = int(fixed.quantise(gate["bias"], SUM)[0])
    return source.struct("skip", "rnnc_skip", [f".gate = {plain}", f".bias = {bias}", f".slowest = {slowest}"])


def _mat(
    source: _Source, what: str, structure: Dense | LowRank | Kron | Hybrid, w: Params, x: Format, mid: Format, bits: int
) -> str:
    """A structured matrix as an initializer."""
    n, m = structure.shape(w)
    body = {"kind": "RNNC_DENSE", "inputs": n, "outputs": m, "blocks": 1, "top": m}
    if isinstance(structure, Dense):
        body["plain"] = _plain(source, f"{what}_w", w["w"].T, x, SUM, bits)
    if isinstance(structure, LowRank):
        blocks, _, rank = w["u"].shape
        body |= {"kind": "RNNC_LOWRANK", "blocks": blocks, "top": 0, "mid_bits": mid.bits}
        body["first"] = _plain(source, f"{what}_u", w["u"].transpose(0, 2, 1).reshape(-1, n), x, mid, bits)
        body["second"] = _plain(source, f"{what}_v", w["v"].transpose(0, 2, 1).reshape(-1, rank), mid, SUM, bits)
    if isinstance(structure, Kron | Hybrid):
        body |= _kron(source, what, w, x, mid, bits)
    if isinstance(structure, Hybrid):
        blocks, _, rows = w["top"].shape
        body["top"] = rows
        body["plain"] = _plain(source, f"{what}_top", w["top"].transpose(0, 2, 1).reshape(-1, n), x, SUM, bits)
    return "{" + ", ".join(f".{key} = {value}" for key, value in body.items()) + "}"


def _kron(source: _Source, what: str, w: Params, x: Format, mid: Format, bits: int) -> dict[str, object]:
    blocks, terms, m1, n1 = w["a"].shape
    m2, n2 = w["b"].shape[2:]
    body: dict[str, object] = {"kind": "RNNC_KRON", "blocks": blocks, "top": 0, "terms": terms, "mid_bits": mid.bits}
    if Factors((m1, n1), (m2, n2)).b_first:
        first, second, names = w["b"], w["a"], ("b", "a")
        body |= {"x_line": n2, "x_next": 1, "y_first": 1, "y_second": m2}
    else:
        first, second, names = w["a"], w["b"], ("a", "b")
        body |= {"x_line": 1, "x_next": n2, "y_first": m2, "y_second": 1}
    outer = second.transpose(0, 2, 1, 3).reshape(blocks * second.shape[2], -1)
    body["first"] = _plain(source, f"{what}_{names[0]}", first.reshape(-1, first.shape[3]), x, mid, bits)
    body["second"] = _plain(source, f"{what}_{names[1]}", outer, mid, SUM, bits)
    return body


def _plain(source: _Source, what: str, w: np.ndarray, x: Format, y: Format, bits: int) -> str:
    """A plain matrix [outputs, inputs], on its grid, as an initializer; every sum is proved not to overflow."""
    frac = np.asarray(fixed.weight_frac(jnp.asarray(w), (1,), bits))
    q = np.ldexp(w, frac).astype(np.int64)
    largest = np.abs(q).sum(axis=1) * -x.lowest
    for row in np.flatnonzero(largest >= LIMIT):
        raise ExportError(
            f"{what}, output {row}: its sum can reach {largest[row]}, must stay below 2^30 = {LIMIT}; "
            f"inputs have {x.bits} bits and weights {bits}: take fewer of one"
        )
    shape = f"[{w.shape[0]}, {w.shape[1]}]"
    stored = q.ravel()
    if bits <= 4:
        pairs = np.append(stored, 0)[: stored.size + stored.size % 2].reshape(-1, 2) & 0xF
        stored = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).astype(np.int8)
    weights = source.array(what, "int8_t", stored, f"{what}: weights {shape}, {bits} bits, one frac per output")
    shifts = (frac.ravel() + x.frac - y.frac).astype(np.int64)
    called = source.array(f"{what}_shifts", "int8_t", shifts, f"{what}: from the sum's frac to {y.frac}")
    return (
        f"{{.outputs = {w.shape[0]}, .inputs = {w.shape[1]}, .bits = {4 if bits <= 4 else 8}, "
        f".weights = {weights}, .shifts = {called}}}"
    )
