"""Laws of the model file: it comes back equal, or is refused with a `ContainerError`; a failed write leaves the old."""

import hashlib
import json
import os
import resource
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rnnc import container
from rnnc.container import ContainerError


def _arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "layers.0.w": rng.standard_normal((3, 5)).astype(np.float32),
        "half": rng.standard_normal((2, 3)).astype(np.float16),
        "bytes": rng.integers(-128, 128, (7,), np.int8),
        "short": rng.integers(-9999, 9999, (2, 1, 2), np.int16),
        "int": rng.integers(-(2**31), 2**31, (2,)).astype(np.int32),
        "scalar": np.array(2.5, np.float32),
        "nothing": np.zeros((0, 4), np.int16),
    }


META = {"name": "toy ä", "sizes": [1, 2], "nested": {"rate": 0.5, "none": None}}


@pytest.fixture
def path(tmp_path):
    container.write(tmp_path / "m.rnnc", _arrays(), META)
    return tmp_path / "m.rnnc"


def _same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


def test_everything_comes_back(path):
    arrays, meta = container.read(path)
    _same(arrays, _arrays())
    assert meta == META
    assert [p.name for p in path.parent.iterdir()] == ["m.rnnc"]


def _finite(dtype: str) -> st.SearchStrategy:
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else {}
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return hnp.arrays(dtype, shapes, elements=hnp.from_dtype(np.dtype(dtype), **elements))


@given(st.dictionaries(st.text(max_size=5), st.sampled_from(container.DTYPES).flatmap(_finite), max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_arrays_come_back(tmp_path_factory, arrays):
    path = tmp_path_factory.getbasetemp() / "any.rnnc"
    container.write(path, arrays, {})
    _same(container.read(path)[0], arrays)


def test_transposed_arrays_come_back(tmp_path):
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    container.write(tmp_path / "t", {"t": a.T, "slice": a[:, ::2]}, {})
    _same(container.read(tmp_path / "t")[0], {"t": a.T, "slice": a[:, ::2]})


def test_every_altered_byte_is_refused(path):
    data = path.read_bytes()
    for at in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            with pytest.raises(ContainerError, match=r"m\.rnnc: "):
                container.read(path)


def test_every_truncation_is_refused(path):
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ContainerError, match=r"m\.rnnc: "):
            container.read(path)
    for longer in (data + b"\0", data + data):
        path.write_bytes(longer)
        with pytest.raises(ContainerError, match="sha256 does not match"):
            container.read(path)


def _sealed(header: bytes, body: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    """A file whose sha256 is right, whatever it says."""
    size = len(header) if length is None else length
    data = container.MAGIC + struct.pack("<II", version, size) + header + body
    return data + hashlib.sha256(data).digest()


def _index(meta: object = None, size: int = 4, **entry: object) -> bytes:
    one = {"name": "w", "dtype": "float32", "shape": [1], **entry}
    return _sealed(json.dumps({"meta": meta or {}, "arrays": [one]}).encode(), bytes(size))


HOSTILE = {
    "sound": _index(),
    "no JSON": _sealed(b"hello, this is no JSON"),
    "no UTF-8": _sealed(b'{"meta": "\xff\xfe", "arrays": []}'),
    "nested without end": _sealed(b"[" * 100_000),
    "empty header": _sealed(b" " * 20, length=0),
    "header beyond the end": _sealed(b'{"meta": {}, "arrays": []}', length=2**32 - 1),
    "header into the sha256": _sealed(b'{"meta": {}, "arrays": []}', length=40),
    "a list": _sealed(b'["meta", "arrays"]'),
    "a number": _sealed(b'"a string, long enough for all"'),
    "no arrays": _sealed(b'{"meta": {}, "what": []}'),
    "no meta": _sealed(b'{"arrays": [], "what": 123456}'),
    "arrays are a number": _sealed(b'{"meta": {}, "arrays": 3}'),
    "arrays are null": _sealed(b'{"meta": {}, "arrays": null}'),
    "meta is a list": _sealed(b'{"meta": [], "arrays": []}'),
    "entry is a number": _sealed(b'{"meta": {}, "arrays": [3]}'),
    "entry without shape": _sealed(b'{"meta": {}, "arrays": [{"name": "w", "dtype": "int8"}]}'),
    "twice one name": _sealed(
        json.dumps({"meta": {}, "arrays": [{"name": "w", "dtype": "int8", "shape": [1]}] * 2}).encode(), b"12"
    ),
    "unknown type": _index(dtype="float31"),
    "type object": _index(dtype="object"),
    "type of strings": _index(dtype="U1"),
    "type of 8 bytes": _index(dtype="float64", size=8),
    "type is a list": _index(dtype=[["a", "f4"]]),
    "type is null": _index(dtype=None),
    "negative shape": _index(shape=[-1]),
    "two negative shapes": _index(shape=[-1, -1]),
    "shape beyond the end": _index(shape=[2]),
    "huge shape": _index(shape=[2**40, 2**40]),
    "shape that overflows to 1": _index(shape=[2**32, 2**32 + 1], size=4),
    "huge shape of nothing": _index(shape=[0, 2**70], size=0),
    "shape of floats": _index(shape=[1.0]),
    "shape of bools": _index(shape=[True]),
    "shape is a number": _index(shape=1),
    "shape is a string": _index(shape="1"),
    "shape of 100 axes": _index(shape=[1] * 100),
    "name is a number": _index(name=3),
    "bytes left over": _index(size=5),
    "NaN": _sealed(
        json.dumps({"meta": {}, "arrays": [{"name": "w", "dtype": "float32", "shape": [1]}]}).encode(),
        np.array([np.nan], "<f4").tobytes(),
    ),
    "version 0": _sealed(b'{"meta": {}, "arrays": []}', version=0),
    "version 2": _sealed(b'{"meta": {}, "arrays": []}', version=2),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_with_a_right_sha256(tmp_path, case):
    path = tmp_path / "hostile"
    path.write_bytes(HOSTILE[case])
    if case == "sound":
        assert container.read(path)[0]["w"].tolist() == [0.0]
        return
    with pytest.raises(ContainerError, match="hostile: "):
        container.read(path)


def test_other_files_are_refused(tmp_path, path):
    with pytest.raises(ContainerError, match="none: cannot be read"):
        container.read(tmp_path / "none")
    with pytest.raises(ContainerError, match="cannot be read"):
        container.read(tmp_path)
    data = path.read_bytes()
    path.write_bytes(b"RIFF" + data[4:])
    with pytest.raises(ContainerError, match=r"begins with b'RIFFMODL', a model begins with b'RNNCMODL'"):
        container.read(path)
    path.write_bytes(data[:8] + struct.pack("<I", 2) + data[12:])
    with pytest.raises(ContainerError, match="format version 2, this library reads 1"):
        container.read(path)
    os.truncate(path, container.LARGEST_BYTES + 1)
    with pytest.raises(ContainerError, match="larger than"):
        container.read(path)


@pytest.mark.parametrize(
    "bad",
    [
        np.array([1, np.nan], np.float32),
        np.array([np.inf], np.float16),
        np.ones(2),
        np.ones(2, ">f4"),
        np.ones(2, bool),
        np.array(["a"]),
        np.array([None]),
    ],
    ids=lambda a: str(a.dtype),
)
def test_arrays_that_are_not_written(path, bad):
    before = path.read_bytes()
    with pytest.raises(ContainerError, match=r"m\.rnnc: w is .* must be finite and of float32"):
        container.write(path, {"w": bad}, {})
    assert path.read_bytes() == before


def _refuse(monkeypatch, name: str, error: BaseException) -> None:
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("name", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=type)
def test_a_failed_write_leaves_the_old_file_alone(path, monkeypatch, name, error):
    before = path.read_bytes()
    _refuse(monkeypatch, name, error)
    expected = ContainerError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        container.write(path, _arrays(1), META)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["m.rnnc"]


def test_a_file_system_that_takes_no_more_leaves_the_old_file_alone(path):
    """The kernel itself refuses the write, beyond 4 KiB."""
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ContainerError, match=r"m\.rnnc: cannot be written: File too large"):
            container.write(path, {"w": np.ones(5000, np.float32)}, META)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["m.rnnc"]


def test_no_folder_to_write_to(tmp_path):
    with pytest.raises(ContainerError, match=r"none/m: cannot be written: No such file or directory"):
        container.write(tmp_path / "none" / "m", _arrays(), META)
