"""Stage `eval`: a model is scored on pairs, as a stream would enhance them."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rnnc import container, cost
from rnnc.audio import io, metrics
from rnnc.audio.io import Pair
from rnnc.export import model as export
from rnnc.recipes.console import Reporter
from rnnc.recipes.run import Run, load_model
from rnnc.recipes.runner import Runner

Scores = list[dict[str, Any]]
EXAMPLES = 3  # of the scored pairs, from the lowest SNR to the highest


def evaluate(
    run: Run, model: Path, load: Callable[[int], list[Pair]], origin: dict[str, Any], reporter: Reporter
) -> None:
    """Score a model; result.json and the examples of the run folder tell how it did.

    Args:
      run: where the results go.
      model: the model's file.
      load: rate in Hz -> the pairs to score it on, at that rate.
      origin: what else to note with the scores.
      reporter: told how far it is, and the means.
    """
    enhancer, meta = load_model(model)
    runner = Runner(enhancer)
    test = score(run, load(runner.rate_hz), runner, runner.rate_hz, runner.how, reporter)
    known = {k: meta[k] for k in ("commit", "config_sha256", "command", "seed") if k in meta}
    run.update(**{**known, "model": size(model, runner.update_rate), "test": {**test, **origin}})


def score(
    run: Run,
    pairs: list[Pair],
    enhance: Callable[[np.ndarray], np.ndarray],
    rate_hz: int,
    how: str,
    reporter: Reporter,
    noisy: Scores | None = None,
) -> dict[str, Any]:
    """Enhance and score pairs; writes the examples of the run folder, returns the section `test` of its result.json.

    Args:
      run: where the examples go.
      pairs: at `rate_hz`.
      enhance: noisy signals [channels, n] -> enhanced ones.
      rate_hz: rate of all sound.
      how: what enhances, in words.
      reporter: told how far it is, and the means.
      noisy: what `scored` gave for the noisy sound; None: it is scored here.
    """
    enhanced = []
    for i, pair in enumerate(pairs):
        enhanced.append(enhance(pair.noisy[None])[0])
        reporter.progress("enhancing", i + 1, len(pairs), how)
    scores = {"noisy": noisy or scored(pairs, [pair.noisy for pair in pairs], "noisy", reporter)}
    scores["enhanced"] = scored(pairs, enhanced, "enhanced", reporter)
    run.folder.mkdir(parents=True, exist_ok=True)
    section = {**_summary(pairs, scores), "computed_by": how}
    _examples(run, pairs, enhanced, scores, rate_hz)
    for name in ("noisy", "enhanced", "gain"):
        row = "  ".join(f"{m} {section[name][m]['mean']:.3f}" for m in metrics.METRICS if section[name][m]["n"])
        reporter.say(f"{name:9s} {row}")
    return section


def scored(pairs: list[Pair], signals: list[np.ndarray], what: str, reporter: Reporter) -> Scores:
    """The metrics of a signal for each pair."""
    both = list(zip([pair.clean for pair in pairs], signals))
    return metrics.score_many(both, on_progress=lambda done, of: reporter.progress(f"scoring {what}", done, of))


def _summary(pairs: list[Pair], scores: dict[str, Scores]) -> dict[str, Any]:
    """Means with intervals over all pairs (by speaker where known), the paired gain, and means per SNR."""
    named = [pair.speaker for pair in pairs]
    speakers = None if None in named else named
    table: dict[str, dict[str, Any]] = defaultdict(dict)
    for metric in metrics.METRICS:
        noisy, enhanced = ([row[metric] for row in scores[name]] for name in ("noisy", "enhanced"))
        gain = [_difference(e, n) for e, n in zip(enhanced, noisy)]
        for name, values in (("noisy", noisy), ("enhanced", enhanced), ("gain", gain)):
            table[name][metric] = metrics.summarise(values, speakers)
    per_snr = []
    for snr_db in sorted({pair.snr_db for pair in pairs if pair.snr_db is not None}):
        at = [i for i, pair in enumerate(pairs) if pair.snr_db == snr_db]
        means = {n: {m: _mean([rows[i][m] for i in at]) for m in metrics.METRICS} for n, rows in scores.items()}
        per_snr.append({"snr_db": snr_db, "n": len(at), **means})
    return {**table, "per_snr": per_snr}


def _difference(a: Any, b: Any) -> Any:
    undefined = next((x for x in (a, b) if isinstance(x, metrics.Undefined)), None)
    return undefined or a - b


def _mean(values: list[Any]) -> float | None:
    defined = [v for v in values if not isinstance(v, metrics.Undefined)]
    return float(np.mean(defined)) if defined else None


def _examples(
    run: Run,
    pairs: list[Pair],
    enhanced: list[np.ndarray],
    scores: dict[str, Scores],
    rate_hz: int,
) -> None:
    """A few pairs as sound, spread over the SNRs."""
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i].snr_db or 0.0, i))
    count = min(EXAMPLES, len(order))
    chosen = [order[round((k + 0.5) * len(order) / count - 0.5)] for k in range(count)]
    run.examples.mkdir(parents=True, exist_ok=True)
    table = []
    for i in chosen:
        pair, name = pairs[i], pairs[i].id.replace("/", "_")
        for kind, x in (("noisy", pair.noisy), ("enhanced", enhanced[i]), ("clean", pair.clean)):
            io.write(run.examples / f"{name}.{kind}.flac", x, rate_hz)
        rows = {k: {m: _mean([rows[i][m]]) for m in metrics.METRICS} for k, rows in scores.items()}
        table.append({"name": name, "snr_db": pair.snr_db, **rows})
    container.replace(run.examples / "examples.json", json.dumps(table, indent=2) + "\n")


def size(file: Path, update_rate: float = 1.0) -> dict[str, Any]:
    """Section `model` of result.json for a model's file; `update_rate` is the measured share of updates.

    Bytes of a model in integers are those that its C takes, without the front end.
    """
    arrays, meta = container.read(file)
    enhancer = load_model(file)[0]
    model = enhancer.model
    numbers = {name: a.astype(np.float32) for name, a in arrays.items()}
    summary = cost.summary(model, numbers, tuple(meta.get("pruned", ())), update_rate)
    layers = [
        {**dataclasses.asdict(layer), "bytes": layer.bytes, "ram_bytes": layer.ram_bytes}
        for layer in cost.layers(model, update_rate)
    ]
    if model.formats:
        chip = export.network_sizes(enhancer)
        for layer, found in zip(layers, chip, strict=True):
            layer |= {"bytes": found.flash, "ram_bytes": found.state + found.scratch}
        ram = sum(found.state for found in chip) + max(found.scratch for found in chip)
        summary |= {"bytes": sum(found.flash for found in chip), "ram_bytes": ram}
    return {
        "name": f"{' + '.join(map(str, model.units))} {model.cell}" + (", integers" if model.formats else ""),
        **summary,
        "frames_per_second": model.rate_hz / model.stft.hop,
        "layers": layers,
    }
