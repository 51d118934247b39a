"""Train a speech denoiser, score it, listen to it: `python -m rnnc.recipes.enhance [train|eval|denoise|export|report]`.

Bare, it does the whole job on a corpus that it makes on the spot: training, scoring, report.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from rnnc import config as configs
from rnnc.audio import data, io, metrics
from rnnc.audio.data import Data, Sources
from rnnc.audio.io import Pair
from rnnc.audio.mix import Mix
from rnnc.compress import factor
from rnnc.compress.affine import Affine
from rnnc.compress.groups import Groups
from rnnc.compress.prune import Magnitude, Pruner
from rnnc.compress.quantise import Quantise, calibrated
from rnnc.config import ConfigError
from rnnc.model import Enhancer, Model
from rnnc.recipes import console, machine, report
from rnnc.recipes.console import Reporter, duration
from rnnc.recipes.denoise import denoise
from rnnc.recipes.evaluate import evaluate, size
from rnnc.recipes.export import export
from rnnc.recipes.run import Run, commit, load_model, save_model
from rnnc.train import loop
from rnnc.train.loop import Train
from rnnc.train.loss import Loss

OUT, READY = "runs/enhance", "tinylstm-int8"
STAGES = ("train", "eval", "denoise", "export", "report")
RECIPES = (Path(__file__).parent / "toml", Path(__file__).parents[2] / "recipes")  # in a wheel, in a checkout
MODELS = (Path(__file__).parent / "models",)


@dataclass(frozen=True, kw_only=True)
class Enhance:
    """Everything that decides a run. The defaults do the whole job in a few minutes on two cores.

    Args:
      seed: of the weights, the corpus, the splits and the mixtures.
      start: a model file, or the name of a shipped one, whose weights the training starts from; structures may differ.
      prune: how weights are made fewer in training, if at all.
      quantise: how numbers are made integers before training, if at all; ranges are read off mixtures of it.
      data, mix, model, loss, train: see there.
    """

    seed: int = 0
    start: str = ""
    data: Data = Data()
    mix: Mix = Mix()
    model: Model = Model()
    loss: Loss = Loss()
    train: Train = Train()
    prune: Magnitude | Groups | Affine | None = None
    quantise: Quantise | None = None

    def __post_init__(self) -> None:
        if self.prune is not None and not self.prune.end < self.train.steps:
            raise ValueError(f"prune.end: is {self.prune.end}, must be below train.steps = {self.train.steps}")
        if self.quantise and self.quantise.reread and not self.quantise.reread[-1] < self.train.steps:
            last = self.quantise.reread[-1]
            raise ValueError(f"quantise.reread: ends with {last}, must be below train.steps = {self.train.steps}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: is {self.seed}, must be 0 to {2**31 - 1}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    return console.status(lambda reporter: _dispatch(args, argv, reporter))


def _dispatch(args: argparse.Namespace, argv: Sequence[str] | None, reporter: Reporter) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    run = Run(args.out)
    model = _model(args.model) if args.model else run.model
    if args.stage == "denoise":
        ready = model.exists() or args.out != Path(OUT)  # without a training of one's own, the shipped model
        return denoise(args.paths, model if ready else _model(READY), reporter)
    if args.stage == "export" and not args.paths:
        return export(args.out if args.model else run.folder / "firmware", model, reporter)
    if args.paths:
        raise ConfigError(f"{args.stage or 'enhance'}: does not take {args.paths[0]!r}; stages are {', '.join(STAGES)}")
    if args.stage == "report":
        return _report(run, reporter)
    config = _config(args, run)
    if args.stage == "eval":
        evaluate(run, model, partial(_pairs, config, reporter), _about(config, words), reporter)
        return _report(run, reporter)
    sources = train(config, run, args.resume, reporter, _command(words))
    if args.stage is None:
        evaluate(run, run.model, lambda rate_hz: sources.test, _about(config, words), reporter)
    return _report(run, reporter)


def _report(run: Run, reporter: Reporter) -> None:
    reporter.say(f"report: {report.write(run.folder)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.enhance",
        description="Train a recurrent speech denoiser, score it and listen to it. Without a stage: the whole job "
        "(corpus, training, scoring, report); without folders: on a corpus made on the spot.",
        epilog="denoise IN OUT: a file or a folder of WAV, FLAC or Ogg files, any rate, any number of channels; by the "
        f"model of --out, or the shipped {READY} where there is none. A model in integers runs as C.",
    )
    parser.add_argument("stage", nargs="?", choices=STAGES, help="one stage alone")
    parser.add_argument("paths", nargs="*", help="denoise: input and output, two files or two folders")
    options(parser, OUT)
    parser.add_argument("--model", metavar="FILE", help="eval, denoise, export: a model file or a shipped one")
    return parser


def options(parser: argparse.ArgumentParser, out: str) -> None:
    """Add what every recipe on sound takes: its configuration, folders of sound, and where the run goes."""
    parser.add_argument(
        "--config", metavar="FILE.toml", help="a recipe, or the name of a shipped one (smoke, tinylstm)"
    )
    parser.add_argument("--set", metavar="A.B=VALUE", action="append", default=[], help="override one key")
    parser.add_argument("--speech", metavar="DIR", action="append", default=[], help="training speech (repeatable)")
    parser.add_argument("--noise", metavar="DIR", action="append", default=[], help="training noise (repeatable)")
    parser.add_argument("--rir", metavar="DIR", action="append", default=[], help="room impulse responses (repeatable)")
    parser.add_argument("--valid", metavar="DIR", help="folder with clean/ and noisy/ to choose the model on")
    parser.add_argument("--pairs", metavar="DIR", help="folder with clean/ and noisy/ to score the model on")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path(out), help="run folder (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")


def _config(args: argparse.Namespace, run: Run) -> Enhance:
    """Recipe, then --set, then folders. Without a recipe, `eval` and `--resume` take the run's own configuration."""
    given = recipe(args.config) if args.config else None
    if given is None and (args.stage == "eval" or args.resume) and run.config.exists():
        given = run.config
    return configs.build(Enhance, table(args, given))


def table(args: argparse.Namespace, given: Path | None) -> dict[str, Any]:
    """A recipe's table, --set laid over it, then the folders of sound; see `options`."""
    merged = configs.merge(configs.read(given) if given else {}, tuple(args.set))
    section = merged.setdefault("data", {})
    if isinstance(section, dict):
        section.update({k: v for k in ("speech", "noise", "rir", "valid", "pairs") if (v := getattr(args, k))})
    return merged


def recipe(name: str) -> Path:
    return shipped("--config", name, ".toml", RECIPES)


def _model(name: str) -> Path:
    return shipped("--model", name, ".rnnc", MODELS)


def shipped(option: str, name: str, suffix: str, folders: tuple[Path, ...]) -> Path:
    """A path as given, else the shipped file of that name."""
    if Path(name).exists():
        return Path(name)
    found = [path for folder in folders if (path := folder / (Path(name).name.removesuffix(suffix) + suffix)).exists()]
    if not found:
        names = sorted({path.stem for folder in folders for path in folder.glob("*" + suffix)})
        raise ConfigError(f"{option} {name}: no such file; shipped ones are {', '.join(names)}")
    return found[0]


def _command(words: list[str]) -> str:
    return shlex.join(["python", "-m", "rnnc.recipes.enhance", *words])


def _about(config: Enhance, words: list[str]) -> dict[str, str]:
    """What the scores are of."""
    return {"pairs": config.data.pairs or "mixed", "command": _command(words)}


def _pairs(config: Enhance, reporter: Reporter, rate_hz: int) -> list[Pair]:
    """The pairs to score on: a folder's, or the ones held out in training."""
    if config.data.pairs:
        return io.pairs(config.data.pairs, rate_hz)
    return data.open_sources(config.data, config.mix, rate_hz, config.seed, reporter.progress).test


def train(
    config: Enhance, run: Run, resume: bool, reporter: Reporter, command: str, sources: Sources | None = None
) -> Sources:
    """Train the configured model; the best one on the validation pairs becomes `run.model`.

    `sources` are the ones of an earlier call with the same `data`, `mix` and rate, if any.
    """
    machine.prepare(config.train.batch, config.train.devices)
    run.open(config, resume)
    sources = sources or open_sources(config, reporter)
    params = _initial(config)
    pruner = config.prune or Pruner()
    pruned = [] if isinstance(pruner, Groups) else getattr(pruner, "only", [])
    frames = config.model.stft.frames(round(config.mix.seconds * config.model.rate_hz))
    origin = {
        "commit": commit(),
        "config_sha256": configs.digest(config),
        "command": command,
        "seed": config.seed,
    }

    before = 0.0  # seconds that calls before this one trained

    def observe(event: dict[str, Any]) -> None:
        nonlocal before
        if event.get("event") == "start":
            run.rewind(event["step"])
            before = run.seconds()
        if "items_per_s" in event:
            speed = event.pop("items_per_s") * frames
            event = {**event, "frames_per_s": speed, "seconds": event["seconds"] + before}
        run.append(event)
        _say_event(event, config.train, reporter)

    def leg(tree: Any, first: int, last: int) -> dict[str, Any]:
        """Train up to a step with the formats that hold from another one on."""
        model = _formatted(config, run, first, pruner.apply(tree), sources, reporter)
        graph, _ = nnx.split(Enhancer(model, rngs=nnx.Rngs(config.seed)), nnx.Param)

        def loss(tree: Any, noisy: jax.Array, clean: jax.Array) -> jax.Array:
            enhanced, rate = nnx.merge(graph, pruner.apply(tree)).run(noisy)
            return config.loss(enhanced, clean) + config.loss.budget(rate) + pruner.penalty(tree)

        def keep(tree: Any, step: int) -> None:
            save_model(run.model, *pruner.finish(tree, model), {**origin, "step": step, "pruned": list(pruned)})

        return loop.fit(
            config.train,
            params=tree,
            loss=loss,
            batch=lambda step: sources.train.batch(step, config.train.batch),
            validate=_validator(config, graph, pruner, sources.valid),
            score="si_sdr_db",
            keep=keep,
            observe=observe,
            folder=run.checkpoints,
            resume=resume or first > 0,
            wrap=pruner.wrap,
            keep_from=pruner.end,
            until=last,
        )

    tree, rereads = pruner.attach(params, config.model), config.quantise.reread if config.quantise else ()
    result: dict[str, Any] = {}
    for first, last in itertools.pairwise((0, *rereads, config.train.steps)):
        result = leg(tree, first, last)
        if result["steps"] < last:  # out of patience
            break
        tree = result["params"]
    seconds = before + result["seconds"]
    speed = result["steps"] * config.train.batch * frames / seconds
    numbers = {"steps": result["steps"], "best_step": result["best_step"], "seconds": seconds, "frames_per_s": speed}
    skipped = [{"path": path, "reason": reason} for path, reason in sources.skipped]
    run.update(**origin, model=size(run.model), train=numbers, skipped=skipped)
    reporter.say(
        f"trained {result['steps']} steps in {duration(seconds)}, {speed:,.0f} frames/s; "
        f"best at step {result['best_step']}: {result['best_score']:.2f} dB SI-SDR on validation"
    )
    return sources


def _initial(config: Enhance) -> Any:
    """The first parameters: drawn, or those of the model to start from."""
    params = nnx.to_pure_dict(nnx.state(Enhancer(config.model, rngs=nnx.Rngs(config.seed)), nnx.Param))
    if config.start:
        trained, _ = load_model(_model(config.start))
        theirs = nnx.to_pure_dict(nnx.state(trained, nnx.Param))
        params = jax.tree.map(np.asarray, factor.start(theirs, trained.model, config.model, params))
    return params


def _formatted(config: Enhance, run: Run, step: int, params: Any, sources: Sources, reporter: Reporter) -> Model:
    """The model, with formats if it is to have some: as the run folder notes them, or read off the parameters now.

    What is read is noted before the training goes on, so that a resumed run has the same.
    """
    if config.quantise is None:
        return config.model
    if str(step) not in run.noted_formats():
        reporter.say(f"reading ranges off {config.quantise.batches} batches")
        graph, _ = nnx.split(Enhancer(config.model, rngs=nnx.Rngs(config.seed)), nnx.Param)
        first = range(step, step + config.quantise.batches)
        batches = (sources.train.batch(at, config.train.batch)[0] for at in first)
        found = calibrated(nnx.merge(graph, params), batches, config.quantise)
        run.note_formats(step, configs.to_table(found)["formats"])
    table = {**configs.to_table(config.model), "formats": run.noted_formats()[str(step)]}
    return configs.build(Model, table, f"{run.formats}: {step}")


def _validator(config: Enhance, graph: Any, pruner: Pruner, pairs: list[Pair]):
    """The trained tree -> loss, SI-SDR and update rate over the pairs, padded to one length and enhanced together."""
    longest = max(len(pair.clean) for pair in pairs)
    noisy, clean = (
        np.stack([np.pad(getattr(pair, side), (0, longest - len(pair.clean))) for pair in pairs])
        for side in ("noisy", "clean")
    )

    @jax.jit
    def enhance(tree: Any, noisy: jax.Array, clean: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        enhanced, rate = nnx.merge(graph, pruner.apply(tree)).run(noisy)
        return enhanced, config.loss(enhanced, clean), rate

    def mean_db(signals: np.ndarray) -> float:
        lengths = [len(pair.clean) for pair in pairs]
        scores = [metrics.si_sdr_db(c[:n], y[:n]) for c, y, n in zip(clean, signals, lengths)]
        defined = [s for s in scores if not isinstance(s, metrics.Undefined)]
        return float(np.mean(defined)) if defined else float("-inf")

    before = mean_db(noisy)

    def validate(tree: Any) -> dict[str, float]:
        enhanced, loss, rate = enhance(tree, noisy, clean)
        found = {"loss": float(loss), "si_sdr_db": mean_db(np.asarray(enhanced)), "noisy_si_sdr_db": before}
        return {**found, "update_rate": float(rate)} if config.model.skip else found

    return validate


def open_sources(config: Enhance, reporter: Reporter) -> Sources:
    """What a run draws from; says what there is."""
    sources = data.open_sources(config.data, config.mix, config.model.rate_hz, config.seed, reporter.progress)
    speech, noise, train = sources.minutes["speech"], sources.minutes["noise"], sources.train
    reporter.say(
        f"training on {speech:.1f} min of speech ({len(train.speech.groups)} speakers), {noise:.1f} min of noise, "
        f"{len(train.rooms)} rooms; {len(sources.valid)} pairs to choose, {len(sources.test)} to score"
    )
    for path, reason in sources.skipped[:5]:
        reporter.say(f"skipped {path}: {reason}")
    if len(sources.skipped) > 5:
        reporter.say(f"skipped {len(sources.skipped)} files in all")
    return sources


def _say_event(event: dict[str, Any], config: Train, reporter: Reporter) -> None:
    if "loss" in event:
        left = (config.steps - event["step"]) * event["seconds"] / max(event["step"], 1)
        note = f"loss {event['loss']:.4f}  {event['frames_per_s']:,.0f} frames/s  {duration(left)} left"
        reporter.progress("training", event["step"], config.steps, note)
    elif "valid" in event:
        valid = event["valid"]
        gain = valid["si_sdr_db"] - valid["noisy_si_sdr_db"]
        mark = f"  {valid['update_rate']:.0%} of updates" if "update_rate" in valid else ""
        mark += "  best" if event["best"] else ""
        reporter.say(f"step {event['step']}: validation SI-SDR {valid['si_sdr_db']:.2f} dB ({gain:+.2f}){mark}")


if __name__ == "__main__":
    sys.exit(main())
