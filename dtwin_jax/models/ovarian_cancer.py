"""Carboplatin, the size of ovarian tumours, and survival: from dose to hazard.

Source: Zecchin et al. 2016, Br J Clin Pharmacol 82:717, doi 10.1111/bcp.12994, estimates as read in
nlmixr2lib (Zecchin_2016_tumorovarian, Zecchin_2016_survival; DDMODEL00000217 and 218). Kinetics: Calvert's
clearance, GFR + 25 mL/min (Calvert 1989, J Clin Oncol 7:1748, doi 10.1200/JCO.1989.7.11.1748; recalled, not
checked).

    amount' = dose - CL / V amount,              concentration = amount / V
    size'   = (KG - KD concentration) size,      size(0) = base
    growth  = KG - KD concentration
    ratio'  = growth (1 + ratio) until week 12, then held: size / base - 1
    H'      = lam alpha (lam t)^(alpha - 1) exp(risk)
    risk    = gBase SLD0 / 70 mm + gRatio ratio + gNew new_lesion + gECOG ECOG
    survival = exp(-H)

The paper gives carboplatin's effect by the average AUC of a cycle of 21 d; here the concentration acts, with
the same loss of size a cycle: KD = 0.0497e-3 x 21 d / d. The end of week 12 is an event: the input
`followed`, which `dosing` makes from `landmark`. Sizes tell KG, KD and base, and nothing of the drug's
kinetics, which are known; the hazard is told by deaths of a cohort only, and is known too. `survival` is the
probability of one patient; measured, it is the share alive of a cohort.

Variants:
ovarian_cancer: Carboplatin, the size of ovarian tumours, and survival: from dose to hazard
ovarian_tumour: Size of ovarian tumours under a given concentration of carboplatin
ovarian_hazard: Hazard of death and survival by the size of ovarian tumours and its change
"""

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, replace_fields, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.couple import couple
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.models.one_compartment import Params as DrugParams
from dtwin_jax.models.one_compartment import one_compartment

_SIZE = "Zecchin 2016, DDMODEL00000217; prior: its between-subject sd of the log"
_OS = "Zecchin 2016, DDMODEL00000218"
_CALVERT = "Calvert 1989 at a GFR of 100 mL/min, recalled, not checked"


class Carboplatin(DrugParams):
    """Free carboplatin, all known: nobody measures it where tumours are followed."""

    CL: Scalar = param(7.5, "L/h", source=_CALVERT, doc="clearance")
    V: Scalar = param(16.0, "L", source="recalled, not checked", doc="volume")
    ka: Scalar = param(1.0, "/h", doc="unused: carboplatin is infused")
    sd: Scalar = param(0.1, "mg/L", source="chosen here", doc="additive error of a concentration")
    cv: Scalar = param(0.1, "1", source="chosen here", doc="proportional error of a concentration")


class TumourParams(eqx.Module):
    """Growth and death of the lesions."""

    base: Scalar = param(71.3, "mm", lognormal(71.3, log_sd=0.718), source=_SIZE, doc="size at the start")
    KG: Scalar = param(0.611e-3, "/d", lognormal(0.611e-3, log_sd=1.311), source=_SIZE, doc="growth rate")
    KD: Scalar = param(
        0.0497e-3 * 21.0 * 1440.0 / 1000.0,
        "L/mg/d",
        lognormal(0.0497e-3 * 21.0 * 1440.0 / 1000.0, log_sd=1.044),
        source=_SIZE + "; 0.0497e-3 /d per mg.min/mL in a cycle of 21 d",
        doc="death rate by carboplatin",
    )
    sd_size: Scalar = param(18.4, "mm", lognormal(18.4, log_sd=0.5), source=_SIZE, doc="additive error")
    sd_growth: Scalar = param(1e-3, "/d", source="chosen here", doc="error of a growth rate")


class TumourInputs(eqx.Module):
    """The drug."""

    concentration: Input = var("mg/L", neutral=0.0, doc="free carboplatin in plasma")


class TumourState(eqx.Module):
    """Sum of longest diameters."""

    size: Scalar = var("mm")


class TumourOutputs(eqx.Module):
    """What is measured."""

    size: Scalar = var("mm", doc="sum of longest diameters", plausible=(0.0, 2000.0))
    growth: Scalar = var("/d", doc="growth rate of the moment")


def tumour_init(p: TumourParams) -> TumourState:
    """The size at the start."""
    return TumourState(size=p.base)


def tumour_growth(u: TumourInputs, p: TumourParams) -> Scalar:
    """Growth less death, per day."""
    return p.KG - p.KD * u.concentration


def tumour_drift(t: Scalar, x: TumourState, u: TumourInputs, p: TumourParams) -> TumourState:
    """Rate of change, per day."""
    return TumourState(size=tumour_growth(u, p) * x.size)


def tumour_observe(t: Scalar, x: TumourState, u: TumourInputs, p: TumourParams) -> TumourOutputs:
    """The size, and how it grows."""
    return TumourOutputs(size=x.size, growth=tumour_growth(u, p))


class HazardParams(eqx.Module):
    """Weibull hazard and what multiplies it."""

    lam: Scalar = param(1.183e-3, "/d", source=_OS, doc="scale of the Weibull hazard")
    alpha: Scalar = param(2.004, "1", source=_OS, doc="its shape")
    gBase: Scalar = param(0.2084, "1", source=_OS, doc="of the size at the start")
    gRatio: Scalar = param(0.9036, "1", source=_OS, doc="of the change of size until week 12")
    gNew: Scalar = param(1.230, "1", source=_OS, doc="of a new lesion")
    gECOG: Scalar = param(0.5162, "1", source=_OS, doc="of a performance status of 1 or more")
    SLD0: Scalar = param(70.0, "mm", source=_OS, doc="measured size at the start")
    SLD_usual: Scalar = param(70.0, "mm", source=_OS, doc="its average")
    ECOG: Scalar = param(0.0, "1", doc="1 where the performance status is 1 or more")
    landmark: Scalar = param(84.0, "d", source=_OS, doc="week 12: the change of size is held from then on")
    offset: Scalar = param(1e-6, "d", source=_OS, doc="keeps the hazard's slope finite at the start")
    sd_survival: Scalar = param(0.05, "1", source="chosen here", doc="error of a share alive")


class HazardInputs(eqx.Module):
    """What the tumours do."""

    growth: Input = var("/d", neutral=0.0, doc="growth rate of the tumours")
    new_lesion: Input = var("1", neutral=0.0, doc="1 from the appearance of a new lesion on")
    followed: Input = var("1", neutral=1.0, doc="1 until week 12; made from `landmark`")


class HazardState(eqx.Module):
    """Relative change of size until week 12, and cumulative hazard."""

    ratio: Scalar = var("1")
    cumulative: Scalar = var("1")


class HazardOutputs(eqx.Module):
    """What is measured."""

    survival: Scalar = var("1", doc="probability of being alive", plausible=(0.0, 1.0))


def hazard_init(p: HazardParams) -> HazardState:
    """Alive, at the size of the start."""
    return HazardState(ratio=0.0, cumulative=0.0)


def hazard_dosing(u: HazardInputs, p: HazardParams) -> HazardInputs:
    """The change of size counts until week 12."""
    followed = Steps(jnp.stack([jnp.zeros_like(p.landmark), p.landmark]), jnp.array([1.0, 0.0]))
    return replace_fields(u, {"followed": followed})


def hazard_drift(t: Scalar, x: HazardState, u: HazardInputs, p: HazardParams) -> HazardState:
    """Rates of change, per day."""
    weibull = p.lam * p.alpha * (p.lam * (t + p.offset)) ** (p.alpha - 1)
    covariates = (
        p.gBase * p.SLD0 / p.SLD_usual + p.gRatio * x.ratio + p.gNew * u.new_lesion + p.gECOG * p.ECOG
    )
    return HazardState(ratio=u.followed * u.growth * (1 + x.ratio), cumulative=weibull * jnp.exp(covariates))


def hazard_observe(t: Scalar, x: HazardState, u: HazardInputs, p: HazardParams) -> HazardOutputs:
    """Probability of being alive."""
    return HazardOutputs(survival=jnp.exp(-x.cumulative))


def tumour_example() -> Record:
    """Sizes every six weeks, the average concentration of AUC 5 in 21 d for six cycles."""
    u = TumourInputs(concentration=Steps([0.0, 126.0], [5e3 / (21.0 * 1440.0), 0.0]))
    times = 42.0 * np.arange(10.0)
    return Record(u, {"size": Series(times, np.zeros(times.size))})


ovarian_tumour = Model(
    name="ovarian_tumour",
    params=TumourParams,
    inputs=TumourInputs,
    init=tumour_init,
    drift=tumour_drift,
    observe=tumour_observe,
    noise=additive,
    time="d",
    source="Zecchin et al. 2016, doi 10.1111/bcp.12994",
    valid="Advanced ovarian cancer on carboplatin; no resistance, no gemcitabine.",
    stiffness="Weeks to years: explicit, Tsit5.",
    checked="Closed form of size at ends of cycles, in the composite: 1e-6.",
    example=tumour_example,
)
ovarian_hazard = Model(
    name="ovarian_hazard",
    params=HazardParams,
    inputs=HazardInputs,
    init=hazard_init,
    drift=hazard_drift,
    observe=hazard_observe,
    noise=additive,
    dosing=hazard_dosing,
    time="d",
    source="Zecchin et al. 2016, doi 10.1111/bcp.12994",
)


def example() -> Record:
    """Six cycles of AUC 5, sizes every six weeks, survival over two years."""
    u = eqx.tree_at(lambda u: u.iv, ovarian_cancer.inputs(), Doses(21.0 * np.arange(6.0), 625.0, 1.0 / 24.0))
    sizes, years = 42.0 * np.arange(8.0), 60.0 * np.arange(1.0, 13.0)
    return Record(
        u, {"size": Series(sizes, np.zeros(sizes.size)), "survival": Series(years, np.zeros(years.size))}
    )


ovarian_cancer = replace(
    couple(
        "ovarian_cancer",
        {
            "drug": replace(one_compartment, params=Carboplatin, flow=None, dosing=None),
            "tumour": ovarian_tumour,
            "hazard": ovarian_hazard,
        },
        {"tumour.concentration": "drug.concentration", "hazard.growth": "tumour.growth"},
        time="d",
        source="Zecchin et al. 2016, doi 10.1111/bcp.12994",
    ),
    valid="Advanced ovarian cancer on carboplatin, two to three years; no resistance, no gemcitabine.",
    checked="Closed form: size 1e-6, ratio 1e-5; survival by SciPy on cycle averages 2e-4.",
    example=example,
)
