"""The shipped tables against the files that they were made from, row by row."""

import csv
from collections import Counter
from importlib import resources

import pytest

COLUMNS = ["patient", "time", "name", "value", "unit", "duration"]
TABLES = ["theoph.csv", "indometh.csv", "fsigt.csv"]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def shipped(name):
    return read(resources.files("dtwin_jax") / "data" / name)


def named(rows, name, unit):
    """(patient, time, value) of the rows of a name, which all must have `unit`."""
    chosen = [row for row in rows if row["name"] == name]
    assert {row["unit"] for row in chosen} == {unit}
    return [(row["patient"], float(row["time"]), float(row["value"])) for row in chosen]


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_the_columns_of_the_long_form(table):
    rows = shipped(table)
    assert list(rows[0]) == COLUMNS
    assert all(None not in row and None not in row.values() for row in rows)


@pytest.mark.parametrize("table", TABLES)
def test_only_doses_have_a_duration(table):
    assert all((row["duration"] != "") == (row["name"] in {"oral", "iv"}) for row in shipped(table))


@pytest.mark.parametrize("table", TABLES)
def test_rows_of_a_patient_are_in_order_of_time(table):
    rows = shipped(table)
    keys = [(int(row["patient"]), float(row["time"])) for row in rows]
    assert keys == sorted(keys)


def test_theophylline_samples_equal_the_source(shared):
    source = read(shared("data/pk/theoph.csv"))
    expected = [(row["id"], float(row["time_h"]), float(row["conc_mg_per_L"])) for row in source]
    assert named(shipped("theoph.csv"), "concentration", "mg/L") == expected


def test_theophylline_doses_and_weights_equal_the_source(shared):
    source = {row["id"]: row for row in read(shared("data/pk/theoph.csv"))}
    rows = shipped("theoph.csv")
    weights = [(patient, 0.0, float(row["weight_kg"])) for patient, row in source.items()]
    assert named(rows, "weight", "kg") == weights
    doses = [
        (patient, 0.0, pytest.approx(float(row["weight_kg"]) * float(row["dose_mg_per_kg"]), rel=1e-14))
        for patient, row in source.items()
    ]
    assert named(rows, "oral", "mg") == doses


def test_theophylline_is_sampled_before_the_dose_at_time_zero():
    at_zero = [row for row in shipped("theoph.csv") if float(row["time"]) == 0]
    order = {}
    for row in at_zero:
        order.setdefault(row["patient"], []).append(row["name"])
    assert len(order) == 12
    assert all(names == ["weight", "concentration", "oral"] for names in order.values())


def test_indomethacin_equals_the_source(shared):
    source = read(shared("data/pk/indometh.csv"))
    rows = shipped("indometh.csv")
    # A microgram in a millilitre is a milligram in a litre.
    expected = [(row["id"], float(row["time_h"]), float(row["conc_mcg_per_mL"])) for row in source]
    assert named(rows, "concentration", "mg/L") == expected
    patients = dict.fromkeys(row["id"] for row in source)
    assert named(rows, "iv", "mg") == [(patient, 0.0, 25.0) for patient in patients]


def test_glucose_tolerance_test_equals_the_source(shared):
    source = read(shared("data/glucose/fsigt_pacini_bergman_1986.csv"))
    rows = shipped("fsigt.csv")
    glucose = [("1", float(row["time_min"]), float(row["glucose_mg_dl"])) for row in source]
    insulin = [("1", float(row["time_min"]), float(row["insulin_uU_ml"])) for row in source]
    assert named(rows, "glucose", "mg/dL") == glucose
    assert named(rows, "insulin", "u[IU]/mL") == insulin


@pytest.mark.parametrize(
    ("table", "counts"),
    [
        ("theoph.csv", {"weight": 12, "oral": 12, "concentration": 132}),
        ("indometh.csv", {"iv": 6, "concentration": 66}),
        ("fsigt.csv", {"glucose": 24, "insulin": 24}),
    ],
)
def test_the_counts_are_those_of_the_publications(table, counts):
    assert Counter(row["name"] for row in shipped(table)) == counts
