"""Stage `denoise`: sound files in, sound files out; rate, channels and length stay."""

from pathlib import Path

import numpy as np

from rnnc.audio import io
from rnnc.audio.io import AudioError
from rnnc.config import ConfigError
from rnnc.recipes.console import Reporter
from rnnc.recipes.run import load_model
from rnnc.recipes.runner import Runner

LONGEST_S = 3600.0  # a file to denoise


def denoise(paths: list[str], model: Path, reporter: Reporter) -> None:
    """Enhance a file, or every audio file of a folder; rate, channels and length stay."""
    if len(paths) != 2:
        raise ConfigError(f"denoise: needs an input and an output, got {len(paths)} paths")
    if not model.exists():
        raise ConfigError(f"{model}: no model; name a file or a shipped one with --model")
    source, target = Path(paths[0]), Path(paths[1])
    runner = Runner(load_model(model)[0])
    reporter.say(f"denoising with {model}, computed by {runner.how}")
    if not source.is_dir():
        denoise_file(runner, source, target)
        reporter.say(f"wrote {target}")
        return
    files, skipped = io.scan(source, "audio").files, []
    for i, file in enumerate(files):
        out = (target / file.relative_to(source)).with_suffix(file.suffix if file.suffix.lower() == ".flac" else ".wav")
        try:
            denoise_file(runner, file, out)
        except AudioError as error:
            skipped.append(str(error))
            reporter.say(f"skipped {error}")
        reporter.progress("denoising", i + 1, len(files))
    reporter.say(f"wrote {len(files) - len(skipped)} files to {target}, skipped {len(skipped)}")
    if len(skipped) == len(files):
        raise AudioError(f"{source}: none of {len(files)} files could be used")


def denoise_file(runner: Runner, source: Path, target: Path) -> None:
    """Enhance one file; `target` appears whole or not at all."""
    if target.suffix.lower() not in (".wav", ".flac"):
        raise AudioError(f"{target}: cannot write {target.suffix!r}, allowed are .wav and .flac")
    x, rate_hz = io.read_native(source, max_seconds=LONGEST_S)
    y = runner(io.resample(x, rate_hz, runner.rate_hz).T)
    back = io.resample(y.T, runner.rate_hz, rate_hz)[: len(x)]
    target.parent.mkdir(parents=True, exist_ok=True)
    io.write(target, np.pad(back, ((0, len(x) - len(back)), (0, 0))), rate_hz)
