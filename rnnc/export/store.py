"""In which order a plain matrix lies in memory: row by row or in tiles, all of its weights or the blocks kept of them.

kernels/SEMANTICS.md has the contract; matvec.c reads what is made here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WIDEST_NIBBLES = 4096  # inputs of a four of rows of 4 bits, whose weights plus 8 are summed
FARTHEST = 255  # blocks that a step can pass


@dataclass(frozen=True, kw_only=True)
class Store:
    """A matrix as it is stored.

    Args:
      bits: that a weight takes, 4, 8 or 16.
      tile: how the weights lie; 0: row by row, 1: four inputs of a row together, 4: two inputs of four rows together.
      block: neighbouring inputs that are kept or left out together; of `tile` 4, in all four rows.
      kept: [rows or tiles, inputs / block], which blocks are stored; None: all weights are.
      numbers: the weights in their order, each by itself.
    """

    bits: int
    tile: int
    block: int = 0
    kept: np.ndarray | None = None
    numbers: np.ndarray = field(repr=False)

    @property
    def words(self) -> str:
        """The blocks in words."""
        return f"blocks of {self.block}" + (" by 4 outputs" if self.tile == 4 else "")

    @property
    def packed(self) -> np.ndarray:
        """The weights' bytes: of 4 bits two in one, the first in the low half; of 16 the low byte first."""
        if self.bits == 16:
            return self.numbers.astype("<i2").view(np.int8)
        if self.bits == 8:
            return self.numbers
        pairs = np.append(self.numbers, 0)[: self.numbers.size + self.numbers.size % 2].reshape(-1, 2) & 0xF
        return (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).astype(np.int8)

    @property
    def index(self) -> tuple[str, np.ndarray, np.ndarray]:
        """The name and the numbers of what tells where the blocks lie, and `start`."""
        assert self.kept is not None
        count = np.append(0, np.cumsum(self.kept.sum(axis=1)))
        if self.tile == 0:
            return "map", np.packbits(self.kept, axis=1, bitorder="little").ravel(), self.block * count[:-1]
        steps = [np.diff(np.flatnonzero(row), prepend=0) for row in self.kept]
        return "steps", np.concatenate(steps), count

    @property
    def bytes(self) -> int:
        """Flash of the weights and of what tells where they lie."""
        weights = math.ceil(self.numbers.size * self.bits / 8)
        if self.kept is None:
            return weights
        _, numbers, start = self.index
        return weights + numbers.size + 4 * start.size


def smallest(found: Sequence[Store]) -> Store:
    """The first of the smallest."""
    return min(found, key=lambda store: store.bytes)


def rows(q: np.ndarray, bits: int) -> list[Store]:
    """How a matrix [outputs, inputs] may be stored row by row: all of it first.

    >>> [store.bytes for store in rows(np.array([[0, 0, 0, 0, 1, 2, 3, 4], [5, 0, 0, 0, 0, 0, 0, 0]]), 8)]
    [16, 15, 18]
    """
    return [whole(q, 0, bits), *(kept(q, 0, block, bits) for block in (1, 4) if q.shape[1] % block == 0)]


def stores(q: np.ndarray, bits: int, blocks: int) -> list[Store]:
    """How a matrix may be stored in tiles, or row by row where tiles do not fit: all of it first.

    Fours of rows may not straddle the blocks of outputs that are used one by one, and should hold few zeros that only
    fill them up.
    """
    outputs, inputs = q.shape
    fours = bits <= 8 and (bits > 4 or inputs <= WIDEST_NIBBLES) and (blocks == 1 or outputs // blocks % 4 == 0)
    found = [whole(q, 4, bits)] if fours else []
    if not found or found[0].numbers.size > q.size * 9 / 8:
        found = [whole(q, 0, bits)]
    if fours:
        found += [kept(q, 4, block, bits) for block in (4, 2) if inputs % block == 0 and inputs // block <= FARTHEST]
    if 4 < bits <= 8 and inputs % 4 == 0 and inputs // 4 <= FARTHEST:
        found.append(kept(q, 1, 4, bits))
    return [*found, kept(q, 0, 1, bits)]


def whole(q: np.ndarray, tile: int, bits: int) -> Store:
    """All weights of a matrix [outputs, inputs].

    >>> whole(np.array([[1, 2], [-3, 4], [5, 6], [7, -8]]), 4, 8).numbers.tolist()
    [1, -3, 2, 4, 5, 7, 6, -8]
    """
    return Store(bits=_stored(bits), tile=tile, numbers=_ordered(q, tile, bits))


def kept(q: np.ndarray, tile: int, block: int, bits: int) -> Store:
    """The blocks of a matrix that hold a weight; `block` divides its inputs.

    >>> store = kept(np.array([[0, 0, 0, 0, 1, 2, 3, 4], [5, 0, 0, 0, 0, 0, 0, 0]]), 1, 4, 8)
    >>> store.numbers.tolist(), [part.tolist() for part in store.index[1:]]
    ([1, 3, 2, 4, 5, 0, 0, 0], [[1, 0], [0, 1, 2]])
    """
    high = max(tile, 1)
    grid = _filled(q, high, 1).reshape(-1, high, q.shape[1] // block, block).swapaxes(1, 2)
    held = (grid != 0).any(axis=(2, 3))
    held[0, 0] |= not held.any()  # C has no empty arrays
    numbers = _ordered(grid[held].reshape(-1, block), tile, bits)
    return Store(bits=_stored(bits), tile=tile, block=block, kept=held, numbers=numbers)


def _stored(bits: int) -> int:
    """Bits that a weight of so many takes."""
    return next(size for size in (4, 8, 16) if bits <= size)


def _filled(q: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """With zeros up to whole tiles."""
    return np.pad(q, ((0, -q.shape[0] % rows), (0, -q.shape[1] % columns)))


def _ordered(q: np.ndarray, tile: int, bits: int) -> np.ndarray:
    """The numbers of a matrix in the order of its tiles."""
    if tile == 0:
        return q.ravel()
    if tile == 1:
        q = _filled(q, 1, 4)
        return q.reshape(-1, 2, 2).swapaxes(1, 2).ravel()
    q = _filled(q, 4, 2)
    if bits <= 4:
        q += 8
    else:
        q[1::2] -= q[::2] < 0  # a pair is one number, 256 times the upper weight plus the lower
    pairs = q.reshape(q.shape[0] // 4, 2, 2, -1, 2)  # tile, pair, upper, column, its half
    return pairs.transpose((0, 3, 1, 4, 2) if bits > 4 else (0, 3, 4, 2, 1)).ravel()
