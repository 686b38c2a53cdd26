"""Decline of cognition in Alzheimer's disease on the ADAS-Cog scale, 0 (best) to 70.

Source: Conrado et al. 2014, J Pharmacokinet Pharmacodyn 41:581, doi 10.1007/s10928-014-9375-z; final
estimates as read in nlmixr2lib (ddmore/Conrado_2014_alzheimer.R, DDMODEL00000290), without its differences
by study.

    baseline = BL (1 or, in men, male_BL) (1 + apoe_BL (apoe4 - 0.72))
    rate     = slope (1 + age_slope (age - 75)) (1 + apoe_slope (apoe4 - 0.72)) (1 + off (1 - symptomatic))
    share'   = rate share (1 - share^shape),     share(0) = baseline / 70
    score    = 70 share

Richards' growth, solved exactly: share^-shape - 1 decays exponentially. Scores are beta distributed on
their scale. BL and slope are fitted for a patient (correlation of their random effects 0.28 in the paper),
the effects of covariates and the shape are known. Age, sex and alleles are measured once, at the start.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model

_CONRADO = "Conrado 2014, final estimate and between-subject spread"
_LARGEST = 70.0
_MEAN_ALLELES = 0.72  # of the patients whom the model was fitted to


class Params(eqx.Module):
    """Parameters of one patient's decline."""

    BL: Scalar = param(22.2, "1", lognormal(22.2, log_sd=0.395), source=_CONRADO, doc="score at the start")
    slope: Scalar = param(0.153, "/a", normal(0.153, 0.203), source=_CONRADO, doc="rate of decline")
    shape: Scalar = param(6.91, "1", source=_CONRADO, doc="how late the decline slows")
    tau: Scalar = param(87.5, "1", lognormal(87.5, log_sd=0.5), source=_CONRADO, doc="precision of a score")
    age: Scalar = param(75.0, "a", doc="age at the start")
    male: Scalar = param(0.0, "1", doc="1 in men")
    apoe4: Scalar = param(0.72, "1", doc="number of APOE e4 alleles, 0.72 where unknown")
    male_BL: Scalar = param(0.953, "1", source=_CONRADO, doc="factor on BL in men")
    apoe_BL: Scalar = param(0.0372, "1", source=_CONRADO, doc="effect of an allele on BL")
    apoe_slope: Scalar = param(0.195, "1", source=_CONRADO, doc="effect of an allele on slope")
    age_slope: Scalar = param(-0.024, "/a", source=_CONRADO, doc="effect of a year of age on slope")
    age_centre: Scalar = param(75.0, "a", source=_CONRADO, doc="age that slope is given for")
    off: Scalar = param(-0.302, "1", source=_CONRADO, doc="effect of no symptomatic drug on slope")


class Inputs(eqx.Module):
    """Treatment."""

    symptomatic: Input = var("1", neutral=1.0, doc="1 on a cholinesterase inhibitor or memantine, 0 off")


class State(eqx.Module):
    """The score as a share of the largest."""

    share: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    score: Scalar = var("1", doc="ADAS-Cog total, 0 to 70", plausible=(0.0, _LARGEST))


def init(p: Params) -> State:
    """Score at the start."""
    baseline = p.BL * (1 + (p.male_BL - 1) * p.male) * (1 + p.apoe_BL * (p.apoe4 - _MEAN_ALLELES))
    return State(share=baseline / _LARGEST)


def rate(u: Inputs, p: Params) -> Scalar:
    """Rate of decline of this patient."""
    by_age = 1 + p.age_slope * (p.age - p.age_centre)
    by_alleles = 1 + p.apoe_slope * (p.apoe4 - _MEAN_ALLELES)
    return p.slope * by_age * by_alleles * (1 + p.off * (1 - u.symptomatic))


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rate of change, per year."""
    return State(share=rate(u, p) * x.share * (1 - x.share**p.shape))


def flow(dt: Scalar, x: State, u: Inputs, p: Params) -> State:
    """The exact solution after `dt` under constant treatment."""
    power = x.share**p.shape
    left = (1 - power) * jnp.exp(-p.shape * rate(u, p) * dt)
    return State(share=x.share / (power + left) ** (1 / p.shape))


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """The expected score."""
    return Outputs(score=_LARGEST * x.share)


def beta_error(y: Outputs, p: Params) -> dict[str, dist.Distribution]:
    """A score is beta distributed about its expectation, between 0 and 70."""
    share = y.score / _LARGEST
    unit = dist.Beta(share * p.tau, (1 - share) * p.tau)
    return {"score": dist.TransformedDistribution(unit, dist.transforms.AffineTransform(0.0, _LARGEST))}


def example() -> Record:
    """A trial visit every three months for three years, on symptomatic treatment."""
    times = 0.25 * np.arange(13.0)
    seen = Series(times, np.ones(len(times)))
    return Record(Inputs(), {"score": seen})


adas_cog = Model(
    name="adas_cog",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=beta_error,
    flow=flow,
    time="a",
    source="Conrado et al. 2014, doi 10.1007/s10928-014-9375-z",
    valid="Mild to moderate Alzheimer's disease, up to some 5 years; scores strictly between 0 and 70.",
    stiffness="Solved exactly while treatment is constant.",
    checked="Closed form of the paper in 14 digits, three patients, 5 years: 1e-12 relative.",
    example=example,
)
