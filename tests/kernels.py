"""Building the C kernels for tests, and calling them."""

import ctypes
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest

SOURCES = Path(__file__).parents[1] / "kernels"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
POINTER = {np.dtype(np.int16): ctypes.c_int16, np.dtype(np.int32): ctypes.c_int32}


@cache
def compiler() -> str:
    """The C compiler; without one the kernels' tests are skipped, in CI they fail."""
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        message = "no C compiler (cc, gcc or clang) on this machine; the kernels are not tested"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found


def build(folder: Path, *extra: Path, flags: tuple[str, ...] = ("-O2",), sources: Path = SOURCES) -> ctypes.CDLL:
    """A shared library of all kernels and some more sources."""
    library = folder / "kernels.so"
    command = [compiler(), *WARNINGS, *flags, "-shared", "-fPIC", f"-I{sources}", "-o", str(library)]
    done = subprocess.run([*command, *map(str, [*sources.glob("*.c"), *extra])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def pointer(a: np.ndarray):
    assert a.flags["C_CONTIGUOUS"]
    return a.ctypes.data_as(ctypes.POINTER(POINTER[a.dtype]))


class _Exported:
    """Something that was exported under a name, as the library runs it."""

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


class Stack(_Exported):
    """A stack of cells."""

    kind = "stack"

    def sleep(self) -> int:
        """How many of the coming frames will be skipped."""
        return self._call("sleep")(self._data, pointer(self.state))


class Net(_Exported):
    """A stack with dense layers behind it."""

    kind = "net"
