"""Patients that are followed: what of them stays, and what changes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.record import Record
from dtwin_jax.core.signal import AbstractSignal, Doses
from dtwin_jax.core.units import convert
from dtwin_jax.dynamics.filtering.gaussian import Gaussian
from dtwin_jax.inference.checkpoint import fingerprint
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.result import cohort_of, density_from
from dtwin_jax.inference.target import Target
from dtwin_jax.jobs.document import JobError
from dtwin_jax.jobs.facts import Subjects
from dtwin_jax.twin.live import Live, doses_over, live

# Patients of one computation, at most: it is as long for one as for all of them.
BLOCK = 32
# Room for the doses of a patient through an input, at first.
_ROOM = 4
# Days in which another fact is believed: of models that count in less than days, and of others.
_MONTH, _YEAR = 30.0, 366.0
TAKEN = np.dtype(
    [
        ("patient", "i4"),
        ("name", "i4"),
        ("dose", "?"),
        ("time", "f8"),
        ("value", "f8"),
        ("duration", "f8"),
        ("censor", "i1"),
        ("over", "?"),
    ]
)
# What of a `Live` changes; all have a leading patient axis.
MOVING = ("u", "belief", "log_weight", "time", "given", "renewed", "lost")


@dataclass(frozen=True)
class Ward:
    """What stays the same while patients are followed.

    Attributes:
        f: the model, or the `Population`, of the calibration.
        tree: its result.
        record: of its patients, stacked.
        draws: of each twin, at most.
        seed: of all random keys.
        bare: the twins without what changes of them.
        mark: what a state must be of.
        ahead: how far after a patient's last fact another is believed, in the model's time; 30 days, or a
            year where the model counts in days or longer.
    """

    f: Any
    tree: Any
    record: Record
    draws: int
    seed: int
    bare: Live
    mark: dict[str, Any]
    ahead: float

    @property
    def model(self) -> Any:
        """Without its population."""
        return self.f.predictor if isinstance(self.f, Population) else self.f

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the patients."""
        return self.bare.ids

    @property
    def channels(self) -> tuple[str, ...]:
        """Those that the calibration has learned from."""
        return tuple(self.record.observations)

    @property
    def key(self) -> Any:
        """Of the seed."""
        return jax.random.key(self.seed)

    def place(self, name: str, dose: bool) -> int:
        """The number by which facts call an input, where it is a dose, or a channel."""
        return (tuple(vars(self.record.inputs)) if dose else self.channels).index(name)

    def subjects(self) -> Subjects:
        """What facts can be about."""
        schema = self.model.schema()
        signals = vars(self.record.inputs).items()
        return Subjects(
            {name: i for i, name in enumerate(self.ids)},
            {name: schema.outputs[name] for name in self.channels},
            {name: schema.inputs[name] for name, signal in signals if _takes_doses(signal)},
            schema.time_unit,
        )


@dataclass(frozen=True)
class State:
    """Where a stream is.

    Attributes:
        twins: of all patients, in arrays of NumPy.
        taken: facts, of type `TAKEN`; those of the calibration come first. `over` are doses that every draw
            has in its state.
        room: input -> for how many doses of a patient there is room.
        step: how many steps were made.
        told: `step`, and how many facts were taken, when the alarms were last looked at.
        standing: patient and rule of alarms that have begun and not ended.
        events: every beginning and end of an alarm.
        refused: what was not taken.
    """

    twins: Live
    taken: np.ndarray
    room: dict[str, int]
    step: int = 0
    told: tuple[int, int] = (-1, -1)
    standing: tuple[tuple[str, str], ...] = ()
    events: tuple[dict[str, Any], ...] = ()
    refused: tuple[dict[str, Any], ...] = ()


def _takes_doses(signal: Any) -> bool:
    return isinstance(signal, Doses) or not (isinstance(signal, AbstractSignal) or np.any(signal))


def ward_of(f: Any, tree: Any, *, draws: int = 200, seed: int = 0) -> Ward:
    """What is followed of a calibration.

    Args:
        f: the model, or the `Population`, of the calibration.
        tree: its result.
        draws: of each twin, at most.
        seed: of all random keys.

    Raises:
        JobError: computation is in float32, which has not the times of facts.
    """
    if jnp.result_type(float) != jnp.float64:
        raise JobError("found computation in float32, expected float64 to follow patients: JAX_ENABLE_X64=1")
    density, base = density_from(f, tree)
    cohort, model = cohort_of(f, tree), density.predictor
    target = Target(model, tuple(density.priors))
    known = {name: jnp.asarray(value) for name, value in cohort.record.known.items()}
    nothing: dict[str, Any] = dict.fromkeys(MOVING) | {"belief": Gaussian(None, None)}
    bare = Live(cohort.ids, target.priors, jax.tree.map(jnp.asarray, base), known, **nothing)
    posterior = {str(name): variable.values for name, variable in tree["posterior"].data_vars.items()}
    said = {name: tree.attrs.get(name) for name in ("priors", "fixed", "population")} | {"ids": cohort.ids}
    mark = {
        "model": f"{model.name}, {getattr(model, 'solver', None)!r}",
        "result": fingerprint(said, posterior, cohort.record),
        "draws": draws,
        "seed": seed,
    }
    return Ward(f, tree, cohort.record, draws, seed, bare, mark, _believed(model.schema().time_unit))


def _believed(unit: str) -> float:
    days = _YEAR if convert(1.0, unit, "d") >= 1 else _MONTH
    return float(convert(days, "d", unit))


def begun(ward: Ward) -> State:
    """The state just after the last measurements of the calibration."""
    now = live(ward.f, ward.tree, draws=ward.draws)
    twins = replace(ward.bare, **{name: jax.tree.map(np.asarray, getattr(now, name)) for name in MOVING})
    rows = []
    for name, series in ward.record.observations.items():
        columns = (series.time, series.value, np.zeros(np.shape(series.time)), series.censor)
        rows.append(_rows(ward.place(name, False), False, np.asarray(series.mask), columns))
    dosed = {name: s for name, s in vars(ward.record.inputs).items() if isinstance(s, Doses)}
    for name, given in dosed.items():
        columns = (*given.plain("a ward"), np.zeros(np.shape(given.time)))
        rows.append(_rows(ward.place(name, True), True, np.asarray(given.amount) != 0, columns))
    taken = np.concatenate(rows)
    room = {name: _size(most(taken, ward.place(name, True))) for name in dosed}
    state = forgotten(ward, State(twins, taken, room))
    return replace(state, room={name: _size(most(state.taken, ward.place(name, True))) for name in dosed})


def _rows(name: int, dose: bool, mask: np.ndarray, columns: Sequence[Any]) -> np.ndarray:
    at = np.nonzero(mask)
    found = np.zeros(len(at[0]), TAKEN)
    found["patient"], found["name"], found["dose"] = at[0], name, dose
    for column, values in zip(("time", "value", "duration", "censor"), columns, strict=True):
        found[column] = np.asarray(values)[at]
    found["time"] += 0.0  # zero has one sign, so that what is known is known again
    found["value"] += 0.0
    return found


def _size(count: int) -> int:
    """Room for so many doses: a power of two, so that it seldom grows."""
    return max(_ROOM, 1 << max(count - 1, 0).bit_length())


def _waiting(taken: np.ndarray, name: int) -> np.ndarray:
    """Rows of the doses through an input that are not over."""
    return np.flatnonzero(taken["dose"] & (taken["name"] == name) & ~taken["over"])


def most(taken: np.ndarray, name: int) -> int:
    """The largest number of doses of one patient through an input that are not over."""
    return int(np.bincount(taken["patient"][_waiting(taken, name)], minlength=1).max())


def _slots(ward: Ward, state: State, name: str) -> np.ndarray:
    """(patient, room) rows of the doses through an input, by time; -1 where there is none."""
    taken = state.taken
    rows = _waiting(taken, ward.place(name, True))
    rows = rows[np.lexsort((taken["time"][rows], taken["patient"][rows]))]
    patients = taken["patient"][rows]
    slots = np.full((len(ward.ids), state.room[name]), -1)
    slots[patients, np.arange(len(rows)) - np.searchsorted(patients, patients)] = rows
    return slots


def inputs_of(ward: Ward, state: State) -> Any:
    """The inputs of all patients, of one shape as long as the room suffices."""
    found = {}
    for name in state.room:
        slots = _slots(ward, state, name)
        dose = slots >= 0
        time, amount, duration = (
            np.where(dose, state.taken[column][slots], 0.0) for column in ("time", "value", "duration")
        )
        # Padding repeats the last time; of a patient without doses it is the twin's.
        last = np.max(np.where(dose, time, -np.inf), axis=1)
        last = np.where(np.isfinite(last), last, state.twins.time)[:, None]
        found[name] = Doses(np.where(dose, time, last), amount, duration)
    return replace_fields(ward.record.inputs, found)


def forgotten(ward: Ward, state: State) -> State:
    """The state with those doses marked as over that every draw has in its state."""
    if not state.room:
        return state
    over = doses_over(ward.model, state.twins, inputs_of(ward, state))
    taken = state.taken.copy()
    for name in state.room:
        slots = _slots(ward, state, name)
        taken["over"][slots[(slots >= 0) & np.asarray(over[name])]] = True
    return replace(state, taken=taken)


def with_doses(ward: Ward, state: State, doses: np.ndarray) -> State:
    """The state with more doses; where the room is too small for them it grows."""
    names = tuple(vars(ward.record.inputs))
    given = {name: ward.place(name, True) for name in (names[i] for i in np.unique(doses["name"]))}
    taken = np.concatenate([state.taken, doses])
    if all(most(taken, place) <= state.room.get(name, 0) for name, place in given.items()):
        return replace(state, taken=taken)
    state = forgotten(ward, state)
    taken = np.concatenate([state.taken, doses])
    grown = {name: _size(most(taken, place)) for name, place in given.items()}
    room = state.room | {name: max(size, state.room.get(name, 0)) for name, size in grown.items()}
    return replace(state, taken=taken, room=room)


def rows_of(ward: Ward, chosen: Sequence[int]) -> np.ndarray:
    """The patients of one computation, by position: those chosen, `BLOCK` at most, and others to fill it."""
    others = np.setdiff1d(np.arange(len(ward.ids)), chosen)
    size = min(BLOCK, len(ward.ids))
    return np.sort(np.concatenate([np.asarray(chosen, int), others[: size - len(chosen)]]))


def twins_of(state: State, rows: np.ndarray) -> Live:
    """Some of the twins, under names that are the same for any: one compiled program is for all."""
    moving = {name: jax.tree.map(lambda leaf: leaf[rows], getattr(state.twins, name)) for name in MOVING}
    known = {name: value[rows] for name, value in state.twins.known.items()}
    return replace(state.twins, ids=tuple(map(str, range(len(rows)))), known=known, **moving)
