"""Blood pressure under a receptor blocker and the kidney, over years: each makes the other worse.

Sources: the renin-angiotensin-aldosterone system under losartan, Pharmaceutics 2026, 18:262; decline of
eGFR, Jardine et al. 2020, doi 10.1681/ASN.2019111168; effect of pressure on the decline, de Goeij et al. 2011
(PREPARE), PMC3171298 Table 3: 0.04 (0.02 to 0.07) mL/min/1.73 m2 a month for 10 mm Hg systolic, 436 people
with an eGFR near 13. Joined here.

    drug -> aldosterone -> systolic -> slope of eGFR = usual - strain (systolic - target)
    eGFR -> SBP0 = pressure0 + retention (eGFR_start - eGFR)

What a lost mL/min adds to systolic pressure (`retention`) is weakly informative and chosen here; no source
says what it adds to diastolic pressure, which shows the drug alone. The effects of an SGLT2 inhibitor are
known: give them priors where one was begun in the record. Hormones settle in an hour, kidneys in years: the
implicit solver steps over what has settled.
"""

from dataclasses import replace

import diffrax
import equinox as eqx
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.couple import couple
from dtwin_jax.dynamics.relation import Nothing, relation
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models.declared import known
from dtwin_jax.models.egfr import Params as KidneyParams
from dtwin_jax.models.egfr import egfr
from dtwin_jax.models.raas import raas

_PREPARE = "de Goeij 2011, PREPARE, Table 3; prior: its 95 % limits"
_JARDINE = "Jardine 2020, CREDENCE, eGFR 30 to 45"
_HERE = "weakly informative, chosen here"
_EGFR = "mL/min/{1.73_m2}"


class StrainParams(eqx.Module):
    """How pressure and the kidney act on each other."""

    usual: Scalar = param(-4.33, _EGFR + "/a", source=_JARDINE, doc="slope of eGFR at the target")
    strain: Scalar = param(
        0.048,
        _EGFR + "/a/mm[Hg]",
        lognormal(0.048, log_sd=0.32),
        source=_PREPARE,
        doc="loss of slope by systolic pressure",
    )
    target: Scalar = param(130.0, "mm[Hg]", source="de Goeij 2011, its reference class", doc="target")
    pressure0: Scalar = param(
        150.0, "mm[Hg]", lognormal(150.0, log_sd=0.15), source=_HERE, doc="systolic at the start, no drug"
    )
    retention: Scalar = param(
        0.3,
        "mm[Hg].min.{1.73_m2}/mL",
        lognormal(0.3, log_sd=0.7),
        source=_HERE,
        doc="systolic by lost kidney function",
    )
    egfr_start: Scalar = param(56.0, _EGFR, source=_HERE, doc="eGFR that pressure0 is given for")
    sd_slope: Scalar = param(1.0, _EGFR + "/a", source="chosen here", doc="error of a slope")
    sd_untreated: Scalar = param(5.0, "mm[Hg]", source="chosen here", doc="error of a pressure")


class StrainInputs(eqx.Module):
    """What each tells the other."""

    systolic: Input = var("mm[Hg]", neutral=130.0, doc="systolic pressure")
    egfr: Input = var(_EGFR, neutral=56.0, doc="kidney function")


class StrainOutputs(eqx.Module):
    """What each does to the other."""

    slope: Scalar = var(_EGFR + "/a", doc="slope of eGFR under this pressure")
    untreated: Scalar = var("mm[Hg]", doc="systolic pressure without drug")


def strain_observe(t: Scalar, x: Nothing, u: StrainInputs, p: StrainParams) -> StrainOutputs:
    """Slope of the kidney's decline, and pressure without drug."""
    return StrainOutputs(
        slope=p.usual - p.strain * (u.systolic - p.target),
        untreated=p.pressure0 + p.retention * (p.egfr_start - u.egfr),
    )


strain = relation(
    "strain",
    StrainParams,
    StrainInputs,
    strain_observe,
    additive,
    time="a",
    source="de Goeij et al. 2011, PMC3171298",
)


class Kidney(KidneyParams):
    """A kidney under no SGLT2 inhibitor."""

    protection: Scalar = known(KidneyParams, "protection", _JARDINE)
    dip: Scalar = known(KidneyParams, "dip", _JARDINE)


def example() -> Record:
    """Ten years, losartan from the second on, seen twice a year."""
    u = eqx.tree_at(lambda u: u.drug, pressure_and_kidney.inputs(), Steps([0.0, 1.0], [0.0, 3e-4]))
    times = np.arange(0.0, 10.5, 0.5)
    seen = Series(times, np.zeros(times.size))
    return Record(u, dict.fromkeys(("systolic", "diastolic", "egfr"), seen))


pressure_and_kidney = replace(
    couple(
        "pressure_and_kidney",
        {"hormones": raas, "strain": strain, "kidney": replace(egfr, params=Kidney, flow=None)},
        {
            "strain.systolic": "hormones.systolic",
            "strain.egfr": "kidney.egfr",
            "hormones.SBP0": "strain.untreated",
            "kidney.slope": "strain.slope",
        },
        time="a",
        solver=Solver(diffrax.Kvaerno5, 1e-7, (1e-8, 1e-8, 1e-8, 1e-6, 1e-8)),
        source="losartan model, Pharmaceutics 2026, 18:262; Jardine et al. 2020; de Goeij et al. 2011",
    ),
    valid="Chronic kidney disease of adults on losartan, while eGFR is above 15: from the defaults without"
    " drug some 7 years, in which systolic pressure rises from 150 to 162 mm[Hg]. The line of eGFR crosses 0"
    " after 10 years and pressure goes on rising with it, to 209 mm[Hg] after 30: no source supports that."
    " Diastolic pressure shows the drug alone, not the years. The effect of pressure is taken from people"
    " with an eGFR near 13.",
    checked="Its slow closed form, hormones settled, without the acute dip: 1e-5.",
    example=example,
)
