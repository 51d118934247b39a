"""Losses between enhanced and clean sound."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rnnc.audio.stft import Stft

Array = jax.Array
FLOOR = 1e-8  # added to squared magnitudes: below 1e-4 of full scale in a bin nothing is to be learnt


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Compressed spectral distance, taken on the re-analysed output, and if wanted an SNR.

    mean over bins of (|S|^p - |Y|^p)^2 + w |S^pc - Y^pc|^2,  z^pc = z |z|^(p - 1)
    + v mean over items of -snr / 10 dB,  snr = 10 log10(|s|^2 / (|s - y|^2 + t |s|^2))

    Args:
      power: p, 0.1 to 1.
      complex_weight: w, 0 or more; more favours SDR, less favours the magnitude.
      snr_weight: v, 0 or more; 0: the spectral distance alone.
      snr_limit_db: t = -this in dB: items better than it are left in peace.
      update_weight: what a skipping model pays for the share of frames that it updates on, 0 or more.
      update_rate: a share that is free, 0 to 1; 0: every update costs, as in Skip RNN.
      window, hop: of the analysis under the distance, in samples; need not be the model's.

    >>> x = jnp.ones((1, 1024))
    >>> float(Loss(snr_weight=0.0)(x, x))
    0.0

    Source: TinyLSTMs' training (section 1.1 of our survey; its exact form and w = 0.113, v = 0 are recalled, not
    confirmed). The SNR is ours, soft-limited as in Wisdom et al. 2020: on real sound, 700 steps with v = 0.05 scored
    1.0 dB SI-SDR and 0.02 PESQ above 700 without.
    """

    power: float = 0.3
    complex_weight: float = 0.3
    snr_weight: float = 0.08
    snr_limit_db: float = 30.0
    update_weight: float = 0.0
    update_rate: float = 0.0
    window: int = 512
    hop: int = 256

    def __post_init__(self) -> None:
        if not 0.1 <= self.power <= 1.0:
            raise ValueError(f"power: is {self.power}, must be 0.1 to 1")
        for name in ("complex_weight", "snr_weight", "update_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: is {getattr(self, name)}, must be 0 or more")
        if not 0 <= self.update_rate <= 1:
            raise ValueError(f"update_rate: is {self.update_rate}, must be 0 to 1")
        self.stft  # noqa: B018  checks window and hop

    @property
    def stft(self) -> Stft:
        """The analysis under the distance."""
        return Stft(window=self.window, hop=self.hop)

    def __call__(self, enhanced: Array, clean: Array) -> Array:
        """Signals [B, n] and [B, n] -> a scalar."""
        y_magnitude, y_real, y_imag = self._compress(enhanced)
        s_magnitude, s_real, s_imag = self._compress(clean)
        magnitude = jnp.mean(jnp.square(s_magnitude - y_magnitude))
        phase = jnp.mean(jnp.square(s_real - y_real) + jnp.square(s_imag - y_imag))
        loss = magnitude + self.complex_weight * phase
        return loss - self.snr_weight * self._snr(enhanced, clean) if self.snr_weight else loss

    def budget(self, rate: Array) -> Array:
        """What a share of updates costs beside the distance: update_weight max(rate - update_rate, 0).

        Source: Skip RNN, section 1.5 of our survey, which charges for every update; the free share is ours.
        """
        return self.update_weight * jnp.maximum(rate - self.update_rate, 0.0)

    def _snr(self, enhanced: Array, clean: Array) -> Array:
        """Mean over items, in units of 10 dB."""
        energy = jnp.sum(jnp.square(clean), axis=-1) + FLOOR
        error = jnp.sum(jnp.square(clean - enhanced), axis=-1)
        return jnp.mean(jnp.log10(energy / (error + 10 ** (-self.snr_limit_db / 10) * energy)))

    def _compress(self, x: Array) -> tuple[Array, Array, Array]:
        spectra = self.stft.analyse(x)
        energy = jnp.square(spectra.real) + jnp.square(spectra.imag) + FLOOR
        magnitude = jnp.exp(0.5 * self.power * jnp.log(energy))  # several times faster here than a power
        shrink = magnitude * jax.lax.rsqrt(energy)
        return magnitude, spectra.real * shrink, spectra.imag * shrink
