"""How a swallowed drug reaches the blood, other than from a depot at once.

Sources: Gabrielsson & Weiner, Pharmacokinetic and Pharmacodynamic Data Analysis (zero order); Savic et al.
2007, J Pharmacokinet Pharmacodyn 34:711, doi 10.1007/s10928-007-9066-0 (transit).

    zero order   central' = F oral + iv - ...,      oral doses given over `duration`
    sequential   depot' = F oral - ka depot,        oral doses given over `duration`
    transit      stage_1' = F oral - ktr stage_1,   ktr = stages / MTT
                 stage_k' = ktr (stage_(k-1) - stage_k)
                 depot' = ktr stage_n - ka depot

Each changes any model with the inputs `oral` and `iv`, a depot, ka, F and lag: `transit(three_compartment)`,
`zero_order(parallel_elimination)`. What happens after absorption is the model's own; where that is exact, so
is the whole. A lag comes before. The paper counts one transit compartment less than there are stages, the
first being the one that the dose enters; MTT is the mean time through all. Of MTT, ka and lag, samples after
a dose by mouth seldom tell more than two.

Variants:
one_compartment_zero_order: One-compartment kinetics with absorption at a constant rate
one_compartment_transit: One-compartment kinetics with absorption through transit compartments
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, quantities, replace_fields, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, delay, scale
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.model import Model
from dtwin_jax.models.declared import known
from dtwin_jax.models.one_compartment import Inputs, one_compartment

_HERE = "value and prior: weakly informative, chosen here"


def dosing(u: Inputs, p: Any) -> Inputs:
    """Oral doses arrive after the lag, over the duration of absorption, and F of them."""
    return Inputs(oral=delay(spread(scale(u.oral, p.F), p.duration), p.lag), iv=u.iv)


def spread(signal: Any, duration: Any) -> Any:
    """Doses, of which those at once are given over `duration`, also those of a steady state.

    Unlike `infuse` it leaves what was given over a time of its own; all else that is swallowed is absorbed
    alike, whatever a table says of its rate.
    """
    if not isinstance(signal, Doses):
        return signal

    def longer(own: Any) -> Any:
        # A duration that the model is to state is NaN until then.
        return jnp.where(own > 0, own, jnp.broadcast_to(duration, jnp.shape(own)))

    doses = eqx.tree_at(lambda s: s.duration, signal, longer(signal.duration))
    if doses.rules is None:
        return doses
    return eqx.tree_at(lambda s: s.rules.restarts.duration, doses, replace_fn=longer)


@dataclass(frozen=True)
class Direct:
    """The drift or the flow of a model with a depot, past which its oral doses go: it stays empty."""

    of: Callable[[Any, Any, Any, Any], Any]

    def __call__(self, t: Scalar, x: Any, u: Inputs, p: Any) -> Any:
        """Rates of change at `t`, or the state after `t`."""
        return self.of(t, x, Inputs(jnp.zeros_like(jnp.asarray(x.depot)), u.iv + u.oral), p)


@dataclass(frozen=True)
class Chain:
    """The drift of a model with a depot, which its oral doses reach through stages."""

    of: Callable[[Any, Any, Any, Any], Any]
    stages: tuple[str, ...]

    def __call__(self, t: Scalar, x: Any, u: Inputs, p: Any) -> Any:
        """Rates of change."""
        ktr, entering, rates = len(self.stages) / p.MTT, u.oral, {}
        for stage in self.stages:
            leaving = ktr * getattr(x, stage)
            rates[stage], entering = entering - leaving, leaving
        return replace_fields(x, rates | vars(self.of(t, x, Inputs(entering, u.iv), p)))


@dataclass(frozen=True)
class Start:
    """The start of a model, and nothing in the stages before it."""

    of: Callable[[Any], Any]
    stages: tuple[str, ...]

    def __call__(self, p: Any) -> Any:
        """The state."""
        x = self.of(p)
        return _state(type(x), self.stages)(**vars(x), **dict.fromkeys(self.stages, 0.0))


def zero_order(base: Model) -> Model:
    """`base`, where oral doses enter the central compartment at a constant rate over a duration."""
    return replace(
        base,
        name=f"{base.name}_zero_order",
        params=_params(base.params, "duration", idle=("ka",)),
        drift=Direct(base.drift),
        flow=None if base.flow is None else Direct(base.flow),
        dosing=dosing,
    )


def sequential(base: Model) -> Model:
    """`base`, where oral doses enter the depot at a constant rate over a duration."""
    params = _params(base.params, "duration")
    return replace(base, name=f"{base.name}_sequential", params=params, dosing=dosing)


def transit(base: Model, stages: int = 4) -> Model:
    """`base`, where oral doses reach the depot through `stages` of equal rate."""
    names = tuple(f"stage_{k}" for k in range(1, stages + 1))
    drift = Chain(base.drift, names)
    return replace(
        base,
        name=f"{base.name}_transit",
        params=_params(base.params, "MTT"),
        init=Start(base.init, names),
        drift=drift,
        flow=None if base.flow is None else LinearFlow(drift),
    )


_NEW = {"duration": (2.0, "duration of absorption"), "MTT": (1.0, "mean transit time to the depot")}


@functools.cache
def _params(kind: Any, added: str, idle: tuple[str, ...] = ()) -> Any:
    """Parameters `kind` and one more, a time; those that are idle are known."""
    value, doc = _NEW[added]
    new = param(value, quantities(kind)["lag"].unit, lognormal(value, log_sd=1.0), source=_HERE, doc=doc)
    unused = {name: known(kind, name, "without effect: nothing is in the depot") for name in idle}
    return _struct("Params", kind, {added: new} | unused)


@functools.cache
def _state(kind: type, stages: tuple[str, ...]) -> Any:
    """Amounts `kind`, and those in the stages."""
    unit = quantities(kind)["depot"].unit
    return _struct("State", kind, {stage: var(unit) for stage in stages})


# Typed as plain: a class made at run time is beyond what can be told from the source.
_make_class: Any = type(eqx.Module)


def _struct(name: str, kind: type, fields: dict[str, Any]) -> Any:
    body = {"__annotations__": dict.fromkeys(fields, Scalar), "__module__": __name__, "__doc__": kind.__doc__}
    return _make_class(name, (kind,), body | fields)


def example() -> Record:
    """One dose of 100 mg by mouth and ten samples over two days, dense about the peak."""
    times = [0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 12.0, 24.0, 48.0]
    return Record(Inputs(oral=Doses([0.0], [100.0])), {"concentration": Series(times, np.zeros(len(times)))})


one_compartment_zero_order = replace(
    zero_order(one_compartment),
    source="Gabrielsson & Weiner, Pharmacokinetic and Pharmacodynamic Data Analysis",
    valid="Drugs absorbed at a constant rate (slow release, slow dissolution), whose concentration falls"
    " along one exponential; CL/F and V/F only.",
    stiffness="Solved exactly between events.",
    checked="Infusions by mouth: 1e-10 of sums of exponentials in 40 digits.",
    example=example,
)
one_compartment_transit = replace(
    transit(one_compartment),
    source="Savic et al. 2007, J Pharmacokinet Pharmacodyn 34:711, doi 10.1007/s10928-007-9066-0",
    valid="Drugs whose concentration rises with a delay, and falls along one exponential; CL/F and V/F only.",
    stiffness="Solved exactly between events, by a matrix exponential.",
    checked="Matrix exponentials in 100 digits: 1e-10, and 1e-6 of the path by the solver.",
    example=example,
)
