"""Events: the times at which inputs jump, and what a bolus does to the state.

A solve is split at every event, so inside a piece the right-hand side is smooth, and the gradient with
respect to a dose's time (lag, duration of an infusion) is that of the limits of integration: exact.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.signal import AbstractSignal, Doses, Sampled
from dtwin_jax.core.types import AnyArray, Scalar

# Up to so many numbers are put in order by counting, so many at a time.
_COUNTED, _PART = 256, 16


class Pieces(eqx.Module):
    """A solve cut at its events; piece `k` runs from `bounds[k]` to `bounds[k + 1]`.

    Attributes:
        event: (events,) sorted event times.
        bounds: (events + 2,) start, events, end; events outside are moved to the nearer limit.
        held: (events + 1,) inputs by piece, every signal that is constant there replaced by its value.
        amount: (events + 1,) inputs by piece, the bolus amount given at the end of the piece.
        restart: (events + 1,) whether the state is cleared at the end of the piece, before boluses, and what
            is added to it; None where nothing of the kind happens.
    """

    event: Float[AnyArray, " events"]
    bounds: Float[AnyArray, " bounds"]
    held: Any
    amount: Any
    restart: Any = None


def in_order(x: Any) -> tuple[Any, Any]:
    """Which of `x` (n,) is at each place when sorted, equal ones as they come; and the place of each.

    By counting, part by part: under `vmap` a processor counts ten times faster than it sorts.
    """
    # Worked out once: anew here and there, a compiler may round it differently, and two get the same place.
    x = jax.lax.optimization_barrier(x)
    (n,) = x.shape
    if n > _COUNTED:
        order = jnp.argsort(x)
        return order, jnp.argsort(order)
    index, place = jnp.arange(n), jnp.zeros(n, int)
    for start in range(0, n, _PART):
        other, j = x[start : start + _PART], index[start : start + _PART]
        first = (other[None] < x[:, None]) | ((other[None] == x[:, None]) & (j[None] < index[:, None]))
        place = place + jnp.sum(first, axis=1)
    return jnp.zeros(n, int).at[place].set(index), place


def has_samples(inputs: Any) -> bool:
    """Whether an input varies inside a piece."""
    return any(isinstance(signal, Sampled) for signal in vars(inputs).values())


def known_to(who: str, inputs: Any) -> None:
    """Raise where doses bring rules that are not known to `who`.

    Raises:
        ValueError: there are resets or steady states.
    """
    for signal in vars(inputs).values():
        if isinstance(signal, Doses):
            signal.plain(who)


def corners(inputs: Any) -> Any:
    """Sorted times at which an input turns inside a piece, None where none does."""
    times = [jnp.asarray(signal.time) for signal in vars(inputs).values() if isinstance(signal, Sampled)]
    if not times:
        return None
    turns = jax.lax.stop_gradient(jnp.concatenate(times))
    # Those of one signal are sorted as they are.
    return turns if len(times) == 1 else turns[in_order(turns)[0]]


def cut(inputs: Any, t0: Any, t1: Any, stops: Any = None) -> Pieces:
    """The pieces of a solve from `t0` to `t1`.

    Args:
        inputs: the model's inputs: numbers and signals.
        t0: start.
        t1: end.
        stops: further times at which to cut.
    """
    # Worked out once, for the same reason: which times are equal decides when a bolus is given.
    inputs = jax.lax.optimization_barrier(inputs)
    signals = {name: s for name, s in vars(inputs).items() if isinstance(s, AbstractSignal)}
    edges = [jnp.asarray(signal.edges()) for signal in signals.values()]
    times = jnp.concatenate([*edges, *([] if stops is None else [stops]), jnp.zeros((0,))])
    times = jax.lax.optimization_barrier(times)
    order, place = in_order(times)
    event = times[order]
    inner = jnp.clip(event, t0, t1)
    bounds = jnp.concatenate([jnp.asarray(t0)[None], inner, jnp.asarray(t1)[None]])
    # What is before a piece, told by order: of one moment too, where an infusion ends as another starts and
    # the piece between has no length, but moves with its limits.
    past = (place[None] < jnp.arange(event.shape[0] + 1)[:, None]) & ~jnp.isnan(times)[None]
    held, first = {}, 0
    for (name, signal), own in zip(signals.items(), edges, strict=True):
        mine = past[:, first : first + own.shape[0]]
        first += own.shape[0]
        if isinstance(signal, Doses):
            held[name] = jax.vmap(signal.running)(mine)
        elif not isinstance(signal, Sampled):
            held[name] = jax.vmap(signal)((bounds[:-1] + bounds[1:]) / 2)
    return Pieces(event, bounds, held, _amounts(signals, event))


def _amounts(signals: dict[str, Any], event: Any) -> dict[str, Any]:
    amounts = {}
    for name, signal in signals.items():
        if not isinstance(signal, Doses):
            continue
        time, amount = signal.impulses()
        # Several doses can share a time: all are given at the first event of that time.
        first = jnp.searchsorted(event, time)
        given = jnp.zeros(event.shape[0] + 1, amount.dtype).at[first].add(amount)
        amounts[name] = given
    return amounts


def inputs_at(inputs: Any, held: dict[str, Any], t: Any) -> Any:
    """The model's inputs as plain numbers at time `t` of a piece."""
    samples = {name: s(t) for name, s in vars(inputs).items() if isinstance(s, Sampled)}
    return replace_fields(inputs, {**held, **samples})


def piece_of(event: Any, time: Any, after: Any) -> Any:
    """The piece that a measurement belongs to: at the time of an event, before it unless `after`."""
    passed = (event[None, :] < time[:, None]) | ((event[None, :] == time[:, None]) & after[:, None])
    return jnp.sum(passed, axis=1)


def cross_event(model: Any, t: Scalar, x: Any, u: Any, amount: dict[str, Any], p: Any) -> Any:
    """The state just after an event at which boluses of `amount` are given."""
    if model.event is not None:
        given = replace_fields(jax.tree.map(jnp.zeros_like, u), amount)
        x = model.event(t, x, u, given, p)
    return jump(model.drift, t, x, u, amount, p)


def jump(drift: Any, t: Scalar, x: Any, u: Any, amount: dict[str, Any], p: Any) -> Any:
    """The state just after boluses of `amount`: `x` moved by `amount * d(drift)/d(u)`.

    For a drift that is affine in its inputs this is the limit of ever shorter infusions.
    """
    if not amount:
        return x
    zero = jax.tree.map(jnp.zeros_like, u)
    _, moved = jax.jvp(lambda given: drift(t, x, given, p), (u,), (replace_fields(zero, amount),))
    return jax.tree.map(jnp.add, x, moved)
