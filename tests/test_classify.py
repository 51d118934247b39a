"""Laws of the classification recipe: its data, its networks, its sizes, its training, its command line."""

import csv
import itertools
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import scipy.sparse
import soundfile
from members import M, N, quick

from kernels import Stack, build
from rnnc import cost, fixed
from rnnc.export import model
from rnnc.recipes import classifier, classify, classify_report, methods, tasks
from rnnc.recipes.classifier import Fitted, Integers, Perceptron, Recurrent, fit
from rnnc.recipes.tasks import Part, Parts
from rnnc.steps import STEPS, Core
from rnnc.structure import Joint, Kron

ROOT = Path(__file__).parents[1]
EPOCHS, SEEDS = 4, 2
SET = (f"epochs={EPOCHS}", "units=[6]", "cell=gru", "batch=55", "rates=[1e-7, 1e-2]", "ratios=[2.0]")
SMALL = ("--seeds", str(SEEDS), "--method", "dense", "pruned-2x", *(f"--set=digits.{one}" for one in SET))


@pytest.fixture(autouse=True, scope="module")
def devices():
    """All that conftest.py asked for, before a recipe asks for others; and a compiler that is quick, not good."""
    jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "optimised", quick)
        yield


@pytest.fixture(autouse=True)
def loose():
    """Optax mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """The folder of a small table on digits; no test may write into it."""
    out = tmp_path_factory.mktemp("table") / "run"
    with jax.numpy_dtype_promotion("standard"):
        assert classify.main([*SMALL, "--out", str(out)]) == 0
    return out


def _result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def _refused(capsys, message: str, *argv: object) -> None:
    assert classify.main([str(word) for word in argv]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said


def _ones(method: methods.Method) -> dict:
    """Parameters of a method's network, all 1."""
    shapes = jax.eval_shape(method.network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)


def _toy(seed: int = 0, items: int = 200) -> Parts:
    """Two classes that a plane divides."""
    rng = np.random.default_rng(seed)

    def part(count: int) -> Part:
        x = rng.standard_normal((count, 2, 3)).astype(np.float32)
        return Part(x, (x[:, 0, 0] + x[:, 1, 2] > 0).astype(np.int32))

    return Parts(part(items), part(300), part(300), 2)


# --- the table -----------------------------------------------------------------------------------------------


def test_rows_of_a_table(table):
    result = _result(table)
    assert set(result) == {"commit", "command", "config_sha256", "rows"}
    names = ("dense", "dense-8bit", "pruned-2x")
    assert [(row["method"], row["seed"]) for row in result["rows"]] == list(itertools.product(names, range(SEEDS)))
    for row in result["rows"]:
        assert row["task"] == "digits"
        assert row["epochs"] > 0.6 * EPOCHS  # where pruning is over
        assert row["rate"] == 1e-2  # at 1e-7 nothing is learnt
        assert 20 < row["accuracy"] <= 100  # chance is 10
    dense, chip, pruned = (result["rows"][i] for i in (0, SEEDS, -1))
    layer = 3 * 6 * (8 + 6) + 3 * 6
    assert chip["bytes"] == layer + 18 + 2 * 18 + 6 * 10 + 3 * 10  # 8-bit weights, biases of 16 bits, shifts of 8
    assert abs(chip["accuracy"] - dense["accuracy"]) < 2
    assert dense["bytes"] == 4 * (layer + 6 * 10 + 10)
    kept = pruned["parameters"] - 18 - 70  # all but biases and the dense layer
    index = min(2 * kept + 4 * (14 + 1), -(-14 * 18 // 8))
    assert pruned["bytes"] == 4 * pruned["parameters"] + index
    assert 0 <= 4 * (layer // 2 + 70) - pruned["bytes"] < 6  # one weight more would not fit
    assert pruned["ratio"] == pytest.approx(dense["bytes"] / pruned["bytes"], abs=1e-3)
    assert pruned["macs"] == 8 * kept + 60


def test_the_report_holds_the_table(table):
    page = (table / "report.html").read_text(encoding="utf-8")
    rows = _result(table)["rows"]
    for line in classify_report.lines(_result(table)):
        own = [row["accuracy"] for row in rows if row["method"] == line.method]
        assert f"{sum(own) / 2:.2f} ± {abs(own[0] - own[1]) / 2**0.5:.2f}" in page
        assert f"{round(line.bytes):,}" in page
    assert page.count("<polyline") == 2  # the curves of two families


def test_a_table_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    """Stopped in any method, the finished ones stay as they are and are not trained again."""
    trained = []

    def quickly(network, wrap, parts, *, members, epochs, batch, observe):
        if members[0][0] == 0:  # the first seed, at every rate; then the others
            if len(trained) == stop:
                raise KeyboardInterrupt
            trained.append(network)
            assert [seed for seed, _ in members] == [0] * len(classify.Classify().digits.rates)
        else:
            assert members == [(1, max(classify.Classify().digits.rates))]
        observe(1, 50.0)
        params = jax.tree.map(lambda leaf: np.ones(leaf.shape), jax.eval_shape(network.init, jax.random.key(0)))
        return [
            Fitted(valid=60 + 100 * rate, test=len(trained) + seed, epoch=1, params=params) for seed, rate in members
        ]

    monkeypatch.setattr(classify, "fit", quickly)
    monkeypatch.setattr(classify, "in_integers", lambda *_: Integers(50.0, 99))
    floats = lambda folder: [row for row in _result(folder)["rows"] if not row["method"].endswith("-8bit")]
    argv = ["--seeds", "2", "--out"]
    stop = -1
    assert classify.main([*argv, str(tmp_path / "whole")]) == 0
    whole = floats(tmp_path / "whole")
    count = len(trained)
    assert len(whole) == 2 * count
    assert {row["rate"] for row in whole} == {max(classify.Classify().digits.rates)}  # the best on validation
    for stop in (1, 3):
        trained.clear()
        resume = ["--resume"] if stop > 1 else []
        assert classify.main([*argv, str(tmp_path / "run"), *resume]) == 130
        assert "--resume" in capsys.readouterr().err
        assert len(floats(tmp_path / "run")) == (2 if stop == 1 else 2 * (1 + 3))
    trained.clear()
    stop = -1
    assert classify.main([*argv, str(tmp_path / "run"), "--resume"]) == 0
    assert len(trained) == count - 4
    names = [(row["method"], row["seed"], row["bytes"]) for row in whole]
    assert [(row["method"], row["seed"], row["bytes"]) for row in floats(tmp_path / "run")] == names


def test_the_command_line_refuses(table, tmp_path, capsys):
    out = ("--out", tmp_path / "run")
    _refused(capsys, "holds results; add --resume", *SMALL, "--out", table)
    _refused(capsys, "differs from the configuration", *SMALL, "--set", "seed=7", "--resume", "--out", table)
    _refused(capsys, "--task digit: no such name. Did you mean 'digits'", "--task", "digit", *out)
    _refused(capsys, "--method cron: no such name. Did you mean 'kron'", "--method", "cron", *out)
    _refused(capsys, "mnist: needs --data DIR, a folder that holds mnist/mnist.npz", "--task", "all", *out)
    _refused(capsys, "digits: ratios: is", "--set", "digits.ratios=[1.0]", *out)
    _refused(capsys, "digits: units", "--set", "digits.units=[3, 4]", *out)
    _refused(capsys, "seeds: is 0", "--seeds", 0, *out)
    _refused(capsys, "digit: unknown key. Did you mean 'digits'", "--set", "digit.epochs=3", *out)
    assert not (tmp_path / "run").exists()


def test_digits_without_scikit_learn(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    classify._parts.cache_clear()
    _refused(capsys, r"needs scikit-learn.*pip install 'rnnc\[demo\]'", "--out", tmp_path / "run")


def test_an_override_leaves_the_rest_of_a_task():
    args = classify._parser().parse_args(
        ["--set", "mnist.epochs=3", "--config", str(ROOT / "recipes" / "classify.toml")]
    )
    config = classify._config(args)
    assert (config.mnist.epochs, config.mnist.units, config.mnist.source) == (3, (40,), "mnist")
    assert config.keywords_gru.cell == "gru"


# --- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "units", "inputs", "classes", "dense_kib", "kron_kib"),
    [
        ("lstm", 40, 28, 10, 44.73, 4.05),
        ("lstm", 118, 10, 12, 243.42, 15.30),
        ("gru", 154, 10, 12, 305.04, 15.01),
    ],
)
def test_sizes_of_the_papers(cell, units, inputs, classes, dense_kib, kron_kib):
    """Whole models in KiB of float32, to the printed digit."""
    found = {m.name: m for m in methods.recurrent(cell, units, inputs, 28, classes, ())}
    for name, kib in (("dense", dense_kib), ("kron", kron_kib)):
        params = _ones(found[name])
        assert round(found[name].stored(params).bytes / 1024, 2) == kib
        assert found[name].numbers * 4 == found[name].stored(params).bytes


@pytest.mark.parametrize("cell", STEPS)
def test_methods_meet_their_sizes(cell):
    """At the bytes of the Kronecker model and at a tenth of the layer, each as near as its steps allow."""
    units, inputs, classes, gates = 48, 16, 10, STEPS[cell].gates
    found = {m.name: m for m in methods.recurrent(cell, units, inputs, 28, classes, (10.0,))}
    sizes = {}
    for name, method in found.items():
        params = _ones(method)
        if method.pruner:
            leaves = [params["cell"]["kernel"]["w"], params["cell"]["recurrent"]["w"]]
            total = sum(leaf.size for leaf in leaves)
            gone = total - round(method.kept * total)
            for leaf in leaves:  # zeros in the first of them, where the split does not matter
                part = min(gone, leaf.size)
                leaf.reshape(-1)[:part] = 0
                gone -= part
        sizes[name] = method.stored(params).bytes
    head = (units + 1) * classes * 4
    tenth = (sizes["dense"] - head) / 10 + head
    for name, size in sizes.items():
        target = tenth if name.endswith("-10x") else sizes["kron"]
        if name.startswith("pruned"):
            assert 0 <= target - size < 7, name  # a weight and its index are 6 bytes; the target rounds to a number
        elif name.startswith("lowrank"):
            step = 4 * gates * (inputs + 2 * units)
            assert abs(size - target) <= step / 2 + 2 or method.network.core.kernel.rank == 1, name
        elif name.startswith(("kron", "hybrid")):
            assert abs(size - target) <= 0.2 * (target - head) + 2, name
    assert sizes["small"] < 1.2 * sizes["kron"]
    assert {"dense", "small", "lowrank", "kron", "lowrank-10x", "hybrid-10x"} <= set(sizes)


@pytest.mark.parametrize(("rows", "columns", "kept"), [(68, 160, 266), (160, 68, 300), (5, 9, 45), (784, 300, 9000)])
def test_an_index_is_that_of_a_sparse_matrix(rows, columns, kept):
    """As scipy stores it, with 16-bit columns; or a bitmap where that is smaller."""
    w = np.zeros(rows * columns, np.float32)
    w[np.random.default_rng(0).permutation(w.size)[:kept]] = 1
    w = w.reshape(rows, columns)
    csr = scipy.sparse.csr_array(w if rows < columns else w.T)
    wanted = min(csr.indices.astype(np.uint16).nbytes + csr.indptr.astype(np.int32).nbytes, np.packbits(w > 0).nbytes)
    assert cost.index_bytes(w.shape, kept) == wanted


def test_lenet_keeps_a_share_of_all_its_weights():
    dense, pruned, ast = methods.perceptron((784, 300, 100, 10), (25.0,))
    assert dense.numbers == 266_610
    for method in (pruned, ast):
        kept = round(method.kept * (784 * 300 + 300 * 100 + 100 * 10)) + 410
        assert kept <= 266_610 / 25 < kept + 1


# --- networks and training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", STEPS)
def test_a_network_in_integers_is_the_one_in_c(cell, tmp_path):
    """Its accuracy is that of the exported cell with the dense layer computed by hand."""
    units, items = 12, 40
    network = Recurrent(core=Core(step=STEPS[cell], kernel=Kron(), recurrent=Joint()), inputs=8, units=units, classes=4)
    drawn = quick(network.init)(jax.random.key(1))
    params = jax.tree.map(lambda a: (3.0 if a.ndim > 1 else 0.1) * np.asarray(a), drawn)
    rng = np.random.default_rng(0)
    parts = Parts(
        *(Part(rng.normal(0, 1, (items, 9, 8)).astype(np.float32), rng.integers(0, 4, items)) for _ in "123"), 4
    )
    with pytest.MonkeyPatch.context() as patch:
        seen, sizes = [], model.sizes
        patch.setattr(model, "sizes", lambda cell: seen.append(cell) or sizes(cell))
        found = classifier.in_integers(network, params, parts)
    (chip,) = seen
    formats = chip.core.arith.formats
    library = build(tmp_path, model.write(tmp_path, "unit", chip))
    h = np.stack([Stack(library, "unit", units).run(_put(x, formats.x))[0][-1] for x in parts.test.x])
    taken = np.asarray(fixed.requant(h.astype(np.int32), formats.h.frac - formats.h_in.frac, formats.h_in.bits))
    frac = np.asarray(fixed.weight_frac(params["head"]["w"], (0,), 8))
    w = np.floor(params["head"]["w"] * 2.0**frac + 0.5)
    sums = np.floor(taken @ w * 2.0 ** (12 - frac - formats.h_in.frac) + 0.5) + np.floor(
        params["head"]["b"] * 4096 + 0.5
    )
    assert found.accuracy == pytest.approx(100 * np.mean(sums.argmax(axis=1) == parts.test.y))
    assert len(set(sums.argmax(axis=1))) > 1
    assert found.bytes == model.sizes(chip)[0].flash + 4 * (units + 3)


def _put(x: np.ndarray, form: fixed.Format) -> np.ndarray:
    return np.asarray(fixed.quantise(x, form)).astype(np.int16)


@pytest.mark.parametrize("cell", STEPS)
def test_a_network_is_its_cell_step_by_step(cell):
    """Written out or not: the same scores, to the rounding of sums of a dozen numbers over 3 steps."""
    core = Core(step=STEPS[cell], kernel=Kron(), recurrent=Joint())
    network = Recurrent(core=core, inputs=N, units=M, classes=3)
    params = quick(network.init)(jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (4, 3, N))

    @quick
    def wanted(params, x):
        carry = core.carry((4,), M)
        for t in range(x.shape[1]):
            carry = core(params["cell"], carry, x[:, t])
        return core.output(carry) @ params["head"]["w"] + params["head"]["b"][None]

    np.testing.assert_allclose(quick(network)(params, x), wanted(params, x), rtol=0, atol=1e-5)


def test_a_network_learns_and_is_scored_on_its_own_parts():
    """Two members at once: each is scored as numpy scores it, and neither depends on the other."""
    parts, seen = _toy(items=800), []
    network, options = Perceptron(widths=(6, 8, 2)), {"epochs": 10, "batch": 40}
    pair = fit(
        network, lambda tx: tx, parts, members=[(0, 0.03), (1, 0.01)], observe=lambda *e: seen.append(e), **options
    )
    for found in pair:
        first, second = found.params["0"], found.params["1"]
        for part, accuracy in ((parts.valid, found.valid), (parts.test, found.test)):
            hidden = np.maximum(part.x.reshape(-1, 6) @ first["w"] + first["b"], 0)
            right = np.argmax(hidden @ second["w"] + second["b"], axis=1) == part.y
            assert accuracy == pytest.approx(100 * right.mean(), abs=1e-4)  # a percentage in float32
            assert accuracy > 95
    assert [epoch for epoch, _ in seen] == list(range(1, 11))

    late = []
    (alone,) = fit(network, lambda tx: tx, parts, members=[(1, 0.01)], observe=lambda *e: late.append(e), **options)
    jax.tree.map(np.testing.assert_array_equal, alone.params, pair[1].params)
    assert alone[:3] == pair[1][:3]
    best = max(valid for epoch, valid in late if epoch > 6)
    assert (alone.epoch, alone.valid) == max((e, v) for e, v in late if e > 6 and v == best)


def test_pruning_ends_before_the_best_epoch_is_looked_for():
    """Whatever the method: what is returned has exactly the share of weights that was asked for."""
    parts, epochs, batch = _toy(), 5, 40
    for method in methods.perceptron((6, 12, 2), (3.0,))[1:]:
        wrap = method.wrap(epochs * (len(parts.train.x) // batch))
        (found,) = fit(method.network, wrap, parts, members=[(0, 0.02)], epochs=epochs, batch=batch)
        kept = int((6 * 12 + 12 * 2 + 14) / 3) - 14
        assert method.stored(found.params).numbers == kept + 14, method.name
        assert sum(np.count_nonzero(found.params[i]["w"]) for i in ("0", "1")) == kept


def test_gradients_are_clipped():
    """However loud the data are."""
    moves = []

    def watch(tx: optax.GradientTransformation) -> optax.GradientTransformation:
        def update(updates, state, params=None):
            norm = optax.tree.norm(updates)
            jax.debug.callback(lambda n: moves.append(float(n)), norm)
            return tx.update(updates, state, params)

        return optax.GradientTransformation(tx.init, update)

    parts = _toy()
    loud = parts._replace(train=Part(parts.train.x * 1e4, parts.train.y))
    fit(Perceptron(widths=(6, 2)), watch, loud, members=[(0, 0.01)], epochs=2, batch=100)
    jax.effects_barrier()
    assert len(moves) == 4
    assert max(moves) <= 1 + 1e-5  # a norm of 1, rounded


# --- data ----------------------------------------------------------------------------------------------------


def _write_images(folder: Path, source: str, side: int, train: int = 40, test: int = 10) -> dict[str, np.ndarray]:
    """Images whose first row tells their number."""
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        x = np.zeros((count, side, side), np.uint8)
        x[:, 0, 0] = np.arange(count)
        arrays |= {f"x_{split}": x, f"y_{split}": (np.arange(count) % 10).astype(np.int64)}
    (folder / source).mkdir(parents=True, exist_ok=True)
    np.savez(folder / source / f"{source}.npz", **arrays)
    return arrays


@pytest.mark.parametrize(("source", "side"), [("mnist", 28), ("usps", 16)])
def test_images_are_split_once(tmp_path, source, side):
    _write_images(tmp_path, source, side)
    parts = tasks.load(source, tmp_path)
    number = lambda part: np.rint(part.x[:, 0, 0] * 255).astype(int)
    for part in parts[:3]:
        np.testing.assert_array_equal(part.y, number(part) % 10)
    assert sorted([*number(parts.train), *number(parts.valid)]) == list(range(40))
    assert len(parts.valid.x) == 8
    np.testing.assert_array_equal(number(parts.test), np.arange(10))


def test_digits_are_split_once():
    parts = tasks.load("digits", None)
    items = {part.x[i].tobytes() for part in parts[:3] for i in range(len(part.x))}
    assert len(items) == 1797  # no image is in two parts, and none twice
    assert max(part.x.max() for part in parts[:3]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((40, 28, 27), np.uint8)}, r"holds uint8 \[40, 28, 27\].*must be x_train \[N, 28, 28\]"),
        ({"x_train": np.zeros((40, 28, 28), np.float32)}, "holds float32"),
        ({"y_train": np.full(40, 10)}, "from 0 to 9"),
        ({"y_test": np.zeros(9, int)}, r"int64 \[9\]"),
        ({"x_test": None}, "cannot be read.*x_test"),
    ],
)
def test_odd_images_are_refused(tmp_path, change, message):
    arrays = {**_write_images(tmp_path, "mnist", 28), **change}
    path = tmp_path / "mnist" / "mnist.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=message) as error:
        tasks.load("mnist", tmp_path)
    assert str(path) in str(error.value)


def test_missing_and_damaged_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"usps\.npz: no such file, must be an \.npz file with x_train \[N, 16, 16\]"):
        tasks.load("usps", tmp_path)
    (tmp_path / "usps").mkdir()
    (tmp_path / "usps" / "usps.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"usps\.npz: cannot be read"):
        tasks.load("usps", tmp_path)


def _write_words(folder: Path, suffix: str, rate_hz: int, lengths: tuple[int, ...], seed: int = 0) -> None:
    """Three parts of a set of two words: hum and hiss, one clip of each length."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for split in ("train", "valid", "test"):
        sounds, rows, at = [], [], 0
        for i, length in enumerate(lengths):
            sound = rng.standard_normal(length) if i % 2 else np.sin(np.arange(length) / (3 + rng.random()))
            sounds.append(0.2 * sound)
            rows.append((at, length, ("hum", "hiss")[i % 2]))
            at += length
        soundfile.write(folder / f"{split}{suffix}", np.concatenate(sounds), rate_hz)
        _write_table(folder / f"{split}.csv", rows)


def _write_table(path: Path, rows: list, head: tuple[str, ...] = ("start", "length", "label")) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


def _slow_mfcc(x: np.ndarray, rate_hz: int) -> np.ndarray:
    """Sums written out: Fourier and cosine transforms as matrices in float64, mel triangles from their definition."""
    size, hop = rate_hz // 25, rate_hz // 50
    i = np.arange(size)
    k = np.arange(size // 2 + 1)
    fourier = np.exp(-2j * np.pi * np.outer(i, k) / size) * (0.5 - 0.5 * np.cos(2 * np.pi * i / size))[:, None]
    mel = lambda hz: 2595 * np.log10(1 + hz / 700)
    edges = 700 * (10 ** (np.linspace(mel(60), mel(rate_hz * 0.475), 42) / 2595) - 1)
    hz, width = k * rate_hz / size, rate_hz / size
    bands = np.stack([
        np.maximum(0, 1 - np.where(hz < c, (c - hz) / max(c - a, width), (hz - c) / max(b - c, width)))
        for a, c, b in zip(edges, edges[1:], edges[2:])
    ], axis=1)  # fmt: skip
    bands /= bands.sum(axis=0)
    j, q = np.arange(40), np.arange(10)
    cosine = np.cos(np.pi * np.outer(j + 0.5, q) / 40) * np.where(q == 0, (1 / 40) ** 0.5, (2 / 40) ** 0.5)
    frames = [x[start : start + size] for start in range(0, len(x) - size + 1, hop)]
    return np.stack([np.log(np.abs(frame @ fourier) @ bands + 1e-4) @ cosine for frame in frames])


@pytest.mark.parametrize("rate_hz", [8000, 16000])
def test_cepstra_are_the_sums_of_their_definition(rate_hz):
    x = np.random.default_rng(0).standard_normal(rate_hz // 4) * np.linspace(0.01, 1, rate_hz // 4)
    np.testing.assert_allclose(tasks.mfcc(x, rate_hz), _slow_mfcc(x, rate_hz), rtol=0, atol=1e-4)  # float32 bands


def test_words_are_standardised_by_the_training_part_and_end_with_the_last_frame(tmp_path):
    lengths = (3000, 8000, 2000, 5280, 100, 4000)
    _write_words(tmp_path / "digits", ".flac", 8000, lengths)
    parts = tasks.load("spoken", tmp_path)
    frames = [0 if n < 320 else 1 + (min(n, 5280) - 320) // 160 for n in lengths]
    frames[4] = 1  # shorter than a window: padded to one
    raw = {}
    for split, part in zip(("train", "valid", "test"), parts):
        sound, _ = soundfile.read(tmp_path / "digits" / f"{split}.flac")
        starts = np.concatenate([[0], np.cumsum(lengths)])
        clips = [sound[a:b] for a, b in itertools.pairwise(starts)]
        power = np.cumsum(np.concatenate([[0], clips[1] ** 2]))
        best = max(range(8000 - 5280 + 1), key=lambda s: power[s + 5280] - power[s])
        clips[1] = clips[1][best : best + 5280]  # the loudest part of the one that is too long
        clips[4] = np.pad(clips[4], (0, 220))
        raw[split] = [_slow_mfcc(clip, 8000) for clip in clips]
        assert part.y.tolist() == [1, 0] * 3  # hiss comes before hum
        assert [len(one) for one in raw[split]] == frames
    every = np.concatenate(raw["train"])
    for split, part in zip(("train", "valid", "test"), parts):
        for row, own, count in zip(part.x, raw[split], frames):
            wanted = (own - every.mean(axis=0)) / every.std(axis=0)
            np.testing.assert_allclose(
                row[32 - count :], wanted, rtol=0, atol=2e-3
            )  # float32, divided by small spreads
            assert not row[: 32 - count].any()


def test_keywords_without_a_column_length_last_a_second(tmp_path):
    _write_words(tmp_path / "keywords", ".ogg", 16000, (16000, 16000))
    for split in ("train", "valid", "test"):
        _write_table(tmp_path / "keywords" / f"{split}.csv", [(0, "b"), (16000, "a")], ("start", "label"))
    parts = tasks.load("keywords", tmp_path)
    assert parts.train.x.shape == (2, 49, 10)
    assert parts.train.y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ([(0, 3000, "a")], ("start", "length", "word"), "bad table .*'label'.*must have the columns"),
        ([("x", 3000, "a")], ("start", "length", "label"), "bad table"),
        ([], ("start", "length", "label"), "has no rows"),
        ([(0, 3000, "a"), (2000, 3000, "b")], ("start", "length", "label"), r"line 3: start 2000, length 3000.*4000"),
        ([(-1, 30, "a")], ("start", "length", "label"), "line 2: start -1"),
        ([(0, 30, "")], ("start", "length", "label"), "label ''"),
    ],
)
def test_odd_tables_are_refused(tmp_path, rows, head, message):
    _write_words(tmp_path / "digits", ".flac", 8000, (4000,))
    _write_table(tmp_path / "digits" / "train.csv", rows, head)
    with pytest.raises(ValueError, match=message) as error:
        tasks.load("spoken", tmp_path)
    assert str(tmp_path / "digits" / "train.csv") in str(error.value)


def test_odd_sounds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train\.flac: no such file"):
        tasks.load("spoken", tmp_path)
    _write_words(tmp_path / "digits", ".flac", 16000, (4000,))
    with pytest.raises(ValueError, match=r"train\.flac: its rate is 16000 Hz, must be 8000 Hz"):
        tasks.load("spoken", tmp_path)
    (tmp_path / "digits" / "train.csv").unlink()
    soundfile.write(tmp_path / "digits" / "train.flac", np.zeros(4000), 8000)
    with pytest.raises(ValueError, match=r"train\.csv: no such file, must be a table with the columns"):
        tasks.load("spoken", tmp_path)
