"""Three-compartment kinetics of a drug: bolus, infusion, first-order absorption.

Source: Gabrielsson & Weiner, Pharmacokinetic and Pharmacodynamic Data Analysis; defaults CL 1 L/h, V1 20 L,
Q2 2 L/h, V2 10 L, Q3 0.5 L/h, V3 50 L, ka 1 /h are those of mrgsolve's pk3 model
(metrumresearchgroup/mrgsolve, inst/models/pk3.cpp).

    depot'   = F oral - ka depot
    central' = iv + ka depot - (CL + Q2 + Q3) central / V1 + Q2 shallow / V2 + Q3 deep / V3
    shallow' = Q2 (central / V1 - shallow / V2)
    deep'    = Q3 (central / V1 - deep / V3)
    concentration = central / V1

The exponents are roots of a cubic, which lose digits where two are close; a matrix exponential does not.
"""

import equinox as eqx
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, delay, scale
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.models.one_compartment import Inputs, Outputs

_WEAK = "value: mrgsolve pk3; prior: weakly informative, chosen here"
_ERROR = "value and prior: weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of three-compartment kinetics."""

    CL: Scalar = param(1.0, "L/h", lognormal(1.0, log_sd=1.5), source=_WEAK, doc="clearance")
    V1: Scalar = param(20.0, "L", lognormal(20.0, log_sd=1.5), source=_WEAK, doc="central volume")
    Q2: Scalar = param(
        2.0, "L/h", lognormal(2.0, log_sd=1.5), source=_WEAK, doc="clearance to the shallow compartment"
    )
    V2: Scalar = param(10.0, "L", lognormal(10.0, log_sd=1.5), source=_WEAK, doc="its volume")
    Q3: Scalar = param(
        0.5, "L/h", lognormal(0.5, log_sd=1.5), source=_WEAK, doc="clearance to the deep compartment"
    )
    V3: Scalar = param(50.0, "L", lognormal(50.0, log_sd=1.5), source=_WEAK, doc="its volume")
    ka: Scalar = param(1.0, "/h", lognormal(1.0, log_sd=1.5), source=_WEAK, doc="absorption rate")
    F: Scalar = param(1.0, "1", doc="bioavailability of the oral dose")
    lag: Scalar = param(0.0, "h", doc="lag of absorption")
    sd: Scalar = param(0.1, "mg/L", lognormal(0.1, log_sd=1.5), source=_ERROR, doc="additive error")
    cv: Scalar = param(0.1, "1", lognormal(0.1, log_sd=1.0), source=_ERROR, doc="proportional error")


class State(eqx.Module):
    """Amounts."""

    depot: Scalar = var("mg")
    central: Scalar = var("mg")
    shallow: Scalar = var("mg")
    deep: Scalar = var("mg")


def init(p: Params) -> State:
    """No drug."""
    return State(depot=0.0, central=0.0, shallow=0.0, deep=0.0)


def dosing(u: Inputs, p: Params) -> Inputs:
    """Oral doses arrive after the lag, and F of them."""
    return Inputs(oral=delay(scale(u.oral, p.F), p.lag), iv=u.iv)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, mg/h."""
    absorbed, concentration = p.ka * x.depot, x.central / p.V1
    to_shallow = p.Q2 * (concentration - x.shallow / p.V2)
    to_deep = p.Q3 * (concentration - x.deep / p.V3)
    return State(
        depot=u.oral - absorbed,
        central=u.iv + absorbed - p.CL * concentration - to_shallow - to_deep,
        shallow=to_shallow,
        deep=to_deep,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Concentration in plasma."""
    return Outputs(concentration=x.central / p.V1)


def example() -> Record:
    """100 mg over an hour into a vein, and by mouth two weeks later; samples for four days after each."""
    after = np.array([0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 24.0, 48.0, 96.0])
    times = np.concatenate([after, 336.0 + after])
    inputs = Inputs(iv=Doses([0.0], [100.0], [1.0]), oral=Doses([336.0], [100.0]))
    return Record(inputs, {"concentration": Series(times, np.zeros(len(times)))})


three_compartment = Model(
    name="three_compartment",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    dosing=dosing,
    flow=LinearFlow(drift),
    time="h",
    source="Gabrielsson & Weiner, Pharmacokinetic and Pharmacodynamic Data Analysis",
    valid="Drugs with two distribution phases, elimination unsaturated; Q3 and V3 need late samples, Q2 and"
    " V2 early ones, and by mouth alone volumes and clearances are over F.",
    stiffness="Solved exactly between events (1 h absorption, 3 h to 150 h distribution and elimination).",
    checked="Tabled dosing cases: 1e-10 of sums of exponentials in 40 digits.",
    example=example,
)
