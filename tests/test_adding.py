"""The adding recipe in small: its rows, its files, going on after a stop, and what it refuses."""

import json

import jax
import numpy as np
import pytest

from rnnc.recipes import adding

SMALL = [
    f"--set={setting}"
    for setting in ("units=6", "length=10", "items=20", "train.steps=6", "train.batch=8", "train.valid_every=3")
]


@pytest.fixture(autouse=True)
def loose():
    """Optax mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_rows_have_two_marks_and_their_sum():
    x, y, coins = adding.rows((3, 1), 400, 50)
    assert (x[..., 1].sum(axis=1) == 2).all()
    first, last = x[:, :5, 1].sum(axis=1), x[:, 25:, 1].sum(axis=1)
    assert (first == 1).all()
    assert (last == 1).all()
    np.testing.assert_allclose(y, [row[row[:, 1] == 1, 0].sum() for row in x], rtol=1e-6)
    assert np.var(y) == pytest.approx(adding.VARIANCE, rel=0.2)
    assert np.mean(coins < 0.3) == pytest.approx(0.3, abs=0.02)
    again = adding.rows((3, 1), 400, 50)
    np.testing.assert_array_equal(again.x, x)


def test_a_run_leaves_its_result_and_goes_on(tmp_path, capsys):
    out = tmp_path / "run"
    argv = [*SMALL, "--seed", "3", "--out", str(out)]
    assert adding.main(argv) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["target_variance"] == pytest.approx(1 / 6)
    assert result["seed"] == 3
    assert "--seed 3" in result["command"]
    assert 0 < result["update_rate"] <= 1
    assert result["random"]["update_rate"] == pytest.approx(result["update_rate"], abs=0.15)
    assert result["solved"] == (result["mse"] < 1 / 600)
    page = (out / "report.html").read_text()
    assert f"{result['mse']:.6f}" in page
    assert page.count("<polyline") >= 4  # two curves in two charts
    capsys.readouterr()
    assert adding.main(argv) == 2
    assert "add --resume" in capsys.readouterr().err
    assert adding.main([*argv, "--resume"]) == 0
    again = json.loads((out / "result.json").read_text())
    assert (again["mse"], again["update_rate"]) == (result["mse"], result["update_rate"])
    assert adding.main([*argv, "--set", "units=7", "--resume"]) == 2
    assert "differs from the configuration" in capsys.readouterr().err


def test_the_command_line_refuses(tmp_path, capsys):
    for setting, message in (
        ("unit=3", "unit: unknown key. Did you mean 'units'"),
        ("length=3", "length: is 3, must be 4 or more"),
        ("cell=lst", "cell"),
    ):
        assert adding.main(["--set", setting, "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
