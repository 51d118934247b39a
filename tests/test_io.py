"""Laws of the guarded reader and writer; no damaged file gets past it, none of them stops it."""

import errno
import logging
import os
import resource
import time
from pathlib import Path

import damaged
import numpy as np
import pytest
import soundfile

from rnnc.audio import io
from rnnc.audio.io import AudioError

RNG = np.random.default_rng(5)


def tone(n=4000, channels=None):
    shape = (n,) if channels is None else (n, channels)
    return RNG.uniform(-0.9, 0.9, shape)


# --- write, then read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV", ".FLAC"])
@pytest.mark.parametrize("channels", [None, 1, 2, 8])
@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 192000])
def test_what_is_written_is_read_back_to_half_a_step(tmp_path, suffix, channels, rate_hz):
    x = tone(3000, channels)
    assert io.write(tmp_path / f"a{suffix}", x, rate_hz) == 0
    y, found_hz = io.read_native(tmp_path / f"a{suffix}")
    assert (found_hz, y.dtype, y.shape) == (rate_hz, np.float32, (3000, channels or 1))
    assert np.abs(y.reshape(x.shape) - x).max() <= 0.5 / 32768 + 1e-7


def test_every_16_bit_value_survives_reading_and_writing(tmp_path):
    x = np.arange(-32768, 32768).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", x, 16000)
    y = io.read(tmp_path / "a.wav")
    assert io.write(tmp_path / "b.flac", y, 16000) == 0
    np.testing.assert_array_equal(soundfile.read(tmp_path / "b.flac", dtype="int16")[0], x)
    np.testing.assert_array_equal(io.to_int16(y), x)


def test_clipping_is_counted_and_lands_on_full_scale(tmp_path):
    assert io.write(tmp_path / "a.wav", np.array([1.0, -1.0, 1.01, -7.0, 0.5]), 16000) == 2
    y = soundfile.read(tmp_path / "a.wav", dtype="int16")[0]
    assert y.tolist() == [32767, -32768, 32767, -32768, 16384]


@pytest.mark.parametrize("kind", damaged.SOUND)
def test_sound_files_are_read_as_libsndfile_reads_them(tmp_path, kind):
    path = tmp_path / "a.bin"  # the content decides, not the suffix
    path.write_bytes(damaged.sound(*kind))
    want, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    got, found_hz = io.read_native(path)
    assert found_hz == rate_hz
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(io.read(path, rate_hz, mono=False), want)
    np.testing.assert_allclose(io.read(path, rate_hz), want.mean(1), atol=1e-7)


def test_reading_in_blocks_changes_nothing(tmp_path):
    x = tone(400_000, 2).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", x, 48000, subtype="FLOAT")
    np.testing.assert_array_equal(io.read_native(tmp_path / "a.wav")[0], x)


# --- resample ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_hz", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("to_hz", [16000, 48000])
def test_a_tone_keeps_its_frequency_and_level(from_hz, to_hz):
    wave = lambda rate_hz: 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate_hz) / rate_hz)
    y = io.resample(wave(from_hz), from_hz, to_hz)
    assert y.dtype == np.float32
    assert len(y) == to_hz
    middle = slice(to_hz // 4, -to_hz // 4)
    assert np.abs(y[middle] - wave(to_hz)[middle]).max() < 1e-4  # 20 bits, and the passband ripple


def test_resampling_is_per_channel_and_identity_at_equal_rates():
    x = tone(4800, 2).astype(np.float32)
    assert io.resample(x, 16000, 16000) is x
    y = io.resample(x, 48000, 16000)
    np.testing.assert_allclose(y[:, 1], io.resample(x[:, 1].copy(), 48000, 16000), atol=1e-6)
    with pytest.raises(ValueError, match=r"resample: .*0 Hz given, 1000 to 384000 Hz allowed"):
        io.resample(x, 0, 16000)


# --- refusals ----------------------------------------------------------------------------------------------


def check(path, seconds=1.0):
    """Reading gives finite float32 samples or AudioError with the path, in time; True if it was read."""
    text, start = "", time.perf_counter()
    try:
        samples, rate_hz = io.read_native(path)
        assert samples.dtype == np.float32
        assert samples.ndim == 2
        assert samples.size
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= io.MAX_AMPLITUDE
        assert 1000 <= rate_hz <= 384000
        mono = io.read(path)
        assert np.isfinite(mono).all()
        read, told = True, True
    except AudioError as error:
        read, text = False, str(error)
        told = text.startswith(f"{path}: ") and "found" in text and "allowed" in text
    assert told, text
    assert time.perf_counter() - start < seconds, path
    return read


def survive(seed, n, folder):
    logged = []
    for path in damaged.damage(seed, n, folder):
        logged.append((path.name, check(path)))
    read = sum(ok for _, ok in logged)
    assert 0 < read < n  # the damage is neither total nor harmless
    return read


def test_150_damaged_files(tmp_path):
    survive(1, 150, tmp_path)


@pytest.mark.slow
def test_2000_damaged_files(tmp_path):
    survive(2, 2000, tmp_path)


def test_damage_is_a_function_of_its_seed(tmp_path):
    a, b, c = (damaged.damage(seed, 60, tmp_path / name) for seed, name in ((3, "a"), (3, "b"), (4, "c")))
    content = lambda paths: [p.read_bytes() if p.is_file() else None for p in paths]
    assert content(a) == content(b) != content(c)


def refused(tmp_path, data, text, **options):
    path = tmp_path / "x.wav"
    path.write_bytes(data)
    with pytest.raises(AudioError, match=text):
        io.read_native(path, **options)


def test_each_refusal_says_what_was_found_and_what_is_allowed(tmp_path):
    with pytest.raises(AudioError, match=r"none\.wav: no such file"):
        io.read(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="found a folder"):
        io.read(tmp_path)
    refused(tmp_path, b"", "found 0 bytes, allowed are 1 to")
    refused(tmp_path, b"hello, this is text", "not audio, found first bytes b'hello, this ")
    refused(tmp_path, damaged.wav(rate_hz=999), "bad rate, found 999 Hz, allowed are 1000 to 384000 Hz")
    refused(tmp_path, damaged.wav(rate_hz=400_000), "bad rate, found 400000 Hz")
    refused(tmp_path, damaged.wav(channels=33, align=66), "bad channel count, found 33, allowed are 1 to 32")
    refused(tmp_path, damaged.wav(b""), "no samples, found 0 frames")
    refused(tmp_path, damaged.wav(), "too long, found 0.1 s, allowed are 0.05 s", max_seconds=0.05)
    refused(tmp_path, damaged.sound("WAV", "ULAW"), "encoding not allowed, found WAV ULAW")
    refused(tmp_path, damaged.sound("RF64", "PCM_16"), "not audio, found first bytes b'RF64")
    refused(tmp_path, damaged.float_wav(np.array([0.1, np.nan])), "found peak nan, allowed are finite")
    refused(tmp_path, damaged.float_wav(np.array([0.1, 3e4])), "found peak 30000, allowed .* up to 10000")
    refused(tmp_path, damaged.sound("FLAC", "PCM_16")[:4000], "cut short|cannot be decoded")


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "x.wav")
    with pytest.raises(AudioError, match="a device or pipe"):
        io.read(tmp_path / "x.wav")


def test_a_header_cannot_claim_memory(tmp_path, monkeypatch):
    """Sparse files as long as they claim are refused by the claim, not after reading it."""
    monkeypatch.setattr(io, "MAX_VALUES", 2**20)
    path = tmp_path / "x.wav"
    path.write_bytes(damaged.wav(claimed=2**29))
    os.truncate(path, 2**29 + 44)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AudioError, match="too large, found 268435456 x 1 values, allowed 1048576"):
        io.read(path, max_seconds=1e9)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    os.truncate(path, 2**30 + 1)
    with pytest.raises(AudioError, match="bad size, found 1073741825 bytes"):
        io.read(path)


# --- writing under stress ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "rate_hz", "name", "text"),
    [
        (np.zeros(9), 16000, "a.mp3", r"found suffix '.mp3', allowed are .wav and .flac"),
        (np.zeros(9), 16000, "a", "found suffix ''"),
        (np.zeros(9, np.int16), 16000, "a.wav", "bad array, found int16"),
        (np.zeros(0), 16000, "a.wav", "bad array, found float64"),
        (np.zeros((2, 2, 2)), 16000, "a.wav", "bad array"),
        (np.array([0, np.nan, np.inf]), 16000, "a.wav", "found 2 not finite"),
        (np.zeros(9), 10, "a.wav", "bad rate, found 10 Hz"),
        (np.zeros((9, 9)), 16000, "a.flac", "up to 8 channels in FLAC"),
        (np.zeros(9), 16000, "none/a.wav", "cannot be written, found 'No such file or directory'"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, x, rate_hz, name, text):
    with pytest.raises(AudioError, match=text):
        io.write(tmp_path / name, x, rate_hz)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_file_and_leaves_no_part(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    io.write(tmp_path / "a.wav", np.zeros(100), 16000)
    before = (tmp_path / "a.wav").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AudioError, match=r"a\.wav: cannot be written, found 'No space left on device'"):
        io.write(tmp_path / "a.wav", np.ones(5000), 16000)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == before


def test_an_interruption_leaves_no_part(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        io.write(tmp_path / "a.wav", np.zeros(100), 16000)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_is_an_error(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(AudioError, match="cannot be written"):
        io.write(tmp_path / "a.wav", np.zeros(9), 16000)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


# --- many files --------------------------------------------------------------------------------------------


def corpus(folder: Path, names, n=3200):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        io.write(folder / name, tone(n), 16000)


def test_scan_is_sorted_recursive_and_blind_to_case(tmp_path):
    corpus(tmp_path, ["b/2.wav", "b/1.FLAC", "a/3.Wav", "z.wav", "b/.hidden.wav"])
    (tmp_path / "b/notes.txt").write_text("x")
    (tmp_path / "b/x.ogg").write_text("listed, whatever it holds")
    names = [str(p.relative_to(tmp_path)) for p in io.scan(tmp_path).files]
    assert names == ["a/3.Wav", "b/1.FLAC", "b/2.wav", "b/x.ogg", "z.wav"]
    both = io.scan([tmp_path / "b", tmp_path]).files
    assert len(both) == len(set(both)) == 5
    assert both[0].name == "1.FLAC"


def test_scan_names_the_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="empty: no noise, found 0 other files"):
        io.scan(tmp_path / "empty", "noise")
    with pytest.raises(AudioError, match="gone: no such speech folder, found nothing, allowed is a folder"):
        io.scan([tmp_path / "gone"], "speech")
    with pytest.raises(AudioError, match="speech: no folders"):
        io.scan([], "speech")


def test_load_all_keeps_the_good_and_names_the_bad(tmp_path, caplog):
    corpus(tmp_path, ["ann/1.wav", "ann/2.flac", "bob/1.wav"])
    (tmp_path / "bob/0.wav").write_text("text")
    io.write(tmp_path / "bob/2.wav", np.zeros(3200), 16000)
    io.write(tmp_path / "bob/3.wav", tone(1500), 16000)
    soundfile.write(tmp_path / "bob/4.wav", 3 * tone(48000), 48000, subtype="FLOAT")
    seen = []
    with caplog.at_level(logging.WARNING, "rnnc"):
        loaded = io.load_all(tmp_path, 16000, kind="speech", on_progress=lambda *done: seen.append(done))
    assert [(Path(c.path).name, c.speaker) for c in loaded.clips] == [
        ("1.wav", "ann"),
        ("2.flac", "ann"),
        ("1.wav", "bob"),
        ("4.wav", "bob"),
    ]
    assert {c.samples.dtype for c in loaded.clips} == {np.dtype(np.int16)}
    assert len(loaded.clips[3].samples) == 16000
    assert [Path(path).name for path, _ in loaded.skipped] == ["0.wav", "2.wav", "3.wav"]
    reasons = [reason.split(",")[0] for _, reason in loaded.skipped]
    assert reasons == ["not audio", "digitally silent", "too short"]
    assert seen == [(i, 7) for i in range(1, 8)]
    assert len(caplog.records) == 3
    assert "0.wav" in caplog.text


def test_load_all_of_nothing_usable_says_so(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.wav").write_text("text")
    with pytest.raises(AudioError, match=r"noise: nothing usable, found 4 tried .*0\.wav: not.*2\.wav: not") as error:
        io.load_all([tmp_path], 16000, kind="noise")
    assert "3.wav" not in str(error.value)


def test_load_all_stops_at_an_interruption(tmp_path):
    corpus(tmp_path, [f"a/{i}.wav" for i in range(20)])

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        io.load_all(tmp_path, 16000, kind="speech", on_progress=stop)


# --- pairs -------------------------------------------------------------------------------------------------


def bench(folder, names):
    corpus(folder, [f"{side}/{name}.wav" for side in ("clean", "noisy") for name in names])


def test_pairs_read_their_table_and_skip_what_does_not_match(tmp_path, caplog):
    folder = tmp_path / "set"
    bench(folder, ["b", "sub/a"])
    corpus(folder, ["clean/alone.wav", "clean/long.wav"])
    corpus(folder, ["noisy/long.flac"], n=4000)
    (folder / "set.csv").write_text("speaker,id,snr_db,more\nann,b,-5,x\n,sub/a,,y\n")
    (folder / "other.csv").write_text("not,this\n")
    with caplog.at_level(logging.WARNING, "rnnc"):
        found = io.pairs(folder)
    assert [(p.id, p.snr_db, p.speaker) for p in found] == [("b", -5.0, "ann"), ("sub/a", None, None)]
    assert all(p.clean.shape == p.noisy.shape == (3200,) for p in found)
    assert not np.array_equal(found[0].clean, found[0].noisy)
    assert "alone: no partner" in caplog.text
    assert "long: unequal lengths, found 3200 clean and 4000 noisy" in caplog.text
    assert "skipped 2 of 4 pairs" in caplog.text


def test_pairs_without_table_or_with_a_damaged_one(tmp_path):
    bench(tmp_path, ["a"])
    assert [(p.id, p.snr_db, p.speaker) for p in io.pairs(tmp_path, 8000)] == [("a", None, None)]
    table = tmp_path / "any.csv"
    table.write_text("id,snr_db\na,10\n")
    assert io.pairs(tmp_path)[0].snr_db == 10
    for text in ("id,snr_db\na,loud\n", "id,snr_db\na,nan\n"):
        table.write_text(text)
        with pytest.raises(AudioError, match=r"any\.csv: bad table"):
            io.pairs(tmp_path)
    table.write_text("name,snr_db\na,10\n")
    with pytest.raises(AudioError, match=r"any\.csv: no column 'id'"):
        io.pairs(tmp_path)
    table.write_bytes(b"\xff\xfe\x00id\xff")
    with pytest.raises(AudioError, match=r"any\.csv: bad table"):
        io.pairs(tmp_path)


def test_pairs_need_both_folders_and_one_pair(tmp_path):
    with pytest.raises(AudioError, match="clean: no such clean folder"):
        io.pairs(tmp_path)
    corpus(tmp_path, ["clean/a.wav", "noisy/b.wav"])
    with pytest.raises(AudioError, match="nothing usable, found 2 tried"):
        io.pairs(tmp_path)
