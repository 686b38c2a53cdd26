"""How large the error of a step is, for many patients side by side: the lane is the last axis."""

from typing import Any

import jax
import jax.numpy as jnp


def scale_of(solver: Any, y: Any, other: Any) -> Any:
    """Tolerances of every state, the larger of two values counting."""
    leaves, structure = jax.tree.flatten(y)
    atol, start, found = jnp.asarray(solver.atol, leaves[0].dtype), 0, []
    for a, b in zip(leaves, jax.tree.leaves(other), strict=True):
        size = a[..., 0].size
        own = atol if atol.ndim == 0 else atol[start : start + size].reshape(*a.shape[:-1], 1)
        found.append(own + solver.rtol * jnp.maximum(jnp.abs(a), jnp.abs(b)))
        start += size
    return jax.tree.unflatten(structure, found)


def norm(x: Any, scale: Any) -> Any:
    """Root mean square over the states."""
    squares = [jnp.square(a / s) for a, s in zip(jax.tree.leaves(x), jax.tree.leaves(scale), strict=True)]
    total = sum(jnp.sum(each.reshape(-1, each.shape[-1]), axis=0) for each in squares)
    return jnp.sqrt(total / sum(each[..., 0].size for each in squares))
