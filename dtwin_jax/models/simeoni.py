"""Growth of a xenograft and its damage by a drug that kills through a chain of dying cells.

Source: Simeoni et al. 2004, Cancer Res 64:1094, doi 10.1158/0008-5472.CAN-03-2524; values of paclitaxel,
experiment 1, as read in nlmixr2lib (oncology_xenograft_simeoni_2004.R).

    C'  = dose / V - kel C
    x1' = l0 x1 / (1 + (l0 w / l1)^psi)^(1/psi) - k2 C x1,      x1(0) = w0
    x2' = k2 C x1 - k1 x2
    x3' = k1 (x2 - x3)
    x4' = k1 (x3 - x4)
    w   = x1 + x2 + x3 + x4

Exponential growth turns linear near w = l1 / l0, sharply but smoothly (psi = 20). (l0 w / l1)^psi is never
formed: it overflows for a large tumour, so the brake is exp(-softplus(psi log(l0 w / l1)) / psi). w0, l0,
l1, k1 and k2 are fitted, psi is fixed; l1 is seen only in tumours above l1 / l0. The kinetics of the drug,
one compartment, are illustrative and known: fit them first, to concentrations.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import proportional

_SIMEONI = "Simeoni 2004 Table 2, paclitaxel experiment 1, as read in nlmixr2lib; spread chosen here"
_HERE = "weakly informative, chosen here"
_KINETICS = "illustrative: 0.75 mg in a mouse gives 4000 ng/mL"


class Params(eqx.Module):
    """Parameters of growth, of the drug's effect and of its kinetics."""

    w0: Scalar = param(0.055, "g", lognormal(0.055, log_sd=0.5), source=_SIMEONI, doc="mass at the start")
    l0: Scalar = param(0.273, "/d", lognormal(0.273, log_sd=0.5), source=_SIMEONI, doc="exponential growth")
    l1: Scalar = param(0.814, "g/d", lognormal(0.814, log_sd=0.5), source=_SIMEONI, doc="linear growth")
    psi: Scalar = param(20.0, "1", source="Simeoni 2004, fixed there", doc="sharpness of the change")
    k1: Scalar = param(0.968, "/d", lognormal(0.968, log_sd=0.5), source=_SIMEONI, doc="passage of the dying")
    k2: Scalar = param(
        6.29e-4, "mL/ng/d", lognormal(6.29e-4, log_sd=0.7), source=_SIMEONI, doc="potency of the drug"
    )
    kel: Scalar = param(5.0, "/d", source=_KINETICS, doc="elimination rate of the drug")
    V: Scalar = param(187.5, "mL", source=_KINETICS, doc="its volume of distribution")
    cv: Scalar = param(0.1, "1", lognormal(0.1, log_sd=0.7), source=_HERE, doc="proportional error")


class Inputs(eqx.Module):
    """The drug."""

    dose: Input = var("ng/d", neutral=0.0, doc="into the central compartment")


class State(eqx.Module):
    """Drug, proliferating cells, and three stages of dying ones."""

    concentration: Scalar = var("ng/mL")
    x1: Scalar = var("g")
    x2: Scalar = var("g")
    x3: Scalar = var("g")
    x4: Scalar = var("g")


class Outputs(eqx.Module):
    """What is measured."""

    mass: Scalar = var("g", doc="tumour mass", plausible=(0.0, 100.0))


def init(p: Params) -> State:
    """Proliferating cells only, no drug."""
    return State(concentration=0.0, x1=p.w0, x2=0.0, x3=0.0, x4=0.0)


def total(x: State) -> Scalar:
    """Mass of living and dying cells."""
    return x.x1 + x.x2 + x.x3 + x.x4


def brake(mass: Scalar, p: Params) -> Scalar:
    """Share of exponential growth that is left at a mass: 1 while it is small."""
    size = p.l0 * mass / p.l1
    seen = size > 0
    softplus = jax.nn.softplus(p.psi * jnp.log(jnp.where(seen, size, 1.0)))
    return jnp.where(seen, jnp.exp(-softplus / p.psi), 1.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    killed = p.k2 * x.concentration * x.x1
    return State(
        concentration=u.dose / p.V - p.kel * x.concentration,
        x1=p.l0 * x.x1 * brake(total(x), p) - killed,
        x2=killed - p.k1 * x.x2,
        x3=p.k1 * (x.x2 - x.x3),
        x4=p.k1 * (x.x3 - x.x4),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """The mass."""
    return Outputs(mass=total(x))


def example() -> Record:
    """A mouse of 25 g given 30 mg/kg on days 8, 12 and 16, its tumour measured every two days."""
    times = np.arange(6.0, 31.0, 2.0)
    return Record(Inputs(dose=Doses([8.0, 12.0, 16.0], 7.5e5)), {"mass": Series(times, np.zeros(len(times)))})


simeoni = Model(
    name="simeoni",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=proportional,
    time="d",
    source="Simeoni et al. 2004, doi 10.1158/0008-5472.CAN-03-2524",
    valid="Subcutaneous xenografts of mice, some milligrams to some grams, days to weeks.",
    stiffness="0.2 d (drug) to 4 d (growth), and a turn at l1 / l0 within 5 % of mass: explicit, Tsit5.",
    checked="Two solvers at 1e-12 outside this package: 1e-6 relative.",
    example=example,
)
