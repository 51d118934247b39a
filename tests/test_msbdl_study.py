"""The study of dictionaries in small: its rows, going on, what it refuses; planted problems; digits in halves."""

import json

import jax
import numpy as np
import pytest

from rnnc.bayes.task import Task
from rnnc.recipes import halves, msbdl_study
from rnnc.recipes.planted import alike, noise_share, paired, plant

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
        (["recovery", "--on", "7"], "leave nothing to measure"),
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
    assert result["classify"][0] == {"arm": "raw pixels", "sweeps": 60, "seeds": 2, "fixed": 0.625}
    assert result["classify"][2]["moved"] == 0.75
    assert "62.50" in (tmp_path / "report.html").read_text()
    monkeypatch.setattr(halves, "measure", lambda *_: pytest.fail("measured again"))
    assert msbdl_study.main(argv) == 0
    monkeypatch.setattr(halves, "measure", lambda *_: {"fixed": 0.25})
    assert msbdl_study.main([*argv, "--sweeps", "5"]) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["classify"]
    assert [row["fixed"] for row in rows if row["arm"] == "raw pixels"] == [0.625, 0.25], "of other sweeps, apart"


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    log = '{"step": 100, "loss": 1.0}\n'
    (tmp_path / "log.jsonl").write_text(log)
    (tmp_path / "result.json").write_text('{"train": {}}')
    assert msbdl_study.main(["recovery", "--on", "3", "--arms", "joint", *SMALL, "--out", str(tmp_path)]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert (tmp_path / "log.jsonl").read_text() == log
    (tmp_path / "classify").mkdir()
    (tmp_path / "classify" / "log.jsonl").write_text(log)
    assert msbdl_study.main(["classify", *SMALL, "--out", str(tmp_path)]) == 2
    assert (tmp_path / "classify" / "log.jsonl").read_text() == log


@pytest.mark.filterwarnings("ignore:Orthogonal matching")
@pytest.mark.parametrize("arm", [*msbdl_study.MAIN, *msbdl_study.WHY])
def test_every_arm_learns_dictionaries_of_the_planted_sizes(arm):
    cell = msbdl_study.Cell(on=2, snr_db=30, seed=0, atoms=(8, 16))
    problem = plant(0, atoms=(8, 16), samples=200, on=2, snr_db=30)
    learned = (msbdl_study.MAIN | msbdl_study.WHY)[arm](cell, msbdl_study.Size(200, 30), problem)
    wide = (16, 16) if arm == "concatenated" else (8, 16)
    assert [np.asarray(d).shape for d in learned] == [(20, count) for count in wide]
    assert all(np.isfinite(d).all() for d in learned)
    # far more atoms come near to a planted one than of random directions, of which at 20 numbers 1 % do
    near = [np.mean(alike(t, d).max(axis=1) > 0.9) for t, d in zip(problem.atoms, learned)]
    assert np.mean(near) > (0.0 if arm == "concatenated" else 0.3), near


def test_joint_learning_pays_in_noise():
    """The survey's acceptance test, smaller: 3 of 24 atoms on, 10 dB."""
    gains = []
    for seed in range(2):
        cell = msbdl_study.Cell(on=3, snr_db=10, seed=seed, atoms=(24, 24))
        problem = plant(seed, atoms=(24, 24), samples=500, on=3, snr_db=10)
        found = [msbdl_study.MAIN[arm](cell, msbdl_study.Size(500, 150), problem) for arm in ("joint", "separate")]
        shares = [[msbdl_study.recovered(t, d) for t, d in zip(problem.atoms, ds)] for ds in found]
        gains.append(np.mean(shares[0]) - np.mean(shares[1]))
    assert np.mean(gains) >= 0.1, gains


def test_the_labels_move_atoms_of_halves():
    """What is told as moved is of other atoms than what is told as fixed."""
    parts = [([half[:60] for half in views], labels[:60]) for views, labels in halves.split(0)]
    config = msbdl_study.Msbdl(atoms=(8, 8), sweeps=3, noise_share=(0.2, 0.2))
    model = msbdl_study.msbdl.fit(
        config, parts[0][0], msbdl_study.msbdl.start(config, parts[0][0], jax.random.key(0))
    ).model()
    accuracies = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halves, "_accuracy", lambda state, how, part: accuracies.append(state) or 0.0)
        patch.setattr(halves, "Task", lambda **more: Task(**{**more, "batch": 20, "epochs": 1}))
        halves._tried(1e-3, model, parts, jax.random.key(0))
    fixed, moved = accuracies[0].model, accuracies[-1].model
    np.testing.assert_array_equal(fixed.dictionaries[0], model.dictionaries[0])
    assert np.abs(np.asarray(moved.dictionaries[0] - model.dictionaries[0])).max() > 1e-3
