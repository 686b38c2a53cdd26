"""Glucose and insulin in type 1 diabetes, with meals and subcutaneous insulin: the Hovorka (Cambridge) model.

Source: Hovorka et al. 2004, Physiol Meas 25:905, doi:10.1088/0967-3334/25/4/010.

    D1' = AG meal / MG - D1 / tmaxG
    D2' = (D1 - D2) / tmaxG
    S1' = insulin + basal u0 - S1 / tmaxI
    S2' = (S1 - S2) / tmaxI
    I'  = S2 / (tmaxI VI BW) - ke I
    xi' = ka_i (SI_i I - xi),     i = T (transport), D (disposal), E (endogenous production)
    Q1' = D2 / tmaxG + EGP0 BW (1 - xE) - F01c - FR - xT Q1 + k12 Q2
    Q2' = xT Q1 - (k12 + xD) Q2
    F01c = F01 BW min(G / G_F01, 1),   FR = R (G - G_R)+ VG BW,   G = Q1 / (VG BW)

F01c and FR have kinks, where the right-hand side is continuous, so that the solver steps over them. As in
the paper, endogenous production is not kept from going below 0 at an insulin that makes xE exceed 1.

A patient rests at the basal glucose `Gb`: the insulin that holds it, `u0`, follows from the parameters, and
the input `basal` is a multiple of it. With a pump's record give all insulin as doses, and `basal` 0.

Fitted in practice: the three sensitivities, EGP0 and the two times of absorption; from glucose
alone EGP0, F01 and the sensitivities move together, and ka_1 to ka_3 are known.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.dynamics.solver import Solver

_GLUCOSE = 180.16  # g/mol
_PAPER = "Hovorka 2004, as in LoopInsighT1 (hpeuscher/loopinsight1)"
_PRIOR = _PAPER + "; prior weakly informative, chosen here"
_CHOSEN = "value and prior chosen here"


class Params(eqx.Module):
    """Parameters; the defaults are those of the paper's adult."""

    BW: Scalar = param(75.0, "kg", source="chosen here", doc="body weight")
    Gb: Scalar = param(
        5.5, "mmol/L", lognormal(5.5, log_sd=0.3), source=_CHOSEN, doc="glucose under basal insulin"
    )
    k12: Scalar = param(0.066, "/min", source=_PAPER, doc="glucose back into the accessible compartment")
    ka_1: Scalar = param(0.006, "/min", source=_PAPER, doc="deactivation of insulin's action on transport")
    ka_2: Scalar = param(0.06, "/min", source=_PAPER, doc="deactivation of insulin's action on disposal")
    ka_3: Scalar = param(0.03, "/min", source=_PAPER, doc="deactivation of insulin's action on production")
    SIT: Scalar = param(
        51.2e-4,
        "L/m[IU]/min",
        lognormal(51.2e-4, log_sd=0.6),
        source=_PRIOR,
        doc="insulin sensitivity of transport",
    )
    SID: Scalar = param(
        8.2e-4,
        "L/m[IU]/min",
        lognormal(8.2e-4, log_sd=0.6),
        source=_PRIOR,
        doc="insulin sensitivity of disposal",
    )
    SIE: Scalar = param(
        520e-4,
        "L/m[IU]",
        lognormal(520e-4, log_sd=0.6),
        source=_PRIOR,
        doc="insulin sensitivity of endogenous production",
    )
    EGP0: Scalar = param(
        0.0161,
        "mmol/kg/min",
        lognormal(0.0161, log_sd=0.3),
        source=_PRIOR,
        doc="endogenous glucose production at no insulin",
    )
    F01: Scalar = param(0.0097, "mmol/kg/min", source=_PAPER, doc="glucose use independent of insulin")
    G_F01: Scalar = param(4.5, "mmol/L", source=_PAPER, doc="glucose below which F01 falls")
    R: Scalar = param(0.003, "/min", source=_PAPER, doc="renal clearance above the threshold")
    G_R: Scalar = param(9.0, "mmol/L", source=_PAPER, doc="renal threshold")
    VG: Scalar = param(0.16, "L/kg", source=_PAPER, doc="volume of glucose")
    VI: Scalar = param(0.12, "L/kg", source=_PAPER, doc="volume of insulin")
    ke: Scalar = param(0.138, "/min", source=_PAPER, doc="elimination of insulin")
    tmaxI: Scalar = param(
        55.0, "min", lognormal(55.0, log_sd=0.3), source=_PRIOR, doc="time to peak of insulin's absorption"
    )
    AG: Scalar = param(0.8, "1", source=_PAPER, doc="fraction of carbohydrate absorbed")
    tmaxG: Scalar = param(
        40.0, "min", lognormal(40.0, log_sd=0.4), source=_PRIOR, doc="time to peak of a meal's absorption"
    )
    MG: Scalar = param(_GLUCOSE, "mg/mmol", source="molar mass of glucose", doc="molar mass of glucose")
    sd: Scalar = param(0.2, "mmol/L", lognormal(0.2, log_sd=0.7), source=_CHOSEN, doc="additive error")
    cv: Scalar = param(0.05, "1", lognormal(0.05, log_sd=0.7), source=_CHOSEN, doc="proportional error")


class Inputs(eqx.Module):
    """What is eaten and injected."""

    meal: Input = var("mg/min", neutral=0.0, doc="carbohydrate, as glucose")
    insulin: Input = var("m[IU]/min", neutral=0.0, doc="subcutaneous insulin")
    basal: Input = var("1", neutral=1.0, doc="further insulin, as a multiple of what holds glucose at Gb")


class State(eqx.Module):
    """Amounts in the gut, under the skin and in plasma; actions of insulin."""

    D1: Scalar = var("mmol")
    D2: Scalar = var("mmol")
    S1: Scalar = var("m[IU]")
    S2: Scalar = var("m[IU]")
    I: Scalar = var("m[IU]/L")  # noqa: E741 - the paper's name of it
    xT: Scalar = var("/min")
    xD: Scalar = var("/min")
    xE: Scalar = var("1")
    Q1: Scalar = var("mmol")
    Q2: Scalar = var("mmol")


class Outputs(eqx.Module):
    """What is measured."""

    # Wide guards against a wrong unit, not limits of physiology.
    glucose: Scalar = var("mmol/L", doc="plasma glucose", molar_mass=_GLUCOSE, plausible=(0.3, 80.0))


def _losses(G: Scalar, p: Params) -> Scalar:
    """Glucose used without insulin and lost in urine, mmol/min."""
    used = p.F01 * p.BW * jnp.minimum(G / p.G_F01, 1.0)
    return used + p.R * jnp.maximum(G - p.G_R, 0.0) * p.VG * p.BW


def basal_insulin(p: Params) -> Scalar:
    """Plasma insulin that holds glucose at Gb, mU/L; 0 where less is produced than is lost without it.

    At rest, SIT SID Q1 I^2 = (E - F - E SIE I) (k12 + SID I), with production E and losses F.
    """
    Q1, E = p.Gb * p.VG * p.BW, p.EGP0 * p.BW
    surplus = jnp.maximum(E - _losses(p.Gb, p), 0.0)
    a = p.SIT * p.SID * Q1 + E * p.SIE * p.SID
    b = E * p.SIE * p.k12 - surplus * p.SID
    return (jnp.sqrt(b**2 + 4.0 * a * surplus * p.k12) - b) / (2.0 * a)


def basal_rate(p: Params) -> Scalar:
    """Insulin infusion that holds glucose at Gb, mU/min."""
    return basal_insulin(p) * p.ke * p.VI * p.BW


def init(p: Params) -> State:
    """At rest at Gb, fasting."""
    I = basal_insulin(p)  # noqa: E741
    depot = basal_rate(p) * p.tmaxI
    Q1 = p.Gb * p.VG * p.BW
    Q2 = p.SIT * I * Q1 / (p.k12 + p.SID * I)
    none = jnp.zeros_like(Q1)
    return State(none, none, depot, depot, I, p.SIT * I, p.SID * I, p.SIE * I, Q1, Q2)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per minute."""
    appearing = x.D2 / p.tmaxG
    produced = p.EGP0 * p.BW * (1.0 - x.xE)
    return State(
        D1=p.AG * u.meal / p.MG - x.D1 / p.tmaxG,
        D2=x.D1 / p.tmaxG - appearing,
        S1=u.insulin + u.basal * basal_rate(p) - x.S1 / p.tmaxI,
        S2=(x.S1 - x.S2) / p.tmaxI,
        I=x.S2 / (p.tmaxI * p.VI * p.BW) - p.ke * x.I,
        xT=p.ka_1 * (p.SIT * x.I - x.xT),
        xD=p.ka_2 * (p.SID * x.I - x.xD),
        xE=p.ka_3 * (p.SIE * x.I - x.xE),
        Q1=appearing + produced - _losses(x.Q1 / (p.VG * p.BW), p) - x.xT * x.Q1 + p.k12 * x.Q2,
        Q2=x.xT * x.Q1 - (p.k12 + x.xD) * x.Q2,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Plasma glucose."""
    return Outputs(glucose=x.Q1 / (p.VG * p.BW))


def example() -> Record:
    """A morning in the clinic: 60 g of carbohydrate and 3 units of insulin at 1 h, blood every 15 min."""
    times = np.arange(15.0, 601.0, 15.0)
    inputs = Inputs(meal=Doses([60.0], [60e3]), insulin=Doses([60.0], [3e3]))
    return Record(inputs, {"glucose": Series(times, np.zeros(len(times)))})


hovorka = Model(
    name="hovorka",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    time="min",
    solver=Solver(rtol=1e-6, atol=(1e-6, 1e-6, 1e-5, 1e-5, 1e-6, 1e-9, 1e-9, 1e-8, 1e-6, 1e-6)),
    source="Hovorka et al. 2004, Physiol Meas 25:905, doi 10.1088/0967-3334/25/4/010",
    valid="Adults with type 1 diabetes on rapid-acting subcutaneous insulin, for hours to a day: no exercise,"
    " no counter-regulation, no change of sensitivity with the hour. Nothing holds glucose above 0: far too"
    " much insulin, as 100 IU without a meal, takes it to -3.7 mmol/L. Below 2 mmol/L is outside.",
    stiffness="Time constants of 7 (plasma insulin) to 730 min (glucose): an explicit solver.",
    checked="All ten states over 10 h with a meal and a bolus agree with another transcription to 1e-6.",
    example=example,
)
