"""A patient's channels, each at its own times, as one irregular sequence of all of them.

At every wanted time a channel says what was last measured of it, how long ago, and whether it ever was. So
channels need not share times, a missing one is told apart from any value, and nothing measured later is used.
"""

from collections.abc import Sequence as Names
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.types import AnyArray, Mask, Vector


class Scaling(eqx.Module):
    """Centre and spread of what enters a network, known from the patients it is trained on.

    Attributes:
        centre: of each channel, in its unit.
        spread: of each channel, > 0.
        fact_centre: of each fact of a patient.
        fact_spread: of each fact, > 0.
    """

    centre: Float[AnyArray, " channel"]
    spread: Float[AnyArray, " channel"]
    fact_centre: Float[AnyArray, " fact"]
    fact_spread: Float[AnyArray, " fact"]


class Sequence(eqx.Module):
    """What is known of a patient at each of n times.

    Attributes:
        time: since the record's start, sorted.
        mask: False where a time repeats the one before, as padding does.
        value: last measured at or before each time, standardised; 0 where never measured.
        seen: whether the channel was ever measured at or before that time.
        since: time since then, 0 where never.
        facts: known of the patient at all times, standardised.
    """

    time: Vector
    mask: Mask
    value: Float[AnyArray, "n channel"]
    seen: Bool[AnyArray, "n channel"]
    since: Float[AnyArray, "n channel"]
    facts: Float[AnyArray, " fact"]


def scaling_of(record: Record, channels: Names[str], facts: Names[str]) -> Scaling:
    """Mean and sd of the measured values in `record.past`, and of what is known.

    Args:
        record: of the patients of a training cohort, with a patient axis: never those to be tested on.
        channels: names in `record.past`.
        facts: names in `record.known`.

    Returns:
        A spread of 1 for what does not vary, and centre 0 for a channel that nobody has.
    """
    measured = [np.asarray(record.past[name].value)[np.asarray(record.past[name].mask)] for name in channels]
    known = [np.asarray(record.known[name]) for name in facts]
    return Scaling(*_moments(measured), *_moments(known))


def unit_scaling(channels: int, facts: int) -> Scaling:
    """The scaling that changes nothing."""
    ones = [jnp.ones(channels), jnp.ones(facts)]
    return Scaling(0.0 * ones[0], ones[0], 0.0 * ones[1], ones[1])


def visit_times(past: dict[str, Series]) -> np.ndarray:
    """All different times at which anything was measured of a patient, sorted."""
    times = [np.asarray(series.time)[np.asarray(series.mask)] for series in past.values()]
    return np.unique(np.concatenate([*times, np.empty(0)]))


def sequence_at(
    record: Record, times: Any, channels: Names[str], facts: Names[str], scaling: Scaling
) -> Sequence:
    """What `record.past` and `record.known` of one patient say at `times`.

    Args:
        record: of one patient; a channel that it lacks was never measured.
        times: (n,) sorted, in the record's unit of time; padding repeats the last.
        channels: names in `record.past`, one at least, in the order of the network's inputs.
        facts: names in `record.known`.
        scaling: of the training patients, whose dtype the sequence has.
    """
    dtype = jnp.result_type(scaling.centre)
    times = jnp.asarray(times)
    each = [_last_seen(record.past.get(name), times) for name in channels]
    last = jax.tree.map(lambda *columns: jnp.stack(columns, axis=1), *each)
    value = (last.value.astype(dtype) - scaling.centre[None]) / scaling.spread[None]
    known = jnp.stack([jnp.asarray(record.known[name], dtype) for name in facts] or [jnp.zeros((), dtype)])
    new = jnp.concatenate([jnp.ones(1, bool), times[1:] > times[:-1]])[: len(times)]
    return Sequence(
        time=(times - jnp.asarray(record.t0, times.dtype)).astype(dtype),
        mask=new,
        value=jnp.where(last.seen, value, jnp.zeros((), dtype)),
        seen=last.seen,
        since=last.since.astype(dtype),
        facts=(known[: len(facts)] - scaling.fact_centre) / scaling.fact_spread,
    )


def features(sequence: Sequence) -> Float[Array, "n feature"]:
    """One row of numbers a time: values, whether seen, how long ago; facts; time and the gap before it.

    Times enter as log(1 + t), since a network of tanh has no use for decades.
    """
    n, dtype = len(sequence.time), sequence.value.dtype
    gap = jnp.diff(sequence.time, prepend=sequence.time[:1])
    return jnp.concatenate(
        [
            sequence.value,
            sequence.seen.astype(dtype),
            jnp.log1p(sequence.since),
            jnp.broadcast_to(sequence.facts[None], (n, len(sequence.facts))),
            jnp.log1p(sequence.time)[:, None],
            jnp.log1p(gap)[:, None],
        ],
        axis=1,
    )


def feature_count(channels: int, facts: int) -> int:
    """Columns of `features`."""
    return 3 * channels + facts + 2


def _moments(columns: list[np.ndarray]) -> tuple[Any, Any]:
    centre = [float(np.mean(column)) if column.size else 0.0 for column in columns]
    spread = [float(np.std(column)) if column.size else 0.0 for column in columns]
    # A channel that does not vary rounds to a spread of 1e-16, not to 0.
    varies = [s > 1e-9 * max(1.0, abs(c)) for c, s in zip(centre, spread, strict=True)]
    return jnp.asarray(centre, float), jnp.asarray(
        [s if v else 1.0 for s, v in zip(spread, varies, strict=True)], float
    )


class _Last(eqx.Module):
    """Of one channel, the latest measurement at or before each time."""

    value: Any
    since: Any
    seen: Any


def _last_seen(series: Series | None, times: Any) -> _Last:
    nothing = jnp.zeros_like(times)
    if series is None:
        return _Last(nothing, nothing, jnp.zeros(len(times), bool))
    there = jnp.asarray(series.mask)
    time, value = (jnp.asarray(x, times.dtype) for x in (series.time, series.value))
    before = there[None] & (time[None] <= times[:, None])
    index = jnp.max(jnp.where(before, jnp.arange(len(there))[None], -1), axis=1)
    seen = index >= 0
    at = jnp.maximum(index, 0)
    return _Last(jnp.where(seen, value[at], nothing), jnp.where(seen, times - time[at], nothing), seen)
