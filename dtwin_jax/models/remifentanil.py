"""Remifentanil: three compartments and an effect site, with the parameter sets of Minto and Eleveld.

Sources: Minto et al. 1997, Anesthesiology 86:10, doi 10.1097/00000542-199701000-00004; Eleveld et al. 2017,
Anesthesiology 126:1005, doi 10.1097/ALN.0000000000001634. Formulas as in opentiva
(github.com/opentiva/opentiva), checked against python-anesthesia-simulator 1.0.0, from which the
between-subject spreads are. Equations: see effect_site.

    Minto    V1, V2, CL by age and lean body mass (James); Q2, Q3, ke0 by age; V3 constant
    Eleveld  all by fat-free mass relative to the reference, age and, for women of child-bearing age, sex

All is linear with constant coefficients, so the flow is exact. No switches. Fitted in practice: V1 and CL,
from samples of blood; ke0 only from an effect, so that from blood it keeps its published spread.

Variants:
remifentanil_minto: Remifentanil: three compartments and an effect site, with the parameter set of Minto
remifentanil_eleveld: Remifentanil: three compartments and an effect site, with the parameter set of Eleveld
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

_MINTO = "Minto 1997"
_MINTO_CV = "between-subject CV, as in python-anesthesia-simulator"
_ELEVELD = "Eleveld 2017; prior: between-subject variance of the log, as in python-anesthesia-simulator"
_FIXED = "Eleveld 2017"
_ERROR = "weakly informative, chosen here"


class Errors(eqx.Module):
    """Errors of measurement."""

    sd: Scalar = param(0.1, "ng/mL", lognormal(0.1, log_sd=1.0), source=_ERROR, doc="additive error")
    cv: Scalar = param(0.2, "1", lognormal(0.2, log_sd=0.5), source=_ERROR, doc="proportional error")


class Minto(eqx.Module):
    """Minto's set, at 40 years and 55 kg of lean body mass, all known."""

    V1: Scalar = param(5.1, "L", source=_MINTO, doc="central volume")
    V2: Scalar = param(9.82, "L", source=_MINTO, doc="fast volume")
    V3: Scalar = param(5.42, "L", source=_MINTO, doc="slow volume")
    CL: Scalar = param(2.6, "L/min", source=_MINTO, doc="clearance")
    Q2: Scalar = param(2.05, "L/min", source=_MINTO, doc="to the fast volume")
    Q3: Scalar = param(0.076, "L/min", source=_MINTO, doc="to the slow volume")
    ke0: Scalar = param(0.595, "/min", source=_MINTO, doc="of the effect site")
    V1_age: Scalar = param(-0.0201, "L/a", source=_MINTO, doc="central volume with age")
    V1_lean: Scalar = param(0.072, "L/kg", source=_MINTO, doc="central volume with lean body mass")
    V2_age: Scalar = param(-0.0811, "L/a", source=_MINTO, doc="fast volume with age")
    V2_lean: Scalar = param(0.108, "L/kg", source=_MINTO, doc="fast volume with lean body mass")
    CL_age: Scalar = param(-0.0162, "L/min/a", source=_MINTO, doc="clearance with age")
    CL_lean: Scalar = param(0.0191, "L/min/kg", source=_MINTO, doc="clearance with lean body mass")
    Q2_age: Scalar = param(-0.0301, "L/min/a", source=_MINTO, doc="fast exchange with age")
    Q3_age: Scalar = param(-0.00113, "L/min/a", source=_MINTO, doc="slow exchange with age")
    ke0_age: Scalar = param(-0.007, "1/min/a", source=_MINTO, doc="effect site with age")


class Eleveld(eqx.Module):
    """Eleveld's set, for a man of 35 years, 70 kg, 170 cm."""

    V1: Scalar = param(5.81, "L", lognormal(5.81, log_sd=0.104**0.5), source=_ELEVELD, doc="central volume")
    V2: Scalar = param(8.82, "L", lognormal(8.82, log_sd=0.115**0.5), source=_ELEVELD, doc="fast volume")
    V3: Scalar = param(5.03, "L", lognormal(5.03, log_sd=0.810**0.5), source=_ELEVELD, doc="slow volume")
    CL: Scalar = param(2.58, "L/min", lognormal(2.58, log_sd=0.0197**0.5), source=_ELEVELD, doc="clearance")
    Q2: Scalar = param(
        1.72, "L/min", lognormal(1.72, log_sd=0.0547**0.5), source=_ELEVELD, doc="to the fast volume"
    )
    Q3: Scalar = param(
        0.124, "L/min", lognormal(0.124, log_sd=0.285**0.5), source=_ELEVELD, doc="to the slow volume"
    )
    ke0: Scalar = param(
        1.09, "/min", lognormal(1.09, log_sd=1.26**0.5), source=_ELEVELD, doc="of the effect site"
    )
    V1_age: Scalar = param(-0.00554, "/a", source=_FIXED, doc="log V1, Q2 and Q3 with age")
    V2_age: Scalar = param(-0.00327, "/a", source=_FIXED, doc="log V2 and clearance with age")
    V3_age: Scalar = param(-0.0315, "/a", source=_FIXED, doc="log V3 with age")
    V3_weight: Scalar = param(-0.0260, "/kg", source=_FIXED, doc="log V3 with weight")
    ke0_age: Scalar = param(-0.0289, "/a", source="Eleveld 2017, as in opentiva", doc="log ke0 with age")
    woman: Scalar = param(
        0.470, "1", source=_FIXED, doc="greater clearance and Q2 of women about 12 to 45 years"
    )
    V2_woman: Scalar = param(
        0.0,
        "1",
        source="0 in python-anesthesia-simulator, 1 in opentiva; not checked in the paper",
        doc="1 where women's V2 is greater likewise",
    )


class MintoParams(Body, Minto, Errors):
    """Minto's set with its spread, patient and errors."""

    V1: Scalar = estimated(Minto, "V1", _MINTO_CV, cv=0.26)
    V2: Scalar = estimated(Minto, "V2", _MINTO_CV, cv=0.29)
    V3: Scalar = estimated(Minto, "V3", _MINTO_CV, cv=0.66)
    CL: Scalar = estimated(Minto, "CL", _MINTO_CV, cv=0.14)
    Q2: Scalar = estimated(Minto, "Q2", _MINTO_CV, cv=0.36)
    Q3: Scalar = estimated(Minto, "Q3", _MINTO_CV, cv=0.41)
    ke0: Scalar = estimated(Minto, "ke0", _MINTO_CV, cv=0.68)


class EleveldParams(Body, Eleveld, Errors):
    """Eleveld's set, patient and errors."""


def minto(p: Minto, body: Body) -> Kinetics:
    """Kinetics of a patient by Minto's set."""
    older = body.age - 40.0 * body.year
    leaner = lean_body_mass(body) - 55.0 * body.kg
    return Kinetics(
        V1=p.V1 + p.V1_age * older + p.V1_lean * leaner,
        V2=p.V2 + p.V2_age * older + p.V2_lean * leaner,
        V3=p.V3,
        CL=p.CL + p.CL_age * older + p.CL_lean * leaner,
        Q2=p.Q2 + p.Q2_age * older,
        Q3=p.Q3 + p.Q3_age * older,
        ke0=p.ke0 + p.ke0_age * older,
    )


def eleveld(p: Eleveld, body: Body) -> Kinetics:
    """Kinetics of a patient by Eleveld's set."""
    older = body.age - 35.0 * body.year
    heavier = body.weight - 70.0 * body.kg
    size, years = relative_fat_free_mass(body), body.age / body.year
    mature = hill(body.weight / body.kg, 2.88, 2.0) / hill(jnp.asarray(70.0), 2.88, 2.0)
    fertile = hill(years, 12.0, 6.0) * (1 - hill(years, 45.0, 6.0))
    sex = 1 + (1 - body.male) * p.woman * fertile
    V2 = p.V2 * size * jnp.exp(p.V2_age * older) * sex**p.V2_woman
    V3 = p.V3 * size * jnp.exp(p.V3_age * older + p.V3_weight * heavier)
    slower = jnp.exp(p.V1_age * older)
    return Kinetics(
        V1=p.V1 * size * slower,
        V2=V2,
        V3=V3,
        CL=p.CL * size**0.75 * mature * sex * jnp.exp(p.V2_age * older),
        Q2=p.Q2 * (V2 / p.V2) ** 0.75 * slower * sex,
        Q3=p.Q3 * (V3 / p.V3) ** 0.75 * slower,
        ke0=p.ke0 * jnp.exp(p.ke0_age * older),
    )


class Inputs(eqx.Module):
    """Where doses go."""

    infusion: Input = var("ug/min", neutral=0.0, doc="remifentanil into a vein")


class State(Site):
    """Amounts and the effect site."""

    A1: Scalar = var("ug")
    A2: Scalar = var("ug")
    A3: Scalar = var("ug")
    Ce: Scalar = var("ng/mL")


class Outputs(eqx.Module):
    """What is measured, and what the effect follows."""

    concentration: Scalar = var(
        "ng/mL", doc="remifentanil in blood", molar_mass=376.45, plausible=(0.0, 2000.0)
    )
    effect: Scalar = var(
        "ng/mL", doc="remifentanil at the effect site", molar_mass=376.45, plausible=(0.0, 2000.0)
    )


def init(p: Any) -> State:
    """No drug."""
    return State(A1=0.0, A2=0.0, A3=0.0, Ce=0.0)


def example() -> Record:
    """3 ug/kg/min for ten minutes in 70 kg, and blood for three hours; an effect is not measured.

    After the protocol of Minto et al. 1997 (recalled, not checked).
    """
    times = [1, 2, 4, 6, 8, 10, 11, 12, 14, 17, 20, 25, 30, 40, 60, 120, 180]
    return Record(
        Inputs(infusion=Doses([0.0], [2100.0], [10.0])),
        {"concentration": Series(times, np.zeros(len(times)))},
    )


remifentanil_minto = Model(
    name="remifentanil_minto",
    params=MintoParams,
    inputs=Inputs,
    init=init,
    drift=Drift(minto, State),
    observe=Observe(minto, Outputs),
    noise=combined,
    flow=LinearFlow(Drift(minto, State)),
    time="min",
    source="Minto et al. 1997, Anesthesiology 86:10, doi 10.1097/00000542-199701000-00004",
    valid="Adults of 20 to 85 years; the James formula fails in the very obese.",
    stiffness="Half a minute to hours; solved exactly.",
    checked="Rate constants and concentrations, 1e-8 relative, against python-anesthesia-simulator 1.0.0",
    example=example,
)
remifentanil_eleveld = replace(
    remifentanil_minto,
    name="remifentanil_eleveld",
    params=EleveldParams,
    drift=Drift(eleveld, State),
    observe=Observe(eleveld, Outputs),
    flow=LinearFlow(Drift(eleveld, State)),
    source="Eleveld et al. 2017, Anesthesiology 126:1005, doi 10.1097/ALN.0000000000001634",
    valid="Children and adults, normal weight and obese.",
    checked="As remifentanil_minto, with V2 8.882 L, which python-anesthesia-simulator has for 8.82 L",
)
