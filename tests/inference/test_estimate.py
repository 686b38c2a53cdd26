"""Marginal likelihoods and maximum likelihood estimates against published and exact ones.

Sources of truth. Wang 2007, doi 10.1007/s10928-007-9060-6: ten subjects, ten and twenty values of NONMEM's
objective at given parameters (as nlmixr2's tests state them, to 1e-3); the exact values are by numerical
integration in a separate program. Theophylline: nlmixr2 7.0.1, FOCEI, and the exact maximum by quadrature.
"""

from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from lines import Inputs as NoInputs

from dtwin_jax.core.prior import lognormal, uniform
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.types import Scalar
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.population import Population
from dtwin_jax.io.table import read_table
from dtwin_jax.models import one_compartment

# Wang 2007, table 1: measurements at 0 and 1.
WANG = (
    (10.68, 3.6837), (10.402, 6.454), (9.8814, 5.8565), (9.3408, 5.6209), (10.082, 6.7583),
    (9.8938, 6.5049), (9.8908, 6.9557), (10.234, 6.4488), (9.9882, 6.7112), (9.6736, 6.6402),
)  # fmt: skip
OBJECTIVES = {
    ("proportional", "fo"): (39.213, 1e-3),
    ("proportional", "foce"): (39.207, 1e-3),
    ("proportional", "focei"): (39.458, 1e-3),
    ("proportional", "quadrature"): (39.354803462611216, 1e-6),
    ("additive", "fo"): (0.026, 1e-3),
    ("additive", "foce"): (-2.059, 1e-3),
    ("additive", "focei"): (-2.059, 1e-3),
    ("additive", "quadrature"): (-1.989614261202611, 1e-6),
}


class Rate(eqx.Module):
    k: Scalar = param(0.5, "/h", lognormal(0.5, log_sd=1.0))


@dataclass(frozen=True)
class Decay:
    """10 exp(-k t), with a variance of 0.1, of the square of it or of 1."""

    name: str = "proportional"

    def params(self) -> Any:
        return Rate()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        value = 10.0 * jnp.exp(-p.k * record.observations["y"].time)
        sd = jnp.sqrt(0.1) * (value if self.name == "proportional" else jnp.ones_like(value))
        return {"y": dist.Normal(value, sd)}


@pytest.fixture(scope="module")
def subjects():
    return stack(
        {str(i): Record(NoInputs(), {"y": Series([0.0, 1.0], row)}) for i, row in enumerate(WANG, start=1)}
    )


@pytest.mark.parametrize(("error", "by"), OBJECTIVES)
def test_objective_is_the_published_one(subjects, error, by):
    population = Population(Decay(error), ("k",))
    start = {"k_pop": 0.5, "omega_k": 0.2}
    found = estimate(population, subjects, by=by, nodes=25, start=start, search=False)
    value, within = OBJECTIVES[error, by]
    assert found.objective == pytest.approx(value, abs=within)
    assert found.minus_two_log_likelihood == pytest.approx(found.objective + 20 * np.log(2 * np.pi))
    assert found.individual.sum() == pytest.approx(found.minus_two_log_likelihood)


PRIORS = {name: lognormal(1.0, log_sd=1.0) for name in ("ka", "CL", "V", "sd")} | {"cv": 0.0}
POPULATION = Population(one_compartment, ("ka", "CL", "V"))
# The exact maximum, by quadrature in a separate program.
EXACT = {
    "ka_pop": 1.5829163896002525,
    "CL_pop": 2.7501788089457793,
    "V_pop": 31.621916495289053,
    "sd": 0.6959185320078098,
    "omega_ka": 0.6363485314966357,
    "omega_CL": 0.26517010933328466,
    "omega_V": 0.13595917626935441,
}


@pytest.fixture(scope="module")
def people():
    path = resources.files("dtwin_jax") / "data" / "theoph.csv"
    return stack(read_table(path, one_compartment, covariates={"weight": "kg"}))


@pytest.fixture(scope="module")
def focei(people):
    """From the declared values, which are far off."""
    return estimate(POPULATION, people, priors=PRIORS)


def test_estimates_of_theophylline_are_those_of_nlmixr2(focei):
    assert focei.converged and focei.failed == ()
    assert focei.objective == pytest.approx(116.8038, abs=0.01)
    told = focei.estimate
    assert np.log(told["ka_pop"]) == pytest.approx(0.46445, abs=0.003)
    assert np.log(told["CL_pop"]) == pytest.approx(1.01205, abs=0.001)
    assert np.log(told["V_pop"]) == pytest.approx(3.45997, abs=0.001)
    assert told["sd"] == pytest.approx(0.69384, rel=0.002)
    for name, variance in (("ka", 0.40463), ("CL", 0.06880), ("V", 0.01922)):
        assert told[f"omega_{name}"] ** 2 == pytest.approx(variance, rel=0.01)


def test_standard_errors_of_theophylline_are_those_of_the_exact_likelihood(focei):
    for name, error in (("ka_pop", 0.1929), ("CL_pop", 0.0843), ("V_pop", 0.0462), ("sd", 0.0715)):
        assert focei.standard_error[name] == pytest.approx(error, rel=0.02)
    assert 1.0 < focei.condition_number < 10.0
    assert all(-0.1 < shrunk < 0.2 for shrunk in focei.shrinkage.values())


class Oral(eqx.Module):
    ka: Scalar = param(1.0, "/h", lognormal(1.0, log_sd=1.0))
    CL: Scalar = param(1.0, "L/h", lognormal(1.0, log_sd=1.0))
    V: Scalar = param(1.0, "L", lognormal(1.0, log_sd=1.0))
    sd: Scalar = param(1.0, "mg/L", lognormal(1.0, log_sd=1.0))


@dataclass(frozen=True)
class OneDose:
    """The closed form after one dose by mouth at 0, of which the third derivatives compile fast."""

    name: str = "one_dose"

    def params(self) -> Any:
        return Oral()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        time, dose = record.observations["concentration"].time, record.inputs.oral.amount[0]
        k = p.CL / p.V
        mean = dose / p.V * p.ka / (p.ka - k) * (jnp.exp(-k * time) - jnp.exp(-p.ka * time))
        return {"concentration": dist.Normal(mean, p.sd)}


def test_quadrature_converges_with_its_nodes(people):
    alone = replace(people, record=replace(people.record, known={}))

    def found(by, nodes):
        population = Population(OneDose(), POPULATION.vary)
        return estimate(population, alone, by=by, nodes=nodes, start=EXACT, search=False).objective

    exact = 118.10181939017798
    assert found("laplace", 1) + 132 * np.log(2 * np.pi) == pytest.approx(361.1053119137122, abs=1e-3)
    assert found("quadrature", 3) == pytest.approx(exact, abs=0.2)
    assert found("quadrature", 9) == pytest.approx(exact, abs=2e-3)


@dataclass(frozen=True)
class Logarithmic(Decay):
    """The same with log-normal errors."""

    name: str = "logarithmic"

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        return {"y": dist.LogNormal(jnp.log(10.0) - p.k * record.observations["y"].time, jnp.sqrt(0.1))}


@pytest.mark.parametrize("by", ["fo", "foce", "focei", "quadrature"])
def test_log_normal_errors_are_those_of_the_logarithms(subjects, by):
    """The effect is linear on the log scale if the rate is: Wang's exact value, but for the logs' stretch."""
    start = {"k_pop": 0.5, "omega_k": 0.2}
    found = estimate(Population(Logarithmic(), ("k",)), subjects, by=by, nodes=25, start=start, search=False)
    stretch = 2.0 * np.sum(np.log(WANG))
    assert found.objective - stretch == pytest.approx(
        -42.06819506892809, abs=1e-6 if by == "quadrature" else 0.15
    )


def test_fo_seeks_the_effects_afterwards(subjects):
    start = {"k_pop": 0.5, "omega_k": 0.2}
    fo, focei = (
        estimate(Population(Decay(), ("k",)), subjects, by=by, start=start, search=False)
        for by in ("fo", "focei")
    )
    np.testing.assert_allclose(fo.eta, focei.eta, atol=1e-6)


def test_names_and_errors_that_do_not_fit_are_refused(people, subjects):
    with pytest.raises(ValueError, match=r"no estimated number 'CL'; there are .*CL_pop"):
        estimate(POPULATION, people, priors=PRIORS, start={"CL": 3.0})
    with pytest.raises(ValueError, match="'ka' varies between patients but is known"):
        estimate(POPULATION, people, priors=PRIORS | {"ka": 1.0})
    with pytest.raises(ValueError, match=r"start: omega_ka is -0\.2, expected a positive number"):
        estimate(POPULATION, people, priors=PRIORS, start={"omega_ka": -0.2})
    with pytest.raises(ValueError, match="k_pop begins outside of what its prior allows"):
        estimate(Population(Decay(), ("k",)), subjects, priors={"k": uniform(2.0, 5.0)})
    series = Series([0.0, 1.0], [10.0, 6.0], censor=[0, -1])
    below = stack({"1": Record(NoInputs(), {"y": series})})
    with pytest.raises(ValueError, match="channel 'y' has measurements beyond a limit, which foce cannot"):
        estimate(Population(Decay(), ("k",)), below, by="foce")
