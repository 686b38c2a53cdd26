"""Maximum likelihood estimates of a population: what NONMEM, Monolix and nlmixr2 call an estimation."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import PENALTY, check_cohort, differentiated
from dtwin_jax.core.record import SEEN, Cohort
from dtwin_jax.inference.density import Override, estimated
from dtwin_jax.inference.doubts import EstimationWarning, doubts, failures
from dtwin_jax.inference.effects import Effects
from dtwin_jax.inference.estimated import Classes, Estimate
from dtwin_jax.inference.finer import compared
from dtwin_jax.inference.gauss_newton import inverse_of_peak
from dtwin_jax.inference.marginal import Approximation, Marginal
from dtwin_jax.inference.mixture import logits_of
from dtwin_jax.inference.nodes import NETS, scattered
from dtwin_jax.inference.objective import Objective
from dtwin_jax.inference.population import Population, check_population
from dtwin_jax.inference.searching import FLAT, GAIN, gained, sought


def estimate(  # noqa: PLR0913
    population: Population,
    cohort: Cohort,
    *,
    by: Approximation = "focei",
    priors: Mapping[str, Override] | None = None,
    nodes: int = 7,
    draws: int = 512,
    key: Any = None,
    start: Mapping[str, float] | None = None,
    search: bool = True,
    max_steps: int = 500,
    starts: int = 1,
    tighter: float | None = 0.5,
) -> Estimate:
    """Maximum likelihood estimates of a population.

    Estimated are the parameters that have a prior, of which only the support counts, the covariates'
    coefficients, shapes of effects and shifts between classes that have one, the classes' shares, and the
    standard deviations between patients and between occasions.

    Args:
        population: what varies; with a `correlation`, whatever it is, the covariance of its `blocks` is full.
        cohort: the patients.
        by: "fo", "foce", "focei" or "laplace"; "quadrature", adaptive, of Gauss and Hermite; "importance",
            sampled about the peaks from a t distribution, by the same draws at every step of the search;
            "saem", of which the likelihood is told as by "importance". The first three are about normal
            errors, and refuse others (Student's t, M2, M4), which all from "laplace" on take.
        priors: name -> `Prior` (estimated), a number or None (known).
        nodes: of quadrature, in each direction.
        draws: of importance sampling, of each patient; powers of 2 are best.
        key: random key, of "importance" and "saem", and of more starts than one.
        start: name as in `Estimate.names` -> where to begin, typical values and standard deviations on their
            own scales; by default declared values, and 0.3 for standard deviations.
        search: False looks at the likelihood at `start` only.
        max_steps: of the search; iterations of "saem".
        starts: searches, of which the best counts; all but the first begin at draws from the priors.
        tighter: what the solver's tolerances are multiplied by for a look at the end, of which
            `Estimate.finer` tells; for it the model is compiled once more. None for no look.

    Raises:
        ValueError: data, priors or names that the population cannot use, or an approximation that does not
            fit its errors.

    Warns:
        EstimationWarning: a search that did not end at a peak, a standard deviation that has collapsed, a
            parameter at a bound, a flat likelihood, patients who fail, what rests on the solver's tolerance:
            each named.
    """
    if by not in get_args(Approximation):
        raise ValueError(f"by: found {by!r}, expected one of {', '.join(get_args(Approximation))}")
    if nodes < 1:
        raise ValueError(f"nodes: found {nodes}, expected 1 or more")
    if tighter is not None and not 0.0 < tighter < 1.0:
        raise ValueError(f"tighter: found {tighter}, expected a number above 0 and below 1, or None")
    if draws < 1 or draws % NETS:
        raise ValueError(f"draws: found {draws}, expected a multiple of {NETS}")
    random = by in ("importance", "saem")
    if key is None and (random or starts > 1):
        what = by if random else "more than one start"
        raise ValueError(f"{what} is random: give a key=jax.random.key(...)")
    check_cohort(population.predictor, cohort)
    check_population(population, cohort)
    base, free = estimated(population.solved, priors or {}, tuple(cohort.record.known))
    for name in population.varying:
        if name not in free:
            raise ValueError(f"{name!r} varies between patients but is known: give it a prior")
    predictor = differentiated(population.predictor, "forward")
    effects = Effects(replace(population, predictor=predictor, centred=None), tuple(free.items()))
    record = jax.tree.map(jnp.asarray, cohort.record)
    nets = scattered(draws, len(effects.effects), key, cohort.numbers) if random else None
    problem = Objective(Marginal(effects, by, nodes), base, record, nets)
    problem.check()
    psi = _begun(effects, base, start or {})
    if not search:
        return _told(_finished(problem, cohort, psi, "not searched"))
    others = jax.random.split(jax.random.key(0) if key is None else key, starts)[1:]
    places = [psi, *(effects.drawn(psi, each) for each in others)]
    ended = [sought(problem, place, key, max_steps) for place in places]
    totals = np.asarray([problem.value(place)[0] for place, _ in ended])
    found = _finished(problem, cohort, *ended[int(np.argmin(totals))])
    constant = found.minus_two_log_likelihood - found.objective
    found = replace(found, ends=tuple((totals - constant).tolist()))
    if tighter is not None and found.minus_two_log_likelihood < -PENALTY:
        found = replace(found, finer=compared(problem, found, tighter))
    return _told(replace(found, warnings=doubts(found, effects)))


def _told(found: Estimate) -> Estimate:
    """The estimate; what is to be said of it is said."""
    for sentence in found.warnings or failures(found):
        warnings.warn(sentence, EstimationWarning, stacklevel=3)
    return found


def _begun(effects: Effects, base: Any, start: Mapping[str, float]) -> np.ndarray:
    psi = effects.start(base)
    bijectors = effects.bijectors()
    for name, value in start.items():
        if name not in effects.names:
            raise ValueError(f"start: no estimated number {name!r}; there are {', '.join(effects.names)}")
        place = effects.names.index(name)
        if name in bijectors:
            psi[place] = float(bijectors[name].inv(value))
        elif name not in effects.shares:
            is_sd = name.startswith(("omega_", "gamma_"))
            psi[place] = np.log(value) if is_sd and value > 0 else value
            if is_sd and not value > 0:
                raise ValueError(f"start: {name} is {value}, expected a positive number")
    psi[effects.before_shares : effects.before_scatter] = _begun_shares(effects, start)
    if not np.all(np.isfinite(psi)):
        name = effects.names[int(np.argmin(np.isfinite(psi)))]
        raise ValueError(f"{name} begins outside of what its prior allows: give a start, or another prior")
    return psi


def _begun_shares(effects: Effects, start: Mapping[str, float]) -> np.ndarray:
    """The numbers of the shares, of which those that are not given are equal."""
    given = {name: start[name] for name in effects.shares if name in start}
    if not all(value > 0 for value in given.values()) or not sum(given.values()) < 1:
        raise ValueError(f"start: found {given}, expected positive shares that leave some to the first class")
    rest = (1.0 - sum(given.values())) / (effects.classes - len(given))
    return logits_of(np.asarray([rest, *(given.get(name, rest) for name in effects.shares)]))


def _finished(problem: Objective, cohort: Cohort, psi: np.ndarray, message: str) -> Estimate:
    marginal = problem.marginal
    effects = marginal.effects
    total, slope = problem.value(psi)
    each, slopes = problem.each(psi)
    if marginal.by == "fo":
        # FO needs no effects; they are sought afterwards, as NONMEM's POSTHOC does.
        problem.find(psi)
    monte_carlo_error = problem.error(psi)
    lost = ~np.isfinite(each) | (each >= -PENALTY)
    arrived, classes = problem.arrived.copy(), _classes(problem, psi)
    eta = problem.eta.copy()
    if classes is not None:
        eta = classes.eta[classes.likeliest - 1, np.arange(len(arrived))]
    count = sum(
        int(np.sum(np.asarray(series.mask) & (np.asarray(series.censor) == SEEN)))
        for series in cohort.record.observations.values()
    )
    curvature = problem.curvature(psi)
    near = bool(np.max(np.abs(slope)) < FLAT)
    if marginal.by == "saem":
        gain = gained(slope, curvature)
        near, message = gain < GAIN, f"{message}, after which a step of Newton's would gain {gain:.2g}"
    told = {name: float(value) for name, value in effects.told(jnp.asarray(psi)).items()}
    moved = jax.jacfwd(effects.told)(jnp.asarray(psi))
    error = np.sqrt(np.diag(inverse_of_peak(curvature)))
    root = np.asarray(effects.root(jnp.asarray(psi)))
    shrunk = 1.0 - eta.std(axis=0) / np.sqrt(np.diag(root @ root.T))
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
        draws=0 if problem.scattered is None else len(problem.scattered.at),
        monte_carlo_error=monte_carlo_error,
        slopes=np.stack([np.asarray(moved[name]) for name in told]),
        effects=effects.effects,
        eta=eta,
        individual=each,
        curvature=curvature,
        cross_product=slopes.T @ slopes / 4.0,
        shrinkage=dict(zip(effects.effects, shrunk.tolist(), strict=True)),
        failed=tuple(np.asarray(cohort.ids)[~arrived | lost].tolist()),
        converged=bool(np.isfinite(total)) and total < -PENALTY and near,
        message=message,
        classes=classes,
    )


def _classes(problem: Objective, psi: np.ndarray) -> Classes | None:
    """Of which class the patients are, at the peaks that were found last."""
    if problem.classes == 1:
        return None
    probability = problem.probabilities(psi)
    return Classes(probability, np.argmax(probability, axis=1) + 1, problem.eta_by_class.copy())
