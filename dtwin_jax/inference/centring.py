"""How much to centre the effects of a population, and the sampler's coordinates under another centring.

An effect is sampled as `c mean + omega^(c - 1) (x - mean)`, with `x` the patient's parameter on its unbounded
scale, `mean` what is expected of it and `omega` its scatter: about the mean where the centring c is 1, as a
standard normal where it is 0.

Source: Papaspiliopoulos, Roberts & Sköld 2007, doi 10.1214/088342307000000014.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.population import PopulationDensity
from dtwin_jax.inference.predictive import constrained
from dtwin_jax.inference.scatter import EFFECTS

# How many draws a spread that is known beforehand counts as, and what it is: Stan's.
_DRAWS, _SPREAD = 5.0, 1e-3


def best_centring(density: PopulationDensity, values: dict[str, Any]) -> Any:
    """How much to centre each effect, from draws (chain, draw[, patient]).

    The share of an effect's variance that the patient's own data resolve: with `v` the posterior variance
    of a patient's parameter and `omega^2` that between patients, `1 - v / omega^2`.

    Returns:
        (effect,) between 0 and 1.
    """
    shares = []
    for name, bijector in density.bijectors.items():
        within = jnp.mean(jnp.var(bijector.inv(jnp.asarray(values[name])), axis=(0, 1)))
        shares.append(1.0 - within / jnp.mean(jnp.asarray(values[f"omega_{name}"]) ** 2))
    return jnp.clip(jnp.stack(shares), 0.0, 1.0) * density.free


@standard_promotion
def first_centring(
    density: PopulationDensity, base: Any, record: Any, points: tuple[dict[str, Any], Any], centring: Any
) -> Any:
    """The same where chains begin, as far as the curvature there tells, of each effect by itself.

    Args:
        density: of the population.
        base: known parameter values.
        record: of all patients, stacked.
        points: unbounded coordinates, leading axis (chain,); and the inverse of the curvature, (chain,
            coordinate, coordinate) or its diagonal (chain, coordinate).
        centring: (effect,) that of the coordinates.
    """
    z, spread = points
    own = spread if spread.ndim == 2 else jnp.diagonal(spread, axis1=1, axis2=2)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], z))
    variance = jnp.mean(jax.vmap(unravel)(own)[EFFECTS], axis=1)
    values = constrained(density, base, record, jax.tree.map(lambda leaf: leaf[:, None], z), centring)
    omega = jnp.stack([values[f"omega_{name}"][:, 0] for name in density.bijectors], axis=1)
    return jnp.clip(jnp.mean(1.0 - variance / omega ** (2.0 * centring), axis=0), 0.0, 1.0) * density.free


def recentred(
    density: PopulationDensity, base: Any, record: Any, z: dict[str, Any], centring: tuple[Any, Any]
) -> dict[str, Any]:
    """Draws `z` with axes (chain, draw) under one centring, in the coordinates of the other.

    Args:
        density: of the population.
        base: known parameter values.
        record: of all patients, stacked.
        z: unbounded coordinates.
        centring: of `z`, and that of the result; (effect,) each.
    """
    values = constrained(density, base, record, z, centring[0])
    moved = _effects(density, record, values, centring[1])
    # What is not free is scaled under either.
    return dict(z) | {EFFECTS: jnp.where(density.free > 0, moved, z[EFFECTS])}


@functools.partial(jax.jit, static_argnames=("density",))
@standard_promotion
def _effects(density: PopulationDensity, record: Any, values: dict[str, Any], centring: Any) -> Any:
    def one(values: dict[str, Any]) -> Any:
        mean = density.expected(values, record)
        found = [
            c * mean[name] + values[f"omega_{name}"] ** (c - 1.0) * (bijector.inv(values[name]) - mean[name])
            for c, (name, bijector) in zip(centring, density.bijectors.items(), strict=True)
        ]
        return jnp.stack(found, axis=-1)

    return jax.vmap(jax.vmap(one))(values)


@standard_promotion
def spread_of(z: dict[str, Any], dense: bool) -> Any:
    """Covariance (coordinate, coordinate) of draws with axes (chain, draw) if `dense`, else its diagonal."""
    flat = jax.vmap(jax.vmap(lambda one: ravel_pytree(one)[0]))(z)
    count = flat.shape[0] * flat.shape[1]
    flat = flat.reshape(count, -1)
    weight, rest = count / (count + _DRAWS), _SPREAD * _DRAWS / (count + _DRAWS)
    if dense:
        return weight * jnp.cov(flat, rowvar=False, ddof=0) + rest * jnp.eye(flat.shape[1])
    return weight * jnp.var(flat, axis=0) + rest
