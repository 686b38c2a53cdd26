"""An estimated population together with the data and the choices that it was estimated from."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import differentiated
from dtwin_jax.core.record import Cohort, Record
from dtwin_jax.inference.density import Override, estimated, standard_promotion
from dtwin_jax.inference.effects import Effects
from dtwin_jax.inference.estimated import Estimate
from dtwin_jax.inference.marginal import Marginal
from dtwin_jax.inference.nodes import scattered
from dtwin_jax.inference.objective import Objective
from dtwin_jax.inference.population import PatientDensity, Population


@dataclass(frozen=True, eq=False)
class Fitted:
    """A population at its estimates, and the patients they are of.

    Attributes:
        effects: the population's numbers.
        base: known parameters.
        cohort: the patients.
        found: the estimates.
    """

    effects: Effects
    base: Any
    cohort: Cohort
    found: Estimate

    @property
    def predictor(self) -> Any:
        """The model of one patient, as it was given."""
        return self.effects.population.predictor

    @property
    def density(self) -> PatientDensity:
        """What predicts a patient from the parameters of `theta`."""
        target = self.effects.target
        return PatientDensity(target.f, target.priors)

    @property
    def psi(self) -> Any:
        """The estimated numbers."""
        return jnp.asarray(self.found.vector)

    @property
    def omega(self) -> np.ndarray:
        """The covariance of the random effects."""
        root = np.asarray(self.effects.root(self.psi))
        return root @ root.T

    @property
    def lost(self) -> np.ndarray:
        """(patient,) whose random effects were not found."""
        return np.isin(self.cohort.ids, self.found.failed)

    def theta(self, record: Record, eta: Any) -> np.ndarray:
        """Parameters (row, patient, name) of random effects (row, patient, effect)."""
        return np.asarray(_bounded(self.effects, jax.tree.map(jnp.asarray, record), self.psi, eta))


def fit_of(population: Population, cohort: Cohort, found: Estimate, priors: Mapping[str, Override]) -> Fitted:
    """An estimate with what it is of.

    Raises:
        ValueError: an estimate of another population, other data or other priors.
    """
    base, free = estimated(population.solved, priors, tuple(cohort.record.known))
    predictor = differentiated(population.predictor, "forward")
    effects = Effects(replace(population, predictor=predictor, centred=None), tuple(free.items()))
    if effects.names != found.names:
        said = f"the estimate has {', '.join(found.names)}, the population {', '.join(effects.names)}"
        raise ValueError(f"{said}: give the population and the priors that were estimated")
    if cohort.ids != found.ids:
        raise ValueError("the estimate is of other patients than the cohort has")
    return Fitted(effects, base, cohort, found)


def objective_of(fitted: Fitted, key: Any = None) -> Objective:
    """What was estimated by, with the peaks of the effects as they were found.

    Args:
        fitted: the estimate.
        key: random key of the draws, of "importance" and "saem".
    """
    found, effects, cohort = fitted.found, fitted.effects, fitted.cohort
    nets = scattered(found.draws, len(effects.effects), key, cohort.numbers) if found.draws else None
    marginal = Marginal(effects, found.by, found.nodes or 7)
    problem = Objective(marginal, fitted.base, jax.tree.map(jnp.asarray, cohort.record), nets)
    problem.eta = found.eta.copy()
    return problem


@functools.partial(jax.jit, static_argnames=("effects",))
@standard_promotion
def _bounded(effects: Effects, record: Record, psi: Any, eta: Any) -> Any:
    u = effects.individual(psi, record, eta)
    return jax.vmap(jax.vmap(effects.target.bounded))(u)
