"""One-compartment kinetics of a drug whose elimination saturates, alone or beside a constant clearance.

Sources: Gabrielsson & Weiner, Pharmacokinetic and Pharmacodynamic Data Analysis; closed form of a bolus where
nothing else eliminates, Golicnik 2012, Biochem Eng J 63:116. Values chosen here.

    depot'   = F oral - ka depot
    central' = iv + ka depot - (CL + Vmax / (Km + concentration)) concentration
    concentration = central / V

CL 0 is Michaelis-Menten elimination alone. Vmax and Km are told apart by concentrations from below Km to
above it only; far below, Vmax / Km is a clearance, not to be told from CL.

Variants:
parallel_elimination: One-compartment kinetics with saturable and constant clearance side by side
michaelis_menten: One-compartment kinetics with saturable elimination alone
"""

from dataclasses import replace

import equinox as eqx
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, delay, scale
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models.one_compartment import Inputs, Outputs

_WEAK = "value and prior: weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of both eliminations."""

    Vmax: Scalar = param(5.0, "mg/h", lognormal(5.0, log_sd=1.0), source=_WEAK, doc="greatest elimination")
    Km: Scalar = param(2.0, "mg/L", lognormal(2.0, log_sd=1.0), source=_WEAK, doc="half of it")
    CL: Scalar = param(0.5, "L/h", lognormal(0.5, log_sd=1.0), source=_WEAK, doc="constant clearance")
    V: Scalar = param(20.0, "L", lognormal(20.0, log_sd=1.0), source=_WEAK, doc="volume of distribution")
    ka: Scalar = param(1.0, "/h", lognormal(1.0, log_sd=1.0), source=_WEAK, doc="absorption rate")
    F: Scalar = param(1.0, "1", doc="bioavailability of the oral dose")
    lag: Scalar = param(0.0, "h", doc="lag of absorption")
    sd: Scalar = param(0.1, "mg/L", lognormal(0.1, log_sd=1.5), source=_WEAK, doc="additive error")
    cv: Scalar = param(0.1, "1", lognormal(0.1, log_sd=1.0), source=_WEAK, doc="proportional error")


class Saturable(Params):
    """Parameters where no clearance is constant."""

    CL: Scalar = param(0.0, "L/h", source="none, by the model's definition", doc="constant clearance")


class State(eqx.Module):
    """Amounts."""

    depot: Scalar = var("mg")
    central: Scalar = var("mg")


def init(p: Params) -> State:
    """No drug."""
    return State(depot=0.0, central=0.0)


def dosing(u: Inputs, p: Params) -> Inputs:
    """Oral doses arrive after the lag, and F of them."""
    return Inputs(oral=delay(scale(u.oral, p.F), p.lag), iv=u.iv)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, mg/h."""
    absorbed, concentration = p.ka * x.depot, x.central / p.V
    clearance = p.CL + p.Vmax / (p.Km + concentration)
    return State(depot=u.oral - absorbed, central=u.iv + absorbed - clearance * concentration)


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Concentration in plasma."""
    return Outputs(concentration=x.central / p.V)


def example() -> Record:
    """200 mg into a vein and 400 mg by mouth a week later, sampled from far above Km to far below."""
    after = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 36.0, 48.0, 72.0])
    times = np.concatenate([after, 168.0 + after])
    inputs = Inputs(iv=Doses([0.0], [200.0]), oral=Doses([168.0], [400.0]))
    return Record(inputs, {"concentration": Series(times, np.zeros(len(times)))})


parallel_elimination = Model(
    name="parallel_elimination",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    dosing=dosing,
    time="h",
    # An explicit method may step over an empty depot, whose derivatives then are wrong.
    solver=Solver(longest=3.0),
    source="Gabrielsson & Weiner, Pharmacokinetic and Pharmacodynamic Data Analysis",
    valid="Drugs in one compartment whose elimination saturates, as phenytoin's and ethanol's does.",
    stiffness="1 h (absorption) to a day: explicit, Tsit5, no step above 3 h.",
    checked="Lambert's W of a bolus in 40 digits: 1e-10; without saturation, sums of exponentials: 1e-9.",
    example=example,
)
michaelis_menten = replace(parallel_elimination, name="michaelis_menten", params=Saturable)
