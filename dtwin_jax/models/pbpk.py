"""A drug in 13 tissues joined by the blood: physiologically based kinetics of an adult.

Source: Jones & Rowland-Yeo 2013, CPT Pharmacometrics Syst Pharmacol 2:e63, doi 10.1038/psp.2013.41; values
of its example drug as in mrgsolve (inst/models/pbpk.cpp).

    leaving(tissue)  = Q C BP / Kp,               C = amount / volume
    tissue'          = Q C_arterial - leaving     where nothing else happens
    gut'             = Q C_arterial - leaving + absorbed
    kidney'          = Q C_arterial - leaving - CLrenal fup C
    liver'           = Q_artery C_arterial + leaving(gut) + leaving(spleen) - leaving - CLmet fup C
    lung'            = Q C_venous - leaving
    venous'          = leaving(all that drain into it) + iv - Q_lung C_venous
    arterial'        = leaving(lung) - Q_lung C_arterial
    depot'           = oral - ka depot,           absorbed = F ka depot
    concentration    = C_venous / BP              in plasma

CLmet = CLint / fumic x 45 g of microsomal protein in a kg of liver x its mass; tissue has 1 kg/L. Flows of
the tissues sum to that of the lung. Linear with constant coefficients, so solved by a matrix exponential.
Plasma concentrations determine CLint (with fup) and ka; partition coefficients and physiology are known.
"""

import equinox as eqx
import numpy as np
from jaxtyping import Array

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined

_JONES = "Jones & Rowland-Yeo 2013, as in mrgsolve"
_HERE = "weakly informative, chosen here"

# Share of body mass, share of cardiac output. The flow of the liver is that of its vein; its artery brings
# what gut and spleen do not.
VOLUME = {
    "adipose": 0.213,
    "bone": 0.085629,
    "brain": 0.02,
    "gut": 0.0171,
    "heart": 0.0047,
    "kidney": 0.0044,
    "liver": 0.021,
    "lung": 0.0076,
    "muscle": 0.4,
    "skin": 0.0371,
    "spleen": 0.0026,
    "testes": 0.01,
    "venous": 0.0514,
    "arterial": 0.0257,
    "rest": 0.099771,
}
FLOW = {
    "adipose": 0.05,
    "bone": 0.05,
    "brain": 0.12,
    "gut": 0.146462,
    "heart": 0.04,
    "kidney": 0.19,
    "liver": 0.215385,
    "lung": 1.0,
    "muscle": 0.17,
    "skin": 0.05,
    "spleen": 0.017231,
    "testes": 0.01076,
    "rest": 0.103855,
}
INTO_LIVER = ("gut", "spleen")
INTO_VEINS = ("adipose", "bone", "brain", "heart", "kidney", "liver", "muscle", "skin", "testes", "rest")


class Partition(eqx.Module):
    """Tissue to plasma partition coefficients of the drug."""

    adipose: Scalar = param(0.191, "1", source=_JONES)
    bone: Scalar = param(0.374, "1", source=_JONES)
    brain: Scalar = param(0.606, "1", source=_JONES)
    gut: Scalar = param(0.578, "1", source=_JONES)
    heart: Scalar = param(0.583, "1", source=_JONES)
    kidney: Scalar = param(0.597, "1", source=_JONES)
    liver: Scalar = param(0.570, "1", source=_JONES)
    lung: Scalar = param(0.620, "1", source=_JONES)
    muscle: Scalar = param(0.622, "1", source=_JONES)
    skin: Scalar = param(0.600, "1", source=_JONES)
    spleen: Scalar = param(0.591, "1", source=_JONES)
    testes: Scalar = param(0.600, "1", source=_JONES)
    rest: Scalar = param(0.600, "1", source=_JONES)


class Params(eqx.Module):
    """The body and the drug."""

    BW: Scalar = param(70.0, "kg", source=_JONES, doc="body mass")
    CO: Scalar = param(389.988, "L/h", source=_JONES + ": 108.33 mL/s", doc="cardiac output")
    density: Scalar = param(1.0, "kg/L", source=_JONES, doc="of every tissue")
    fup: Scalar = param(0.681, "1", source=_JONES, doc="fraction unbound in plasma")
    BP: Scalar = param(0.98, "1", source=_JONES, doc="blood to plasma ratio")
    fumic: Scalar = param(1.0, "1", source=_JONES, doc="fraction unbound in microsomes")
    CLint: Scalar = param(
        0.48,
        "L/h/g",
        lognormal(0.48, log_sd=1.0),
        source=_JONES + ": 8 uL/min a mg; spread chosen here",
        doc="intrinsic clearance by microsomal protein",
    )
    protein: Scalar = param(45.0, "g/kg", source=_JONES, doc="microsomal protein of liver")
    CLrenal: Scalar = param(0.0, "L/h", source=_JONES, doc="renal clearance")
    ka: Scalar = param(
        2.18, "/h", lognormal(2.18, log_sd=1.0), source=_JONES + "; spread chosen here", doc="absorption"
    )
    F: Scalar = param(1.0, "1", source=_JONES, doc="fraction absorbed")
    Kp: Partition = eqx.field(default_factory=Partition)
    sd: Scalar = param(0.01, "mg/L", lognormal(0.01, log_sd=1.5), source=_HERE, doc="additive error")
    cv: Scalar = param(0.2, "1", lognormal(0.2, log_sd=0.7), source=_HERE, doc="proportional error")


class Inputs(eqx.Module):
    """Where doses go."""

    oral: Input = var("mg/h", neutral=0.0, doc="into the gut's lumen")
    iv: Input = var("mg/h", neutral=0.0, doc="into venous blood")


class State(eqx.Module):
    """Amounts of drug."""

    depot: Scalar = var("mg")
    adipose: Scalar = var("mg")
    bone: Scalar = var("mg")
    brain: Scalar = var("mg")
    gut: Scalar = var("mg")
    heart: Scalar = var("mg")
    kidney: Scalar = var("mg")
    liver: Scalar = var("mg")
    lung: Scalar = var("mg")
    muscle: Scalar = var("mg")
    skin: Scalar = var("mg")
    spleen: Scalar = var("mg")
    testes: Scalar = var("mg")
    venous: Scalar = var("mg")
    arterial: Scalar = var("mg")
    rest: Scalar = var("mg")


class Outputs(eqx.Module):
    """What is measured."""

    concentration: Scalar = var("mg/L", doc="drug in venous plasma", plausible=(0.0, float("inf")))


def init(p: Params) -> State:
    """No drug."""
    return State(depot=0.0, **dict.fromkeys(VOLUME, 0.0))


def volume(tissue: str, p: Params) -> Array:
    """Volume of a tissue."""
    return VOLUME[tissue] * p.BW / p.density


def leaving(tissue: str, x: State, p: Params) -> Array:
    """Drug that the blood carries out of a tissue, mg/h."""
    held = getattr(x, tissue) / volume(tissue, p)
    return FLOW[tissue] * p.CO * held * p.BP / getattr(p.Kp, tissue)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, mg/h."""
    arterial, venous = x.arterial / volume("arterial", p), x.venous / volume("venous", p)
    out = {tissue: leaving(tissue, x, p) for tissue in FLOW}
    rate = {tissue: FLOW[tissue] * p.CO * arterial - out[tissue] for tissue in FLOW}
    metabolised = p.CLint / p.fumic * p.protein * VOLUME["liver"] * p.BW
    from_artery = FLOW["liver"] - sum(FLOW[tissue] for tissue in INTO_LIVER)
    portal = sum(out[tissue] for tissue in INTO_LIVER)
    absorbed = p.ka * x.depot
    rate["gut"] = rate["gut"] + p.F * absorbed
    rate["kidney"] = rate["kidney"] - p.CLrenal * p.fup * x.kidney / volume("kidney", p)
    rate["liver"] = (
        from_artery * p.CO * arterial
        + portal
        - out["liver"]
        - metabolised * p.fup * x.liver / volume("liver", p)
    )
    rate["lung"] = p.CO * venous - out["lung"]
    rate["venous"] = sum(out[tissue] for tissue in INTO_VEINS) + u.iv - p.CO * venous
    rate["arterial"] = out["lung"] - p.CO * arterial
    return State(depot=u.oral - absorbed, **rate)


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Concentration in venous plasma."""
    return Outputs(concentration=x.venous / volume("venous", p) / p.BP)


def example() -> Record:
    """100 mg by mouth, plasma sampled for a day."""
    times = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 24.0])
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(oral=Doses([0.0], [100.0])), {"concentration": seen})


pbpk = Model(
    name="pbpk",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    flow=LinearFlow(drift),
    time="h",
    source="Jones & Rowland-Yeo 2013, doi 10.1038/psp.2013.41",
    valid="Adult of 70 kg, small molecule, distribution limited by flow, clearance below saturation.",
    stiffness="0.001 h (lung) to 2 h: a matrix exponential, exact while infusions are constant.",
    checked="mrgsolve's equations solved at 1e-12, 24 h after 100 mg by mouth: 1e-7 relative.",
    example=example,
)
