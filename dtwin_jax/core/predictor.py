"""A predictor turns parameters and a record into the distributions of what was measured, once for all estimators."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from dtwin_jax.core.quantity import Quantity, check_names
from dtwin_jax.core.record import ABOVE, BELOW, Cohort, Record, Series
from dtwin_jax.core.signal import AbstractSignal

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

    Two optional methods: `schema()` lets files be read for it, and `differentiated(mode)` returns the
    predictor prepared for forward- or reverse-mode differentiation, for those to whom it matters.
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


def log_likelihood(f: Predictor, p: Any, record: Record) -> dict[str, Any]:
    """Log-likelihood of every measurement of one patient.

    Values below or above a limit contribute the probability of being there (method M3 of Beal 2001),
    padding contributes 0, what the model cannot explain `PENALTY`: always finite.

    Returns:
        Channel -> array of shape (n,).
    """
    predicted = f.predict(p, record)
    return {
        name: _series_log_likelihood(predicted[name], series) for name, series in record.observations.items()
    }


def _series_log_likelihood(predicted: Any, series: Series) -> Any:
    seen = predicted.log_prob(series.value)
    below = log_cdf(predicted, series.value)
    above = log_survival(predicted, series.value)
    value = jnp.where(series.censor == BELOW, below, jnp.where(series.censor == ABOVE, above, seen))
    value = jnp.where(jnp.isfinite(value), jnp.maximum(value, PENALTY), PENALTY)
    return jnp.where(series.mask, value, 0.0)


def log_cdf(d: Any, x: Any) -> Any:
    """Log of P(X <= x), without underflow for normal and log-normal distributions."""
    import numpyro.distributions as dist

    if isinstance(d, dist.Normal):
        return log_ndtr((x - d.loc) / d.scale)
    if isinstance(d, dist.LogNormal):
        positive = jnp.where(x > 0, x, 1.0)
        return jnp.where(x > 0, log_ndtr((jnp.log(positive) - d.loc) / d.scale), -jnp.inf)
    return jnp.log(d.cdf(x))


def log_survival(d: Any, x: Any) -> Any:
    """Log of P(X > x)."""
    import numpyro.distributions as dist

    if isinstance(d, dist.Normal):
        return log_ndtr((d.loc - x) / d.scale)
    if isinstance(d, dist.LogNormal):
        positive = jnp.where(x > 0, x, 1.0)
        return jnp.where(x > 0, log_ndtr((d.loc - jnp.log(positive)) / d.scale), 0.0)
    return jnp.log1p(-d.cdf(x))


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
        _check_times(f"{where}channel {name!r}", series.time, float(record.t0))
        seen = np.asarray(series.value)[np.asarray(series.mask)]
        if not np.all(np.isfinite(seen)):
            raise ValueError(f"{where}channel {name!r}: a measured value is not finite")
    for name, signal in vars(record.inputs).items():
        if isinstance(signal, AbstractSignal):
            _check_times(f"{where}input {name!r}", signal.time, -np.inf)
        if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(signal)):
            raise ValueError(f"{where}input {name!r}: a value is not finite")


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
