"""Named states in equations, one vector in the solver: packing at the boundary.

A pytree of scalars as solver state compiles and runs markedly slower than one stacked vector.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def packing(example: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """`(pack, unpack)` between structs like `example` and vectors of shape (n,).

    Args:
        example: a struct of arrays (or of their shapes).
    """
    leaves, structure = jax.tree.flatten(example)
    shapes = [leaf.shape for leaf in leaves]
    sizes = [math.prod(shape) for shape in shapes]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    all_scalar = all(shape == () for shape in shapes)

    def pack(struct: Any) -> Any:
        parts = jax.tree.leaves(struct)
        if all_scalar:
            return jnp.stack([jnp.asarray(part) for part in parts])
        return jnp.concatenate([jnp.ravel(part) for part in parts])

    def unpack(vector: Any) -> Any:
        if all_scalar:
            return jax.tree.unflatten(structure, [vector[i] for i in range(len(shapes))])
        parts = [
            vector[start : start + size].reshape(shape)
            for start, size, shape in zip(starts, sizes, shapes, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    return pack, unpack
