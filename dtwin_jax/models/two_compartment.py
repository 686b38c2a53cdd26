"""Two-compartment kinetics of a drug: bolus, infusion, first-order absorption.

Source: Gabrielsson & Weiner, Pharmacokinetic and Pharmacodynamic Data Analysis; defaults CL 1 L/h, V1 20 L,
Q 2 L/h, V2 10 L, ka 1 /h are those of mrgsolve's pk2 model (metrumresearchgroup/mrgsolve,
inst/models/pk2.cpp).

    depot'      = F oral - ka depot
    central'    = iv + ka depot - (CL / V1) central - (Q / V1) central + (Q / V2) peripheral
    peripheral' = (Q / V1) central - (Q / V2) peripheral
    concentration = central / V1
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, delay, scale
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import filling, passage
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.models.one_compartment import Inputs, Outputs

_WEAK = "value: mrgsolve pk2; prior: weakly informative, chosen here"
_ERROR = "value and prior: weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of two-compartment kinetics."""

    CL: Scalar = param(1.0, "L/h", lognormal(1.0, log_sd=1.5), source=_WEAK, doc="clearance")
    V1: Scalar = param(20.0, "L", lognormal(20.0, log_sd=1.5), source=_WEAK, doc="central volume")
    Q: Scalar = param(
        2.0, "L/h", lognormal(2.0, log_sd=1.5), source=_WEAK, doc="intercompartmental clearance"
    )
    V2: Scalar = param(10.0, "L", lognormal(10.0, log_sd=1.5), source=_WEAK, doc="peripheral volume")
    ka: Scalar = param(1.0, "/h", lognormal(1.0, log_sd=1.5), source=_WEAK, doc="absorption rate")
    F: Scalar = param(1.0, "1", doc="bioavailability of the oral dose")
    lag: Scalar = param(0.0, "h", doc="lag of absorption")
    sd: Scalar = param(0.1, "mg/L", lognormal(0.1, log_sd=1.5), source=_ERROR, doc="additive error")
    cv: Scalar = param(0.1, "1", lognormal(0.1, log_sd=1.0), source=_ERROR, doc="proportional error")


class State(eqx.Module):
    """Amounts."""

    depot: Scalar = var("mg")
    central: Scalar = var("mg")
    peripheral: Scalar = var("mg")


def init(p: Params) -> State:
    """No drug."""
    return State(depot=0.0, central=0.0, peripheral=0.0)


def dosing(u: Inputs, p: Params) -> Inputs:
    """Oral doses arrive after the lag, and F of them."""
    return Inputs(oral=delay(scale(u.oral, p.F), p.lag), iv=u.iv)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, mg/h."""
    absorbed = p.ka * x.depot
    exchanged = p.Q / p.V1 * x.central - p.Q / p.V2 * x.peripheral
    return State(
        depot=u.oral - absorbed,
        central=u.iv + absorbed - p.CL / p.V1 * x.central - exchanged,
        peripheral=exchanged,
    )


def flow(dt: Scalar, x: State, u: Inputs, p: Params) -> State:
    """The exact solution after `dt` under constant inputs, by the two exponents of the disposition.

    The response of (central, peripheral) to a unit put into either is a sum over the exponents; each
    term then takes a bolus, an inflow or the emptying of the depot.
    """
    k10, k12, k21 = p.CL / p.V1, p.Q / p.V1, p.Q / p.V2
    total = k10 + k12 + k21
    # (k10 + k12 - k21)^2 + 4 k12 k21 is never negative, unlike total^2 - 4 k10 k21 after rounding.
    gap = jnp.sqrt((k10 + k12 - k21) ** 2 + 4 * k12 * k21)
    fast = (total + gap) / 2
    slow = k10 * k21 / fast
    depot = x.depot * jnp.exp(-p.ka * dt) + u.oral * filling(p.ka, dt)
    central = peripheral = 0.0
    for rate, other in ((fast, slow), (slow, fast)):
        decay, filled, emptied = jnp.exp(-rate * dt), filling(rate, dt), passage(p.ka, rate, dt)
        entered = (
            x.central * decay + p.ka * x.depot * emptied + (u.iv + u.oral) * filled - u.oral * emptied
        ) / (rate - other)
        aside = x.peripheral * decay / (rate - other)
        central = central + (rate - k21) * entered - k21 * aside
        peripheral = peripheral - k12 * entered + (rate - k10 - k12) * aside
    return State(depot=depot, central=central, peripheral=peripheral)


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Concentration in plasma."""
    return Outputs(concentration=x.central / p.V1)


def example() -> Record:
    """100 mg at once into a vein, and by mouth a week later, as in a study of bioavailability."""
    after = np.array([0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0, 48.0])
    times = np.concatenate([after, 168.0 + after])
    inputs = Inputs(iv=Doses([0.0], [100.0]), oral=Doses([168.0], [100.0]))
    return Record(inputs, {"concentration": Series(times, np.zeros(len(times)))})


two_compartment = Model(
    name="two_compartment",
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
    valid="Drugs with one distribution phase, elimination unsaturated; Q and V2 need early samples, and by"
    " mouth alone volumes and clearances are over F.",
    stiffness="Solved exactly between events (1 h absorption, 3 h distribution, 32 h elimination).",
    checked="Tabled dosing cases, before and after events: 1e-10 of sums of exponentials in 40 digits.",
    example=example,
)
