"""The state of a training run on disk: written whole or not at all, read back bit for bit.

A checkpoint is a folder `step_00000123` made by orbax, which renames it into place when it is complete. It holds a
flat table of arrays: every leaf of the state by its path.
"""

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

T = TypeVar("T")
FORMAT = 1
OVERHEAD_BYTES = 1 << 20  # orbax's own files beside the arrays; 20 to 60 KB are usual
KEEP = 2  # the newest, and the one before in case the newest cannot be read
log = logging.getLogger("rnnc")
logging.getLogger("absl").setLevel(logging.ERROR)  # orbax narrates every save


class CheckpointError(ValueError):
    """No checkpoint fits: missing, damaged, or of another model."""


def save(folder: Path, step: int, state: Any) -> None:
    """Write `state`, a tree of arrays, as the checkpoint of `step`; older ones than the last `KEEP` go.

    Raises:
      CheckpointError: the disk refuses; earlier checkpoints stay.
    """
    folder = Path(folder).absolute()
    table = flatten(state)
    table["format"] = np.array(FORMAT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        if (folder / _name(step)).exists():
            _discard(folder / _name(step))
        _reserve(folder, sum(leaf.nbytes for leaf in table.values()))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / _name(step), table)
        for old in steps(folder)[:-KEEP]:
            _discard(folder / _name(old))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / _name(step)}: cannot be written: {_first_line(error)}") from None


def restore(folder: Path, like: T) -> tuple[int, T] | None:
    """The newest readable checkpoint as (step, state), with the structure of `like`; None if there is none at all.

    A damaged one is named in a warning and passed over.

    Raises:
      CheckpointError: there are some, but none can be read, or they belong to another model.
    """
    folder = Path(folder).absolute()
    found = steps(folder)
    for step in reversed(found):
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                table = checkpointer.restore(folder / _name(step))
        except Exception as error:  # orbax and tensorstore raise many types for a damaged file
            log.warning("%s: damaged, passed over: %s", folder / _name(step), _first_line(error))
            continue
        return step, unflatten(table, like, str(folder / _name(step)))
    if found:
        raise CheckpointError(f"{folder}: none of {len(found)} checkpoints can be read; start without --resume")
    return None


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, ascending."""
    names = [p.name for p in Path(folder).glob("step_*") if p.name[5:].isdecimal()]
    return sorted(int(name[5:]) for name in names)


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree by their dotted paths.

    >>> flatten({"a": [np.ones(2)]})
    {'a.0': array([1., 1.])}
    """
    return {name: np.asarray(leaf) for name, leaf in _named(tree).items()}


def unflatten(table: dict[str, Any], like: T, where: str) -> T:
    """The inverse of `flatten`, for a tree with the structure, shapes and types of `like` (arrays or abstract ones)."""
    expected = _named(like)
    for name, leaf in expected.items():
        if name not in table:
            raise CheckpointError(f"{where}: holds no {name!r}; it belongs to another model")
        given = np.asarray(table[name])
        if given.shape != leaf.shape or given.dtype != leaf.dtype:
            raise CheckpointError(
                f"{where}: {name!r} is {given.dtype}{list(given.shape)}, must be {leaf.dtype}{list(leaf.shape)}; "
                "it belongs to another model"
            )
    if unknown := sorted(table.keys() - expected.keys() - {"format"}):
        raise CheckpointError(f"{where}: holds {unknown[0]!r}, which has no place here; it belongs to another model")
    return jax.tree.unflatten(jax.tree.structure(like), [np.asarray(table[name]) for name in expected])


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _discard(path: Path) -> None:
    """Remove a checkpoint: first its name, so that a kill in between leaves no half of one."""
    trash = path.with_name(f"trash-{path.name}-{os.getpid()}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _reserve(folder: Path, size: int) -> None:
    """Find out whether the disk takes `size` bytes before orbax begins: its threads print tracebacks when it fails."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(size + OVERHEAD_BYTES))
        file.flush()


def _sweep(folder: Path) -> None:
    """Remove what killed runs left half-made."""
    for path in (*folder.glob("trash-*"), *folder.glob("*orbax-checkpoint-tmp*")):
        shutil.rmtree(path, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
