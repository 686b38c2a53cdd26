"""Profiles against exact intervals of linear models and against SciPy's profile of a nonlinear one."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import optimize, stats

from dtwin_jax.core.prior import lognormal, normal, uniform
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.types import Scalar
from dtwin_jax.twin import profile as module
from dtwin_jax.twin.profile import Refit, profile

KEY = jax.random.key(0)
TIME = np.array([0.0, 1.0, 2.5, 4.0, 6.0])


class Nothing(eqx.Module):
    pass


class Coefficients(eqx.Module):
    level: Scalar = param(1.0, "1", normal(1.0, 2.0))
    slope: Scalar = param(0.5, "/h", normal(0.5, 3.0))


@dataclass(frozen=True)
class Line:
    name: str = "line"

    def params(self) -> Any:
        return Coefficients()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        return {"y": dist.Normal(p.level + p.slope * record.observations["y"].time, 0.3)}


class Decaying(eqx.Module):
    start: Scalar = param(10.0, "mg/L", lognormal(10.0, log_sd=2.0))
    rate: Scalar = param(0.5, "/h", lognormal(0.5, log_sd=2.0))
    rest: Scalar = param(2.0, "mg/L", lognormal(2.0, log_sd=2.0))


@dataclass(frozen=True)
class Decay:
    """y(t) is normal, sd 1, about rest + start exp(-rate t); lost where the rate is above a limit."""

    name: str = "decay"
    limit: float = np.inf

    def params(self) -> Any:
        return Decaying()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        mean = p.rest + p.start * jnp.exp(-p.rate * record.observations["y"].time)
        return {"y": dist.Normal(jnp.where(p.rate < self.limit, mean, jnp.nan), 1.0)}


def measured(value, time=TIME):
    return Record(Nothing(), {"y": Series(time, value)})


VALUE = np.array([1.2, 1.3, 2.5, 2.9, 4.4])
X = np.stack([np.ones_like(TIME), TIME], axis=1)


@pytest.mark.parametrize("objective", ["likelihood", "posterior"])
def test_interval_of_a_linear_model_is_exact(objective):
    precision, right = X.T @ X / 0.09, X.T @ VALUE / 0.09
    if objective == "posterior":
        precision += np.diag([2.0**-2, 3.0**-2])
        right += np.array([1.0 / 4.0, 0.5 / 9.0])
    mean, covariance = np.linalg.solve(precision, right), np.linalg.inv(precision)
    found = profile(Line(), measured(VALUE), "slope", key=KEY, objective=objective)
    sd = np.sqrt(covariance[1, 1])
    assert found.estimate == pytest.approx(mean[1], abs=1e-6)
    np.testing.assert_allclose(found.interval, mean[1] + sd * stats.norm.ppf([0.025, 0.975]), atol=1e-5)
    assert found.identifiable and found.remarks == ("", "")
    np.testing.assert_allclose(found.fall, 0.5 * ((found.value - mean[1]) / sd) ** 2, atol=1e-6)
    line = mean[0] + covariance[0, 1] / covariance[1, 1] * (found.value - mean[1])
    np.testing.assert_allclose(found.others["level"], line, atol=1e-4)
    assert np.all(np.diff(found.value) > 0)


def test_ends_are_interpolated_between_the_values_of_a_grid():
    covariance = np.linalg.inv(X.T @ X / 0.09)
    sd, mean = np.sqrt(covariance[1, 1]), (covariance @ X.T @ VALUE / 0.09)[1]
    found = profile(Line(), measured(VALUE), "slope", key=KEY, grid=mean + sd * np.array([3, -3, -1.0, 1]))
    # The root of the fall is linear here, so interpolation is exact however coarse the grid.
    np.testing.assert_allclose(found.interval, mean + sd * stats.norm.ppf([0.025, 0.975]), atol=1e-5)
    np.testing.assert_allclose(found.value, mean + sd * np.array([-3, -1, 0, 1, 3]), atol=1e-6)
    short = profile(Line(), measured(VALUE), "slope", key=KEY, grid=[mean - 3 * sd, mean + sd])
    assert short.interval[1] == np.inf and not short.identifiable
    assert short.remarks[0] == "" and short.remarks[1].startswith("the log falls by 0.5 only")


def scipy_profile(value, time, rate):
    """Least sum of squares over the logs of the other two."""

    def residuals(u):
        return value - np.exp(u[1]) - np.exp(u[0]) * np.exp(-rate * time)

    starts = (np.log([s, r]) for s in (3.0, 10.0, 30.0) for r in (0.1, 2.0))
    return min(optimize.least_squares(residuals, s, xtol=1e-14, ftol=1e-14, gtol=1e-12).cost for s in starts)


EARLY = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
FALLING = np.array([12.3, 8.4, 6.3, 4.0, 4.1])


def test_interval_of_a_nonlinear_model_is_lopsided_as_scipys_is():
    found = profile(Decay(), measured(FALLING, EARLY), "rate", key=KEY)
    best = optimize.minimize_scalar(lambda r: scipy_profile(FALLING, EARLY, r), bracket=(0.2, 0.6), tol=1e-9)

    def above(rate):
        return scipy_profile(FALLING, EARLY, rate) - best.fun - stats.chi2.ppf(0.95, 1) / 2

    high = optimize.brentq(above, best.x, 3.0)
    low = optimize.brentq(above, 0.01, best.x)
    assert found.estimate == pytest.approx(best.x, rel=1e-3)
    np.testing.assert_allclose(found.interval, [low, high], rtol=2e-3)
    assert high - best.x > 1.3 * (best.x - low)
    for value, fall in zip(found.value, found.fall, strict=True):
        assert fall == pytest.approx(scipy_profile(FALLING, EARLY, value) - best.fun, abs=1e-5)


def test_a_parameter_without_data_of_its_own_is_open_on_a_side():
    # All measured when the decay is over, or before it began: the rate has a floor and no ceiling.
    found = profile(Decay(), measured([12.1, 2.1, 1.8, 2.2], np.array([0.0, 5.0, 6.0, 7.0])), "rate", key=KEY)
    assert found.interval[1] == np.inf and np.isfinite(found.interval[0])
    assert not found.identifiable
    assert found.remarks[0] == "" and found.remarks[1].startswith("the log falls by")


def test_values_that_explain_nothing_leave_the_side_open_and_are_told():
    found = profile(Decay(limit=0.8), measured(FALLING, EARLY), "rate", key=KEY)
    whole = profile(Decay(), measured(FALLING, EARLY), "rate", key=KEY)
    assert found.interval[0] == pytest.approx(whole.interval[0], rel=1e-4)
    assert whole.interval[1] > 0.8
    assert found.interval[1] == np.inf
    assert found.remarks[1].startswith("nothing explains the data at")
    assert np.all(found.failed >= 0.8) and found.failed.size
    assert np.all(np.isnan(found.fall[found.code == Refit.NOT_EXPLAINED]))


def test_all_refits_of_all_parameters_run_one_program():
    module._climb.clear_cache()
    for name in ("start", "rest"):
        profile(Decay(), measured(FALLING, EARLY), name, key=KEY)
    assert module._climb._cache_size() == 1


def test_a_single_parameter_has_the_interval_of_its_normal():
    found = profile(Line(), measured(VALUE), "level", key=KEY, priors={"slope": 0.5})
    mean, sd = np.mean(VALUE - 0.5 * TIME), 0.3 / np.sqrt(5)
    np.testing.assert_allclose(found.interval, mean + sd * stats.norm.ppf([0.025, 0.975]), atol=1e-6)
    assert found.others == {}


def test_a_name_a_grid_and_an_objective_that_do_not_fit_are_refused():
    record = measured(VALUE)
    with pytest.raises(ValueError, match=r"'level' is not estimated; estimated are \['slope'\]"):
        profile(Line(), record, "level", key=KEY, priors={"level": 1.0})
    with pytest.raises(ValueError, match=r"grid: 3\.0 is not a value that 'slope' can have"):
        profile(Line(), record, "slope", key=KEY, priors={"slope": uniform(0.0, 2.0)}, grid=[1.0, 3.0])
    with pytest.raises(ValueError, match="found 'prior'"):
        profile(Line(), record, "slope", key=KEY, objective="prior")
    for level in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match=f"level: expected a share.*found {level}"):
            profile(Line(), record, "slope", key=KEY, level=level)
    with pytest.raises(ValueError, match="decay explains the measurements from no start"):
        profile(Decay(limit=0.0), measured(FALLING, EARLY), "rate", key=KEY)
