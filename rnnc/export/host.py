"""An exported model on this machine: compiled with the kernels, called from numpy or inside jitted JAX."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

KERNELS = next(
    folder for folder in (Path(__file__).parent / "kernels", Path(__file__).parents[2] / "kernels") if folder.is_dir()
)  # in a wheel, in a checkout
Model = TypeVar("Model", bound="Exported")
_NUMBERS = {np.dtype(np.int16): ctypes.c_int16, np.dtype(np.int32): ctypes.c_int32}


class HostError(RuntimeError):
    """There is no compiler, or it refuses: what was run and what it said."""


def compiler(variable: str = "CC", names: Sequence[str] = ("cc", "gcc", "clang")) -> str:
    """The compiler that the environment variable names, or the first of `names` that is installed."""
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise HostError(f"no compiler: {', '.join(names)} are not installed and {variable} is not set")
    return found


def build(folder: Path, *sources: Path, flags: Sequence[str] = ("-O2",), kernels: Path = KERNELS) -> Path:
    """Compile C sources, as `rnnc.export.model.write` makes them, with the kernels; returns the shared library."""
    library = folder / "kernels.so"
    files = [*sorted(kernels.glob("*.c")), *sources]
    _call([compiler(), "-std=c99", *flags, "-shared", "-fPIC", f"-I{kernels}", "-o", library, *files])
    return library


def pointer(a: np.ndarray):
    """The address of a contiguous array of int16 or int32, for a C function."""
    assert a.flags["C_CONTIGUOUS"]
    return a.ctypes.data_as(ctypes.POINTER(_NUMBERS[a.dtype]))


class Exported:
    """A model that was exported, as C runs it on numpy arrays; use `Stack` or `Net`.

    Args:
      library: with the kernels and the model, as `build` makes it.
      name: the model's.
      outputs: how many numbers it gives for a frame.
    """

    kind: str

    def __init__(self, library: ctypes.CDLL, name: str, outputs: int):
        self._outputs = outputs
        self._call = lambda what: getattr(library, f"rnnc_{self.kind}_{what}")
        self._data = ctypes.byref(ctypes.c_char.in_dll(library, name))
        self.state = np.zeros(self._call("state")(self._data), np.int16)
        self.scratch = np.zeros(self._call("scratch")(self._data), np.int32)
        self._call("reset")(self._data, pointer(self.state))

    def run(self, x: np.ndarray) -> tuple[np.ndarray, int]:
        """x [frames, n] int16 -> y [frames, outputs], and how many frames were not skipped."""
        y = np.zeros((len(x), self._outputs), np.int16)
        arguments = (pointer(np.ascontiguousarray(x)), pointer(y), pointer(self.state), pointer(self.scratch))
        return y, self._call("run")(self._data, len(x), *arguments)


class Stack(Exported):
    """A stack of cells, exported from `rnnc.cells`."""

    kind = "stack"

    def sleep(self) -> int:
        """How many of the coming frames will be skipped."""
        return self._call("sleep")(self._data, pointer(self.state))


class Net(Exported):
    """The network of an exported denoiser."""

    kind = "net"


class Denoiser:
    """A whole exported denoiser, sound to sound.

    Args:
      library: with the kernels and the model, as `build` makes it.
      name: the model's.
      channels: signals denoised side by side, each with a memory of its own.
    """

    def __init__(self, library: ctypes.CDLL, name: str, channels: int = 1):
        self._call = lambda what: getattr(library, f"rnnc_denoiser_{what}")
        self._data = ctypes.byref(ctypes.c_char.in_dll(library, f"{name}_denoiser"))
        self.bytes = self._call("state_bytes")(self._data)
        self.memory = np.zeros((channels, -(-self.bytes // 4)), np.int32)
        self._each("init", self.bytes)

    @property
    def latency_samples(self) -> int:
        """How many samples the output is late: window - 1."""
        return self._call("latency")(self._data)

    def process(self, pcm: np.ndarray) -> np.ndarray:
        """The next samples of the stream, int16 [n] or [channels, n], any n -> as many, `latency_samples` late."""
        rows = np.ascontiguousarray(np.atleast_2d(pcm))
        if pcm.dtype != np.int16 or len(rows) != len(self.memory):
            given, wanted = f"{pcm.dtype}{list(pcm.shape)}", f"int16[{len(self.memory)}, samples]"
            raise ValueError(f"process: pcm is {given}, must be {wanted}")
        out = np.zeros_like(rows)
        for memory, x, y in zip(self.memory, rows, out):
            self._check("process", self._call("process")(self._data, pointer(memory), pointer(x), pointer(y), x.size))
        return out.reshape(pcm.shape)

    def denoise(self, pcm: np.ndarray) -> np.ndarray:
        """Whole signals, int16 [n] or [channels, n] -> the denoised ones, in time with them; the stream starts anew."""
        self.reset()
        late = np.zeros((*pcm.shape[:-1], self.latency_samples), np.int16)
        found = self.process(np.concatenate([pcm, late], axis=-1))[..., self.latency_samples :]
        self.reset()
        return found

    def reset(self) -> None:
        """Forget everything heard; the limit stays."""
        self._each("reset")

    def limit(self, least: int) -> None:
        """The least gain, Q0.15: attenuate nothing further."""
        self._each("limit", least)

    def _each(self, what: str, *arguments: int) -> None:
        for memory in self.memory:
            self._check(what, self._call(what)(self._data, pointer(memory), *arguments))

    def _check(self, what: str, status: int) -> None:
        if status:
            raise ValueError(f"rnnc_denoiser_{what}: error {status}, see rnnc_status in kernels/rnnc.h")


def denoiser(source: Path, channels: int = 1) -> Denoiser:
    """Compile an exported enhancer beside its source and load it whole."""
    return Denoiser(ctypes.CDLL(str(build(source.parent, source))), source.stem, channels)


def load(source: Path, kind: type[Model], outputs: int) -> Model:
    """Compile an exported model beside its source and load it; the arguments are those of `in_jax`."""
    return kind(ctypes.CDLL(str(build(source.parent, source))), source.stem, outputs)


def in_jax(source: Path, kind: type[Exported], outputs: int) -> Callable[[jax.Array, jax.Array], tuple]:
    """A function of JAX, jittable and for CPUs, that runs an exported model's C code.

    Args:
      source: name.c, with name.h beside it; object files and the library go there too.
      kind: `Stack` or `Net`.
      outputs: how many numbers the model gives for a frame.

    Returns:
      (x [frames, n] int16, state [numbers] int16) -> (y [frames, outputs] int16, the next state). The state of silence
      is that of a new `Stack` or `Net`.

    Raises:
      HostError: no C or C++ compiler, or it refuses.
    """
    folder, name, objects = source.parent, source.stem, []
    for i, file in enumerate((*sorted(KERNELS.glob("*.c")), source)):
        objects.append(folder / f"{i}_{file.stem}.o")  # a model may be called like a kernel
        _call([compiler(), "-std=c99", "-O2", "-c", "-fPIC", f"-I{KERNELS}", "-o", objects[-1], file])
    library = folder / f"{name}_jax.so"
    macros = [f"-DMODEL={name}", f'-DHEADER="{name}.h"', f"-DRUN=rnnc_{kind.kind}_run"]
    macros.append(f"-DSCRATCH=rnnc_{kind.kind}_scratch")
    include = [f"-I{KERNELS}", f"-I{folder}", f"-I{jax.ffi.include_dir()}"]
    cxx = compiler("CXX", ("c++", "g++", "clang++"))
    command = [cxx, "-std=c++17", "-O2", "-shared", "-fPIC", *macros, *include, "-o", library]
    _call([*command, KERNELS / "jax_ffi.cc", *objects])
    target = _registered(library, f"rnnc_{name}_{hashlib.sha256(library.read_bytes()).hexdigest()[:16]}")

    def run(x: jax.Array, state: jax.Array) -> tuple:
        shapes = (jax.ShapeDtypeStruct((x.shape[0], outputs), np.int16), jax.ShapeDtypeStruct(state.shape, np.int16))
        return tuple(jax.ffi.ffi_call(target, shapes, vmap_method="sequential")(x, state))

    return run


@cache
def _registered(library: Path, target: str) -> str:
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(ctypes.CDLL(str(library)).rnnc_jax), platform="cpu")
    return target


def _call(command: Sequence[str | Path]) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise HostError(f"{' '.join(map(str, command))}: failed\n{done.stderr}")
