"""What a table of classifiers says: means over seeds in words, and one page with the table and a picture per task."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rnnc import container
from rnnc.recipes import figures, page
from rnnc.recipes.page import element, number, text
from rnnc.recipes.rundata import Table, children, value, word

FAMILIES = ("dense", "small", "pruned", "lowrank", "kron", "hybrid", "ast")
"""The methods without their ratios, in the order of the legend."""


class Line(NamedTuple):
    """One method of one task, over its seeds. `spread` is the sample standard deviation, NaN for one seed."""

    task: str
    method: str
    seeds: int
    bytes: float
    ratio: float
    parameters: float
    macs: float
    accuracy: float
    spread: float


def lines(result: Table) -> list[Line]:
    """The rows of a result.json, one line per task and method, in their order."""
    groups: dict[tuple[str, str], list[Table]] = {}
    for row in children(result, "rows"):
        groups.setdefault((word(row, "task"), word(row, "method")), []).append(row)
    return [_line(*names, rows) for names, rows in groups.items()]


def _line(task: str, method: str, rows: Sequence[Table]) -> Line:
    mean = {key: float(np.mean([value(row, key) for row in rows])) for key in ("bytes", "ratio", "parameters", "macs")}
    accuracies = [value(row, "accuracy") for row in rows]
    spread = float(np.std(accuracies, ddof=1)) if len(rows) > 1 else float("nan")
    return Line(task=task, method=method, seeds=len(rows), accuracy=float(np.mean(accuracies)), spread=spread, **mean)


def table(result: Table) -> list[str]:
    """The lines as plain text in columns, under a head."""
    head = ("task", "method", "bytes", "ratio", "parameters", "accuracy, %", "seeds")
    cells = [head] + [
        (l.task, l.method, f"{l.bytes:,.0f}", f"{l.ratio:.1f}x", f"{l.parameters:,.0f}", _accuracy(l), str(l.seeds))
        for l in lines(result)
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in cells
    ]


def write(folder: Path, result: Table) -> Path:
    """Write `folder/report.html`: for each task the picture and the table; how to repeat it."""
    found = lines(result)
    tasks = list(dict.fromkeys(line.task for line in found))
    sections = [_task(task, [line for line in found if line.task == task]) for task in tasks]
    facts = [
        (title, element("code", text(word(result, key))))
        for title, key in (("Command", "command"), ("Commit", "commit"), ("Config SHA-256", "config_sha256"))
    ]
    lead = (
        "Small recurrent classifiers made smaller in several ways, at equal bytes. Accuracy is that on test items, at "
        "the epoch that did best on validation items; ± is the standard deviation over seeds. Bytes count all that is "
        "stored: float32 numbers, biases, the dense layer, and the index of a pruned matrix. The ratio is that of the "
        "whole model."
    )
    path = folder / "report.html"
    parts = [element("p", text(lead), class_="lead"), *sections, page.section("How to repeat it", page.facts(facts))]
    container.replace(path, page.document("Compressed classifiers", *parts))
    return path


def _task(task: str, found: list[Line]) -> str:
    rows = [
        page.row(
            text(line.method),
            text(number(line.bytes)),
            text(f"{number(line.ratio, 1)}×"),
            text(number(line.parameters)),
            text(number(line.macs)),
            text(_accuracy(line)),
            text(line.seeds),
        )
        for line in found
    ]
    columns = ["Method", "Bytes", "Ratio", "Parameters", "MACs per item", "Accuracy, %", "Seeds"]
    held = [family for family in FAMILIES if any(_family(line) == family for line in found)]
    legend = element("div", *(figures.key(_style(family), family) for family in held), class_="key")
    drawing = figures.plot(
        [_curve(family, found) for family in held],
        alt=f"accuracy over bytes of {task}; the numbers are in the table below.",
        x_label="bytes, logarithmic",
        y_label="accuracy, %",
        log_x=True,
    )
    return page.section(
        task, legend, element("figure", drawing), page.table(f"Mean accuracy of {task}.", columns, rows)
    )


def _curve(family: str, found: list[Line]) -> figures.Line:
    own = sorted((line.bytes, line.accuracy) for line in found if _family(line) == family)
    return figures.Line(style=_style(family), x=[x for x, _ in own], y=[y for _, y in own])


def _family(line: Line) -> str:
    return line.method.partition("-")[0]


def _style(family: str) -> str:
    return f"series{FAMILIES.index(family)}"


def _accuracy(line: Line) -> str:
    return f"{line.accuracy:.2f}" + ("" if np.isnan(line.spread) else f" ± {line.spread:.2f}")
