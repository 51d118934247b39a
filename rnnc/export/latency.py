"""How many instructions a layer will take: a straight line for each kind of kernel, fitted to counted models.

instructions = per_mac MACs + per_sum sums + per_input inputs + per_elementwise elementwise; see `work.Products`.

Source: MicroNets (Banbury et al. 2021), section 4.4 of our survey: latency is linear in operations within one kind of
network. Ours has a line for each kind of kernel, and terms for what small matrices and gates cost.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from rnnc.export.work import Products, Work

KINDS = ("dense", "lowrank", "kron", "hybrid", "sparse")


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a kind of kernel takes, in instructions.

    Args:
      per_mac, per_sum, per_input: see above.
      r2: share of the variance of the counted layers of this kind that the fit explains.
      macs_r2: the same for the straight line over MACs alone that fits them best.
      worst: largest relative error on one of them.
      layers: how many there were.
    """

    per_mac: float
    per_sum: float
    per_input: float
    r2: float
    macs_r2: float
    worst: float
    layers: int


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The instructions of layers on one core, by one compiler.

    Args:
      core, compiler: which.
      per_elementwise: what gates, biases and activations take, of all kinds.
      lines: by the kind of kernel.
    """

    core: str
    compiler: str
    per_elementwise: float
    lines: dict[str, Line]

    def instructions(self, layers: Sequence[Work]) -> float:
        """What a frame takes that is not skipped."""
        return float(sum(self._features(layer) @ self._weights() for layer in layers))

    def _weights(self) -> np.ndarray:
        lines = [self.lines[kind] for kind in KINDS]
        each = [(line.per_mac, line.per_sum, line.per_input) for line in lines]
        return np.array([*itertools.chain(*each), self.per_elementwise])

    @staticmethod
    def _features(layer: Work) -> np.ndarray:
        each = [layer.products.get(kind, Products(0, 0, 0)) for kind in KINDS]
        return np.array([*itertools.chain(*each), layer.elementwise], np.float64)


def fit(core: str, compiler: str, layers: Sequence[Work], counted: Sequence[int]) -> Latency:
    """Fit to counted layers, each of one kind, by least squares of the relative errors, no term below 0.

    Args:
      core, compiler: which counted them.
      layers: of every kind some.
      counted: their instructions in a frame.
    """
    y = np.asarray(counted, np.float64)
    features = np.stack([Latency._features(layer) for layer in layers])
    found = optimize.nnls(features / y[:, None], np.ones_like(y))[0]
    lines, error = {}, features @ found - y
    for i, kind in enumerate(KINDS):
        here = np.array([layer.kind == kind for layer in layers])
        macs = np.stack([features[here, 3 * i], np.ones(here.sum())], axis=1)
        alone = macs @ np.linalg.lstsq(macs, y[here], rcond=None)[0] - y[here]
        spread = np.sum(np.square(y[here] - y[here].mean()))
        per_mac, per_sum, per_input = map(float, found[3 * i : 3 * i + 3])
        lines[kind] = Line(
            per_mac=per_mac,
            per_sum=per_sum,
            per_input=per_input,
            r2=float(1 - np.sum(np.square(error[here])) / spread),
            macs_r2=float(1 - np.sum(np.square(alone)) / spread),
            worst=float(np.max(np.abs(error[here]) / y[here])),
            layers=int(here.sum()),
        )
    return Latency(core=core, compiler=compiler, per_elementwise=float(found[-1]), lines=lines)
