"""The time to an event whose hazard a drug changes, and its likelihood for any model of a hazard.

Source: Holford 2013, CPT Pharmacometrics Syst Pharmacol 2:e43, doi 10.1038/psp.2013.18 (hazards, likelihood);
values chosen here.

    base'       = growth base,        base(0) = h0       (Gompertz; growth 0 is a constant hazard)
    hazard      = base exp(-effect C^n / (EC50^n + C^n)),     C = concentration
    cumulative' = hazard
    survival    = exp(-cumulative)

`TimeToEvent(model)` adds the channel `event` to any model, or composite, with the outputs `hazard` and
`cumulative`. A row of it says at a time 1, the event happens now, or 0, it has not happened since the row
before (the start of the record before the first): log hazard less the hazard accumulated since, and less the
latter alone. So one row 1 is an event, one row 0 right censoring, several of them events that recur; a row 1
censored below (-1) is an event somewhere since the row before. The record's start is that of the risk. In a
plan, `event` is the probability of one since the last row that was measured, in the plan or before it.
Deaths of many patients tell h0 and growth, and the effect where they were exposed unlike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from dtwin_jax.core.predictor import Mode, Schema
from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import Quantity, param, replace_fields, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import filling
from dtwin_jax.dynamics.model import Model, expect, noisy
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.models.hill import hill

_WEAK = "value and prior: weakly informative, chosen here"


class Params(eqx.Module):
    """The hazard, and what the drug does to it."""

    h0: Scalar = param(0.01, "/d", lognormal(0.01, log_sd=1.0), source=_WEAK, doc="hazard at the start")
    growth: Scalar = param(0.002, "/d", normal(0.0, 0.01), source=_WEAK, doc="its relative growth")
    effect: Scalar = param(1.0, "1", lognormal(1.0, log_sd=1.0), source=_WEAK, doc="largest fall of its log")
    EC50: Scalar = param(2.0, "mg/L", lognormal(2.0, log_sd=1.0), source=_WEAK, doc="half of that")
    n: Scalar = param(1.0, "1", source="chosen here", doc="steepness")
    sd_hazard: Scalar = param(0.001, "/d", source="chosen here", doc="error of a hazard, were it measured")
    sd_cumulative: Scalar = param(0.1, "1", source="chosen here", doc="error of its sum, were it measured")
    sd_survival: Scalar = param(0.05, "1", source="chosen here", doc="error of a share alive")


class Inputs(eqx.Module):
    """The drug."""

    concentration: Input = var("mg/L", neutral=0.0, doc="in plasma")


class State(eqx.Module):
    """Hazard without drug, and cumulative hazard."""

    base: Scalar = var("/d")
    cumulative: Scalar = var("1")


class Outputs(eqx.Module):
    """What tells of events."""

    hazard: Scalar = var("/d", doc="of the moment")
    cumulative: Scalar = var("1", doc="hazard accumulated since the start")
    survival: Scalar = var("1", doc="probability of no event yet, or share alive", plausible=(0.0, 1.0))


def init(p: Params) -> State:
    """At risk from now on."""
    return State(base=p.h0, cumulative=0.0)


def ratio(u: Inputs, p: Params) -> Scalar:
    """The hazard under the drug over that without."""
    return jnp.exp(-p.effect * hill(u.concentration, p.EC50, p.n))


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    return State(base=p.growth * x.base, cumulative=x.base * ratio(u, p))


def flow(dt: Scalar, x: State, u: Inputs, p: Params) -> State:
    """The exact solution after `dt` at a constant concentration."""
    gained = x.base * ratio(u, p) * filling(-p.growth, dt)
    return State(base=x.base * jnp.exp(p.growth * dt), cumulative=x.cumulative + gained)


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Hazard and survival."""
    return Outputs(hazard=x.base * ratio(u, p), cumulative=x.cumulative, survival=jnp.exp(-x.cumulative))


def example() -> Record:
    """The share alive of a group whose treatment starts after 30 days and is stopped after 120."""
    times = np.arange(10.0, 241.0, 10.0)
    inputs = Inputs(Steps([0.0, 30.0, 120.0], [0.0, 4.0, 0.0]))
    return Record(inputs, {"survival": Series(times, np.zeros(times.size))})


drug_hazard = Model(
    name="drug_hazard",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    flow=flow,
    time="d",
    source="Holford 2013, CPT Pharmacometrics Syst Pharmacol 2:e43, doi 10.1038/psp.2013.18",
    valid="Events that happen once, or recur without memory; a drug that acts at once on the hazard.",
    stiffness="Solved exactly while the concentration is constant; weeks to years: explicit, Tsit5.",
    checked="Closed forms of Gompertz's hazard: 1e-12 relative; the likelihood of events by hand: 1e-12.",
    example=example,
)


class Happening(dist.Distribution):
    """Whether the event happens at a time (1), or has not happened since the row before (0)."""

    arg_constraints = {}  # noqa: RUF012 (as in NumPyro)
    support = constraints.boolean  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    pytree_data_fields = ("hazard", "accumulated")

    def __init__(self, hazard: Any, accumulated: Any, *, validate_args: bool | None = None):
        """The hazard at the time of each row, and what has accumulated since the row before."""
        self.hazard, self.accumulated = hazard, accumulated
        super().__init__(jnp.shape(hazard), validate_args=validate_args)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Log of the density of an event now, per unit of time, or of the probability of none since."""
        happens = jnp.asarray(value) > 0
        hazard = jnp.where(happens, self.hazard, 1.0)
        return jnp.where(happens, jnp.log(hazard), 0.0) - self.accumulated

    def cdf(self, value: Any) -> Any:
        """Probability of an event since the row before."""
        return -jnp.expm1(-self.accumulated) + jnp.zeros_like(jnp.asarray(value, float))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Whether there is an event since the row before."""
        uniform = jax.random.uniform(key, (*sample_shape, *self.batch_shape), jnp.result_type(self.hazard))
        return (uniform < jnp.broadcast_to(self.mean, uniform.shape)).astype(uniform.dtype)

    @property
    def mean(self) -> Any:
        """Probability of an event since the row before."""
        return -jnp.expm1(-self.accumulated)

    @property
    def variance(self) -> Any:
        """Of whether there is an event since the row before."""
        return self.mean * jnp.exp(-self.accumulated)


@dataclass(frozen=True)
class TimeToEvent:
    """A predictor of a model's channels and of `event`, by its outputs `hazard` and `cumulative`."""

    model: Model

    @property
    def name(self) -> str:
        """As results and errors call it."""
        return f"{self.model.name}_event"

    def params(self) -> Any:
        """The model's parameters."""
        return self.model.params()

    def schema(self) -> Schema:
        """The model's names, and `event`."""
        own = self.model.schema()
        event = Quantity("1", doc="1 where it happens, 0 where it has not", plausible=(0.0, 1.0))
        return replace(own, outputs=own.outputs | {"event": event})

    def differentiated(self, mode: Mode) -> "TimeToEvent":
        """Prepared for forward- or reverse-mode derivatives."""
        return TimeToEvent(self.model.differentiated(mode))

    def tightened(self, factor: float, record: Record) -> "TimeToEvent | None":
        """The predictor with tolerances `factor` times as large; None where there are none."""
        finer = self.model.tightened(factor, record)
        return None if finer is None else TimeToEvent(finer)

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        """Channel -> distribution, those of the model and `event`."""
        seen = dict(record.observations)
        event = seen.pop("event", None)
        if event is None:
            return self.model.predict(p, record)
        if both := {"hazard", "cumulative"} & set(seen):
            raise ValueError(f"{self.name}: the channel 'event' is told by {sorted(both)}; leave these out")
        rows = _with_past(event, record.past.get("event"))
        asked = _observing(record, seen | {"hazard": rows, "cumulative": rows})
        expected = expect(self.model, p, asked)
        own = slice(-event.time.shape[0], None)
        since = _since(rows, expected.cumulative)
        found = noisy(self.model, p, expected, _observing(record, seen))
        return found | {"event": Happening(expected.hazard[own], since[own])}


def _observing(record: Record, channels: Mapping[str, Series]) -> Record:
    return replace_fields(record, {"observations": dict(channels)})


def _with_past(event: Series, past: Series | None) -> Series:
    """The rows after those that were measured before."""
    if past is None:
        return event
    return jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a), jnp.asarray(b)]), past, event)


def _since(rows: Series, cumulative: Any) -> Any:
    """What has accumulated at each row since the last row before it that was measured."""
    measured = jnp.where(jnp.asarray(rows.mask), cumulative, 0.0)
    before = jax.lax.cummax(jnp.concatenate([jnp.zeros_like(measured[:1]), measured[:-1]]))
    return jnp.maximum(cumulative - before, 0.0)
