"""Cells to numbers and texts: the columns of a table in compact form, with the place of every row."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dtwin_jax.core.record import ABOVE, BELOW
from dtwin_jax.io.rows import BLANK, Source, TableError

Kind = Literal["number", "limit", "clock", "text"]
_PLAIN = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_EXACT = 2**53
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?")


@dataclass(frozen=True)
class Texts:
    """A column of texts: each cell an index into `labels`."""

    codes: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """The wanted columns of a table, by role.

    Attributes:
        source: where they come from.
        names: role -> column name in the file.
        lines: line (or row) of each row of data.
        patients: ids, exactly as written, in the order of the file.
        patient: index into `patients`.
        numbers: role -> values, NaN where blank.
        limits: role -> -1 where the cell says "<", +1 where it says ">".
        texts: role -> texts, `""` where blank.
        clocks: roles of which a cell is a time of day, `8:30`; all their numbers are hours.
    """

    source: Source
    names: dict[str, str]
    lines: np.ndarray
    patients: tuple[str, ...]
    patient: np.ndarray
    numbers: dict[str, np.ndarray]
    limits: dict[str, np.ndarray]
    texts: dict[str, Texts]
    clocks: frozenset[str] = frozenset()

    def error(self, row: Any, role: str, found: str, expected: str) -> TableError:
        """The error of one cell."""
        return self.source.error(
            line=int(self.lines[row]),
            column=self.names.get(role, role),
            patient=self.patients[int(self.patient[row])],
            found=found,
            expected=expected,
        )

    def refuse(self, bad: np.ndarray, role: str, expected: str) -> None:
        """Raise for the first row where `bad` is true, showing the cell."""
        if bad.any():
            row = int(np.argmax(bad))
            raise self.error(row, role, self.shown(row, role), expected)

    def shown(self, row: int, role: str) -> str:
        """A cell for a message."""
        if role in self.texts:
            text = self.texts[role].labels[self.texts[role].codes[row]]
            return repr(text) if text else "nothing"
        value = self.numbers[role][row]
        return "nothing" if math.isnan(value) else f"{value:.17g}" if value % 1 else f"{value:.0f}"

    def number(self, role: str, missing: float = math.nan) -> np.ndarray:
        """A column of numbers, `missing` where the cell is blank or there is no such column."""
        if role not in self.numbers:
            return np.full(len(self.lines), missing)
        values = self.numbers[role]
        return np.where(np.isnan(values), missing, values)


def read_columns(source: Source, roles: Mapping[str, tuple[int, Kind]]) -> Columns:
    """Read the columns that have a role; `"id"` must be among the roles.

    Raises:
        TableError: a cell that is no number where one is wanted, a blank id, no data.
    """
    names = {role: source.header[position] for role, (position, _) in roles.items()}
    parts: dict[str, list[np.ndarray]] = {role: [] for role in roles}
    limits: dict[str, list[np.ndarray]] = {role: [] for role, (_, kind) in roles.items() if kind == "limit"}
    index: dict[str, dict[str, int]] = {role: {} for role, (_, kind) in roles.items() if kind == "text"}
    lines: list[np.ndarray] = []
    clocks: set[str] = set()
    for batch in source.batches([position for position, _ in roles.values()]):
        cells = {role: batch.cells[position] for role, (position, _) in roles.items()}
        _check_ids(source, names["id"], cells["id"], batch.lines)
        lines.append(batch.lines)
        for role, codes in index.items():
            parts[role].append(_codes(_as_texts(cells[role]), codes))
        for role in roles.keys() - index.keys():
            try:
                if roles[role][1] == "clock":
                    cells[role], told = _hours(cells[role])
                    clocks |= {role} if told else set()
                values, signs = _numbers(cells[role], role in limits)
            except _BadCell as bad:
                raise _not_a_number(source, names[role], batch.lines, cells["id"], bad) from None
            parts[role].append(values)
            if role in limits:
                limits[role].append(signs)
    if not lines:
        raise source.error(what="no data rows", expected="rows below the header")
    whole = {role: np.concatenate(arrays) for role, arrays in parts.items()}
    return Columns(
        source=source,
        names=names,
        lines=np.concatenate(lines),
        patients=tuple(index["id"]),
        patient=whole["id"],
        numbers={role: whole[role] for role in roles if role not in index},
        limits={role: np.concatenate(arrays) for role, arrays in limits.items()},
        texts={
            role: Texts(whole[role], tuple(_stripped(text) for text in labels))
            for role, labels in index.items()
            if role != "id"
        },
        clocks=frozenset(clocks),
    )


def _hours(cells: list[str] | np.ndarray) -> tuple[list[str] | np.ndarray, bool]:
    """Times of day as numbers of hours, and whether there are any."""
    if isinstance(cells, np.ndarray) or not any(":" in cell for cell in cells):
        return cells, False
    return [_hour(cell) for cell in cells], True


def _hour(cell: str) -> str:
    parts = _CLOCK.fullmatch(cell.strip())
    if parts is None:
        return cell
    hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    return repr(hours + minutes / 60.0 + seconds / 3600.0)


class _BadCell(Exception):
    def __init__(self, row: int, text: str):
        self.row, self.text = row, text


def _not_a_number(
    source: Source, column: str, lines: np.ndarray, ids: list[str] | np.ndarray, bad: _BadCell
) -> TableError:
    return source.error(
        line=int(lines[bad.row]),
        column=column,
        patient=_as_texts(ids)[bad.row],
        found=repr(bad.text),
        expected="a finite number",
    )


def _check_ids(source: Source, column: str, ids: list[str] | np.ndarray, lines: np.ndarray) -> None:
    if isinstance(ids, np.ndarray):
        bad = np.isnan(ids) | (ids % 1 != 0) | (np.abs(ids) >= _EXACT)
        if bad.any():
            row = int(np.argmax(bad))
            found = "nothing" if np.isnan(ids[row]) else repr(float(ids[row]))
            raise source.error(line=int(lines[row]), column=column, found=found, expected="an id, as text")
        return
    if not all(map(str.strip, set(ids))):
        row = next(row for row, text in enumerate(ids) if not text.strip())
        raise source.error(
            line=int(lines[row]), column=column, found="nothing", expected="the id of a patient"
        )


def _as_texts(cells: list[str] | np.ndarray) -> list[str]:
    if isinstance(cells, np.ndarray):
        return ["" if math.isnan(x) else str(int(x)) if x.is_integer() else repr(x) for x in cells.tolist()]
    return cells


def _stripped(text: str) -> str:
    text = text.strip()
    return "" if text in BLANK else text


def _codes(texts: list[str], index: dict[str, int]) -> np.ndarray:
    return np.asarray([index.setdefault(text, len(index)) for text in texts], dtype=np.int32)


def _numbers(cells: list[str] | np.ndarray, limits: bool) -> tuple[np.ndarray, np.ndarray]:
    """Values, and -1 or +1 where a cell begins with < or >."""
    if isinstance(cells, np.ndarray):
        return cells, np.zeros(len(cells), np.int8)
    try:
        values = np.asarray([float(cell) if cell else math.nan for cell in cells])
    except ValueError:
        return _numbers_one_by_one(cells, limits)
    # Python also reads "nan", "inf" and "1_000".
    blank = len(cells) - sum(map(bool, cells))
    if np.isfinite(values).sum() + blank != len(cells) or "_" in "".join(cells):
        return _numbers_one_by_one(cells, limits)
    return values, np.zeros(len(cells), np.int8)


def _numbers_one_by_one(cells: list[str], limits: bool) -> tuple[np.ndarray, np.ndarray]:
    values, signs = np.full(len(cells), math.nan), np.zeros(len(cells), np.int8)
    for row, cell in enumerate(cells):
        text = cell.strip()
        if text in BLANK:
            continue
        if limits and text[0] in "<>":
            signs[row] = BELOW if text[0] == "<" else ABOVE
            text = text[1:].lstrip("= ")
        if not _PLAIN.fullmatch(text):
            raise _BadCell(row, cell)
        values[row] = float(text)
        if not math.isfinite(values[row]):
            raise _BadCell(row, cell)
    return values, signs
