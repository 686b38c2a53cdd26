"""Logs of the probability below, above and between limits, without underflow where a family allows it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import betainc, digamma, gammaln, log_ndtr


def log_cdf(d: Any, x: Any) -> Any:
    """Log of P(X <= x), without underflow for normal and log-normal distributions.

    A distribution may bring a `log_cdf` and a `log_survival` of its own. NaN for a family that has no cdf.
    """
    import numpyro.distributions as dist

    if (own := getattr(d, "log_cdf", None)) is not None:
        return own(x)
    if isinstance(d, dist.Normal):
        return log_ndtr((x - d.loc) / d.scale)
    if isinstance(d, dist.LogNormal):
        positive = jnp.where(x > 0, x, 1.0)
        return jnp.where(x > 0, log_ndtr((jnp.log(positive) - d.loc) / d.scale), -jnp.inf)
    if isinstance(d, dist.StudentT):
        return _log_student((x - d.loc) / d.scale, d.df)
    return jnp.log(_cdf(d, x))


def log_survival(d: Any, x: Any) -> Any:
    """Log of P(X > x). NaN for a family that has no cdf."""
    import numpyro.distributions as dist

    if (own := getattr(d, "log_survival", None)) is not None:
        return own(x)
    if isinstance(d, dist.Normal):
        return log_ndtr((d.loc - x) / d.scale)
    if isinstance(d, dist.LogNormal):
        positive = jnp.where(x > 0, x, 1.0)
        return jnp.where(x > 0, log_ndtr((d.loc - jnp.log(positive)) / d.scale), 0.0)
    if isinstance(d, dist.StudentT):
        return _log_student((d.loc - x) / d.scale, d.df)
    return jnp.log1p(-_cdf(d, x))


def log_between(d: Any, low: Any, high: Any) -> Any:
    """Log of P(low < X <= high), by whichever tail is the smaller. NaN for a family that has no cdf."""
    # Where nothing is known below, a limit at the upper one keeps what is not taken finite.
    low = jnp.where(jnp.isfinite(low), low, high)
    upper, lower = log_cdf(d, high), log_cdf(d, low)
    beyond, rest = log_survival(d, low), log_survival(d, high)
    right = lower > jnp.log(0.5)
    large, small = jnp.where(right, beyond, upper), jnp.where(right, rest, lower)
    gap = jnp.where(small < large, small - large, -1.0)
    return jnp.where(small < large, large + jnp.log1p(-jnp.exp(gap)), -jnp.inf)


def _log_student(z: Any, df: Any) -> Any:
    return jnp.log(student_cdf(*jnp.broadcast_arrays(z, df)))


def _cdf(d: Any, x: Any) -> Any:
    try:
        return d.cdf(x)
    except NotImplementedError:  # categorical and Bernoulli distributions: nothing is below or above
        return jnp.full(jnp.shape(x), jnp.nan)


@jax.custom_jvp
def student_cdf(z: Any, df: Any) -> Any:
    """P(T <= z) of Student's t, differentiable by `z` and, as JAX's incomplete beta is not, by `df`."""
    tail = 0.5 * betainc(0.5 * df, 0.5 * jnp.ones_like(df), df / (df + z**2))
    return jnp.where(z < 0, tail, 1.0 - tail)


def _student_slopes(at: tuple, along: tuple) -> tuple[Any, Any]:
    (z, df), (dz, d_df) = at, along
    value = student_cdf(z, df)
    slope = jnp.zeros_like(value)
    if not isinstance(dz, SymbolicZero):
        size = gammaln(0.5 * (df + 1.0)) - gammaln(0.5 * df) - 0.5 * jnp.log(jnp.pi * df)
        slope = slope + dz * jnp.exp(size - 0.5 * (df + 1.0) * jnp.log1p(z**2 / df))
    if not isinstance(d_df, SymbolicZero):
        slope = slope + d_df * jnp.where(z < 0, 1.0, -1.0) * _student_slope_by_df(-jnp.abs(z), df)
    return value, slope


student_cdf.defjvp(_student_slopes, symbolic_zeros=True)


def _student_slope_by_df(z: Any, df: Any) -> Any:
    """Derivative of P(T <= z), z <= 0, by the degrees of freedom.

    With z = -sqrt(df) / tan(top), the probability is C times the integral of sin^(df - 1) from 0 to `top`.
    """
    top = jnp.arctan2(jnp.sqrt(df), -z)
    log_size = gammaln(0.5 * (df + 1.0)) - gammaln(0.5 * df) - 0.5 * jnp.log(jnp.pi)
    by_size = 0.5 * (digamma(0.5 * (df + 1.0)) - digamma(0.5 * df))
    nodes, weights = (jnp.reshape(each, (-1,) + (1,) * jnp.ndim(top)) for each in _NODES)
    log_sine = jnp.log(jnp.sin(top[None] * nodes))
    integrand = jnp.exp(log_size[None] + (df[None] - 1.0) * log_sine)
    inside = top * jnp.sum(weights * integrand * (by_size[None] + log_sine), axis=0)
    end = jnp.exp(log_size + (df - 1.0) * jnp.log(jnp.sin(top)))
    return inside + end * (-z / (2.0 * jnp.sqrt(df) * (df + z**2)))


def _double_exponential() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on (0, 1) that bear a singularity at its ends (tanh-sinh)."""
    t = np.linspace(-3.2, 3.2, 97)
    step = 0.5 * np.pi * np.sinh(t)
    weights = (t[1] - t[0]) * 0.25 * np.pi * np.cosh(t) / np.cosh(step) ** 2
    return 1.0 / (1.0 + np.exp(-2.0 * step)), weights


_NODES = _double_exponential()
