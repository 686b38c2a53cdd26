"""Depth of anaesthesia (bispectral index, BIS) from propofol and remifentanil together.

Sources: Bouillon et al. 2004, Anesthesiology 100:1353, doi 10.1097/00000542-200406000-00006; values and
spreads as in python-anesthesia-simulator 1.0.0 (interaction term 0). Kinetics of Schnider 1998 and Minto
1997: see propofol and remifentanil.

    U = Ce_propofol / C50_propofol + Ce_remifentanil / C50_remifentanil
    BIS = E0 (1 - U^gamma / (1 + U^gamma))

The kinetics are linear, so the flow is exact. No switches. Fitted in practice: C50_propofol and gamma;
C50_remifentanil only where both drugs vary; ke0 of propofol where a bolus makes the index follow late. The
index does not tell kinetics from C50, so that the kinetics are known here; so is ke0 of remifentanil.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.models.declared import estimated
from dtwin_jax.models.effect_site import Body, Site, rates
from dtwin_jax.models.propofol import Schnider, schnider
from dtwin_jax.models.remifentanil import Minto, minto

_SURFACE = "Bouillon 2004, as in python-anesthesia-simulator; prior: between-subject CV"


class Surface(eqx.Module):
    """The response surface of both drugs."""

    C50_propofol: Scalar = param(
        4.47, "ug/mL", lognormal(4.47, cv=0.182), source=_SURFACE, doc="propofol alone for half the effect"
    )
    C50_remifentanil: Scalar = param(
        19.3,
        "ng/mL",
        lognormal(19.3, cv=0.888),
        source=_SURFACE,
        doc="remifentanil alone for half the effect",
    )
    gamma: Scalar = param(1.43, "1", lognormal(1.43, cv=0.304), source=_SURFACE, doc="steepness")
    E0: Scalar = param(97.4, "1", source="Bouillon 2004", doc="index when awake")


class Propofol(Schnider):
    """Schnider's set, of which the index tells ke0."""

    ke0: Scalar = estimated(Schnider, "ke0", "weakly informative, chosen here", log_sd=0.5)


class Params(Body, Surface):
    """Patient, kinetics of both drugs, response, and error."""

    propofol: Propofol = eqx.field(default_factory=Propofol)
    remifentanil: Minto = eqx.field(default_factory=Minto)
    sd: Scalar = param(
        5.0, "1", lognormal(5.0, log_sd=0.5), source="weakly informative, chosen here", doc="additive error"
    )


class Inputs(eqx.Module):
    """Where doses go."""

    propofol_infusion: Input = var("mg/min", neutral=0.0, doc="propofol into a vein")
    remifentanil_infusion: Input = var("ug/min", neutral=0.0, doc="remifentanil into a vein")


class State(eqx.Module):
    """Amounts and effect sites of propofol (P) and remifentanil (R)."""

    P1: Scalar = var("mg")
    P2: Scalar = var("mg")
    P3: Scalar = var("mg")
    Pe: Scalar = var("ug/mL")
    R1: Scalar = var("ug")
    R2: Scalar = var("ug")
    R3: Scalar = var("ug")
    Re: Scalar = var("ng/mL")


class Outputs(eqx.Module):
    """What is measured."""

    bis: Scalar = var("1", doc="bispectral index", plausible=(0.0, 100.0))


def bis(propofol: Scalar, remifentanil: Scalar, p: Surface) -> Scalar:
    """The index at these concentrations at the effect site (ug/mL, ng/mL)."""
    U = propofol / p.C50_propofol + remifentanil / p.C50_remifentanil
    present = U > 0
    # U^gamma has no derivative in gamma at 0.
    power = jnp.where(present, jnp.where(present, U, 1.0) ** p.gamma, 0.0)
    return p.E0 / (1 + power)


def init(p: Params) -> State:
    """No drug."""
    return State(P1=0.0, P2=0.0, P3=0.0, Pe=0.0, R1=0.0, R2=0.0, R3=0.0, Re=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per minute."""
    P = rates(Site(x.P1, x.P2, x.P3, x.Pe), u.propofol_infusion, schnider(p.propofol, p))
    R = rates(Site(x.R1, x.R2, x.R3, x.Re), u.remifentanil_infusion, minto(p.remifentanil, p))
    return State(P1=P.A1, P2=P.A2, P3=P.A3, Pe=P.Ce, R1=R.A1, R2=R.A2, R3=R.A3, Re=R.Ce)


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """The index."""
    return Outputs(bis=bis(x.Pe, x.Re, p))


def example() -> Record:
    """2 mg/kg of propofol, then 8 mg/kg/h, remifentanil from 20 min on, and the index every minute."""
    times = np.arange(1.0, 91.0)
    propofol = Doses([0.0, 1.0], [140.0, 560.0], [0.0, 60.0])
    inputs = Inputs(propofol_infusion=propofol, remifentanil_infusion=Doses([20.0], [560.0], [40.0]))
    return Record(inputs, {"bis": Series(times, np.zeros(len(times)))})


propofol_remifentanil_bis = Model(
    name="propofol_remifentanil_bis",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    flow=LinearFlow(drift),
    time="min",
    source="Bouillon et al. 2004, Anesthesiology 100:1353, doi 10.1097/00000542-200406000-00006; Schnider et"
    " al. 1998; Minto et al. 1997",
    valid="Healthy adults; no delay of the monitor.",
    stiffness="Half a minute to hours; solved exactly.",
    checked="The surface, 1e-5, and concentrations, 1e-8, against python-anesthesia-simulator 1.0.0.",
    example=example,
)
