"""Laws of the ladder: order and starts of rungs, what its folders decide, its table and its figures."""

import json
import math
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from rnnc import config as configs
from rnnc import container, cost
from rnnc.config import ConfigError
from rnnc.model import Enhancer, Model
from rnnc.recipes import enhance, figures, ladder
from rnnc.recipes.enhance import Enhance
from rnnc.recipes.run import save_model
from rnnc.train import checkpoint

ROOT = Path(__file__).parents[1]
METRICS = ("si_sdr_db", "sdr_db", "pesq_wb", "stoi", "estoi")
SMALL = {"rate_hz": 16000, "bands": {"count": 24}, "units": [8], "hidden": 8, "cell": "fastrnn"}
RECIPE = """
start = "{start}"
[data]
rooms = 2
valid_items = 2
test_items = 1
corpus = {{ kind = "synthetic", speech_minutes = 0.2, noise_minutes = 0.2 }}
[mix]
seconds = 1.0
[train]
steps = 4
batch = 2
devices = 1
warmup_steps = 1
valid_every = 2
log_every = 2
[[rungs]]
name = "lowrank-2"
model.kernel = {{ kind = "lowrank", rank = 2 }}
[[rungs]]
name = "longer"
start = "lowrank-2"
train.steps = 6
"""


@pytest.fixture(autouse=True)
def loose():
    """Optax mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe of two rungs and the model at its foot, both in one folder."""
    folder = tmp_path_factory.mktemp("ladder")
    model = configs.build(Model, SMALL)
    params = nnx.to_pure_dict(nnx.state(Enhancer(model, rngs=nnx.Rngs(3)), nnx.Param))
    save_model(folder / "foot.rnnc", model, params, {"seed": 3})
    (folder / "ladder.toml").write_text(RECIPE.format(start=folder / "foot.rnnc"))
    return folder / "ladder.toml"


@pytest.fixture(scope="module")
def climbed(recipe, tmp_path_factory) -> Path:
    """The folder of the whole ladder, once; no test may write into it."""
    out = recipe.parent / "out"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setenv("RNNC_CACHE", str(tmp_path_factory.mktemp("cache")))
        jax.devices()  # all that conftest.py asked for, before a recipe asks for fewer
        assert ladder.main(["--config", str(recipe), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(climbed, recipe, tmp_path) -> Path:
    """A copy to write into; its rungs' starts lie in it too."""
    shutil.copytree(climbed, tmp_path / "out")
    for file in (tmp_path / "out").glob("*/config.toml"):
        file.write_text(file.read_text().replace(str(climbed), str(tmp_path / "out")))
    return tmp_path / "out"


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("must not be called")

    for name in ("train", "open_sources"):
        monkeypatch.setattr(enhance, name, refuse)
    monkeypatch.setattr(ladder, "evaluate", refuse)


def _main(recipe: Path, out: Path, *words: str) -> int:
    return ladder.main(["--config", str(recipe), "--out", str(out), *words])


def _refused(capsys, message: str, status: int, *words: object) -> None:
    assert ladder.main([str(word) for word in words]) == status
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said


def _result(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


def _scores(table: dict) -> dict:
    """Its metrics without their last digits, which may differ from call to call."""
    return {m: {k: v if v is None else round(v, 9) for k, v in table[m].items()} for m in METRICS}


def _bytes(file: Path) -> int:
    return 4 * sum(a.size for a in container.read(file)[0].values())


# --- the whole ladder ----------------------------------------------------------------------------------------


def test_rows(climbed, recipe):
    result = _result(climbed)
    assert [(row["name"], row["start"]) for row in result["rows"]] == [
        ("foot", "foot"),
        ("lowrank-2", "foot"),
        ("longer", "lowrank-2"),
    ]
    assert [row.get("steps") for row in result["rows"]] == [None, 4, 6]
    files = [recipe.parent / "foot.rnnc", climbed / "lowrank-2/model.rnnc", climbed / "longer/model.rnnc"]
    assert [row["bytes"] for row in result["rows"]] == [_bytes(file) for file in files]
    for row in result["rows"]:
        own = json.loads((climbed / row["name"] / "result.json").read_text())
        for cost_of in ("parameters", "bytes", "macs_per_frame", "update_rate"):
            assert row[cost_of] == own["model"][cost_of]
        assert {m: row[m] for m in METRICS} == {m: own["test"]["enhanced"][m] for m in METRICS}
        assert _scores(own["test"]["noisy"]) == _scores(result["noisy"]), "all rungs are scored on the same pairs"
    assert result["command"].startswith("python -m rnnc.recipes.ladder --config ")


def test_each_rung_starts_from_the_model_it_names(climbed, recipe):
    configured = {name: configs.load(Enhance, climbed / name / "config.toml") for name in ("lowrank-2", "longer")}
    assert configured["lowrank-2"].start == str(recipe.parent / "foot.rnnc")
    assert configured["longer"].start == str(climbed / "lowrank-2" / "model.rnnc")
    assert configured["longer"].model == configured["lowrank-2"].model, "a model is its start's, unless changed"
    assert configured["lowrank-2"].model != configs.build(Model, SMALL)
    for name, start in (("lowrank-2", recipe.parent / "foot.rnnc"), ("longer", climbed / "lowrank-2/model.rnnc")):
        ours, theirs = (container.read(file)[0] for file in (climbed / name / "model.rnnc", start))
        change = np.abs(ours["mask.kernel"] - theirs["mask.kernel"]).max()
        assert 0 < change < 0.05, "six steps at a rate of 1e-3 stay near the start, far from other initial weights"


def test_table(climbed):
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in (climbed / "table.md").read_text().splitlines()]
    head, rows = lines[0], {line[0]: dict(zip(lines[0], line)) for line in lines[2:]}
    assert list(rows) == ["noisy", "foot", "lowrank-2", "longer"]
    assert len({len(line) for line in lines}) == 1
    for row in _result(climbed)["rows"]:
        said = rows[row["name"]]
        assert float(said["kB"]) == pytest.approx(row["bytes"] / 1e3, abs=0.05)
        assert float(said["SDR, dB"]) == pytest.approx(row["sdr_db"]["mean"], abs=0.005)
    assert {"SI-SDR, dB", "PESQ", "STOI", "ESTOI", "MACs/frame", "updates"} <= set(head)


def _dots(svg: str) -> dict[str, list[tuple[float, float]]]:
    found = re.findall(r'<circle class="(\w+)" cx="([\d.]+)" cy="([\d.]+)"', svg)
    return {style: [(float(x), float(y)) for s, x, y in found if s == style] for style, _, _ in found}


def test_report(climbed):
    page = (climbed / "report.html").read_text(encoding="utf-8")
    svgs = re.findall(r"<svg[^>]*aria-label=.*?</svg>", page)
    rows = _result(climbed)["rows"]
    labels = [(metric, axis) for metric in ("SDR over", "PESQ over") for axis in ("kB", "per frame, thousands")]
    assert len(svgs) == len(labels)
    for svg, (metric, axis) in zip(svgs, labels):
        assert re.match(f'<svg[^>]*aria-label="{metric}[^"]*{axis}', svg)
        assert [len(dots) for dots in _dots(svg).values()] == [1, 1], "a family each"
        assert all(f">{row['name']}</text>" in svg for row in rows[1:])
        assert svg.count('class="curve reference"') == 1
    for row in rows:
        assert f'href="{row["name"]}/report.html"' in page
        assert (climbed / row["name"] / "report.html").exists()
    assert not re.search(r"<(link|script|img)[^>]", page)


# --- going on ------------------------------------------------------------------------------------------------


def test_what_is_scored_is_left_alone(copy, recipe, no_training):
    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "result.json"}

    before, rows = files(), _result(copy)["rows"]
    assert _main(recipe, copy) == 0
    assert {**files(), str(copy / "report.html"): before[str(copy / "report.html")]} == before
    assert _result(copy)["rows"] == rows


def test_a_rung_without_scores_goes_on(copy, climbed, recipe, capsys, monkeypatch):
    monkeypatch.setenv("RNNC_CACHE", str(copy / "cache"))
    (copy / "lowrank-2" / "result.json").unlink()
    _refused(capsys, r"lowrank-2: holds a rung without scores; add --resume", 2, "--config", recipe, "--out", copy)
    trained = []
    once = enhance.train
    monkeypatch.setattr(enhance, "train", lambda config, run, *rest: trained.append(run) or once(config, run, *rest))
    assert _main(recipe, copy, "--resume") == 0
    assert [run.folder.name for run in trained] == ["lowrank-2"]
    for before, after in zip(_result(climbed)["rows"], _result(copy)["rows"]):
        assert _scores(after) == _scores(before)
    steps = checkpoint.steps(copy / "lowrank-2" / "checkpoints")
    assert steps == checkpoint.steps(climbed / "lowrank-2" / "checkpoints"), "nothing was trained again"


def test_a_stop_loses_no_finished_rung(copy, recipe, capsys, monkeypatch):
    shutil.rmtree(copy / "longer")

    def stop(config, run, *_):
        raise enhance.loop.Interrupted(7)

    monkeypatch.setattr(enhance, "train", stop)
    monkeypatch.setattr(enhance, "open_sources", lambda *_: None)
    _refused(capsys, r"stopped after step 7; .* --resume goes on", 130, "--config", recipe, "--out", copy)
    assert [row["name"] for row in _result(copy)["rows"]] == ["foot", "lowrank-2"]
    assert "Not scored yet: longer." in (copy / "report.html").read_text()


def test_report_alone_reads_the_folders(copy, climbed, no_training):
    shutil.rmtree(copy / "longer")
    (copy / "report.html").unlink()
    before = _result(copy)
    assert ladder.main(["report", "--out", str(copy)]) == 0
    assert _result(copy) == {**before, "rows": before["rows"][:2]}
    assert "Not scored yet: longer." in (copy / "report.html").read_text()


def test_only(copy, recipe, capsys, monkeypatch):
    words = ("--config", recipe, "--out", copy)
    _refused(capsys, r"--only lowrank-3: no such rung\. Did you mean 'lowrank-2'\? Rungs: foot, low", 2, *words,
             "--only", "lowrank-3")  # fmt: skip
    shutil.rmtree(copy / "longer")
    called = []
    monkeypatch.setattr(ladder.Climb, "_climb_one", lambda climb, rung, resume: called.append(rung.name))
    assert _main(recipe, copy, "--only", "longer") == 0
    assert called == ["longer"], "its start is scored"
    shutil.rmtree(copy / "lowrank-2")
    _refused(capsys, r"longer: starts from lowrank-2, which is not trained yet; add it to --only", 2, *words,
             "--only", "longer")  # fmt: skip


@pytest.mark.parametrize("override", ["train.steps=5", "mix.seconds=1.5", "seed=1"])
def test_a_ladder_that_differs_from_its_folder_is_refused(copy, recipe, capsys, no_training, override):
    words = ("--config", recipe, "--out", copy, "--set", override)
    _refused(capsys, r"config\.toml: differs from the ladder's; move that folder away", 2, *words)


# --- recipes -------------------------------------------------------------------------------------------------


def _parse(recipe: Path, *rungs: dict, **others: object) -> ladder.Ladder:
    return ladder.parse({"start": str(recipe.parent / "foot.rnnc"), "rungs": list(rungs), **others})


WRONG = {
    "no rungs": ([], {}, r"^rungs: a ladder needs one table \[\[rungs\]\] or more"),
    "no list": ([], {"rungs": {"name": "a"}}, r"^rungs: a ladder needs one"),
    "no name": ([{}], {}, r"^rungs\[0\]\.name: is None, must be letters"),
    "a path": ([{"name": "../a"}], {}, r"^rungs\[0\]\.name: is '\.\./a', must be letters"),
    "twice": ([{"name": "a"}, {"name": "a"}], {}, r"^rungs\[1\]\.name: is 'a', which is taken"),
    "the foot": ([{"name": "foot"}], {}, r"^rungs\[0\]\.name: is 'foot', which is taken"),
    "typo": ([{"name": "dense"}, {"name": "b", "start": "dens"}], {},
             r"^rungs\[1\]\.start: is 'dens', no such rung\. Did you mean 'dense'\? .*: foot, dense$"),
    "later": ([{"name": "a", "start": "b"}, {"name": "b"}], {}, r"start: is 'b', must come before a: foot$"),
    "cycle": ([{"name": "a", "start": "a"}], {}, r"start: is 'a', must come before a: foot$"),
    "key": ([{"name": "a", "train": {"stpes": 1}}], {}, r"^rung a: train\.stpes: unknown key\. .*'train\.steps'"),
    "range": ([{"name": "a"}, {"name": "b", "train": {"steps": 0}}], {}, r"^rung b: train: steps: is 0"),
    "common": ([{"name": "a"}], {"trian": {}}, r"^rung foot: trian: unknown key\. Did you mean 'train'\?"),
    "model": ([{"name": "a"}], {"model": {}}, r"^model: must be left out"),
    "start": ([{"name": "a"}], {"start": "tinylstn"}, r"tinylstn: no such file; shipped ones are tinylstm"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipes(recipe, case):
    rungs, others, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        ladder.parse({"start": str(recipe.parent / "foot.rnnc"), "rungs": rungs, **others})


def test_a_later_rung_is_checked_before_the_first_is_trained(recipe, tmp_path, no_training, capsys):
    bad = tmp_path / "bad.toml"
    bad.write_text(recipe.read_text() + "model.cell = 'gur'\n")
    _refused(capsys, r"rung longer: model\.cell: is 'gur'", 2, "--config", bad, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


LAID = (  # under, over, both
    ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
    ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
    ({"a": 1}, {"a": {"y": 3}}, {"a": {"y": 3}}),
    ({"a": {"kind": "p", "x": 1}}, {"a": {"kind": "q"}}, {"a": {"kind": "q"}}),
    ({"a": {"kind": "p", "x": 1}}, {"a": {"x": 2}}, {"a": {"kind": "p", "x": 2}}),
    ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
)


@pytest.mark.parametrize(("under", "over", "both"), LAID)
def test_lay(under, over, both):
    before = json.dumps([under, over])
    assert ladder.lay(over, under) == both
    assert json.dumps([under, over]) == before


def test_the_digest_sees_foot_common_and_rungs(recipe):
    rung = {"name": "a", "train": {"steps": 3}}
    ladders = [
        _parse(recipe, rung),
        _parse(recipe, {**rung, "name": "b"}),
        _parse(recipe, rung, seed=1),
        _parse(recipe, {"name": "a", "train": {"steps": 4}}),
        _parse(recipe, {"name": "a"}, train={"steps": 3}),
        ladder.parse({"rungs": [rung]}),
    ]
    assert len({one.digest() for one in ladders}) == len(ladders)
    assert _parse(recipe, rung).digest() == ladders[0].digest()


# --- figures -------------------------------------------------------------------------------------------------


def test_equal_ratios_lie_equally_far_apart_on_a_logarithmic_axis():
    line = figures.Line(style="series0", x=[1, 10, 100, 3], y=[1, 2, 3, 4])
    x = [x for x, _ in _dots(figures.plot([line], alt="", x_label="", y_label="", log_x=True))["series0"]]
    assert x[2] - x[1] == pytest.approx(x[1] - x[0], abs=0.2)  # written with one decimal
    assert (x[3] - x[0]) / (x[1] - x[0]) == pytest.approx(math.log10(3), abs=0.005)
    with pytest.raises(ValueError, match=r"plot: x is 0, must be above 0 on a logarithmic axis"):
        figures.plot([figures.Line(style="series0", x=[0, 1], y=[1, 2])], alt="", x_label="", y_label="", log_x=True)


@pytest.mark.parametrize("span", [(1, 1), (100, 104), (30, 900), (1, 1e6)])
def test_a_logarithmic_axis_has_ticks(span):
    line = figures.Line(style="series0", x=span, y=[1, 2])
    svg = figures.plot([line], alt="", x_label="", y_label="", log_x=True)
    ticks = [float(word.replace(",", "")) for word in re.findall(r'y="237" text-anchor="middle">([\d.,]+)<', svg)]
    assert len(ticks) >= 2
    assert ticks == sorted(set(ticks))


def test_labels_cover_neither_points_nor_each_other():
    """Eight points close together: with six places for each label there is a way."""
    names = [f"name-{i}" for i in range(8)]
    x, y = [1, 1.5, 2, 2.5, 3, 3.5, 4, 8], [1.0, 1.2, 1.1, 1.3, 1.2, 1.4, 1.3, 2.0]
    svg = figures.plot([figures.Line(style="series0", x=x, y=y, labels=names)], alt="", x_label="", y_label="")
    at = {name: (float(a), float(b)) for a, b, name in re.findall(r'<text x="([\d.]+)" y="([\d.]+)">(name-\d)<', svg)}
    assert list(at) == names
    boxes = [(a, b - 9, a + 6.6 * 6, b + 1) for a, b in at.values()]
    dots = [(a, b, a, b) for a, b in _dots(svg)["series0"]]
    for i, one in enumerate(boxes):
        for other in [*boxes[:i], *dots]:
            assert not (one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])


# --- the shipped ladder --------------------------------------------------------------------------------------


def test_the_shipped_ladder():
    """The name of a structured rung says its recurrent layers' ratio, within what shapes allow; see `factors`."""
    shipped = ladder.parse(configs.read(ROOT / "recipes" / "ladder.toml"))
    assert shipped.foot == "tinylstm"
    ratios = [(rung, float(rung.name.rpartition("-")[2])) for rung in shipped.rungs if rung.name[-1].isdigit()]
    assert len(ratios) > 10
    for rung, ratio in ratios:
        if "model" in rung.changes:
            table = ladder.lay(rung.changes["model"], configs.to_table(Model()))
            layers = cost.layers(configs.build(Model, table))[:2]
            dense = cost.layers(Model())[:2]
            smaller = sum(layer.parameters for layer in dense) / sum(layer.parameters for layer in layers)
            assert 0.75 * ratio < smaller < 1.25 * ratio, rung.name
