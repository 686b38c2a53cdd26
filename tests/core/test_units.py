"""Factors are those of the SI Brochure, of UCUM's definitions, or of molar masses in the CRC Handbook."""

import sys

import numpy as np
import pytest

from dtwin_jax.core.units import UnitError, compatible, convert, dimension, factor, product

GLUCOSE, CREATININE = 180.156, 113.118


@pytest.mark.parametrize(
    ("start", "end", "ratio"),
    [
        ("mg/dL", "mg/L", 10.0),
        ("mcg/mL", "mg/L", 1.0),
        ("µg/L", "mg/L", 1e-3),
        ("uU/mL", "m[IU]/L", 1.0),
        ("mU/L", "u[IU]/mL", 1.0),
        ("IU", "m[IU]", 1e3),
        ("U/L", "[IU]/L", 1.0),
        ("U", product("[IU]/min", "min"), 1.0),
        ("mmHg", "Pa", 133.322387415),
        ("hr", "min", 60.0),
        ("hours", "h", 1.0),
        ("days", "h", 24.0),
        ("%", "1", 0.01),
        ("10^9/L", "10*3/uL", 1.0),
        ("x10^9/L", "cells/uL", 1000.0),
        ("mM", "umol/L", 1000.0),
        ("mg/kg/hr", "mg/kg/h", 1.0),
        ("mg", product("mg/h", "h"), 1.0),
        ("m^2", "cm2", 1e4),
        ("ng*h/mL", "mg.h/L", 1e-3),
        ("mL/min/1.73m2", "L/h", 0.06),
        ("bpm", "1/s", 1 / 60),
        ("L/hr", "mL/min", 1000 / 60),
    ],
)
def test_what_people_write_converts_by_the_textbook_factor(start, end, ratio):
    assert factor(start, end) == pytest.approx(ratio, rel=1e-14)
    assert factor(end, start) == pytest.approx(1 / ratio, rel=1e-14)


def test_the_same_unit_is_factor_one_exactly():
    assert all(factor(unit, unit) == 1.0 for unit in ("mg/L", "L/h", "u[IU]/mL", "mL/u[IU]/min", "1", "Cel"))


@pytest.mark.parametrize(
    ("value", "start", "end", "molar_mass", "answer"),
    [
        (5.5, "mmol/L", "mg/dL", GLUCOSE, 5.5 * 18.0156),
        (99.0, "mg/dL", "mmol/L", GLUCOSE, 99.0 / 18.0156),
        (106.0, "umol/L", "mg/dL", CREATININE, 106.0 / 88.4033),
        (2.0, "mmol", "mg", GLUCOSE, 2 * GLUCOSE),
        (1.0, "L/mmol", "L/mg", GLUCOSE, 1 / GLUCOSE),
    ],
)
def test_molar_mass_joins_mass_and_amount_of_substance(value, start, end, molar_mass, answer):
    assert convert(value, start, end, molar_mass) == pytest.approx(answer, rel=1e-5)


def test_mass_and_substance_do_not_mix_without_a_molar_mass():
    with pytest.raises(UnitError, match="need a molar mass"):
        convert(5.5, "mmol/L", "mg/dL")


def test_arrays_stay_arrays_and_floats_stay_floats():
    assert isinstance(convert(1.0, "g", "mg"), float)
    np.testing.assert_array_equal(convert(np.asarray([1.0, 2.0]), "g", "mg"), [1000.0, 2000.0])


def test_temperatures_move_their_zero():
    assert convert(37.0, "°C", "K") == pytest.approx(310.15)
    np.testing.assert_allclose(convert(np.asarray([98.6]), "degF", "Cel"), [37.0])
    with pytest.raises(UnitError, match="use convert"):
        factor("Cel", "K")


def test_activity_is_neither_count_nor_mass():
    assert not compatible("[IU]/L", "10*9/L")
    assert not compatible("[IU]/L", "mg/L", GLUCOSE)
    assert not compatible("h", "mg")


def test_dimension_names_base_quantities():
    assert dimension("mg/L") == {"mass": 1, "length": -3}
    assert dimension("m[IU]/L") == {"length": -3, "international_unit": 1}
    assert dimension("%") == {}


@pytest.mark.parametrize("unit", ["mgg/L", "", "1.73", "foo", "mg/", "os.system"])
def test_an_unknown_unit_is_named(unit):
    with pytest.raises(UnitError, match="unknown unit") as caught:
        factor(unit, "mg/L")
    assert repr(unit) in str(caught.value)


def test_an_unknown_unit_is_met_with_a_near_one():
    with pytest.raises(UnitError, match="did you mean 'mg/L'"):
        dimension("mgg/L")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    from dtwin_jax.core import units

    units._registry.cache_clear()
    monkeypatch.setitem(sys.modules, "ucumvert", None)
    with pytest.raises(ImportError, match=r"pip install 'dtwin-jax\[io\]'"):
        dimension("a/unit/never/read/before")
    monkeypatch.undo()
    assert dimension("g") == {"mass": 1}


def test_a_unit_that_begins_with_a_slash_is_divided_by_all_that_follows():
    """UCUM: operators are read from left to right, and a leading slash divides 1."""
    assert dimension("/min/a") == {"time": -2}
    assert factor("/min/a", "1/(min.a)") == 1.0
