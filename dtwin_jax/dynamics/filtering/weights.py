"""Weights of possible states: how many count, and how they are drawn anew."""

from typing import Any

import jax
import jax.numpy as jnp


def drawn_rows(log_weight: Any, offset: Any, count: int) -> Any:
    """Rows drawn by weight, evenly (systematic resampling)."""
    at = (jnp.arange(count, dtype=float) + offset) / count
    rows = jnp.searchsorted(jnp.cumsum(jnp.exp(log_weight)), at)
    return jnp.clip(rows, 0, log_weight.shape[0] - 1)


def effective_of(log_weight: Any) -> Any:
    """The effective number of draws with these weights, along the last axis."""
    return jnp.exp(-jax.scipy.special.logsumexp(2.0 * log_weight, axis=-1))
