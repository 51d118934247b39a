"""Denoise with dictionaries instead of networks: `python -m rnnc.recipes.dictionary`.

Learns atoms of speech, and pairs of atoms of noisy and of clean frames, scores what R-SBL, NMF, NNLS and MSBDL make of
them on the pairs that `enhance` is scored on, and tells how long a second of sound takes each.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rnnc import config as configs
from rnnc import container
from rnnc.audio import data
from rnnc.audio.data import Data, Sources
from rnnc.audio.mix import Mix
from rnnc.audio.stft import Bands
from rnnc.bayes.msbdl import Msbdl
from rnnc.recipes import console, dictionaries, enhance, page, report
from rnnc.recipes.console import Reporter
from rnnc.recipes.dictionaries import Additive, Coder, Method, Rsbl, Sound
from rnnc.recipes.evaluate import Scores, score, scored
from rnnc.recipes.page import element, number, text
from rnnc.recipes.run import Run, commit

SHOWN = {"sdr_db": 2, "si_sdr_db": 2, "pesq_wb": 2, "stoi": 3}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The dictionary of the additive methods, which all of them share.

    Args:
      sound: what they hear.
      speech: atoms of speech.
      noise: atoms of the training noises; 0: only the signal's own.
      own, quiet_share, noise_weight: see `dictionaries.Additive`.
      rsbl: how R-SBL codes.
    """

    sound: Sound = Sound()
    speech: int = 40
    noise: int = 0
    own: int = 8
    quiet_share: float = 0.3
    noise_weight: float = 2.0
    rsbl: Rsbl = Rsbl()

    def __post_init__(self) -> None:
        for name, least in (("speech", 1), ("noise", 0), ("own", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be {least} or more")
        if not self.noise + self.own:
            raise ValueError("noise, own: are both 0, one of them must be above")
        if not 0 < self.quiet_share <= 1 or not self.noise_weight > 0:
            given = f"quiet_share = {self.quiet_share}, noise_weight = {self.noise_weight}"
            raise ValueError(f"{given}: must be above 0 to 1, and above 0")
        if self.sound.ground:
            raise ValueError(f"sound.ground: is {self.sound.ground}, must be 0: `own` atoms tell the noise")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The paired dictionaries of MSBDL.

    Args:
      sound: what it hears.
      msbdl: how the atoms of noisy frames and of clean ones are learnt.
      strength: of its gains, above 0; see `dictionaries.Paired`.
    """

    sound: Sound = Sound(power=0.5, context=2, bands=Bands(count=32), ground=0.3)
    msbdl: Msbdl = Msbdl(
        atoms=(64, 64),
        sweeps=8,
        batch=500,
        forgetting=0.9,
        anneal=0.72,
        noise_share=(0.05, 0.05),
        review_every=0,
    )
    strength: float = 0.7

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(f"strength: is {self.strength}, must be above 0")


@dataclass(frozen=True, kw_only=True)
class Dictionary:
    """Everything that decides a run.

    Args:
      seed: of the corpus, the splits, the mixtures and the atoms.
      frames: of speech, of noise and of pairs to learn from.
      methods: which are scored: nmf, nnls, rsbl, msbdl.
      parts, pairs, data, mix: see there.
    """

    seed: int = 0
    frames: int = 6000
    methods: tuple[str, ...] = ("nmf", "nnls", "rsbl", "msbdl")
    parts: Parts = Parts()
    pairs: Pairs = Pairs()
    data: Data = Data(test_items=30)
    mix: Mix = Mix(room=0.0)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: is {self.seed}, must be 0 to {2**31 - 1}")
        if self.frames < 100:
            raise ValueError(f"frames: is {self.frames}, must be 100 or more")
        if not self.methods:
            raise ValueError(f"methods: is empty, must name some of {', '.join(METHODS)}")
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods: {name!r} is none; known: {', '.join(METHODS)}")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods: is {list(self.methods)}, must name each once")
        msbdl = self.pairs.msbdl
        if "msbdl" in self.methods and (len(msbdl.atoms) != 2 or max(*msbdl.atoms, msbdl.batch) > self.frames):
            given = f"atoms = {list(msbdl.atoms)}, batch = {msbdl.batch}"
            raise ValueError(f"pairs.msbdl: {given}, must be of two views and at most the {self.frames} frames")
        if self.parts.sound.rate_hz != self.pairs.sound.rate_hz:
            raise ValueError("parts.sound.rate_hz, pairs.sound.rate_hz: must be equal")


Heard = Callable[[Sound, bool], tuple[np.ndarray, np.ndarray]]


def additive(code: Callable[[Parts], Coder]) -> Callable[..., tuple[Sound, Method]]:
    """A method that codes with the shared atoms."""

    def learn(config: Dictionary, heard: Heard, reporter: Reporter) -> tuple[Sound, Method]:
        parts = config.parts
        noise, speech = heard(parts.sound, True)
        atoms = [
            dictionaries.atoms(levels, count, config.seed) if count else levels[:0].T
            for levels, count in ((speech, parts.speech), (noise, parts.noise))
        ]
        options = {"own": parts.own, "quiet_share": parts.quiet_share, "noise_weight": parts.noise_weight}
        return parts.sound, Additive(speech=atoms[0], noise=atoms[1], code=code(parts), **options)

    return learn


def paired(config: Dictionary, heard: Heard, reporter: Reporter) -> tuple[Sound, Method]:
    """MSBDL of noisy frames and clean ones."""
    sound = config.pairs.sound
    noisy, clean = heard(sound, False)
    tell = partial(reporter.progress, "learning pairs of atoms")
    learned = dictionaries.learn_paired(config.pairs.msbdl, noisy, sound.newest(clean), config.seed, tell)
    return sound, replace(learned, strength=config.pairs.strength)


METHODS: dict[str, Callable[[Dictionary, Heard, Reporter], tuple[Sound, Method]]] = {
    "nmf": additive(lambda parts: dictionaries.nmf),
    "nnls": additive(lambda parts: dictionaries.nnls),
    "rsbl": additive(lambda parts: parts.rsbl),
    "msbdl": paired,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.dictionary", description=(__doc__ or "").split("\n\n")[1]
    )
    enhance.options(parser, "runs/dictionary")
    args = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "rnnc.recipes.dictionary", *(sys.argv[1:] if argv is None else argv)])

    def work(reporter: Reporter) -> None:
        config = configs.build(Dictionary, enhance.table(args, enhance.recipe(args.config) if args.config else None))
        run(config, args.out, args.resume, command, reporter)

    return console.status(work, "stopped; --resume goes on after the last method that was scored")


def run(config: Dictionary, out: Path, resume: bool, command: str, reporter: Reporter) -> list[dict[str, Any]]:
    """Learn and score each method, each in a folder with a report, and write one page over all; returns its rows."""
    whole = Run(out)
    rows = whole.going_on(resume, configs.digest(config)).get("rows", [])
    rate_hz = config.parts.sound.rate_hz
    sources = data.open_sources(config.data, config.mix, rate_hz, config.seed, reporter.progress)
    for path, reason in sources.skipped:
        reporter.say(f"skipped {path}: {reason}")
    out.mkdir(parents=True, exist_ok=True)
    container.replace(whole.config, configs.dump(config))
    origin = {"commit": commit(), "command": command, "config_sha256": configs.digest(config), "seed": config.seed}
    whole.update(**origin)
    left = [name for name in config.methods if name not in [row["method"] for row in rows]]
    noisy = scored(sources.test, [pair.noisy for pair in sources.test], "noisy", reporter) if left else []
    for name in left:
        rows.append(_scored(name, config, sources, noisy, Run(out / name), origin, reporter))
        whole.update(rows=rows)
    container.replace(out / "report.html", _page(whole.results()))
    reporter.say(f"report: {out / 'report.html'}")
    return rows


def _scored(
    name: str,
    config: Dictionary,
    sources: Sources,
    noisy: Scores,
    run: Run,
    origin: dict[str, Any],
    reporter: Reporter,
) -> dict[str, Any]:
    """Learn one method and score it; its row."""
    reporter.say(f"{name}: learning")
    began = time.perf_counter()
    sound, method = METHODS[name](config, partial(_heard, config, sources), reporter)
    learning = time.perf_counter() - began
    spent = 0.0

    def timed(noisy: np.ndarray) -> np.ndarray:
        nonlocal spent
        began = time.perf_counter()
        enhanced = dictionaries.denoise(sound, method, noisy)
        spent += time.perf_counter() - began
        return enhanced

    timed(sources.test[0].noisy[None])  # compiles
    spent = 0.0
    test = score(run, sources.test, timed, sound.rate_hz, name, reporter, noisy)
    seconds = sum(len(pair.noisy) for pair in sources.test) / sound.rate_hz
    run.update(**origin, model={"name": name}, test={**test, "pairs": config.data.pairs or "mixed"})
    report.write(run.folder)
    means = {m: {k: test[k][m]["mean"] for k in ("noisy", "enhanced", "gain")} for m in SHOWN}
    return {"method": name, **means, "learning_s": learning, "s_per_s": spent / seconds}


def _heard(config: Dictionary, sources: Sources, sound: Sound, apart: bool) -> tuple[np.ndarray, np.ndarray]:
    """Levels of noisy sound (`apart`: of the noise in it) and of the speech in it, [frames, size] each."""
    each = sound.stft.frames(round(config.mix.seconds * sound.rate_hz))
    mixer = replace(sources.train, config=config.mix)
    items = [mixer.item(0, i) for i in range(-(-config.frames // each))]
    first, second = [noisy - clean if apart else noisy for noisy, clean in items], [clean for _, clean in items]
    return dictionaries.stacked(sound, first, config.frames), dictionaries.stacked(sound, second, config.frames)


def _page(result: dict[str, Any]) -> str:
    """One table over the methods, with links to their reports."""
    rows = []
    for row in result["rows"]:
        name = element("a", text(row["method"]), href=f"{row['method']}/report.html")
        cells = [
            f"{number(row[m]['enhanced'], digits)} ({number(row[m]['gain'], digits, signed=True)})"
            for m, digits in SHOWN.items()
        ]
        rows.append(page.row(name, *cells, number(row["learning_s"], 1), number(row["s_per_s"], 3)))
    heads = ["method", "SDR, dB", "SI-SDR, dB", "PESQ-WB", "STOI", "learning, s", "s per s of sound"]
    lead = "Means over the pairs, and in brackets what they gain over the noisy sound."
    origin = element("pre", text(f"{result['command']}\ncommit {result['commit']}"))
    return page.document(
        "Denoising with dictionaries",
        element("p", lead, class_="lead"),
        page.section("Result", page.table("Methods", heads, rows)),
        page.section("Command", origin),
    )


if __name__ == "__main__":
    sys.exit(main())
