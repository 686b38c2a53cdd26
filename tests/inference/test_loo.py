"""Predictive densities left out, for a normal mean with known variance: they are normal densities."""

import json

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from dtwin_jax import plot
from dtwin_jax.inference.loo import leave_one_out

SD, PRIOR = 1.5, 4.0
Y = np.array([[0.3, -1.2, 2.2, 0.9], [1.8, 0.4, -0.5, np.nan]])


def posterior(y):
    """Mean and standard deviation of the level, whose prior is normal(0, PRIOR)."""
    precision = PRIOR**-2 + len(y) * SD**-2
    return y.sum() * SD**-2 / precision, precision**-0.5


@pytest.fixture(scope="module")
def tree():
    """Independent draws of the level of all, and the log-likelihood of each measurement."""
    rng = np.random.default_rng(0)
    mean, sd = posterior(Y[np.isfinite(Y)])
    level = mean + sd * rng.normal(size=(4, 5000))
    likelihood = stats.norm.logpdf(np.nan_to_num(Y), level[..., None, None], SD)
    likelihood = np.where(np.isfinite(Y), likelihood, 0.0)  # padding contributes nothing
    dims = ("chain", "draw", "patient", "y_point")
    groups = {
        "posterior": xr.Dataset({"level": (dims[:2], level)}),
        "log_likelihood": xr.Dataset({"y": (dims, likelihood)}, {"patient": ["a", "b"]}),
        "observed_data": xr.Dataset(
            {"y": (dims[2:], Y), "y_time": (dims[2:], np.tile(np.arange(4.0), (2, 1)))},
            {"patient": ["a", "b"]},
        ),
    }
    return xr.DataTree.from_dict(groups)


def test_densities_left_out_are_those_of_the_exact_posterior_without(tree):
    found, seen = leave_one_out(tree), Y[np.isfinite(Y)]
    exact = []
    for i, y in enumerate(seen):
        mean, sd = posterior(np.delete(seen, i))
        exact.append(stats.norm.logpdf(y, mean, np.hypot(sd, SD)))
    np.testing.assert_allclose(found["y_elpd"].values[np.isfinite(Y)], exact, atol=5e-3)
    assert found.attrs["elpd"] == pytest.approx(np.sum(exact), abs=0.02)
    assert found.attrs["se"] == pytest.approx(np.sqrt(7) * np.std(exact), rel=0.02)
    mean, sd = posterior(seen)
    with_it = stats.norm.logpdf(seen, mean, np.hypot(sd, SD)).sum()
    assert found.attrs["p"] == pytest.approx(with_it - np.sum(exact), abs=0.02)
    assert found.attrs["n"] == 7 and found.attrs["unreliable"] == 0


def test_padding_and_measurements_without_a_likelihood_are_no_result(tree):
    broken = tree.copy(deep=True)
    broken["log_likelihood"]["y"].values[0, 3, 0, 1] = -1e6
    broken["log_likelihood"]["y"].values[1, 7, 0, 2] = np.nan
    found = leave_one_out(broken)
    known = np.isfinite(found["y_elpd"].values)
    assert known.tolist() == [[True, False, False, True], [True, True, True, False]]
    assert np.array_equal(np.isfinite(found["y_pareto_k"].values), known)
    assert json.loads(found.attrs["failed"]) == ["a"] and found.attrs["n"] == 5
    broken["log_likelihood"]["y"].values[:] = np.nan
    nothing = leave_one_out(broken).attrs
    assert nothing["n"] == 0 and np.isnan(nothing["se"]) and json.loads(nothing["failed"]) == ["a", "b"]


def test_a_measurement_that_decides_is_unreliable(tree):
    """A value so far away that hardly a draw remains when it is left out."""
    far = tree.copy(deep=True)
    level = far["posterior"]["level"].values
    far["log_likelihood"]["y"].values[..., 0, 0] = stats.norm.logpdf(12.0, level, 0.08)
    found = leave_one_out(far)
    assert float(found["y_pareto_k"][0, 0]) > 0.7 and found.attrs["unreliable"] == 1
    fig = plot.influence(far, found, "y")
    assert "1 of 7 measurements cannot be told" in fig.layout.meta["notes"][0]


def test_influence_draws_every_measurement_that_is_known(tree):
    broken = tree.copy(deep=True)
    broken["log_likelihood"]["y"].values[0, 3, 0, 1] = -1e6
    found = leave_one_out(broken)
    fig = plot.influence(broken, found, "y")
    points = fig.data[0]
    known = np.isfinite(found["y_pareto_k"].values)
    np.testing.assert_array_equal(points.y, found["y_pareto_k"].values[known])
    np.testing.assert_array_equal(points.x, broken["observed_data"]["y_time"].values[known])
    assert fig.layout.meta["notes"] == ["Left out, without a likelihood in some draw: a."]


def test_few_draws_are_refused(tree):
    few = tree.copy(deep=True)
    few["log_likelihood"] = few["log_likelihood"].dataset.isel(draw=slice(0, 10))
    with pytest.raises(ValueError, match="40 draws are too few"):
        leave_one_out(few)
