"""Inputs over time: doses, covariates that are held, covariates that are sampled.

A signal is data that is also a function of time. Amounts are in the unit of the input times the unit of
time: an input in mg/h takes amounts in mg.
"""

import abc
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.rules import Rules, modelled, scaled
from dtwin_jax.core.types import Scalar, Vector


class AbstractSignal(eqx.Module):
    """A function of time given by data at times, sorted, in the model's unit of time."""

    time: eqx.AbstractVar[Vector]

    @abc.abstractmethod
    def __call__(self, t: Any) -> Any:
        """The value at time `t`."""

    @abc.abstractmethod
    def edges(self) -> Any:
        """Times at which the value jumps; between two edges that follow each other it does not."""


if TYPE_CHECKING:
    # A signal in a record, a number in a drift: the author's arithmetic is on numbers.
    Input: TypeAlias = Any
else:
    Input: TypeAlias = Scalar | AbstractSignal


def _floats(x: Any) -> Any:
    if isinstance(x, list | tuple | int | float | np.ndarray):
        return np.atleast_1d(np.asarray(x, dtype=float))
    return x


def _for_each(owner: str, name: str, x: Any, time: Any) -> Any:
    """`x` in the shape of `time`, of which it has one value each, or one for all."""
    if np.shape(x) == np.shape(time):
        return x
    if np.size(x) != 1:
        raise ValueError(f"{owner}: {name} has shape {np.shape(x)}, time has {np.shape(time)}")
    xp = np if isinstance(x, np.ndarray) else jnp
    return xp.broadcast_to(xp.reshape(x, ()), np.shape(time))


class Doses(AbstractSignal):
    """Amounts given at times, at once (duration 0) or at a constant rate over a duration.

    Its value is the rate of the infusions that run; boluses move the state when the solver reaches them.

    Attributes:
        time: start, in the model's unit of time, sorted.
        amount: in the input's unit times the unit of time; padding has amount 0.
        duration: 0 is a bolus.
        rules: resets, steady states and modelled rates, as an event table may have them; usually None.
    """

    time: Vector
    amount: Vector
    duration: Vector
    rules: Rules | None

    def __init__(self, time: Any, amount: Any, duration: Any = 0.0, *, rules: Rules | None = None):
        """Lists or arrays of one length; an amount or duration that all doses share may be one number."""
        self.time = _floats(time)
        self.amount = _for_each("Doses", "amount", _floats(amount), self.time)
        self.duration = _for_each("Doses", "duration", _floats(duration), self.time)
        self.rules = rules

    def __call__(self, t: Any) -> Any:
        """Rate of the infusions running at `t`; an infusion is on at its start and off at its end."""
        infused = ~(self.duration <= 0)
        rate = jnp.where(infused, self.amount / jnp.where(infused, self.duration, 1.0), 0.0)
        running = (self.time <= t) & ~(t >= self._stops())
        total = jnp.sum(jnp.where(running, rate, 0.0))
        if self.rules is None:
            return total
        start, stop, rate = self.rules.restarts.tails()
        return total + jnp.sum(jnp.where((start <= t) & ~(t >= stop), rate, 0.0))

    def edges(self) -> Any:
        """Starts and ends, and moments at which the state is set anew."""
        times = [self.time, self._stops()]
        if self.rules is not None:
            restarts = self.rules.restarts
            times += [restarts.time, restarts.tails()[1].reshape(-1)]
        return jnp.concatenate([jnp.asarray(each) for each in times])

    def impulses(self) -> tuple[Any, Any]:
        """Times and amounts of the boluses (amount 0 for an infusion)."""
        amount = jnp.where(self.duration > 0, 0.0, self.amount)
        if self.rules is not None:
            amount = jnp.where(self.time < self.rules.until, amount, 0.0)
        return self.time, amount

    def plain(self, who: str) -> tuple[Any, Any, Any]:
        """Times, amounts and durations, for one who knows no rules: a stated rate counts as its duration.

        Raises:
            ValueError: there are resets, steady states, or durations that are left to the model.
        """
        if self.rules is not None and self.rules.set_anew:
            raise ValueError(f"{who} does not know resets and steady states, which these doses bring")
        if isinstance(self.duration, np.ndarray) and np.isnan(self.duration).any():
            raise ValueError(f"{who} does not know rates and durations that a table leaves to the model")
        return self.time, self.amount, self.duration

    def _stops(self) -> Any:
        """Ends of infusions."""
        stop = self.time + self.duration
        return stop if self.rules is None else jnp.clip(stop, None, jnp.maximum(self.rules.until, self.time))


def _check_shapes(signal: Any) -> None:
    time, value = np.shape(signal.time), np.shape(signal.value)
    if time != value or 0 in time:
        kind = type(signal).__name__
        raise ValueError(f"{kind}: value has shape {value}, time has {time}; wanted equal and not empty")


class Steps(AbstractSignal):
    """A value that is held from each time to the next; before the first time, the first value.

    Attributes:
        time: sorted; padding repeats the last time and value.
        value: in the input's unit.
    """

    time: Vector = eqx.field(converter=_floats)
    value: Vector = eqx.field(converter=_floats)

    def __check_init__(self):
        _check_shapes(self)

    def __call__(self, t: Any) -> Any:
        """The value of the last time at or before `t`."""
        index = jnp.sum(jnp.asarray(self.time) <= t) - 1
        return jnp.asarray(self.value)[jnp.clip(index, 0)]

    def edges(self) -> Any:
        """Every time."""
        return jnp.asarray(self.time)


class Sampled(AbstractSignal):
    """Straight lines between samples; held before the first and after the last.

    Attributes:
        time: sorted; padding repeats the last time and value.
        value: in the input's unit.
    """

    time: Vector = eqx.field(converter=_floats)
    value: Vector = eqx.field(converter=_floats)

    def __check_init__(self):
        _check_shapes(self)

    def __call__(self, t: Any) -> Any:
        """Linear interpolation at `t`."""
        time, value = jnp.asarray(self.time), jnp.asarray(self.value)
        if time.shape[0] == 1:
            return value[0]
        left = jnp.clip(jnp.sum(time <= t) - 1, 0, time.shape[0] - 2)
        width = time[left + 1] - time[left]
        share = (t - time[left]) / jnp.where(width > 0, width, 1.0)
        share = jnp.clip(jnp.where(width > 0, share, 1.0), 0.0, 1.0)
        return value[left] + share * (value[left + 1] - value[left])

    def edges(self) -> Any:
        """None: the signal is continuous."""
        return jnp.zeros((0,))


# By the names that results and plans keep.
SIGNALS: dict[str, Any] = {"Doses": Doses, "Steps": Steps, "Sampled": Sampled}


def delay(signal: Any, lag: Any) -> Any:
    """`signal` moved `lag` later; a constant is unchanged. Differentiable in `lag`.

    A moment at which the state is set anew is not moved: the body is in the steady state of doses that have
    always arrived so late. Where the lag is longer than the interval between them, the state is followed
    backwards from the last dose, as NONMEM does, and may be far off until the dose arrives.
    """
    if not isinstance(signal, AbstractSignal):
        return signal
    moved = eqx.tree_at(lambda s: s.time, signal, signal.time + lag)
    if _rules(moved) is None:
        return moved
    return eqx.tree_at(lambda s: s.rules.restarts.lag, moved, moved.rules.restarts.lag + lag)


def scale(signal: Any, factor: Any) -> Any:
    """`signal` times `factor` (bioavailability).

    An infusion keeps its duration, or, where a table stated its rate, that rate.
    """
    if isinstance(signal, Doses):
        more = eqx.tree_at(lambda s: s.amount, signal, signal.amount * factor)
        return _with_durations(more, lambda held, _, duration: scaled(held, duration, factor), factor)
    if isinstance(signal, Steps | Sampled):
        return eqx.tree_at(lambda s: s.value, signal, signal.value * factor)
    return signal * factor


def infuse(signal: Any, duration: Any) -> Any:
    """`signal` with every dose given over `duration`; anything but doses is unchanged."""
    if not isinstance(signal, Doses):
        return signal
    doses = eqx.tree_at(lambda s: s.duration, signal, jnp.broadcast_to(duration, signal.time.shape))
    return _with_durations(doses, lambda held, amount, _: jnp.broadcast_to(duration, jnp.shape(amount)))


def as_modelled(signal: Any, *, duration: Any = None, rate: Any = None) -> Any:
    """`signal` with what an event table leaves to the model: `rate` (RATE -1) and `duration` (RATE -2)."""
    if not isinstance(signal, Doses):
        return signal

    def stated(held: Any, amount: Any, before: Any) -> Any:
        return modelled(held, amount, before, over=duration, rate=rate)

    return _with_durations(signal, stated)


def _rules(signal: Any) -> Rules | None:
    return getattr(signal, "rules", None)


def _with_durations(doses: Doses, change: Any, factor: Any = 1.0) -> Doses:
    """Doses with durations `change(held, amount, duration)`, also those of steady states."""
    rules = doses.rules
    if rules is None:
        return doses
    again = rules.restarts
    amount = again.amount * factor
    return eqx.tree_at(
        lambda s: (s.duration, s.rules.restarts.amount, s.rules.restarts.duration),
        doses,
        (
            change(rules.held, doses.amount, doses.duration),
            amount,
            change(again.held, amount, again.duration),
        ),
    )
