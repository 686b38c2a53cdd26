"""Files as columns: comma-separated text and Parquet, told apart by content, every fault with its place.

Nothing here knows what a column means. Text is UTF-8; a file is read in batches, so that a million rows never
stand in memory as Python strings.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BATCH = 65_536
BLANK = frozenset(("", ".", "NA"))

# What is not a table, by its first bytes. Nothing is ever unpickled.
_FOREIGN = (
    (re.compile(rb"\x80[\x00-\x05]"), "a Python pickle"),
    (re.compile(rb"c[\w.]+\r?\n[\w.]+\r?\n"), "a Python pickle"),
    (re.compile(rb"PK\x03\x04"), "a zip archive (a workbook, or NumPy's npz)"),
    (re.compile(rb"\x93NUMPY"), "a NumPy array"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
    (re.compile(rb"\x89HDF"), "an HDF5 file"),
    (re.compile(rb"\xd0\xcf\x11\xe0"), "an old Office document"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "text in UTF-16"),
    (re.compile(rb"\s*<[?!a-zA-Z]"), "an XML or HTML document"),
    (re.compile(rb"\s*(\{|\[\s*\{)"), "a JSON document"),
)


class TableError(ValueError):
    """Data that cannot be read: file, line, column, patient, what was found and what was expected."""


@dataclass(frozen=True)
class Batch:
    """Some rows: their line numbers, and the cells of each wanted column as texts or as numbers."""

    lines: np.ndarray
    cells: dict[int, Any]


@dataclass(frozen=True)
class Source:
    """An opened table.

    Attributes:
        file: name for messages.
        word: what counts the rows, `"line"` of a text (the header is line 1) or `"row"`.
        header: column names as they stand in the file.
        batches: positions of the wanted columns -> the rows.
    """

    file: str
    word: str
    header: tuple[str, ...]
    batches: Callable[[Sequence[int]], Iterator[Batch]]

    @property
    def header_line(self) -> int | None:
        """Line of the header; a Parquet file has none."""
        return 1 if self.word == "line" else None

    def error(
        self,
        *,
        line: int | None = None,
        column: str | None = None,
        patient: str | None = None,
        found: str | None = None,
        expected: str | None = None,
        what: str = "",
    ) -> TableError:
        """The error of a place; `found` stands as given, so quote it, and is `"nothing"` for a blank cell."""
        place = [
            None if line is None else f"{self.word} {line}",
            None if column is None else f"column {column!r}",
            None if patient is None else f"patient {patient!r}",
        ]
        finding = [
            what or None,
            None if found is None else f"found {found}",
            None if expected is None else f"expected {expected}",
        ]
        parts = [", ".join(x for x in some if x) for some in (place, finding)]
        # A quoted cell may hold line breaks; a message is one line.
        return TableError(": ".join([self.file, *(part for part in parts if part)]).replace("\n", "\\n"))


def open_table(path: Any) -> Source:
    """Look at a file and its header.

    Raises:
        TableError: no such file, not a table, not UTF-8, or empty.
    """
    file = os.fspath(path)
    if os.path.isdir(file):
        raise TableError(f"{file}: found a directory, expected a CSV or Parquet file")
    try:
        with open(file, "rb") as stream:
            start = stream.read(4096)
    except FileNotFoundError:
        raise TableError(f"{file}: no such file") from None
    except OSError as error:
        raise TableError(f"{file}: cannot be read ({error.strerror})") from None
    if start[:4] == b"PAR1":
        return _open_parquet(file)
    for pattern, name in _FOREIGN:
        if pattern.match(start):
            raise TableError(f"{file}: found {name}, expected a CSV file in UTF-8 or a Parquet file")
    return _open_csv(file)


def _open_csv(file: str) -> Source:
    _check_text(file)
    source = Source(file, "line", (), lambda wanted: iter(()))
    with open(file, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            header = next((row for row in reader if row), None)
        except csv.Error as error:
            raise source.error(line=reader.line_num, what=str(error)) from None
        skip = reader.line_num
    if header is None:
        raise source.error(what="the file is empty", expected="a header and rows of data")
    header = tuple(name.strip() for name in header)
    if len(header) == 1 and re.search(r"[;\t|]", header[0]):
        raise source.error(line=skip, found=repr(header[0]), expected="columns separated by commas")
    _check_header(source, header)

    def batches(wanted: Sequence[int]) -> Iterator[Batch]:
        return _csv_batches(source, header, wanted)

    return Source(file, "line", header, batches)


def _check_text(file: str) -> None:
    """Refuse bytes that are no UTF-8 text, with the line."""
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if b"\0" in line:
                raise TableError(f"{file}: line {number}: found a NUL byte, expected text in UTF-8")
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x}"
                raise TableError(f"{file}: line {number}: found {found}, expected text in UTF-8") from None


def _check_header(source: Source, header: tuple[str, ...]) -> None:
    folded = [name.casefold() for name in header]
    for position, name in enumerate(folded):
        if name in folded[:position]:
            raise source.error(
                line=source.header_line,
                column=header[position],
                found="the column twice",
                expected="distinct column names",
            )


def _csv_batches(source: Source, header: tuple[str, ...], wanted: Sequence[int]) -> Iterator[Batch]:
    width = len(header)
    rows: list[list[str]] = []
    lines: list[int] = []
    with open(source.file, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        next(row for row in reader if row)
        before = reader.line_num
        try:
            for row in reader:
                if len(row) != width:
                    if not row:
                        before = reader.line_num
                        continue
                    raise _ragged(source, header, row, before + 1)
                rows.append(row)
                lines.append(before + 1)
                before = reader.line_num
                if len(rows) == BATCH:
                    yield _transposed(rows, lines, wanted)
                    rows, lines = [], []
        except csv.Error as error:
            # The row's first line: an open quote runs to the end of the file.
            raise source.error(line=before + 1, what=str(error)) from None
    if rows:
        yield _transposed(rows, lines, wanted)


def _ragged(source: Source, header: tuple[str, ...], row: list[str], line: int) -> TableError:
    return source.error(line=line, expected=f"{len(header)} fields", found=f"{len(row)} fields")


def _transposed(rows: list[list[str]], lines: list[int], wanted: Sequence[int]) -> Batch:
    return Batch(np.asarray(lines), {i: [row[i] for row in rows] for i in wanted})


def _open_parquet(file: str) -> Source:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'dtwin-jax[io]'") from error
    try:
        with pq.ParquetFile(file) as table:
            header = tuple(table.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{file}: not a whole Parquet file ({str(error).splitlines()[0]})") from None
    source = Source(file, "row", header, lambda wanted: iter(()))
    _check_header(source, header)

    def batches(wanted: Sequence[int]) -> Iterator[Batch]:
        names = [header[i] for i in wanted]
        done = 0
        try:
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=BATCH, columns=names):
                    cells = {i: _parquet_cells(batch.column(header[i])) for i in wanted}
                    yield Batch(np.arange(done + 1, done + batch.num_rows + 1), cells)
                    done += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise source.error(what=f"not a whole Parquet file ({str(error).splitlines()[0]})") from None

    return Source(file, "row", header, batches)


def _parquet_cells(column: Any) -> list[str] | np.ndarray:
    """Floats as an array (NaN where null; a NaN that is no null as text), everything else as exact text."""
    import pyarrow as pa

    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        if np.all(np.isfinite(values) | column.is_null().to_numpy(zero_copy_only=False)):
            return values
    return [_text(value) for value in column.to_pylist()]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
