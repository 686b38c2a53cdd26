"""Profiles of a population's likelihood: one number held at value after value, the others estimated anew."""

from collections.abc import Mapping
from statistics import NormalDist

import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.record import Cohort
from dtwin_jax.inference.density import Override
from dtwin_jax.inference.descent import descended
from dtwin_jax.inference.estimated import Estimate
from dtwin_jax.inference.gauss_newton import inverse_of_peak
from dtwin_jax.inference.objective import Objective
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.searching import FLAT
from dtwin_jax.twin.fitted import Fitted, fit_of, objective_of
from dtwin_jax.twin.walk import Point, Profile, Refit, Walk

# Lengths in standard errors: of the first step, and how far a side is followed.
_FIRST, _REACH = 0.25, 12.0


def profile_population(
    population: Population,
    cohort: Cohort,
    found: Estimate,
    name: str,
    *,
    priors: Mapping[str, Override] | None = None,
    level: float = 0.95,
    max_steps: int = 100,
) -> Profile:
    """The profile of one number of an estimated population, and the interval that it gives.

    Args:
        population: as estimated.
        cohort: the patients it was estimated from.
        found: of `estimate`, which has converged; its approximation of the likelihood is profiled.
        name: a typical value, a coefficient, or, of independent effects, a standard deviation: one of
            `found.names`.
        priors: as given to `estimate`.
        level: of the interval, above 0 and below 1.
        max_steps: of each refit.

    Returns:
        A `Profile`, whose values are on the scale of `found.estimate`; `plot.profile_panels` draws it.

    Raises:
        ValueError: an estimate that has not converged, is of something else or by sampling, or a name that
            cannot be held.
    """
    fitted = fit_of(population, cohort, found, priors or {})
    if not found.converged:
        raise ValueError("the estimate has not converged: there is no peak to walk from")
    if found.by in ("importance", "saem"):
        raise ValueError(
            f"a likelihood by sampling ({found.by}) is not profiled: estimate by focei or quadrature"
        )
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a share above 0 and below 1, as 0.95; found {level!r}")
    held = _holdable(fitted)
    if name not in held:
        raise ValueError(f"{name!r} cannot be profiled; there are {', '.join(held)}")
    covariance = inverse_of_peak(found.curvature)
    if not np.all(np.isfinite(covariance)):
        raise ValueError("the curvature of the estimate is not that of a peak: there is no scale to walk by")
    problem = objective_of(fitted)
    index = found.names.index(name)
    error = float(np.sqrt(covariance[index, index]))
    # What is told stands in the order of the vector, but for roots of a covariance, which are not held.
    told = tuple(found.estimate)

    def bounded(u: np.ndarray) -> np.ndarray:
        each = fitted.effects.told(jnp.asarray(u))
        return np.asarray([float(each[one]) for one in told])

    def refit(start: np.ndarray, value: float) -> Point:
        return _refit(problem, found.curvature, start, index, value, max_steps)

    root = NormalDist().inv_cdf(0.5 + level / 2)
    walk = Walk(refit, bounded, told, index, root, _FIRST * error, _REACH * error)
    total, _ = problem.value(found.vector)
    peak = Point(found.vector, total / 2.0, Refit.FOUND)
    return walk.result("likelihood", level, peak, walk.both(peak))


def _holdable(fitted: Fitted) -> list[str]:
    """Names that are told as they are held: each is a function of one number of the vector."""
    effects = fitted.effects
    apart = effects.names
    if effects.correlated:
        apart = [name for name in apart if not name.startswith(("omega_", "root_"))]
    if effects.classes > 2:
        # Each share depends on the numbers of all.
        apart = [name for name in apart if name not in effects.shares]
    return [*apart]


def _refit(
    problem: Objective, curvature: np.ndarray, start: np.ndarray, index: int, value: float, max_steps: int
) -> Point:
    """The least of -2 log likelihood with the number at `index` held, from `start`."""
    begin, free = np.array(start, float), np.arange(len(start)) != index
    begin[index] = value

    def function(others: np.ndarray) -> tuple[float, np.ndarray]:
        whole = begin.copy()
        whole[free] = others
        total, slope = problem.value(whole)
        return total, slope[free]

    total, _ = function(begin[free])
    if not np.isfinite(total):
        return Point(begin, np.inf, Refit.NOT_EXPLAINED)
    # The curvature at the peak is where the others move to, to first order.
    inverse = np.linalg.inv(curvature[np.ix_(free, free)]) / 2.0
    least = descended(
        function, begin[free], (inverse + inverse.T) / 2.0, flat=FLAT / 10.0, max_steps=max_steps
    )
    begin[free] = least.at
    arrived = np.max(np.abs(least.slope), initial=0.0) < FLAT
    return Point(begin, least.value / 2.0, Refit.FOUND if arrived else Refit.NOT_CONVERGED)
