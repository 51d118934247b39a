"""Moments of a normal number that is known to be 0 or more."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import erfc, log_ndtr, ndtr, ndtri

Array = jax.Array
FAR = 3.0  # standard deviations below 0 from where the continued fraction is used
TERMS = 40  # of it: the error is below 1e-13 at FAR, and falls


class Moments(NamedTuple):
    """Of x: mean E[x], second moment E[x^2], and log_mass, the logarithm of the mass that was not cut, P(x >= 0)."""

    mean: Array
    second: Array
    log_mass: Array


def rectified(mu: Array, s: Array) -> Moments:
    """Moments of N(mu, s^2) cut to x >= 0, without cancellation however far mu lies below 0.

    a = -mu / s;  r = phi(a) / (1 - Phi(a));  E[x] = s (r - a);  E[x^2] = s^2 (1 - a (r - a))

    Far below 0 both differences come from a continued fraction: r - a = 1 / c, c = a + 2 / d, d = a + 3 / (a + 4 / ...)
    give E[x] = s / c and E[x^2] = s^2 (2 / d) / c.

    Args:
      mu: any shape and sign.
      s: standard deviations above 0, of the same shape.

    >>> mean, second, log_mass = rectified(jnp.array([0.0, -30.0]), jnp.array([1.0, 1.0]))
    >>> [f"{float(m):.6f}" for m in mean], [f"{float(m):.6f}" for m in second]
    (['0.797885', '0.033260'], ['1.000000', '0.002210'])

    Source: R-SBL (Nalci et al. 2018), section 8.1 of our survey, which takes r from erfcx; the continued fraction (of
    Laplace) is ours: it needs no erfcx, and keeps the digits of both differences.
    """
    a = -mu / s
    near = jnp.minimum(a, FAR)
    r = jnp.sqrt(2 / jnp.pi) * jnp.exp(-(near**2) / 2) / erfc(near / jnp.sqrt(2.0))
    far = jnp.maximum(a, FAR)
    d = lax.fori_loop(0, TERMS - 2, lambda k, tail: far + (TERMS - k) / tail, far)  # ends with far + 3 / tail
    c = far + 2 / d
    is_far = a > FAR
    mean = jnp.where(is_far, 1 / c, r - near)
    second = jnp.where(is_far, 2 / (d * c), 1 - near * (r - near))
    return Moments(s * mean, s**2 * second, log_ndtr(-a))


def draw(key: Array, mu: Array, s: Array) -> Array:
    """Draw from N(mu, s^2) cut to x >= 0, by the inverse of its tail.

    Q(z) = u Q(a), u uniform in 0 .. 1, Q = 1 - Phi;  x = mu + s z. Far out, log Q(z) is solved for by Newton's steps.

    Args:
      key: consumed.
      mu, s: as for `rectified`.

    >>> x = draw(jax.random.key(0), jnp.full(10000, -5.0), jnp.ones(10000))
    >>> bool(x.min() >= 0), abs(float(x.mean() / rectified(jnp.array(-5.0), jnp.array(1.0)).mean) - 1) < 0.03
    (True, True)
    """
    a = -mu / s
    u = jax.random.uniform(key, jnp.shape(a), a.dtype, minval=jnp.finfo(a.dtype).eps / 2)  # u Q(a) is no denormal
    near = jnp.minimum(a, FAR)
    far, log_u = jnp.maximum(a, FAR), jnp.log(u)
    z = jnp.sqrt(far**2 - 2 * log_u)
    for _ in range(2):
        log_tail = log_ndtr(-z)
        hazard = jnp.exp(-(z**2) / 2 - log_tail) / jnp.sqrt(2 * jnp.pi)
        z += (log_tail - log_u - log_ndtr(-far)) / hazard
    return jnp.maximum(s * (jnp.where(a > FAR, z, -ndtri(u * ndtr(-near))) - a), 0)
