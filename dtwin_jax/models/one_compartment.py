"""One-compartment kinetics of a drug: bolus, infusion, first-order absorption.

Source: Gabrielsson & Weiner, Pharmacokinetic and Pharmacodynamic Data Analysis; defaults CL 1 L/h, V 20 L,
ka 1 /h are those of mrgsolve's pk1 model (metrumresearchgroup/mrgsolve, inst/models/pk1.cpp).

    depot'   = F oral - ka depot
    central' = iv + ka depot - (CL / V) central
    concentration = central / V
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input, delay, scale
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import filling, passage
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined

# A log sd of 1.5 lets a parameter lie 20 times below or above the median: weak on purpose, since the
# model is of no drug in particular.
_WEAK = "value: mrgsolve pk1; prior: weakly informative, chosen here"
_ERROR = "value and prior: weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of one-compartment kinetics."""

    CL: Scalar = param(1.0, "L/h", lognormal(1.0, log_sd=1.5), source=_WEAK, doc="clearance")
    V: Scalar = param(20.0, "L", lognormal(20.0, log_sd=1.5), source=_WEAK, doc="volume of distribution")
    ka: Scalar = param(1.0, "/h", lognormal(1.0, log_sd=1.5), source=_WEAK, doc="absorption rate")
    F: Scalar = param(1.0, "1", doc="bioavailability of the oral dose")
    lag: Scalar = param(0.0, "h", doc="lag of absorption")
    sd: Scalar = param(0.1, "mg/L", lognormal(0.1, log_sd=1.5), source=_ERROR, doc="additive error")
    cv: Scalar = param(0.1, "1", lognormal(0.1, log_sd=1.0), source=_ERROR, doc="proportional error")


class Inputs(eqx.Module):
    """Where doses go."""

    oral: Input = var("mg/h", neutral=0.0, doc="into the depot")
    iv: Input = var("mg/h", neutral=0.0, doc="into the central compartment")


class State(eqx.Module):
    """Amounts."""

    depot: Scalar = var("mg")
    central: Scalar = var("mg")


class Outputs(eqx.Module):
    """What is measured."""

    concentration: Scalar = var("mg/L", doc="drug in plasma", plausible=(0.0, jnp.inf))


def init(p: Params) -> State:
    """No drug."""
    return State(depot=0.0, central=0.0)


def dosing(u: Inputs, p: Params) -> Inputs:
    """Oral doses arrive after the lag, and F of them."""
    return Inputs(oral=delay(scale(u.oral, p.F), p.lag), iv=u.iv)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, mg/h."""
    absorbed = p.ka * x.depot
    return State(depot=u.oral - absorbed, central=u.iv + absorbed - p.CL / p.V * x.central)


def flow(dt: Scalar, x: State, u: Inputs, p: Params) -> State:
    """The exact solution after `dt` under constant inputs."""
    k = p.CL / p.V
    emptied = passage(p.ka, k, dt)
    depot = x.depot * jnp.exp(-p.ka * dt) + u.oral * filling(p.ka, dt)
    central = (
        x.central * jnp.exp(-k * dt)
        + p.ka * x.depot * emptied
        + (u.iv + u.oral) * filling(k, dt)
        - u.oral * emptied
    )
    return State(depot=depot, central=central)


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Concentration in plasma."""
    return Outputs(concentration=x.central / p.V)


def example() -> Record:
    """One oral dose of 100 mg and ten samples over two days, dense about the peak."""
    times = [0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 24.0, 48.0]
    return Record(Inputs(oral=Doses([0.0], [100.0])), {"concentration": Series(times, np.zeros(len(times)))})


one_compartment = Model(
    name="one_compartment",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    dosing=dosing,
    flow=flow,
    time="h",
    source="Gabrielsson & Weiner, Pharmacokinetic and Pharmacodynamic Data Analysis",
    valid="Drugs whose concentration falls along one exponential, elimination unsaturated; by mouth alone"
    " only CL/F and V/F are told, and ka may change places with CL/V.",
    stiffness="Solved exactly between events (1 h absorption, 20 h elimination).",
    checked="Tabled dosing cases, before and after events: 1e-10 of sums of exponentials in 40 digits.",
    example=example,
)
