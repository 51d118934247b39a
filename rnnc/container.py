"""One checked file for released weights: named arrays and a JSON header, with a version and a sha256.

Layout, little-endian: 8 bytes magic `RNNCMODL`, uint32 format version, uint32 header length, the header in UTF-8 JSON
(`meta` and a list of names, types and shapes), the arrays' bytes in that order, 32 bytes sha256 of all before.
"""

import hashlib
import json
import math
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"RNNCMODL"
VERSION = 1
DTYPES = ("float32", "float16", "int8", "int16", "int32")
LARGEST_BYTES = 1 << 28


class ContainerError(ValueError):
    """The file is no model container, or a damaged one."""


def write(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write `arrays` and `meta` (JSON values) atomically: the file is there complete, or not at all.

    Raises:
      ContainerError: an array is of a type outside `DTYPES` or not finite, or the disk refuses.
    """
    for name, a in arrays.items():
        if str(a.dtype) not in DTYPES or not np.isfinite(a).all():
            raise ContainerError(
                f"{path}: {name} is {a.dtype} or not finite, must be finite and of {', '.join(DTYPES)}"
            )
    index = [{"name": name, "dtype": str(a.dtype), "shape": list(a.shape)} for name, a in arrays.items()]
    header = json.dumps({"meta": meta, "arrays": index}, sort_keys=True).encode()
    body = MAGIC + struct.pack("<II", VERSION, len(header)) + header
    body += b"".join(np.ascontiguousarray(a, a.dtype.newbyteorder("<")).tobytes() for a in arrays.values())
    replace(path, body + hashlib.sha256(body).digest())


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the meta of a file that `write` made.

    Raises:
      ContainerError: missing, too large, not a container, of a newer version, truncated or altered.

    >>> import tempfile; folder = tempfile.TemporaryDirectory()
    >>> write(Path(folder.name) / "m", {"w": np.ones(3, np.float32)}, {"name": "toy"})
    >>> arrays, meta = read(Path(folder.name) / "m")
    >>> arrays["w"].tolist(), meta
    ([1.0, 1.0, 1.0], {'name': 'toy'})
    """
    try:
        if Path(path).stat().st_size > LARGEST_BYTES:
            raise ContainerError(f"{path}: larger than {LARGEST_BYTES} bytes, no model")
        data = Path(path).read_bytes()
    except OSError as error:
        raise ContainerError(f"{path}: cannot be read: {error.strerror}") from None
    if data[:8] != MAGIC or len(data) < 48:
        raise ContainerError(f"{path}: begins with {data[:8]!r}, a model begins with {MAGIC!r}")
    version, length = struct.unpack("<II", data[8:16])
    if version != VERSION:
        raise ContainerError(f"{path}: format version {version}, this library reads {VERSION}")
    body, digest = data[:-32], data[-32:]
    if hashlib.sha256(body).digest() != digest:
        raise ContainerError(f"{path}: sha256 does not match; the file is truncated or altered")
    try:
        return _unpack(body, 16 + length)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ContainerError(f"{path}: its header does not describe its bytes: {error}") from None


def _unpack(body: bytes, at: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays that begin at byte `at`, and the meta; the sha256 vouches for the bytes, not for their sense."""
    header, arrays = json.loads(body[16:at]), {}
    for entry in header["arrays"]:
        name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
        if not isinstance(name, str) or name in arrays or dtype not in DTYPES:
            raise ValueError(f"array {name!r} of type {dtype!r}, must be named once and of {', '.join(DTYPES)}")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name} has the shape {shape!r}, must be whole numbers from 0")
        flat = np.frombuffer(body, np.dtype(dtype).newbyteorder("<"), math.prod(shape), at)
        arrays[name] = flat.reshape(shape).astype(dtype)
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} is not finite")
        at += flat.nbytes
    if at != len(body) or not isinstance(header["meta"], dict):
        raise ValueError(f"arrays end at byte {at} of {len(body)}, meta is a {type(header['meta']).__name__}")
    return arrays, header["meta"]


def replace(path: Path, data: bytes | str) -> None:
    """Write a file atomically: in a temporary file beside it, flushed to the disk, then moved into place."""
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise ContainerError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
