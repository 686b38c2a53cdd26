"""Residual error: how a measurement scatters about what the model expects.

Each function is a Model's `noise`, for models whose parameters have the fields it names. With
`combined`, additive error is `cv` known to be 0, proportional error is `sd` known to be 0.
"""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from dtwin_jax.core.quantity import quantities


def _outputs(y: Any) -> dict[str, Any]:
    return {name: getattr(y, name) for name in quantities(y)}


def additive(y: Any, p: Any) -> dict[str, Any]:
    """Normal with sd `p.sd`, in the output's unit."""
    return {name: dist.Normal(value, p.sd) for name, value in _outputs(y).items()}


def proportional(y: Any, p: Any) -> dict[str, Any]:
    """Normal with sd `p.cv` times the expected value."""
    return {name: dist.Normal(value, p.cv * jnp.abs(value)) for name, value in _outputs(y).items()}


def combined(y: Any, p: Any) -> dict[str, Any]:
    """Normal with variance `p.sd^2 + (p.cv * value)^2`."""
    return {name: dist.Normal(value, _combined_sd(value, p)) for name, value in _outputs(y).items()}


def log_normal(y: Any, p: Any) -> dict[str, Any]:
    """Log-normal about the expected value as median, with sd of the log `p.cv`.

    An expected value that is not positive gives NaN: no such measurement is possible.
    """
    return {
        name: dist.LogNormal(jnp.log(jnp.where(value > 0, value, jnp.nan)), p.cv)
        for name, value in _outputs(y).items()
    }


def _combined_sd(value: Any, p: Any) -> Any:
    variance = p.sd**2 + (p.cv * value) ** 2
    # Safe at zero variance: the square root has no derivative there.
    positive = jnp.where(variance > 0, variance, 1.0)
    return jnp.where(variance > 0, jnp.sqrt(positive), 0.0)
