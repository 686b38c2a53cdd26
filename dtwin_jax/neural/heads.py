"""What is read from hidden states: the probability at a visit (E8), the risk score (E11), hazards.

E8 and E11 of Vallée 2025 (doi 10.2196/72411): y_t = sigmoid(W_o h_t + b_o),
R = (1/T) sum_t sigmoid(W_r h_t + b_r).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dtwin_jax.core.types import Mask


class EventHead(eqx.Module):
    """y_t = sigmoid(W_o h_t + b_o), at every visit."""

    linear: eqx.nn.Linear

    def __init__(self, width: int, outputs: int = 1, *, key: Any):
        self.linear = eqx.nn.Linear(width, outputs, key=key)

    def __call__(self, h: Float[Array, "n width"]) -> Float[Array, "n output"]:
        """A probability a visit."""
        return jax.nn.sigmoid(jax.vmap(self.linear)(h))


class RiskHead(eqx.Module):
    """R = mean over visits of sigmoid(W_r h_t + b_r)."""

    linear: eqx.nn.Linear

    def __init__(self, width: int, outputs: int = 1, *, key: Any):
        self.linear = eqx.nn.Linear(width, outputs, key=key)

    def __call__(self, h: Float[Array, "n width"], mask: Mask) -> Float[Array, " output"]:
        """The score of a patient, of the visits that are there; 0 without any."""
        each = jax.nn.sigmoid(jax.vmap(self.linear)(h))
        there = jnp.asarray(mask)[:, None]
        count = jnp.maximum(jnp.sum(there), 1).astype(each.dtype)
        return jnp.sum(jnp.where(there, each, jnp.zeros((), each.dtype)), axis=0) / count


class HazardHead(eqx.Module):
    """Rates of the event in the intervals that follow a visit, exp(W h_t + b)."""

    linear: eqx.nn.Linear

    def __init__(self, width: int, intervals: int, *, key: Any):
        self.linear = eqx.nn.Linear(width, intervals, key=key)

    def __call__(self, h: Float[Array, "n width"]) -> Float[Array, "n interval"]:
        """Rates > 0, per unit of time."""
        return jnp.exp(jax.vmap(self.linear)(h))
