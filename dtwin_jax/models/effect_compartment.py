"""An effect that lags behind a drug's concentration in plasma: the effect compartment, and an Emax curve.

Source: Sheiner et al. 1979, Clin Pharmacol Ther 25:358, doi 10.1002/cpt1979253358; values of mrgsolve's
effect model (metrumresearchgroup/mrgsolve, inst/models/effect.cpp).

    Ce'    = ke0 (concentration - Ce)
    effect = E0 - Emax Ce^n / (EC50^n + Ce^n)

A block that any kinetics drive: `couple({"drug": two_compartment, "effect": effect_compartment},
{"effect.concentration": "drug.concentration"})`. The drug at the site takes nothing from the kinetics; those
of propofol and remifentanil have a site of their own. Emax and EC50 are one where concentrations stay far
below EC50; n is known unless effects from a tenth to nine tenths are seen.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Sampled
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import filling
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.models.hill import hill

_WEAK = "value: mrgsolve effect; prior: weakly informative, chosen here"


class Params(eqx.Module):
    """The site and the curve."""

    ke0: Scalar = param(1.305, "/h", lognormal(1.305, log_sd=1.0), source=_WEAK, doc="rate of the site")
    E0: Scalar = param(157.0, "1", lognormal(157.0, log_sd=0.5), source=_WEAK, doc="effect without drug")
    Emax: Scalar = param(29.95, "1", lognormal(29.95, log_sd=1.0), source=_WEAK, doc="largest fall of it")
    EC50: Scalar = param(
        4.956, "mg/L", lognormal(4.956, log_sd=1.0), source=_WEAK, doc="concentration of half of the fall"
    )
    n: Scalar = param(1.0, "1", source="as in mrgsolve", doc="steepness")
    sd: Scalar = param(
        2.0, "1", lognormal(2.0, log_sd=1.0), source="value and prior chosen here", doc="additive error"
    )


class Inputs(eqx.Module):
    """The drug."""

    concentration: Input = var("mg/L", neutral=0.0, doc="in plasma")


class State(eqx.Module):
    """The site."""

    Ce: Scalar = var("mg/L")


class Outputs(eqx.Module):
    """What is measured."""

    effect: Scalar = var("1", doc="effect, in the unit it is measured in")


def init(p: Params) -> State:
    """No drug."""
    return State(Ce=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rate of change, per hour."""
    return State(Ce=p.ke0 * (u.concentration - x.Ce))


def flow(dt: Scalar, x: State, u: Inputs, p: Params) -> State:
    """The exact solution after `dt` at a constant concentration."""
    return State(Ce=x.Ce * jnp.exp(-p.ke0 * dt) + p.ke0 * u.concentration * filling(p.ke0, dt))


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """The effect of what is at the site."""
    return Outputs(effect=p.E0 - p.Emax * hill(x.Ce, p.EC50, p.n))


def example() -> Record:
    """A concentration that rises to 20 mg/L within an hour and falls, and the effect for twelve hours."""
    course = Sampled([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0], [0.0, 12.0, 20.0, 14.0, 7.0, 2.0, 0.5])
    times = np.array([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0])
    return Record(Inputs(course), {"effect": Series(times, np.zeros(len(times)))})


effect_compartment = Model(
    name="effect_compartment",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    flow=flow,
    time="h",
    source="Sheiner et al. 1979, Clin Pharmacol Ther 25:358, doi 10.1002/cpt1979253358",
    valid="Direct, reversible effects of one drug, without tolerance.",
    stiffness="Solved exactly while the concentration is constant; 45 min: explicit, Tsit5.",
    checked="mrgsolve's effect model behind two compartments, two solvers: 1e-7 relative.",
    example=example,
)
