"""Figures of a report as inline SVG: line plots and spectrograms.

An SVG inside the page takes fonts and colours from the page's style sheet, so one drawing serves light, dark
and print, and is sharp at any width. Only the spectrogram's pixels are a picture: an 8-bit palette PNG,
smaller than the RGBA one that a plotting library would embed.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image  # comes with matplotlib, which requires it

from rnnc.recipes.page import element, text

FLOOR_DB = -80.0
"""Lower end of the spectrograms' colour scale, in dB below the loudest bin of the example."""

_LEVELS = 64  # colours of the scale: steps of 1.25 dB, below what the eye separates here
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 24, 32, 40  # margins of a drawing, px


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve. `style` is its CSS class: `train`, `noisy`, `enhanced`, `reference` or `series0` to `series9`."""

    style: str
    x: Sequence[float]  # [N]
    y: Sequence[float]  # [N], same length; points that are not finite are left out
    dots: bool = True
    labels: Sequence[str] = ()  # [N], words beside the points; or none

    def points(self) -> list[tuple[float, float]]:
        """Return the finite points [(x, y), ...]."""
        return [(x, y) for x, y in zip(self.x, self.y) if math.isfinite(x) and math.isfinite(y)]

    def named(self) -> list[tuple[tuple[float, float], str]]:
        """Return the finite points that have a label, with it."""
        pairs = [((x, y), label) for x, y, label in zip(self.x, self.y, self.labels)]
        return [(point, label) for point, label in pairs if label and all(math.isfinite(v) for v in point)]


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """The rectangle of a plot: maps data to pixels. `log` makes the vertical axis logarithmic, `log_x` the other."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int
    height: int
    log: bool = False
    log_x: bool = False

    def right(self, x: float) -> float:
        low, high, x = (math.log10(v) for v in (*self.x, x)) if self.log_x else (*self.x, x)
        return round(_LEFT + (x - low) / (high - low) * (self.width - _LEFT - _RIGHT), 1)

    def down(self, y: float) -> float:
        low, high, y = (math.log10(v) for v in (*self.y, y)) if self.log else (*self.y, y)
        return round(self.height - _BOTTOM - (y - low) / (high - low) * (self.height - _TOP - _BOTTOM), 1)


def plot(
    lines: Sequence[Line],
    *,
    alt: str,
    x_label: str,
    y_label: str,
    x_from: float | None = None,
    y_from: float | None = None,
    best: float | None = None,
    width: int = 440,
    log_x: bool = False,
    names: Sequence[str] = (),
) -> str:
    """Draw curves over a common axis.

    The vertical axis is logarithmic where all values are positive and span a factor above 20, without `y_from`.

    Args:
        lines: at least one curve with at least one finite point.
        alt: what a reader who does not see the figure is told.
        x_label, y_label: plain text with units.
        x_from, y_from: positions that the axes reach down to, if any.
        best: horizontal position of the vertical mark "best step", if any.
        width: of the drawing, px; the page scales it.
        log_x: the horizontal axis is logarithmic.
        names: of the places 0, 1, ... where the horizontal axis has names for numbers.

    Returns:
        An `<svg>` element.

    Raises:
        ValueError: there is no finite point, or one that a logarithmic axis has no place for.
    """
    points = [point for line in lines for point in line.points()]
    if not points:
        raise ValueError("plot: no finite point given; allowed: at least one")
    ys = [y for _, y in points]
    log = y_from is None and min(ys) > 0 and max(ys) > 20 * min(ys)
    ys += [] if y_from is None else [y_from]
    xs = [x for x, _ in points] + [x for x in (x_from, best) if x is not None]
    xs += [-0.5, len(names) - 0.5] if names else []
    if log_x and min(xs) <= 0:
        raise ValueError(f"plot: x is {min(xs)}, must be above 0 on a logarithmic axis")
    span = _log_span(xs) if log_x else _span(xs, 0)
    y_span = _log_span(ys) if log else _span(ys, 0.06)
    frame = _Frame(x=span, y=y_span, width=width, height=260, log=log, log_x=log_x)
    parts = _axes(frame, x_label, y_label + ", logarithmic" * log, names)
    parts += [] if best is None else _mark(frame, best)
    parts += [part for line in lines for part in _curve(frame, line)]
    return _svg(parts + _labels(frame, lines), frame, alt)


def key(style: str, label: str) -> str:
    """Return one entry of a legend: a sample of the curve and its name."""
    sample = element("line", class_=f"curve {style}", x1=0, y1=6, x2=30, y2=6)
    return element("span", element("svg", sample, viewBox="0 0 30 12", aria_hidden="true"), text(label))


def power(audio: np.ndarray, rate_hz: int) -> np.ndarray:
    """Return the power spectrogram of a mono signal: Hann window of 32 ms, hop 16 ms, frames centred.

    Args:
        audio: [T], full scale 1.
        rate_hz: sample rate, at least 1000.

    Returns:
        [frames, bins], linear power, bins from 0 to rate_hz / 2.
    """
    window, hop = 32 * rate_hz // 1000, 16 * rate_hz // 1000
    padded = np.pad(np.asarray(audio, np.float64), (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[: audio.size + 1 : hop]
    return np.abs(np.fft.rfft(frames * np.hanning(window))) ** 2


def spectrogram(linear: np.ndarray, *, peak: float, seconds: float, rate_hz: int, alt: str) -> str:
    """Draw a power spectrogram in dB below `peak`, from 0 down to FLOOR_DB.

    Args:
        linear: [frames, bins] from `power`.
        peak: linear power shown as 0 dB; give the same for figures to be compared.
        seconds: length of the signal.
        rate_hz: its sample rate.
        alt: what a reader who does not see the figure is told.

    Returns:
        An `<svg>` element; the pixels are an inlined palette PNG.
    """
    floor = 10 ** (FLOOR_DB / 10)
    decibels = 10 * np.log10(np.clip(linear / (peak or 1.0), floor, 1.0))
    levels = np.rint((decibels / -FLOOR_DB + 1) * (_LEVELS - 1)).astype(np.uint8)
    frame = _Frame(x=(0, seconds or 1.0), y=(0, rate_hz / 2000), width=360, height=220)
    inside = {"x": _LEFT, "y": _TOP, "width": 360 - _LEFT - _RIGHT, "height": 220 - _TOP - _BOTTOM}
    picture = element("image", href=_png(levels.T[::-1]), preserveAspectRatio="none", **inside)
    return _svg([*_axes(frame, "time, s", "frequency, kHz"), picture], frame, alt)


def colour_scale() -> str:
    """Draw the colour scale shared by all spectrograms."""
    strip = element("image", href=_png(np.arange(_LEVELS, dtype=np.uint8)[None]), preserveAspectRatio="none",
                    x=0, y=0, width=360, height=10)  # fmt: skip
    ends = ((0, "start", f"−{-FLOOR_DB:g} dB"), (180, "middle", f"−{-FLOOR_DB / 2:g}"), (360, "end", "0 dB"))
    words = [element("text", text(word), x=x, y=25, text_anchor=anchor) for x, anchor, word in ends]
    alt = f"colour scale from {FLOOR_DB:g} dB (darkest) to 0 dB (brightest)"
    drawing = element("svg", strip, *words, viewBox="0 0 360 30", role="img", aria_label=alt)
    return element("div", drawing, class_="scale")


def _png(levels: np.ndarray) -> str:
    """Encode [rows, columns] levels below _LEVELS as a palette PNG in a data: URI."""
    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, _LEVELS), bytes=True)
    image = Image.fromarray(np.ascontiguousarray(levels))
    image.putpalette(np.asarray(colours)[:, :3].tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _svg(parts: list[str], frame: _Frame, alt: str) -> str:
    return element("svg", *parts, viewBox=f"0 0 {frame.width} {frame.height}", role="img", aria_label=alt)


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Return the range of `values`, widened by the fraction `margin` and never empty."""
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    return low - margin * (high - low), high + margin * (high - low)


def _log_span(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 1.15, max(values) * 1.15


def _ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Return round numbers inside [low, high]."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1,) if len(decades) > 4 else (1, 3)
        candidates = [step * 10.0**decade for decade in decades for step in steps]
    else:
        candidates = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    inside = [tick for tick in candidates if low - slack <= tick <= high + slack]
    return _ticks(low, high) if log and len(inside) < 2 else inside


def _axes(frame: _Frame, x_label: str, y_label: str, names: Sequence[str] = ()) -> list[str]:
    """Draw grid, tick labels and axis names; the vertical name stands level, above its axis."""
    left, right, bottom = _LEFT, frame.width - _RIGHT, frame.height - _BOTTOM
    parts = []
    for tick in _ticks(*frame.y, log=frame.log):
        y = frame.down(tick)
        parts += [element("line", class_="grid", x1=left, y1=y, x2=right, y2=y)]
        parts += [element("text", _tick(tick), x=left - 6, y=y + 4, text_anchor="end")]
    for tick in range(len(names)) if names else _ticks(*frame.x, log=frame.log_x):
        x, word = frame.right(tick), text(names[int(tick)]) if names else _tick(tick)
        parts += [element("line", class_="axis", x1=x, y1=bottom, x2=x, y2=bottom + 4)]
        parts += [element("text", word, x=x, y=bottom + 17, text_anchor="middle")]
    parts += [element("line", class_="axis", x1=left, y1=bottom, x2=right, y2=bottom)]
    parts += [element("text", text(y_label), x=0, y=12)]
    return [
        *parts,
        element("text", text(x_label), x=(left + right) / 2, y=frame.height - 5, text_anchor="middle"),
    ]


def _tick(value: float) -> str:
    return text(f"{value:,.6g}".replace("-", "−"))


def _curve(frame: _Frame, line: Line) -> list[str]:
    places = [(frame.right(x), frame.down(y)) for x, y in line.points()]
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [element("polyline", class_=f"curve {line.style}", points=path)]
    dots = places if line.dots or len(places) == 1 else []
    return parts + [element("circle", class_=line.style, cx=x, cy=y, r=2.6) for x, y in dots]


def _labels(frame: _Frame, lines: Sequence[Line]) -> list[str]:
    """Write the labels beside their points, where they cover the fewest points and labels before them."""
    named = [((frame.right(x), frame.down(y)), label) for line in lines for (x, y), label in line.named()]
    taken = [(x - 3, y - 3, x + 3, y + 3) for (x, y), _ in named]
    parts = []
    for (x, y), label in named:
        width = 6.6 * len(label)  # about, at 12 px
        boxes = [(x + dx - width * left, y + dy - 10, x + dx + width * (1 - left), y + dy) for dx, dy, left in _BESIDE]
        inside = [box for box in boxes if box[0] >= _LEFT and box[2] <= frame.width and box[1] >= 14] or boxes
        box = min(inside, key=lambda box: sum(_overlap(box, other) for other in taken))
        taken.append(box)
        parts.append(element("text", text(label), x=round(box[0], 1), y=round(box[3] - 1, 1)))
    return parts


_BESIDE = ((-5, -3, 1), (5, 13, 0), (5, -3, 0), (-5, 13, 1), (0, -8, 0.5), (0, 19, 0.5))  # shift, share to the left


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area that two boxes (left, top, right, bottom) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _mark(frame: _Frame, step: float) -> list[str]:
    x = frame.right(step)
    anchor, shift = ("end", -5) if x > frame.width / 2 else ("start", 5)
    rule = element("line", class_="best", x1=x, y1=_TOP - 6, x2=x, y2=frame.height - _BOTTOM)
    label = element("text", text(f"best step {step:,.0f}"), class_="best", x=x + shift, y=_TOP - 1, text_anchor=anchor)
    return [rule, label]
