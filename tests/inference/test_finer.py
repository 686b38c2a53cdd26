"""Estimates that rest on the tolerance of a solver are found out.

Source of truth: a decay by Euler's steps of one size, of which both the numerical solution and the exact one
are closed forms: 10 (1 - k h)^(t / h) and 10 exp(-k t); and the estimate of the same data by smaller steps.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from lines import Inputs

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.types import Scalar
from dtwin_jax.inference.doubts import EstimationWarning
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.population import Population

TIME = np.array([1.0, 2.0, 4.0, 8.0])


class Rate(eqx.Module):
    k: Scalar = param(0.3, "/h", lognormal(0.3, log_sd=1.0))
    sd: Scalar = param(0.2, "1", lognormal(0.2, log_sd=1.0))


@dataclass(frozen=True)
class Euler:
    """10 exp(-k t) by steps of length `step`."""

    step: float
    name: str = "euler"

    def params(self) -> Any:
        return Rate()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        time = record.observations["y"].time
        value = 10.0 * jnp.exp(time / self.step * jnp.log1p(-p.k * self.step))
        return {"y": dist.Normal(value, p.sd)}

    def tightened(self, factor: float, record: Record) -> "Euler":
        return replace(self, step=factor * self.step)


def patients():
    rng = np.random.default_rng(0)
    k = 0.3 * np.exp(0.3 * rng.normal(size=(12, 1)))
    rows = 10.0 * np.exp(-k * TIME) + 0.2 * rng.normal(size=(12, 4))
    return stack({str(i): Record(Inputs(), {"y": Series(TIME, row)}) for i, row in enumerate(rows)})


PATIENTS = patients()


def found(step, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimationWarning)
        return estimate(Population(Euler(step), ("k",)), PATIENTS, **more)


@pytest.fixture(scope="module")
def loose():
    return found(0.2)


def test_what_a_smaller_tolerance_changes_is_what_an_estimate_by_it_says(loose):
    other = found(0.1, tighter=None)
    assert other.finer is None and loose.finer.factor == 0.5
    at = found(0.1, tighter=None, start=dict(loose.estimate), search=False)
    assert loose.finer.objective == pytest.approx(at.objective - loose.objective, abs=1e-6)
    moved = (other.vector - loose.vector) / [*loose.standard_error.values()]
    # A step of Newton's is right to first order.
    np.testing.assert_allclose([*loose.finer.moved.values()], moved, rtol=0.2, atol=0.03)
    wider = np.array([*at.standard_error.values()]) / [*loose.standard_error.values()] - 1.0
    np.testing.assert_allclose([*loose.finer.errors.values()], wider, atol=1e-4)


def test_a_loose_tolerance_is_warned_of(loose):
    (said,) = loose.warnings
    assert said.startswith("at 0.5 of the solver's tolerances change ")
    assert "k_pop by " in said and said.endswith("make rtol and atol smaller")
    assert "solver: at 0.5 of its tolerances" in str(loose) and f"! {said}" in str(loose)


def test_a_tight_one_is_not():
    told = found(1e-4)
    assert told.warnings == () and 0.0 < max(abs(each) for each in told.finer.moved.values()) < 0.01


@dataclass(frozen=True)
class Exact(Euler):
    """Nothing to compare."""

    def tightened(self, factor: float, record: Record) -> None:
        return None


def test_a_model_without_a_solver_says_so():
    told = estimate(Population(Exact(1e-6), ("k",)), PATIENTS)
    assert told.finer.factor == 1.0 and told.warnings == ()
    assert "there is no tolerance to compare" in str(told)


@dataclass(frozen=True)
class Breaking(Euler):
    """No smaller step can be taken."""

    def tightened(self, factor: float, record: Record) -> Any:
        return replace(self, step=float("nan"))


def test_what_cannot_be_solved_more_closely_is_told():
    with pytest.warns(EstimationWarning, match="0.5 of the solver's tolerances the model cannot be solved"):
        estimate(Population(Breaking(1e-3), ("k",)), PATIENTS)


def test_factors_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"tighter: found 2\.0"):
        found(0.5, tighter=2.0)
