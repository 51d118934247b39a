"""A run folder: where its files lie, how a model gets into it and out of it, and where the numbers come from."""

import contextlib
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
from rnnc.config import ConfigError
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

    def lines(self) -> list[dict[str, Any]]:
        """The log's lines, without one that a kill cut short."""
        found = []
        for line in self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def rewind(self, step: int) -> None:
        """Drop the log's lines of later steps, and a last line that a kill cut short."""
        if self.log.exists():
            kept = [line for line in self.lines() if line.get("step", 0) <= step]
            container.replace(self.log, "".join(json.dumps(line) + "\n" for line in kept))

    def cleaned(self, key: str, section: str = "") -> None:
        """Drop a line that a kill cut short, of a log whose lines all have a key.

        Raises:
          ConfigError: a line has no such key, or result.json no such section: the folder is another recipe's.
        """
        other = section and self.results() and section not in self.results()
        if other or any(key not in line for line in self.lines()):
            raise ConfigError(f"{self.folder}: holds something else; choose another --out")
        self.rewind(0)

    def seconds(self) -> float:
        """Training time that the log tells of."""
        return max((line["seconds"] for line in self.lines() if "seconds" in line), default=0.0)

    def open(self, config: Any, resume: bool) -> None:
        """Make the folder, with the configuration in it.

        Raises:
          ConfigError: a run is there, and this is not --resume with the same configuration.
        """
        if resume and self.config.exists():
            if configs.digest(configs.load(type(config), self.config)) != configs.digest(config):
                raise self._other()
        elif self.checkpoints.exists():
            raise ConfigError(f"{self.folder}: holds a run; add --resume to go on with it, or choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.formats.unlink(missing_ok=True)
        container.replace(self.config, configs.dump(config))

    def going_on(self, resume: bool, config_sha256: str = "") -> dict[str, Any]:
        """What result.json holds, to be gone on with; nothing where nothing is there.

        Raises:
          ConfigError: something is there, and this is not --resume, or not with the configuration of that digest.
        """
        found = self.results()
        if found and not resume:
            raise ConfigError(f"{self.folder}: holds results; add --resume to go on with them, or choose another --out")
        if found and config_sha256 and found.get("config_sha256") != config_sha256:
            raise self._other()
        return found

    def _other(self) -> ConfigError:
        return ConfigError(f"{self.config}: differs from the configuration given; --resume needs the same one")

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
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
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
