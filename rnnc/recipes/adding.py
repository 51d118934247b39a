"""Learn to add two marked numbers in a long row, and to sleep through the others: `python -m rnnc.recipes.adding`.

A network that skips frames by its own gate learns it with about half of the updates; one that skips as many by chance
cannot. Both are trained, scored and drawn.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from rnnc import cells, container
from rnnc import config as configs
from rnnc.recipes import console, enhance, figures, machine, page
from rnnc.recipes.console import Reporter, duration
from rnnc.recipes.run import Run, commit
from rnnc.skip import updates
from rnnc.train import checkpoint, loop
from rnnc.train.loop import Train

Array = jax.Array
VARIANCE = 1 / 6  # of the sum of two numbers that are uniform in -0.5 .. 0.5
SOLVED = VARIANCE / 100
DRAWN = 6


@dataclass(frozen=True, kw_only=True)
class Adding:
    """Everything that decides a run.

    Args:
      seed: of the weights and of the rows.
      cell: kind of the recurrent layer.
      units: its width.
      length: numbers in a row, 4 or more.
      budget: loss for each update.
      items: rows to choose on; ten times as many to score on.
      train: see there.

    Source: adding task of Skip RNN (Campos et al. 2018), sections 1.5 and 10 of our survey: 110 units, clipping
    at 1, and a budget of 1e-5, the default here. There a batch is 256 and the rate stays at 1e-4. The shipped recipe is
    far shorter: its batch is 128, its rate begins at 3e-3 and falls, its budget is 3e-5.
    """

    seed: int = 0
    cell: Literal["lstm", "gru", "fastrnn"] = "lstm"
    units: int = 110
    length: int = 50
    budget: float = 1e-5
    items: int = 1000
    train: Train = Train()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: is {self.seed}, must be 0 to {2**31 - 1}")
        for name, least in (("units", 1), ("length", 4), ("items", 1), ("budget", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be {least} or more")


class Rows(NamedTuple):
    """Rows of numbers: x [B, T, 2] of number and mark, the sum y [B] of the two marked ones, and coins [B, T]."""

    x: np.ndarray
    y: np.ndarray
    coins: np.ndarray


def rows(seed: tuple[int, ...], count: int, length: int) -> Rows:
    """Draw rows: the first mark lies in the first tenth, the second in the last half; coins are uniform in 0 .. 1.

    >>> x, y, coins = rows((0, 1), 3, 50)
    >>> x.shape, float(np.max(np.abs((x[..., 0] * x[..., 1]).sum(axis=1) - y))) < 1e-6
    ((3, 50, 2), True)
    """
    rng = np.random.default_rng(seed)
    x = np.zeros((count, length, 2), np.float32)
    x[..., 0] = rng.uniform(-0.5, 0.5, (count, length))
    for low, high in ((0, max(1, length // 10)), (length // 2, length)):
        x[np.arange(count), rng.integers(low, high, count), 1] = 1
    return Rows(x, (x[..., 0] * x[..., 1]).sum(axis=1), rng.random((count, length), np.float32))


class Adder(nnx.Module):
    """A skipping layer, and a linear one on its last output.

    Args:
      config: kind and width.
      rate: None: the gate decides which frames are used; else each is with this probability, by the coins.
      rngs: source of the initial weights.
    """

    def __init__(self, config: Adding, rate: float | None, *, rngs: nnx.Rngs):
        self.skip = cells.Skip(cells.CELLS[config.cell](2, config.units, rngs=rngs), rngs=rngs)
        self.sum = nnx.Linear(config.units, 1, rngs=rngs)
        self.rate = rate

    def __call__(self, x: Array, coins: Array) -> tuple[Array, Array]:
        """x [B, T, 2], coins [B, T] -> the sums [B] and the number of updates [B]."""
        if self.rate is None:
            carry, y = cells.RNN(self.skip, return_carry=True)(x)
            return self.sum(y[:, -1])[:, 0], updates(carry)
        core, params, used = self.skip.core, self.skip.weights(), coins < self.rate

        def step(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, None]:
            x, used = inputs
            (state,) = core.candidates(params, carry, x)
            held = jax.tree.map(lambda a, b: jnp.where(used[:, None], a, b), state, carry.cells[0])
            return carry._replace(cells=(held,)), None

        first = self.skip.initialize_carry((len(x), 2))
        carry, _ = lax.scan(step, first, (x.swapaxes(0, 1), used.T))
        return self.sum(core.output(carry))[:, 0], jnp.sum(used.astype(jnp.float32), axis=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rnnc.recipes.adding", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument(
        "--config", metavar="FILE.toml", default="adding", help="a recipe, or the name of a shipped one (%(default)s)"
    )
    parser.add_argument("--set", metavar="A.B=VALUE", action="append", default=[], help="override one key")
    parser.add_argument("--seed", metavar="N", help="short for --set seed=N")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/adding"), help="folder (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    args = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "rnnc.recipes.adding", *(sys.argv[1:] if argv is None else argv)])
    given = args.set + ([f"seed={args.seed}"] if args.seed else [])

    def work(reporter: Reporter) -> None:
        config = configs.load(Adding, enhance.recipe(args.config), tuple(given))
        run(config, args.out, args.resume, command, reporter)

    return console.status(work)


def run(config: Adding, out: Path, resume: bool, command: str, reporter: Reporter) -> dict[str, Any]:
    """Train the skipper, then one that skips as many frames by chance; score and draw both; returns result.json."""
    machine.prepare(config.train.batch, config.train.devices)
    skipper = train(config, None, Run(out), resume, reporter)
    chance = train(config, skipper["update_rate"], Run(out / "random"), resume, reporter)
    origin = {"commit": commit(), "command": command, "config": configs.to_table(config), "seed": config.seed}
    result = Run(out).update(**skipper, target_variance=VARIANCE, random=chance, **origin)
    container.replace(out / "report.html", _report(config, out, result))
    reporter.say(f"report: {out / 'report.html'}")
    return result


def train(config: Adding, rate: float | None, run: Run, resume: bool, reporter: Reporter) -> dict[str, Any]:
    """Train and score one network, by its gate or at a rate; returns mse, update_rate, solved, best_step, seconds."""
    run.open(config, resume)
    graph, state = nnx.split(Adder(config, rate, rngs=nnx.Rngs(config.seed)), nnx.Param)
    params = nnx.to_pure_dict(state)
    name = "skipping by a gate" if rate is None else "skipping by chance"
    best = run.folder / "adder.rnnc"
    predict = jax.jit(lambda params, x, coins: nnx.merge(graph, params)(x, coins))
    valid = rows((config.seed, 1), config.items, config.length)

    def loss(params: Any, x: Array, y: Array, coins: Array) -> Array:
        sums, used = nnx.merge(graph, params)(x, coins)
        return jnp.mean(jnp.square(sums - y)) + config.budget * jnp.mean(used)

    def batch(step: int) -> Rows:
        return rows((config.seed, 0, step), config.train.batch, config.length)

    def observe(event: dict[str, Any]) -> None:
        if event.get("event") == "start":
            run.rewind(event["step"])
        run.append(event)
        if "loss" in event:
            reporter.progress(name, event["step"], config.train.steps, f"loss {event['loss']:.6f}")
        elif "valid" in event:
            mse, share = (event["valid"][key] for key in ("mse", "update_rate"))
            mark = "  best" if event["best"] else ""
            reporter.say(f"{name}, step {event['step']}: mse {mse:.6f}, {100 * share:.1f} % updates{mark}")

    fitted = loop.fit(
        config.train,
        params=params,
        loss=loss,
        batch=batch,
        validate=lambda params: _scores(predict, params, valid),
        score="score",
        keep=lambda params, step: container.write(best, checkpoint.flatten(params), {"kind": "adder", "step": step}),
        observe=observe,
        folder=run.checkpoints,
        resume=resume,
    )
    kept = checkpoint.unflatten(container.read(best)[0], params, str(best))
    scores = _scores(predict, kept, rows((config.seed, 2), 10 * config.items, config.length))
    mse, share, solved = scores["mse"], scores["update_rate"], scores["mse"] < SOLVED
    verdict = "solved" if solved else "not solved"
    reporter.say(f"{name}: {verdict}, mse {mse:.6f}, {100 * share:.1f} % updates, {duration(fitted['seconds'])}")
    spent = {"best_step": fitted["best_step"], "seconds": fitted["seconds"]}
    return {"mse": mse, "update_rate": share, "solved": solved, **spent}


def _scores(predict: Callable[..., tuple[Array, Array]], params: Any, given: Rows) -> dict[str, float]:
    """mse, update_rate, and the score to choose by: a small error first; once it is solved, few updates."""
    sums, used = predict(params, given.x, given.coins)
    mse = float(np.mean(np.square(np.asarray(sums) - given.y)))
    rate = float(np.mean(used)) / given.x.shape[1]
    solved = 0.75 * SOLVED  # with a margin, for other rows will decide
    score = 2 - rate if mse < solved else solved / mse
    return {"mse": mse, "update_rate": rate, "score": score}


def _report(config: Adding, out: Path, result: dict[str, Any]) -> str:
    """The page: what came out, the curves, and which frames a few rows used."""
    title = f"Adding with a {config.cell.upper()} that skips"
    named = (("by its gate", result), ("by chance", result["random"]))
    lines = [
        page.row(
            page.text(name), f"{at['mse']:.6f}", page.number(100 * at["update_rate"], 1), at["solved"] * "yes" or "no"
        )
        for name, at in named
    ]
    caption = f"Variance of the sums {VARIANCE:.4f}; solved: error below a hundredth of it"
    table = page.table(caption, ["frames are skipped", "mean square error", "updates, %", "solved"], lines)
    charts = [
        _curves(out, key, label) for key, label in (("mse", "mean square error"), ("update_rate", "updates, share"))
    ]
    keys = figures.key("enhanced", "by its gate") + figures.key("noisy", "by chance")
    frames = page.element("pre", page.text(_frames(config, out)))
    note = page.element("p", "Each pair of lines is a row: its marks, and the frames that were used (#).")
    return page.document(
        title,
        page.section("Result", table),
        page.section("Training", keys, *charts),
        page.section("Frames", note, frames),
        page.section("Command", page.element("pre", page.text(f"{result['command']}\ncommit {result['commit']}"))),
    )


def _curves(out: Path, key: str, label: str) -> str:
    lines = []
    for style, folder in (("enhanced", out), ("noisy", out / "random")):
        events = Run(folder).lines()
        valid = [(e["step"], e["valid"][key]) for e in events if "valid" in e]
        lines.append(figures.Line(style=style, x=[s for s, _ in valid], y=[v for _, v in valid], dots=False))
    return figures.plot(lines, alt=f"{label} by step", x_label="step", y_label=label)


def _frames(config: Adding, out: Path) -> str:
    """Marks and used frames of some rows, as text."""
    graph, state = nnx.split(Adder(config, None, rngs=nnx.Rngs(config.seed)), nnx.Param)
    arrays = container.read(out / "adder.rnnc")[0]
    skip = nnx.merge(graph, checkpoint.unflatten(arrays, nnx.to_pure_dict(state), str(out))).skip
    given, text = rows((config.seed, 2), DRAWN, config.length), []

    def step(carry: Any, x: Array) -> tuple[Any, Array]:
        carry, _ = skip(carry, x)
        return carry, updates(carry)

    _, counts = lax.scan(step, skip.initialize_carry((DRAWN, 2)), jnp.asarray(given.x.swapaxes(0, 1)))
    for marks, used in zip(given.x[..., 1], np.diff(np.asarray(counts), axis=0, prepend=0).T):
        text += ["".join("x" if m else " " for m in marks), "".join("#" if u else "." for u in used), ""]
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
