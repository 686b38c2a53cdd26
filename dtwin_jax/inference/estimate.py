"""Maximum likelihood estimates of a population: what NONMEM, Monolix and nlmixr2 call an estimation."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from dtwin_jax.core.predictor import PENALTY, check_cohort, differentiated
from dtwin_jax.core.record import SEEN, Cohort, Record
from dtwin_jax.inference.density import Override, estimated, standard_promotion
from dtwin_jax.inference.effects import Effects
from dtwin_jax.inference.gauss_newton import climbed, inverse_of_peak
from dtwin_jax.inference.marginal import Approximation, Marginal
from dtwin_jax.inference.population import Population, check_covariates

# What the last step towards a patient's peak may still promise, in nats.
_CLOSE = 1e-12
_STEPS = 100
# Moves of the estimated numbers, over which slopes are compared for a curvature.
_MOVE = 1e-3
# The first part of a search ends where the next step gains less than this, in nats.
_VALLEY = 1e-2
# A slope of -2 log likelihood that is nothing.
_FLAT = 1e-2


@dataclass(frozen=True)
class Estimate:
    """Maximum likelihood estimates of a population.

    Attributes:
        ids: of the patients.
        names: of the estimated numbers, in the order of `vector` and the covariances.
        vector: the numbers, unbounded: typical values by the support of the prior (logs of positive ones),
            coefficients, logs of the standard deviations between patients (a root of the covariance where
            effects are correlated).
        estimate: name -> value as it is reported.
        standard_error: name -> (of the number in `vector`), from the curvature.
        objective: -2 log likelihood without n log(2 pi): NONMEM's convention, for normal measurements.
        minus_two_log_likelihood: with all constants.
        by: how it was approximated.
        nodes: of quadrature, in each direction; 0 otherwise.
        eta: (patient, effect) the most probable random effects.
        individual: (patient,) shares of `minus_two_log_likelihood`.
        curvature: half the second derivative of -2 log likelihood, NONMEM's R.
        cross_product: sum of the products of each patient's slopes, NONMEM's S.
        shrinkage: name of a varying parameter -> 1 - sd of the effects / their standard deviation.
        failed: patients whose peak was not found.
        converged: the optimiser's gradient is near nothing.
        message: what the optimiser said.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    vector: np.ndarray
    estimate: dict[str, float]
    standard_error: dict[str, float]
    objective: float
    minus_two_log_likelihood: float
    by: Approximation
    nodes: int
    eta: np.ndarray
    individual: np.ndarray
    curvature: np.ndarray
    cross_product: np.ndarray
    shrinkage: dict[str, float]
    failed: tuple[str, ...]
    converged: bool
    message: str

    @property
    def covariance(self) -> np.ndarray:
        """Of the numbers in `vector`: the inverse of the curvature, NaN where that is no peak's."""
        return inverse_of_peak(self.curvature)

    @property
    def sandwich(self) -> np.ndarray:
        """The covariance that holds where the model does not: R^-1 S R^-1."""
        return self.covariance @ self.cross_product @ self.covariance

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue of the estimates' correlations."""
        sd = np.sqrt(np.diag(self.covariance))
        if not np.all(np.isfinite(sd)):
            return float("nan")
        value = np.linalg.eigvalsh(self.covariance / np.outer(sd, sd))
        return float(value.max() / value.min())


def estimate(
    population: Population,
    cohort: Cohort,
    *,
    by: Approximation = "focei",
    priors: Mapping[str, Override] | None = None,
    nodes: int = 7,
    start: Mapping[str, float] | None = None,
    search: bool = True,
    max_steps: int = 500,
) -> Estimate:
    """Maximum likelihood estimates of a population.

    Estimated are the parameters that have a prior, of which only the support counts, the covariates'
    coefficients that have one, and the standard deviations between patients.

    Args:
        population: what varies; with a `correlation`, whatever it is, the covariance is full.
        cohort: the patients.
        by: "fo", "foce", "focei", "laplace" or "quadrature".
        priors: name -> `Prior` (estimated), a number or None (known).
        nodes: of quadrature, in each direction.
        start: name as in `Estimate.names` -> where to begin, typical values and standard deviations on their
            own scales; by default declared values, and 0.3 for standard deviations.
        search: False looks at the likelihood at `start` only.
        max_steps: of the optimiser.

    Raises:
        ValueError: data, priors or names that the population cannot use, or an approximation that does not
            fit its errors.
    """
    if by not in get_args(Approximation):
        raise ValueError(f"by: found {by!r}, expected one of {', '.join(get_args(Approximation))}")
    if nodes < 1:
        raise ValueError(f"nodes: found {nodes}, expected 1 or more")
    check_cohort(population.predictor, cohort)
    check_covariates(population, cohort)
    base, free = estimated(population.predictor, priors or {}, tuple(cohort.record.known))
    for name in population.varying:
        if name not in free:
            raise ValueError(f"{name!r} varies between patients but is known: give it a prior")
    predictor = differentiated(population.predictor, "forward")
    effects = Effects(
        Population(predictor, dict(population.vary), population.covariates, population.correlation),
        tuple(free.items()),
    )
    problem = _Problem(Marginal(effects, by, nodes), base, jax.tree.map(jnp.asarray, cohort.record))
    problem.check()
    psi = _begun(effects, base, start or {})
    message, converged = "not searched", False
    if search:
        psi, message = _searched(problem, psi, max_steps)
    total, slope = problem.value(psi)
    converged = bool(np.isfinite(total) and total < -PENALTY and np.max(np.abs(slope)) < _FLAT)
    return _finished(problem, cohort, psi, total, message, converged)


def _searched(problem: "_Problem", psi: np.ndarray, max_steps: int) -> tuple[np.ndarray, str]:
    """The end of a search for the least value, and what is said of it.

    First damped steps on the products of the patients' slopes, which find the valley from afar; then BFGS,
    from the curvature there.
    """
    found = climbed(_Whole(problem), np.zeros(1, int), psi[None], close=_VALLEY, max_steps=max_steps)
    psi = found.u[0]
    curvature = _curvature(problem, psi)
    if not np.all(np.isfinite(inverse_of_peak(curvature))):
        curvature = found.information[0]
    inverse = np.linalg.inv(curvature) / 2.0
    options = {"maxiter": max_steps, "gtol": _FLAT / 10.0, "hess_inv0": (inverse + inverse.T) / 2.0}
    ended = minimize(problem.value, psi, jac=True, method="BFGS", options=options)
    return ended.x, str(ended.message)


class _Whole:
    """The log likelihood of a population as something to climb: one point, its numbers the coordinates."""

    def __init__(self, problem: "_Problem"):
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


def _begun(effects: Effects, base: Any, start: Mapping[str, float]) -> np.ndarray:
    psi = effects.start(base)
    bijectors = dict(zip(effects.names, effects.target.bijectors(), strict=False))
    for name, value in start.items():
        if name not in effects.names:
            raise ValueError(f"start: no estimated number {name!r}; there are {', '.join(effects.names)}")
        place = effects.names.index(name)
        if name in bijectors:
            psi[place] = float(bijectors[name].inv(value))
        else:
            psi[place] = np.log(value) if name.startswith("omega_") and value > 0 else value
            if name.startswith("omega_") and not value > 0:
                raise ValueError(f"start: {name} is {value}, expected a positive number")
    if not np.all(np.isfinite(psi)):
        name = effects.names[int(np.argmin(np.isfinite(psi)))]
        raise ValueError(f"{name} begins outside of what its prior allows: give a start, or another prior")
    return psi


class _Problem:
    """An objective with what is kept between two looks at it: the peaks of the effects."""

    def __init__(self, marginal: Marginal, base: Any, record: Record):
        self.marginal, self.base, self.record = marginal, base, record
        self.eta = np.zeros((record.t0.shape[0], len(marginal.effects.varying)))
        self.arrived = np.ones(len(self.eta), bool)
        self.psi = np.zeros(0)

    def check(self) -> None:
        """Refuse errors that the approximation cannot take."""
        marginal = self.marginal
        if marginal.by in ("laplace", "quadrature"):
            return
        psi = np.zeros(len(marginal.effects.names))
        rows = jax.eval_shape(functools.partial(_channels, marginal), self.base, self.record, psi)
        for name, found in rows.items():
            censored = np.any(np.asarray(self.record.observations[name].censor) != SEEN)
            if "mean" not in found or (censored and marginal.by in ("fo", "foce")):
                what = "measurements beyond a limit" if "mean" in found else "no normal errors"
                raise ValueError(f"channel {name!r} has {what}, which {marginal.by} cannot take: use laplace")

    def value(self, psi: np.ndarray) -> tuple[float, np.ndarray]:
        """-2 log likelihood and its slope; infinite where it is no number."""
        each, slopes = self.each(psi)
        total = float(np.sum(each))
        if not np.isfinite(total) or not np.all(np.isfinite(slopes)):
            return np.inf, np.zeros(len(psi))
        return total, slopes.sum(axis=0)

    def each(self, psi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """-2 log likelihood of every patient (patient,), and its slopes (patient, number)."""
        if self.marginal.by != "fo":
            self.find(psi)
        found = _each(self.marginal, self.base, self.record, psi, self.eta)
        return np.asarray(found[0]), np.asarray(found[1])

    def find(self, psi: np.ndarray) -> None:
        """The peaks of the effects at `psi`, from where they were before."""
        self.psi = psi
        places = climbed(self, np.arange(len(self.eta)), self.eta, close=_CLOSE, max_steps=_STEPS)
        good = np.all(np.isfinite(places.u), axis=1)
        self.eta, self.arrived = np.where(good[:, None], places.u, 0.0), places.arrived & good

    def slopes(self, owner: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
        """As of `Posteriors`: of all patients together, of whom the others stay where they are."""
        whole = self.eta.copy()
        whole[owner] = u
        found = _joint(self.marginal, self.base, self.record, self.psi, whole)
        return tuple(np.array(part)[owner] for part in found)

    def scales(self) -> np.ndarray:
        """Standard deviations of the effects."""
        root = np.asarray(self.marginal.effects.root(jnp.asarray(self.psi)))
        return np.sqrt(np.diag(root @ root.T))


@functools.partial(jax.jit, static_argnames=("marginal",))
@standard_promotion
def _joint(marginal: Marginal, base: Any, record: Record, psi: Any, eta: Any) -> tuple:
    return marginal.joint(base, record, psi, eta)


@functools.partial(jax.jit, static_argnames=("marginal",))
@standard_promotion
def _each(marginal: Marginal, base: Any, record: Record, psi: Any, eta: Any) -> tuple[Any, Any]:
    value = lambda psi: marginal.minus_two(base, record, psi, eta)  # noqa: E731
    along = lambda way: jax.jvp(value, (psi,), (way,))  # noqa: E731
    each, slopes = jax.vmap(along, out_axes=(None, 0))(jnp.eye(len(psi)))
    return each, slopes.T


@standard_promotion
def _channels(marginal: Marginal, base: Any, record: Record, psi: Any) -> dict:
    from dtwin_jax.inference.posteriors import measured

    return measured(marginal.effects.target, base, record, marginal.effects.centres(psi, record))


def _finished(
    problem: _Problem, cohort: Cohort, psi: np.ndarray, total: float, message: str, converged: bool
) -> Estimate:
    marginal = problem.marginal
    effects = marginal.effects
    each, slopes = problem.each(psi)
    if marginal.by == "fo":
        # FO needs no effects; they are sought afterwards, as NONMEM's POSTHOC does.
        problem.find(psi)
    lost = ~np.isfinite(each) | (each >= -PENALTY)
    eta, arrived = problem.eta.copy(), problem.arrived.copy()
    count = sum(
        int(np.sum(np.asarray(series.mask) & (np.asarray(series.censor) == SEEN)))
        for series in cohort.record.observations.values()
    )
    curvature = _curvature(problem, psi)
    told = {name: float(value) for name, value in effects.told(jnp.asarray(psi)).items()}
    error = np.sqrt(np.diag(inverse_of_peak(curvature)))
    scales = np.asarray([told[f"omega_{name}"] for name in effects.varying])
    spread = eta.std(axis=0, ddof=1) if len(eta) > 1 else np.full(len(scales), np.nan)
    shrunk = 1.0 - spread / scales
    return Estimate(
        ids=cohort.ids,
        names=effects.names,
        vector=psi,
        estimate=told,
        standard_error=dict(zip(effects.names, error.tolist(), strict=True)),
        objective=total - count * np.log(2.0 * np.pi),
        minus_two_log_likelihood=total,
        by=marginal.by,
        nodes=marginal.nodes if marginal.by == "quadrature" else 0,
        eta=eta,
        individual=each,
        curvature=curvature,
        cross_product=slopes.T @ slopes / 4.0,
        shrinkage=dict(zip(effects.varying, shrunk.tolist(), strict=True)),
        failed=tuple(np.asarray(cohort.ids)[~arrived | lost].tolist()),
        converged=converged,
        message=message,
    )


def _curvature(problem: _Problem, psi: np.ndarray) -> np.ndarray:
    """Half the second derivative of -2 log likelihood, by differences of slopes."""
    rows = []
    for way in _MOVE * np.eye(len(psi)):
        above, below = (problem.each(psi + sign * way)[1].sum(axis=0) for sign in (1.0, -1.0))
        rows.append((above - below) / (4.0 * _MOVE))
    found = np.stack(rows)
    return (found + found.T) / 2.0
