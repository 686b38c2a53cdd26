"""A drug that binds its target so tightly that the target disposes of it: target-mediated disposition.

Sources: Mager & Jusko 2001, J Pharmacokinet Pharmacodyn 28:507 (binding in full); Gibiansky et al. 2008, J
Pharmacokinet Pharmacodyn 35:573, doi 10.1007/s10928-008-9102-8 (quasi-steady state); values of mrgsolve's
tmdd model (metrumresearchgroup/mrgsolve, inst/models/tmdd.cpp), which states no units: h, nmol and L here.

    depot'   = F sc - ka depot
    central' = iv + ka depot - (kel + kpt) central + ktp tissue - V (kon C target - koff complex)
    tissue'  = kpt central - ktp tissue
    target'  = kdeg (R0 - target) - kon C target + koff complex
    complex' = kon C target - (koff + kint) complex,     C = central / V

Quasi-steady state: binding, dissociation and internalisation balance at any moment, so that of all drug and
all target in plasma, B and R (nmol/L), what is free follows:

    C  = (B - R - KSS + sqrt((B - R - KSS)^2 + 4 KSS B)) / 2,     complex = R C / (KSS + C)
    total'  = iv + ka depot - (kel + kpt) V C + ktp tissue - kint V complex,     B = total / V
    tissue' = kpt V C - ktp tissue
    R'      = kdeg (R0 - R) - (kint - kdeg) complex,     KSS = (koff + kint) / kon

Free drug alone tells KSS, not kon and koff apart, unless samples follow the first minutes.

Variants:
tmdd: Target-mediated drug disposition with binding in full
tmdd_qss: Target-mediated drug disposition at the quasi-steady state of binding
"""

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input, delay, scale
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.dynamics.solver import Solver

_WEAK = "value: mrgsolve tmdd; prior: weakly informative, chosen here"
_SET = "mrgsolve tmdd"
_HERE = "value and prior chosen here"


class Disposition(eqx.Module):
    """What does not depend on how the drug binds."""

    kel: Scalar = param(0.106, "/h", lognormal(0.106, log_sd=0.7), source=_WEAK, doc="elimination, not bound")
    kpt: Scalar = param(0.064, "/h", lognormal(0.064, log_sd=0.7), source=_WEAK, doc="plasma to tissue")
    ktp: Scalar = param(0.123, "/h", lognormal(0.123, log_sd=0.7), source=_WEAK, doc="tissue to plasma")
    V: Scalar = param(0.032, "L", lognormal(0.032, log_sd=0.7), source=_WEAK, doc="volume of plasma")
    R0: Scalar = param(64.31, "nmol/L", lognormal(64.31, log_sd=0.7), source=_WEAK, doc="target without drug")
    kdeg: Scalar = param(0.079, "/h", lognormal(0.079, log_sd=0.7), source=_WEAK, doc="loss of the target")
    kint: Scalar = param(2.0, "/h", lognormal(2.0, log_sd=0.7), source=_WEAK, doc="loss of the complex")
    ka: Scalar = param(0.142, "/h", source=_SET, doc="absorption rate")
    F: Scalar = param(1.0, "1", source="as in mrgsolve", doc="bioavailability under the skin")
    lag: Scalar = param(0.0, "h", source="as in mrgsolve", doc="lag of absorption")
    sd: Scalar = param(0.1, "nmol/L", lognormal(0.1, log_sd=1.0), source=_HERE, doc="additive error")
    cv: Scalar = param(0.1, "1", lognormal(0.1, log_sd=0.7), source=_HERE, doc="proportional error")


class Params(Disposition):
    """Disposition, and binding by its rates."""

    kon: Scalar = param(0.101, "L/nmol/h", lognormal(0.101, log_sd=0.7), source=_WEAK, doc="binding")
    koff: Scalar = param(10.1, "/h", source=_SET, doc="dissociation")


class QssParams(Disposition):
    """Disposition, and binding by its balance."""

    KSS: Scalar = param(
        (10.1 + 2.0) / 0.101,
        "nmol/L",
        lognormal((10.1 + 2.0) / 0.101, log_sd=0.7),
        source=_WEAK,
        doc="free drug at which half of the target is bound",
    )


class Inputs(eqx.Module):
    """Where doses go."""

    sc: Input = var("nmol/h", neutral=0.0, doc="under the skin")
    iv: Input = var("nmol/h", neutral=0.0, doc="into plasma")


class State(eqx.Module):
    """Amounts of free drug, and concentrations of target and complex in plasma."""

    depot: Scalar = var("nmol")
    central: Scalar = var("nmol")
    tissue: Scalar = var("nmol")
    target: Scalar = var("nmol/L")
    complex: Scalar = var("nmol/L")


class QssState(eqx.Module):
    """Amounts of drug, bound or not in plasma, and the concentration of all target there."""

    depot: Scalar = var("nmol")
    total: Scalar = var("nmol")
    tissue: Scalar = var("nmol")
    total_target: Scalar = var("nmol/L")


class Outputs(eqx.Module):
    """What is measured."""

    concentration: Scalar = var("nmol/L", doc="free drug in plasma", plausible=(0.0, jnp.inf))
    target: Scalar = var("nmol/L", doc="free target in plasma", plausible=(0.0, jnp.inf))


def init(p: Params) -> State:
    """No drug, and the target at rest."""
    return State(depot=0.0, central=0.0, tissue=0.0, target=p.R0, complex=0.0)


def init_qss(p: QssParams) -> QssState:
    """No drug, and the target at rest."""
    return QssState(depot=0.0, total=0.0, tissue=0.0, total_target=p.R0)


def dosing(u: Inputs, p: Disposition) -> Inputs:
    """Doses under the skin arrive after the lag, and F of them."""
    return Inputs(sc=delay(scale(u.sc, p.F), p.lag), iv=u.iv)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change with binding in full, per hour."""
    absorbed, exchanged = p.ka * x.depot, p.kpt * x.central - p.ktp * x.tissue
    bound = p.kon * x.central / p.V * x.target - p.koff * x.complex
    return State(
        depot=u.sc - absorbed,
        central=u.iv + absorbed - p.kel * x.central - exchanged - p.V * bound,
        tissue=exchanged,
        target=p.kdeg * (p.R0 - x.target) - bound,
        complex=bound - p.kint * x.complex,
    )


def free(x: QssState, p: QssParams) -> Scalar:
    """Concentration of free drug in plasma, without cancellation where nearly all is bound."""
    B = x.total / p.V
    excess = B - x.total_target - p.KSS
    root = jnp.sqrt(excess**2 + 4 * p.KSS * B)
    low = excess < 0
    return jnp.where(low, 2 * p.KSS * B / jnp.where(low, root - excess, p.KSS), (excess + root) / 2)


def drift_qss(t: Scalar, x: QssState, u: Inputs, p: QssParams) -> QssState:
    """Rates of change at the quasi-steady state of binding, per hour."""
    C = free(x, p)
    absorbed, exchanged = p.ka * x.depot, p.kpt * p.V * C - p.ktp * x.tissue
    bound = x.total_target * C / (p.KSS + C)
    return QssState(
        depot=u.sc - absorbed,
        total=u.iv + absorbed - p.kel * p.V * C - exchanged - p.kint * p.V * bound,
        tissue=exchanged,
        total_target=p.kdeg * (p.R0 - x.total_target) - (p.kint - p.kdeg) * bound,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """What is free."""
    return Outputs(concentration=x.central / p.V, target=x.target)


def observe_qss(t: Scalar, x: QssState, u: Inputs, p: QssParams) -> Outputs:
    """What is free."""
    C = free(x, p)
    return Outputs(concentration=C, target=x.total_target * p.KSS / (p.KSS + C))


def example() -> Record:
    """10 nmol into a vein; free drug and free target from the first minutes to the third day."""
    times = np.array([0.05, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0, 48.0, 72.0])
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(iv=Doses([0.0], [10.0])), {"concentration": seen, "target": seen})


tmdd = Model(
    name="tmdd",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    dosing=dosing,
    time="h",
    # Shorter than binding takes, without which derivatives of an explicit method are wrong.
    solver=Solver(longest=0.06, max_steps=16384),
    source="Mager & Jusko 2001, J Pharmacokinet Pharmacodyn 28:507",
    valid="Drugs of one binding site that bind one target in plasma, mostly antibodies and cytokines.",
    stiffness="1 min (binding) to 18 h, 1 to 1000: Tsit5, no step above 0.06 h, in a tenth of the time of"
    " Kvaerno5; an implicit solver where binding is ten times faster.",
    checked="mrgsolve's model by two solvers: 1e-6 relative, and derivatives to 1e-5.",
    example=example,
)
tmdd_qss = replace(
    tmdd,
    name="tmdd_qss",
    params=QssParams,
    init=init_qss,
    drift=drift_qss,
    observe=observe_qss,
    solver=Solver(longest=1.5),
    source="Gibiansky et al. 2008, J Pharmacokinet Pharmacodyn 35:573, doi 10.1007/s10928-008-9102-8",
    valid="As tmdd, after the first minutes in which drug and target bind.",
    stiffness="Half an hour (internalisation) to 18 h: explicit, Tsit5, no step above 1.5 h.",
    checked="The full model where binding is fast, 1e-5; without a target, exact linear kinetics, 1e-7.",
)
