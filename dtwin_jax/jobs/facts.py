"""Facts as they come, one a line: measurements and doses of patients that are followed.

A bad line is told and passed over, and those beside it are read: a stream does not end for a slip of the pen.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dtwin_jax.core.quantity import Quantity
from dtwin_jax.core.record import ABOVE, BELOW, SEEN
from dtwin_jax.core.units import product
from dtwin_jax.io.names import suggestion
from dtwin_jax.io.rows import BLANK
from dtwin_jax.io.table import CENSOR
from dtwin_jax.jobs.document import one_line, shown
from dtwin_jax.jobs.values import measure

FIELDS = ("patient", "time", "channel", "value", "censor", "input", "amount", "duration")
_OF_CHANNEL, _OF_INPUT = ("value", "censor"), ("amount", "duration")
_LONGEST = 10_000


@dataclass(frozen=True)
class Fact:
    """A measurement or a dose, in the units of the model.

    Attributes:
        patient: position among the patients.
        name: of the channel or the input.
        time: of the measurement, or of the start of the dose.
        value: measured, the limit where `censor` is not 0, or the amount of the dose.
        dose: whether it is a dose.
        duration: of a dose; 0 is at once.
        censor: -1 below `value`, 0 seen, +1 above.
        file: where it was read.
        line: in the file.
    """

    patient: int
    name: str
    time: float
    value: float
    dose: bool = False
    duration: float = 0.0
    censor: int = SEEN
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class Refusal:
    """A line that is not taken.

    Attributes:
        file: where it was read.
        line: in the file, from 1; 0 for the file itself.
        field: of the fact; empty where it is of the whole line.
        found: what stands there.
        expected: what would be right.
    """

    file: str
    line: int
    field: str
    found: str
    expected: str

    def __str__(self) -> str:
        place = [f"line {self.line}"] * (self.line > 0) + [f"field {self.field!r}"] * bool(self.field)
        where = ": ".join([self.file, *([", ".join(place)] if place else [])])
        comma = "" if self.found.endswith("?") else ","
        return one_line(f"{where}: found {self.found}{comma} expected {self.expected}")

    def as_dict(self) -> dict[str, Any]:
        """By field."""
        return asdict(self)


@dataclass(frozen=True)
class Subjects:
    """What facts can be about.

    Attributes:
        patients: id -> position.
        channels: that are followed.
        inputs: that take doses.
        time_unit: the model's.
    """

    patients: Mapping[str, int]
    channels: Mapping[str, Quantity]
    inputs: Mapping[str, Quantity]
    time_unit: str


class _Bad(Exception):
    def __init__(self, field: str, found: str, expected: str):
        # A field of JSON may be no text: halves of a character, which no file can hold.
        self.field = field.encode("utf-8", "backslashreplace").decode()
        self.found, self.expected = found, expected


def read_facts(path: str | os.PathLike[str], subjects: Subjects) -> tuple[list[Fact], list[Refusal]]:
    """The facts of a file, and what of it is refused.

    Args:
        path: a table (`.csv`) with columns of `FIELDS`, or JSON lines (`.jsonl`) with such keys.
        subjects: what they can be about.
    """
    file = os.path.basename(path)
    kind = os.path.splitext(file)[1].lower()
    if kind not in {".csv", ".jsonl"}:
        return [], [Refusal(file, 0, "", f"a file {kind or 'without an ending'}", ".csv or .jsonl")]
    try:
        with open(path, "rb") as stream:
            lines = stream.read().split(b"\n")
    except OSError as error:
        return [], [Refusal(file, 0, "", f"that it cannot be read ({error.strerror})", "a readable file")]
    if kind == ".jsonl":
        return facts_of_lines(lines, subjects, file)
    return _sorted_out(_rows(lines, file), subjects, file)


def facts_of_lines(
    lines: Iterable[bytes], subjects: Subjects, file: str, first: int = 1
) -> tuple[list[Fact], list[Refusal]]:
    """The facts of JSON lines.

    Args:
        lines: as they came.
        subjects: what they can be about.
        file: name for messages.
        first: number of the first line.
    """
    texts = enumerate(lines, first)
    return _sorted_out(((number, line, _of_json) for number, line in texts), subjects, file)


def _sorted_out(
    rows: Iterable[tuple[int, bytes, Any]], subjects: Subjects, file: str
) -> tuple[list[Fact], list[Refusal]]:
    facts, refusals = [], []
    try:
        for number, line, parse in rows:
            if not line.strip():
                continue
            try:
                facts.append(_fact(parse(_text(line)), subjects, file, number))
            except _Bad as bad:
                refusals.append(Refusal(file, number, bad.field, bad.found, bad.expected))
    except _Bad as bad:
        refusals.append(Refusal(file, 1, bad.field, bad.found, bad.expected))
    return facts, refusals


def _text(line: bytes) -> str:
    if len(line) > _LONGEST:
        raise _Bad("", f"a line of {len(line)} bytes", f"at most {_LONGEST}")
    try:
        return line.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        raise _Bad("", f"byte 0x{line[error.start]:02x}", "text in UTF-8") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose fields are told once: of two values none is known to be right."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Bad(twice, f"it {names.count(twice)} times", "every field once")
    return row


def _of_json(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _Bad("", shown(text), "an object in JSON, whole, on one line") from None
    if not isinstance(row, dict):
        raise _Bad("", shown(row), 'an object such as {"patient": "3", "time": 30, ...}')
    _check_fields(row)
    return {name: value for name, value in row.items() if value is not None}


def _rows(lines: list[bytes], file: str) -> Iterator[tuple[int, bytes, Any]]:
    """The lines of a table below its header, and how to read them."""
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        return
    header = [name.strip().casefold() for name in _cells(_text(numbered[0][1]))]
    _check_fields(header)
    for name in ("patient", "time"):
        if header.count(name) != 1:
            raise _Bad(name, f"columns {', '.join(header)}", f"one column {name!r}")

    def of_table(text: str) -> dict[str, Any]:
        cells = _cells(text)
        if len(cells) != len(header):
            raise _Bad("", f"{len(cells)} fields", f"{len(header)}, as in the header")
        row = zip(header, (cell.strip() for cell in cells), strict=True)
        return {name: cell for name, cell in row if cell not in BLANK}

    yield from ((number, line, of_table) for number, line in numbered[1:])


def _cells(text: str) -> list[str]:
    try:
        return next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration):
        raise _Bad("", shown(text), "fields separated by commas, a row on one line") from None


def _check_fields(names: Iterable[str]) -> None:
    for name in names:
        if name not in FIELDS:
            raise _Bad(name, f"an unknown field{suggestion(name, FIELDS)}", f"one of {', '.join(FIELDS)}")


def _fact(row: dict[str, Any], subjects: Subjects, file: str, line: int) -> Fact:
    patient = _patient(row, subjects)
    time = _number(row, "time", subjects.time_unit)
    if ("channel" in row) == ("input" in row):
        found = "both 'channel' and 'input'" if "channel" in row else "neither 'channel' nor 'input'"
        raise _Bad("channel", found, "one: a measurement has a channel, a dose an input")
    place = {"file": file, "line": line}
    dose = "input" in row
    for field in _OF_CHANNEL if dose else _OF_INPUT:
        if field in row:
            told = "a dose, which has an amount" if dose else "a measurement, which has a value"
            raise _Bad(field, shown(row[field]), f"nothing: this is {told}")
    if dose:
        name = _named(row, "input", subjects.inputs)
        unit = _amount_unit(subjects.inputs[name].unit, subjects.time_unit)
        amount = _not_negative(row, "amount", unit)
        duration = _not_negative(row, "duration", subjects.time_unit) if "duration" in row else 0.0
        return Fact(patient, name, time, amount, True, duration, **place)
    name = _named(row, "channel", subjects.channels)
    value, censor = _measured(row, subjects.channels[name])
    return Fact(patient, name, time, value, censor=censor, **place)


def _amount_unit(rate: str, time: str) -> str:
    """Of what flows in over a time: mg for mg/h and h."""
    whole = rate.removesuffix(f"/{time}")
    return product(rate, time) if whole == rate else whole or "1"


def _patient(row: dict[str, Any], subjects: Subjects) -> int:
    given = row.get("patient")
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str) or given not in subjects.patients:
        near = suggestion(given, subjects.patients) if isinstance(given, str) else ""
        found = "nothing" if given is None else f"{shown(given)}{near}"
        raise _Bad("patient", found, "the id of a patient of the result")
    return subjects.patients[given]


def _named(row: dict[str, Any], field: str, options: Mapping[str, Quantity]) -> str:
    given = row[field]
    if not isinstance(given, str) or given not in options:
        near = suggestion(given, options) if isinstance(given, str) else ""
        listed = ", ".join(options)
        none = "none: the model has no input that takes doses"
        raise _Bad(field, f"{shown(given)}{near}", f"one of {listed}" if listed else none)
    return given


def _number(row: dict[str, Any], field: str, unit: str) -> float:
    if field not in row:
        raise _Bad(field, "nothing", "a number")
    try:
        # Zero has one sign, so that what is known is known again.
        return measure(row[field]).to(unit) + 0.0
    except (ValueError, OverflowError):
        raise _Bad(field, shown(row[field]), f"a finite number, in {unit} or with its unit") from None


def _not_negative(row: dict[str, Any], field: str, unit: str) -> float:
    number = _number(row, field, unit)
    if number < 0:
        raise _Bad(field, shown(row[field]), "a number that is not negative")
    return number


def _measured(row: dict[str, Any], quantity: Quantity) -> tuple[float, int]:
    """The value, and on which side of it the truth is: `"<0.5"`, or the field `censor`."""
    given, sign = row.get("value"), SEEN
    if isinstance(given, str) and given.lstrip()[:1] in {"<", ">"}:
        text = given.strip()
        sign = BELOW if text[0] == "<" else ABOVE
        row = {**row, "value": text[1:].lstrip("= ")}
    value = _number(row, "value", quantity.unit)
    if "censor" in row:
        stated = CENSOR.get(str(row["censor"]).strip().removesuffix(".0"))
        if stated is None or (sign not in {SEEN, stated}):
            raise _Bad("censor", shown(row["censor"]), "-1 or '<' (below), 0, 1 or '>' (above)")
        sign = stated
    low, high = quantity.plausible or (-float("inf"), float("inf"))
    if not low <= value <= high:
        bounds = f"{low:g} to {high:g} {quantity.unit}: is the unit right?"
        raise _Bad("value", shown(given), bounds)
    return value, sign
