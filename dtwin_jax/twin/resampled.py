"""How certain the estimates of a population are, told by many draws of them."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtwin_jax.inference.doubts import EstimationWarning
from dtwin_jax.inference.estimated import Estimate


@dataclass(frozen=True, eq=False)
class Resampled:
    """Draws of a population's estimates, and what they say; printed, a table.

    Attributes:
        data: `xarray.Dataset`. By `parameter`, named as in `Estimate.estimate`: `original`, the estimate;
            `mean`, `bias` (mean - original), `standard_error` and `interval` (parameter, bound), between
            percentiles, of the draws that count. `estimate` (row, parameter) and `vector` (row, number) are
            the draws themselves; what else there is stands with the function that made them.
        told: how the draws were made, in a sentence.
        warnings: what a user must know before believing them.
    """

    data: Any
    told: str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A table of estimates, with standard errors, bias and intervals."""
        low, high = (f"{100 * bound:g} %" for bound in self.data["bound"].values)
        head = f"{'':16}{'estimate':>12}{'error':>12}{'bias':>12}{low:>12}{high:>12}"
        columns = [self.data[name].values for name in ("original", "standard_error", "bias")]
        rows = [
            f"{name:16}{value:12.5g}{error:12.3g}{bias:12.3g}{ends[0]:12.5g}{ends[1]:12.5g}"
            for name, value, error, bias, ends in zip(
                self.data["parameter"].values, *columns, self.data["interval"].values, strict=True
            )
        ]
        return "\n".join([self.told, head, *rows, *(f"! {each}" for each in self.warnings)])


def resampled_of(
    found: Estimate, rows: dict[str, tuple], counting: np.ndarray, level: float, told: str, said: list[str]
) -> Resampled:
    """The summary of draws, whose warnings are given.

    Args:
        found: the estimate that they are of.
        rows: variables of the dataset; `estimate` (row, parameter) among them.
        counting: (row,) which draws count.
        level: of the intervals.
        told: how the draws were made.
        said: what is to be doubted.
    """
    import xarray as xr

    values = rows["estimate"][1][counting]
    original = np.asarray(list(found.estimate.values()))
    bounds = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
    if len(values) > 1:
        mean, error = values.mean(axis=0), values.std(axis=0, ddof=1)
        ends = np.quantile(values, bounds, axis=0).T
    else:
        mean, error = np.full((2, len(original)), np.nan)
        ends = np.full((len(original), 2), np.nan)
    by = ("parameter",)
    variables = rows | {
        "original": (by, original),
        "mean": (by, mean),
        "bias": (by, mean - original),
        "standard_error": (by, error),
        "interval": ((*by, "bound"), ends),
    }
    names = {"parameter": list(found.estimate), "number": list(found.names), "bound": bounds}
    for sentence in said:
        warnings.warn(sentence, EstimationWarning, stacklevel=3)
    return Resampled(xr.Dataset(variables, names, {"told": told}), told, tuple(said))


def check_level(level: float) -> None:
    """Refuse what is no level of an interval."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a share above 0 and below 1, as 0.95; found {level!r}")
