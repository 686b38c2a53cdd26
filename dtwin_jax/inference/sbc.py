"""Simulation-based calibration: whether a sampler draws from the posterior it claims to draw from.

Draw parameters from the prior, simulate data, sample the posterior: over many such replicates the rank of
the true value among the posterior draws is uniform, for every function of parameters and data. Parameters
alone cannot show a fault that leaves out the data, so the log-likelihood belongs among the quantities.

Source: Talts et al. 2018, arXiv:1804.06788; Modrák et al. 2023, doi 10.1214/23-BA1404.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

BINS = 16
LEVELS = (0.5, 0.8, 0.9)
# Of all quantities of a run together: a correct sampler fails one run in a thousand.
SIGNIFICANCE = 1e-3
STANDARD_ERRORS = 3.0


@dataclass(frozen=True)
class Check:
    """What simulation-based calibration found of one quantity.

    Attributes:
        ranks: (replicate,) draws below the true value, 0 to `draws`.
        draws: posterior draws of a replicate.
        p_value: of the chi-square test that the ranks are uniform.
        coverage: level -> share of replicates whose central interval holds the true value.
    """

    ranks: np.ndarray
    draws: int
    p_value: float
    coverage: dict[float, float]


def check(
    truth: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray], bins: int = BINS
) -> dict[str, Check]:
    """Simulation-based calibration of every quantity.

    Args:
        truth: quantity -> (replicate,), its value at the parameters that the data were simulated with.
        draws: quantity -> (draw, replicate), its values at the posterior draws, thinned until they are
            nearly independent.
        bins: of the chi-square test; must divide the number of draws plus one.

    Raises:
        ValueError: bins of unequal width, or values that are not finite.
    """
    found = {}
    for name, value in truth.items():
        drawn = draws[name]
        for where, array in (("truth", value), ("draws", drawn)):
            if not np.all(np.isfinite(array)):
                raise ValueError(f"{where} of {name!r}: {np.sum(~np.isfinite(array))} values are not finite")
        position = ranks(value, drawn)
        count = len(drawn)
        covered = {level: coverage(value, drawn, level) for level in LEVELS}
        found[name] = Check(position, count, float(uniformity(position, count, bins)), covered)
    return found


def complaints(checks: Mapping[str, Check]) -> list[str]:
    """What is wrong, one sentence each; empty if the sampler passes."""
    said = []
    limit = SIGNIFICANCE / len(checks)
    for name, one in checks.items():
        if not one.p_value > limit:
            said.append(f"{name}: ranks are not uniform, p = {one.p_value:.2g}, not above {limit:.2g}")
        for level, share in one.coverage.items():
            error = np.sqrt(level * (1 - level) / len(one.ranks))
            if not abs(share - level) <= STANDARD_ERRORS * error:
                said.append(
                    f"{name}: the {level:.0%} interval holds the true value in {share:.1%} of replicates, "
                    f"wanted {level:.0%} within {STANDARD_ERRORS * error:.1%}"
                )
    return said


def ranks(truth: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Number of draws (draw, replicate) below the true value (replicate,), for continuous quantities."""
    return np.sum(draws < truth, axis=0)


def histogram(ranks: np.ndarray, draws: int, bins: int = BINS) -> np.ndarray:
    """Ranks of 0 to `draws` counted in `bins` bins of equal width, on the last axis."""
    if (draws + 1) % bins:
        raise ValueError(f"{bins} bins do not divide the {draws + 1} ranks of {draws} draws into equal parts")
    return np.sum((ranks * bins // (draws + 1))[..., None, :] == np.arange(bins)[:, None], axis=-1)


def uniformity(ranks: np.ndarray, draws: int, bins: int = BINS) -> np.ndarray | float:
    """p-value of Pearson's chi-square test that ranks (..., replicate) are uniform on 0 to `draws`."""
    from scipy.special import chdtrc

    counted = histogram(ranks, draws, bins)
    expected = ranks.shape[-1] / bins
    p_value = chdtrc(bins - 1, np.sum((counted - expected) ** 2, axis=-1) / expected)
    return float(p_value) if ranks.ndim == 1 else p_value


def coverage(truth: np.ndarray, draws: np.ndarray, level: float) -> float:
    """Share of replicates whose central interval of `draws` (draw, replicate) holds the true value."""
    edges = ((1 - level) / 2, (1 + level) / 2)
    # Weibull's quantile at share q of L draws has expected rank q (L + 1): an interval of L draws then
    # covers its level, where the usual quantile (q (L - 1) + 1) covers 1.4 % less at L = 127.
    low, high = np.quantile(draws, edges, axis=0, method="weibull")
    return float(np.mean((low <= truth) & (truth <= high)))


def rescaled(draws: np.ndarray, factor: float) -> np.ndarray:
    """Draws (draw, replicate) with the spread about their mean changed: a sampler that is wrong on purpose.

    A check that passes these too has no power.
    """
    centre = np.mean(draws, axis=0)
    return centre + factor * (draws - centre)


def autocorrelation(draws: np.ndarray, lag: int = 1) -> float:
    """Mean over replicates of the autocorrelation of draws (draw, replicate), free of its bias of -1 / draws.

    Near 0, draws are thinned enough: ranks of correlated draws pile up at both ends.
    """
    x = draws - np.mean(draws, axis=0)
    variance = np.mean(x**2, axis=0)
    products = np.mean(x[lag:] * x[:-lag], axis=0)
    return float(np.mean(products / variance)) + 1 / len(draws)
