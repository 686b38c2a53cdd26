"""Populations whose errors are cut at a limit or heavy-tailed: the likelihood against SciPy's integral.

One random effect of each patient enters the level, so that the truth is one integral a patient.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import dtwin_jax as dt
from dtwin_jax.core.quantity import param, var
from dtwin_jax.dynamics.residual import additive, positive, quantified, student_t

LEVEL, OMEGA, SD, DF, LOQ = 3.0, 0.7, 0.8, 4.0, 1.2
TIME = np.array([0.5, 1.5, 3.0, 5.0])
FALL = np.exp(-0.2 * TIME)


class Params(eqx.Module):
    level: dt.Scalar = param(LEVEL, "mg/L", dt.normal(LEVEL, 10.0))
    sd: dt.Scalar = param(SD, "mg/L", dt.lognormal(SD, log_sd=1.0))
    df: dt.Scalar = param(DF, "1", dt.lognormal(DF, log_sd=0.5))
    lloq: dt.Scalar = param(LOQ, "mg/L")


class Inputs(eqx.Module):
    pass


class State(eqx.Module):
    drug: dt.Scalar = var("mg/L")


decay = dt.Model(
    name="decay",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(drug=p.level),
    drift=lambda t, x, u, p: State(drug=-0.2 * x.drug),
    observe=lambda t, x, u, p: State(drug=x.drug),
    noise=additive,
    flow=lambda dt, x, u, p: State(drug=x.drug * jnp.exp(-0.2 * dt)),
)


def people(limit_is_told):
    """Five patients; what is below the limit is told as such, or masked."""
    rng = np.random.default_rng(7)
    records = {}
    for i in range(5):
        value = (LEVEL + OMEGA * rng.normal()) * FALL + SD * rng.standard_t(DF, size=4)
        lost = value < LOQ
        how = {"censor": np.where(lost, -1, 0)} if limit_is_told else {"mask": ~lost}
        records[str(i)] = dt.Record(Inputs(), {"drug": dt.Series(TIME, np.where(lost, LOQ, value), **how)})
    return dt.stack(records)


def m3(d, series):
    return np.where(series.censor < 0, d.logcdf(series.value), d.logpdf(series.value))


def m4(d, series):
    below = np.log(d.cdf(series.value) - d.cdf(0.0))
    return np.where(series.censor < 0, below, d.logpdf(series.value)) - d.logsf(0.0)


def exact(cohort, family, told):
    def density(eta, series):
        fit = told(family((LEVEL + eta) * FALL), series).sum()
        return np.exp(fit + stats.norm.logpdf(eta, 0.0, OMEGA))

    each = [cohort.at(i).observations["drug"] for i in range(len(cohort))]
    return [
        -2 * np.log(integrate.quad(density, -6 * OMEGA, 6 * OMEGA, args=(series,), epsabs=0, epsrel=1e-10)[0])
        for series in each
    ]


@pytest.mark.parametrize(
    ("noise", "told", "family"),
    [
        pytest.param(positive(additive), m4, lambda mean: stats.norm(mean, SD), id="m4"),
        pytest.param(student_t(additive), m3, lambda mean: stats.t(DF, mean, SD), id="student"),
    ],
)
def test_quadrature_is_scipys_integral(noise, told, family):
    cohort, population = people(True), dt.Population(replace(decay, noise=noise), ("level",))
    start = {"level_pop": LEVEL, "sd": SD, "omega_level": OMEGA}
    found = dt.estimate(
        population, cohort, by="quadrature", nodes=25, priors={"df": DF}, start=start, search=False
    )
    np.testing.assert_allclose(found.individual, exact(cohort, family, told), rtol=1e-6)


def test_what_focei_cannot_take_is_refused():
    for noise, by in (
        (positive(additive), "fo"),
        (student_t(additive), "foce"),
        (quantified(additive), "focei"),
    ):
        population = dt.Population(replace(decay, noise=noise), ("level",))
        says = f"channel 'drug' has no normal errors, which {by} cannot take: use laplace"
        with pytest.raises(ValueError, match=says):
            dt.estimate(population, people(False), by=by, priors={"df": DF})
    with pytest.raises(
        ValueError, match="a measurement is below its limit, where the error is of those above"
    ):
        dt.estimate(population, people(True), by="laplace", priors={"df": DF})


def test_heavy_tails_are_found_by_fit():
    """One series of 400: degrees of freedom within their standard error."""
    key = jax.random.key(0)
    time = np.linspace(0.0, 2.0, 400)
    value = LEVEL * np.exp(-0.2 * time) + SD * np.asarray(jax.random.t(key, DF, (400,)))
    record = dt.Record(Inputs(), {"drug": dt.Series(time, value)})
    found = dt.fit(replace(decay, noise=student_t(additive)), record, key=key, starts=1)
    assert not found.failed
    for name, truth in (("level", LEVEL), ("sd", SD), ("df", DF)):
        assert abs(found.estimate[name][0] - truth) < 2.0 * found.standard_error[name][0], name
