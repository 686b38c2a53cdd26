"""The one vocabulary of array types: `n` samples, `patient`, `chain`, `draw`."""

from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

# Records are built from NumPy arrays (one device transfer for a cohort, not one a number), so data
# may be either kind until it enters a compiled function.
AnyArray: TypeAlias = jax.Array | np.ndarray
if TYPE_CHECKING:
    # Fields of this type convert plain numbers, and take signals' values and placeholders of tree maps.
    Scalar: TypeAlias = Any
else:
    Scalar: TypeAlias = Float[AnyArray, ""]
Vector: TypeAlias = Float[AnyArray, " n"]
Mask: TypeAlias = Bool[AnyArray, " n"]
Codes: TypeAlias = Int[AnyArray, " n"]


def as_float(x: Any) -> Any:
    """`x` as a floating array of the default precision; arrays of floats pass unchanged.

    A plain Python number would be a static value under `eqx.filter_jit`, and retrace at each new one.
    Values that are no numbers (the placeholders of a tree map, a signal) pass unchanged too.
    """
    if isinstance(x, bool | int | float | np.number):
        return jnp.asarray(x, dtype=float)
    if isinstance(x, np.ndarray | jax.Array) and jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.asarray(x, dtype=float)
    return x
