"""Tables of patients, read with the model as schema.

A name among the model's inputs is a dose or a value over time, among its outputs a measurement, among its
parameters a known value; any other is an error.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from dtwin_jax.core.record import ABOVE, BELOW, SEEN, Record
from dtwin_jax.io.cells import Columns, Kind, read_columns
from dtwin_jax.io.facts import NO_UNITS, Reading, facts_of, join, time_factor, times
from dtwin_jax.io.names import (
    IGNORED,
    INPUT,
    KNOWN,
    OUTPUT,
    UNKNOWN,
    Vocabulary,
    find,
    lay_out,
    renamed,
    role_of,
    suggestion,
    vocabulary,
)
from dtwin_jax.io.nonmem import read_events
from dtwin_jax.io.records import records
from dtwin_jax.io.rows import Source, open_table

LONG: dict[str, Kind] = {
    "id": "text",
    "time": "number",
    "name": "text",
    "value": "limit",
    "unit": "text",
    "duration": "number",
    "censor": "text",
}
MEASURED: dict[str, Kind] = {"id": "text", "time": "number", "unit": "text"}
CENSOR = {"": SEEN, "0": SEEN, "=": SEEN, "-1": BELOW, "<": BELOW, "1": ABOVE, "+1": ABOVE, ">": ABOVE}


def read_table(  # noqa: PLR0913
    path: Any,
    f: Any,
    *,
    rename: Mapping[str, str | None] | None = None,
    units: Mapping[str, str] | None = None,
    covariates: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
    form: str | None = None,
    t0: float | None = None,
    carry: str = "forward",
) -> dict[str, Record]:
    """Patients of a CSV or Parquet file: id -> record, in the order of the file, in the units of `f`.

    Three forms are told apart by their header: *long*, one row a fact (`patient, time, name, value, unit`,
    and `duration` and `censor` where needed); *wide* as NONMEM has it (`ID, TIME, AMT, RATE, DUR, ADDL, II,
    SS, DV, EVID, MDV, CMT` and covariates); and *wide* with a column for each measurement (`id, time,
    glucose, unit`). The names are those of the model. An input's value is a dose if its unit is the input's
    times the unit of time (mg for mg/h), else its value at that time. A measurement at the time of a dose was
    made before it, unless its row stands after it.

    Args:
        path: of the file. UTF-8, ids are kept exactly.
        f: predictor with `schema()`, and `inputs()` if it has inputs.
        rename: name in the file (a column, or a name in one) -> name in the model, None for "ignore".
        units: column or name -> unit, where the file states none.
        covariates: name -> unit in the file, of values that the file has and the model may lack.
        inputs: NONMEM compartment -> input (`{"1": "oral"}`), or input -> `"steps"` or `"sampled"`.
        form: `"long"` or `"wide"`, where the header does not say.
        t0: when the model's initial state holds, in the model's unit of time; None for time 0, or a patient's
            first dose or measurement where that is earlier.
        carry: of NONMEM's form: whether a covariate that varies holds from its row on (`"forward"`), or from
            the row before (`"backward"`), as NONMEM has it.

    Raises:
        TableError: anything that is wrong with the file, with line, column and patient.
        ValueError: an argument that names what the model has not.
    """
    if form not in (None, "long", "wide"):
        raise ValueError(f"form is 'long' or 'wide', found {form!r}")
    if carry not in ("forward", "backward"):
        raise ValueError(f"carry is 'forward' or 'backward', found {carry!r}")
    names = vocabulary(f, rename, units, covariates, inputs)
    source = open_table(path)
    neutral = getattr(f, "inputs", None)
    reading = _form(source, names, form, carry)(source, names)
    return records(reading, names, None if neutral is None else neutral(), t0)


def _form(source: Source, names: Vocabulary, form: str | None, carry: str) -> Any:
    roles = {role_of(name) for header in source.header if (name := renamed(names, header)) is not None}
    if form == "long" or (form is None and {"name", "value"} & roles):
        return read_facts
    events = {"dv", "amt", "evid"} & roles
    return functools.partial(read_events, carry=carry) if events else read_measurements


def read_facts(source: Source, names: Vocabulary) -> Reading:
    """The facts of a table in long form."""
    layout = lay_out(source, names, LONG, ("id", "time", "name", "value"), model_columns=False)
    columns = read_columns(source, layout.roles)
    meaning = np.asarray([find(names, label) if label else UNKNOWN for label in columns.texts["name"].labels])
    target = meaning[columns.texts["name"].codes]
    if (target == UNKNOWN).any():
        row = int(np.argmax(target == UNKNOWN))
        label = columns.texts["name"].labels[columns.texts["name"].codes[row]]
        near = suggestion(label, (known.name for known in names.targets))
        raise columns.error(row, "name", columns.shown(row, "name"), f"{names.listed()}{near}")
    is_known = np.isin(target, names.of_kind(KNOWN))
    time = times(columns, names, optional=is_known | (target == IGNORED))
    duration, censor = _durations(columns, names, target), _censors(columns, names, target)
    blank = np.isnan(columns.numbers["value"]) & (target != IGNORED)
    columns.refuse(blank & (censor != SEEN), "value", "the limit that the value is beyond")
    columns.refuse(blank, "value", "a number")
    rows = np.flatnonzero(target != IGNORED)
    facts = facts_of(
        rows,
        target[rows],
        columns.numbers["value"][rows],
        "value",
        units=columns.texts.get("unit", NO_UNITS),
        duration=duration[rows],
        censor=censor[rows],
    )
    return Reading(columns, time, facts, shape="sampled")


def read_measurements(source: Source, names: Vocabulary) -> Reading:
    """The facts of a table with a column for each measurement, input, parameter or covariate."""
    layout = lay_out(source, names, MEASURED, ("id", "time"), model_columns=True)
    if not layout.columns:
        raise source.error(line=source.header_line, what="no column of measurements", expected=names.listed())
    columns = read_columns(source, layout.roles)
    known = {role for role, target in layout.columns.items() if names.targets[target].kind == KNOWN}
    timed = [~np.isnan(columns.numbers[role]) for role in layout.columns if role not in known]
    time = times(
        columns, names, optional=~np.any(timed, axis=0) if timed else np.ones(len(columns.lines), bool)
    )
    parts = []
    for role, target in layout.columns.items():
        value = columns.numbers[role]
        sign = columns.limits.get(role, np.zeros(len(value), np.int8))
        columns.refuse((sign != SEEN) & np.isnan(value), role, "the limit that the value is beyond")
        rows = np.flatnonzero(~np.isnan(value))
        units = NO_UNITS if role in known else columns.texts.get("unit", NO_UNITS)
        parts.append(facts_of(rows, target, value[rows], role, units=units, censor=sign[rows]))
    return Reading(columns, time, join(parts), shape="sampled")


def _durations(columns: Columns, names: Vocabulary, target: np.ndarray) -> np.ndarray:
    duration = columns.number("duration", 0.0)
    columns.refuse(duration < 0, "duration", "a duration that is not negative")
    is_input = np.isin(target, [*names.of_kind(INPUT), IGNORED])
    columns.refuse((duration > 0) & ~is_input, "duration", "blank: only an input has a duration")
    return duration * time_factor(columns, names, "duration") if duration.any() else duration


def _censors(columns: Columns, names: Vocabulary, target: np.ndarray) -> np.ndarray:
    """On which side of the value the truth is, by the column or by the value's own sign."""
    sign = columns.limits["value"].astype(int)
    if "censor" in columns.texts:
        stated = columns.texts["censor"]
        meaning = np.asarray([CENSOR.get(label, UNKNOWN - 1) for label in stated.labels])
        code = meaning[stated.codes]
        columns.refuse(code == UNKNOWN - 1, "censor", "-1 or '<' (below), 0, 1 or '>' (above)")
        columns.refuse(
            (sign != SEEN) & (code != SEEN) & (sign != code), "censor", "the side that the value says"
        )
        sign = np.where(sign != SEEN, sign, code)
    is_output = np.isin(target, [*names.of_kind(OUTPUT), IGNORED])
    role = "censor" if "censor" in columns.texts else "value"
    columns.refuse((sign != SEEN) & ~is_output, role, "a value as it is: only measurements have a limit")
    return sign
