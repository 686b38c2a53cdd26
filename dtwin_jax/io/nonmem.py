"""Tables in the form of NONMEM: one row an event, `ID, TIME, AMT, RATE, DV, EVID, MDV, CMT` and covariates.

Beside these: `DVID` names the output, `UNIT` the unit of AMT or DV of the row, `CENS` (1 below, -1 above),
`LLOQ` and `LIMIT` tell of values beyond the limits of an assay; `ADDL`, `II`, `SS` and `DUR` of doses; `OCC`
of occasions, each of which begins at its first row (`with_occasions`). A model with a parameter `lloq` or
`lloq_<output>` (method M2) knows it from `LLOQ`, in the unit of DV. Times may be those of a day (`8:30`),
with `DATE`, `DAT1`, `DAT2` or `DAT3`, and are then told in hours. A time that goes back at a reset (EVID 3
and 4) is told from the time before it. A dose that arrives with a lag at the time of a measurement is before
it, as is an additional one.
"""

import re
from datetime import date
from typing import Any

import numpy as np

from dtwin_jax.core.record import ABOVE, BELOW
from dtwin_jax.io.cells import Columns, Kind, Texts, read_columns
from dtwin_jax.io.facts import DATES, NO_UNITS, Facts, Reading, facts_of, join, stated_unit, times
from dtwin_jax.io.given import CLEARED, CLEARED_AND_DOSED, DOSED, OBSERVED, OTHER, given, whole
from dtwin_jax.io.names import IGNORED, INPUT, OUTPUT, UNKNOWN, Vocabulary, find, lay_out, suggestion
from dtwin_jax.io.rows import Source

FIXED: dict[str, Kind] = {
    "id": "text",
    "time": "clock",
    "date": "text",
    "dat1": "text",
    "dat2": "text",
    "dat3": "text",
    "amt": "number",
    "rate": "number",
    "dv": "limit",
    "evid": "number",
    "mdv": "number",
    "cmt": "text",
    "dvid": "text",
    "cens": "number",
    "lloq": "number",
    "limit": "number",
    "unit": "text",
    "dur": "number",
    "addl": "number",
    "ii": "number",
    "ss": "number",
    "occ": "number",
}

# A longer number is a date without anything between its parts.
_MOST_DAYS = 1e6
_ORDER = {"date": "mdy", "dat1": "dmy", "dat2": "ymd", "dat3": "ydm"}


def read_events(source: Source, vocabulary: Vocabulary, carry: str = "forward") -> Reading:
    """The facts of a table of events.

    Args:
        source: the table.
        vocabulary: the model's names.
        carry: `"forward"`: a covariate that varies holds from its row on; `"backward"`: from the row before.

    Raises:
        TableError: a column or a value that the form does not allow.
    """
    layout = lay_out(source, vocabulary, FIXED, ("id", "time"), model_columns=True)
    columns = read_columns(source, layout.roles)
    event = _events(columns)
    _check_together(columns)
    resets = np.isin(event, (CLEARED, CLEARED_AND_DOSED))
    time = times(columns, vocabulary, resets=resets, days=_days(columns))
    time = _in_order(
        columns.patient, time, np.isin(event, (DOSED, CLEARED, CLEARED_AND_DOSED)), event == OBSERVED
    )
    parts = [*given(columns, vocabulary, event), *_observations(columns, vocabulary, event)]
    for role, target in layout.columns.items():
        _check_stated(columns, vocabulary, role, target)
        back = time if carry == "backward" and vocabulary.targets[target].kind == INPUT else None
        parts.append(_changes(columns, role, target, back))
    return Reading(columns, time, join(parts), shape="steps", after=True, begins=_occasions(columns))


def _occasions(columns: Columns) -> tuple[int, ...]:
    """Rows with which an occasion of a patient begins, the first of each patient left out."""
    if "occ" not in columns.numbers:
        return ()
    occasion, patient = columns.number("occ"), columns.patient
    columns.refuse(np.isnan(occasion), "occ", "the occasion of every row, a number")
    first = np.diff(patient, prepend=-1) != 0
    begins = np.flatnonzero(first | (np.diff(occasion, prepend=np.nan) != 0))
    pairs = np.stack([patient[begins], occasion[begins]], axis=1)
    _, once = np.unique(pairs, axis=0, return_index=True)
    again = np.zeros(len(patient), bool)
    again[np.delete(begins, once)] = True
    columns.refuse(again, "occ", "an occasion that has not ended: its rows follow each other")
    return tuple(begins[~first[begins]].tolist())


def _events(columns: Columns) -> np.ndarray:
    """What each row is; without EVID a row with an amount is a dose."""
    amount, value = columns.number("amt", 0.0), columns.number("dv", 0.0)
    stated = columns.number("evid")
    known = np.isnan(stated) | np.isin(stated, (OBSERVED, DOSED, OTHER, CLEARED, CLEARED_AND_DOSED))
    columns.refuse(~known, "evid", "0 (observation), 1 (dose), 2 (other), 3 (reset) or 4 (reset and dose)")
    event = np.where(np.isnan(stated), amount != 0, stated).astype(int)
    columns.refuse((event == OBSERVED) & (amount != 0), "amt", "no amount in an observation (EVID 0)")
    missing = columns.number("mdv", 0.0)
    columns.refuse(~np.isin(missing, (0, 1)), "mdv", "0 or 1")
    measured = np.isin(event, (DOSED, CLEARED_AND_DOSED)) & (value != 0) & (missing == 0)
    columns.refuse(measured, "dv", "nothing, 0 or MDV 1 in a dose: a measurement has a row of its own")
    return event


def _in_order(patient: np.ndarray, time: np.ndarray, happens: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Times in which what happens after a measurement, and that after something else, is a rounding later.

    Of one moment, a measurement is before or after all that happens: a third thing needs one of its own.
    """
    new = (np.diff(patient, prepend=-1) != 0) | (np.diff(time, prepend=np.nan) != 0)
    moment = np.cumsum(new) - 1
    several = (np.bincount(moment, happens) > 1) & (np.bincount(moment, seen) > 0)
    time = time.copy()
    for number in np.flatnonzero(several):
        late, began, measured = 0, False, False
        for row in np.flatnonzero(moment == number):
            if happens[row]:
                late, began, measured = late + measured, True, False
            elif seen[row]:
                measured = began
            time[row] += late * _ulps(time[row])
    return time


def _ulps(time: Any) -> Any:
    """A few roundings of a time."""
    return 8.0 * np.spacing(np.maximum(np.abs(time), 1e-3))


def _days(columns: Columns) -> np.ndarray | None:
    """The day of every row, counted from some day; None without a column of dates.

    A date is a number of days, or month, day and year (`DATE`), day, month and year (`DAT1`), year, month and
    day (`DAT2`) or year, day and month (`DAT3`), with anything between them.
    """
    roles = sorted(DATES & columns.texts.keys())
    if not roles:
        return None
    (role, *more) = roles
    if more:
        raise columns.error(0, more[0], "a second column of dates", "one")
    days = [_day(label, _ORDER[role]) for label in columns.texts[role].labels]
    found = np.asarray([np.nan if day is None else day for day in days])[columns.texts[role].codes]
    parts = {"y": "year", "m": "month", "d": "day"}
    wanted = ", ".join(parts[letter] for letter in _ORDER[role])
    columns.refuse(np.isnan(found), role, f"a number of days, or {wanted}")
    return found


def _day(label: str, order: str) -> float | None:
    parts = re.findall(r"\d+", label)
    try:
        if len(parts) == 1:
            return float(label) if float(label) < _MOST_DAYS else None
        named = dict(zip(order, map(int, parts), strict=True))
        # Two digits as NONMEM takes them by default: of this century up to 50.
        year = named["y"] + (0 if named["y"] > 99 else 1900 if named["y"] > 50 else 2000)
        return float(date(year, named["m"], named["d"]).toordinal())
    except ValueError:
        return None


def _check_together(columns: Columns) -> None:
    """Refuse a patient whose rows do not follow each other: NONMEM would take him for two."""
    new = np.flatnonzero(np.diff(columns.patient, prepend=-1) != 0)
    again = columns.patient[new] < np.maximum.accumulate(columns.patient[new])
    if again.any():
        row = int(new[np.argmax(again)])
        last = int(np.flatnonzero(columns.patient[:row] == columns.patient[row])[-1])
        found = f"{columns.patients[columns.patient[row]]!r} again"
        expected = (
            f"all rows of a patient together: the one before is {columns.source.word} {columns.lines[last]}"
        )
        raise columns.error(row, "id", found, expected)


def _observations(columns: Columns, vocabulary: Vocabulary, event: np.ndarray) -> list[Facts]:
    seen = (event == OBSERVED) & (columns.number("mdv", 0.0) == 0)
    if seen.any() and "dv" not in columns.numbers:
        raise columns.error(np.argmax(seen), "dv", "no such column", "the value of an observation (EVID 0)")
    rows = np.flatnonzero(seen)
    target = _outputs(columns, vocabulary, rows)
    rows, target = rows[target != IGNORED], target[target != IGNORED]
    value, censor, limit = _censored(columns, rows)
    units = columns.texts.get("unit", NO_UNITS)
    seen = facts_of(rows, target, value, "dv", units=units, censor=censor, limit=limit)
    return [seen, _quantified(columns, vocabulary, rows, target)]


def _quantified(columns: Columns, vocabulary: Vocabulary, rows: np.ndarray, output: np.ndarray) -> Facts:
    """LLOQ as a fact of the patient, where the model has a parameter `lloq_<output>` or `lloq`."""
    lloq, target = columns.number("lloq"), np.full(len(rows), UNKNOWN)
    each, code = np.unique(output, return_inverse=True)
    labels = []
    for number, name in enumerate(vocabulary.targets[k].name for k in each):
        own = find(vocabulary, f"lloq_{name}")
        target[code == number] = own = own if own >= 0 else find(vocabulary, "lloq")
        stated = stated_unit(columns, vocabulary, "", vocabulary.targets[own].name) if own >= 0 else ""
        labels.append(stated or stated_unit(columns, vocabulary, "dv", name))
    stated = (target >= 0) & ~np.isnan(lloq[rows])
    codes = np.full(len(lloq), -1)
    codes[rows] = code
    units = columns.texts.get("unit", Texts(codes, tuple(labels)))
    return facts_of(rows[stated], target[stated], lloq[rows[stated]], "dv", units=units)


def _censored(columns: Columns, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measured values, or limits, on which side of the limit the value is, and what it is above then."""
    stated = columns.number("cens", 0.0)
    columns.refuse(~np.isin(stated, (-1, 0, 1)), "cens", "1 (below the limit), 0 or -1 (above)")
    sign = columns.limits.get("dv", np.zeros(len(stated), np.int8))
    # NONMEM and Monolix say 1 for "below", a series -1.
    censor = np.where(sign != 0, sign, -stated).astype(int)
    lloq, bound = columns.number("lloq"), columns.number("limit")
    value = np.where((stated == 1) & ~np.isnan(lloq), lloq, columns.number("dv"))
    read = np.zeros(len(value), bool)
    read[rows] = True
    columns.refuse(read & np.isnan(value) & (censor == BELOW), "dv", "a limit in LLOQ or DV (CENS 1)")
    columns.refuse(read & np.isnan(value) & (censor == ABOVE), "dv", "a limit in DV (CENS -1)")
    columns.refuse(read & np.isnan(value), "dv", "a number, or MDV 1 where nothing was measured")
    bounded = read & ~np.isnan(bound)
    columns.refuse(bounded & (censor == ABOVE), "limit", "blank: only a value below a limit has another")
    bounded &= censor == BELOW
    columns.refuse(bounded & ~(bound < value), "limit", "a limit below that of the value")
    limit = np.where(bounded, bound, -np.inf)
    return value[rows], censor[rows], limit[rows]


def _outputs(columns: Columns, vocabulary: Vocabulary, rows: np.ndarray) -> np.ndarray:
    """The output of each observation."""
    outputs = vocabulary.of_kind(OUTPUT)
    role = "dvid" if "dvid" in columns.texts else "cmt" if len(outputs) > 1 else ""
    if role not in columns.texts:
        if len(outputs) != 1 and len(rows):
            raise columns.error(
                rows[0], "dvid", "no such column", f"the output of each observation: {_names(vocabulary)}"
            )
        return np.full(len(rows), outputs[0] if outputs else UNKNOWN)
    codes, labels = columns.texts[role].codes[rows], columns.texts[role].labels
    meaning = np.asarray([_output(vocabulary, label) for label in labels])
    used = np.unique(codes)
    strange = [code for code in used if meaning[code] == UNKNOWN]
    if len(outputs) == 1 and len({whole(labels[code]) for code in used if meaning[code] != IGNORED}) == 1:
        meaning[strange] = outputs[0]
    chosen = meaning[codes]
    if (chosen == UNKNOWN).any():
        row = int(rows[np.argmax(chosen == UNKNOWN)])
        label = labels[columns.texts[role].codes[row]]
        example = vocabulary.targets[outputs[0]].name if outputs else "..."
        near = suggestion(label, (vocabulary.targets[i].name for i in outputs))
        expected = f"{_names(vocabulary)}{near}; or pass rename={{{label!r}: {example!r}}}"
        raise columns.error(row, role, columns.shown(row, role), expected)
    return chosen


def _output(vocabulary: Vocabulary, label: str) -> int:
    found = find(vocabulary, label)
    found = find(vocabulary, whole(label)) if found == UNKNOWN else found
    return found if found == IGNORED or found in vocabulary.of_kind(OUTPUT) else UNKNOWN


def _names(vocabulary: Vocabulary) -> str:
    return "one of " + ", ".join(vocabulary.targets[i].name for i in vocabulary.of_kind(OUTPUT))


def _check_stated(columns: Columns, vocabulary: Vocabulary, role: str, target: int) -> None:
    """Refuse a covariate that is never stated of a patient."""
    meaning = vocabulary.targets[target]
    if meaning.kind == INPUT and meaning.name not in vocabulary.covariates:
        return
    stated = np.bincount(columns.patient[~np.isnan(columns.numbers[role])], minlength=len(columns.patients))
    columns.refuse((stated == 0)[columns.patient], role, "a value in one row of the patient at least")


def _changes(columns: Columns, role: str, target: int, back: np.ndarray | None) -> Facts:
    """The rows at which a covariate is first stated or changes; blank means "as before".

    Args:
        columns: of the table.
        role: of the covariate.
        target: its position in the vocabulary.
        back: times of all rows, where a value holds from the row before.
    """
    value = columns.numbers[role]
    stated = np.flatnonzero(~np.isnan(value))
    order = stated[np.argsort(columns.patient[stated], kind="stable")]
    new = (np.diff(columns.patient[order], prepend=-1) != 0) | (np.diff(value[order], prepend=np.nan) != 0)
    rows = np.sort(order[new])
    later: np.ndarray | float = 0.0
    if back is not None:
        before = np.maximum(rows - 1, 0)
        same = (columns.patient[before] == columns.patient[rows]) & (rows > 0)
        # Just after the row before, whose own measurement is made with its own value.
        later = np.where(same, back[before] + _ulps(back[before]) - back[rows], 0.0)
    return facts_of(rows, target, value[rows], role, later=later)
