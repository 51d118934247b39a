"""Laws of the command line: the whole job in small, its files, what it refuses, and the README's examples."""

import io as byte_io
import json
import logging
import re
import shutil
import time
import tomllib
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import soundfile
from damaged import damage

from kernels import build, compiler
from rnnc import config as configs
from rnnc import container
from rnnc.audio import io
from rnnc.recipes import denoise, enhance
from rnnc.recipes.enhance import Enhance, main
from rnnc.recipes.run import Run, load_model
from rnnc.train import checkpoint

ROOT = Path(__file__).parents[1]
METRICS = ("si_sdr_db", "sdr_db", "pesq_wb", "stoi", "estoi")


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """A corpus cache of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNC_CACHE", str(tmp_path_factory.mktemp("cache")))
        jax.devices()  # all that conftest.py asked for, before a recipe asks for fewer
        yield


@pytest.fixture(scope="session")
def smoke(cache, tmp_path_factory) -> Run:
    """The smoke recipe, once; no test may write into its folder."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    with jax.numpy_dtype_promotion("standard"):
        assert main(["--config", "smoke", "--out", str(out)]) == 0
    return Run(out)


@pytest.fixture(autouse=True)
def loose():
    """Optax mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _sound(path: Path, rate_hz: int, n: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = 0.3 * np.sin(np.arange(n) / 9)[:, None] + 0.05 * rng.standard_normal((n, channels))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, x, rate_hz)
    return x


def _refused(capsys, message: str, *argv: object, status: int = 2) -> None:
    assert main([str(word) for word in argv]) == status
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said


# --- the whole job -------------------------------------------------------------------------------------------


def test_the_files_of_a_run(smoke):
    names = {p.name for p in smoke.folder.iterdir()}
    assert names == {"config.toml", "log.jsonl", "checkpoints", "model.rnnc", "result.json", "report.html", "examples"}
    assert checkpoint.steps(smoke.checkpoints) == [20, 40]
    given = configs.load(Enhance, ROOT / "recipes" / "smoke.toml")
    assert configs.load(Enhance, smoke.config) == given


def test_the_log_of_a_run(smoke):
    events = [json.loads(line) for line in smoke.log.read_text().splitlines()]
    assert events[0] == {"event": "start", "step": 0, "devices": events[0]["devices"]}
    assert [e["step"] for e in events if "loss" in e] == [10, 20, 30, 40]
    assert [e["step"] for e in events if "valid" in e] == [20, 40]


def test_result(smoke):
    result = json.loads(smoke.result.read_text())
    config = configs.load(Enhance, smoke.config)
    assert result["config_sha256"] == configs.digest(config)
    assert re.fullmatch(r"[0-9a-f]{12}\+?|v\d.*", result["commit"])
    assert result["command"].startswith("python -m rnnc.recipes.enhance --config smoke --out ")
    arrays, meta = container.read(smoke.model)
    numbers = sum(a.size for a in arrays.values())
    assert result["model"]["parameters"] == numbers
    assert result["model"]["bytes"] == 4 * numbers
    matrices = sum(a.size for name, a in arrays.items() if a.ndim == 2)
    assert result["model"]["macs_per_frame"] == matrices
    assert result["train"]["steps"] == 40
    assert result["train"]["frames_per_s"] > 0
    for version in ("noisy", "enhanced", "gain"):
        for metric in METRICS:
            score = result["test"][version][metric]
            assert score["n"] + score["undefined"] == config.data.test_items
            assert score["n"] == 0 or score["low"] <= score["mean"] <= score["high"]
    assert meta["config_sha256"] == result["config_sha256"]
    assert all(np.isfinite(a).all() for a in arrays.values())


def test_report_is_one_file(smoke):
    page = (smoke.folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(link|script)[^>]*(href|src)=", page)
    loaded = re.findall(r"""(?:(?<![-\w])(?:src|srcset|poster)=|url\()\s*["']?([^"'\s>)]*)""", page)
    assert loaded, "pictures and players are there"
    assert [at[:60] for at in loaded if not at.startswith(("data:", "#"))] == []
    assert not re.search(r"@import|https?://(?!www\.w3\.org/)[^\s\"'<]*\.(css|js|png|svg|woff)", page)


def test_examples_are_sound(smoke):
    table = json.loads((smoke.examples / "examples.json").read_text())
    assert len(table) == 3
    for row in table:
        parts = [io.read(smoke.examples / f"{row['name']}.{k}.flac") for k in ("noisy", "enhanced", "clean")]
        assert len({len(x) for x in parts}) == 1
        assert all(np.abs(x).max() > 1e-3 for x in parts)


def test_a_second_run_in_the_same_folder_is_refused(smoke, capsys):
    before = _files(smoke.folder)
    _refused(capsys, r"holds a run; add --resume to go on", "--config", "smoke", "--out", smoke.folder)
    assert _files(smoke.folder) == before


def test_resume_with_another_configuration_is_refused(smoke, capsys):
    words = ("--config", "smoke", "--out", smoke.folder, "--resume", "--set", "train.steps=80")
    before = _files(smoke.folder)
    _refused(capsys, r"config\.toml: differs from the configuration given", *words)
    assert _files(smoke.folder) == before


@pytest.fixture
def copy(smoke, tmp_path) -> Run:
    shutil.copytree(smoke.folder, tmp_path / "run")
    return Run(tmp_path / "run")


def test_resume_of_a_finished_run_changes_no_parameter(copy):
    before = _files(copy.checkpoints), copy.model.read_bytes()
    log = copy.log.read_text().splitlines()
    assert main(["train", "--out", str(copy.folder), "--resume"]) == 0
    assert (_files(copy.checkpoints), copy.model.read_bytes()) == before
    assert copy.log.read_text().splitlines()[: len(log)] == log


def test_eval_of_pairs(copy, tmp_path, capsys):
    for i in range(2):
        for side in ("clean", "noisy"):
            _sound(tmp_path / "pairs" / side / f"{i}.wav", 16000, 12000, seed=i)
    (tmp_path / "pairs" / "pairs.csv").write_text("id,snr_db,speaker\n0,5,anna\n1,10,bert\n")
    before = json.loads(copy.result.read_text())
    assert main(["eval", "--pairs", str(tmp_path / "pairs"), "--out", str(copy.folder)]) == 0
    result = json.loads(copy.result.read_text())
    assert result["test"]["pairs"] == str(tmp_path / "pairs")
    assert result["test"]["noisy"]["si_sdr_db"]["mean"] == 100.0, "clean and noisy are the same files"
    assert [row["snr_db"] for row in result["test"]["per_snr"]] == [5.0, 10.0]
    assert result["train"] == before["train"]
    assert result["config_sha256"] == before["config_sha256"]


def test_eval_of_a_model_file_alone(smoke, tmp_path):
    for side in ("clean", "noisy"):
        _sound(tmp_path / "pairs" / side / "a.wav", 16000, 12000)
    words = ["--pairs", str(tmp_path / "pairs"), "--model", str(smoke.model), "--out", str(tmp_path / "out")]
    assert main(["eval", *words]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["test"]["enhanced"]["si_sdr_db"]["n"] == 1


def test_report_alone(copy):
    (copy.folder / "report.html").unlink()
    assert main(["report", "--out", str(copy.folder)]) == 0
    assert (copy.folder / "report.html").stat().st_size > 10_000


def test_a_run_in_integers(smoke, tmp_path, capsys):
    """Trained, scored and exported; what the chip takes is what the report says."""
    out = tmp_path / "chip"
    few = ["train.steps=4", "train.valid_every=2", "train.warmup_steps=1"]
    words = [f'start="{smoke.model}"', "quantise.weight_bits=4", *few]
    assert main(["--config", "smoke", "--out", str(out), *(w for word in words for w in ("--set", word))]) == 0
    model, _ = load_model(out / "model.rnnc")
    assert [formats.weight_bits for formats in model.model.formats] == [4] * 4
    size = json.loads((out / "result.json").read_text())["model"]
    assert main(["export", "--out", str(out)]) == 0
    said = dict(re.findall(r"^(\w+) +([\d,]+)", capsys.readouterr().out, re.MULTILINE))
    flash = {name: int(number.replace(",", "")) for name, number in said.items()}
    assert size["bytes"] == flash["all"] - flash["front"]
    source = out / "firmware" / "src" / "model.c"
    assert f"{flash['all']} bytes of numbers" in source.with_suffix(".h").read_text()
    assert 4 < json.loads(smoke.result.read_text())["model"]["bytes"] / size["bytes"] < 8
    assert build(tmp_path, source).rnnc_net_run
    _refused(capsys, "computes in floating point", "export", "--out", tmp_path / "none", "--model", smoke.model)
    assert not (tmp_path / "none").exists()
    _refused(capsys, "no model; train one", "export", "--out", tmp_path / "none")


@pytest.fixture
def in_legs(smoke, tmp_path, monkeypatch) -> Run:
    """A run in integers whose ranges are read anew after its third step, with all its checkpoints."""
    monkeypatch.setattr(checkpoint, "KEEP", 9)
    train = ["train.steps=5", "train.valid_every=1", "train.warmup_steps=1", "train.learning_rate=0.05"]
    words = [f'start="{smoke.model}"', "quantise.reread=[3]", "quantise.batches=1", *train]
    sets = [w for word in words for w in ("--set", word)]
    assert main(["train", "--config", "smoke", "--out", str(tmp_path / "legs"), *sets]) == 0
    return Run(tmp_path / "legs")


def test_ranges_are_read_anew_in_training(in_legs, tmp_path, capsys):
    """Formats follow the weights as they are then; a run that was stopped in either part goes on with the same."""
    noted, wanted = in_legs.noted_formats(), _state(in_legs)
    assert list(noted) == ["0", "3"]
    assert noted["0"] != noted["3"]
    enhancer, meta = load_model(in_legs.model)
    assert configs.to_table(enhancer.model)["formats"] == noted["3" if meta["step"] > 3 else "0"]
    for stopped in (2, 3, 4):
        run = Run(shutil.copytree(in_legs.folder, tmp_path / str(stopped)))
        for step in range(stopped + 1, 6):
            shutil.rmtree(run.checkpoints / f"step_{step:08d}")
        if stopped <= 3:
            run.formats.write_text(json.dumps({"0": noted["0"]}))
        capsys.readouterr()
        assert main(["train", "--out", str(run.folder), "--resume"]) == 0
        assert capsys.readouterr().out.count("reading ranges") == int(stopped <= 3)
        assert run.noted_formats() == noted
        jax.tree.map(np.testing.assert_array_equal, _state(run), wanted)


def _state(run: Run) -> dict:
    """All that the last checkpoint holds."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((run.checkpoints / "step_00000005").absolute())


# --- denoise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rate_hz", "n", "channels"),
    [("a.wav", 44100, 30001, 2), ("a.flac", 16000, 5000, 1), ("a.ogg", 48000, 20011, 1), ("a.wav", 8000, 1, 3)],
)
def test_denoise_keeps_rate_channels_and_length(smoke, tmp_path, name, rate_hz, n, channels):
    x = _sound(tmp_path / name, rate_hz, n, channels)
    n = soundfile.info(tmp_path / name).frames
    assert main(["denoise", str(tmp_path / name), str(tmp_path / "new" / "y.wav"), "--model", str(smoke.model)]) == 0
    y, rate_out_hz = soundfile.read(tmp_path / "new" / "y.wav", always_2d=True)
    assert (rate_out_hz, y.shape) == (rate_hz, (n, channels))
    assert np.isfinite(y).all()
    if n > 4000 and name != "a.ogg":
        tone = np.sin(np.arange(n) / 9)
        kept = [abs(x[:, c] @ y[:, c]) / np.linalg.norm(x[:, c]) / np.linalg.norm(y[:, c]) for c in range(channels)]
        assert min(kept) > 0.8, "nothing is shifted: the tone is still in phase"
        assert np.abs(y.T @ tone).min() > 0


def test_the_shipped_model_denoises_at_once(tmp_path, monkeypatch, capsys):
    """Without a training, by C; where there is no compiler by its twin in JAX, with the same samples."""
    compiler()
    monkeypatch.chdir(tmp_path)
    x = _sound(tmp_path / "a.wav", 44100, 60000, 2)
    found = []
    for how in ("C", "JAX in integers"):
        assert main(["denoise", "a.wav", "b.wav"]) == 0
        assert f"tinylstm-int8.rnnc, computed by {how}" in capsys.readouterr().out
        found.append((tmp_path / "b.wav").read_bytes())
        (tmp_path / "b.wav").unlink()
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
    assert found[0] == found[1]
    y = soundfile.read(byte_io.BytesIO(found[0]))[0]
    assert y.shape == x.shape
    assert 0.001 < np.abs(y).max() < np.abs(x).max()


def test_denoise_a_folder_with_a_bad_file(smoke, tmp_path, capsys):
    _sound(tmp_path / "in" / "a.wav", 16000, 4000)
    _sound(tmp_path / "in" / "deep" / "b.FLAC", 16000, 3000)
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    out = tmp_path / "out"
    assert main(["denoise", str(tmp_path / "in"), str(out), "--model", str(smoke.model)]) == 0
    assert sorted(_files(out)) == ["a.wav", "deep/b.FLAC"]
    said = capsys.readouterr().out
    assert re.search(r"skipped .*bad\.wav: ", said)
    assert re.search(r"wrote 2 files to .*, skipped 1", said)


def test_denoise_bad_files_only(smoke, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    _refused(
        capsys, r"none of 1 files could be used", "denoise", tmp_path / "in", tmp_path / "out", "--model", smoke.model
    )
    _refused(capsys, r"bad\.wav: ", "denoise", tmp_path / "in" / "bad.wav", tmp_path / "o.wav", "--model", smoke.model)
    assert not (tmp_path / "o.wav").exists()


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "train.stpes=3"], r"train\.stpes: unknown key\. Did you mean 'train\.steps'\?"),
        (["--set", "train.steps=many"], r"train\.steps: is 'many', must be of type int"),
        (["--set", "train.steps"], r"must read key=value"),
        (["--set", "data=3"], r"data: is 3, must be a section"),
        (["--set", "seed=-1"], r"seed: is -1"),
        (["--set", "quantise.weight_bits=12"], r"weight_bits: is 12, must be 2 to 8, or 16"),
        (["--set", "quantise.reread=[5, 5]"], r"reread: is \[5, 5\], must be ascending"),
        (["--set", "quantise.reread=[1200]"], r"quantise\.reread: ends with 1200, must be below train\.steps"),
        (["--config", "smokk"], r"--config smokk: no such file; shipped .*smoke, tinylstm"),
        (["train", "x.wav"], r"train: does not take 'x\.wav'"),
        (["--speech", "none"], r"speech and noise: give folders for both"),
        (["--speech", "none", "--noise", "none"], r"none: no such speech folder"),
        (["denoise", "a.wav"], r"denoise: needs an input and an output, got 1 paths"),
        (["denoise", "a.wav", "b.wav", "c.wav"], r"got 3 paths"),
        (["denoise", "a.wav", "b.wav", "--out", "none"], r"model\.rnnc: no model; name a file or a shipped one"),
        (["denoise", "a.wav", "b.wav", "--model", "no.rnnc"], r"no\.rnnc: no "),
        (["eval", "--model", "no.rnnc"], r"no\.rnnc: "),
        (["eval"], r"model\.rnnc: cannot be read"),
        (["report", "--out", "none"], r"none"),
        (["--config", "smoke", "--set", "train.devices=64", "--set", "train.batch=64"], r"train\.devices: is 64"),
        (["--config", "smoke", "--set", "data.pairs=none"], r"none/clean: no such clean folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_error_messages(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _refused(capsys, "^error: (.|\n)*" + message, *words)


def test_error_messages_of_denoise(smoke, capsys, tmp_path):
    _sound(tmp_path / "a.wav", 16000, 2000)
    (tmp_path / "empty").mkdir()
    model = ("--model", smoke.model)
    _refused(capsys, r"none\.wav: no such file", "denoise", tmp_path / "none.wav", tmp_path / "b.wav", *model)
    _refused(capsys, r"cannot write '\.mp3', allowed", "denoise", tmp_path / "a.wav", tmp_path / "b.mp3", *model)
    _refused(capsys, r"empty: no audio", "denoise", tmp_path / "empty", tmp_path / "b", *model)
    _refused(capsys, r"error: ", "denoise", tmp_path / "a.wav", tmp_path / "a.wav" / "b.wav", *model)
    (tmp_path / "m.rnnc").write_bytes(smoke.model.read_bytes()[:-1])
    _refused(
        capsys, r"m\.rnnc: sha256", "denoise", tmp_path / "a.wav", tmp_path / "b.wav", "--model", tmp_path / "m.rnnc"
    )


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "python -m rnnc.recipes.enhance" in said
    assert all(word in said for word in ("train", "eval", "denoise", "report", "--resume", "--set", "smoke"))


def test_an_interrupted_run_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise enhance.loop.Interrupted(7)

    monkeypatch.setattr(enhance, "train", stop)
    _refused(capsys, r"stopped after step 7; .* --resume goes on", "--out", tmp_path / "run", status=130)


# --- README --------------------------------------------------------------------------------------------------


def _blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in _blocks("python"):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_recipes_of_the_readme_are_valid():
    for block in _blocks("toml"):
        configs.build(Enhance, tomllib.loads(block))


@pytest.mark.parametrize("name", ["smoke", "tinylstm"])  # those for `enhance`
def test_shipped_recipes_are_valid(name):
    assert configs.load(Enhance, ROOT / "recipes" / f"{name}.toml") != Enhance()


# --- files from outside ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_of_damaged_files(smoke, tmp_path, monkeypatch, caplog):
    """2,000 of them: no crash, none much slower than a sound file of its length, and only finite sound comes out."""
    caplog.set_level(logging.CRITICAL)
    damage(11, 2000, tmp_path / "in")
    _sound(tmp_path / "in" / "sound.wav", 16000, 6400)
    took, once = {}, denoise.denoise_file

    def timed(enhancer, source, target):
        began = time.monotonic()
        try:
            once(enhancer, source, target)
        finally:
            took[source] = time.monotonic() - began

    monkeypatch.setattr(denoise, "denoise_file", timed)
    assert main(["denoise", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(smoke.model)]) == 0
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(took) > 1800
    assert len(written) > 200
    for path in written:
        assert np.isfinite(soundfile.read(path)[0]).all()
    enhancer, _ = load_model(smoke.model)
    for source, seconds in took.items():
        if seconds < 1.0:
            continue
        out = next((p for p in written if p.name == source.with_suffix(p.suffix).name), None)
        assert out is not None, f"{source.name} took {seconds:.1f} s to be refused"
        info = soundfile.info(out)
        _sound(tmp_path / "like.wav", info.samplerate, info.frames, info.channels)
        began = time.monotonic()
        once(enhancer, tmp_path / "like.wav", tmp_path / "like_out.wav")
        assert seconds < time.monotonic() - began + 1.0, source.name
