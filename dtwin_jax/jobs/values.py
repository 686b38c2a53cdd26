"""Values of job files: numbers with a unit, and priors."""

import math
import re
from typing import Annotated, Any, NamedTuple

from pydantic import PlainValidator

from dtwin_jax.core.prior import Prior, prior_from_dict
from dtwin_jax.core.units import UnitError, convert

_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S.*?)?\s*$")


class Measure(NamedTuple):
    """A number, and its unit where one was stated."""

    value: float
    unit: str = ""

    def to(self, unit: str) -> float:
        """The number in `unit`; one without a unit is taken to be in it.

        Raises:
            UnitError: the stated unit is unknown or of another dimension.
        """
        return float(convert(self.value, self.unit, unit)) if self.unit else self.value

    def fits(self, unit: str) -> str:
        """Why it cannot be in `unit`; empty if it can."""
        try:
            self.to(unit)
        except UnitError as error:
            return str(error)
        return ""

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}".strip()


def measure(given: Any) -> Measure:
    """`320`, `"320"` or `"320 mg"` as a `Measure`.

    Raises:
        ValueError: anything else.
    """
    if isinstance(given, Measure):
        return given
    if isinstance(given, str) and (found := _NUMBER.match(given)):
        given = Measure(float(found[1]), found[2] or "")
    elif isinstance(given, int | float) and not isinstance(given, bool):
        given = Measure(float(given))
    else:
        raise ValueError(f'found {given!r}, expected a number, or a text like "320 mg"')
    if not math.isfinite(given.value):
        raise ValueError(f"found {given.value}, expected a finite number")
    return given


def prior(given: Any) -> Prior:
    """`{lognormal = {median = 1.5, log_sd = 1.0}}` as a `Prior`.

    Raises:
        ValueError: not a known family with arguments that fit.
    """
    if isinstance(given, Prior):
        return given
    if not isinstance(given, dict):
        wanted = "a prior such as {lognormal = {median = 1.5, log_sd = 1.0}}"
        raise ValueError(f"found {given!r}, expected {wanted}")
    return prior_from_dict(given)


def prior_or_number(given: Any) -> Prior | float:
    """A prior for what is estimated, a number for what is known."""
    if isinstance(given, dict | Prior):
        return prior(given)
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        wanted = "a number (known) or a prior such as {lognormal = {median = 1.5, log_sd = 1.0}}"
        raise ValueError(f"found {given!r}, expected {wanted}")
    return float(given)


def amount(given: Any) -> Measure | str:
    """An amount, or `"own"`."""
    return "own" if given == "own" else measure(given)


MeasureValue = Annotated[Any, PlainValidator(measure)]
AmountValue = Annotated[Any, PlainValidator(amount)]
PriorValue = Annotated[Any, PlainValidator(prior)]
PriorOrNumber = Annotated[Any, PlainValidator(prior_or_number)]
