"""Records and cohorts: nothing is lost or added by padding, stacking, splitting and planning."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtwin_jax.core.quantity import var
from dtwin_jax.core.record import Cohort, Record, Series, buckets, scenario, stack
from dtwin_jax.core.rules import NOTHING, RESET, STEADY, Restarts, Rules
from dtwin_jax.core.signal import Doses, Input, Sampled, Steps


class Inputs(eqx.Module):
    oral: Input = var("mg/h", neutral=0.0)
    meal: Input = var("g/h", neutral=0.0)


def record(n, *, oral=0.0, meal=0.0, known=None, t0=0.0, channels=("glucose",)):
    """A patient with `n` measurements a channel, at whole hours from `t0`, of values 1, 2, ..."""
    series = {name: Series(t0 + np.arange(n), 1.0 + np.arange(n)) for name in channels}
    return Record(Inputs(oral=oral, meal=meal), series, known or {}, t0)


@st.composite
def patients(draw):
    """Id -> (times, values, dose times, dose amounts), of unequal lengths."""
    number = st.floats(-1e3, 1e3)
    facts = {}
    for i in range(draw(st.integers(1, 4))):
        times = np.sort(np.array(draw(st.lists(st.floats(0, 100), min_size=1, max_size=5))))
        values = np.array(draw(st.lists(number, min_size=len(times), max_size=len(times))))
        doses = np.sort(np.array(draw(st.lists(st.floats(0, 100), max_size=4)), dtype=float))
        amounts = np.array(draw(st.lists(number, min_size=len(doses), max_size=len(doses))), dtype=float)
        facts[f"p{i}"] = (times, values, doses, amounts)
    return facts


def built(facts):
    return {
        patient: Record(Inputs(oral=Doses(doses, amounts, 0.5)), {"glucose": Series(times, values)})
        for patient, (times, values, doses, amounts) in facts.items()
    }


def test_a_series_of_times_only_measures_nothing():
    series = Series([1.0, 2.0])
    assert not series.mask.any()
    assert series.value.tolist() == [0.0, 0.0]


def test_a_series_with_values_measures_all_of_them_before_doses_and_uncensored():
    series = Series([1, 2], [5, 6])
    assert series.mask.all() and not series.after.any()
    assert series.censor.tolist() == [0, 0]
    assert series.time.dtype == series.value.dtype == float


@pytest.mark.parametrize("name", ["value", "mask", "censor", "after"])
def test_parts_of_a_series_of_different_length_are_refused(name):
    with pytest.raises(ValueError, match=rf"Series: {name} has shape \(1,\), time has \(2,\)"):
        Series([1.0, 2.0], **{"value": [1.0, 2.0], name: [1]})


@given(patients())
def test_what_is_stacked_is_read_back(facts):
    cohort = stack(built(facts))
    assert cohort.ids == tuple(facts)
    for patient, (times, values, doses, amounts) in facts.items():
        row = cohort[patient]
        series = row.observations["glucose"]
        np.testing.assert_array_equal(series.time[series.mask], times)
        np.testing.assert_array_equal(series.value[series.mask], values)
        oral, n = row.inputs.oral, len(doses)
        np.testing.assert_array_equal(oral.time[:n], doses)
        np.testing.assert_array_equal(oral.amount[:n], amounts)
        np.testing.assert_array_equal(oral.amount[n:], 0.0)


@given(patients())
def test_padding_repeats_the_last_time_so_times_stay_sorted(facts):
    cohort = stack(built(facts))
    for time in (cohort.record.observations["glucose"].time, cohort.record.inputs.oral.time):
        assert (np.diff(time, axis=1) >= 0).all()


@given(patients(), st.integers(1, 5))
def test_buckets_hold_every_patient_once(facts, count):
    parts = buckets(built(facts), count)
    assert 1 <= len(parts) <= count
    assert sorted(patient for part in parts for patient in part.ids) == sorted(facts)
    for part in parts:
        for patient in part.ids:
            series = part[patient].observations["glucose"]
            np.testing.assert_array_equal(series.value[series.mask], facts[patient][1])


def test_buckets_put_patients_of_like_length_together():
    lengths = {"a": 1, "b": 50, "c": 2, "d": 49}
    parts = buckets({patient: record(n) for patient, n in lengths.items()}, 2)
    assert [set(part.ids) for part in parts] == [{"a", "c"}, {"b", "d"}]
    assert parts[0].record.observations["glucose"].time.shape == (2, 2)


def test_a_channel_that_a_patient_lacks_is_masked_for_that_patient():
    cohort = stack({"a": record(3, channels=("glucose", "insulin")), "b": record(2)})
    assert cohort["a"].observations["insulin"].mask.tolist() == [True, True, True]
    assert not cohort["b"].observations["insulin"].mask.any()


def test_a_patient_without_any_measurement_can_stand_in_a_cohort():
    cohort = stack({"a": record(0), "b": record(2, t0=5.0)})
    series = cohort["a"].observations["glucose"]
    assert series.time.tolist() == [0.0, 0.0] and not series.mask.any()


def test_a_fact_known_for_some_patients_only_is_refused_with_name_and_patient():
    with pytest.raises(ValueError, match="'weight' is known for some patients, but not for 'b'"):
        stack({"a": record(1, known={"weight": 70.0}), "b": record(1)})


def test_facts_and_starts_are_stacked_by_patient():
    cohort = stack({"a": record(1, known={"weight": 70}), "b": record(1, known={"weight": 80}, t0=3.0)})
    assert cohort.record.known["weight"].tolist() == [70.0, 80.0]
    assert cohort.record.t0.tolist() == [0.0, 3.0]


def test_an_empty_cohort_is_refused():
    with pytest.raises(ValueError, match="at least one record"):
        stack({})
    with pytest.raises(ValueError, match="count of at least 1, found 0"):
        buckets({"a": record(1)}, 0)


def test_no_dose_beside_doses_is_a_patient_without_doses():
    cohort = stack({"a": record(1, oral=Doses([0.0, 12.0], [5.0, 5.0])), "b": record(1)})
    assert cohort["b"].inputs.oral.amount.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", [Steps, Sampled])
def test_a_constant_beside_signals_becomes_a_signal_of_that_constant(kind):
    cohort = stack({"a": record(1, meal=kind([0.0, 1.0], [2.0, 3.0])), "b": record(1, meal=7.0, t0=4.0)})
    meal = cohort["b"].inputs.meal
    assert isinstance(meal, kind)
    assert [float(meal(t)) for t in (0.0, 4.0, 9.0)] == [7.0, 7.0, 7.0]


def test_a_constant_rate_beside_doses_is_refused():
    with pytest.raises(ValueError, match=r"input 'oral': a constant rate \(3.0\) cannot stand beside doses"):
        stack({"a": record(1, oral=Doses([0.0], [5.0])), "b": record(1, oral=3.0)})


def test_signals_of_two_kinds_on_one_input_are_refused():
    one, other = Steps([0.0], [1.0]), Sampled([0.0], [1.0])
    with pytest.raises(ValueError, match=r"input 'meal' is of several kinds: \['Sampled', 'Steps'\]"):
        stack({"a": record(1, meal=one), "b": record(1, meal=other)})


def test_a_cohort_is_read_by_id_and_by_position():
    cohort = stack({"a": record(1), "b": record(2), "c": record(3)})
    assert len(cohort) == 3
    part = cohort.take([2, 0])
    assert part.ids == ("c", "a")
    assert part["c"].observations["glucose"].mask.sum() == 3
    with pytest.raises(KeyError, match="no patient 'd'; the cohort has a, b, c"):
        cohort["d"]


def test_a_stacked_signal_is_the_signal_of_each_patient_under_vmap():
    doses = {"a": Doses([0.0], [8.0], [2.0]), "b": Doses([0.0, 1.0], [8.0, 3.0], [4.0, 1.0])}
    cohort = stack({patient: record(1, oral=oral) for patient, oral in doses.items()})
    rates = jax.vmap(lambda u: u.oral(1.5))(cohort.record.inputs)
    np.testing.assert_allclose(rates, [float(oral(1.5)) for oral in doses.values()], rtol=1e-15)


def test_a_cohort_record_traces_once_for_patients_of_any_length():
    traces = []

    @jax.jit
    def last(row):
        traces.append(row)
        return jnp.max(jnp.where(row.observations["glucose"].mask, row.observations["glucose"].value, 0.0))

    cohort = stack({"a": record(1), "b": record(4)})
    assert [float(last(cohort.at(i))) for i in range(2)] == [1.0, 4.0]
    assert len(traces) == 1


def test_a_scenario_asks_at_even_times_until_the_end():
    plan = scenario(record(3, t0=2.0), until=4.0, every=0.5)
    series = plan.observations["glucose"]
    assert series.time.tolist() == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert not series.mask.any()


@given(st.floats(-50, 50), st.floats(0.01, 50), st.integers(1, 60))
def test_the_times_of_a_scenario_include_both_ends_where_the_step_divides(t0, every, steps):
    until = t0 + steps * every
    time = scenario(record(1, t0=t0), until=until, every=every).observations["glucose"].time
    assert len(time) == steps + 1
    assert time[0] == t0 and time[-1] == pytest.approx(until, rel=1e-12, abs=1e-9) and time[-1] <= until


def test_a_scenario_changes_the_named_inputs_and_keeps_the_rest():
    past = record(3, oral=Doses([0.0], [5.0]), meal=Steps([0.0], [2.0]), known={"weight": 70.0})
    plan = scenario(past, until=1.0, every=1.0, oral=Doses([6.0], [9.0]))
    assert plan.inputs.oral.amount.tolist() == [9.0]
    assert plan.inputs.meal is past.inputs.meal
    assert plan.known == past.known
    assert past.inputs.oral.amount.tolist() == [5.0]


def test_a_scenario_takes_a_number_for_an_input():
    plan = scenario(record(1), until=1.0, every=1.0, meal=3)
    assert float(plan.inputs.meal) == 3.0


def test_a_scenario_of_a_cohort_gives_all_patients_the_same_plan_from_their_own_start():
    cohort = stack({"a": record(2), "b": record(3, t0=1.0)})
    plan = scenario(cohort.record, until=3.0, every=1.0, oral=Doses([1.0, 2.0], [5.0, 6.0]))
    assert plan.observations["glucose"].time.tolist() == [[0, 1, 2, 3], [1, 2, 3, 3]]
    assert plan.inputs.oral.amount.tolist() == [[5.0, 6.0], [5.0, 6.0]]
    rates = jax.vmap(lambda row: jnp.sum(row.inputs.oral.amount) + row.t0)(plan)
    assert rates.tolist() == [11.0, 12.0]


def test_a_scenario_of_a_cohort_as_large_as_the_plan_is_long_is_still_the_same_for_all():
    cohort = stack({"a": record(1), "b": record(1)})
    plan = scenario(cohort.record, until=1.0, every=1.0, oral=Doses([0.0, 1.0], [5.0, 6.0]))
    assert plan.inputs.oral.time.shape == (2, 2)
    assert plan.inputs.oral.amount.tolist() == [[5.0, 6.0], [5.0, 6.0]]


def test_a_scenario_of_a_cohort_takes_a_plan_for_each_patient():
    cohort = stack({"a": record(1), "b": record(1)})
    plans = jax.tree.map(lambda *leaves: np.stack(leaves), Doses([0.0], [5.0]), Doses([1.0], [6.0]))
    plan = scenario(cohort.record, until=1.0, every=1.0, oral=plans, meal=np.array([2.0, 3.0]))
    assert plan.inputs.oral.time.tolist() == [[0.0], [1.0]]
    assert plan.inputs.meal.tolist() == [2.0, 3.0]
    with pytest.raises(
        ValueError, match=r"input 'meal' has values of shape \(3,\); wanted one a patient \(2\)"
    ):
        scenario(cohort.record, until=1.0, every=1.0, meal=np.zeros(3))


def cleared(kind, at=24.0):
    """Doses by mouth at 0 and 24 h, the second as the body is set anew; a meal that is eaten for 48 h."""
    row = lambda value, kind=float: np.full(1, value, kind)  # noqa: E731
    again = Restarts(
        row(at), row(kind, int), row(5.0), row(0.0), row(0, int), row(12.0), row(0.0), row(np.inf)
    )
    rules = Rules(np.zeros(2, int), np.array([at, np.inf]), again)
    return record(3, oral=Doses([0.0, at], [5.0, 5.0], rules=rules), meal=Doses([0.0], [30.0], [48.0]))


def test_a_reset_stays_in_a_scenario():
    """EVID 3 clears the body: what is planned before it ends there, what is planned at it comes after."""
    given = Doses([0.0, 12.0, 24.0], 9.0, 18.0)
    plan = scenario(cleared(RESET), until=48.0, every=1.0, oral=given).inputs.oral
    assert plan.rules.restarts.kind.tolist() == [RESET] and plan.rules.restarts.time.tolist() == [24.0]
    np.testing.assert_array_equal(
        [plan(t) for t in (11.0, 17.0, 23.0, 25.0, 41.0)], [0.5, 1.0, 0.5, 0.5, 0.5]
    )
    nothing = scenario(cleared(RESET), until=48.0, every=1.0, oral=0).inputs.oral
    assert nothing.rules.restarts.kind.tolist() == [RESET] and not np.any(nothing.amount)
    # Told of one input, it is of all.
    meal = scenario(cleared(RESET), until=48.0, every=1.0, meal=Doses([10.0], [30.0], [30.0])).inputs.meal
    assert meal.rules.until.tolist() == [24.0] and not meal.rules.set_anew


def test_a_reset_stays_in_the_scenario_of_a_cohort():
    cohort = stack(
        {"a": cleared(RESET), "b": cleared(RESET, at=36.0), "c": record(2, oral=Doses([0.0], [1.0]))}
    )
    plan = scenario(cohort.record, until=48.0, every=1.0, oral=Doses([0.0, 30.0], [9.0, 9.0])).inputs.oral
    assert plan.rules.until.tolist() == [[24.0, np.inf], [36.0, 36.0], [np.inf, np.inf]]
    assert plan.rules.restarts.kind.tolist() == [[RESET], [RESET], [NOTHING]]
    other = scenario(cohort.record, until=48.0, every=1.0, oral=0.0).inputs.oral
    assert other.rules.restarts.kind.tolist() == [[RESET], [RESET], [NOTHING]]


def test_a_steady_state_goes_with_its_doses():
    alone = scenario(cleared(STEADY, at=0.0), until=48.0, every=1.0, oral=Doses([0.0], [9.0])).inputs.oral
    assert alone.rules is None
    with pytest.raises(
        ValueError, match="a steady state of 'oral' clears what 'meal' gave before: plan both"
    ):
        scenario(cleared(STEADY), until=48.0, every=1.0, oral=Doses([0.0], [9.0]))
    both = scenario(cleared(STEADY), until=48.0, every=1.0, oral=Doses([0.0], [9.0]), meal=0.0).inputs
    assert both.oral.rules is None


def test_a_signal_that_knows_no_resets_is_refused_where_there_are_some():
    told = "input 'oral' tells of resets, which stay: give Doses without rules, or 0"
    with pytest.raises(ValueError, match=told):
        scenario(cleared(RESET), until=48.0, every=1.0, oral=Steps([0.0], [3.0]))


def test_doses_with_rules_of_their_own_keep_resets_or_are_refused():
    given = cleared(RESET)
    same = scenario(given, until=48.0, every=1.0, oral=given.inputs.oral).inputs.oral
    assert same.rules.restarts.kind.tolist() == given.inputs.oral.rules.restarts.kind.tolist()
    with pytest.raises(ValueError, match="input 'oral' tells of resets, which stay"):
        scenario(given, until=48.0, every=1.0, oral=cleared(RESET, at=30.0).inputs.oral)


def test_a_scenario_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="every must be positive, found 0"):
        scenario(record(1), until=1.0, every=0)
    with pytest.raises(ValueError, match=r"until .* must be later than the record's start"):
        scenario(record(1, t0=2.0), until=1.0, every=1.0)
    with pytest.raises(ValueError, match=r"no input 'orl'; it has \['meal', 'oral'\]"):
        scenario(record(1), until=1.0, every=1.0, orl=2.0)


def test_stacking_a_cohort_of_one_changes_nothing_but_the_axis():
    row = record(3, oral=Doses([0.0], [5.0]))
    cohort = stack({"a": row})
    assert isinstance(cohort, Cohort)
    for found, expected in zip(jax.tree.leaves(cohort["a"]), jax.tree.leaves(row), strict=True):
        np.testing.assert_array_equal(found, expected)
