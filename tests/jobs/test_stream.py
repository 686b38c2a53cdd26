"""Streams of facts against updates by hand, and against streams that were stopped."""

import json
import struct
from dataclasses import replace

import jax
import numpy as np
import pytest
from followed import COHORT, calibrated

from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses
from dtwin_jax.jobs import stream as streaming
from dtwin_jax.jobs import ward as wards
from dtwin_jax.jobs.alarms import NO_FORECAST, Alarm, alarm_of, events_of, read_rules
from dtwin_jax.jobs.document import JobError
from dtwin_jax.jobs.facts import Fact, Refusal
from dtwin_jax.jobs.kept import keep, kept
from dtwin_jax.jobs.outlook import Plan, alarmed, outlook_of, write
from dtwin_jax.jobs.stream import taken_in
from dtwin_jax.jobs.ward import begun, inputs_of, ward_of
from dtwin_jax.models.one_compartment import Inputs, one_compartment
from dtwin_jax.twin.live import assimilate, live, parameters_of
from dtwin_jax.twin.updates import learned

SCHEMA = one_compartment.schema()
LOW = Alarm("low", "concentration", 1.0, True, 6.0, 0.3)
PLAN = Plan(np.array([3.0, 6.0]), (LOW,))


@pytest.fixture(scope="module")
def tree():
    return calibrated()


@pytest.fixture(scope="module")
def ward(tree):
    return ward_of(one_compartment, tree, draws=30, seed=5)


@pytest.fixture(scope="module")
def start(ward):
    return begun(ward)


def seen(patient, time, value, **more):
    return Fact(patient, "concentration", time, value, file="f", **more)


def given(patient, time, amount=100.0, name="oral", **more):
    return Fact(patient, name, time, amount, True, file="f", **more)


def followed(ward, state, *facts):
    """The last state, and how many there were."""
    states = list(taken_in(ward, state, facts, []))
    return states[-1]


def same(a, b):
    """Whether two states have the same twins and facts, to the last bit."""
    moving = [getattr(one.twins, name) for name in wards.MOVING for one in (a, b)]
    leaves = [jax.tree.leaves(part) for part in moving]
    equal = all(
        np.array_equal(x, y)
        for p, q in zip(leaves[::2], leaves[1::2], strict=True)
        for x, y in zip(p, q, strict=True)
    )
    return equal and a.step == b.step and np.array_equal(a.taken, b.taken) and a.room == b.room


FACTS = (
    seen(0, 10.0, 1.5),
    given(0, 12.0, 300.0),
    seen(0, 13.0, 6.5),
    seen(1, 12.0, 0.4),
    seen(0, 16.0, 5.0),
)


def record_by_hand(times, values, mask, doses):
    series = Series(np.array(times)[:, None], np.array(values)[:, None], mask=np.array(mask)[:, None])
    return Record(Inputs(oral=doses, iv=np.zeros(2)), {"concentration": series}, {}, np.zeros(2))


def keys_by_hand(*times):
    """Of the seed, of each patient's position, of the halves of his time, and of no measurement before."""
    found = []
    for patient, time in enumerate(times):
        key = jax.random.fold_in(jax.random.key(5), patient)
        low, high = struct.unpack("<II", struct.pack("<d", time))
        found.append(jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, low), high), 0))
    return jax.numpy.stack(found)


def test_a_stream_is_assimilation_by_hand(ward, start, tree):
    now = live(one_compartment, tree, draws=30)
    doses = Doses(np.array([[12.0] * 4, [9.0] * 4]), np.array([[300.0, 0, 0, 0], [0] * 4]), np.zeros((2, 4)))
    keys = [keys_by_hand(*times) for times in ((10.0, 12.0), (13.0, 12.0), (16.0, 12.0))]
    first = assimilate(
        one_compartment, now, record_by_hand([10.0, 12.0], [1.5, 0.4], [True, True], doses), key=keys[0]
    )
    second = first
    for key, time, value in ((keys[1], 13.0, 6.5), (keys[2], 16.0, 5.0)):
        second = assimilate(
            one_compartment, second, record_by_hand([time, 0.0], [value, 0.0], [True, False], doses), key=key
        )
    found = followed(ward, start, *FACTS)
    assert found.step == 3 and found.twins.time.tolist() == [16.0, 12.0]
    for name in ("u", "log_weight", "belief"):
        of_stream = jax.tree.leaves(getattr(found.twins, name))
        for leaf, of_first, of_second in zip(
            of_stream,
            jax.tree.leaves(getattr(first, name)),
            jax.tree.leaves(getattr(second, name)),
            strict=True,
        ):
            np.testing.assert_array_equal(leaf[0], np.asarray(of_second)[0])
            # Whoever has no new facts is as the last own measurement has left him.
            np.testing.assert_array_equal(leaf[1], np.asarray(of_first)[1])


def test_the_order_of_lines_is_of_no_consequence(ward, start):
    a, b = followed(ward, start, *FACTS), followed(ward, start, *reversed(FACTS))
    np.testing.assert_array_equal(a.twins.u, b.twins.u)
    np.testing.assert_array_equal(a.twins.log_weight, b.twins.log_weight)


def test_other_batches_of_the_same_facts_come_to_the_same_twins(ward, start):
    # Measurements that few draws explain, so that draws are renewed, by random numbers, in both.
    facts = [*FACTS, seen(0, 20.0, 9.0), seen(0, 20.0, 8.5), seen(1, 15.0, 3.0), seen(1, 30.0, 2.0)]
    whole = followed(ward, start, *facts)
    apart, other = start, start
    for fact in facts:
        apart = followed(ward, apart, fact)
    mine, others = [fact for fact in facts if not fact.patient], [fact for fact in facts if fact.patient]
    for batch in (others[:2], mine[:3], others[2:], mine[3:]):
        other = followed(ward, other, *batch)
    assert len({whole.step, apart.step, other.step}) > 1 and whole.twins.renewed.min() > 0
    for found in (apart, other):
        assert not found.refused and found.room == whole.room
        for name in wards.MOVING:
            # The room for doses is the same, so the program is, and a patient's place in it: to the last bit.
            jax.tree.map(
                np.testing.assert_array_equal, getattr(found.twins, name), getattr(whole.twins, name)
            )


def test_one_compiled_program_is_for_all_updates(ward, start):
    now = followed(ward, start, *FACTS)
    before = learned._cache_size()
    for i in range(3):
        now = followed(ward, now, seen(1, 20.0 + i, 0.5, censor=-1), given(i % 2, 20.0 + i, duration=0.5 * i))
    assert now.step == 6 and learned._cache_size() == before


def test_what_is_known_is_passed_over(ward, start):
    known = [seen(0, 8.0, 2.0), given(0, 0.0, 300.0), seen(1, 2.0, 4.0)]
    (again,) = taken_in(ward, start, known, [])
    assert again is start
    once = followed(ward, start, *FACTS)
    (again,) = taken_in(ward, once, [*FACTS, *FACTS], [])
    assert again is once
    assert same(followed(ward, start, *FACTS, *FACTS), once)


def test_what_differs_from_what_was_taken_is_refused(ward, start):
    facts = [*FACTS, given(0, 12.0, 50.0, duration=2.0), seen(1, 20.0, 0.5, censor=-1)]
    once = followed(ward, start, *facts)
    changed = [
        given(0, 12.0, 200.0, line=1),
        given(0, 12.0, 50.0, duration=0.5, line=2),
        seen(1, 20.0, 0.5, line=3),
        given(0, 0.0, 301.0, line=4),
    ]
    (after,) = taken_in(ward, once, [*facts, *changed], [])
    assert same(after, once)
    told = {one["line"]: Refusal(**one) for one in after.refused}
    assert [(line, told[line].field) for line in sorted(told)] == [
        (1, "amount"),
        (2, "duration"),
        (3, "censor"),
        (4, "amount"),
    ]
    assert "found 200 over 0 h, which differs from what was taken, expected 300 over 0 h" in str(told[1])
    assert "found 50 over 0.5 h, which differs from what was taken, expected 50 over 2 h" in str(told[2])
    assert "a second bolus has another time" in str(told[1])
    assert "a second infusion has another time" in str(told[2])
    assert "found 0, which differs from what was taken, expected -1" in str(told[3])
    # Of two doses of a moment in one batch the first is taken.
    both = followed(ward, start, given(1, 20.0, 50.0), given(1, 20.0, 60.0, line=9))
    assert both.taken[-1]["value"] == 50.0 and [one["line"] for one in both.refused] == [9]


def test_a_bolus_and_an_infusion_of_one_moment_are_two_doses(ward, start):
    # That all is below 100 mg/L is known anyway: no draw is moved, and each has a closed form.
    loading = given(0, 12.0, 100.0, "iv", line=1)
    drip = given(0, 12.0, 200.0, "iv", duration=4.0, line=2)
    early, late = seen(0, 12.0, 100.0, censor=-1), seen(0, 16.0, 100.0, censor=-1)
    without = followed(ward, start, late)
    values = parameters_of(start.twins)
    k = values["CL"][0] / values["V"][0]
    extra = 100.0 * np.exp(-4 * k) + 200.0 / 4 / k * (1 - np.exp(-4 * k))
    for batches in (
        [[loading, drip, late]],
        [[drip, loading], [late]],
        [[loading], [drip], [late]],
        [[drip, early], [loading], [late]],
        [[loading, early], [drip], [late, drip, loading]],
    ):
        now = start
        for batch in batches:
            now = followed(ward, now, *batch)
        assert not now.refused and now.twins.renewed[0] == 0 and now.taken["dose"].sum() == 4
        found = now.twins.belief.mean[0] - without.twins.belief.mean[0]
        np.testing.assert_allclose(found[:, 1], extra, rtol=1e-5)


def test_a_time_far_ahead_is_refused_and_locks_nobody_out(ward, start):
    assert ward.ahead == 720.0
    far = [seen(0, 1e12, 1.0, line=1), given(1, 12.0 + 721.0, line=2)]
    now = followed(ward, start, *far, *FACTS)
    assert now.twins.time.tolist() == [16.0, 12.0]
    told = {one["line"]: Refusal(**one) for one in now.refused}
    assert sorted(told) == [1, 2] and {one.field for one in told.values()} == {"time"}
    assert "found 1000000000000 h of patient 'Zoë', expected at most 736 h, 720 h after" in str(told[1])
    # Those of a year are within reach one after another, in whatever batches they come.
    year = [given(1, 600.0), seen(1, 1200.0, 0.1), given(1, 1900.0), seen(1, 2600.0, 0.1)]
    whole = followed(ward, now, *year)
    assert whole.twins.time[1] == 2600.0 and len(whole.refused) == 2
    apart = now
    for fact in year:
        apart = followed(ward, apart, fact)
    np.testing.assert_array_equal(apart.twins.u, whole.twins.u)
    wide = followed(replace(ward, ahead=1e13), start, far[0])
    assert wide.twins.time[0] == 1e12


@pytest.mark.parametrize("steps", [1, 2])
def test_a_stream_that_was_stopped_goes_on_as_if_it_had_not_been(ward, start, tmp_path, steps):
    whole = followed(ward, start, *FACTS)
    states = taken_in(ward, start, FACTS, [])
    for _ in range(steps):
        keep(tmp_path / "twin.npz", ward, next(states))
    found = kept(tmp_path / "twin.npz", ward)
    assert found.step == steps
    assert same(followed(ward, found, *FACTS), whole)


def test_late_facts_are_refused_and_change_nothing(ward, start):
    now = followed(ward, start, *FACTS)
    late = [seen(0, 15.0, 1.0, line=1), given(0, 15.5, line=2), seen(1, 11.0, 1.0, line=3)]
    (after,) = taken_in(ward, now, late, [])
    assert same(after, now)
    told = {one["line"]: Refusal(**one) for one in after.refused}
    assert sorted(told) == [1, 2, 3] and {one.field for one in told.values()} == {"time"}
    assert "found a measurement at 15 h of patient 'Zoë', expected 16 h or later" in str(told[1])
    assert "found a dose at 15.5 h" in str(told[2])
    (again,) = taken_in(ward, after, late, [])
    assert again is after


def test_a_dose_at_the_twins_very_moment_is_given_still(ward, start):
    together = followed(ward, start, seen(0, 10.0, 1.5), given(0, 10.0, 300.0, "iv"))
    apart = followed(ward, followed(ward, start, seen(0, 10.0, 1.5)), given(0, 10.0, 300.0, "iv"))
    bands = [outlook_of(ward, state, PLAN).bands["concentration"] for state in (together, apart)]
    np.testing.assert_allclose(bands[1], bands[0], rtol=1e-9)
    without = outlook_of(ward, followed(ward, start, seen(0, 10.0, 1.5)), PLAN).bands["concentration"]
    assert np.all(bands[1][0, :, 0] > without[0, :, 0] + 2)


def test_a_dose_that_a_lag_has_brought_this_very_moment_is_not_given_twice(ward, start):
    late = replace(start.twins.base, lag=jax.numpy.asarray(1.0))
    state = replace(start, twins=replace(start.twins, base=late))
    doses = given(0, 9.0), given(0, 10.0, 100.0, "iv")
    early, last = (seen(0, time, 100.0, censor=-1) for time in (10.0, 16.0))
    whole, apart = followed(ward, state, *doses, last), state
    for batch in ((doses[0], early), (doses[1],), (last,)):
        apart = followed(ward, apart, *batch)
    assert not apart.refused
    np.testing.assert_allclose(apart.twins.belief.mean[0], whole.twins.belief.mean[0], rtol=1e-6)


def test_of_the_moment_of_a_dose_no_second_measurement_is_taken(ward, start):
    now = followed(ward, start, seen(0, 10.0, 1.5), given(0, 10.0), seen(0, 10.0, 1.6, line=7))
    assert now.step == 1 and len(now.taken) == len(start.taken) + 2
    (refusal,) = now.refused
    assert refusal["line"] == 7 and "of that moment a dose is in the twin" in refusal["expected"]
    (after,) = taken_in(ward, now, [given(0, 10.0, 50.0, line=8)], [])
    assert len(after.refused) == 2 and len(after.taken) == len(now.taken)


def test_two_measurements_of_a_moment_are_two_steps(ward, start):
    now = followed(ward, start, seen(0, 10.0, 1.5), seen(0, 10.0, 1.6))
    assert now.step == 2 and not now.refused


def test_room_for_doses_grows_and_doses_that_are_over_are_forgotten(ward, start, tree):
    assert start.room == {"oral": 4} and start.taken["over"].sum() == 2
    many = [given(0, 9.0 + i, 10.0 + i) for i in range(6)]
    now = followed(ward, start, *many)
    assert now.room == {"oral": 8} and now.step == 0
    now = followed(ward, now, seen(0, 20.0, 2.5))
    more = followed(ward, now, *(given(0, 21.0 + i) for i in range(5)), given(1, 30.0, name="iv"))
    assert more.room == {"oral": 8, "iv": 4} and more.taken["over"].sum() == 8
    assert inputs_of(ward, more).oral.time[0, :5].tolist() == [21.0, 22.0, 23.0, 24.0, 25.0]
    doses = Doses(
        np.array([[9.0, 10, 11, 12, 13, 14], [9.0] * 6]),
        np.array([[10.0, 11, 12, 13, 14, 15], [0.0] * 6]),
        np.zeros((2, 6)),
    )
    new = record_by_hand([20.0, 9.0], [2.5, 0.0], [True, False], doses)
    by_hand = assimilate(
        one_compartment,
        live(one_compartment, tree, draws=30),
        new,
        key=keys_by_hand(20.0, 9.0),
    )
    np.testing.assert_allclose(now.twins.belief.mean[0], by_hand.belief.mean[0], rtol=1e-9)


def test_a_ward_larger_than_a_step_is_taken_in_several(ward, start, monkeypatch):
    for module in (wards, streaming):
        monkeypatch.setattr(module, "BLOCK", 1)
    facts = [seen(1, 12.0, 0.4), seen(0, 10.0, 1.5)]
    states = list(taken_in(ward, start, facts, []))
    assert [state.step for state in states] == [1, 2]
    assert [state.twins.time.tolist() for state in states] == [[10.0, 9.0], [10.0, 12.0]]
    np.testing.assert_array_equal(states[0].twins.u[1], start.twins.u[1])
    assert not np.array_equal(states[1].twins.log_weight[1], start.twins.log_weight[1])


def test_a_state_of_something_else_is_refused(ward, start, tree, tmp_path):
    path = tmp_path / "twin.npz"
    keep(path, ward, start)
    with pytest.raises(JobError, match=r"found a stream of seed 5, expected 6"):
        kept(path, ward_of(one_compartment, tree, draws=30, seed=6))
    with pytest.raises(JobError, match=r"found a stream of draws 30, expected 31"):
        kept(path, ward_of(one_compartment, tree, draws=31, seed=5))
    other = replace(one_compartment, solver=replace(one_compartment.solver, rtol=1e-4))
    with pytest.raises(JobError, match=r"found a stream of model \"one_compartment, .*1e-06.*expected"):
        kept(path, ward_of(other, tree, draws=30, seed=5))
    moved = tree.copy(deep=True)
    moved["posterior"]["CL"].values[0, 0] += 0.1
    with pytest.raises(JobError, match="another result; pass another --output"):
        kept(path, ward_of(one_compartment, moved, draws=30, seed=5))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(JobError, match="no whole state"):
        kept(path, ward)


@pytest.mark.parametrize(
    "change",
    [
        {"said": np.frombuffer(b"[]", np.uint8)},
        {"said": np.frombuffer(b'{"mark": []}', np.uint8)},
        {"said": np.frombuffer(b"\xff{", np.uint8)},
        {"u": np.zeros((2, 30))},
        {"time": np.zeros(3)},
        {"time": np.array(["a", "b"])},
        {"covariance": np.zeros((2, 30, 1, 1))},
        {"taken": np.zeros(3)},
        {"taken": np.full(1, 7, wards.TAKEN)},
    ],
)
def test_a_damaged_state_is_told_in_one_line(ward, start, tmp_path, change):
    path = tmp_path / "twin.npz"
    keep(path, ward, start)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | change))
    with pytest.raises(JobError) as told:
        kept(path, ward)
    assert "twin.npz: found no whole state" in str(told.value) and "\n" not in str(told.value)


REFUSED = {"file": "a", "line": 1, "field": "", "found": "x", "expected": "y"}
EVENT = {"patient": "a", "rule": "low", "alarm": "ends", "probability": None, "time": 1, "unsolved": 0.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"room": {"oral": "4"}}, "room.oral: found '4'"),
        ({"room": {"orl": 4, "oral": 4}}, "doses through ['orl'], which are not followed"),
        ({"room": {"oral": 0}}, "room for 0 doses through 'oral', expected 1"),
        ({"step": -1}, "step: found -1"),
        ({"told": [1]}, "told"),
        ({"standing": [["a"]]}, "standing[0]"),
        ({"events": [EVENT, {}]}, "events[1].patient"),
        ({"events": [EVENT | {"alarm": "starts"}]}, "events[0].alarm: found 'starts'"),
        ({"refused": [REFUSED | {"line": "1"}]}, "refused[0].line: found '1'"),
        ({"refused": [REFUSED | {"more": 1}]}, "refused[0].more"),
        ({"refused": "none"}, "refused: found 'none'"),
        ({"further": 1}, "further"),
    ],
)
def test_what_is_said_in_a_damaged_state_is_told_by_its_place(ward, start, tmp_path, change, words):
    path = tmp_path / "twin.npz"
    state = followed(ward, start, given(0, 12.0))
    whole = replace(state, events=(EVENT,), refused=(REFUSED,), standing=(("a", "low"),))
    keep(path, ward, whole)
    with np.load(path) as file:
        arrays = dict(file)
    said = json.loads(arrays["said"].tobytes())
    found = kept(path, ward)
    assert same(found, whole) and found.events == (EVENT,) and found.refused == (REFUSED,)
    text = json.dumps(said | change).encode()
    np.savez(path, **(arrays | {"said": np.frombuffer(text, np.uint8)}))
    with pytest.raises(JobError) as told:
        kept(path, ward)
    assert "twin.npz: found no whole state" in str(told.value) and "\n" not in str(told.value)
    assert words in str(told.value)


def test_a_fact_of_no_channel_in_a_damaged_state_is_told(ward, start, tmp_path):
    taken = start.taken.copy()
    taken["name"][0] = 7
    keep(tmp_path / "twin.npz", ward, replace(start, taken=taken))
    with pytest.raises(JobError, match=r"twin.npz: .* a fact of a channel or input 7"):
        kept(tmp_path / "twin.npz", ward)


def test_an_alarm_begins_once_and_ends_once(ward, start):
    state, states = start, []
    for facts in (
        [seen(0, 10.0, 1.5)],
        [seen(0, 11.0, 1.4)],
        [given(0, 12.0, 300.0), seen(0, 13.0, 6.5)],
        [],
    ):
        state = followed(ward, state, *facts)
        state = alarmed(ward, state, PLAN, outlook_of(ward, state, PLAN))
        states.append(state)
    mine = [event for event in state.events if event["patient"] == "Zoë"]
    assert [(event["alarm"], event["time"]) for event in mine] == [("begins", 10.0), ("ends", 13.0)]
    assert mine[0]["probability"] >= 0.3 > mine[1]["probability"]
    assert ("Zoë", "low") in states[1].standing and ("Zoë", "low") not in state.standing


def test_forecasts_of_whom_nothing_has_changed_are_kept(ward, start):
    before = outlook_of(ward, start, PLAN)
    now = followed(ward, start, seen(0, 10.0, 1.5))
    kept_, anew = outlook_of(ward, now, PLAN, before, {0}), outlook_of(ward, now, PLAN)
    np.testing.assert_allclose(kept_.bands["concentration"], anew.bands["concentration"], rtol=1e-12)
    np.testing.assert_array_equal(before.bands["concentration"][1], anew.bands["concentration"][1])


def test_a_forecast_that_fails_is_told_and_no_number(ward, start, tmp_path):
    u = start.twins.u.copy()
    u[0, 3:] = np.nan
    broken = replace(start, twins=replace(start.twins, u=u), standing=(("Zoë", "low"),))
    outlook = outlook_of(ward, broken, PLAN)
    state = alarmed(ward, broken, PLAN, outlook)
    (event,) = [event for event in state.events if event["patient"] == "Zoë"]
    assert (event["rule"], event["alarm"]) == (NO_FORECAST, "begins") and 0.5 < event["probability"] == event[
        "unsolved"
    ]
    assert ("Zoë", "low") in state.standing
    write(tmp_path, ward, state, PLAN, outlook)
    rows = [line.split(",") for line in (tmp_path / "forecast.csv").read_text().splitlines()]
    assert rows[1] == ["Zoë", "concentration", "11", "", "", "", ""] and all(rows[3])
    assert (tmp_path / "status.csv").read_text().splitlines()[1].startswith("Zoë,8,3,30.0,0,0,0.")
    well = alarmed(ward, replace(state, twins=start.twins), PLAN, outlook_of(ward, start, PLAN))
    assert (NO_FORECAST, "ends") in {(event["rule"], event["alarm"]) for event in well.events}


def test_alarms_are_of_the_draws_that_were_solved(ward, start):
    u = start.twins.u.copy()
    u[0, 3] = np.nan
    broken = replace(start, twins=replace(start.twins, u=u))
    whole, outlook = outlook_of(ward, start, PLAN), outlook_of(ward, broken, PLAN)
    state = alarmed(ward, broken, PLAN, outlook)
    assert 0 < outlook.failed[0] <= 0.1 and outlook.failed[1] == 0
    assert np.all(np.isfinite(outlook.bands["concentration"]))
    # Without a tenth of the draws a share moves by no more than that.
    assert abs(outlook.chances["low"][0] - whole.chances["low"][0]) <= 0.1 and whole.chances["low"][0] >= 0.4
    (event,) = [event for event in state.events if event["patient"] == "Zoë"]
    assert (event["rule"], event["alarm"], event["unsolved"]) == ("low", "begins", outlook.failed[0])


def test_a_twin_that_stayed_behind_has_no_forecast_and_its_dose_still_to_come(ward, start):
    u = start.twins.u.copy()
    u[0] = np.nan
    facts = [given(0, 9.0, 300.0), seen(0, 10.0, 6.0)]
    stuck = followed(ward, replace(start, twins=replace(start.twins, u=u)), *facts)
    assert stuck.twins.time[0] == 8.0 == stuck.twins.given[0] and stuck.twins.lost[0] == 1
    mended = replace(stuck, twins=replace(stuck.twins, u=start.twins.u))
    assert outlook_of(ward, mended, PLAN).failed.tolist() == [1.0, 0.0]
    later = outlook_of(ward, followed(ward, mended, seen(0, 11.0, 6.0)), PLAN)
    without = outlook_of(ward, followed(ward, start, seen(0, 11.0, 6.0)), PLAN)
    assert later.failed[0] == 0
    means = [found.bands["concentration"][0, 0, 0] for found in (later, without)]
    assert means[0] > means[1] + 1


def test_a_chance_is_the_share_of_draws_beyond_the_limit_at_some_time_within():
    drawn = np.array([[[2.0, 0.5, 0.1]], [[2.0, 2.0, 0.1]], [[0.9, 2.0, 2.0]], [[2.0, 2.0, 2.0]]])
    ahead = np.array([1.0, 2.0, 3.0])
    assert replace(LOW, within=2.0).chance(drawn, ahead).tolist() == [0.5]
    assert replace(LOW, within=3.0).chance(drawn, ahead).tolist() == [0.75]
    assert replace(LOW, below=False, within=1.0).chance(drawn, ahead).tolist() == [0.75]


def test_an_alarm_whose_rule_has_gone_ends():
    events = events_of([("a", "old")], [LOW], {"low": np.array([0.1])}, np.zeros(1), ("a",))
    assert events == [("a", "old", "ends", None)]


def test_rules_of_a_file_are_those_of_options(tmp_path):
    (tmp_path / "rules.toml").write_text(
        '[[alarms]]\nchannel = "concentration"\nbelow = "900 ug/L"\nwithin = "30 min"\nprobability = 0.3\n'
    )
    found = read_rules(tmp_path / "rules.toml", SCHEMA)
    assert found == [alarm_of("concentration<0.9 within 30min p>=0.3", SCHEMA)]
    assert found[0] == Alarm("concentration<0.9 within 0.5 h p>=0.3", "concentration", 0.9, True, 0.5, 0.3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("concentration 1", "expected the form"),
        ("concentratoin<1 within 6 p>=0.3", "did you mean 'concentration'"),
        ("concentration<1kg within 6 p>=0.3", "kg"),
        ("concentration<1 within 6mg p>=0.3", "mg"),
        ("concentration<1 within -6 p>=0.3", "a time above 0"),
        ("concentration<1 within 6 p>=often", "a probability"),
        ("concentration<1 within 6 p>=1.3", "found 1.3"),
        ("concentration<nan within 6 p>=0.3", "expected a number"),
    ],
)
def test_a_bad_alarm_is_refused(text, words):
    with pytest.raises(JobError) as told:
        alarm_of(text, SCHEMA)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_a_bad_rule_is_refused_by_line_and_key(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text('[[alarms]]\nchannel = "conc"\nbelow = 1\nabove = 2\nwithin = 3\nprobability = 0.3\n')
    with pytest.raises(JobError, match=r"rules.toml: line 1, key 'alarms\[0\]': expected one limit"):
        read_rules(path, SCHEMA)
    path.write_text('[[alarms]]\nchannel = "conc"\nbelow = 1\nwithin = 3\nprobability = 0.3\n')
    with pytest.raises(JobError, match=r"line 2, key 'alarms\[0\].channel'"):
        read_rules(path, SCHEMA)


def test_the_cohort_is_that_of_the_result(ward):
    assert ward.ids == COHORT.ids
    subjects = ward.subjects()
    assert list(subjects.inputs) == ["oral", "iv"] and list(subjects.channels) == ["concentration"]


def test_computation_in_single_precision_is_refused(tree):
    with jax.enable_x64(False), pytest.raises(JobError, match="float32"):
        ward_of(one_compartment, tree)
