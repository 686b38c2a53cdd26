"""Fits of single patients against R's nls, SciPy's optimum and curvatures by finite differences."""

import csv
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from lines import Inputs as NoInputs
from lines import Line, line
from runaway import measured, runaway
from scipy import optimize, stats

from dtwin_jax.core.prior import halfnormal, lognormal, normal, uniform
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.inference.fit import fit
from dtwin_jax.inference.population import Population
from dtwin_jax.io.table import read_table
from dtwin_jax.models import one_compartment

FLAT = {
    "ka": lognormal(1.5, log_sd=20.0),
    "CL": lognormal(3.0, log_sd=20.0),
    "V": lognormal(30.0, log_sd=20.0),
    "sd": lognormal(0.7, log_sd=20.0),
    "cv": 0.0,
}
METHODS = ("bfgs", "gauss_newton")


@pytest.fixture(scope="module")
def nls(shared):
    """R's nls fits of SSfol to each subject alone: subject -> row; doses there are in mg/kg."""
    text = shared("reference/models/theophylline_individual_nls_fits.csv").read_text()
    return {
        row["Subject"]: {name: float(value) for name, value in row.items()}
        for row in csv.DictReader(text.splitlines())
    }


@pytest.fixture(scope="module")
def subjects():
    path = resources.files("dtwin_jax") / "data" / "theoph.csv"
    records = read_table(path, one_compartment, covariates={"weight": "kg"})
    return stack({name: records[name] for name in ("6", "7", "8", "11")})


@pytest.fixture(scope="module")
def fits(subjects):
    # One start, the declared values: absorption and elimination may be exchanged with no change of fit.
    return {
        method: fit(one_compartment, subjects, key=jax.random.key(0), priors=FLAT, starts=1, method=method)
        for method in METHODS
    }


@pytest.mark.parametrize("method", METHODS)
def test_estimates_under_flat_priors_equal_those_of_nls(fits, nls, subjects, method):
    found = fits[method]
    assert found.failed == ()
    weight = subjects.record.known["weight"]
    for i, subject in enumerate(found.ids):
        row, n = nls[subject], int(subjects.record.observations["concentration"].mask[i].sum())
        clearance = np.exp(row["lCl"]) * weight[i]
        expected = {
            "CL": clearance,
            "V": clearance / np.exp(row["lKe"]),
            "ka": np.exp(row["lKa"]),
            "sd": np.sqrt(row["rss"] / n),
        }
        for name, value in expected.items():
            assert found.estimate[name][i] == pytest.approx(value, rel=2e-3), (subject, name)


def test_methods_agree(fits):
    one, other = (fits[method] for method in METHODS)
    for name in one.names:
        np.testing.assert_allclose(one.estimate[name], other.estimate[name], rtol=1e-4)
        np.testing.assert_allclose(one.standard_error[name], other.standard_error[name], rtol=1e-3)
    np.testing.assert_allclose(one.log_posterior, other.log_posterior, atol=1e-6)


def test_parameters_hold_estimates_and_what_is_known(fits):
    found = fits["bfgs"]
    np.testing.assert_array_equal(found.params.CL, found.estimate["CL"])
    np.testing.assert_array_equal(found.params.cv, 0.0)


def minus_log_posterior(u, names, time, value, dose):
    """By hand, in the logs of the parameters; the flat priors have no curvature to speak of."""
    p = dict(zip(names, np.exp(u), strict=True))
    k = p["CL"] / p["V"]
    y = dose * p["ka"] / p["V"] / (p["ka"] - k) * (np.exp(-k * time) - np.exp(-p["ka"] * time))
    return -np.sum(stats.norm.logpdf(value, y, p["sd"]))


def finite_difference_hessian(f, u, step=1e-4):
    moves = step * np.eye(len(u))

    def second(a, b):
        return (f(u + a + b) - f(u + a - b) - f(u - a + b) + f(u - a - b)) / (4 * step**2)

    return np.array([[second(a, b) for b in moves] for a in moves])


def test_standard_errors_are_those_of_the_curvature(fits, subjects):
    found, series = fits["gauss_newton"], subjects.record.observations["concentration"]
    for i in range(len(subjects)):
        seen = series.mask[i]
        data = series.time[i][seen], series.value[i][seen], subjects.record.inputs.oral.amount[i].sum()
        u = np.log([found.estimate[name][i] for name in found.names])
        curvature = finite_difference_hessian(lambda u, d=data: minus_log_posterior(u, found.names, *d), u)
        covariance = np.linalg.inv(curvature + np.eye(len(u)) / 20.0**2)
        np.testing.assert_allclose(found.covariance[i], covariance, rtol=1e-3, atol=1e-7)
        for j, name in enumerate(found.names):
            expected = found.estimate[name][i] * np.sqrt(covariance[j, j])
            assert found.standard_error[name][i] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_estimate_from_censored_data_is_the_optimum_of_scipy(method):
    seen, low, high = np.array([0.3, 1.1, 0.8]), -0.2, 1.5
    series = Series(np.arange(6.0), np.append(seen, [low, low, high]), censor=[0, 0, 0, -1, -1, 1])
    priors = {"level": normal(0.0, 2.0), "slope": 0.0, "sd": 0.7}
    record = Record(NoInputs(), {"y": series})
    found = fit(line, record, key=jax.random.key(0), priors=priors, starts=2, method=method)

    def energy(mean):
        tails = 2 * stats.norm.logcdf(low, mean, 0.7) + stats.norm.logsf(high, mean, 0.7)
        return -stats.norm.logpdf(mean, 0, 2) - np.sum(stats.norm.logpdf(seen, mean, 0.7)) - tails

    exact = optimize.minimize_scalar(energy, bracket=(-1, 2), tol=1e-10)
    assert found.estimate["level"][0] == pytest.approx(exact.x, abs=1e-5)
    assert found.log_posterior[0] == pytest.approx(-exact.fun, abs=1e-8)
    curvature = (energy(exact.x + 1e-3) - 2 * exact.fun + energy(exact.x - 1e-3)) / 1e-6
    assert found.standard_error["level"][0] == pytest.approx(curvature**-0.5, rel=1e-4)


def test_patient_who_cannot_be_solved_is_failed_and_the_other_untouched():
    records = {"well": measured([0.2, 1.0], [0.6, 0.9]), "ending": measured([10.0, 20.0], [1.0, 1.0])}
    found = fit(runaway, stack(records), key=jax.random.key(0), starts=1)
    assert found.failed == ("ending",)
    assert found.explained.tolist() == [True, False]
    twice = stack({"well": records["well"], "again": records["well"]})
    untouched = fit(runaway, twice, key=jax.random.key(0), starts=1)
    for name in found.names:
        assert found.estimate[name][0] == pytest.approx(untouched.estimate[name][0], rel=1e-8)
        assert np.isfinite(found.standard_error[name][0])


RECORD = Record(NoInputs(), {"y": Series([0.0, 1.0], [1.0, 1.4])})


@dataclass(frozen=True)
class HeavyTails(Line):
    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        return {"y": dist.StudentT(4.0, p.level + p.slope * record.observations["y"].time, p.sd)}


@pytest.mark.parametrize("prior", [uniform(0.01, 1.0), normal(0.3, 0.1, low=0.0), halfnormal(0.5)])
def test_methods_agree_under_any_prior_and_noise(prior):
    series = Series(np.arange(6.0), [1.0, 1.4, 2.2, 2.4, 9.0, 3.6])
    one, other = (
        fit(
            HeavyTails(),
            Record(NoInputs(), {"y": series}),
            key=jax.random.key(0),
            priors={"sd": prior},
            method=m,
        )
        for m in METHODS
    )
    for name in one.names:
        np.testing.assert_allclose(one.estimate[name], other.estimate[name], rtol=1e-4)


def test_population_is_not_fitted():
    with pytest.raises(ValueError, match="for a Population use calibrate"):
        fit(Population(line, ["slope"]), RECORD, key=jax.random.key(0))
