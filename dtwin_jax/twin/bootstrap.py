"""The bootstrap of an estimated population: patients drawn with replacement, and estimated again and again.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import PENALTY
from dtwin_jax.core.record import Cohort
from dtwin_jax.inference import checkpoint
from dtwin_jax.inference.density import Override
from dtwin_jax.inference.estimated import Estimate
from dtwin_jax.inference.objective import Objective
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.run import progress_bar
from dtwin_jax.inference.searching import FLAT, GAIN, gained, sought
from dtwin_jax.twin.fitted import Fitted, fit_of, objective_of
from dtwin_jax.twin.resampled import Resampled, check_level, resampled_of
from dtwin_jax.twin.walk import Refit

TOTAL = "minus_two_log_likelihood"


def bootstrap(  # noqa: PLR0913
    population: Population,
    cohort: Cohort,
    found: Estimate,
    *,
    key: Any,
    replicates: int = 200,
    priors: Mapping[str, Override] | None = None,
    by: str | None = None,
    level: float = 0.95,
    max_steps: int = 500,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Resampled:
    """How certain estimates are, by the same estimation of patients drawn with replacement.

    Every search begins at the estimate and goes by its approximation. All replicates have as many patients,
    so they run one compiled program. A replicate depends on the key and its number alone.

    Args:
        population: as estimated.
        cohort: the patients it was estimated from.
        found: of `estimate`, which has converged.
        key: random key.
        replicates: how many.
        priors: as given to `estimate`.
        by: a fact of the patients, whose groups keep their sizes in every replicate.
        level: of the intervals, above 0 and below 1.
        max_steps: of each search; iterations of "saem".
        path: of a file in which every replicate is kept. A run that was killed goes on from it, and ends as
            it would have unbroken; more replicates than before are added to those that there are.
        progress: show a bar on standard error, when that is a terminal.

    Returns:
        A `Resampled`, whose `data` have in addition, by `replicate`: `minus_two_log_likelihood`; `outcome`, 0
        for a peak, 1 for a search that ended before it or missed the peak of a patient, 2 for a likelihood
        that is no number; `lost`, patients without a peak; `drawn` (replicate, patient), how often each
        patient is in it. Only replicates of outcome 0 count in means, errors and intervals.

    Raises:
        ValueError: an estimate that has not converged or is of something else, a fact without groups, or a
            file of another bootstrap.

    Warns:
        EstimationWarning: replicates that do not count.
    """
    check_level(level)
    if replicates < 1:
        raise ValueError(f"replicates: found {replicates}, expected 1 or more")
    fitted = fit_of(population, cohort, found, priors or {})
    if not found.converged:
        raise ValueError("the estimate has not converged: there is no peak to start replicates from")
    groups = _groups(cohort, by)
    seed = np.asarray(jax.random.key_data(key))
    # Another model or other priors have another estimate.
    said = {"bootstrap of": population.name, "names": found.names, "ids": found.ids, "max_steps": max_steps}
    said |= {"by": found.by, "nodes": found.nodes, "draws": found.draws}
    mark = checkpoint.fingerprint(said, cohort.record, found.vector, found.eta, found.curvature, groups, seed)
    rows = _kept(path, mark, found)
    problem = objective_of(fitted, key)
    with progress_bar(replicates, "bootstrap", "replicate", progress) as bar:
        bar.update(min(len(rows["outcome"]), replicates))
        for number in range(len(rows["outcome"]), replicates):
            new = _replicate(problem, found, drawn_patients(groups, seed, number), key, number, max_steps)
            rows = {name: np.concatenate([old, [new[name]]]) for name, old in rows.items()}
            if path is not None:
                checkpoint.write(path, mark, rows)
            bar.update(1)
    rows = {name: each[:replicates] for name, each in rows.items()}
    rows["drawn"] = np.stack(
        [np.bincount(drawn_patients(groups, seed, i), minlength=len(cohort)) for i in range(replicates)]
    )
    return _told(fitted, rows, by, level)


def drawn_patients(groups: np.ndarray, seed: np.ndarray, number: int) -> np.ndarray:
    """The patients (patient,) of a replicate, drawn within their groups (patient,)."""
    rng = np.random.default_rng([*np.asarray(seed).ravel().tolist(), number])
    rows = np.empty(len(groups), int)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        rows[members] = rng.choice(members, len(members))
    return rows


def _groups(cohort: Cohort, by: str | None) -> np.ndarray:
    """The number of each patient's group, (patient,)."""
    if by is None:
        return np.zeros(len(cohort), int)
    facts = cohort.record.known
    if by not in facts:
        raise ValueError(f"by: no fact {by!r} of the patients; there are {', '.join(facts) or 'none'}")
    _, groups = np.unique(np.asarray(facts[by]), return_inverse=True)
    if len(cohort) > 1 and groups.max() + 1 == len(cohort):
        raise ValueError(f"by: every patient has another {by!r}: a replicate would be the patients again")
    return groups.reshape(len(cohort))


def _kept(path: Any, mark: str, found: Estimate) -> dict[str, np.ndarray]:
    """The replicates that are done, leading axis replicate."""
    if path is not None and Path(path).exists():
        return checkpoint.read(path, mark, "bootstrap (patients, estimate, key or options differ)")
    count = len(found.vector)
    none = {TOTAL: float, "outcome": int, "lost": int}
    return {name: np.empty(0, kind) for name, kind in none.items()} | {"vector": np.empty((0, count))}


def _replicate(
    whole: Objective, found: Estimate, rows: np.ndarray, key: Any, number: int, max_steps: int
) -> dict[str, Any]:
    """The estimates of the patients in `rows`."""
    problem = whole.of(rows)
    nothing = {TOTAL: np.nan, "outcome": Refit.NOT_EXPLAINED, "lost": len(rows)}
    nothing["vector"] = np.full(len(found.vector), np.nan)
    try:
        psi, _ = sought(problem, found.vector, jax.random.fold_in(key, number), max_steps)
    except np.linalg.LinAlgError:  # these patients alone have no curvature; the other replicates go on
        return nothing
    each, slopes = problem.each(psi)
    total, slope = float(np.sum(each)), slopes.sum(axis=0)
    lost = int(np.sum(~problem.arrived | ~np.isfinite(each) | (each >= -PENALTY)))
    if not np.isfinite(total) or total >= -PENALTY:
        return nothing | {"lost": lost}
    if found.by == "saem":
        near = gained(slope, problem.curvature(psi)) < GAIN
    else:
        near = bool(np.max(np.abs(slope)) < FLAT)
    outcome = Refit.FOUND if near and not lost else Refit.NOT_CONVERGED
    return {TOTAL: total, "outcome": outcome, "lost": lost, "vector": psi}


def _told(fitted: Fitted, rows: dict[str, np.ndarray], by: str | None, level: float) -> Resampled:
    found, outcome = fitted.found, rows["outcome"]
    value = jax.vmap(fitted.effects.told)(jnp.asarray(rows["vector"]))
    table = np.stack([np.asarray(value[name]) for name in found.estimate], axis=1)
    variables: dict[str, tuple] = {
        "estimate": (("replicate", "parameter"), table),
        "vector": (("replicate", "number"), rows["vector"]),
        TOTAL: (("replicate",), rows[TOTAL]),
        "outcome": (("replicate",), outcome),
        "lost": (("replicate",), rows["lost"]),
        "drawn": (("replicate", "patient"), rows["drawn"]),
    }
    counting, said = outcome == Refit.FOUND, []
    for code, what in (
        (Refit.NOT_CONVERGED, "ended before the peak, or missed that of a patient"),
        (Refit.NOT_EXPLAINED, "have a likelihood that is no number"),
    ):
        if count := int(np.sum(outcome == code)):
            some = ", ".join(map(str, np.flatnonzero(outcome == code)[:10])) + (", ..." if count > 10 else "")
            said.append(f"{count} of {len(outcome)} replicates {what}, and do not count: {some}")
    told = f"bootstrap by {found.by}: {np.sum(counting)} of {len(outcome)} replicates of {len(found.ids)}"
    told += " patients count" + (f", drawn within groups of {by}" if by else "")
    return resampled_of(found, variables, counting, level, told, said)
