"""Propofol: three compartments and an effect site, with the parameter sets of Schnider, Marsh and Eleveld.

Sources: Schnider et al. 1998, Anesthesiology 88:1170, doi 10.1097/00000542-199805000-00006, with the ke0 of
Schnider et al. 1999, Anesthesiology 90:1502, doi 10.1097/00000542-199906000-00003; Marsh et al. 1991, Br J
Anaesth 67:41, doi 10.1093/bja/67.1.41; Eleveld et al. 2018, Br J Anaesth 120:942, doi
10.1016/j.bja.2018.01.018. Values as in python-anesthesia-simulator 1.0.0. Equations: see effect_site.

    Schnider  V2 = 18.9 - 0.391 (age - 53)                   Q2 = 1.29 - 0.024 (age - 53)
              CL = 1.89 + 0.0456 (weight - 77) - 0.0681 (lean body mass - 59) + 0.0264 (height - 177)
    Marsh     volumes per kg, k10, k12, k13 constant
    Eleveld   V1 by weight, V2 and CL by weight and age, V3 by fat-free mass and age; Q2, Q3 by V2, V3

All is linear with constant coefficients, so the flow is exact. No switches. Eleveld's between-subject spreads
are the priors of his set. Fitted in practice: V1 and CL, from samples of plasma. They say nothing of ke0,
which only an effect tells: it is known, but for Eleveld's published spread.

Variants:
propofol_schnider: Propofol: three compartments and an effect site, with the parameter set of Schnider
propofol_marsh: Propofol: three compartments and an effect site, with the parameter set of Marsh
propofol_eleveld: Propofol: three compartments and an effect site, with the parameter set of Eleveld
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.models.declared import estimated
from dtwin_jax.models.effect_site import (
    Body,
    Drift,
    Kinetics,
    Observe,
    Site,
    lean_body_mass,
    relative_fat_free_mass,
)
from dtwin_jax.models.hill import hill

_SCHNIDER = "Schnider 1998"
_MARSH = "Marsh 1991; prior: weakly informative, chosen here"
_ELEVELD = "Eleveld 2018; prior: between-subject variance of the log"
_FIXED = "Eleveld 2018"
_WEAK = "weakly informative, chosen here"


class Errors(eqx.Module):
    """Errors of measurement."""

    sd: Scalar = param(0.1, "ug/mL", lognormal(0.1, log_sd=1.0), source=_WEAK, doc="additive error")
    cv: Scalar = param(0.2, "1", lognormal(0.2, log_sd=0.5), source=_WEAK, doc="proportional error")


class Schnider(eqx.Module):
    """Schnider's set, at 53 years, 77 kg, 177 cm, 59 kg of lean body mass, all known."""

    V1: Scalar = param(4.27, "L", source=_SCHNIDER, doc="central volume")
    V2: Scalar = param(18.9, "L", source=_SCHNIDER, doc="fast volume")
    V3: Scalar = param(238.0, "L", source=_SCHNIDER, doc="slow volume")
    CL: Scalar = param(1.89, "L/min", source=_SCHNIDER, doc="clearance")
    Q2: Scalar = param(1.29, "L/min", source=_SCHNIDER, doc="to the fast volume")
    Q3: Scalar = param(0.836, "L/min", source=_SCHNIDER, doc="to the slow volume")
    ke0: Scalar = param(0.456, "/min", source="Schnider 1999", doc="of the effect site")
    V2_age: Scalar = param(-0.391, "L/a", source=_SCHNIDER, doc="fast volume with age")
    Q2_age: Scalar = param(-0.024, "L/min/a", source=_SCHNIDER, doc="fast exchange with age")
    CL_weight: Scalar = param(0.0456, "L/min/kg", source=_SCHNIDER, doc="clearance with weight")
    CL_lean: Scalar = param(-0.0681, "L/min/kg", source=_SCHNIDER, doc="clearance with lean body mass")
    CL_height: Scalar = param(0.0264, "L/min/cm", source=_SCHNIDER, doc="clearance with height")


class Marsh(eqx.Module):
    """Marsh's set; ke0 is 1.2 /min in the modified set."""

    V1_kg: Scalar = param(0.228, "L/kg", lognormal(0.228, log_sd=0.3), source=_MARSH, doc="central volume")
    V2_kg: Scalar = param(0.463, "L/kg", lognormal(0.463, log_sd=0.3), source=_MARSH, doc="fast volume")
    V3_kg: Scalar = param(2.893, "L/kg", lognormal(2.893, log_sd=0.3), source=_MARSH, doc="slow volume")
    k10: Scalar = param(0.119, "/min", lognormal(0.119, log_sd=0.3), source=_MARSH, doc="elimination")
    k12: Scalar = param(0.112, "/min", lognormal(0.112, log_sd=0.3), source=_MARSH, doc="to the fast volume")
    k13: Scalar = param(0.042, "/min", lognormal(0.042, log_sd=0.3), source=_MARSH, doc="to the slow volume")
    ke0: Scalar = param(
        0.26,
        "/min",
        source="joined to the set later; as in python-anesthesia-simulator, not checked in a paper",
        doc="of the effect site",
    )


class Eleveld(eqx.Module):
    """Eleveld's set, for a man of 35 years, 70 kg, 170 cm without opiates; arterial samples."""

    V1: Scalar = param(
        6.28307807669, "L", lognormal(6.28307807669, log_sd=0.610**0.5), source=_ELEVELD, doc="central volume"
    )
    V2: Scalar = param(
        25.5013145037, "L", lognormal(25.5013145037, log_sd=0.565**0.5), source=_ELEVELD, doc="fast volume"
    )
    V3: Scalar = param(
        272.816661504, "L", lognormal(272.816661504, log_sd=0.597**0.5), source=_ELEVELD, doc="slow volume"
    )
    CL: Scalar = param(
        1.78958365887, "L/min", lognormal(1.78958365887, log_sd=0.265**0.5), source=_ELEVELD, doc="clearance"
    )
    Q2: Scalar = param(
        1.75009837,
        "L/min",
        lognormal(1.75009837, log_sd=0.346**0.5),
        source=_ELEVELD,
        doc="to the fast volume",
    )
    Q3: Scalar = param(
        1.1085424, "L/min", lognormal(1.1085424, log_sd=0.209**0.5), source=_ELEVELD, doc="to the slow volume"
    )
    ke0: Scalar = param(
        0.146, "/min", lognormal(0.146, log_sd=0.702**0.5), source=_ELEVELD, doc="of the effect site"
    )
    CL_woman: Scalar = param(1.17358127905, "1", source=_FIXED, doc="clearance of a woman, relative to a man")
    V1_half: Scalar = param(33.5531248778, "kg", source=_FIXED, doc="weight of half the greatest V1")
    V2_age: Scalar = param(-0.015633, "/a", source=_FIXED, doc="log V2 with age")
    CL_age: Scalar = param(-0.00285709, "/a", source=_FIXED, doc="log clearance with age, with opiates")
    V3_age: Scalar = param(-0.0138166, "/a", source=_FIXED, doc="log V3 with age, with opiates")
    Q2_young: Scalar = param(1.30426805, "1", source=_FIXED, doc="greater Q2 while Q3 is immature")
    opiates: Scalar = param(1.0, "1", doc="1 with opiates, 0 without")


class SchniderParams(Body, Schnider, Errors):
    """Schnider's set, of which plasma tells all but ke0, patient and errors."""

    V1: Scalar = estimated(Schnider, "V1", _WEAK, log_sd=0.3)
    V2: Scalar = estimated(Schnider, "V2", _WEAK, log_sd=0.3)
    V3: Scalar = estimated(Schnider, "V3", _WEAK, log_sd=0.3)
    CL: Scalar = estimated(Schnider, "CL", _WEAK, log_sd=0.3)
    Q2: Scalar = estimated(Schnider, "Q2", _WEAK, log_sd=0.3)
    Q3: Scalar = estimated(Schnider, "Q3", _WEAK, log_sd=0.3)


class MarshParams(Body, Marsh, Errors):
    """Marsh's set, patient and errors."""


class EleveldParams(Body, Eleveld, Errors):
    """Eleveld's set, patient and errors."""


def schnider(p: Schnider, body: Body) -> Kinetics:
    """Kinetics of a patient by Schnider's set."""
    older = body.age - 53.0 * body.year
    return Kinetics(
        V1=p.V1,
        V2=p.V2 + p.V2_age * older,
        V3=p.V3,
        CL=p.CL
        + p.CL_weight * (body.weight - 77.0 * body.kg)
        + p.CL_lean * (lean_body_mass(body) - 59.0 * body.kg)
        + p.CL_height * (body.height - 177.0 * body.cm),
        Q2=p.Q2 + p.Q2_age * older,
        Q3=p.Q3,
        ke0=p.ke0,
    )


def marsh(p: Marsh, body: Body) -> Kinetics:
    """Kinetics of a patient by Marsh's set."""
    V1 = p.V1_kg * body.weight
    return Kinetics(
        V1=V1,
        V2=p.V2_kg * body.weight,
        V3=p.V3_kg * body.weight,
        CL=p.k10 * V1,
        Q2=p.k12 * V1,
        Q3=p.k13 * V1,
        ke0=p.ke0,
    )


def eleveld(p: Eleveld, body: Body) -> Kinetics:
    """Kinetics of a patient by Eleveld's set."""
    reference = 35.0 * body.year
    size = body.weight / (70.0 * body.kg)
    # Weeks since conception, at 52 weeks a year.
    weeks, weeks_reference = body.age / body.year * 52.0 + 40.0, jnp.asarray(35.0 * 52.0 + 40.0)
    mature = hill(weeks, 42.3, 9.06) / hill(weeks_reference, 42.3, 9.06)
    slow, slow_reference = hill(weeks, 68.27679787, 1.0), hill(weeks_reference, 68.27679787, 1.0)
    V2 = p.V2 * size * jnp.exp(p.V2_age * (body.age - reference))
    V3 = p.V3 * relative_fat_free_mass(body) * jnp.exp(p.opiates * p.V3_age * body.age)
    sex = body.male + (1 - body.male) * p.CL_woman
    return Kinetics(
        V1=p.V1 * size * (70.0 * body.kg + p.V1_half) / (body.weight + p.V1_half),
        V2=V2,
        V3=V3,
        CL=p.CL * sex * size**0.75 * mature * jnp.exp(p.opiates * p.CL_age * body.age),
        Q2=p.Q2 * (V2 / p.V2) ** 0.75 * (1 + p.Q2_young * (1 - slow)),
        Q3=p.Q3 * (V3 / p.V3) ** 0.75 * slow / slow_reference,
        ke0=p.ke0 * size**-0.25,
    )


class Inputs(eqx.Module):
    """Where doses go."""

    infusion: Input = var("mg/min", neutral=0.0, doc="propofol into a vein")


class State(Site):
    """Amounts and the effect site."""

    A1: Scalar = var("mg")
    A2: Scalar = var("mg")
    A3: Scalar = var("mg")
    Ce: Scalar = var("ug/mL")


class Outputs(eqx.Module):
    """What is measured, and what the effect follows."""

    concentration: Scalar = var("ug/mL", doc="propofol in plasma", molar_mass=178.27, plausible=(0.0, 200.0))
    effect: Scalar = var(
        "ug/mL", doc="propofol at the effect site", molar_mass=178.27, plausible=(0.0, 200.0)
    )


def init(p: Any) -> State:
    """No drug."""
    return State(A1=0.0, A2=0.0, A3=0.0, Ce=0.0)


def example() -> Record:
    """2 mg/kg at once and, an hour later, 100 ug/kg/min for an hour; blood for ten hours.

    After the protocol of Schnider et al. 1998 (recalled, not checked), in 70 kg. An effect is not measured.
    """
    early = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0])
    times = np.concatenate([early, 60.0 + early, 120.0 + early, [240.0, 300.0, 600.0]])
    inputs = Inputs(infusion=Doses([0.0, 60.0], [140.0, 420.0], [0.0, 60.0]))
    return Record(inputs, {"concentration": Series(times, np.zeros(len(times)))})


propofol_schnider = Model(
    name="propofol_schnider",
    params=SchniderParams,
    inputs=Inputs,
    init=init,
    drift=Drift(schnider, State),
    observe=Observe(schnider, Outputs),
    noise=combined,
    flow=LinearFlow(Drift(schnider, State)),
    time="min",
    source="Schnider et al. 1998, Anesthesiology 88:1170, doi 10.1097/00000542-199805000-00006",
    valid="Volunteers of 18 to 81 years, 44 to 123 kg; the James formula fails in the very obese.",
    stiffness="1 min to hours; solved exactly.",
    checked="Rate constants and concentrations, 1e-8 relative, against python-anesthesia-simulator 1.0.0",
    example=example,
)
propofol_marsh = replace(
    propofol_schnider,
    name="propofol_marsh",
    params=MarshParams,
    drift=Drift(marsh, State),
    observe=Observe(marsh, Outputs),
    flow=LinearFlow(Drift(marsh, State)),
    source="Marsh et al. 1991, Br J Anaesth 67:41, doi 10.1093/bja/67.1.41",
    valid="Adults of normal weight.",
)
propofol_eleveld = replace(
    propofol_schnider,
    name="propofol_eleveld",
    params=EleveldParams,
    drift=Drift(eleveld, State),
    observe=Observe(eleveld, Outputs),
    flow=LinearFlow(Drift(eleveld, State)),
    source="Eleveld et al. 2018, Br J Anaesth 120:942, doi 10.1016/j.bja.2018.01.018",
    valid="From newborns to the very old, normal weight and obese; arterial samples.",
)
