"""How many instructions a frame will take: a straight line for each kind of kernel, fitted to counted models.

instructions = weights . terms, the terms of `TERMS` for each kind, gates besides, and three for the front end.

Source: MicroNets (Banbury et al. 2021), section 4.4 of our survey: latency is linear in operations within one kind of
network. Ours has a line for each kind of kernel, and terms for what small matrices and gates cost.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import optimize

from rnnc.audio.stft import Stft
from rnnc.export.work import NOTHING, Work

KINDS = ("dense", "lowrank", "kron", "hybrid", "sparse")
TERMS = (
    "padded",
    "inputs",
    "fours",
    "rests",
    "calls",
    "marks",
    "thin",
    "thin_calls",
    "thin_weights",
)  # of `work.Products`
FILE = Path(__file__).parent / "latency.json"


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a kind of kernel takes, in instructions.

    Args:
      per: of each of `TERMS`, in their order.
      r2: share of the variance of the counted layers of this kind that the fit explains; NaN for one layer.
      macs_r2: the same for the straight line over MACs alone that fits them best.
      worst: largest relative error on one of them.
      layers: how many there were.
    """

    per: tuple[float, ...]
    r2: float
    macs_r2: float
    worst: float
    layers: int


@dataclass(frozen=True, kw_only=True)
class FrontLine:
    """What the front end takes, in instructions.

    Args:
      per_pass: for each number in each pass of the transforms.
      per_sample: for each number of the window.
      per_band: for each band.
      worst: largest relative error on a counted front end.
    """

    per_pass: float
    per_sample: float
    per_band: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The instructions of a frame on one core, by one compiler.

    Args:
      core, compiler: which.
      per_elementwise: what gates, biases and activations take, of all kinds.
      lines: by the kind of kernel.
      front: of the front end.
      code_bytes: all kernels with their tables, -O2; a linker leaves out what a model does not call.
    """

    core: str
    compiler: str
    per_elementwise: float
    lines: dict[str, Line]
    front: FrontLine = FrontLine(per_pass=0, per_sample=0, per_band=0, worst=0)
    code_bytes: int = 0

    def instructions(self, layers: Sequence[Work]) -> float:
        """What the layers of a frame take that is not skipped."""
        return float(sum(_features(layer) @ self._weights() for layer in layers))

    def front_instructions(self, stft: Stft, bands: int) -> float:
        """What a frame takes from sound to features and from the mask to sound."""
        line = self.front
        return float(_front_features(stft, bands) @ (line.per_pass, line.per_sample, line.per_band))

    def _weights(self) -> np.ndarray:
        return np.array([*itertools.chain(*(self.lines[kind].per for kind in KINDS)), self.per_elementwise])


def _features(layer: Work) -> np.ndarray:
    each = [layer.products.get(kind, NOTHING) for kind in KINDS]
    return np.array([*(getattr(p, term) for p in each for term in TERMS), layer.elementwise], np.float64)


def _front_features(stft: Stft, bands: int) -> np.ndarray:
    passes = math.ceil(math.log2(stft.window / 2) / 2)
    return np.array([stft.window * passes, stft.window, bands], np.float64)


def fit(core: str, compiler: str, layers: Sequence[Work], counted: Sequence[int]) -> Latency:
    """Fit to counted layers, each of one kind, by least squares of the relative errors, no term below 0.

    Args:
      core, compiler: which counted them.
      layers: of every kind some.
      counted: their instructions in a frame.
    """
    y = np.asarray(counted, np.float64)
    features = np.stack([_features(layer) for layer in layers])
    found = _solved(features, y)
    lines, error = {}, features @ found - y
    macs = np.array([layer.macs for layer in layers], np.float64)
    for i, kind in enumerate(KINDS):
        here = np.array([layer.kind == kind for layer in layers])
        straight = np.stack([macs[here], np.ones(here.sum())], axis=1)
        alone = straight @ np.linalg.lstsq(straight, y[here], rcond=None)[0] - y[here]
        lines[kind] = Line(
            per=tuple(map(float, found[len(TERMS) * i :][: len(TERMS)])),
            r2=_explained(error[here], y[here]),
            macs_r2=_explained(alone, y[here]),
            worst=float(np.max(np.abs(error[here]) / y[here])),
            layers=int(here.sum()),
        )
    return Latency(core=core, compiler=compiler, per_elementwise=float(found[-1]), lines=lines)


def _explained(error: np.ndarray, y: np.ndarray) -> float:
    """1 - error^2 / variance; NaN for numbers that do not differ, of which there is nothing to explain."""
    spread = np.sum(np.square(y - y.mean()))
    return float(1 - np.sum(np.square(error)) / spread) if spread > 0 else math.nan


def fit_front(fronts: Sequence[tuple[Stft, int]], counted: Sequence[int]) -> FrontLine:
    """Fit to counted front ends, each with its number of bands, as `fit` does."""
    y = np.asarray(counted, np.float64)
    features = np.stack([_front_features(*front) for front in fronts])
    found = _solved(features, y)
    worst = float(np.max(np.abs(features @ found - y) / y))
    return FrontLine(per_pass=float(found[0]), per_sample=float(found[1]), per_band=float(found[2]), worst=worst)


def _solved(features: np.ndarray, y: np.ndarray) -> np.ndarray:
    return optimize.nnls(features / y[:, None], np.ones_like(y))[0]


def write(file: Path, fits: Mapping[str, Latency], about: Mapping[str, str]) -> None:
    """Write the fits of cores by their names in `emulate.CORES`; those of other cores that stand there stay.

    Args:
      file: JSON, as `read` takes it.
      fits: by name.
      about: how they were made.
    """
    before = json.loads(file.read_text(encoding="utf-8"))["fits"] if file.exists() else {}
    text = {"about": dict(about), "fits": before | {name: asdict(fit) for name, fit in fits.items()}}
    file.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def read(file: Path = FILE) -> dict[str, Latency]:
    """The fits in a file, by default in the library's own, by the names of cores in `emulate.CORES`.

    >>> read()["m7"].compiler.split()[0]
    'gcc'
    """
    found = {}
    for name, table in json.loads(file.read_text(encoding="utf-8"))["fits"].items():
        lines = {kind: Line(**{**line, "per": tuple(line["per"])}) for kind, line in table["lines"].items()}
        found[name] = Latency(**{**table, "lines": lines, "front": FrontLine(**table["front"])})
    return found
