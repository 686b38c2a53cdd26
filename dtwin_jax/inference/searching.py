"""The search for the numbers of a population that make its data likeliest."""

from typing import Any

import jax
import numpy as np

from dtwin_jax.inference.descent import descended
from dtwin_jax.inference.gauss_newton import climbed, inverse_of_peak
from dtwin_jax.inference.objective import Objective
from dtwin_jax.inference.saem import approximated

# The first part of a search ends where the next step gains less than this, in nats.
_VALLEY = 1e-2
# A slope of -2 log likelihood that is nothing.
FLAT = 1e-2
# What a step of Newton's may still gain of -2 log likelihood where a random search ends.
GAIN = 0.1


def sought(problem: Objective, psi: np.ndarray, key: Any, max_steps: int) -> tuple[np.ndarray, str]:
    """Where the search that belongs to the approximation ends, and why; `key` is of "saem"."""
    marginal = problem.marginal
    if marginal.by != "saem":
        return searched(problem, psi, max_steps)
    key = jax.random.fold_in(key, 1)
    found = approximated(marginal.effects, problem.base, problem.given[0], psi, key, max_steps)
    return found, f"{max_steps} iterations"


def gained(slope: np.ndarray, curvature: np.ndarray) -> float:
    """What a step of Newton's would still gain of -2 log likelihood; NaN where the curvature is no peak's."""
    return float(slope @ inverse_of_peak(curvature) @ slope) / 4.0


def searched(problem: Objective, psi: np.ndarray, max_steps: int) -> tuple[np.ndarray, str]:
    """The end of a search for the least value, and what is said of it.

    First damped steps on the products of the patients' slopes, which find the valley from afar; then BFGS,
    from the curvature there.
    """
    found = climbed(_Whole(problem), np.zeros(1, int), psi[None], close=_VALLEY, max_steps=max_steps)
    psi = found.u[0]
    curvature = problem.curvature(psi)
    if not np.all(np.isfinite(inverse_of_peak(curvature))):
        curvature = found.information[0]
    inverse = np.linalg.inv(curvature) / 2.0
    ended = descended(problem.value, psi, (inverse + inverse.T) / 2.0, flat=FLAT / 10.0, max_steps=max_steps)
    return ended.at, ended.message


class _Whole:
    """The log likelihood of a population as something to climb: one point, its numbers the coordinates."""

    def __init__(self, problem: Objective):
        self.problem = problem

    def slopes(self, owner: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
        """As of `Posteriors`, of one point."""
        each, slopes = self.problem.each(u[0])
        finite = np.all(np.isfinite(each)) and np.all(np.isfinite(slopes))
        if not finite:
            size = u.shape[1]
            return np.array([np.nan]), np.zeros((1, size)), np.eye(size)[None], np.zeros(1, bool)
        products = slopes.T @ slopes / 4.0
        ridge = 1e-6 * np.diag(products).max() * np.eye(len(products))
        return (
            -np.sum(each, keepdims=True) / 2.0,
            -slopes.sum(0)[None] / 2.0,
            (products + ridge)[None],
            np.ones(1, bool),
        )

    def scales(self) -> np.ndarray:
        """No step is longer than a factor of e."""
        return np.full(len(self.problem.marginal.effects.names), 0.5)
