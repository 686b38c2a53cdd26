"""The most probable parameters of each patient: fast, with a Gaussian idea of their uncertainty."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from dtwin_jax.core.predictor import PENALTY, check_cohort, differentiated, log_likelihood
from dtwin_jax.core.record import Cohort, Record, stack
from dtwin_jax.inference.density import Override, estimated, parameters, standard_promotion
from dtwin_jax.inference.gauss_newton import climbed, inverse_of_peak
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.posteriors import Posteriors
from dtwin_jax.inference.target import Target, first_points

Method = Literal["gauss_newton", "bfgs"]

# Gauss-Newton: what the last step may still promise, in nats.
_CLOSE = 1e-10


@dataclass(frozen=True)
class Fit:
    """Maximum a posteriori estimates of a cohort; arrays have a leading patient axis.

    Attributes:
        ids: of the patients.
        names: of the estimated parameters, in the order of `covariance`.
        params: the model's parameters at the estimate, known ones filled in.
        estimate: name -> (patient,).
        standard_error: name -> (patient,), by the delta method; NaN where the curvature is not a peak's.
        covariance: (patient, name, name) on the unbounded scales (log for positive parameters).
        log_posterior: (patient,) at the estimate, density on the unbounded scales.
        converged: (patient,) the optimiser met its tolerance from the start that won.
        explained: (patient,) the model has a finite likelihood there for every measurement.
        starts: (patient, start) log posterior reached from every start: tells how many found the same peak.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    params: Any
    estimate: dict[str, np.ndarray]
    standard_error: dict[str, np.ndarray]
    covariance: np.ndarray
    log_posterior: np.ndarray
    converged: np.ndarray
    explained: np.ndarray
    starts: np.ndarray

    @property
    def failed(self) -> tuple[str, ...]:
        """Patients whose estimate is not to be used."""
        return tuple(np.asarray(self.ids)[~(self.converged & self.explained)].tolist())


def fit(
    f: Any,
    data: Record | Cohort,
    *,
    key: Any,
    priors: Mapping[str, Override] | None = None,
    starts: int = 8,
    method: Method = "gauss_newton",
    max_steps: int = 500,
) -> Fit:
    """Maximum a posteriori estimates, from several starts, for one patient or for each of a cohort.

    The peak is that of the density on the parameters' unbounded scales (log for positive ones), as for
    the empirical Bayes estimates of pharmacometrics. One patient's failure does not stop the others.

    Args:
        f: a predictor.
        data: one record, or a cohort of patients to fit one by one, side by side.
        key: random key of the starts.
        priors: name -> `Prior`, a number (known to be that) or None (known), instead of the declared ones.
        starts: the first is the parameters' declared values, the others are prior draws.
        method: "gauss_newton", Levenberg-Marquardt steps on the Fisher information, of all patients at once;
            "bfgs", which asks nothing of the noise, patient by patient.
        max_steps: of the optimiser, for each start.

    Raises:
        ValueError: data or priors that `f` cannot use, or a population.
    """
    if isinstance(f, Population):
        raise ValueError("fit estimates each patient alone; for a Population use calibrate")
    cohort = data if isinstance(data, Cohort) else stack({"1": data})
    check_cohort(f, cohort)
    base, free = estimated(f, priors or {}, tuple(cohort.record.known))
    target = Target(differentiated(f, "forward"), tuple(free.items()))
    record = jax.tree.map(jnp.asarray, cohort.record)
    begin = first_points(target, starts, base, jax.random.split(key, len(cohort)))
    if method == "bfgs":
        u, reached, arrived = map(np.asarray, _by_bfgs(target, max_steps, base, record, begin))
    else:
        posteriors = Posteriors(target, base, jax.tree.map(np.asarray, cohort.record))
        owner = np.repeat(np.arange(len(cohort)), starts)
        climbs = np.asarray(begin).reshape(len(owner), -1)
        found = climbed(posteriors, owner, climbs, close=_CLOSE, max_steps=max_steps)
        each = (found.u, found.value, found.arrived)
        u, reached, arrived = (x.reshape(len(cohort), starts, *x.shape[1:]) for x in each)
    rows = np.arange(len(cohort)), np.argmax(np.where(np.isfinite(reached), reached, -np.inf), axis=1)
    looked = _looked_at(target, base, record, jnp.asarray(u[rows]))
    estimate, slope, hessian, explained = map(np.asarray, looked)
    covariance = np.stack([inverse_of_peak(curvature) for curvature in hessian])
    error = np.abs(slope) * np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    return Fit(
        ids=cohort.ids,
        names=target.names,
        params=jax.vmap(functools.partial(parameters, target.names, base))(jnp.asarray(estimate), record),
        estimate={name: estimate[:, i] for i, name in enumerate(target.names)},
        standard_error={name: error[:, i] for i, name in enumerate(target.names)},
        covariance=covariance,
        log_posterior=reached[rows],
        converged=arrived[rows],
        explained=explained,
        starts=reached,
    )


@functools.partial(jax.jit, static_argnames=("target", "max_steps"))
@standard_promotion
def _by_bfgs(target: Target, max_steps: int, base: Any, record: Record, begin: Any) -> tuple:
    """Ends of the climbs, log posteriors there, and whether each has arrived: (patient, start)."""

    def climb(u: Any, record: Record) -> tuple:
        solver, data = optx.BFGS(rtol=1e-8, atol=1e-8), (base, record)
        found = optx.minimise(target.energy, solver, u, data, max_steps=max_steps, throw=False)
        arrived = found.result == optx.RESULTS.successful
        return found.value, -target.energy(found.value, data), arrived

    return jax.vmap(jax.vmap(climb, in_axes=(0, None)))(begin, record)


@functools.partial(jax.jit, static_argnames=("target",))
@standard_promotion
def _looked_at(target: Target, base: Any, record: Record, peak: Any) -> tuple:
    """Parameters on their own scales with their slope, curvatures, and whether all is explained, at peaks."""

    def patient(u: Any, record: Record) -> tuple:
        hessian = jax.jacfwd(jax.jacfwd(target.smooth_energy))(u, (base, record))
        p = parameters(target.names, base, target.bounded(u), record)
        likelihood = log_likelihood(target.f, p, record)
        explained = jnp.all(jnp.stack([jnp.all(value > PENALTY) for value in likelihood.values()]))
        return target.bounded(u), jnp.diagonal(jax.jacfwd(target.bounded)(u)), hessian, explained

    return jax.vmap(patient)(peak, record)
