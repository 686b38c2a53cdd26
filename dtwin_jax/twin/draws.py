"""Weighted draws: how they are drawn anew, and spread again."""

from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.dynamics.filtering.gaussian import Gaussian
from dtwin_jax.dynamics.filtering.weights import drawn_rows, effective_of


def spread(u: Any, belief: Gaussian, log_weight: Any, key: Any) -> tuple[Any, Gaussian, Any]:
    """Draws of equal weight, spread by the kernel."""
    key_rows, key_noise = jax.random.split(key)
    (draws,), names = log_weight.shape, u.shape[1]
    z = jnp.concatenate([u, belief.mean], axis=1)
    middle, covariance = covariance_of(z, log_weight)
    rows = drawn_rows(log_weight, jax.random.uniform(key_rows), draws)
    noise = jax.random.normal(key_noise, z.shape)
    width = _width(log_weight, names)
    kept = jnp.sqrt(1.0 - width**2) * (z[rows] - middle[None, :])
    # Few draws scatter less about their own mean than what they are drawn from, and their mean is off: each
    # renewal would add to it.
    share = 1.0 / effective_of(log_weight)
    wide = jnp.sqrt((1.0 + share) / (1.0 - jnp.minimum(share, 0.5)))
    z = middle[None, :] + wide * (kept + width * noise @ root_of(covariance).T)
    even = jnp.full_like(log_weight, -jnp.log(float(draws)))
    return z[:, :names], Gaussian(z[:, names:], belief.covariance[rows]), even


def _width(log_weight: Any, dimensions: int) -> Any:
    """Of the kernel, in sds: the normal rule for as many draws as are effective (Silverman 1986).

    The state follows from the parameters, so only these are counted as dimensions.
    """
    effective = effective_of(log_weight)
    power = 1.0 / (dimensions + 4)
    return jnp.minimum((4.0 / (dimensions + 2)) ** power * effective**-power, 1.0)


def covariance_of(z: Any, log_weight: Any) -> tuple[Any, Any]:
    """Weighted mean and covariance of rows."""
    weight = jnp.exp(log_weight)
    middle = weight @ z
    apart = z - middle[None, :]
    return middle, jnp.einsum("d,di,dj->ij", weight, apart, apart)


def root_of(covariance: Any) -> Any:
    """The symmetric one of a covariance that may be singular: no sign in it is left open."""
    value, vector = jnp.linalg.eigh(covariance)
    return (vector * jnp.sqrt(jnp.maximum(value, 0.0))[None, :]) @ vector.T


def beside(mask: Any, leaf: Any) -> Any:
    """`mask` with axes of length 1 for those that `leaf` has behind its own."""
    return mask.reshape(*mask.shape, *[1] * (leaf.ndim - mask.ndim))
