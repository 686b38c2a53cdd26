"""Growth of one tumour volume by four laws: exponential, logistic, Gompertz, von Bertalanffy.

Sources: Benzekry et al. 2014, PLoS Comput Biol 10:e1003800, doi 10.1371/journal.pcbi.1003800 (the laws);
Laleh et al. 2022, PLoS Comput Biol 18:e1009822, doi 10.1371/journal.pcbi.1009822 (the laws fitted to
patients under treatment). Values and priors are weakly informative and chosen here: half of the
lesions of Laleh's study 3 start between 4 and 64 cm3.

    killed        = kill treatment
    exponential   V' = r V - killed V
    logistic      V' = r V (1 - V / K) - killed V
    Gompertz      V' = r V log(K / V) - killed V
    Bertalanffy   V' = a V^(2/3) - b V - killed V

All have exact solutions while treatment is constant. In practice V0 and r are fitted, K only where growth
is seen to slow. Data without a change of treatment say nothing of `kill`: leave treatment at 0, and the
other parameters describe the net course, shrinking tumours included (r < 0; K or a/b below V0).

Variants:
tumour_exponential: Growth of one tumour volume: exponential
tumour_logistic: Growth of one tumour volume: logistic, up to a largest volume
tumour_gompertz: Growth of one tumour volume: Gompertz, slowing by the log of the volume
tumour_bertalanffy: Growth of one tumour volume: von Bertalanffy, gain by the surface and loss by the volume
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import filling
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import log_normal

_HERE = "weakly informative, chosen here"


def _start() -> Any:
    return param(1e4, "mm3", lognormal(1e4, log_sd=2.0), source=_HERE, doc="volume at the start")


def _kill() -> Any:
    return param(0.01, "/d", lognormal(0.01, log_sd=1.5), source=_HERE, doc="death rate under treatment 1")


def _capacity() -> Any:
    return param(1e5, "mm3", lognormal(1e5, log_sd=2.0), source=_HERE, doc="carrying capacity")


def _error() -> Any:
    return param(0.2, "1", lognormal(0.2, log_sd=0.7), source=_HERE, doc="sd of the log of a measurement")


class ExponentialParams(eqx.Module):
    """Parameters of exponential growth."""

    V0: Scalar = _start()
    r: Scalar = param(0.003, "/d", normal(0.0, 0.01), source=_HERE, doc="growth rate, < 0 where it shrinks")
    kill: Scalar = _kill()
    cv: Scalar = _error()


class CapacityParams(eqx.Module):
    """Parameters of logistic and of Gompertz growth."""

    V0: Scalar = _start()
    r: Scalar = param(0.01, "/d", lognormal(0.01, log_sd=1.5), source=_HERE, doc="rate of growth to K")
    K: Scalar = _capacity()
    kill: Scalar = _kill()
    cv: Scalar = _error()


class BertalanffyParams(eqx.Module):
    """Parameters of von Bertalanffy growth."""

    V0: Scalar = _start()
    a: Scalar = param(0.3, "mm/d", lognormal(0.3, log_sd=1.5), source=_HERE, doc="growth a surface")
    b: Scalar = param(0.01, "/d", lognormal(0.01, log_sd=1.5), source=_HERE, doc="loss a volume")
    kill: Scalar = _kill()
    cv: Scalar = _error()


class Inputs(eqx.Module):
    """Treatment, as a share of that which `kill` is defined for."""

    treatment: Input = var("1", neutral=0.0, doc="0 off, 1 on")


class State(eqx.Module):
    """The tumour."""

    volume: Scalar = var("mm3")


class Outputs(eqx.Module):
    """What is measured."""

    volume: Scalar = var("mm3", doc="tumour volume", plausible=(0.0, 1e8))


def init(p: ExponentialParams | CapacityParams | BertalanffyParams) -> State:
    """The volume at the start."""
    return State(volume=p.V0)


def observe(
    t: Scalar, x: State, u: Inputs, p: ExponentialParams | CapacityParams | BertalanffyParams
) -> Outputs:
    """The volume itself."""
    return Outputs(volume=x.volume)


def drift_exponential(t: Scalar, x: State, u: Inputs, p: ExponentialParams) -> State:
    """Rate of change, mm3/d."""
    return State(volume=(p.r - p.kill * u.treatment) * x.volume)


def flow_exponential(dt: Scalar, x: State, u: Inputs, p: ExponentialParams) -> State:
    """The exact solution after `dt` under constant treatment."""
    return State(volume=x.volume * jnp.exp((p.r - p.kill * u.treatment) * dt))


def drift_logistic(t: Scalar, x: State, u: Inputs, p: CapacityParams) -> State:
    """Rate of change, mm3/d."""
    return State(volume=x.volume * (p.r * (1 - x.volume / p.K) - p.kill * u.treatment))


def flow_logistic(dt: Scalar, x: State, u: Inputs, p: CapacityParams) -> State:
    """The exact solution after `dt` under constant treatment."""
    net = p.r - p.kill * u.treatment
    # The exponential that grows is divided out, so that neither sign of the net rate overflows.
    growth, loss = jnp.where(net > 0, net, 0.0), jnp.where(net > 0, 0.0, net)
    crowding = p.r * x.volume / p.K * filling(growth - loss, dt)
    return State(volume=x.volume * jnp.exp(loss * dt) / (jnp.exp(-growth * dt) + crowding))


def drift_gompertz(t: Scalar, x: State, u: Inputs, p: CapacityParams) -> State:
    """Rate of change, mm3/d."""
    return State(volume=x.volume * (p.r * jnp.log(p.K / x.volume) - p.kill * u.treatment))


def flow_gompertz(dt: Scalar, x: State, u: Inputs, p: CapacityParams) -> State:
    """The exact solution after `dt` under constant treatment: log(V / K) is linear."""
    log_share = jnp.log(x.volume / p.K) * jnp.exp(-p.r * dt) - p.kill * u.treatment * filling(p.r, dt)
    return State(volume=p.K * jnp.exp(log_share))


def drift_bertalanffy(t: Scalar, x: State, u: Inputs, p: BertalanffyParams) -> State:
    """Rate of change, mm3/d."""
    return State(volume=p.a * jnp.cbrt(x.volume) ** 2 - (p.b + p.kill * u.treatment) * x.volume)


def flow_bertalanffy(dt: Scalar, x: State, u: Inputs, p: BertalanffyParams) -> State:
    """The exact solution after `dt` under constant treatment: the edge, V^(1/3), is linear."""
    rate = (p.b + p.kill * u.treatment) / 3
    edge = jnp.cbrt(x.volume) * jnp.exp(-rate * dt) + p.a / 3 * filling(rate, dt)
    return State(volume=edge**3)


_VALID = "One measured volume (or sum of lesions), weeks to years, V0 > 0; the laws extrapolate unlike."
_NONE = "Solved exactly while treatment is constant."


def example() -> Record:
    """A scan every six weeks for 14 months; treatment begins after the first 24 weeks."""
    times = np.arange(0.0, 421.0, 42.0)
    return Record(
        Inputs(treatment=Steps([0.0, 168.0], [0.0, 1.0])), {"volume": Series(times, np.zeros(len(times)))}
    )


tumour_exponential = Model(
    name="tumour_exponential",
    params=ExponentialParams,
    inputs=Inputs,
    init=init,
    drift=drift_exponential,
    observe=observe,
    noise=log_normal,
    flow=flow_exponential,
    time="d",
    source="Benzekry et al. 2014, doi 10.1371/journal.pcbi.1003800",
    valid=_VALID,
    stiffness=_NONE,
    checked="Closed form in 15 digits: 2e-14 relative.",
    example=example,
)

tumour_logistic = Model(
    name="tumour_logistic",
    params=CapacityParams,
    inputs=Inputs,
    init=init,
    drift=drift_logistic,
    observe=observe,
    noise=log_normal,
    flow=flow_logistic,
    time="d",
    source="Benzekry et al. 2014, doi 10.1371/journal.pcbi.1003800",
    valid=_VALID,
    stiffness=_NONE,
    checked="Closed form in 15 digits: 2e-14 relative.",
    example=example,
)

tumour_gompertz = Model(
    name="tumour_gompertz",
    params=CapacityParams,
    inputs=Inputs,
    init=init,
    drift=drift_gompertz,
    observe=observe,
    noise=log_normal,
    flow=flow_gompertz,
    time="d",
    source="Benzekry et al. 2014, doi 10.1371/journal.pcbi.1003800",
    valid=_VALID,
    stiffness=_NONE,
    checked="Closed form in 15 digits: 2e-14 relative.",
    example=example,
)

tumour_bertalanffy = Model(
    name="tumour_bertalanffy",
    params=BertalanffyParams,
    inputs=Inputs,
    init=init,
    drift=drift_bertalanffy,
    observe=observe,
    noise=log_normal,
    flow=flow_bertalanffy,
    time="d",
    source="Benzekry et al. 2014, doi 10.1371/journal.pcbi.1003800",
    valid=_VALID,
    stiffness=_NONE,
    checked="Closed form of its edge, evaluated apart: 1e-13 relative.",
    example=example,
)
