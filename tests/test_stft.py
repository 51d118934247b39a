"""Laws of spectra and bands: what goes in comes out, streams equal batches, and two other libraries agree."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal

from rnnc.audio import stft as module
from rnnc.audio.stft import Bands, Stft

SIZES = [(512, 256), (400, 100), (6, 2)]
BANDS = [
    Bands(),
    Bands(hold_edges=False),
    Bands(count=32),
    Bands(count=1, low_hz=0.0, high_hz=8000.0),
    Bands(count=40, low_hz=300.0, high_hz=3400.0, hold_edges=False),
]
ROUNDING = 2e-6  # of float32 transforms of signals of about unit size


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("window", "hop"), SIZES)
@pytest.mark.parametrize("samples", [1, 512, 3001])
def test_synthesis_inverts_analysis(window, hop, samples):
    stft, x = Stft(window=window, hop=hop), _noise(2, samples)
    spectra = stft.analyse(x)
    assert spectra.shape == (2, stft.frames(samples), stft.bins)
    np.testing.assert_allclose(stft.synthesise(spectra, samples), x, atol=ROUNDING)


@pytest.mark.parametrize(("window", "hop"), SIZES)
@pytest.mark.parametrize("compiled", [False, True])
def test_stream_equals_batch_exactly(window, hop, compiled):
    """Compiled, window and sum become one instruction that rounds once instead of twice."""
    stft, x = Stft(window=window, hop=hop), _noise(3, 7 * hop)
    gains = np.random.default_rng(1).uniform(0, 1, (stft.frames(7 * hop), stft.bins)).astype(np.complex64)
    spectra = stft.analyse(x)
    batch = stft.synthesise(spectra * gains[None], 7 * hop)
    pull = lambda unfinished, spectrum: stft.pull(unfinished, stft.invert(spectrum))
    push, transform, pull = (jax.jit(f) if compiled else f for f in (stft.push, stft.transform, pull))
    past, unfinished = stft.silence((3,))
    streamed, out = [], []
    padded = np.pad(x, [(0, 0), (0, stft.tail)])
    for t in range(stft.frames(7 * hop)):
        past, frame = push(past, padded[:, t * hop : (t + 1) * hop])
        spectrum = transform(frame)
        unfinished, block = pull(unfinished, spectrum * gains[t][None])
        streamed.append(spectrum)
        out.append(block)
    assert np.abs(np.stack(streamed, 1) - spectra).max() == 0.0
    assert np.abs(np.concatenate(out, 1)[:, stft.tail :] - batch).max() <= (ROUNDING if compiled else 0.0)


@pytest.mark.parametrize(("window", "hop"), SIZES)
def test_analysis_against_scipy_and_librosa(window, hop):
    stft, x = Stft(window=window, hop=hop), _noise(3001)
    ours = np.asarray(stft.analyse(x)).T
    padded = np.pad(x, (stft.tail, stft.frames(len(x)) * hop - len(x))).astype(np.float64)
    options = {"nperseg": window, "noverlap": window - hop, "boundary": None, "padded": False}
    _, _, scipys = scipy.signal.stft(padded, window="hann", **options)
    librosas = librosa.stft(padded, n_fft=window, hop_length=hop, window="hann", center=False)
    for theirs in (scipys * scipy.signal.get_window("hann", window).sum(), librosas):
        np.testing.assert_allclose(ours, theirs, atol=ROUNDING * window)


def test_frame_t_ends_with_sample_t_plus_one_hops():
    stft = Stft(window=400, hop=100)
    for at in (0, 99, 100, 250):
        heard = np.abs(np.asarray(stft.analyse(np.eye(1, 1000, at)[0]))).max(axis=1) > 1e-6
        last = at // 100 + (2 if at % 100 == 0 else 3)  # the window's first sample is zero
        assert np.flatnonzero(heard)[[0, -1]].tolist() == [at // 100, last]
    early, late = _noise(1000), _noise(1000, seed=1)
    late[:500] = early[:500]
    np.testing.assert_array_equal(stft.analyse(early)[:5], stft.analyse(late)[:5])


@pytest.mark.parametrize(("window", "hop"), [(512, 512), (512, 100), (511, 73), (512, 0), (512, -256), (0, 1)])
def test_sizes_that_are_refused(window, hop):
    with pytest.raises(ValueError, match=f"^stft: window is {window}, hop is {hop}; window must be even"):
        Stft(window=window, hop=hop)


@pytest.mark.parametrize("count", [128, 32, 40])
def test_centres_lie_on_the_mel_scale_of_librosa(count):
    bands = Bands(count=count, low_hz=125.0, high_hz=7500.0)
    wanted = librosa.mel_frequencies(n_mels=count + 2, fmin=125.0, fmax=7500.0, htk=True)
    edges, bins_hz = bands._places(16000, 257)
    np.testing.assert_allclose(module._hz(edges), wanted, rtol=1e-12)
    np.testing.assert_allclose(bins_hz, librosa.fft_frequencies(sr=16000, n_fft=512))
    fine = bands.gather(16000, 16001)  # half a hertz a bin: the heaviest bin shows the centre
    np.testing.assert_allclose(fine.argmax(axis=0) * 0.5, wanted[1:-1], atol=0.26)


def test_wide_bands_are_the_triangles_of_librosa():
    """Our centres and edges are librosa's; where no triangle needs widening, so are the weights."""
    bands = Bands(count=20, low_hz=100.0, high_hz=7600.0)
    options = {"n_mels": 20, "fmin": 100.0, "fmax": 7600.0, "htk": True, "norm": None}
    theirs = librosa.filters.mel(sr=16000, n_fft=2048, **options).T
    np.testing.assert_allclose(bands.gather(16000, 1025), theirs / theirs.sum(axis=0), atol=1e-6)


@pytest.mark.parametrize("bands", BANDS)
@pytest.mark.parametrize(("rate_hz", "bins"), [(16000, 257), (16000, 201), (16000, 33), (48000, 257)])
def test_levels_are_means_and_gains_are_interpolated(bands, rate_hz, bins):
    gather, spread = bands.gather(rate_hz, bins), bands.spread(rate_hz, bins)
    assert gather.min() >= 0
    assert spread.min() >= 0
    np.testing.assert_allclose(gather.sum(axis=0), 1.0, atol=1e-6)
    hz = np.linspace(0, rate_hz / 2, bins)
    inside = (hz >= bands.low_hz) & (hz <= bands.high_hz)
    expected = np.where(inside | bands.hold_edges, 1.0, 0.0)
    np.testing.assert_allclose(spread.sum(axis=0), expected, atol=1e-6)


def test_spread_interpolates_linearly_in_mel():
    bands = Bands(count=16)
    centres = librosa.hz_to_mel(librosa.mel_frequencies(n_mels=18, fmin=125, fmax=7500, htk=True)[1:-1], htk=True)
    hz = librosa.fft_frequencies(sr=16000, n_fft=512)
    mel = np.clip(librosa.hz_to_mel(hz, htk=True), centres[0], centres[-1])  # gains equal to their place
    np.testing.assert_allclose(centres @ bands.spread(16000, 257), mel, rtol=1e-5)


def test_a_tone_lands_in_its_band():
    stft, bands = Stft(), Bands(count=40)
    centres = librosa.mel_frequencies(n_mels=42, fmin=125.0, fmax=7500.0, htk=True)[1:-1]
    time_s = np.arange(4096) / 16000
    for band in range(6, 40):  # below, a triangle is narrower than the window's main lobe
        spectra = stft.analyse(np.sin(2 * np.pi * centres[band] * time_s).astype(np.float32))
        levels = jnp.abs(spectra[5]) @ bands.gather(16000, stft.bins)
        assert int(jnp.argmax(levels)) == band


@pytest.mark.parametrize(("count", "low", "high"), [(0, 125.0, 7500.0), (8, -1.0, 100.0), (8, 500.0, 500.0)])
def test_bands_that_are_refused(count, low, high):
    with pytest.raises(ValueError, match=r"^bands: .* is no range of bands"):
        Bands(count=count, low_hz=low, high_hz=high)


def test_bands_above_half_the_rate_are_refused():
    for make in (Bands().gather, Bands().spread):
        with pytest.raises(ValueError, match=r"high_hz is 7500\.0, must be at most half the rate, 4000"):
            make(8000, 129)
