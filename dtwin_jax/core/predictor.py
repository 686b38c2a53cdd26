"""A predictor turns parameters and a record into distributions of what was measured, once for all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import Quantity, check_names
from dtwin_jax.core.record import ABOVE, BELOW, SEEN, Cohort, Record, Series
from dtwin_jax.core.rules import MODELLED_DURATION, MODELLED_RATE
from dtwin_jax.core.signal import AbstractSignal, Doses
from dtwin_jax.core.tails import log_between, log_cdf, log_survival

# A measurement that the model cannot explain (a failed solve, a value outside the support) costs this
# much. Finite, so that one patient's failure leaves the sum over patients a number; so large that no
# draw is accepted there.
PENALTY = -1.0e6

Mode = Literal["forward", "reverse"]


@dataclass(frozen=True)
class Schema:
    """The names that data may use, with their quantities."""

    inputs: dict[str, Quantity]
    outputs: dict[str, Quantity]
    parameters: dict[str, Quantity]
    time_unit: str


@runtime_checkable
class Predictor(Protocol):
    """Anything that predicts a record from parameters: an ODE model, a Markov chain, a risk score.

    Five optional methods: `schema()` lets files be read for it; `differentiated(mode)` returns the
    predictor prepared for forward- or reverse-mode differentiation, for those to whom it matters;
    `predict_cohort(p, record)` is `predict` of many patients where that is faster than one by one;
    `tightened(factor, record)` returns it with its solver's tolerances `factor` times as large, None where
    such a record needs no solver; and `check_record(record, where)`, of itself or of its `noise`, raises a
    ValueError that begins with `where` and names what it cannot use of a record.
    """

    name: str

    def params(self) -> Any:
        """Parameters with their default values, units and priors."""
        ...

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        """Channel -> NumPyro distribution of shape (n,), for the channels of `record.observations`.

        A numerical failure shows as NaN in the distributions, never as an exception.
        """
        ...


def differentiated(f: Predictor, mode: Mode) -> Predictor:
    """`f` prepared for derivatives in `mode`: forward for few parameters, reverse for many."""
    prepare = getattr(f, "differentiated", None)
    return f if prepare is None else prepare(mode)


def predict_cohort(f: Predictor, p: Any, record: Record) -> dict[str, Any]:
    """`f.predict` of every patient; parameters, record and distributions have a leading patient axis.

    The distributions are as `jax.vmap` returns them: to be looked at one patient at a time, by `jax.vmap`.
    """
    own = getattr(f, "predict_cohort", None)
    return jax.vmap(f.predict)(p, record) if own is None else own(p, record)


def log_likelihood(f: Predictor, p: Any, record: Record) -> dict[str, Any]:
    """Log-likelihood of every measurement of one patient.

    Values below or above a limit, or between two, contribute the probability of being there (method M3 of
    Beal 2001, doi 10.1023/A:1012299115260; M2 and M4 are errors, `dynamics.residual.quantified` and
    `positive`), padding contributes 0, what the model cannot explain `PENALTY`: always finite.

    Returns:
        Channel -> array of shape (n,).
    """
    import numpyro

    # Outside compiled code NumPyro refuses NaN, which is how a prediction says that it failed.
    with numpyro.validation_enabled(False):
        return likelihood_of(f.predict(p, record), record)


def likelihood_of(predicted: dict[str, Any], record: Record) -> dict[str, Any]:
    """`log_likelihood` from distributions that are at hand."""
    return {
        name: _series_log_likelihood(predicted[name], series) for name, series in record.observations.items()
    }


def central(d: Any) -> Any:
    """What a distribution expects: its mean, or the median of a log-normal, the model's own value.

    A distribution may bring a `central` of its own.
    """
    import numpyro.distributions as dist

    if (own := getattr(d, "central", None)) is not None:
        return own
    return jnp.exp(d.loc) if isinstance(d, dist.LogNormal) else d.mean


def _series_log_likelihood(predicted: Any, series: Series) -> Any:
    value = _log_density(jax.lax.stop_gradient(predicted), series, series.mask)
    explained = series.mask & jnp.isfinite(value) & (value > PENALTY)
    value = _log_density(predicted, series, explained)
    return jnp.where(series.mask, jnp.where(explained, value, PENALTY), 0.0)


def _log_density(predicted: Any, series: Series, rows: Any) -> Any:
    if not series.limited:
        return _differentiate_at(predicted, rows).log_prob(series.value)
    at = {code: _differentiate_at(predicted, rows & (series.censor == code)) for code in (BELOW, SEEN, ABOVE)}
    below = log_cdf(at[BELOW], series.value)
    if series.limit is not None:
        between = log_between(at[BELOW], series.limit, series.value)
        below = jnp.where(jnp.isfinite(series.limit), between, below)
    seen = at[SEEN].log_prob(series.value)
    above = log_survival(at[ABOVE], series.value)
    return jnp.where(series.censor == BELOW, below, jnp.where(series.censor == ABOVE, above, seen))


def _differentiate_at(predicted: Any, rows: Any) -> Any:
    """The same distribution, with derivatives at these rows only.

    A value that `jnp.where` does not take still sends 0 times its derivative back, which is NaN where the
    derivative is infinite or NaN (a failed solve, padding with 0 of a log-normal, a cdf at its end), and a
    parameter that all rows share (the noise) would get it from any one row.
    """
    (n,) = jnp.shape(rows)

    def at_rows(leaf: Any) -> Any:
        shape = jnp.shape(leaf)
        if not shape or shape[0] not in (1, n) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return leaf
        taken = jnp.reshape(rows, (n,) + (1,) * (len(shape) - 1))
        return jnp.where(taken, leaf, jax.lax.stop_gradient(leaf))

    return jax.tree.map(at_rows, predicted)


def check_record(f: Predictor, record: Record, patient: str = "") -> None:
    """Refuse a record that `f` cannot use, before any work.

    Raises:
        ValueError: names the channel, the position, what was found and what was expected.
    """
    where = f"patient {patient!r}, " if patient else ""
    schema = getattr(f, "schema", None)
    if schema is not None:
        check_names(f.name, "channel", record.observations, schema().outputs)
    for name, series in record.observations.items():
        _check_series(f"{where}channel {name!r}", series, float(record.t0))
    for name, value in record.known.items():
        if not np.all(np.isfinite(np.asarray(value))):
            raise ValueError(f"{where}known {name!r}: found {value}, expected a finite number")
    _check_modelled(f, record, where)
    _check_by_itself(f, record, where)
    for name, signal in vars(record.inputs).items():
        if isinstance(signal, AbstractSignal):
            if np.any(np.asarray(getattr(signal, "duration", 0.0)) < 0):
                raise ValueError(f"{where}input {name!r}: a dose has a negative duration")
            given = np.any(np.asarray(getattr(signal, "amount", 0.0)) != 0.0)
            # A covariate sampled before the start is a fact; a dose before it would be given late.
            start = float(record.t0) if given else -np.inf
            _check_times(f"{where}input {name!r}", signal.time, start)
        if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(_stated(signal))):
            raise ValueError(f"{where}input {name!r}: a value is not finite")


def _check_series(where: str, series: Series, t0: float) -> None:
    _check_times(where, series.time, t0)
    if not series.limited and np.any(np.asarray(series.censor) != SEEN):
        raise ValueError(
            f"{where}: censor was changed in a Series made without one; make another, Series(..., censor=...)"
        )
    if not np.all(np.isfinite(np.asarray(series.value)[np.asarray(series.mask)])):
        raise ValueError(f"{where}: a measured value is not finite")


def _check_modelled(f: Predictor, record: Record, where: str) -> None:
    """Refuse doses whose rate or duration a table leaves to a model that does not state it."""
    rules = {
        n: s.rules for n, s in vars(record.inputs).items() if isinstance(s, Doses) and s.rules is not None
    }
    if not any(np.any(np.asarray(rule.held) < 0) for rule in rules.values()):
        return
    acting = record.inputs
    for each in _layers(f):
        if getattr(each, "dosing", None) is not None:
            acting = each.dosing(record.inputs, each.params())
            break
    for name, rule in rules.items():
        left = ~np.isfinite(np.asarray(getattr(acting, name).duration))
        for held, what in ((MODELLED_RATE, "rate"), (MODELLED_DURATION, "duration")):
            if np.any(left & (np.asarray(rule.held) == held)):
                raise ValueError(
                    f"{where}input {name!r}: a dose has RATE {held}, but the model states no {what}: "
                    f"take with_modelled(model, {what}={{{name!r}: ...}}), or as_modelled in its dosing"
                )


def _check_by_itself(f: Predictor, record: Record, where: str) -> None:
    for layer in _layers(f):
        for part in (layer, getattr(layer, "noise", None)):
            if (own := getattr(part, "check_record", None)) is not None:
                own(record, where)


def _layers(f: Any) -> Iterator[Any]:
    """`f`, and the model that it wraps, if any."""
    while f is not None:
        yield f
        f = getattr(f, "model", None)


def _stated(signal: Any) -> Any:
    """What must be a number of an input: of doses not the durations that their rules leave to the model."""
    if not isinstance(signal, Doses) or signal.rules is None:
        return signal
    modelled = np.asarray(signal.rules.held) < 0
    return signal.time, signal.amount, np.where(modelled, 0.0, signal.duration)


def check_cohort(f: Predictor, cohort: Cohort) -> None:
    """`check_record` for every patient."""
    for index, patient in enumerate(cohort.ids):
        check_record(f, cohort.at(index), patient)


def _check_times(where: str, time: Any, t0: float) -> None:
    time = np.asarray(time)
    if not np.all(np.isfinite(time)):
        raise ValueError(
            f"{where}: time {time[~np.isfinite(time)][0]} at position {np.argmin(np.isfinite(time))}"
        )
    late = np.flatnonzero(np.diff(time) < 0)
    if late.size:
        i = int(late[0])
        raise ValueError(f"{where}: times must not decrease, found {time[i]} before {time[i + 1]}")
    if time.size and time[0] < t0:
        raise ValueError(f"{where}: time {time[0]} is before the record's start {t0}")
