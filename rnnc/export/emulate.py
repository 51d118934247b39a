"""Exported models on emulated chips: built without an operating system, run by QEMU, their instructions counted.

A core is a chip's processor with the board that QEMU has for it; `host` is this machine. An image holds any number of
models; what it computes is the same on all cores, byte for byte.
"""

import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rnnc.export import host
from rnnc.export.host import KERNELS
from rnnc.export.model import Layout

PACKAGES = {
    "arm-none-eabi-gcc": "gcc-arm-none-eabi",
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf",
    "clang-19": "clang-19",
    "ld.lld-19": "lld-19",
    "qemu-system-arm": "qemu-system-arm",
    "qemu-system-riscv32": "qemu-system-misc",
    "valgrind": "valgrind",
}
"""Tool -> the package of Debian that has it."""

MARK = "rnnc_board_mark"
GCC = ("-ffreestanding", "-fbuiltin")  # no library, but what a compiler knows of one
CLANG = ("--target=arm-none-eabi", "-meabi", "gnu", "-fuse-ld=lld-19")
BARE = ("-nostdlib", "-static", "-Wl,--gc-sections", "-ffunction-sections", "-fdata-sections")
SECONDS = 120  # for one run; a wrong image may never end
BUILD_SECONDS = 900  # megabytes of numbers keep a compiler busy, others on the machine keep it longer


class EmulatorError(RuntimeError):
    """A core cannot be had: which tool is missing, or what one of them said."""


@dataclass(frozen=True, kw_only=True)
class Core:
    """A processor with a board in QEMU.

    Args:
      name: of the processor, as tables have it.
      compiler: the program that compiles for it.
      flags: for that compiler.
      macro: which kernels are chosen (see kernels/rnnc.h); empty: the plain ones.
      layout: of the weights, that suits them.
      emulator, machine: QEMU's program and its board; empty: this machine.
      script: the memory map, in kernels/targets/.
      start: the sources that begin there.
      counter: address of the board's counter.
      ticks: that it takes while one instruction lasts (`SHIFT`).
      tools: what else must be there.
    """

    name: str
    compiler: str
    flags: tuple[str, ...] = ()
    macro: str = ""
    layout: Layout = "rows"
    emulator: str = ""
    machine: str = ""
    script: str = ""
    start: tuple[str, ...] = ("host.c",)
    counter: int = 0
    ticks: float = 1.0
    tools: tuple[str, ...] = ()

    def version(self) -> str:
        """The compiler and its version, "gcc 12.2.1".

        Raises:
          EmulatorError: it is not there.
        """
        name, option = ("clang", "-dumpversion") if "clang" in self.compiler else ("gcc", "-dumpfullversion")
        return f"{name} {_call([self.compiler, option]).strip()}"


SHIFT = 6  # with -icount: an instruction lasts 2^6 ns


def _arm(name: str, cpu: str, machine: str, **options) -> Core:
    """A Cortex-M on a board with memory as the AN385's, unless `options` differ; its counter runs at 25 MHz."""
    flags = (f"-mcpu={cpu}", "-mthumb", *options.pop("flags", ()))
    given = {"compiler": "arm-none-eabi-gcc", "script": "mps2.ld", "counter": 0x40028018, "ticks": 1.6}
    given |= {"start": ("start_arm.c", "semihost.c", "memory.c"), "emulator": "qemu-system-arm", "machine": machine}
    given |= options
    clang = "clang" in given["compiler"]
    return Core(name=name, flags=(*flags, *(CLANG if clang else GCC)), **given)


_HARD = "-mfloat-abi=hard"
_DSP = {"macro": "RNNC_DSP", "layout": "tiles"}
_M55 = {"macro": "RNNC_MVE", "script": "an547.ld", "counter": 0x59302018, "ticks": 1.28}
CORES = {
    "m3": _arm("m3", "cortex-m3", "mps2-an385"),
    "m4": _arm("m4", "cortex-m4", "mps2-an386", flags=(_HARD, "-mfpu=fpv4-sp-d16"), **_DSP),
    "m7": _arm("m7", "cortex-m7", "mps2-an500", flags=(_HARD, "-mfpu=fpv5-d16"), **_DSP),
    "m33": _arm(
        "m33", "cortex-m33", "mps2-an505", flags=(_HARD,), script="an505.ld", counter=0x50302018, ticks=1.28, **_DSP
    ),
    "m55": _arm("m55", "cortex-m55", "mps3-an547", flags=(_HARD,), **_M55),
    "m55-clang": _arm(
        "m55", "cortex-m55", "mps3-an547", flags=(_HARD,), compiler="clang-19", tools=("ld.lld-19",), **_M55
    ),
    "rv32": Core(
        name="rv32",
        compiler="riscv64-unknown-elf-gcc",
        flags=("-march=rv32imac", "-mabi=ilp32", "-mcmodel=medany", *GCC),
        emulator="qemu-system-riscv32",
        machine="virt",
        script="virt.ld",
        start=("start_riscv.c", "semihost.c", "memory.c"),
        ticks=64.0,
    ),
    "host": Core(name=platform.machine(), compiler="cc"),
    "host-avx2": Core(name=platform.machine(), compiler="cc", flags=("-mavx2",), macro="RNNC_AVX2"),
}
"""By the name of the processor; one with a second compiler or other kernels has it behind a dash."""


def missing(core: Core, *tools: str) -> str:
    """Which tools a core (and more tools) would need, and in which packages they are; empty: it has all.

    >>> missing(Core(name="m9", compiler="m9-gcc", emulator="sh"), "ls")
    'm9: m9-gcc is not installed'
    """
    needed = [core.compiler, *core.tools, *tools, *filter(None, [core.emulator])]
    lacking = [tool for tool in needed if not shutil.which(tool)]
    named = [tool + (f" (package {PACKAGES[tool]})" if tool in PACKAGES else "") for tool in lacking]
    if lacking:
        return f"{core.name}: {', '.join(named)} is not installed"
    return f"{core.name}: this machine has no AVX2" if core.macro == "RNNC_AVX2" and not _has_avx2() else ""


def _has_avx2() -> bool:
    """Whether this machine's processor says so."""
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False


def build(
    core: Core,
    sources: Sequence[Path],
    folder: Path,
    *,
    sound: bool = False,
    kernels: Path = KERNELS,
    flags: Sequence[str] = ("-O2",),
) -> Path:
    """Compile exported models with the kernels into an image of one core; returns the program.

    Args:
      core: one of `CORES`, say.
      sources: name.c of each model, as `rnnc.export.model.write` makes them, with name.h beside it.
      folder: where the image goes; made if it is not there.
      sound: take denoisers from sound to sound, not their networks from features to masks.
      kernels: their folder.
      flags: for the compiler, beside the core's own.

    Raises:
      EmulatorError: the compiler is not there, or refuses.
    """
    if lack := missing(core):
        raise EmulatorError(lack)
    folder.mkdir(parents=True, exist_ok=True)
    table, image, targets = folder / "models.c", folder / "image", kernels / "targets"
    table.write_text(_table(sources, sound), encoding="ascii")
    command = [*_compile(core, kernels, flags), f"-I{targets}"]
    if core.script:
        command += [f"-DRNNC_COUNTER={core.counter:#x}", *BARE, f"-L{targets}", f"-Wl,-T,{core.script}"]
    files = [*sorted(kernels.glob("*.c")), targets / "image.c", *(targets / name for name in core.start), table]
    command += ["-o", image, *files, *(["-lgcc"] if core.script and "clang" not in core.compiler else [])]
    _call(command, seconds=BUILD_SECONDS)
    return image


def _compile(core: Core, kernels: Path, flags: Sequence[str]) -> list[str | Path]:
    """What compiles C for a core."""
    command = [core.compiler, "-std=c99", *flags, *core.flags, *([f"-D{core.macro}"] if core.macro else [])]
    return [*command, f"-I{kernels}", *(["-idirafter", kernels / "targets" / "include"] if core.script else [])]


def code_bytes(core: Core, sources: Sequence[Path], folder: Path, *, flags: Sequence[str] = ("-O2",)) -> int:
    """Bytes that C sources take in memory as a core's compiler makes them: instructions, constants and tables.

    Args:
      core: one of 32 bits.
      sources: kernels, say, or exported models.
      folder: for the compiled files.
      flags: for the compiler.

    Raises:
      EmulatorError: as for `build`.
    """
    if lack := missing(core):
        raise EmulatorError(lack)
    folder.mkdir(parents=True, exist_ok=True)
    found, built = 0, folder / "code.o"
    for source in sources:
        _call([*_compile(core, KERNELS, flags), "-c", "-o", built, source])
        sections = _sections(built.read_bytes())
        found += int(sections[(sections[:, 2] & 2) != 0, 5].sum())  # those that lie in memory
    return found


def _sections(data: bytes) -> np.ndarray:
    """The section headers of a 32-bit ELF file, ten numbers each."""
    start, count = np.frombuffer(data, "<u4", 1, 32), np.frombuffer(data, "<u2", 1, 48)
    return np.frombuffer(data, "<u4", 10 * int(count[0]), int(start[0])).reshape(-1, 10)


class Result(NamedTuple):
    """What a model gave: outputs int16 [frames, outputs], its state after them, how many frames were not skipped."""

    y: np.ndarray
    state: np.ndarray
    updates: int


def run(core: Core, image: Path, inputs: Sequence[np.ndarray]) -> list[Result]:
    """Let an image run its models, each from silence.

    Args:
      core: that the image was built for.
      image: the program.
      inputs: int16 [frames, inputs] for each model, with as many frames each; inputs of a denoiser are the samples of
        a hop, and so are its outputs.

    Raises:
      EmulatorError: QEMU is not there, the image fails, or it does not end.
    """
    _emulate(core, image, "run", inputs)
    data, results, at = (image.parent / "out.bin").read_bytes(), [], 0
    for x in inputs:
        outputs, state, updates = map(int, np.frombuffer(data, "<u4", 3, at))
        y = np.frombuffer(data, "<i2", len(x) * outputs, at + 12).reshape(len(x), outputs)
        at += 12 + y.nbytes
        results.append(Result(y, np.frombuffer(data, "<i2", state, at), updates))
        at += 2 * state
    return results


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Executed instructions.

    Args:
      method: how they were counted.
      models: of each model, those of a frame for each of its beginnings: the lowest cell alone, two cells, .. all of
        them; with the skip gate, if there is one; with a dense layer, two, .. the whole network; the denoiser. The
        differences are those of the layers, the last one that of the front end.
    """

    method: str
    models: tuple[tuple[int, ...], ...]


def count(core: Core, image: Path, inputs: Sequence[np.ndarray], beginnings: Sequence[int]) -> Counts:
    """Count the instructions of a frame, for each beginning of each model; the last frame of `inputs` counts.

    Args:
      core, image, inputs: as for `run`; a denoiser takes as many numbers a frame as the larger one of hop and bands.
      beginnings: how many each model has.

    Raises:
      EmulatorError: as for `run`.
    """
    if not core.emulator:
        gaps, method = _callgrind(core, image, inputs), "callgrind"
    elif plugin := _plugin(core, image.parent):
        file = image.parent / "gaps.txt"
        _emulate(core, image, "count", inputs, "-plugin", f"{plugin},mark={symbol(image, MARK)},out={file.resolve()}")
        gaps, method = np.loadtxt(file, dtype=np.int64, ndmin=1)[1:], "QEMU plugin"
    else:
        _emulate(core, image, "count", inputs, "-icount", f"shift={SHIFT}")
        passed = np.diff(np.fromfile(image.parent / "out.bin", np.uint32)).astype(np.float64)
        gaps, method = np.rint(passed / core.ticks).astype(np.int64), "QEMU -icount and counter"
    found = gaps[2::2] - gaps[0]  # pairs of marks; the first pair holds nothing
    if len(found) != sum(beginnings):
        raise EmulatorError(f"{core.name}: counted {len(found)} pieces, must be {sum(beginnings)}")
    ends = np.cumsum(beginnings)
    return Counts(
        method=method,
        models=tuple(tuple(int(n) for n in found[end - many : end]) for end, many in zip(ends, beginnings)),
    )


def symbol(image: Path, name: str) -> int:
    """The address of a function in a 32-bit ELF file."""
    data = image.read_bytes()
    sections = _sections(data)
    _, _, _, _, start, size, link, *_ = map(int, sections[sections[:, 1] == 2][0])  # the symbols
    names = data[int(sections[link, 4]) :][: int(sections[link, 5])]
    for at, value, *_ in np.frombuffer(data, "<u4", size // 4, start).reshape(-1, 4):
        if names[at : names.index(0, at)] == name.encode():
            return int(value) & ~1  # of Thumb code, the lowest bit is set
    raise EmulatorError(f"{image}: has no symbol {name}")


def _table(sources: Sequence[Path], sound: bool) -> str:
    """C source that holds all models, and the table of them."""
    lines, rows = ['#include "image.h"'], []
    for source in sources:
        name, header = source.stem, source.with_suffix(".h").read_text(encoding="ascii")
        kinds = {"denoiser": f"{name}_denoiser"} if sound else {}
        kinds |= {"net": name, "stack": name}
        declared = [kind for kind, called in kinds.items() if f"extern const rnnc_{kind} {called};" in header]
        if not declared:
            raise EmulatorError(f"{source.with_suffix('.h')}: declares no {' or '.join(kinds)} of that name")
        kind = declared[0]
        lines.append(f'#include "{source.resolve()}"')
        rows.append(f"    {{.{kind} = &{kinds[kind]}}},")
    lines += ["const rnnc_image_model rnnc_image_models[] = {", *rows, "};"]
    return "\n".join([*lines, f"const uint32_t rnnc_image_count = {len(sources)};", ""])


def _emulate(core: Core, image: Path, what: str, inputs: Sequence[np.ndarray], *options: str) -> None:
    """Run an image; its words and files are of its own folder."""
    frames = {len(x) for x in inputs}
    if len(frames) != 1:
        raise ValueError(f"inputs: have {sorted(frames)} frames, must have as many each")
    folder = image.parent
    (folder / "in.bin").write_bytes(b"".join(x.astype("<i2").tobytes() for x in inputs))
    words = [what, str(frames.pop()), "in.bin", "out.bin"]
    if not core.emulator:
        _call([*options, f"./{image.name}", *words], folder)
        return
    if lack := missing(core):
        raise EmulatorError(lack)
    given = ",".join(f"arg={word}" for word in (image.name, *words))
    command = [core.emulator, "-M", core.machine, "-display", "none", "-serial", "none", "-monitor", "none"]
    command += ["-kernel", image.name, "-semihosting-config", f"enable=on,target=native,{given}", *options]
    _call([*command, *(["-bios", "none"] if core.machine == "virt" else [])], folder)


def _plugin(core: Core, folder: Path) -> Path | None:
    """The counting plugin, compiled; None where there is no compiler, or a QEMU without plugins."""
    library = folder / "plugin.so"
    try:
        options = ("-std=c99", "-O2", "-shared", "-fPIC")
        _call([host.compiler(), *options, "-o", library, KERNELS / "targets" / "plugin.c"])
        return library.resolve() if "-plugin" in _call([core.emulator, "-help"]) else None
    except (host.HostError, EmulatorError):
        return None


def _callgrind(core: Core, image: Path, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Instructions between marks on this machine."""
    if lack := missing(core, "valgrind"):
        raise EmulatorError(lack)
    folder = image.parent
    for old in folder.glob("callgrind.out*"):
        old.unlink()
    tool = ["valgrind", "--tool=callgrind", f"--dump-before={MARK}", "--callgrind-out-file=callgrind.out"]
    _emulate(core, image, "count", inputs, *tool)
    dumps = sorted(folder.glob("callgrind.out.*"), key=lambda file: int(file.suffix[1:]))
    totals = [line for dump in dumps for line in dump.read_text().splitlines() if line.startswith("totals:")]
    return np.array([int(line.split()[1]) for line in totals])[1:]


def _call(command: Sequence[str | Path], folder: Path | None = None, seconds: int = SECONDS) -> str:
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=seconds)
    except FileNotFoundError:
        raise EmulatorError(f"{words[0]}: is not installed") from None
    except subprocess.TimeoutExpired:
        raise EmulatorError(f"{' '.join(words)}: did not end in {seconds} s") from None
    if done.returncode:
        raise EmulatorError(f"{' '.join(words)}: failed with status {done.returncode}\n{done.stderr}")
    return done.stdout
