"""The study of sparse recovery: its problems, its scores, its competitors, and that a stopped one goes on."""

import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='scikit-learn comes with "rnnc[demo]"')

from rnnc.bayes import rsbl
from rnnc.recipes import sparse_recovery as study


@pytest.mark.parametrize("design", study.DESIGNS)
def test_problems_are_what_they_say(design):
    found = study.draw(design, 40, 80, 5, 20.0, [(0, t) for t in range(30)])
    np.testing.assert_allclose(np.linalg.norm(found.phi, axis=1), 1)
    assert np.all((found.x > 0).sum(axis=1) == 5)
    signal = np.einsum("bnm,bm->bn", found.phi, found.x)
    noise = np.mean((found.y - signal) ** 2, axis=1)
    # 30 problems of 40 samples: the mean of the noise's energy is known to 4 %.
    assert np.mean(noise / found.sigma2) == pytest.approx(1, abs=0.15)
    assert 10 * np.log10(np.mean(signal**2, axis=1) / found.sigma2) == pytest.approx(20)
    again = study.draw(design, 40, 80, 5, 20.0, [(0, 7)])
    np.testing.assert_array_equal(again.y[0], found.y[7])


def test_designs_differ_as_named():
    rng = np.random.default_rng(0)
    values = {name: np.linalg.svd(make(rng, 40, 80), compute_uv=False) for name, make in study.DESIGNS.items()}
    assert study.nonnegative(rng, 4, 9).min() >= 0
    assert np.sum(values["low-rank"] > 1e-9 * values["low-rank"][0]) == 20
    assert values["ill-conditioned"][0] / values["ill-conditioned"][-1] == pytest.approx(1000)
    assert values["gaussian"][-1] > 0.1 * values["gaussian"][0]


@pytest.mark.parametrize("name", study.METHODS)
def test_every_method_solves_an_easy_problem(name):
    given = study.draw("gaussian", 40, 60, 3, 40.0, [(1, t) for t in range(4)])
    nmse, support = study.errors(study.METHODS[name](given), given.x)
    # Least squares that knows the support is off by sqrt(3 / 40) 1 % = 0.3 %, 50 dB below; what others leave on the
    # atoms that are off, and the bias of the lasso, stay below 10 %.
    assert np.median(nmse) < 0.01, nmse
    assert np.median(support) == 0, support


def test_the_lasso_stops_at_the_noise():
    given = study.draw("gaussian", 40, 60, 3, 20.0, [(2, 0)])
    x = study.nn_lasso(given)[0]
    left = np.sum((given.y[0] - given.phi[0] @ x) ** 2)
    bound = 40 * given.sigma2[0]
    assert 0.5 * bound < left <= bound  # the next point of the path, 20 % further, is within


def test_r_sbl_beats_least_squares_where_it_is_hard():
    """20 of 100 numbers from 40, at 20 dB: what the recipe runs, in single precision, against NNLS and cut SBL."""
    given = study.draw("gaussian", 40, 100, 16, 20.0, [(3, i) for i in range(40)])
    found = {
        name: study.errors(study.METHODS[name](given), given.x) for name in ("diagonal", "amp", "nnls", "sbl-clip")
    }
    for name in ("diagonal", "amp"):
        for rival in ("nnls", "sbl-clip"):
            assert np.mean(found[name][0]) < 0.8 * np.mean(found[rival][0]), (name, rival)
            assert np.mean(found[name][1]) < np.mean(found[rival][1]), (name, rival)
    exact = rsbl.fit(given.phi, given.y, sigma2=given.sigma2, iterations=200, tolerance=1e-4).x
    assert np.mean(study.errors(exact, given.x)[0]) == pytest.approx(np.mean(found["diagonal"][0]), rel=0.05)


def test_a_cell_is_measured_once(tmp_path):
    words = ["--trials", "2", "--size", "20", "30", "--design", "gaussian", "--method", "nnls", "--out", str(tmp_path)]
    assert study.main([*words, "--k", "2", "2", "--snr-db", "20", "20.0"]) == 0
    assert len(json.loads((tmp_path / "result.json").read_text())["rows"]) == 1


def test_a_run_writes_rows_and_goes_on(tmp_path, capsys):
    words = ["--trials", "2", "--size", "20", "30", "--design", "gaussian", "--method", "nnls", "nn-omp"]
    words += ["--out", str(tmp_path)]
    assert study.main([*words, "--k", "2"]) == 0
    first = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {row["method"] for row in first} == {"nnls", "nn-omp"}
    assert {"design", "snr_db", "k", "method", "nmse_db", "support_error"} <= set(first[0])
    assert study.main([*words, "--k", "2", "3"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert study.main([*words, "--k", "2", "3", "--resume"]) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert rows[:2] == first
    assert [row["k"] for row in rows] == [2, 2, 3, 3]
    assert _sections(tmp_path) == ["By k: 20 dB, gaussian"]
    assert study.main([*words, "--k", "2", "--trials", "3", "--resume"]) == 2
    assert "--trials: is 3" in capsys.readouterr().err


def _sections(folder):
    """The headings whose sections hold pictures."""
    parts = (folder / "report.html").read_text().split("<h2>")[1:]
    return [part[: part.index("</h2>")] for part in parts if 'role="img"' in part]


def test_the_report_draws_whatever_there_is_more_than_one_of(tmp_path):
    words = ["--trials", "2", "--size", "20", "30", "--method", "nnls", "--out", str(tmp_path), "--k", "2"]
    assert study.main([*words, "--design", "gaussian"]) == 0
    assert _sections(tmp_path) == []
    assert study.main([*words, "--design", "gaussian", "low-rank", "--snr-db", "10", "20", "--resume"]) == 0
    by_snr = [f"By SNR: k = 2, {design}" for design in ("gaussian", "low-rank")]
    assert _sections(tmp_path) == [*by_snr, *(f"By design: k = 2, {snr} dB" for snr in (20, 10))]
    page = (tmp_path / "report.html").read_text()
    assert all(page.count(f">{name}</text>") == 4 for name in ("gaussian", "low-rank"))  # 2 SNRs, 2 errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--design", "gausian"], "gaussian"),
        (["--method", "nmls"], "nnls"),
        (["--k", "0"], "--k"),
        (["--k", "500"], "--k"),
        (["--trials", "0"], "--trials"),
        (["--snr-db", "nan"], "--snr-db"),
        (["--size", "1", "4", "--k", "1"], "--size"),
    ],
)
def test_bad_options_are_named(words, message, tmp_path, capsys):
    assert study.main([*words, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
