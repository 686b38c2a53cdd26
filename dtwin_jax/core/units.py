"""Units: UCUM codes, and what people write instead, compared and converted.

Data are converted once, when they are read. International units are a dimension of their own, so that an
activity never becomes a count of cells, nor a mass, by accident.
"""

import difflib
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dtwin_jax.core.types import AnyArray

# What people write, whole and in parts. Everything else is UCUM.
_WHOLE = {
    "bpm": "/min",
    "cmH2O": "cm[H2O]",
    "K/uL": "10*3/uL",
    "K/µL": "10*3/uL",
    "M/uL": "10*6/uL",
    "M/µL": "10*6/uL",
    "mL/min/1.73m2": "mL/min/{1.73_m2}",
    "mL/min/1.73m^2": "mL/min/{1.73_m2}",
    "-": "1",
}
_PARTS = {
    "%": "percent pct",
    "1": "fraction ratio unitless dimensionless",
    "g": "gm gram grams",
    "mg": "milligram milligrams",
    "ug": "mcg µg",
    "kg": "Kg kgs",
    "[lb_av]": "lb lbs",
    "[in_i]": "inch inches",
    "L": "litre liter litres liters",
    "mL": "cc",
    "uL": "µL µl",
    "um": "µm",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "d": "day days",
    "wk": "week weeks",
    "mo": "month months",
    "a": "y yr yrs year years",
    "mm[Hg]": "mmHg",
    "Cel": "°C degC celsius",
    "[degF]": "°F degF fahrenheit",
    "[IU]": "IU",
    "m[IU]": "mIU mU",
    "u[IU]": "uIU µIU uU µU",
    "k[IU]": "kIU",
    "U": "unit units",
    "meq": "mEq",
    "mosm": "mOsm",
    "umol": "µmol",
    "{cells}": "cells cell",
    "{copies}": "copies",
    "(mol/L)": "M",
    "(mmol/L)": "mM",
    "(umol/L)": "uM µM",
    "(nmol/L)": "nM",
    "(pmol/L)": "pM",
}
_ALIASES = {alias: code for code, aliases in _PARTS.items() for alias in aliases.split()}
# An annotation in braces, or letters with any bracketed code among them.
_TOKEN = re.compile(r"\{[^}]*\}|(?:[A-Za-zµ%°]|\[[^\]]*\])+")
_FAMILIAR = (
    "mg/L mg/dL ug/mL ug/L ng/mL pg/mL g/dL mmol/L umol/L nmol/L pmol/L mol/L u[IU]/mL m[IU]/L [IU]/L U/L "
    "mm[Hg] % mg ug g kg mmol [IU] mg/h mg/min mL/min L/h mL L h min s d wk mo a 10*9/L 10*6/mL /min Cel cm m"
).split()
_BIOLOGICAL = "international_unit"


class UnitError(ValueError):
    """A unit that is not known, or that cannot become another."""


class _Unit(NamedTuple):
    size: float  # in SI base units
    dimension: Mapping[str, float]
    proportional: bool  # False for temperatures, whose zero is elsewhere
    quantity: Any


def dimension(unit: str) -> Mapping[str, float]:
    """Base dimension -> exponent: `{"mass": 1, "length": -3}` for `"mg/L"`, `{}` for a pure number.

    Raises:
        UnitError: the unit is not known.
    """
    return _parse(unit).dimension


def compatible(a: str, b: str, molar_mass: float | None = None) -> bool:
    """True where a value in `a` can be written in `b`."""
    try:
        _ratio(a, b, molar_mass)
    except UnitError:
        return False
    return True


def factor(unit_from: str, unit_to: str, molar_mass: float | None = None) -> float:
    """The number by which a value in `unit_from` is multiplied to be in `unit_to`.

    Args:
        unit_from: UCUM code, or one of the spellings in common use (`mcg`, `uU/mL`, `hr`).
        unit_to: the same.
        molar_mass: g/mol, allows mass for amount of substance and the reverse.

    Raises:
        UnitError: a unit is not known, the dimensions differ, or zero is not zero in both (temperatures).
    """
    if not (_parse(unit_from).proportional and _parse(unit_to).proportional):
        if unit_from != unit_to:
            raise UnitError(f"{unit_from!r} to {unit_to!r} is no multiplication; use convert")
        return 1.0
    return _ratio(unit_from, unit_to, molar_mass)


def convert(
    value: float | AnyArray, unit_from: str, unit_to: str, molar_mass: float | None = None
) -> float | AnyArray:
    """`value`, given in `unit_from`, in `unit_to`. A float gives a float, an array an array.

    Args:
        value: one number or many.
        unit_from: UCUM code, or one of the spellings in common use (`mcg`, `uU/mL`, `hr`).
        unit_to: the same.
        molar_mass: g/mol, allows mass for amount of substance and the reverse.

    Raises:
        UnitError: a unit is not known, or the dimensions differ.
    """
    ratio = _ratio(unit_from, unit_to, molar_mass)
    start, end = _parse(unit_from), _parse(unit_to)
    if start.proportional and end.proportional:
        return value * ratio
    given = _registry().Quantity(np.asarray(value, float), start.quantity.units)
    moved = given.to(end.quantity.units).magnitude
    return float(moved) if np.ndim(value) == 0 else np.asarray(moved)


def product(a: str, b: str) -> str:
    """The unit of a number in `a` times a number in `b`: an input's unit times time is a dose's."""
    return f"({a}).({b})"


@lru_cache(maxsize=4096)
def _ratio(unit_from: str, unit_to: str, molar_mass: float | None) -> float:
    start, end = _parse(unit_from), _parse(unit_to)
    if start.dimension == end.dimension:
        return _tidy(start.size / end.size)
    through_moles = _through_moles(start, end, molar_mass)
    if through_moles is not None:
        return through_moles
    # A bare U is an enzyme's unit in UCUM; beside an international unit it is meant as one.
    start, end = _parse(_as_international(unit_from)), _parse(_as_international(unit_to))
    if start.dimension == end.dimension:
        return _tidy(start.size / end.size)
    wanted = _say(_parse(unit_to).dimension)
    hint = ""
    if molar_mass is None and _moles_apart(_parse(unit_from), _parse(unit_to)) is not None:
        hint = "; mass and amount of substance need a molar mass"
    raise UnitError(
        f"{unit_from!r} ({_say(_parse(unit_from).dimension)}) cannot become {unit_to!r} ({wanted}){hint}"
    )


def _through_moles(start: _Unit, end: _Unit, molar_mass: float | None) -> float | None:
    power = _moles_apart(start, end)
    if power is None or molar_mass is None:
        return None
    kilograms_per_mole = molar_mass * 1e-3
    return _tidy(start.size / end.size * kilograms_per_mole**power)


def _moles_apart(start: _Unit, end: _Unit) -> float | None:
    """Power of the molar mass between two units, None where that is not what sets them apart."""
    power = start.dimension.get("substance", 0) - end.dimension.get("substance", 0)
    moved = dict(start.dimension)
    moved["substance"] = moved.get("substance", 0) - power
    moved["mass"] = moved.get("mass", 0) + power
    same = {name: exponent for name, exponent in moved.items() if exponent} == dict(end.dimension)
    return power if power and same else None


def _tidy(ratio: float) -> float:
    # The registry's arithmetic leaves 10.000000000000002 between mg/dL and mg/L.
    short = float(f"{ratio:.12g}")
    return short if abs(short - ratio) <= 1e-14 * abs(ratio) else ratio


def _say(dims: Mapping[str, float]) -> str:
    return (
        " ".join(name if power == 1 else f"{name}^{power:g}" for name, power in dims.items())
        or "no dimension"
    )


def _as_international(unit: str) -> str:
    return re.sub(r"(?<![A-Za-z\[\]'_])([munk]?)U(?![A-Za-z\[\]'_])", r"\1[IU]", _ucum(unit))


@lru_cache(maxsize=4096)
def _parse(unit: str) -> _Unit:
    registry = _registry()
    code = _ucum(unit)
    try:
        # ucumvert reads 1.73 as 73: UCUM has no decimals.
        if not code or re.search(r"\d\.\d", re.sub(r"\{[^}]*\}", "", code)):
            raise ValueError(code)
        quantity = registry.from_ucum(code)
        zero = registry.Quantity(0.0, quantity.units).to_base_units().magnitude
        size = float(quantity.to_base_units().magnitude)
    except Exception as error:
        raise UnitError(f"unknown unit {unit!r}{_suggest(unit)}") from error
    dims = {name.strip("[]"): _plain(power) for name, power in quantity.dimensionality.items()}
    activity = sum(power for name, power in quantity.unit_items() if name.endswith(_BIOLOGICAL))
    if activity:
        dims[_BIOLOGICAL] = _plain(activity)
    return _Unit(size, MappingProxyType(dims), zero == 0, quantity)


def _plain(power: Any) -> float:
    return int(power) if float(power).is_integer() else float(power)


def _ucum(unit: str) -> str:
    """The UCUM code of what was written."""
    text = re.sub(r"\s+", "", unit).replace("μ", "µ").replace("−", "-")
    if text in _WHOLE:
        return _WHOLE[text]
    text = re.sub(r"^[x×]?10(?:\^|\*\*|\*)", "10*", text)
    text = re.sub(r"(?<!10)\*\*?|·", lambda m: "" if m.group() == "**" else ".", text).replace("^", "")
    text = _TOKEN.sub(lambda m: _ALIASES.get(m.group(), m.group()), text)
    # ucumvert reads /min/a as /(min/a), UCUM as 1/min/a.
    return f"1{text}" if text.startswith("/") else text


def _suggest(unit: str) -> str:
    by_fold = {name.casefold(): name for name in (*_FAMILIAR, *_ALIASES)}
    near = difflib.get_close_matches(unit.casefold(), by_fold, n=1)
    return f"; did you mean {by_fold[near[0]]!r}?" if near else ""


@lru_cache(maxsize=1)
def _registry() -> Any:
    """The registry, built at the first use: it takes a second."""
    try:
        from ucumvert import PintUcumRegistry
    except ImportError as error:
        raise ImportError("units need pint and ucumvert: pip install 'dtwin-jax[io]'") from error
    return PintUcumRegistry()
