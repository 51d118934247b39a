"""What runs a trained model: C one in integers, its twin in JAX where there is no compiler, JAX floating point."""

import ctypes
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from rnnc.audio import front
from rnnc.chip import Chip
from rnnc.export import host
from rnnc.export import model as export
from rnnc.model import Enhancer

NAME = "model"


class Runner:
    """A denoiser of whole signals, one after the other, for a command.

    Args:
      enhancer: a trained model. One in integers hears and gives 16-bit samples, as the chip does.

    >>> from flax import nnx
    >>> from rnnc.model import Model
    >>> runner = Runner(Enhancer(Model(units=(8,), hidden=8), rngs=nnx.Rngs(0)))
    >>> runner(np.zeros((1, 1000), np.float32)).shape, runner.how, runner.update_rate
    ((1, 1000), 'JAX in floating point', 1.0)
    """

    def __init__(self, enhancer: Enhancer):
        integers = bool(enhancer.model.formats) and not front.unfit(enhancer.model.stft)
        self._denoiser = Chip(enhancer) if integers else enhancer
        self._library = None
        if integers and not enhancer.model.skip:  # C does not tell how often it slept
            self._library = _compiled(enhancer)
        self.how = "C" if self._library else "JAX in integers" if integers else "JAX in floating point"
        self.rate_hz = enhancer.model.rate_hz
        self._updates = self._frames = 0.0

    def __call__(self, noisy: np.ndarray) -> np.ndarray:
        """Noisy signals [channels, n] at `rate_hz` -> enhanced ones, in time with them."""
        if not isinstance(self._denoiser, Chip):
            return self._streamed(noisy)
        pcm = np.asarray(front.pcm(jnp.asarray(noisy, jnp.float32))).astype(np.int16)
        by_c = self._library and host.Denoiser(self._library, NAME, len(pcm))
        enhanced = by_c.denoise(pcm) if by_c else self._streamed(pcm)
        return enhanced.astype(np.float32) / np.float32(1 << 15)

    @property
    def update_rate(self) -> float:
        """Share of the frames so far that were not skipped."""
        return self._updates / self._frames if self._frames else 1.0

    def _streamed(self, x: np.ndarray) -> np.ndarray:
        stream = self._denoiser.stream(len(x))
        first = stream.push(x)
        self._updates += float(np.sum(stream.updates))
        self._frames += stream.frames * len(x)
        return np.concatenate([first, stream.flush()], axis=1)


def _compiled(enhancer: Enhancer) -> ctypes.CDLL | None:
    """The model in C; None where there is no compiler."""
    try:
        host.compiler()
    except host.HostError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(host.build(Path(folder), export.write(Path(folder), NAME, enhancer))))
