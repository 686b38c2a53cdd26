"""Exact solutions of linear pieces: the building blocks of a Model's `flow`.

Written so that neither equal rates (absorption as fast as elimination) nor a rate of zero loses digits,
in the value or in its first derivative.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.vector import packing

# Below this |z|, phi1 is its Taylor series, exact to a rounding; above, a difference of exponentials keeps
# its digits, and they are those that a flow takes anyway.
_SERIES_BELOW = 0.5
_SERIES = [1 / math.factorial(k + 1) for k in range(15)]
_SLOPE = [k / math.factorial(k + 1) for k in range(1, 16)]


def phi1(z: Any) -> Any:
    """`(exp(z) - 1) / z`, and 1 at 0."""
    near = jnp.abs(z) < _SERIES_BELOW
    return jnp.where(near, _series(jnp.where(near, z, 0.0)), (jnp.exp(z) - 1.0) / jnp.where(near, 1.0, z))


def filling(rate: Any, dt: Any) -> Any:
    """What a unit inflow over `dt` leaves in a compartment that empties at `rate`.

    The integral of `exp(-rate s)` from 0 to `dt`.
    """
    z = -rate * dt
    near = jnp.abs(z) < _SERIES_BELOW
    far = (1.0 - jnp.exp(z)) / jnp.where(near, 1.0, rate)
    return jnp.where(near, dt * _series(jnp.where(near, z, 0.0)), far)


def passage(first: Any, second: Any, dt: Any) -> Any:
    """`(exp(-first dt) - exp(-second dt)) / (second - first)`, and its limit where the rates are equal.

    The content of a second compartment per unit of flow out of a first one that held a unit dose.
    """
    z = (first - second) * dt
    near = jnp.abs(z) < _SERIES_BELOW
    left, right = jnp.exp(-first * dt), jnp.exp(-second * dt)
    far = (left - right) / jnp.where(near, 1.0, second - first)
    return jnp.where(near, left * dt * _series(jnp.where(near, z, 0.0)), far)


@jax.custom_jvp
def _series(z: Any) -> Any:
    """`phi1` near 0."""
    return _polynomial(_SERIES, z)


@_series.defjvp
def _series_jvp(primals: tuple, tangents: tuple) -> tuple:
    # By rule: one series for all directions.
    (z,) = primals
    return _series(z), _polynomial(_SLOPE, z) * tangents[0]


def _polynomial(coefficients: list[float], z: Any) -> Any:
    total = jnp.full_like(z, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * z + coefficient
    return total


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
