"""A run folder: where its files lie, how a model gets into it and out of it, and where the numbers come from."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import rnnc
from rnnc import config as configs
from rnnc import container
from rnnc.model import Enhancer, Model
from rnnc.train import checkpoint


class Run:
    """The files of one run.

    Args:
      folder: config.toml, log.jsonl, checkpoints/, formats.json, model.rnnc, result.json, report.html and examples/ lie
        here.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.config = self.folder / "config.toml"
        self.log = self.folder / "log.jsonl"
        self.checkpoints = self.folder / "checkpoints"
        self.formats = self.folder / "formats.json"
        self.model = self.folder / "model.rnnc"
        self.result = self.folder / "result.json"
        self.examples = self.folder / "examples"

    def append(self, line: dict[str, Any]) -> None:
        """Add one JSON line to the log."""
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the log's lines of later steps, and a last line that a kill cut short."""
        if not self.log.exists():
            return
        kept = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line)
            except json.JSONDecodeError:
                continue
        container.replace(self.log, "".join(line + "\n" for line in kept))

    def seconds(self) -> float:
        """Training time that the log tells of."""
        if not self.log.exists():
            return 0.0
        lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return max((line["seconds"] for line in lines if "seconds" in line), default=0.0)

    def results(self) -> dict[str, Any]:
        """What result.json holds so far."""
        return _table(self.result)

    def noted_formats(self) -> dict[str, Any]:
        """The formats of the layers, by the step from which on they hold."""
        return _table(self.formats)

    def note_formats(self, step: int, formats: list[Any]) -> None:
        """Add the formats that hold from a step on, atomically."""
        container.replace(self.formats, json.dumps({**self.noted_formats(), str(step): formats}, indent=2) + "\n")

    def update(self, **sections: Any) -> dict[str, Any]:
        """Set sections of result.json, atomically."""
        results = {**self.results(), **sections}
        container.replace(self.result, json.dumps(results, indent=2) + "\n")
        return results


def _table(path: Path) -> dict[str, Any]:
    """A JSON file's table; empty where there is no file, or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def save_model(path: Path, model: Model, params: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write an enhancer's parameters with its sizes into a container."""
    container.write(path, checkpoint.flatten(params), {"kind": "enhancer", "model": configs.to_table(model), **meta})


def load_model(path: Path) -> tuple[Enhancer, dict[str, Any]]:
    """An enhancer from a container, and the container's meta.

    Raises:
      ContainerError, CheckpointError, ConfigError: the file is missing, damaged, or no enhancer of this version.
    """
    arrays, meta = container.read(path)
    if meta.get("kind") != "enhancer":
        raise container.ContainerError(f"{path}: holds a {meta.get('kind')!r}, must be 'enhancer'")
    model = configs.build(Model, meta.get("model"), f"{path}: model")
    if len(model.units) > len(arrays):
        raise container.ContainerError(f"{path}: model has {len(model.units)} layers, but {len(arrays)} arrays")
    graph, state = nnx.split(nnx.eval_shape(lambda: Enhancer(model, rngs=nnx.Rngs(0))), nnx.Param)
    floats = {name: a.astype(np.float32) for name, a in arrays.items()}
    params = checkpoint.unflatten(floats, nnx.to_pure_dict(state), str(path))
    return nnx.merge(graph, params), meta


def commit() -> str:
    """The commit of this source tree ("+" when it has changes), or the version where there is no repository."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        options = {
            "capture_output": True,
            "text": True,
            "check": True,
            "timeout": 10,
            "env": {**os.environ, "LC_ALL": "C"},
        }
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "run.py"], **options).stdout
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], **options).stdout
        return head + ("+" if changed.strip() else "") if tracked else f"v{rnnc.__version__}"
    except (OSError, subprocess.SubprocessError):
        return f"v{rnnc.__version__}"
