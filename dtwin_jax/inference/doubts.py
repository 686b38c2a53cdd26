"""What a user must know of an estimation before believing it, in sentences that name the parameter."""

from typing import Any

import numpy as np

from dtwin_jax.inference.effects import Effects
from dtwin_jax.inference.estimated import Estimate

# Half the curvature of -2 log likelihood along the log of a standard deviation, of which n patients who are
# known well give 2 n; along any other number; and the share of it that is left along a mixture of numbers.
_SEEN, _CURVED, _APART = 0.1, 1e-3, 1e-6
# How much effects shrink that the data do not call for.
_SHRUNK = 0.8
# Of the width of a prior's support, how near an end is at it; and how large a part in a mixture is.
_END, _PART = 1e-3, 0.3
# Objectives that differ by less are of one peak.
_SAME = 0.1
# What a smaller tolerance of the solver may change: of standard errors, as a share of themselves, and of
# numbers, in standard errors.
_WIDER, _MOVED = 0.05, 0.1


class EstimationWarning(UserWarning):
    """An estimate that is not what it looks like."""


def doubts(found: Estimate, effects: Effects) -> tuple[str, ...]:
    """One sentence for each reason not to believe an estimate that was searched for."""
    said = list(failures(found))
    if not np.isfinite(found.objective):
        return (*said, "the likelihood is no number where the search began: give a start")
    if not found.converged:
        # A curvature is of use at a peak only.
        return (*said, f"the search ended before the peak: {found.message}", *_coarse(found))
    named = _collapsed(found) | _at_an_end(found, effects)
    named |= _empty(found, effects)
    named |= _flat(found, effects, set(named))
    said += named.values()
    others = [i for i, name in enumerate(found.names) if name not in named]
    said += _mixtures(found, others)
    said += _coarse(found)
    ends = np.sort(found.ends)
    if len(ends) > 1 and not ends[1] < ends[0] + _SAME:
        said.append(f"only one of {len(ends)} starts found the best end: more of them may find a better one")
    return tuple(said)


def failures(found: Estimate) -> tuple[str, ...]:
    """Patients whose likelihood could not be told."""
    if not found.failed:
        return ()
    some = ", ".join(found.failed[:10]) + (", ..." if len(found.failed) > 10 else "")
    return (f"no peak of the random effects was found for {len(found.failed)} patients: {some}",)


def _collapsed(found: Estimate) -> dict[str, str]:
    """Standard deviations of effects of which the data say nothing, or only that they are small."""
    said, curved = {}, np.diag(found.curvature)
    for i, name in enumerate(found.names):
        kind, _, parameter = name.partition("_")
        if kind not in ("omega", "gamma") or curved[i] > _SEEN:
            continue
        value = f"{name} (found {found.estimate[name]:.2g})"
        shrunk = [each for to, each in found.shrinkage.items() if to in (parameter, f"{parameter}_1")]
        if min(shrunk, default=0.0) > _SHRUNK:
            between = "patients" if kind == "omega" else "occasions"
            said[name] = (
                f"{value} has collapsed: the data do not show that {parameter} varies between {between}"
            )
        else:
            said[name] = f"the likelihood is flat along {value}"
    return said


def _at_an_end(found: Estimate, effects: Effects) -> dict[str, str]:
    """Numbers that the support of their prior keeps from going further."""
    said = {}
    for name, prior in effects.supports().items():
        support: Any = prior.distribution().support
        low, high = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
        if low is None or high is None:
            continue
        value, width = found.estimate[name], float(high - low)
        for end in (float(low), float(high)):
            if abs(value - end) < _END * width:
                said[name] = f"{name} is at an end of what its prior allows, {end:g}"
    return said


def _empty(found: Estimate, effects: Effects) -> dict[str, str]:
    """Shares of classes that are less than a patient's."""
    shares = {name: found.estimate[name] for name in effects.shares}
    left = 1.0 - sum(shares.values())
    said = {}
    for i, name in enumerate(shares, 2):
        if shares[name] * len(found.ids) < 1.0:
            said[name] = f"{name} (found {shares[name]:.2g}) is no patient's: the data do not show class {i}"
        elif left * len(found.ids) < 1.0:
            said[name] = f"{name} (found {shares[name]:.4g}) leaves no patient to class 1"
    return said


def _flat(found: Estimate, effects: Effects, named: set[str]) -> dict[str, str]:
    """Numbers with which the likelihood hardly changes."""
    said, curved = {}, np.diag(found.curvature)
    shapes = dict(effects.population.shapes)
    for i, name in enumerate([*effects.supports(), *effects.shares]):
        # Shapes have no unit that their size would have to be seen against.
        own = float(found.estimate[name]) == float(found.vector[i]) and name not in shapes
        scale = max(found.vector[i] ** 2, 1e-300) if own else 1.0
        if name not in named and not curved[i] * scale > _CURVED:
            value = f"found {found.estimate[name]:.3g}"
            said[name] = f"the likelihood is flat along {name} ({value}): the data say nothing of it"
    return said


def _mixtures(found: Estimate, rows: list[int]) -> list[str]:
    """Numbers that make up for each other."""
    curvature = found.curvature[np.ix_(rows, rows)]
    size = np.sqrt(np.maximum(np.diag(curvature), 0.0))
    if not rows or not np.all(size > 0.0):
        return []
    value, way = np.linalg.eigh(curvature / np.outer(size, size))
    if abs(value[0]) > _APART:
        return []
    names = [found.names[rows[i]] for i in np.flatnonzero(np.abs(way[:, 0]) > _PART)]
    return [f"{' and '.join(names)} make up for each other: the likelihood is flat along a mixture of them"]


def _coarse(found: Estimate) -> list[str]:
    """What rests on the tolerance of the solver."""
    finer = found.finer
    if finer is None or not finer.moved:
        return []
    at = f"at {finer.factor:g} of the solver's tolerances"
    if not np.isfinite(finer.objective):
        return [f"{at} the model cannot be solved at the estimate"]
    had_peak = found.converged and np.all(np.isfinite([*found.standard_error.values()]))
    if had_peak and not np.all(np.isfinite([*finer.errors.values()])):
        return [f"{at} the estimate is at no peak: make rtol and atol smaller"]
    changed = [f"the objective by {finer.objective:.2g}"] if abs(finer.objective) > _SAME else []
    changed += [f"{name} by {by:.2g} standard errors" for name, by in finer.moved.items() if abs(by) > _MOVED]
    changed += [
        f"the error of {name} by {100 * by:.2g} %" for name, by in finer.errors.items() if abs(by) > _WIDER
    ]
    return [f"{at} change {', '.join(changed)}: make rtol and atol smaller"] if changed else []
