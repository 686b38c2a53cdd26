"""A closed loop: simulated patients are measured and dosed, with live twins of them or without.

At every step the true state is carried on, the measured channels are drawn about it, the twins take the
measurements in, say what they expect, and a rule decides what is given until the next step:

    true state -> measurement -> assimilate -> forecast_live -> rule -> dose -> true state

The twin may be of another model than the patient, and may be told other meals than were eaten. Doses that
were planned are known to it from their times on. What the rule decides is given at a constant rate from one
step to the next, so it cannot act on what was measured before it. All steps of a loop have arrays of one
shape, with room for the doses that are still under way: the room grows, and programs are compiled anew,
only where more of them are.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import central, check_cohort
from dtwin_jax.core.quantity import check_names, replace_fields
from dtwin_jax.core.record import Cohort, Record, Series
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.advance import advance, beginning, over_by
from dtwin_jax.dynamics.filtering.gaussian import Gaussian
from dtwin_jax.inference.density import standard_promotion, with_known
from dtwin_jax.inference.population import Population
from dtwin_jax.twin.doses import Book, Foreseen, History
from dtwin_jax.twin.live import Live, assimilate, doses_over, forecast_live, parameters_of

# Of a forecast, in the result.
QUANTILES = tuple(round(0.05 * i, 2) for i in range(1, 20))


@dataclass(frozen=True)
class Twins:
    """Live twins in a loop.

    Attributes:
        model: of the twins, or their `Population`.
        live: the twins, in the order of the patients, at the start of the loop.
        told: the twins' inputs, stacked, as far as the loop does not control them: meals as announced.
        ahead: times from now at which to forecast, ascending.
        draws: of a forecast.
        named: patient's channel or input -> the twin's, where they differ. Units are converted.
    """

    model: Any
    live: Live
    told: Any
    ahead: tuple[float, ...]
    draws: int = 100
    named: Mapping[str, str] = field(default_factory=dict)


def closed_loop(
    model: Any,
    patients: Cohort,
    rule: Any,
    *,
    standing: Mapping[str, Any],
    every: float,
    until: float,
    key: Any,
    twins: Twins | None = None,
) -> Any:
    """Simulated patients under a rule, from the start of their records.

    Args:
        model: the `Model` of the patients, an ODE.
        patients: `known` of the record are their true parameters, its inputs are what is given whatever the
            rule decides, its observations name the channels that are measured (at the loop's times).
        rule: (now, `Foreseen`, `History`) -> input -> amount until the next step, in the patients' units, as
            `to_target`. What it leaves out is given at its standing rate. Its arrays are numbers that all
            patients share, or have a leading patient axis: also those of a network in it.
        standing: input -> rate, a number or (patient,), where nothing else is decided: a pump's basal rate.
            These inputs are controlled: doses of the record through them, boluses for meals, come on top.
        every: time from one step to the next.
        until: end of the loop, after the start of all patients, which is one time.
        key: random key of measurements, of the twins and of forecasts.
        twins: without, the rule is shown the last measurement as if it were to stay.

    Returns:
        `xarray.Dataset` over patient and time: `<channel>` (true) and `<channel>_measured`, `<input>_given`
        (amount from this time to the next); with twins `<channel>_forecast` (quantile, patient, time, lead),
        made at `time` for `time + lead` in the patients' units, `posterior_mean` and `posterior_sd`
        (parameter, patient, time), `effective` draws, `renewed` and `lost`. `failed_at` (patient) is the
        time until which a patient could not be solved, NaN where there is none: the others go on. `refused`
        (patient) are decisions that were no finite amount of at least 0, in whose place the standing rate
        was given.

    Raises:
        ValueError: the model has a diffusion, patients start at different times, a name is not the model's,
            an input is no dose, the twins are others, or an array of the rule has no patient axis.
    """
    _check(model, patients, standing, twins)
    start, count = float(np.min(patients.record.t0)), len(patients)
    times = start + every * np.arange(int(np.floor((until - start) / every * (1 + 1e-12))) + 1)
    spread = {name: np.broadcast_to(np.asarray(rate, float), (count,)) for name, rate in standing.items()}
    bodies = _Bodies(model, patients, spread, times)
    seers = None if twins is None else _Seers(model, twins, bodies)
    numbers, rest = _parts(rule, count)
    log: dict[str, list[Any]] = {}
    for k, now in enumerate(times):
        keys = jax.random.split(jax.random.fold_in(key, k), 3)
        true, measured = bodies.measured(k, keys[0])
        ahead = _as_it_is(now, measured) if seers is None else seers.ahead(k, measured, keys[1:])
        history = bodies.history(k, every)
        amounts, refused = jax.tree.map(np.asarray, _decided(numbers, rest, now, ahead, history))
        failed = np.isfinite(bodies.failed_at)
        amounts, refused = {n: np.where(failed, 0.0, a) for n, a in amounts.items()}, refused & ~failed
        for body in (bodies, *([] if seers is None else [seers])):
            body.book.decide(k, now, every, amounts)
        note = true | {f"{name}_measured": value for name, value in measured.items()}
        note |= {f"{name}_given": value for name, value in amounts.items()} | {"refused": refused}
        for name, value in (note | ({} if seers is None else seers.noted(ahead))).items():
            log.setdefault(name, []).append(value)
    return _dataset(patients.ids, times, log, bodies, seers)


class _Bodies:
    """The simulated patients: where they are, and what was measured and given."""

    def __init__(self, model: Any, patients: Cohort, rates: dict[str, np.ndarray], times: np.ndarray):
        self.model, self.rates, self.times = model, rates, times
        count, record = len(patients), patients.record
        self.known = {name: jnp.asarray(value, float) for name, value in record.known.items()}
        self.channels = tuple(record.observations)
        self.state = _at_rest(model, self.known, count)
        self.time, self.given = np.full(count, times[0]), np.full(count, -np.inf)
        self.failed_at = np.full(count, np.nan)
        self.book = Book(record.inputs, count, len(times), {name: (name, 1.0) for name in rates})
        self.seen = {name: np.full((count, len(times)), np.nan) for name in self.channels}

    def measured(self, k: int, key: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Channel -> the truth at step `k`, and what is measured then; NaN of those who failed."""
        now, lost = self.times[k], np.isfinite(self.failed_at)
        # Whoever failed stays where he was: a stretch of no length costs nothing.
        stop = np.where(lost, self.time, now)
        record = Record(self.book.inputs(now), _series(self.channels, stop), self.known, self.time)
        keys = jax.random.split(key, len(stop))
        self.state, *found, over = _walked(self.model, record, self.state, stop, self.given, keys)
        good, true, drawn = jax.tree.map(np.asarray, found)
        self.failed_at = np.where(~lost & ~good, now, self.failed_at)
        good = good & ~lost
        self.time, self.given = np.where(good, now, self.time), np.where(good, now, self.given)
        self.book.forget(now, over)
        true, drawn = (
            {name: np.where(good, value, np.nan) for name, value in values.items()}
            for values in (true, drawn)
        )
        for name, value in drawn.items():
            self.seen[name][:, k] = value
        return true, drawn

    def history(self, k: int, every: float) -> History:
        """Until step `k`, of all patients."""
        count, now, planned, decided = len(self.time), self.times[k], {}, {}
        for name in self.rates:
            first = self.book.planned[name]
            time, amount, duration = (row[:, :first] for row in self.book.rows[name])
            planned[name] = Doses(time, np.where(time <= now, amount, 0.0), duration)
            done = np.arange(len(self.times)) < k
            decided[name] = np.where(done, self.book.rows[name][1][:, first:], np.nan)
        times, steps = np.broadcast_to(self.times, (count, len(self.times))), np.full(count, every)
        # Copies: what is handed to a computation that has not ended is not to be written on.
        made = History(times, self.seen, decided, planned, self.rates, steps)
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), made)


class _Seers:
    """The twins in the loop, and what they were told."""

    def __init__(self, model: Any, twins: Twins, bodies: _Bodies):
        self.twins, self.live, self.bodies = twins, twins.live, bodies
        own: Any = twins.model.predictor if isinstance(twins.model, Population) else twins.model
        self.model = own
        ours, theirs = model.schema(), own.schema()
        self.channels = {
            name: _matched(ours.outputs, theirs.outputs, name, twins.named) for name in bodies.channels
        }
        inputs = {name: _matched(ours.inputs, theirs.inputs, name, twins.named) for name in bodies.rates}
        # What is planned through controlled inputs is given to the patient, and known.
        planned = {
            here: eqx.tree_at(lambda s: s.amount, signal, signal.amount * factor)
            for name, (here, factor) in inputs.items()
            if isinstance(signal := getattr(bodies.book.rest, name), Doses)
        }
        told = replace_fields(twins.told, planned)
        self.book = Book(told, len(self.live), len(bodies.times), inputs)

    def ahead(self, k: int, measured: dict[str, np.ndarray], keys: Any) -> Foreseen:
        """What the twins expect after the measurements of step `k`."""
        now, count, twins = self.bodies.times[k], len(self.live), self.twins
        seen = {}
        for name, (here, factor) in self.channels.items():
            there = np.isfinite(measured[name])[:, None]
            value = np.where(there, factor * measured[name][:, None], 0.0)
            seen[here] = Series(np.full((count, 1), now), value, mask=there)
        new = Record(self.book.inputs(now), seen, {}, np.full(count, now))
        self.live = assimilate(twins.model, self.live, new, key=keys[0], until=now)
        self.book.forget(now, doses_over(self.model, self.live, new.inputs))
        leads = np.asarray(twins.ahead, float)
        times = np.broadcast_to(now + leads, (count, len(leads)))
        plan = Record(
            self.book.inputs(now, self.bodies.rates, float(leads[-1])),
            dict.fromkeys(seen, Series(times)),
            {},
            np.full(count, now),
        )
        drawn = forecast_live(self.model, self.live, jax.tree.map(jnp.asarray, plan), keys[1], twins.draws)
        draws = {
            name: jnp.moveaxis(drawn[here], 0, 1) / factor for name, (here, factor) in self.channels.items()
        }
        return Foreseen(jnp.asarray(times), draws)

    def noted(self, ahead: Foreseen) -> dict[str, np.ndarray]:
        """What the result holds of this step."""
        found = {
            f"{name}_forecast": np.asarray(jnp.nanquantile(draws, jnp.asarray(QUANTILES), axis=1))
            for name, draws in ahead.draws.items()
        }
        weight = np.exp(np.asarray(self.live.log_weight))
        drawn = np.stack(list(parameters_of(self.live).values()))
        mean = np.sum(drawn * weight, axis=-1)
        sd = np.sqrt(np.sum((drawn - mean[..., None]) ** 2 * weight, axis=-1))
        return found | {"posterior_mean": mean, "posterior_sd": sd, "effective": self.live.effective()}


def _check(model: Any, patients: Cohort, standing: Mapping[str, Any], twins: Twins | None) -> None:
    if model.diffusion is not None:
        raise ValueError(f"closed_loop: {model.name} has a diffusion; patients are simulated by an ODE")
    check_cohort(model, patients)
    if np.ptp(np.asarray(patients.record.t0)) > 0:
        raise ValueError("closed_loop: all patients start at one time; shift the records")
    check_names(f"closed_loop: {model.name}", "input", standing, vars(patients.record.inputs))
    for name in standing:
        signal = getattr(patients.record.inputs, name)
        if not isinstance(signal, Doses) and np.any(jax.tree.leaves(signal)[0]):
            raise ValueError(f"closed_loop: input {name!r} is controlled, and is no dose: leave it at 0")
    if twins is None:
        return
    if tuple(twins.live.ids) != tuple(patients.ids):
        raise ValueError(f"closed_loop: twins of {twins.live.ids[:5]} are not of {patients.ids[:5]}")
    if np.any(np.asarray(twins.live.time) > np.asarray(patients.record.t0)):
        raise ValueError("closed_loop: a twin's time is later than the start of the patients")


def _matched(ours: Any, theirs: Any, name: str, named: Mapping[str, str]) -> tuple[str, float]:
    """The twin's name of a channel or input, and what a value is multiplied by to be in its unit."""
    here = named.get(name, name)
    check_names("closed_loop: the twin", "channel or input", (here,), theirs)
    given, wanted = ours[name], theirs[here]
    if given.unit == wanted.unit:
        return here, 1.0
    from dtwin_jax.core.units import factor

    return here, factor(given.unit, wanted.unit, given.molar_mass or wanted.molar_mass)


def _series(channels: tuple[str, ...], times: np.ndarray) -> dict[str, Series]:
    return dict.fromkeys(channels, Series(times[:, None]))


def _as_it_is(now: float, measured: dict[str, np.ndarray]) -> Foreseen:
    """The last measurement as a forecast of itself."""
    draws = {name: jnp.asarray(value)[:, None, None] for name, value in measured.items()}
    return Foreseen(jnp.full((len(next(iter(measured.values()))), 1), now), draws)


@functools.partial(jax.jit, static_argnames=("model", "count"))
@standard_promotion
def _at_rest(model: Any, known: dict[str, Any], count: int) -> Any:
    """(patient, states) at the start."""

    def patient(known: dict[str, Any], _: Any) -> Any:
        return beginning(model, with_known(model.params(), Record(None, {}, known))).mean

    return jax.vmap(patient)(known, jnp.arange(count))


@functools.partial(jax.jit, static_argnames=("model",))
@standard_promotion
def _walked(model: Any, record: Record, state: Any, stop: Any, given: Any, keys: Any) -> tuple:
    """Of every patient: the state at `stop`, or the old one; if it was solved; truth, measured; over."""

    def patient(record: Record, state: Any, stop: Any, given: Any, key: Any) -> tuple:
        p = with_known(model.params(), record)
        certain = Gaussian(state, jnp.zeros((state.shape[0], state.shape[0]), state.dtype))
        moved, predicted = advance(model, p, certain, record, stop, given)
        good = jnp.all(jnp.isfinite(moved.mean))
        keys = jax.random.split(key, len(predicted))
        true = {name: central(d)[0] for name, d in predicted.items()}
        drawn = {name: d.sample(k)[0] for (name, d), k in zip(predicted.items(), keys, strict=True)}
        over = over_by(model, p, record.inputs, stop, stop)
        return jnp.where(good, moved.mean, state), good, true, drawn, over

    return jax.vmap(patient)(record, state, stop, given, keys)


@functools.partial(jax.jit, static_argnames=("rest",))
@standard_promotion
def _decided(
    numbers: Any, rest: Any, now: Any, ahead: Foreseen, history: History
) -> tuple[dict[str, Any], Any]:
    """Input -> (patient,) amount, and whether one was refused."""

    def patient(numbers: Any, ahead: Foreseen, history: History) -> tuple[dict[str, Any], Any]:
        found = eqx.combine(numbers, rest)(now, ahead, history)
        check_names("closed_loop: standing", "input", found, history.standing)
        amounts, refused = {}, jnp.asarray(False)
        for name, rate in history.standing.items():
            amount = jnp.asarray(found.get(name, rate * history.every))
            good = jnp.isfinite(amount) & (amount >= 0)
            amounts[name] = jnp.where(good, amount, rate * history.every)
            refused = refused | ~good
        return amounts, refused

    return jax.vmap(patient)(numbers, ahead, history)


def _parts(rule: Any, count: int) -> tuple[Any, Any]:
    """Arrays of a rule, each with a patient axis, and the rest of it.

    Raises:
        ValueError: an array has axes, of which the first is not the patients'.
    """
    arrays, rest = eqx.partition(rule, lambda leaf: isinstance(leaf, jax.Array | np.ndarray))

    def by_patient(path: Any, leaf: Any) -> Any:
        if leaf.ndim and leaf.shape[0] != count:
            where = jax.tree_util.keystr(path).lstrip(".") or "the rule itself"
            raise ValueError(
                f"closed_loop: {where} of the rule has shape {leaf.shape}, expected () or ({count}, ...), "
                f"a row a patient; repeat what all share: jnp.broadcast_to(x, ({count}, *x.shape))"
            )
        return jnp.broadcast_to(leaf, (count,)) if leaf.ndim == 0 else jnp.asarray(leaf)

    return jax.tree_util.tree_map_with_path(by_patient, arrays), rest


def _dataset(ids: Any, times: Any, log: dict[str, list[Any]], bodies: _Bodies, seers: _Seers | None) -> Any:
    import xarray as xr

    variables: dict[str, Any] = {}
    for name, rows in log.items():
        if name.endswith("_forecast"):
            variables[name] = (("quantile", "patient", "time", "lead"), np.stack(rows, axis=2))
        elif name.startswith("posterior_"):
            variables[name] = (("parameter", "patient", "time"), np.stack(rows, axis=2))
        else:
            variables[name] = (("patient", "time"), np.stack(rows, axis=1))
    variables["refused"] = ("patient", variables["refused"][1].sum(axis=1))
    variables["failed_at"] = ("patient", bodies.failed_at)
    places: dict[str, Any] = {"patient": list(ids), "time": times}
    if seers is not None:
        live = seers.live
        variables |= {name: ("patient", np.asarray(getattr(live, name))) for name in ("renewed", "lost")}
        places |= {
            "quantile": list(QUANTILES),
            "lead": list(seers.twins.ahead),
            "parameter": list(live.names),
        }
    return xr.Dataset(variables, places)
