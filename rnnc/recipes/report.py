"""One run folder -> one HTML file that explains the run to a reader who has nothing else.

The page is self-contained: figures and sounds are inside it, and it loads nothing. It is a function of the
folder alone, so the same folder gives the same bytes. What the folder does not hold is said in the place
where it would be.
"""

import base64
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rnnc.recipes import figures, page, rundata, scores
from rnnc.recipes.page import element, number, text
from rnnc.recipes.rundata import Run, Table, child, children, value, word

MAX_BYTES = 4_800_000
"""Size that the page stays below: examples that would cross it are named instead of shown."""

_MAX_CURVE = 400  # points of a training curve; a longer one is averaged
_MAX_LISTED = 200  # skipped files and events named one by one
_VERSIONS = ("noisy", "enhanced", "clean")


def write(run: Path) -> Path:
    """Render `run/report.html` from a run folder, replacing an older one atomically.

    Args:
        run: folder with result.json and, where the run got that far, config.toml, log.jsonl and examples/.

    Returns:
        The path of the report.

    Raises:
        ValueError: the folder is missing, or result.json or examples.json is not what it should be.
    """
    content = rundata.read(run)
    target = run / "report.html"
    draft = run / f".report.{os.getpid()}.tmp"
    try:
        draft.write_text(render(content), encoding="utf-8")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def render(run: Run) -> str:
    """Return the report of a run as the text of an HTML document."""
    name = word(child(run.result, "model"), "name") or run.folder.resolve().name
    before = [
        _summary(run),
        _origin(run),
        _learning(run),
        scores.overall(run.result),
        scores.per_snr(run.result),
    ]
    after = [_model(run.result), _skipped(run.result), _config(run.config)]
    room = MAX_BYTES - sum(len(part.encode()) for part in [*before, *after]) - 20_000
    return page.document(f"{name}: report on a speech denoiser", *before, _examples(run, room), *after)


# What the run is and what came out


def _summary(run: Run) -> str:
    sentences = [
        *_size_sentences(run.result),
        *_train_sentences(run.result),
        *scores.gain_sentences(run.result),
    ]
    if not sentences:
        return page.missing("This run has recorded neither a model, nor a training, nor a test.")
    return element("p", text(" ".join(sentences)), class_="lead")


def _size_sentences(result: Table) -> Iterator[str]:
    model = child(result, "model")
    if model:
        yield (
            f"This recurrent network removes noise from speech. It has {number(value(model, 'parameters'))} "
            f"parameters in {page.size(value(model, 'bytes'))} and computes "
            f"{number(_mmac_per_s(model), 2)} million multiply-accumulates per second of sound."
        )


def _train_sentences(result: Table) -> Iterator[str]:
    train = child(result, "train")
    if train:
        spent = page.duration(value(train, "seconds"))
        yield f"It was trained for {number(value(train, 'steps'))} steps in {spent}."
    if not math.isnan(value(train, "best_step")):
        yield f"The weights of step {number(value(train, 'best_step'))} did best in validation."


def _origin(run: Run) -> str:
    """Say how to repeat the run, and how the training went."""
    names = (
        ("command", "Command"),
        ("seed", "Seed"),
        ("commit", "Commit"),
        ("config_sha256", "Config SHA-256"),
    )
    pairs = [(title, _code(word(run.result, key))) for key, title in names]
    train = child(run.result, "train")
    if train:
        speed = number(value(train, "frames_per_s"))
        spent = page.duration(value(train, "seconds"))
        best = number(value(train, "best_step"))
        steps = number(value(train, "steps"))
        pairs += [("Training", text(f"{steps} steps in {spent}, {speed} frames/s; best step {best}"))]
    else:
        pairs += [("Training", text("result.json has no section “train”."))]
    return page.section("How to repeat it", page.facts(pairs))


def _code(words: str) -> str:
    return element("code", text(words)) if words else text("not recorded")


# Learning


def _learning(run: Run) -> str:
    if run.log is None:
        return page.section("Learning", page.missing("The run folder has no log.jsonl."))
    best = value(child(run.result, "train"), "best_step")
    mark = None if math.isnan(best) else best
    parts = [element("div", *_curves(run.log, mark), class_="panels two"), _log_notes(run.log)]
    return page.section("Learning", *parts)


def _curves(log: rundata.Log, best: float | None) -> Iterator[str]:
    train, valid = log.train, log.valid
    lines = [_averaged("train", [value(r, "step") for r in train], [value(r, "loss") for r in train])]
    lines += [_validation("enhanced", valid, "loss")]
    keys = (("train", "training"), ("enhanced", "validation"))
    yield _curve_panel("Loss", lines, keys, best)
    lines = [_validation("enhanced", valid, "si_sdr_db"), _validation("noisy", valid, "noisy_si_sdr_db")]
    keys = (("enhanced", "enhanced"), ("noisy", "noisy input"))
    yield _curve_panel("SI-SDR in validation, dB", lines, keys, best)


def _curve_panel(title: str, lines: list[figures.Line], keys: Sequence[tuple[str, str]], best: float | None) -> str:
    if not any(line.points() for line in lines):
        return page.missing(f"{title}: log.jsonl holds no value of it.")
    ends = [
        f"{name} ends at {number(line.points()[-1][1], 3)}" for line, (_, name) in zip(lines, keys) if line.points()
    ]
    alt = f"{title} over training steps: {', '.join(ends)}."
    drawing = figures.plot(lines, alt=alt, x_label="step", y_label=title, x_from=0, best=best)
    legend = [figures.key(*pair) for line, pair in zip(lines, keys) if line.points()]
    return element("figure", drawing, element("div", *legend, class_="key"))


def _validation(style: str, records: Sequence[Table], key: str) -> figures.Line:
    steps = [value(record, "step") for record in records]
    values = [value(child(record, "valid"), key) for record in records]
    return figures.Line(style=style, x=steps, y=values, dots=style == "enhanced" and len(steps) <= 60)


def _averaged(style: str, x: list[float], y: list[float]) -> figures.Line:
    """Return a curve of at most _MAX_CURVE points: means over runs of neighbours."""
    if len(x) > _MAX_CURVE:
        x, y = ([float(np.mean(part)) for part in np.array_split(v, _MAX_CURVE)] for v in (x, y))
    return figures.Line(style=style, x=x, y=y, dots=False)


def _log_notes(log: rundata.Log) -> str:
    notes = []
    if len(log.train) > _MAX_CURVE:
        notes += [f"The training curve shows {_MAX_CURVE} averages over {number(len(log.train))} log lines."]
    if log.broken:
        notes += [f"Left out: {log.broken} line{'s' * (log.broken > 1)} of log.jsonl that could not be read."]
    told = [_event(event) for event in log.events[:_MAX_LISTED]]
    if told:
        notes += [f"Events: {'; '.join(told)}{'; …' if len(log.events) > len(told) else ''}."]
    return element("p", element("small", text(" ".join(notes)))) if notes else ""


def _event(record: Table) -> str:
    step = value(record, "step")
    return word(record, "event") + ("" if math.isnan(step) else f" (step {number(step)})")


# Examples


def _examples(run: Run, room: int) -> str:
    """Show examples while they fit into `room` bytes; name the others.

    Sounds go in as the FLAC files they are: every current browser plays them, they are lossless, and smaller
    than WAV, so more of them fit.
    """
    if not run.examples:
        return page.section("Examples", page.missing("The run folder has no examples/examples.json."))
    lead = (
        "Spectrograms of 32 ms Hann windows. Within an example all three share one colour scale: 0 dB is the "
        "loudest point of the three. The players hold the run’s own FLAC files, lossless as written."
    )
    shown, left = [], []
    for example in run.examples:
        block = _example(run.folder / "examples", example)
        if len(block) <= room:
            shown += [block]
            room -= len(block)
        else:
            left += [word(example, "name")]
    note = [page.missing(f"Left out, to keep this file small: {', '.join(left)}.")] if left else []
    return page.section("Examples", element("p", text(lead)), figures.colour_scale(), *shown, *note)


def _example(folder: Path, example: Table) -> str:
    name = word(example, "name")
    sounds = {version: rundata.sound(folder / f"{name}.{version}.flac") for version in _VERSIONS}
    powers = {v: figures.power(s.audio, s.rate_hz) for v, s in sounds.items() if isinstance(s, rundata.Sound)}
    peak = max((float(linear.max()) for linear in powers.values()), default=1.0)
    panels = [_panel(name, version, sounds[version], powers.get(version), peak) for version in _VERSIONS]
    metrics = scores.known(child(example, "noisy"), child(example, "enhanced"))
    parts = [
        element("h3", text(f"{name}, {scores.snr_name(example)} input SNR")),
        element("div", *panels, class_="panels"),
    ]
    if metrics:
        parts += [_example_table(example, metrics)]
    return element("div", *parts, class_="example")


def _example_table(example: Table, metrics: Sequence[scores.Metric]) -> str:
    versions = [(version, child(example, version)) for version in ("noisy", "enhanced")]
    rows = [page.row(v, *(number(value(t, m.key), m.digits) for m in metrics)) for v, t in versions if t]
    return page.table(f"Metrics of {word(example, 'name')}.", ["Signal", *(m.head for m in metrics)], rows)


def _panel(name: str, version: str, sound: rundata.Sound | str, linear: np.ndarray | None, peak: float) -> str:
    if isinstance(sound, str) or linear is None:
        return page.missing(f"{version}: {sound}")
    seconds = sound.audio.size / sound.rate_hz
    alt = f"spectrogram of {name}, {version}, {seconds:.1f} s"
    drawing = figures.spectrogram(linear, peak=peak, seconds=seconds, rate_hz=sound.rate_hz, alt=alt)
    source = "data:audio/flac;base64," + base64.b64encode(sound.file).decode()
    player = element("audio", controls="controls", preload="metadata", src=source, aria_label=f"{name}, {version}")
    return element("figure", element("figcaption", version), drawing, player)


# Model, skipped files, configuration


def _mmac_per_s(model: Table) -> float:
    return value(model, "macs_per_frame") * value(model, "frames_per_second") / 1e6


_COSTS = (
    ("parameters", "Parameters"),
    ("bytes", "Bytes"),
    ("macs", "MACs per frame"),
    ("elementwise", "Elementwise ops"),
    ("ram_bytes", "RAM, bytes"),
)


def _model(result: Table) -> str:
    model = child(result, "model")
    if not model:
        return page.section("Model", page.missing("result.json has no section “model”."))
    pairs = [
        ("Parameters", number(value(model, "parameters"))),
        ("Weights", f"{number(value(model, 'bytes'))} bytes"),
        ("Work", f"{number(value(model, 'macs_per_frame'))} multiply-accumulates (MACs) per frame"),
        ("Frame rate", f"{number(value(model, 'frames_per_second'), 2)} frames/s"),
        ("Load", f"{number(_mmac_per_s(model), 2)} MMAC/s"),
    ]
    return page.section("Model", page.facts([(term, text(words)) for term, words in pairs]), _layers(model))


def _layers(model: Table) -> str:
    layers = children(model, "layers")
    if not layers:
        return page.missing("result.json lists no layers.")
    totals = {key: sum(v for layer in layers if not math.isnan(v := value(layer, key))) for key, _ in _COSTS}
    rows = [page.row(_layer_name(layer), *_cost_cells(layer, totals)) for layer in layers]
    foot = page.row("Sum of layers", *(number(totals[key]) for key, _ in _COSTS))
    caption = "Cost per layer. Bars show the share of the sum."
    return page.table(caption, ["Layer", *(title for _, title in _COSTS)], rows, foot)


def _layer_name(layer: Table) -> str:
    shape = word(layer, "shape").replace("->", "→")
    return text(word(layer, "name")) + element("small", text(f"{word(layer, 'kind')} {shape}".strip()))


def _cost_cells(layer: Table, totals: Mapping[str, float]) -> Iterator[str]:
    for key, _ in _COSTS:
        count = value(layer, key)
        bar = ""
        if key in ("parameters", "bytes", "macs") and totals[key] > 0 and not math.isnan(count):
            percent = 100 * count / totals[key]
            bar = element("small", text(f"{number(percent, 1)} %"))
            bar += element("span", element("span", style=f"width:{percent:.1f}%"), class_="share", aria_hidden="true")
        yield text(number(count)) + bar


def _skipped(result: Table) -> str:
    title = "Skipped files"
    if "skipped" not in result:
        return page.section(title, page.missing("result.json has no section “skipped”."))
    files = children(result, "skipped")
    if not files:
        return page.section(title, element("p", text("None: every file was used.")))
    named = files[:_MAX_LISTED]
    rows = [
        element(
            "tr",
            element("th", _code(word(f, "path")), scope="row"),
            element("td", text(word(f, "reason")), class_="text"),
        )
        for f in named
    ]
    caption = f"{number(len(files))} file{'s' * (len(files) > 1)} skipped" + (
        "" if len(files) == len(named) else f", the first {len(named)} listed"
    )
    return page.section(title, page.table(caption + ".", ["File", "Reason"], rows, words=2))


def _config(config: str | None) -> str:
    if config is None:
        return page.section("Configuration", page.missing("The run folder has no config.toml."))
    inner = element("summary", text("config.toml, complete")) + element("pre", element("code", text(config)))
    return page.section("Configuration", element("details", inner))
