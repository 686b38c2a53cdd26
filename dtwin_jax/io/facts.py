"""Facts about patients, one entry a fact, whatever the form of the table that states them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dtwin_jax.core.record import SEEN
from dtwin_jax.core.rules import DURATION, NOTHING
from dtwin_jax.core.units import UnitError, factor
from dtwin_jax.io.cells import Columns, Texts
from dtwin_jax.io.names import Vocabulary, renamed

# Of a fact of which nothing else is said.
_REST = {
    "censor": SEEN,
    "limit": -np.inf,
    "later": 0.0,
    "held": DURATION,
    "restart": NOTHING,
    "interval": 0.0,
}
# Columns of dates, as NONMEM calls them by the order of their parts.
DATES = frozenset(("date", "dat1", "dat2", "dat3"))
NO_UNITS = Texts(np.zeros(0, np.int32), ())


@dataclass(frozen=True)
class Facts:
    """One entry a fact, in the order of the file.

    Attributes:
        row: row of the table, from which come patient, line and time.
        target: position among the vocabulary's targets.
        value: in the file's unit; the limit where `censor` is not 0.
        unit: position in `units`, -1 where the file names none.
        duration: in the model's unit of time; 0 is at once.
        censor: -1 below `value`, 0 seen, +1 above.
        limit: what a value that is below is known to be above; minus infinity where nothing is.
        given: True where the value is an amount that was given, whatever its unit.
        later: time after that of the row, in the model's unit: of additional doses.
        held: code of `core.rules`, of a dose.
        restart: code of `core.rules`: the fact is no dose, but sets the state anew.
        interval: between the doses of a steady state, in the model's unit of time.
        column: position in `columns`.
        units: the units that the file names.
        columns: roles of the columns that the values come from.
    """

    row: np.ndarray
    target: np.ndarray
    value: np.ndarray
    unit: np.ndarray
    duration: np.ndarray
    censor: np.ndarray
    limit: np.ndarray
    given: np.ndarray
    later: np.ndarray
    held: np.ndarray
    restart: np.ndarray
    interval: np.ndarray
    column: np.ndarray
    units: tuple[str, ...]
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: np.ndarray) -> "Facts":
        """The facts at these positions."""
        arrays = {name: value[index] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays)


@dataclass(frozen=True)
class Reading:
    """A table, read: its facts and their places.

    Attributes:
        columns: the table.
        time: of every row, in the model's unit; NaN where blank.
        facts: in the order of the rows.
        shape: how an input's values stand between their times where the caller did not say.
        after: whether a measurement beside which no dose stands is made after what happens at its time: a
            dose that comes with a lag, or an additional one.
        begins: rows with which the second occasion of a patient begins, and those after it.
    """

    columns: Columns
    time: np.ndarray
    facts: Facts
    shape: str
    after: bool = False
    begins: tuple[int, ...] = ()

    @property
    def when(self) -> np.ndarray:
        """The time of every fact."""
        return self.time[self.facts.row] + self.facts.later


def facts_of(
    rows: np.ndarray,
    target: np.ndarray | int,
    value: np.ndarray,
    role: str,
    *,
    units: Texts = NO_UNITS,
    duration: np.ndarray | float = 0.0,
    given: bool = False,
    **rest: Any,
) -> Facts:
    """The facts of one column.

    Args:
        rows: the rows that state one.
        target: one for all, or one a fact.
        value: one a fact.
        role: of the column.
        units: the column of units, of all rows of the table.
        duration: in the model's unit of time.
        given: whether these are amounts.
        rest: others of `Facts`: `censor` and `limit` of measurements, `later`, `held`, `restart` and
            `interval` of doses.
    """
    count = len(rows)
    rest = _REST | rest
    return Facts(
        row=rows,
        target=np.broadcast_to(np.asarray(target, int), count),
        value=np.asarray(value, float),
        unit=units.codes[rows].astype(int) if units.labels else np.full(count, -1),
        duration=np.broadcast_to(np.asarray(duration, float), count),
        given=np.full(count, given),
        **{name: np.broadcast_to(np.asarray(value), count) for name, value in rest.items()},
        column=np.zeros(count, int),
        units=units.labels,
        columns=(role,),
    )


def join(parts: Iterable[Facts]) -> Facts:
    """The facts of several columns of one table (one part at least), in the order of its rows."""
    parts = list(parts)
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name, value in vars(parts[0]).items()
        if isinstance(value, np.ndarray)
    }
    arrays["column"] = np.concatenate([np.full(len(part), i) for i, part in enumerate(parts)])
    units = max((part.units for part in parts), key=len)
    joined = Facts(**arrays, units=units, columns=tuple(part.columns[0] for part in parts))
    return joined.take(np.argsort(joined.row, kind="stable"))


def times(
    columns: Columns,
    vocabulary: Vocabulary,
    optional: np.ndarray | None = None,
    resets: np.ndarray | None = None,
    days: np.ndarray | None = None,
) -> np.ndarray:
    """The time of every row in the model's unit, NaN where `optional` and blank.

    Args:
        columns: of the table.
        vocabulary: the model's names.
        optional: rows whose time may be blank.
        resets: rows at which time may begin anew; what follows is told from the time before it.
        days: numbers of the days of all rows: times are hours of the day, and told from the patient's first.

    Raises:
        TableError: a blank time, or times of a patient that decrease.
    """
    time = columns.number("time")
    if days is not None:
        time = _since_first(time + 24.0 * days, columns.patient)
    if resets is not None:
        time = _going_on(time, columns.patient, resets)
    missing = np.isnan(time) if optional is None else np.isnan(time) & ~optional
    columns.refuse(missing, "time", "a time")
    timed = np.flatnonzero(~np.isnan(time))
    order = timed[np.argsort(columns.patient[timed], kind="stable")]
    back = (np.diff(time[order]) < 0) & (np.diff(columns.patient[order]) == 0)
    if back.any():
        pairs = np.flatnonzero(back)
        k = pairs[np.argmin(order[pairs + 1])]
        before, row = order[k], order[k + 1]
        raise columns.error(
            row,
            "time",
            f"{time[row]:g} after {time[before]:g} on {columns.source.word} {columns.lines[before]}",
            "the times of a patient in order",
        )
    return time * time_factor(columns, vocabulary, "time")


def _since_first(time: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Times since the first row of each patient."""
    _, first = np.unique(patient, return_index=True)
    return time - time[first][patient]


def _going_on(time: np.ndarray, patient: np.ndarray, resets: np.ndarray) -> np.ndarray:
    """Times that go on at a reset whose own time is earlier than that of the row before."""
    time = time.copy()
    for row in np.flatnonzero(resets):
        mine = patient == patient[row]
        before = np.flatnonzero(mine[:row])
        back = time[before[-1]] - time[row] if len(before) else 0.0
        if back > 0:
            time[row:] += np.where(mine[row:], back, 0.0)
    return time


def time_factor(columns: Columns, vocabulary: Vocabulary, role: str) -> float:
    """The number that takes a column of times to the model's unit."""
    unit = stated_unit(columns, vocabulary, role) or stated_unit(columns, vocabulary, "time")
    if "time" in columns.clocks or DATES & columns.texts.keys():
        if unit not in ("", "h"):
            what = f"times are clocks or have dates, which are hours, and a unit of {unit!r} is stated"
            raise columns.source.error(column=columns.names.get("time", "time"), what=what)
        unit = "h"
    try:
        return factor(unit, vocabulary.time_unit) if unit else 1.0
    except UnitError as error:
        raise columns.source.error(column=columns.names.get(role, role), what=str(error)) from None


def stated_unit(columns: Columns, vocabulary: Vocabulary, role: str, name: str = "") -> str:
    """The unit that the caller gave for a name or a column; empty if none."""
    header = columns.names.get(role, role)
    stated = {key.casefold(): unit for key, unit in vocabulary.units.items()}
    for key in (name, header, renamed(vocabulary, header) or "", role):
        if key and key.casefold() in stated:
            return stated[key.casefold()]
    return ""
