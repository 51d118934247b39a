"""Files that a reader of audio must survive: truncated, flipped, hostile and foreign, made from a seed."""

import functools
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

Rng = np.random.Generator
SOUND = [
    ("WAV", "PCM_16", 1),
    ("WAV", "PCM_24", 2),
    ("WAV", "FLOAT", 1),
    ("WAVEX", "PCM_16", 2),
    ("FLAC", "PCM_16", 1),
    ("FLAC", "PCM_24", 2),
    ("OGG", "VORBIS", 1),
    ("OGG", "VORBIS", 2),
    ("OGG", "OPUS", 1),
]
FOREIGN = [("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("RF64", "PCM_16"), ("W64", "PCM_16")]
FOREIGN += [("MAT4", "PCM_16"), ("WAV", "IMA_ADPCM"), ("WAV", "ULAW"), ("WAV", "GSM610")]


@functools.cache
def sound(kind: str, subtype: str, channels: int = 1, seconds: float = 0.4) -> bytes:
    """A small valid file: a tone in noise at 16 kHz."""
    rng = np.random.default_rng(1)
    n = int(16000 * seconds)
    x = 0.3 * np.sin(np.arange(n) / 7)[:, None] + 0.1 * rng.uniform(-1, 1, (n, channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, x, 8000 if subtype == "GSM610" else 16000, format=kind, subtype=subtype)
    data = buffer.getvalue()
    return _numbered(data) if kind == "OGG" else data


def _numbered(data: bytes) -> bytes:
    """The Ogg pages with serial number 1 instead of a random one, and their checksums (CRC 0x04C11DB7)."""
    pages = data.split(b"OggS")[1:]  # in so small a file the word occurs nowhere else
    out = b""
    for page in pages:
        page = b"OggS" + page[:10] + struct.pack("<I", 1) + page[14:18] + bytes(4) + page[22:]
        out += page[:22] + struct.pack("<I", _crc(page)) + page[26:]
    return out


def _crc(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x104C11DB7 if value >> 31 else 0)
    return value


def wav(
    data: bytes = b"\0" * 3200,
    *,
    tag=1,
    channels=1,
    rate_hz=16000,
    align=2,
    bits=16,
    claimed: int | None = None,
) -> bytes:
    """A WAV file whose header says whatever is asked."""
    size = len(data) if claimed is None else claimed
    head = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * align % 2**32, align, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(len(body), 2**32 - 1)) + body


def float_wav(values: np.ndarray, bits: int = 32) -> bytes:
    """A floating point WAV file of these values, NaN and infinity included."""
    data = values.astype(f"<f{bits // 8}").tobytes()
    return wav(data, tag=3, align=bits // 8, bits=bits)


def damage(seed: int | Rng, n: int, folder: Path) -> list[Path]:
    """Write n damaged or hostile files (some are folders) to `folder`; the same seed gives the same files.

    Each call cycles through all kinds of damage and all kinds of sound, so n >= 50 has each kind of damage.
    """
    rng = np.random.default_rng(seed)
    sounds = [sound(*kind) for kind in SOUND]
    folder.mkdir(parents=True, exist_ok=True)
    return [_one(rng, i, sounds, folder) for i in range(n)]


def _one(rng: Rng, i: int, sounds: list[bytes], folder: Path) -> Path:
    make = KINDS[i % len(KINDS)]
    data = sounds[int(rng.integers(len(sounds)))]
    suffix = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}[data[:4]]
    path = folder / f"{i:05d}_{make.__name__.strip('_')}{suffix}"
    made = make(rng, data)
    if made is None:
        path.mkdir()
    else:
        path.write_bytes(made)
    return path


def _cut(rng: Rng, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _cut_head(rng: Rng, data: bytes) -> bytes:
    return data[: int(rng.integers(200))]


def _flip_few(rng: Rng, data: bytes) -> bytes:
    return _flip(rng, data, int(rng.integers(1, 8)), len(data))


def _flip_many(rng: Rng, data: bytes) -> bytes:
    return _flip(rng, data, int(rng.integers(20, 500)), len(data))


def _flip_head(rng: Rng, data: bytes) -> bytes:
    return _flip(rng, data, int(rng.integers(1, 6)), 96)


def _flip(rng: Rng, data: bytes, count: int, span: int) -> bytes:
    out = bytearray(data)
    for at in rng.integers(0, min(span, len(data)), count):
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _bytes_head(rng: Rng, data: bytes) -> bytes:
    """Random or extreme bytes in the header, behind the magic number."""
    out = bytearray(data)
    at, count = int(rng.integers(4, 80)), int(rng.integers(1, 9))
    fill = [rng.bytes(count), b"\xff" * count, b"\0" * count, b"\x7f" + b"\xff" * (count - 1)]
    out[at : at + count] = fill[int(rng.integers(4))]
    return bytes(out)


def _hole(rng: Rng, data: bytes) -> bytes:
    a, b = sorted(int(at) for at in rng.integers(0, len(data), 2))
    return data[:a] + data[b:]


def _zeros(rng: Rng, data: bytes) -> bytes:
    a, b = sorted(int(at) for at in rng.integers(0, len(data), 2))
    return data[:a] + b"\0" * (b - a) + data[b:]


def _repeat(rng: Rng, data: bytes) -> bytes:
    a, b = sorted(int(at) for at in rng.integers(0, len(data), 2))
    return data[:b] + data[a:b] * int(rng.integers(1, 4)) + data[b:]


def _splice(rng: Rng, data: bytes) -> bytes:
    other = sound(*SOUND[int(rng.integers(len(SOUND)))])
    return data[: int(rng.integers(len(data)))] + other[int(rng.integers(len(other))) :]


def _garbage(rng: Rng, data: bytes) -> bytes:
    return rng.bytes(int(rng.integers(1, 4000)))


def _garbage_behind_magic(rng: Rng, data: bytes) -> bytes:
    return data[:12] + rng.bytes(int(rng.integers(4000)))


def _garbage_behind_head(rng: Rng, data: bytes) -> bytes:
    return data[:60] + rng.bytes(int(rng.integers(4000)))


def _empty(rng: Rng, data: bytes) -> bytes:
    return b""


def _folder(rng: Rng, data: bytes) -> None:
    return None


def _text(rng: Rng, data: bytes) -> bytes:
    return "speech, one two three\n".encode("utf-16" if rng.integers(2) else "utf-8") * 40


def _magic_only(rng: Rng, data: bytes) -> bytes:
    return [b"RIFF", b"fLaC", b"OggS", b"RIFF\0\0\0\0WAVE", b"RIFX" + data[4:]][int(rng.integers(5))]


def _foreign(rng: Rng, data: bytes) -> bytes:
    return sound(*FOREIGN[int(rng.integers(len(FOREIGN)))])


def _not_finite(rng: Rng, data: bytes) -> bytes:
    values = rng.uniform(-1, 1, 4000)
    bad = [np.nan, np.inf, -np.inf, 1e30, -1e20, 3.4e38, 1e5]
    values[rng.integers(0, 4000, int(rng.integers(1, 50)))] = bad[int(rng.integers(len(bad)))]
    return float_wav(values, 32 if rng.integers(2) else 64)


def _double_overflow(rng: Rng, data: bytes) -> bytes:
    return float_wav(np.full(1000, 1e300), 64)


def _float_noise(rng: Rng, data: bytes) -> bytes:
    return wav(rng.bytes(8000), tag=3, align=4, bits=32)


def _odd_wav(rng: Rng, data: bytes) -> bytes:
    """A header with an impossible rate, channel count, width, block or encoding."""
    odd = [
        {"rate_hz": 0},
        {"rate_hz": 1},
        {"rate_hz": 2**32 - 1},
        {"rate_hz": 2**31},
        {"channels": 0},
        {"channels": 65535},
        {"channels": 33, "align": 66},
        {"bits": 0},
        {"bits": 65535},
        {"bits": 1},
        {"align": 0},
        {"align": 65535},
        {"tag": 0},
        {"tag": 2, "align": 256, "bits": 4},
        {"tag": 0x11, "align": 1, "bits": 4},
        {"tag": 0x55, "bits": 0},
        {"tag": 0xFFFE},
        {"claimed": 0},
        {"data": b""},
        {"data": b"\0"},
    ]
    return wav(**odd[int(rng.integers(len(odd)))])


def _long_wav(rng: Rng, data: bytes) -> bytes:
    """A header that claims 2^31 frames or so."""
    return wav(claimed=[2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1][int(rng.integers(4))])


def _long_flac(rng: Rng, data: bytes) -> bytes:
    """STREAMINFO: 20 bits rate, 3 channels, 5 width, 36 length; length, or all of it, is made huge."""
    out = bytearray(sound("FLAC", "PCM_16"))
    if rng.integers(2):
        out[21] |= 0x0F
        out[22:26] = b"\xff" * 4
    else:
        out[18:26] = rng.bytes(8)
    return bytes(out)


def _long_ogg(rng: Rng, data: bytes) -> bytes:
    """The position in the last page's header is made huge or negative."""
    out = bytearray(sound("OGG", "VORBIS"))
    at = out.rfind(b"OggS")
    out[at + 6 : at + 14] = [b"\xff" * 7 + b"\x7f", b"\0" * 7 + b"\x80", rng.bytes(8)][int(rng.integers(3))]
    return bytes(out)


def _chunks(rng: Rng, data: bytes) -> bytes:
    """A WAV with thousands of tiny or one huge unknown chunk before its sound."""
    tiny = b"junk" + struct.pack("<I", 0)
    huge = b"LIST" + struct.pack("<I", 2**32 - 1)
    return b"RIFF\xff\xff\xff\xffWAVE" + (tiny * 5000 if rng.integers(2) else huge) + wav()[12:]


KINDS: list[Callable[[Rng, bytes], bytes | None]] = [
    _cut,
    _cut_head,
    _flip_few,
    _flip_many,
    _flip_head,
    _bytes_head,
    _hole,
    _zeros,
    _repeat,
    _splice,
    _garbage,
    _garbage_behind_magic,
    _garbage_behind_head,
    _empty,
    _folder,
    _text,
    _magic_only,
    _foreign,
    _not_finite,
    _double_overflow,
    _float_noise,
    _odd_wav,
    _long_wav,
    _long_flac,
    _long_ogg,
    _chunks,
]
