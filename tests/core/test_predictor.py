"""The likelihood against SciPy's densities and tails, finite in value and gradient whatever is predicted."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from dtwin_jax.core.predictor import (
    PENALTY,
    Predictor,
    Schema,
    check_cohort,
    check_record,
    differentiated,
    log_likelihood,
)
from dtwin_jax.core.quantity import assign, param, quantities, var
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses, Input, Sampled
from dtwin_jax.core.types import Scalar


class Params(eqx.Module):
    start: Scalar = param(10.0, "mg/L")
    rate: Scalar = param(0.2, "1/h")
    sd: Scalar = param(0.5, "mg/L")


class Inputs(eqx.Module):
    oral: Input = var("mg/h", neutral=0.0)
    glucose: Input = var("mg/dL", neutral=90.0)


class Outputs(eqx.Module):
    concentration: Scalar = var("mg/L")


def normal(mean, sd):
    return dist.Normal(mean, sd)


def lognormal(mean, sd):
    return dist.LogNormal(jnp.log(mean), sd)


def student(mean, sd):
    return dist.StudentT(4.0, mean, sd)


def gamma(mean, sd):
    return dist.Gamma(mean / sd, 1.0 / sd)


@dataclass(frozen=True)
class Decay:
    """Exponential decay with a noise family; fails from time `until` on, as a solver does."""

    noise: Callable[..., Any] = normal
    until: float = np.inf
    name: str = "decay"

    def params(self):
        return Params()

    def schema(self):
        return Schema(quantities(Inputs()), quantities(Outputs), quantities(Params), "h")

    def predict(self, p, record):
        time = record.observations["concentration"].time
        mean = jnp.where(time < self.until, p.start * jnp.exp(-p.rate * time), jnp.nan)
        return {"concentration": self.noise(mean, p.sd)}


TIMES = np.array([0.5, 1.0, 4.0, 12.0])
VALUES = np.array([8.7, 8.4, 4.0, 1.5])
MEAN = 10.0 * np.exp(-0.2 * TIMES)
SD = 0.5

FAMILIES = [
    pytest.param(normal, stats.norm(MEAN, SD), id="normal"),
    pytest.param(lognormal, stats.lognorm(SD, scale=MEAN), id="lognormal"),
    pytest.param(student, stats.t(4.0, MEAN, SD), id="student"),
    pytest.param(gamma, stats.gamma(MEAN / SD, scale=SD), id="gamma"),
]
NOISES = [pytest.param(case.values[0], id=case.id) for case in FAMILIES]
# The gamma's parameters are computed from mean and sd together: what is NaN there is the predictor's to keep
# from its own parameters.
PLAIN_NOISES = NOISES[:3]


def observed(times=TIMES, values=VALUES, **kinds):
    return Record(Inputs(), {"concentration": Series(times, values, **kinds)})


@partial(jax.jit, static_argnums=0)
def likelihood(f, p, record):
    return log_likelihood(f, p, record)["concentration"]


@partial(jax.jit, static_argnums=0)
def total_and_gradient(f, record, p=None):
    def total(p):
        return jnp.sum(log_likelihood(f, p, record)["concentration"])

    return jax.value_and_grad(total)(Params() if p is None else p)


@partial(jax.jit, static_argnums=0)
def tangents(f, record):
    """Derivatives of every measurement's log-likelihood along the parameters themselves, forwards."""
    p = Params()
    return jax.jvp(lambda p: log_likelihood(f, p, record)["concentration"], (p,), (p,))[1]


def all_finite(tree):
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("noise", "truth"), FAMILIES)
def test_a_seen_value_contributes_its_log_density(noise, truth):
    found = likelihood(Decay(noise), Params(), observed())
    np.testing.assert_allclose(found, truth.logpdf(VALUES), rtol=1e-10)


@pytest.mark.parametrize(("noise", "truth"), FAMILIES)
def test_a_censored_value_contributes_the_probability_beyond_the_limit(noise, truth):
    found = likelihood(Decay(noise), Params(), observed(censor=[-1, 1, -1, 1]))
    below, above = truth.logcdf(VALUES), truth.logsf(VALUES)
    np.testing.assert_allclose(found, [below[0], above[1], below[2], above[3]], rtol=1e-10)


@pytest.mark.parametrize("deviations", [0.0, 1.0, 8.0, 40.0])
def test_m3_is_exact_far_into_the_tail(deviations):
    # 40 standard deviations away the probability itself is 0 in double precision.
    limit = MEAN - deviations * SD
    found = likelihood(Decay(), Params(), observed(values=limit, censor=np.full(4, -1)))
    np.testing.assert_allclose(found, stats.norm.logcdf((limit - MEAN) / SD), rtol=1e-10)
    found = likelihood(Decay(), Params(), observed(values=2 * MEAN - limit, censor=np.full(4, 1)))
    np.testing.assert_allclose(found, stats.norm.logcdf((limit - MEAN) / SD), rtol=1e-10)


def test_a_limit_of_zero_excludes_nothing_above_for_a_lognormal():
    record = observed(values=np.zeros(4), censor=[-1, 1, -1, 1])
    found = likelihood(Decay(lognormal), Params(), record)
    assert found.tolist() == [PENALTY, 0.0, PENALTY, 0.0]


@pytest.mark.parametrize(("noise", "truth"), FAMILIES)
def test_a_value_between_two_limits_contributes_the_probability_between(noise, truth):
    limit = np.array([VALUES[0] / 2, 0.0, -np.inf, VALUES[3] / 3])
    record = observed(censor=[-1, 0, -1, -1], limit=limit)
    found = likelihood(Decay(noise), Params(), record)
    between = np.log(truth.cdf(VALUES) - truth.cdf(np.maximum(limit, 0.0)))
    below, seen = truth.logcdf(VALUES), truth.logpdf(VALUES)
    # SciPy's differences of probabilities lose digits.
    np.testing.assert_allclose(found, [between[0], seen[1], below[2], between[3]], rtol=1e-7)
    assert all_finite(total_and_gradient(Decay(noise), record))


def test_m4_is_exact_far_in_either_tail():
    """Where one limit is far beyond the other, the probability is that of the nearer."""
    low, high = MEAN + 30 * SD, MEAN + 45 * SD
    found = likelihood(Decay(), Params(), observed(values=high, censor=np.full(4, -1), limit=low))
    np.testing.assert_allclose(found, stats.norm.logsf(30.0), rtol=1e-10)
    found = likelihood(
        Decay(), Params(), observed(values=2 * MEAN - low, censor=np.full(4, -1), limit=2 * MEAN - high)
    )
    np.testing.assert_allclose(found, stats.norm.logsf(30.0), rtol=1e-10)


def test_padding_contributes_nothing():
    record = observed(mask=[True, False, True, False])
    found = likelihood(Decay(), Params(), record)
    expected = stats.norm(MEAN, SD).logpdf(VALUES) * [1, 0, 1, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("noise", NOISES)
def test_padded_equals_unpadded_in_value_and_gradient(noise):
    short, long = observed(TIMES[:2], VALUES[:2], censor=[0, -1]), observed()
    padded = stack({"short": short, "long": long})["short"]
    assert padded.observations["concentration"].time.shape == (4,)
    value, gradient = total_and_gradient(Decay(noise), short)
    value_padded, gradient_padded = total_and_gradient(Decay(noise), padded)
    assert float(value_padded) == pytest.approx(float(value), rel=1e-13)
    for found, expected in zip(jax.tree.leaves(gradient_padded), jax.tree.leaves(gradient), strict=True):
        assert float(found) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("noise", PLAIN_NOISES)
def test_a_failed_prediction_costs_the_penalty_and_leaves_the_gradient_of_the_rest(noise):
    failing = Decay(noise, until=2.0)
    assert likelihood(failing, Params(), observed())[2:].tolist() == [PENALTY, PENALTY]
    value, gradient = total_and_gradient(failing, observed())
    value_rest, gradient_rest = total_and_gradient(Decay(noise), observed(TIMES[:2], VALUES[:2]))
    assert float(value) == pytest.approx(float(value_rest) + 2 * PENALTY, rel=1e-12)
    for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_rest), strict=True):
        assert float(found) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("noise", NOISES)
def test_a_failed_prediction_raises_nothing_outside_compiled_code(noise):
    found = log_likelihood(Decay(noise, until=2.0), Params(), observed())["concentration"]
    assert found[2:].tolist() == [PENALTY, PENALTY]


@pytest.mark.parametrize("noise", PLAIN_NOISES)
@pytest.mark.parametrize("sd", [0.0, jnp.nan, jnp.inf])
def test_a_noise_that_is_no_number_costs_the_penalty_with_gradient_zero(noise, sd):
    p = assign(Params(), {"sd": sd})
    value, gradient = total_and_gradient(Decay(noise), observed(), p)
    assert float(value) == 4 * PENALTY
    assert all(float(leaf) == 0.0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("value", [-1e100, -1.0, 0.0, 1e-300, 1e6, 1e100])
@pytest.mark.parametrize("censor", [-1, 0, 1])
def test_value_and_gradients_are_finite_for_any_measurement(noise, value, censor):
    record = observed(values=np.array([value, 8.4, 4.0, 1.5]), censor=[censor, 0, -1, 1])
    assert all_finite(total_and_gradient(Decay(noise), record))
    assert all_finite(tangents(Decay(noise), record))


def test_a_residual_of_zero_has_a_finite_gradient():
    # The derivative of Student's cdf through the incomplete beta function is NaN there.
    exact = np.asarray(Decay().predict(Params(), observed())["concentration"].loc)
    for noise in (normal, student):
        assert all_finite(total_and_gradient(Decay(noise), observed(values=exact)))


@dataclass(frozen=True)
class Coin:
    name: str = "coin"

    def params(self):
        return Params(rate=0.3)

    def predict(self, p, record):
        n = record.observations["heads"].time.shape
        return {"heads": dist.Bernoulli(probs=jnp.broadcast_to(p.rate, n))}


def test_a_family_without_a_cdf_has_a_likelihood():
    record = Record(Inputs(), {"heads": Series([0.0, 1.0, 2.0], [1.0, 0.0, 1.0])})
    found = log_likelihood(Coin(), Coin().params(), record)["heads"]
    np.testing.assert_allclose(found, stats.bernoulli(0.3).logpmf([1, 0, 1]), rtol=1e-12)


def test_new_numbers_do_not_retrace():
    traces = []

    @jax.jit
    def total(p, record):
        traces.append(p)
        return jnp.sum(likelihood(Decay(), p, record))

    total(Params(), observed(censor=[0, 0, 0, -1]))
    total(Params(rate=0.3), observed(values=VALUES + 1.0, censor=[-1, 0, 0, 1]))
    assert len(traces) == 1


def test_tails_are_left_out_where_no_value_can_be_beyond_a_limit():
    plain, limited = observed(), observed(censor=[0, 0, 0, 0])
    assert not plain.observations["concentration"].limited
    assert limited.observations["concentration"].limited
    for record in (plain, limited):
        text = jax.jit(lambda p, r: likelihood(Decay(), p, r)).lower(Params(), record).as_text()
        assert ("erf" in text) == (record is limited)
    both = [total_and_gradient(Decay(), record) for record in (plain, limited)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), *both)
    # One patient with a limit is enough for the cohort.
    cohort = stack({"a": plain, "b": observed(censor=[-1, 0, 0, 0])})
    assert cohort.record.observations["concentration"].limited
    assert not stack({"a": plain, "b": plain}).record.observations["concentration"].limited


def test_a_cohort_is_the_loop_over_its_patients():
    records = {"a": observed(), "b": observed(TIMES[:2], VALUES[:2]), "c": observed(values=VALUES * 1.1)}
    cohort = stack(records)
    together = jax.vmap(lambda record: total_and_gradient(Decay(), record)[0])(cohort.record)
    alone = [float(jnp.sum(likelihood(Decay(), Params(), record))) for record in records.values()]
    np.testing.assert_allclose(together, alone, rtol=1e-13)


def test_what_predicts_is_a_predictor():
    assert isinstance(Decay(), Predictor)
    assert isinstance(Coin(), Predictor)
    assert not isinstance(Params(), Predictor)


def test_a_predictor_without_modes_is_its_own_derivative():
    assert differentiated(Decay(), "forward") == Decay()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            Record(Inputs(), {"Cp": Series([1.0], [2.0])}),
            "decay has no channel 'Cp'; it has ['concentration']",
        ),
        (
            observed([1.0, 3.0, 2.0], [1.0, 1.0, 1.0]),
            "patient 'p7', channel 'concentration': times must not decrease, found 3.0 before 2.0",
        ),
        (
            observed([1.0, np.nan], [1.0, 1.0]),
            "patient 'p7', channel 'concentration': time nan at position 1",
        ),
        (
            observed([-1.0, 2.0], [1.0, 1.0]),
            "patient 'p7', channel 'concentration': time -1.0 is before the record's start 0.0",
        ),
        (
            observed([1.0, 2.0], [1.0, np.inf]),
            "patient 'p7', channel 'concentration': a measured value is not finite",
        ),
        (
            Record(Inputs(oral=Doses([0.0, 12.0], [1.0, np.nan])), {}),
            "patient 'p7', input 'oral': a value is not finite",
        ),
        (
            Record(Inputs(oral=Doses([12.0, 0.0], [1.0, 1.0])), {}),
            "patient 'p7', input 'oral': times must not decrease, found 12.0 before 0.0",
        ),
        (
            Record(Inputs(glucose=Sampled([0.0, np.inf], [90.0, 80.0])), {}),
            "patient 'p7', input 'glucose': time inf at position 1",
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_refused_with_what_was_found(record, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_record(Decay(), record, "p7")


def test_a_covariate_may_begin_before_the_record_and_padding_may_be_anything():
    inputs = Inputs(glucose=Sampled([-24.0, 0.0], [90.0, 80.0]))
    series = Series([1.0, 2.0], [1.0, np.nan], mask=[True, False])
    check_record(Decay(), Record(inputs, {"concentration": series}))


def test_a_cohort_is_checked_patient_by_patient():
    bad = observed(values=np.array([1.0, 1.0, np.nan, 1.0]))
    check_cohort(Decay(), stack({"good": observed(), "short": observed(TIMES[:1], VALUES[:1])}))
    with pytest.raises(ValueError, match="patient 'bad', channel 'concentration'"):
        check_cohort(Decay(), stack({"good": observed(), "bad": bad}))
