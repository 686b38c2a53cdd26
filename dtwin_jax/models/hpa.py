"""The hypothalamus, pituitary and adrenal axis with glands that grow and shrink over weeks.

Source: Karin et al. 2020, Mol Syst Biol 16:e9510, doi 10.15252/msb.20209510 [equations and half-lives as in
a third-party implementation, not checked with the paper].

    GR       = 1 / (1 + (cortisol / KGR)^n)
    CRH'      = g1 (stress GR / cortisol - CRH)
    ACTH'     = g2 (CRH P GR - ACTH)
    cortisol' = g3 (ACTH A - cortisol)
    P'        = gP P (CRH - 1)
    A'        = gA A (ACTH - 1)

All in units of the basal set point; half-lives 4, 20 and 80 min, 20 and 30 d. It starts at rest under
stress 1: CRH = ACTH = 1, cortisol = GR(cortisol), A = cortisol, P = 1 / GR. Hormones are known, the
turnover of the glands (gP, gA) is what months of samples can tell; KGR shows only in cortisol several times
the usual.
"""

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import log_normal
from dtwin_jax.dynamics.solver import Solver

_KARIN = "Karin 2020, as read in third-party code, not checked with the paper"
_LN2 = 0.6931471805599453
_DAY = 1440.0  # minutes
_LEAST = 1e-9


class Params(eqx.Module):
    """Rates of turnover, and the receptor of cortisol."""

    g1: Scalar = param(_LN2 * _DAY / 4, "/d", source=_KARIN, doc="turnover of CRH")
    g2: Scalar = param(_LN2 * _DAY / 20, "/d", source=_KARIN, doc="turnover of ACTH")
    g3: Scalar = param(_LN2 * _DAY / 80, "/d", source=_KARIN, doc="turnover of cortisol")
    gP: Scalar = param(
        _LN2 / 20,
        "/d",
        lognormal(_LN2 / 20, log_sd=0.5),
        source=_KARIN + "; spread chosen here",
        doc="turnover of corticotrophs",
    )
    gA: Scalar = param(
        _LN2 / 30,
        "/d",
        lognormal(_LN2 / 30, log_sd=0.5),
        source=_KARIN + "; spread chosen here",
        doc="turnover of adrenal cortex",
    )
    KGR: Scalar = param(4.0, "1", source=_KARIN, doc="cortisol that half fills its low-affinity receptor")
    n: Scalar = param(3.0, "1", source=_KARIN, doc="steepness of the receptor")
    cv: Scalar = param(
        0.2, "1", lognormal(0.2, log_sd=0.5), source="weakly informative, chosen here", doc="sd of the log"
    )


class Inputs(eqx.Module):
    """Stress."""

    stress: Input = var("1", neutral=1.0, doc="input to the hypothalamus, relative to basal")


class State(eqx.Module):
    """Hormones, and functional masses of pituitary corticotrophs and adrenal cortex."""

    CRH: Scalar = var("1")
    ACTH: Scalar = var("1")
    cortisol: Scalar = var("1")
    P: Scalar = var("1")
    A: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured, relative to the basal set point."""

    acth: Scalar = var("1", plausible=(0.0, 1000.0))
    cortisol: Scalar = var("1", plausible=(0.0, 1000.0))


def present(cortisol: Scalar) -> Scalar:
    """Cortisol, at least a billionth of basal: without stress it falls to where a quotient is lost."""
    return jnp.maximum(cortisol, _LEAST)


def receptor(cortisol: Scalar, p: Params) -> Scalar:
    """What the low-affinity receptor of cortisol leaves of secretion."""
    return 1 / (1 + (cortisol / p.KGR) ** p.n)


def basal_cortisol(p: Params, *, rounds: int = 20) -> Scalar:
    """Cortisol at rest under stress 1: x + x^(n + 1) / KGR^n = 1, by Newton's method from above."""
    x = p.KGR / p.KGR
    for _ in range(rounds):
        bound = (x / p.KGR) ** p.n
        x = x - (x + x * bound - 1) / (1 + (p.n + 1) * bound)
    return x


def init(p: Params) -> State:
    """At rest under stress 1."""
    cortisol = basal_cortisol(p)
    return State(CRH=1.0, ACTH=1.0, cortisol=cortisol, P=1 / receptor(cortisol, p), A=cortisol)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    cortisol = present(x.cortisol)
    left = receptor(cortisol, p)
    return State(
        CRH=p.g1 * (u.stress * left / cortisol - x.CRH),
        ACTH=p.g2 * (x.CRH * x.P * left - x.ACTH),
        cortisol=p.g3 * (x.ACTH * x.A - x.cortisol),
        P=p.gP * x.P * (x.CRH - 1),
        A=p.gA * x.A * (x.ACTH - 1),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """ACTH and cortisol."""
    return Outputs(acth=x.ACTH, cortisol=x.cortisol)


def example() -> Record:
    """Three months of doubled stress after a month of rest, hormones every two weeks for ten months."""
    times = np.arange(0.0, 301.0, 14.0)
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(stress=Steps([0.0, 30.0, 120.0], [1.0, 2.0, 1.0])), {"acth": seen, "cortisol": seen})


hpa = Model(
    name="hpa",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    time="d",
    solver=Solver(method=diffrax.Kvaerno5),
    source="Karin et al. 2020, doi 10.15252/msb.20209510",
    valid="Daily means over weeks to months of stress; no circadian rhythm, no pulses.",
    stiffness="0.004 d (CRH) to 43 d (adrenal cortex), a ratio of 1e4: implicit, Kvaerno5.",
    checked="Two solvers at 1e-12, 300 d with 90 d of threefold stress: 1e-6 relative.",
    example=example,
)
