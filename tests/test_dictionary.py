"""Denoising with dictionaries: coders and gains by laws, the recipe from end to end on a corpus that hums."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='scikit-learn comes with "rnnc[demo]"')

from rnnc import config as configs
from rnnc.audio.stft import Bands
from rnnc.bayes.msbdl import Msbdl
from rnnc.recipes import dictionaries, dictionary
from rnnc.recipes.dictionaries import Additive, Rsbl, Sound

CODERS = {"nmf": dictionaries.nmf, "nnls": dictionaries.nnls, "rsbl": Rsbl(noise_share=1e-3, iterations=100)}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _columns(rng, n, count):
    phi = rng.random((n, count)).astype(np.float32) ** 4
    return phi / np.linalg.norm(phi, axis=0)


@pytest.mark.parametrize("name", CODERS)
def test_codes_explain_what_atoms_made(name, rng):
    phi = _columns(rng, 12, 6)
    y = (rng.random((20, 6)) @ phi.T).astype(np.float32)
    x = CODERS[name](phi, y)
    assert x.shape == (20, 6)
    assert np.all(x >= 0)
    # NNLS is exact; multiplicative updates stop early, and R-SBL leaves the noise that it was told of.
    least = {"nnls": 1e-5, "nmf": 0.1, "rsbl": 0.1}[name]
    assert np.linalg.norm(y - x @ phi.T) < least * np.linalg.norm(y)


def test_gains_of_ones_give_the_sound_back(rng):
    x, sound = rng.standard_normal(3000).astype(np.float32), Sound()
    spectra = sound.spectra(x)
    back = sound.apply(spectra, np.ones((len(spectra), sound.bands.count)), len(x))
    np.testing.assert_allclose(back, x, atol=1e-5)  # float32


def test_context_is_the_frames_before(rng):
    spectra = rng.standard_normal((7, 257)) + 0j
    alone, three = (Sound(power=0.5, context=c).levels(spectra) for c in (1, 3))
    np.testing.assert_array_equal(Sound(context=3).newest(three), alone)
    np.testing.assert_array_equal(three[2:, :64], alone[:-2])
    assert not three[0, :128].any()


def test_the_ground_is_the_mean_of_the_quietest_frames(rng):
    spectra = rng.standard_normal((10, 257)) + 0j
    alone, with_ground = (Sound(power=0.5, context=2, ground=g).levels(spectra) for g in (0.0, 0.3))
    np.testing.assert_array_equal(with_ground[:, 64:], alone)
    order = np.argsort(alone[:, 64:].sum(axis=1))
    for row in with_ground[:, :64]:
        np.testing.assert_allclose(row, alone[order[:3], 64:].mean(axis=0), rtol=1e-6)  # float32


@pytest.mark.parametrize("name", CODERS)
def test_speech_is_kept_and_noise_taken_away(name, rng):
    phi, sound = _columns(rng, 64, 8), Sound()
    method = Additive(speech=phi[:, :4], noise=phi[:, 4:], code=CODERS[name], own=0, noise_weight=1.0)
    x = rng.random((30, 8)).astype(np.float32)
    speech, noise = x[:, :4] @ phi[:, :4].T, x[:, 4:] @ phi[:, 4:].T
    weighed = lambda levels: float(np.sum(method.gains(sound, levels) * levels) / np.sum(levels))
    assert weighed(speech) > 0.9
    assert weighed(noise) < 0.1
    both = method.gains(sound, speech + noise)
    np.testing.assert_allclose(both, speech / (speech + noise), atol=0.25)
    assert np.abs(both - speech / (speech + noise)).mean() < 0.03
    assert np.isfinite(method.gains(sound, np.zeros((3, 64), np.float32))).all()


def test_the_signal_gives_atoms_of_its_own_noise(rng):
    phi, sound = _columns(rng, 64, 5), Sound()
    hum = 0.2 * phi[:, 4]
    levels = np.where(np.arange(60)[:, None] % 3 == 0, rng.random((60, 4)) @ phi[:, :4].T, 0) + hum
    method = Additive(speech=phi[:, :4], noise=phi[:, :0], code=CODERS["nnls"], own=2, noise_weight=1.0)
    gains = method.gains(sound, levels.astype(np.float32))
    assert gains[1::3].mean() < 0.05
    assert gains[::3].mean() > 0.4


@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
def test_gains_are_of_magnitudes_whatever_the_compression(power, rng):
    """Levels are compressed, gains are not: with one atom each of speech and noise, the explicit ratio."""
    sound = Sound(power=power, bands=Bands(count=8))
    phi = np.abs(rng.standard_normal((8, 2))).astype(np.float32) + 0.1
    phi /= np.linalg.norm(phi, axis=0)
    x = rng.random((20, 2)).astype(np.float32) + 0.1
    method = Additive(speech=phi[:, :1], noise=phi[:, 1:], code=lambda *_: x, own=0, noise_weight=2.0)
    s, n = ((x[:, i : i + 1] @ phi[:, i : i + 1].T).astype(np.float64) ** (1 / power) for i in (0, 1))
    np.testing.assert_allclose(method.gains(sound, x @ phi.T), s / (s + 2 * n), rtol=1e-3)


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_what_is_foretold_is_compressed(power, rng, monkeypatch):
    noisy, clean = rng.random((10, 8)).astype(np.float32) + 1, rng.random((10, 8)).astype(np.float32)
    monkeypatch.setattr(dictionaries.msbdl, "transform", lambda *_: None)
    monkeypatch.setattr(dictionaries.foretell, "foretold", lambda *_: clean)
    method = dictionaries.Paired(None, None, (np.zeros(8), np.zeros(8)), strength=0.7)
    found = method.gains(Sound(power=power, bands=Bands(count=8)), noisy)
    np.testing.assert_allclose(found, ((clean / noisy) ** (1 / power)) ** 0.7, rtol=1e-5)


def test_digital_silence_tells_nothing_of_the_noise(rng):
    """A signal after zeros is denoised as it is alone; a tail that dies away breaks nothing."""
    phi, sound = _columns(rng, 64, 5), Sound()
    levels = (
        np.where(np.arange(60)[:, None] % 3 == 0, rng.random((60, 4)) @ phi[:, :4].T, 0) + 0.2 * phi[:, 4]
    ).astype("f4")
    padded = np.concatenate([np.zeros((90, 64), np.float32), levels, np.full((5, 64), 1e-18, np.float32)])
    for coder in CODERS.values():
        method = Additive(speech=phi[:, :4], noise=phi[:, :0], code=coder, own=2)
        alone, after = method.gains(sound, levels), method.gains(sound, padded)
        np.testing.assert_allclose(after[90:150], alone, atol=1e-3)
        assert np.isfinite(after).all()
    np.testing.assert_array_equal(dictionaries.quietest(padded, 0.3), dictionaries.quietest(levels, 0.3))
    assert not dictionaries.quietest(np.zeros((4, 8)), 0.5).any()


def test_a_clean_frame_is_foretold(rng):
    sound = Sound(power=1.0, bands=Bands(count=16))
    clean = rng.random((400, 3)) @ _columns(rng, 16, 3).T
    noisy = clean + 0.3 * rng.random((400, 2)) @ _columns(rng, 16, 2).T
    config = Msbdl(atoms=(8, 8), sweeps=30, anneal=0.9, noise_share=(0.02, 0.02), review_every=0)
    method = dictionaries.learn_paired(config, noisy[:300], clean[:300], 0, lambda done, of: None)
    found = method.gains(sound, noisy[300:]) * noisy[300:]
    error = lambda a: np.linalg.norm(a - clean[300:]) / np.linalg.norm(clean[300:])
    assert error(found) < 0.5 * error(noisy[300:])
    weak = replace(method, strength=0.5).gains(sound, noisy[300:])
    np.testing.assert_allclose(weak**2 * noisy[300:], found, rtol=1e-5)  # float32


SMALL = (
    "frames=400",
    'data.corpus.kind="synthetic"',
    "data.corpus.speech_minutes=0.5",
    "data.corpus.noise_minutes=0.5",
    "data.test_items=2",
    "data.valid_items=1",
    "mix.seconds=2.0",
    "parts.speech=6",
    "parts.own=2",
    "pairs.msbdl.atoms=[8, 8]",
    "pairs.msbdl.sweeps=2",
    "pairs.msbdl.batch=100",
)


def _main(out, *words):
    return dictionary.main([*(w for s in SMALL for w in ("--set", s)), "--out", str(out), *words])


def test_the_recipe_scores_all_methods_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "run"
    assert _main(out, "--set", 'methods=["nnls"]') == 0
    assert _main(out, "--set", 'methods=["nnls"]') == 2  # holds results
    assert "--resume" in capsys.readouterr().err
    assert _main(out, "--resume") == 2  # of another configuration
    assert "differs" in capsys.readouterr().err
    out = tmp_path / "all"
    assert _main(out) == 0
    result = json.loads((out / "result.json").read_text())
    assert [row["method"] for row in result["rows"]] == list(dictionary.METHODS)
    for row in result["rows"]:
        own = json.loads((out / row["method"] / "result.json").read_text())
        assert own["test"]["enhanced"]["sdr_db"]["mean"] == row["sdr_db"]["enhanced"]
        assert f"{row['sdr_db']['enhanced']:.2f}".replace("-", "−") in (out / "report.html").read_text()
        assert (out / row["method"] / "report.html").exists()
    before = (out / "nmf" / "result.json").stat().st_mtime_ns
    assert _main(out, "--resume") == 0
    assert (out / "nmf" / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ('methods=["ica"]', "ica"),
        ("methods=[]", "methods: is empty"),
        ("frames=1", "frames"),
        ("parts.own=0", "noise, own"),
        ("parts.quiet_share=0.0", "quiet_share"),
        ("parts.sound.power=2.0", "power"),
        ("parts.sound.ground=0.3", "ground"),
        ("pairs.sound.ground=1.5", "ground"),
        ("pairs.strength=0.0", "strength"),
        ("parts.sound.rate_hz=8000", "high_hz|rate_hz"),
        ("parts.rsbl.noise_sahre=0.1", "noise_share"),
    ],
)
def test_bad_configurations_are_named(key, message):
    with pytest.raises(ValueError, match=message):
        configs.build(dictionary.Dictionary, configs.merge({}, (key,)))
