"""Facts a line each: what they say, and how a bad line is told and passed over."""

import json

import pytest

from dtwin_jax.core.quantity import Quantity
from dtwin_jax.jobs.facts import Fact, Subjects, facts_of_lines, read_facts

SUBJECTS = Subjects(
    {"Zoë": 0, "3": 1},
    {"concentration": Quantity("mg/L", plausible=(0.0, 1000.0)), "pressure": Quantity("mm[Hg]")},
    {"oral": Quantity("mg/h")},
    "h",
)


def read(*rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return facts_of_lines(lines, SUBJECTS, "pipe")


def measurement(**change):
    row = {"patient": "3", "time": 30.0, "channel": "concentration", "value": 2.6} | change
    return {name: value for name, value in row.items() if value != "absent"}


def dose(**change):
    return {"patient": "3", "time": 24, "input": "oral", "amount": 320} | change


def test_lines_are_measurements_and_doses_in_the_models_units():
    facts, refusals = read(
        measurement(),
        dose(duration=0.5),
        measurement(time="90 min", value="3 ug/mL", patient=3),
        dose(amount="0.32 g", duration="30 min"),
    )
    assert not refusals
    assert facts[0] == Fact(1, "concentration", 30.0, 2.6, file="pipe", line=1)
    assert facts[1] == Fact(1, "oral", 24.0, 320.0, True, 0.5, file="pipe", line=2)
    assert facts[2] == Fact(1, "concentration", 1.5, 3.0, file="pipe", line=3)
    assert facts[3] == Fact(1, "oral", 24.0, 320.0, True, 0.5, file="pipe", line=4)


@pytest.mark.parametrize(
    "change",
    [
        {"value": "<0.5"},
        {"value": 0.5, "censor": -1},
        {"value": 0.5, "censor": "<"},
        {"value": 0.5, "censor": -1.0},
    ],
)
def test_a_value_below_a_limit_is_one_by_its_sign_or_by_its_field(change):
    facts, refusals = read(measurement(**change))
    assert not refusals and (facts[0].value, facts[0].censor) == (0.5, -1)


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        (b"{", "", ["JSON"]),
        (b"[1]", "", ["patient"]),
        (b"\xff\xfe", "", ["byte 0xff", "UTF-8"]),
        (b"[" * 9000, "", ["JSON"]),
        (b" " * 10_000 + b"1", "", ["10001 bytes"]),
        (measurement(patient="Zoe"), "patient", ["'Zoe'", "did you mean 'Zoë'"]),
        (measurement(patient=True), "patient", ["true"]),
        (measurement(patient="absent"), "patient", ["nothing"]),
        (measurement(time="soon"), "time", ["'soon'", "finite number"]),
        (measurement(time="3 kg"), "time", ["'3 kg'", "in h"]),
        (measurement(time=float("nan")), "time", ["nan"]),
        (measurement(time="absent"), "time", ["nothing"]),
        (measurement(channel="concentratoin"), "channel", ["did you mean 'concentration'", "pressure"]),
        (measurement(channel=["x"]), "channel", ["['x']"]),
        (measurement(channel="absent"), "channel", ["neither"]),
        (measurement(input="oral"), "channel", ["both"]),
        (measurement(value=float("inf")), "value", ["inf"]),
        (measurement(value=10**400), "value", ["finite"]),
        (measurement(value=True), "value", ["finite"]),
        (measurement(value=-1), "value", ["0 to 1000 mg/L", "is the unit right?"]),
        (measurement(value="<1", censor=1), "censor", ["1", "below"]),
        (measurement(censor="maybe"), "censor", ["'maybe'"]),
        (measurement(amount=3), "amount", ["a measurement, which has a value"]),
        (measurement(valu=3), "valu", ["did you mean 'value'"]),
        (b'{"\\ud800": 1}', "\\ud800", ["unknown field"]),
        (b'{"\\ud800": 1, "\\ud800": 2}', "\\ud800", ["2 times"]),
        (dose(input="orl"), "input", ["did you mean 'oral'"]),
        (dose(amount=-1), "amount", ["not negative"]),
        (dose(amount="3 mL"), "amount", ["'3 mL'", "a finite number, in mg or with"]),
        (b'{"patient": "3", "time": 1, "time": 2}', "time", ["found it 2 times", "every field once"]),
        (measurement(censor=-1.5), "censor", ["-1.5"]),
        (dose(amount=None), "amount", ["nothing"]),
        (dose(duration="-30 min"), "duration", ["not negative"]),
        (dose(value=3), "value", ["a dose, which has an amount"]),
    ],
)
def test_a_bad_line_is_refused_by_field_and_those_beside_it_are_read(row, field, words):
    facts, refusals = read(measurement(), row, dose())
    assert [fact.line for fact in facts] == [1, 3]
    (refusal,) = refusals
    assert (refusal.file, refusal.line, refusal.field) == ("pipe", 2, field)
    assert all(word in str(refusal) for word in words), str(refusal)
    assert str(refusal).startswith("pipe: line 2") and "expected" in str(refusal) and "\n" not in str(refusal)
    # It can be written to a file, whatever stood in the line.
    assert json.loads(json.dumps(refusal.as_dict(), ensure_ascii=False).encode()) == refusal.as_dict()


TABLE = """\
Patient,time,channel,value,input,amount
3,30,concentration,2.6,,
3,24,,,oral,320
Zoë,1,concentration,<0.5,.,NA
"""


def test_a_table_says_the_same_as_lines(tmp_path):
    (tmp_path / "facts.csv").write_bytes(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode())
    facts, refusals = read_facts(tmp_path / "facts.csv", SUBJECTS)
    assert not refusals
    assert facts[0] == Fact(1, "concentration", 30.0, 2.6, file="facts.csv", line=2)
    assert facts[1] == Fact(1, "oral", 24.0, 320.0, True, file="facts.csv", line=3)
    assert facts[2] == Fact(0, "concentration", 1.0, 0.5, censor=-1, file="facts.csv", line=4)


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("3,24,,,oral,320", "3,24,,,oral"), 3, ["5 fields", "6"]),
        (("3,24,,,oral,320", '3,24,,,"oral,320'), 3, ["separated by commas"]),
        (("2.6", "2.6.1"), 2, ["'value'", "'2.6.1'"]),
        (("2.6", "1_0"), 2, ["'value'", "'1_0'"]),
    ],
)
def test_a_bad_row_is_refused_and_those_beside_it_are_read(tmp_path, change, line, words):
    (tmp_path / "facts.csv").write_text(TABLE.replace(*change))
    facts, (refusal,) = read_facts(tmp_path / "facts.csv", SUBJECTS)
    assert len(facts) == 2 and refusal.line == line and all(word in str(refusal) for word in words)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("facts.csv", TABLE.replace("value", "valu"), ["line 1", "'valu'", "did you mean 'value'"]),
        ("facts.csv", TABLE.replace("time", "value"), ["'time'", "one column 'time'"]),
        ("facts.txt", TABLE, ["facts.txt", ".csv or .jsonl"]),
        ("facts", TABLE, ["without an ending"]),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_once(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    facts, (refusal,) = read_facts(tmp_path / name, SUBJECTS)
    assert not facts and all(word in str(refusal) for word in words)


def test_a_file_that_has_gone_is_refused_and_an_empty_one_says_nothing(tmp_path):
    _, (refusal,) = read_facts(tmp_path / "gone.csv", SUBJECTS)
    assert str(refusal).startswith("gone.csv: found that it cannot be read")
    (tmp_path / "empty.csv").write_text("\n")
    assert read_facts(tmp_path / "empty.csv", SUBJECTS) == ([], [])
