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

# Below this |z| the derivative of phi1 is the Taylor series to z^6, above it is (exp(z) - phi1(z)) / z: both
# are exact to a few roundings.
_SERIES_BELOW = 0.01
_SERIES = (1 / 2, 1 / 3, 1 / 8, 1 / 30, 1 / 144, 1 / 840, 1 / 5760)


@jax.custom_jvp
def phi1(z: Any) -> Any:
    """`(exp(z) - 1) / z`, and 1 at 0."""
    safe = jnp.where(z == 0, 1.0, z)
    return jnp.where(z == 0, 1.0, jnp.expm1(safe) / safe)


@phi1.defjvp
def _phi1_jvp(primals: tuple, tangents: tuple) -> tuple:
    # By rule: the derivative of the quotient loses digits where z is small, and that of a series beside it,
    # taken for every direction, was a third of the cost of a likelihood and its gradient.
    (z,) = primals
    value = phi1(z)
    small = jnp.abs(z) < _SERIES_BELOW
    series = jnp.zeros_like(z)
    for coefficient in reversed(_SERIES):
        series = series * z + coefficient
    far = jnp.where(small, 1.0, z)
    slope = jnp.where(small, series, (jnp.exp(far) - value) / far)
    return value, slope * tangents[0]


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
