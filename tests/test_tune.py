"""Laws of the recipe that tunes recipes: what it refuses, its trials, its report; and of the benchmark."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats

from rnnc import config as configs
from rnnc.config import ConfigError
from rnnc.recipes import enhance, rivals, tune, tune_bench, tune_report
from rnnc.recipes.enhance import Enhance
from rnnc.search.settings import Halving, Settings
from rnnc.search.space import Space
from rnnc.search.store import Store
from rnnc.search.tune import tune as study_tune
from rnnc.search.values import SpaceError, Uniform

ROOT = Path(__file__).parents[1]
SMALL = """
base = "smoke"
[tuner]
trials = 3
batch = 2
budget_bytes = 40000
bayes = { start = 2, candidates = 50 }
[space]
"train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }
"model.recurrent.kind" = ["dense", "lowrank"]
"model.recurrent.rank" = { low = 2, high = 6, step = 2, when = { "model.recurrent.kind" = "lowrank" } }
"mix.tilt" = { low = 0.0, high = 1.0 }
[data]
rooms = 1
valid_items = 2
test_items = 1
corpus = { kind = "synthetic", speech_minutes = 0.2, noise_minutes = 0.2 }
[mix]
seconds = 0.5
[model]
units = [8]
cell = "fastrnn"
hidden = 8
[train]
steps = 4
batch = 2
warmup_steps = 1
valid_every = 2
log_every = 2
devices = 1
"""


@pytest.fixture(autouse=True)
def loose():
    """Optax mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _table(**changes) -> dict:
    import tomllib

    return {**tomllib.loads(SMALL), **changes}


def _plan(tmp_path, **changes) -> tune.Plan:
    return tune.parse(_table(**changes), tmp_path, "command")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """The folder of a whole study, once; no test may write into it."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "small.toml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setenv("RNNC_CACHE", str(folder / "cache"))
        words = ["--config", str(folder / "small.toml"), "--out", str(folder / "out"), "--scheduler", "serial"]
        assert tune.main(words) == 0
    return folder / "out"


# --- the study -----------------------------------------------------------------------------------------------


def test_trials_are_trainings(tuned):
    result = json.loads((tuned / "result.json").read_text())
    assert [t["state"] for t in result["trials"]] == ["done"] * 3
    assert result["trials"][0]["origin"] == "first", "the recipe as it was"
    assert result["trials"][0]["configuration"]["train.learning_rate"] == 1e-3
    folders = {path.name for path in (tuned / "trials").iterdir()}
    plan = tune.parse(_table(), tuned, "command")
    for trial in result["trials"]:
        run = plan.trainer.run(trial["configuration"])
        assert run.folder.name in folders
        config = configs.load(Enhance, run.config)
        assert config.train.learning_rate == trial["configuration"]["train.learning_rate"]
        valid = [e["valid"]["si_sdr_db"] for e in map(json.loads, run.log.read_text().splitlines()) if "valid" in e]
        assert trial["value"] == max(valid)
        assert trial["metrics"]["bytes"] == tune.model_bytes(config) <= 40000, "what is counted is what is trained"
    values = [t["value"] for t in result["trials"]]
    assert result["history"] == list(np.maximum.accumulate(values))
    assert result["best"]["value"] == max(values)


def test_all_trials_are_scored_on_the_same_pairs(tuned):
    """Whatever the strength of an augmentation, the noisy pairs to choose on are those of the recipe."""
    result = json.loads((tuned / "result.json").read_text())
    assert len({t["configuration"]["mix.tilt"] for t in result["trials"]}) == 3
    assert len({t["metrics"]["noisy_si_sdr_db"] for t in result["trials"]}) == 1


def test_the_winner_is_a_recipe(tuned):
    result = json.loads((tuned / "result.json").read_text())
    config = configs.load(Enhance, tuned / "best.toml")
    assert config == tune.parse(_table(), tuned, "").trainer.recipe(result["best"]["configuration"])
    assert result["train"] == f"python -m rnnc.recipes.enhance --config {tuned}/best.toml --out runs/tuned"


def test_report(tuned):
    page = (tuned / "report.html").read_text(encoding="utf-8")
    result = json.loads((tuned / "result.json").read_text())
    history, parallel = re.findall(r"<svg[^>]*role=.*?</svg>", page)
    assert history.count("<circle") == 3
    lines = re.findall(r'<polyline class="curve [^"]*" points="([^"]*)"', parallel)
    assert len(lines) == 3
    keys = [len(t["configuration"]) + 1 for t in sorted(result["trials"], key=lambda t: t["value"])]
    assert [len(line.split()) for line in lines] == keys, "an axis for each key that exists, and the score"
    for name, share in result["importance"].items():
        assert 0 <= share <= 1
        assert f"{name}</th>" in page
    assert "+0.000" in page or re.search(r"\+\d+\.\d{3} dB to the recipe as it was", page)
    assert not re.search(r"<(link|script|img)[^>]", page)


def test_a_finished_study_is_not_trained_again(tuned, tmp_path, monkeypatch, capsys):
    import shutil

    shutil.copytree(tuned, tmp_path / "out")
    (tmp_path / "small.toml").write_text(SMALL)

    def refuse(*_, **__):
        raise AssertionError("must not be called")

    monkeypatch.setattr(enhance, "train", refuse)
    words = ["--config", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out"), "--scheduler", "serial"]
    assert tune.main(words) == 2
    assert "holds a study; resume it (--resume)" in capsys.readouterr().err
    before = json.loads((tmp_path / "out" / "result.json").read_text())["trials"]
    assert tune.main([*words, "--resume"]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["trials"] == before
    assert tune.main([*words, "--resume", "--set", "train.steps=6"]) == 2
    assert "differs from the recipe given" in capsys.readouterr().err
    with Store(tmp_path / "out" / "study.db"):
        assert tune.main([*words, "--resume"]) == 2
    assert "is controlled by another run" in capsys.readouterr().err
    drawn = (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "report.html").unlink()
    assert tune.main(["report", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").read_text() == drawn


def test_a_training_that_was_done_is_taken_as_it_is(tuned, monkeypatch):
    """Its result came too late for a controller that died: the run folder has it."""
    monkeypatch.setattr(enhance, "train", lambda *_, **__: pytest.fail("must not train"))
    trial = json.loads((tuned / "result.json").read_text())["trials"][1]
    plan = tune.parse(_table(), tuned, "command")
    assert plan.trainer(trial["configuration"])["si_sdr_db"] == trial["value"]


def test_the_objective_can_be_sent_to_processes(tmp_path):
    import pickle

    trainer = _plan(tmp_path).trainer
    assert pickle.loads(pickle.dumps(trainer)) == trainer


def test_the_shipped_recipe_is_valid(tmp_path):
    plan = tune.parse(configs.read(ROOT / "recipes" / "tune.toml"), tmp_path, "command")
    mine = tune.own(plan.trainer, plan.space)
    assert mine is not None, "the recipe itself lies in its space"
    for configuration in [mine, *plan.space.sample(50, np.random.default_rng(0))]:
        assert tune.model_bytes(plan.trainer.recipe(configuration)) <= plan.tuner.budget_bytes
    assert any(not plan.space.allows(c) for c in plan.space.at(np.random.default_rng(0).random((99, 10))))


REFUSED = {
    "key": ({"space": {"train.learning_rat": [1.0]}}, "train.learning_rat: unknown key. Did you mean"),
    "type": ({"space": {"train.steps": [1.5]}}, "train.steps: is 1.5, must be of type int"),
    "section": ({"space": {"seed.a": [1]}}, r"seed: is \{'a': 1\}, must be of type int"),
    "entry": ({"space": {"train.steps": {"low": 1}}}, "train.steps: high: is None"),
    "no space": ({"space": {}}, "space: must be a table of dotted keys"),
    "tuner": ({"tuner": {"trails": 3}}, "tuner.trails: unknown key. Did you mean 'tuner.trials'"),
    "trials": ({"tuner": {"trials": 0}}, "tuner: trials: is 0, must be 1 or more"),
    "budget": ({"tuner": {"budget_bytes": -1}}, "budget_bytes: is -1"),
    "strategy": ({"tuner": {"bayes": {"strategy": "best"}}}, "tuner.bayes.strategy: is 'best', must be one of"),
    "base": ({"base": 3}, "base: is 3, must be a recipe's file or name"),
    "no base": ({"base": "smok"}, "smok: no such file; shipped ones are"),
    "recipe": ({"train": {"stepz": 3}}, "train.stepz: unknown key"),
    "misspelt choice": (
        {"space": {"model.cell": ["lstm", "gru", "fastrn"]}},
        "model.cell: is 'fastrn', must be one of",
    ),
    "misspelt effort": (
        {"tuner": {"halving": {"key": "train.stepz", "levels": [4, 8]}}},
        "tuner.halving: train.stepz: unknown key",
    ),
    "effort out of range": ({"tuner": {"halving": {"key": "train.steps", "levels": [-4, 8]}}}, "train: steps: is -4"),
    "nothing valid": ({"space": {"train.batch": [0, -1]}}, "no configuration is a valid recipe; train: batch: is"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_recipes_say_so(case, tmp_path):
    changes, message = REFUSED[case]
    with pytest.raises((ConfigError, SpaceError), match=message):
        _plan(tmp_path, **changes)


def test_a_budget_that_nothing_meets_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("rnnc.search.space.MOST_DRAWS", 50)
    plan = _plan(tmp_path, tuner={"budget_bytes": 10})
    with pytest.raises(SpaceError, match="constraint: allows none of"):
        plan.space.sample(1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheduler", "celery"], "--scheduler: is 'celery', must be serial, processes, dask or tcp"),
        (["--workers", "-1"], "workers: is -1"),
        (["--scheduler", "serial", "--set", "tuner.limit_s=5"], "cannot be kept by --scheduler serial"),
        (["--scheduler", "serial", "--workers", "2"], "--workers: is 2, but --scheduler serial has its own"),
        (["benchmark", "--functions", ","], "--functions: names none"),
        (["report", "--out", "nowhere"], "nowhere: no such folder"),
        (["benchmark", "--functions", "rosenbrock"], "--functions: 'rosenbrock' is unknown, must be of branin"),
        (["benchmark", "--seeds", "0"], "--seeds: is 0"),
    ],
)
def test_wrong_words_say_so(words, message, tmp_path, capsys):
    (tmp_path / "small.toml").write_text(SMALL)
    own = ["--out", str(tmp_path / "out")] if "--out" not in words else []
    assert tune.main([*words, *own, "--config", str(tmp_path / "small.toml")]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    log = '{"step": 100, "loss": 1.0}\n'
    (tmp_path / "log.jsonl").write_text(log)
    (tmp_path / "result.json").write_text('{"train": {}}')
    (tmp_path / "small.toml").write_text(SMALL)
    short = ["--methods", "random", "--seeds", "1", "--iterations", "1"]
    for words in (["benchmark", "--functions", "camel", *short], ["--config", str(tmp_path / "small.toml")]):
        assert tune.main([*words, "--out", str(tmp_path)]) == 2
        assert "choose another --out" in capsys.readouterr().err
        assert (tmp_path / "log.jsonl").read_text() == log
        assert (tmp_path / "result.json").read_text() == '{"train": {}}'


def test_the_recipe_s_own_values_lie_in_spaces_with_conditions(tmp_path):
    space = {"model.cell": ["lstm", "fastrnn"], "mix.tilt": {"low": 0.0, "high": 9.0, "when": {"model.cell": "lstm"}}}
    plan = _plan(tmp_path, space=space)
    assert tune.own(plan.trainer, plan.space) == {"model.cell": "fastrnn"}


def test_a_study_without_a_score_says_so(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise OSError("no sound card")

    monkeypatch.setattr(enhance, "train", fails)
    (tmp_path / "small.toml").write_text(SMALL)
    words = ["--config", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out"), "--scheduler", "serial"]
    assert tune.main(words) == 2
    assert "no trial has a score; the last: OSError: no sound card" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").exists()


def test_reports_compare_what_had_the_same_effort(tmp_path):
    halving = Halving(key="steps", levels=(1, 9), keep=0.5)
    settings = Settings(trials=12, batch=4, halving=halving, metric="si_sdr_db")
    space = Space({"x": Uniform(0, 1)})
    score = lambda c: {"si_sdr_db": c["x"] + c["steps"], "bytes": 8}
    result = study_tune(score, space, settings, first=[{"x": 0.99}])
    table = tune_report.write(tmp_path, space, result, {"command": "c", "commit": "d"})
    page = (tmp_path / "report.html").read_text()
    gain = result.best.value - 9.99
    assert f"{gain:+.3f} dB to the recipe as it was (9.990 dB)" in page.replace("−", "-")
    assert table["best"]["value"] > 9
    alone = study_tune(score, space, Settings(trials=12, batch=4, halving=halving, metric="si_sdr_db"))
    tune_report.write(tmp_path, space, alone, {"command": "c", "commit": "d"})
    assert "to the recipe as it was" not in (tmp_path / "report.html").read_text()


def test_halving_is_a_table(tmp_path):
    halving = {"key": "train.steps", "levels": [4, 8], "keep": 0.5}
    plan = _plan(tmp_path, tuner={"halving": halving, "trials": 4})
    assert plan.tuner.settings().halving.levels == (4, 8)
    assert plan.trainer.recipe({"train.steps": 8}).train.steps == 8


# --- the benchmark -------------------------------------------------------------------------------------------


def test_functions_have_their_optima():
    """By scipy's minimiser from a grid; the numbers are those of the literature, for the mixed one of the grid."""
    for name in ("branin", "camel", "mixed"):
        problem = tune_bench.PROBLEMS[name]
        rng = np.random.default_rng(0)
        starts = sorted(problem.space.sample(4000, rng), key=problem.score)[-20:]
        best = -np.inf
        for start in starts:
            names = [p.name for p in problem.space.parameters if isinstance(p.values, Uniform)]
            bounds = [(p.values.low, p.values.high) for p in problem.space.parameters if isinstance(p.values, Uniform)]
            found = scipy.optimize.minimize(
                lambda x, start=start, names=names, score=problem.score: -score({**start, **dict(zip(names, x))}),
                [start[n] for n in names],
                bounds=bounds,
            )
            best = max(best, -found.fun)
        assert best == pytest.approx(problem.optimum, abs=2e-5)


def _bench(out: Path, *words: str) -> dict:
    command = ["benchmark", "--functions", "camel", "--methods", "rnnc,random", "--seeds", "2", "--out", str(out)]
    assert tune.main([*command, "--iterations", "10", *words]) == 0
    return json.loads((out / "result.json").read_text())


def test_rows_are_means_over_seeds_and_runs_are_kept(tmp_path, monkeypatch):
    result = _bench(tmp_path)
    runs = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(runs) == 4
    for row in result["rows"]:
        own = [r["best"][row["iteration"]] for r in runs if r["method"] == row["method"]]
        assert row == {**row, "function": "camel", "mean_best": np.mean(own), "seeds": 2}
    assert {row["iteration"] for row in result["rows"]} == {0, 10}
    assert result["tests"][0]["against"] == "random"
    assert all(run["best"] == sorted(run["best"]) for run in runs)
    kept = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text("".join(kept.splitlines(True)[:-1]) + '{"function": "camel", "me')  # a kill
    assert _bench(tmp_path)["rows"] == result["rows"]
    assert len([json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]) == 4
    monkeypatch.setitem(tune_bench.METHODS, "random", lambda *_: pytest.fail("it has been run"))
    assert _bench(tmp_path)["rows"] == result["rows"]


def test_the_test_is_that_of_scipy(tmp_path):
    runs = {}
    for seed in range(12):
        for method, value in (
            ("rnnc", 1.0 + 0.01 * seed),
            ("random", 0.5 + 0.01 * seed),
            ("optuna-tpe", 1.0 + 0.01 * seed),
        ):
            runs["camel", method, seed] = {"best": [0.0, value], "seconds": 1.0}
    tests = {m: tune_bench._test("camel", m, runs) for m in ("random", "optuna-tpe")}
    assert tests["random"]["rnnc is"] == "better"
    assert tests["optuna-tpe"]["rnnc is"] == "no difference"
    a, b = ([runs["camel", m, s]["best"][-1] for s in range(12)] for m in ("rnnc", "random"))
    assert tests["random"]["p"] == scipy.stats.mannwhitneyu(a, b).pvalue


@pytest.mark.parametrize(("name", "package"), [("mango-clustering", "arm-mango"), ("optuna-gp", "optuna")])
def test_rivals_that_are_missing_say_so(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, name.split("-")[0], None)
    with pytest.raises(ConfigError, match=f"install {package}"):
        tune_bench.METHODS[name](Space({"x": Uniform(0, 1)}), lambda c: 0.0, 0, 1, 1)


def test_curves_hold_the_best_after_each_batch():
    assert rivals.curve([1.0, float("nan"), 0.0, 5.0], 2, 2) == [1.0, 5.0, 5.0], "a short run holds its last"


def test_importing_the_recipe_needs_no_extra():
    program = "import sys\nfor m in ('distributed', 'optuna', 'mango', 'sklearn'): sys.modules[m] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", program + "import rnnc.recipes.tune"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_short_words():
    assert tune_report.short(True) == "True"
