"""A twin that lives: parameters and state of every patient follow new measurements, without a new fit.

Every patient has draws of the posterior, each with what it believes of the state: a known state for an ODE,
mean and covariance (by the model's filter) for an SDE. New measurements weigh the draws by their likelihood,
one stretch of the solver from the last update on. When few draws carry the weight they are drawn anew and
spread again by a kernel that keeps mean and covariance of parameters and state together:

    z' = m + sqrt(1 - h^2) (z - m) + h C^(1/2) e,   z = (unbounded parameters, state), e standard normal

with h by the normal rule for densities of as many draws as are effective. The kernel takes the posterior
for normal, so a measurement that would leave few draws is taken in by stages, each with a renewal. What it
gives is an approximation, best where updates are many and small, and too narrow with few draws. With the
whole record at hand (`history`) renewed draws are moved instead by Metropolis steps, whose target is the
posterior of all measurements: exact but for the number of draws, and a solve from the start for each step,
though only when draws are renewed.

Sources: Liu & West 2001, in Sequential Monte Carlo Methods in Practice, doi 10.1007/978-1-4757-3437-9_10;
Chopin 2002, doi 10.1093/biomet/89.3.539.
"""

import functools
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import check_record
from dtwin_jax.core.prior import Prior
from dtwin_jax.core.record import Cohort, Record, Series
from dtwin_jax.dynamics.advance import advance, over_by
from dtwin_jax.dynamics.filtering.gaussian import Gaussian
from dtwin_jax.dynamics.filtering.weights import drawn_rows, effective_of
from dtwin_jax.dynamics.model import Model
from dtwin_jax.inference.density import estimated, parameters, standard_promotion
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.predictive import theta_of
from dtwin_jax.inference.result import cohort_of, density_from
from dtwin_jax.inference.target import Target
from dtwin_jax.twin.forecast import sampled
from dtwin_jax.twin.updates import beginnings, by_blocks, carried, keys_of, learned, normalized, passed_over


class Live(eqx.Module):
    """Twins of a ward at one time each; arrays have a leading patient axis.

    Attributes:
        ids: of the patients.
        priors: name and prior of every estimated parameter, in the order of `u`.
        base: the model's parameters; known values are in it.
        known: what is known of each patient, name -> (patient,).
        u: (patient, draw, name) parameters on their unbounded scales.
        belief: of the state, mean (patient, draw, states) and covariance.
        log_weight: (patient, draw) logs of the draws' weights, which sum to one.
        time: (patient,) of the last update.
        given: (patient,) boluses up to this time are in the state.
        renewed: (patient,) how often the draws were renewed.
        lost: (patient,) updates that no draw explains, or that no draw could solve. Nothing is learned from
            them: draws that could be solved are carried on, and if there are none the twin stays as it was,
            at its time, and what was given since is still to be given.
    """

    ids: tuple[str, ...] = eqx.field(static=True)
    priors: tuple[tuple[str, Prior], ...] = eqx.field(static=True)
    base: Any
    known: dict[str, Any]
    u: Any
    belief: Gaussian
    log_weight: Any
    time: Any
    given: Any
    renewed: Any
    lost: Any

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the estimated parameters."""
        return tuple(name for name, _ in self.priors)

    def effective(self) -> np.ndarray:
        """(patient,) the effective number of draws."""
        return np.asarray(effective_of(self.log_weight))


def live(f: Any, tree: Any, *, draws: int = 200) -> Live:
    """Live twins of the patients of a calibration, just after their last measurement.

    Args:
        f: the model, or the `Population`, of the calibration.
        tree: result of `calibrate`.
        draws: of the posterior, at most.

    Raises:
        ValueError: parameters that change by occasion, or no `Model`, whose state could be followed.
    """
    _check_followed("live", f)
    if isinstance(f, Population) and f.occasions is not None:
        raise ValueError("live: twins whose parameters change by occasion cannot be followed")
    density, base = density_from(f, tree)
    cohort = cohort_of(f, tree)
    values, _ = sampled(tree, draws)
    theta = np.moveaxis(theta_of(density, values, len(cohort)), 0, 1)
    record = jax.tree.map(jnp.asarray, cohort.record)
    twins = _begun(density.predictor, density.priors, base, record, jnp.asarray(theta), cohort.ids)
    # The posterior has learned from these measurements already: only the state is to follow them.
    return _followed(density.predictor, twins, record, last_times(record))


def live_from_prior(f: Any, cohort: Cohort, *, key: Any, draws: int = 200, priors: Any = None) -> Live:
    """Live twins of patients of whom nothing is known but their priors, at the start of their records.

    Args:
        f: a model.
        cohort: inputs, known facts and starts of the patients; measurements are not looked at.
        key: random key.
        draws: of the prior.
        priors: as in `fit`.

    Raises:
        ValueError: a `Population`, or no `Model`, whose state could be followed.
    """
    _check_followed("live_from_prior", f)
    if isinstance(f, Population):
        raise ValueError("live_from_prior takes a model: a Population's patients begin from a calibration")
    base, free = estimated(f, priors or {}, tuple(cohort.record.known))
    target = Target(f, tuple(free.items()))
    keys = jax.random.split(key, (len(cohort), draws))
    u = jax.vmap(jax.vmap(target.draw))(keys)
    theta = jax.vmap(jax.vmap(target.bounded))(u)
    record = jax.tree.map(jnp.asarray, cohort.record)
    return _begun(f, target.priors, base, record, theta, cohort.ids)


def assimilate(
    f: Any, live: Live, new: Record, *, key: Any, until: Any = None, history: Record | None = None
) -> Live:
    """The twins after new measurements.

    One compiled program serves all updates of one shape: pad short ones with masked rows.

    Args:
        f: the model, or the `Population`, of the live twins.
        live: the twins.
        new: stacked record of the same patients, or that of one; measurements later than `live.time`, and the
            inputs from then on (earlier ones may be there: boluses are not given twice; an input on which a
            lag or bioavailability depends is to be there from the first dose on that has not arrived). What
            is known of the patients, and the start, are those of `live`.
        key: random key of the renewal, or one a patient: then what a patient draws is of him alone.
        until: (patient,) or one time to which the state is carried; by default that of each patient's last
            measurement.
        history: stacked record of all measurements of the patients, the new ones included, from their start;
            later ones are not looked at. With it renewals are exact. Not for a `Population`, where the
            prior of a patient is the other patients'.

    Raises:
        ValueError: measurements before the twin's time, or after `until`; keys of another number of patients.
    """
    model = _model(f)
    if history is not None and isinstance(f, Population):
        raise ValueError("assimilate: history is for a model alone; a Population's prior of a patient moves")
    single = np.ndim(next(iter(new.observations.values())).time) == 1
    if single:
        new = jax.tree.map(lambda leaf: np.asarray(leaf)[None], new)
    record = _checked(model, live, new, until)
    ends = last_times(record) if until is None else jnp.asarray(until, float)
    stop = jnp.maximum(jnp.broadcast_to(ends, live.time.shape), live.time)
    keys = keys_of(key, len(live))
    if len(keys) != len(live):
        raise ValueError(f"assimilate: found {len(keys)} keys, expected one, or one a patient: {len(live)}")
    past = None if history is None else _up_to(jax.tree.map(jnp.asarray, history), stop)
    return learned(model, live, record, past, stop, keys)


def last_times(record: Record) -> Any:
    """(patient,) time of the last measurement, or the record's start without any."""
    t0 = jnp.asarray(record.t0, float)
    each = [
        jnp.max(jnp.where(jnp.asarray(series.mask), jnp.asarray(series.time), t0[:, None]), axis=1)
        for series in record.observations.values()
    ]
    return jnp.max(jnp.stack([t0, *each]), axis=0)


def parameters_of(live: Live) -> dict[str, np.ndarray]:
    """Name -> (patient, draw) on the parameters' own scales; weigh by exp(`live.log_weight`)."""
    theta = np.asarray(_bounded(Target(None, live.priors), live.u))
    return {name: theta[..., i] for i, name in enumerate(live.names)}


@functools.partial(jax.jit, static_argnames=("model", "count"))
@standard_promotion
def forecast_live(model: Any, live: Live, planned: Record, key: Any, count: int = 200) -> dict[str, Any]:
    """Predictive draws of a plan from what the twins believe now.

    Args:
        model: of the twins.
        live: the twins.
        planned: stacked record of the same patients: inputs, and times to predict at, not before `live.time`.
        key: random key, or one a patient.
        count: draws.

    Returns:
        Channel -> (draw, patient, n), with measurement error.
    """
    target = Target(model, live.priors)

    def draw(u: Any, belief: Gaussian, record: Record, given: Any, base: Any, key: Any) -> dict[str, Any]:
        p = parameters(target.names, base, target.bounded(u), record)
        end = jnp.max(jnp.stack([jnp.max(series.time) for series in record.observations.values()]))
        _, predicted = advance(model, p, belief, record, end, given)
        keys = jax.random.split(key, len(predicted))
        return {name: d.sample(k) for (name, d), k in zip(predicted.items(), keys, strict=True)}

    def patient(
        u: Any, belief: Gaussian, weight: Any, record: Record, given: Any, key: Any
    ) -> dict[str, Any]:
        key, at = jax.random.split(key)
        rows = drawn_rows(weight, jax.random.uniform(at), count)
        some = jax.tree.map(lambda leaf: leaf[rows], (u, belief))
        keys = jax.random.split(key, count)
        return jax.vmap(lambda one, k: draw(one[0], one[1], record, given, live.base, k))(some, keys)

    planned = _of(live, planned)
    keys = keys_of(key, len(live.ids))
    everyone = (live.u, live.belief, live.log_weight, planned, live.given, keys)
    found = by_blocks(lambda one: patient(*one), everyone, count)
    return {name: jnp.moveaxis(value, 0, 1) for name, value in found.items()}


@functools.partial(jax.jit, static_argnames=("model",))
@standard_promotion
def doses_over(model: Any, live: Live, inputs: Any) -> dict[str, Any]:
    """Input -> (patient, dose), whether a dose is in the state of every draw, wholly: it can be forgotten.

    Args:
        model: of the twins.
        live: the twins.
        inputs: of these patients, as in a record.
    """
    target = Target(model, live.priors)

    def draw(u: Any, record: Record, given: Any) -> dict[str, Any]:
        p = parameters(target.names, live.base, target.bounded(u), record)
        return over_by(model, p, record.inputs, record.t0, given)

    def patient(u: Any, record: Record, given: Any) -> dict[str, Any]:
        over = jax.vmap(lambda row: draw(row, record, given))(u)
        return {name: jnp.all(rows, axis=0) for name, rows in over.items()}

    return jax.vmap(patient)(live.u, Record(inputs, {}, live.known, live.time), live.given)


def _model(f: Any) -> Any:
    return f.predictor if isinstance(f, Population) else f


def _check_followed(who: str, f: Any) -> None:
    model = _model(f)
    if not isinstance(model, Model):
        kind = type(model).__name__
        raise ValueError(
            f"{who}: {model.name} is of the kind {kind}, and only the state of a Model can be followed; "
            "calibrate the Model by itself (errors that remember each other are part of no state), or "
            "predict from the whole record by forecast"
        )


def _of(live: Live, record: Record) -> Record:
    """The record with the start and the known facts of the twins, and with nothing past."""
    return Record(record.inputs, record.observations, live.known, live.time)


def _checked(model: Any, live: Live, new: Record, until: Any) -> Record:
    if len(next(iter(new.observations.values())).time) != len(live):
        raise ValueError(f"the new record has not the twins' {len(live)} patient(s)")
    ends = np.inf if until is None else np.broadcast_to(np.asarray(until, float), (len(live),))
    time = np.asarray(live.time)
    for name, series in new.observations.items():
        mask, when = np.asarray(series.mask), np.asarray(series.time)
        for wrong, says in (
            (mask & (when < time[:, None]), "before the twin's time"),
            (mask & (when > np.reshape(ends, (-1, 1))), "after until,"),
        ):
            if np.any(wrong):
                i, j = np.argwhere(wrong)[0]
                limit = time[i] if says.startswith("before") else np.broadcast_to(ends, time.shape)[i]
                where = f"patient {live.ids[i]!r}, channel {name!r}"
                raise ValueError(f"{where}: a measurement at {when[i, j]:g} is {says} {limit:g}")
    # Padding may lie anywhere; the solver is not to go back for it.
    rows = {
        name: replace(series, time=np.maximum(np.asarray(series.time), time[:, None]))
        for name, series in new.observations.items()
    }
    # The first patient with a fault is told; without one the first, for the names of the channels.
    i = int(np.argmax(_faulty(rows)))
    seen = {name: jax.tree.map(lambda leaf: np.asarray(leaf)[i], series) for name, series in rows.items()}
    check_record(model, Record(model.inputs(), seen, {}, time[i]), live.ids[i])
    return _of(live, Record(jax.tree.map(jnp.asarray, new.inputs), jax.tree.map(jnp.asarray, rows)))


def _faulty(rows: dict[str, Series]) -> np.ndarray:
    """(patient,) whether a time or a measured value is not finite, or times decrease."""
    faults = []
    for series in rows.values():
        time, value = np.asarray(series.time), np.asarray(series.value)
        measured = np.where(np.asarray(series.mask), value, 0.0)
        faults += [~np.isfinite(time).all(axis=1), (np.diff(time, axis=1) < 0).any(axis=1)]
        faults += [~np.isfinite(measured).all(axis=1)]
    return np.any(faults, axis=0)


def _begun(model: Any, priors: Any, base: Any, record: Record, theta: Any, ids: Any) -> Live:
    """Twins at the start of their records; theta (patient, draw, name)."""
    target = Target(model, tuple(priors))
    shape = theta.shape[:2]
    return Live(
        ids=tuple(ids),
        priors=target.priors,
        base=jax.tree.map(jnp.asarray, base),
        known={name: jnp.asarray(value) for name, value in record.known.items()},
        u=jax.vmap(jax.vmap(target.unbounded))(theta),
        belief=beginnings(target, base, record, theta),
        log_weight=jnp.full(shape, -jnp.log(float(shape[1])), dtype=float),
        time=jnp.asarray(record.t0, float),
        given=jnp.full(shape[:1], -jnp.inf, dtype=float),
        renewed=jnp.zeros(shape[:1], int),
        lost=jnp.zeros(shape[:1], int),
    )


@functools.partial(jax.jit, static_argnames=("target",))
@standard_promotion
def _bounded(target: Target, u: Any) -> Any:
    return jax.vmap(jax.vmap(target.bounded))(u)


def _up_to(history: Record, stop: Any) -> Record:
    """Without the measurements later than `stop`, whose rows are kept for their shape."""
    kept = {
        name: replace(series, mask=series.mask & (series.time <= stop[:, None]))
        for name, series in history.observations.items()
    }
    return Record(history.inputs, kept, history.known, history.t0)


@functools.partial(jax.jit, static_argnames=("model",))
@standard_promotion
def _followed(model: Any, live: Live, record: Record, stop: Any) -> Live:
    """The twins at `stop`, their states carried there and nothing learned; unsolved ones as they were."""
    moved, _, solved = carried(model, live, live.u, live.belief, record, stop, live.given)
    weight = normalized(live.log_weight + jax.vmap(passed_over)(solved))
    reached = jnp.any(solved, axis=1)
    time, given = jnp.where(reached, stop, live.time), jnp.where(reached, stop, live.given)
    lost = live.lost + (~reached).astype(int)
    return replace(live, belief=moved, log_weight=weight, time=time, given=given, lost=lost)
