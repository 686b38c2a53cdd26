"""Injected insulin, the glucose that it lowers, and the weight that glucose lost in urine costs.

Sources: insulin under the skin and renal loss above a threshold, Hovorka et al. 2004, doi
10.1088/0967-3334/25/4/010; glucose, Bergman et al. 1979, doi 10.1152/ajpendo.1979.236.6.E667 (minimal model);
weight, Hall et al. 2011, doi 10.1016/S0140-6736(11)60812-X. Joined here.

    insulin -> plasma_insulin -> glucose -> lost = R (glucose - threshold)+ VG BW -> energy -> weight -> BW

Untreated, glucose far above the renal threshold is lost in urine and its energy with it; insulin keeps it
in, and weight comes back. The weight sets the volume in which insulin is distributed: a closed loop, through
states. (.)+ is smoothed over `splay`, as nephrons differ in their threshold. Insulin acts over minutes and
weight over months, so a solve takes the steps of insulin's: some ten for each injection. For long plans,
give the average infusion. Glucose about injections tells SI, Gb and tmaxI; what else drives it is known or
has its published spread, and what a week of weights does not tell is known.
"""

from dataclasses import replace

import equinox as eqx
import jax
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.couple import couple
from dtwin_jax.dynamics.relation import Nothing, relation
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.models.body_weight import Params as HallParams
from dtwin_jax.models.body_weight import body_weight
from dtwin_jax.models.declared import known
from dtwin_jax.models.minimal_model import Params as BergmanParams
from dtwin_jax.models.minimal_model import minimal_model
from dtwin_jax.models.subcutaneous_insulin import Params as InsulinParams
from dtwin_jax.models.subcutaneous_insulin import subcutaneous_insulin

_HOVORKA = "Hovorka 2004"
_CHOSEN = "chosen here, for type 2 diabetes before insulin"


class UrineParams(eqx.Module):
    """Renal loss of glucose, and what it weighs in energy."""

    R: Scalar = param(0.003, "/min", source=_HOVORKA, doc="renal clearance")
    threshold: Scalar = param(162.14, "mg/dL", source=_HOVORKA + ", 9 mmol/L", doc="renal threshold")
    splay: Scalar = param(5.0, "mg/dL", source="chosen here", doc="width over which nephrons begin to lose")
    VG: Scalar = param(1.6, "dL/kg", source=_HOVORKA, doc="volume of glucose")
    BW: Scalar = param(80.0, "kg", doc="body weight")
    density: Scalar = param(
        3.72e-3, "kcal/mg", source="heat of combustion, 2805 kJ/mol; recalled, not checked", doc="of glucose"
    )
    sd: Scalar = param(50.0, "kcal/d", source="chosen here", doc="error of a measured balance")


class UrineInputs(eqx.Module):
    """What is filtered, and what is eaten."""

    glucose: Input = var("mg/dL", neutral=91.34, doc="in plasma")
    diet: Input = var("kcal/d", neutral=0.0, doc="change of intake")


class Balance(eqx.Module):
    """What the body is left with."""

    energy: Scalar = var("kcal/d", doc="change of intake less what is lost", plausible=(-1e4, 1e4))


def urine_lost(u: UrineInputs, p: UrineParams) -> Scalar:
    """Glucose lost in urine, mg/min."""
    above = p.splay * jax.nn.softplus((u.glucose - p.threshold) / p.splay)
    return p.R * above * p.VG * p.BW


def urine_observe(t: Scalar, x: Nothing, u: UrineInputs, p: UrineParams) -> Balance:
    """Energy eaten more than usual, less what is lost."""
    return Balance(energy=u.diet - _MINUTES * p.density * urine_lost(u, p))


_MINUTES = 1440.0  # in a day
urine = relation(
    "urine",
    UrineParams,
    UrineInputs,
    urine_observe,
    additive,
    time="min",
    source="renal loss: Hovorka et al. 2004",
)


class Injected(InsulinParams):
    """Insulin that nobody measures: glucose tells how fast it is absorbed, no more."""

    ke: Scalar = known(InsulinParams, "ke", _HOVORKA)
    sd: Scalar = known(InsulinParams, "sd", "chosen here")
    cv: Scalar = known(InsulinParams, "cv", "chosen here")


class Type2(BergmanParams):
    """Glucose effectiveness and sensitivity as in health but for a third of the latter; high at rest."""

    SI: Scalar = param(
        1.2e-4,
        "mL/u[IU]/min",
        lognormal(1.2e-4, log_sd=0.7),
        source="a third of Denti 2010's; " + _CHOSEN,
        doc="insulin sensitivity",
    )
    G0: Scalar = param(250.0, "mg/dL", source=_CHOSEN, doc="glucose at the start")
    Gb: Scalar = param(
        250.0, "mg/dL", lognormal(250.0, log_sd=0.3), source=_CHOSEN, doc="glucose without injections"
    )


class Eaten(HallParams):
    """What urine loses is lost: adherence to a diet is known to be whole, and the usual activity too."""

    PAL: Scalar = known(HallParams, "PAL", "chosen here; weeks of weights do not tell it")
    adherence: Scalar = param(1.0, "1", doc="share of the change of energy that is real")


def example() -> Record:
    """Ten units three times a day for a week, glucose before and two hours after each, weight once a day."""
    meals = np.ravel(np.arange(7.0)[:, None] + np.array([0.3, 0.5, 0.8]))
    u = diabetes_and_weight.inputs()
    given = eqx.tree_at(lambda u: u.insulin, u, Doses(meals, 10e3))
    pricks, daily = np.ravel(meals[:, None] + np.array([0.0, 2.0 / 24.0])), np.arange(0.0, 7.5)
    return Record(
        given,
        {"glucose": Series(pricks, np.zeros(pricks.size)), "weight": Series(daily, np.zeros(daily.size))},
    )


diabetes_and_weight = replace(
    couple(
        "diabetes_and_weight",
        {
            "insulin": replace(subcutaneous_insulin, params=Injected, flow=None),
            "glucose": replace(minimal_model, params=Type2),
            "urine": urine,
            "weight": replace(body_weight, params=Eaten),
        },
        {
            "glucose.insulin": "insulin.plasma_insulin",
            "urine.glucose": "glucose.glucose",
            "urine.BW": "weight.weight",
            "weight.energy": "urine.energy",
            "insulin.BW": "weight.weight",
        },
        time="d",
        source="Hovorka et al. 2004; Bergman et al. 1979; Hall et al. 2011; joined here",
    ),
    valid="Type 2 diabetes over weeks to months; no meals by themselves, only mean glucose.",
    checked="Glucose and lean mass of half a day by SciPy: 1e-6; insulin of the part alone: 2e-4.",
    example=example,
)
