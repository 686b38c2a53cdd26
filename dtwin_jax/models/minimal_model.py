"""Glucose minimal model with measured insulin, for the intravenous glucose tolerance test (IVGTT).

Source: Bergman, Ider, Bowden & Cobelli 1979, Am J Physiol 236:E667, doi 10.1152/ajpendo.1979.236.6.E667.
Priors: between-subject distribution in 204 healthy adults, Denti et al. 2010, Am J Physiol Endocrinol Metab
298:E950, doi 10.1152/ajpendo.00656.2009, as read in nlmixr2lib (endogenous/Denti_2010_glucoseMinimal.R).

    G' = -(SG + X) G + SG Gb,              G(0) = G0
    X' = -p2 X + p2 SI (insulin - Ib),     X(0) = 0
"""

import equinox as eqx
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Sampled
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.dynamics.solver import Solver

_DENTI = "Denti 2010: median and between-subject sd of the log"
_GLUCOSE = 180.156  # g/mol


class Params(eqx.Module):
    """Parameters of the minimal model. `SI` is per unit of plasma insulin in u[IU]/mL."""

    SG: Scalar = param(
        0.0192, "/min", lognormal(0.0192, log_sd=0.210), source=_DENTI, doc="glucose effectiveness"
    )
    p2: Scalar = param(
        0.0254, "/min", lognormal(0.0254, log_sd=0.379), source=_DENTI, doc="decay of insulin action"
    )
    SI: Scalar = param(
        3.5e-4,
        "mL/u[IU]/min",
        lognormal(3.5e-4, log_sd=0.475),
        source=_DENTI + "; 5.83e-5 L/min/pmol at 6 pmol per m[IU] of insulin",
        doc="insulin sensitivity",
    )
    G0: Scalar = param(
        268.0,
        "mg/dL",
        lognormal(268.0, log_sd=0.2),
        source="basal 91.3 mg/dL and 0.3 g/kg over 1.70 dL/kg (Denti 2010); spread chosen here",
        doc="glucose just after the injection, extrapolated",
    )
    Gb: Scalar = param(
        91.34, "mg/dL", source="Denti 2010, centre of covariate", doc="basal glucose, measured"
    )
    Ib: Scalar = param(
        4.5, "u[IU]/mL", source="Denti 2010, centre of covariate, 26.98 pmol/L", doc="basal insulin, measured"
    )
    sd: Scalar = param(
        4.28,
        "mg/dL",
        lognormal(4.28, log_sd=0.5),
        source="Denti 2010; spread chosen here",
        doc="additive error",
    )
    cv: Scalar = param(
        0.0227,
        "1",
        lognormal(0.0227, log_sd=0.5),
        source="Denti 2010; spread chosen here",
        doc="proportional error",
    )


class Inputs(eqx.Module):
    """What drives glucose."""

    insulin: Input = var(
        "u[IU]/mL", neutral=4.5, doc="plasma insulin, linear between samples", plausible=(0.0, 1e4)
    )


class State(eqx.Module):
    """Glucose and the action of insulin on it."""

    glucose: Scalar = var("mg/dL")
    action: Scalar = var("/min")


class Outputs(eqx.Module):
    """What is measured."""

    # Wide guards against a wrong unit, not limits of physiology.
    glucose: Scalar = var("mg/dL", doc="plasma glucose", molar_mass=_GLUCOSE, plausible=(10.0, 1500.0))


def init(p: Params) -> State:
    """Just after the injection."""
    return State(glucose=p.G0, action=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per minute."""
    return State(
        glucose=-(p.SG + x.action) * x.glucose + p.SG * p.Gb,
        action=-p.p2 * x.action + p.p2 * p.SI * (u.insulin - p.Ib),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Plasma glucose."""
    return Outputs(glucose=x.glucose)


def example() -> Record:
    """The frequently sampled test of three hours, from 8 min on, when the glucose has mixed.

    Times and insulin: the example subject of Pacini & Bergman 1986, Comput Methods Programs Biomed 23:113,
    doi 10.1016/0169-2607(86)90106-9, a published table of measurements, as read in the tutorial of van Riel
    2004 (TU/e), not in the paper.
    """
    times = [8, 10, 12, 14, 16, 19, 22, 27, 32, 42, 52, 62, 72, 82, 92, 102, 122, 142, 162, 182]
    insulin = [51, 49, 45, 41, 35, 30, 30, 27, 30, 22, 15, 15, 11, 10, 8, 11, 7, 8, 8, 7]
    course = Sampled([0, 2, 4, 6, *times], [11, 26, 130, 85, *insulin])
    return Record(Inputs(insulin=course), {"glucose": Series(times, np.zeros(len(times)))})


minimal_model = Model(
    name="minimal_model",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    time="min",
    # At parameters three times as scattered as people's a whole test takes 200 steps: a sampler that goes
    # further is told so, and does not wait.
    solver=Solver(max_steps=512),
    source="Bergman et al. 1979, Am J Physiol 236:E667, doi 10.1152/ajpendo.1979.236.6.E667",
    valid="The intravenous glucose test in people fasting and at rest, from about 8 min on, with measured"
    " insulin.",
    stiffness="Time constants of 20 to 50 min: an explicit solver.",
    checked="Glucose and action over 3 h: 1e-8 of a solve at 1e-12; six sensitivities 1e-5.",
    example=example,
)
