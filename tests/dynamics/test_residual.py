"""Residual errors against SciPy's densities, and at the values where they are delicate."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy import stats

from dtwin_jax.core.predictor import likelihood_of
from dtwin_jax.core.quantity import assign, param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.types import Vector
from dtwin_jax.dynamics.residual import additive, combined, log_normal, power, proportional, student_t

SD, CV, POWER, REFERENCE, DF = 0.3, 0.15, 0.7, 2.0, 4.5
EXPECTED = np.array([0.5, 2.0, 40.0])
MEASURED = np.array([0.7, 1.5, 41.0])


class Params(eqx.Module):
    sd: jax.Array = param(SD, "mg/L")
    cv: jax.Array = param(CV, "1")
    power: jax.Array = param(POWER, "1")
    reference: jax.Array = param(REFERENCE, "mg/L")
    df: jax.Array = param(DF, "1")


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
        (power, lambda y, m: stats.norm.logpdf(y, m, SD * (m / REFERENCE) ** POWER)),
        (student_t(additive), lambda y, m: stats.t.logpdf(y, DF, m, SD)),
        (student_t(combined), lambda y, m: stats.t.logpdf(y, DF, m, np.sqrt(SD**2 + (CV * m) ** 2))),
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


def test_power_of_one_is_proportional_and_of_none_additive_even_where_nothing_is_expected():
    y = Outputs(drug=jnp.array([0.0, 3.0]), metabolite=jnp.array([-2.0, 1.0]))

    def scales(p):
        return jnp.concatenate([d.scale * jnp.ones(2) for d in power(y, p).values()])

    with numpyro.validation_enabled(False):
        one, none = (assign(Params(), {"power": at, "reference": 1.0}) for at in (1.0, 0.0))
        np.testing.assert_allclose(scales(one), SD * np.array([0.0, 3.0, 2.0, 1.0]), rtol=1e-15)
        np.testing.assert_allclose(scales(none), SD, rtol=1e-15)
        slope = jax.jacrev(scales)(one)
    np.testing.assert_allclose(slope.power, SD * np.array([0.0, 3 * np.log(3.0), 2 * np.log(2.0), 0.0]))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_degrees_of_freedom_can_be_estimated_from_values_below_a_limit_too():
    """Slopes against finite differences of SciPy's densities and tails."""
    values, censor = np.array([0.2, 1.5, 41.0]), np.array([-1, 0, 1])
    record = Record(None, {"drug": Series(np.arange(3.0), values, censor=censor)})

    def fit(df):
        return likelihood_of(student_t(additive)(Y, assign(Params(), {"df": df})), record)["drug"]

    def truth(df):
        d = stats.t(df, EXPECTED, SD)
        return np.select([censor < 0, censor > 0], [d.logcdf(values), d.logsf(values)], d.logpdf(values))

    np.testing.assert_allclose(fit(DF), truth(DF), rtol=1e-10)
    step = 1e-4
    slope = jax.jit(jax.jacfwd(fit))(DF)
    np.testing.assert_allclose(slope, (truth(DF + step) - truth(DF - step)) / (2 * step), rtol=1e-6)


def test_students_t_is_of_normal_errors():
    with pytest.raises(ValueError, match="the error of 'drug' is LogNormal, expected a normal"):
        student_t(log_normal)(Y, Params())


def test_log_normal_of_what_is_not_positive_is_nan():
    with numpyro.validation_enabled(False):
        found = log_normal(Outputs(drug=np.array([0.0, -1.0, 2.0]), metabolite=EXPECTED), Params())["drug"]
        assert np.isnan(found.log_prob(np.array([1.0, 1.0, 1.0]))).tolist() == [True, True, False]
