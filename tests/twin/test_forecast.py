"""Forecasts against the exact predictive distribution of a posterior that is written by hand."""

import json

import jax
import numpy as np
import pytest
from handmade import result
from scipy import stats

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.record import Record, Series, scenario, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.inference.covariate import Covariate, linear
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.result import ResultError, save
from dtwin_jax.models import linear_health, one_compartment
from dtwin_jax.models.linear_health import Inputs as HealthInputs
from dtwin_jax.models.one_compartment import Inputs as DrugInputs
from dtwin_jax.twin.forecast import (
    forecast,
    forecast_new,
    load_forecast,
    observed_period,
    observed_times,
)

ALPHA, SD = -0.3, 0.2
KNOWN = {name: None for name in ("beta_E", "beta_B", "beta_C", "beta_S", "beta_G")} | {
    "alpha": ALPHA,
    "sd": SD,
}
PRIORS = KNOWN | {"gamma": normal(0.2, 0.5), "H0": normal(1.0, 1.0)}
SHAPE = (4, 1000)


def seen(times, **known):
    return Record(HealthInputs(), {"H": Series(times, np.zeros(len(times)))}, known)


COHORT = stack({"a": seen([0.5, 1.0, 2.0]), "b": seen([1.0, 3.0])})

# The posterior of (gamma, H0) of each patient: normal, correlated.
MEAN = np.array([[0.3, 1.2], [0.1, -0.5]])
ROOT = np.array([[[0.10, 0.0], [0.06, 0.15]], [[0.2, 0.0], [-0.1, 0.3]]])


@pytest.fixture(scope="module")
def tree():
    noise = np.random.default_rng(0).normal(size=(*SHAPE, 2, 2))
    drawn = MEAN + np.einsum("pij,cdpj->cdpi", ROOT, noise)
    return result(linear_health, COHORT, PRIORS, {"gamma": drawn[..., 0], "H0": drawn[..., 1]})


def predictions(made):
    return made["predictions"].to_dataset()


def test_forecast_equals_the_exact_predictive_quantiles(tree):
    plan = scenario(COHORT.record, until=6.0, every=1.5, T=1.0)
    made = predictions(forecast(linear_health, tree, plan, key=jax.random.key(0), samples=4000))
    t = np.arange(0.0, 6.1, 1.5)
    np.testing.assert_allclose(made["H_time"].values, np.stack([t, t]))
    # H(t) = H0 exp(alpha t) - gamma (exp(alpha t) - 1) / alpha, under a constant treatment of 1.
    row = np.stack([-np.expm1(ALPHA * t) / ALPHA, np.exp(ALPHA * t)], axis=-1)
    for i, patient in enumerate(COHORT.ids):
        variance = np.einsum("ti,ij,tj->t", row, ROOT[i] @ ROOT[i].T, row)
        for name, sd in (("H_expected", np.sqrt(variance)), ("H", np.sqrt(variance + SD**2))):
            drawn = made[name].sel(patient=patient).values
            for level in (0.05, 0.5, 0.95):
                z = stats.norm.ppf(level)
                # The standard error of a quantile of 4000 independent draws.
                error = np.sqrt(level * (1 - level) / 4000) / stats.norm.pdf(z) * sd
                exact = row @ MEAN[i] + z * sd
                assert np.all(abs(np.quantile(drawn, level, axis=0) - exact) < 4.5 * error), (name, level)


def test_forecast_uses_no_more_draws_than_asked_evenly_thinned(tree):
    made = predictions(
        forecast(linear_health, tree, observed_times(linear_health, tree), key=jax.random.key(0), samples=5)
    )
    assert made.sizes["sample"] == 5
    start = tree["posterior"]["H0"].values.reshape(4000, 2)[[0, 999, 1999, 2999, 3999], 0]
    gamma_free = made["H_expected"].sel(patient="a").values[:, 0] / np.exp(ALPHA * 0.5)
    np.testing.assert_allclose(gamma_free, start, rtol=1e-10)


def test_observed_period_runs_from_the_start_to_each_patients_last_measurement(tree):
    period = observed_period(linear_health, tree, points=5)
    np.testing.assert_allclose(
        period.observations["H"].time, [np.linspace(0, 2.0, 5), np.linspace(0, 3.0, 5)]
    )


def test_plan_for_another_number_of_patients_is_refused(tree):
    single = scenario(COHORT.at(0), until=2.0, every=1.0)
    with pytest.raises(ValueError, match=r"the plan is for 1 patient\(s\), the calibration had 2"):
        forecast(linear_health, tree, single, key=jax.random.key(0))
    three = scenario(COHORT.take([0, 1, 1]).record, until=2.0, every=1.0)
    with pytest.raises(ValueError, match="the plan is for 3"):
        forecast(linear_health, tree, three, key=jax.random.key(0))


def test_patients_get_their_own_doses():
    clearance, volume, amount = np.array([2.0, 4.0]), np.array([20.0, 25.0]), np.array([[100.0], [50.0]])
    empty = Record(DrugInputs(iv=Doses([0.0], [10.0])), {"concentration": Series([1.0], [1.0])})
    cohort = stack({"x": empty, "y": empty})
    priors = {"CL": lognormal(3.0, 0.5), "V": lognormal(20.0, 0.5), "ka": None, "sd": 0.1, "cv": 0.0}
    values = {"CL": np.broadcast_to(clearance, (1, 2, 2)), "V": np.broadcast_to(volume, (1, 2, 2))}
    tree = result(one_compartment, cohort, priors, values)
    start = np.array([[2.0], [4.0]])
    given = Doses(start, amount, np.zeros((2, 1)))
    plan = scenario(cohort.record, until=12.0, every=3.0, iv=given)
    made = forecast(one_compartment, tree, plan, key=jax.random.key(0))
    t = np.arange(0.0, 12.1, 3.0)
    exact = np.where(
        t > start, amount / volume[:, None] * np.exp(-(clearance / volume)[:, None] * (t - start)), 0.0
    )
    found = predictions(made)["concentration_expected"].values
    np.testing.assert_allclose(found, np.broadcast_to(exact, found.shape), rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(made["constant_data"]["iv_amount"].values, amount)
    assert predictions(made)["concentration"].attrs["units"] == "mg/L"
    assert made.attrs["time_unit"] == "h"


def quantiles_agree(sample, mean, sd):
    assert stats.kstest(sample, stats.norm(mean, sd).cdf).pvalue > 1e-3


def population_result(population, cohort, values):
    given = {name: np.broadcast_to(value, SHAPE) for name, value in values.items()}
    individual = dict.fromkeys(population.varying, np.zeros((*SHAPE, len(cohort))))
    return result(population, cohort, PRIORS, given | individual)


def test_new_patients_scatter_by_omega():
    population = Population(linear_health, ["H0"])
    tree = population_result(population, COHORT, {"H0_pop": 1.5, "omega_H0": 0.4, "gamma": 0.0})
    plan = scenario(COHORT.record, until=2.0, every=1.0)
    made = predictions(forecast_new(population, tree, plan, key=jax.random.key(0), samples=2000))
    for i in range(2):
        at_start, later = made["H_expected"].values[:, i, 0], made["H_expected"].values[:, i, 2]
        quantiles_agree(at_start, 1.5, 0.4)
        np.testing.assert_allclose(later, at_start * np.exp(2 * ALPHA), rtol=1e-10)
        quantiles_agree(made["H"].values[:, i, 0], 1.5, np.hypot(0.4, SD))
    assert abs(np.corrcoef(made["H_expected"].values[:, :, 0].T)[0, 1]) < 0.1


def test_new_patients_of_correlated_effects_keep_the_correlation():
    population = Population(linear_health, ["gamma", "H0"], correlation=2.0)
    shared = {"H0_pop": 1.0, "gamma_pop": 0.2, "omega_H0": 0.4, "omega_gamma": 0.3}
    tree = population_result(population, COHORT, shared)
    rho = np.array([[1.0, 0.7], [0.7, 1.0]])
    tree["posterior"] = (
        tree["posterior"]
        .to_dataset()
        .assign(correlation=(("chain", "draw", "effect", "effect_bis"), np.broadcast_to(rho, (*SHAPE, 2, 2))))
    )
    plan = scenario(COHORT.record, until=2.0, every=1.0, T=1.0)
    made = predictions(forecast_new(population, tree, plan, key=jax.random.key(0), samples=2000))
    filled = -np.expm1(ALPHA) / ALPHA
    for i in range(2):
        start, later = made["H_expected"].values[:, i, 0], made["H_expected"].values[:, i, 1]
        gamma = (start * np.exp(ALPHA) - later) / -filled
        quantiles_agree(start, 1.0, 0.4)
        quantiles_agree(gamma, 0.2, 0.3)
        assert np.corrcoef(start, gamma)[0, 1] == pytest.approx(0.7, abs=0.05)


def test_new_patients_are_moved_by_their_covariates():
    cohort = stack({"light": seen([1.0], weight=50.0), "heavy": seen([1.0], weight=90.0)})
    effect = Covariate("H0", "weight", "kg", 70.0, normal(0.0, 0.1), linear)
    population = Population(linear_health, ["H0"], (effect,))
    shared = {"H0_pop": 1.0, "omega_H0": 0.1, "gamma": 0.0, "beta_H0_weight": 0.02}
    tree = population_result(population, cohort, shared)
    plan = scenario(cohort.record, until=1.0, every=1.0)
    made = predictions(forecast_new(population, tree, plan, key=jax.random.key(0), samples=2000))
    for i, weight in enumerate((50.0, 90.0)):
        quantiles_agree(made["H_expected"].values[:, i, 0], 1.0 + 0.02 * (weight - 70.0), 0.1)


def test_new_patients_need_a_population(tree):
    with pytest.raises(ValueError, match="new patients need a Population"):
        forecast_new(linear_health, tree, observed_times(linear_health, tree), key=jax.random.key(0))


def test_patient_who_cannot_be_predicted_is_named():
    values = {"gamma": np.zeros((1, 2, 2)), "H0": np.array([[[1.0, 1.0], [1.0, np.inf]]])}
    tree = result(linear_health, COHORT, PRIORS, values)
    made = forecast(linear_health, tree, observed_times(linear_health, tree), key=jax.random.key(0))
    assert json.loads(made.attrs["failed"]) == ["b"]


def test_saved_forecast_comes_back_and_a_calibration_is_no_forecast(tree, tmp_path):
    plan = observed_times(linear_health, tree)
    made = forecast(linear_health, tree, plan, key=jax.random.key(0), samples=3)
    back = load_forecast(save(made, tmp_path / "forecast.nc"))
    assert predictions(back).equals(predictions(made))
    with pytest.raises(ResultError, match="found no predictions"):
        load_forecast(save(tree, tmp_path / "result.nc"))
