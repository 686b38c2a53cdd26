"""Residual error: how a measurement scatters about what the model expects.

Each function is a Model's `noise`, for models whose parameters have the fields it names: `sd` and `cv` for
all outputs, or `sd_glucose` and `cv_glucose` for the output `glucose`. With `combined`, additive error is
`cv` known to be 0, proportional error is `sd` known to be 0.
"""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from dtwin_jax.core.quantity import quantities


def _outputs(y: Any) -> dict[str, Any]:
    return {name: getattr(y, name) for name in quantities(y)}


def _own(p: Any, kind: str, output: str) -> Any:
    """`p.sd_output` where there is one, else `p.sd`."""
    own = f"{kind}_{output}"
    return getattr(p, own) if hasattr(p, own) else getattr(p, kind)


def additive(y: Any, p: Any) -> dict[str, Any]:
    """Normal with sd `p.sd`, in the output's unit."""
    return {name: dist.Normal(value, _own(p, "sd", name)) for name, value in _outputs(y).items()}


def proportional(y: Any, p: Any) -> dict[str, Any]:
    """Normal with sd `p.cv` times the expected value."""
    return {
        name: dist.Normal(value, _own(p, "cv", name) * jnp.abs(value)) for name, value in _outputs(y).items()
    }


def combined(y: Any, p: Any) -> dict[str, Any]:
    """Normal with variance `p.sd^2 + (p.cv * value)^2`."""
    return {name: dist.Normal(value, _combined_sd(name, value, p)) for name, value in _outputs(y).items()}


def log_normal(y: Any, p: Any) -> dict[str, Any]:
    """Log-normal about the expected value as median, with sd of the log `p.cv`.

    An expected value that is not positive gives NaN: no such measurement is possible.
    """
    return {
        name: dist.LogNormal(jnp.log(jnp.where(value > 0, value, jnp.nan)), _own(p, "cv", name))
        for name, value in _outputs(y).items()
    }


def _combined_sd(name: str, value: Any, p: Any) -> Any:
    variance = _own(p, "sd", name) ** 2 + (_own(p, "cv", name) * value) ** 2
    # Safe at zero variance: the square root has no derivative there.
    positive = jnp.where(variance > 0, variance, 1.0)
    return jnp.where(variance > 0, jnp.sqrt(positive), 0.0)
