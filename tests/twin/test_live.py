"""Live twins against exact posteriors, and against filtering everything at once."""

from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.predictor import log_likelihood
from dtwin_jax.core.prior import normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.advance import advance, beginning, log_likelihood_of
from dtwin_jax.dynamics.autocorrelated import autocorrelated
from dtwin_jax.dynamics.filtering.kalman import Kalman
from dtwin_jax.dynamics.linear import filling
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.inference.population import Population
from dtwin_jax.twin.live import (
    Live,
    assimilate,
    doses_over,
    forecast_live,
    live,
    live_from_prior,
    parameters_of,
)

KEY = jax.random.key(3)


class Params(eqx.Module):
    k: Scalar = param(0.3, "/h")
    base: Scalar = param(1.0, "mg/h", normal(1.0, 0.5))
    start: Scalar = param(4.0, "mg", normal(4.0, 1.0))
    spread: Scalar = param(0.3, "mg/h")
    sd: Scalar = param(0.3, "mg")


class Inputs(eqx.Module):
    iv: Input = var("mg/h", neutral=0.0)


class Amount(eqx.Module):
    amount: Scalar = var("mg")


# Linear in both parameters with a prior, so the posterior is normal and known.
MODEL = Model(
    name="fed",
    params=Params,
    inputs=Inputs,
    init=lambda p: Amount(amount=p.start),
    drift=lambda t, x, u, p: Amount(amount=p.base + u.iv - p.k * x.amount),
    observe=lambda t, x, u, p: Amount(amount=x.amount),
    noise=additive,
    flow=lambda dt, x, u, p: Amount(
        amount=x.amount * jnp.exp(-p.k * dt) + (p.base + u.iv) * filling(p.k, dt)
    ),
)
NOISY = replace(
    MODEL,
    name="noisily fed",
    diffusion=lambda t, x, u, p: Amount(amount=p.spread),
    solver=Solver(diffrax.Heun, dt=0.1),
    filter=Kalman(),
)
TIMES = np.array([0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0])
DOSES = Doses([2.0, 4.5], [3.0, 2.0])


def measured(seed):
    rng = np.random.default_rng(seed)
    base, start = rng.normal([1.0, 4.0], [0.5, 1.0])
    mean = start * np.exp(-0.3 * TIMES) + base * (1 - np.exp(-0.3 * TIMES)) / 0.3
    for when, amount in zip(DOSES.time, DOSES.amount, strict=True):
        mean = mean + np.where(when < TIMES, amount * np.exp(-0.3 * np.maximum(TIMES - when, 0.0)), 0.0)
    return Record(Inputs(DOSES), {"amount": Series(TIMES, mean + 0.3 * rng.normal(size=8))})


COHORT = stack({name: measured(seed) for seed, name in enumerate("ab")})


def rows(low, high):
    """The cohort's measurements in [low, high) by number, padded to the same shape."""
    series = COHORT.record.observations["amount"]
    mask = np.zeros(series.mask.shape, bool)
    mask[:, low:high] = True
    return Record(COHORT.record.inputs, {"amount": replace(series, mask=mask)}, {}, COHORT.record.t0)


def exact(patient):
    """Mean and sd of (base, start) by Bayes' rule."""
    design = np.stack([(1 - np.exp(-0.3 * TIMES)) / 0.3, np.exp(-0.3 * TIMES)], axis=1)
    given = sum(
        np.where(w < TIMES, a * np.exp(-0.3 * np.maximum(TIMES - w, 0)), 0.0)
        for w, a in zip(DOSES.time, DOSES.amount, strict=True)
    )
    value = COHORT.record.observations["amount"].value[patient] - given
    precision = design.T @ design / 0.09 + np.diag([4.0, 1.0])
    covariance = np.linalg.inv(precision)
    return covariance @ (design.T @ value / 0.09 + [4.0, 4.0]), np.sqrt(np.diag(covariance))


def moments(live: Live, patient):
    weight = np.exp(np.asarray(live.log_weight))[patient]
    drawn = np.stack([parameters_of(live)[name][patient] for name in ("base", "start")])
    mean = drawn @ weight
    return mean, np.sqrt(((drawn - mean[:, None]) ** 2) @ weight)


def followed(history):
    live = live_from_prior(MODEL, COHORT, key=KEY, draws=600)
    for i in range(4):
        given = COHORT.record if history else None
        live = assimilate(MODEL, live, rows(2 * i, 2 * i + 2), key=jax.random.fold_in(KEY, i), history=given)
    return live


# The standard error of a mean of 600 draws is 0.04 sd; the kernel's own error is larger.
@pytest.mark.parametrize(("history", "shift", "ratio"), [(True, 0.2, 0.12), (False, 0.35, 0.25)])
def test_draws_that_follow_measurements_have_the_posterior_of_all_of_them(history, shift, ratio):
    live = followed(history)
    assert np.all(np.asarray(live.renewed) > 0) and not np.any(np.asarray(live.lost))
    for patient in range(2):
        mean, sd = exact(patient)
        found_mean, found_sd = moments(live, patient)
        assert np.all(np.abs(found_mean - mean) < shift * sd)
        np.testing.assert_allclose(found_sd, sd, rtol=ratio)


@pytest.mark.parametrize("model", [MODEL, NOISY], ids=["known state", "uncertain state"])
def test_stretches_have_together_the_likelihood_of_the_whole(model):
    record, p = COHORT.at(0), Params()
    whole = log_likelihood(model, p, record)["amount"].sum()
    belief, total, given, start = beginning(model, p), 0.0, -jnp.inf, 0.0
    # A stretch ends at a dose, which is not given again.
    for stop, low, high in ((2.0, 0, 3), (4.5, 3, 5), (8.0, 5, 8)):
        series = Series(TIMES[low:high], record.observations["amount"].value[low:high])
        part = Record(record.inputs, {"amount": series}, {}, start)
        belief, predicted = advance(model, p, belief, part, jnp.asarray(stop), jnp.asarray(given))
        total, given, start = total + log_likelihood_of(predicted, part), stop, stop
    np.testing.assert_allclose(total, whole, rtol=1e-9)


def test_forecast_is_that_of_the_weighted_draws():
    live = followed(True)
    plan = Record(COHORT.record.inputs, {"amount": Series(np.full((2, 1), 9.0))}, {}, COHORT.record.t0)
    drawn = np.asarray(forecast_live(MODEL, live, plan, KEY, 4000)["amount"])
    assert drawn.shape == (4000, 2, 1)
    for patient in range(2):
        (base, start), _ = moments(live, patient)
        at_9 = start * np.exp(-2.7) + base * (1 - np.exp(-2.7)) / 0.3 + 3 * np.exp(-2.1) + 2 * np.exp(-1.35)
        assert np.mean(drawn[:, patient, 0]) == pytest.approx(at_9, abs=0.05)
        assert np.std(drawn[:, patient, 0]) > 0.3


def test_measurements_that_nothing_explains_are_counted_and_passed_over():
    live = live_from_prior(MODEL, COHORT, key=KEY, draws=20)
    broken = rows(0, 2)
    value = broken.observations["amount"].value.copy()
    value[0, 0] = 1e9
    seen = {"amount": replace(broken.observations["amount"], value=value)}
    after = assimilate(MODEL, live, replace(broken, observations=seen), key=KEY)
    assert np.asarray(after.lost).tolist() == [1, 0]
    assert np.all(np.isfinite(np.asarray(after.log_weight)))
    np.testing.assert_array_equal(after.log_weight[0], live.log_weight[0])


@pytest.mark.parametrize("history", [None, COHORT.record], ids=["by stages", "at once"])
def test_a_twin_that_no_draw_could_carry_stays_and_loses_no_dose(history):
    live = assimilate(MODEL, live_from_prior(MODEL, COHORT, key=KEY, draws=20), rows(0, 2), key=KEY)
    broken = replace(live, u=live.u.at[0].set(jnp.nan))
    # The dose at 2 h is in the stretch that fails.
    stuck = assimilate(MODEL, broken, rows(2, 4), key=KEY, history=history)
    assert np.asarray(stuck.lost).tolist() == [1, 0] and np.asarray(stuck.renewed)[0] == live.renewed[0]
    assert np.asarray(stuck.time).tolist() == [1.0, 3.0] == np.asarray(stuck.given).tolist()
    np.testing.assert_array_equal(stuck.belief.mean[0], live.belief.mean[0])
    np.testing.assert_array_equal(stuck.log_weight[0], live.log_weight[0])
    mended = replace(stuck, u=stuck.u.at[0].set(live.u[0]))
    later = assimilate(MODEL, mended, rows(4, 4), key=KEY, until=4.0)
    straight = assimilate(MODEL, live, rows(4, 4), key=KEY, until=4.0)
    np.testing.assert_allclose(later.belief.mean[0], straight.belief.mean[0], rtol=1e-9)
    assert np.asarray(later.time).tolist() == [4.0, 4.0]
    np.testing.assert_allclose(later.belief.mean[0], _fed(live, 4.0)[0] + 3.0 * np.exp(-0.6), rtol=1e-6)


def _fed(live, stop):
    """(patient, draw, 1) amounts at `stop` without a dose, by the closed form."""
    base = parameters_of(live)["base"][..., None]
    left = np.exp(-0.3 * (stop - np.asarray(live.time)))[:, None, None]
    return np.asarray(live.belief.mean) * left + base * (1 - left) / 0.3


@pytest.mark.parametrize("shared", [False, True], ids=["model", "population"])
def test_errors_that_remember_each_other_cannot_be_followed(shared):
    """Nothing of the result is looked at."""
    f = autocorrelated(MODEL, 2.0)
    says = "fed_autocorrelated is of the kind Autocorrelated, and only the state of a Model can be followed"
    with pytest.raises(ValueError, match=f"live: {says}.*calibrate the Model by itself.*forecast"):
        live(Population(f, vary=("base",)) if shared else f, None)
    with pytest.raises(ValueError, match=f"live_from_prior: {says}"):
        live_from_prior(f, stack({"a": Record(Inputs(), {"amount": Series([1.0])})}), key=KEY)


def test_wrong_measurements_are_named():
    live = live_from_prior(MODEL, COHORT, key=KEY, draws=20)
    live = assimilate(MODEL, live, rows(0, 2), key=KEY, until=3.0)
    with pytest.raises(ValueError, match=r"patient 'a', channel 'amount': .* at 2 is before .* time 3"):
        assimilate(MODEL, live, rows(2, 4), key=KEY)
    with pytest.raises(ValueError, match=r"a measurement at 5 is after until, 4"):
        assimilate(MODEL, live, rows(4, 6), key=KEY, until=4.0)
    with pytest.raises(ValueError, match="not the twins' 2"):
        assimilate(MODEL, live, COHORT.at(0), key=KEY)
    with pytest.raises(ValueError, match="history is for a model alone"):
        assimilate(Population(MODEL, ["base"]), live, rows(4, 6), key=KEY, history=COHORT.record)


def test_a_fault_of_any_patient_is_told_under_his_name():
    live = live_from_prior(MODEL, COHORT, key=KEY, draws=20)
    new = rows(0, 2)
    series = new.observations["amount"]
    for name, found, says in (
        ("value", np.nan, "a measured value is not finite"),
        ("time", np.nan, "time nan at position 1"),
        ("time", 0.2, "times must not decrease, found 0.5 before 0.2"),
        ("time", np.inf, "time inf at position 1"),
    ):
        array = getattr(series, name).copy()
        array[1, 1] = found
        broken = replace(new, observations={"amount": replace(series, **{name: array})})
        with pytest.raises(ValueError, match=f"patient 'b', channel 'amount': {says}"):
            assimilate(MODEL, live, broken, key=KEY)
    with pytest.raises(ValueError, match="has no channel 'amuont'"):
        assimilate(MODEL, live, replace(new, observations={"amuont": series}), key=KEY)


def test_a_forecast_with_a_key_a_patient_is_of_him_alone():
    live = live_from_prior(MODEL, COHORT, key=KEY, draws=20)
    plan = Record(COHORT.record.inputs, {"amount": Series(np.full((2, 1), 9.0))}, {}, COHORT.record.t0)
    keys = jax.random.split(KEY, 2)
    both = forecast_live(MODEL, live, plan, keys, 20)["amount"]
    np.testing.assert_array_equal(both, forecast_live(MODEL, live, plan, KEY, 20)["amount"])
    turned = jax.tree.map(
        lambda leaf: leaf[::-1], (live.u, live.belief, live.log_weight, live.time, live.given)
    )
    names = ("u", "belief", "log_weight", "time", "given")
    other = replace(live, **dict(zip(names, turned, strict=True)))
    plan = jax.tree.map(lambda leaf: leaf[::-1], plan)
    np.testing.assert_allclose(forecast_live(MODEL, other, plan, keys[::-1], 20)["amount"][:, ::-1], both)


def test_an_update_with_a_key_a_patient_is_of_him_alone():
    live, keys = live_from_prior(MODEL, COHORT, key=KEY, draws=20), jax.random.split(KEY, 2)
    other = jnp.stack([jax.random.key(9), keys[1]])
    for history in (None, COHORT.record):
        both = assimilate(MODEL, live, rows(0, 4), key=keys, history=history)
        assert np.all(np.asarray(both.renewed) > 0)
        from_one = assimilate(MODEL, live, rows(0, 4), key=KEY, history=history)
        np.testing.assert_array_equal(both.u, from_one.u)
        changed = assimilate(MODEL, live, rows(0, 4), key=other, history=history)
        assert not np.array_equal(changed.u[0], both.u[0])
        np.testing.assert_array_equal(changed.u[1], both.u[1])
    with pytest.raises(ValueError, match="found 3 keys, expected one, or one a patient: 2"):
        assimilate(MODEL, live, rows(0, 4), key=jax.random.split(KEY, 3))


def test_doses_are_over_when_every_draw_has_them():
    live = live_from_prior(MODEL, COHORT, key=KEY, draws=20)
    live = assimilate(MODEL, live, rows(0, 4), key=KEY)
    doses = Doses(
        np.array([[1.0, 2.0, 3.0, 3.5], [1.0, 2.0, 3.0, 3.5]]),
        np.ones((2, 4)),
        np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 1.5, 0.0, 0.0]]),
    )
    over = doses_over(MODEL, live, Inputs(doses))
    assert np.asarray(live.time).tolist() == [3.0, 3.0]
    assert np.asarray(over["iv"]).tolist() == [[True, True, True, False], [True, False, True, False]]
