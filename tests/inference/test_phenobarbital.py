"""Phenobarbital in newborns against NONMEM, objective by objective and effect by effect.

Source of truth: NONMEM 7.5.1, first-order conditional estimation with interaction, the run `pheno` that the
package pharmpy-core 2.1.1 ships (files pheno.ext, .phi, .lst): one compartment, clearance and volume
proportional to weight, volume times 1 + theta where the Apgar score is below 5, proportional errors. Data:
Grasela & Donn 1985, Dev Pharmacol Ther 8:374, 59 infants, 155 concentrations.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.prior import normal
from dtwin_jax.core.record import stack
from dtwin_jax.inference.covariate import Covariate
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.population import Population
from dtwin_jax.io.table import read_table
from dtwin_jax.models import one_compartment

OBJECTIVE = 586.27605628520962
THETA = (4.69555e-3, 9.84258e-1, 1.58920e-1)
OMEGA, SIGMA = (2.93508e-2, 2.79060e-2), 1.32410e-2
THETA_SE = (2.09967e-4, 2.68946e-2, 8.37555e-2)
OMEGA_SE, SIGMA_SE = (1.34156e-2, 7.47591e-3), 2.27991e-3
# Effects on clearance and volume, and share of the objective, of infants 1 to 8.
INFANTS = (
    (-4.38608e-2, 5.43031e-3, 5.9473520224225034), (-1.66321e-1, -1.31833e-1, 12.970590911348660),
    (9.59341e-2, 1.30868e-1, 9.9823422128179153), (-9.15400e-3, 1.73881e-2, 8.4570910686376450),
    (1.02019e-1, 2.83500e-1, 10.839437253245407), (-1.94174e-2, 9.98391e-2, 13.257229728612430),
    (4.59455e-2, 5.90723e-2, 8.0983384542415475), (-2.42701e-2, -1.89351e-1, 11.538621397682160),
)  # fmt: skip
# Of all infants: the mean of the effects, and their shrinkage in per cent.
MEAN, SHRINKAGE = (1.6884e-3, -1.1976e-3), (47.580, 13.581)


def low(coefficient, value, reference):
    """Multiplies by 1 + coefficient below the reference."""
    return jnp.log1p(coefficient) * (value < reference)


COVARIATES = (
    Covariate("CL", "weight", "kg", 1.0, 1.0),
    Covariate("V", "weight", "kg", 1.0, 1.0),
    Covariate("V", "apgar", "1", 5.0, normal(0.0, 1.0, low=-0.99), low),
)
POPULATION = Population(one_compartment, ("CL", "V"), COVARIATES)
PRIORS = {"ka": None, "sd": 0.0}
START = dict(zip(("CL_pop", "V_pop", "beta_V_apgar"), THETA, strict=True)) | {
    "cv": np.sqrt(SIGMA),
    "omega_CL": np.sqrt(OMEGA[0]),
    "omega_V": np.sqrt(OMEGA[1]),
}


@pytest.fixture(scope="module")
def infants(request):
    shared = request.getfixturevalue("shared")
    names = {"time_h": "time", "dose_mg": "iv", "conc_mg_per_L": "concentration"}
    names |= {"weight_kg": "weight", "apgar_ind": None}
    units = {"iv": "mg", "concentration": "mg/L"}
    path = shared("data/pk/phenobarb.csv")
    return stack(
        read_table(
            path, one_compartment, rename=names, units=units, covariates={"weight": "kg", "apgar": "1"}
        )
    )


@pytest.fixture(scope="module")
def there(infants):
    """At NONMEM's estimates."""
    return estimate(POPULATION, infants, priors=PRIORS, start=START, search=False)


def test_objective_at_the_estimates_is_that_of_nonmem(there):
    assert there.failed == ()
    assert there.objective == pytest.approx(OBJECTIVE, abs=1e-5)
    assert there.minus_two_log_likelihood == pytest.approx(871.14700157865809, abs=1e-5)


def test_effects_of_infants_are_those_of_nonmem(there):
    rows = [there.ids.index(str(number)) for number in range(1, 1 + len(INFANTS))]
    np.testing.assert_allclose(there.eta[rows], np.asarray(INFANTS)[:, :2], atol=2e-6)
    np.testing.assert_allclose(there.eta.mean(axis=0), MEAN, atol=1e-6)
    np.testing.assert_allclose(100 * np.asarray(list(there.shrinkage.values())), SHRINKAGE, atol=1e-3)


def test_shares_of_the_objective_are_those_of_nonmem(there, infants):
    counts = np.asarray(infants.record.observations["concentration"].mask).sum(axis=1)
    shares = there.individual - counts * np.log(2 * np.pi)
    rows = [there.ids.index(str(number)) for number in range(1, 1 + len(INFANTS))]
    np.testing.assert_allclose(shares[rows], np.asarray(INFANTS)[:, 2], atol=1e-5)


@pytest.fixture(scope="module")
def sought(infants):
    """From declared values: a clearance two hundred times too large, a volume twenty times."""
    return estimate(POPULATION, infants, priors=PRIORS)


def test_a_search_from_afar_ends_where_nonmem_does(sought):
    assert sought.converged and sought.failed == ()
    assert sought.objective == pytest.approx(OBJECTIVE, abs=1e-4)
    found = [sought.estimate[name] for name in ("CL_pop", "V_pop", "beta_V_apgar")]
    np.testing.assert_allclose(found, THETA, rtol=5e-4)
    np.testing.assert_allclose([sought.estimate[f"omega_{p}"] ** 2 for p in ("CL", "V")], OMEGA, rtol=1e-3)
    assert sought.estimate["cv"] ** 2 == pytest.approx(SIGMA, rel=1e-3)


def test_standard_errors_are_those_of_nonmem(sought):
    """By the sandwich, as NONMEM does; those of variances by the chain rule."""
    error = sought.errors(sought.sandwich)
    found = [error[name] for name in ("CL_pop", "V_pop", "beta_V_apgar")]
    np.testing.assert_allclose(found, THETA_SE, rtol=2e-3)
    value = sought.estimate
    found = [2 * value[name] * error[name] for name in ("omega_CL", "omega_V", "cv")]
    np.testing.assert_allclose(found, (*OMEGA_SE, SIGMA_SE), rtol=2e-3)
