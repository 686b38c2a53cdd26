"""Inputs over time: doses, covariates that are held, covariates that are sampled.

A signal is data that is also a function of time. Amounts are in the unit of the input times the unit of
time: an input in mg/h takes amounts in mg.
"""

import abc
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np

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
    """

    time: Vector
    amount: Vector
    duration: Vector

    def __init__(self, time: Any, amount: Any, duration: Any = 0.0):
        """Lists or arrays of one length; an amount or duration that all doses share may be one number."""
        self.time = _floats(time)
        self.amount = _for_each("Doses", "amount", _floats(amount), self.time)
        self.duration = _for_each("Doses", "duration", _floats(duration), self.time)

    def __call__(self, t: Any) -> Any:
        """Rate of the infusions running at `t`; an infusion is on at its start and off at its end."""
        infused = self.duration > 0
        rate = jnp.where(infused, self.amount / jnp.where(infused, self.duration, 1.0), 0.0)
        running = (self.time <= t) & (t < self.time + self.duration)
        return jnp.sum(jnp.where(running, rate, 0.0))

    def edges(self) -> Any:
        """Starts and ends."""
        return jnp.concatenate([self.time, self.time + self.duration])

    def impulses(self) -> tuple[Any, Any]:
        """Times and amounts of the boluses (amount 0 for an infusion)."""
        return self.time, jnp.where(self.duration > 0, 0.0, self.amount)


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


def delay(signal: Any, lag: Any) -> Any:
    """`signal` moved `lag` later; a constant is unchanged. Differentiable in `lag`."""
    if not isinstance(signal, AbstractSignal):
        return signal
    return eqx.tree_at(lambda s: s.time, signal, signal.time + lag)


def scale(signal: Any, factor: Any) -> Any:
    """`signal` times `factor` (bioavailability)."""
    if isinstance(signal, Doses):
        return eqx.tree_at(lambda s: s.amount, signal, signal.amount * factor)
    if isinstance(signal, Steps | Sampled):
        return eqx.tree_at(lambda s: s.value, signal, signal.value * factor)
    return signal * factor


def infuse(signal: Any, duration: Any) -> Any:
    """`signal` with every dose given over `duration`; anything but doses is unchanged."""
    if not isinstance(signal, Doses):
        return signal
    return eqx.tree_at(lambda s: s.duration, signal, jnp.broadcast_to(duration, signal.time.shape))
