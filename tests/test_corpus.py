"""Laws of the default corpus: same seed same sound, disjoint splits, levels, and no half-made folders."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rnnc.audio import corpus, mumble, noises, sentences, voices

RATE_HZ = 16000


def _small(folder: Path, kind: str, seed: int = 0, on_progress: corpus.Progress | None = None) -> Path:
    return corpus.make(folder, seed=seed, speech_minutes=0.05, noise_minutes=0.05, kind=kind, on_progress=on_progress)


def _sounds(folder: Path) -> dict[str, np.ndarray]:
    """{relative path: samples} of every file."""
    return {str(p.relative_to(folder)): soundfile.read(p)[0] for p in sorted(folder.rglob("*.flac"))}


def _speakers(folder: Path, split: str) -> set[str]:
    return {p.name for p in (folder / "speech" / split).iterdir()}


@pytest.fixture(scope="module", params=corpus.KINDS)
def made(request, tmp_path_factory) -> tuple[Path, str]:
    if request.param == "espeak":
        pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("corpus") / "a"
    return _small(folder, request.param, 1), request.param


def test_same_seed_same_samples(made, tmp_path):
    folder, kind = made
    first, again = _sounds(folder), _sounds(_small(tmp_path / "b", kind, 1))
    assert first.keys() == again.keys()
    for path, x in first.items():
        np.testing.assert_array_equal(x, again[path], err_msg=path)


def test_other_seed_other_samples(made, tmp_path):
    folder, kind = made
    other = {x.tobytes() for x in _sounds(_small(tmp_path / "b", kind, 2)).values()}
    assert not other & {x.tobytes() for x in _sounds(folder).values()}


def test_no_sound_twice_and_no_speaker_in_two_splits(made):
    folder, _ = made
    sounds = _sounds(folder)
    assert len({x.tobytes() for x in sounds.values()}) == len(sounds)
    names = [_speakers(folder, split) for split in sentences.SPLITS]
    assert all(len(n) >= 2 for n in names)
    assert len(set.union(*names)) == sum(map(len, names))


def test_every_family_in_every_split(made):
    folder, _ = made
    for split in sentences.SPLITS:
        assert {p.name for p in (folder / "noise" / split).iterdir()} == set(noises.NOISES)


def test_levels(made):
    """Active level of speech and RMS of noise are -26 dBFS, lower only where the peak forbids it."""
    folder, _ = made
    for path, x in _sounds(folder).items():
        assert np.isfinite(x).all()
        peak = np.max(np.abs(x))
        assert peak <= 0.981, path
        rms_db = 10 * np.log10(np.mean(x**2))
        level_db = voices.active_level_db(x, RATE_HZ) if path.startswith("speech") else rms_db
        assert level_db == pytest.approx(corpus.LEVEL_DB, abs=0.1) or (level_db < corpus.LEVEL_DB and peak > 0.97)


def test_lengths(made):
    folder, _ = made
    record = json.loads((folder / "corpus.json").read_text())
    assert record["parameters"]["seed"] == 1
    for split in sentences.SPLITS:
        for what in ("speech", "noise"):
            seconds = sum(len(x) for p, x in _sounds(folder / what / split).items()) / RATE_HZ
            assert record["minutes"][split][what] == pytest.approx(seconds / 60, abs=1e-3)
            assert seconds >= 60 * 0.05 * (1 if split == "train" else 0.25)


def test_finished_corpus_is_reused(made):
    folder, kind = made

    def never(done: int, total: int) -> None:
        raise AssertionError("built again")

    assert _small(folder, kind, 1, never) == folder


def test_foreign_folder_is_refused(made, tmp_path):
    folder, kind = made
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="holds something else"):
        _small(folder, kind, 9)
    assert sorted(folder.rglob("*")) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"no corpus\.json"):
        _small(tmp_path / "mine", kind)
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize("at", [1, 10, 40])
def test_interrupted_build_leaves_nothing(at, tmp_path):
    def stop(done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _small(tmp_path / "a", "synthetic", on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_faster_neighbour_wins(tmp_path):
    folder = tmp_path / "a"

    def neighbour(done: int, total: int) -> None:
        if done == total:
            _small(folder, "synthetic")

    _small(folder, "synthetic", on_progress=neighbour)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_progress_counts_to_its_total(tmp_path):
    steps = []
    _small(tmp_path / "a", "synthetic", on_progress=lambda *step: steps.append(step))
    total = steps[0][1]
    assert steps == [(i, total) for i in range(1, total + 1)]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seed": -1}, "bad seed, given -1"),
        ({"speech_minutes": 0.0}, "bad speech_minutes"),
        ({"noise_minutes": float("nan")}, "bad noise_minutes"),
        ({"rate_hz": 100}, "8000 to 48000"),
        ({"kind": "human"}, "espeak or synthetic"),
    ],
)
def test_bad_parameters(wrong, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        corpus.make(tmp_path / "a", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("RNNC_CACHE", raising=False)
    assert corpus.default_folder(2).parent == tmp_path / "xdg" / "rnnc"
    monkeypatch.setenv("RNNC_CACHE", str(tmp_path / "own"))
    assert corpus.default_folder(2).parent == tmp_path / "own"
    assert corpus.default_folder(2) != corpus.default_folder(2, speech_minutes=1.5)


def test_without_espeak_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ValueError, match=r"pip install 'rnnc\[demo\]'"):
        _small(tmp_path / "a", "espeak")
    assert list(tmp_path.iterdir()) == []


def test_failing_espeak_is_quoted(monkeypatch):
    loader = pytest.importorskip("espeakng_loader")
    monkeypatch.setattr(loader, "get_library_path", lambda: "/nowhere.so")
    rng = np.random.default_rng(0)
    with pytest.raises(RuntimeError, match=r"nowhere\.so"):
        voices.speak(voices.draw(rng), ["Hello."], RATE_HZ, rng)


def test_accents_pitch_and_formants_are_heard():
    """One text: another accent, pitch or tract gives other samples, and the same speaker the same."""
    pytest.importorskip("espeakng_loader")
    base = voices.draw(np.random.default_rng(0))
    speakers = [replace(base, accent=a) for a in voices.ENGLISH + voices.FOREIGN]
    speakers += [replace(base, pitch_hz=(70, 100)), replace(base, variant="")]

    def say(speaker):
        return voices.speak(
            speaker,
            ["Could the old fisherman borrow a bath, a cup and seven shiny coins before dark?"],
            RATE_HZ,
            np.random.default_rng(0),
        )[0]

    heard = [say(s).tobytes() for s in speakers]
    assert len(set(heard)) == len(speakers)
    assert say(speakers[3]).tobytes() == heard[3]


def _pitch_hz(x: np.ndarray) -> float:
    """Median of the autocorrelation's best lag, 60 to 400 Hz, over loud frames of 50 ms."""
    frames = x[: len(x) // 800 * 800].reshape(-1, 800)
    frames = frames[np.mean(frames**2, axis=1) > 0.3 * np.mean(x**2)]
    spectra = np.abs(np.fft.rfft(frames, 2048)) ** 2
    lags = np.fft.irfft(spectra * (np.arange(1025) < 130))[:, :267]  # below 1 kHz
    return RATE_HZ / np.median(40 + np.argmax(lags[:, 40:], axis=1))


@pytest.mark.parametrize("pitch_hz", [(80, 110), (180, 240)])
def test_pitch_is_the_speakers(pitch_hz):
    """An octave of tolerance downwards is not given: the two voices must not overlap."""
    rng = np.random.default_rng(3)
    speaker = replace(voices.draw(rng), pitch_hz=pitch_hz, accent="en-US")
    low, high = 0.8 * pitch_hz[0], 1.3 * pitch_hz[1]
    assert low < _pitch_hz(mumble.mumble(speaker, 6.0, RATE_HZ, rng)) < high
    pytest.importorskip("espeakng_loader")
    texts = ["Good morning, how are you today?", "Many men are rowing along the river."]
    assert low < _pitch_hz(np.concatenate(voices.speak(speaker, texts, RATE_HZ, rng))) < high


def test_a_sentence_belongs_to_one_split():
    rng = np.random.default_rng(0)
    drawn = {split: {sentences.draw(rng, split) for _ in range(150)} for split in sentences.SPLITS}
    assert not drawn["train"] & drawn["test"]
    assert not drawn["train"] & drawn["valid"]
    assert not drawn["valid"] & drawn["test"]
    for text in set.union(*drawn.values()):
        assert text[0].isupper()
        assert text[-1] in ".?"
        assert "{" not in text
        assert 3 <= len(text.split()) <= 40
    assert len(set.union(*drawn.values())) > 380
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        sentences.draw(rng, "dev")


@pytest.mark.parametrize("family", noises.NOISES)
def test_noise(family):
    generate = noises.NOISES[family]
    x = generate(np.random.default_rng(4), 20000, RATE_HZ)
    assert x.dtype == np.float32
    assert x.shape == (20000,)
    assert np.isfinite(x).all()
    assert np.mean(np.square(x, dtype=np.float64)) == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_array_equal(x, generate(np.random.default_rng(4), 20000, RATE_HZ))
    other = generate(np.random.default_rng(5), 20000, RATE_HZ)
    assert abs(np.corrcoef(x, other)[0, 1]) < 0.5
    for n, rate_hz in ((800, 8000), (7001, 44100)):
        assert generate(np.random.default_rng(6), n, rate_hz).shape == (n,)


def test_silence_has_no_level():
    assert voices.active_level_db(np.zeros(1600), RATE_HZ) == -np.inf
