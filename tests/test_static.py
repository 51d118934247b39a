"""What can be said of the kernels without trusting a run: symbols, stack, two analysers, lines that nothing runs."""

import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from test_blob import DRIVER, MODELS, made
from test_fast import CORES, core_flags

from kernels import KERNELS, WARNINGS
from rnnc.export import blob

SOURCES = sorted(KERNELS.glob("*.c"))
MEMORY = {"memcpy", "memset", "memmove"}  # of the C library, all that is needed
# The compiler's own routines, on integers all, for what a core has no instruction for
ROUTINES = {f"__aeabi_{name}" for name in ("idiv", "idivmod", "uidiv", "uidivmod", "lmul", "llsl", "llsr", "lasr")}
CHIPS = {"cortex-m0plus": ROUTINES | {"__clzsi2"}, "cortex-m4": set(), "cortex-m33": set(), "cortex-m55": set()}
STACK = 1024  # bytes of stack; the folder's README says so
LIBRARY = 32  # bytes of stack that memcpy and its like may take


def _tool(name: str, package: str) -> str:
    """A program; where it is missing the test is skipped, in CI it fails."""
    if not shutil.which(name):
        message = f"{name} is not installed (Debian: {package})"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return name


def _run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _undefined(nm: str, objects: list[Path], folder: Path) -> set[str]:
    """Symbols that the objects need and do not have."""
    found = {"U": set(), "T": set()}
    for line in _run(nm, "-g", *objects, folder=folder).splitlines():
        kind, name = (line.split() or [" ", ""])[-2:] if len(line.split()) > 1 else (" ", "")
        found.setdefault(kind, set()).add(name)
    assert all(name.startswith("rnnc_") for name in found["T"])
    return found["U"] - found["T"]


def _objects(compiler: str, folder: Path, *flags: str) -> list[Path]:
    _run(compiler, *WARNINGS, "-O2", *flags, f"-I{KERNELS}", "-c", *SOURCES, folder=folder)
    return [folder / f"{source.stem}.o" for source in SOURCES]


@pytest.mark.parametrize("chip", CHIPS)
def test_chips_need_no_library(chip, tmp_path):
    """No heap, no mathematics, no floating point: three functions on memory, and division where there is none."""
    gcc = _tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    objects = _objects(gcc, tmp_path, f"-mcpu={chip}", "-mthumb", "-mfloat-abi=soft")
    assert _undefined("arm-none-eabi-nm", objects, tmp_path) - CHIPS[chip] <= MEMORY


def test_hosts_need_no_library(tmp_path):
    objects = _objects(_tool("gcc", "gcc"), tmp_path)
    assert _undefined(_tool("nm", "binutils"), objects, tmp_path) - {"_GLOBAL_OFFSET_TABLE_"} <= MEMORY


@pytest.mark.parametrize("macro", ["PLAIN", "DSP"])
def test_the_stack_is_bounded(macro, tmp_path):
    """No recursion, no calls by pointer, no arrays of any length: so the deepest path is a bound."""
    gcc = _tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    flags = ["-mcpu=cortex-m4", "-mthumb", "-O2", "-std=c99", "-fcallgraph-info=su"]
    _run(gcc, *flags, f"-DRNNC_{macro}", f"-I{KERNELS}", "-c", *SOURCES, folder=tmp_path)
    frames, calls = {}, defaultdict(set)
    for graph in tmp_path.glob("*.ci"):
        text = graph.read_text()
        for name, size, kind in re.findall(r'title: "([^"]+)" label: "[^"]*?(\d+) bytes \((\w+)\)"', text):
            assert kind == "static", name
            frames[name] = int(size)
        for caller, called in re.findall(r'sourcename: "([^"]+)" targetname: "([^"]+)"', text):
            calls[caller].add(called)

    def deepest(name: str, above: tuple[str, ...]) -> int:
        assert name not in above, f"{name} calls itself"
        assert name in frames or name in MEMORY, name
        below = max((deepest(called, (*above, name)) for called in calls[name]), default=0)
        return frames.get(name, LIBRARY) + below

    found = {name: deepest(name, ()) for name in ("rnnc_denoiser_process", "rnnc_blob_open")}
    print(f"stack: {found}; largest frame: {max(frames.items(), key=lambda item: item[1])}")
    assert max(found.values()) <= STACK, found


def test_cppcheck_finds_nothing(tmp_path):
    """Deviations: right shifts of negative numbers (rnnc_fixed.h asserts what they do); one name in two scopes."""
    deviations = ["--suppress=shiftTooManyBitsSigned", "--suppress=shadowFunction"]
    enable = "--enable=warning,style,performance,portability"
    _run(
        *(_tool("cppcheck", "cppcheck"), "-q", "--std=c99", enable, *deviations, "--error-exitcode=1"),
        *(f"-I{KERNELS}", *SOURCES, KERNELS / "fuzz" / "blob.c"),
        folder=tmp_path,
    )


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_clang_tidy_finds_nothing(source, tmp_path):
    """The checks and the deviations are in kernels/.clang-tidy."""
    _run(_tool("clang-tidy-19", "clang-tidy-19"), "--quiet", source, "--", "-std=c99", f"-I{KERNELS}", folder=tmp_path)


def _uncovered(core: str, folder: Path) -> dict[str, list[str]]:
    """File -> lines that none of the models of test_blob.py reaches, whole and harmed, with a core's kernels."""
    flags = ["-std=c99", "-O0", "--coverage", *core_flags(core), f"-I{KERNELS}"]
    _run(_tool("gcc", "gcc"), *flags, *SOURCES, DRIVER, "-o", "driver", folder=folder)
    for name in MODELS:
        (folder / "model.bin").write_bytes(blob.packed(*made(name)))
        for how in ("calls", "cut", "repaired"):
            _run(folder / "driver", "model.bin", how, folder=folder)
    reports = _run(_tool("gcov", "gcc"), "--stdout", "--json-format", *sorted(folder.glob("*.gcda")), folder=folder)
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for file in (file for report in reports.splitlines() for file in json.loads(report)["files"]):
        for line in file["lines"]:
            counts[file["file"]][line["line_number"]] += line["count"]  # a header is in many objects
    found = {}
    for path in (Path(name) for name in counts if Path(name).parent == KERNELS):
        text = path.read_text().splitlines()
        found[path.name] = [
            f"{k}: {text[k - 1].strip()}" for k, count in sorted(counts[str(path)].items()) if not count
        ]
    return found


@pytest.mark.parametrize("core", CORES)
def test_every_line_is_run(core, tmp_path):
    """Each line counts where it is compiled: those of a core's header with that core's kernels."""
    missed = _uncovered(core, tmp_path)
    assert missed.keys() >= {source.name for source in SOURCES} | {f"{core}.h"}
    if core != "plain":
        missed = {f"{core}.h": missed[f"{core}.h"]}
    assert not any(missed.values()), "\n".join(f"{name}: {line}" for name, lines in missed.items() for line in lines)
