"""Residual errors against SciPy's densities, and at the values where they are delicate."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy import stats

from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.types import Vector
from dtwin_jax.dynamics.residual import additive, combined, log_normal, proportional

SD, CV = 0.3, 0.15
EXPECTED = np.array([0.5, 2.0, 40.0])
MEASURED = np.array([0.7, 1.5, 41.0])


class Params(eqx.Module):
    sd: jax.Array = param(SD, "mg/L")
    cv: jax.Array = param(CV, "1")


class Outputs(eqx.Module):
    drug: Vector = var("mg/L")
    metabolite: Vector = var("mg/L")


Y = Outputs(drug=EXPECTED, metabolite=2 * EXPECTED)


@pytest.mark.parametrize(
    ("error", "density"),
    [
        (additive, lambda y, m: stats.norm.logpdf(y, m, SD)),
        (proportional, lambda y, m: stats.norm.logpdf(y, m, CV * m)),
        (combined, lambda y, m: stats.norm.logpdf(y, m, np.sqrt(SD**2 + (CV * m) ** 2))),
        (log_normal, lambda y, m: stats.lognorm.logpdf(y, CV, scale=m)),
    ],
)
def test_densities_are_those_of_scipy(error, density):
    found = error(Y, Params())
    assert list(found) == ["drug", "metabolite"]
    np.testing.assert_allclose(found["drug"].log_prob(MEASURED), density(MEASURED, EXPECTED), rtol=1e-12)
    np.testing.assert_allclose(
        found["metabolite"].log_prob(MEASURED), density(MEASURED, 2 * EXPECTED), rtol=1e-12
    )


def test_combined_error_has_a_gradient_where_nothing_is_expected():
    """With sd known to be 0 the error of an expected 0 is 0, which has no density, but a gradient of 0."""
    nothing = Outputs(drug=jnp.zeros(2), metabolite=jnp.ones(2))

    def total(p):
        return jnp.sum(combined(nothing, p)["drug"].scale)

    with numpyro.validation_enabled(False):
        gradient = jax.grad(total)(Params(sd=0.0))
    assert gradient.sd == 0.0 and gradient.cv == 0.0


def test_log_normal_of_what_is_not_positive_is_nan():
    with numpyro.validation_enabled(False):
        found = log_normal(Outputs(drug=np.array([0.0, -1.0, 2.0]), metabolite=EXPECTED), Params())["drug"]
        assert np.isnan(found.log_prob(np.array([1.0, 1.0, 1.0]))).tolist() == [True, True, False]
