"""Renin-angiotensin-aldosterone system under a receptor blocker, and the blood pressure that follows.

Source: losartan model, Pharmaceutics 2026, 18:262 (matthiaskoenig/losartan-model, doi
10.5281/zenodo.14761114, commit 92920bf, models/losartan_raas.xml, CC BY-SA 4.0). The drug is the metabolite
E3174 in plasma.

    fe = drug / (E50 + drug)
    ren = 1 + 5 fe                           raas: renin at its steady state
    V ren_ref ren' = kr (1 + 5 fe) - kr ren  raas_full: renin integrated
    V a1_ref a1'   = kg ren - kg a1                      kg = KG gen
    V a2_ref a2'   = kg a1 - kg a2
    V ald_ref ald' = ka (1 - fe) - ka ald
    SBP = SBP0 (1 + slope (ald - 1)),  DBP likewise

The chain is one way: blood pressure follows aldosterone, which the drug blocks directly; angiotensin II does
not feed back. The hormones ren, a1, a2 and ald are ratios to what they are without drug; fe is the share of
receptors blocked. Renin settles a billion times faster than the rest. No switches. Fitted in practice: SBP0,
DBP0, E50, slope. The rates of angiotensin I and II are not identifiable from blood pressure.

Variants:
raas: Renin, angiotensin and aldosterone under a receptor blocker, renin settled, and blood pressure
raas_full: Renin, angiotensin and aldosterone under a receptor blocker, renin integrated, and pressure
"""

from dataclasses import replace

import diffrax
import equinox as eqx
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Sampled
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver

_SET = "losartan-model 92920bf, losartan_raas.xml"
_FITTED = _SET + "; prior: weakly informative, chosen here"
_ERROR = "weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of the chain."""

    SBP0: Scalar = param(
        120.0, "mm[Hg]", lognormal(120.0, log_sd=0.15), source=_FITTED, doc="systolic without drug"
    )
    DBP0: Scalar = param(
        80.0, "mm[Hg]", lognormal(80.0, log_sd=0.15), source=_FITTED, doc="diastolic without drug"
    )
    E50: Scalar = param(
        2.91072740111984e-4,
        "mmol/L",
        lognormal(2.91072740111984e-4, log_sd=1.0),
        source=_FITTED,
        doc="concentration of half effect",
    )
    slope: Scalar = param(
        0.311999262694736,
        "1",
        lognormal(0.311999262694736, log_sd=0.5),
        source=_FITTED,
        doc="of blood pressure in aldosterone, both relative",
    )
    rise: Scalar = param(5.0, "1", source=_SET, doc="of renin release at full effect, relative")
    V: Scalar = param(5.0, "L", source=_SET, doc="plasma volume in the model")
    kr: Scalar = param(0.1, "mmol/min", source=_SET, doc="release of renin")
    KG: Scalar = param(0.100300143544081, "L/min", source=_SET, doc="turnover of angiotensins")
    ka: Scalar = param(1.0105027952686e-6, "mmol/min", source=_SET, doc="release of aldosterone")
    gen: Scalar = param(1e-8, "mmol/L", source=_SET, doc="angiotensinogen")
    ren_ref: Scalar = param(1e-9, "mmol/L", source=_SET, doc="renin without drug")
    a1_ref: Scalar = param(1e-8, "mmol/L", source=_SET, doc="angiotensin I without drug")
    a2_ref: Scalar = param(8e-9, "mmol/L", source=_SET, doc="angiotensin II without drug")
    ald_ref: Scalar = param(2.5e-7, "mmol/L", source=_SET, doc="aldosterone without drug")
    sd: Scalar = param(5.0, "mm[Hg]", lognormal(5.0, log_sd=1.0), source=_ERROR, doc="error of a measurement")


class Inputs(eqx.Module):
    """The blocker in plasma."""

    drug: Input = var(
        "mmol/L", neutral=0.0, doc="concentration of E3174", molar_mass=436.9, plausible=(0.0, 1.0)
    )


class State(eqx.Module):
    """Hormones, as ratios to what they are without drug."""

    angiotensin_1: Scalar = var("1")
    angiotensin_2: Scalar = var("1")
    aldosterone: Scalar = var("1")


class FullState(State):
    """And renin."""

    renin: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    systolic: Scalar = var("mm[Hg]", doc="systolic blood pressure", plausible=(30.0, 350.0))
    diastolic: Scalar = var("mm[Hg]", doc="diastolic blood pressure", plausible=(10.0, 250.0))


def init(p: Params) -> State:
    """No drug yet."""
    return State(angiotensin_1=1.0, angiotensin_2=1.0, aldosterone=1.0)


def init_full(p: Params) -> FullState:
    """No drug yet."""
    return FullState(angiotensin_1=1.0, angiotensin_2=1.0, aldosterone=1.0, renin=1.0)


def effect(u: Inputs, p: Params) -> Scalar:
    """Share of receptors blocked."""
    return u.drug / (p.E50 + u.drug)


def chain(x: State, renin: Scalar, blocked: Scalar, p: Params) -> State:
    """Rates of change of what renin and the drug drive, per minute."""
    kg = p.KG * p.gen
    return State(
        angiotensin_1=kg * (renin - x.angiotensin_1) / (p.V * p.a1_ref),
        angiotensin_2=kg * (x.angiotensin_1 - x.angiotensin_2) / (p.V * p.a2_ref),
        aldosterone=p.ka * (1 - blocked - x.aldosterone) / (p.V * p.ald_ref),
    )


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change with renin at its steady state, per minute."""
    blocked = effect(u, p)
    return chain(x, 1 + p.rise * blocked, blocked, p)


def drift_full(t: Scalar, x: FullState, u: Inputs, p: Params) -> FullState:
    """Rates of change, per minute."""
    blocked = effect(u, p)
    rates = chain(x, x.renin, blocked, p)
    release = p.kr * (1 + p.rise * blocked - x.renin) / (p.V * p.ren_ref)
    return FullState(**vars(rates), renin=release)


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Blood pressure from aldosterone."""
    relative = 1 + p.slope * (x.aldosterone - 1)
    return Outputs(systolic=p.SBP0 * relative, diastolic=p.DBP0 * relative)


def example() -> Record:
    """Ambulatory blood pressure every half hour for the day after 50 mg of losartan.

    Course of its metabolite: peak 0.6 umol/L at 4 h, half-life 7 h (recalled, not checked).
    """
    times = np.arange(0.0, 1441.0, 30.0)
    hours = np.array([0.0, 1.0, 2.0, 4.0, 7.0, 11.0, 18.0, 24.0])
    course = Sampled(60.0 * hours, 1e-4 * np.array([0.0, 1.5, 4.0, 6.0, 4.5, 3.0, 1.5, 0.8]))
    pressure = Series(times, np.zeros(len(times)))
    return Record(Inputs(drug=course), {"systolic": pressure, "diastolic": pressure})


raas = Model(
    name="raas",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    time="min",
    source="losartan model, Pharmaceutics 2026, 18:262, doi 10.5281/zenodo.14761114",
    valid="Adults on losartan: the drug is its metabolite E3174; no feedback of angiotensin II.",
    stiffness="Aldosterone 1.2 min, angiotensin II 40 min, angiotensin I 50 min: Tsit5.",
    checked="Hormones and pressures, 1e-7 relative, against the full form in libroadrunner.",
    example=example,
)
raas_full = replace(
    raas,
    name="raas_full",
    init=init_full,
    drift=drift_full,
    solver=Solver(method=diffrax.Kvaerno5, rtol=1e-6, atol=1e-8),
    stiffness="Renin 5e-8 min, angiotensin I 50 min, a ratio of 1e9: Kvaerno5.",
)
