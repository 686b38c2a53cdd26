"""Glucose and insulin after meals, in health and in type 2 diabetes: the meal model of Dalla Man.

Source: Dalla Man, Rizza & Cobelli 2007, IEEE Trans Biomed Eng 54:1740, doi:10.1109/TBME.2007.893506;
constants of its Table I as in BioModels BIOMD0000000379, and as read in a third-party code for type 2.

    Qsto1' = meal - kmax Qsto1,   Qsto2' = kmax Qsto1 - kgut Qsto2,   Qgut' = kgut Qsto2 - kabs Qgut
    kgut   = kmin + (kmax - kmin) / 2 (tanh(a (Qsto - b D)) - tanh(c (Qsto - d D)) + 2)
    Qsto   = Qsto1 + Qsto2,   a = 5 / (2 D (1 - b)),   c = 5 / (2 D d)
    Gp'    = EGP + f kabs Qgut / BW - Fcns - ke1 (Gp - ke2)+ - k1 Gp + k2 Gt
    EGP    = (kp1 - kp2 Gp - kp3 Id - kp4 Ipo)+
    Gt'    = k1 Gp - k2 Gt - (Vm0 + Vmx X) Gt / (Km0 + Gt)
    Il'    = m2 Ip + S - (m1 + m3) Il,   Ip' = m1 Il - (m2 + m4) Ip,   I = Ip / VI
    S      = gamma Ipo,   HE = (m6 - m5 S)+,   m3 = m1 HE / (1 - HE)
    Ipo'   = Y + Sb + K (G')+ - S,   Y' = alpha (max(beta (G - Gb), -Sb) - Y),   G = Gp / VG
    X'     = p2u (I - Ib - X),   I1' = ki (I - I1),   Id' = ki (I1 - Id)

The account of a meal, `D`, is that of `uva_padova`: a dose of `meal` enters it whole at its start, a
dose given while nothing is being eaten opens a new one. All switches, the paper's of secretion too, are
kinks where the right-hand side is continuous, so that the solver steps over them. That production and
the liver's extraction stay above 0 is a guard for rare meals, which the paper's never reach.

A patient rests at the basal glucose `Gb` and extraction `HEb`: kp1, Ib and the secretion Sb follow.

Fitted in practice: Vmx, kp3, the three of secretion (K, beta, alpha) and the two of absorption (kabs,
kmax), with insulin measured along with glucose; Vmx and kp3 are not told apart without a tracer.

Variants:
dalla_man_normal: Glucose and insulin after meals in health: the meal model of Dalla Man
dalla_man_t2d: Glucose and insulin after meals in type 2 diabetes: the meal model of Dalla Man
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, quantities, replace_fields, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import log_normal
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models.uva_padova import account, announce, emptying

_GLUCOSE = 180.156  # g/mol
_TABLE = "Dalla Man 2007, Table I"
_PRIOR = _TABLE + "; prior weakly informative, chosen here"
_ERROR = "value and prior chosen here"
_LOG_SD = 0.5


def _estimated(value: float, unit: str, doc: str) -> Any:
    return param(value, unit, lognormal(value, log_sd=_LOG_SD), source=_PRIOR, doc=doc)


class Params(eqx.Module):
    """Parameters; the defaults are the paper's average healthy adult."""

    BW: Scalar = param(78.0, "kg", source=_TABLE, doc="body weight")
    Gb: Scalar = param(91.76, "mg/dL", source="recalled, not checked", doc="basal glucose")
    VG: Scalar = param(1.88, "dL/kg", source=_TABLE, doc="volume of glucose")
    k1: Scalar = param(0.065, "/min", source=_TABLE, doc="glucose from plasma to tissue")
    k2: Scalar = param(0.079, "/min", source=_TABLE, doc="glucose from tissue to plasma")
    VI: Scalar = param(0.05, "L/kg", source=_TABLE, doc="volume of insulin")
    m1: Scalar = param(0.190, "/min", source=_TABLE, doc="insulin from liver to plasma")
    m2: Scalar = param(0.484, "/min", source=_TABLE, doc="insulin from plasma to liver")
    m4: Scalar = param(0.194, "/min", source=_TABLE, doc="insulin degraded in the periphery")
    m5: Scalar = param(0.0304, "kg.min/pmol", source=_TABLE, doc="fall of extraction with secretion")
    m6: Scalar = param(0.6471, "1", source=_TABLE, doc="extraction without secretion")
    HEb: Scalar = param(0.6, "1", source=_TABLE, doc="basal extraction by the liver")
    kmax: Scalar = _estimated(0.0558, "/min", "fastest emptying of the stomach, and grinding")
    kmin: Scalar = param(0.0080, "/min", source=_TABLE, doc="slowest emptying of the stomach")
    kabs: Scalar = _estimated(0.057, "/min", "absorption from the gut")
    f: Scalar = param(0.90, "1", source=_TABLE, doc="fraction of carbohydrate absorbed")
    b: Scalar = param(0.82, "1", source=_TABLE, doc="share of a meal at which emptying slows down")
    d: Scalar = param(0.010, "1", source=_TABLE, doc="share of a meal at which emptying is fast again")
    kp2: Scalar = param(0.0021, "/min", source=_TABLE, doc="glucose effectiveness of the liver")
    kp3: Scalar = _estimated(0.009, "mg.L/pmol/kg/min", "insulin sensitivity of the liver")
    kp4: Scalar = param(0.0618, "mg/pmol/min", source=_TABLE, doc="action of portal insulin on the liver")
    ki: Scalar = param(0.0079, "/min", source=_TABLE, doc="delay of insulin action on the liver")
    Fcns: Scalar = param(1.0, "mg/kg/min", source=_TABLE, doc="glucose use of brain and red cells")
    Vm0: Scalar = param(2.50, "mg/kg/min", source=_TABLE, doc="greatest glucose use at basal insulin")
    Vmx: Scalar = _estimated(0.047, "mg.L/pmol/kg/min", "insulin sensitivity of glucose use")
    Km0: Scalar = param(225.59, "mg/kg", source=_TABLE, doc="tissue glucose at half of the greatest use")
    p2u: Scalar = param(0.0331, "/min", source=_TABLE, doc="delay of insulin action on glucose use")
    K: Scalar = _estimated(2.30, "pmol.dL/mg/kg", "secretion by the rise of glucose")
    alpha: Scalar = _estimated(0.050, "/min", "delay of secretion by glucose")
    beta: Scalar = _estimated(0.11, "pmol.dL/mg/kg/min", "secretion by glucose above basal")
    gamma: Scalar = param(0.5, "/min", source=_TABLE, doc="insulin from portal vein to liver")
    ke1: Scalar = param(0.0005, "/min", source=_TABLE, doc="renal clearance above the threshold")
    ke2: Scalar = param(339.0, "mg/kg", source=_TABLE, doc="renal threshold")
    cv_glucose: Scalar = param(0.03, "1", lognormal(0.03, log_sd=0.7), source=_ERROR, doc="sd of log glucose")
    cv_insulin: Scalar = param(0.08, "1", lognormal(0.08, log_sd=0.7), source=_ERROR, doc="sd of log insulin")


def _instead(name: str, value: float) -> Any:
    """The parameter `name` with another value, about which its prior lies if it has one."""
    usual = quantities(Params)[name]
    if usual.prior is not None:
        return _estimated(value, usual.unit, usual.doc)
    return param(value, usual.unit, source=usual.source, doc=usual.doc)


class ParamsT2D(Params):
    """Parameters of the paper's average adult with type 2 diabetes."""

    BW: Scalar = _instead("BW", 91.0)
    Gb: Scalar = _instead("Gb", 164.18)
    VG: Scalar = _instead("VG", 1.49)
    k1: Scalar = _instead("k1", 0.042)
    k2: Scalar = _instead("k2", 0.071)
    VI: Scalar = _instead("VI", 0.04)
    m1: Scalar = _instead("m1", 0.379)
    m2: Scalar = _instead("m2", 0.673)
    m4: Scalar = _instead("m4", 0.269)
    m5: Scalar = _instead("m5", 0.0526)
    m6: Scalar = _instead("m6", 0.8118)
    kmax: Scalar = _instead("kmax", 0.0465)
    kmin: Scalar = _instead("kmin", 0.0076)
    kabs: Scalar = _instead("kabs", 0.023)
    b: Scalar = _instead("b", 0.68)
    d: Scalar = _instead("d", 0.09)
    kp2: Scalar = _instead("kp2", 0.0007)
    kp3: Scalar = _instead("kp3", 0.005)
    kp4: Scalar = _instead("kp4", 0.0786)
    ki: Scalar = _instead("ki", 0.0066)
    Vm0: Scalar = _instead("Vm0", 4.65)
    Vmx: Scalar = _instead("Vmx", 0.034)
    Km0: Scalar = _instead("Km0", 466.21)
    p2u: Scalar = _instead("p2u", 0.084)
    K: Scalar = _instead("K", 0.99)
    alpha: Scalar = _instead("alpha", 0.013)
    beta: Scalar = _instead("beta", 0.05)
    ke1: Scalar = _instead("ke1", 0.0007)
    ke2: Scalar = _instead("ke2", 269.0)


class Inputs(eqx.Module):
    """What is eaten."""

    meal: Input = var("mg/min", neutral=0.0, doc="carbohydrate, doses eaten over their durations")
    announced: Input = var("mg/min", neutral=0.0, doc="the same meals at once; made from `meal`")


class State(eqx.Module):
    """Stomach and gut, glucose, insulin, its secretion and actions."""

    Qsto1: Scalar = var("mg", doc="solid in the stomach")
    Qsto2: Scalar = var("mg", doc="ground in the stomach")
    Qgut: Scalar = var("mg")
    eaten: Scalar = var("mg", doc="D of the present meal")
    Gp: Scalar = var("mg/kg", doc="plasma")
    Gt: Scalar = var("mg/kg", doc="tissue")
    Il: Scalar = var("pmol/kg", doc="liver")
    Ip: Scalar = var("pmol/kg", doc="plasma")
    Ipo: Scalar = var("pmol/kg", doc="portal vein")
    Y: Scalar = var("pmol/kg/min", doc="secretion by glucose above basal")
    X: Scalar = var("pmol/L")
    I1: Scalar = var("pmol/L")
    Id: Scalar = var("pmol/L")


class Outputs(eqx.Module):
    """What is measured."""

    # Wide guards against a wrong unit, not limits of physiology.
    glucose: Scalar = var("mg/dL", doc="plasma glucose", molar_mass=_GLUCOSE, plausible=(5.0, 1500.0))
    insulin: Scalar = var("pmol/L", doc="plasma insulin", plausible=(0.0, 1e5))


class Basal(eqx.Module):
    """What follows from rest at Gb and HEb."""

    Gt: Scalar = var("mg/kg")
    Ip: Scalar = var("pmol/kg")
    Ib: Scalar = var("pmol/L")
    Sb: Scalar = var("pmol/kg/min")
    kp1: Scalar = var("mg/kg/min")


def basal_of(p: Params) -> Basal:
    """Parameters and states that hold the patient at Gb with the liver extracting HEb."""
    Gp, Sb, m3 = p.Gb * p.VG, (p.m6 - p.HEb) / p.m5, p.m1 * p.HEb / (1.0 - p.HEb)
    Ip = Sb * p.m1 / ((p.m1 + m3) * (p.m2 + p.m4) - p.m1 * p.m2)
    Ib = Ip / p.VI
    # k1 Gp - k2 Gt = Vm0 Gt / (Km0 + Gt)
    half = (p.k2 * p.Km0 + p.Vm0 - p.k1 * Gp) / 2.0
    Gt = (jnp.sqrt(half**2 + p.k2 * p.k1 * Gp * p.Km0) - half) / p.k2
    EGP = p.Fcns + p.ke1 * jnp.maximum(Gp - p.ke2, 0.0) + p.k1 * Gp - p.k2 * Gt
    return Basal(Gt=Gt, Ip=Ip, Ib=Ib, Sb=Sb, kp1=EGP + p.kp2 * Gp + p.kp3 * Ib + p.kp4 * Sb / p.gamma)


def dosing(u: Inputs, p: Params) -> Inputs:
    """The account of meals follows from the meals."""
    return replace_fields(u, {"announced": announce(u.meal)})


def event(t: Scalar, x: State, u: Inputs, given: Inputs, p: Params) -> State:
    """A meal begins."""
    return replace_fields(x, {"eaten": account(x.Qsto1 + x.Qsto2, x.eaten, u.meal, given.announced)})


def init(p: Params) -> State:
    """At rest, fasting."""
    at = basal_of(p)
    none = jnp.zeros_like(at.Ip)
    return State(
        Qsto1=none,
        Qsto2=none,
        Qgut=none,
        eaten=none,
        Gp=p.Gb * p.VG,
        Gt=at.Gt,
        Il=(p.m2 + p.m4) * at.Ip / p.m1,
        Ip=at.Ip,
        Ipo=at.Sb / p.gamma,
        Y=none,
        X=none,
        I1=at.Ib,
        Id=at.Ib,
    )


def rates(x: State, u: Inputs, p: Params, at: Basal) -> State:
    """Rates of change per minute, with the basal values `at`."""
    kgut = emptying(x.Qsto1 + x.Qsto2, x.eaten, p)
    G, I = x.Gp / p.VG, x.Ip / p.VI  # noqa: E741 - the paper's names of them
    appearing = p.f * p.kabs * x.Qgut / p.BW
    produced = jnp.maximum(at.kp1 - p.kp2 * x.Gp - p.kp3 * x.Id - p.kp4 * x.Ipo, 0.0)
    excreted = p.ke1 * jnp.maximum(x.Gp - p.ke2, 0.0)
    used = (p.Vm0 + p.Vmx * x.X) * x.Gt / (p.Km0 + x.Gt)
    Gp_rate = produced + appearing - p.Fcns - excreted - p.k1 * x.Gp + p.k2 * x.Gt
    S = p.gamma * x.Ipo
    HE = jnp.maximum(p.m6 - p.m5 * S, 0.0)
    return State(
        Qsto1=u.meal - p.kmax * x.Qsto1,
        Qsto2=p.kmax * x.Qsto1 - kgut * x.Qsto2,
        Qgut=kgut * x.Qsto2 - p.kabs * x.Qgut,
        eaten=u.announced,
        Gp=Gp_rate,
        Gt=p.k1 * x.Gp - p.k2 * x.Gt - used,
        Il=p.m2 * x.Ip + S - (p.m1 + p.m1 * HE / (1.0 - HE)) * x.Il,
        Ip=p.m1 * x.Il - (p.m2 + p.m4) * x.Ip,
        Ipo=x.Y + at.Sb + p.K * jnp.maximum(Gp_rate / p.VG, 0.0) - S,
        Y=p.alpha * (jnp.maximum(p.beta * (G - p.Gb), -at.Sb) - x.Y),
        X=p.p2u * (I - at.Ib - x.X),
        I1=p.ki * (I - x.I1),
        Id=p.ki * (x.I1 - x.Id),
    )


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per minute."""
    return rates(x, u, p, basal_of(p))


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Glucose and insulin in plasma."""
    return Outputs(glucose=x.Gp / p.VG, insulin=x.Ip / p.VI)


def example() -> Record:
    """The oral test with 75 g of glucose, drunk in 5 min (WHO), sampled every 30 min for three hours."""
    times = [0.0, 30.0, 60.0, 90.0, 120.0, 150.0, 180.0]
    samples = Series(times, np.zeros(len(times)))
    return Record(Inputs(meal=Doses([0.0], [75e3], [5.0])), {"glucose": samples, "insulin": samples})


dalla_man_normal = Model(
    name="dalla_man_normal",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    dosing=dosing,
    event=event,
    time="min",
    solver=Solver(rtol=1e-6, atol=(*(1e-3,) * 4, *(1e-6,) * 9)),
    source="Dalla Man, Rizza & Cobelli 2007, IEEE Trans Biomed Eng 54:1740, doi 10.1109/TBME.2007.893506",
    valid="The hours after a mixed meal or a glucose drink, in average adults with and without type 2"
    " diabetes. Nothing holds glucose above 0: meals beyond all eating, as three of 500 g in type 2, take it"
    " below, which is outside.",
    stiffness="Time constants of 2 (insulin) to 130 min (its action on the liver): an explicit solver.",
    checked="All states over 7 h after 78 g agree to 1e-5 of their maxima with another transcription of the"
    " paper, health and type 2; all but the switches to 1e-7 with BIOMD0000000379 in libroadrunner.",
    example=example,
)

dalla_man_t2d = replace(dalla_man_normal, name="dalla_man_t2d", params=ParamsT2D)
