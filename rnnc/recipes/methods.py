"""The ways to make a classifier smaller, each at a number of bytes that is counted, not typed."""

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import numpy as np
import optax

from rnnc import cost
from rnnc.compress.affine import Affine
from rnnc.compress.prune import Magnitude, Pruner, named
from rnnc.cost import FLOAT_BYTES
from rnnc.recipes.classifier import SETTLED, Network, Params, Perceptron, Recurrent
from rnnc.steps import STEPS, Core, Step
from rnnc.structure import Hybrid, Joint, Kron, LowRank, Structure

RECURRENT = ("cell.kernel.w", "cell.recurrent.w")
ELEMENTWISE = 60  # time of a unit's elementwise work in training, in multiply-accumulates, about
NEAR = 0.2  # a Kronecker product or a hybrid takes part where it meets the wished size within this share


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to make a classifier.

    Args:
      name: in tables; "kron" at the papers' sizes, "kron-10x" at a tenth of the layer.
      network: what is trained.
      macs: multiply-accumulates for one item.
      work: those of its training, per item and up to a factor; matrices are trained written out.
      kept: share of the prunable weights that stay; 1: no pruning.
      pruner: (steps of the training) -> a way of pruning; None: none.
      only: the prunable weights, patterns of dotted paths.
    """

    name: str
    network: Network
    macs: int
    work: int
    kept: float = 1.0
    pruner: Callable[[int], Pruner] | None = None
    only: tuple[str, ...] = field(default=RECURRENT)

    def wrap(self, steps: int) -> Callable[[optax.GradientTransformation], optax.GradientTransformation]:
        """What goes around the optimiser in a training of so many steps."""
        return self.pruner(steps).wrap if self.pruner else lambda tx: tx

    @property
    def numbers(self) -> int:
        """Parameters of the network, before any pruning."""
        shapes = jax.eval_shape(self.network.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    def stored(self, params: Params) -> cost.Stored:
        """What is stored of trained parameters; pruned matrices of equal width, [x; h] of a layer, share an index."""
        joined: dict[str, list[np.ndarray]] = {}
        for path, leaf in named(params).items():
            joined.setdefault(f"pruned.{leaf.shape[1]}" if self._prunable(path) else path, []).append(np.asarray(leaf))
        return cost.stored({path: np.concatenate(leaves) for path, leaves in joined.items()}, ("pruned.*",))

    def _prunable(self, path: str) -> bool:
        return self.pruner is not None and path in self.only


def recurrent(cell: str, units: int, inputs: int, frames: int, classes: int, ratios: tuple[float, ...]) -> list[Method]:
    """The methods for one recurrent layer with a dense layer behind it, which stays as it is.

    First all at the bytes of `kron`, whose sizes are the papers', then at each of `ratios` times fewer bytes of the
    recurrent layer, biases included. Low-rank and Kronecker matrices are joint ([x; h]) and gate by gate.

    Args:
      cell: lstm, gru or fastrnn.
      units, inputs, frames, classes: sizes of the network and of an item.
      ratios: above 1.

    >>> [m.name for m in recurrent("lstm", 40, 28, 28, 10, (10.0,))]
    ['dense', 'small', 'pruned', 'lowrank', 'kron', 'pruned-10x', 'lowrank-10x', 'kron-10x', 'hybrid-10x']

    Source: sections 2.2, 2.3 and 2.5 of our survey. Ours: a rank is rounded to the nearest, and at a ratio the shapes
    of the factors are chosen by `rnnc.factors.for_ratio`.
    """
    step = STEPS[cell]
    size = _Sizes(step=step, inputs=inputs, frames=frames, classes=classes)
    plain = size.method("dense", Core(step=step), units)
    kron = size.method("kron", Core(step=step, kernel=Kron(), recurrent=Joint()), units)
    target = size.layer(kron.network).parameters
    methods = [plain, size.small(plain, target), *size.pruned(plain, target), size.lowrank(units, target), kron]
    methods += size.hybrid(units, target)
    for ratio in ratios:
        target = round(size.layer(plain.network).parameters / ratio)
        again = [*size.pruned(plain, target), size.lowrank(units, target), *size.kron(units, target)]
        again = [method for method in again + size.hybrid(units, target) if not _known(method, methods)]
        methods += [replace(method, name=f"{method.name}-{ratio:g}x") for method in again]
    return methods


def _known(method: Method, methods: list[Method]) -> bool:
    """Whether an unpruned network of the same cost is there already."""
    same = [other for other in methods if (other.macs, type(_kernel(other))) == (method.macs, type(_kernel(method)))]
    return not method.pruner and bool(same)


def _kernel(method: Method) -> Structure:
    assert isinstance(method.network, Recurrent)
    return method.network.core.kernel


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Counts networks, and makes those of a wished number of stored values in the recurrent layer."""

    step: Step
    inputs: int
    frames: int
    classes: int

    def method(self, name: str, core: Core, units: int) -> Method:
        network = Recurrent(core=core, inputs=self.inputs, units=units, classes=self.classes)
        macs = self.frames * self.layer(network).macs + units * self.classes
        work = self.frames * self.step.gates * units * (self.inputs + units + ELEMENTWISE)
        return Method(name=name, network=network, macs=macs, work=work)

    def layer(self, network: Network) -> cost.Layer:
        """What the recurrent layer costs."""
        assert isinstance(network, Recurrent)
        return cost.cell(self.step.name, network.core, network.inputs, network.units)

    def others(self, units: int) -> int:
        """Biases and scalars."""
        return (self.step.bias + self.step.recurrent_bias) * units + len(self.step.scalars)

    def small(self, plain: Method, target: int) -> Method:
        """Fewer units, the whole model nearest to the wished size."""
        assert isinstance(plain.network, Recurrent)
        network, most = plain.network, plain.network.units

        def whole(units: int) -> int:
            return self.layer(replace(network, units=units)).parameters + (units + 1) * self.classes

        wished = target + (most + 1) * self.classes
        units = min(range(1, most + 1), key=lambda u: abs(whole(u) - wished))
        return self.method("small", Core(step=self.step), units)

    def pruned(self, plain: Method, target: int) -> list[Method]:
        """As many weights as the wished size holds together with their index; nothing where the index fills it."""
        assert isinstance(plain.network, Recurrent)
        units = plain.network.units
        shape = self.inputs + units, self.step.gates * units
        kept = cost.fitting(shape, FLOAT_BYTES * (target - self.others(units)))
        if kept < units:
            return []
        macs = self.frames * kept + units * self.classes
        share = kept / math.prod(shape)
        pruner = lambda steps: _magnitude(steps, 1 - share, RECURRENT)
        return [replace(plain, name="pruned", macs=macs, kept=share, pruner=pruner)]

    def lowrank(self, units: int, target: int) -> Method:
        """The rank whose size is nearest, 1 at least."""
        n, m = self.inputs + units, units
        rank = max(1, round((target - self.others(units)) / (self.step.gates * (n + m))))
        return self.method("lowrank", self._joint(LowRank(rank=min(rank, n, m))), units)

    def kron(self, units: int, target: int) -> list[Method]:
        """A Kronecker product near the wished size."""
        full = (self.inputs + units) * self.step.gates * units
        return self._near("kron", [Kron(target_ratio=full / (target - self.others(units)))], units, target)

    def hybrid(self, units: int, target: int) -> list[Method]:
        """The number of free outputs whose size is nearest."""
        return self._near("hybrid", [Hybrid(rows=rows) for rows in range(1, units)], units, target)

    def _near(self, name: str, structures: list[Structure], units: int, target: int) -> list[Method]:
        """The structure nearest to the wished size; nothing where none is within the share `NEAR` of it."""
        found = []
        for structure in structures:
            with contextlib.suppress(ValueError):  # does not factor
                method = self.method(name, self._joint(structure), units)
                found.append((abs(self.layer(method.network).parameters - target), method))
        found.sort(key=lambda pair: pair[0])
        return [method for distance, method in found[:1] if distance <= NEAR * target]

    def _joint(self, structure: Structure) -> Core:
        return Core(step=self.step, kernel=structure, recurrent=Joint())


def perceptron(widths: tuple[int, ...], ratios: tuple[float, ...]) -> list[Method]:
    """LeNet-300-100 dense, and at each ratio of the weight counts pruned by magnitude and by affine scaling (AST).

    >>> [m.name for m in perceptron((784, 300, 100, 10), (25.0,))]
    ['dense', 'pruned-25x', 'ast-25x']

    Source: section 9 of our survey. Both methods keep the same number of weights of all layers together.
    """
    network = Perceptron(widths=widths)
    matrices = sum(n * m for n, m in itertools.pairwise(widths))
    biases = sum(widths[1:])
    only = tuple(f"{i}.w" for i in range(len(widths) - 1))
    methods = [Method(name="dense", network=network, macs=matrices, work=matrices, only=only)]
    for ratio in ratios:
        kept = int((matrices + biases) / ratio) - biases
        if kept < 1:
            raise ValueError(f"ratios: is {ratio:g}, must be below {(matrices + biases) / (biases + 1):.0f}")
        sparsity = 1 - kept / matrices
        for name, make in (("pruned", _magnitude), ("ast", _affine)):
            pruner = lambda steps, make=make, sparsity=sparsity: make(steps, sparsity, only)
            methods.append(
                Method(
                    name=f"{name}-{ratio:g}x",
                    network=network,
                    macs=kept,
                    work=2 * matrices,
                    kept=kept / matrices,
                    pruner=pruner,
                    only=only,
                )
            )
    return methods


def _magnitude(steps: int, sparsity: float, only: tuple[str, ...]) -> Pruner:
    """A cubic ramp from the first tenth of the steps on, over before the best epoch is looked for."""
    end = max(2, int(SETTLED * steps))
    return Magnitude(
        sparsity=sparsity, begin=min(steps // 10, end - 1), end=end, every=max(1, steps // 100), scope="all", only=only
    )


def _affine(steps: int, sparsity: float, only: tuple[str, ...]) -> Pruner:
    """Plain training first; then twenty rounds before the drop."""
    end = max(2, int(SETTLED * steps))
    begin = end // 3
    every = max(1, (end - begin) // 20)
    return Affine(weight=1e-4, begin=begin, every=every, end=end, sparsity=sparsity, only=only)
