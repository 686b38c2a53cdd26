"""Whether an estimate rests on the tolerance of the solver: a look at it with a smaller one."""

from dataclasses import replace

import numpy as np

from dtwin_jax.core.predictor import PENALTY
from dtwin_jax.inference.estimated import Estimate, Finer
from dtwin_jax.inference.gauss_newton import inverse_of_peak
from dtwin_jax.inference.objective import Objective


def compared(problem: Objective, found: Estimate, factor: float) -> Finer:
    """What tolerances `factor` times as large make of the estimate `found` of `problem`."""
    effects, record = problem.marginal.effects, problem.given[0]
    tighten = getattr(effects.population.predictor, "tightened", None)
    predictor = None if tighten is None else tighten(factor, record)
    if predictor is None:
        return Finer(1.0)
    population = replace(effects.population, predictor=predictor)
    marginal = replace(problem.marginal, effects=replace(effects, population=population))
    other = Objective(marginal, problem.base, *problem.given)
    other.eta = found.peaks.copy()
    (old, before), (new, slope) = (each.value(found.vector) for each in (problem, other))
    if not new < -PENALTY:
        nothing = dict.fromkeys(found.names, float("nan"))
        return Finer(factor, float("nan"), nothing, nothing)
    covariance = inverse_of_peak(other.curvature(found.vector))
    error = np.asarray([found.standard_error[name] for name in found.names])
    # What is left of the slope at the estimate is the search's own, not the solver's.
    step = -covariance @ (slope - before) / 2.0 / error
    wider = np.sqrt(np.diag(covariance)) / error - 1.0
    pairs = (dict(zip(found.names, each.tolist(), strict=True)) for each in (step, wider))
    return Finer(factor, new - old, *pairs)
