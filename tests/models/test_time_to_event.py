"""Hazards that a drug changes: closed forms of Gompertz's hazard, and likelihoods of events by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize

from dtwin_jax.core.predictor import check_record, log_likelihood
from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import assign
from dtwin_jax.core.record import Record, Series, scenario, stack
from dtwin_jax.core.signal import Doses, Steps
from dtwin_jax.dynamics.couple import couple
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.fit import fit
from dtwin_jax.inference.population import Population
from dtwin_jax.models import drug_hazard, one_compartment
from dtwin_jax.models.time_to_event import Happening, Inputs, Params, TimeToEvent

P = Params(h0=0.02, growth=0.01, effect=1.5, EC50=2.0)
U = Inputs(Steps([0.0, 10.0], [0.0, 6.0]))
RATIO = np.exp(-1.5 * 6.0 / 8.0)
events = TimeToEvent(drug_hazard)


def hazard(t):
    return 0.02 * np.exp(0.01 * t) * (1.0 if t < 10.0 else RATIO)


def accumulated(start, stop):
    """The integral of Gompertz's hazard, untreated until 10 d."""
    before = np.exp(0.01 * min(stop, 10.0)) - np.exp(0.01 * min(start, 10.0))
    after = np.exp(0.01 * max(stop, 10.0)) - np.exp(0.01 * max(start, 10.0))
    return 2.0 * (before + RATIO * after)


def rows_of(times, values, **changes):
    return Record(U, {"event": Series(times, values, **changes)})


def scores(record, p=P, f=events):
    return np.asarray(jax.jit(lambda p: log_likelihood(f, p, record)["event"])(p))


def test_gompertz_hazard_equals_its_closed_form():
    times = np.array([0.0, 4.0, 10.0, 25.0, 300.0])
    found = simulate(drug_hazard, P, U, times, after=np.array([True] * 5))
    np.testing.assert_allclose(found.output.hazard, [hazard(t) for t in times], rtol=1e-12)
    wanted = [accumulated(0.0, t) for t in times]
    np.testing.assert_allclose(found.output.cumulative, wanted, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.output.survival, np.exp(-np.array(wanted)), rtol=1e-11)
    constant = simulate(drug_hazard, assign(P, {"growth": 0.0}), Inputs(), times).output.cumulative
    np.testing.assert_allclose(constant, 0.02 * times, rtol=1e-14)


def test_an_event_and_right_censoring_have_their_exact_likelihood():
    np.testing.assert_allclose(
        scores(rows_of([25.0], [1.0])), np.log(hazard(25.0)) - accumulated(0, 25), rtol=1e-12
    )
    np.testing.assert_allclose(scores(rows_of([25.0], [0.0])), -accumulated(0, 25), rtol=1e-12)
    # Far beyond what a survival probability can tell from 0.
    late = rows_of([2000.0], [0.0])
    np.testing.assert_allclose(
        scores(late, assign(P, {"growth": 0.0})), -(0.2 + 1990 * 0.02 * RATIO), rtol=1e-12
    )


def test_densities_of_all_events_and_of_none_sum_to_one():
    """By Gauss's rule on either side of the step of treatment, and what is left at 60 d."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    spans = [(0.0, 10.0), (10.0, 60.0)]
    times = np.concatenate([a + (b - a) * (nodes + 1) / 2 for a, b in spans])
    share = np.concatenate([(b - a) * weights / 2 for a, b in spans])
    y = simulate(drug_hazard, P, U, np.append(times, 60.0)).output
    happening = Happening(y.hazard, y.cumulative)
    density = np.exp(happening.log_prob(jnp.ones(25)))[:-1]
    none = np.exp(happening.log_prob(jnp.zeros(25)))[-1]
    np.testing.assert_allclose(np.sum(share * density) + none, 1.0, rtol=1e-12)
    np.testing.assert_allclose(happening.mean[-1], 1 - none, rtol=1e-12)


def test_rows_count_the_hazard_since_the_row_before():
    """Events that recur, and an event somewhere between two visits; what is not measured counts nothing."""
    found = scores(rows_of([5.0, 12.0, 30.0], [1.0, 1.0, 0.0]))
    parts = [accumulated(0, 5), accumulated(5, 12), accumulated(12, 30)]
    wanted = np.array([np.log(hazard(5.0)), np.log(hazard(12.0)), 0.0]) - parts
    np.testing.assert_allclose(found, wanted, rtol=1e-11)
    masked = scores(rows_of([5.0, 8.0, 12.0, 30.0], [1.0, 0.0, 1.0, 0.0], mask=[True, False, True, True]))
    np.testing.assert_allclose(masked, np.insert(wanted, 1, 0.0), rtol=1e-11)
    between = scores(rows_of([5.0, 12.0], [0.0, 1.0], censor=[0, -1]))
    np.testing.assert_allclose(between, [-parts[0], np.log1p(-np.exp(-parts[1]))], rtol=1e-11)


def test_a_padded_patient_of_a_cohort_has_his_own_likelihood():
    patients = {"a": rows_of([5.0, 12.0, 30.0], [1.0, 1.0, 0.0]), "b": rows_of([25.0], [1.0])}
    cohort = stack(patients).record
    found = jax.jit(jax.vmap(lambda record: log_likelihood(events, P, record)["event"]))(cohort)
    np.testing.assert_allclose(found[0], scores(patients["a"]), rtol=1e-12)
    np.testing.assert_allclose(found[1], [*scores(patients["b"]), 0.0, 0.0], rtol=1e-12)


def test_a_plan_tells_of_events_after_what_is_known():
    """The probability of an event by each time, given none until the last visit."""
    plan = scenario(rows_of([5.0, 12.0], [0.0, 0.0]), until=30.0, every=10.0)
    expected = jax.jit(lambda p: events.predict(p, plan)["event"].mean)(P)
    wanted = [0.0, 0.0, *(-np.expm1(-accumulated(12, t)) for t in (20, 30))]
    np.testing.assert_allclose(expected, wanted, rtol=1e-11)


def test_a_later_start_is_a_later_start_of_the_risk():
    """h0 is the hazard at the record's start."""
    record = Record(Inputs(), {"event": Series([120.0], [0.0])}, t0=100.0)
    np.testing.assert_allclose(scores(record, assign(P, {"growth": 0.0})), -0.02 * 20.0, rtol=1e-12)


@pytest.fixture(scope="module")
def under_drug():
    """A drug in the body, its hazard, and both kinds of measurement."""
    drug = replace(one_compartment, flow=None, dosing=None)
    joined = couple(
        "treated",
        {"drug": drug, "risk": drug_hazard},
        {"risk.concentration": "drug.concentration"},
        time="d",
        solver=Solver(rtol=1e-10, atol=1e-11),
    )
    return TimeToEvent(joined)


def test_a_drug_in_the_body_drives_the_hazard(under_drug):
    """SciPy's quadrature of the hazard under a concentration that falls along one exponential."""
    p = assign(under_drug.params(), {"risk.h0": 0.02, "risk.growth": 0.01, "drug.CL": 0.5})
    u = assign(under_drug.model.inputs(), {"iv": Doses([0.0], [200.0])})
    channels = {"concentration": Series([1.0, 3.0], [9.0, 2.0]), "event": Series([4.0], [1.0])}
    record = Record(u, channels)
    check_record(under_drug, record)
    shapes = jax.eval_shape(lambda p: log_likelihood(under_drug, p, record), p)
    assert {name: each.shape for name, each in shapes.items()} == {"concentration": (2,), "event": (1,)}
    model = under_drug.differentiated("forward")

    def score(h0):
        return log_likelihood(model, assign(p, {"risk.h0": h0}), record)["event"][0]

    found, slope = jax.jit(lambda h0: jax.jvp(score, (h0,), (jnp.ones(()),)))(p.risk.h0)

    def at(t, h0=0.02):
        C = 10.0 * np.exp(-0.5 / 20.0 * 24.0 * t)
        return h0 * np.exp(0.01 * t - C / (2.0 + C))

    total = quad(at, 0.0, 4.0, epsabs=1e-13, epsrel=1e-12)[0]
    np.testing.assert_allclose(found, np.log(at(4.0)) - total, rtol=1e-9)
    np.testing.assert_allclose(slope, (1 - total) / 0.02, rtol=1e-8)


def test_channels_that_tell_of_the_event_are_refused_beside_it():
    record = Record(U, {"event": Series([4.0], [1.0]), "hazard": Series([1.0], [0.1])})
    with pytest.raises(ValueError, match="hazard"):
        events.predict(P, record)


def test_a_constant_hazard_is_estimated_as_events_by_time_at_risk():
    """Of one patient with events that recur: the maximum of the likelihood, in closed form."""
    record = Record(Inputs(), {"event": Series([3.0, 7.0, 20.0, 40.0], [1.0, 1.0, 1.0, 0.0])})
    flat = lognormal(0.05, log_sd=100.0)
    found = fit(
        events,
        record,
        key=jax.random.key(0),
        priors={"h0": flat, "growth": 0.0, "effect": None, "EC50": None},
        starts=1,
        method="bfgs",
    )
    assert found.failed == ()
    np.testing.assert_allclose(found.estimate["h0"], 3 / 40, rtol=1e-3)


def test_recurrent_events_of_a_population_are_counts_with_a_lognormal_rate():
    """Adaptive quadrature against the likelihood of Poisson counts by 60 nodes, and SciPy's search."""
    rng, patients, counts, until = np.random.default_rng(0), {}, [], 100.0
    for i in range(40):
        times = np.cumsum(rng.exponential(1 / (0.05 * np.exp(0.5 * rng.normal())), 40))
        times = times[times < until]
        counts.append(times.size)
        series = Series([*times, until], [1.0] * times.size + [0.0])
        patients[f"p{i}"] = Record(Inputs(), {"event": series})
    known = {"growth": 0.0, "effect": None, "EC50": None}
    found = estimate(Population(events, ("h0",)), stack(patients), by="quadrature", priors=known)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    counted = np.array(counts)[:, None]

    def objective(at):
        rate = np.exp(at[0] + np.exp(at[1]) * nodes)
        density = np.exp(counted * np.log(rate) - rate * until) @ (weights / np.sum(weights))
        return -2 * np.sum(np.log(density))

    exact = minimize(
        objective, np.log([0.05, 0.5]), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}
    )
    np.testing.assert_allclose(list(found.estimate.values()), np.exp(exact.x), rtol=1e-3)
    np.testing.assert_allclose(found.minus_two_log_likelihood, exact.fun, atol=1e-3)


def test_sampled_events_come_as_often_as_they_should():
    d = Happening(jnp.full(3, 0.1), jnp.asarray([0.05, 0.7, 3.0]))
    drawn = d.sample(jax.random.key(0), (20000,))
    np.testing.assert_allclose(jnp.mean(drawn, axis=0), d.mean, atol=0.012)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_allclose(jnp.var(drawn, axis=0), d.variance, atol=0.012)
