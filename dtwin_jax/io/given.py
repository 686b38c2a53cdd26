"""What a table of events says was given: doses, additional ones, steady states, resets."""

import numpy as np

from dtwin_jax.core.rules import ADDED, DURATION, MODELLED_DURATION, MODELLED_RATE, RATE, RESET, STEADY
from dtwin_jax.io.cells import Columns, Texts
from dtwin_jax.io.facts import NO_UNITS, Facts, facts_of, time_factor
from dtwin_jax.io.names import INPUT, UNKNOWN, Vocabulary

OBSERVED, DOSED, OTHER, CLEARED, CLEARED_AND_DOSED = 0, 1, 2, 3, 4


def given(columns: Columns, vocabulary: Vocabulary, event: np.ndarray) -> list[Facts]:
    """The facts of all doses and resets; what is reset comes first.

    Raises:
        TableError: a dose that is not whole, or contradicts itself.
    """
    dosed, cleared = np.isin(event, (DOSED, CLEARED_AND_DOSED)), np.isin(event, (CLEARED, CLEARED_AND_DOSED))
    _check(columns, dosed)
    rows = np.flatnonzero(dosed)
    target = _compartments(columns, vocabulary, rows)
    parts = _doses(columns, vocabulary, rows, target)
    # A steady state that replaces the state clears it itself.
    at = np.flatnonzero(cleared & ~(dosed & np.isin(columns.number("ss", 0.0), (1, 3))))
    if not len(at):
        return parts
    # A reset is of the whole body: it is told of any input that is dosed.
    told = int(target[0]) if len(target) else vocabulary.of_kind(INPUT)[0]
    return [facts_of(at, told, np.zeros(len(at)), "evid", given=True, restart=RESET), *parts]


def _check(columns: Columns, dosed: np.ndarray) -> None:
    """Refuse what is no dose that NONMEM knows."""
    if dosed.any() and "amt" not in columns.numbers:
        raise columns.error(np.argmax(dosed), "amt", "no such column", "the amount of a dose (EVID 1)")
    amount, rate = columns.number("amt"), columns.number("rate", 0.0)
    steady, interval = columns.number("ss", 0.0), columns.number("ii", 0.0)
    more, long = columns.number("addl", 0.0), columns.number("dur", 0.0)
    constant = dosed & (amount == 0) & np.isin(steady, (1, 3)) & (rate > 0)
    columns.refuse(
        ~dosed & ~np.isnan(amount) & (amount != 0), "amt", "no amount where no dose is (EVID 1 or 4)"
    )
    columns.refuse(~dosed & (rate != 0), "rate", "no rate where no dose is (EVID 1 or 4)")
    columns.refuse(
        dosed & (amount == 0) & ((rate != 0) | (steady != 0)) & ~constant,
        "amt",
        "an amount: only a constant rate (SS 1, RATE above 0) has none",
    )
    columns.refuse(dosed & ~(amount >= 0), "amt", "the amount of a dose, not negative")
    columns.refuse(
        dosed & (rate < 0) & ~np.isin(rate, (-1, -2)),
        "rate",
        "a rate, or -1 (the model has the rate) or -2 (the model has the duration)",
    )
    columns.refuse(dosed & (long < 0), "dur", "a duration that is not negative")
    columns.refuse(dosed & (long > 0) & (rate != 0), "dur", "a duration or a rate, not both")
    columns.refuse(dosed & ~np.isin(steady, (0, 1, 2, 3)), "ss", "0, 1 (steady state) or 2 (added)")
    columns.refuse(~dosed & (steady != 0), "ss", "0: only a dose (EVID 1 or 4) has a steady state")
    columns.refuse(dosed & ((more < 0) | (more % 1 != 0)), "addl", "a number of additional doses")
    columns.refuse(~dosed & (more != 0), "addl", "0: only a dose (EVID 1 or 4) has additional ones")
    _interval(columns, dosed & (more > 0) & ~(interval > 0), "additional doses (ADDL)")
    _interval(columns, dosed & (steady != 0) & ~constant & ~(interval > 0), "a steady state (SS)")
    columns.refuse(constant & (interval != 0), "ii", "0: a constant rate has no interval")
    columns.refuse(constant & (more != 0), "addl", "0: a constant rate has no additional doses")


def _interval(columns: Columns, bad: np.ndarray, what: str) -> None:
    expected = f"the interval between doses, for {what}"
    if bad.any() and "ii" not in columns.numbers:
        raise columns.error(np.argmax(bad), "ii", "no such column", expected)
    columns.refuse(bad, "ii", expected)


def _doses(columns: Columns, vocabulary: Vocabulary, rows: np.ndarray, target: np.ndarray) -> list[Facts]:
    pace, units = time_factor(columns, vocabulary, "time"), columns.texts.get("unit", NO_UNITS)
    amount, rate = columns.number("amt")[rows], columns.number("rate", 0.0)[rows]
    steady, interval = columns.number("ss", 0.0)[rows], columns.number("ii", 0.0)[rows]
    held = np.select([rate > 0, rate == -1, rate == -2], [RATE, MODELLED_RATE, MODELLED_DURATION], DURATION)
    duration = np.where(rate > 0, amount / np.where(rate > 0, rate, 1.0), columns.number("dur", 0.0)[rows])
    duration = np.where(rate < 0, np.nan, duration)
    # A constant rate that ends now: nothing of it is given any more.
    constant = (steady != 0) & (amount == 0)  # as checked
    count = np.where(constant, 0, columns.number("addl", 0.0)[rows].astype(int) + 1)
    each = np.repeat(np.arange(len(rows)), count)
    number = np.arange(len(each)) - np.repeat(np.cumsum(count) - count, count)
    doses = facts_of(
        rows[each],
        target[each],
        amount[each],
        "amt",
        units=units,
        duration=duration[each] * pace,
        given=True,
        later=number * interval[each] * pace,
        held=held[each],
    )
    at = np.flatnonzero(steady)
    restarts = facts_of(
        rows[at],
        target[at],
        np.where(constant, rate, amount)[at],
        "amt",
        units=units,
        duration=np.where(constant, 1.0, duration)[at] * pace,
        given=True,
        held=held[at],
        restart=np.where(steady == 2, ADDED, STEADY)[at],
        interval=interval[at] * pace,
    )
    return [restarts, doses]


def _compartments(columns: Columns, vocabulary: Vocabulary, rows: np.ndarray) -> np.ndarray:
    """The input of each dose."""
    inputs = {vocabulary.targets[i].name: i for i in vocabulary.of_kind(INPUT)}
    mapped = set(vocabulary.compartments.values())
    alone = next(iter(mapped or inputs)) if len(mapped or inputs) == 1 else None
    cmt = columns.texts.get("cmt", Texts(np.zeros(len(columns.lines), int), ("",)))
    meaning = np.full(len(cmt.labels), UNKNOWN)
    for code, label in enumerate(cmt.labels):
        name = vocabulary.compartments.get(whole(label)) or (label if label in inputs else None)
        if name is None and (not label or not mapped):
            name = alone
        if name is not None:
            meaning[code] = inputs[name]
    chosen = meaning[cmt.codes[rows]]
    if (chosen == UNKNOWN).any():
        row = int(rows[np.argmax(chosen == UNKNOWN)])
        label = whole(cmt.labels[cmt.codes[row]]) or "1"
        example = next((name for name in inputs if name not in mapped), "...")
        has = ", ".join(inputs) or "none"
        raise columns.error(
            row,
            "cmt",
            columns.shown(row, "cmt") if "cmt" in columns.texts else "no such column",
            f"an input of the model ({has}); pass inputs={{{label!r}: {example!r}}}",
        )
    return chosen


def whole(label: str) -> str:
    """`"1"` for `"1.0"`: compartments are counted."""
    head, _, tail = label.partition(".")
    return head if head.isdigit() and not tail.strip("0") else label
