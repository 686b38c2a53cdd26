"""Warfarin, and the prothrombin complex activity (PCA) that it lowers: kinetics and Emax turnover.

Sources: O'Reilly & Aggeler 1968, Circulation 38:169 (the study); values and spreads as in posologyr
(levenc/posologyr 0931621, tests/testthat/test_multi_outputs.R).

    depot'   = oral - ktr depot
    gut'     = ktr depot - ka gut
    central' = ka gut - (CL / V) central,        concentration C = central / V
    pca'     = E0 kout (1 - Emax C / (EC50 + C)) - kout pca,        pca(0) = E0
    Emax     = 1 / (1 + exp(-logit_Emax))

Emax is a share, and its logit normal between patients. ktr and ka may change places: only their priors tell
them apart. V, kout and E0 have no spread between patients in the source, and are known.
"""

import math

import equinox as eqx
import jax
import numpy as np

from dtwin_jax.core.prior import Prior, lognormal, normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models.hill import hill

_SET = "posologyr 0931621"
_BETWEEN = _SET + "; prior: its spread between patients"
# Typical values as the source has them: logarithms.
_KTR, _KA, _CL, _V = math.exp(0.106), math.exp(-0.087), math.exp(-2.03), math.exp(2.07)
_EC50, _KOUT, _E0 = math.exp(0.00724), math.exp(-2.9), math.exp(4.57)


def _spread(median: float, variance: float) -> Prior:
    return lognormal(median, log_sd=math.sqrt(variance))


class Params(eqx.Module):
    """Kinetics, turnover and errors."""

    ktr: Scalar = param(_KTR, "/h", _spread(_KTR, 1.024695), source=_BETWEEN, doc="transit into the gut")
    ka: Scalar = param(_KA, "/h", _spread(_KA, 0.9518403), source=_BETWEEN, doc="absorption rate")
    CL: Scalar = param(_CL, "L/h", _spread(_CL, 0.5300943), source=_BETWEEN, doc="clearance, over F")
    V: Scalar = param(_V, "L", source=_SET, doc="volume of distribution, over F")
    logit_Emax: Scalar = param(
        3.4, "1", normal(3.4, math.sqrt(0.7134424)), source=_BETWEEN, doc="of the largest share inhibited"
    )
    EC50: Scalar = param(
        _EC50, "mg/L", _spread(_EC50, 0.7204165), source=_BETWEEN, doc="concentration of half of the effect"
    )
    kout: Scalar = param(_KOUT, "/h", source=_SET, doc="rate of loss of the activity")
    E0: Scalar = param(_E0, "%", source=_SET, doc="activity without drug")
    sd_concentration: Scalar = param(0.144, "mg/L", source=_SET, doc="additive error")
    cv_concentration: Scalar = param(0.15, "1", source=_SET, doc="proportional error")
    sd_pca: Scalar = param(3.91, "%", source=_SET, doc="additive error")
    cv_pca: Scalar = param(0.0, "1", source="none in the source", doc="proportional error")


class Inputs(eqx.Module):
    """Where doses go."""

    oral: Input = var("mg/h", neutral=0.0, doc="warfarin by mouth")


class State(eqx.Module):
    """Amounts, and the activity."""

    depot: Scalar = var("mg")
    gut: Scalar = var("mg")
    central: Scalar = var("mg")
    pca: Scalar = var("%")


class Outputs(eqx.Module):
    """What is measured."""

    concentration: Scalar = var("mg/L", doc="warfarin in plasma", molar_mass=308.33, plausible=(0.0, 100.0))
    pca: Scalar = var("%", doc="prothrombin complex activity, of normal", plausible=(0.0, 300.0))


def init(p: Params) -> State:
    """No drug, and the usual activity."""
    return State(depot=0.0, gut=0.0, central=0.0, pca=p.E0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per hour."""
    passed, absorbed, concentration = p.ktr * x.depot, p.ka * x.gut, x.central / p.V
    made = 1 - jax.nn.sigmoid(p.logit_Emax) * hill(concentration, p.EC50, 1.0)
    return State(
        depot=u.oral - passed,
        gut=passed - absorbed,
        central=absorbed - p.CL * concentration,
        pca=p.kout * (p.E0 * made - x.pca),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Concentration and activity."""
    return Outputs(concentration=x.central / p.V, pca=x.pca)


def example() -> Record:
    """1.5 mg/kg in 67 kg, warfarin for five days and activity for six."""
    drug, activity = (
        [0.5, 1.0, 2.0, 3.0, 6.0, 9.0, 12.0, 24.0, 36.0, 48.0, 72.0, 96.0, 120.0],
        [0.0, 24.0, 36.0],
    )
    activity += [48.0, 72.0, 96.0, 120.0, 144.0]
    return Record(
        Inputs(oral=Doses([0.0], [100.0])),
        {
            "concentration": Series(drug, np.zeros(len(drug))),
            "pca": Series(activity, np.zeros(len(activity))),
        },
    )


warfarin = Model(
    name="warfarin",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    time="h",
    # An explicit method may step over an empty gut, whose derivatives then are wrong.
    solver=Solver(longest=3.0),
    source="O'Reilly & Aggeler 1968, Circulation 38:169; posologyr 0931621",
    valid="Healthy adults after a single dose; PCA as a whole, not factor by factor, and no INR.",
    stiffness="1 h (absorption) to 60 h (elimination): explicit, Tsit5, no step above 3 h.",
    checked="Two solvers outside this package, 1e-7 relative; the peak of one patient as in nlmixr, 1e-3.",
    example=example,
)
