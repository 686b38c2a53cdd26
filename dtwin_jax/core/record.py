"""What is known of a patient: inputs, observations, facts; and cohorts of patients, padded and stacked."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import check_names, replace_fields
from dtwin_jax.core.rules import RESET, STEADY, Rules, no_rules, padded, resets_of
from dtwin_jax.core.signal import AbstractSignal, Doses, Sampled, Steps
from dtwin_jax.core.types import Codes, Mask, Scalar, Vector

BELOW, SEEN, ABOVE = -1, 0, 1


class Series(eqx.Module):
    """The measurements of one channel, at its own times.

    Attributes:
        time: sorted, in the model's unit of time; padding repeats the last time.
        value: measured, or the limit where `censor` is not 0.
        mask: False for padding and for times at which only a prediction is wanted.
        censor: -1 below `value`, 0 seen, +1 above `value`.
        after: True where a measurement at the time of a dose was made after it.
        limit: what a measurement below `value` is known to be above, such as 0; minus infinity where nothing
            is known, None where that is so of all.
        limited: whether any may be beyond a limit, which is so where `censor` was given: without it the tails
            of distributions, several times as dear as their densities, are left out of compiled programs.
    """

    time: Vector
    value: Vector
    mask: Mask
    censor: Codes
    after: Mask
    limit: Vector | None
    limited: bool = eqx.field(static=True, init=False)

    def __init__(
        self,
        time: Any,
        value: Any = None,
        *,
        mask: Any = None,
        censor: Any = None,
        after: Any = None,
        limit: Any = None,
    ):
        """Lists or arrays of one length; without `value` the times are for prediction only."""
        shape = np.shape(time := np.asarray(time, dtype=float))
        self.time = time
        self.value = np.zeros(shape) if value is None else np.asarray(value, dtype=float)
        default = np.full(shape, value is not None)
        self.mask = default if mask is None else np.asarray(mask, dtype=bool)
        self.censor = np.zeros(shape, int) if censor is None else np.asarray(censor, dtype=int)
        self.after = np.zeros(shape, bool) if after is None else np.asarray(after, dtype=bool)
        self.limit = None if limit is None else np.asarray(limit, dtype=float)
        self.limited = censor is not None
        for name in ("value", "mask", "censor", "after", "limit"):
            if getattr(self, name) is not None and np.shape(getattr(self, name)) != shape:
                found = np.shape(getattr(self, name))
                raise ValueError(f"Series: {name} has shape {found}, time has {shape}")


class Record(eqx.Module):
    """What is known of one patient; with a leading axis on every array, of a cohort.

    Attributes:
        inputs: the model's inputs, each a number or a signal.
        observations: channel name -> series.
        known: name -> value of parameters and covariates known for this patient.
        t0: time at which the model's initial state holds.
        past: channel name -> measurements already made, on which a predictor that learns from them may rest
            what it predicts of `observations`; they are not predicted themselves. The state of an ODE follows
            from its parameters, so it has no use for them.
    """

    inputs: Any
    observations: dict[str, Series]
    known: dict[str, Any] = eqx.field(default_factory=dict)
    t0: Scalar = eqx.field(
        default=0.0, converter=lambda x: np.asarray(x, float) if isinstance(x, int | float) else x
    )
    past: dict[str, Series] = eqx.field(default_factory=dict)


@dataclass(frozen=True)
class Cohort:
    """Patients side by side: `record` has a leading patient axis. Only `record` enters compiled code."""

    ids: tuple[str, ...]
    record: Record

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, patient: str) -> Record:
        """The (padded) record of one patient, by id."""
        if patient not in self.ids:
            raise KeyError(f"no patient {patient!r}; the cohort has {', '.join(self.ids[:20])}")
        return self.at(self.ids.index(patient))

    @property
    def numbers(self) -> np.ndarray:
        """A number (patient,) by each id, for random keys: the place in the cohort does not count."""
        return np.asarray([zlib.crc32(patient.encode()) for patient in self.ids], np.uint32)

    def at(self, index: int) -> Record:
        """The (padded) record of the patient at a position."""
        return jax.tree.map(lambda leaf: leaf[index], self.record)

    def take(self, indices: Sequence[int]) -> "Cohort":
        """The cohort of the patients at these positions, padding unchanged."""
        rows = np.asarray(indices, dtype=int)
        ids = tuple(self.ids[i] for i in rows)
        return Cohort(ids, jax.tree.map(lambda leaf: leaf[rows], self.record))


def stack(records: Mapping[str, Record]) -> Cohort:
    """A cohort of patients, padded to the longest of each channel and input.

    Args:
        records: id -> record, all of one model. A channel that a patient lacks becomes a masked series.

    Raises:
        ValueError: no records, or a fact that is known for some patients only.
    """
    if not records:
        raise ValueError("a cohort needs at least one record")
    ids, rows = tuple(records), tuple(records.values())
    facts = sorted({name for row in rows for name in row.known})
    for patient, row in records.items():
        for name in facts:
            if name not in row.known:
                raise ValueError(f"{name!r} is known for some patients, but not for {patient!r}")
    fields = _stack_inputs([row.inputs for row in rows], [float(row.t0) for row in rows])
    record = Record(
        inputs=fields,
        observations=_stack_channels([row.observations for row in rows], rows),
        known={name: np.stack([np.asarray(row.known[name], float) for row in rows]) for name in facts},
        t0=np.stack([np.asarray(row.t0, float) for row in rows]),
        past=_stack_channels([row.past for row in rows], rows),
    )
    return Cohort(ids, record)


def buckets(records: Mapping[str, Record], count: int) -> list[Cohort]:
    """`records` in at most `count` cohorts of like length: bounds padding, and the number of compilations."""
    if count < 1:
        raise ValueError(f"buckets needs a count of at least 1, found {count}")
    by_size = sorted(records, key=lambda patient: _size(records[patient]))
    groups = np.array_split(np.arange(len(by_size)), min(count, len(by_size)))
    return [stack({by_size[i]: records[by_size[i]] for i in group}) for group in groups]


def repeated(record: Record, times: int) -> Record:
    """A record of stacked patients with all of them `times` times, one round after the other."""
    return jax.tree.map(lambda leaf: jnp.tile(leaf, (times,) + (1,) * (jnp.ndim(leaf) - 1)), record)


def scenario(record: Record, *, until: float, every: float, **inputs: Any) -> Record:
    """A planned record: what would be seen if these inputs were given.

    Args:
        record: of one patient, or a cohort's.
        until: end of the plan, in the model's unit of time.
        every: spacing of the times at which to predict.
        inputs: input name -> signal or number, in place of the record's; the others stay. For a cohort
            the arrays of a signal may have a patient axis; without one all patients get the same. A reset
            (EVID 3 and 4) is of the body and stays, whatever input the record told it of; a steady state is
            of the doses that go, and goes with them.

    Returns:
        A record with the channels of `record`, without measurements, which are its `past`.

    Raises:
        ValueError: names or shapes that do not fit; an input that tells of a reset in place of which comes a
            signal that cannot, or of a steady state that clears what another input gave.
    """
    if not every > 0:
        raise ValueError(f"scenario: every must be positive, found {every!r}")
    t0 = np.asarray(record.t0, float)
    if not np.all(until > t0):
        raise ValueError(f"scenario: until ({until!r}) must be later than the record's start ({t0!r})")
    times = even_times(t0, until, every)
    check_names("scenario: the model", "input", inputs, vars(record.inputs))
    planned = {name: _for_patients(name, signal, t0.shape) for name, signal in inputs.items()}
    series = Series(times)
    return Record(
        replace_fields(record.inputs, _with_resets(record.inputs, planned, t0.shape)),
        dict.fromkeys(record.observations, series),
        dict(record.known),
        record.t0,
        _measured(record),
    )


def _measured(record: Record) -> dict[str, Series]:
    """What was measured of a record; of a plan, what was measured before it."""
    seen = any(np.any(series.mask) for series in record.observations.values())
    return dict(record.observations if seen else record.past)


def even_times(start: np.ndarray, until: float, every: float) -> np.ndarray:
    """Times every `every` from each of `start` on, none past `until`: (..., n), by the earliest start."""
    # The last step is kept where rounding puts it just past the end.
    steps = int(np.floor((until - start.min()) / every * (1 + 1e-12))) + 1
    return np.minimum(start[..., None] + every * np.arange(steps), until)


def _for_patients(name: str, signal: Any, patients: tuple[int, ...]) -> Any:
    """`signal` with the patient axis, told from the number of axes, not from their length."""
    axes = 1 if isinstance(signal, AbstractSignal) else 0

    def spread(leaf: Any) -> np.ndarray:
        # Rules of doses have codes.
        leaf = np.asarray(leaf) if axes else np.asarray(leaf, float)
        if leaf.ndim == axes:
            return np.broadcast_to(leaf, patients + leaf.shape).copy()
        if leaf.ndim != axes + len(patients) or leaf.shape[: len(patients)] != patients:
            wanted = f"one a patient ({patients[0]})" if patients else "those of one patient"
            raise ValueError(f"scenario: input {name!r} has values of shape {leaf.shape}; wanted {wanted}")
        return leaf

    return jax.tree.map(spread, signal)


def _with_resets(inputs: Any, planned: dict[str, Any], patients: tuple[int, ...]) -> dict[str, Any]:
    """The planned inputs, and what resets of the record do to them; doses with rules of their own stay."""
    dosed = {name: signal for name, signal in vars(inputs).items() if isinstance(signal, Doses)}
    ruled = {name: signal.rules for name, signal in dosed.items() if signal.rules is not None}
    for name in ruled.keys() & planned.keys():
        _refuse_cleared(name, ruled[name], {n: s for n, s in dosed.items() if n not in planned})
    kept = {name: resets_of(rules) if name in planned else rules.restarts for name, rules in ruled.items()}
    times = [np.where(np.isin(r.kind, (RESET, STEADY)), r.time, -np.inf) for r in kept.values()]
    clears = np.concatenate([np.full((*patients, 1), -np.inf), *times], axis=-1)
    if not np.any(np.isfinite(clears)):
        return planned
    none = resets_of(jax.tree.map(lambda leaf: leaf[..., :0], next(iter(ruled.values()))))
    found = dict(planned)
    for name, signal in planned.items():
        own = kept.get(name, none)
        if not isinstance(signal, AbstractSignal) and np.any(own.kind == RESET) and not np.any(signal):
            signal = _for_patients(name, Doses([0.0], [0.0]), patients)  # noqa: PLW2901 (nothing, with resets)
        if isinstance(signal, Doses) and signal.rules is None:
            ended = np.where(clears[..., None, :] > signal.time[..., None], clears[..., None, :], np.inf)
            told = {"held": np.zeros(signal.time.shape, int), "until": ended.min(axis=-1)}
            rules = replace_fields(next(iter(ruled.values())), told | {"restarts": own})
            found[name] = eqx.tree_at(lambda s: s.rules, signal, rules, is_leaf=lambda leaf: leaf is None)
        elif np.any(own.kind == RESET) and not _resets(own) <= _resets(getattr(signal, "rules", None)):
            raise ValueError(
                f"scenario: input {name!r} tells of resets, which stay: give Doses without rules, or 0"
            )
    return found


def _resets(rules: Any) -> set[float]:
    """Times of resets, of all patients."""
    again = getattr(rules, "restarts", rules)
    return set() if again is None else set(np.asarray(again.time)[np.asarray(again.kind) == RESET].tolist())


def _refuse_cleared(name: str, rules: Rules, others: dict[str, Doses]) -> None:
    """Refuse to leave out a steady state that clears what other inputs have given."""
    again = rules.restarts
    steady = np.max(np.where(np.asarray(again.kind) == STEADY, again.time, -np.inf), axis=-1, initial=-np.inf)
    for other, doses in others.items():
        if np.any((np.asarray(doses.time) < steady[..., None]) & (np.asarray(doses.amount) != 0)):
            raise ValueError(
                f"scenario: a steady state of {name!r} clears what {other!r} gave before: plan both inputs"
            )


def _size(record: Record) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(record))


def _pad(values: Any, length: int, fill: Any) -> np.ndarray:
    values = np.asarray(values)
    return np.concatenate([values, np.full(length - len(values), fill, dtype=values.dtype)])


def _stack_channels(each: Sequence[dict[str, Series]], rows: Sequence[Record]) -> dict[str, Series]:
    names = dict.fromkeys(name for channels in each for name in channels)
    return {name: _stack_series([channels.get(name) for channels in each], rows) for name in names}


def _stack_series(present: Sequence[Series | None], rows: Sequence[Record]) -> Series:
    there = [series for series in present if series is not None]
    length = max(1, *(len(series.time) for series in there))
    between = any(series.limit is not None for series in there)
    limited = any(series.limited for series in there)
    parts = []
    for row, own in zip(rows, present, strict=True):
        series = own if own is not None and len(own.time) else Series(np.full(1, float(row.t0)))
        parts.append(
            Series(
                _pad(series.time, length, series.time[-1]),
                _pad(series.value, length, 0.0),
                mask=_pad(series.mask, length, False),
                censor=_pad(series.censor, length, SEEN) if limited else None,
                after=_pad(series.after, length, True),
                limit=_limits(series.limit, length, between),
            )
        )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


def _limits(limit: Any, length: int, limited: bool) -> np.ndarray | None:
    """Lower limits, padded; None where nobody has any."""
    return _pad([] if limit is None else limit, length, -np.inf) if limited else None


def _stack_inputs(rows: Sequence[Any], starts: Sequence[float]) -> Any:
    columns = {name: [getattr(row, name) for row in rows] for name in vars(rows[0])}
    stacked = {name: _stack_signals(name, column, starts) for name, column in columns.items()}
    return replace_fields(rows[0], stacked)


def _stack_signals(name: str, signals: Sequence[Any], starts: Sequence[float]) -> Any:
    kinds = {type(signal) for signal in signals if isinstance(signal, AbstractSignal)}
    if not kinds:
        return np.stack([np.asarray(signal, float) for signal in signals])
    if len(kinds) > 1:
        raise ValueError(f"input {name!r} is of several kinds: {sorted(kind.__name__ for kind in kinds)}")
    (kind,) = kinds
    signals = [_promote(name, kind, signal, t0) for signal, t0 in zip(signals, starts, strict=True)]
    length = max(1, *(len(signal.time) for signal in signals))
    rules = _stack_rules(signals, length) if kind is Doses else [None] * len(signals)
    alike = [
        _pad_signal(signal, length, t0, rule) for signal, t0, rule in zip(signals, starts, rules, strict=True)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *alike)


def _promote(name: str, kind: type, signal: Any, t0: float) -> Any:
    """A number beside signals becomes a signal of their kind that says the same."""
    if isinstance(signal, AbstractSignal):
        return signal
    if kind is Doses:
        if float(signal) != 0.0:
            raise ValueError(
                f"input {name!r}: a constant rate ({signal}) cannot stand beside doses; use an infusion"
            )
        return Doses([], [])
    return kind([t0], [float(signal)])


def _stack_rules(signals: Sequence[Doses], length: int) -> list[Rules | None]:
    """The rules of all, padded alike; None where nobody has any."""
    if all(signal.rules is None for signal in signals):
        return [None] * len(signals)
    rules = [signal.rules or no_rules(len(signal.time)) for signal in signals]
    restarts = max(len(rule.restarts.time) for rule in rules)
    overlap = max(rule.restarts.overlap for rule in rules)
    return [padded(rule, length, restarts, overlap) for rule in rules]


def _pad_signal(signal: Any, length: int, t0: float, rules: Rules | None) -> Any:
    last = signal.time[-1] if len(signal.time) else t0
    if isinstance(signal, Doses):
        # Padding has amount 0, so no mask is needed.
        return Doses(
            _pad(signal.time, length, last),
            _pad(signal.amount, length, 0.0),
            _pad(signal.duration, length, 0.0),
            rules=rules,
        )
    if isinstance(signal, Steps | Sampled):
        return type(signal)(_pad(signal.time, length, last), _pad(signal.value, length, signal.value[-1]))
    raise ValueError(f"cannot pad a {type(signal).__name__}")
