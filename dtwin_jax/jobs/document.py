"""TOML files read with every fault named by file, line and key, all at once."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dtwin_jax.io.names import suggestion
from dtwin_jax.jobs.lines import Path, key_lines

_YAML = re.compile(r"(?:---|%YAML|[\w.\-]+[ \t]*:([ \t]|$))")
_LARGEST = 4_000_000


class JobError(ValueError):
    """A job or plan that cannot be used: one line a fault, each with file, line, key, found and expected."""


class Section(BaseModel):
    """A table of a file: no key but the declared ones, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a file.

    Attributes:
        path: the key, as names and positions.
        what: what is wrong, or what was found.
        expected: what would be right; empty where `what` says it.
    """

    path: Path
    what: str
    expected: str = ""

    def __str__(self) -> str:
        if not self.expected:
            return self.what
        return f"{self.what}{'' if self.what.endswith('?') else ','} expected {self.expected}"


@dataclass(frozen=True)
class Document:
    """A TOML file that was read.

    Attributes:
        file: as the caller named it.
        data: what it says.
        lines: where each key stands.
    """

    file: str
    data: dict[str, Any]
    lines: Mapping[Path, int]

    @property
    def folder(self) -> FilePath:
        """Paths in the file are relative to it."""
        return FilePath(self.file).parent

    def error(self, faults: Iterable[Fault]) -> JobError:
        """All faults, in the order of the file."""
        placed = [(self._line(fault.path), fault) for fault in dict.fromkeys(faults)]
        placed.sort(key=lambda pair: pair[0])
        return JobError("\n".join(self._say(line, fault) for line, fault in placed))

    def _line(self, path: Path) -> int:
        # A key that is missing is placed at the table that it is missing from.
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def _say(self, line: int, fault: Fault) -> str:
        place = f"line {line}, key {dotted(fault.path)!r}" if fault.path else f"line {line}"
        return one_line(f"{self.file}: {place}: {fault}")


def dotted(path: Path) -> str:
    """`population.covariates[0].name`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def one_line(text: str) -> str:
    """`text` without line breaks."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def read_document(path: str | os.PathLike[str], kind: str = "job") -> Document:
    """A TOML file and where its keys stand.

    Args:
        path: of the file.
        kind: what it should be, for messages.

    Raises:
        JobError: no such file, not text in UTF-8, not TOML.
    """
    file = os.fspath(path)
    wanted = f"expected a {kind} file in TOML"
    if os.path.isdir(file):
        raise JobError(f"{file}: found a directory, {wanted}")
    try:
        with open(file, "rb") as stream:
            raw = stream.read(_LARGEST + 1)
    except FileNotFoundError:
        raise JobError(f"{file}: no such file; {wanted}") from None
    except OSError as error:
        raise JobError(f"{file}: cannot be read ({error.strerror})") from None
    if len(raw) > _LARGEST:
        raise JobError(f"{file}: found more than {_LARGEST // 1_000_000} MB, {wanted}")
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        byte = raw[error.start]
        raise JobError(
            f"{file}: line {line}: found byte 0x{byte:02x} that is not UTF-8, {wanted}, in UTF-8"
        ) from None
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise JobError(_not_toml(file, text, str(error), wanted)) from None
    return Document(file, data, key_lines(text))


def _not_toml(file: str, text: str, message: str, wanted: str) -> str:
    rows = [row for row in text.splitlines() if row.strip() and not row.lstrip().startswith("#")]
    first = rows[0].strip() if rows else ""
    if file.lower().endswith((".yaml", ".yml")) or _YAML.match(first):
        return f"{file}: found YAML, {wanted}: key = value, and [table] for nesting"
    if first.startswith("{"):
        return f"{file}: found JSON, {wanted}: key = value, and [table] for nesting"
    place = re.search(r"\(at line (\d+), column (\d+)\)", message)
    if place is None:
        what, line = message.replace(" (at end of document)", ""), text.count("\n") + 1
        return one_line(f"{file}: line {line}: not valid TOML: {what} at the end of the file")
    what = message[: place.start()].strip()
    return one_line(f"{file}: line {place[1]}, column {place[2]}: not valid TOML: {what}")


def validate(kind: type[Section], document: Document, path: Path = ()) -> tuple[Any, list[Fault]]:
    """The document (or its table at `path`) as a `Section`, None with the faults if it is not one."""
    data: Any = document.data
    for part in path:
        data = data[part]
    try:
        return kind.model_validate(data), []
    except ValidationError as error:
        return None, [_fault(kind, path, entry) for entry in error.errors(include_url=False)]


def _fault(kind: type[BaseModel], prefix: Path, entry: Mapping[str, Any]) -> Fault:
    where, found = tuple(entry["loc"]), entry.get("input")
    path = (*prefix, *(part for part in where if part != "[key]"))
    if entry["type"] == "extra_forbidden":
        known = _fields(kind, where[:-1])
        return Fault(path, f"unknown key{suggestion(str(where[-1]), known)}", f"one of {', '.join(known)}")
    if entry["type"] == "missing":
        return Fault(path, "the key is missing")
    if entry["type"] in {"value_error", "assertion_error"}:
        return Fault(path, str(entry["ctx"]["error"]))
    expected = re.sub(r"^.*? should (be|have) ", "", entry["msg"])
    expected = {"a valid dictionary": "a table", "a valid list": "an array"}.get(expected, expected)
    expected = re.sub(r"^a valid dictionary or .*", "a table", expected)
    return Fault(path, f"found {shown(found)}", expected)


def _fields(kind: type[BaseModel], where: Path) -> list[str]:
    """Keys of the table at `where`."""
    for part in where:
        if isinstance(part, str):
            inner = {key.alias or name: key.annotation for name, key in kind.model_fields.items()}[part]
            kind = _section_in(inner)
    return [key.alias or name for name, key in kind.model_fields.items()]


def _section_in(annotation: Any) -> type[BaseModel]:
    """The section in `Section | None` or `list[Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_section_in(part) for part in annotation.__args__ if part is not type(None))


def shown(value: Any) -> str:
    """A value of a file, short enough for a message."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
