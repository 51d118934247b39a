"""Scores against independent implementations, their undefined cases, and the summary's interval."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import fast_bss_eval
import mir_eval.separation
import numpy as np
import pesq
import pystoi
import pytest
from scipy import signal

from rnnc.audio import metrics
from rnnc.audio.metrics import METRICS, Undefined


def speech(seed=0, seconds=2.5):
    """Something with the rhythm and the spectrum of speech: filtered noise and pulses in syllables."""
    rng = np.random.default_rng(seed)
    n = int(16000 * seconds)
    pulses = (np.arange(n) % int(rng.integers(100, 160)) == 0) * 1.0
    voice = signal.lfilter([1], np.poly([0.97 * np.exp(0.2j), 0.97 * np.exp(-0.2j), 0.9]), pulses)
    voice = voice / np.abs(voice).max() + 0.02 * rng.standard_normal(n)
    envelope = np.clip(np.sin(2 * np.pi * 3 * np.arange(n) / 16000 + seed), 0, 1) ** 2
    return 0.3 * voice * envelope


def noisy(c, snr_db, seed=9):
    rng = np.random.default_rng(seed)
    noise = signal.lfilter([1], [1, -0.8], rng.standard_normal(len(c)))
    return c + noise * np.sqrt(c @ c / (noise @ noise)) * 10 ** (-snr_db / 20)


def band(c, high_hz):
    return signal.sosfiltfilt(signal.butter(10, high_hz, fs=16000, output="sos"), c)


CASES = {
    "-10 dB": (speech(1), noisy(speech(1), -10)),
    "0 dB": (speech(2), noisy(speech(2), 0)),
    "20 dB": (speech(3), noisy(speech(3), 20)),
    "filtered": (speech(4), noisy(signal.lfilter([0.1, 0.7, -0.4], [1, -0.3], speech(4)), 30)),
    "delayed": (speech(5), noisy(np.roll(speech(5), 40), 10)),
    "unrelated": (speech(6), speech(7)),
    "white": (
        np.random.default_rng(8).standard_normal(16000),
        np.random.default_rng(9).standard_normal(16000),
    ),
}


# --- ratios ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_sdr_is_that_of_two_other_implementations(name):
    c, e = CASES[name]
    got = metrics.sdr_db(c, e)
    assert got == pytest.approx(mir_eval_sdr(c, e), abs=0.01)
    assert got == pytest.approx(float(fast_bss_eval.sdr(c[None], e[None])[0]), abs=0.01)


def mir_eval_sdr(c, e):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it announces its removal from mir_eval
        return mir_eval.separation.bss_eval_sources(c[None], e[None], compute_permutation=False)[0][0]


@pytest.mark.parametrize("high_hz", [300, 1000, 2000, 4000])
@pytest.mark.parametrize("snr_db", [10, 40])
def test_sdr_of_band_limited_speech_is_what_a_least_squares_filter_reaches(high_hz, snr_db):
    """There the normal equations are singular to working precision; lstsq on the signals squares nothing."""
    c = band(speech(1, 0.5), high_hz)
    e = noisy(c, snr_db)
    delayed = np.stack([np.pad(c, (k, 511 - k)) for k in range(512)], axis=1)
    target = delayed @ np.linalg.lstsq(delayed, np.pad(e, (0, 511)), rcond=None)[0]
    best = 10 * np.log10(target @ target / np.sum((np.pad(e, (0, 511)) - target) ** 2))
    got = metrics.sdr_db(c, e)
    assert best - 0.1 < got < best + 1e-6


@pytest.mark.parametrize("name", CASES)
def test_si_sdr_is_its_definition(name):
    c, e = (x - x.mean() for x in CASES[name])
    scale = np.linalg.lstsq(c[:, None], e, rcond=None)[0][0]
    want = 20 * np.log10(np.linalg.norm(scale * c) / np.linalg.norm(e - scale * c))
    assert metrics.si_sdr_db(*CASES[name]) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("snr_db", [-60, -5, 0, 33, 80])
def test_si_sdr_of_orthogonal_noise_is_the_snr(snr_db):
    t = np.arange(16000) / 16000
    c, n = np.sin(2 * np.pi * 300 * t), np.sin(2 * np.pi * 301 * t)
    assert metrics.si_sdr_db(c, c + n * 10 ** (-snr_db / 20)) == pytest.approx(snr_db, abs=1e-6)


@pytest.mark.parametrize("ratio", [metrics.si_sdr_db, metrics.sdr_db])
def test_ratios_do_not_see_gain_and_stay_within_100_db(ratio):
    c, e = CASES["0 dB"]
    assert ratio(c, -3e-3 * e) == pytest.approx(ratio(c, e), abs=1e-6)
    assert ratio(1e-3 * c, e) == pytest.approx(ratio(c, e), abs=1e-6)
    assert ratio(c, c) == pytest.approx(100, abs=1e-9)
    assert ratio(c.astype(np.float32), e.astype(np.float32)) == pytest.approx(ratio(c, e), abs=1e-3)


def test_only_sdr_forgives_a_filter_and_only_si_sdr_an_offset():
    c = speech(3)
    high_passed = signal.sosfilt(signal.butter(2, 200, "high", fs=16000, output="sos"), c)
    assert metrics.sdr_db(c, high_passed) > metrics.si_sdr_db(c, high_passed) + 10
    assert metrics.si_sdr_db(c, c + 0.5) == pytest.approx(100)
    t = np.arange(16000)
    assert metrics.si_sdr_db(np.sin(t * np.pi / 8), np.cos(t * np.pi / 8)) == -100


# --- PESQ and STOI -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0 dB", "20 dB", "filtered"])
def test_perceptual_scores_are_those_of_their_packages(name):
    c, e = CASES[name]
    assert metrics.pesq_wb(c, e) == pesq.pesq(16000, c, e, "wb")
    assert metrics.stoi(c, e) == pytest.approx(pystoi.stoi(c, e, 16000), abs=1e-12)
    assert metrics.estoi(c, e) == pytest.approx(pystoi.stoi(c, e, 16000, extended=True), abs=1e-12)


def test_every_score_rises_with_the_snr_and_is_best_for_the_speech_itself():
    c = speech(2)
    rows = [metrics.score(c, noisy(c, snr_db)) for snr_db in (-5, 5, 15)] + [metrics.score(c, c)]
    for metric in METRICS:
        values = [row[metric] for row in rows]
        assert values == sorted(values), metric
        assert len(set(values)) == 4
    assert rows[3] == pytest.approx(
        {"si_sdr_db": 100, "sdr_db": 100, "pesq_wb": 4.644, "stoi": 1, "estoi": 1}, rel=1e-3
    )


# --- undefined cases ---------------------------------------------------------------------------------------

C = speech(1)
Z = np.zeros_like(C)
CLICK = np.where(np.arange(len(C)) == 20000, 1.0, 0.0)
UNDEFINED = {
    "clean silent": (Z, C, "all", "clean is silent"),
    "estimate silent": (C, Z, "all", "estimate is silent"),
    "clean constant": (Z + 0.3, C, "all", "clean is silent"),
    "estimate below 24 bits": (C, 1e-8 * C, "all", "estimate is silent"),
    "NaN": (C, np.where(CLICK, np.nan, C), "all", "estimate holds samples that are not finite"),
    "infinity": (np.where(CLICK, np.inf, C), C, "all", "clean holds samples that are not finite"),
    "overflow": (C, 1e200 * C, "all", "estimate exceeds 1e+09"),
    "empty": (C[:0], C[:0], "all", "clean is silent"),
    "500 samples": (C[4000:4500], C[4000:4500], "sdr_db pesq_wb stoi estoi", "too short"),
    "0.2 s": (C[:3200], C[:3200], "pesq_wb stoi estoi", "too short"),
    "0.3 s": (C[:4800], C[:4800], "stoi estoi", "too short"),
    "a click": (CLICK, C, "stoi estoi", "STOI: Not enough STFT frames"),
    "21 s": (np.tile(C, 9), np.tile(C, 9), "pesq_wb", "too long: 22.5 s, at most 20 s"),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_undefined_scores_say_why_and_the_others_are_finite(name):
    c, e, which, reason = UNDEFINED[name]
    result = metrics.score(c, e)
    assert tuple(result) == METRICS
    for metric, value in result.items():
        if which == "all" or metric in which.split():
            assert isinstance(value, Undefined), metric
            assert value.reason.startswith(reason)
        else:
            assert isinstance(value, Undefined) or np.isfinite(value)


@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 3999, 4001, 6719, 6721, 9000])
def test_no_length_crashes(n):
    rng = np.random.default_rng(n)
    for c, e in ((C[:n], noisy(C, 0)[:n]), (rng.standard_normal(n), rng.standard_normal(n))):
        for value in metrics.score(c, e).values():
            assert isinstance(value, Undefined) or np.isfinite(value)


def test_many_utterances_in_20_s_are_scored():
    """49 bursts, nearly as many as PESQ's tables hold (a process that overruns them dies)."""
    rng = np.random.default_rng(0)
    x = np.tile(np.repeat([1.0, 1e-6], [3300, 3230]), 49)[:320000] * 0.3
    x = x * rng.standard_normal(len(x))
    assert 1 < metrics.pesq_wb(x, x + 0.01 * rng.standard_normal(len(x))) < 4.7


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"shapes \(9,\) and \(8,\) given, two equally long vectors allowed"):
        metrics.score(np.ones(9), np.ones(8))
    with pytest.raises(ValueError, match=r"shapes \(9, 1\)"):
        metrics.stoi(np.ones((9, 1)), np.ones((9, 1)))
    with pytest.raises(ValueError, match="rate 8000 Hz given, 16000 Hz allowed"):
        metrics.score(C, C, 8000)


# --- summaries ---------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_the_normal_law_for_many_values():
    x = np.random.default_rng(0).normal(3, 2, 400)
    got = metrics.summarise(list(x))
    half = 1.96 * x.std() / 20
    assert got["mean"] == pytest.approx(x.mean())
    assert got["low"] == pytest.approx(x.mean() - half, abs=0.03)
    assert got["high"] == pytest.approx(x.mean() + half, abs=0.03)
    assert (got["n"], got["undefined"]) == (400, 0)


def test_groups_are_drawn_whole():
    """Ten equal values per group say no more than one."""
    x = np.random.default_rng(1).normal(0, 1, 30)
    single, groups = metrics.summarise(list(x)), np.repeat(np.arange(30), 10)
    tenfold = metrics.summarise(list(np.repeat(x, 10)), list(groups))
    naive = metrics.summarise(list(np.repeat(x, 10)))
    assert (tenfold["low"], tenfold["high"]) == pytest.approx((single["low"], single["high"]), abs=1e-9)
    assert naive["high"] - naive["low"] < 0.4 * (tenfold["high"] - tenfold["low"])


def test_a_larger_group_weighs_more_in_each_draw():
    got = metrics.summarise([0.0, 0.0, 0.0, 1.0], ["ann", "ann", "ann", "bob"])
    assert got == {"mean": 0.25, "low": 0.0, "high": 1.0, "n": 4, "undefined": 0}


def test_undefined_values_are_counted_and_the_seed_decides():
    values = [1.0, Undefined("silent"), 2.0, 4.0]
    a, b, c = (metrics.summarise(values, "abca", seed=seed) for seed in (1, 1, 2))
    assert a == b
    assert a["undefined"] == c["undefined"] == 1
    nothing = {"mean": None, "low": None, "high": None, "n": 0, "undefined": 1}
    assert metrics.summarise([Undefined("silent")]) == nothing
    assert metrics.summarise([]) == nothing | {"undefined": 0}


def test_draws_in_several_parts_are_draws():
    x = list(np.random.default_rng(0).normal(0, 1, 2000))
    got = metrics.summarise(x)
    assert got["high"] - got["low"] == pytest.approx(2 * 1.96 / np.sqrt(2000), rel=0.1)


def test_summarise_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="2 values and 1 groups given"):
        metrics.summarise([1.0, 2.0], ["ann"])
    with pytest.raises(ValueError, match="not finite"):
        metrics.summarise([1.0, float("nan")])


# --- many pairs --------------------------------------------------------------------------------------------


def test_workers_give_the_same_numbers_in_order():
    pairs = [(speech(i, 1.0), noisy(speech(i, 1.0), 5 * i)) for i in range(4)] + [(Z, Z)]
    seen = []
    shared = metrics.score_many(pairs, 2, lambda *done: seen.append(done))
    alone = metrics.score_many(pairs, 1)
    assert shared[4] == alone[4] == metrics.score(Z, Z)
    for a, b, pair in zip(shared[:4], alone[:4], pairs):
        assert a == pytest.approx(b, abs=1e-9)  # sums may be split among threads, and pystoi adds noise of 1e-16
        assert b == pytest.approx(metrics.score(*pair), abs=1e-9)
    assert seen == [(i, 5) for i in range(1, 6)]
    assert metrics.score_many([]) == []


def test_a_wrong_pair_is_found_before_the_work():
    with pytest.raises(ValueError, match="two equally long vectors"):
        metrics.score_many([(C, C), (C, C[1:])])


def test_an_interruption_ends_the_workers(monkeypatch):
    crew, hire = [], metrics._hire

    def remember():
        crew.append(hire())
        return crew[-1]

    def stop(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics, "_hire", remember)
    with pytest.raises(KeyboardInterrupt):
        metrics.score_many([(C, C)] * 4, 2, stop)
    assert len(crew) == 2
    assert all(worker.poll() is not None for worker in crew)


def test_a_worker_that_dies_is_an_error(monkeypatch):
    dead = [sys.executable, "-c", "raise SystemExit(7)"]
    monkeypatch.setattr(metrics, "_hire", lambda: subprocess.Popen(dead, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    with pytest.raises(RuntimeError, match="score_many: a worker died with status 7"):
        metrics.score_many([(C, C)] * 4, 2)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_caller_leaves_no_workers():
    """A program without guard around its main part, killed in the middle of the work."""
    program = (
        "import numpy as np, os, signal\n"
        "from rnnc.audio import metrics\n"
        "hire, x = metrics._hire, np.random.default_rng(0).standard_normal(32000)\n"
        "def hired():\n"
        "    worker = hire()\n"
        "    print(worker.pid, flush=True)\n"
        "    return worker\n"
        "metrics._hire = hired\n"
        "metrics.score_many([(x, x)] * 50, 2, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=60)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    end = time.monotonic() + 10
    while any(running(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(running(pid) for pid in pids)


def running(pid):
    """Whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_module_imports_no_jax():
    code = "import sys; from rnnc.audio import metrics, io; print([m for m in sys.modules if m == 'jax'])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"
