"""The closed loop against one solve of the same inputs, and against its parts called by hand."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.prior import normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses, Input, delay
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import filling
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.twin.doses import Foreseen, History, to_target
from dtwin_jax.twin.live import assimilate, forecast_live, live_from_prior, parameters_of
from dtwin_jax.twin.loop import QUANTILES, Twins, _decided, _walked, closed_loop
from dtwin_jax.twin.updates import learned

KEY = jax.random.key(5)
EVERY, UNTIL = 0.5, 4.0
TIMES = np.arange(0.0, UNTIL + 0.1, EVERY)


class Params(eqx.Module):
    k: Scalar = param(0.3, "/h")
    base: Scalar = param(60.0, "mg/h", normal(60.0, 10.0))
    start: Scalar = param(150.0, "mg", normal(150.0, 30.0))
    lag: Scalar = param(1.3, "h")
    sd: Scalar = param(3.0, "mg")


class Inputs(eqx.Module):
    food: Input = var("mg/h", neutral=0.0)
    drug: Input = var("mg/h", neutral=0.0)


class Amount(eqx.Module):
    amount: Scalar = var("mg")


# Exact between doses, so that stretches differ from one solve by rounding only.
MODEL = Model(
    name="lowered",
    params=Params,
    inputs=Inputs,
    init=lambda p: Amount(amount=p.start),
    drift=lambda t, x, u, p: Amount(amount=p.base + u.food - u.drug - p.k * x.amount),
    observe=lambda t, x, u, p: Amount(amount=x.amount),
    noise=additive,
    flow=lambda dt, x, u, p: Amount(
        amount=x.amount * jnp.exp(-p.k * dt) + (p.base + u.food - u.drug) * filling(p.k, dt)
    ),
)
LATE = replace(
    MODEL, name="lowered late", dosing=lambda u, p: Inputs(delay(u.food, p.lag), delay(u.drug, p.lag))
)
STANDING = {"drug": np.array([10.0, 14.0])}
# On a step and between two; through the input that the loop controls too.
FOOD, BOLUS = Doses([1.0, 2.2], [30.0, 20.0]), Doses([1.0, 1.7], [12.0, 9.0], [0.0, 0.4])


def ward(food=FOOD, bolus=BOLUS, **known):
    """Two patients of known parameters."""
    records = {}
    for i, name in enumerate("ab"):
        mine = {
            key: value[i] for key, value in ({"base": [50.0, 70.0], "start": [140.0, 190.0]} | known).items()
        }
        records[name] = Record(Inputs(food, bolus), {"amount": Series([0.0])}, mine)
    return stack(records)


class Since(eqx.Module):
    """The standing rate, and from a time on something more; what is more may be too little to be given."""

    when: jax.Array
    more: jax.Array

    def __call__(self, now, ahead, history):
        return {
            "drug": history.standing["drug"] * history.every + jnp.where(now >= self.when, self.more, 0.0)
        }


def since(when, more):
    return Since(jnp.asarray(when), jnp.asarray(more))


def loop(rule, *, model=MODEL, patients=None, twins=None, standing=STANDING, until=UNTIL):
    return closed_loop(
        model, patients or ward(), rule, standing=standing, every=EVERY, until=until, key=KEY, twins=twins
    )


def twins_of(patients, draws=40, told=None, **other):
    live = live_from_prior(
        MODEL, replace(patients, record=replace(patients.record, known={})), key=KEY, draws=draws
    )
    return Twins(MODEL, live, patients.record.inputs if told is None else told, (0.5, 1.0), draws, **other)


def given(amounts, food=FOOD, bolus=BOLUS):
    """Inputs with amounts that were decided at each step."""
    steps = len(amounts)
    time = np.concatenate([bolus.time, TIMES[:steps]])
    amount, duration = (
        np.concatenate([bolus.amount, amounts]),
        np.concatenate([bolus.duration, np.full(steps, EVERY)]),
    )
    order = np.argsort(time, kind="stable")
    return Inputs(food, Doses(time[order], amount[order], duration[order]))


@pytest.mark.parametrize("model", [MODEL, LATE], ids=["at once", "late"])
def test_truth_is_that_of_one_solve_of_all_that_was_given(model):
    found = loop(since(1.5, 6.0), model=model)
    for patient, (base, start) in enumerate([(50.0, 140.0), (70.0, 190.0)]):
        rate = STANDING["drug"][patient]
        np.testing.assert_allclose(found.drug_given[patient], rate * EVERY + 6.0 * (TIMES >= 1.5))
        p = Params(base=base, start=start)
        whole = simulate(model, p, given(found.drug_given.values[patient]), TIMES)
        np.testing.assert_allclose(found.amount[patient], whole.output.amount, rtol=1e-10)
    error = (found.amount_measured - found.amount).values
    assert 1.0 < np.std(error) < 6.0 and np.all(error != 0)
    assert np.all(np.isnan(found.failed_at)) and np.all(found.refused == 0)


def test_a_decision_moves_the_truth_only_after_it():
    early, late = loop(since(1.5, 6.0)), loop(since(2.5, 6.0))
    same = TIMES <= 1.5
    for name in ("amount", "amount_measured"):
        np.testing.assert_array_equal(early[name].values[:, same], late[name].values[:, same])
    assert np.all(early.amount.values[:, ~same] < late.amount.values[:, ~same] - 1.0)


def test_twins_are_those_of_their_parts_called_by_hand():
    patients = ward()
    twins = twins_of(patients)
    found = loop(since(1.5, 6.0), twins=twins)
    live = twins.live
    for k, now in enumerate(TIMES):
        keys = jax.random.split(jax.random.fold_in(KEY, k), 3)
        # What is decided from `now` on is not known; the standing rate is expected.
        amounts = found.drug_given.values * (TIMES < now)
        known = [doses_until(given(row), now) for row in amounts]
        value = found.amount_measured.values[:, k : k + 1]
        seen = Series(np.full((2, 1), now), value)
        new = Record(
            jax.tree.map(lambda *rows: np.stack(rows), *known), {"amount": seen}, {}, np.full(2, now)
        )
        live = assimilate(MODEL, live, new, key=keys[1], until=now)
        weight = np.exp(live.log_weight)
        for i, name in enumerate(live.names):
            mean = np.sum(weight * parameters_of(live)[name], axis=1)
            np.testing.assert_allclose(found.posterior_mean[i, :, k], mean, rtol=1e-9)
        plan = [
            doses_until(given(a + r * EVERY * (now <= TIMES)), now)
            for a, r in zip(amounts, STANDING["drug"], strict=True)
        ]
        plan = [
            replace(one, drug=all_rest(one.drug, r, now))
            for one, r in zip(plan, STANDING["drug"], strict=True)
        ]
        ahead = Record(
            jax.tree.map(lambda *rows: jnp.stack(rows), *plan),
            {"amount": jax.tree.map(jnp.asarray, Series(np.tile([now + 0.5, now + 1.0], (2, 1))))},
            {},
            np.full(2, now),
        )
        drawn = forecast_live(MODEL, live, ahead, keys[2], 40)["amount"]
        np.testing.assert_allclose(
            found.amount_forecast[..., k, :], np.nanquantile(drawn, QUANTILES, axis=0), rtol=1e-9
        )
    assert np.all(found.renewed > 0) and np.all(found.lost == 0)


def doses_until(inputs, now):
    """Without what is given only later."""

    def known(doses):
        return Doses(doses.time, np.where(doses.time <= now, doses.amount, 0.0), doses.duration)

    return Inputs(known(inputs.food), known(inputs.drug))


def all_rest(doses, rate, now):
    """From `now` on nothing but the rate."""
    standing = (doses.time >= now) & (doses.duration == EVERY)
    kept = np.where(standing, 0.0, doses.amount)
    return Doses(np.append(doses.time, now), np.append(kept, 2.0 * rate), np.append(doses.duration, 2.0))


def test_a_patient_who_cannot_be_solved_is_told_and_others_go_on():
    # Growth of 2000 / h: past the largest number within the first step.
    patients = ward(k=[0.3, -2000.0])
    rule = to_target("amount", "drug", target=100.0, gain=0.2, low=50.0, action=3.0, most=20.0)
    twins = twins_of(patients)
    found = loop(rule, patients=patients, twins=twins)
    assert np.isnan(found.failed_at[0]) and found.failed_at[1] == EVERY
    assert np.all(np.isfinite(found.amount[0])) and np.all(np.isnan(found.amount[1, 1:]))
    alone = loop(rule, patients=ward(k=[0.3, 0.3]), twins=twins)
    for name in ("amount", "drug_given", "posterior_mean"):
        one, other = (each[name].sel(patient="a") for each in (found, alone))
        np.testing.assert_allclose(one, other, rtol=1e-9)
    assert np.all(np.isfinite(found.posterior_mean)) and np.all(found.lost == 0)
    assert np.all(found.drug_given[1, 1:] == 0.0)


def test_a_twin_that_cannot_be_solved_leaves_its_patient_at_the_standing_rate():
    rule = to_target("amount", "drug", target=100.0, gain=0.2, low=50.0, action=3.0, most=20.0)
    twins = twins_of(ward())
    blind = replace(twins, live=replace(twins.live, known={"k": jnp.asarray([0.3, -2000.0])}))
    found = loop(rule, twins=blind)
    later = len(TIMES) - 1
    np.testing.assert_array_equal(found.lost, [0, later])
    np.testing.assert_array_equal(found.refused, [0, len(TIMES)])
    np.testing.assert_allclose(found.drug_given[1], STANDING["drug"][1] * EVERY)
    assert np.all(np.isnan(found.amount_forecast[:, 1])) and np.all(np.isfinite(found.amount_forecast[:, 0]))
    assert np.ptp(found.drug_given.values[0]) > 0 and np.all(np.isfinite(found.amount))


def test_one_compiled_program_is_for_all_steps():
    programs = (_walked, learned, forecast_live, _decided)
    patients = ward(food=Doses([1.0, 2.2, 3.0], [30.0, 20.0, 5.0]))
    told = replace(patients.record.inputs, food=Doses(*np.zeros((3, 2, 1))))
    model = replace(MODEL, name="counted")
    twins = replace(twins_of(patients, told=told), model=model)
    before = [program._cache_size() for program in programs]
    loop(since(1.5, 6.0), model=model, patients=patients, twins=twins, until=3.0)
    after = [program._cache_size() for program in programs]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1, 1]
    other = {"drug": np.array([3.0, 4.0])}
    loop(since(0.5, 1.0), model=model, patients=patients, twins=twins, until=3.0, standing=other)
    assert [program._cache_size() for program in programs] == after


@pytest.mark.parametrize("more", [-1e3, np.nan])
def test_a_dose_that_cannot_be_given_is_refused_and_the_standing_rate_goes_on(more):
    found = loop(since(2.0, np.array([more, 1.0])))
    np.testing.assert_array_equal(found.refused, [np.sum(TIMES >= 2.0), 0])
    np.testing.assert_allclose(found.drug_given[0], STANDING["drug"][0] * EVERY)


def history(decided=(), planned=None):
    amounts = np.full(4, np.nan)
    amounts[: len(decided)] = decided
    doses = Doses([0.0], [0.0]) if planned is None else planned
    seen = {"amount": np.full(4, 100.0)}
    made = History(np.arange(4.0), seen, {"drug": amounts}, {"drug": doses}, {"drug": 2.0}, 1.0)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), made)


def asked(draws, past, **other):
    rule = to_target("amount", "drug", target=100.0, gain=0.1, low=70.0, action=10.0, most=3.0, **other)
    now = jnp.asarray(2.0)
    ahead = Foreseen(jnp.asarray([3.0, 4.0]), {"amount": jnp.asarray(draws, float)})
    return float(rule(now, ahead, past)["drug"])


def test_the_rule_corrects_what_is_expected_beyond_what_is_on_board():
    high = np.full((10, 2), 140.0)
    assert asked(high, history()) == pytest.approx(2.0 + 0.5 * 4.0)
    assert asked(high, history(), share=0.25) == pytest.approx(2.0 + 0.25 * 4.0)
    assert asked(high + 100.0, history()) == pytest.approx(2.0 + 3.0)
    # A unit and a half too much from 0 to 1 has 3.5 h of 10 behind it at 4; the standing rate is no excess.
    assert asked(high, history([3.5, 2.0])) == pytest.approx(2.0 + 0.5 * (4.0 - 1.5 * 0.65))
    planned = Doses([1.0], [2.0])
    assert asked(high, history(planned=planned)) == pytest.approx(2.0 + 0.5 * (4.0 - 2.0 * 0.7))
    # Nothing is owed for a suspension, and what is near the target gets the standing rate.
    assert asked(high, history([0.0, 0.0])) == pytest.approx(2.0 + 0.5 * 4.0)
    assert asked(np.full((10, 2), 95.0), history()) == pytest.approx(2.0)


def test_the_rule_gives_nothing_where_a_low_is_likely():
    draws = np.full((20, 2), 140.0)
    draws[:2, 0] = 60.0
    assert asked(draws, history()) > 2.0
    draws[2, 0] = 60.0
    assert asked(draws, history()) == 0.0
    # Draws that could not be solved do not count.
    draws[5:, :] = np.nan
    draws[:3, 0] = 140.0
    assert asked(draws, history()) == pytest.approx(2.0 + 0.5 * 4.0)
    assert np.isnan(asked(np.full((20, 2), np.nan), history()))


def test_the_rule_lowers_what_is_high_and_spares_who_is_falling():
    rule = to_target("amount", "drug", target=115.0, gain=0.3, low=80.0, action=1.0, most=30.0)
    nothing = Doses([0.0], [0.0])
    # At the standing rate one goes to 187 mg, the other to 53, which needs less than it.
    patients = ward(food=nothing, bolus=nothing, base=[70.0, 30.0], start=[190.0, 110.0])
    bare = loop(since(9.0, 0.0), patients=patients)
    # Two hours ahead, so that what is forecast is far from what is measured.
    for twins in (None, replace(twins_of(patients), ahead=(1.0, 2.0))):
        found = loop(rule, patients=patients, twins=twins)
        assert found.amount[0, -1] < bare.amount[0, -1] - 15.0
        assert found.amount[1, -1] > bare.amount[1, -1] + 5.0
    # The forecast of a fall suspends before the fall: without a twin nothing is withheld above 80.
    first = {
        name: np.argmax(run.drug_given.values[1] == 0)
        for name, run in {"twin": found, "none": loop(rule, patients=patients)}.items()
    }
    assert 0 < first["twin"] < first["none"] and found.amount[1, first["twin"]] > 80.0


class Grams(eqx.Module):
    food: Input = var("g/h", neutral=0.0)
    agent: Input = var("g/h", neutral=0.0)


class Level(eqx.Module):
    level: Scalar = var("g")


def rate(u, p):
    return p.base + 1e3 * (u.food - u.agent)


IN_GRAMS = replace(
    MODEL,
    name="in grams",
    inputs=Grams,
    drift=lambda t, x, u, p: Amount(amount=rate(u, p) - p.k * x.amount),
    flow=lambda dt, x, u, p: Amount(amount=x.amount * jnp.exp(-p.k * dt) + rate(u, p) * filling(p.k, dt)),
    observe=lambda t, x, u, p: Level(level=x.amount / 1e3),
    noise=lambda y, p: additive(y, replace(p, sd=p.sd / 1e3)),
)


def test_a_twin_in_other_units_and_names_expects_the_same():
    patients = ward()
    rule = to_target("amount", "drug", target=110.0, gain=0.3, low=80.0, action=1.0, most=30.0)
    twins = twins_of(patients)
    told = Grams(food=replace(patients.record.inputs.food, amount=patients.record.inputs.food.amount / 1e3))
    named = {"amount": "level", "drug": "agent"}
    other = replace(twins, model=IN_GRAMS, told=told, named=named)
    same, found = loop(rule, twins=twins), loop(rule, twins=other)
    for name in ("drug_given", "posterior_mean", "posterior_sd", "amount_forecast", "amount"):
        np.testing.assert_allclose(found[name], same[name], rtol=1e-6)
    assert np.ptp(same.drug_given.values) > 1.0


def test_what_a_loop_cannot_do_is_said():
    noisy = replace(MODEL, diffusion=lambda t, x, u, p: Amount(amount=p.sd))
    with pytest.raises(ValueError, match="lowered has a diffusion"):
        loop(since(1.0, 0.0), model=noisy)
    with pytest.raises(ValueError, match="has no input 'durg'"):
        loop(since(1.0, 0.0), standing={"durg": 1.0})
    with pytest.raises(ValueError, match=r"twins of \('a', 'b'\) are not of \('a',\)"):
        loop(since(1.0, 0.0), patients=ward().take([0]), twins=twins_of(ward()), standing={"drug": 1.0})
    constant = ward()
    inputs = replace(constant.record.inputs, drug=np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="input 'drug' is controlled, and is no dose"):
        loop(since(1.0, 0.0), patients=replace(constant, record=replace(constant.record, inputs=inputs)))


class Shared(eqx.Module):
    """A rule that gives the sum of its table, whatever it sees."""

    table: Any

    def __call__(self, now, ahead, history):
        return {"drug": jnp.sum(self.table)}


def test_an_array_of_a_rule_has_a_patient_axis_or_is_refused():
    """A row a patient: patients of other rows get other amounts; what all share is to be repeated."""
    count = len(ward())
    rows = np.arange(3.0 * count).reshape(count, 3)
    found = loop(Shared(rows), until=EVERY)
    np.testing.assert_allclose(found.drug_given.values, rows.sum(axis=1)[:, None] * np.ones((1, 2)))
    shared = jnp.ones(count + 1)
    with pytest.raises(ValueError, match=rf"table of the rule has shape \({count + 1},\).*broadcast_to"):
        loop(Shared(shared), until=EVERY)
    repeated = loop(Shared(jnp.broadcast_to(shared, (count, count + 1))), until=EVERY)
    np.testing.assert_allclose(repeated.drug_given.values, count + 1.0)
