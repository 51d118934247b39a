"""Scores of an estimate against clean speech: SI-SDR, SDR, PESQ-WB, STOI, ESTOI; their means with intervals.

A score that is not defined for its input (silence, too short, no speech found) is an `Undefined` with the
reason: never NaN, never a crash, and `summarise` counts it. Clean and estimate must be aligned: a shift of
some milliseconds ruins SI-SDR. SI-SDR also punishes a mere high-pass (clean speech through one at 80 Hz has
about 9 dB), SDR does not.
"""

import os
import pickle
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pesq
import pystoi
from scipy import linalg
from scipy.fft import next_fast_len
from scipy.signal import fftconvolve

METRICS = ("si_sdr_db", "sdr_db", "pesq_wb", "stoi", "estoi")
RATE_HZ = 16000
LIMIT_DB = 100.0  # ratios are cut to +-100 dB: beyond lies rounding error, and perfection stays finite
TAPS = 512  # of the distortion filter that SDR forgives
SILENT = 1e-7  # half the span from lowest to highest sample, full scale 1
LOUDEST = 1e9  # peak
PESQ_SECONDS = 20.0  # its code holds 50 utterances and overruns that table; one takes at least 0.4 s
STOI_SECONDS = 0.42  # 30 frames

_SOLVED = 1e-12  # relative residual up to which the fast Toeplitz solver is believed


@dataclass(frozen=True)
class Undefined:
    """Takes the place of a score that does not exist; `reason` says why."""

    reason: str


Score = float | Undefined
Waves = tuple[np.ndarray, np.ndarray]


class Summary(TypedDict):
    """`mean` with its 95 % interval (None if nothing is defined); how many scores are and are not defined."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    undefined: int


# --- one score ---------------------------------------------------------------------------------------------


def si_sdr_db(clean: np.ndarray, estimate: np.ndarray) -> Score:
    """Scale-invariant signal-to-distortion ratio.

    10 log10(|a c|^2 / |e - a c|^2) with a = <e, c> / <c, c>, after removing the means of c and e.

    Args:
        clean: c, `[n]`.
        estimate: e, `[n]`, aligned with c.
    Returns:
        dB, cut to +-100.
    Raises:
        ValueError: the arrays are not two equally long vectors.
    Example:
        >>> si_sdr_db(np.array([1.0, -1.0, 1.0, -1.0]), np.array([2.0, 0.0, 0.0, -2.0]))
        0.0

    Source: Le Roux et al., "SDR - half-baked or well done?", 2019, eq. 5; we also remove the means.
    """
    c, e = _waves(clean, estimate)
    if reason := _problem(c, e):
        return Undefined(reason)
    c, e = c - c.mean(), e - e.mean()
    target = (e @ c) / (c @ c) * c
    return _ratio_db(target, e - target)


def sdr_db(clean: np.ndarray, estimate: np.ndarray) -> Score:
    """Signal-to-distortion ratio that forgives a 512-tap filter.

    10 log10(|h * c|^2 / |e - h * c|^2) with the h that minimises the denominator. The ratio is that of the
    filter found, so an ill-conditioned c (band-limited speech) may cost hundredths of a dB, never gain any.

    Args:
        clean: c, `[n]`, n > 512.
        estimate: e, `[n]`.
    Returns:
        dB, cut to +-100.
    Raises:
        ValueError: the arrays are not two equally long vectors.
    Example:
        >>> c = np.random.default_rng(0).standard_normal(2000)
        >>> sdr_db(c, 0.5 * np.roll(c, 3)) > 20  # a delay and a gain are forgiven, the wrapped end is not
        True

    Source: Vincent et al., "Performance measurement in blind audio source separation", 2006; BSS Eval 3.
    """
    c, e = _waves(clean, estimate)
    if reason := _problem(c, e, TAPS / RATE_HZ):
        return Undefined(reason)
    c, e = c / np.abs(c).max(), e / np.abs(e).max()
    target = fftconvolve(c, _distortion(c, e))
    return _ratio_db(target, np.pad(e, (0, TAPS - 1)) - target)


def _distortion(c: np.ndarray, e: np.ndarray) -> np.ndarray:
    """The filter h `[512]` that takes c nearest to e: Toeplitz(<c, c delayed>) h = <c delayed, e>."""
    n = next_fast_len(len(c) + TAPS, real=True)
    spectrum = np.fft.rfft(c, n)
    auto = np.fft.irfft(np.abs(spectrum) ** 2, n)[:TAPS]
    cross = np.fft.irfft(spectrum.conj() * np.fft.rfft(e, n), n)[:TAPS]
    try:
        with np.errstate(all="ignore"):
            h = linalg.solve_toeplitz(auto, cross)
            wrong = np.linalg.norm(np.asarray(linalg.matmul_toeplitz(auto, h)) - cross)
        if wrong <= _SOLVED * np.linalg.norm(cross):
            return np.asarray(h)
    except (np.linalg.LinAlgError, ValueError):  # singular, or not finite on the way
        pass
    return np.linalg.lstsq(linalg.toeplitz(auto), cross, rcond=None)[0]


def pesq_wb(clean: np.ndarray, estimate: np.ndarray) -> Score:
    """Wide-band PESQ at 16 kHz.

    Args:
        clean: `[n]`, at 16 kHz, 0.25 to 20 s.
        estimate: `[n]`.
    Returns:
        MOS-LQO, 1.0 to 4.65.
    Raises:
        ValueError: the arrays are not two equally long vectors.
    Example:
        >>> pesq_wb(np.ones(100), np.ones(100))
        Undefined(reason='clean is silent')

    Source: ITU-T P.862.2, by the package `pesq`; clips over 20 s are left undefined, since more than 50
        utterances overrun a table of its code.
    """
    c, e = _waves(clean, estimate)
    if reason := _problem(c, e, 0.25, PESQ_SECONDS):
        return Undefined(reason)
    try:
        value = float(pesq.pesq(RATE_HZ, c, e, "wb"))
    except (pesq.PesqError, ValueError) as error:
        text = error.args[0] if error.args else type(error).__name__
        return Undefined(f"PESQ: {text.decode() if isinstance(text, bytes) else text}")
    return value if np.isfinite(value) else Undefined("PESQ: not finite")


def stoi(clean: np.ndarray, estimate: np.ndarray) -> Score:
    """Short-time objective intelligibility at 16 kHz.

    Args:
        clean: `[n]`, at 16 kHz, with at least 0.4 s of speech.
        estimate: `[n]`, aligned with clean.
    Returns:
        A correlation, at most 1.
    Raises:
        ValueError: the arrays are not two equally long vectors.
    Example:
        >>> stoi(np.arange(100.0), np.arange(100.0))
        Undefined(reason='too short: 0.006 s, at least 0.42 s wanted')

    Source: Taal et al., "An algorithm for intelligibility prediction ...", 2011, by the package `pystoi`.
    """
    return _stoi(clean, estimate, extended=False)


def estoi(clean: np.ndarray, estimate: np.ndarray) -> Score:
    """Extended STOI, which also hears modulated maskers; arguments, result and errors as `stoi`.

    Example:
        >>> noise = np.random.default_rng(0).standard_normal(16000)
        >>> round(float(estoi(noise, noise)), 3)
        1.0

    Source: Jensen and Taal, "An algorithm for predicting the intelligibility ...", 2016; package `pystoi`.
    """
    return _stoi(clean, estimate, extended=True)


def _stoi(clean: np.ndarray, estimate: np.ndarray, extended: bool) -> Score:
    c, e = _waves(clean, estimate)
    if reason := _problem(c, e, STOI_SECONDS):
        return Undefined(reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # how pystoi says that it found too little speech
            value = float(pystoi.stoi(c, e, RATE_HZ, extended=extended))
    except (RuntimeWarning, ValueError) as error:
        return Undefined(f"STOI: {str(error).split('.')[0]}")
    return value if np.isfinite(value) else Undefined("STOI: not finite")


def _waves(clean: np.ndarray, estimate: np.ndarray) -> Waves:
    """Both as float64 `[n]`."""
    c, e = np.asarray(clean), np.asarray(estimate)
    if c.ndim != 1 or c.shape != e.shape:
        raise ValueError(f"score: shapes {c.shape} and {e.shape} given, two equally long vectors allowed")
    return c.astype(np.float64), e.astype(np.float64)


def _problem(c: np.ndarray, e: np.ndarray, least_s: float = 0.0, most_s: float = np.inf) -> str | None:
    """Why no score is defined, or None; the limits are in seconds at 16 kHz."""
    for name, x in (("clean", c), ("estimate", e)):
        if not np.isfinite(x).all():
            return f"{name} holds samples that are not finite"
        if not x.size or np.ptp(x) < 2 * SILENT:
            return f"{name} is silent"
        if np.abs(x).max() > LOUDEST:
            return f"{name} exceeds {LOUDEST:g}"
    seconds = len(c) / RATE_HZ
    if seconds <= least_s:
        return f"too short: {seconds:.3f} s, at least {least_s:g} s wanted"
    if seconds > most_s:
        return f"too long: {seconds:.1f} s, at most {most_s:g} s wanted"
    return None


def _ratio_db(target: np.ndarray, rest: np.ndarray) -> float:
    """Energy of target over energy of rest in dB, cut to +-LIMIT_DB; not both are zero."""
    small = 10 ** (-LIMIT_DB / 10)
    wanted, unwanted = target @ target, rest @ rest
    if wanted <= small * unwanted:
        return -LIMIT_DB
    if unwanted <= small * wanted:
        return LIMIT_DB
    return float(10 * np.log10(wanted / unwanted))


# --- all scores --------------------------------------------------------------------------------------------


def score(clean: np.ndarray, estimate: np.ndarray, rate_hz: int = RATE_HZ) -> dict[str, Score]:
    """All of `METRICS` for one pair.

    Args:
        clean: `[n]`.
        estimate: `[n]`, aligned with clean.
        rate_hz: must be 16000.
    Returns:
        {metric: value or Undefined}, keys exactly `METRICS`.
    Raises:
        ValueError: another rate, or not two equally long vectors.
    Example:
        >>> score(np.zeros(16000), np.zeros(16000))["stoi"]
        Undefined(reason='clean is silent')
    """
    if rate_hz != RATE_HZ:
        raise ValueError(f"score: rate {rate_hz} Hz given, {RATE_HZ} Hz allowed (resample first)")
    return {metric: globals()[metric](clean, estimate) for metric in METRICS}


def summarise(
    values: Sequence[Score], groups: Sequence[Hashable] | None = None, *, seed: int = 0, draws: int = 5000
) -> Summary:
    """Mean of the defined values with a 95 % percentile bootstrap interval.

    Args:
        values: `[n]` scores.
        groups: `[n]` labels (speakers); values of one group are drawn together. None: each value by itself.
        seed: of the draws.
        draws: number of bootstrap draws, >= 1.
    Returns:
        Mean, interval, count of defined and of undefined values; the first three are None if none is defined.
    Raises:
        ValueError: unequal lengths, or a value that is not finite.
    Example:
        >>> summarise([1.0, 3.0, Undefined("silent")], ["ann", "ann", "bob"])
        {'mean': 2.0, 'low': 2.0, 'high': 2.0, 'n': 2, 'undefined': 1}
    """
    groups = range(len(values)) if groups is None else groups
    if len(groups) != len(values):
        raise ValueError(f"summarise: {len(values)} values and {len(groups)} groups given, equal counts wanted")
    kept = [(float(v), g) for v, g in zip(values, groups) if not isinstance(v, Undefined)]
    n, undefined = len(kept), len(values) - len(kept)
    if not kept:
        return Summary(mean=None, low=None, high=None, n=0, undefined=undefined)
    x = np.array([v for v, _ in kept])
    if not np.isfinite(x).all():
        raise ValueError("summarise: a value is not finite, floats or Undefined allowed")
    low, high = _interval(x, [g for _, g in kept], np.random.default_rng(seed), draws)
    return Summary(mean=float(x.mean()), low=low, high=high, n=n, undefined=undefined)


def _interval(x: np.ndarray, groups: Sequence[Hashable], rng: np.random.Generator, draws: int) -> tuple[float, float]:
    """2.5 and 97.5 % points of the mean of x `[n]` when whole groups are drawn with replacement."""
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    member = np.array([number[group] for group in groups])
    sums, counts = np.bincount(member, x), np.bincount(member)
    means = []
    step = max(1, 2**22 // len(number))  # 32 MiB at a time
    for first in range(0, draws, step):
        drawn = rng.integers(len(number), size=(min(step, draws - first), len(number)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


# --- many pairs --------------------------------------------------------------------------------------------


def score_many(
    pairs: Sequence[Waves], workers: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Score]]:
    """`score` for many (clean, estimate) at 16 kHz, in several processes (PESQ holds the interpreter's lock).

    The workers are fresh interpreters that import this module alone: they share no memory with the caller (it
    may run threads), need no guard around its main program, and end with it, however it ends.

    Args:
        pairs: (clean `[n]`, estimate `[n]`) each.
        workers: processes; 1 or fewer scores in this process.
        on_progress: called with (pairs done, pairs in all) after each pair.
    Returns:
        The scores, in the order of the pairs; workers change them by rounding errors at most.
    Raises:
        ValueError: as `score`, for any pair, before the work begins.
        RuntimeError: a worker died.
    Example:
        >>> score_many([(np.zeros(9), np.zeros(9))], workers=1)[0]["sdr_db"]
        Undefined(reason='clean is silent')
    """
    for clean, estimate in pairs:
        _waves(clean, estimate)
    few = workers <= 1 or len(pairs) < 2
    scores: list[dict[str, Score]] = []
    with closing(_alone(pairs) if few else _shared(pairs, workers)) as results:
        for result in results:
            scores.append(result)
            if on_progress:
                on_progress(len(scores), len(pairs))
    return scores


def _alone(pairs: Sequence[Waves]) -> Generator[dict[str, Score], None, None]:
    for clean, estimate in pairs:
        yield score(clean, estimate)


def _shared(pairs: Sequence[Waves], workers: int) -> Generator[dict[str, Score], None, None]:
    """Deal the pairs out in turn, each worker holding one, and collect in the same order."""
    crew: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(min(workers, len(pairs))):
            crew.append(_hire())
        for worker, pair in zip(crew, pairs):
            _send(worker, pair)
        for i in range(len(pairs)):
            worker = crew[i % len(crew)]
            yield _receive(worker)
            if i + len(crew) < len(pairs):
                _send(worker, pairs[i + len(crew)])
    finally:
        for worker in crew:
            worker.kill()
        for worker in crew:
            worker.communicate()


def _hire() -> subprocess.Popen[bytes]:
    """Start an interpreter that finds the same modules and uses one core."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    code = "from rnnc.audio import metrics; metrics._work()"
    command = [sys.executable, "-P", "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)


def _send(worker: subprocess.Popen[bytes], pair: Waves) -> None:
    assert worker.stdin
    try:
        pickle.dump(pair, worker.stdin, protocol=5)
        worker.stdin.flush()
    except BrokenPipeError:
        raise RuntimeError(f"score_many: a worker died with status {worker.wait()}") from None


def _receive(worker: subprocess.Popen[bytes]) -> dict[str, Score]:
    assert worker.stdout
    try:
        return pickle.load(worker.stdout)
    except EOFError:
        raise RuntimeError(f"score_many: a worker died with status {worker.wait()}") from None


def _work() -> None:
    """A worker: pickled pairs in on standard input, pickled scores out, until the input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a metric prints must not mix with the answers
    while True:
        try:
            pair = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(score(*pair), out)
        out.flush()
