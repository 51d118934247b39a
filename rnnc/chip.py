"""A denoiser as the chip runs it, from int16 sound to int16 sound: the twin of `rnnc_denoiser` in kernels/."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnnc.model import Enhancer, Stream

Array = jax.Array


class Chip(nnx.Module):
    """An enhancer with formats, in integers from end to end; C gives the same samples.

    Args:
      enhancer: its model has formats, and a window that is a power of two from 64 to 2048.
      least: no gain is less, Q0.15.

    Raises:
      ValueError: the model has no formats, or no front end in integers.

    >>> from rnnc.compress.quantise import Quantise, calibrated
    >>> from rnnc.model import Model
    >>> plain = Enhancer(Model(units=(8,), hidden=8), rngs=nnx.Rngs(0))
    >>> model = calibrated(plain, [np.ones((2, 4000), np.float32)], Quantise())
    >>> chip = Chip(Enhancer(model, rngs=nnx.Rngs(0)))
    >>> chip(jnp.ones((2, 1000), jnp.int32)).shape
    (2, 1000)
    """

    sample = np.int16

    def __init__(self, enhancer: Enhancer, least: int = 0):
        if not enhancer.model.formats:
            raise ValueError("chip: the model computes in floating point, must have formats")
        self.enhancer, self.model, self.least = enhancer, enhancer.model, least
        assert self.model.front

    def __call__(self, noisy: Array) -> Array:
        """Noisy signals [..., n] int16 -> enhanced ones, in time with them."""
        stft, samples = self.model.stft, noisy.shape[-1]
        frames = stft.framed(noisy.reshape(-1, samples).astype(jnp.int32))
        _, y = self._frames(jnp.swapaxes(frames, 0, 1), None)
        whole = stft.overlapped(jnp.swapaxes(y, 0, 1))[..., :samples]
        return self.model.front.finish(whole).reshape(noisy.shape)

    def silence(self, batch: int) -> tuple:
        """The state of a stream of `batch` channels before its first sample."""
        (past, unfinished), carry = self.enhancer.silence(batch)
        return (past.astype(jnp.int32), unfinished.astype(jnp.int32)), carry

    def hop(self, state: tuple, block: Array) -> tuple[tuple, Array]:
        """One hop: block [B, hop] in -> block [B, hop] out, `stft.tail` samples late."""
        (past, unfinished), carry = state
        past, frame = self.model.stft.push(past, block.astype(jnp.int32))
        carry, y = self._frames(frame[None], carry)
        unfinished, sums = self.model.stft.pull(unfinished, y[0])
        return ((past, unfinished), carry), self.model.front.finish(sums)

    def stream(self, channels: int = 1) -> Stream:
        """A stateful denoiser for blocks of any size, of int16."""
        return Stream(self, channels)

    def _frames(self, frames: Array, carry: tuple | None) -> tuple[tuple, Array]:
        """Frames of sound [T, B, window] -> the layers' carries, frames to be added."""
        front = self.model.front
        spectra = front.analyse(frames)
        x = self.model.formats[0].x
        features = front.features(spectra).astype(jnp.float32) * np.float32(x.step)
        carry, levels = self.enhancer.levels(features, carry)
        mask = (levels * np.float32(1 << 15)).astype(jnp.int32)
        return carry, front.synthesise(spectra, jnp.maximum(front.gains(mask), self.least))
