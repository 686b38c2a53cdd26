"""Body weight of adults over years of a changed diet.

Source: Hall et al. 2011, Lancet 378:826, doi 10.1016/S0140-6736(11)60812-X, and Chow & Hall 2008, PLoS
Comput Biol 4:e1000045, doi 10.1371/journal.pcbi.1000045; equations and values as read in the R package bw
(INSP-RH/bw, src/adult_weight.cpp), with glycogen's energy rho_G G' where the package has G' (its units do not
agree; at most 0.04 kg in three diets of two years).

    dEI  = adherence energy
    AT'  = (0.14 dEI - AT) / 14 d                                     adaptive thermogenesis
    ECF' = (dNa - 3000 (ECF - ECF0) - 4000 (1 - CI / CI0)) / 3220     extracellular fluid
    G'   = (CI - CI0 (G / G0)^2) / rhoG                               glycogen
    L'   = (C / rhoL) (EI - expended) / ((1 + etaL / rhoL) C + (1 + etaF / rhoF) F)
    F    = F0 exp(rhoL (L - L0) / (rhoF C)),     C = 10.4 kg rhoL / rhoF          Forbes
    expended = K + delta W + 0.1 dEI + AT + rhoG G' + gL L + gF F
    W    = L + F + ECF + 3.7 G

EI = EI0 + dEI is the intake, EI0 = PAL x resting metabolic rate that of the stable weight; CI is
its carbohydrate. Resting rate (Mifflin), fat (Jackson), fluid (Silva) at the start are regressions in kg, m
and years. Weights tell PAL (through delta) and adherence together; sex, age, height are known, weight0 is
fitted.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import beta, lognormal, normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive

_HALL = "Hall 2011, as read in bw"
_HERE = "weakly informative, chosen here"


class Params(eqx.Module):
    """The person, and the energetics of tissues."""

    weight0: Scalar = param(80.0, "kg", normal(80.0, 20.0, low=30.0), source=_HERE, doc="stable weight")
    height: Scalar = param(1.8, "m", doc="height")
    age: Scalar = param(40.0, "a", doc="age at the start")
    female: Scalar = param(0.0, "1", doc="1 in women")
    PAL: Scalar = param(1.5, "1", lognormal(1.5, log_sd=0.15), source=_HERE, doc="physical activity level")
    adherence: Scalar = param(0.9, "1", beta(2.0, 1.0), source=_HERE, doc="share of the change that is eaten")
    carbohydrate: Scalar = param(0.5, "1", source=_HALL, doc="share of energy from carbohydrate")
    G0: Scalar = param(0.5, "kg", source=_HALL, doc="glycogen at the start")
    rhoG: Scalar = param(4206.501, "kcal/kg", source=_HALL, doc="energy of glycogen")
    rhoF: Scalar = param(9440.727, "kcal/kg", source=_HALL, doc="energy of fat")
    rhoL: Scalar = param(1816.444, "kcal/kg", source=_HALL, doc="energy of lean tissue")
    gF: Scalar = param(3.107075, "kcal/kg/d", source=_HALL, doc="metabolic rate of fat")
    gL: Scalar = param(21.98853, "kcal/kg/d", source=_HALL, doc="metabolic rate of lean tissue")
    etaF: Scalar = param(179.2543, "kcal/kg", source=_HALL, doc="cost of fat synthesis")
    etaL: Scalar = param(229.4455, "kcal/kg", source=_HALL, doc="cost of protein synthesis")
    forbes: Scalar = param(10.4, "kg", source=_HALL, doc="Forbes' constant of fat against lean")
    thermogenesis: Scalar = param(0.14, "1", source=_HALL, doc="adaptation to a change of intake")
    tau: Scalar = param(14.0, "d", source=_HALL, doc="its time constant")
    feeding: Scalar = param(0.1, "1", source=_HALL, doc="thermic effect of food")
    fluid: Scalar = param(3220.0, "mg/kg", source=_HALL, doc="sodium of extracellular fluid")
    excretion: Scalar = param(3000.0, "mg/kg/d", source=_HALL, doc="sodium excreted by excess fluid")
    sparing: Scalar = param(4000.0, "mg/d", source=_HALL, doc="sodium lost without carbohydrate")
    # The regressions of the state at the start are in these units.
    kg: Scalar = param(1.0, "kg", doc="unit of the regressions")
    m: Scalar = param(1.0, "m", doc="unit of the regressions")
    year: Scalar = param(1.0, "a", doc="unit of the regressions")
    kcal_d: Scalar = param(1.0, "kcal/d", doc="unit of the regressions")
    sd: Scalar = param(0.7, "kg", lognormal(0.7, log_sd=0.5), source=_HERE, doc="additive error")


class Inputs(eqx.Module):
    """Changes of the diet."""

    energy: Input = var("kcal/d", neutral=0.0, doc="change of intake", plausible=(-1e4, 1e4))
    sodium: Input = var("mg/d", neutral=0.0, doc="change of sodium intake")


class State(eqx.Module):
    """What changes with the diet."""

    thermogenesis: Scalar = var("kcal/d")
    fluid: Scalar = var("kg")
    glycogen: Scalar = var("kg")
    lean: Scalar = var("kg")


class Outputs(eqx.Module):
    """What is measured."""

    weight: Scalar = var("kg", doc="body weight", plausible=(20.0, 400.0))
    fat: Scalar = var("kg", doc="fat mass", plausible=(0.0, 300.0))


class Stable(eqx.Module):
    """The body at its stable weight."""

    intake: Scalar = var("kcal/d")
    fluid: Scalar = var("kg")
    fat: Scalar = var("kg")
    lean: Scalar = var("kg")
    activity: Scalar = var("kcal/kg/d")
    constant: Scalar = var("kcal/d")


def _by_sex(p: Params, man: Any, woman: Any) -> Any:
    return man + p.female * (woman - man)


def stable(p: Params) -> Stable:
    """The body before the diet changes, by regressions on weight, height, age and sex."""
    bw, ht, age = p.weight0 / p.kg, p.height / p.m, p.age / p.year
    log_bmi = jnp.log(bw / ht**2)
    resting = (9.99 * bw + 625 * ht - 4.92 * age + _by_sex(p, 5.0, -161.0)) * p.kcal_d
    fluid = _by_sex(p, 0.025 * age + 9.57 * ht + 0.191 * bw - 12.4, -4 + 5.98 * ht + 0.167 * bw) * p.kg
    percent = 0.14 * age + _by_sex(p, 37.31, 39.96) * log_bmi - _by_sex(p, 103.94, 102.01)
    fat = p.weight0 * percent / 100
    lean = p.weight0 - fluid - fat - 3.7 * p.G0
    activity = ((1 - p.feeding) * p.PAL - 1) * resting / p.weight0
    constant = resting * p.PAL - p.gL * lean - p.gF * fat - activity * p.weight0
    return Stable(resting * p.PAL, fluid, fat, lean, activity, constant)


def fat_mass(lean: Scalar, s: Stable, p: Params) -> Scalar:
    """Fat that goes with a lean mass, by Forbes."""
    return s.fat * jnp.exp((lean - s.lean) / p.forbes)


def init(p: Params) -> State:
    """The stable weight."""
    s = stable(p)
    return State(thermogenesis=0.0, fluid=s.fluid, glycogen=p.G0, lean=s.lean)


def weight(x: State, fat: Scalar) -> Scalar:
    """Body weight: glycogen holds 2.7 times its mass of water."""
    return x.lean + fat + x.fluid + 3.7 * x.glycogen


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    s = stable(p)
    change = p.adherence * u.energy
    intake, fat = s.intake + change, fat_mass(x.lean, s, p)
    eaten, usual = p.carbohydrate * intake, p.carbohydrate * s.intake
    glycogen = (eaten - usual * (x.glycogen / p.G0) ** 2) / p.rhoG
    expended = (
        s.constant
        + s.activity * weight(x, fat)
        + p.feeding * change
        + x.thermogenesis
        + p.rhoG * glycogen
        + p.gL * x.lean
        + p.gF * fat
    )
    forbes = p.forbes * p.rhoL / p.rhoF
    stored = (1 + p.etaL / p.rhoL) * forbes + (1 + p.etaF / p.rhoF) * fat
    return State(
        thermogenesis=(p.thermogenesis * change - x.thermogenesis) / p.tau,
        fluid=(u.sodium - p.excretion * (x.fluid - s.fluid) - p.sparing * (1 - eaten / usual)) / p.fluid,
        glycogen=glycogen,
        lean=forbes / p.rhoL * (intake - expended) / stored,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Weight and fat."""
    fat = fat_mass(x.lean, stable(p), p)
    return Outputs(weight=weight(x, fat), fat=fat)


def example() -> Record:
    """500 kcal a day less for half a year, weighed every two weeks, fat by imaging as often."""
    times = np.arange(14.0, 183.0, 14.0)
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(energy=Steps([0.0], [-500.0])), {"weight": seen, "fat": seen})


body_weight = Model(
    name="body_weight",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    time="d",
    source="Hall et al. 2011, doi 10.1016/S0140-6736(11)60812-X",
    valid="Adults at a stable weight before the diet changes, weeks to years; no change of activity.",
    stiffness="0.4 d (glycogen) to some 2 years (fat): explicit, Tsit5, at days of step.",
    checked="The same equations by LSODA at 1e-12, three persons, 2 years: 1e-5 kg.",
    example=example,
)
