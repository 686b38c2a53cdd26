"""Priors against SciPy's densities, and as data: equal by content, written and read back."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dtwin_jax.core.prior import beta, gamma, halfnormal, lognormal, normal, prior_from_dict, uniform

POSITIVE = [0.01, 0.3, 1.0, 2.5, 8.0]
FRACTIONS = [0.01, 0.3, 0.5, 0.99]

CASES = [
    pytest.param(lognormal(4.0, log_sd=0.5), stats.lognorm(0.5, scale=4.0), POSITIVE, id="lognormal"),
    pytest.param(normal(1.0, 2.0), stats.norm(1.0, 2.0), [-3.0, 0.0, 1.0, 9.0], id="normal"),
    pytest.param(
        normal(1.0, 2.0, low=0.0), stats.truncnorm(-0.5, np.inf, 1.0, 2.0), POSITIVE, id="normal cut below"
    ),
    pytest.param(
        normal(1.0, 2.0, high=3.0),
        stats.truncnorm(-np.inf, 1.0, 1.0, 2.0),
        [-5.0, 0.0, 2.9],
        id="normal cut above",
    ),
    pytest.param(
        normal(1.0, 2.0, low=0.0, high=3.0),
        stats.truncnorm(-0.5, 1.0, 1.0, 2.0),
        [0.1, 1.0, 2.9],
        id="normal cut",
    ),
    pytest.param(halfnormal(3.0), stats.halfnorm(scale=3.0), POSITIVE, id="halfnormal"),
    pytest.param(beta(2.0, 5.0), stats.beta(2.0, 5.0), FRACTIONS, id="beta"),
    pytest.param(gamma(3.0, 2.0), stats.gamma(3.0, scale=0.5), POSITIVE, id="gamma"),
    pytest.param(uniform(-1.0, 3.0), stats.uniform(-1.0, 4.0), [-0.9, 0.0, 2.9], id="uniform"),
]
PRIORS = [case.values[0] for case in CASES]

finite = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)
any_prior = st.one_of(
    st.builds(lognormal, positive, positive),
    st.builds(normal, finite, positive),
    st.builds(lambda mean, sd, low: normal(mean, sd, low=low), finite, positive, finite),
    st.builds(halfnormal, positive),
    st.builds(beta, positive, positive),
    st.builds(gamma, positive, positive),
    st.builds(lambda low, width: uniform(low, low + width), finite, positive),
)


@pytest.mark.parametrize(("prior", "truth", "points"), CASES)
def test_density_equals_scipy(prior, truth, points):
    # NumPyro multiplies a float by an integer sign where both sides are cut.
    with jax.numpy_dtype_promotion("standard"):
        found = jax.vmap(prior.distribution().log_prob)(jnp.array(points))
    np.testing.assert_allclose(found, truth.logpdf(points), rtol=1e-12)


@given(st.floats(0.1, 10.0), st.floats(0.05, 2.0))
def test_lognormal_has_the_median_and_coefficient_of_variation_asked_for(median, cv):
    args = dict(lognormal(median, cv).args)
    truth = stats.lognorm(args["log_sd"], scale=args["median"])
    assert truth.median() == pytest.approx(median, rel=1e-9)
    assert truth.std() / truth.mean() == pytest.approx(cv, rel=1e-9)


@given(any_prior)
def test_a_prior_written_as_json_is_read_back_equal(prior):
    text = json.dumps(prior.as_dict(), allow_nan=False)
    again = prior_from_dict(json.loads(text))
    assert again == prior
    assert hash(again) == hash(prior)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"lognormal": {"median": 4.0, "cv": 0.5}}, lognormal(4.0, 0.5)),
        ({"lognormal": [4.0, 0.5]}, lognormal(4.0, 0.5)),
        ({"normal": {"mean": 0, "sd": 1, "low": 0}}, normal(0.0, 1.0, low=0.0)),
        ({"halfnormal": 2}, halfnormal(2.0)),
        ({"uniform": (0, 1)}, uniform(0.0, 1.0)),
    ],
)
def test_short_forms_mean_the_same_as_the_constructors(data, expected):
    assert prior_from_dict(data) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"one family and its arguments, found \[\]"),
        ({"normal": [0, 1], "beta": [1, 1]}, r"found \['beta', 'normal'\]"),
        ({"cauchy": [0, 1]}, "unknown prior 'cauchy'; known are beta, gamma, halfnormal"),
        ({"normal": {"mean": 0, "sigma": 1}}, "prior 'normal': "),
        ({"normal": [0, 0]}, "prior 'normal': sd must be positive, found 0"),
        ({"normal": ["0", 1]}, "prior 'normal': .*mean"),
        ({"normal": [True, 1]}, "mean must be a finite number, found True"),
        ({"normal": [math.nan, 1]}, "mean must be a finite number, found nan"),
        ({"normal": {"mean": 0, "sd": 1, "low": 2, "high": 1}}, "low must be below high, found 2 and 1"),
        ({"lognormal": [4.0, -0.5]}, "prior 'lognormal': cv must be positive, found -0.5"),
        ({"lognormal": [4.0, 0]}, "prior 'lognormal': cv must be positive, found 0"),
        ({"lognormal": [-4.0, 0.5]}, "prior 'lognormal': median must be positive, found -4"),
        ({"lognormal": {"median": 4.0}}, "exactly one of cv and log_sd"),
        ({"lognormal": {"median": 4.0, "cv": 0.5, "log_sd": 0.5}}, "exactly one of cv and log_sd"),
        ({"uniform": [1, 1]}, "low must be below high, found 1 and 1"),
        ({"uniform": [-math.inf, 1]}, "prior 'uniform': low must be a finite number, found -inf"),
    ],
)
def test_a_wrong_prior_is_refused_with_what_was_found(data, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        prior_from_dict(data)


def test_priors_of_different_content_differ():
    assert len(set(PRIORS)) == len(PRIORS)
    assert normal(0.0, 1.0) != normal(0.0, 2.0)


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_draws_lie_in_the_support(prior):
    distribution = prior.distribution()
    draws = distribution.sample(jax.random.key(0), (200,))
    assert bool(jnp.all(distribution.support(draws)))


def test_a_prior_prints_as_it_is_written():
    assert str(lognormal(4.0, log_sd=0.5)) == "lognormal(median=4, log_sd=0.5)"
    assert str(normal(0.0, 1.0, low=0.0)) == "normal(mean=0, sd=1, low=0)"
