"""Hill's curve: the share of a greatest effect, of a receptor that is taken, of a process that is mature."""

from typing import Any

import jax
import jax.numpy as jnp


def hill(concentration: Any, half: Any, n: Any) -> Any:
    """`C^n / (half^n + C^n)`; 0 without drug, with finite derivatives there, and no overflow far above.

    A concentration that a solver leaves a rounding below 0 goes on in a line, as the curve of `n` 1 begins.
    """
    ratio = concentration / half
    present = ratio > 0
    return jnp.where(present, jax.nn.sigmoid(n * jnp.log(jnp.where(present, ratio, 1.0))), ratio)
