"""Stage `denoise`: sound files in, sound files out; rate, channels and length stay."""

from pathlib import Path

import numpy as np

from rnnc.audio import io
from rnnc.audio.io import AudioError
from rnnc.config import ConfigError
from rnnc.model import Enhancer
from rnnc.recipes.console import Reporter
from rnnc.recipes.run import load_model

LONGEST_S = 3600.0  # a file to denoise


def denoise(paths: list[str], model: Path, reporter: Reporter) -> None:
    """Enhance a file, or every audio file of a folder; rate, channels and length stay."""
    if len(paths) != 2:
        raise ConfigError(f"denoise: needs an input and an output, got {len(paths)} paths")
    if not model.exists():
        raise ConfigError(
            f"{model}: no model; train one, or name a run with --out, a file or a shipped one with --model"
        )
    source, target = Path(paths[0]), Path(paths[1])
    enhancer, _ = load_model(model)
    if not source.is_dir():
        denoise_file(enhancer, source, target)
        reporter.say(f"wrote {target}")
        return
    files, skipped = io.scan(source, "audio").files, []
    for i, file in enumerate(files):
        out = (target / file.relative_to(source)).with_suffix(file.suffix if file.suffix.lower() == ".flac" else ".wav")
        try:
            denoise_file(enhancer, file, out)
        except AudioError as error:
            skipped.append(str(error))
            reporter.say(f"skipped {error}")
        reporter.progress("denoising", i + 1, len(files))
    reporter.say(f"wrote {len(files) - len(skipped)} files to {target}, skipped {len(skipped)}")
    if len(skipped) == len(files):
        raise AudioError(f"{source}: none of {len(files)} files could be used")


def denoise_file(enhancer: Enhancer, source: Path, target: Path) -> None:
    """Enhance one file; `target` appears whole or not at all."""
    if target.suffix.lower() not in (".wav", ".flac"):
        raise AudioError(f"{target}: cannot write {target.suffix!r}, allowed are .wav and .flac")
    x, rate_hz = io.read_native(source, max_seconds=LONGEST_S)
    at_model = io.resample(x, rate_hz, enhancer.model.rate_hz).T
    stream = enhancer.stream(at_model.shape[0])
    y = np.concatenate([stream.push(at_model), stream.flush()], axis=1)
    back = io.resample(y.T, enhancer.model.rate_hz, rate_hz)[: len(x)]
    target.parent.mkdir(parents=True, exist_ok=True)
    io.write(target, np.pad(back, ((0, len(x) - len(back)), (0, 0))), rate_hz)
