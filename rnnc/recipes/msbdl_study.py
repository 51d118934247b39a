"""Dictionaries of several views, learned jointly or not: `python -m rnnc.recipes.msbdl_study [PART ...]`.

Planted dictionaries are learned by several methods, and the share of roots whose atoms each finds is counted:
`recovery` over sparsity and noise, `why` with parts of the joint learner changed, `sizes` with more atoms in one view.
`classify` tells digits from their two halves. Every row is kept as it comes, so a study that was stopped goes on where
it was.

Why joint learning pays: the views' evidence adds up, but only where a root's atoms have the same cause. Without pairing
about half of the roots join atoms of different causes, for all views begin at the same samples, each of which holds
several atoms; shared variances then gain less, and at high SNR nothing (`paired` in the rows says how many are right).
"""

import argparse
import dataclasses
import importlib
import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnc import container
from rnnc.bayes import msbdl
from rnnc.bayes.coupled import owners
from rnnc.bayes.msbdl import Msbdl, State
from rnnc.config import ConfigError
from rnnc.recipes import console, figures, halves, page
from rnnc.recipes.console import Reporter
from rnnc.recipes.planted import Planted, noise_share, paired, plant, recovered
from rnnc.recipes.run import Run, commit

Row = dict[str, Any]
SNRS_DB = (10, 20, 30)
ON = (3, 5)
ALPHAS = (0.1, 0.3)  # of scikit-learn's learner, for samples whose mean square norm is 1; the better one counts


class Cell(NamedTuple):
    """One planted problem."""

    on: int
    snr_db: int
    seed: int
    atoms: tuple[int, ...] = (50, 50)


class Size(NamedTuple):
    """How much is spent: samples of a problem, sweeps over them."""

    samples: int
    sweeps: int


Learned = tuple[np.ndarray, ...]


def _config(cell: Cell, size: Size, **changes: Any) -> Msbdl:
    """The study's settings; the noise is known to all learners, unless `changes` say otherwise."""
    views = changes.get("atoms", cell.atoms)
    known = {"atoms": cell.atoms, "noise_share": (noise_share(cell.snr_db),) * len(views)}
    spent = {"sweeps": size.sweeps, "anneal": 0.98, "review_every": 15}
    return Msbdl(**{**known, **spent, **changes})


def _learn(config: Msbdl, views: Sequence[np.ndarray], seed: int) -> Learned:
    state = msbdl.fit(config, views, msbdl.start(config, views, jax.random.key(seed)))
    return _atoms(state)


def _atoms(state: State) -> Learned:
    return tuple(np.asarray(d) for d in state.dictionaries)


def _joint(cell: Cell, size: Size, planted: Planted, **changes: Any) -> Learned:
    return _learn(_config(cell, size, **changes), planted.views, cell.seed)


def _separate(cell: Cell, size: Size, planted: Planted, **changes: Any) -> Learned:
    """Each view by itself, from the same samples as jointly."""
    return tuple(
        _learn(_config(cell, size, atoms=(count,), **changes), [y], cell.seed)[0]
        for count, y in zip(cell.atoms, planted.views)
    )


def _concatenated(cell: Cell, size: Size, planted: Planted) -> Learned:
    """One dictionary of both views side by side, cut in two."""
    together = np.concatenate(planted.views, axis=1)
    (found,) = _learn(_config(cell, size, atoms=(max(cell.atoms),)), [together], cell.seed)
    cuts = np.cumsum([y.shape[1] for y in planted.views])[:-1]
    return tuple(np.split(found, cuts, axis=0))


def _other_samples(cell: Cell, size: Size, planted: Planted, **changes: Any) -> Learned:
    """Joint, but the first atoms of the second view are other samples than those of the first."""
    config = _config(cell, size, **changes)
    state = msbdl.start(config, planted.views, jax.random.key(cell.seed))
    rolled = [planted.views[0], np.roll(planted.views[1], 1, axis=0)]
    other = msbdl.start(config, rolled, jax.random.key(cell.seed)).dictionaries
    state = dataclasses.replace(state, dictionaries=(state.dictionaries[0], other[1]))
    return _atoms(msbdl.fit(config, planted.views, state))


def _ksvd(cell: Cell, size: Size, planted: Planted) -> Learned:
    """K-SVD: orthogonal matching pursuit with the true number of atoms, then each atom by a rank-one fit."""
    linear = _sklearn("linear_model")
    found = []
    for count, y in zip(cell.atoms, planted.views):
        y = y.astype(np.float64)
        rng = np.random.default_rng(cell.seed)
        d = y[rng.permutation(len(y))[:count]].T
        d /= np.linalg.norm(d, axis=0)
        active = cell.on * count // min(cell.atoms)
        for _ in range(max(1, size.sweeps // 5)):
            x = linear.orthogonal_mp_gram(d.T @ d, d.T @ y.T, n_nonzero_coefs=active)
            rest = y.T - d @ x
            for m in rng.permutation(count):
                users = np.flatnonzero(x[m])
                if not len(users):
                    worst = np.argmax(np.sum(rest**2, axis=0))
                    d[:, m] = y[worst] / np.linalg.norm(y[worst])
                    continue
                own = rest[:, users] + np.outer(d[:, m], x[m, users])
                u, s, v = np.linalg.svd(own, full_matrices=False)
                d[:, m], x[m, users] = u[:, 0], s[0] * v[0]
                rest[:, users] = own - np.outer(d[:, m], x[m, users])
        found.append(d)
    return tuple(found)


def _minibatch(cell: Cell, size: Size, planted: Planted) -> Learned:
    """scikit-learn's mini-batch learner (l1), each view by itself; the alpha whose dictionary finds more atoms."""
    learner = _sklearn("decomposition").MiniBatchDictionaryLearning
    found = []
    for count, y, truth in zip(cell.atoms, planted.views, planted.atoms):
        y = y.astype(np.float64) / np.sqrt(np.mean(np.sum(np.square(y), axis=1)))
        tried = []
        for alpha in ALPHAS:
            first = y[np.random.default_rng(cell.seed).permutation(len(y))[:count]]
            options = {"max_iter": max(1, size.sweeps // 5), "batch_size": 100, "fit_algorithm": "cd", "tol": 0.0}
            options |= {"dict_init": first / np.linalg.norm(first, axis=1, keepdims=True), "max_no_improvement": None}
            fitted = learner(count, alpha=alpha, random_state=cell.seed, transform_algorithm="omp", **options).fit(y)
            tried.append(fitted.components_.T)
        found.append(max(tried, key=lambda d: recovered(truth, d)))
    return tuple(found)


def _sklearn(name: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError:
        raise ConfigError(
            "this arm needs scikit-learn, which is not installed; try: pip install 'rnnc[demo]'"
        ) from None


Arm = Callable[[Cell, Size, Planted], Learned]
MAIN: dict[str, Arm] = {
    "joint": _joint,
    "separate": _separate,
    "concatenated": _concatenated,
    "K-SVD": _ksvd,
    "scikit-learn": _minibatch,
}
WHY: dict[str, Arm] = {
    "joint, never paired": lambda *a: _joint(*a, pairing=False),
    "joint, other samples": _other_samples,
    "joint, other samples, never paired": lambda *a: _other_samples(*a, pairing=False),
    "joint, root norm": lambda *a: _joint(*a, norm="root"),
    "separate, root norm": lambda *a: _separate(*a, norm="root"),
    "joint, noise unknown": lambda *a: _joint(*a, noise_share=None),
    "separate, noise unknown": lambda *a: _separate(*a, noise_share=None),
    "joint, fast anneal": lambda *a: _joint(*a, anneal=0.94),
    "separate, fast anneal": lambda *a: _separate(*a, anneal=0.94),
    "joint, batches": lambda *a: _joint(*a, batch=a[1].samples // 4, forgetting=0.75),
}


ARMS = {"recovery": tuple(MAIN), "why": tuple(WHY), "sizes": tuple(MAIN)}
CELLS = {
    "recovery": tuple((on, snr_db, (50, 50)) for snr_db in SNRS_DB for on in ON),
    "why": ((3, 10, (50, 50)), (5, 30, (50, 50))),
    "sizes": ((2, 10, (25, 50)), (2, 20, (25, 50))),
}
PARTS = (*CELLS, "classify")


class Plan(NamedTuple):
    """One row to measure."""

    part: str
    arm: str
    cell: Cell


def plans(parts: Sequence[str], seeds: int) -> Iterator[Plan]:
    """All rows of the parts, seed by seed, so that a study that is stopped has something of every cell.

    >>> [plan.arm for plan in plans(["sizes"], 1)][:3]
    ['joint', 'separate', 'concatenated']
    """
    for seed in range(seeds):
        for part in (part for part in parts if part in CELLS):
            for on, snr_db, atoms in CELLS[part]:
                yield from (Plan(part, arm, Cell(on, snr_db, seed, atoms)) for arm in ARMS[part])


def measure(plan: Plan, size: Size) -> Row:
    """Learn one planted problem: the share of atoms found, and of roots whose atoms belong together."""
    cell = plan.cell
    planted = plant(cell.seed, atoms=cell.atoms, samples=size.samples, on=cell.on, snr_db=cell.snr_db)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of fits that end early
        learned = (MAIN | WHY)[plan.arm](cell, size, planted)
    return {
        "recovered": [recovered(*each) for each in zip(planted.atoms, learned, owners(cell.atoms))],
        "paired": paired(planted.atoms, learned),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.msbdl_study", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; none: all")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="planted problems of each kind (%(default)s)")
    parser.add_argument("--on", type=int, nargs="+", metavar="S", help="only problems of so many atoms on")
    parser.add_argument("--snr-db", type=int, nargs="+", metavar="DB", help="only of this noise")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only these learners")
    parser.add_argument("--samples", type=int, default=1000, metavar="L", help="samples of each (%(default)s)")
    parser.add_argument("--sweeps", type=int, default=300, metavar="N", help="of the learners (%(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/msbdl"), help="folder (%(default)s)")
    args = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "rnnc.recipes.msbdl_study", *(sys.argv[1:] if argv is None else argv)])

    def work(reporter: Reporter) -> None:
        for part in args.parts:
            if part not in PARTS:
                raise ConfigError(f"PART: is {part!r}, must be one of {', '.join(PARTS)}")
        for arm in args.arms or ():
            if arm not in MAIN | WHY:
                raise ConfigError(f"--arms: is {arm!r}, must be of {', '.join(MAIN | WHY)}")
        for name, least in (("seeds", 1), ("samples", 100), ("sweeps", 1)):
            if getattr(args, name) < least:
                raise ConfigError(f"--{name}: is {getattr(args, name)}, must be {least} or more")
        wanted = [
            plan
            for plan in plans(args.parts or PARTS, args.seeds)
            if (not args.arms or plan.arm in args.arms)
            and (not args.on or plan.cell.on in args.on)
            and (not args.snr_db or plan.cell.snr_db in args.snr_db)
        ]
        some = args.arms or args.on or args.snr_db  # which `classify` has none of
        seeds = args.seeds if "classify" in (args.parts or ([] if some else PARTS)) else 0
        if not wanted and not seeds:
            raise ConfigError("--arms, --on, --snr-db: leave nothing to measure of the parts; see --help")
        classify(Run(args.out / "classify"), seeds, max(1, args.sweeps // 5), reporter)
        run(wanted, Size(args.samples, args.sweeps), Run(args.out), command, reporter)

    return console.status(work, "stopped; the same command goes on from there")


def run(wanted: Sequence[Plan], size: Size, run: Run, command: str, reporter: Reporter) -> dict[str, Any]:
    """Measure what is not measured yet; returns result.json."""
    run.folder.mkdir(parents=True, exist_ok=True)
    run.cleaned("part", "table")
    done = {_name(row): row for row in run.lines()}
    for plan in wanted:
        about = {"part": plan.part, "arm": plan.arm, **plan.cell._asdict(), **size._asdict()}
        about = json.loads(json.dumps(about))
        if _name(about) in done:
            continue
        row = {**about, **measure(plan, size)}
        run.append(row)
        shares = " and ".join(f"{share:.2f}" for share in row["recovered"])
        reporter.say(f"{row['arm']}, s = {row['on']}, {row['snr_db']} dB, seed {row['seed']}: {shares}")
        done[_name(about)] = row
    return _write(run, command, reporter)


def classify(run: Run, seeds: int, sweeps: int, reporter: Reporter) -> None:
    """Measure each arm of `halves` on so many splits; rows go to the log of a folder of their own."""
    run.cleaned("arm")
    done = {(row["arm"], row["seed"], row["sweeps"]) for row in run.lines()}
    for arm, seed in ((arm, seed) for seed in range(seeds) for arm in halves.ARMS):
        if (arm, seed, sweeps) not in done:
            row = {"arm": arm, "seed": seed, "sweeps": sweeps, **halves.measure(arm, seed, sweeps)}
            run.folder.mkdir(parents=True, exist_ok=True)
            run.append(row)
            reporter.say(f"{arm}, seed {seed}: test accuracy {row['fixed']:.4f}, {row.get('moved', row['fixed']):.4f}")


def _accuracies(rows: Sequence[Row]) -> list[Row]:
    """Mean test accuracy of each arm over its splits, with fixed features and with atoms that the labels moved."""
    table = []
    for arm, sweeps in dict.fromkeys((row["arm"], row["sweeps"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["sweeps"]) == (arm, sweeps)]
        means = {k: float(np.mean([row[k] for row in own])) for k in ("fixed", "moved") if k in own[0]}
        table.append({"arm": arm, "sweeps": sweeps, "seeds": len(own), **means})
    return table


def _name(row: Row) -> str:
    """What a row measures, as text."""
    keys = ("part", "arm", "on", "snr_db", "seed", "atoms", "samples", "sweeps")
    return json.dumps([row[key] for key in keys])


def summary(rows: Sequence[Row]) -> list[Row]:
    """Mean and spread over the seeds of each arm and cell, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_name({**row, "seed": 0}), []).append(row)
    table = []
    for group in groups.values():
        shares = [float(np.mean(row["recovered"])) for row in group]
        means = {key: float(np.mean([row[key] for row in group])) for key in ("paired", "seconds")}
        spread = float(np.std(shares, ddof=1)) if len(shares) > 1 else None
        kept = {key: value for key, value in group[0].items() if key not in ("seed", *means)}
        table.append({**kept, "seeds": len(group), "recovered": float(np.mean(shares)), "spread": spread, **means})
    return table


def _write(run: Run, command: str, reporter: Reporter) -> dict[str, Any]:
    table = summary(run.lines())
    accuracies = _accuracies(Run(run.folder / "classify").lines())
    result = run.update(command=command, commit=commit(), table=table, classify=accuracies)
    for row in table:
        cell = f"s = {row['on']}, {row['snr_db']} dB, {row['arm']}"
        reporter.say(f"{cell}: {row['recovered']:.3f} found, {row['paired']:.2f} paired, {row['seeds']} seeds")
    container.replace(run.folder / "report.html", _report(result))
    reporter.say(f"report: {run.folder / 'report.html'}")
    return result


def _report(result: dict[str, Any]) -> str:
    """The page: one picture over SNR for each sparsity, and all rows."""
    table, charts = result["table"], []
    arms = list(MAIN)
    kinds = {(row["on"], row["samples"], row["sweeps"]) for row in table if row["part"] == "recovery"}
    for on, samples, sweeps in sorted(kinds):
        lines = []
        for i, arm in enumerate(arms):
            own = sorted(
                (row["snr_db"], row["recovered"])
                for row in table
                if (row["part"], row["arm"], row["on"], row["samples"], row["sweeps"])
                == ("recovery", arm, on, samples, sweeps)
            )
            lines.append(figures.Line(style=f"series{i}", x=[x for x, _ in own], y=[y for _, y in own]))
        about = f"s = {on}, {samples:,} samples, {sweeps} sweeps"
        charts.append(
            figures.plot(lines, alt=f"atoms found, {about}", x_label=f"SNR, dB; {about}", y_label="share", y_from=0)
        )
    keys = page.element("div", *(figures.key(f"series{i}", arm) for i, arm in enumerate(arms)), class_="key")
    rows = [
        page.row(
            page.text(row["arm"]),
            *(page.text(f"{row['atoms']}, s = {row['on']}"), page.number(row["snr_db"])),
            page.number(row["recovered"], 3) + ("" if row["spread"] is None else f" ± {row['spread']:.3f}"),
            *(page.number(row["paired"], 2), page.number(row["seeds"]), page.number(row["seconds"], 1)),
            words=2,
        )
        for row in table
    ]
    columns = ["Learner", "Atoms", "SNR, dB", "Found", "Paired", "Seeds", "Seconds"]
    caption = "Share of planted roots whose atoms are found (cosine above 0.99), ± deviation over seeds."
    return page.document(
        "Dictionaries of several views",
        *([page.section("Recovery", keys, *charts)] if charts else []),
        *([page.section("All rows", page.table(caption, columns, rows, words=2))] if rows else []),
        *(
            [page.section("Digits from their halves", _accuracy_table(digits))]
            if (digits := result["classify"])
            else []
        ),
        page.section("Command", page.element("pre", page.text(f"{result['command']}\ncommit {result['commit']}"))),
    )


def _accuracy_table(accuracies: Sequence[Row]) -> str:
    rows = [
        page.row(
            page.text(row["arm"]),
            *(page.number(100 * row.get(k, np.nan), 2) for k in ("fixed", "moved")),
            str(row["seeds"]),
        )
        for row in accuracies
    ]
    columns = ["Features", "Fixed, %", "Moved by the labels, %", "Splits"]
    return page.table("Test accuracy of a linear classifier; its decay was chosen on validation items.", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
