"""White blood cells under chemotherapy: a dividing pool, three stages of maturation, and the blood.

Source: Friberg et al. 2002, J Clin Oncol 20:4713, doi 10.1200/JCO.2002.02.140; docetaxel's values as read in
radivot/myelo (data/fribergPars02.rda, ca637), paclitaxel's in nlmixr2lib (Friberg_2002_paclitaxel,
DDMODEL00000186).

    dividing' = ktr dividing (1 - slope C) (Circ0 / circulating)^gamma - ktr dividing,     ktr = 4 / MTT
    stage_1'  = ktr (dividing - stage_1),     stage_2', stage_3' likewise
    circulating' = ktr (stage_3 - circulating),     all start at Circ0
    docetaxel   central' = iv - (CL + Q2 + Q3) C1 + Q2 C2 + Q3 C3,  Ck' Vk = Qk (C1 - Ck)
    paclitaxel  central' = iv - (CL + Q) C1 + Q C2,                 C2' V2 = Q (C1 - C2)
    C = C1 / molar_mass

While slope C is above 1 more cells die than divide: it is not cut off there. The kinetics are known, since
blood counts do not tell them; Circ0, MTT and slope are fitted, gamma is fixed.

Variants:
docetaxel_neutrophils: Neutrophils under docetaxel
paclitaxel_leukocytes: Leukocytes under paclitaxel
"""

from dataclasses import replace

import equinox as eqx
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import proportional
from dtwin_jax.dynamics.solver import Solver

_DOCETAXEL = "Friberg 2002, as read in radivot/myelo"
_DOCETAXEL_PRIOR = _DOCETAXEL + "; prior: weakly informative, chosen here"
_PACLITAXEL = "Friberg 2002, DDMODEL00000186"
_PACLITAXEL_PRIOR = _PACLITAXEL + "; prior: its spread between patients"
_KINETICS = _PACLITAXEL + ", median of its patients"
_DAY = 24.0  # h


class Docetaxel(eqx.Module):
    """Neutrophils, and three compartments of docetaxel."""

    Circ0: Scalar = param(
        5.05, "10*9/L", lognormal(5.05, log_sd=0.4), source=_DOCETAXEL_PRIOR, doc="count without drug"
    )
    MTT: Scalar = param(
        4 / 1.0823 * _DAY,
        "h",
        lognormal(4 / 1.0823 * _DAY, log_sd=0.3),
        source=_DOCETAXEL_PRIOR + "; ktr 1.0823 /d",
        doc="mean time of maturation",
    )
    slope: Scalar = param(
        8.58, "L/umol", lognormal(8.58, log_sd=0.5), source=_DOCETAXEL_PRIOR, doc="effect of the drug"
    )
    gamma: Scalar = param(0.161, "1", source=_DOCETAXEL, doc="feedback of the count on division")
    CL: Scalar = param(124.8 * 7.4 / _DAY, "L/h", source=_DOCETAXEL + ", k10 V1", doc="clearance")
    V1: Scalar = param(7.4, "L", source=_DOCETAXEL, doc="central volume")
    Q2: Scalar = param(25.44 * 7.4 / _DAY, "L/h", source=_DOCETAXEL + ", k12 V1", doc="to the shallow one")
    V2: Scalar = param(25.44 * 7.4 / 36.24, "L", source=_DOCETAXEL + ", k12 V1 / k21", doc="shallow volume")
    Q3: Scalar = param(30.24 * 7.4 / _DAY, "L/h", source=_DOCETAXEL + ", k13 V1", doc="to the deep one")
    V3: Scalar = param(30.24 * 7.4 / 2.016, "L", source=_DOCETAXEL + ", k13 V1 / k31", doc="deep volume")
    molar_mass: Scalar = param(0.808, "mg/umol", source=_DOCETAXEL, doc="of docetaxel")
    cv: Scalar = param(
        0.3, "1", lognormal(0.3, log_sd=0.5), source="value and prior chosen here", doc="proportional error"
    )


class Paclitaxel(eqx.Module):
    """Leukocytes, and two compartments of paclitaxel."""

    Circ0: Scalar = param(
        7.21, "10*9/L", lognormal(7.21, log_sd=0.107**0.5), source=_PACLITAXEL_PRIOR, doc="count without drug"
    )
    MTT: Scalar = param(
        124.0, "h", lognormal(124.0, log_sd=0.0296**0.5), source=_PACLITAXEL_PRIOR, doc="time of maturation"
    )
    slope: Scalar = param(
        28.9, "L/umol", lognormal(28.9, log_sd=0.176**0.5), source=_PACLITAXEL_PRIOR, doc="effect of the drug"
    )
    gamma: Scalar = param(0.239, "1", source=_PACLITAXEL, doc="feedback of the count on division")
    CL: Scalar = param(285.0, "L/h", source=_KINETICS, doc="clearance")
    V1: Scalar = param(290.0, "L", source=_KINETICS, doc="central volume")
    Q: Scalar = param(204.0, "L/h", source=_PACLITAXEL, doc="intercompartmental clearance")
    V2: Scalar = param(995.0, "L", source=_KINETICS, doc="peripheral volume")
    molar_mass: Scalar = param(0.8539, "mg/umol", source="nlmixr2lib", doc="of paclitaxel")
    cv: Scalar = param(
        0.286,
        "1",
        lognormal(0.286, log_sd=0.5),
        source=_PACLITAXEL + "; prior chosen here",
        doc="proportional error",
    )


class Inputs(eqx.Module):
    """Where doses go."""

    iv: Input = var("mg/h", neutral=0.0, doc="the drug into a vein")


class Cells(eqx.Module):
    """Cells that divide, mature and circulate."""

    dividing: Scalar = var("10*9/L")
    stage_1: Scalar = var("10*9/L")
    stage_2: Scalar = var("10*9/L")
    stage_3: Scalar = var("10*9/L")
    circulating: Scalar = var("10*9/L")


class State3(Cells):
    """Cells, and amounts of a drug in three compartments."""

    central: Scalar = var("mg")
    shallow: Scalar = var("mg")
    deep: Scalar = var("mg")


class State2(Cells):
    """Cells, and amounts of a drug in two compartments."""

    central: Scalar = var("mg")
    peripheral: Scalar = var("mg")


class Outputs(eqx.Module):
    """What is measured."""

    count: Scalar = var("10*9/L", doc="cells in blood", plausible=(0.0, 500.0))


def at_rest(p: Docetaxel | Paclitaxel) -> dict[str, Scalar]:
    """Cells without drug."""
    return dict.fromkeys(("dividing", "stage_1", "stage_2", "stage_3", "circulating"), p.Circ0)


def maturing(x: Cells, concentration: Scalar, p: Docetaxel | Paclitaxel) -> dict[str, Scalar]:
    """Rates of change of the cells at a concentration in mg/L, per hour."""
    ktr = 4 / p.MTT
    feedback = (p.Circ0 / x.circulating) ** p.gamma
    killed = p.slope * concentration / p.molar_mass
    return {
        "dividing": ktr * x.dividing * ((1 - killed) * feedback - 1),
        "stage_1": ktr * (x.dividing - x.stage_1),
        "stage_2": ktr * (x.stage_1 - x.stage_2),
        "stage_3": ktr * (x.stage_2 - x.stage_3),
        "circulating": ktr * (x.stage_3 - x.circulating),
    }


def init3(p: Docetaxel) -> State3:
    """No drug yet."""
    return State3(**at_rest(p), central=0.0, shallow=0.0, deep=0.0)


def init2(p: Paclitaxel) -> State2:
    """No drug yet."""
    return State2(**at_rest(p), central=0.0, peripheral=0.0)


def drift3(t: Scalar, x: State3, u: Inputs, p: Docetaxel) -> State3:
    """Rates of change with three compartments, per hour."""
    C = x.central / p.V1
    to_shallow, to_deep = p.Q2 * (C - x.shallow / p.V2), p.Q3 * (C - x.deep / p.V3)
    return State3(
        **maturing(x, C, p), central=u.iv - p.CL * C - to_shallow - to_deep, shallow=to_shallow, deep=to_deep
    )


def drift2(t: Scalar, x: State2, u: Inputs, p: Paclitaxel) -> State2:
    """Rates of change with two compartments, per hour."""
    C = x.central / p.V1
    exchanged = p.Q * (C - x.peripheral / p.V2)
    return State2(**maturing(x, C, p), central=u.iv - p.CL * C - exchanged, peripheral=exchanged)


def observe(t: Scalar, x: State2 | State3, u: Inputs, p: Docetaxel | Paclitaxel) -> Outputs:
    """The count."""
    return Outputs(count=x.circulating)


_TWICE_A_WEEK = _DAY * np.array([0.0, 4.0, 7.0, 9.0, 11.0, 14.0, 18.0, 21.0, 25.0, 28.0, 32.0, 35.0, 42.0])


def docetaxel_example() -> Record:
    """Two infusions of 180 mg over 90 min, three weeks apart, and counts for six weeks."""
    doses = Doses([0.0, 21.0 * _DAY], 180.0, 1.5)
    return Record(Inputs(iv=doses), {"count": Series(_TWICE_A_WEEK, np.zeros(_TWICE_A_WEEK.size))})


def paclitaxel_example() -> Record:
    """Two infusions of 300 mg over 3 h, three weeks apart, and counts for six weeks."""
    doses = Doses([0.0, 21.0 * _DAY], 300.0, 3.0)
    return Record(Inputs(iv=doses), {"count": Series(_TWICE_A_WEEK, np.zeros(_TWICE_A_WEEK.size))})


docetaxel_neutrophils = Model(
    name="docetaxel_neutrophils",
    params=Docetaxel,
    inputs=Inputs,
    init=init3,
    drift=drift3,
    observe=observe,
    noise=proportional,
    time="h",
    # An explicit method may step over what is left of the drug, whose derivatives then are wrong.
    solver=Solver(longest=0.4),
    source="Friberg et al. 2002, J Clin Oncol 20:4713, doi 10.1200/JCO.2002.02.140",
    valid="Adults with cancer over some cycles; no growth factors, no lasting damage to the marrow.",
    stiffness="8 min (the drug leaves plasma) to days: explicit, Tsit5, no step above 0.4 h.",
    checked="Two solvers outside this package: 1e-6 relative for six weeks; derivatives at the nadir, 1e-5.",
    example=docetaxel_example,
)
paclitaxel_leukocytes = replace(
    docetaxel_neutrophils,
    name="paclitaxel_leukocytes",
    params=Paclitaxel,
    init=init2,
    drift=drift2,
    solver=Solver(longest=1.5),
    stiffness="Half an hour (the drug leaves plasma) to days: explicit, Tsit5, no step above 1.5 h.",
    checked="Two solvers outside this package: 1e-6 relative over six weeks.",
    example=paclitaxel_example,
)
