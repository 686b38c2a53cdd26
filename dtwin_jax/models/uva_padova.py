"""Type 1 diabetes with meals, insulin under the skin and a glucose sensor: the UVA/Padova simulator of 2008.

Source: Dalla Man, Rizza & Cobelli 2007, IEEE Trans Biomed Eng 54:1740, doi:10.1109/TBME.2007.893506,
with the subcutaneous insulin and sensor of Dalla Man et al. 2014, J Diabetes Sci Technol 8:26, doi
10.1177/1932296813514502 (without its glucagon), as coded in simglucose 0.2.11 (J. Xie,
github.com/jxx123/simglucose). `virtual_patients` are its 30 people.

    Qsto1' = meal - kmax Qsto1,   Qsto2' = kmax Qsto1 - kgut Qsto2,   Qgut' = kgut Qsto2 - kabs Qgut
    kgut   = kmin + (kmax - kmin) / 2 (tanh(a (Qsto - b D)) - tanh(c (Qsto - d D)) + 2)
    Qsto   = Qsto1 + Qsto2,   a = 5 / (2 D (1 - b)),   c = 5 / (2 D d)
    Gp'    = (EGP)+ + f kabs Qgut / BW - Fsnc - ke1 (Gp - ke2)+ - k1 Gp + k2 Gt
    EGP    = kp1 - kp2 Gp - kp3 Id
    Gt'    = k1 Gp - k2 Gt - (Vm0 + Vmx X) Gt / (Km0 + Gt)
    Gs'    = ksc (Gp - Gs)
    Ip'    = m1 Il - (m2 + m4) Ip + ka1 Isc1 + ka2 Isc2,    Il' = m2 Ip - (m1 + m3) Il
    X'     = p2u (I - Ib - X),   I1' = ki (I - I1),   Id' = ki (I1 - Id),   I = Ip / Vi
    Isc1'  = ins - (ka1 + kd) Isc1,   Isc2' = kd Isc1 - ka2 Isc2

Emptying of the stomach depends on the meal, `D`: what was in the stomach when eating began and all eaten
since. The state `eaten` keeps that account. A dose of `meal` enters it as a whole at its start, also one
eaten over a duration, as in the paper, where D is the meal. A dose given while nothing is being eaten
opens a new account. In simglucose D grows by what is eaten in each minute: given as one dose for each
minute, meals do just that here. Before the first meal D is 0 and the stomach empties at kmax.

A patient rests at the basal glucose `Gb` and insulin `Ib`, producing `EGPb`: kp1, Vm0 and the basal
infusion follow. The input `basal` is a multiple of that infusion; with a pump's record give all insulin
as doses, and `basal` 0. Production and renal loss do not go below 0: kinks where the right-hand side is
continuous, so that the solver steps over them. The brain's use, Fsnc, does not fall with glucose, as
published: an overdose drives glucose below 0, where the model has no meaning.

Fitted in practice: kp3, Vmx and p2u (or one scale of the first two), kabs, kmax, kd, ka2 and Gb; a
sensor alone does not determine them jointly, and the priors, the spread of the ten virtual adults, then
decide.
"""

import csv
from importlib import resources
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, replace_fields, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import AbstractSignal, Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.dynamics.solver import Solver

_GLUCOSE = 180.156  # g/mol
_ADULTS = "simglucose 0.2.11: geometric mean of the 10 virtual adults"
_SPREAD = _ADULTS + "; prior: their sd of the log"
_ALL = "simglucose 0.2.11: the same in all virtual patients"
_ERROR = "value and prior chosen here"


class Params(eqx.Module):
    """Parameters of one patient; the defaults are the average of the virtual adults."""

    BW: Scalar = param(84.6013, "kg", source=_ADULTS, doc="body weight")
    Gb: Scalar = param(
        142.628,
        "mg/dL",
        lognormal(142.628, log_sd=0.2),
        source=_ADULTS + "; spread chosen here, wider than their 0.044",
        doc="glucose under basal insulin",
    )
    Ib: Scalar = param(107.201, "pmol/L", source=_ADULTS, doc="plasma insulin under basal insulin")
    EGPb: Scalar = param(2.4884, "mg/kg/min", source=_ADULTS, doc="endogenous production under basal insulin")
    kabs: Scalar = param(
        0.134006, "/min", lognormal(0.134006, log_sd=1.05265), source=_SPREAD, doc="absorption from the gut"
    )
    kmax: Scalar = param(
        0.0370844,
        "/min",
        lognormal(0.0370844, log_sd=0.317393),
        source=_SPREAD,
        doc="fastest emptying of the stomach",
    )
    kmin: Scalar = param(0.00649051, "/min", source=_ADULTS, doc="slowest emptying of the stomach")
    b: Scalar = param(0.777319, "1", source=_ADULTS, doc="share of a meal at which emptying slows down")
    d: Scalar = param(0.16774, "1", source=_ADULTS, doc="share of a meal at which emptying is fast again")
    f: Scalar = param(0.9, "1", source=_ALL, doc="fraction of carbohydrate absorbed")
    Vg: Scalar = param(1.84308, "dL/kg", source=_ADULTS, doc="volume of glucose")
    k1: Scalar = param(0.0600589, "/min", source=_ADULTS, doc="glucose from plasma to tissue")
    k2: Scalar = param(0.119751, "/min", source=_ADULTS, doc="glucose from tissue to plasma")
    Vmx: Scalar = param(
        0.0458198,
        "mg.L/pmol/kg/min",
        lognormal(0.0458198, log_sd=0.601068),
        source=_SPREAD,
        doc="insulin sensitivity of glucose use",
    )
    Km0: Scalar = param(235.724, "mg/kg", source=_ADULTS, doc="tissue glucose at half of the greatest use")
    p2u: Scalar = param(
        0.0322336,
        "/min",
        lognormal(0.0322336, log_sd=0.342328),
        source=_SPREAD,
        doc="delay of insulin action",
    )
    kp2: Scalar = param(0.003877, "/min", source=_ADULTS, doc="glucose effectiveness of the liver")
    kp3: Scalar = param(
        0.00843139,
        "mg.L/pmol/kg/min",
        lognormal(0.00843139, log_sd=0.491902),
        source=_SPREAD,
        doc="insulin sensitivity of the liver",
    )
    ki: Scalar = param(0.00747474, "/min", source=_ADULTS, doc="delay of insulin action on the liver")
    Fsnc: Scalar = param(1.0, "mg/kg/min", source=_ALL, doc="glucose use of brain and red cells")
    ke1: Scalar = param(0.0005, "/min", source=_ALL, doc="renal clearance above the threshold")
    ke2: Scalar = param(339.0, "mg/kg", source=_ALL, doc="renal threshold")
    Vi: Scalar = param(0.0508857, "L/kg", source=_ADULTS, doc="volume of insulin")
    HEb: Scalar = param(0.6, "1", source=_ALL, doc="share of insulin that the liver extracts")
    m1: Scalar = param(0.189235, "/min", source=_ADULTS, doc="insulin from liver to plasma")
    m2: Scalar = param(0.267036, "/min", source=_ADULTS, doc="insulin from plasma to liver")
    m4: Scalar = param(0.106814, "/min", source=_ADULTS, doc="insulin degraded in the periphery")
    ka1: Scalar = param(0.0032777, "/min", source=_ADULTS, doc="absorption of insulin not yet dissociated")
    ka2: Scalar = param(
        0.0152556,
        "/min",
        lognormal(0.0152556, log_sd=0.306564),
        source=_SPREAD,
        doc="absorption of insulin dissociated",
    )
    kd: Scalar = param(
        0.0158157,
        "/min",
        lognormal(0.0158157, log_sd=0.119102),
        source=_SPREAD,
        doc="dissociation of insulin",
    )
    ksc: Scalar = param(0.0921073, "/min", source=_ADULTS, doc="delay of glucose under the skin")
    per_unit: Scalar = param(6000.0, "pmol/[IU]", source="simglucose 0.2.11", doc="insulin in a unit")
    sd: Scalar = param(2.0, "mg/dL", source="chosen here", doc="additive error, both outputs")
    cv_glucose: Scalar = param(
        0.03, "1", lognormal(0.03, log_sd=0.7), source=_ERROR, doc="proportional error in plasma"
    )
    cv_cgm: Scalar = param(
        0.08, "1", lognormal(0.08, log_sd=0.5), source=_ERROR, doc="proportional error of the sensor"
    )


class Inputs(eqx.Module):
    """What is eaten and injected."""

    meal: Input = var("mg/min", neutral=0.0, doc="carbohydrate, doses eaten over their durations")
    insulin: Input = var("[IU]/min", neutral=0.0, doc="subcutaneous insulin")
    basal: Input = var("1", neutral=1.0, doc="further insulin, as a multiple of what holds glucose at Gb")
    announced: Input = var("mg/min", neutral=0.0, doc="the same meals at once; made from `meal`")


class State(eqx.Module):
    """Stomach and gut, glucose, insulin and its actions."""

    Qsto1: Scalar = var("mg", doc="solid in the stomach")
    Qsto2: Scalar = var("mg", doc="ground in the stomach")
    Qgut: Scalar = var("mg")
    eaten: Scalar = var("mg", doc="D of the present meal")
    Gp: Scalar = var("mg/kg", doc="plasma")
    Gt: Scalar = var("mg/kg", doc="tissue")
    Gs: Scalar = var("mg/kg", doc="under the skin")
    Ip: Scalar = var("pmol/kg", doc="plasma")
    Il: Scalar = var("pmol/kg", doc="liver")
    X: Scalar = var("pmol/L")
    I1: Scalar = var("pmol/L")
    Id: Scalar = var("pmol/L")
    Isc1: Scalar = var("pmol/kg")
    Isc2: Scalar = var("pmol/kg")


class Outputs(eqx.Module):
    """What is measured."""

    # Wide guards against a wrong unit, not limits of physiology.
    glucose: Scalar = var("mg/dL", doc="plasma glucose", molar_mass=_GLUCOSE, plausible=(5.0, 1500.0))
    cgm: Scalar = var("mg/dL", doc="glucose sensor", molar_mass=_GLUCOSE, plausible=(5.0, 1500.0))


class Basal(eqx.Module):
    """What follows from rest at Gb, Ib and EGPb."""

    m3: Scalar = var("/min")
    Gt: Scalar = var("mg/kg")
    Il: Scalar = var("pmol/kg")
    kp1: Scalar = var("mg/kg/min")
    Vm0: Scalar = var("mg/kg/min")
    infusion: Scalar = var("pmol/kg/min")


def basal_of(p: Params) -> Basal:
    """Parameters and states that hold the patient at Gb, Ib and EGPb."""
    Gp, Ip, m3 = p.Gb * p.Vg, p.Ib * p.Vi, p.m1 * p.HEb / (1.0 - p.HEb)
    spent = p.Fsnc + p.ke1 * jnp.maximum(Gp - p.ke2, 0.0)
    Gt = (p.k1 * Gp + spent - p.EGPb) / p.k2
    Il = p.m2 * Ip / (p.m1 + m3)
    return Basal(
        m3=m3,
        Gt=Gt,
        Il=Il,
        kp1=p.EGPb + p.kp2 * Gp + p.kp3 * p.Ib,
        Vm0=(p.EGPb - spent) * (p.Km0 + Gt) / Gt,
        infusion=(p.m2 + p.m4) * Ip - p.m1 * Il,
    )


def basal_rate(p: Params) -> Scalar:
    """Basal insulin that holds the patient at Gb, U/min."""
    return basal_of(p).infusion * p.BW / p.per_unit


def emptying(content: Scalar, eaten: Scalar, p: Any) -> Scalar:
    """Rate constant at which the stomach empties with `content` left of a meal `eaten`."""
    fed = eaten > 0
    D = jnp.where(fed, eaten, 1.0)
    slowing = jnp.tanh(2.5 * (content - p.b * D) / (D * (1.0 - p.b)))
    recovery = jnp.tanh(2.5 * (content - p.d * D) / (D * p.d))
    return jnp.where(fed, p.kmin + (p.kmax - p.kmin) / 2.0 * (slowing - recovery + 2.0), p.kmax)


def announce(meal: Input) -> Input:
    """`meal` with every dose at once, as it enters the account of what is eaten."""
    if isinstance(meal, AbstractSignal) and not isinstance(meal, Doses):
        raise ValueError(f"meal takes doses, since each is a meal; found {type(meal).__name__}")
    return Doses(meal.time, meal.amount, jnp.zeros_like(meal.time)) if isinstance(meal, Doses) else meal


def account(content: Scalar, eaten: Scalar, eating: Scalar, given: Scalar) -> Scalar:
    """What was eaten so far, begun anew with the content where food is given while nothing is eaten."""
    return jnp.where((given > 0) & (eating <= 0), content, eaten)


def dosing(u: Inputs, p: Params) -> Inputs:
    """The account of meals follows from the meals."""
    return replace_fields(u, {"announced": announce(u.meal)})


def event(t: Scalar, x: State, u: Inputs, given: Inputs, p: Params) -> State:
    """A meal begins."""
    return replace_fields(x, {"eaten": account(x.Qsto1 + x.Qsto2, x.eaten, u.meal, given.announced)})


def init(p: Params) -> State:
    """At rest, fasting."""
    at, Gp = basal_of(p), p.Gb * p.Vg
    none, Isc1 = jnp.zeros_like(Gp), at.infusion / (p.ka1 + p.kd)
    return State(
        Qsto1=none,
        Qsto2=none,
        Qgut=none,
        eaten=none,
        Gp=Gp,
        Gt=at.Gt,
        Gs=Gp,
        Ip=p.Ib * p.Vi,
        Il=at.Il,
        X=none,
        I1=p.Ib,
        Id=p.Ib,
        Isc1=Isc1,
        Isc2=p.kd * Isc1 / p.ka2,
    )


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per minute."""
    at = basal_of(p)
    kgut = emptying(x.Qsto1 + x.Qsto2, x.eaten, p)
    I = x.Ip / p.Vi  # noqa: E741 - the paper's name of it
    insulin = u.insulin * p.per_unit / p.BW + u.basal * at.infusion
    appearing = p.f * p.kabs * x.Qgut / p.BW
    produced = jnp.maximum(at.kp1 - p.kp2 * x.Gp - p.kp3 * x.Id, 0.0)
    excreted = p.ke1 * jnp.maximum(x.Gp - p.ke2, 0.0)
    used = (at.Vm0 + p.Vmx * x.X) * x.Gt / (p.Km0 + x.Gt)
    return State(
        Qsto1=u.meal - p.kmax * x.Qsto1,
        Qsto2=p.kmax * x.Qsto1 - kgut * x.Qsto2,
        Qgut=kgut * x.Qsto2 - p.kabs * x.Qgut,
        eaten=u.announced,
        Gp=produced + appearing - p.Fsnc - excreted - p.k1 * x.Gp + p.k2 * x.Gt,
        Gt=p.k1 * x.Gp - p.k2 * x.Gt - used,
        Gs=p.ksc * (x.Gp - x.Gs),
        Ip=p.m1 * x.Il - (p.m2 + p.m4) * x.Ip + p.ka1 * x.Isc1 + p.ka2 * x.Isc2,
        Il=p.m2 * x.Ip - (p.m1 + at.m3) * x.Il,
        X=p.p2u * (I - p.Ib - x.X),
        I1=p.ki * (I - x.I1),
        Id=p.ki * (x.I1 - x.Id),
        Isc1=insulin - (p.ka1 + p.kd) * x.Isc1,
        Isc2=p.kd * x.Isc1 - p.ka2 * x.Isc2,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Glucose in plasma and under the skin."""
    return Outputs(glucose=x.Gp / p.Vg, cgm=x.Gs / p.Vg)


def virtual_patients() -> dict[str, Params]:
    """The 30 virtual patients of simglucose 0.2.11: ten adolescents, adults and children, by name.

    Source: simglucose params/vpatient_params.csv, MIT licence, Jinyu Xie.
    """
    table = resources.files("dtwin_jax") / "data" / "uva_padova_patients.csv"
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return {row.pop("patient"): Params(**{name: float(value) for name, value in row.items()}) for row in rows}


def example() -> Record:
    """A day with three meals and their boluses, a sensor every 15 min and seven finger-pricks."""
    meals = [420.0, 720.0, 1080.0]
    inputs = Inputs(meal=Doses(meals, [45e3, 70e3, 80e3], 15.0), insulin=Doses(meals, [3.0, 4.5, 5.0]))
    sensor, pricks = np.arange(15.0, 1441.0, 15.0), [415.0, 540.0, 715.0, 840.0, 1075.0, 1200.0, 1380.0]
    seen = {"cgm": sensor, "glucose": pricks}
    return Record(inputs, {name: Series(times, np.zeros(len(times))) for name, times in seen.items()})


uva_padova = Model(
    name="uva_padova",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    dosing=dosing,
    event=event,
    time="min",
    solver=Solver(rtol=1e-6, atol=(1e-3, 1e-3, 1e-3, 1e-3, *(1e-6,) * 3, *(1e-7,) * 2, *(1e-6,) * 5)),
    source="Dalla Man, Rizza & Cobelli 2007, doi 10.1109/TBME.2007.893506; Dalla Man et al. 2014, doi"
    " 10.1177/1932296813514502",
    valid="Type 1 diabetes on rapid-acting insulin, for hours to a day: no glucagon, no exercise, no change"
    " of sensitivity with the hour.",
    stiffness="Time constants of 2 (insulin in plasma and liver) to 220 min: an explicit solver.",
    checked="All states of three virtual patients over a day of three meals agree with simglucose, integrated"
    " at 1e-12, to 1e-5 of their maxima; glucose of 15 after 60 g to 1e-5; all 30 rest where it lists them.",
    example=example,
)
