"""Hepatitis C virus under treatment, limited by target cells.

Source: Neumann et al. 1998, Science 282:103, doi 10.1126/science.282.5386.103. Values: those of mrgsolve's
viral1 model (inst/models/viral1.cpp), rewritten as below.

    target'       = d R0 - d target - (1 - eta) d (R0 - 1) target virus
    log_infected' = (1 - eta) delta target virus / infected - delta
    log_virus'    = c (made infected / virus - 1),    made = sqrt((1 - epsilon)^2 + 1e-20)
    viral_load    = V0 virus

All three are relative to the untreated infected steady state, where they are 1, so that the production of
virus, the supply of cells and the constant of infection (p, s, beta of the paper), which a viral load does
not determine, leave one number, the reproductive number R0 = beta p s / (c delta d). Infected cells and
virus are solved as logarithms: they fall over decades and stay positive. The paper has 1 - epsilon for
`made`, with which virus falls out of all numbers where epsilon is 1; here 1e-10 of production goes on there
(of 5e5 IU/mL, less than 1 IU in all plasma), and below 0.999 nothing differs. V0, c and delta show in the two
phases of decline, and are estimated. R0 and d show only in a rebound, and are known; give R0 a prior where
loads were measured after treatment. The drug's effect is an input.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import log_normal

# Share of production that no drug blocks. The log of more than virus, and than cells and virus by each other,
# can be but in a step that the solver tries and refuses, which must not leave all numbers.
_LEAST, _BEYOND = 1e-10, 25.0
_VALUE = "mrgsolve viral1, whose own source is not checked"
_MRGSOLVE = _VALUE + "; spread chosen here"
_HERE = "weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of virus, infected cells and target cells."""

    V0: Scalar = param(
        4.7597e5, "[IU]/mL", lognormal(4.7597e5, log_sd=1.5), source=_MRGSOLVE, doc="load at the start"
    )
    R0: Scalar = param(
        79.535, "1", source=_VALUE + ": beta p s / (c delta d)", doc="basic reproductive number"
    )
    c: Scalar = param(8.0, "/d", lognormal(8.0, log_sd=0.5), source=_MRGSOLVE, doc="clearance of virus")
    delta: Scalar = param(
        0.4, "/d", lognormal(0.4, log_sd=0.7), source=_MRGSOLVE, doc="loss of infected cells"
    )
    d: Scalar = param(1 / 300, "/d", source=_VALUE, doc="loss of target cells")
    cv: Scalar = param(0.3, "1", lognormal(0.3, log_sd=0.7), source=_HERE, doc="sd of the log of a load")


class Inputs(eqx.Module):
    """Treatment."""

    epsilon: Input = var("1", neutral=0.0, doc="share of virus production blocked, 0 to 1")
    eta: Input = var("1", neutral=0.0, doc="share of infection blocked, 0 to 1")


class State(eqx.Module):
    """Cells and virus, relative to the untreated steady state."""

    target: Scalar = var("1")
    log_infected: Scalar = var("1")
    log_virus: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    viral_load: Scalar = var("[IU]/mL", doc="RNA in serum", plausible=(0.0, 1e10))


def init(p: Params) -> State:
    """The untreated infected steady state."""
    return State(target=1.0, log_infected=0.0, log_virus=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    infecting = (1 - u.eta) * x.target
    made = jnp.sqrt((1 - u.epsilon) ** 2 + _LEAST**2)
    return State(
        target=p.d * (p.R0 - x.target - (p.R0 - 1) * infecting * _exp(x.log_virus)),
        log_infected=p.delta * (infecting * _exp(x.log_virus - x.log_infected) - 1),
        log_virus=p.c * (made * _exp(x.log_infected - x.log_virus) - 1),
    )


def _exp(log: Scalar) -> Scalar:
    return jnp.exp(jnp.minimum(log, _BEYOND))


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Viral load."""
    return Outputs(viral_load=p.V0 * jnp.exp(x.log_virus))


def example() -> Record:
    """Two weeks of interferon that blocks 95 % of production, sampled often in the first two days.

    Times: after Neumann et al. 1998, recalled, not checked.
    """
    times = [0.0, 0.08, 0.17, 0.29, 0.42, 0.58, 0.79, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0]
    return Record(Inputs(epsilon=0.95), {"viral_load": Series(times, np.zeros(len(times)))})


hcv = Model(
    name="hcv",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    time="d",
    source="Neumann et al. 1998, doi 10.1126/science.282.5386.103",
    valid="Chronic hepatitis C, untreated at the start; weeks of treatment and the rebound after it.",
    stiffness="0.1 d (virus) to 300 d (target cells), 2.5 d between: explicit, Tsit5.",
    checked="mrgsolve's own equations solved at 1e-12: cells and virus over 56 d, 1e-6 relative.",
    example=example,
)
