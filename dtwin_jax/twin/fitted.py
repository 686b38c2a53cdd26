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
from dtwin_jax.inference.mixture import of_class
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

    def of_class(self, record: Record) -> Record:
        """`record` of the patients, in a mixture taken to be of their most probable class."""
        classes = self.found.classes
        return record if classes is None else of_class(record, classes.likeliest - 1)

    def theta(self, record: Record, eta: Any, drawn: Any = None) -> np.ndarray:
        """Parameters (row, patient, name) of random effects (row, patient, effect).

        Patients are of their most probable class, or of the classes `drawn` (row, patient), from 0.
        """
        record = jax.tree.map(jnp.asarray, self.of_class(record))
        return np.asarray(_bounded(self.effects, record, self.psi, eta, drawn))

    def drawn_classes(self, key: Any, count: int) -> np.ndarray | None:
        """Classes of new patients (count, patient), from 0; of each patient by key and id. None without."""
        if self.effects.classes == 1:
            return None
        shares = self.effects.log_shares(self.psi)
        each = jax.vmap(lambda n: jax.random.categorical(jax.random.fold_in(key, n), shares, shape=(count,)))
        return np.asarray(each(self.cohort.numbers)).T


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
    problem.eta = found.peaks.copy()
    return problem


@functools.partial(jax.jit, static_argnames=("effects",))
@standard_promotion
def _bounded(effects: Effects, record: Record, psi: Any, eta: Any, drawn: Any) -> Any:
    one = lambda eta, drawn: effects.individual(psi, of_class(record, drawn), eta)  # noqa: E731
    u = effects.individual(psi, record, eta) if drawn is None else jax.vmap(one)(eta, drawn)
    return jax.vmap(jax.vmap(effects.target.bounded))(u)
