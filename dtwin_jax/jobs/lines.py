"""Where the keys of a TOML text stand, which `tomllib` does not tell."""

import bisect
import re
import tomllib
from dataclasses import dataclass, field

Path = tuple[str | int, ...]

_BLANK = re.compile(r"[ \t]*")
_GAP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[^\s.=\]\"'\[{},#]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_PLAIN = re.compile(r"[^,\]}\n#]*")


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of every key and every element of an array.

    Args:
        text: valid TOML.

    Returns:
        Path of keys and positions, `("doses", 0, "amount")`, -> line where it first stands.
    """
    scan = _Scan(text, [i for i, character in enumerate(text) if character == "\n"])
    scan.document()
    return scan.lines


@dataclass
class _Scan:
    """A walk through the text that takes its validity for granted."""

    text: str
    breaks: list[int]
    at: int = 0
    lines: dict[Path, int] = field(default_factory=dict)
    counts: dict[Path, int] = field(default_factory=dict)

    def document(self) -> None:
        table: Path = ()
        while self._skip(_GAP) < len(self.text):
            before = self.at
            if self.text.startswith("[[", self.at):
                table = self._header(opening=2)
            elif self.text[self.at] == "[":
                table = self._header(opening=1)
            else:
                self._pair(table)
            if self.at == before:  # not TOML after all: better no line than no end
                return

    def _header(self, opening: int) -> Path:
        self.at += opening
        keys = self._key()
        path: Path = ()
        for i, key in enumerate(keys):
            path = (*path, key)
            self._mark(path)
            if opening == 2 and i == len(keys) - 1:
                self.counts[path] = self.counts.get(path, 0) + 1
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
                self._mark(path)
        self.at += opening
        return path

    def _pair(self, table: Path) -> None:
        path = table
        for key in self._key():
            path = (*path, key)
            self._mark(path)
        self._skip(_BLANK)
        self.at += 1  # the equals sign
        self._value(path)

    def _key(self) -> list[str]:
        keys = []
        while True:
            self._skip(_BLANK)
            quoted = self.text[self.at : self.at + 1] in {'"', "'"}
            found = (_STRING if quoted else _BARE).match(self.text, self.at)
            if found is None:
                return keys
            self.at = found.end()
            keys.append(tomllib.loads(f"k = {found[0]}")["k"] if quoted else found[0])
            self._skip(_BLANK)
            if self.text[self.at : self.at + 1] != ".":
                return keys
            self.at += 1

    def _value(self, path: Path) -> None:
        self._skip(_BLANK)
        first = self.text[self.at : self.at + 1]
        if first == "[":
            self._items(path, closing="]")
        elif first == "{":
            self._items(path, closing="}")
        else:
            self._skip(_STRING if first in {'"', "'"} else _PLAIN)

    def _items(self, path: Path, closing: str) -> None:
        self.at += 1
        index = 0
        while self._skip(_GAP) < len(self.text) and self.text[self.at] != closing:
            before = self.at
            if closing == "]":
                self._mark((*path, index))
                self._value((*path, index))
            else:
                self._pair(path)
            index += 1
            self._skip(_GAP)
            if self.text[self.at : self.at + 1] == ",":
                self.at += 1
            if self.at == before:
                return
        self.at += 1

    def _mark(self, path: Path) -> None:
        self.lines.setdefault(path, bisect.bisect_left(self.breaks, self.at) + 1)

    def _skip(self, pattern: re.Pattern) -> int:
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return self.at
