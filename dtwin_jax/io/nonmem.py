"""Tables in the form of NONMEM: one row an event, `ID, TIME, AMT, RATE, DV, EVID, MDV, CMT` and covariates.

Beside these: `DVID` names the output, `UNIT` the unit of AMT or DV of the row, `CENS` (1 below, -1 above),
`LLOQ` and `LIMIT` tell of values beyond the limits of an assay. Additional doses, steady state and resets are
not supported yet.
"""

import numpy as np

from dtwin_jax.core.record import ABOVE, BELOW
from dtwin_jax.io.cells import Columns, Kind, Texts, read_columns
from dtwin_jax.io.facts import NO_UNITS, Facts, Reading, facts_of, join, time_factor, times
from dtwin_jax.io.names import IGNORED, INPUT, OUTPUT, UNKNOWN, Vocabulary, find, lay_out, suggestion
from dtwin_jax.io.rows import Source

FIXED: dict[str, Kind] = {
    "id": "text",
    "time": "number",
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
    "addl": "number",
    "ii": "number",
    "ss": "number",
}
OBSERVED, DOSED, OTHER = 0, 1, 2


def read_events(source: Source, vocabulary: Vocabulary) -> Reading:
    """The facts of a table of events.

    Raises:
        TableError: a column or a value that the form does not allow.
    """
    layout = lay_out(source, vocabulary, FIXED, ("id", "time"), model_columns=True)
    columns = read_columns(source, layout.roles)
    time = times(columns, vocabulary)
    event = _events(columns)
    parts = [_doses(columns, vocabulary, event), _observations(columns, vocabulary, event)]
    parts += [_changes(columns, role, target) for role, target in layout.columns.items()]
    return Reading(columns, time, join(parts), shape="steps")


def _events(columns: Columns) -> np.ndarray:
    """What each row is; without EVID a row with an amount is a dose."""
    for role, meaning in (("addl", "additional doses"), ("ss", "steady state")):
        columns.refuse(columns.number(role, 0.0) != 0, role, f"0: {meaning} are not supported yet")
    amount = columns.number("amt", 0.0)
    stated = columns.number("evid")
    columns.refuse(
        (stated == 3) | (stated == 4), "evid", "0, 1 or 2: resets (EVID 3 and 4) are not supported yet"
    )
    known = np.isnan(stated) | np.isin(stated, (OBSERVED, DOSED, OTHER))
    columns.refuse(~known, "evid", "0 (observation), 1 (dose) or 2 (other)")
    event = np.where(np.isnan(stated), amount != 0, stated).astype(int)
    columns.refuse((event == OBSERVED) & (amount != 0), "amt", "no amount in an observation (EVID 0)")
    missing = columns.number("mdv", 0.0)
    columns.refuse(~np.isin(missing, (0, 1)), "mdv", "0 or 1")
    return event


def _doses(columns: Columns, vocabulary: Vocabulary, event: np.ndarray) -> Facts:
    dosed = event == DOSED
    amount, rate = columns.number("amt"), columns.number("rate", 0.0)
    if dosed.any() and "amt" not in columns.numbers:
        raise columns.error(np.argmax(dosed), "amt", "no such column", "the amount of a dose (EVID 1)")
    columns.refuse(dosed & ~(amount >= 0), "amt", "the amount of a dose, not negative")
    columns.refuse(
        dosed & (rate < 0), "rate", "a rate that is not negative: modelled rates are not supported yet"
    )
    rows = np.flatnonzero(dosed)
    amount, rate = amount[rows], rate[rows]
    duration = np.where(rate > 0, amount / np.where(rate > 0, rate, 1.0), 0.0)
    return facts_of(
        rows,
        _compartments(columns, vocabulary, rows),
        amount,
        "amt",
        units=columns.texts.get("unit", NO_UNITS),
        duration=duration * time_factor(columns, vocabulary, "time"),
        given=True,
    )


def _compartments(columns: Columns, vocabulary: Vocabulary, rows: np.ndarray) -> np.ndarray:
    """The input of each dose."""
    inputs = {vocabulary.targets[i].name: i for i in vocabulary.of_kind(INPUT)}
    mapped = set(vocabulary.compartments.values())
    alone = next(iter(mapped or inputs)) if len(mapped or inputs) == 1 else None
    cmt = columns.texts.get("cmt", Texts(np.zeros(len(columns.lines), int), ("",)))
    meaning = np.full(len(cmt.labels), UNKNOWN)
    for code, label in enumerate(cmt.labels):
        name = vocabulary.compartments.get(_whole(label)) or (label if label in inputs else None)
        if name is None and (not label or not mapped):
            name = alone
        if name is not None:
            meaning[code] = inputs[name]
    chosen = meaning[cmt.codes[rows]]
    if (chosen == UNKNOWN).any():
        row = int(rows[np.argmax(chosen == UNKNOWN)])
        label = _whole(cmt.labels[cmt.codes[row]]) or "1"
        example = next((name for name in inputs if name not in mapped), "...")
        has = ", ".join(inputs) or "none"
        raise columns.error(
            row,
            "cmt",
            columns.shown(row, "cmt") if "cmt" in columns.texts else "no such column",
            f"an input of the model ({has}); pass inputs={{{label!r}: {example!r}}}",
        )
    return chosen


def _whole(label: str) -> str:
    """`"1"` for `"1.0"`: compartments are counted."""
    head, _, tail = label.partition(".")
    return head if head.isdigit() and not tail.strip("0") else label


def _observations(columns: Columns, vocabulary: Vocabulary, event: np.ndarray) -> Facts:
    seen = (event == OBSERVED) & (columns.number("mdv", 0.0) == 0)
    if seen.any() and "dv" not in columns.numbers:
        raise columns.error(np.argmax(seen), "dv", "no such column", "the value of an observation (EVID 0)")
    rows = np.flatnonzero(seen)
    target = _outputs(columns, vocabulary, rows)
    rows, target = rows[target != IGNORED], target[target != IGNORED]
    value, censor = _censored(columns, rows)
    units = columns.texts.get("unit", NO_UNITS)
    return facts_of(rows, target, value, "dv", units=units, censor=censor)


def _censored(columns: Columns, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measured values, or limits, and on which side of the limit the value is."""
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
    inside = read & (((censor == BELOW) & (bound > 0)) | ((censor == ABOVE) & ~np.isnan(bound)))
    columns.refuse(inside, "limit", "blank: values between two limits are not supported yet")
    return value[rows], censor[rows]


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
    if len(outputs) == 1 and len({_whole(labels[code]) for code in used if meaning[code] != IGNORED}) == 1:
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
    found = find(vocabulary, _whole(label)) if found == UNKNOWN else found
    return found if found == IGNORED or found in vocabulary.of_kind(OUTPUT) else UNKNOWN


def _names(vocabulary: Vocabulary) -> str:
    return "one of " + ", ".join(vocabulary.targets[i].name for i in vocabulary.of_kind(OUTPUT))


def _changes(columns: Columns, role: str, target: int) -> Facts:
    """The rows at which a covariate is first stated or changes; blank means "as before"."""
    value = columns.numbers[role]
    stated = np.flatnonzero(~np.isnan(value))
    order = stated[np.argsort(columns.patient[stated], kind="stable")]
    new = (np.diff(columns.patient[order], prepend=-1) != 0) | (np.diff(value[order], prepend=np.nan) != 0)
    rows = np.sort(order[new])
    return facts_of(rows, target, value[rows], role)
