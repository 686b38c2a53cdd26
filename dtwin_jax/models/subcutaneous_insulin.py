"""Insulin injected under the skin, in plasma: the absorption of the Hovorka model by itself.

Source: Hovorka et al. 2004, Physiol Meas 25:905, doi 10.1088/0967-3334/25/4/010; basal insulin in health,
Denti et al. 2010, Am J Physiol Endocrinol Metab 298:E950, doi 10.1152/ajpendo.00656.2009.

    S1' = insulin - S1 / tmaxI
    S2' = (S1 - S2) / tmaxI
    I'  = S2 / (tmaxI VI BW) - ke I
    plasma_insulin = endogenous + I

The exact solution, a matrix exponential, is used between events. tmaxI and ke are fitted from insulin
levels after an injection; VI and the fraction absorbed are one. What the pancreas still makes is constant.
"""

import equinox as eqx

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined

_PAPER = "Hovorka 2004"
_PRIOR = _PAPER + "; prior weakly informative, chosen here"
_CHOSEN = "value and prior chosen here"


class Params(eqx.Module):
    """Absorption and elimination."""

    BW: Scalar = param(75.0, "kg", source="chosen here", doc="body weight")
    tmaxI: Scalar = param(
        55.0, "min", lognormal(55.0, log_sd=0.3), source=_PRIOR, doc="time to peak of absorption"
    )
    ke: Scalar = param(0.138, "/min", lognormal(0.138, log_sd=0.3), source=_PRIOR, doc="elimination")
    VI: Scalar = param(0.12, "L/kg", source=_PAPER, doc="volume of distribution")
    endogenous: Scalar = param(
        4.5, "m[IU]/L", source="Denti 2010, centre of covariate, 26.98 pmol/L", doc="insulin of the pancreas"
    )
    sd: Scalar = param(1.0, "m[IU]/L", lognormal(1.0, log_sd=0.7), source=_CHOSEN, doc="additive error")
    cv: Scalar = param(0.1, "1", lognormal(0.1, log_sd=0.7), source=_CHOSEN, doc="proportional error")


class Inputs(eqx.Module):
    """What is injected."""

    insulin: Input = var("m[IU]/min", neutral=0.0, doc="rapid-acting, under the skin")


class State(eqx.Module):
    """Two depots under the skin, and plasma."""

    S1: Scalar = var("m[IU]")
    S2: Scalar = var("m[IU]")
    I: Scalar = var("m[IU]/L")  # noqa: E741 - the paper's name of it


class Outputs(eqx.Module):
    """What is measured."""

    plasma_insulin: Scalar = var("m[IU]/L", doc="in plasma", plausible=(0.0, 1e4))


def init(p: Params) -> State:
    """Nothing injected yet."""
    return State(S1=0.0, S2=0.0, I=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per minute."""
    return State(
        S1=u.insulin - x.S1 / p.tmaxI,
        S2=(x.S1 - x.S2) / p.tmaxI,
        I=x.S2 / (p.tmaxI * p.VI * p.BW) - p.ke * x.I,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """What was injected and what the pancreas makes."""
    return Outputs(plasma_insulin=p.endogenous + x.I)


def example() -> Record:
    """10 units at once, sampled for six hours."""
    times = [0.0, 15.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0, 360.0]
    return Record(Inputs(insulin=Doses([0.0], [10e3])), {"plasma_insulin": Series(times, [0.0] * len(times))})


subcutaneous_insulin = Model(
    name="subcutaneous_insulin",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    flow=LinearFlow(drift),
    time="min",
    source="Hovorka et al. 2004, Physiol Meas 25:905, doi 10.1088/0967-3334/25/4/010",
    valid="Rapid-acting insulin under the skin of adults, for hours.",
    stiffness="Solved exactly between events (7 to 55 min).",
    checked="The insulin of the Hovorka model by its ODE: 1e-6 of the largest value.",
    example=example,
)
