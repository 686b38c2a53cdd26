"""Sampling-importance-resampling: draws of a population's estimates by their likelihood.

Numbers are proposed about the estimate, by its covariance and with heavy tails, and weighed by what their
likelihood is over how often they are proposed. What the weights say of the spread is proposed from next.

Source: Dosne et al. 2016, doi 10.1007/s10928-016-9487-8; iterated, Dosne et al. 2017, doi
10.1007/s10928-017-9542-0.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.record import Cohort
from dtwin_jax.inference.density import Override, standard_promotion
from dtwin_jax.inference.effects import Effects
from dtwin_jax.inference.estimated import Estimate
from dtwin_jax.inference.importance import Mixture, resampled, smoothed
from dtwin_jax.inference.objective import Objective
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.run import progress_bar
from dtwin_jax.inference.scan import scanned
from dtwin_jax.twin.fitted import fit_of, objective_of
from dtwin_jax.twin.resampled import Resampled, check_level, resampled_of

# Beyond this Pareto k weights say little (Vehtari et al. 2024, doi 10.48550/arXiv.1507.02646); and the
# effective draws that an interval's ends take.
_TRUSTED, _FEWEST = 0.7, 100.0


def sir(  # noqa: PLR0913
    population: Population,
    cohort: Cohort,
    found: Estimate,
    *,
    key: Any,
    draws: int = 1000,
    rounds: int = 2,
    priors: Mapping[str, Override] | None = None,
    level: float = 0.95,
    progress: bool = True,
) -> Resampled:
    """How certain estimates are, by draws that are weighed by their likelihood; nothing is estimated anew.

    The likelihood is that of the estimate's approximation. Values are taken to be equally likely beforehand
    on the scales of `Estimate.estimate`: standard deviations, not variances or their logs.

    Args:
        population: as estimated.
        cohort: the patients it was estimated from.
        found: of `estimate`, which has converged.
        key: random key.
        draws: of each round.
        rounds: each proposes what the one before has learnt; the last one counts.
        priors: as given to `estimate`.
        level: of the intervals, above 0 and below 1.
        progress: show a bar on standard error, when that is a terminal.

    Returns:
        A `Resampled` of as many draws as were proposed, each as often as it weighs, whose `data` have in
        addition `minus_two_log_likelihood` by `draw`, and by `round`: `effective`, the draws that the weights
        are worth; `pareto_k` of their tail; `lost`, draws whose likelihood is not known, which weigh nothing.

    Raises:
        ValueError: an estimate that has not converged, has no covariance or is of something else.

    Warns:
        EstimationWarning: weights that cannot be trusted, and lost draws.
    """
    check_level(level)
    if draws < 2 or rounds < 1:
        raise ValueError(f"draws, rounds: found {draws} and {rounds}, expected 2 or more and 1 or more")
    fitted = fit_of(population, cohort, found, priors or {})
    if not found.converged or not np.all(np.isfinite(found.covariance)):
        raise ValueError("the estimate has not converged to a peak: it has no covariance to propose from")
    problem = objective_of(fitted, key)
    root = np.linalg.cholesky(found.covariance)
    proposal = Mixture(found.vector[None, None], root[None, None], np.ones((1, 1)))
    made: list[_Round] = []
    with progress_bar(rounds, "weighing", "round", progress) as bar:
        for number in range(rounds):
            if made:
                proposal = proposal.learnt(made[-1].u, made[-1].weights)
            made.append(_weighed(problem, proposal, jax.random.fold_in(key, number), draws))
            bar.update(1)
    last = made[-1]
    both = np.concatenate([last.u, last.total[..., None]], axis=2)
    chosen = resampled(both, last.weights, jax.random.split(jax.random.fold_in(key, rounds), 1), draws)[0]
    value = jax.vmap(fitted.effects.told)(jnp.asarray(chosen[:, :-1]))
    variables: dict[str, tuple] = {
        "estimate": (("draw", "parameter"), np.stack([np.asarray(value[n]) for n in found.estimate], axis=1)),
        "vector": (("draw", "number"), chosen[:, :-1]),
        "minus_two_log_likelihood": (("draw",), chosen[:, -1]),
    }
    for name in ("effective", "pareto_k", "lost"):
        variables[name] = (("round",), np.asarray([getattr(one, name) for one in made]))
    how = f"SIR by {found.by}: {draws} draws, worth {last.effective:.0f}, Pareto k {last.pareto_k:.2f}"
    return resampled_of(found, variables, np.ones(draws, bool), level, how, _doubts(last, draws))


@dataclass
class _Round:
    """Weighed draws; their first axis has length 1.

    Attributes:
        u: (1, draw, number).
        total: (1, draw) -2 log likelihoods.
        weights: (1, draw).
        pareto_k: of the tail of the weights.
        lost: draws whose likelihood is not known.
    """

    u: np.ndarray
    total: np.ndarray
    weights: np.ndarray
    pareto_k: float
    lost: int

    @property
    def effective(self) -> float:
        """Draws that the weights are worth."""
        return float(1.0 / np.sum(self.weights**2))


def _weighed(problem: Objective, proposal: Mixture, key: Any, draws: int) -> _Round:
    u = proposal.draw(jax.random.split(key, 1), draws)
    total = scanned(problem, u[0])[None]
    size = np.asarray(_log_size(problem.marginal.effects, jnp.asarray(u[0])))
    log_ratio = size - 0.5 * total - proposal.log_density(u)
    known = np.isfinite(log_ratio)
    if not np.any(known):
        raise ValueError("no draw about the estimate has a likelihood that is known")
    weights, k = smoothed(np.where(known, log_ratio, -np.inf))
    return _Round(u, total, weights, float(k[0]), int(np.sum(~known)))


def _doubts(last: _Round, draws: int) -> list[str]:
    said, k = [], last.pareto_k
    if k > _TRUSTED:
        said.append(f"weights cannot be trusted: Pareto k {k:.2f}, above {_TRUSTED}; take more rounds")
    if last.effective < _FEWEST:
        said.append(f"draws are worth {last.effective:.0f} only: take more of them, or more rounds")
    if last.lost:
        said.append(f"the likelihood is not known at {last.lost} of {draws} draws, which weigh nothing")
    return said


@functools.partial(jax.jit, static_argnames=("effects",))
@standard_promotion
def _log_size(effects: Effects, psi: Any) -> Any:
    """How the scales that are told stretch those of the numbers (draw, number): log, (draw,)."""

    def one(psi: Any) -> Any:
        moved = jax.jacfwd(lambda psi: jnp.stack([*effects.told(psi).values()]))(psi)
        return jnp.linalg.slogdet(moved)[1]

    return jax.vmap(one)(psi)
