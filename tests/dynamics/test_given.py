"""Lag, bioavailability and duration as functions of when a dose is given, and of what is so then.

Truth: every dose by itself, by the textbook's closed form written here in NumPy, with the values of its own
moment; finite differences.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TIGHT

from dtwin_jax.core.predictor import check_record
from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import assign, param, replace_fields, var
from dtwin_jax.core.record import stack
from dtwin_jax.core.rules import STEADY, Restarts, Rules
from dtwin_jax.core.signal import Doses, Input, Sampled, Steps, as_modelled, delay, infuse, scale, value_at
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.ensemble import simulate_cohort
from dtwin_jax.dynamics.modelled import with_modelled
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.io.table import read_table
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs as Ways
from dtwin_jax.models.one_compartment import Params as Oral

CHANGE, TIMES = 7.0, np.array([0.4, 1.0, 6.9, 7.0, 7.2, 8.1, 9.0, 14.0, 15.0, 20.0])


class Params(Oral):
    later: Scalar = param(0.4, "1", doc="of F, from day 7 on")
    fed: Scalar = param(0.5, "1", doc="of F, with food")
    slower: Scalar = param(0.9, "h", doc="of the lag, with food")
    decline: Scalar = param(0.02, "/h", doc="of the share of an infusion")


class Inputs(Ways):
    food: Input = var("1", neutral=0.0)


def dosing(u, p):
    """Late doses are absorbed less, and those with food less and later; infusions ever less."""

    def share(t):
        return p.F * jnp.where(t < CHANGE, 1.0, p.later) * p.fed ** value_at(u.food, t)

    oral = delay(scale(u.oral, share), lambda t: p.lag + p.slower * value_at(u.food, t) + 0.01 * t)
    return Inputs(oral=oral, iv=scale(u.iv, lambda t: jnp.exp(-p.decline * t)), food=u.food)


exact = replace(one_compartment, name="by_moment", params=Params, inputs=Inputs, dosing=dosing)
stepped = replace(exact, flow=None, solver=TIGHT)
VALUES = {"CL": 1.1, "V": 20.0, "ka": 1.5, "F": 0.8, "lag": 0.3, "later": 0.4, "fed": 0.5, "slower": 0.9}
# A dose at the very moment at which food changes is with what is so from then on.
FOOD = Steps([0.0, 8.0, 13.0], [0.0, 1.0, 0.0])
GIVEN = Inputs(
    oral=Doses([0.0, 6.5, 7.0, 8.0, 13.0], [100.0, 80.0, 100.0, 90.0, 60.0]),
    iv=Doses([1.0, 9.5], [30.0, 50.0], [2.0, 0.0]),
    food=FOOD,
)


def absorbed(since, v):
    """Of 1 mg by mouth, mg/L."""
    k, ka = v["CL"] / v["V"], v["ka"]
    return np.where(since > 0, ka / (v["V"] * (ka - k)) * (np.exp(-k * since) - np.exp(-ka * since)), 0.0)


def infused(since, long, v):
    """Of 1 mg into a vein, mg/L; before the jump of a bolus."""
    k = v["CL"] / v["V"]
    if not long:
        return np.where(since > 0, np.exp(-k * since) / v["V"], 0.0)
    on, off = np.clip(since, 0.0, long), np.maximum(since - long, 0.0)
    return -np.expm1(-k * on) * np.exp(-k * off) / (k * v["V"] * long)


def moment(t, v):
    """Share and lag of an oral dose at `t`, as `dosing` says."""
    food = float(8.0 <= t < 13.0)
    return (
        v["F"] * (1.0 if t < CHANGE else v["later"]) * v["fed"] ** food,
        v["lag"] + v["slower"] * food + 0.01 * t,
    )


def by_mouth(doses, times, v=VALUES):
    total = 0.0
    for t, amount in zip(doses.time, doses.amount, strict=True):
        share, lag = moment(t, v)
        total = total + share * amount * absorbed(times - t - lag, v)
    return total


def truth(v=VALUES):
    total = by_mouth(GIVEN.oral, TIMES, v)
    for t, amount, long in zip(GIVEN.iv.time, GIVEN.iv.amount, GIVEN.iv.duration, strict=True):
        total = total + np.exp(-0.02 * t) * amount * infused(TIMES - t, long, v)
    return total


def concentration(model, values, u=GIVEN, times=TIMES):
    return simulate(model, assign(model.params(), values), u, times).output.concentration


@pytest.mark.parametrize(("model", "rtol"), [(exact, 1e-12), (stepped, 1e-8)], ids=["flow", "solver"])
def test_every_dose_has_the_values_of_its_moment(model, rtol):
    found = jax.jit(functools.partial(concentration, model))(VALUES)
    np.testing.assert_allclose(found, truth(), rtol=rtol, atol=1e-11)


@pytest.mark.parametrize("model", [exact, stepped], ids=["flow", "solver"])
def test_gradients_are_finite_differences(model):
    """By parameters, and by the time of a dose, on which its share and its lag depend."""

    def seen(model, values, shift):
        oral = Doses(jnp.asarray(GIVEN.oral.time) + shift, GIVEN.oral.amount)
        return concentration(model, values, replace_fields(GIVEN, {"oral": oral}))

    # Between changes, where a derivative by time is of one rule.
    shift, values = jnp.asarray(0.05), {name: jnp.asarray(value) for name, value in VALUES.items()}
    sloped = functools.partial(seen, model.differentiated("forward"))
    by_value, by_time = jax.jit(jax.jacfwd(sloped, argnums=(0, 1)))(values, shift)
    if model.flow is None:
        reverse = jax.jit(jax.grad(lambda v, s: jnp.sum(seen(model.differentiated("reverse"), v, s))))
        for name, slope in reverse(values, shift).items():
            np.testing.assert_allclose(slope, jnp.sum(by_value[name]), rtol=1e-7, atol=1e-9, err_msg=name)
    at = jax.jit(functools.partial(seen, model))
    for name, slope in by_value.items():
        up, down = (at(values | {name: values[name] + h}, shift) for h in (1e-5, -1e-5))
        np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-6, atol=1e-7, err_msg=name)
    up, down = (at(values, shift + h) for h in (1e-5, -1e-5))
    np.testing.assert_allclose(by_time, (up - down) / 2e-5, rtol=1e-6, atol=1e-7)


def test_patients_of_a_cohort_have_their_own_moments():
    """By lanes; and by the flow, of a schedule that would be one in cycles, were it not for the lags."""
    fed = np.array([0.5, 0.9, 0.3, 0.7])
    values = [VALUES | {"fed": share} for share in fed]
    p = jax.vmap(lambda share: assign(Params(), VALUES | {"fed": share}))(jnp.asarray(fed))
    found = simulate_cohort(stepped, p, GIVEN, TIMES, in_axes=(0, None, None)).output.concentration
    np.testing.assert_allclose(found, [truth(v) for v in values], rtol=1e-8, atol=1e-10)
    regular = Inputs(oral=Doses(np.arange(4) * 4.0, 100.0), food=FOOD)
    times = np.sort(np.concatenate([np.arange(4) * 4.0 + gap for gap in (1.5, 2.5, 3.5)]))
    found = simulate_cohort(exact, p, regular, times, in_axes=(0, None, None)).output.concentration
    np.testing.assert_allclose(found, [by_mouth(regular.oral, times, v) for v in values], rtol=1e-10)


def test_bioavailability_is_that_of_the_moment_given_in_either_order():
    doses = Doses([6.0, 7.0], 100.0, 2.0)
    early, late = (lambda t: jnp.where(t < CHANGE, 1.0, 0.5)), (lambda t: 1.5 + 0.0 * t)
    for made in (scale(delay(doses, late), early), delay(scale(doses, early), late)):
        np.testing.assert_array_equal(made.amount, [100.0, 50.0])
        np.testing.assert_array_equal(made.time, [7.5, 8.5])
    twice = infuse(delay(delay(doses, late), late), lambda t: t)
    np.testing.assert_array_equal(twice.time, [9.0, 10.0])
    np.testing.assert_array_equal(twice.duration, [6.0, 7.0])


def test_additional_doses_of_a_table_have_moments_of_their_own(tmp_path):
    """Doses every 6 h of which food is told on other rows; the record solved with each written out."""
    path = tmp_path / "fed.csv"
    rows = ["0,100,1,6,2,0,.", "8,.,2,.,.,1,.", "9,.,0,.,.,.,1", "13,.,2,.,.,0,."]
    rows += [f"{t},.,0,.,.,.,1" for t in TIMES[7:]]
    path.write_text("ID,TIME,AMT,EVID,II,ADDL,food,DV\n" + "".join(f"1,{row}\n" for row in rows))
    units = {"AMT": "mg", "DV": "mg/L", "food": "1"}
    record = read_table(path, exact, inputs={"1": "oral"}, units=units)["1"]
    found = concentration(exact, VALUES, record.inputs, TIMES[6:])
    np.testing.assert_allclose(found, by_mouth(Doses([0.0, 6.0, 12.0], 100.0), TIMES[6:]), rtol=1e-12)


def steady(kind=0, duration=0.0):
    """100 mg every 12 h that have always been given, stated at 10 h."""
    at, zero = np.array([10.0]), np.zeros(1)
    held, endless = np.full(1, kind), np.full(1, np.inf)
    rows = at, np.full(1, STEADY), zero + 100.0, zero + duration, held, zero + 12.0, zero, endless
    return Doses(at, [100.0], [duration], rules=Rules(held, endless, Restarts(*rows)))


@pytest.mark.parametrize("model", [exact, stepped], ids=["flow", "solver"])
def test_a_steady_state_is_that_of_the_moment_at_which_it_is_stated(model):
    times = np.array([10.5, 12.0, 21.0])
    found = jax.jit(lambda v: concentration(model, v, Inputs(oral=steady(), food=FOOD), times))(VALUES)
    share, lag = moment(10.0, VALUES)
    total = sum(share * 100.0 * absorbed(times - 10.0 - lag + 12.0 * n, VALUES) for n in range(400))
    np.testing.assert_allclose(found, total, rtol=1e-10 if model is exact else 1e-8)


def test_durations_and_rates_may_be_of_the_moment():
    """A modelled duration that is longer with food: RATE -2."""
    late = replace(
        exact, dosing=lambda u, p: replace_fields(u, {"iv": as_modelled(u.iv, duration=lambda t: 0.2 * t)})
    )
    rules = Rules(np.full(2, -2), np.full(2, np.inf), steady().rules.restarts)
    nothing = replace_fields(rules.restarts, {"kind": np.zeros(1, int)})
    u = Inputs(iv=Doses([5.0, 10.0], 100.0, np.nan, rules=replace_fields(rules, {"restarts": nothing})))
    times = np.array([5.5, 9.0, 11.0, 20.0])
    total = 100.0 * (infused(times - 5.0, 1.0, VALUES) + infused(times - 10.0, 2.0, VALUES))
    np.testing.assert_allclose(concentration(late, VALUES, u, times), total, rtol=1e-12)


def test_what_is_no_dose_has_no_moment():
    half = lambda t: 0.5  # noqa: E731
    for signal in (FOOD, Sampled([0.0, 1.0], [1.0, 2.0])):
        for verb in (delay, scale):
            with pytest.raises(ValueError, match="a function of the time of a dose is for Doses"):
                verb(signal, half)
    assert scale(0.0, half) == 0.0 and np.isnan(scale(3.0, half)) and delay(3.0, half) == 3.0


def table(tmp_path, rate):
    path = tmp_path / "stated.csv"
    path.write_text(f"ID,TIME,CMT,AMT,RATE,EVID,DV\n1,0,2,100,{rate},1,.\n1,1,.,.,.,0,1\n1,6,.,.,.,0,1\n")
    return {"source": path, "inputs": {"1": "oral", "2": "iv"}, "units": {"AMT": "mg", "DV": "mg/L"}}


@pytest.mark.parametrize(("rate", "what", "long"), [(-2, "duration", 4.0), (-1, "rate", 2.5)])
def test_rates_and_durations_that_a_table_leaves_to_the_model_are_parameters(tmp_path, rate, what, long):
    model = with_modelled(one_compartment, **{what: {"iv": 40.0 if what == "rate" else 4.0}})
    said = table(tmp_path, rate)
    record = read_table(said.pop("source"), model, **said)["1"]
    found = concentration(model, {"CL": 1.1, "V": 20.0}, record.inputs, np.array([1.0, 6.0]))
    np.testing.assert_allclose(found, 100.0 * infused(np.array([1.0, 6.0]), long, VALUES), rtol=1e-12)
    unit, median = ("mg/h", 40.0) if what == "rate" else ("h", 4.0)
    stated = model.schema().parameters[f"{what}_iv"]
    assert stated.unit == unit and stated.prior == lognormal(median, log_sd=1.0)


def test_a_model_that_does_not_state_them_says_how(tmp_path):
    said = table(tmp_path, -2)
    record = read_table(said.pop("source"), one_compartment, **said)["1"]
    with pytest.raises(ValueError, match=r"iv.*RATE -2.*with_modelled\(model, duration=\{'iv': \.\.\.\}\)"):
        check_record(one_compartment, record)


@pytest.mark.parametrize("rate", ["40", "-2"])
def test_bioavailability_of_a_dose_by_mouth_leaves_a_stated_rate_as_it_is(tmp_path, rate):
    """As NONMEM: half of the dose at the stated rate is over in half of the time; a duration stays."""
    model = with_modelled(one_compartment, duration={"oral": 2.5})
    said = table(tmp_path, rate) | {"inputs": {"2": "oral"}}
    record = read_table(said.pop("source"), model, **said)["1"]
    cohort = stack({"1": record}).record
    p = jax.tree.map(lambda leaf: leaf[None], assign(model.params(), {"CL": 1.1, "V": 20.0, "F": 0.5}))
    found = simulate_cohort(model, p, cohort.inputs, np.array([1.0, 6.0]), in_axes=(0, 0, None))
    long, ka, k = 1.25 if rate == "40" else 2.5, 1.0, 1.1 / 20.0
    on, off = np.clip([1.0, 6.0], 0.0, long), np.maximum(np.array([1.0, 6.0]) - long, 0.0)
    parts = [-np.expm1(-r * on) * np.exp(-r * off) / r for r in (k, ka)]
    wanted = 50.0 / long * ka / (20.0 * (ka - k)) * (parts[0] - parts[1])
    np.testing.assert_allclose(found.output.concentration[0], wanted, rtol=1e-11)


def test_names_that_a_model_has_not_are_refused():
    with pytest.raises(ValueError, match="no input 'im'"):
        with_modelled(one_compartment, duration={"im": 1.0})
    with pytest.raises(ValueError, match="has a parameter 'duration_iv' already"):
        with_modelled(with_modelled(one_compartment, duration={"iv": 1.0}), duration={"iv": 2.0})
