"""Stage `export`: a trained denoiser as a folder for firmware, and what it takes on chips."""

from pathlib import Path

import rnnc
from rnnc.config import ConfigError
from rnnc.export import firmware
from rnnc.recipes.console import Reporter
from rnnc.recipes.run import load_model


def export(out: Path, file: Path, reporter: Reporter) -> None:
    """Write the folder, and say what each layer takes, and which chips it fits.

    Raises:
      ConfigError: there is no such model.
      ExportError: the kernels cannot run it, or the folder holds something else.
    """
    if not file.exists():
        raise ConfigError(f"{file}: no model; train one, or name a file or a shipped one with --model")
    enhancer, _ = load_model(file)
    for line in firmware.write(out, enhancer, version=rnnc.__version__)[2:]:
        reporter.say(line)
    reporter.say(f"wrote {out}: its README.md says how to build it; model_selftest() says whether that is right")
