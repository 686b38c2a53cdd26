"""Exact solutions of linear pieces: the building blocks of a Model's `flow`.

Written so that neither equal rates (absorption as fast as elimination) nor a rate of zero loses digits,
in the value or in its first derivative.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.vector import packing

# Below this |z| the Taylor series of phi1 to z^8 is exact to rounding; above, expm1(z)/z is, as is its
# derivative.
_SERIES_BELOW = 0.05
_SERIES = (1.0, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362880)


def phi1(z: Any) -> Any:
    """`(exp(z) - 1) / z`, and 1 at 0."""
    small = jnp.abs(z) < _SERIES_BELOW
    near = jnp.where(small, z, 0.0)
    far = jnp.where(small, 1.0, z)
    series = jnp.zeros_like(near)
    for coefficient in reversed(_SERIES):
        series = series * near + coefficient
    return jnp.where(small, series, jnp.expm1(far) / far)


def filling(rate: Any, dt: Any) -> Any:
    """What a unit inflow over `dt` leaves in a compartment that empties at `rate`.

    The integral of `exp(-rate s)` from 0 to `dt`.
    """
    return dt * phi1(-rate * dt)


def passage(first: Any, second: Any, dt: Any) -> Any:
    """`(exp(-first dt) - exp(-second dt)) / (second - first)`, and its limit where the rates are equal.

    The content of a second compartment per unit of flow out of a first one that held a unit dose.
    """
    # The same smooth function in either order; with the slow rate outside it cannot overflow. A minimum
    # and an absolute value have no derivative where the rates are equal.
    slow, fast = jnp.where(first > second, second, first), jnp.where(first > second, first, second)
    return dt * jnp.exp(-slow * dt) * phi1(-(fast - slow) * dt)


@dataclass(frozen=True)
class LinearFlow:
    """The flow of any drift that is affine in the state with constant coefficients, by a matrix exponential.

    For models without a closed form of their own: `flow=LinearFlow(drift)`.
    """

    drift: Callable[[Any, Any, Any, Any], Any]

    def __call__(self, dt: Scalar, x: Any, u: Any, p: Any) -> Any:
        """The state after `dt` under constant inputs `u`."""
        pack, unpack = packing(jax.eval_shape(lambda: x))

        def rate(vector):
            return pack(self.drift(jnp.asarray(0.0), unpack(vector), u, p))

        vector = pack(x)
        zero = jnp.zeros_like(vector)
        matrix = jax.jacfwd(rate)(zero)
        # [[A, b], [0, 0]]: the exponential of the augmented matrix also integrates the inflow.
        top = jnp.concatenate([matrix, rate(zero)[:, None]], axis=1)
        augmented = jnp.concatenate([top, jnp.zeros_like(top[:1])])
        moved = jax.scipy.linalg.expm(augmented * dt, max_squarings=48) @ jnp.append(vector, 1.0)
        return unpack(moved[:-1])
