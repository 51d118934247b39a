"""The front end of an exported denoiser: its tables as constant data, and what it takes."""

from collections.abc import Mapping

import numpy as np

from rnnc.audio.front import Front
from rnnc.export.records import Value

HEADER = 12  # bytes at the beginning of a denoiser's memory

# The arrays of `rnnc_front`: kind, and what stands in them.
ARRAYS = {
    "sine": ("int16_t", "-sin(2 pi k / window), Q0.15"),
    "analysis": ("uint16_t", "analysis window, Q1.15"),
    "synthesis": ("uint16_t", "synthesis window"),
    "start": ("uint16_t", "first bin of each band"),
    "count": ("uint16_t", "how many bins each band has"),
    "weights": ("uint16_t", "of the bins in the bands, Q1.15"),
    "place": ("uint16_t", "of the bins among the bands"),
}


def arrays(front: Front) -> dict[str, tuple[str, np.ndarray, str]]:
    """The constant arrays by field: kind, numbers and what they are.

    >>> {name: len(numbers) for name, (_, numbers, _) in arrays(Front()).items()}["sine"]
    512
    """
    return {name: (kind, getattr(front.tables, name), text) for name, (kind, text) in ARRAYS.items()}


def numbers(front: Front) -> Mapping[str, Value]:
    """The other fields of `rnnc_front`.

    >>> numbers(Front())["window"]
    512
    """
    names = ("first", "last", "synthesis_shift", "place_frac", "least", "power", "offset", "mean")
    sizes = {"window": front.stft.window, "hop": front.stft.hop, "bands": front.bands.count, "x_bits": front.x.bits}
    return {**sizes, **{name: getattr(front.tables, name) for name in names}}


def memory(front: Front) -> tuple[int, int]:
    """Bytes that live from frame to frame, and bytes of scratch that it shares with the network.

    >>> memory(Front())
    (4884, 2048)
    """
    window, hop = front.stft.window, front.stft.hop
    halves = window + hop + hop % 2 + front.bands.count + front.bands.count % 2
    return HEADER + 2 * halves + 4 * (window - hop) + 4 * (window + 2), 4 * window
