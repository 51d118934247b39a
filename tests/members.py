"""The tables of members, and what the laws over them share. A new cell, structure or arithmetic is a new row."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.extend import core as jex

from rnnc import cells, linen
from rnnc.arith import Arithmetic, Float
from rnnc.audio.stft import Bands, Stft
from rnnc.model import Model
from rnnc.structure import Dense, Hybrid, Joint, Kron, LowRank, Structure

B, T, N, M = 4, 9, 6, 8  # batch, steps, inputs, units: no two alike

SMALL = Model(
    rate_hz=4000,
    stft=Stft(window=64, hop=32),
    bands=Bands(count=12, low_hz=50.0, high_hz=1900.0),
    units=(16, 10),
    hidden=7,
)
"""A denoiser with no two sizes alike, for quick exports."""


class CellRow(NamedTuple):
    """A cell in both APIs of Flax, and the cells of Flax that it stands in for."""

    name: str
    nnx: type[cells.Cell]
    linen: type[linen.Cell]
    flax_nnx: tuple[type[nnx.RNNCellBase], ...] = ()
    flax_linen: tuple[type[nn.RNNCellBase], ...] = ()


class StructureRow(NamedTuple):
    """How a cell stores its input matrix and its recurrent one."""

    name: str
    kernel: Structure
    recurrent: Structure | Joint


class ArithRow(NamedTuple):
    """An arithmetic; `rounding` is the relative error of one operation, of which about ten meet in a step."""

    name: str
    arith: Arithmetic
    rounding: float
    promotion: str = "strict"

    def exact_types(self) -> Any:
        """The promotion of types in which the arithmetic runs: half products meet a float32 state, as in Flax."""
        return jax.numpy_dtype_promotion(self.promotion)


CELLS = (
    CellRow(
        "lstm",
        cells.LSTMCell,
        linen.LSTMCell,
        (nnx.LSTMCell, nnx.OptimizedLSTMCell),
        (nn.LSTMCell, nn.OptimizedLSTMCell),
    ),
    CellRow("gru", cells.GRUCell, linen.GRUCell, (nnx.GRUCell,), (nn.GRUCell,)),
    CellRow("fastrnn", cells.FastRNNCell, linen.FastRNNCell),
)
STRUCTURES = (
    StructureRow("dense", Dense(), Dense()),
    StructureRow("low-rank", LowRank(rank=3), LowRank(rank=2, stacked=True)),
    StructureRow("kron", Kron(), Kron(terms=2, stacked=True)),
    StructureRow("hybrid", Hybrid(rows=2), Hybrid(target_ratio=1.5, stacked=True)),
    StructureRow("joint", Kron(), Joint()),
)
ARITHMETICS = (
    ArithRow("float32", Float(), 2.0**-24),
    ArithRow("bfloat16", Float(dtype=jnp.bfloat16), 2.0**-9, promotion="standard"),
)


class Member(NamedTuple):
    """One cell with its structures and one arithmetic."""

    cell: CellRow
    structure: StructureRow
    arith: ArithRow

    def make(self, n: int = N, m: int = M, seed: int = 0, **options: Any) -> cells.Cell:
        """The NNX cell, with biases that are not zero."""
        return self.cell.nnx(
            n,
            m,
            kernel=self.structure.kernel,
            recurrent=self.structure.recurrent,
            bias_init=nnx.initializers.normal(0.5),
            arith=self.arith.arith,
            rngs=nnx.Rngs(seed),
            **options,
        )


FLOAT_MEMBERS = tuple(itertools.starmap(Member, itertools.product(CELLS, STRUCTURES, ARITHMETICS[:1])))
MEMBERS = (*FLOAT_MEMBERS, *itertools.starmap(Member, itertools.product(CELLS, STRUCTURES[:1], ARITHMETICS[1:])))

# Compiles in little more than half the time; where a law asks for the numbers of the usual compiler, it is not used.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FULL = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
thorough = partial(jax.jit, compiler_options=FULL)  # as users compile, whatever conftest.py says

each_cell = pytest.mark.parametrize("row", CELLS, ids=[row.name for row in CELLS])
each_structure = pytest.mark.parametrize("structure", STRUCTURES, ids=[row.name for row in STRUCTURES])
each_arith = pytest.mark.parametrize("arith", ARITHMETICS, ids=[row.name for row in ARITHMETICS])


def each_member(members: tuple[Member, ...] = MEMBERS) -> Callable[..., Any]:
    """Parametrise a test over `member`."""
    names = [f"{member.cell.name}-{member.structure.name}-{member.arith.name}" for member in members]
    return pytest.mark.parametrize("member", members, ids=names)


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers, float32 (float64 where that is switched on)."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def drawn_carry(cell: cells.Cell, *batch: int) -> Any:
    """A carry that is not zero."""
    return cell.initialize_carry((*batch, 1), nnx.Rngs(5), nnx.initializers.normal(0.5))


def assert_equal(found: Any, wanted: Any) -> None:
    """The same tree, the same types, the same bits."""
    jax.tree.map(_equal, found, wanted)


def _equal(found: Any, wanted: Any) -> None:
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def assert_close(found: Any, wanted: Any, tolerance: float) -> None:
    """The same tree, each array within `tolerance` times the largest number of it."""

    def close(a: Any, b: Any) -> None:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.max(np.abs(b)), 1e-30))

    jax.tree.map(close, found, wanted)


def count(function: Callable[..., Any], *args: Any, of: Callable[[Any], int]) -> int:
    """The sum of `of(equation)` over all equations that a call runs, those of loops as often as they run."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr, of)


def _count(jaxpr: Any, of: Callable[[Any], int]) -> int:
    total = 0
    for equation in jaxpr.eqns:
        assert equation.primitive.name not in ("while", "cond"), "runs a number of times that is not known"
        inner = [p for p in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(p)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += of(equation) + times * sum(_count(getattr(p, "jaxpr", p), of) for p in inner)
    return total


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (jex.ClosedJaxpr, jex.Jaxpr))


def macs(equation: Any) -> int:
    """Multiply-accumulates of an equation that is a matrix product; 0 for any other."""
    if equation.primitive.name != "dot_general":
        return 0
    (contracted, _), _ = equation.params["dimension_numbers"]
    rows = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return rows * math.prod(equation.outvars[0].aval.shape)


def elementwise(equation: Any) -> int:
    """Numbers that an equation makes by an addition, a multiplication or an activation."""
    names = ("add", "sub", "mul", "logistic", "tanh")
    return math.prod(equation.outvars[0].aval.shape) if equation.primitive.name in names else 0
