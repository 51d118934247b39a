"""A model as bytes: what loads equals what is compiled in, and whatever else is given is refused or harmless."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_fast import CORES, core_flags

from kernels import KERNELS, WARNINGS, build, compiler, pointer
from rnnc import cells
from rnnc.arith import Fixed, Formats
from rnnc.audio.stft import Bands, Stft
from rnnc.compress.quantise import Quantise, calibrated
from rnnc.export import blob, model, records
from rnnc.fixed import Format
from rnnc.model import Enhancer, Model
from rnnc.structure import Hybrid, Joint, Kron, LowRank

DRIVER = Path(__file__).parent / "blob_driver.c"
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
STATUSES = re.findall(r"RNNC_BLOB_\w+", (KERNELS / "rnnc.h").read_text().partition("RNNC_BLOB_OK")[2])
STATUSES = ["RNNC_BLOB_OK", *dict.fromkeys(STATUSES)]


WIDE = Formats(x_in=Format(16, 12), h_in=Format(16, 14), h=Format(12, 11), hn=Format(16, 14))


def _cell(kind: str, n: int, m: int, weight_bits: int = 8, kept: float = 1.0, block: tuple = (1, 1), **options):
    """A cell with loud weights; of dense ones, blocks of so many inputs by so many outputs may be left out."""
    h = {"lstm": Format(16, 15), "gru": Format(16, 15), "fastrnn": Format(16, 13)}[kind]
    usual = Formats(x=h, x_in=Format(8, 4), h_in=Format(8, 7), h=h, weight_bits=weight_bits)
    formats, structures = options.pop("formats", usual), options
    cell = cells.CELLS[kind](n, m, arith=Fixed(formats=formats), rngs=nnx.Rngs(1), **structures)
    weights = jax.tree.map(lambda a: 2.0 * a if a.ndim > 1 else a + 0.2, cell.weights())
    if kept < 1:
        rng = np.random.default_rng(2)
        for side in ("kernel", "recurrent"):
            w = np.array(weights[side]["w"])
            grid = rng.random((w.shape[0] // block[0], w.shape[1] // block[1])) < kept
            weights[side]["w"] = jnp.asarray(w * np.kron(grid, np.ones(block, np.float32)))
    cell.set_weights(weights)
    return cell


@cache
def _denoiser() -> Enhancer:
    tiny = Model(
        rate_hz=4000,
        stft=Stft(window=64, hop=32),
        bands=Bands(count=4, low_hz=50.0, high_hz=1900.0),
        units=(4, 3),
        hidden=3,
        skip=True,
    )
    plain = Enhancer(tiny, rngs=nnx.Rngs(0))
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 2000)).astype(np.float32)
    chip = Enhancer(calibrated(plain, [noise], Quantise()), rngs=nnx.Rngs(0))
    nnx.update(chip, nnx.state(plain, nnx.Param))
    return chip


def _wider() -> Enhancer:
    """With a window whose transform ends in a pass of 4, and without skipping."""
    chip = _denoiser()
    other = Enhancer(replace(chip.model, stft=Stft(window=128, hop=32), skip=False), rngs=nnx.Rngs(0))
    return other


MODELS = {
    "gru": (lambda: _cell("gru", 3, 4), "rows"),
    "kron": (lambda: _cell("gru", 6, 8, kernel=Kron(shape_a=(4, 2), shape_b=(2, 3)), recurrent=Kron(terms=2)), "rows"),
    "kron-a-first": (lambda: _cell("fastrnn", 6, 8, kernel=Kron(shape_a=(2, 3), shape_b=(4, 2))), "rows"),
    "hybrid-4-bits": (lambda: _cell("lstm", 6, 8, 4, kernel=Hybrid(rows=2), recurrent=LowRank(rank=2)), "rows"),
    "joint": (lambda: _cell("lstm", 6, 8, kernel=LowRank(rank=5, stacked=True), recurrent=Joint()), "rows"),
    "joint-gru": (lambda: _cell("gru", 15, 4, recurrent=Joint()), "rows"),
    "4-bits": (lambda: _cell("fastrnn", 18, 4, 4), "rows"),
    "16-bits": (lambda: _cell("fastrnn", 17, 4, 16), "rows"),
    "16-bit-inputs": (lambda: _cell("lstm", 7, 4, formats=WIDE), "tiles"),
    "16-bit-inputs-gru": (lambda: _cell("gru", 4, 6, formats=WIDE), "rows"),
    "map": (lambda: _cell("gru", 16, 8, kept=0.1), "rows"),
    "tiles": (lambda: [_cell("gru", 11, 8), _cell("gru", 8, 4)], "tiles"),
    "tiles-of-products": (
        lambda: _cell("gru", 6, 8, kernel=Kron(shape_a=(4, 2), shape_b=(2, 3), terms=2), recurrent=LowRank(rank=2)),
        "tiles",
    ),
    "tiles-of-terms": (
        lambda: _cell("fastrnn", 6, 8, kernel=Kron(shape_a=(4, 3), shape_b=(2, 2), terms=2)),
        "tiles",
    ),
    "tiles-of-eights": (lambda: _cell("fastrnn", 32, 16, kernel=Kron(shape_a=(4, 4), shape_b=(4, 8))), "tiles"),
    "tiles-4-bits": (lambda: _cell("fastrnn", 5, 8, 4), "tiles"),
    "steps": (lambda: _cell("gru", 16, 8, kept=0.2, block=(4, 1)), "tiles"),
    "steps-of-tiles": (lambda: _cell("gru", 16, 8, kept=0.2, block=(4, 4)), "tiles"),
    "denoiser": (_denoiser, "rows"),
    "denoiser-128": (_wider, "tiles"),
}


@cache
def made(name: str):
    make, layout = MODELS[name]
    return make(), layout


def test_models_have_all_that_a_blob_can_have():
    """Every array and every structure that the header knows occurs, and every way to store a matrix."""
    arrays, kinds, stores = set(), set(), set()

    def visit(value):
        if isinstance(value, records.Structs):
            for item in value.items:
                visit(item)
        if isinstance(value, records.Struct):
            kinds.update({value.kind, value.fields.get("kind"), value.fields.get("step")})
            arrays.update((value.kind, key) for key, held in value.fields.items() if isinstance(held, records.Array))
            if value.kind == "rnnc_plain":
                index = next((key for key in ("map", "steps") if key in value.fields), "")
                stores.add((value.fields["bits"], value.fields["tile"], index))
            for held in value.fields.values():
                visit(held)

    for name in MODELS:
        visit(model.top(*made(name)))
    held = {(kind, key) for kind, fields in records.FIELDS.items() for key, what in fields.items() if what == "array"}
    assert arrays == held
    assert kinds >= records.FIELDS.keys() | {"RNNC_DENSE", "RNNC_LOWRANK", "RNNC_KRON"}
    assert stores >= {
        (8, 0, ""),
        (4, 0, ""),
        (16, 0, ""),
        (8, 0, "map"),
        (8, 4, ""),
        (4, 4, ""),
        (8, 1, "steps"),
        (8, 4, "steps"),
    }


class _Loaded(ctypes.Structure):
    _fields_ = [("stack", ctypes.c_void_p), ("net", ctypes.c_void_p), ("denoiser", ctypes.c_void_p)]


def _run(library: ctypes.CDLL, stack, x: np.ndarray, outputs: int) -> np.ndarray:
    """What the stack at an address gives, and then its state."""
    state = np.zeros(library.rnnc_stack_state(stack), np.int16)
    scratch = np.zeros(library.rnnc_stack_scratch(stack), np.int32)
    y = np.zeros((len(x), outputs), np.int16)
    library.rnnc_stack_reset(stack, pointer(state))
    library.rnnc_stack_run(stack, len(x), pointer(x), pointer(y), pointer(state), pointer(scratch))
    return np.append(y, state)


def _process(library: ctypes.CDLL, denoiser, x: np.ndarray) -> np.ndarray:
    """What the denoiser at an address gives."""
    memory, y = np.zeros(library.rnnc_denoiser_state_bytes(denoiser) // 4 + 1, np.int32), np.zeros_like(x)
    assert library.rnnc_denoiser_init(denoiser, pointer(memory), memory.nbytes) == 0
    assert library.rnnc_denoiser_process(denoiser, pointer(memory), pointer(x), pointer(y), len(x)) == 0
    return y


@pytest.mark.parametrize("name", MODELS)
def test_what_loads_is_what_is_compiled_in(name, tmp_path):
    chip, layout = made(name)
    library = build(tmp_path, model.write(tmp_path, "unit", chip, layout=layout))
    data = blob.packed(chip, layout)
    size, load = library.rnnc_blob_bytes, library.rnnc_blob_open
    size.restype, size.argtypes = ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_uint32]
    load.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
    whole = np.frombuffer(data, np.uint32).copy()
    arena = np.zeros(size(whole.ctypes.data, len(data)) // 8, np.uint64)
    loaded, rng = _Loaded(), np.random.default_rng(3)
    assert load(whole.ctypes.data, len(data), arena.ctypes.data, arena.nbytes, ctypes.byref(loaded)) == 0
    assert (loaded.denoiser is None) == (loaded.net is None) == (not name.startswith("denoiser"))
    if loaded.denoiser:
        run, x, parts = _process, rng.integers(-9000, 9000, 999).astype(np.int16), (loaded.denoiser, "unit_denoiser")
    else:
        ends = chip if isinstance(chip, list) else [chip]
        x = rng.integers(-20000, 20000, (40, ends[0].in_features)).astype(np.int16)
        run, parts = partial(_run, outputs=ends[-1].hidden_features), (loaded.stack, "unit")
    wanted = run(library, ctypes.byref(ctypes.c_char.in_dll(library, parts[1])), x=x)
    assert np.ptp(wanted.astype(int)) > 500
    np.testing.assert_array_equal(run(library, ctypes.c_void_p(parts[0]), x=x), wanted)


@pytest.fixture(scope="module")
def drivers(tmp_path_factory) -> Callable[[str], Path]:
    """The program for a core's kernels, built with checks of addresses and of undefined behaviour."""

    @cache
    def built(core: str) -> Path:
        program = tmp_path_factory.mktemp("driver") / core
        cc = shutil.which("clang-19") or shutil.which("clang") or compiler()
        command = [cc, *WARNINGS, *SANITIZERS, *core_flags(core), f"-I{KERNELS}", *sorted(KERNELS.glob("*.c")), DRIVER]
        subprocess.run([*command, "-o", program], check=True)
        return program

    return built


def _harmed(driver: Path, data: bytes, how: str, folder: Path) -> dict[str, int]:
    """How often loading said what."""
    (folder / "model.bin").write_bytes(data)
    done = subprocess.run([driver, folder / "model.bin", how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: count for name, count in zip(STATUSES, map(int, done.stdout.split())) if count}


@pytest.mark.parametrize("name", MODELS)
def test_wrong_calls_are_answered(name, drivers, tmp_path):
    """Memory that is NULL, misaligned, too small or not prepared, limits that are none; then all is well."""
    assert _harmed(drivers("plain"), blob.packed(*made(name)), "calls", tmp_path) == {"RNNC_BLOB_OK": 1}


def test_memory_of_another_model_is_refused(tmp_path):
    """The same front end before a wider network, which would write behind the memory."""
    not_ready, small = 5, _denoiser()
    wide = Enhancer(replace(small.model, units=(8, 3)), rngs=nnx.Rngs(0))
    library = build(tmp_path, model.write(tmp_path, "small", small), model.write(tmp_path, "wide", wide))
    a, b = (ctypes.byref(ctypes.c_char.in_dll(library, f"{name}_denoiser")) for name in ("small", "wide"))
    x, memory = np.zeros(40, np.int16), np.zeros(library.rnnc_denoiser_state_bytes(b) // 4 + 1, np.int32)
    for own, other in ((a, b), (b, a)):
        assert library.rnnc_denoiser_init(own, pointer(memory), memory.nbytes) == 0
        assert library.rnnc_denoiser_process(other, pointer(memory), pointer(x), pointer(x), len(x)) == not_ready
        assert library.rnnc_denoiser_process(own, pointer(memory), pointer(x), pointer(x), len(x)) == 0


@pytest.mark.parametrize("name", MODELS)
def test_cut_off_models_are_refused(name, drivers, tmp_path):
    data = blob.packed(*made(name))
    found = _harmed(drivers("plain"), data, "cut", tmp_path)
    assert sum(found.values()) == 2 * len(data) - 20
    assert "RNNC_BLOB_OK" not in found


@pytest.mark.parametrize("name", ["gru", "16-bits"])
def test_no_single_byte_can_change(name, drivers, tmp_path):
    data = blob.packed(*made(name))
    found = _harmed(drivers("plain"), data, "bytes", tmp_path)
    assert sum(found.values()) == 255 * len(data)
    assert set(found) <= {"RNNC_BLOB_MAGIC", "RNNC_BLOB_VERSION", "RNNC_BLOB_SIZE", "RNNC_BLOB_CHECKSUM"}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("core", CORES)
def test_forged_models_are_refused_or_harmless(core, name, drivers, tmp_path):
    """With a right checksum: weights may be any; whatever loads runs within its bounds."""
    data = blob.packed(*made(name))
    found = _harmed(drivers(core), data, "repaired", tmp_path)
    assert sum(found.values()) == 19 * (len(data) - 4)
    assert found.keys() >= {"RNNC_BLOB_OK", "RNNC_BLOB_PLACE", "RNNC_BLOB_RANGE", "RNNC_BLOB_SHAPE", "RNNC_BLOB_SUM"}


def test_records_are_the_structures_of_the_header():
    """Every field in its order, with what it holds; every constant with its number."""
    header = re.sub(r"/\*.*?\*/", "", (KERNELS / "rnnc.h").read_text(), flags=re.DOTALL)
    found = {}
    for body, name in re.findall(r"typedef struct \{([^}]*)\} (\w+);", header):
        found[name] = {}
        for kind, stars, fields in re.findall(r"(?:const )?(\w+) ((?:\*|const )*)([^;]+);", body):
            held = (kind + "*" * bool(stars)) if kind in records.FIELDS else "array" if stars else "int"
            found[name] |= dict.fromkeys(map(str.strip, fields.split(",")), held)
    del found["rnnc_blob"]  # what loading gives, no part of a model
    ours = {
        name: [(field, held.replace("[]", "*")) for field, held in fields.items()]
        for name, fields in records.FIELDS.items()
    }
    assert {name: list(fields.items()) for name, fields in found.items()} == ours
    enums = re.findall(r"typedef enum \{(.*?)\} \w+;", header, re.DOTALL)
    assert {c.strip(): i for body in enums for i, c in enumerate(body.split(","))} == {
        **records.CONSTANTS,
        **{name: i for i, name in enumerate(STATUSES)},
    }
