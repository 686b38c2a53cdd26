"""Times to an event after every visit: the distribution, its likelihood, and that it can be learned."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats
from visits import Inputs

from dtwin_jax.core.predictor import Predictor, log_likelihood
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.inference.train import train
from dtwin_jax.neural.forecaster import EventForecaster, until_event
from dtwin_jax.neural.hazard import PiecewiseExponential
from dtwin_jax.neural.recurrent import gru

EDGES = (1.0, 3.0)
RATE = np.array([0.4, 0.1, 0.7])
LAW = PiecewiseExponential(jnp.asarray(RATE), EDGES)


def survival(t):
    """exp of minus the integral of the hazard, interval by interval."""
    spent = [min(t, 1.0), min(max(t - 1.0, 0.0), 2.0), max(t - 3.0, 0.0)]
    return np.exp(-np.dot(RATE, spent))


TIMES = np.array([0.0, 0.5, 1.0, 2.2, 3.0, 7.0])


def test_law_of_the_time_is_that_of_its_hazard():
    np.testing.assert_allclose(LAW.cdf(TIMES), [1.0 - survival(t) for t in TIMES], atol=1e-14)
    hazard = RATE[[0, 0, 0, 1, 1, 2]]
    np.testing.assert_allclose(LAW.log_prob(TIMES), np.log(hazard * [survival(t) for t in TIMES]), rtol=1e-12)
    assert float(LAW.mean) == pytest.approx(
        integrate.quad(survival, 0, 60, points=EDGES, epsabs=1e-10)[0], abs=1e-8
    )
    within = 1.0 - survival(4.5) / survival(2.5)
    assert float(LAW.within(2.0, after=2.5)) == pytest.approx(within, rel=1e-12)


def test_one_rate_is_an_exponential():
    law = PiecewiseExponential(jnp.asarray([[0.3], [2.0]]), ())
    t = np.array([1.5, 0.2])
    np.testing.assert_allclose(law.log_prob(t), stats.expon.logpdf(t, scale=[1 / 0.3, 0.5]), rtol=1e-12)
    np.testing.assert_allclose(law.mean, [1 / 0.3, 0.5])


def test_samples_follow_the_law():
    drawn = LAW.sample(jax.random.key(0), (4000,))
    assert stats.kstest(np.asarray(drawn), lambda t: np.asarray(LAW.cdf(t))).pvalue > 0.01


FORECASTER = EventForecaster(gru, ("marker",), edges=EDGES, width=4)


def patient(values, end, happened, visits=(0.0, 1.0, 2.0)):
    event = until_event(visits, end, happened)
    return Record(Inputs(), {"event": event}, past={"marker": Series(visits, values)})


def test_visits_before_the_end_wait_for_the_event():
    found = until_event([0.0, 1.0, 2.0, 4.0], 4.0, True, longest=3.0)
    np.testing.assert_array_equal(found.time, [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(found.value, [3.0, 3.0, 2.0])
    np.testing.assert_array_equal(found.censor, [1, 0, 0])
    np.testing.assert_array_equal(until_event([0.0], 4.0, False).censor, [1])


def test_patient_who_leaves_counts_for_as_long_as_seen():
    assert isinstance(FORECASTER, Predictor)
    p = FORECASTER.params()
    one = patient([0.1, 2.0, 0.5], 2.7, False)
    rate = np.asarray(FORECASTER.predict(p, one)["event"].rate)
    spent = np.array([[1.0, 1.7, 0.0], [1.0, 0.7, 0.0], [0.7, 0.0, 0.0]])
    found = log_likelihood(FORECASTER, p, one)["event"]
    np.testing.assert_allclose(found, -np.sum(rate * spent, axis=1), rtol=1e-10)
    happened = log_likelihood(FORECASTER, p, patient([0.1, 2.0, 0.5], 2.7, True))["event"]
    np.testing.assert_allclose(happened - found, np.log(rate[[0, 1, 2], [1, 1, 0]]), rtol=1e-9)


def test_likelihood_of_single_precision_weights_is_that_of_double():
    one, p = patient([0.1, 2.0, 0.5], 2.7, True), FORECASTER.params()
    single = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, p)
    found = log_likelihood(FORECASTER, single, one)["event"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, log_likelihood(FORECASTER, p, one)["event"], rtol=2e-5)


def test_edges_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match="edges must rise from above 0"):
        EventForecaster(gru, ("marker",), edges=(2.0, 1.0))


def test_forecaster_of_nothing_is_refused():
    with pytest.raises(ValueError, match="channels must name one at least"):
        EventForecaster(gru, ())


def simulated(rng, patients):
    """Rates follow the mean of all values so far, of which the last one says little."""
    records = {}
    for i in range(patients):
        values = rng.normal(size=5) + 2.0 * rng.normal()
        end = 4.0 + rng.exponential(1.0 / np.exp(values.mean() - 1.0))
        records[f"p{i}"] = patient(values, min(end, 8.0), end < 8.0, np.arange(5.0))
    return stack(records)


def mean_log_likelihood(p, cohort):
    each = jax.vmap(lambda r: jnp.sum(log_likelihood(FORECASTER, p, r)["event"]))
    return float(jnp.mean(each(jax.tree.map(jnp.asarray, cohort.record))))


def test_trained_network_beats_a_constant_rate_on_new_patients():
    rng = np.random.default_rng(2)
    cohort, new = simulated(rng, 60), simulated(rng, 60)
    start = FORECASTER.started(cohort)
    found = train(
        FORECASTER,
        cohort,
        where=lambda p: (p.encoder, p.head),
        optimiser=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.02)),
        steps=150,
        key=jax.random.key(0),
        params=start,
    )
    # At the start the rate is events over time of the training patients, whatever is seen.
    event = cohort.record.observations["event"]
    rate = np.sum(event.mask & (event.censor == 0)) / np.sum(event.value[event.mask])
    np.testing.assert_allclose(FORECASTER.predict(start, new.at(0))["event"].rate, rate, rtol=1e-12)
    assert found.failed == ()
    before, after = (mean_log_likelihood(p, new) for p in (start, found.params))
    assert after > before + 0.5
    np.testing.assert_array_equal(found.params.scaling.centre, start.scaling.centre)
