"""Lines of keys: against texts whose lines were counted by eye, and against any text that we can write."""

import json
import tomllib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dtwin_jax.jobs.lines import key_lines

WRITTEN = """# a comment with [brackets] and key = value
title = "a # that is no comment"
dotted.key.deep = 1
"quoted.key" = 'it''s' # valid: no
""".replace("it''s", "its")

NESTED = '''
long = """
not = "a key"
[nor a table]
""" # 2
lines = [ # 6
  1,
  { a = 1, b = [2, 3] }, # 8
  [4,
   5], # 10
]
[table] # 12
key = { x = 1, y = { z = "}" } }
[table.inner.most]
"ключ" = 1
[[rows]] # 16
name = "first"
[rows.sub] # 18
x = 1
[[rows]]
name = "second" # 21
  [[rows.deep]]
  a = 1979-05-27T07:32:00Z
  [[rows.deep]] # 24
  a = \'\'\'
\'\'\'\'
  b = """"quoted"""" # 27
'''


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        (WRITTEN, ("title",), 2),
        (WRITTEN, ("dotted",), 3),
        (WRITTEN, ("dotted", "key", "deep"), 3),
        (WRITTEN, ("quoted.key",), 4),
        (NESTED, ("long",), 2),
        (NESTED, ("lines",), 6),
        (NESTED, ("lines", 0), 7),
        (NESTED, ("lines", 1, "b", 1), 8),
        (NESTED, ("lines", 2, 1), 10),
        (NESTED, ("table",), 12),
        (NESTED, ("table", "key", "y", "z"), 13),
        (NESTED, ("table", "inner", "most"), 14),
        (NESTED, ("table", "inner", "most", "ключ"), 15),
        (NESTED, ("rows", 0), 16),
        (NESTED, ("rows", 0, "name"), 17),
        (NESTED, ("rows", 0, "sub", "x"), 19),
        (NESTED, ("rows", 1, "name"), 21),
        (NESTED, ("rows", 1, "deep", 0, "a"), 23),
        (NESTED, ("rows", 1, "deep", 1), 24),
        (NESTED, ("rows", 1, "deep", 1, "b"), 27),
        ("a = 1\r\n[b]\r\nc = 2\r\n", ("b", "c"), 3),
        ("a = 1", ("a",), 1),
    ],
)
def test_a_key_has_the_line_that_was_counted(text, path, line):
    tomllib.loads(text)
    assert key_lines(text)[path] == line


def test_an_empty_text_has_no_keys():
    assert key_lines("") == key_lines("\n# nothing\n") == {}


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=6)
LEAVES = st.one_of(
    st.integers(-99, 99), st.booleans(), st.text(st.sampled_from("a#[]{}=,.\"'\\\n é"), max_size=8)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=4)


class Writer:
    """Writes TOML, and notes the line on which it wrote each key."""

    def __init__(self, draw):
        self.draw, self.text, self.lines = draw, "", {}

    def note(self, path):
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def gap(self):
        self.text += self.draw(st.sampled_from(["", " ", "\n", " # ] } = no\n"]))

    def value(self, path, value):
        if isinstance(value, list):
            self.text += "["
            for i, item in enumerate(value):
                self.gap()
                self.note((*path, i))
                self.value((*path, i), item)
                self.gap()
                self.text += ","
            self.text += "]"
        elif isinstance(value, dict):
            self.text += "{"
            for i, (key, item) in enumerate(value.items()):
                self.text += ", " if i else " "
                self.pair(path, key, item)
            self.text += "}"
        elif isinstance(value, str) and "'" not in value and "\n" not in value and self.draw(st.booleans()):
            self.text += f"'{value}'"
        else:
            self.text += json.dumps(value, ensure_ascii=False)

    def pair(self, path, key, item):
        self.note((*path, key))
        self.text += json.dumps(key, ensure_ascii=False) + " = "
        self.value((*path, key), item)

    def table(self, path, table):
        for key, item in table.items():
            self.pair(path, key, item)
            self.text += self.draw(st.sampled_from(["\n", " # a = 1\n", "\n\n"]))


def note_header(writer, path):
    for end in range(1, len(path) + 1):
        writer.note(path[:end])


@st.composite
def documents(draw):
    writer = Writer(draw)
    writer.table((), draw(TABLES))
    for number in range(draw(st.integers(0, 2))):
        name = f"table {number}"
        note_header(writer, (name, "in"))
        writer.text += f'["{name}" . in]\n'
        writer.table((name, "in"), draw(TABLES))
    for row in range(draw(st.integers(0, 3))):
        note_header(writer, ("all rows", row))
        writer.text += '[["all rows"]]\n'
        writer.table(("all rows", row), draw(TABLES))
    return writer


@given(documents())
def test_every_key_of_any_document_has_its_line(written):
    tomllib.loads(written.text)
    assert key_lines(written.text) == written.lines


@given(st.text(max_size=200))
def test_any_text_comes_to_an_end(text):
    key_lines(text)
