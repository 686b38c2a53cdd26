"""Errors that remember each other in every way of estimation.

A population whose effects enter linearly is one joint normal vector a patient, whose density SciPy knows.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dtwin_jax as dt
from dtwin_jax.core.quantity import param, var
from dtwin_jax.dynamics.autocorrelated import autocorrelated
from dtwin_jax.dynamics.residual import additive

LEVEL, OMEGA, SD, TAU = 5.0, 0.8, 0.6, 3.0


class Params(eqx.Module):
    level: dt.Scalar = param(LEVEL, "mg/L", dt.normal(LEVEL, 10.0))
    sd: dt.Scalar = param(SD, "mg/L", dt.lognormal(SD, log_sd=1.0))


class Inputs(eqx.Module):
    pass


class State(eqx.Module):
    drug: dt.Scalar = var("mg/L")


def fall(t):
    return np.exp(-0.02 * t)


decay = dt.Model(
    name="decay",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(drug=p.level),
    drift=lambda t, x, u, p: State(drug=-0.02 * x.drug),
    observe=lambda t, x, u, p: State(drug=x.drug),
    noise=additive,
    flow=lambda dt, x, u, p: State(drug=x.drug * jnp.exp(-0.02 * dt)),
)
remembering = autocorrelated(decay, TAU, dt.lognormal(TAU, log_sd=1.0))
population = dt.Population(remembering, ("level",))


def correlation(time, tau=TAU):
    return np.exp(-np.abs(time[:, None] - time[None, :]) / tau)


def drawn(rng, time, omega):
    level = LEVEL + omega * rng.normal()
    return level * fall(time) + SD * np.linalg.cholesky(correlation(time)) @ rng.normal(size=len(time))


@pytest.fixture(scope="module")
def people():
    """60 patients with 5 to 9 measurements at times of their own."""
    rng = np.random.default_rng(1)
    records = {}
    for i in range(60):
        time = np.cumsum(rng.uniform(0.3, 3.0, size=5 + i % 5))
        records[str(i)] = dt.Record(Inputs(), {"drug": dt.Series(time, drawn(rng, time, OMEGA))})
    return dt.stack(records)


def exact(people):
    """-2 log likelihood of each patient at the truth."""
    found = []
    for series in (people.at(i).observations["drug"] for i in range(len(people))):
        time, value = series.time[series.mask], series.value[series.mask]
        covariance = OMEGA**2 * np.outer(fall(time), fall(time)) + SD**2 * correlation(time)
        found.append(-2 * stats.multivariate_normal(LEVEL * fall(time), covariance).logpdf(value))
    return np.array(found)


@pytest.mark.parametrize("by", ["fo", "focei"])
def test_the_likelihood_of_a_population_is_that_of_joint_normal_vectors(people, by):
    start = {"level_pop": LEVEL, "sd": SD, "tau_error": TAU, "omega_level": OMEGA}
    found = dt.estimate(population, people, by=by, start=start, search=False)
    np.testing.assert_allclose(found.individual, exact(people), rtol=1e-9)


def test_a_population_tells_how_long_errors_remember_each_other(people):
    found = dt.estimate(population, people, by="focei")
    assert found.converged
    truth = {"level_pop": LEVEL, "sd": SD, "tau_error": TAU, "omega_level": OMEGA}
    away = {name: (found.estimate[name] - truth[name]) / found.standard_error[name] for name in truth}
    assert all(abs(z) < 2.0 for z in away.values()), away
    assert found.standard_error["tau_error"] < 0.3 * TAU


@pytest.fixture(scope="module")
def one():
    """One patient, measured 200 times, irregularly."""
    rng = np.random.default_rng(4)
    time = np.cumsum(rng.uniform(0.1, 1.0, size=200))
    return dt.Record(Inputs(), {"drug": dt.Series(time, drawn(rng, time, 0.0))})


@pytest.fixture(scope="module")
def fitted(one):
    return dt.fit(remembering, one, key=jax.random.key(0), starts=2)


def test_the_correlation_is_found_from_one_series_within_its_standard_error(one, fitted):
    assert not fitted.failed
    truth = {"level": LEVEL, "sd": SD, "tau_error": TAU}
    away = {name: (fitted.estimate[name][0] - truth[name]) / fitted.standard_error[name][0] for name in truth}
    assert all(abs(z) < 2.0 for z in away.values()), away
    # Who takes the errors for independent believes to know the level far better.
    independent = SD / np.linalg.norm(fall(one.observations["drug"].time))
    assert fitted.standard_error["level"][0] > 2.5 * independent


def by_quadrature(series):
    """Posterior mean and sd of the level and of log tau: the level in closed form, the others on a grid."""
    time, value = np.asarray(series.time), np.asarray(series.value)
    log_sd, log_tau = np.linspace(-1.2, 0.8, 41), np.linspace(-0.5, 4.0, 46)
    weight, level, variance = (np.zeros((46, 41)) for _ in range(3))
    for i, at in enumerate(log_tau):
        root = np.linalg.cholesky(correlation(time, np.exp(at)))
        f, y = (np.linalg.solve(root, each) for each in (fall(time), value - LEVEL * fall(time)))
        for j, log in enumerate(log_sd):
            s2 = np.exp(2 * log)
            variance[i, j] = 1.0 / (f @ f / s2 + 1.0 / 100.0)
            level[i, j] = variance[i, j] * (f @ y) / s2
            fit = (
                -len(y) * log
                - np.log(np.diag(root)).sum()
                - 0.5 * (y @ y / s2 - level[i, j] ** 2 / variance[i, j])
            )
            prior = -0.5 * (log - np.log(SD)) ** 2 - 0.5 * (at - np.log(TAU)) ** 2
            weight[i, j] = fit + prior + 0.5 * np.log(variance[i, j])
    weight = np.exp(weight - weight.max())
    weight /= weight.sum()
    mean, of_tau = np.sum(weight * level), np.sum(weight * log_tau[:, None])
    spread = np.sqrt(np.sum(weight * (variance + (level - mean) ** 2)))
    return LEVEL + mean, spread, of_tau, np.sqrt(np.sum(weight * (log_tau[:, None] - of_tau) ** 2))


def test_a_calibration_is_the_posterior_by_quadrature_and_forecasts_the_marginal_law(one):
    """Within what 1000 to 4000 weighed draws can tell: 10 % of a sd, 10 % of it in the means."""
    tree = dt.calibrate(remembering, one, key=jax.random.key(1), method=dt.Laplace())
    mean, spread, of_tau, spread_of_tau = by_quadrature(one.observations["drug"])
    level, log_tau = (tree["posterior"][name].values.ravel() for name in ("level", "tau_error"))
    log_tau = np.log(log_tau)
    assert abs(level.mean() - mean) < 0.1 * spread and level.std() == pytest.approx(spread, rel=0.1)
    assert abs(log_tau.mean() - of_tau) < 0.1 * spread_of_tau
    assert log_tau.std() == pytest.approx(spread_of_tau, rel=0.1)
    plan = dt.scenario(one, until=100.0, every=50.0)
    future = dt.forecast(remembering, tree, plan, key=jax.random.key(2))["predictions"]["drug"]
    left = future.values[:, 0, :].std(axis=0)
    sd = np.sqrt(np.mean(tree["posterior"]["sd"].values ** 2))
    np.testing.assert_allclose(left, np.hypot(sd, spread * fall(np.array([0.0, 50.0, 100.0]))), rtol=0.1)
