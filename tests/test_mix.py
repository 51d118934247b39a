"""Laws of the mixer: a pure function of seed and step, with the levels it promises; splits and folders."""

import dataclasses
import logging

import numpy as np
import pytest

from rnnc.audio import io
from rnnc.audio.data import Corpus, Data, fixed_pairs, hold_out, open_sources
from rnnc.audio.io import AudioError, Clip
from rnnc.audio.mix import PEAK, Mix, Mixer, Pool

RATE_HZ = 16000
PLAIN = Mix(seconds=1.0, room=0.0, talker=0.0, second_noise=0.0, tilt=0.0, speed=0.0)
LEVEL_DB = 0.25  # frames of 10 ms begin and end elsewhere than our bursts
CHANCES = ("second_noise", "talker", "room", "tilt", "speed")


def _bursts(seed: int, seconds: float = 3.0) -> np.ndarray:
    """Tones of 0.2 s with silence of 0.2 s between them."""
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    x = np.sin(2 * np.pi * (300 + 100 * seed) * t) * ((t % 0.4) < 0.2)
    return (8000 * x).astype(np.int16)


def _hiss(seed: int, seconds: float = 2.0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(int(seconds * RATE_HZ))
    return (3000 * np.clip(x, -4, 4)).astype(np.int16)


SPEECH = [Clip(path=f"s{i}", speaker=f"s{i // 2}", samples=_bursts(i)) for i in range(6)]
NOISE = [Clip(path=f"n{i}", speaker=f"n{i}", samples=_hiss(i)) for i in range(3)]


def _response(direct: int = 40) -> np.ndarray:
    """Direct path, a reflection 5 ms and one 80 ms later."""
    response = np.zeros(direct + 1600, np.float32)
    response[[direct, direct + 80, direct + 1280]] = 1.0, 0.5, 0.4
    return response


def _mixer(mix: Mix = PLAIN, seed: int = 0, **options) -> Mixer:
    rooms = ((_response(), 40),)
    parts = {"speech": Pool.of(SPEECH), "noise": Pool.of(NOISE), "rooms": rooms, "rate_hz": RATE_HZ, **options}
    return Mixer(config=mix, seed=seed, **parts)


def _with(**changes) -> Mix:
    return dataclasses.replace(PLAIN, **changes)


def _heard_db(x: np.ndarray) -> float:
    """Mean power of the samples within 2 ms of sound."""
    near = np.convolve(np.abs(x) > 1e-2 * np.abs(x).max(), np.ones(64), "same") > 0
    return 10 * np.log10(np.mean(x[near].astype(np.float64) ** 2))


def _db(x: np.ndarray) -> float:
    return 10 * np.log10(np.mean(x.astype(np.float64) ** 2))


def _alike(x: np.ndarray, y: np.ndarray) -> float:
    """Cosine of the angle between two signals."""
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_pure_function_of_seed_and_step():
    mixer = _mixer(Mix(seconds=0.5))
    noisy, target = mixer.batch(5, 3)
    mixer.batch(6, 2)
    for again in (mixer.batch(5, 3), _mixer(Mix(seconds=0.5)).batch(5, 3)):
        np.testing.assert_array_equal(again, (noisy, target))
    np.testing.assert_array_equal(mixer.item(5, 2), (noisy[2], target[2]))
    others = [mixer.item(6, 0), mixer.item(5, 1), _mixer(Mix(seconds=0.5), seed=1).item(5, 0)]
    assert all(np.abs(other[0] - noisy[0]).max() > 1e-3 for other in others)
    assert len({item.tobytes() for step in range(20) for item in mixer.batch(step, 4)[0]}) == 80


@pytest.mark.parametrize("snr_db", [-6.0, 0.0, 18.0])
@pytest.mark.parametrize("second_noise", [0.0, 1.0])
def test_snr_counts_speech_only_where_there_is_some(snr_db, second_noise):
    mixer = _mixer(_with(snr_low_db=snr_db, snr_high_db=snr_db, second_noise=second_noise))
    for step in range(6):
        noisy, target = mixer.item(step, 0)
        assert _heard_db(target) - _db(noisy - target) == pytest.approx(snr_db, abs=LEVEL_DB)
        assert _heard_db(target) - _db(target) > 1.5, "the pauses must not count"


def test_snr_is_drawn_over_its_range():
    mixer = _mixer(_with(snr_low_db=-5.0, snr_high_db=15.0))
    items = [mixer.item(step, 0) for step in range(60)]
    drawn = [_heard_db(target) - _db(noisy - target) for noisy, target in items]
    assert min(drawn) == pytest.approx(-5.0, abs=2.0)
    assert max(drawn) == pytest.approx(15.0, abs=2.0)
    assert np.mean(drawn) == pytest.approx(5.0, abs=2.5)


def test_level():
    exact = _mixer(_with(level_db=-30.0, level_spread_db=0.0))
    levels = [_heard_db(exact.item(step, 0)[1]) for step in range(5)]
    np.testing.assert_allclose(levels, -30.0, atol=LEVEL_DB)
    spread = _mixer(_with(level_db=-34.0, level_spread_db=6.0))
    levels = [_heard_db(spread.item(step, 0)[1]) for step in range(40)]
    assert -40.2 < min(levels) < -37.5
    assert -30.5 < max(levels) < -27.8


def test_loud_mixtures_are_scaled_down_whole():
    mix = _with(level_db=10.0, snr_low_db=3.0, snr_high_db=3.0)
    for step in range(5):
        noisy, target = _mixer(mix).item(step, 0)
        assert np.abs(noisy).max() == pytest.approx(PEAK, rel=1e-5)
        assert _heard_db(target) - _db(noisy - target) == pytest.approx(3.0, abs=LEVEL_DB)
        quiet = _mixer(dataclasses.replace(mix, level_db=-30.0)).item(step, 0)
        assert _alike(noisy, quiet[0]) > 1 - 1e-5


def test_noisy_is_target_plus_disturbance():
    """The same draws at another SNR: the target stays, only the disturbance's size changes."""
    a = _mixer(_with(snr_low_db=0.0, snr_high_db=0.0)).item(3, 1)
    b = _mixer(_with(snr_low_db=12.0, snr_high_db=12.0)).item(3, 1)
    np.testing.assert_allclose(a[1], b[1], atol=1e-7)
    scale = 10 ** (12 / 20)
    np.testing.assert_allclose(a[0] - a[1], scale * (b[0] - b[1]), atol=1e-6)
    clean = _mixer(_with(snr_low_db=150.0, snr_high_db=150.0)).item(3, 1)
    np.testing.assert_allclose(clean[0], clean[1], atol=1e-7)


def test_target_keeps_early_reflections_only():
    quiet = {"snr_low_db": 150.0, "snr_high_db": 150.0}
    dry = _mixer(_with(**quiet)).item(0, 0)[1]
    heard = _mixer(_with(**quiet, room=1.0)).item(0, 0)
    noisy, target = _mixer(_with(**quiet, room=1.0, early_ms=50.0)).item(0, 0)
    shifted = [np.pad(dry, (k, 0))[: len(dry)] for k in (0, 80, 1280)]
    early, late = shifted[0] + 0.5 * shifted[1], 0.4 * shifted[2]
    assert _alike(heard[1], early + late) > 1 - 1e-5
    assert _alike(target, early) > 1 - 1e-5
    assert _alike(noisy - target, late) > 1 - 1e-5
    assert _alike(noisy, early + late) > 1 - 1e-5
    assert np.linalg.norm(noisy - target) / np.linalg.norm(target) == pytest.approx(
        np.linalg.norm(late) / np.linalg.norm(early), rel=1e-3
    )


@pytest.mark.parametrize("name", CHANCES)
def test_a_chance_of_none_and_of_one(name):
    never, always = (_mixer(_with(**{name: chance})).batch(0, 4) for chance in (0.0, 1.0))
    for noisy, target in (never, always):
        assert np.isfinite(noisy).all()
        assert np.isfinite(target).all()
        assert noisy.dtype == target.dtype == np.float32
        assert noisy.shape == target.shape == (4, RATE_HZ)
    changed = np.abs(never[0] - always[0]).max(axis=1)
    assert (changed > 1e-3).all()


def test_talker_level():
    mix = _with(talker=1.0, talker_low_db=7.0, talker_high_db=7.0, snr_low_db=150.0, snr_high_db=150.0)
    for step in range(5):
        noisy, target = _mixer(mix).item(step, 0)
        assert _heard_db(target) - _heard_db(noisy - target) == pytest.approx(7.0, abs=0.3)


def test_everything_at_once_is_finite():
    full = dict.fromkeys(CHANCES, 1.0)
    mixer = _mixer(Mix(seconds=0.5, early_ms=30.0, speed_most=2.0, **full))
    for step in range(25):
        noisy, target = mixer.batch(step, 2)
        assert np.isfinite(noisy).all()
        assert np.isfinite(target).all()
        assert np.abs(noisy).max() <= PEAK * (1 + 1e-6)


def test_clips_without_sound_give_finite_batches():
    silent = [Clip(path="q", speaker="q", samples=np.zeros(4000, np.int16))]
    blip = np.zeros(40000, np.int16)
    blip[7] = 32767
    for clips in (silent, [Clip(path="b", speaker="b", samples=blip)]):
        for parts in ({"speech": Pool.of(clips)}, {"noise": Pool.of(clips)}):
            mixer = _mixer(Mix(seconds=0.5, **dict.fromkeys(CHANCES, 1.0)), **parts)
            assert np.isfinite(mixer.batch(0, 4)).all()


def test_short_clips_are_joined_and_long_ones_cut():
    short = Pool.of([Clip(path=str(i), speaker="a", samples=np.full(200 + i, 99, np.int16)) for i in range(3)])
    rng = np.random.default_rng(0)
    for n in (1, 199, 1000, 12345):
        assert short.draw(rng, n).shape == (n,)
    long = Pool.of([Clip(path="l", speaker="a", samples=np.arange(-9000, 9000).astype(np.int16))])
    starts = {round(float(long.draw(rng, 1000)[500]) * 32768) for _ in range(20)}
    assert starts == {0}, "the mean is taken away"
    hiss = Pool.of(NOISE)
    assert len({hiss.draw(rng, 999).tobytes() for _ in range(20)}) == 20


def test_impossible_mixers_are_refused():
    with pytest.raises(ValueError, match=r"room is 0\.5 but there are no rooms"):
        _mixer(_with(room=0.5), rooms=())
    with pytest.raises(ValueError, match="the pool is empty"):
        Pool.of([])


def test_fixed_pairs_have_their_snr():
    made = fixed_pairs(_mixer(), 7)
    assert [pair.snr_db for pair in made] == [-5, 0, 5, 10, 15, -5, 0]
    assert len({pair.id for pair in made}) == 7
    for pair in made:
        assert _heard_db(pair.clean) - _db(pair.noisy - pair.clean) == pytest.approx(pair.snr_db, abs=LEVEL_DB)


@pytest.mark.parametrize("by", ["speaker", "file"])
@pytest.mark.parametrize("speakers", [3, 10, 60])
def test_parts_are_disjoint_and_complete(by, speakers):
    clips = [Clip(path=f"{i}", speaker=f"s{i % speakers}", samples=SPEECH[0].samples) for i in range(3 * speakers)]
    parts = hold_out(clips, 1, by)
    keys = [{c.speaker if by == "speaker" else c.path for c in parts[p]} for p in ("train", "valid", "test")]
    assert all(keys)
    assert sum(map(len, keys)) == len(set.union(*keys)) == (speakers if by == "speaker" else 3 * speakers)
    assert sum(map(len, parts.values())) == len(clips)
    assert hold_out(clips, 1, by) == parts
    assert speakers < 10 or hold_out(clips, 2, by) != parts


def test_few_speakers_are_split_by_file_and_few_files_refused():
    clips = [Clip(path=f"{i}", speaker=f"s{i % 2}", samples=SPEECH[0].samples) for i in range(6)]
    parts = hold_out(clips, 0, "speaker")
    assert sorted(len(some) for some in parts.values()) == [1, 1, 4]
    with pytest.raises(AudioError, match=r"2 file\(s\) usable beside it, 3 or more are needed"):
        hold_out(clips[:2], 0, "speaker")


@pytest.fixture
def folders(tmp_path):
    """speech/ of four speakers with a bad file, noise/, rir/ with a direct path after 500 samples."""
    for i in range(8):
        (tmp_path / "speech" / f"s{i // 2}").mkdir(parents=True, exist_ok=True)
        io.write(tmp_path / "speech" / f"s{i // 2}" / f"{i}.wav", _bursts(i) / 32768.0, RATE_HZ)
    (tmp_path / "speech" / "s0" / "bad.wav").write_bytes(b"RIFF\0\0\0\0WAVEgarbage")
    for kind in ("noise", "rir"):
        (tmp_path / kind).mkdir()
    for i in range(4):
        io.write(tmp_path / "noise" / f"{i}.flac", _hiss(i) / 32768.0, RATE_HZ)
    io.write(tmp_path / "rir" / "a.wav", 0.5 * _response(500), RATE_HZ)
    return tmp_path


def _open(folders, mix: Mix = PLAIN, **options):
    data = Data(speech=(str(folders / "speech"),), noise=(str(folders / "noise"),), **options)
    return open_sources(data, mix, RATE_HZ, 0, lambda what, done, of: None)


def test_folders_with_a_bad_file(folders, caplog):
    with caplog.at_level(logging.WARNING, "rnnc"):
        sources = _open(folders, valid_items=3, test_items=6)
    assert [path for path, _ in sources.skipped] == [str(folders / "speech" / "s0" / "bad.wav")]
    assert "bad.wav" in caplog.text
    assert [len(sources.valid), len(sources.test)] == [3, 6]
    assert sources.minutes == pytest.approx({"speech": 4 * 3 / 60, "noise": 2 * 2 / 60})
    assert not np.array_equal(sources.valid[0].clean, sources.test[0].clean)
    assert len(sources.train.speech.groups) == 2


def test_room_responses_keep_speech_in_its_place(folders):
    dry = _open(folders, valid_items=1, test_items=1).train.item(0, 0)[1]
    mix = _with(room=1.0, snr_low_db=150.0, snr_high_db=150.0)
    noisy, target = _open(folders, mix, rir=(str(folders / "rir"),), valid_items=1, test_items=1).train.item(0, 0)
    for x in (noisy, target):
        lags = np.correlate(x, dry, "full")
        assert int(np.argmax(lags)) - (len(dry) - 1) == 0


def test_bad_room_responses(folders, caplog):
    (folders / "rir" / "b.wav").write_bytes(b"no sound")
    options = {"rir": (str(folders / "rir"),), "valid_items": 1, "test_items": 1}
    sources = _open(folders, _with(room=1.0), **options)
    assert [path for path, _ in sources.skipped if "rir" in path] == [str(folders / "rir" / "b.wav")]
    assert len(sources.train.rooms) == 1
    (folders / "rir" / "a.wav").write_bytes(b"")
    with pytest.raises(AudioError, match=r"rir: no usable room response in"):
        _open(folders, _with(room=1.0), **options)


def test_silent_room_responses_are_refused(folders, caplog):
    io.write(folders / "rir" / "silent.wav", np.zeros(4000), RATE_HZ)
    sources = _open(folders, _with(room=1.0), rir=(str(folders / "rir"),), valid_items=1, test_items=1)
    assert [path for path, _ in sources.skipped if "rir" in path] == [str(folders / "rir" / "silent.wav")]


def test_folders_of_pairs_leave_all_for_training(folders):
    for side in ("clean", "noisy"):
        (folders / "pairs" / side).mkdir(parents=True)
        io.write(folders / "pairs" / side / "a.wav", _bursts(0) / 32768.0, RATE_HZ)
    pairs = str(folders / "pairs")
    sources = _open(folders, valid=pairs, pairs=pairs)
    assert [pair.id for pair in (*sources.valid, *sources.test)] == ["a", "a"]
    assert sources.minutes["speech"] == pytest.approx(8 * 3 / 60)


@pytest.mark.parametrize("given", [{"speech": ("a",)}, {"noise": ("a",)}])
def test_only_one_of_speech_and_noise(given):
    with pytest.raises(ValueError, match="speech and noise: give folders for both"):
        Data(**given)


def test_missing_folders_and_too_few_files(folders):
    with pytest.raises(AudioError, match="no such speech folder"):
        _open(folders / "none")
    for i in range(1, 4):
        (folders / "noise" / f"{i}.flac").unlink()
    with pytest.raises(AudioError, match=r"0\.flac: 1 file\(s\) usable beside it, 3 or more"):
        _open(folders)


def test_the_corpus_is_made_where_no_folders_are_given(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNC_CACHE", str(tmp_path))
    corpus = Corpus(kind="synthetic", speech_minutes=0.2, noise_minutes=0.2)
    said = []
    options = {"valid_items": 2, "test_items": 2, "rooms": 2, "corpus": corpus}
    data, mix = Data(**options), _with(room=1.0)
    sources = open_sources(data, mix, RATE_HZ, 0, lambda what, done, of: said.append(what))
    assert {"making the corpus", "loading speech", "loading noise", "simulating rooms"} <= set(said)
    assert len(sources.train.rooms) == 2
    assert np.isfinite(sources.train.batch(0, 2)).all()
    again = open_sources(data, mix, RATE_HZ, 0, lambda what, done, of: None)
    np.testing.assert_array_equal(again.train.item(4, 1), sources.train.item(4, 1))
