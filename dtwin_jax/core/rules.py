"""What doses obey beyond amounts and times: resets, steady states, rates that are stated or modelled.

These are the rules of event tables as NONMEM has them (EVID 3 and 4, SS, II, RATE -1 and -2).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.types import Codes, Vector

# What is held when the amount of a dose changes with bioavailability, or what the model is to say of it.
DURATION, RATE, MODELLED_RATE, MODELLED_DURATION = 0, 1, -1, -2
# What becomes of the state at a restart; padding does nothing.
NOTHING, RESET, STEADY, ADDED = 0, 1, 2, 3


class Restarts(eqx.Module):
    """Moments at which the state is set anew.

    A steady state is that of doses of one amount at equal intervals that have always been given. With an
    interval of 0 it is that of an infusion at a constant rate, which ends at this moment. What is left of
    infusions that began before it runs on.

    Attributes:
        time: of the moment: with a lag, before the dose arrives.
        kind: `RESET` (to the initial state), `STEADY` (to the steady state) or `ADDED` (that is added).
        amount: of a dose of the steady state.
        duration: of its infusion; 0 is a bolus.
        held: as in `Rules`.
        interval: between doses of the steady state; 0 for a constant rate.
        lag: between the moment and the dose that belongs to it.
        until: when the next restart ends what runs on.
        overlap: how many infusions before the last can still run: at least the longest duration by its
            interval. Infusions that are longer make the state NaN.
    """

    time: Vector
    kind: Codes
    amount: Vector
    duration: Vector
    held: Codes
    interval: Vector
    lag: Vector
    until: Vector
    overlap: int = eqx.field(static=True, default=1)

    def tails(self) -> tuple[Any, Any, Any]:
        """Infusions that run on: starts, ends and rates, (overlap, restart)."""
        steady = (self.kind >= STEADY) & (self.interval > 0) & (self.duration > 0)
        rate = jnp.where(steady, self.amount / jnp.where(steady, self.duration, 1.0), 0.0)
        rate = jnp.where(steady & (self.overlap * self.interval < self.duration), jnp.nan, rate)

        def earlier(count: Any) -> tuple[Any, Any, Any]:
            back = count * self.interval
            runs = steady & (back - self.interval < self.duration)
            left = jnp.where(runs, self.lag + self.duration - back, 0.0)
            stop = jnp.clip(self.time + left, self.time, jnp.maximum(self.until, self.time))
            return self.time, stop, jnp.where(runs, rate, 0.0)

        return jax.vmap(earlier)(jnp.arange(1.0, self.overlap + 1.0))


class Rules(eqx.Module):
    """What doses obey beyond amounts and times.

    Attributes:
        held: (dose,) `DURATION`: bioavailability changes the rate of an infusion; `RATE`: its duration;
            `MODELLED_RATE`, `MODELLED_DURATION`: as stated by the model, whose `dosing` calls `as_modelled`.
            Until it does, the duration of such a dose is NaN, and so is the state.
        until: (dose,) what has not entered the body by then never does; infinite where nothing ends it.
        restarts: resets and steady states.
    """

    held: Codes
    until: Vector
    restarts: Restarts

    @property
    def set_anew(self) -> bool:
        """Whether there are restarts; also of a cohort's rules."""
        return np.shape(self.restarts.time)[-1] > 0


def no_restarts(count: int = 0) -> Restarts:
    """Padding."""
    zero, none = np.zeros(count), np.zeros(count, int)
    return Restarts(zero, none, zero, zero, none, zero, zero, np.full(count, np.inf), overlap=1)


def no_rules(count: int) -> Rules:
    """The rules of `count` doses that have none."""
    return Rules(np.zeros(count, int), np.full(count, np.inf), no_restarts())


def padded(rules: Rules, doses: int, restarts: int, overlap: int) -> Rules:
    """Rules of so many doses and restarts."""
    more = Rules(
        np.zeros(doses - len(rules.held), int),
        np.full(doses - len(rules.held), np.inf),
        no_restarts(restarts - len(rules.restarts.time)),
    )
    both = zip(_leaves(rules), _leaves(more), strict=True)
    held, until, *rows = (np.concatenate([np.asarray(one), other]) for one, other in both)
    return Rules(held, until, Restarts(*rows, overlap=overlap))


def resets_of(rules: Rules) -> Restarts:
    """The restarts of `rules`, of which only resets are left; also of a cohort's."""
    again = rules.restarts
    kind = np.where(np.asarray(again.kind) == RESET, RESET, NOTHING)
    bare = ("amount", "duration", "held", "interval", "lag")
    return replace_fields(
        again, {"kind": kind} | {name: np.zeros_like(getattr(again, name)) for name in bare}
    )


def columns(rules: Rules) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays of doses and of restarts by name, as they are kept in a file."""
    of_doses = {"held": rules.held, "until": rules.until}
    return of_doses, {name: x for name, x in vars(rules.restarts).items() if name != "overlap"}


def from_columns(doses: dict[str, Any], restarts: dict[str, Any], overlap: int) -> Rules:
    """What `columns` took apart; with a patient axis, of a cohort."""
    like = padded(no_rules(0), 0, 0, overlap)
    names = columns(like)
    parts = [part[name] for part, those in zip((doses, restarts), names, strict=True) for name in those]
    return jax.tree.unflatten(jax.tree.structure(like), parts)


def _leaves(rules: Rules) -> list[Any]:
    of_doses, of_restarts = columns(rules)
    return [*of_doses.values(), *of_restarts.values()]


def scaled(held: Any, duration: Any, factor: Any) -> Any:
    """Durations when amounts are multiplied by `factor`: where the rate is held, they follow."""
    follows = ((held == RATE) | (held == MODELLED_RATE)) & jnp.isfinite(duration)
    return duration * jnp.where(follows, factor, 1.0)


def modelled(held: Any, amount: Any, duration: Any, *, over: Any = None, rate: Any = None) -> Any:
    """Durations with those that the model states put in."""
    if over is not None:
        duration = jnp.where(held == MODELLED_DURATION, over, duration)
    if rate is not None:
        duration = jnp.where(held == MODELLED_RATE, amount / rate, duration)
    return duration
