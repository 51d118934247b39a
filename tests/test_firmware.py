"""The exported folder, alone: it builds with any tools, its self-test passes, and it computes what Python does."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_blob import made
from test_fast import CORES, core_flags

from kernels import WARNINGS
from rnnc.chip import Chip
from rnnc.export import firmware, model
from rnnc.export.model import ExportError

NAMES = ("denoiser", "denoiser-128")  # with skipping and without, transforms that end in either pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Exported, then moved to where nothing else is."""
    found = {}
    for name in NAMES:
        written = tmp_path_factory.mktemp("written") / "firmware"
        firmware.write(written, made(name)[0], version="1.2.3", notes=["notes"])
        found[name] = Path(shutil.copytree(written, tmp_path_factory.mktemp("alone") / "rnnc_model"))
        shutil.rmtree(written)
    return found


def _tool(name: str, package: str) -> str:
    if not shutil.which(name):
        message = f"{name} is not installed (Debian: {package})"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return name


def _run(*command: str | Path, folder: Path, data: bytes = b"") -> bytes:
    """Without Python and its settings: only what finds the tools."""
    given = {key: os.environ[key] for key in ("PATH", "TMPDIR") if key in os.environ}
    done = subprocess.run([str(word) for word in command], capture_output=True, cwd=folder, input=data, env=given)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout


def _built(compiler: str, folder: Path, out: Path, *flags: str) -> Path:
    sources = [*sorted((folder / "src").glob("*.c")), folder / "app" / "main.c"]
    _run(compiler, *WARNINGS, *flags, f"-I{folder / 'src'}", *sources, "-o", out, folder=folder)
    return out


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_of_every_core_pass_its_self_test(name, core, folders, tmp_path):
    """Weights lie as suits them: of the folder's two layouts, the macro chooses one."""
    program = _built(_tool("gcc", "gcc"), folders[name], tmp_path / "denoise", "-O2", *core_flags(core))
    assert _run(program, "--selftest", folder=tmp_path) == b"self-test: ok\n"


def test_other_compilers_and_boards_without_files_build_it(folders, tmp_path):
    program = _built(_tool("clang", "clang"), folders["denoiser"], tmp_path / "bare", "-DRNNC_BARE")
    assert _run(program, folder=tmp_path) == b""


def test_it_builds_with_all_checks_on(folders, tmp_path):
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = _built(_tool("gcc", "gcc"), folders["denoiser"], tmp_path / "denoise", *flags)
    assert _run(program, "--selftest", folder=tmp_path) == b"self-test: ok\n"


def test_cmake_builds_it(folders, tmp_path):
    cmake, build = _tool("cmake", "cmake"), tmp_path / "build"
    _run(cmake, "-S", folders["denoiser"], "-B", build, folder=tmp_path)
    _run(cmake, "--build", build, folder=tmp_path)
    _run("ctest", "--test-dir", build, "--no-tests=error", folder=tmp_path)


def test_cmake_builds_it_within_a_project(folders, tmp_path):
    cmake = _tool("cmake", "cmake")
    lines = ["cmake_minimum_required(VERSION 3.13)", "project(mine C)", "set(RNNC_CORE SOME_MACRO)"]
    lines += [f"add_subdirectory({folders['denoiser']} model)", "add_executable(mine main.c)"]
    (tmp_path / "CMakeLists.txt").write_text("\n".join([*lines, "target_link_libraries(mine rnnc_model)", ""]))
    text = (
        '#include "model_info.h"\nint main(void) { return rnnc_denoiser_latency(&model_denoiser) != MODEL_LATENCY; }\n'
    )
    (tmp_path / "main.c").write_text(text)
    _run(cmake, "-S", tmp_path, "-B", tmp_path / "build", folder=tmp_path)
    _run(cmake, "--build", tmp_path / "build", "--target", "mine", folder=tmp_path)
    _run(tmp_path / "build" / "mine", folder=tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_it_denoises_as_python_does(name, folders, tmp_path):
    """Raw sound of a length that no block divides, from a file and through pipes."""
    program = _built(_tool("gcc", "gcc"), folders[name], tmp_path / "denoise", "-O2")
    x = np.random.default_rng(5).normal(0, 3000, 1777).astype("<i2")
    (tmp_path / "in.pcm").write_bytes(x.tobytes())
    _run(program, "in.pcm", "out.pcm", folder=tmp_path)
    stream = Chip(made(name)[0]).stream()
    wanted = np.concatenate([stream.push(x.astype(np.int16)[None]), stream.flush()], axis=1)[0]
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out.pcm", "<i2"), wanted)
    assert np.ptp(wanted.astype(int)) > 1000
    assert _run(program, "-", "-", folder=tmp_path, data=x.tobytes()) == wanted.astype("<i2").tobytes()


def test_the_self_test_sees_one_wrong_weight(folders, tmp_path):
    """And one rounding the other way."""
    for file, old, new in (
        ("model.c", r"(model_mask_w\[\d+\][^{]* = \{\s+)(-?\d+)", lambda found: f"{found[1]}{int(found[2]) ^ 1}"),
        ("rnnc_fixed.h", r"\(\(INT32_C\(1\) << s\) >> 1\)", "(s > 0 ? (INT32_C(1) << s >> 1) - 1 : 0)"),
    ):
        broken = Path(shutil.copytree(folders["denoiser"], tmp_path / file))
        text, count = re.subn(old, new, (broken / "src" / file).read_text())
        assert count
        (broken / "src" / file).write_text(text)
        program = _built(_tool("gcc", "gcc"), broken, broken / "denoise", "-O2")
        done = subprocess.run([program, "--selftest"], capture_output=True)
        assert (done.returncode, done.stdout) == (1, b"self-test: FAILED\n")


def test_the_sketch_is_c_plus_plus(folders, tmp_path):
    """With stand-ins for the board's functions it compiles, and links with the C sources."""
    folder, cxx = folders["denoiser"], _tool("g++", "g++")
    sketch = (folder / "examples" / "selftest" / "selftest.ino").read_text()
    board = (
        "#include <cstdio>\nstruct { void begin(long) {} void println(const char *s) { std::puts(s); }"
        " void println(unsigned long) {} } Serial;\nstatic unsigned long micros() { return 0; }\n"
        "static void delay(int) {}\n"
    )
    (tmp_path / "sketch.cpp").write_text(f"{board}{sketch}\nint main() {{ setup(); loop(); return 0; }}\n")
    sources = sorted((folder / "src").glob("*.c"))
    _run("gcc", "-std=c99", f"-I{folder / 'src'}", "-c", *sources, folder=tmp_path)
    objects = [f"{source.stem}.o" for source in sources]
    _run(cxx, "-Wall", "-Werror", f"-I{folder / 'src'}", "sketch.cpp", *objects, "-o", "sketch", folder=tmp_path)
    assert _run(tmp_path / "sketch", folder=tmp_path) == b"self-test: ok\n"


def test_a_chip_s_compiler_takes_it(folders, tmp_path):
    gcc = _tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    sources = [*sorted((folders["denoiser"] / "src").glob("*.c")), folders["denoiser"] / "app" / "main.c"]
    flags = ["-mcpu=cortex-m4", "-mthumb", "-O2", "-DRNNC_BARE", f"-I{folders['denoiser'] / 'src'}"]
    _run(gcc, *WARNINGS, *flags, "-c", *sources, folder=tmp_path)
    listed = _run("arm-none-eabi-size", *(f"{source.stem}.o" for source in sources), folder=tmp_path).decode()
    bss = {Path(line.split()[-1]).stem: int(line.split()[2]) for line in listed.splitlines()[1:]}
    needed = firmware.memory(model.sizes(made("denoiser")[0], layout="rows"))
    assert bss == {source.stem: needed if source.stem == "main" else 0 for source in sources}


def test_manifests_say_what_is_there(folders):
    folder = folders["denoiser"]
    library = json.loads((folder / "library.json").read_text())
    assert library["version"] == "1.2.3"
    assert (folder / library["build"]["srcDir"] / library["headers"]).is_file()
    pairs = (line.partition("=") for line in (folder / "library.properties").read_text().splitlines())
    arduino = {key: value for key, _, value in pairs}
    assert (arduino["name"], arduino["version"]) == (library["name"], "1.2.3")
    assert (folder / "src" / arduino["includes"]).is_file()
    module = dict(re.findall(r"^\s*(\w+): (\S+)$", (folder / "zephyr" / "module.yml").read_text(), re.MULTILINE))
    assert module["name"] == library["name"]
    assert (folder / module["cmake"] / "CMakeLists.txt").is_file()
    kconfig = (folder / module["kconfig"]).read_text()
    used = re.findall(r"CONFIG_(\w+)", (folder / module["cmake"] / "CMakeLists.txt").read_text())
    assert set(used) <= set(re.findall(r"config (\w+)", kconfig))
    sources = re.findall(r"CURRENT_LIST_DIR\}/(\S+)/\*\.c", (folder / "zephyr" / "CMakeLists.txt").read_text())
    assert [(folder / "zephyr" / where).resolve() for where in sources] == [(folder / "src").resolve()]
    text = (folder / "README.md").read_text()
    assert all((folder / name).exists() for name in re.findall(r"`((?:src|app|examples)/[\w./]*|[\w]+\.\w+)`", text))
    assert "$" not in text


def test_the_folder_s_figures_are_those_of_c(folders, tmp_path):
    """Memory, latency and flash that README and header state."""
    folder, chip = folders["denoiser"], made("denoiser")[0]
    flash = [sum(size.flash for size in model.sizes(chip, layout=layout)) for layout in ("rows", "tiles")]
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "model_info.h"\nint main(void) { printf("%u %u %d %d %d", '
        "(unsigned)rnnc_denoiser_state_bytes(&model_denoiser), (unsigned)rnnc_denoiser_latency(&model_denoiser), "
        "MODEL_MEMORY_BYTES, MODEL_LATENCY, MODEL_RATE_HZ); return 0; }\n"
    )
    sources = [*(folder / "src").glob("*.c"), tmp_path / "main.c"]
    _run(_tool("gcc", "gcc"), f"-I{folder / 'src'}", *sources, "-o", "main", folder=tmp_path)
    bytes_, latency, *stated = map(int, _run(tmp_path / "main", folder=tmp_path).split())
    assert stated == [bytes_, latency, chip.model.rate_hz]
    report = (folder / "report.txt").read_text()
    assert f"Memory: {bytes_:,d} bytes" in report
    assert re.search(rf"^all +{flash[0]:,d} +{flash[1]:,d} ", report, re.MULTILINE)
    assert report.endswith("\nnotes\n")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    chip = made("denoiser")[0]
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds mine.txt, must be new, empty or an earlier export"):
        firmware.write(tmp_path, chip, version="1")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "mine.txt").unlink()
    firmware.write(tmp_path, chip, version="1")
    (tmp_path / "src" / "model.c").write_text("old")
    (tmp_path / "build").mkdir()
    firmware.write(tmp_path, chip, version="2")  # again: over its own files, and no others
    assert "rnnc_denoiser" in (tmp_path / "src" / "model.c").read_text()
    assert json.loads((tmp_path / "library.json").read_text())["version"] == "2"
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))
