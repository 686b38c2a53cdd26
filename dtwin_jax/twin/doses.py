"""Doses in a closed loop: what decides them, a simple rule for it, and the book of those under way.

A rule is pure, `rule(now, ahead, history) -> {input: amount until the next decision}`, for one patient; the
loop maps it over all of them. Arrays of a rule that have any axis have a leading one of patients, of which
each sees a row.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.signal import Doses


class Foreseen(eqx.Module):
    """What is expected if nothing but what is decided already, and the standing rates, is given.

    Attributes:
        time: (lead,) of the forecast; `now` alone where there is no twin.
        draws: channel -> (draw, lead), with the error of measurement; without a twin the last measurement.
    """

    time: Any
    draws: dict[str, Any]


class History(eqx.Module):
    """What was measured and given; arrays are of one length from the first step to the last.

    Attributes:
        time: (step,) of measurements and decisions.
        measured: channel -> (step,), NaN where not yet measured, or lost.
        decided: input -> (step,) amount given from each step to the next, NaN where not yet decided.
        planned: input -> doses through the controlled inputs that were planned; 0 those still unknown.
        standing: input -> rate at which it is given where nothing else is decided.
        every: time from step to step.
    """

    time: Any
    measured: dict[str, Any]
    decided: dict[str, Any]
    planned: dict[str, Doses]
    standing: dict[str, Any]
    every: Any


class ToTarget(eqx.Module):
    """Correction towards a target, and suspension where a low is likely: a first rule, not a controller.

    With m the median of the last forecast and B what is on board then, beyond the standing rate,

        amount = standing + share * (gain * (m - target) - B),  between standing and standing + most
        amount = 0  where at some time ahead more than `risk` of the draws are below `low`

    Of a dose, the share on board falls on a straight line over `action`. Where the forecast is the last
    measurement, m is that and B is on board now.

    Attributes:
        channel: what is controlled.
        input: what is given.
        target: of the channel, in its unit.
        gain: amount that lowers the channel by one of its units.
        low: a value not to fall below.
        risk: probability of that above which nothing is given.
        action: time in which a dose has acted.
        share: of a correction, given in one step.
        most: correction in one step, at most.
    """

    channel: str = eqx.field(static=True)
    input: str = eqx.field(static=True)
    target: Any
    gain: Any
    low: Any
    action: Any
    most: Any
    risk: Any = 0.1
    share: Any = 0.5

    def __call__(self, now: Any, ahead: Foreseen, history: History) -> dict[str, Any]:
        """The amount until the next step; NaN where no draw of the forecast is a number."""
        draws = ahead.draws[self.channel]
        middle = jnp.nanmedian(draws[:, -1])
        there = jnp.isfinite(draws)
        below = jnp.sum(there & (draws < self.low), axis=0) / jnp.maximum(jnp.sum(there, axis=0), 1)
        wanted = self.gain * (middle - self.target) - self.on_board(ahead.time[-1], history)
        standing = history.standing[self.input] * history.every
        amount = standing + jnp.clip(self.share * wanted, 0.0, self.most)
        return {self.input: jnp.where(jnp.any(below > self.risk), 0.0, amount)}

    def on_board(self, when: Any, history: History) -> Any:
        """What is left at `when` of all given until now beyond the standing rate; not below 0."""
        decided = history.decided[self.input]
        excess = jnp.where(jnp.isfinite(decided), decided - history.standing[self.input] * history.every, 0.0)
        total = jnp.sum(excess * self._left(when - history.time - history.every / 2.0))
        if self.input in history.planned:
            doses = history.planned[self.input]
            total = total + jnp.sum(doses.amount * self._left(when - doses.time - doses.duration / 2.0))
        return jnp.maximum(total, 0.0)

    def _left(self, age: Any) -> Any:
        return jnp.clip(1.0 - age / self.action, 0.0, 1.0)


def to_target(
    channel: str,
    input: str,
    *,
    target: Any,
    gain: Any,
    low: Any,
    action: Any,
    most: Any,
    **other: Any,
) -> ToTarget:
    """`ToTarget` with its numbers as arrays: a number for all patients, or (patient,) one for each.

    Args:
        channel: what is controlled.
        input: what is given.
        target: of the channel, in its unit.
        gain: amount that lowers the channel by one of its units: of insulin, 1 over the correction factor.
        low: a value not to fall below.
        action: time in which a dose has acted.
        most: correction in one step, at most.
        other: `risk` and `share`.
    """
    numbers = {"target": target, "gain": gain, "low": low, "action": action, "most": most, **other}
    return ToTarget(channel, input, **{name: jnp.asarray(value, float) for name, value in numbers.items()})


class Book:
    """Doses of all patients, planned and decided, of which those under way are held in rooms of fixed size.

    Attributes:
        rest: the inputs, of which doses are replaced.
        own: controlled input -> its name here, and what an amount is multiplied by.
        rows: input -> time, amount and duration (patient, dose); decided ones lie behind those planned.
        over: input -> (patient, dose), wholly in the state.
        planned: input -> how many are planned.
        room: input -> how many can be under way.
    """

    def __init__(self, inputs: Any, patients: int, steps: int, own: Mapping[str, tuple[str, float]]):
        self.rest, self.own = inputs, dict(own)
        self.rows, self.over, self.planned, self.room = {}, {}, {}, {}
        controlled = {name for name, _ in own.values()}
        for name, signal in vars(inputs).items():
            if not (isinstance(signal, Doses) or name in controlled):
                continue
            doses = signal if isinstance(signal, Doses) else Doses(*np.zeros((3, patients, 0)))
            more = np.zeros((patients, steps if name in controlled else 0))
            columns = doses.plain("a controller")
            self.rows[name] = [np.concatenate([np.asarray(column), more], axis=1) for column in columns]
            self.over[name] = np.zeros(self.rows[name][0].shape, bool)
            self.planned[name] = np.shape(doses.time)[1]
            self.room[name] = min(1, self.planned[name]) + (name in controlled)

    def decide(self, k: int, now: float, every: float, amounts: Mapping[str, np.ndarray]) -> None:
        """Amounts that are given from step `k` on."""
        for name, amount in amounts.items():
            here, factor = self.own[name]
            for column, value in zip(self.rows[here], (now, factor * amount, every), strict=True):
                column[:, self.planned[here] + k] = value

    def slots(self, name: str, now: float) -> tuple[np.ndarray, np.ndarray]:
        """(patient, room) numbers of the doses under way at `now`, by time; and which of them are there."""
        time, amount, _ = self.rows[name]
        waiting = (time <= now) & (amount != 0) & ~self.over[name]
        while self.room[name] < waiting.sum(axis=1).max():
            self.room[name] *= 2
        order = np.argsort(np.where(waiting, time, np.inf), axis=1, kind="stable")[:, : self.room[name]]
        return order, np.take_along_axis(waiting, order, axis=1)

    def inputs(self, now: float, future: Mapping[str, np.ndarray] | None = None, long: float = 0.0) -> Any:
        """The inputs with what is under way, and with controlled ones at `future` rates for `long`."""
        made = {}
        for name in self.rows:
            order, there = self.slots(name, now)
            fills = zip(self.rows[name], (now, 0.0, 0.0), strict=True)
            parts = [np.where(there, np.take_along_axis(row, order, axis=1), fill) for row, fill in fills]
            made[name] = parts
        for name, rate in (future or {}).items():
            here, factor = self.own[name]
            more = (np.full(rate.shape, now), factor * rate * long, np.full(rate.shape, long))
            pairs = zip(made[here], more, strict=True)
            made[here] = [np.concatenate([part, new[:, None]], axis=1) for part, new in pairs]
        doses = {name: Doses(*(jnp.asarray(part) for part in parts)) for name, parts in made.items()}
        return replace_fields(self.rest, doses)

    def forget(self, now: float, over: Mapping[str, Any]) -> None:
        """Mark what is over of the doses that `inputs(now)` holds."""
        for name in self.rows:
            order, there = self.slots(name, now)
            patient, slot = np.nonzero(there & np.asarray(over[name]))
            self.over[name][patient, order[patient, slot]] = True
