"""What happens to a patient in order: stretches of time, events at their ends, measurements among them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from dtwin_jax.core.record import Record, Series
from dtwin_jax.dynamics.dosing import cut, known_to


class Rows(eqx.Module):
    """Every wanted time of a record, all channels one after another; arrays (n,).

    Attributes:
        time: of the measurement.
        channel: its position among the names of the channels.
        value: what was measured, or the limit.
        used: whether the filter learns from it.
        censor: -1 below `value`, 0 seen, 1 above.
        after: whether it was made after an event at its time.
    """

    time: Any
    channel: Any
    value: Any
    used: Any
    censor: Any
    after: Any


class Moments(eqx.Module):
    """Stretches in order, each with what happens at its end: an event or a row; arrays (moment,).

    Attributes:
        start: of the stretch.
        stop: its end.
        row: the row that is met there, -1 at an event.
        held: inputs that are constant over the stretch, by field.
        amount: boluses given at its end, by field; 0 where there is no event.
    """

    start: Any
    stop: Any
    row: Any
    held: Any
    amount: Any


def rows_of(record: Record) -> tuple[Rows, tuple[str, ...], dict[str, slice]]:
    """The rows of a record, past ones first; the names of channels; and where each channel's own rows are."""
    names = tuple(dict.fromkeys([*record.past, *record.observations]))
    parts, place, start = [], {}, 0
    for which, channels in enumerate((record.past, record.observations)):
        for name, series in channels.items():
            parts.append(_rows(series, names.index(name)))
            if which:
                place[name] = slice(start, start + series.time.shape[0])
            start += series.time.shape[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts), names, place


def wanted(times: Any) -> Rows:
    """Rows at which a state is wanted and nothing was measured."""
    times = jnp.asarray(times, float)
    none = jnp.zeros(times.shape, int)
    return Rows(times, none, jnp.zeros_like(times), none == 1, none, none == 0)


def on_reading_scale(value: Any, logarithmic: Any) -> Any:
    """Measured values as a `Body` gives its readings: their log where the channel is log-normal."""
    return jnp.where(logarithmic, jnp.log(jnp.where(value > 0, value, 1.0)), value)


def _rows(series: Series, channel: int) -> Rows:
    if series.limit is not None:
        raise ValueError("a filter does not know measurements between two limits, which this record has")
    time = jnp.asarray(series.time, float)
    return Rows(
        time,
        jnp.full(time.shape, channel),
        jnp.asarray(series.value, float),
        jnp.asarray(series.mask),
        jnp.asarray(series.censor),
        jnp.asarray(series.after),
    )


def moments_of(inputs: Any, rows: Rows, t0: Any) -> Moments:
    """The stretches from `t0` to the last row.

    Rows of one time follow each other without a stretch between them, those before an event at their time
    first; so the order among them is that of the record.
    """
    last = jnp.maximum(jnp.max(rows.time), t0)
    known_to("a filter", inputs)
    pieces = cut(inputs, t0, last)
    events = pieces.event.shape[0]
    passed = pieces.event[None, :] < rows.time[:, None]
    same = (pieces.event[None, :] == rows.time[:, None]) & rows.after[:, None]
    piece = jnp.concatenate([jnp.arange(events), jnp.sum(passed | same, axis=1)])
    ends = jnp.arange(piece.shape[0]) < events
    time = jnp.concatenate([pieces.event, rows.time])
    order = jnp.lexsort((time, ends.astype(int), piece))
    row = jnp.where(ends, -1, jnp.arange(piece.shape[0]) - events)[order]
    stop = jnp.clip(time[order], t0, last)
    at = piece[order]
    event = ends[order]
    return Moments(
        start=jnp.concatenate([jnp.asarray(t0, float)[None], stop[:-1]]),
        stop=stop,
        row=row,
        held=jax.tree.map(lambda leaf: leaf[at], pieces.held),
        amount=jax.tree.map(lambda leaf: jnp.where(event, leaf[at], 0.0), pieces.amount),
    )
