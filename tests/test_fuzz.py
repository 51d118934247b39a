"""libFuzzer on the loader of models and on the denoiser: any bytes, any sound, and nothing happens."""

import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_blob import MODELS, made
from test_fast import CORES, core_flags

from kernels import KERNELS
from rnnc.export import blob, model

MINUTES = 20


@pytest.fixture(scope="module")
def clang() -> str:
    """A clang that has libFuzzer; without one these tests are skipped, in CI they fail."""
    found = shutil.which("clang-19") or shutil.which("clang")
    probe = "int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return !d && n; }"
    command = [found or "", "-x", "c", "-fsanitize=fuzzer", "-o", os.devnull, "-"]
    if not found or subprocess.run(command, input=probe, text=True, capture_output=True).returncode:
        message = "no clang with libFuzzer (Debian: clang-19 and libclang-rt-19-dev); nothing is fuzzed"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found or ""


def _built(clang: str, target: str, folder: Path, *sources: Path, core: str = "plain") -> Path:
    program = folder / target
    flags = ["-std=c99", "-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    files = [*sorted(KERNELS.glob("*.c")), KERNELS / "fuzz" / f"{target}.c", *sources]
    command = [clang, *flags, *core_flags(core), f"-I{KERNELS}", f"-I{folder}", *files, "-o", program]
    subprocess.run(command, check=True)
    return program


def _fuzzed(program: Path, seeds: list[bytes], seconds: int, folder: Path) -> dict[str, int]:
    """Run for so long, from some seeds; returns how much was covered at first and at last, and executions."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(seeds):
        (corpus / f"seed{i}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10", "-rss_limit_mb=1024", "-seed=1"]
    alone = ["sh", "-c", '"$@"; exit $?', "sh"]  # a child begins with its parent's peak of memory: a shell's is small
    command = [*alone, program, *options, "-print_final_stats=1", corpus]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    (folder / "log").write_text(done.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
    covered = [int(count) for count in re.findall(r"cov: (\d+)", done.stderr)]
    runs = int(re.findall(r"number_of_executed_units: (\d+)", done.stderr)[0])
    print(f"{program.name}: {runs} executions in {seconds} s, {covered[0]} to {covered[-1]} edges")
    return {"first": covered[0], "last": covered[-1], "runs": runs}


def _loader(clang: str, seconds: int, folder: Path, core: str = "plain") -> dict[str, int]:
    seeds = [blob.packed(*made(name)) for name in MODELS]
    return _fuzzed(_built(clang, "blob", folder, core=core), seeds, seconds, folder)


def _denoiser(clang: str, seconds: int, folder: Path) -> dict[str, int]:
    rng = np.random.default_rng(0)
    loud = rng.choice([-32768, 32767], 200).astype("<i2").tobytes()
    soft = rng.integers(-300, 300, 200).astype("<i2").tobytes()
    square = b"".join(b"\x02\xff" + edge for edge in (b"\xff\x7f", b"\x00\x80") * 4)  # each held for 255 samples
    seeds = [b"\x03\xc8" + loud, b"\x04\xc8" + soft + b"\x01\x0c\xcd\x03\xc8" + loud + b"\x00\x00", square]
    source = model.write(folder, "model", made("denoiser")[0])
    return _fuzzed(_built(clang, "process", folder, source), seeds, seconds, folder)


TARGETS = {"blob": _loader, "process": _denoiser}
TARGETS |= {f"blob-{core}": partial(_loader, core=core) for core in CORES if core != "plain"}


@pytest.mark.parametrize("target", ["blob", "process"])
def test_some_seconds_find_nothing(target, clang, tmp_path):
    found = TARGETS[target](clang, 10, tmp_path)
    assert found["last"] >= found["first"] > 100  # it gets in
    assert found["runs"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_minutes_find_nothing(target, clang, tmp_path):
    TARGETS[target](clang, 60 * MINUTES, tmp_path)
