"""The study of dictionaries in small: its rows, going on, what it refuses; planted problems; digits in halves."""

import json

import numpy as np
import pytest

from rnnc.recipes import halves, msbdl_study
from rnnc.recipes.planted import noise_share, paired, plant

SMALL = ["--seeds", "1", "--samples", "120", "--sweeps", "2"]


def test_planted_samples_are_sparse_sums_of_atoms_and_noise():
    problem = plant(0, atoms=(10, 20), samples=4000, on=2, snr_db=10)
    for d, y, per_root in zip(problem.atoms, problem.views, (1, 2)):
        np.testing.assert_allclose(np.linalg.norm(d, axis=0), 1)
        # 2 roots of unit coefficients: energy 2 a root's atom, plus the noise; 4000 samples: 3 %
        energy = np.mean(np.sum(y**2, axis=1))
        assert energy == pytest.approx(2 * per_root / (1 - noise_share(10)), rel=0.05)
    again = plant(0, atoms=(10, 20), samples=4000, on=2, snr_db=10)
    np.testing.assert_array_equal(again.views[1], problem.views[1])


def test_pairs_are_counted():
    problem = plant(0, atoms=(10, 20), samples=30)
    assert paired(problem.atoms, problem.atoms) == 1
    rolled = np.roll(problem.atoms[1], 2, axis=1)  # every group stands at the next root
    assert paired(problem.atoms, (problem.atoms[0], rolled)) == 0
    within = problem.atoms[1][:, np.arange(20) ^ 1]  # the two atoms of each group change places
    assert paired(problem.atoms, (problem.atoms[0], within)) == 1


def test_a_study_keeps_its_rows_and_goes_on(tmp_path, capsys):
    argv = ["recovery", "--on", "3", "--snr-db", "20", "--arms", "joint", "separate", *SMALL, "--out", str(tmp_path)]
    assert msbdl_study.main(argv) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(row["arm"], row["seeds"]) for row in result["table"]] == [("joint", 1), ("separate", 1)]
    rows = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(rows.splitlines(keepends=True)[0] + '{"part": "reco')  # killed while writing
    capsys.readouterr()
    assert msbdl_study.main(argv) == 0
    said = capsys.readouterr().out
    assert "separate, s = 3, 20 dB, seed 0" in said
    assert "joint, s = 3, 20 dB, seed 0" not in said
    kept = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in kept] == ["joint", "separate"]
    assert kept[1]["recovered"] == json.loads(rows.splitlines()[1])["recovered"]
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_the_study_refuses(tmp_path, capsys):
    for argv, message in (
        (["recover"], "PART: is 'recover', must be one of recovery"),
        (["--arms", "join"], "--arms: is 'join'"),
        (["--seeds", "0"], "--seeds: is 0, must be 1 or more"),
    ):
        assert msbdl_study.main([*argv, "--out", str(tmp_path / "new")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.filterwarnings("ignore:Orthogonal matching")
def test_k_svd_finds_what_is_planted():
    cell = msbdl_study.Cell(on=2, snr_db=30, seed=0, atoms=(12, 12))
    problem = plant(0, atoms=(12, 12), samples=300, on=2, snr_db=30)
    found = msbdl_study.MAIN["K-SVD"](cell, msbdl_study.Size(300, 100), problem)
    assert np.mean([msbdl_study.recovered(t, d) for t, d in zip(problem.atoms, found)]) >= 0.8


def test_halves_are_drawn_anew_and_apart():
    one, two = halves.split(0), halves.split(1)
    assert not np.array_equal(one[0][1], two[0][1])
    whole = [np.concatenate(part[0], axis=1) for part in one]
    np.testing.assert_allclose(whole[0].mean(axis=0), 0, atol=1e-5)
    assert np.bincount(np.concatenate([part[1] for part in one])).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]


def test_the_choice_looks_at_validation_alone():
    assert halves._chosen([(0.9, 0.1), (0.9, 0.8), (0.8, 0.9)]) == 0.1


def test_digits_are_part_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(
        halves,
        "measure",
        lambda arm, seed, sweeps: {"fixed": 0.5 + seed / 4} | ({"moved": 0.75} if arm == "joint" else {}),
    )
    argv = ["classify", "--seeds", "2", "--out", str(tmp_path)]
    assert msbdl_study.main(argv) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["classify"][0] == {"arm": "raw pixels", "seeds": 2, "fixed": 0.625}
    assert result["classify"][2]["moved"] == 0.75
    assert "62.50" in (tmp_path / "report.html").read_text()
    monkeypatch.setattr(halves, "measure", lambda *_: pytest.fail("measured again"))
    assert msbdl_study.main(argv) == 0
