"""Facts to records: units converted, once; faults found here, with their place, and never in a likelihood."""

from typing import Any

import numpy as np

from dtwin_jax.core.occasions import with_occasions
from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.record import SEEN, Record, Series
from dtwin_jax.core.rules import DURATION, NOTHING, RESET, STEADY, Restarts, Rules
from dtwin_jax.core.signal import Doses, Sampled, Steps
from dtwin_jax.core.units import UnitError, compatible, convert, product
from dtwin_jax.io.facts import Reading, stated_unit
from dtwin_jax.io.names import INPUT, KNOWN, OUTPUT, Target, Vocabulary, amount_unit
from dtwin_jax.io.rows import TableError

# Times that differ by less, relative or in the model's unit, are one.
_SAME = 1e-9
AMOUNT, RATE, VALUE = "amount", "rate", "value"


def records(
    reading: Reading, vocabulary: Vocabulary, inputs: Any, t0: float | None = None
) -> dict[str, Record]:
    """One record a patient, in the order of the file.

    Args:
        reading: of the table.
        vocabulary: the model's names.
        inputs: the model's neutral inputs; None for a predictor that has none.
        t0: where every record starts; None for time 0, or a patient's first dose or measurement where that
            is earlier. Values of an input may be older: the state holds from the start on.

    Raises:
        TableError: a unit that is missing or does not fit, a value outside the plausible range, a row that
            stands twice, a known value that changes, a patient without measurements, a dose before `t0`.
    """
    value, limit, dose = _in_model_units(reading, vocabulary)
    _check_amounts(reading, vocabulary, dose)
    _check_early(reading, vocabulary, dose, t0)
    _check_plausible(reading, vocabulary, value, dose)
    _check_one_kind(reading, vocabulary, dose)
    _check_twice(reading, vocabulary)
    _check_constant(reading, vocabulary, value)
    _check_measured(reading, vocabulary)
    columns, facts = reading.columns, reading.facts
    patient, when = columns.patient[facts.row], _when(reading)
    order = np.lexsort((facts.restart == NOTHING, when, facts.target, patient))
    told = {
        "time": when,
        "value": value,
        "duration": facts.duration,
        "censor": facts.censor,
        "limit": limit,
        "after": _after(reading, dose),
        "dose": dose,
        "target": facts.target,
        "row": facts.row,
        "held": facts.held,
        "restart": facts.restart,
        "interval": facts.interval,
    }
    told = {name: array[order] for name, array in told.items()}
    starts = np.searchsorted(patient[order], np.arange(len(columns.patients) + 1))
    found = {}
    for name, start, end in zip(columns.patients, starts[:-1], starts[1:], strict=True):
        mine = {key: array[start:end] for key, array in told.items()}
        found[name] = _record(mine, vocabulary.targets, reading.shape, inputs, t0)
    return _with_occasions(found, reading) if reading.begins else found


def _with_occasions(found: dict[str, Record], reading: Reading) -> dict[str, Record]:
    """The records, each with the times at which its occasions begin.

    The first is that in which the record begins: what was before it, as a row before the dose, is none.
    """
    columns, rows = reading.columns, np.asarray(reading.begins)
    patient, time = columns.patient[rows], reading.time[rows]
    start = np.asarray([float(found[columns.patients[who]].t0) for who in patient])
    rows, patient, time = (each[time > start] for each in (rows, patient, time))
    again = np.zeros(len(columns.patient), bool)
    again[rows] = (np.diff(patient, prepend=-1) == 0) & (np.diff(time, prepend=-np.inf) <= 0)
    columns.refuse(again, "occ", "a later time than that at which the occasion before began")
    if not len(rows):
        return found
    count = 1 + int(np.bincount(patient).max())
    # The rows of a patient stand together, in the order of the patients.
    times = np.split(time, np.searchsorted(patient, np.arange(1, len(columns.patients))))
    return {
        name: with_occasions(found[name], own.tolist(), count)
        for name, own in zip(columns.patients, times, strict=True)
    }


def _record(
    told: dict[str, np.ndarray], targets: tuple[Target, ...], shape: str, inputs: Any, t0: float | None
) -> Record:
    """The record of one patient, from arrays of its facts that are sorted by target and time."""
    signals, observations, known = {}, {}, {}
    first = 0.0
    clears = _clears(told)
    edges = np.flatnonzero(np.diff(told["target"])) + 1
    for start, end in zip((0, *edges), (*edges, len(told["target"])), strict=True):
        target = targets[told["target"][start]]
        time, value = told["time"][start:end], told["value"][start:end]
        if target.kind == KNOWN:
            known[target.name] = np.asarray(value[0])
            continue
        if target.kind == OUTPUT or told["dose"][start]:
            first = min(first, float(time[0]))
        if target.kind == OUTPUT:
            censor = told["censor"][start:end] if np.any(told["censor"][start:end] != SEEN) else None
            after = told["after"][start:end]
            limit = told["limit"][start:end] if np.isfinite(told["limit"][start:end]).any() else None
            observations[target.name] = Series(time, value, censor=censor, after=after, limit=limit)
        elif told["dose"][start]:
            signals[target.name] = _doses({key: array[start:end] for key, array in told.items()}, clears)
        else:
            kind = Steps if (target.shape or shape) == "steps" else Sampled
            signals[target.name] = kind(time, value)
    inputs = replace_fields(inputs, signals) if signals else inputs
    return Record(inputs, observations, known, first if t0 is None else t0)


def _when(reading: Reading) -> np.ndarray:
    """The time of every fact; an additional dose at the time of a row is at it, in spite of roundings."""
    facts, when = reading.facts, reading.when
    patient = reading.columns.patient
    moved = facts.later > 0
    for who in np.unique(patient[facts.row[moved]]):
        at = np.flatnonzero(moved & (patient[facts.row] == who))
        rows = np.unique(reading.time[(patient == who) & ~np.isnan(reading.time)])
        place = np.clip(np.searchsorted(rows, when[at]), 1, max(len(rows) - 1, 1))
        near = np.stack([rows[place - 1], rows[np.minimum(place, len(rows) - 1)]])
        near = near[np.argmin(np.abs(near - when[at]), axis=0), np.arange(len(at))]
        same = np.abs(near - when[at]) < _SAME * np.maximum(np.abs(near), 1.0)
        when[at] = np.where(same, near, when[at])
    return when


def _clears(told: dict[str, np.ndarray]) -> np.ndarray:
    """Rows and times (2, n) at which nothing is left of what was given before."""
    at = np.isin(told["restart"], (RESET, STEADY))
    return np.stack([told["row"][at], told["time"][at]])


def _doses(told: dict[str, np.ndarray], clears: np.ndarray) -> Doses:
    """The doses of one input, with rules where any are needed."""
    rows, times = clears
    ended = rows[None] > told["row"][:, None]
    until = np.min(np.where(ended, times[None], np.inf), axis=1, initial=np.inf)
    again, given = (np.flatnonzero((told["restart"] != NOTHING) == restart) for restart in (True, False))
    doses = told["time"][given], told["value"][given], told["duration"][given]
    held = told["held"]
    if not len(again) and not np.isfinite(until).any() and not (held != DURATION).any():
        return Doses(*doses)
    interval, length = told["interval"][again], told["duration"][again]
    # What the model says of a duration is not known here: room for as much as an interval.
    share = np.where(
        (interval > 0) & np.isfinite(length), length / np.where(interval > 0, interval, 1.0), 1.0
    )
    restarts = Restarts(
        told["time"][again],
        told["restart"][again],
        told["value"][again],
        length,
        held[again],
        interval,
        np.zeros(len(again)),
        until[again],
        # One more than is stated: bioavailability may make an infusion longer.
        overlap=1 + int(np.ceil(share.max(initial=1.0))),
    )
    return Doses(*doses, rules=Rules(held[given], until[given], restarts))


def _in_model_units(reading: Reading, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and limits in the model's units, and what is a dose; converted at once where facts are alike."""
    facts = reading.facts
    value, limit, dose = facts.value.copy(), facts.limit.copy(), np.zeros(len(facts), bool)
    width = len(facts.units) + 1
    key = (facts.target * width + facts.unit + 1) * len(facts.columns) + facts.column
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    for group in np.argsort(first):
        at, mine = int(first[group]), inverse == group
        target = vocabulary.targets[facts.target[at]]
        unit = _unit_of(reading, vocabulary, at)
        kind, wanted = _reading_of(target, unit, vocabulary.time_unit, bool(facts.given[at]))
        try:
            value[mine] = convert(value[mine], unit, wanted, target.quantity.molar_mass)
            limit[mine] = convert(limit[mine], unit, wanted, target.quantity.molar_mass)
        except UnitError as error:
            raise _unit_error(reading, at, repr(unit), f"a unit for {target.name!r}: {error}") from None
        if kind == RATE:
            # A rate with a duration is an infusion; without one it is the value at that time.
            infused = mine & (facts.duration > 0)
            value[infused] *= facts.duration[infused]
            dose |= infused
        elif kind == AMOUNT:
            dose |= mine
    return value, limit, dose


def _reading_of(target: Target, unit: str, time_unit: str, given: bool) -> tuple[str, str]:
    """What a value in `unit` says of a target, and the unit that it is converted to."""
    quantity = target.quantity
    if target.kind != INPUT:
        return VALUE, quantity.unit
    amount = product(quantity.unit, time_unit)
    if given or compatible(unit, amount, quantity.molar_mass):
        return AMOUNT, amount
    return RATE, quantity.unit


def _unit_of(reading: Reading, vocabulary: Vocabulary, at: int) -> str:
    facts, columns = reading.facts, reading.columns
    target, role = vocabulary.targets[facts.target[at]], facts.columns[facts.column[at]]
    if facts.restart[at] == RESET:
        return product(target.quantity.unit, vocabulary.time_unit)  # nothing is given
    unit = facts.units[facts.unit[at]] if facts.unit[at] >= 0 else ""
    unit = unit or stated_unit(columns, vocabulary, role, target.name)
    if not unit and target.quantity.unit == "1" and not facts.given[at]:
        return "1"
    if not unit:
        example = target.quantity.unit
        if facts.given[at]:
            example = amount_unit(example, vocabulary.time_unit)
        expected = f"a unit for {target.name!r}, such as {example!r}; or pass units={{{target.name!r}: ...}}"
        raise _unit_error(reading, at, "nothing" if facts.unit[at] >= 0 else "no unit", expected)
    return unit


def _unit_error(reading: Reading, at: int, found: str, expected: str) -> TableError:
    facts, columns = reading.facts, reading.columns
    from_cell = facts.unit[at] >= 0
    role = "unit" if from_cell and "unit" in columns.texts else facts.columns[facts.column[at]]
    return columns.error(int(facts.row[at]), role, found, expected)


def _check_amounts(reading: Reading, vocabulary: Vocabulary, dose: np.ndarray) -> None:
    facts = reading.facts
    negative = dose & (facts.value < 0)
    if negative.any():
        at = int(np.argmax(negative))
        found = f"{facts.value[at]:.15g} of {vocabulary.targets[facts.target[at]].name!r}"
        role = facts.columns[facts.column[at]]
        raise reading.columns.error(int(facts.row[at]), role, found, "an amount that is not negative")


def _check_early(reading: Reading, vocabulary: Vocabulary, dose: np.ndarray, t0: float | None) -> None:
    facts = reading.facts
    early = dose & (reading.when < (-np.inf if t0 is None else t0))
    if early.any():
        at = int(np.argmax(early))
        row, name = int(facts.row[at]), vocabulary.targets[facts.target[at]].name
        found = f"a dose of {name!r} at {reading.time[row]:g} {vocabulary.time_unit}"
        raise reading.columns.error(row, "time", found, f"none before t0, {t0:g} {vocabulary.time_unit}")


def _check_plausible(reading: Reading, vocabulary: Vocabulary, value: np.ndarray, dose: np.ndarray) -> None:
    facts = reading.facts
    low = np.full(len(vocabulary.targets), -np.inf)
    high = np.full(len(vocabulary.targets), np.inf)
    for position, target in enumerate(vocabulary.targets):
        if target.kind != KNOWN and target.quantity.plausible is not None:
            low[position], high[position] = target.quantity.plausible
    outside = (value < low[facts.target]) | (value > high[facts.target])
    # The range of an input is that of its values, not of amounts.
    outside &= ~dose
    if outside.any():
        at = int(np.argmax(outside))
        target = vocabulary.targets[facts.target[at]]
        unit, wanted = _unit_of(reading, vocabulary, at), target.quantity.unit
        found = f"{facts.value[at]:.15g} {unit}" + ("" if unit == wanted else f" ({value[at]:.6g} {wanted})")
        bounds = f"{low[facts.target[at]]:g} to {high[facts.target[at]]:g} {wanted}"
        expected = f"{bounds} for {target.name!r}: is the unit right?"
        raise reading.columns.error(int(facts.row[at]), facts.columns[facts.column[at]], found, expected)


def _check_one_kind(reading: Reading, vocabulary: Vocabulary, dose: np.ndarray) -> None:
    facts = reading.facts
    for position in vocabulary.of_kind(INPUT):
        mine = np.flatnonzero(facts.target == position)
        mixed = mine[dose[mine] != dose[mine[0]]] if len(mine) else mine
        if len(mixed):
            words = {True: "a dose", False: "a value over time"}
            name = vocabulary.targets[position].name
            raise reading.columns.error(
                int(facts.row[mixed[0]]),
                facts.columns[facts.column[mixed[0]]],
                f"{words[bool(dose[mixed[0]])]} of {name!r}",
                f"{words[bool(dose[mine[0]])]}, as on {reading.columns.source.word} "
                f"{reading.columns.lines[facts.row[mine[0]]]}: an input is one or the other",
            )


def _check_twice(reading: Reading, vocabulary: Vocabulary) -> None:
    facts, columns = reading.facts, reading.columns
    # A reset may end an additional dose, and two resets are one.
    stated = (facts.later == 0) & (facts.restart != RESET)
    told = np.flatnonzero(~np.isin(facts.target, vocabulary.of_kind(KNOWN)) & stated)
    patient, target, time = (
        columns.patient[facts.row[told]],
        facts.target[told],
        reading.when[told],
    )
    order = np.lexsort((time, target, patient))
    tie = _neighbours_equal(order, patient, target, time)
    if not tie.any():
        return
    order = order[np.concatenate([tie, [False]]) | np.concatenate([[False], tie])]
    keys = (
        patient,
        target,
        time,
        facts.unit[told],
        facts.value[told],
        facts.duration[told],
        facts.censor[told],
        facts.restart[told],
    )
    order = order[np.lexsort((told[order], *(key[order] for key in reversed(keys))))]
    same = np.flatnonzero(_neighbours_equal(order, *keys))
    if len(same):
        k = same[np.argmin(told[order[same + 1]])]
        before, again = told[order[k]], told[order[k + 1]]
        raise columns.error(
            int(facts.row[again]),
            facts.columns[facts.column[again]],
            f"the same {vocabulary.targets[facts.target[again]].name!r} as on {columns.source.word} "
            f"{columns.lines[facts.row[before]]}",
            "each row once",
        )


def _neighbours_equal(order: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    return np.all([np.diff(key[order]) == 0 for key in keys], axis=0)


def _check_constant(reading: Reading, vocabulary: Vocabulary, value: np.ndarray) -> None:
    facts, columns = reading.facts, reading.columns
    known = np.flatnonzero(np.isin(facts.target, vocabulary.of_kind(KNOWN)))
    patient, target = columns.patient[facts.row[known]], facts.target[known]
    order = np.lexsort((target, patient))
    same = _neighbours_equal(order, patient, target)
    changed = np.flatnonzero(same & (np.diff(value[known[order]]) != 0))
    if len(changed):
        before, again = known[order[changed[0]]], known[order[changed[0] + 1]]
        name = vocabulary.targets[facts.target[again]].name
        raise columns.error(
            int(facts.row[again]),
            facts.columns[facts.column[again]],
            f"{facts.value[again]:g} for {name!r}",
            f"{facts.value[before]:g}, as on {columns.source.word} {columns.lines[facts.row[before]]}: "
            f"the model has no input {name!r} that could vary",
        )


def _check_measured(reading: Reading, vocabulary: Vocabulary) -> None:
    facts, columns = reading.facts, reading.columns
    measured = facts.row[np.isin(facts.target, vocabulary.of_kind(OUTPUT))]
    count = np.bincount(columns.patient[measured], minlength=len(columns.patients))
    if not count.all():
        empty = int(np.argmin(count > 0))
        outputs = ", ".join(vocabulary.targets[i].name for i in vocabulary.of_kind(OUTPUT))
        raise columns.source.error(
            line=int(columns.lines[np.argmax(columns.patient == empty)]),
            patient=columns.patients[empty],
            found="no measurement",
            expected=f"at least one of {outputs}",
        )


def _after(reading: Reading, dose: np.ndarray) -> np.ndarray:
    """True for facts that stand in the file after a dose of the same patient and time."""
    patient, time = reading.columns.patient, reading.time
    # A row without a time is of no moment (0, where no dose stands), and ends none.
    timed = np.flatnonzero(~np.isnan(time))
    order = timed[np.argsort(patient[timed], kind="stable")]
    new = (np.diff(patient[order], prepend=-1) != 0) | (np.diff(time[order], prepend=np.nan) != 0)
    moment = np.zeros(len(patient), int)
    moment[order] = np.cumsum(new)
    none = -1 if reading.after else len(patient)
    first = np.full(len(patient) + 1, len(patient))
    rows = reading.facts.row
    np.minimum.at(first, moment[rows[dose]], rows[dose])
    first[first == len(patient)] = none
    return rows > first[moment[rows]]
