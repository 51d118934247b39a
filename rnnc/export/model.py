"""A trained stack of cells, or a whole denoiser, as C: constant data for kernels/, and a header."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnnc import fixed
from rnnc.arith import Fake, Fixed, Formats
from rnnc.cells import Cell, Skip
from rnnc.container import replace
from rnnc.export import front as front_end
from rnnc.export.records import Array, Struct, Structs, Value
from rnnc.export.store import rows, smallest, stores
from rnnc.export.tables import array
from rnnc.factors import Factors
from rnnc.fixed import FRAC_IN, FRAC_OUT, GATE, INPUT, SUM, Format
from rnnc.model import Enhancer, Model
from rnnc.steps import Core, Params
from rnnc.structure import Dense, Hybrid, Joint, Kron, LowRank

FORMAT_VERSION = 1
LIMIT = 1 << 30  # sums stay below it
Layout = Literal["rows", "tiles"]
_prepared = jax.jit(Core.prepared, static_argnums=0)


class ExportError(ValueError):
    """A model that the kernels cannot run: which part, why, and what would do."""


@dataclass
class _Source:
    """A model while it grows, with the text of model.c: constant arrays, then what refers to them."""

    name: str
    layout: Layout = "rows"
    root: Struct | None = None
    lines: list[str] = field(default_factory=list)
    about: list[str] = field(default_factory=list)
    sizes: list["Size"] = field(default_factory=list)
    flash: int = 0  # of all arrays so far

    def array(self, what: str, kind: str, numbers: np.ndarray, comment: str) -> Array:
        """Add an array."""
        added = Array(f"{self.name}_{what}", kind, numbers)
        self.flash += added.data.nbytes
        aligned = " RNNC_ALIGNED" if kind == "int8_t" else ""
        opening = f"static const {kind} {added.name}[{numbers.size}]{aligned} = {{"
        self.lines += [f"/* {comment} */", opening, *array(numbers), "};"]
        return added

    def layer(self, name: str, state: int, scratch: int) -> None:
        """Note that all arrays since the last call belong to a layer; state and scratch in bytes."""
        flash = self.flash - sum(size.flash for size in self.sizes)
        self.sizes.append(Size(name=name, flash=flash, state=state, scratch=scratch))

    def struct(self, what: str, kind: str, fields: Mapping[str, Value], *, public: bool = False) -> Struct:
        """Add a structure with a name of its own; one that is nothing in particular bears the model's."""
        added = Struct(kind, fields, f"{self.name}_{what}" if what else self.name)
        static = "" if public else "static "
        lines = (f"    {line}," for line in added.lines)
        self.lines += [f"{static}const {kind} {added.name} = {{", *lines, "};", ""]
        return added

    def structs(self, what: str, kind: str, items: Sequence[Struct]) -> Structs:
        """Add an array of structures."""
        added = Structs(f"{self.name}_{what}", tuple(items))
        lines = (f"    {item.text}," for item in items)
        self.lines += [f"static const {kind} {added.name}[] = {{", *lines, "};", ""]
        return added


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a layer takes on a chip, in bytes.

    Args:
      name: the layer.
      flash: its weights, shifts, biases and indices; what the C structures add depends on the compiler.
      state: what lives from frame to frame.
      scratch: what its step needs; layers share one scratch.
    """

    name: str
    flash: int
    state: int
    scratch: int


def write(folder: Path, name: str, model: Cell | Skip | Sequence[Cell] | Enhancer, *, layout: Layout = "rows") -> Path:
    """Write `name`.c and `name`.h: constant data of that name, to compile with the files of kernels/.

    Args:
      folder: made if it is not there.
      name: a C identifier in lower case.
      model: a cell, a stack (the lowest first) or a `Skip`, which become a `rnnc_stack`; or an enhancer, which
        becomes a `rnnc_denoiser` called `name`_denoiser, and its network a `rnnc_net` of that name. Their arithmetic
        (`Fake` or `Fixed`) says the formats.
      layout: of the weights. "rows": row by row; "tiles": for the kernels with RNNC_DSP. Every kernel reads both, with
        the same results.

    Returns:
      The path of `name`.c.

    Raises:
      ExportError: the name is no identifier, an arithmetic is floating point, two layers do not fit, a sum of
        products could overflow, or the kernels' front end has no such window.

    >>> import tempfile
    >>> from flax import nnx
    >>> from rnnc.cells import GRUCell
    >>> cell = GRUCell(3, 8, arith=Fixed(formats=Formats(h=Format(16, 15))), rngs=nnx.Rngs(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = write(Path(folder), "hello", cell).with_suffix(".h").read_text()
    >>> "extern const rnnc_stack hello;" in text
    True
    """
    source = _whole(name, model, layout)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in zip((".h", ".c"), _texts(source)):
        replace(folder / f"{name}{suffix}", text)
    return folder / f"{name}.c"


def sizes(model: Cell | Skip | Sequence[Cell] | Enhancer, *, layout: Layout = "rows") -> list[Size]:
    """What each layer takes, in the order of the layers; state and scratch are what the C functions ask for.

    >>> from flax import nnx
    >>> from rnnc.cells import GRUCell
    >>> cell = GRUCell(3, 8, arith=Fixed(formats=Formats(h=Format(16, 15))), rngs=nnx.Rngs(0))
    >>> sizes(cell)
    [Size(name='cell0', flash=360, state=16, scratch=168)]
    """
    return _whole("model", model, layout).sizes


def network_sizes(model: Enhancer, layout: Layout = "rows") -> list[Size]:
    """What each layer of a denoiser takes, without its front end.

    Raises:
      ExportError: as `write`, but for the front end.
    """
    return _render("model", model, layout).sizes


def top(model: Cell | Skip | Sequence[Cell] | Enhancer, layout: Layout = "rows") -> Struct:
    """The structure that stands for the whole model, a rnnc_stack or a rnnc_denoiser; raises what `write` does."""
    found = _whole("model", model, layout).root
    assert found is not None
    return found


def _whole(name: str, model: Cell | Skip | Sequence[Cell] | Enhancer, layout: Layout) -> _Source:
    """The model, an enhancer with its front end."""
    source = _render(name, model, layout)
    if isinstance(model, Enhancer):
        assert isinstance(source.root, Struct)
        _denoiser(source, model.model, source.root)
    return source


def root(model: Cell | Skip | Sequence[Cell] | Enhancer) -> Struct:
    """The structure that stands for the network: a rnnc_stack or a rnnc_net; raises what `write` does."""
    top = _render("model", model).root
    assert top is not None
    return top


def _render(name: str, model: Cell | Skip | Sequence[Cell] | Enhancer, layout: Layout = "rows") -> _Source:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ExportError(f"name: is {name!r}, must be lower-case letters, digits and '_', a letter first")
    source = _Source(name, layout)
    if not isinstance(model, Enhancer):
        cells = list(model.cells) if isinstance(model, Skip) else [model] if isinstance(model, Cell) else list(model)
        source.root, last = _stack(source, cells, model if isinstance(model, Skip) else None, public=True)
        source.about = _about("rnnc_stack", name, cells[0], last.h)
        return source
    if not model.model.formats:
        raise ExportError("model: computes in floating point; train it with a section [quantise], or calibrate it")
    below = [rnn.cell for rnn in model.layers]
    skip = next((cell for cell in below if isinstance(cell, Skip)), None)
    cells = list(skip.cells) if skip else [cell for cell in below if isinstance(cell, Cell)]
    stack, _ = _stack(source, cells, skip)
    ends = (("dense", model.dense, False), ("mask", model.mask, True))
    widest = max(model.model.units[-1], model.model.hidden, model.model.bands.count)
    layers = []
    for (what, layer, sigmoid), formats in zip(ends, model.model.formats[-2:]):
        layers.append(_dense(source, what, layer, formats, sigmoid=sigmoid))
        state = 2 * model.model.bands.count if sigmoid else 0  # the mask is held
        own = _scratch(layers[-1].fields["mat"])
        source.layer(what, state=state, scratch=4 * (2 * _even(widest) + own))
    fields = {"stack": stack, "layers": 2, "layer": source.structs("layers", "rnnc_dense", layers)}
    source.root = source.struct("", "rnnc_net", fields, public=True)
    source.about = _about("rnnc_net", name, cells[0], GATE)
    return source


def _denoiser(source: _Source, model: Model, net: Struct) -> None:
    """Add the front end, and the structure that holds it and the network."""
    try:
        front = model.front
    except ValueError as error:
        raise ExportError(f"front end: {error}") from None
    added = {}
    for key, (kind, numbers, text) in front_end.arrays(front).items():
        added[key] = source.array(f"front_{key}", kind, numbers, f"front end: {text}")
    state, scratch = front_end.memory(front)
    source.layer("front", state=state, scratch=scratch)
    body = source.struct("front", "rnnc_front", {**front_end.numbers(front), **added})
    source.root = source.struct("denoiser", "rnnc_denoiser", {"front": body, "net": net}, public=True)
    about = f"/* In and out: int16 sound, {model.rate_hz} Hz; {model.stft.window - 1} samples late. */"
    source.about += ["", about, f"extern const rnnc_denoiser {source.name}_denoiser;"]


def _about(kind: str, name: str, first: Cell, out: Format) -> list[str]:
    """What the header says and declares."""
    x = _formats("layer 0", first.core).x
    return [f"/* In: {_words(x)}; out: {_words(out)}. */", f"extern const {kind} {name};"]


def _texts(source: _Source) -> tuple[str, str]:
    """The header and the data."""
    body, guard = "\n".join(source.lines), f"{source.name.upper()}_H"
    digest = hashlib.sha256(body.encode()).hexdigest()
    flash = sum(size.flash for size in source.sizes)
    top = f"/* Model {source.name}, format version {FORMAT_VERSION}, {flash} bytes of numbers, sha256 {digest}. */"
    opening = [top, f"#ifndef {guard}", f"#define {guard}", "", '#include "rnnc.h"', ""]
    header = "\n".join([*opening, *source.about, "", "#endif", ""])
    return header, f'{top}\n#include "{source.name}.h"\n\n{body}'


def _stack(
    source: _Source, cells: Sequence[Cell], skip: Skip | None, *, public: bool = False
) -> tuple[Struct, Formats]:
    """Add cells and the stack that they make; returns it and the formats of the last."""
    added, before = [], None
    for i, one in enumerate(cells):
        formats = _formats(f"layer {i}", one.core)
        if before and (before.h != formats.x or cells[i - 1].hidden_features != one.in_features):
            raise ExportError(
                f"layer {i}: takes {one.in_features} numbers of {_words(formats.x)}, the one below gives "
                f"{cells[i - 1].hidden_features} of {_words(before.h)}"
            )
        added.append(_cell(source, f"cell{i}", one, formats))
        before = formats
    assert before is not None
    gate = {"skip": _skip(source, skip)} if skip else {}
    fields = {"cells": len(added), "cell": source.structs("cells", "rnnc_cell *const", added), **gate}
    return source.struct("" if public else "stack", "rnnc_stack", fields, public=public), before


def _words(form: Format) -> str:
    return f"{form.bits} bits, frac {form.frac}"


def _formats(where: str, core: Core) -> Formats:
    if not isinstance(core.arith, Fake | Fixed):
        raise ExportError(f"{where}: its arithmetic is floating point; give its cell arith=Fixed(formats=...)")
    return core.arith.formats


def _cell(source: _Source, what: str, cell: Cell, formats: Formats) -> Struct:
    core, n, m = cell.core, cell.in_features, cell.hidden_features
    for point in ("c", "h"):
        if formats[point].frac < 0:
            raise ExportError(f"{what}: {point} has frac {formats[point].frac}, must be 0 or more for the kernels")
    params = jax.tree.map(np.asarray, _prepared(core, cell.weights()))
    joint = isinstance(core.recurrent, Joint)
    step, chip = core.step, Fixed(formats=formats)
    h_in = formats.x_in if joint else formats.h_in
    body: dict[str, Value] = {"step": f"RNNC_{step.name.upper()}", "n": n, "m": m, "joint": int(joint)}
    for side, point, mid in (("kernel", formats.x_in, formats.x_mid), ("recurrent", formats.h_in, formats.h_mid)):
        if side in params:
            structure, where = getattr(core, side), f"{what}_{side}"
            body[side] = _mat(source, where, structure, params[side], point, mid, formats)
    for key in ("bias", "recurrent_bias"):
        if key in params:
            width = step.gates * m
            numbers = np.pad(np.asarray(fixed.quantise(params[key], INPUT)), (width - params[key].size, 0))
            body[key] = source.array(f"{what}_{key}", "int16_t", numbers, f"{what}: {key}, Q3.{FRAC_IN}")
    h = formats.h
    body |= {"x_shift": formats.x.frac - formats.x_in.frac, "h_shift": h.frac - h_in.frac}
    body |= {"x_bits": formats.x_in.bits, "h_bits": h_in.bits}
    body |= {"c_frac": formats.c.frac, "h_frac": h.frac, "h_out_bits": h.bits, "hn_frac": formats.hn.frac}
    for key, _ in step.scalars:
        gate = chip.sigmoid(key, chip.at("scalar", params[key]))
        body[key] = int(gate.array[0])
    width, moved = (step.gates + (not step.additive)) * m, ((n if joint else _even(n)) + m + 1) // 2
    own = max(_scratch(body[side]) for side in ("kernel", "recurrent") if side in body)
    source.layer(what, state=2 * step.state * m, scratch=4 * (width + moved + own))
    return source.struct(what, "rnnc_cell", body)


def _dense(source: _Source, what: str, layer: nnx.Linear, formats: Formats, *, sigmoid: bool) -> Struct:
    """A dense layer."""
    assert layer.bias is not None
    chip = Fixed(formats=formats)
    w, bias = (np.asarray(a[...]) for a in (layer.kernel, layer.bias))
    w = np.asarray(chip.weight("gx.in", jnp.asarray(w), (0,)))
    mat = _mat(source, what, Dense(), {"w": w}, formats.x_in, formats.x_mid, formats)
    biases = np.asarray(fixed.quantise(bias, INPUT))
    added = source.array(f"{what}_bias", "int16_t", biases, f"{what}: bias, Q3.{FRAC_IN}")
    body = {"mat": mat, "bias": added, "activation": "RNNC_SIGMOID" if sigmoid else "RNNC_RELU"}
    body |= {"x_shift": formats.x.frac - formats.x_in.frac, "x_bits": formats.x_in.bits}
    return Struct("rnnc_dense", body | {"y_frac": formats.h.frac, "y_bits": formats.h.bits})


def _even(numbers: int) -> int:
    return (numbers + 1) // 2 * 2


def _number(part: Value, *keys: str) -> int:
    """A number within a structure."""
    for key in keys:
        assert isinstance(part, Struct)
        part = part.fields[key]
    assert isinstance(part, int)
    return part


def _scratch(mat: Value) -> int:
    """Numbers of int32 that a product needs: int16 between its factors, and copies of what they are applied to."""
    widest, between, copied = _number(mat, "inputs"), 0, 0
    kind = mat.fields["kind"] if isinstance(mat, Struct) else None
    if kind != "RNNC_DENSE":
        second = _number(mat, "second", "inputs")
        widest, between = max(widest, second), _even(second)
    if kind == "RNNC_KRON":
        between *= _number(mat, "first", "outputs") // _number(mat, "blocks") // _number(mat, "terms")
        line = _number(mat, "first", "inputs")
        if _number(mat, "x_next") != 1:
            copied = _number(mat, "inputs") // line * _even(line)
    return (between + copied + _even(widest)) // 2


def _skip(source: _Source, skip: Skip) -> Struct:
    top = skip.cells[-1].core
    formats = _formats("skip", top)
    gate = jax.tree.map(np.asarray, skip.core.prepared(skip.weights())["gate"])
    memory = formats.c if top.step.state > 1 else formats.h
    plain = _plain(source, "gate", gate["kernel"].T, memory, SUM, formats)
    slowest = int(top.arith.above(0.5 / (skip.core.longest + 0.5)) * (1 << FRAC_OUT))
    bias = int(fixed.quantise(gate["bias"], INPUT)[0])
    source.layer("gate", state=4, scratch=0)
    return source.struct("skip", "rnnc_skip", {"gate": plain, "bias": bias, "slowest": slowest})


def _mat(
    source: _Source,
    what: str,
    structure: Dense | LowRank | Kron | Hybrid,
    w: Params,
    x: Format,
    mid: Format,
    formats: Formats,
) -> Struct:
    """A structured matrix."""
    n, m = structure.shape(w)
    body: dict[str, Value] = {"kind": "RNNC_DENSE", "inputs": n, "outputs": m, "blocks": 1, "top": m}
    if isinstance(structure, Dense):
        body["plain"] = _plain(source, f"{what}_w", w["w"].T, x, SUM, formats)
    if isinstance(structure, LowRank):
        blocks = len(w["u"])
        body |= {"kind": "RNNC_LOWRANK", "blocks": blocks, "top": 0, "mid_bits": mid.bits}
        for key, part, array, points in (("first", "u", w["u"], (x, mid)), ("second", "v", w["v"], (mid, SUM))):
            outputs = array.transpose(0, 2, 1).reshape(-1, array.shape[1])
            body[key] = _plain(source, f"{what}_{part}", outputs, *points, formats, blocks)
    if isinstance(structure, Kron | Hybrid):
        body |= _kron(source, what, w, x, mid, formats)
    if isinstance(structure, Hybrid):
        blocks, _, rows = w["top"].shape
        body["top"] = rows
        body["plain"] = _plain(
            source, f"{what}_top", w["top"].transpose(0, 2, 1).reshape(-1, n), x, SUM, formats, blocks
        )
    return Struct("rnnc_mat", body)


def _kron(source: _Source, what: str, w: Params, x: Format, mid: Format, formats: Formats) -> dict[str, Value]:
    blocks, terms, m1, n1 = w["a"].shape
    m2, n2 = w["b"].shape[2:]
    if terms > 255:
        raise ExportError(f"{what}: has {terms} terms, must be 255 at most")
    body: dict[str, Value] = {"kind": "RNNC_KRON", "blocks": blocks, "top": 0, "terms": terms, "mid_bits": mid.bits}
    if Factors((m1, n1), (m2, n2)).b_first:
        first, second, names = w["b"], w["a"], ("b", "a")
        body |= {"x_line": n2, "x_next": 1, "y_first": 1, "y_second": m2}
    else:
        first, second, names = w["a"], w["b"], ("a", "b")
        body |= {"x_line": 1, "x_next": n2, "y_first": m2, "y_second": 1}
    outer = second.transpose(0, 2, 1, 3).reshape(blocks * second.shape[2], -1)
    inner = first.reshape(-1, first.shape[3])
    body["first"] = _plain(source, f"{what}_{names[0]}", inner, x, mid, formats, blocks * terms)
    body["second"] = _plain(source, f"{what}_{names[1]}", outer, mid, SUM, formats, blocks)
    return body


def _plain(
    source: _Source, what: str, w: np.ndarray, x: Format, y: Format, formats: Formats, blocks: int = 1
) -> Struct:
    """A plain matrix [outputs, inputs], on its grid; every sum is proved not to overflow.

    Its outputs are those of `blocks` matrices that are used one by one.
    """
    bits = formats.bits_for(x)
    frac = fixed.weight_frac(w, (1,), bits)
    q = np.ldexp(w, frac).astype(np.int64)
    largest = np.abs(q).sum(axis=1) * -x.lowest
    for row in np.flatnonzero(largest >= LIMIT):
        raise ExportError(
            f"{what}, output {row}: its sum can reach {largest[row]}, must stay below 2^30 = {LIMIT}; "
            f"inputs have {x.bits} bits and weights {bits}: take fewer of one"
        )
    frac_text = f"{bits} bits, one frac per output"
    shape = f"[{w.shape[0]}, {w.shape[1]}]"
    sum_bits = int(largest.max()).bit_length() + 1
    store = smallest(stores(q, bits, blocks) if source.layout == "tiles" else rows(q, bits))
    text = f"weights {shape}" if store.kept is None else f"{store.numbers.size} weights of {shape} in {store.words}"
    body: dict[str, Value] = {"outputs": w.shape[0], "inputs": w.shape[1], "bits": store.bits, "tile": store.tile}
    body |= {"sum_bits": sum_bits, "x_bits": x.bits}
    body["weights"] = source.array(what, "int8_t", store.packed, f"{what}: {text}, {frac_text}")
    if store.kept is not None:
        key, numbers, start = store.index
        body |= {"block": store.block, key: source.array(f"{what}_{key}", "uint8_t", numbers, f"{what}: its blocks")}
        begins = "row" if store.tile == 0 else "tile"
        body["start"] = source.array(f"{what}_start", "uint32_t", start, f"{what}: where each {begins} begins")
    shifts = (frac.ravel() + x.frac - y.frac).astype(np.int64)
    for row in np.flatnonzero(np.abs(shifts) > 30):
        raise ExportError(
            f"{what}, output {row}: its sum would be shifted by {shifts[row]}, must be -30 to 30: "
            f"weights have frac {frac.ravel()[row]}, inputs {x.frac}, the result {y.frac}"
        )
    body["shifts"] = source.array(f"{what}_shifts", "int8_t", shifts, f"{what}: from the sum's frac to {y.frac}")
    return Struct("rnnc_plain", body)
