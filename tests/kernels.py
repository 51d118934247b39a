"""Building the C kernels for tests, with all warnings on."""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from rnnc.export import emulate, host
from rnnc.export.host import KERNELS, Net, Stack, pointer

__all__ = ["KERNELS", "WARNINGS", "Net", "Stack", "build", "compiler", "core", "pointer"]
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")


@cache
def compiler() -> str:
    """The C compiler; without one the kernels' tests are skipped, in CI they fail."""
    try:
        return host.compiler()
    except host.HostError as error:
        message = f"{error}; the kernels are not tested"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


def core(key: str, *tools: str) -> emulate.Core:
    """A core of `emulate.CORES`; where its tools (and more) are missing the test is skipped, in CI it fails."""
    if lack := emulate.missing(emulate.CORES[key], *tools):
        pytest.fail(lack) if os.environ.get("CI") else pytest.skip(lack)
    return emulate.CORES[key]


def build(folder: Path, *sources: Path, kernels: Path = KERNELS, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """A shared library of all kernels and some more sources."""
    compiler()
    return ctypes.CDLL(str(host.build(folder, *sources, flags=("-O2", *WARNINGS, *flags), kernels=kernels)))
