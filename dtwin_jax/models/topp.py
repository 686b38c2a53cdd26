"""Beta-cell mass, insulin and glucose over months and years: the route to type 2 diabetes of Topp.

Source: Topp, Promislow, de Vries, Miura & Finegood 2000, J Theor Biol 206:605,
doi:10.1006/jtbi.2000.2150; constants as in BioModels BIOMD0000000341.

    G' = R0 - (Eg0 + SI sensitivity I) G
    I' = B sigma G^2 / (alpha + G^2) - k I
    B' = (-d0 + r1 G - r2 G^2) B

Beta cells grow at glucose between the two roots of -d0 + r1 G - r2 G^2, 100 and 250 mg/dL by default,
and die outside: (100 mg/dL, 10 uU/mL, 300 mg) is a stable state of rest, 250 mg/dL a saddle beyond which
they are lost. The input `sensitivity` scales SI: a step below 1 is insulin resistance, to which beta
cells adapt, or fail.

Fitted in practice: SI, sigma and the state at the start; B and sigma only as their product, so sigma is
known by default. Growth, r1, r2 and d0, shows only in years of data.
"""

import diffrax
import equinox as eqx
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import log_normal
from dtwin_jax.dynamics.solver import Solver

_GLUCOSE = 180.156  # g/mol
_TOPP = "Topp 2000, BIOMD0000000341"
_PRIOR = _TOPP + "; prior weakly informative, chosen here"
_ERROR = "value and prior chosen here"


class Params(eqx.Module):
    """Parameters; the defaults are those of the paper, at rest in health."""

    R0: Scalar = param(864.0, "mg/dL/d", source=_TOPP, doc="glucose production at no glucose")
    Eg0: Scalar = param(1.44, "/d", source=_TOPP, doc="glucose effectiveness at no insulin")
    SI: Scalar = param(
        0.72, "mL/u[IU]/d", lognormal(0.72, log_sd=0.6), source=_PRIOR, doc="insulin sensitivity"
    )
    sigma: Scalar = param(
        43.2, "u[IU]/mL/d/mg", source=_TOPP, doc="greatest secretion by a mass of beta cells"
    )
    alpha: Scalar = param(
        20000.0, "mg2/dL2", source=_TOPP, doc="square of the glucose at half of the greatest secretion"
    )
    k: Scalar = param(432.0, "/d", source=_TOPP, doc="clearance of insulin")
    d0: Scalar = param(0.06, "/d", source=_TOPP, doc="death of beta cells at no glucose")
    r1: Scalar = param(0.84e-3, "dL/mg/d", source=_TOPP, doc="growth of beta cells with glucose")
    r2: Scalar = param(2.4e-6, "dL2/mg2/d", source=_TOPP, doc="toxicity of glucose to beta cells")
    G0: Scalar = param(
        100.0, "mg/dL", lognormal(100.0, log_sd=0.3), source=_PRIOR, doc="glucose at the start"
    )
    I0: Scalar = param(10.0, "u[IU]/mL", source=_TOPP, doc="insulin at the start, forgotten within minutes")
    B0: Scalar = param(
        300.0, "mg", lognormal(300.0, log_sd=0.6), source=_PRIOR, doc="beta cells at the start"
    )
    cv_glucose: Scalar = param(
        0.05, "1", lognormal(0.05, log_sd=0.7), source=_ERROR, doc="sd of the log of fasting glucose"
    )
    cv_insulin: Scalar = param(
        0.2, "1", lognormal(0.2, log_sd=0.7), source=_ERROR, doc="sd of the log of fasting insulin"
    )


class Inputs(eqx.Module):
    """What changes the sensitivity."""

    sensitivity: Input = var("1", neutral=1.0, doc="insulin sensitivity as a multiple of SI")


class State(eqx.Module):
    """Concentrations in plasma, and the mass of beta cells."""

    glucose: Scalar = var("mg/dL")
    insulin: Scalar = var("u[IU]/mL")
    beta_cells: Scalar = var("mg")


class Outputs(eqx.Module):
    """What is measured."""

    # Wide guards against a wrong unit, not limits of physiology.
    glucose: Scalar = var("mg/dL", doc="fasting glucose", molar_mass=_GLUCOSE, plausible=(10.0, 1500.0))
    insulin: Scalar = var("u[IU]/mL", doc="fasting insulin", plausible=(0.0, 1e4))


def init(p: Params) -> State:
    """Where the patient starts."""
    return State(glucose=p.G0, insulin=p.I0, beta_cells=p.B0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    G, I, B = x.glucose, x.insulin, x.beta_cells  # noqa: E741 - the paper's names of them
    return State(
        glucose=p.R0 - (p.Eg0 + p.SI * u.sensitivity * I) * G,
        insulin=B * p.sigma * G**2 / (p.alpha + G**2) - p.k * I,
        beta_cells=(-p.d0 + p.r1 * G - p.r2 * G**2) * B,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Fasting glucose and insulin."""
    return Outputs(glucose=x.glucose, insulin=x.insulin)


def example() -> Record:
    """Fasting samples every four weeks for two years; sensitivity falls by a third after the first eight."""
    times = np.arange(0.0, 729.0, 28.0)
    samples = Series(times, np.zeros(len(times)))
    inputs = Inputs(sensitivity=Steps([0.0, 56.0], [1.0, 0.67]))
    return Record(inputs, {"glucose": samples, "insulin": samples})


topp = Model(
    name="topp",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    time="d",
    solver=Solver(diffrax.Kvaerno5, rtol=1e-7, atol=(1e-6, 1e-7, 1e-6)),
    source="Topp et al. 2000, J Theor Biol 206:605, doi 10.1006/jtbi.2000.2150",
    valid="Daily averages, as after an overnight fast, over weeks to years: no meals.",
    stiffness="Time constants of 3 min (insulin) to 70 days (beta cells), 1 to 30,000: an implicit solver.",
    checked="Three courses of 400 days agree with libroadrunner to 1e-6, seven sensitivities to 1e-5.",
    example=example,
)
