"""A denoiser as a folder for a firmware engineer: C sources, an example, a self-test and every build's manifest.

One source tree serves CMake, Zephyr, Arduino and PlatformIO. What does not depend on the model lies in
rnnc/export/folder/ and is copied; the rest is written here.
"""

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from string import Template

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnnc.chip import Chip
from rnnc.container import replace
from rnnc.export import budget, model
from rnnc.export.host import KERNELS
from rnnc.export.model import ExportError, Size
from rnnc.model import Enhancer

FIXED = Path(__file__).parent / "folder"
MARK = "report.txt"
TITLE = "rnnc: a denoiser as C"
SAMPLES = 16384  # of the self-test


def write(folder: Path, enhancer: Enhancer, *, version: str, notes: Sequence[str] = ()) -> list[str]:
    """Write the folder; what `rnnc.export.model.write` gives is in its src/ under the name `model`, in both layouts.

    Args:
      folder: new, empty, or an earlier export, whose files are written anew.
      enhancer: with formats, and with a front end that the kernels have.
      version: of the library, for the manifests.
      notes: more lines for the report.

    Returns:
      The lines of the report.

    Raises:
      ExportError: the kernels cannot run the model, or the folder holds something else.
    """
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    ours = held and (folder / MARK).is_file() and (folder / MARK).read_text(encoding="utf-8").startswith(TITLE)
    if held and not ours:
        raise ExportError(f"{folder}: holds {', '.join(held[:3])}, must be new, empty or an earlier export")
    lines = report(enhancer, notes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch) / "made"
        _fill(made, enhancer, version)
        (made / MARK).write_text("\n".join(lines) + "\n", encoding="utf-8")
        if not held:
            os.replace(made, folder)  # complete, or not there
            return lines
        for path in (path for path in sorted(made.rglob("*")) if path.is_file()):
            target = folder / path.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            replace(target, path.read_bytes())
    return lines


def _fill(folder: Path, enhancer: Enhancer, version: str) -> None:
    sources, words = folder / "src", _words(enhancer, version)
    shutil.copytree(FIXED, folder)
    source = model.write(sources, "model", enhancer, layout="tiles")
    tiles = source.read_text(encoding="ascii")
    rows = model.write(sources, "model", enhancer, layout="rows").read_text(encoding="ascii")
    source.write_text(f"#ifdef RNNC_DSP\n{tiles}\n#else\n{rows}\n#endif\n", encoding="ascii")
    shutil.copyfile(KERNELS / "SEMANTICS.md", folder / "SEMANTICS.md")
    for path in (*KERNELS.glob("*.c"), *KERNELS.glob("*.h")):
        shutil.copyfile(path, sources / path.name)
    for path in (path for path in folder.rglob("*.in") if path.is_file()):
        text = Template(path.read_text(encoding="utf-8")).substitute(words)
        path.with_suffix("").write_text(text, encoding="utf-8")
        path.unlink()
    (folder / "library.json").write_text(json.dumps(_platformio(version), indent=2) + "\n", encoding="utf-8")


def _words(enhancer: Enhancer, version: str) -> dict[str, object]:
    """What the templates name."""
    sound, rows = enhancer.model, model.sizes(enhancer, layout="rows")
    latency = sound.stft.window - 1
    return {
        "version": version,
        "rate_hz": sound.rate_hz,
        "hop": sound.stft.hop,
        "latency": latency,
        "latency_ms": f"{1e3 * latency / sound.rate_hz:.1f}",
        "flash": f"{_flash(rows):,d}",
        "flash_dsp": f"{_flash(model.sizes(enhancer, layout='tiles')):,d}",
        "memory": memory(rows),
        "samples": SAMPLES,
        "budget": "\n".join(budget.table(enhancer)),
        "checksum": f"0x{zlib.crc32(answer(enhancer).astype('<i2').tobytes()):08X}",
    }


def _platformio(version: str) -> dict[str, object]:
    return {
        "name": "rnnc_model",
        "version": version,
        "description": "A recurrent speech denoiser in integers: int16 sound in, int16 sound out.",
        "keywords": ["audio", "speech", "noise", "dsp"],
        "license": "Apache-2.0",
        "frameworks": "*",
        "platforms": "*",
        "headers": "model.h",
        "build": {"srcDir": "src", "includeDir": "src"},
    }


def memory(sizes: Sequence[Size]) -> int:
    """Bytes that rnnc_denoiser_state_bytes gives."""
    return sum(size.state for size in sizes) + max(size.scratch for size in sizes)


def _flash(sizes: Sequence[Size]) -> int:
    return sum(size.flash for size in sizes)


def report(enhancer: Enhancer, notes: Sequence[str] = ()) -> list[str]:
    """The lines of the report: what each layer takes, which chips the whole fits, then the notes."""
    rows, tiles = model.sizes(enhancer, layout="rows"), model.sizes(enhancer, layout="tiles")
    lines = [TITLE, "", f"{'layer':8s} {'flash':>9s} {'RNNC_DSP':>9s} {'state':>7s} {'scratch':>8s}  bytes"]
    lines += [f"{a.name:8s} {a.flash:9,d} {b.flash:9,d} {a.state:7,d} {a.scratch:8,d}" for a, b in zip(rows, tiles)]
    state = sum(size.state for size in rows)
    lines.append(f"{'all':8s} {_flash(rows):9,d} {_flash(tiles):9,d} {state:7,d} {memory(rows) - state:8,d}")
    lines += [
        "",
        f"Memory: {memory(rows):,d} bytes, state and scratch, which layers share. In flash, code and the tables",
    ]
    lines.append(
        "of the activations are not counted here, below they are, with all kernels; your linker's map is exact."
    )
    return [*lines, "", *budget.table(enhancer), *([""] if notes else []), *notes]


def sound(samples: int = SAMPLES) -> np.ndarray:
    """What the self-test hears, int16: soft noise, silence, the loudest noise, the loudest square wave.

    >>> sound(8).tolist()
    [968, 1512, 0, 0, 3312, 24216, 32767, 32767]
    """
    seeds, seed = np.empty(samples, np.uint32), 1
    for i in range(samples):
        seed = (seed * 1664525 + 1013904223) % 2**32
        seeds[i] = seed
    noise, i = (seeds >> 16).astype(np.uint16).view(np.int16), np.arange(samples)
    square = np.where(i & 32, -32768, 32767).astype(np.int16)
    return np.choose(4 * i // samples, [noise >> 4, np.zeros_like(noise), noise, square])


def answer(enhancer: Enhancer) -> np.ndarray:
    """What the denoiser makes of `sound`, int16, from its first sample on: computed in JAX, so that C has a witness."""
    hop = enhancer.model.stft.hop
    graph, weights = nnx.split(Chip(enhancer))

    def step(state, block):
        return nnx.merge(graph, weights).hop(state, block)

    blocks = jnp.asarray(sound()[: SAMPLES // hop * hop].reshape(-1, 1, hop), jnp.int32)
    silence = jax.tree.map(jnp.asarray, Chip(enhancer).silence(1))
    _, y = jax.lax.scan(step, silence, blocks)
    return np.append(np.zeros(hop - 1, np.int16), np.asarray(y).ravel())[:SAMPLES].astype(np.int16)
