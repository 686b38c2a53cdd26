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
from dtwin_jax.core.prior import Prior
from dtwin_jax.core.quantity import values
from dtwin_jax.core.record import SEEN, Cohort, Record, stack
from dtwin_jax.inference.density import (
    Override,
    estimated,
    parameters,
    patient_log_likelihood,
    standard_promotion,
)
from dtwin_jax.inference.population import Population

Method = Literal["bfgs", "least_squares"]

# Least squares writes log(sd) as a square, which needs sd above some floor: this share of the largest
# measurement, far below any sd of interest.
_FLOOR = 1e-9


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
    method: Method = "bfgs",
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
        method: "bfgs" for any model; "least_squares" (Levenberg-Marquardt) for normal and log-normal
            noise with normal and log-normal priors, faster where many points are measured.
        max_steps: of the optimiser, for each start.

    Raises:
        ValueError: data or priors that `f` cannot use, a population, or a method that does not fit them.
    """
    if isinstance(f, Population):
        raise ValueError("fit estimates each patient alone; for a Population use calibrate")
    cohort = data if isinstance(data, Cohort) else stack({"1": data})
    check_cohort(f, cohort)
    base, free = estimated(f, priors or {}, tuple(cohort.record.known))
    target = Target(differentiated(f, "forward"), tuple(free.items()))
    if method == "least_squares":
        target.check_least_squares()
    keys = jax.random.split(key, len(cohort))
    record = jax.tree.map(jnp.asarray, cohort.record)
    peak, hessian, best, converged, explained, reached = _peaks(
        target, starts, method, max_steps, base, record, keys
    )
    estimate = jax.vmap(target.bounded)(peak)
    covariance = _covariances(np.asarray(hessian))
    slope = np.diagonal(np.asarray(jax.vmap(jax.jacfwd(target.bounded))(peak)), axis1=1, axis2=2)
    error = np.abs(slope) * np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    return Fit(
        ids=cohort.ids,
        names=target.names,
        params=jax.vmap(functools.partial(parameters, target.names, base))(estimate, record),
        estimate={name: np.asarray(estimate[:, i]) for i, name in enumerate(target.names)},
        standard_error={name: error[:, i] for i, name in enumerate(target.names)},
        covariance=covariance,
        log_posterior=np.asarray(best),
        converged=np.asarray(converged),
        explained=np.asarray(explained),
        starts=np.asarray(reached),
    )


def _covariances(hessian: np.ndarray) -> np.ndarray:
    """Inverses of the curvatures; NaN where a curvature is not positive definite."""
    covariance = np.full(hessian.shape, np.nan)
    for i, matrix in enumerate(hessian):
        if np.all(np.isfinite(matrix)) and np.linalg.eigvalsh(matrix).min() > 0:
            covariance[i] = np.linalg.inv(matrix)
    return covariance


@dataclass(frozen=True)
class Target:
    """What is optimised: minus the log posterior of one patient at unbounded parameters (name,)."""

    f: Any
    priors: tuple[tuple[str, Prior], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters, in the order of the vector."""
        return tuple(name for name, _ in self.priors)

    def bounded(self, u: Any) -> Any:
        """Parameters on their own scales."""
        bijectors = self._bijectors()
        return jnp.stack([bijector(u[i]) for i, bijector in enumerate(bijectors)])

    def unbounded(self, theta: Any) -> Any:
        """The inverse of `bounded`."""
        return jnp.stack([bijector.inv(theta[i]) for i, bijector in enumerate(self._bijectors())])

    def draw(self, key: Any) -> Any:
        """Unbounded parameters from the prior."""
        keys = jax.random.split(key, len(self.priors))
        drawn = [prior.distribution().sample(k) for (_, prior), k in zip(self.priors, keys, strict=True)]
        return self.unbounded(jnp.stack(drawn))

    def log_prior(self, u: Any) -> Any:
        """Of each parameter, on the unbounded scale."""
        theta, terms = self.bounded(u), []
        for i, ((_, prior), bijector) in enumerate(zip(self.priors, self._bijectors(), strict=True)):
            terms.append(
                prior.distribution().log_prob(theta[i]) + bijector.log_abs_det_jacobian(u[i], theta[i])
            )
        return jnp.stack(terms)

    def energy(self, u: Any, data: tuple[Any, Record]) -> Any:
        """Minus the log posterior, with the gradient of `patient_log_likelihood`."""
        base, record = data
        likelihood = patient_log_likelihood(self.f, self.names, base, self.bounded(u), record)
        return -jnp.sum(self.log_prior(u)) - likelihood

    def smooth_energy(self, u: Any, data: tuple[Any, Record]) -> Any:
        """`energy`, differentiable in forward mode any number of times."""
        base, record = data
        p = parameters(self.names, base, self.bounded(u), record)
        likelihood = log_likelihood(self.f, p, record)
        return -jnp.sum(self.log_prior(u)) - sum(jnp.sum(value) for value in likelihood.values())

    def residuals(self, u: Any, data: tuple[Any, Record]) -> Any:
        """A vector whose half squared norm is `energy` up to a constant."""
        base, record = data
        predicted = self.f.predict(parameters(self.names, base, self.bounded(u), record), record)
        parts = [
            part
            for name, series in record.observations.items()
            for part in _residuals(predicted[name], series)
        ]
        shrunk = [_standard_prior(prior, u[i]) for i, (_, prior) in enumerate(self.priors)]
        return jnp.concatenate([*parts, jnp.stack(shrunk)])

    def check_least_squares(self) -> None:
        """Raise `ValueError` where a prior is no sum of squares."""
        for name, prior in self.priors:
            if prior.family not in ("lognormal", "normal") or "low" in dict(prior.args):
                raise ValueError(
                    f"least_squares needs normal or log-normal priors; {name} has {prior}: use bfgs"
                )

    def _bijectors(self) -> list[Any]:
        import numpyro.distributions as dist

        return [dist.biject_to(prior.distribution().support) for _, prior in self.priors]


def _standard_prior(prior: Prior, u: Any) -> Any:
    args = dict(prior.args)
    if prior.family == "lognormal":
        return (u - jnp.log(args["median"])) / args["log_sd"]
    return (u - args["mean"]) / args["sd"]


def _residuals(predicted: Any, series: Any) -> tuple[Any, Any]:
    import numpyro.distributions as dist

    if not isinstance(predicted, dist.Normal | dist.LogNormal):
        raise ValueError(
            f"least_squares needs normal or log-normal noise, found {type(predicted).__name__}: use bfgs"
        )
    if isinstance(predicted, dist.LogNormal):
        value = jnp.log(jnp.where(series.value > 0, series.value, 1.0))
        floor = jnp.asarray(_FLOOR)
    else:
        value = series.value
        floor = _FLOOR * jnp.maximum(jnp.max(jnp.abs(jnp.where(series.mask, value, 0.0))), 1e-30)
    middle: Any = predicted.loc
    spread: Any = predicted.scale
    sd = jnp.broadcast_to(spread, value.shape)
    z = (value - middle) / sd
    # A censored value has no residual; the root of twice its surprise stands in for one.
    tail = jax.scipy.special.log_ndtr(jnp.where(series.censor < SEEN, z, -z))
    censored = series.censor != SEEN
    surprise = jnp.sqrt(-2.0 * jnp.minimum(jnp.where(censored, tail, -1.0), -1e-12))
    first = jnp.where(series.mask, jnp.where(censored, surprise, z), 0.0)
    weight = jnp.sqrt(2.0 * jnp.log(jnp.maximum(sd / floor, 1.0 + 1e-12)))
    return first, jnp.where(series.mask & ~censored, weight, 0.0)


@functools.partial(jax.jit, static_argnames=("target", "starts", "method", "max_steps"))
@standard_promotion
def _peaks(
    target: Target, starts: int, method: Method, max_steps: int, base: Any, record: Record, keys: Any
) -> tuple:
    def climb(u, data):
        if method == "least_squares":
            solver = optx.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
            found = optx.least_squares(
                target.residuals, solver, u, data, options={"jac": "fwd"}, max_steps=max_steps, throw=False
            )
        else:
            solver = optx.BFGS(rtol=1e-8, atol=1e-8)
            found = optx.minimise(target.energy, solver, u, data, max_steps=max_steps, throw=False)
        energy = target.energy(found.value, data)
        return found.value, energy, found.result == optx.RESULTS.successful

    declared_values = values(base)

    def patient(record, key):
        data = (base, record)
        declared = [declared_values[name] for name in target.names]
        first = target.unbounded(jnp.stack(declared))
        drawn = jax.vmap(target.draw)(jax.random.split(key, max(starts - 1, 1)))
        begin = jnp.concatenate([first[None], drawn])[:starts]
        ends, energies, successes = jax.vmap(climb, in_axes=(0, None))(begin, data)
        usable = jnp.where(jnp.isfinite(energies), energies, jnp.inf)
        best = jnp.argmin(usable)
        u = ends[best]
        hessian = jax.jacfwd(jax.jacfwd(target.smooth_energy))(u, data)
        p = parameters(target.names, base, target.bounded(u), record)
        likelihood = log_likelihood(target.f, p, record)
        explained = jnp.all(jnp.stack([jnp.all(value > PENALTY) for value in likelihood.values()]))
        return u, hessian, -energies[best], successes[best], explained, -energies

    return jax.vmap(patient)(record, keys)
