"""What came out of a ladder: result.json, table.md and report.html, all from the rungs' folders."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rnnc import container
from rnnc.recipes import figures, page, rundata
from rnnc.recipes.page import element, number, text
from rnnc.recipes.run import Run
from rnnc.recipes.rundata import Table, child, children, value, word
from rnnc.recipes.scores import METRICS, Metric

_DRAWN = ("sdr_db", "pesq_wb")
_AXES = (("bytes", "parameters, kB", 1e3), ("macs_per_frame", "multiply-accumulates per frame, thousands", 1e3))


def scored(run: Run) -> bool:
    """Whether a rung's folder holds scores."""
    return "enhanced" in child(run.results(), "test")


def row(run: Run, name: str, start: str) -> dict[str, Any]:
    """What result.json says of a scored rung.

    Returns:
      name and start; parameters and bytes (of what is kept, index included), macs_per_frame (on average, where updates
      are skipped), update_rate (measured share of the frames, 1: all); a table with mean, low, high and n per metric;
      steps and seconds of training (absent for a model that was only scored), commit, config_sha256.
    """
    result = run.results()
    model, train, test = child(result, "model"), child(result, "train"), child(result, "test")
    sizes = {key: model.get(key) for key in ("parameters", "bytes", "macs_per_frame", "update_rate")}
    means = {m.key: dict(child(child(test, "enhanced"), m.key)) for m in METRICS}
    spent = {key: train[key] for key in ("steps", "seconds") if key in train}
    origin = {key: result[key] for key in ("commit", "config_sha256") if key in result}
    return {"name": name, "start": start, **sizes, **means, **spent, **origin}


def write(out: Path, plan: Mapping[str, Any]) -> str:
    """Write result.json, table.md and report.html of a ladder.

    Args:
      out: folder of the rungs' folders.
      plan: `rungs`, a list of {"name", "start"} with the foot first; and where the results come from.

    Returns:
      The table in Markdown.
    """
    scores = [(Run(out / word(r, "name")), word(r, "name"), word(r, "start")) for r in children(plan, "rungs")]
    rows = [row(*entry) for entry in scores if scored(entry[0])]
    noisy = next((child(child(run.results(), "test"), "noisy") for run, _, _ in scores if scored(run)), {})
    result = {**plan, "noisy": dict(noisy), "rows": rows}
    table = markdown(result)
    out.mkdir(parents=True, exist_ok=True)
    container.replace(out / "result.json", json.dumps(result, indent=2) + "\n")
    container.replace(out / "table.md", table + "\n")
    container.replace(out / "report.html", render(result))
    return table


def redraw(out: Path) -> str:
    """Write all of them anew, from the plan in result.json and the rungs' folders as they are now.

    Raises:
      ValueError: there is no result.json, or it holds no plan of a ladder.
    """
    result = rundata.read(out).result
    if not children(result, "rungs"):
        raise ValueError(f"{out / 'result.json'}: has no 'rungs', must be that of a ladder")
    return write(out, {key: v for key, v in result.items() if key not in ("rows", "noisy")})


def family(name: str) -> str:
    """What a rung is drawn with: its name up to the first dash.

    >>> family("kron-16"), family("groups")
    ('kron', 'groups')
    """
    return name.partition("-")[0]


# The table


_COLUMNS = (("bytes", "kB"), ("macs_per_frame", "MACs/frame"), ("update_rate", "updates"))


def markdown(result: Table) -> str:
    """The rows as a Markdown table; what is not known is left blank."""
    rows = children(result, "rows")
    head = ["model", "start", "smaller", *(title for _, title in _COLUMNS), *(m.title for m in METRICS), "steps"]
    cells = [["noisy", "", "", "", "", "", *(_mean(child(result, "noisy"), m) for m in METRICS), ""]]
    for at in rows:
        smaller = value(rows[0], "bytes") / value(at, "bytes")
        costs = [f"{smaller:.1f}x", f"{value(at, 'bytes') / 1e3:,.1f}", f"{value(at, 'macs_per_frame'):,.0f}"]
        rate, steps = f"{100 * value(at, 'update_rate'):.0f} %", value(at, "steps")
        scores = [_mean(at, m) for m in METRICS]
        words = [word(at, "name"), "" if at is rows[0] else word(at, "start")]
        cells.append([*words, *costs, rate, *scores, "" if math.isnan(steps) else f"{steps:.0f}"])
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    rule = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [[c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))] for r in [head, *cells]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def _mean(scores: Table, metric: Metric) -> str:
    mean = value(child(scores, metric.key), "mean")
    return "" if math.isnan(mean) else f"{mean:.{metric.digits}f}"


# The page


def render(result: Table) -> str:
    """The report of a ladder as the text of an HTML document."""
    rows = children(result, "rows")
    title = "A ladder of compressed speech denoisers"
    if not rows:
        return page.document(title, page.missing("No rung has been scored yet."), _origin(result))
    return page.document(
        title, _summary(rows), _figures(rows), _table(result, rows), _open(result, rows), _origin(result)
    )


def _summary(rows: Sequence[Table]) -> str:
    foot, others = rows[0], rows[1:]
    size = page.size(value(foot, "bytes"))
    words = f"{word(foot, 'name')} ({size}) stands at the foot; {len(others)} rungs below it were trained from it or "
    words += "from one another and scored on the same pairs. Differences are to the foot, in means over all pairs."
    return element("p", text(words), class_="lead")


def _figures(rows: Sequence[Table]) -> str:
    """SDR and PESQ against bytes and against work; a line per family, the foot as a level."""
    families = list(dict.fromkeys(family(word(at, "name")) for at in rows[1:]))
    styles = {name: f"series{i % 10}" for i, name in enumerate(families)}
    drawings = [_figure(rows, styles, metric, *axis) for metric in METRICS if metric.key in _DRAWN for axis in _AXES]
    keys = [figures.key(style, name) for name, style in styles.items()]
    keys += [figures.key("reference", f"{word(rows[0], 'name')}, as it was")]
    legend = element("div", *keys, class_="key")
    note = "Both costs are those of the whole model, on logarithmic axes. Work counts skipped frames at what they cost."
    panels = element("div", *drawings, class_="panels two")
    return page.section("Quality against cost", legend, panels, element("p", element("small", text(note))))


def _figure(rows: Sequence[Table], styles: Mapping[str, str], metric: Metric, key: str, title: str, unit: float) -> str:
    def line(style: str, some: Sequence[Table], names: Sequence[str]) -> figures.Line:
        some_y = [value(child(at, metric.key), "mean") for at in some]
        return figures.Line(style=style, x=[value(at, key) / unit for at in some], y=some_y, labels=names)

    lines = []
    for name, style in styles.items():
        some = sorted((at for at in rows[1:] if family(word(at, "name")) == name), key=lambda at: value(at, key))
        names = [word(at, "name") for at in some]
        lines.append(line(style, some, [n.removeprefix(f"{name}-") for n in names] if len(names) > 1 else names))
    level = value(child(rows[0], metric.key), "mean")
    ends = [value(at, key) / unit for at in rows]
    lines = [figures.Line(style="reference", x=[min(ends), max(ends)], y=[level, level], dots=False), *lines]
    if not any(line.points() for line in lines):
        return page.missing(f"{metric.name}: no value is defined.")
    alt = f"{metric.name} over {title}, one line per family of rungs; the numbers are in the table below."
    drawing = figures.plot(lines, alt=alt, x_label=title, y_label=metric.title, width=540, log_x=True)
    return element("figure", drawing)


def _table(result: Table, rows: Sequence[Table]) -> str:
    columns = ["Model", "Start", "Parameters", "Bytes", "Smaller", "MACs per frame", "Updates"]
    columns += [*(m.head for m in METRICS), "Training"]
    noisy = page.row("noisy", *[""] * 6, *(_estimate(child(result, "noisy"), m, {}) for m in METRICS), "")
    lines = [noisy, *(_row(at, rows[0]) for at in rows)]
    caption = "Means over the test pairs with their 95\u00a0% intervals; below, the difference to the foot."
    return page.section("Rungs", page.table(caption, columns, lines))


def _row(at: Table, foot: Table) -> str:
    name = word(at, "name")
    head = element("a", text(name), href=f"{name}/report.html")
    cells = [
        "" if at is foot else text(word(at, "start")),
        number(value(at, "parameters")),
        text(page.size(value(at, "bytes"))),
        text(number(value(foot, "bytes") / value(at, "bytes"), 1) + "×"),
        number(value(at, "macs_per_frame")),
        text(number(100 * value(at, "update_rate")) + " %"),
        *(_estimate(at, m, {} if at is foot else foot) for m in METRICS),
        "scored only" if "steps" not in at else _training(at),
    ]
    return page.row(head, *cells)


def _training(at: Table) -> str:
    spent = element("small", text(page.duration(value(at, "seconds"))))
    return text(f"{number(value(at, 'steps'))} steps") + spent


def _estimate(at: Table, metric: Metric, foot: Table) -> str:
    """Mean, interval, and the difference to the foot's mean, if given."""
    cell = child(at, metric.key)
    mean, low, high = (value(cell, key) for key in ("mean", "low", "high"))
    notes = [f"{number(low, metric.digits)} to {number(high, metric.digits)}"]
    if foot:
        notes += [number(mean - value(child(foot, metric.key), "mean"), metric.digits, signed=True)]
    return text(number(mean, metric.digits)) + "".join(element("small", text(note)) for note in notes)


def _open(result: Table, rows: Sequence[Table]) -> str:
    """Name the rungs that have no scores yet."""
    done = {word(at, "name") for at in rows}
    names = [word(at, "name") for at in children(result, "rungs") if word(at, "name") not in done]
    return page.missing(f"Not scored yet: {', '.join(names)}.") if names else ""


def _origin(result: Table) -> str:
    titles = (("command", "Command"), ("commit", "Commit"), ("config_sha256", "Config SHA-256"))
    pairs = [(title, element("code", text(word(result, key) or "not recorded"))) for key, title in titles]
    return page.section("How to repeat it", page.facts(pairs))
