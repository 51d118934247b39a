"""Laws of the simulated rooms: images, decay, alignment, convolution."""

import itertools

import numpy as np
import pytest
import scipy.signal

from rnnc.audio import rooms

RATE_HZ = 16000
SIZE = np.array([5.0, 4.0, 2.6])
SOURCE = np.array([1.2, 2.9, 1.5])
MICROPHONE = np.array([3.4, 1.1, 1.2])


@pytest.fixture(scope="module")
def drawn() -> list[rooms.Room]:
    return [rooms.room(np.random.default_rng(seed), RATE_HZ) for seed in range(60)]


def _schroeder_s(room: rooms.Room) -> float:
    """T60 below 1.5 kHz, from -5 to -25 dB of the energy that is still to come, without the direct path."""
    sos = scipy.signal.butter(4, (200, 1500), "bandpass", fs=RATE_HZ, output="sos")
    late = np.asarray(scipy.signal.sosfilt(sos, room.rir[room.direct_sample + 32 :].astype(np.float64)))
    left = np.cumsum(late[::-1] ** 2)[::-1]
    level_db = 10 * np.log10(left / left[0] + 1e-12)
    at = np.flatnonzero((level_db < -5) & (level_db > -25))
    return -60.0 / np.polyfit(at / RATE_HZ, level_db[at], 1)[0]


def test_first_images_against_a_loop():
    at, bounces = rooms.images(SIZE, SOURCE, MICROPHONE, 12.0)
    found = np.sort(np.linalg.norm(at[bounces == 1], axis=1))
    wanted = []
    for axis, wall in itertools.product(range(3), (0.0, 1.0)):
        mirrored = SOURCE.copy()
        mirrored[axis] = 2 * wall * SIZE[axis] - SOURCE[axis]
        wanted.append(np.linalg.norm(mirrored - MICROPHONE))
    np.testing.assert_allclose(found, np.sort(wanted), rtol=1e-12)
    np.testing.assert_allclose(at[0], SOURCE - MICROPHONE)


def test_all_images_against_a_loop():
    reach = 14.0
    at, bounces = rooms.images(SIZE, SOURCE, MICROPHONE, reach)
    wanted = []
    for m in itertools.product(range(-4, 5), repeat=3):
        for p in itertools.product((0, 1), repeat=3):
            image = (1 - 2 * np.array(p)) * SOURCE + 2 * np.array(m) * SIZE - MICROPHONE
            if np.linalg.norm(image) <= reach:
                wanted.append((np.linalg.norm(image), sum(abs(i - j) + abs(i) for i, j in zip(m, p))))
    found = sorted(zip(np.linalg.norm(at, axis=1), bounces))
    np.testing.assert_allclose(found, sorted(wanted), rtol=1e-12)


def test_an_image_between_samples_is_delayed_by_its_fraction():
    row = rooms._impulses(np.array([100.25]), np.array([0.5]), np.array([0]), 200)[0]
    bins = np.arange(70)  # up to 0.7 of half the rate: the kernel is 32 taps long
    spectrum = np.fft.rfft(row)[bins] * np.exp(2j * np.pi * bins * 100.25 / 200)
    np.testing.assert_allclose(np.angle(spectrum), 0.0, atol=0.01)
    np.testing.assert_allclose(np.abs(spectrum), 0.5, rtol=0.01)


def test_same_seed_same_room(drawn):
    again = rooms.room(np.random.default_rng(7), RATE_HZ)
    np.testing.assert_array_equal(again.rir, drawn[7].rir)
    assert again.size_m == drawn[7].size_m
    assert len({r.rir.tobytes() for r in drawn}) == len(drawn)


def test_direct_path(drawn):
    for r in drawn:
        assert r.rir[r.direct_sample] == 1.0
        assert r.rir.dtype == np.float32
        assert np.isfinite(r.rir).all()
        before = r.rir[: r.direct_sample - 2]  # side lobes of early reflections between samples, no arrivals
        assert np.max(np.abs(before)) < 0.15
        assert 0.3 <= r.distance_m <= 3.0
        assert rooms.RT60_S[0] <= r.rt60_high_s / 0.5
        assert r.rt60_high_s < r.rt60_s <= rooms.RT60_S[1]


def test_decay_is_the_asked_one(drawn):
    """Within 12% from 0.4 s, 30% from 0.2 s; a shorter one rests on a few reflections: median within 12%."""
    ratio = np.array([_schroeder_s(r) / r.rt60_s for r in drawn])
    asked = np.array([r.rt60_s for r in drawn])
    assert np.max(np.abs(ratio[asked >= 0.4] - 1)) < 0.12
    assert np.max(np.abs(ratio[asked >= 0.2] - 1)) < 0.30
    assert abs(np.median(ratio[asked < 0.2]) - 1) < 0.12


def test_high_frequencies_decay_faster(drawn):
    sos = scipy.signal.butter(4, 3000, "highpass", fs=RATE_HZ, output="sos")
    for r in (r for r in drawn if r.rt60_s > 0.4 and r.rt60_high_s < 0.8 * r.rt60_s):
        x = np.square(scipy.signal.sosfilt(sos, r.rir[r.direct_sample + 1600 :]))
        drop_db = 10 * np.log10(np.mean(x[:800]) / np.mean(x[2400:3200]))  # over 0.15 s
        np.testing.assert_allclose(drop_db, 60 * 0.15 / r.rt60_high_s, rtol=0.25, atol=1.5)


def test_louder_reflections_in_a_livelier_room():
    rates = [rooms.reflection(SIZE, rt60_s) for rt60_s in (0.1, 0.3, 0.9)]
    assert 0 < rates[0] < rates[1] < rates[2] < 1


def test_early_is_the_beginning(drawn):
    r = drawn[3]
    head = rooms.early(r.rir, r.direct_sample, RATE_HZ, 20.0)
    assert len(head) == r.direct_sample + 1 + 320
    np.testing.assert_array_equal(head, r.rir[: len(head)])
    short = np.ones(30, np.float32)
    np.testing.assert_array_equal(rooms.early(short, 16, RATE_HZ), short)


@pytest.mark.parametrize(("n", "m", "direct"), [(1000, 300, 16), (50, 300, 0), (1, 1, 0), (301, 40, 39)])
def test_convolve_against_numpy(n, m, direct):
    rng = np.random.default_rng(n)
    x, rir = rng.standard_normal(n), rng.standard_normal(m)
    y = rooms.convolve(x, rir, direct)
    assert y.dtype == np.float32
    wanted = np.convolve(x, rir)[direct : direct + n]
    wanted = np.pad(wanted, (0, n - len(wanted)))
    np.testing.assert_allclose(y, wanted, atol=1e-5 * np.sqrt(min(n, m)))  # float32 FFT


def test_convolve_keeps_the_direct_path_in_place(drawn):
    x = np.zeros(4000, np.float32)
    x[1234] = 1.0
    r = drawn[5]
    y = rooms.convolve(x, r.rir, r.direct_sample)
    np.testing.assert_allclose(y[1234], 1.0, atol=1e-5)
    np.testing.assert_allclose(rooms.convolve(x, np.ones(1), 0), x, atol=1e-6)


def test_convolve_refuses_a_direct_path_outside():
    with pytest.raises(ValueError, match=r"direct_sample 3, allowed: 0\.\.2"):
        rooms.convolve(np.ones(5), np.ones(3), 3)
