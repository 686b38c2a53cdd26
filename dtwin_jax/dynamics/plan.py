"""What happens to a patient when, as tables that a loop over many patients can look up."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.signal import AbstractSignal, Sampled
from dtwin_jax.dynamics.dosing import corners, cut, in_order


class Plan(eqx.Module):
    """Pieces between events and corners, in which every input is a straight line, and wanted times.

    Attributes:
        start: time of the initial state.
        stop: (piece,) end of each piece.
        base: inputs by name, (piece,), at the start of the piece.
        slope: inputs that are sampled by name, (piece,), their slope in it.
        amount: boluses by name, (piece,), given at its end.
        time: (n,) wanted times in order; those just after an event are a rounding later.
        back: (n,) where each time that was asked for is among them.
    """

    start: Any
    stop: Any
    base: dict[str, Any]
    slope: dict[str, Any]
    amount: dict[str, Any]
    time: Any
    back: Any


def planned(inputs: Any, times: Any, after: Any, t0: Any) -> Plan:
    """The plan of one patient from `t0` to the last of `times`, which is one at least."""
    # Next to 0 is a number that a processor may take for 0.
    later = jnp.maximum(jnp.nextafter(times, jnp.inf), times + jnp.finfo(times.dtype).tiny)
    times = jnp.where(after, later, times)
    pieces = cut(inputs, t0, jnp.maximum(jnp.max(times), t0), stops=corners(inputs))
    begin, end = pieces.bounds[:-1], pieces.bounds[1:]
    base, slope = dict(pieces.held), {}
    for name, signal in vars(inputs).items():
        if isinstance(signal, Sampled):
            base[name], last = jax.vmap(signal)(begin), jax.vmap(signal)(end)
            wide = end > begin
            slope[name] = jnp.where(wide, (last - base[name]) / jnp.where(wide, end - begin, 1.0), 0.0)
        elif not isinstance(signal, AbstractSignal):
            base[name] = jnp.broadcast_to(jnp.asarray(signal, float), begin.shape)
    order, place = in_order(times)
    return Plan(jnp.asarray(t0, float), end, base, slope, pieces.amount, times[order], place)


def inputs_of(inputs: Any, plan: Plan, time: Any) -> Any:
    """The inputs of one patient as numbers at wanted times `time` (n,) of the plan, in order."""
    piece = jnp.minimum(jnp.searchsorted(plan.stop, time), plan.stop.shape[0] - 1)
    begin = jnp.where(piece > 0, plan.stop[piece - 1], plan.start)
    base, slope = jax.tree.map(lambda table: table[piece], (plan.base, plan.slope))
    return replace_fields(inputs, lines(base, slope, time - begin))


def lines(base: dict[str, Any], slope: dict[str, Any], since: Any) -> dict[str, Any]:
    """Inputs by name, `since` after the start of a piece in which they have this base and slope."""
    return base | {name: base[name] + each * since for name, each in slope.items()}
