"""Does a denoiser fit a chip: operations, flash, RAM and time of a frame, against what there is.

Time is the instructions that the fitted lines of `rnnc.export.latency` predict, front end included, by the cycles that
an instruction takes on the chip. That is an assumption; a board measures it.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields

from rnnc import cost
from rnnc.cost import FLOAT_BYTES
from rnnc.export import latency, model, work
from rnnc.export.latency import Latency
from rnnc.export.model import Layout, Size
from rnnc.export.work import Work
from rnnc.model import Enhancer, Model

SAMPLE_BYTES = 2
STACK_BYTES = 1280  # of the deepest call of any core's kernels, without interrupts
OPS, MS = 1_550_000, 10.0  # of a frame: TinyLSTMs' limits


@dataclass(frozen=True, kw_only=True)
class Mcu:
    """A microcontroller.

    Args:
      name: of the part.
      core: its processor, as in `rnnc.export.emulate.CORES`.
      clock_mhz: the fastest that it runs at.
      flash_bytes, sram_bytes: what it has.
      cycles: for an instruction, a mean. Assumed.
      reason: why so many.
      layout: of the weights, that its kernels want.
    """

    name: str
    core: str
    clock_mhz: int
    flash_bytes: int
    sram_bytes: int
    cycles: float
    reason: str
    layout: Layout = "tiles"


_M4 = "MicroNets has an M7 twice as fast as an M4; 216 MHz against 180 explain 1.2 of it, cycles the other 1.7"
_M33 = "as an M4: one instruction at a time, flash behind a cache"
MCUS = (
    Mcu(
        name="STM32F746",
        core="m7",
        clock_mhz=216,
        flash_bytes=512 * 1024,
        sram_bytes=320 * 1024,
        cycles=1.0,
        reason="an M7 begins two instructions at once where it can, and waits for flash where it must; TinyLSTMs' 2.39 "
        "ms for 335 k MACs are 0.7, if its kernels took CMSIS-NN's 2.2 instructions for each",
    ),
    Mcu(
        name="STM32F446",
        core="m4",
        clock_mhz=180,
        flash_bytes=512 * 1024,
        sram_bytes=128 * 1024,
        cycles=1.7,
        reason=_M4,
    ),
    Mcu(
        name="STM32L476",
        core="m4",
        clock_mhz=80,
        flash_bytes=1024 * 1024,
        sram_bytes=128 * 1024,
        cycles=1.7,
        reason=_M4,
    ),
    Mcu(
        name="nRF5340",
        core="m33",
        clock_mhz=128,
        flash_bytes=1024 * 1024,
        sram_bytes=512 * 1024,
        cycles=1.7,
        reason=_M33,
    ),
    Mcu(
        name="RP2350",
        core="m33",
        clock_mhz=150,
        flash_bytes=4096 * 1024,
        sram_bytes=520 * 1024,
        cycles=4.0,
        reason="its flash is another chip: four bits at a time at half the clock bring a weight in four cycles, and a "
        "weight takes little more than one instruction",
    ),
    Mcu(
        name="Corstone-300",
        core="m55-clang",
        clock_mhz=32,
        flash_bytes=2048 * 1024,
        sram_bytes=512 * 1024,
        cycles=2.0,
        reason="Helium takes a vector in two beats of a cycle each, as if every instruction were one; clock and "
        "memories are those of the FPGA board",
        layout="rows",
    ),
)


class BudgetError(ValueError):
    """There is no such chip: which was asked for, the nearest and all names."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a frame may take of a chip, or what it takes.

    Args:
      ops: operations of the matrix products, two for a multiply-accumulate.
      flash_bytes: weights, scales, biases, index, tables and code.
      sram_bytes: state, scratch, a hop of sound in and out, and the stack.
      ms: time of a frame from sound to sound that is not skipped.
    """

    ops: float
    flash_bytes: float
    sram_bytes: float
    ms: float

    def over(self, need: "Budget") -> list[str]:
        """The fields in which `need` is more than this.

        >>> limits = Budget(ops=1_550_000, flash_bytes=524_288, sram_bytes=327_680, ms=10)
        >>> limits.over(Budget(ops=1_933_312, flash_bytes=3_900_000, sram_bytes=9_000, ms=6))
        ['ops', 'flash_bytes']

        Source: TinyLSTMs, section 1.2 of our survey: 1.55 MOps, 0.5 MB of flash and 320 KB of RAM. Its 155 MOps/s for
        10 ms; our time comes from counted instructions instead.
        """
        return [field.name for field in fields(self) if not getattr(need, field.name) <= getattr(self, field.name)]


def mcu(name: str) -> Mcu:
    """The chip of a name, whatever its case.

    Raises:
      BudgetError: there is none.

    >>> mcu("stm32f746").clock_mhz
    216
    """
    names = {row.name.lower(): row for row in MCUS}
    if found := names.get(name.lower()):
        return found
    near = difflib.get_close_matches(name.lower(), names, 1, 0.3)
    hint = f"; did you mean {names[near[0]].name}?" if near else ""
    raise BudgetError(f"chip {name!r}: is not known, must be one of {', '.join(row.name for row in MCUS)}{hint}")


def limits(chip: Mcu) -> Budget:
    """What a chip has for a frame, and what TinyLSTMs allows it."""
    return Budget(ops=OPS, flash_bytes=chip.flash_bytes, sram_bytes=chip.sram_bytes, ms=MS)


def needs(enhancer: Enhancer, chips: Sequence[Mcu] = MCUS) -> list[Budget]:
    """What a denoiser takes of each chip.

    A model of floating point, which no kernels run, takes 4 bytes for each number, and no less time than with 8 bits.

    Raises:
      ExportError: the kernels cannot run it.

    >>> from flax import nnx
    >>> from rnnc.model import Model
    >>> (found,) = needs(Enhancer(Model(units=(8,), hidden=8), rngs=nnx.Rngs(0)), [mcu("nRF5340")])
    >>> found.ops
    10880
    """
    integers, fits = work.integers(enhancer), latency.read()
    layers = work.layers(integers)
    layouts: set[Layout] = {chip.layout for chip in chips}
    sizes = {layout: model.sizes(integers, layout=layout) for layout in layouts}
    return [_need(enhancer.model, layers, sizes[chip.layout], fits[chip.core], chip) for chip in chips]


def _need(sound: Model, layers: Sequence[Work], sizes: Sequence[Size], line: Latency, chip: Mcu) -> Budget:
    flash, state = sum(size.flash for size in sizes), sum(size.state for size in sizes)
    scratch, macs = max(size.scratch for size in sizes), sum(layer.macs for layer in layers)
    if not sound.formats:
        costs, front = cost.layers(sound), sizes[-1]
        flash = sum(layer.bytes for layer in costs) + front.flash
        state = sum(FLOAT_BYTES * layer.state for layer in costs) + front.state
        scratch = max(front.scratch, *(layer.ram_bytes - FLOAT_BYTES * layer.state for layer in costs))
    counted = line.instructions(layers) + line.front_instructions(sound.stft, sound.bands.count)
    return Budget(
        ops=2 * macs,
        flash_bytes=flash + line.code_bytes,
        sram_bytes=state + scratch + 2 * SAMPLE_BYTES * sound.stft.hop + STACK_BYTES,
        ms=counted * chip.cycles / (1000 * chip.clock_mhz),
    )


def table(enhancer: Enhancer, chips: Sequence[Mcu] = MCUS) -> list[str]:
    """Lines that say what a denoiser takes of each chip, whether it fits, and what does not.

    Raises:
      ExportError: the kernels cannot run it.
    """
    words = {"ops": "operations", "flash_bytes": "flash", "sram_bytes": "RAM", "ms": "time"}
    lines = [f"{'chip':14s} {'MHz':>4s} {'MOps':>6s} {'flash KB':>14s} {'RAM KB':>12s} {'ms':>6s}  fits"]
    for chip, need in zip(chips, needs(enhancer, chips)):
        most = limits(chip)
        over = most.over(need)
        flash = f"{need.flash_bytes / 1024:,.0f} of {most.flash_bytes / 1024:,.0f}"
        ram = f"{need.sram_bytes / 1024:,.0f} of {most.sram_bytes / 1024:,.0f}"
        fits = f"no: {', '.join(words[name] for name in over)}" if over else "yes"
        sizes = f"{need.ops / 1e6:6.2f} {flash:>14s} {ram:>12s} {need.ms:6.2f}"
        lines.append(f"{chip.name:14s} {chip.clock_mhz:4d} {sizes}  {fits}")
    hop_ms = 1e3 * enhancer.model.stft.hop / enhancer.model.rate_hz
    lines.append(f"A frame, sound to sound, every {hop_ms:g} ms; at most")
    lines.append(f"{OPS / 1e6:.2f} MOps and {MS:g} ms. Times are predicted instructions by cycles that are assumed:")
    lines.append("; ".join(f"{chip.name} {chip.cycles:g}" for chip in chips) + ".")
    return lines
