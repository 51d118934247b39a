"""The scores of a run in words, tables and plots: which metrics there are, and how each is written."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rnnc.recipes import figures, page
from rnnc.recipes.page import element, number, text
from rnnc.recipes.rundata import Table, child, children, value

_INTERVAL = "95\u00a0% interval"
_MAIN = ("si_sdr_db", "pesq_wb", "estoi")  # told in words and drawn over SNR


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How one metric is named and written."""

    key: str
    name: str
    unit: str = ""
    digits: int = 2

    @property
    def title(self) -> str:
        """Name and unit, plain."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def head(self) -> str:
        """Name above unit, HTML for a table header."""
        return text(self.name) + (element("small", text(self.unit)) if self.unit else "")


METRICS = (
    Metric(key="si_sdr_db", name="SI-SDR", unit="dB"),
    Metric(key="sdr_db", name="SDR", unit="dB"),
    Metric(key="pesq_wb", name="PESQ"),
    Metric(key="stoi", name="STOI", digits=3),
    Metric(key="estoi", name="ESTOI", digits=3),
)


def known(*tables: Table) -> list[Metric]:
    """Return the metrics that any table holds: those of METRICS in their order, then others by their keys."""
    held = dict.fromkeys(key for table in tables for key in table)
    extra = [Metric(key=key, name=key, digits=3) for key in held if key not in {m.key for m in METRICS}]
    return [m for m in METRICS if m.key in held] + extra


def gain_sentences(result: Table) -> Iterator[str]:
    """Say in words what the main metrics gain, and whether the interval of the gain excludes zero."""
    test = child(result, "test")
    if not test:
        yield "It has not been tested yet."
    told = math.nan
    for metric in (m for m in METRICS if m.key in _MAIN):
        noisy, enhanced, gain = (child(child(test, k), metric.key) for k in ("noisy", "enhanced", "gain"))
        if noisy and enhanced and gain:
            count = value(gain, "n")
            where = "" if count == told else f"Over {number(count)} test files "
            yield where + _gain_clause(metric, noisy, enhanced, gain)
            told = count


def _gain_clause(metric: Metric, noisy: Table, enhanced: Table, gain: Table) -> str:
    low, high = value(gain, "low"), value(gain, "high")
    verb = "rises" if low > 0 else "falls" if high < 0 else "shows no clear change:" if high >= 0 else "goes"
    before, after = (number(value(cell, "mean"), metric.digits) for cell in (noisy, enhanced))
    change = number(value(gain, "mean"), metric.digits, signed=True)
    span = f"{number(low, metric.digits)} to {number(high, metric.digits)}"
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{metric.name} {verb} from {before} to {after}{unit} ({change}; {_INTERVAL} {span})."


def overall(result: Table) -> str:
    """Return the section with the means over all test files and their intervals."""
    test = child(result, "test")
    columns = [child(test, version) for version in ("noisy", "enhanced", "gain")]
    if not any(columns):
        return page.section("Test results", page.missing("result.json has no section “test”: not tested yet."))
    rows = [page.row(m.head, *_measured(columns, m)) for m in known(*columns)]
    caption = f"Means over the test files, with the {_INTERVAL} of each mean. Higher is better."
    note = (
        "Gain is enhanced minus noisy, file by file; the interval of the gain is that of these differences. "
        "Files counts those with a value on both sides. PESQ is wideband, from 1 to 4.64 (MOS-LQO)."
    )
    body = page.table(caption, ["Metric", "Noisy", "Enhanced", "Gain", "Files"], rows)
    return page.section("Test results", body, element("p", element("small", text(note))))


def _measured(columns: Sequence[Table], metric: Metric) -> Iterator[str]:
    """Return the cells of one metric: noisy, enhanced, gain, number of files."""
    cells = [child(column, metric.key) for column in columns]
    for cell, signed in zip(cells, (False, False, True)):
        yield _estimate(cell, metric.digits, signed)
    counts = [value(cell, "n") for cell in cells if "n" in cell]
    yield number(min(counts)) if counts else page.ABSENT


def _estimate(cell: Table, digits: int, signed: bool) -> str:
    low, high = (number(value(cell, end), digits) for end in ("low", "high"))
    notes = [f"{low} to {high}"] if "low" in cell or "high" in cell else []
    if value(cell, "undefined") > 0:
        notes += [f"{number(value(cell, 'undefined'))} undefined"]
    mean = number(value(cell, "mean"), digits, signed=signed)
    return text(mean) + "".join(element("small", text(note)) for note in notes)


def per_snr(result: Table) -> str:
    """Return the section with plots and means at each SNR of the input."""
    title = "Results by signal-to-noise ratio"
    groups = children(child(result, "test"), "per_snr")
    if not groups:
        return page.section(title, page.missing("result.json has no results per SNR."))
    groups = sorted(groups, key=lambda group: value(group, "snr_db"))
    metrics = known(*(child(group, version) for group in groups for version in ("noisy", "enhanced")))
    plots = [_snr_panel(groups, m) for m in metrics if m.key in _MAIN]
    legend = element("div", figures.key("noisy", "noisy"), figures.key("enhanced", "enhanced"), class_="key")
    rows = [row for group in groups for row in _snr_rows(group, metrics)]
    body = page.table("Means per SNR of the noisy input.", ["SNR", "Signal", *(m.head for m in metrics)], rows, words=2)
    return page.section(title, legend, element("div", *plots, class_="panels"), body)


def _snr_rows(group: Table, metrics: Sequence[Metric]) -> Iterator[str]:
    count = element("small", text(f"{number(value(group, 'n'))} files"))
    head = element("th", text(snr_name(group)), count, scope="row", rowspan=2, class_="group")
    for version, before in (("noisy", head), ("enhanced", "")):
        means = child(group, version)
        cells = [element("td", text(number(value(means, m.key), m.digits))) for m in metrics]
        attributes = {"class_": "first"} if before else {}
        yield element("tr", before, element("th", version, scope="row"), *cells, **attributes)


def _snr_panel(groups: Sequence[Table], metric: Metric) -> str:
    snrs = [value(group, "snr_db") for group in groups]
    lines = [
        figures.Line(style=version, x=snrs, y=[value(child(group, version), metric.key) for group in groups])
        for version in ("noisy", "enhanced")
    ]
    if not any(line.points() for line in lines):
        return page.missing(f"{metric.name}: no value is defined.")
    alt = f"{metric.name} over input SNR, noisy and enhanced; the numbers are in the table below."
    return element("figure", figures.plot(lines, alt=alt, x_label="input SNR, dB", y_label=metric.title, width=360))


def snr_name(record: Table) -> str:
    """Return the SNR of a record in words."""
    snr = value(record, "snr_db")
    return f"{number(snr, 0 if snr.is_integer() else 1)} dB"
