"""A response whose production or loss a drug changes: indirect response, four forms, and one with transit.

Sources: Dayneka, Garg & Jusko 1993, J Pharmacokinet Biopharm 21:457, doi 10.1007/BF01061691; Sun & Jusko
1998, J Pharm Sci 87:732, doi 10.1021/js970414z (transit); values of mrgsolve's irm1 to irm4
(metrumresearchgroup/mrgsolve, inst/models).

    I   response' = kin (1 - I) - kout response
    II  response' = kin - kout (1 - I) response
    III response' = kin (1 + S) - kout response
    IV  response' = kin - kout (1 + S) response
    I = Imax C^n / (IC50^n + C^n),    S = Emax C^n / (EC50^n + C^n),    response(0) = kin / kout
    transit  stage_1' = kin (1 - I) - ktr stage_1,        ktr = 3 / MTT
             stage_k' = ktr (stage_(k-1) - stage_k),      response' = ktr stage_3 - kout response

Blocks that any kinetics drive through `concentration`, exact while it is constant. The response alone tells
kout by how fast it turns, kin by its level, and IC50 or EC50 where the effect is neither slight nor full.
`delayed(stimulated)` is the form with transit of stimulated production.

Variants:
indirect_response_1: Indirect response I: a drug inhibits the production of a response
indirect_response_2: Indirect response II: a drug inhibits the loss of a response
indirect_response_3: Indirect response III: a drug stimulates the production of a response
indirect_response_4: Indirect response IV: a drug stimulates the loss of a response
indirect_response_transit: Turnover with transit: inhibited production reaches the response through stages
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Sampled
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import LinearFlow, filling
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import proportional
from dtwin_jax.models.hill import hill

_WEAK = "value: mrgsolve irm1 to irm4; prior: weakly informative, chosen here"
_SET = "as in mrgsolve irm1 to irm4"


class Turnover(eqx.Module):
    """Production and loss without drug, and the error."""

    kin: Scalar = param(10.0, "/h", lognormal(10.0, log_sd=1.0), source=_WEAK, doc="production")
    kout: Scalar = param(2.0, "/h", lognormal(2.0, log_sd=1.0), source=_WEAK, doc="rate of loss")
    n: Scalar = param(1.0, "1", source=_SET, doc="steepness")
    cv: Scalar = param(
        0.1, "1", lognormal(0.1, log_sd=1.0), source="value and prior chosen here", doc="proportional error"
    )


class Inhibition(Turnover):
    """Parameters of an inhibited turnover."""

    Imax: Scalar = param(1.0, "1", source=_SET, doc="largest share inhibited")
    IC50: Scalar = param(2.0, "mg/L", lognormal(2.0, log_sd=1.0), source=_WEAK, doc="for half of it")


class Stimulation(Turnover):
    """Parameters of a stimulated turnover."""

    Emax: Scalar = param(1.0, "1", lognormal(1.0, log_sd=1.0), source=_WEAK, doc="largest relative rise")
    EC50: Scalar = param(2.0, "mg/L", lognormal(2.0, log_sd=1.0), source=_WEAK, doc="for half of it")


class Delayed(Inhibition):
    """Parameters of an inhibited turnover with transit."""

    MTT: Scalar = param(
        6.0, "h", lognormal(6.0, log_sd=1.0), source="value and prior chosen here", doc="mean transit time"
    )


class DelayedStimulation(Stimulation):
    """Parameters of a stimulated turnover with transit."""

    MTT: Scalar = param(
        6.0, "h", lognormal(6.0, log_sd=1.0), source="value and prior chosen here", doc="mean transit time"
    )


class Inputs(eqx.Module):
    """The drug."""

    concentration: Input = var("mg/L", neutral=0.0, doc="in plasma")


class State(eqx.Module):
    """The response."""

    response: Scalar = var("1")


class Stages(eqx.Module):
    """What is on its way, and the response."""

    stage_1: Scalar = var("1")
    stage_2: Scalar = var("1")
    stage_3: Scalar = var("1")
    response: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    response: Scalar = var("1", doc="response, in the unit it is measured in")


def unchanged(u: Inputs, p: Turnover) -> Scalar:
    """What no drug changes."""
    return jnp.ones_like(p.kin)


def inhibited(u: Inputs, p: Inhibition) -> Scalar:
    """What is left of production or of loss."""
    return 1 - p.Imax * hill(u.concentration, p.IC50, p.n)


def stimulated(u: Inputs, p: Stimulation) -> Scalar:
    """How many times production or loss is what it was."""
    return 1 + p.Emax * hill(u.concentration, p.EC50, p.n)


Change = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Drift:
    """Rate of change of a response whose production and loss a drug changes."""

    production: Change
    loss: Change

    def __call__(self, t: Scalar, x: State, u: Inputs, p: Any) -> State:
        """The rate, per hour."""
        return State(response=p.kin * self.production(u, p) - p.kout * self.loss(u, p) * x.response)


@dataclass(frozen=True)
class Flow:
    """Its exact solution while the concentration is constant."""

    production: Change
    loss: Change

    def __call__(self, dt: Scalar, x: State, u: Inputs, p: Any) -> State:
        """The state after `dt`."""
        rate = p.kout * self.loss(u, p)
        made = p.kin * self.production(u, p) * filling(rate, dt)
        return State(response=x.response * jnp.exp(-rate * dt) + made)


@dataclass(frozen=True)
class DelayedDrift:
    """Rates of change of a response that a changed production reaches through three stages."""

    production: Change

    def __call__(self, t: Scalar, x: Stages, u: Inputs, p: Any) -> Stages:
        """The rates, per hour."""
        ktr = 3 / p.MTT
        return Stages(
            stage_1=p.kin * self.production(u, p) - ktr * x.stage_1,
            stage_2=ktr * (x.stage_1 - x.stage_2),
            stage_3=ktr * (x.stage_2 - x.stage_3),
            response=ktr * x.stage_3 - p.kout * x.response,
        )


def init(p: Turnover) -> State:
    """At rest without drug."""
    return State(response=p.kin / p.kout)


def init_delayed(p: Any) -> Stages:
    """At rest without drug."""
    stage = p.kin * p.MTT / 3
    return Stages(stage_1=stage, stage_2=stage, stage_3=stage, response=p.kin / p.kout)


def observe(t: Scalar, x: Any, u: Inputs, p: Turnover) -> Outputs:
    """The response itself."""
    return Outputs(response=x.response)


def example() -> Record:
    """A concentration that rises to 3 mg/L in two hours and is gone in two days, and the response."""
    course = Sampled([0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 48.0], [0.0, 2.4, 3.0, 2.8, 2.2, 1.4, 0.8, 0.1])
    times = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 18.0, 24.0, 36.0, 48.0])
    return Record(Inputs(course), {"response": Series(times, np.zeros(len(times)))})


_CHECKED = "mrgsolve's model behind two compartments, two solvers: 1e-7 relative."

indirect_response_1 = Model(
    name="indirect_response_1",
    params=Inhibition,
    inputs=Inputs,
    init=init,
    drift=Drift(inhibited, unchanged),
    observe=observe,
    noise=proportional,
    flow=Flow(inhibited, unchanged),
    time="h",
    source="Dayneka, Garg & Jusko 1993, J Pharmacokinet Biopharm 21:457, doi 10.1007/BF01061691",
    valid="One drug, at once at its target; turnover constant without it, no feedback, no tolerance.",
    stiffness="Solved exactly while the concentration is constant; half an hour: explicit, Tsit5.",
    checked=_CHECKED,
    example=example,
)
indirect_response_2 = replace(
    indirect_response_1,
    name="indirect_response_2",
    drift=Drift(unchanged, inhibited),
    flow=Flow(unchanged, inhibited),
)
indirect_response_3 = replace(
    indirect_response_1,
    name="indirect_response_3",
    params=Stimulation,
    drift=Drift(stimulated, unchanged),
    flow=Flow(stimulated, unchanged),
)
indirect_response_4 = replace(
    indirect_response_3,
    name="indirect_response_4",
    drift=Drift(unchanged, stimulated),
    flow=Flow(unchanged, stimulated),
)


def delayed(production: Change) -> Model:
    """Turnover with transit of a production that is `inhibited` or `stimulated`."""
    return replace(
        indirect_response_1,
        name="indirect_response_transit",
        params=Delayed if production is inhibited else DelayedStimulation,
        init=init_delayed,
        drift=DelayedDrift(production),
        flow=LinearFlow(DelayedDrift(production)),
        source="Sun & Jusko 1998, J Pharm Sci 87:732, doi 10.1021/js970414z",
        stiffness="Solved exactly while the concentration is constant; 30 min to 2 h: explicit, Tsit5.",
        checked="Matrix exponential by SciPy while the concentration is constant: 1e-10 relative.",
    )


indirect_response_transit = delayed(inhibited)
