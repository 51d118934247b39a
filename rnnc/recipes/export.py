"""Stage `export`: a trained denoiser's network as C data, and what it takes on a chip."""

from pathlib import Path

from rnnc.config import ConfigError
from rnnc.export import model as c_model
from rnnc.recipes.console import Reporter
from rnnc.recipes.run import load_model


def export(out: Path, file: Path, reporter: Reporter) -> None:
    """Write model.h and model.c into a folder, and say what each layer takes.

    Raises:
      ConfigError: there is no such model.
      ExportError: the kernels cannot run it.
    """
    if not file.exists():
        raise ConfigError(f"{file}: no model; train one, or name a file or a shipped one with --model")
    enhancer, _ = load_model(file)
    path = c_model.write(out, "model", enhancer)
    rows = c_model.sizes(enhancer)
    reporter.say(f"{'layer':8s} {'flash':>9s} {'state':>7s} {'scratch':>8s}  bytes")
    for row in rows:
        reporter.say(f"{row.name:8s} {row.flash:9,d} {row.state:7,d} {row.scratch:8,d}")
    flash, state, scratch = sum(r.flash for r in rows), sum(r.state for r in rows), max(r.scratch for r in rows)
    reporter.say(f"{'all':8s} {flash:9,d} {state:7,d} {scratch:8,d}")
    reporter.say(f"wrote {path} and {path.with_suffix('.h')}: rnnc_denoiser model_denoiser, to compile with kernels/")
