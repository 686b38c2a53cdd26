"""Measurements given that they are above a limit (M2, M4 of Beal 2001), against SciPy's truncated families.

M4 is M3 of a distribution cut at 0; M2 is the density of one cut at the limit, over its survival there.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

import dtwin_jax as dt
from dtwin_jax.core.predictor import PENALTY, central, check_record, log_likelihood
from dtwin_jax.core.quantity import assign, param, var
from dtwin_jax.dynamics.residual import (
    additive,
    log_normal,
    positive,
    power,
    proportional,
    quantified,
    student_t,
)
from dtwin_jax.dynamics.truncated import Truncated

LOQ = 0.5


class Params(eqx.Module):
    k: dt.Scalar = param(0.4, "/h", dt.lognormal(0.4, log_sd=1.0))
    sd: dt.Scalar = param(0.4, "mg/L", dt.lognormal(0.4, log_sd=1.0))
    cv: dt.Scalar = param(0.2, "1")
    lloq: dt.Scalar = param(LOQ, "mg/L")
    power: dt.Scalar = param(0.7, "1")
    reference: dt.Scalar = param(2.0, "mg/L")
    df: dt.Scalar = param(4.0, "1")


class Inputs(eqx.Module):
    pass


class State(eqx.Module):
    drug: dt.Scalar = var("mg/L")


decay = dt.Model(
    name="decay",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(drug=3.0),
    drift=lambda t, x, u, p: State(drug=-p.k * x.drug),
    observe=lambda t, x, u, p: State(drug=x.drug),
    noise=additive,
    flow=lambda dt, x, u, p: State(drug=x.drug * jnp.exp(-p.k * dt)),
)
TIMES = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
MEAN = 3.0 * np.exp(-0.4 * TIMES)
VALUES = np.array([2.2, 2.5, 0.9, 0.6, 0.55])
SD = 0.4


def record(values=VALUES, **kinds):
    return dt.Record(Inputs(), {"drug": dt.Series(TIMES, values, **kinds)})


@pytest.fixture(scope="module")
def likelihood():
    """Compiled once for each error: the log-likelihood of each measurement, and slopes by k and sd."""

    def made(noise):
        model = replace(decay, noise=noise)

        def each(theta, record):
            p = assign(Params(), {"k": theta[0], "sd": theta[1]})
            return log_likelihood(model, p, record)["drug"]

        both = jax.jit(lambda theta, record: (each(theta, record), jax.jacfwd(each)(theta, record)))
        return lambda record, k=0.4, sd=SD: both(jnp.array([k, sd]), record)

    kept = {}
    return lambda noise: kept.setdefault(noise, made(noise))


def truncnorm(low, mean=MEAN, sd=SD):
    return stats.truncnorm((low - mean) / sd, np.inf, mean, sd)


def test_m2_is_the_density_of_a_normal_cut_at_the_limit(likelihood):
    found, _ = likelihood(quantified(additive))(record())
    np.testing.assert_allclose(found, truncnorm(LOQ).logpdf(VALUES), rtol=1e-10)


def test_m4_conditions_what_is_seen_and_what_is_below_on_being_positive(likelihood):
    values, censor = np.where(TIMES > 3, LOQ, VALUES), np.where(TIMES > 3, -1, 0)
    found, _ = likelihood(positive(additive))(record(values, censor=censor))
    cut = truncnorm(0.0)
    np.testing.assert_allclose(
        found, np.where(censor == 0, cut.logpdf(values), cut.logcdf(values)), rtol=1e-10
    )
    # By hand, as Beal's paper and those after it state it.
    below = (stats.norm.cdf((LOQ - MEAN) / SD) - stats.norm.cdf(-MEAN / SD)) / stats.norm.cdf(MEAN / SD)
    np.testing.assert_allclose(found[3:], np.log(below)[3:], rtol=1e-12)


def test_above_and_between_limits_are_conditioned_too(likelihood):
    found, _ = likelihood(positive(additive))(record(censor=[1, 1, -1, -1, 1], limit=0.3 * VALUES))
    cut = truncnorm(0.0)
    between = np.log(cut.cdf(VALUES) - cut.cdf(0.3 * VALUES))
    np.testing.assert_allclose(found, np.where([1, 1, 0, 0, 1], cut.logsf(VALUES), between), rtol=1e-10)


@pytest.mark.parametrize("deviations", [8.0, 40.0, 300.0])
def test_the_condition_is_exact_far_in_the_tail(likelihood, deviations):
    """The limit is so far above what is expected that the probability to exceed it may be 0 in double."""
    sd = (LOQ - MEAN[-1]) / deviations
    found, slope = likelihood(quantified(additive))(record(VALUES), sd=sd)
    np.testing.assert_allclose(found[-1], truncnorm(LOQ, MEAN[-1], sd).logpdf(VALUES[-1]), rtol=1e-10)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("noise", [quantified(additive), positive(additive)])
def test_slopes_are_finite_differences_of_scipys(likelihood, noise):
    _, slope = likelihood(noise)(record())
    low = LOQ if noise == quantified(additive) else 0.0

    def truth(k, sd):
        return truncnorm(low, 3.0 * np.exp(-k * TIMES), sd).logpdf(VALUES)

    h = 1e-5
    by_k = (truth(0.4 + h, SD) - truth(0.4 - h, SD)) / (2 * h)
    by_sd = (truth(0.4, SD + h) - truth(0.4, SD - h)) / (2 * h)
    np.testing.assert_allclose(slope, np.stack([by_k, by_sd], axis=1), rtol=1e-6, atol=1e-7)


def test_m2_of_log_normal_errors_is_a_truncated_normal_of_logs(likelihood):
    found, slope = likelihood(quantified(log_normal))(record())
    a = (np.log(LOQ) - np.log(MEAN)) / 0.2
    truth = stats.truncnorm(a, np.inf, np.log(MEAN), 0.2).logpdf(np.log(VALUES)) - np.log(VALUES)
    np.testing.assert_allclose(found, truth, rtol=1e-10)
    assert np.all(np.isfinite(slope))
    # What is log-normal is positive anyhow.
    plain, _ = likelihood(log_normal)(record())
    again, _ = likelihood(positive(log_normal))(record())
    np.testing.assert_array_equal(again, plain)


def test_m2_of_students_t():
    d = Truncated(dist.StudentT(4.0, MEAN, SD), LOQ)
    truth = stats.t(4.0, MEAN, SD)
    expected = truth.logpdf(VALUES) - truth.logsf(LOQ)
    np.testing.assert_allclose(d.log_prob(VALUES), expected, rtol=1e-10)
    one = stats.t(4.0, MEAN[3], SD)
    mean = integrate.quad(lambda x: x * one.pdf(x), LOQ, np.inf)[0] / one.sf(LOQ)
    np.testing.assert_allclose(d.mean[3], mean, rtol=1e-8)


def test_a_value_below_the_limit_costs_the_penalty(likelihood):
    found, slope = likelihood(quantified(additive))(record(np.array([0.4, 2.5, 0.9, 0.6, 0.55])))
    assert found[0] == PENALTY and np.all(found[1:] > PENALTY)
    assert np.all(slope[0] == 0.0)


def test_padding_and_failures_have_no_part(likelihood):
    masked, _ = likelihood(quantified(additive))(record(mask=[True, True, False, True, False]))
    np.testing.assert_allclose(masked, truncnorm(LOQ).logpdf(VALUES) * [1, 1, 0, 1, 0], rtol=1e-10)
    with numpyro.validation_enabled(False):
        d = Truncated(dist.Normal(jnp.array([1.0, jnp.nan]), 0.4), LOQ)
        assert np.isnan(d.log_prob(jnp.ones(2))).tolist() == [False, True]


@pytest.mark.parametrize(
    ("whole", "low", "truth"),
    [
        (dist.Normal(1.0, 0.4), 0.5, stats.truncnorm(-1.25, np.inf, 1.0, 0.4)),
        (dist.Normal(-19.0, 0.4), 0.5, stats.truncnorm(48.75, np.inf, -19.0, 0.4)),
        (dist.Normal(90.0, 0.4), 0.5, stats.norm(90.0, 0.4)),
    ],
)
def test_draws_and_mean_are_those_of_the_truncated_normal(whole, low, truth):
    """2000 draws by Kolmogorov and Smirnov; p below 1e-3 would come once in a thousand seeds."""
    d = Truncated(whole, low)
    drawn = np.asarray(d.sample(jax.random.key(0), (2000,)))
    assert np.all(drawn >= low)
    assert stats.kstest(drawn, truth.cdf).pvalue > 1e-3
    np.testing.assert_allclose(d.mean, truth.mean(), rtol=1e-9)
    assert central(d) == whole.loc


@pytest.mark.parametrize("df", [0.8, 1.0])
def test_students_t_of_one_degree_of_freedom_has_no_mean(df):
    assert np.isinf(Truncated(dist.StudentT(df, 1.0, 2.0), jnp.asarray(0.0)).mean)


def test_draws_of_other_families_are_above_the_limit_too():
    log = np.asarray(Truncated(dist.LogNormal(0.0, 0.5), 0.8).sample(jax.random.key(1), (2000,)))
    a = np.log(0.8) / 0.5
    assert stats.kstest(np.log(log), stats.truncnorm(a, np.inf, 0.0, 0.5).cdf).pvalue > 1e-3
    heavy = np.asarray(Truncated(dist.StudentT(3.0, 0.0, 1.0), 1.0).sample(jax.random.key(2), (2000,)))
    t = stats.t(3.0)
    assert stats.kstest(heavy, lambda x: 1 - t.sf(x) / t.sf(1.0)).pvalue > 1e-3
    mean = np.exp(0.125) * stats.norm.cdf(0.5 - a) / stats.norm.cdf(-a)
    np.testing.assert_allclose(Truncated(dist.LogNormal(0.0, 0.5), 0.8).mean, mean, rtol=1e-12)


def test_only_named_outputs_and_limited_ones_are_conditioned():
    class Two(eqx.Module):
        drug: dt.Vector = var("mg/L")
        change: dt.Vector = var("mg/L")

    class Limited(eqx.Module):
        cv: dt.Scalar = param(0.2, "1")
        lloq_drug: dt.Scalar = param(0.5, "mg/L")

    y = Two(drug=jnp.ones(2), change=jnp.ones(2))
    for noise in (positive(proportional, "drug"), quantified(proportional)):
        found = noise(y, Limited())
        assert isinstance(found["drug"], Truncated) and isinstance(found["change"], dist.Normal)
    with pytest.raises(ValueError, match="Two has neither lloq nor lloq_drug"):
        quantified(lambda y, p: {"drug": None})(y, y)


def test_a_value_below_the_limit_has_no_place_in_m2():
    model = replace(decay, noise=quantified(additive))
    check_record(model, record())
    with pytest.raises(ValueError, match="patient 'a', channel 'drug': a measurement is below its limit"):
        check_record(model, record(censor=[0, 0, 0, 0, -1]), "a")


def test_errors_have_their_units():
    for noise in (quantified(additive), positive(proportional), power, student_t(power)):
        assert not [fault for fault in dt.check_model(replace(decay, noise=noise)) if "noise" in fault]


def test_m2_finds_what_leaving_out_misses():
    """200 samples at each time, half of the late ones lost: the condition is what finds the rate."""
    key = jax.random.key(3)
    times = np.array([1.0, 3.0, 5.0])
    drawn = 3.0 * np.exp(-0.4 * times) + 0.4 * np.asarray(jax.random.normal(key, (200, 3)))
    series = dt.Series(np.repeat(times, 200), drawn.T.ravel(), mask=drawn.T.ravel() >= LOQ)
    data = dt.Record(Inputs(), {"drug": series})
    found = {}
    for name, noise in (("m2", quantified(additive)), ("m1", additive)):
        fit = dt.fit(replace(decay, noise=noise), data, key=key, starts=1)
        assert not fit.failed
        found[name] = float((fit.estimate["k"][0] - 0.4) / fit.standard_error["k"][0])
    assert abs(found["m2"]) < 2.5
    assert abs(found["m1"]) > 5.0
