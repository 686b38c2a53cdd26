"""An exact flow under a schedule in cycles: wanted times come at the same gaps after events, again and again.

What a flow takes of time, its exponentials, is then computed once for every gap, and not at every wanted
time: the compiler moves it out of the loop over the cycles. This holds for any flow, linear or not.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dtwin_jax.core.signal import AbstractSignal, Doses
from dtwin_jax.dynamics.dosing import cross_event, inputs_at
from dtwin_jax.dynamics.simulate import Trajectory
from dtwin_jax.dynamics.solver import Outcome

# The flow may be taken at this many pairs of a cycle and a gap for every wanted time; a pair costs a third.
_PAIRS = 2
# Rounding errors of the last time within which gaps are one gap.
_ROUNDINGS = 8


class Cycles(eqx.Module):
    """How a schedule repeats. A cycle runs from one time of events to the next.

    Attributes:
        edge: (edge,) times of the events as given, in the order of the inputs.
        cycle: (edge,) the cycle that each starts; counted on behind the last one that is looked at.
        lead: (cycle,) an event at the start of each.
        dose: by input that takes doses, (dose,) the cycle that each starts.
        gap: (gap, 2) a wanted time and a cycle that it lies in, by place.
        length: (length, 2) a cycle and the next one.
        following: (cycle,) which of the lengths leads to the next cycle; of the last, any.
        early: (before,) wanted times before the first cycle, by place.
        slot: (n,) where a wanted time is found: among the early ones, then by cycle and gap.
        margin: between these all events may move together and each cycle hold the same wanted times.
        rounding: differences of times that are none.
    """

    edge: Any
    cycle: Any
    lead: Any
    dose: dict[str, Any]
    gap: Any
    length: Any
    following: Any
    early: Any
    slot: Any
    margin: Any
    rounding: Any


class Schedule(eqx.Module):
    """The cycles of a patient, or of many: patients are the last axis.

    Attributes:
        fits: whether the events are those that the cycles were made of, all moved alike.
        start: (cycle,) when each starts.
        before: the inputs before the first, by name.
        held: (cycle,) by input, what is constant in the cycle.
        amount: (cycle,) by input, the bolus that starts it.
    """

    fits: Any
    start: Any
    before: dict[str, Any]
    held: dict[str, Any]
    amount: dict[str, Any]


def cycles_of(inputs: Any, times: Any, after: Any, t0: Any) -> Cycles | None:
    """The cycles of a schedule that all patients share, None where it has none or it is not known yet.

    Args:
        inputs: as given, before `model.dosing`.
        times: (n,) wanted times, in any order.
        after: (n,), whether just after an event, or None.
        t0: start.
    """
    signals = _signals(inputs)
    known = not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((signals, times, after, t0)))
    if not (known and signals and np.ndim(times) == 1 and np.size(times) and np.ndim(t0) == 0):
        return None
    # As exact as the program is: else what it rounds to one time would be at two here.
    times = np.asarray(times, precision := jnp.result_type(float)).astype(float)
    with jax.ensure_compile_time_eval():
        edge = np.concatenate([np.asarray(signal.edges()) for signal in signals.values()])
    if not edge.size or np.min(edge) < t0:
        return None
    start, lead, begins = np.unique(edge, return_index=True, return_inverse=True)
    last = np.searchsorted(start, times, side="right")
    if after is None or not np.all(after):
        earlier = np.searchsorted(start, times)
        last = earlier if after is None else np.where(after, last, earlier)
    dose = {
        name: np.searchsorted(start, np.asarray(signal.time, precision))
        for name, signal in signals.items()
        if isinstance(signal, Doses)
    }
    gaps = _gaps(start, times, last - 1)
    return (
        None
        if gaps is None
        else Cycles(edge=edge, cycle=begins, lead=lead[: np.max(last)], dose=dose, **gaps)
    )


def _signals(inputs: Any) -> dict[str, Any]:
    return {name: signal for name, signal in vars(inputs).items() if isinstance(signal, AbstractSignal)}


def _gaps(start: Any, times: Any, cycle: Any) -> dict[str, Any] | None:
    """Gaps of wanted times that lie in cycles (-1 before the first), None if they are too many."""
    count, rounding = (
        np.max(cycle) + 1,
        _ROUNDINGS * jnp.finfo(jnp.result_type(float)).eps * np.max(np.abs(times)),
    )
    inside = cycle >= 0
    place, early = np.flatnonzero(inside), np.flatnonzero(~inside)
    since = times[place] - start[cycle[place]]
    which, first = _classes(since, rounding)
    following, length = _classes(np.diff(start[:count]), rounding)
    if count < 2 or count * len(first) > _PAIRS * len(times):
        return None
    slot = np.empty(len(times), int)
    slot[early] = np.arange(len(early))
    slot[place] = len(early) + cycle[place] * len(first) + which
    left = np.append(start, np.inf)[cycle + 1] - times
    return {
        "gap": np.stack([place[first], cycle[place[first]]], axis=-1),
        "length": np.stack([length, length + 1], axis=-1),
        "following": np.append(following, 0),
        "early": early,
        "slot": slot,
        "margin": np.array([-np.min(left), np.min(since)]),
        "rounding": np.asarray(rounding),
    }


def _classes(values: Any, rounding: float) -> tuple[Any, Any]:
    """Which class each value belongs to, and the place of the first value of every class."""
    order = np.argsort(values, kind="stable")
    new = np.diff(values[order], prepend=-np.inf) > rounding
    which = np.empty(len(values), int)
    which[order] = np.cumsum(new) - 1
    return which, np.unique(which, return_index=True)[1]


def schedule_of(cycles: Cycles, inputs: Any, times: Any, t0: Any) -> Schedule | None:
    """What the cycles are for one patient, whose inputs are as they act, after `model.dosing`.

    None where `dosing` made other signals, which have events of their own.
    """
    signals, count = _signals(inputs), len(cycles.lead)
    edge = jnp.concatenate([jnp.asarray(signal.edges()) for signal in signals.values()])
    if edge.shape != cycles.edge.shape:
        return None
    start = edge[cycles.lead]
    moved = edge[0] - cycles.edge[0]
    alike = jnp.abs(edge - cycles.edge - moved) <= cycles.rounding
    together = (edge == start[jnp.minimum(cycles.cycle, count - 1)]) | (cycles.cycle >= count)
    low, high = cycles.margin[0] + cycles.rounding, cycles.margin[1] - cycles.rounding
    same = (moved == 0) | ((low < moved) & (moved < high))
    fits = jnp.all(alike & together) & same & (start[0] >= t0)
    # Between two events: at one, either side would do.
    stop = jnp.append(start[1:], jnp.maximum(jnp.max(times), start[-1]))
    held = {name: jax.vmap(signal)((start + stop) / 2) for name, signal in signals.items()}
    before = {name: signal((t0 + start[0]) / 2) for name, signal in signals.items()}
    amount = {
        name: (place[None] == jnp.arange(count)[:, None]).astype(float) @ signals[name].impulses()[1]
        for name, place in cycles.dose.items()
    }
    return Schedule(fits, start, before, held, amount)


def solve_cycles(
    model: Any, p: Any, inputs: Any, schedule: Schedule, times: Any, t0: Any, cycles: Cycles
) -> Trajectory:
    """Trajectories of a cohort whose schedules repeat.

    Args:
        model: the Model, with a flow.
        p: parameters, every leaf with a leading (patient,) axis.
        inputs: inputs as they act, likewise.
        schedule: that of all patients.
        times: (n,) wanted times.
        t0: start.
        cycles: how they repeat.
    """
    starts, numbers = schedule.start, jax.vmap(inputs_at)
    gaps = times[cycles.gap[:, 0], None] - starts[cycles.gap[:, 1]]
    lengths = starts[cycles.length[:, 1]] - starts[cycles.length[:, 0]]
    # Of all patients after dt (gap, patient): they are the last axis, so that the inner loop is long.
    moved = jax.vmap(jax.vmap(model.flow), in_axes=(0, None, None, None))
    observed = jax.vmap(jax.vmap(model.observe), in_axes=(0, 0, None, None))

    def seen(since: Any, dt: Any, x: Any, u: Any) -> tuple[Any, Any]:
        """States and outputs at `dt` since a time (patient,)."""
        found = moved(dt, x, u, p)
        return found, observed(since[None] + dt, found, u, p)

    def cross(carry: tuple, row: tuple) -> tuple:
        x, u = carry
        start, held, amount, place = row
        x = jax.vmap(lambda *each: cross_event(model, *each))(start, x, u, amount, p)
        u = numbers(inputs, held, start)
        return (jax.tree.map(lambda leaf: leaf[place], moved(lengths, x, u, p)), u), seen(start, gaps, x, u)

    begin = jnp.broadcast_to(t0, starts[0].shape)
    x = jax.vmap(lambda p: jax.tree.map(lambda leaf: jnp.asarray(leaf, float), model.init(p)))(p)
    u = numbers(inputs, schedule.before, begin)
    before = seen(begin, times[cycles.early, None] - begin[None], x, u)
    rows = (starts, schedule.held, schedule.amount, cycles.following)
    _, found = jax.lax.scan(cross, (jax.vmap(model.flow)(starts[0] - begin, x, u, p), u), rows)

    def told(early: Any, late: Any) -> Any:
        """All wanted times (patient, n, ...); those before the start are not known."""
        count, late = len(cycles.early), late.reshape(-1, *late.shape[2:])
        if not count:
            return jnp.moveaxis(late[cycles.slot], 0, 1)

        def rows(mask: Any) -> Any:
            return mask.reshape(-1, *(1,) * (late.ndim - 1))

        # A barrier, or the early ones would be computed inside the look-up.
        early = jax.lax.optimization_barrier(jnp.where(rows(times[cycles.early] >= t0), early, jnp.nan))
        first, other = early[jnp.minimum(cycles.slot, count - 1)], late[jnp.maximum(cycles.slot - count, 0)]
        return jnp.moveaxis(jnp.where(rows(cycles.slot < count), first, other), 0, 1)

    state, output = jax.tree.map(told, before, found)

    def told_of(state: Any, output: Any) -> Trajectory:
        finite = [jnp.isfinite(leaf.reshape(len(times), -1)) for leaf in jax.tree.leaves(state)]
        solved = jnp.all(jnp.concatenate(finite, axis=1) | (times < t0)[:, None])
        outcome = jnp.where(solved, int(Outcome.SOLVED), int(Outcome.NOT_FINITE))
        return Trajectory(times, state, output, outcome, jnp.asarray(0))

    return jax.vmap(told_of)(state, output)
