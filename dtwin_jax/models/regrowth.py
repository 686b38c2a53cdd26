"""Two populations of cells, one that treatment kills and one that it does not.

Sources: Stein et al. 2011, Clin Cancer Res 17:907, doi 10.1158/1078-0432.CCR-10-1762 (sums of a falling and a
rising exponential, fitted to prostate-specific antigen, PSA); regrowth of sensitive cells while treatment is
off: Hirata, Bruchovsky & Aihara 2010, J Theor Biol 264:517, whose second population is one here. Values and
priors are weakly informative and chosen here, but for the PSA at the start: Bruchovsky et al. 2006, Cancer
107:389, doi 10.1002/cncr.21989.

    sensitive' = (growth (1 - treatment) - death treatment) sensitive,     sensitive(0) = phi
    resistant' = resistance resistant,                                     resistant(0) = 1 - phi
    psa        = psa0 (sensitive + resistant)

Under constant treatment: psa0 (phi exp(-death t) + (1 - phi) exp(resistance t)). In `stein_regrowth` both
populations start at 1 and psa = psa0 (sensitive + resistant - 1), the form of the paper. `lesion_regrowth` is
the first model for a sum of diameters. The exact solution is used. `growth` is seen only while treatment is
off, `resistance` and phi only after the nadir.

Variants:
regrowth: Two populations of cells, one that treatment kills and one that it does not, by PSA
stein_regrowth: Sum of a falling and a rising exponential less 1, by PSA: the form of Stein
lesion_regrowth: Two populations of cells, one that treatment kills and one that it does not, by diameters
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import beta, lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import log_normal

_HERE = "weakly informative, chosen here"


def _start() -> Any:
    return param(
        14.0,
        "ng/mL",
        lognormal(14.0, log_sd=1.0),
        source="median first PSA of 36 men of Bruchovsky 2006; spread chosen here",
        doc="PSA at the start",
    )


def _death() -> Any:
    return param(0.03, "/d", lognormal(0.03, log_sd=1.0), source=_HERE, doc="loss of sensitive cells")


def _growth() -> Any:
    return param(0.02, "/d", lognormal(0.02, log_sd=1.0), source=_HERE, doc="their regrowth off treatment")


def _resistance() -> Any:
    return param(0.002, "/d", lognormal(0.002, log_sd=1.0), source=_HERE, doc="growth of resistant cells")


def _error() -> Any:
    return param(0.25, "1", lognormal(0.25, log_sd=0.7), source=_HERE, doc="sd of the log of a measurement")


class Params(eqx.Module):
    """Parameters of PSA with a fraction of resistant cells."""

    psa0: Scalar = _start()
    phi: Scalar = param(0.95, "1", beta(9.0, 1.0), source=_HERE, doc="share of sensitive cells at the start")
    death: Scalar = _death()
    growth: Scalar = _growth()
    resistance: Scalar = _resistance()
    cv: Scalar = _error()


class SteinParams(eqx.Module):
    """Parameters of PSA in the form of Stein 2011, without a fraction."""

    psa0: Scalar = _start()
    death: Scalar = _death()
    growth: Scalar = _growth()
    resistance: Scalar = _resistance()
    cv: Scalar = _error()


class LesionParams(eqx.Module):
    """Parameters of a sum of diameters with a fraction of resistant cells."""

    size0: Scalar = param(70.0, "mm", lognormal(70.0, log_sd=0.7), source=_HERE, doc="size at the start")
    phi: Scalar = param(0.7, "1", beta(2.0, 1.0), source=_HERE, doc="share of sensitive cells at the start")
    death: Scalar = _death()
    growth: Scalar = _growth()
    resistance: Scalar = _resistance()
    cv: Scalar = _error()


class Inputs(eqx.Module):
    """Treatment."""

    treatment: Input = var("1", neutral=0.0, doc="0 off, 1 on")


class State(eqx.Module):
    """Cells, as shares of all cells at the start."""

    sensitive: Scalar = var("1")
    resistant: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    psa: Scalar = var("ng/mL", doc="prostate-specific antigen in serum", plausible=(0.0, 1e5))


class LesionOutputs(eqx.Module):
    """What is measured."""

    size: Scalar = var("mm", doc="sum of longest diameters", plausible=(0.0, 2000.0))


def init(p: Params | LesionParams) -> State:
    """Sensitive and resistant cells."""
    return State(sensitive=p.phi, resistant=1 - p.phi)


def init_stein(p: SteinParams) -> State:
    """Both at 1: one of the two is counted twice, and taken off again when observed."""
    return State(sensitive=1.0, resistant=1.0)


def sensitive_rate(u: Inputs, p: Params | SteinParams | LesionParams) -> Scalar:
    """Net growth of sensitive cells."""
    return p.growth * (1 - u.treatment) - p.death * u.treatment


def drift(t: Scalar, x: State, u: Inputs, p: Params | SteinParams | LesionParams) -> State:
    """Rates of change, per day."""
    return State(sensitive=sensitive_rate(u, p) * x.sensitive, resistant=p.resistance * x.resistant)


def flow(dt: Scalar, x: State, u: Inputs, p: Params | SteinParams | LesionParams) -> State:
    """The exact solution after `dt` under constant treatment."""
    return State(
        sensitive=x.sensitive * jnp.exp(sensitive_rate(u, p) * dt),
        resistant=x.resistant * jnp.exp(p.resistance * dt),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """PSA, by cells of either kind alike."""
    return Outputs(psa=p.psa0 * (x.sensitive + x.resistant))


def observe_stein(t: Scalar, x: State, u: Inputs, p: SteinParams) -> Outputs:
    """PSA in the form of the paper."""
    return Outputs(psa=p.psa0 * (x.sensitive + x.resistant - 1))


def observe_lesion(t: Scalar, x: State, u: Inputs, p: LesionParams) -> LesionOutputs:
    """Size, by cells of either kind alike."""
    return LesionOutputs(size=p.size0 * (x.sensitive + x.resistant))


def example() -> Record:
    """PSA every four weeks through two cycles of 36 weeks on and 24 weeks off treatment."""
    times = np.arange(0.0, 841.0, 28.0)
    on_and_off = Steps([0.0, 252.0, 420.0, 672.0], [1.0, 0.0, 1.0, 0.0])
    return Record(Inputs(treatment=on_and_off), {"psa": Series(times, np.zeros(len(times)))})


def example_lesion() -> Record:
    """A scan every eight weeks for two years, with 24 weeks off treatment after the first 36."""
    times = np.arange(0.0, 729.0, 56.0)
    on_and_off = Steps([0.0, 252.0, 420.0], [1.0, 0.0, 1.0])
    return Record(Inputs(treatment=on_and_off), {"size": Series(times, np.zeros(len(times)))})


regrowth = Model(
    name="regrowth",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    flow=flow,
    time="d",
    source="Stein et al. 2011, doi 10.1158/1078-0432.CCR-10-1762",
    valid="PSA of men under androgen suppression, within the cycle it is calibrated on: it has no floor"
    " and no ceiling, and forecasts of the next cycle lose to the last value (benchmarks/psa_forecast.py).",
    stiffness="Solved exactly while treatment is constant.",
    checked="The exponentials of the paper, evaluated apart: 1e-13 relative.",
    example=example,
)

stein_regrowth = replace(
    regrowth,
    name="stein_regrowth",
    params=SteinParams,
    init=init_stein,
    observe=observe_stein,
    checked="The exponentials of the paper, evaluated apart: 1e-12 relative.",
)

lesion_regrowth = replace(
    regrowth,
    name="lesion_regrowth",
    params=LesionParams,
    observe=observe_lesion,
    valid="Sums of longest diameters of solid tumours under continuous or interrupted treatment.",
    checked="As regrowth, whose equations and solution these are.",
    example=example_lesion,
)
