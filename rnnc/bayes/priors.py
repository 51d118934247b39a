"""What is known of the variances gamma of a rectified Gaussian scale mixture before any data are seen."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclass(frozen=True)
class Flat:
    """Nothing: gamma = E[x^2]. With it the posterior is that of sparse Bayesian learning, cut to x >= 0.

    Source: section 8.1 of our survey.
    """

    def gamma(self, second: Array) -> Array:
        """The gamma that is most likely, given E[x^2]."""
        return second

    def penalty(self, gamma: Array) -> Array:
        """-2 log p(gamma), up to a constant."""
        return jnp.zeros_like(gamma)


@dataclass(frozen=True)
class Laplace:
    """x is rectified Laplace, for gamma is exponential: p(gamma) = rate / 2 exp(-rate gamma / 2).

    p(x) = r exp(-r x), r = sqrt(rate);  gamma = (sqrt(1 + 4 rate E[x^2]) - 1) / (2 rate)

    Args:
      rate: above 0, in units of 1 / x^2.

    >>> Laplace(2.0).gamma(jnp.array(1.0)).item()
    0.5

    Source: section 8.1 of our survey; the form of the mixing density is worked out here.
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"rate: is {self.rate}, must be above 0 and finite")

    def gamma(self, second: Array) -> Array:
        """The gamma that is most likely, given E[x^2]."""
        return 2 * second / (jnp.sqrt(1 + 4 * self.rate * second) + 1)

    def penalty(self, gamma: Array) -> Array:
        """-2 log p(gamma), up to a constant."""
        return self.rate * gamma


@dataclass(frozen=True)
class StudentT:
    """x is rectified Student-t: gamma is inverse gamma, of shape dof / 2 and scale dof scale^2 / 2.

    gamma = (E[x^2] + dof scale^2) / (dof + 3)

    Args:
      dof: degrees of freedom, above 0; the smaller, the heavier the tail.
      scale: 0 or more, in units of x; 0 is the sparsest.

    >>> StudentT(1.0, scale=2.0).gamma(jnp.array(4.0)).item()
    2.0

    Source: section 8.1 of our survey; the form of the mixing density is worked out here.
    """

    dof: float = 1.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.dof < float("inf") and 0 <= self.scale < float("inf")):
            raise ValueError(f"dof = {self.dof}, scale = {self.scale}: must be above 0, and 0 or more, and finite")

    def gamma(self, second: Array) -> Array:
        """The gamma that is most likely, given E[x^2]."""
        return (second + self.dof * self.scale**2) / (self.dof + 3)

    def penalty(self, gamma: Array) -> Array:
        """-2 log p(gamma), up to a constant."""
        return (self.dof + 2) * jnp.log(gamma) + self.dof * self.scale**2 / gamma


Prior = Flat | Laplace | StudentT
PRIORS = {member.__name__.lower(): member for member in (Flat, Laplace, StudentT)}
