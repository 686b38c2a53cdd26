"""Inputs over time: doses, covariates that are held, covariates that are sampled.

A signal is data that is also a function of time. Amounts are in the unit of the input times the unit of
time: an input in mg/h takes amounts in mg.
"""

import abc
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax
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
        given: when each was given, where `delay` lets it arrive later; None where it arrives at once.
    """

    time: Vector
    amount: Vector
    duration: Vector
    rules: Rules | None
    given: Vector | None

    def __init__(
        self,
        time: Any,
        amount: Any,
        duration: Any = 0.0,
        *,
        rules: Rules | None = None,
        given: Any = None,
    ):
        """Lists or arrays of one length; an amount or duration that all doses share may be one number."""
        self.time = _floats(time)
        self.amount = _for_each("Doses", "amount", _floats(amount), self.time)
        self.duration = _for_each("Doses", "duration", _floats(duration), self.time)
        self.rules = rules
        self.given = None if given is None else _for_each("Doses", "given", _floats(given), self.time)

    def __call__(self, t: Any) -> Any:
        """Rate of the infusions running at `t`; an infusion is on at its start and off at its end."""
        return self.running(self.edges() <= t)

    def running(self, past: Any) -> Any:
        """Rate of the infusions that run where of its edges these are `past`."""
        count = self.time.shape[0]
        infused = ~(self.duration <= 0)
        rate = jnp.where(infused, self.amount / jnp.where(infused, self.duration, 1.0), 0.0)
        total = jnp.sum(jnp.where(past[:count] & ~past[count : 2 * count], rate, 0.0))
        if self.rules is None:
            return total
        *_, rate = self.rules.restarts.tails()
        begun, over = jnp.split(past[2 * count :], [rate.shape[1]])
        return total + jnp.sum(jnp.where(begun[None] & ~over.reshape(rate.shape), rate, 0.0))

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


def value_at(signal: Any, t: Any) -> Any:
    """The value at `t` of an input, which is a signal or a number."""
    return signal(t) if isinstance(signal, AbstractSignal) else signal


# What a model's `dosing` is made of. Lags, factors, durations and rates are each a number, or a function of
# the time at which a dose is given, such as `lambda t: p.F * value_at(u.fed, t)`, or a signal. An additional
# dose has a time of its own; the doses of a steady state have that at which it is stated.


def delay(signal: Any, lag: Any) -> Any:
    """`signal` moved `lag` later; a constant is unchanged. Differentiable in `lag`.

    A moment at which the state is set anew is not moved: the body is in the steady state of doses that have
    always arrived so late. Where the lag is longer than the interval between them, the state is followed
    backwards from the last dose, as NONMEM does, and may be far off until the dose arrives.
    """
    if not isinstance(signal, AbstractSignal):
        return signal
    if not isinstance(signal, Doses):
        return eqx.tree_at(lambda s: s.time, signal, signal.time + _number("delay", signal, lag))
    when = _given(signal)
    moved = eqx.tree_at(
        lambda s: (s.time, s.given), signal, (signal.time + _at(lag, when), when), is_leaf=lambda x: x is None
    )
    if moved.rules is None:
        return moved
    again = moved.rules.restarts
    return eqx.tree_at(lambda s: s.rules.restarts.lag, moved, again.lag + _at(lag, again.time))


def scale(signal: Any, factor: Any) -> Any:
    """`signal` times `factor` (bioavailability).

    An infusion keeps its duration, or, where a table stated its rate, that rate. A constant was given at no
    time: under a factor that is a function, what is not 0 becomes NaN.
    """

    def changed(when: Any, held: Any, amount: Any, duration: Any) -> tuple[Any, Any]:
        share = _at(factor, when)
        return amount * share, duration if held is None else scaled(held, duration, share)

    if isinstance(signal, Doses):
        return _changed(signal, changed)
    if isinstance(signal, Steps | Sampled):
        return eqx.tree_at(lambda s: s.value, signal, signal.value * _number("scale", signal, factor))
    return jnp.where(signal == 0, signal, jnp.nan) if callable(factor) else signal * factor


def infuse(signal: Any, duration: Any) -> Any:
    """`signal` with every dose given over `duration`; anything but doses is unchanged."""

    def spread(when: Any, held: Any, amount: Any, before: Any) -> tuple[Any, Any]:
        return amount, jnp.broadcast_to(_at(duration, when), jnp.shape(when))

    return _changed(signal, spread) if isinstance(signal, Doses) else signal


def as_modelled(signal: Any, *, duration: Any = None, rate: Any = None) -> Any:
    """`signal` with what an event table leaves to the model: `rate` (RATE -1) and `duration` (RATE -2)."""

    def stated(when: Any, held: Any, amount: Any, before: Any) -> tuple[Any, Any]:
        return amount, modelled(held, amount, before, over=_at(duration, when), rate=_at(rate, when))

    return _changed(signal, stated) if getattr(signal, "rules", None) is not None else signal


def _given(doses: Doses) -> Any:
    """When doses were given."""
    return doses.time if doses.given is None else doses.given


def _at(value: Any, times: Any) -> Any:
    """`value`, of a function what it is at each of `times`."""
    return jnp.asarray(jax.vmap(value)(jnp.asarray(times, float)), float) if callable(value) else value


def _number(verb: str, signal: Any, value: Any) -> Any:
    if callable(value):
        kind = type(signal).__name__
        raise ValueError(f"{verb}: a function of the time of a dose is for Doses, and these are {kind}")
    return value


def _changed(doses: Doses, change: Any) -> Doses:
    """Doses of amounts and durations `change(when, held, amount, duration)`, also those of steady states.

    `when` they were given; `held` as in `Rules`, None where there are none.
    """
    rules = doses.rules
    held = None if rules is None else rules.held
    own = change(_given(doses), held, doses.amount, doses.duration)
    changed = eqx.tree_at(lambda s: (s.amount, s.duration), doses, own)
    if rules is None:
        return changed
    again = rules.restarts
    return eqx.tree_at(
        lambda s: (s.rules.restarts.amount, s.rules.restarts.duration),
        changed,
        change(again.time, again.held, again.amount, again.duration),
    )
