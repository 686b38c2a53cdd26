"""Residual errors that remember each other, as when a model misses what goes on between measurements.

    corr(e_i, e_j) = exp(-|t_i - t_j| / tau_error),    e = (y - expected) / sd

for the measurements of one channel of a patient; e of log-normal errors is of logarithms. `predict` then
gives of every measurement its distribution given those before it: their product is the joint density. With r
the correlation with the last one,

    y_j | y_i ~ Normal(expected_j + sd_j r e_i, sd_j sqrt(1 - r^2)).

Values beyond a limit have no such form. They are taken as filters take them: what is known of e afterwards is
a normal with the mean and the variance of one cut at the limit.

Source: Karlsson, Beal & Sheiner 1995, doi 10.1007/BF02353466.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from dtwin_jax.core.predictor import Mode, Schema, predict_cohort
from dtwin_jax.core.prior import Prior
from dtwin_jax.core.quantity import param, quantities, replace_fields
from dtwin_jax.core.record import SEEN, Record, Series
from dtwin_jax.core.types import Scalar, as_float
from dtwin_jax.dynamics.filtering.gaussian import known_of


def autocorrelated(f: Any, tau: float, prior: Prior | None = None, *, channel: str = "") -> "Autocorrelated":
    """`f` with residual errors that remember each other over the time `tau`.

    It has one more parameter, `tau_error`, or `tau_error_<channel>`: with a prior estimated, else known. What
    `f` says of a measurement becomes what it says given those before it, of the record's `past` too. Where
    nothing was measured, as in a plan, it is what it was: a forecast does not know the last error. Draws
    beside measurements (posterior checks, NPDE) are therefore one step ahead.

    Args:
        f: a model with normal or log-normal errors, without diffusion.
        tau: time after which the correlation is 1/e, in the model's unit.
        prior: of the same.
        channel: the only one whose errors are so; another may be wrapped again. All, where none is named.

    Raises:
        ValueError: a channel that `f` has not, or whose errors are so already; or a model whose filter takes
            errors for independent.
    """
    if not tau > 0:
        raise ValueError(f"autocorrelated: found tau {tau!r}, expected a time above 0")
    if getattr(f, "diffusion", None) is not None:
        raise ValueError(
            f"autocorrelated: {f.name} has a diffusion, and its filter takes errors for independent"
        )
    outputs = sorted(f.schema().outputs)
    if channel and channel not in outputs:
        raise ValueError(f"autocorrelated: {f.name} has no channel {channel!r}; it has {outputs}")
    made = Autocorrelated(f, float(tau), prior, channel)
    inner = f
    while isinstance(inner, Autocorrelated):
        if not channel or inner.channel in ("", channel):
            raise ValueError(f"autocorrelated: errors of {channel or outputs} are so already in {f.name}")
        inner = inner.model
    if made.parameter in quantities(f.params()):
        raise ValueError(f"autocorrelated: {f.name} has a parameter {made.parameter!r} of its own")
    return made


@dataclass(frozen=True)
class Autocorrelated:
    """A predictor of what `model` predicts, given the measurements before; see `autocorrelated`."""

    model: Any
    tau: float
    prior: Prior | None
    channel: str

    @property
    def name(self) -> str:
        """As results and errors call it."""
        return f"{self.model.name}_autocorrelated"

    @property
    def parameter(self) -> str:
        """The parameter that says how long errors remember each other."""
        return f"tau_error_{self.channel}" if self.channel else "tau_error"

    @property
    def time(self) -> str:
        """Unit of time."""
        return self.model.time

    @property
    def solver(self) -> Any:
        """How the model is solved."""
        return self.model.solver

    @property
    def solved_together(self) -> bool:
        """Whether `predict_cohort` solves its patients in one loop."""
        return getattr(self.model, "solved_together", False)

    def params(self) -> Any:
        """The model's parameters, and `parameter`."""
        own = self.model.params()
        made = object.__new__(_wider(type(own), self.parameter, self.tau, self.time, self.prior))
        for name, value in (dict(vars(own)) | {self.parameter: as_float(self.tau)}).items():
            object.__setattr__(made, name, value)
        return made

    def inputs(self) -> Any:
        """The model's inputs."""
        return self.model.inputs()

    def schema(self) -> Schema:
        """The model's names, and `parameter`."""
        return replace(self.model.schema(), parameters=quantities(self.params()))

    def by_occasion(self, names: tuple[str, ...], count: int) -> "Autocorrelated":
        """With parameters of the model that change from one occasion of a patient to the next."""
        return replace(self, model=self.model.by_occasion(names, count))

    def differentiated(self, mode: Mode) -> "Autocorrelated":
        """Prepared for forward- or reverse-mode derivatives."""
        return replace(self, model=self.model.differentiated(mode))

    def tightened(self, factor: float, record: Record) -> "Autocorrelated | None":
        """With the solver's tolerances multiplied by `factor`; None where it has none."""
        finer = self.model.tightened(factor, record)
        return None if finer is None else replace(self, model=finer)

    def check_record(self, record: Record, where: str) -> None:
        """Refuse two measurements at one time, whose errors would be the same."""
        for name in self._channels(record):
            series = record.observations[name]
            time = np.asarray(series.time)[np.asarray(series.mask)]
            if np.any(again := np.diff(time) == 0):
                raise ValueError(
                    f"{where}channel {name!r}: two measurements at time {time[:-1][again][0]}, whose errors "
                    "cannot be told apart where errors remember each other: take their mean"
                )
        if (own := getattr(self.model, "check_record", None)) is not None:
            own(record, where)

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        """Channel -> distribution of every measurement given those before it."""
        asked = self._with_past(record)
        return self._remembering(p, self.model.predict(p, asked), asked, record)

    def predict_cohort(self, p: Any, record: Record) -> dict[str, Any]:
        """`predict` of many patients; every array has a leading patient axis."""
        asked = self._with_past(record)
        return jax.vmap(self._remembering)(p, predict_cohort(self.model, p, asked), asked, record)

    def _channels(self, record: Record) -> list[str]:
        return [name for name in record.observations if self.channel in ("", name)]

    def _with_past(self, record: Record) -> Record:
        """The record with what was measured before as rows of its own."""
        rows = dict(record.observations)
        for name in self._channels(record):
            rows[name] = _joined(record.past[name], rows[name]) if name in record.past else rows[name]
            if rows[name].limit is not None:
                raise ValueError(
                    f"{self.name}: channel {name!r} has values between two limits, which an "
                    "error that remembers others does not know"
                )
        return replace_fields(record, {"observations": rows})

    def _remembering(self, p: Any, found: dict[str, Any], asked: Record, record: Record) -> dict[str, Any]:
        tau = getattr(p, self.parameter)
        told = dict(found)
        for name in self._channels(record):
            d, count = found[name], jnp.shape(record.observations[name].time)[0]
            if not isinstance(d, dist.Normal | dist.LogNormal):
                family = type(d).__name__
                raise ValueError(f"{self.name}: the error of {name!r} is {family}, not normal or log-normal")
            loc, scale = _given_before(d, asked.observations[name], tau)
            told[name] = type(d)(loc[-count:], scale[-count:])
        return told


@functools.cache
def _wider(kind: type, name: str, value: float, unit: str, prior: Prior | None) -> type:
    """`kind` with one more parameter."""
    doc = "time over which residual errors remember each other"
    body = {"__annotations__": {name: Scalar}, "__module__": kind.__module__}
    return type(kind)(kind.__name__, (kind,), body | {name: param(value, unit, prior, doc=doc)})


def _joined(past: Series, own: Series) -> Series:
    if past.limit is not None:
        return past
    fields = ("time", "value", "mask", "censor", "after")
    both = lambda name: [jnp.asarray(getattr(one, name)) for one in (past, own)]  # noqa: E731
    return replace_fields(own, {name: jnp.concatenate(both(name), axis=-1) for name in fields})


def _given_before(d: Any, series: Series, tau: Any) -> tuple[Any, Any]:
    """Location and scale of every row (n,), given the measurements before it; as they were, of other rows."""
    mask, value = jnp.asarray(series.mask), jnp.asarray(series.value, float)
    loc, scale = (jnp.broadcast_to(jnp.asarray(each), mask.shape) for each in (d.loc, d.scale))
    solved = jnp.isfinite(loc) & jnp.isfinite(scale)
    # A row that failed must not reach the arithmetic: its NaN would enter every gradient.
    loc, scale = jnp.where(solved, loc, 0.0), jnp.where(solved, scale, 1.0)
    known = mask & solved & (scale > 0)
    if isinstance(d, dist.LogNormal):
        known = known & (value > 0)
        value = jnp.log(jnp.where(value > 0, value, 1.0))
    z = (value - loc) / jnp.where(known, scale, 1.0)
    time = jnp.asarray(series.time, float)
    order = jnp.argsort(time, stable=True)
    rows = tuple(each[order] for each in (time, z, known, jnp.asarray(series.censor)))
    first = jnp.zeros_like(time[0]), jnp.ones_like(time[0]), time[order][0]
    _, (mean, variance) = jax.lax.scan(functools.partial(_past_row, tau), first, rows)
    back = jnp.argsort(order)
    mean, variance = jnp.where(mask, mean[back], 0.0), jnp.where(mask, variance[back], 1.0)
    # Safe at zero variance, of a second measurement at one time: the square root has no derivative there.
    sd = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    return jnp.where(solved, loc + scale * mean, jnp.nan), jnp.where(solved, scale * sd, jnp.nan)


def _past_row(tau: Any, belief: tuple, row: tuple) -> tuple[tuple, tuple]:
    """What is believed of the standardised error before a row; and after it, which is carried on."""
    (mean, variance, before), (time, z, known, censor) = belief, row
    gone = (time - before) / tau
    mean = jnp.exp(-gone) * mean
    variance = jnp.exp(-2.0 * gone) * variance - jnp.expm1(-2.0 * gone)
    # A value that was seen needs no cut, which could be far out.
    limit = jnp.where(censor == SEEN, mean, z)
    cut = known_of(mean, jnp.where(variance > 0, variance, 1.0), limit, censor)
    after = jnp.where(censor == SEEN, z, cut[0]), jnp.where(censor == SEEN, 0.0, cut[1])
    carried = (jnp.where(known, after[0], mean), jnp.where(known, after[1], variance), time)
    return carried, (mean, variance)
