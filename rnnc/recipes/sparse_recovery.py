"""Who finds sparse non-negative numbers behind a short, noisy view of them: `python -m rnnc.recipes.sparse_recovery`.

Solves many random problems y = Phi x + v, x >= 0 with k of its numbers above 0, by R-SBL and by what it competes with,
and tells and draws how far each is from x. Each method that can use it is told the variance of v, and orthogonal
matching pursuit k.
"""

import argparse
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from rnnc import container
from rnnc.bayes import rsbl
from rnnc.bayes.esteps import AMP, LMMSE, MCMC, Diagonal, EStep, Gaussian
from rnnc.config import ConfigError
from rnnc.recipes import console, figures, page
from rnnc.recipes.console import Reporter, chosen
from rnnc.recipes.page import element, number, text
from rnnc.recipes.run import Run, commit

BATCH = 250  # trials that are drawn and solved together
ITERATIONS = 200


class Problems(NamedTuple):
    """Designs phi [B, N, M] with columns of length 1, x [B, M], y [B, N], and the noise's variance sigma2 [B]."""

    phi: np.ndarray
    x: np.ndarray
    y: np.ndarray
    sigma2: np.ndarray


def gaussian(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """Independent normal numbers."""
    return rng.standard_normal((n, m))


def nonnegative(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """Independent numbers that are uniform in 0 .. 1."""
    return rng.random((n, m))


def low_rank(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """Normal numbers of rank n / 2."""
    return rng.standard_normal((n, n // 2)) @ rng.standard_normal((n // 2, m))


def ill_conditioned(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """Normal numbers whose singular values are replaced by a geometric row from 1 to 1/1000."""
    u, s, v = np.linalg.svd(rng.standard_normal((n, m)), full_matrices=False)
    return (u * np.geomspace(1, 1e-3, len(s))) @ v


DESIGNS = {f.__name__.replace("_", "-"): f for f in (gaussian, nonnegative, low_rank, ill_conditioned)}


def draw(design: str, n: int, m: int, k: int, snr_db: float, seeds: Sequence[tuple[int, ...]]) -> Problems:
    """Draw one problem a seed; x has k numbers above 0, |N(0, 1)|; the noise's variance is set by Phi x itself.

    >>> found = draw("gaussian", 4, 8, 2, 20.0, [(0, 1), (0, 2)])
    >>> found.phi.shape, (found.x > 0).sum(axis=1).tolist(), np.linalg.norm(found.phi, axis=1).round(6).max().item()
    ((2, 4, 8), [2, 2], 1.0)

    Source: R-SBL (Nalci et al. 2018), section 8.2 of our survey: 100 x 400, k 10 to 50 (recalled there).
    """
    drawn = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        phi = DESIGNS[design](rng, n, m)
        phi /= np.linalg.norm(phi, axis=0)
        x = np.zeros(m)
        x[rng.choice(m, k, replace=False)] = np.abs(rng.standard_normal(k))
        sigma2 = np.mean((phi @ x) ** 2) * 10 ** (-snr_db / 10)
        drawn.append((phi, x, phi @ x + np.sqrt(sigma2) * rng.standard_normal(n), sigma2))
    return Problems(*map(np.array, zip(*drawn)))


def bayesian(estep: EStep, point: str) -> Callable[[Problems], np.ndarray]:
    """R-SBL, and SBL that is cut at 0 (`Gaussian`).

    Where the noise is above a thousandth, in single precision, and atoms are dropped earlier: their gamma is then still
    about a tenth of the noise.
    """

    def solve(given: Problems) -> np.ndarray:
        noisy = np.min(given.sigma2 / np.mean(given.y**2, axis=1)) > 1e-3
        precision: dict[str, Any] = {"dtype": np.float32, "prune": 1e-4} if noisy else {}
        options = {"estep": estep, "point": point, "iterations": ITERATIONS, "tolerance": 1e-4, **precision}
        return rsbl.fit(given.phi, given.y, sigma2=given.sigma2, **options).x

    return solve


def nnls(given: Problems) -> np.ndarray:
    """Non-negative least squares."""
    return np.array([optimize.nnls(phi, y, maxiter=20 * len(phi.T))[0] for phi, y in zip(given.phi, given.y)])


def nn_omp(given: Problems) -> np.ndarray:
    """Non-negative orthogonal matching pursuit that knows k: the best fitting atom joins, then NNLS on those chosen."""
    found = np.zeros_like(given.x)
    for x, phi, y, k in zip(found, given.phi, given.y, (given.x > 0).sum(axis=1)):
        support: list[int] = []
        while len(support) < k:
            fit = phi.T @ (y - phi @ x)
            fit[support] = -np.inf
            support.append(int(np.argmax(fit)))
            x[support] = optimize.nnls(phi[:, support], y, maxiter=20 * len(phi.T))[0]
    return found


def nn_lasso(given: Problems) -> np.ndarray:
    """|y - Phi x|^2 / 2 + a sum x, x >= 0, by scikit-learn; the largest a on a path whose residual is the noise's."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lasso_path

    found = []
    for phi, y, sigma2 in zip(given.phi, given.y, given.sigma2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            alphas = np.geomspace(1, 1e-4, 40) * max(np.max(phi.T @ y) / len(y), np.finfo(float).tiny)
            _, path, _ = lasso_path(phi, y, positive=True, alphas=alphas)
        energy = np.sum((y[:, None] - phi @ path) ** 2, axis=0)
        found.append(path[:, np.argmax(energy <= len(y) * sigma2) if (energy <= len(y) * sigma2).any() else -1])
    return np.array(found)


METHODS: dict[str, Callable[[Problems], np.ndarray]] = {
    "diagonal": bayesian(Diagonal(), "mean"),
    "diagonal-mode": bayesian(Diagonal(), "mode"),
    "lmmse": bayesian(LMMSE(), "mean"),
    "amp": bayesian(AMP(), "mean"),
    "mcmc": bayesian(MCMC(), "mean"),
    "sbl-clip": bayesian(Gaussian(), "mode"),
    "nnls": nnls,
    "nn-omp": nn_omp,
    "nn-lasso": nn_lasso,
}
SLOW = ("mcmc",)


def errors(found: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|found - x|^2 / |x|^2 and the share of the support that is not among the k largest of found, each [B].

    >>> errors(np.array([[1.0, 0.0, 2.0]]), np.array([[0.0, 1.0, 2.0]]))
    (array([0.4]), array([0.5]))
    """
    nmse = np.sum((found - x) ** 2, axis=1) / np.sum(x**2, axis=1)
    order, counts = np.argsort(-found, axis=1, kind="stable"), (x > 0).sum(axis=1)
    hits = [np.sum(truth[place[:k]] > 0) for truth, place, k in zip(x, order, counts)]
    return nmse, 1 - np.array(hits) / counts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnc.recipes.sparse_recovery", description=(__doc__ or "").split("\n\n")[1]
    )
    names = ", ".join(METHODS)
    parser.add_argument("--design", nargs="+", default=list(DESIGNS), help=f"some of {', '.join(DESIGNS)} (all)")
    parser.add_argument("--snr-db", nargs="+", type=float, default=[20.0], help="of y (%(default)s)")
    parser.add_argument("--k", nargs="+", type=int, default=[10, 20, 30, 40, 50], help="numbers above 0 (%(default)s)")
    parser.add_argument("--method", nargs="+", default=[m for m in METHODS if m not in SLOW], help=f"some of {names}")
    parser.add_argument("--size", nargs=2, type=int, default=[100, 400], metavar=("N", "M"), help="of Phi (100 400)")
    parser.add_argument("--trials", type=int, default=20, help="problems of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/sparse_recovery"), help="(%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the rows of --out")
    args = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "rnnc.recipes.sparse_recovery", *(sys.argv[1:] if argv is None else argv)])
    return console.status(lambda reporter: _run(args, command, reporter), "stopped; --resume goes on")


def _run(args: argparse.Namespace, command: str, reporter: Reporter) -> None:
    n, m = args.size
    designs, methods = chosen("--design", args.design, list(DESIGNS)), chosen("--method", args.method, list(METHODS))
    for option, value, good in (
        ("--trials", args.trials, args.trials >= 1),
        ("--seed", args.seed, args.seed >= 0),
        ("--size", args.size, n >= 2 and m >= 1),
        ("--k", args.k, all(1 <= k <= m for k in args.k)),
        ("--snr-db", args.snr_db, all(-100 <= s <= 100 for s in args.snr_db)),
    ):
        if not good:
            raise ConfigError(f"{option}: is {value}; see --help, and k at most M = {m}")
    run, asked = Run(args.out), {"trials": args.trials, "seed": args.seed, "size": [n, m]}
    rows = _finished(run, asked, args.resume)
    have = {(r["design"], r["snr_db"], r["k"], r["method"]) for r in rows}
    cells = [(d, s, k) for d in designs for s in dict.fromkeys(args.snr_db) for k in dict.fromkeys(args.k)]
    cells = [(*cell, [f for f in methods if (*cell, f) not in have]) for cell in cells]
    done, of = 0, sum(len(left) for *_, left in cells)
    args.out.mkdir(parents=True, exist_ok=True)
    for design, snr_db, k, left in cells:
        if left:
            seeds = [
                (args.seed, list(DESIGNS).index(design), round(10 * snr_db) + 1000, k, t) for t in range(args.trials)
            ]
            found = _score(
                design, n, m, k, snr_db, seeds, left, lambda at, done=done: reporter.progress("cells", done, of, at)
            )
            rows += [{"design": design, "snr_db": snr_db, "k": k, "method": name, **row} for name, row in found.items()]
            done += len(left)
            run.update(**asked, rows=rows, command=command, commit=commit())
            reporter.say(
                f"{design}, {snr_db:g} dB, k = {k}:  " + "  ".join(_short(name, row) for name, row in found.items())
            )
    container.replace(args.out / "report.html", report(run.results()))
    reporter.say(f"report: {args.out / 'report.html'}")


def _short(name: str, row: dict[str, float]) -> str:
    return f"{name} {row['nmse_db']:.1f} dB {row['support_error']:.3f}"


def _finished(run: Run, asked: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The rows of a folder, which only --resume with the same problems may add to."""
    found = run.going_on(resume)
    for name, value in asked.items():
        if found and found.get(name) != value:
            raise ConfigError(f"--{name}: is {value}, but {run.result} holds results of {found.get(name)}")
    return found.get("rows", [])


def _score(
    design: str,
    n: int,
    m: int,
    k: int,
    snr_db: float,
    seeds: Sequence[tuple[int, ...]],
    methods: Sequence[str],
    tell: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """The row of each method: the mean over the problems, the mean error in dB."""
    scores: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for first in range(0, len(seeds), BATCH):
        given = draw(design, n, m, k, snr_db, seeds[first : first + BATCH])
        for name in methods:
            tell(f"{design}, {snr_db:g} dB, k = {k}, {name}, from trial {first}")
            began = time.perf_counter()
            found = METHODS[name](given)
            seconds[name] += time.perf_counter() - began
            scores[name].append(np.array(errors(found, given.x)))
    rows = {}
    for name, parts in scores.items():
        nmse, support = np.concatenate(parts, axis=1)
        rows[name] = {
            "nmse_db": float(10 * np.log10(nmse.mean())),
            "support_error": float(support.mean()),
            "support_error_stderr": float(support.std() / np.sqrt(len(support))),
            "ms_per_problem": 1000 * seconds[name] / len(seeds),
        }
    return rows


AXES = {"k": "k, numbers above 0", "snr_db": "SNR, dB", "design": "design"}


def report(result: dict[str, Any]) -> str:
    """The page: errors against k, against the SNR and by design, where the rows have more than one, and all rows."""
    rows = result["rows"]
    names = [name for name in METHODS if any(r["method"] == name for r in rows)]
    sections = []
    for axis, label in AXES.items():
        others = [other for other in AXES if other != axis]
        for fixed in dict.fromkeys(tuple(r[other] for other in others) for r in rows):
            here = [r for r in rows if tuple(r[other] for other in others) == fixed]
            if len({r[axis] for r in here}) > 1:
                about = ", ".join(_told(other, value) for other, value in zip(others, fixed))
                sections.append(page.section(f"By {label.split(',')[0]}: {about}", *_charts(here, axis, label, names)))
    table = [
        page.row(
            text(_told("design", r["design"]) + ", " + _told("snr_db", r["snr_db"])),
            text(r["method"]),
            text(r["k"]),
            number(r["nmse_db"], 1),
            f"{number(r['support_error'], 3)} ± {number(r['support_error_stderr'], 3)}",
            number(r["ms_per_problem"], 1),
            words=2,
        )
        for r in rows
    ]
    heads = ["design, SNR", "method", "k", "error of x, dB", "support error", "ms a problem"]
    sections.append(page.section("All rows", page.table("Means, ± standard error", heads, table, words=2)))
    n, m = result["size"]
    lead = (
        f"{result['trials']} random problems of each kind, Phi {n} × {m}. The error of x is |found − x|² / |x|², "
        "its mean in dB; the support error is the share of the k true places that are not among the k largest. Time is "
        "that of this machine, with compilation."
    )
    origin = element("pre", text(f"{result['command']}\ncommit {result['commit']}"))
    return page.document(
        "Sparse recovery", element("p", text(lead), class_="lead"), *sections, page.section("Command", origin)
    )


def _told(axis: str, value: Any) -> str:
    """A place on an axis, as text."""
    if axis == "design":
        return value
    return f"k = {value}" if axis == "k" else f"{value:g} dB"


def _charts(rows: Sequence[dict[str, Any]], axis: str, label: str, methods: Sequence[str]) -> list[str]:
    """The two errors of each method along an axis, with their key."""
    places = sorted({r[axis] for r in rows}, key=list(DESIGNS).index if axis == "design" else None)
    charts = []
    for field, error in (("nmse_db", "error of x, dB"), ("support_error", "support error, share")):
        found = {(r["method"], r[axis]): r[field] for r in rows}
        lines = []
        for i, method in enumerate(methods):
            there = [
                (j if axis == "design" else place, found[method, place])
                for j, place in enumerate(places)
                if (method, place) in found
            ]
            lines += (
                [figures.Line(style=f"series{i}", x=[x for x, _ in there], y=[y for _, y in there])] if there else []
            )
        named = places if axis == "design" else ()
        charts.append(figures.plot(lines, alt=f"{error} by {label}", x_label=label, y_label=error, names=named))
    keys = "".join(figures.key(f"series{i}", name) for i, name in enumerate(methods))
    return [element("p", keys, class_="key"), element("div", *charts, class_="panels two")]


if __name__ == "__main__":
    sys.exit(main())
