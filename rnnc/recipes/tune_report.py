"""What came out of a study: result.json and report.html, with its history, what mattered, and every trial."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rnnc import container
from rnnc.recipes import figures, page, rundata
from rnnc.recipes.page import element, number, text
from rnnc.recipes.rundata import Table, child, children, value, word
from rnnc.search.importance import importance
from rnnc.search.settings import Outcome, Result
from rnnc.search.space import Space

_WIDTH, _HEIGHT, _TOP, _BOTTOM, _SIDE = 760, 300, 34, 28, 60  # of the parallel coordinates, px
_HUES = 4  # quarters of the trials by score, each in a colour


def write(out: Path, space: Space, result: Result, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Write result.json and report.html of a study; returns the former.

    Args:
      out: folder.
      space: what was searched.
      result: its trials.
      origin: commit, command, seconds.
    """
    done = [o for o in result.outcomes if o.trial.state == "done" and o.trial.level >= 1]
    inside = [{k: v for k, v in o.configuration.items() if k in space.names} for o in done]
    shares = importance(space, inside, [o.value if result.maximise else -o.value for o in done])
    best = result.best
    train = shlex.join(
        ["python", "-m", "rnnc.recipes.enhance", "--config", str(out / "best.toml"), "--out", "runs/tuned"]
    )
    table = {
        **origin,
        "train": train,
        "best": None if best is None else {"number": best.trial.number, "value": best.value, **_about(best)},
        "history": [None if math.isnan(v) else v for v in result.history()],
        "importance": shares,
        "axes": _axes(space),
        "trials": [_trial(o, space) for o in result.outcomes],
    }
    out.mkdir(parents=True, exist_ok=True)
    container.replace(out / "result.json", json.dumps(table, indent=2) + "\n")
    container.replace(out / "report.html", render(table))
    return table


def redraw(out: Path) -> dict[str, Any]:
    """Draw report.html anew from result.json; returns that.

    Raises:
      ValueError: there is no result.json, or it is not that of a study.
    """
    result = dict(rundata.read(out).result)
    if "trials" not in result:
        raise ValueError(f"{out / 'result.json'}: has no 'trials', must be that of a study")
    container.replace(out / "report.html", render(result))
    return result


def _about(outcome: Outcome) -> dict[str, Any]:
    return {"configuration": outcome.configuration, "metrics": dict(outcome.trial.metrics)}


def _trial(outcome: Outcome, space: Space) -> dict[str, Any]:
    trial = outcome.trial
    places = {
        p.name: p.values.place(outcome.configuration[p.name])
        for p in space.parameters
        if p.name in outcome.configuration
    }
    seconds = None if trial.began is None or trial.ended is None else trial.ended - trial.began
    told = {
        k: getattr(trial, k)
        for k in ("number", "batch", "origin", "state", "value", "reason", "level", "parent", "starts")
    }
    return {**told, "seconds": seconds, "places": places, **_about(outcome)}


def _axes(space: Space) -> list[dict[str, str]]:
    """Name, lowest and highest value of each parameter, as words."""
    import numpy as np

    ends = [p.values.at(np.array([0.0, 1 - 1e-9])) for p in space.parameters]
    return [{"name": p.name, "low": short(low), "high": short(high)} for p, (low, high) in zip(space.parameters, ends)]


def short(given: Any) -> str:
    """A value in a few characters.

    >>> short(0.00123456), short([32, 32]), short({"kind": "kron", "target_ratio": 4})
    ('0.00123', '[32, 32]', 'kron target_ratio=4')
    """
    if isinstance(given, float):
        return f"{given:.3g}"
    if isinstance(given, dict):
        rest = [f"{k}={short(v)}" for k, v in given.items() if k != "kind"]
        return " ".join([str(given["kind"])] * ("kind" in given) + rest)
    return str(given)


# The page


def render(result: Table) -> str:
    """The report of a study as the text of an HTML document."""
    trials = children(result, "trials")
    return page.document(
        "A study of hyper-parameters",
        _summary(result, trials),
        page.section("History", _history(trials)),
        page.section("What mattered", _importance(result)),
        page.section("Parallel coordinates", _parallel(result, trials)),
        page.section("Trials", _table(result, trials)),
        page.section("How to repeat it", _origin(result)),
    )


def _summary(result: Table, trials: Sequence[Table]) -> str:
    failed = sum(word(t, "state") == "failed" for t in trials)
    words = f"{len(trials)} trials, {failed} of them failed. "
    best = child(result, "best")
    if not best:
        return element("p", text(words + "None has a score yet."), class_="lead")
    first = next((t for t in _full(trials) if "first" in (word(t, "origin"), word(_root(t, trials), "origin"))), None)
    words += (
        f"Best: trial {number(value(best, 'number'))} with {number(value(best, 'value'), 3)} dB SI-SDR on validation"
    )
    if first is not None and first.get("value") is not None:
        gain = value(best, "value") - value(first, "value")
        words += f", {number(gain, 3, signed=True)} dB to the recipe as it was ({number(value(first, 'value'), 3)} dB)"
    rows = [page.row(element("code", text(name)), text(short(v))) for name, v in child(best, "configuration").items()]
    command = element("pre", text(word(result, "train")))
    lead, values = element("p", text(words + "."), class_="lead"), page.table("The best values", ["Key", "Value"], rows)
    return lead + values + element("p", "Train it:") + command


def _full(trials: Sequence[Table]) -> list[Table]:
    """Those with a score at full effort: only these can be compared."""
    return [t for t in trials if t.get("value") is not None and value(t, "level") >= 1]


def _root(trial: Table, trials: Sequence[Table]) -> Table:
    """The trial that one promoted began as."""
    while trial.get("parent") is not None:
        trial = next(t for t in trials if value(t, "number") == value(trial, "parent"))
    return trial


def _history(trials: Sequence[Table]) -> str:
    """Scores by trial, and the best so far; with halving those at full effort."""
    done = [(value(t, "number"), value(t, "value")) for t in _full(trials)]
    if not done:
        return page.missing("No trial has a score at full effort.")
    best, line = -math.inf, []
    for n, v in done:
        best = max(best, v)
        line.append((n, best))
    lines = [
        figures.Line(style="enhanced", x=[n for n, _ in line], y=[v for _, v in line], dots=False),
        *(figures.Line(style="series7", x=[n], y=[v]) for n, v in done),
    ]
    keys = element("div", figures.key("enhanced", "best so far"), figures.key("series7", "a trial"), class_="key")
    alt = "validation SI-SDR by trial, and the best so far; the numbers are in the table below"
    return keys + element("figure", figures.plot(lines, alt=alt, x_label="trial", y_label="SI-SDR, dB", width=620))


def _importance(result: Table) -> str:
    shares = sorted(child(result, "importance").items(), key=lambda item: -float(str(item[1])))
    rows = [
        page.row(text(name), number(100 * float(str(share)), 1) + " %" + _bar(float(str(share))))
        for name, share in shares
    ]
    return page.table("Share of the score's expected variance that each key explains alone.", ["Key", "Share"], rows)


def _bar(share: float) -> str:
    return element("span", element("span", style=f"width:{100 * share:.1f}%"), class_="share")


def _parallel(result: Table, trials: Sequence[Table]) -> str:
    """A line for each trial across an axis for each key, and the score; the best quarter in the first colour."""
    axes = children(result, "axes")
    done = sorted(_full(trials), key=lambda t: value(t, "value"))
    if not done:
        return page.missing("No trial has a score at full effort.")
    low, high = value(done[0], "value"), value(done[-1], "value")
    names = [word(a, "name") for a in axes]
    step = (_WIDTH - 2 * _SIDE) / max(len(names), 1)
    parts = []
    for i, axis in enumerate([*axes, {"name": "SI-SDR", "low": f"{low:.2f}", "high": f"{high:.2f}"}]):
        x = _SIDE + i * step
        parts.append(element("line", class_="axis", x1=x, y1=_TOP, x2=x, y2=_HEIGHT - _BOTTOM))
        label = word(axis, "name").rpartition(".")[2]
        for y, words in (
            (12 + 0 * i, label),
            (_TOP - 6, word(axis, "high")),
            (_HEIGHT - _BOTTOM + 14, word(axis, "low")),
        ):
            parts.append(element("text", text(words), x=round(x, 1), y=y, text_anchor="middle"))
    for rank, trial in enumerate(done):  # the best is drawn last, on top
        places = {**child(trial, "places"), "": (value(trial, "value") - low) / ((high - low) or 1.0)}
        points = [(_SIDE + i * step, places[n]) for i, n in enumerate([*names, ""]) if n in places]
        path = " ".join(
            f"{x:.1f},{_HEIGHT - _BOTTOM - float(str(u)) * (_HEIGHT - _TOP - _BOTTOM):.1f}" for x, u in points
        )
        quarter = _HUES - 1 - rank * _HUES // len(done)
        style = ("enhanced", "series2", "series4", "train")[quarter]
        parts.append(element("polyline", class_=f"curve {style}", points=path))
    alt = "each trial as a line across its values; the numbers are in the table below"
    keys = [("enhanced", "best quarter"), ("series2", "second"), ("series4", "third"), ("train", "last")]
    legend = element("div", *(figures.key(style, label) for style, label in keys), class_="key")
    drawing = element(
        "svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=alt, style="max-width:none"
    )
    return legend + element("figure", drawing)


def _table(result: Table, trials: Sequence[Table]) -> str:
    names = [word(a, "name") for a in children(result, "axes")]
    rows = []
    for trial in trials:
        configuration, metrics = child(trial, "configuration"), child(trial, "metrics")
        score = (
            number(value(trial, "value"), 3)
            if trial.get("value") is not None
            else word(trial, "reason") or word(trial, "state")
        )
        size = value(metrics, "bytes")
        cells = [
            text(score),
            text(word(trial, "origin")),
            *(text(short(configuration[n])) if n in configuration else "" for n in names),
            "" if math.isnan(size) else text(page.size(size)),
            text(page.duration(value(trial, "seconds"))),
        ]
        rows.append(page.row(number(value(trial, "number")), *cells))
    columns = ["Trial", "SI-SDR, dB", "Origin", *(text(n) for n in names), "Bytes", "Time"]
    return page.table("All trials in their order; one that failed tells why.", columns, rows)


def _origin(result: Table) -> str:
    pairs = [
        (t, element("code", text(word(result, k) or "not recorded")))
        for k, t in (("command", "Command"), ("commit", "Commit"))
    ]
    return page.facts(pairs)
