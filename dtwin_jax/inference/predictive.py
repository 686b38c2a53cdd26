"""What draws of parameters predict: likelihoods, expectations and predictive draws of a whole cohort."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import central, likelihood_of, predict_cohort
from dtwin_jax.core.record import Cohort, Record, repeated
from dtwin_jax.inference.density import parameters, standard_promotion
from dtwin_jax.inference.population import PopulationDensity

# Draws times patients that are solved at once.
_POINTS = 2048


@functools.partial(jax.jit, static_argnames=("density",))
@standard_promotion
def constrained(density: Any, base: Any, record: Record, z: Any, centring: Any = None) -> dict[str, Any]:
    """Named values on their own scales from unbounded draws `z` with axes (chain, draw[, patient])."""
    from numpyro.infer.util import constrain_fn

    def one(z):
        values = constrain_fn(density, (base, record, centring, False), {}, z, return_deterministic=True)
        return {name: value for name, value in values.items() if name not in density.latent}

    axes = 2 if isinstance(density, PopulationDensity) else 3
    for _ in range(axes):
        one = jax.vmap(one)
    return one(z)


@functools.partial(jax.jit, static_argnames=("density",))
@standard_promotion
def prior_draws(density: Any, base: Any, record: Record, keys: Any) -> dict[str, Any]:
    """One draw from the prior for each key."""
    from numpyro import handlers

    def one(key):
        trace = handlers.trace(handlers.seed(density, key)).get_trace(base, record, likelihood=False)
        return {name: site["value"] for name, site in trace.items() if name not in density.latent}

    return jax.vmap(one)(keys)


@functools.partial(jax.jit, static_argnames=("density",))
@standard_promotion
def new_patients(density: PopulationDensity, base: Any, record: Record, shared: Any, keys: Any) -> Any:
    """Parameters of new patients with the covariates of `record`, one set for each draw of the population.

    Args:
        density: of the population.
        base: known parameter values.
        record: stacked; only what is known of the patients is used.
        shared: posterior draws of the population's own sites, leading axis (draw,).
        keys: (draw,).

    Returns:
        name -> (draw, patient), or (draw,) for a parameter that all share.
    """
    from numpyro import handlers

    def one(given, key):
        model = handlers.seed(handlers.substitute(density, data=given), key)
        trace = handlers.trace(model).get_trace(base, record, likelihood=False)
        return {name: trace[name]["value"] for name in density.names}

    return jax.vmap(one)(shared, keys)


def theta_of(density: Any, values: dict[str, np.ndarray], patients: int) -> np.ndarray:
    """Draws as one array (..., patient, name); a parameter that all patients share is repeated for each."""
    columns = [
        values[name] if name in density.individual else np.repeat(values[name][..., None], patients, axis=-1)
        for name in density.names
    ]
    return np.stack(columns, axis=-1)


def evaluate(density: Any, base: Any, cohort: Cohort, theta: np.ndarray, key: Any) -> tuple:
    """Pointwise log-likelihood, expectation and predictive draws of every patient.

    A patient's draws depend on the key and the id, not on the place in the cohort.

    Args:
        density: names the predictor and the estimated parameters.
        base: known parameter values.
        cohort: of the patients.
        theta: (..., patient, name).
        key: random key.

    Returns:
        Three dictionaries: channel -> (..., patient, n).
    """
    leading = theta.shape[:-2]
    flat = jnp.asarray(theta.reshape(-1, *theta.shape[-2:]))
    names = density.names
    record, keys = jax.tree.map(jnp.asarray, cohort.record), jax.random.split(key, flat.shape[0])
    found = evaluated(density.predictor, names, base, record, flat, keys, cohort.numbers)
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(*leading, *leaf.shape[1:]), found)


@functools.partial(jax.jit, static_argnames=("f", "names"))
@standard_promotion
def evaluated(f: Any, names: tuple, base: Any, record: Record, theta: Any, keys: Any, numbers: Any) -> tuple:
    """Compiled `evaluate`: theta (draw, patient, name), keys (draw,), the patients' numbers (patient,)."""
    draws, patients, _ = theta.shape
    # Draws of all patients are solved together, so many that a block is worth it.
    side = max(min(_POINTS // patients, draws), 1)
    rows = repeated(record, side)

    def point(predicted: Any, record: Record, key: Any) -> tuple:
        keys = jax.random.split(key, len(predicted))
        drawn = {name: d.sample(k) for (name, d), k in zip(predicted.items(), keys, strict=True)}
        expected = {name: central(d) for name, d in predicted.items()}
        return likelihood_of(predicted, record), expected, drawn

    def block(part: tuple) -> tuple:
        theta, keys = part
        flat = theta.reshape(side * patients, -1)
        p = jax.vmap(functools.partial(parameters, names, base))(flat, rows)
        each = jax.vmap(lambda key: jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers))(keys).reshape(-1)
        found = jax.vmap(point)(predict_cohort(f, p, rows), rows, each)
        return jax.tree.map(lambda leaf: leaf.reshape(side, patients, *leaf.shape[1:]), found)

    # The last block is filled up with the last draw.
    at = jnp.minimum(jnp.arange(-(-draws // side) * side), draws - 1).reshape(-1, side)
    found = jax.lax.map(block, (theta[at], keys[at]))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:draws], found)
