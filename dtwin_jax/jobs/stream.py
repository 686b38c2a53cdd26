"""Facts taken step by step into the twins of patients that are followed.

A step takes of some patients the next moment at which they were measured. What is drawn for a patient is
of the seed, of his position and of the moment, and what a step takes depends on the state alone and on the
facts that are not in it yet. So a stream whose state was kept after each step goes on, wherever it was
stopped, as if it had not been: what is known already is passed over. And the same facts in other batches come
to the same twins, where every patient's moments come in the order of time, each whole, and doses before the
twin has passed them.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from dtwin_jax.core.record import Record, Series
from dtwin_jax.jobs.facts import Fact, Refusal
from dtwin_jax.jobs.ward import (
    BLOCK,
    MOVING,
    TAKEN,
    State,
    Ward,
    forgotten,
    inputs_of,
    rows_of,
    twins_of,
    with_doses,
)
from dtwin_jax.twin.live import assimilate

# Refusals that are remembered.
_REFUSALS = 10_000


def taken_in(ward: Ward, state: State, facts: Iterable[Fact], refusals: Iterable[Refusal]) -> Iterator[State]:
    """The states after each step that some facts make, in the order of time; one at least.

    Facts that are known are passed over. Refused are those that differ from what was taken (a bolus of the
    same patient, input and time, or an infusion; a measurement of the same value, but another side of it),
    and those further ahead of the patient's last fact than `ward.ahead`.

    Args:
        ward: what is followed.
        state: where the stream is.
        facts: any number, in any order.
        refusals: of lines that were read with them.
    """
    state = refusing(state, refusals)
    new, differing = _unknown(ward, state, facts)
    new, far = _within(ward, state, new)
    state = refusing(state, [*differing, *far])
    state = _dosed(ward, state, [fact for fact in new if fact.dose])
    waiting: dict[int, list[Fact]] = {}
    for fact in sorted((fact for fact in new if not fact.dose), key=lambda fact: fact.time):
        waiting.setdefault(fact.patient, []).append(fact)
    moved = False
    while waiting:
        before = state.step
        state, waiting = _stepped(ward, state, waiting)
        moved = state.step > before
        if moved:
            yield state
    if not moved:
        yield state


def refusing(state: State, refusals: Iterable[Refusal]) -> State:
    """The state with more refusals, each told once however often its line is read."""
    told = {_said(one): one for one in state.refused}
    before = len(told)
    for refusal in refusals:
        one = refusal.as_dict()
        told.setdefault(_said(one), one)
    if len(told) == before:
        return state
    return replace(state, refused=tuple(told.values())[-_REFUSALS:])


def _said(refusal: dict[str, Any]) -> tuple[Any, ...]:
    # What is expected of a time moves with the twin.
    return tuple(refusal[name] for name in ("file", "line", "field", "found"))


# What is known of a fact that was taken.
_KNOWN: list[str] = ["patient", "name", "dose", "time", "value", "duration", "censor"]


def _known(ward: Ward, fact: Fact) -> tuple[Any, ...]:
    name = ward.place(fact.name, fact.dose)
    return fact.patient, name, fact.dose, fact.time, fact.value, fact.duration, fact.censor


def _mark(known: tuple[Any, ...]) -> tuple[Any, ...]:
    """By what a fact is known again: a moment may have several values, but of an input one bolus.

    And one infusion: a loading dose goes with it.
    """
    patient, name, dose, time, value, duration, _ = known
    return patient, name, dose, time, (duration == 0) if dose else value


def _unknown(ward: Ward, state: State, facts: Iterable[Fact]) -> tuple[list[Fact], list[Refusal]]:
    """Those that are new, and refusals of those that say otherwise what was taken."""
    facts = list(facts)
    near = state.taken[np.isin(state.taken["time"], [fact.time for fact in facts])]
    taken: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for row in near[_KNOWN].tolist():
        taken.setdefault(_mark(row), []).append(row)
    found, differing = [], []
    for fact in facts:
        known = _known(ward, fact)
        before = taken.setdefault(_mark(known), [])
        if not before:
            before.append(known)
            found.append(fact)
        elif known not in before:
            differing.append(_differs(ward, fact, before[0]))
    return found, differing


def _differs(ward: Ward, fact: Fact, before: tuple[Any, ...]) -> Refusal:
    *_, value, duration, censor = before
    if not fact.dose:
        expected = f"{censor}, as was taken of this value; a second measurement has another time or value"
        return Refusal(
            fact.file, fact.line, "censor", f"{fact.censor}, which differs from what was taken", expected
        )
    unit = ward.model.schema().time_unit
    field = "amount" if fact.value != value else "duration"
    found, was = (
        f"{amount:.17g} over {length:.17g} {unit}"
        for amount, length in ((fact.value, fact.duration), (value, duration))
    )
    kind = "infusion" if duration else "bolus"
    expected = f"{was}, as was taken of this time; a second {kind} has another time"
    return Refusal(fact.file, fact.line, field, f"{found}, which differs from what was taken", expected)


def _within(ward: Ward, state: State, facts: list[Fact]) -> tuple[list[Fact], list[Refusal]]:
    """Those that follow what came before them soon enough, and refusals of the others.

    One wrong time would take the patient's twin there, and whatever comes then would be late.
    """
    last = state.twins.time.copy()
    np.maximum.at(last, state.taken["patient"], state.taken["time"])
    found, far = [], []
    for fact in sorted(facts, key=lambda fact: fact.time):
        if fact.time > last[fact.patient] + ward.ahead:
            far.append(_far(ward, fact, last[fact.patient]))
            continue
        last[fact.patient] = max(last[fact.patient], fact.time)
        found.append(fact)
    return found, far


def _far(ward: Ward, fact: Fact, last: float) -> Refusal:
    unit, most = ward.model.schema().time_unit, last + ward.ahead
    found = f"{fact.time:.17g} {unit} of patient {ward.ids[fact.patient]!r}"
    says = f"{ward.ahead:g} {unit} after the patient's last fact"
    return Refusal(fact.file, fact.line, "time", found, f"at most {most:.17g} {unit}, {says} (--ahead)")


def brings_the_last(ward: Ward, state: State, facts: Iterable[Fact]) -> bool:
    """Whether the fact taken last is one of these, all known: then the batch was over before a stop."""
    if not len(state.taken):
        return False
    last = state.taken[_KNOWN][-1:].tolist()[0]
    return any(_known(ward, fact) == last for fact in facts)


def _dosed(ward: Ward, state: State, doses: list[Fact]) -> State:
    """With the doses that are not late; they are in the twins' states when time has come to them."""
    if not doses:
        return state
    given, good, late = state.twins.given.copy(), [], []
    for dose in doses:
        time, now = dose.time, state.twins.time[dose.patient]
        at_once = dose.duration == 0
        if time < now or (at_once and time <= given[dose.patient] and _given_at(state, dose.patient, time)):
            late.append(_late(ward, dose, now))
            continue
        if at_once and time <= given[dose.patient]:
            # The twin has come to this very moment by a measurement, and is to be given the dose still.
            given[dose.patient] = np.nextafter(time, -np.inf)
        good.append(dose)
    state = refusing(state, late)
    if not good:
        return state
    if np.any(given < state.twins.given):
        # A lag may have brought an older dose this very moment: it is in the twin, and is not given again.
        state = forgotten(ward, state)
    return with_doses(ward, replace(state, twins=replace(state.twins, given=given)), _rows(ward, good))


def _given_at(state: State, patient: int, time: float) -> bool:
    """Whether a bolus of this moment is known."""
    rows = state.taken[(state.taken["patient"] == patient) & (state.taken["time"] == time)]
    return bool(np.any(rows["dose"] & (rows["duration"] == 0)))


def _late(ward: Ward, fact: Fact, now: float) -> Refusal:
    unit = ward.model.schema().time_unit
    kind = "dose" if fact.dose else "measurement"
    found = f"a {kind} at {fact.time:.17g} {unit} of patient {ward.ids[fact.patient]!r}"
    expected = f"{now:.17g} {unit} or later: the twin is there already"
    if fact.time == now:
        expected = f"one after {now:.17g} {unit}: of that moment a dose is in the twin already"
    return Refusal(fact.file, fact.line, "time", found, expected)


def _rows(ward: Ward, facts: list[Fact]) -> np.ndarray:
    rows = [
        (f.patient, ward.place(f.name, f.dose), f.dose, f.time, f.value, f.duration, f.censor, False)
        for f in facts
    ]
    return np.array(rows, TAKEN)


def _stepped(ward: Ward, state: State, waiting: dict[int, list[Fact]]) -> tuple[State, dict[int, list[Fact]]]:
    """One step, and what is left of the measurements, which are in the order of time."""
    left: dict[int, list[Fact]] = {}
    chosen: dict[int, list[Fact]] = {}
    late = []
    for patient in sorted(waiting):
        facts, now = waiting[patient], float(state.twins.time[patient])
        if len(chosen) == BLOCK:
            left[patient] = facts
            continue
        good = [fact for fact in facts if not _past(state, fact, now)]
        late += [_late(ward, fact, now) for fact in facts if _past(state, fact, now)]
        if good:
            # Of one moment a channel has one place.
            first = {fact.name: fact for fact in reversed(good) if fact.time == good[0].time}
            chosen[patient] = list(first.values())
            rest = [fact for fact in good if first.get(fact.name) is not fact]
            left |= {patient: rest} if rest else {}
    state = refusing(state, late)
    return (_learned(ward, state, chosen) if chosen else state), left


def _past(state: State, fact: Fact, now: float) -> bool:
    """Whether the twin can no longer learn from a measurement: it is later, or was given a dose since."""
    if fact.time != now:
        return fact.time < now
    return now <= state.twins.given[fact.patient] and _given_at(state, fact.patient, now)


def _learned(ward: Ward, state: State, chosen: dict[int, list[Fact]]) -> State:
    """The state after measurements of one moment of each of some patients."""
    rows = rows_of(ward, list(chosen))
    twins = twins_of(state, rows)
    observations = {}
    for name in ward.channels:
        time, value = twins.time[:, None].copy(), np.zeros((len(rows), 1))
        mask, censor = np.zeros((len(rows), 1), bool), np.zeros((len(rows), 1), int)
        for at, patient in enumerate(rows.tolist()):
            for fact in chosen.get(patient, ()):
                if fact.name == name:
                    time[at], value[at], mask[at], censor[at] = fact.time, fact.value, True, fact.censor
        observations[name] = Series(time, value, mask=mask, censor=censor)
    inputs = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], inputs_of(ward, state))
    new = Record(inputs, observations, {}, twins.time)
    keys = _keys(ward.key, rows, *_moments(state, rows, chosen))
    after = assimilate(ward.f, twins, new, key=keys)
    measured = np.isin(rows, list(chosen))
    moved = {
        name: jax.tree.map(_put(rows, measured), getattr(state.twins, name), getattr(after, name))
        for name in MOVING
    }
    taken = np.concatenate([state.taken, _rows(ward, [fact for facts in chosen.values() for fact in facts])])
    return replace(state, twins=replace(state.twins, **moved), taken=taken, step=state.step + 1)


def _moments(state: State, rows: np.ndarray, chosen: dict[int, list[Fact]]) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the time, and how many measurements of that time its twin has learned from already."""
    times = state.twins.time[rows]
    times[np.isin(rows, list(chosen))] = [chosen[i][0].time for i in rows.tolist() if i in chosen]
    near = state.taken[~state.taken["dose"] & np.isin(state.taken["time"], times)]
    same = (near["patient"] == rows[:, None]) & (near["time"] == times[:, None])
    return times, np.sum(same, axis=1)


def _keys(root: Any, rows: np.ndarray, times: np.ndarray, before: np.ndarray) -> Any:
    """(row,) random keys of a patient's position and of a moment, whatever else is in the step."""
    # A time in bits: no two are one key.
    words = np.stack(
        [rows.astype(np.uint32), *times.view(np.uint32).reshape(-1, 2).T, before.astype(np.uint32)]
    )
    return _folded(root, words)


@jax.jit
def _folded(root: Any, words: Any) -> Any:
    def one(words: Any) -> Any:
        return functools.reduce(jax.random.fold_in, words, root)

    return jax.vmap(one, in_axes=1)(words)


def _put(rows: np.ndarray, mask: np.ndarray) -> Any:
    """A function of old and new arrays: the new where measured; other rows have only filled a place."""

    def put(old: np.ndarray, new: Any) -> np.ndarray:
        whole = old.copy()
        whole[rows[mask]] = np.asarray(new)[mask]
        return whole

    return put
