"""Errors that remember each other, against the joint normal density of all measurements by SciPy."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dtwin_jax as dt
from dtwin_jax.core.predictor import PENALTY, check_record, log_likelihood, predict_cohort
from dtwin_jax.core.quantity import assign, param, quantities, var
from dtwin_jax.dynamics.autocorrelated import autocorrelated
from dtwin_jax.dynamics.residual import combined, log_normal, student_t

TAU = 2.5
THETA = {"k": 0.3, "sd": 0.2, "cv": 0.15, "tau_error": TAU}


class Params(eqx.Module):
    k: dt.Scalar = param(0.3, "/h", dt.lognormal(0.3, log_sd=1.0))
    sd: dt.Scalar = param(0.2, "mg/L", dt.lognormal(0.2, log_sd=1.0))
    cv: dt.Scalar = param(0.15, "1")
    df: dt.Scalar = param(4.0, "1")


class Inputs(eqx.Module):
    pass


class State(eqx.Module):
    drug: dt.Scalar = var("mg/L")


class Outputs(eqx.Module):
    drug: dt.Scalar = var("mg/L")
    twice: dt.Scalar = var("mg/L")


decay = dt.Model(
    name="decay",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(drug=3.0),
    drift=lambda t, x, u, p: State(drug=-p.k * x.drug),
    observe=lambda t, x, u, p: Outputs(drug=x.drug, twice=2.0 * x.drug),
    noise=combined,
    flow=lambda dt, x, u, p: State(drug=x.drug * jnp.exp(-p.k * dt)),
)
DRUG = dt.Series([0.3, 0.5, 2.0, 2.1, 7.0], [2.8, 3.0, 1.1, 1.2, 0.6])
TWICE = dt.Series([1.0, 4.0, 4.5], [5.0, 2.2, 1.4])
RECORD = dt.Record(Inputs(), {"drug": DRUG, "twice": TWICE})
remembering = autocorrelated(decay, TAU, dt.lognormal(TAU, log_sd=1.0))


def moments(series, factor, theta):
    time = np.asarray(series.time)
    mean = factor * 3.0 * np.exp(-theta["k"] * time)
    sd = np.sqrt(theta["sd"] ** 2 + (theta["cv"] * mean) ** 2)
    correlation = np.exp(-np.abs(time[:, None] - time[None, :]) / theta["tau_error"])
    return mean, sd, sd[:, None] * correlation * sd[None, :]


def joint(series, factor=1.0, theta=THETA):
    mean, _, covariance = moments(series, factor, theta)
    return stats.multivariate_normal(mean, covariance).logpdf(series.value)


@pytest.fixture(scope="module")
def likelihood():
    """Log-likelihoods by channel, compiled once for each model and shape of record."""

    def each(f, p, record):
        return log_likelihood(f, p, record)

    return jax.jit(each, static_argnums=0)


def test_the_product_over_measurements_is_the_joint_density_of_each_channel(likelihood):
    found = likelihood(remembering, remembering.params(), RECORD)
    np.testing.assert_allclose(jnp.sum(found["drug"]), joint(DRUG), rtol=1e-10)
    np.testing.assert_allclose(jnp.sum(found["twice"]), joint(TWICE, 2.0), rtol=1e-10)


def test_log_normal_errors_remember_each_other_as_logarithms(likelihood):
    f = autocorrelated(replace(decay, noise=log_normal), TAU)
    found = likelihood(f, f.params(), RECORD)["drug"]
    time, value = np.asarray(DRUG.time), np.asarray(DRUG.value)
    correlation = np.exp(-np.abs(time[:, None] - time[None, :]) / TAU)
    truth = stats.multivariate_normal(np.log(3.0) - 0.3 * time, 0.15**2 * correlation)
    np.testing.assert_allclose(jnp.sum(found), truth.logpdf(np.log(value)) - np.log(value).sum(), rtol=1e-10)


def test_one_channel_alone_or_each_with_its_own_memory(likelihood):
    alone = autocorrelated(decay, TAU, channel="drug")
    plain = likelihood(decay, decay.params(), RECORD)
    found = likelihood(alone, alone.params(), RECORD)
    np.testing.assert_allclose(jnp.sum(found["drug"]), joint(DRUG), rtol=1e-10)
    np.testing.assert_allclose(found["twice"], plain["twice"], rtol=1e-13)
    both = autocorrelated(alone, 9.0, channel="twice")
    assert {"tau_error_drug", "tau_error_twice"} <= set(quantities(both.params()))
    found = likelihood(both, both.params(), RECORD)
    np.testing.assert_allclose(jnp.sum(found["drug"]), joint(DRUG), rtol=1e-10)
    np.testing.assert_allclose(
        jnp.sum(found["twice"]), joint(TWICE, 2.0, THETA | {"tau_error": 9.0}), rtol=1e-10
    )


def test_slopes_are_finite_differences_of_the_joint_density():
    """In both modes, padded; the truth by steps of 1e-5, within 1e-6."""
    long = dt.Series(np.linspace(0.1, 9.0, 8), np.linspace(3.0, 0.2, 8))
    padded = dt.stack({"a": dt.Record(Inputs(), {"drug": DRUG}), "b": dt.Record(Inputs(), {"drug": long})})[
        "a"
    ]
    assert padded.observations["drug"].time.shape == (8,)
    names = tuple(THETA)

    def total(theta):
        p = assign(remembering.params(), dict(zip(names, theta, strict=True)))
        return jnp.sum(log_likelihood(remembering, p, padded)["drug"])

    at = jnp.array(list(THETA.values()))
    forward, reverse = jax.jit(lambda at: (jax.jacfwd(total)(at), jax.grad(total)(at)))(at)
    h = 1e-5
    truth = [
        (joint(DRUG, theta=THETA | {n: THETA[n] + h}) - joint(DRUG, theta=THETA | {n: THETA[n] - h}))
        / (2 * h)
        for n in names
    ]
    np.testing.assert_allclose(forward, truth, rtol=1e-6)
    np.testing.assert_allclose(reverse, forward, rtol=1e-10)


def test_masked_rows_are_skipped_and_have_the_marginal_law(likelihood):
    mask = np.array([True, False, True, True, False])
    record = dt.Record(Inputs(), {"drug": dt.Series(DRUG.time, DRUG.value, mask=mask)})
    found = likelihood(remembering, remembering.params(), record)["drug"]
    kept = dt.Series(DRUG.time[mask], DRUG.value[mask])
    np.testing.assert_allclose(jnp.sum(found), joint(kept), rtol=1e-10)
    d = remembering.predict(remembering.params(), record)["drug"]
    mean, sd, _ = moments(DRUG, 1.0, THETA)
    np.testing.assert_allclose(d.loc[~mask], mean[~mask], rtol=1e-12)
    np.testing.assert_allclose(d.scale[~mask], sd[~mask], rtol=1e-12)


def test_a_plan_without_measurements_is_predicted_as_by_the_model():
    plan = dt.scenario(RECORD, until=10.0, every=1.0)
    found = remembering.predict(remembering.params(), plan)
    for name, d in decay.predict(decay.params(), plan).items():
        np.testing.assert_allclose(found[name].loc, d.loc, rtol=1e-12)
        np.testing.assert_allclose(found[name].scale, d.scale, rtol=1e-12)


def test_what_was_measured_in_the_past_is_known_wherever_it_stands_in_time(likelihood):
    early = np.array([True, False, True, True, False])
    past = dt.Series(DRUG.time, DRUG.value, mask=early, censor=np.zeros(5, int))
    own = dt.Series(DRUG.time, DRUG.value, mask=~early)
    record = dt.Record(Inputs(), {"drug": own}, past={"drug": past})
    found = likelihood(remembering, remembering.params(), record)["drug"]
    mean, _, covariance = moments(DRUG, 1.0, THETA)
    value = np.asarray(DRUG.value)

    def given(j, before):
        rows = np.array(before)
        gain = np.linalg.solve(covariance[np.ix_(rows, rows)], covariance[rows, j])
        left = covariance[j, j] - gain @ covariance[rows, j]
        return stats.norm.logpdf(value[j], mean[j] + gain @ (value - mean)[rows], np.sqrt(left))

    truth = [0.0, given(1, [0]), 0.0, 0.0, given(4, [0, 1, 2, 3])]
    np.testing.assert_allclose(found, truth, rtol=1e-10, atol=1e-14)


def test_a_cohort_is_the_loop_over_its_patients():
    cohort = dt.stack({"a": RECORD, "b": dt.Record(Inputs(), {"drug": DRUG})})
    p = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), remembering.params())
    together = predict_cohort(remembering, p, cohort.record)
    for i in range(2):
        alone = remembering.predict(jax.tree.map(lambda leaf, i=i: leaf[i], p), cohort.at(i))
        np.testing.assert_allclose(together["drug"].loc[i], alone["drug"].loc, rtol=1e-12)
        np.testing.assert_allclose(together["drug"].scale[i], alone["drug"].scale, rtol=1e-12)


def test_a_failed_row_costs_the_penalty_and_leaves_the_others_and_the_slope_finite(likelihood):
    def observe(t, x, u, p):
        drug = jnp.where((t > 1.0) & (t < 2.05), jnp.nan, x.drug)
        return Outputs(drug=drug, twice=2.0 * x.drug)

    f = autocorrelated(replace(decay, observe=observe), TAU)
    found = likelihood(f, f.params(), dt.Record(Inputs(), {"drug": DRUG}))["drug"]
    others = np.array([0, 1, 3, 4])
    assert found[2] == PENALTY
    np.testing.assert_allclose(
        jnp.sum(found[others]), joint(dt.Series(DRUG.time[others], DRUG.value[others])), rtol=1e-10
    )
    record = dt.Record(Inputs(), {"drug": DRUG})
    slope = jax.jit(jax.grad(lambda p: jnp.sum(log_likelihood(f, p, record)["drug"])))(f.params())
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(slope))


def test_censored_values_are_near_the_probability_of_their_region(likelihood):
    """One between two seen values, and a tail of three, by SciPy's integral: what one cut normal says of the
    error instead of its own shape costs less than 0.02 nats, where to forget it costs 0.2."""
    time = np.array([0.5, 1.5, 2.5, 5.0, 5.5, 6.5])
    value, censor = np.array([2.3, 1.6, 1.2, 0.7, 0.7, 0.7]), np.array([0, -1, 0, -1, -1, -1])
    series = dt.Series(time, value, censor=censor)
    found = likelihood(remembering, remembering.params(), dt.Record(Inputs(), {"drug": series}))["drug"]
    mean, _, covariance = moments(series, 1.0, THETA)
    seen, lost = np.flatnonzero(censor == 0), np.flatnonzero(censor < 0)
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[np.ix_(seen, lost)]).T
    left = covariance[np.ix_(lost, lost)] - gain @ covariance[np.ix_(seen, lost)]
    centre = mean[lost] + gain @ (value - mean)[seen]
    truth = stats.multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(value[seen])
    truth += np.log(stats.multivariate_normal(centre, left, abseps=1e-7, releps=1e-7).cdf(value[lost]))
    assert abs(float(jnp.sum(found)) - truth) < 0.02
    forgotten = stats.multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(value[seen])
    forgotten += np.sum(stats.norm.logcdf(value[lost], centre, np.sqrt(np.diag(left))))
    assert abs(forgotten - truth) > 0.2


def test_what_it_cannot_take_is_refused():
    twice = dt.Record(Inputs(), {"drug": dt.Series([1.0, 2.0, 2.0], [1.0, 1.0, 1.1])})
    with pytest.raises(ValueError, match="patient 'a', channel 'drug': two measurements at time 2"):
        check_record(remembering, twice, "a")
    check_record(remembering, dt.stack({"a": RECORD, "b": dt.Record(Inputs(), {"drug": TWICE})})["b"])
    between = dt.Record(Inputs(), {"drug": dt.Series([1.0], [1.0], censor=[-1], limit=[0.0])})
    with pytest.raises(ValueError, match="values between two limits"):
        remembering.predict(remembering.params(), between)
    heavy = autocorrelated(replace(decay, noise=student_t(combined)), TAU)
    with pytest.raises(ValueError, match="the error of 'drug' is StudentT"):
        heavy.predict(heavy.params(), RECORD)
    with pytest.raises(ValueError, match="decay has a diffusion"):
        autocorrelated(replace(decay, diffusion=lambda t, x, u, p: x), TAU)
    with pytest.raises(ValueError, match="expected a time above 0"):
        autocorrelated(decay, 0.0)
    with pytest.raises(ValueError, match="no channel 'glucose'"):
        autocorrelated(decay, TAU, channel="glucose")
    with pytest.raises(ValueError, match="so already"):
        autocorrelated(remembering, TAU, channel="drug")


def test_memory_of_no_length_is_no_memory(likelihood):
    p = assign(remembering.params(), {"tau_error": 1e-6})
    found, plain = likelihood(remembering, p, RECORD), likelihood(decay, decay.params(), RECORD)
    for name in found:
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-12)
