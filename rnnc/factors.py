"""Shapes of Kronecker factors: which there are for a matrix, what each costs, and ways to choose one.

A matrix of m outputs and n inputs is A kron B with A [m1, n1] and B [m2, n2], m1 m2 = m and n1 n2 = n.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

SLACK = (1.1, 1.25, 1.5, 2.0)  # how far from the wished size a pair of factors may be, tried in this order


class Factors(NamedTuple):
    """The shapes of A and B, each (outputs, inputs), and what the product costs.

    >>> f = Factors((5, 17), (8, 4))
    >>> f.outputs, f.inputs, f.parameters, f.rank, f.macs
    (40, 68, 117, 20, 500)
    """

    a: tuple[int, int]
    b: tuple[int, int]

    @property
    def outputs(self) -> int:
        """m = m1 m2."""
        return self.a[0] * self.b[0]

    @property
    def inputs(self) -> int:
        """n = n1 n2."""
        return self.a[1] * self.b[1]

    @property
    def parameters(self) -> int:
        """m1 n1 + m2 n2."""
        return math.prod(self.a) + math.prod(self.b)

    @property
    def rank(self) -> int:
        """The largest rank that A kron B can have."""
        return min(self.a) * min(self.b)

    @property
    def b_first(self) -> bool:
        """Whether A (Z B^T) is at least as cheap as (A Z) B^T."""
        return self._b_first_macs() <= self._a_first_macs()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one product in the cheaper order."""
        return min(self._b_first_macs(), self._a_first_macs())

    @property
    def scratch(self) -> int:
        """Intermediate values of one product in the cheaper order."""
        return self.a[1] * self.b[0] if self.b_first else self.a[0] * self.b[1]

    def _b_first_macs(self) -> int:
        return self.a[1] * self.b[0] * (self.b[1] + self.a[0])

    def _a_first_macs(self) -> int:
        return self.a[0] * self.b[1] * (self.a[1] + self.b[0])


def shapes(n: int, m: int) -> list[Factors]:
    """All pairs of factors of a matrix of n inputs and m outputs that are smaller than the matrix.

    >>> len(shapes(6, 4)), shapes(6, 4)[0]
    (10, Factors(a=(1, 2), b=(4, 3)))
    """
    pairs = (Factors((m1, n1), (m // m1, n // n1)) for m1 in _divisors(m) for n1 in _divisors(n))
    return [f for f in pairs if f.parameters < n * m]


def pareto(n: int, m: int) -> list[Factors]:
    """The pairs that no other beats in size, multiplications and rank at once, by size.

    >>> [(f.parameters, f.macs, f.rank) for f in pareto(8, 8)]
    [(16, 16, 1), (16, 32, 4), (20, 24, 2), (20, 48, 8)]
    """
    price = {f: (f.parameters, f.macs, -f.rank) for f in shapes(n, m)}

    def beaten(own: tuple[int, ...]) -> bool:
        return any(all(x <= y for x, y in zip(other, own)) and other != own for other in price.values())

    best = {own: f for f, own in price.items() if not beaten(own)}
    return [best[own] for own in sorted(best)]


def paper(n: int, m: int) -> Factors:
    """The papers' rule: the two most even factors that repeated products of the smallest primes give.

    The primes of m are multiplied, two smallest first, until two numbers are left; so are those of n; the smaller
    one of m goes with the larger one of n.

    Raises:
      ValueError: n or m is prime or 1.

    >>> paper(68, 40)
    Factors(a=(5, 17), b=(8, 4))

    Source: Pushing the limits of RNN compression, section 2.2 of our survey: recalled, and confirmed by the sizes of
    two published models.
    """
    low, high = _even_factors(m, "outputs")
    small, large = _even_factors(n, "inputs")
    return Factors((low, large), (high, small))


def for_ratio(n: int, m: int, ratio: float) -> Factors:
    """The pair of the largest rank among those about `ratio` times smaller than the matrix.

    Sizes up to 10 % above and below the wished one count as equal; if there is none, smaller ones, down to half.
    Among equal ranks: the one closest to the wished size, then the one of the fewest multiplications.

    Raises:
      ValueError: no pair is near; the message names the next m that has one.

    >>> for_ratio(384, 256, 16.0)
    Factors(a=(4, 4), b=(64, 96))

    Source: ours; section 2.2 of our survey.
    """
    if not ratio >= 1:
        raise ValueError(f"target_ratio: is {ratio:g}, must be 1 or more")
    near = _near(n, m, ratio)
    if not near:
        better = _next(m, lambda size: bool(_near(n, size, ratio)))
        raise ValueError(
            f"{m} outputs x {n} inputs have no Kronecker factors about {ratio:g} times smaller; {better} outputs have"
        )
    wished = n * m / ratio
    return min(near, key=lambda f: (-f.rank, abs(f.parameters - wished), f.macs))


def _near(n: int, m: int, ratio: float) -> list[Factors]:
    wished = n * m / ratio
    found = [f for f in shapes(n, m) if f.parameters <= wished * SLACK[0]]
    for slack in SLACK:
        if near := [f for f in found if f.parameters >= wished / slack]:
            return near
    return []


def _even_factors(size: int, what: str) -> tuple[int, int]:
    parts = _primes(size)
    if len(parts) < 2:
        better = _next(size, lambda larger: len(_primes(larger)) > 1)
        raise ValueError(f"{size} {what} do not factor; the next size that does is {better}")
    while len(parts) > 2:
        first, second, *rest = sorted(parts)
        parts = [first * second, *rest]
    low, high = sorted(parts)
    return low, high


def _next(size: int, good: Callable[[int], bool]) -> int:
    return next(larger for larger in range(size + 1, 2 * size + 64) if good(larger))


def _divisors(size: int) -> list[int]:
    return [d for d in range(1, size + 1) if size % d == 0]


def _primes(size: int) -> list[int]:
    found, divisor = [], 2
    while size > 1:
        while size % divisor == 0:
            found.append(divisor)
            size //= divisor
        divisor += 1
    return found
