"""How much to centre, and moves between coordinates, against the algebra of normal effects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from lines import TIME, cohort, line

from dtwin_jax.core.prior import halfnormal, lognormal, normal
from dtwin_jax.inference.centring import best_centring, first_centring, recentred, spread_of
from dtwin_jax.inference.covariate import Covariate, linear
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.population import Population, density_of
from dtwin_jax.inference.predictive import constrained
from dtwin_jax.inference.run import rounds_of
from dtwin_jax.inference.scatter import EFFECTS
from dtwin_jax.inference.start import potential_energy

COHORT = cohort(
    np.random.default_rng(0).normal(2.0, 1.0, (3, len(TIME))), weight=np.array([50.0, 70.0, 90.0])
)
RECORD = jax.tree.map(jnp.asarray, COHORT.record)
WEIGHT = Covariate("level", "weight", "kg", reference=70.0, coefficient=normal(0.0, 0.1), form=linear)
BOTH = Population(line, {"level": halfnormal(0.7), "slope": halfnormal(0.4)}, covariates=(WEIGHT,))


def points(shape=(2, 5)):
    """Unbounded points of chains and draws."""
    rng = np.random.default_rng(1)
    names = ("level_pop", "slope_pop", "sd", "omega_level", "omega_slope", WEIGHT.label)
    return {name: 0.3 * rng.normal(size=shape) for name in names} | {EFFECTS: rng.normal(size=(*shape, 3, 2))}


def test_centring_is_the_share_of_variance_that_the_data_resolve():
    rng = np.random.default_rng(4)
    shape = (4, 5000, 3)
    # sd 0.1 where patients scatter by 0.2: 1 - 0.01 / 0.04; a parameter less sure than the scatter: 0.
    values = {
        "level": np.array([0.0, 1.0, -2.0]) + 0.1 * rng.normal(size=shape),
        "omega_level": np.full(shape[:2], 0.2),
        "slope": np.exp(0.5 * rng.normal(size=shape)),
        "omega_slope": np.full(shape[:2], 0.4),
    }
    density, _ = density_of(BOTH, {}, ())
    np.testing.assert_allclose(best_centring(density, values), [0.75, 0.0], atol=0.01)


def test_centring_of_a_parameter_that_the_data_pin_down_is_one():
    values = {"slope": np.full((2, 10, 3), [0.2, 0.5, 1.0]), "omega_slope": np.full((2, 10), 0.4)}
    density, _ = density_of(Population(line, {"slope": lognormal(0.4, 0.5)}), {}, ())
    np.testing.assert_allclose(best_centring(density, values), [1.0], atol=1e-10)


def test_the_same_parameters_have_coordinates_under_every_centring():
    density, base = density_of(BOTH, {}, ())
    old, new = jnp.asarray([0.3, 0.9]), jnp.asarray([1.0, 0.2])
    z = points()
    moved = recentred(density, base, RECORD, z, (old, new))
    before, after = (constrained(density, base, RECORD, at, c) for at, c in ((z, old), (moved, new)))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-12, atol=1e-12)
    # Where the mean is expected and the scatter is one, both are alike; elsewhere they are not.
    assert np.max(np.abs(moved[EFFECTS] - z[EFFECTS])) > 0.1
    back = recentred(density, base, RECORD, moved, (new, old))
    np.testing.assert_allclose(back[EFFECTS], z[EFFECTS], atol=1e-12)


@pytest.mark.parametrize("held", [0.0, 0.5, 1.0])
def test_the_curvature_tells_the_share_that_a_patients_data_resolve(held):
    # The level alone varies; four points of sd s leave it a variance of 1 / (4 / s^2 + 1 / omega^2).
    density, base = density_of(Population(line, {"level": halfnormal(0.7)}), {"sd": 0.4, "slope": 0.5}, ())
    omega, centring = 0.6, jnp.asarray([held])
    z = {"level_pop": jnp.asarray([1.0]), "omega_level": jnp.log(jnp.asarray([omega]))}
    z |= {EFFECTS: jnp.zeros((1, 3, 1))}
    one = jax.tree.map(lambda leaf: leaf[0], z)
    flat, unravel = ravel_pytree(one)
    energy = standard_promotion(lambda x: potential_energy(density, (base, RECORD, centring), unravel(x)))
    curvature = jax.hessian(energy)(flat)
    spread = 1.0 / jnp.diag(curvature)
    found = first_centring(density, base, RECORD, (z, spread[None]), centring)
    within = 1.0 / (len(TIME) / 0.4**2 + 1.0 / omega**2)
    np.testing.assert_allclose(found, [1.0 - within / omega**2], rtol=1e-10)
    whole = first_centring(density, base, RECORD, (z, jnp.diag(spread)[None]), centring)
    np.testing.assert_allclose(whole, found, rtol=1e-12)


def test_the_spread_of_many_draws_is_their_covariance():
    z = points((4, 500))
    flat = np.asarray(jax.vmap(jax.vmap(lambda one: ravel_pytree(one)[0]))(z)).reshape(2000, -1)
    np.testing.assert_allclose(spread_of(z, True), np.cov(flat.T), atol=0.005)
    np.testing.assert_allclose(spread_of(z, False), flat.var(axis=0), rtol=0.003)
    # Of a draw or two nothing is believed, and nothing is zero.
    assert np.all(spread_of(points((1, 1)), False) > 0)
    assert np.all(np.linalg.eigvalsh(spread_of(points((1, 1)), True)) > 0)


def test_rounds_grow_and_waste_nothing():
    assert rounds_of(19, 2) == [2, 4, 13]
    assert rounds_of(5, 2) == [2, 3]
    assert rounds_of(1, 2) == [1]
    assert rounds_of(2, 2) == [1, 1]
    assert rounds_of(0, 2) == []
