"""Denoisers without a network: spectra are sums of a few atoms, learnt beforehand; see `rnnc.recipes.dictionary`.

In `Additive` y = Phi x with Phi = [speech, noise] and x >= 0, and what each part explains gives the gain. In `Paired`
atoms of noisy frames and of clean ones are on together, and the clean frame is foretold.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from rnnc.audio.stft import Bands, Stft
from rnnc.bayes import foretell, msbdl, rsbl
from rnnc.config import ConfigError

Array = np.ndarray
SMALL = 1e-10  # of a level, against division by 0
SILENT = 1e-4  # frames whose energy is below this share of the mean one teach nothing


@dataclass(frozen=True, kw_only=True)
class Sound:
    """What the methods hear: band levels (|X| gather)^power, and how gains of the bands come back as sound.

    Args:
      rate_hz: rate of all sound.
      stft, bands: see there.
      power: compression of the levels, 0.05 to 1. At 1 the levels of speech and noise nearly add.
      context: frames that are seen together, the newest last; 1 or more.
      ground: share of a signal's frames, its quietest, whose mean stands before all of them and tells what the noise
        is like, so that the whole signal is needed before it begins; 0: none.
    """

    rate_hz: int = 16000
    stft: Stft = Stft()
    bands: Bands = Bands(count=64)
    power: float = 1.0
    context: int = 1
    ground: float = 0.0

    def __post_init__(self) -> None:
        if not 0.05 <= self.power <= 1 or self.context < 1:
            raise ValueError(f"power = {self.power}, context = {self.context}: must be 0.05 to 1, and 1 or more")
        if not 0 <= self.ground <= 1:
            raise ValueError(f"ground: is {self.ground}, must be 0 to 1")
        self.bands.gather(self.rate_hz, self.stft.bins)  # says what is wrong with the range

    def levels(self, spectra: Array) -> Array:
        """Spectra [T, bins] -> levels of each frame after those before it [T, size]; size: bands times what is seen."""
        levels = (np.abs(spectra) @ self.bands.gather(self.rate_hz, self.stft.bins)) ** self.power
        padded = np.concatenate([np.zeros((self.context - 1, levels.shape[1]), levels.dtype), levels])
        seen = [padded[i : i + len(levels)] for i in range(self.context)]
        if self.ground:
            seen.insert(0, np.broadcast_to(quietest(levels, self.ground).mean(axis=0), levels.shape))
        return np.concatenate(seen, axis=1)

    def newest(self, levels: Array) -> Array:
        """[T, size] -> [T, bands]."""
        return levels[:, -self.bands.count :]

    def spectra(self, x: Array) -> Array:
        """A signal [n] -> spectra [T, bins]."""
        return np.asarray(self.stft.analyse(jnp.asarray(x)))

    def apply(self, spectra: Array, gains: Array, samples: int) -> Array:
        """Spectra [T, bins] times gains of the bands [T, bands] -> a signal [samples]."""
        spread = self.bands.spread(self.rate_hz, self.stft.bins)
        return np.asarray(self.stft.synthesise(jnp.asarray(spectra * (gains.astype(np.float32) @ spread)), samples))


def quietest(levels: Array, share: float) -> Array:
    """The share of the frames [T, size] whose levels sum to least, one at least; digital silence is no frame."""
    heard = levels[levels.max(axis=1) > SMALL]
    levels = heard if len(heard) else levels
    count = max(round(share * len(levels)), 1)
    return levels[np.argsort(levels.sum(axis=1), kind="stable")[:count]]


class Method(Protocol):
    """A denoiser: levels of noisy frames [T, size] -> gains [T, bands]."""

    def gains(self, sound: Sound, noisy: Array) -> Array: ...


Coder = Callable[[Array, Array], Array]


def nnls(phi: Array, y: Array) -> Array:
    """Non-negative least squares: phi [N, M], y [T, N] -> x [T, M]."""
    return np.array([optimize.nnls(phi, row, maxiter=30 * phi.shape[1])[0] for row in y.astype(np.float64)])


def nmf(phi: Array, y: Array) -> Array:
    """The codes of scikit-learn's NMF with the atoms held, in the same shapes; multiplicative updates."""
    from sklearn.decomposition import non_negative_factorization
    from sklearn.exceptions import ConvergenceWarning

    w = np.ascontiguousarray(phi.T, y.dtype)
    options: dict[str, Any] = {"n_components": len(w), "solver": "mu", "max_iter": 200, "tol": 1e-4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many updates are meant
        x, _, _ = non_negative_factorization(y, H=w, init="custom", update_H=False, **options)
    return x


@dataclass(frozen=True, kw_only=True)
class Rsbl:
    """R-SBL's codes, in the same shapes.

    Args:
      noise_share: variance of what the atoms do not explain, as a share of each frame's mean square; above 0.
      iterations: EM steps.
      point: see `rsbl.fit`.
    """

    noise_share: float = 0.1
    iterations: int = 12
    point: Literal["mean", "mode"] = "mean"

    def __post_init__(self) -> None:
        if not self.noise_share > 0 or self.iterations < 1:
            given = f"noise_share = {self.noise_share}, iterations = {self.iterations}"
            raise ValueError(f"{given}: must be above 0, and 1 or more")

    def __call__(self, phi: Array, y: Array) -> Array:
        sigma2 = np.maximum(self.noise_share * np.mean(y**2, axis=1), SMALL**2)
        options: dict[str, Any] = {"iterations": self.iterations, "point": self.point, "dtype": np.float32}
        return rsbl.fit(phi, y, sigma2=sigma2, tolerance=1e-3, prune=1e-4, batch=512, **options).x


def atoms(levels: Array, count: int, seed: int) -> Array:
    """Atoms of length 1, [N, count] or fewer, of levels [T, N], by scikit-learn's NMF of frames of equal length."""
    try:
        from sklearn.decomposition import MiniBatchNMF
        from sklearn.exceptions import ConvergenceWarning
    except ImportError:
        raise ConfigError('dictionary: scikit-learn is missing; pip install "rnnc[demo]"') from None
    energy = np.sum(levels**2, axis=1)
    heard = levels[energy > SILENT * energy.mean()]
    if not len(heard):
        return np.zeros((levels.shape[1], 0), levels.dtype)
    heard = heard / np.linalg.norm(heard, axis=1, keepdims=True)
    options: dict[str, Any] = {
        "n_components": count,
        "init": "random",
        "random_state": seed,
        "max_iter": 60,
        "max_no_improvement": None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many passes are meant
        found = MiniBatchNMF(batch_size=min(1024, len(heard)), **options).fit(heard).components_.T
    length = np.linalg.norm(found, axis=0)
    return (found[:, length > SMALL] / length[length > SMALL]).astype(levels.dtype)


@dataclass(frozen=True, kw_only=True)
class Additive:
    """Gains from the codes of noisy frames under atoms of speech and atoms of the noise around it.

    gain = s / (s + noise_weight n),  s = Phi_s x_s,  n = Phi_n x_n, each to the power 1 / power

    The atoms of the noise are learnt from the quietest frames of the signal itself, so this method needs all of it
    before it begins; atoms of other noises can stand beside them.

    Args:
      speech: [N, Ms], atoms of length 1.
      noise: [N, Mn], of other noises; may have no column.
      code: phi [N, M], y [T, N] -> x [T, M].
      own: how many atoms the signal itself gives, 0 or more.
      quiet_share: of its frames, above 0 to 1.
      noise_weight: above 0; 1 takes both parts as they are, more suppresses more.

    Source: section 8.3 of our survey; the signal's own atoms and the weight are ours.
    """

    speech: Array
    noise: Array
    code: Coder
    own: int = 8
    quiet_share: float = 0.3
    noise_weight: float = 2.0

    def gains(self, sound: Sound, noisy: Array) -> Array:
        noise = np.concatenate([self.noise, self._own(noisy)], axis=1)
        phi, heard = np.concatenate([self.speech, noise], axis=1), noisy.max(axis=1) > SMALL
        x = np.zeros((len(noisy), phi.shape[1]))
        if heard.any():
            x[heard] = self.code(phi, noisy[heard])
        split = self.speech.shape[1]
        s, n = (
            sound.newest(np.maximum(part @ columns.T, 0)) ** (1 / sound.power)
            for part, columns in ((x[:, :split], self.speech), (x[:, split:], noise))
        )
        return (s + SMALL) / (s + self.noise_weight * n + SMALL)

    def _own(self, noisy: Array) -> Array:
        return atoms(quietest(noisy, self.quiet_share), self.own, 0) if self.own else noisy[:0].T


@dataclass(frozen=True)
class Paired:
    """Gains from the clean frame that the noisy one foretells: (clean / noisy)^(strength / power), at most 1.

    Args:
      model, link: see `foretell`.
      means: of the noisy levels [N] and of the clean ones [bands].
      strength: above 0; below 1 suppresses less, as what is foretold lies nearer to the mean than what was.
      passes: see `msbdl.transform`.

    Source: section 7.3 (a) of our survey; the strength is ours.
    """

    model: msbdl.Model
    link: foretell.Link
    means: tuple[Array, Array]
    strength: float = 1.0
    passes: int = 15

    def gains(self, sound: Sound, noisy: Array) -> Array:
        codes = msbdl.transform(self.model, [(noisy - self.means[0]).astype(np.float32), None], self.passes)
        clean = np.asarray(foretell.foretold(self.model, self.link, codes)) + self.means[1]
        ratio = np.maximum(clean, 0) / np.maximum(sound.newest(noisy), SMALL)
        return np.minimum(ratio, 1) ** (self.strength / sound.power)


def learn_paired(
    config: msbdl.Msbdl, noisy: Array, clean: Array, seed: int, tell: Callable[[int, int], None]
) -> Paired:
    """Learn dictionaries of noisy frames [T, N] and of the clean ones in them [T, bands]."""
    means = noisy.mean(axis=0), clean.mean(axis=0)
    views = [(v - mean).astype(np.float32) for v, mean in zip((noisy, clean), means)]
    state = msbdl.start(config, views, jax.random.key(seed))
    for sweep in range(1, config.sweeps + 1):
        state = msbdl.fit(config, views, state, until=sweep)
        tell(sweep, config.sweeps)
    model = state.model()
    return Paired(model, foretell.learn(model, views, passes=Paired.passes), means)


def denoise(sound: Sound, method: Method, noisy: Array) -> Array:
    """Noisy signals [channels, n] -> enhanced ones."""

    def one(x: Array) -> Array:
        spectra = sound.spectra(x)
        return sound.apply(spectra, method.gains(sound, sound.levels(spectra)), len(x))

    return np.stack([one(x) for x in noisy])


def stacked(sound: Sound, signals: list[Array], frames: int) -> Array:
    """Levels of the frames of signals, the first so many."""
    return np.concatenate([sound.levels(sound.spectra(x)) for x in signals])[:frames].astype(np.float32)
