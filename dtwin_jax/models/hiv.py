"""Human immunodeficiency virus (HIV) in blood after a protease inhibitor is begun.

Source: Perelson et al. 1996, Science 271:1582, doi 10.1126/science.271.5255.1582. c and delta of the
defaults are the means of its Table 1, recalled, not checked.

    P'   = delta (VI - P),                         P(0) = 1
    VI'  = c ((1 - efficacy) P - VI),              VI(0) = 1
    VNI' = c (efficacy P - VNI),                   VNI(0) = 0
    viral_load = V0 (VI + VNI)

P is the virus that infected cells make (N delta T* of the paper, relative to c V0), while target cells stay
as many as at the untreated steady state (N K0 T0 = c), which the paper assumes and which holds for about a
week. Efficacy is the share of new virus that the drug makes non-infectious. The exact solution is used.
delta is determined by a week of samples, c only by those of the first day, where it trades off against V0.
"""

import equinox as eqx
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import log_normal

_PERELSON = "Perelson 1996 Table 1, mean of 5 patients, recalled, not checked; spread chosen here"
_HERE = "weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of virus and infected cells."""

    V0: Scalar = param(
        2.16e5, "{copies}/mL", lognormal(2.16e5, log_sd=1.5), source=_HERE, doc="viral load at the start"
    )
    c: Scalar = param(3.07, "/d", lognormal(3.07, log_sd=0.5), source=_PERELSON, doc="clearance of virus")
    delta: Scalar = param(
        0.49, "/d", lognormal(0.49, log_sd=0.4), source=_PERELSON, doc="loss of infected cells"
    )
    cv: Scalar = param(0.3, "1", lognormal(0.3, log_sd=0.7), source=_HERE, doc="sd of the log of a load")


class Inputs(eqx.Module):
    """The drug."""

    efficacy: Input = var("1", neutral=0.0, doc="share of new virus made non-infectious, 0 to 1")


class State(eqx.Module):
    """Production of virus, and virus by whether it infects, relative to the start."""

    production: Scalar = var("1")
    infectious: Scalar = var("1")
    noninfectious: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    viral_load: Scalar = var("{copies}/mL", doc="RNA in plasma", plausible=(0.0, 1e9))


def init(p: Params) -> State:
    """The untreated steady state."""
    return State(production=1.0, infectious=1.0, noninfectious=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    return State(
        production=p.delta * (x.infectious - x.production),
        infectious=p.c * ((1 - u.efficacy) * x.production - x.infectious),
        noninfectious=p.c * (u.efficacy * x.production - x.noninfectious),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Virus of either kind."""
    return Outputs(viral_load=p.V0 * (x.infectious + x.noninfectious))


def example() -> Record:
    """A week of ritonavir from time 0, sampled as in Perelson et al. 1996: often on the first two days."""
    times = np.array([0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(efficacy=1.0), {"viral_load": seen})


hiv = Model(
    name="hiv",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    flow=LinearFlow(drift),
    time="d",
    source="Perelson et al. 1996, doi 10.1126/science.271.5255.1582",
    valid="Chronic HIV infection at a steady state, the first week of a protease inhibitor.",
    stiffness="Solved exactly while efficacy is constant.",
    checked="Closed form of the paper, 7 d: 5e-12 relative, the matrix exponential's rounding.",
    example=example,
)
