"""A model that states what event tables leave to it: durations and rates of doses (RATE -2 and -1)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import Quantity, check_names, quantities, replace_fields, with_fields
from dtwin_jax.core.signal import as_modelled
from dtwin_jax.dynamics.model import Model

# As weak as those of a drug of no kind in particular.
_LOG_SD = 1.0


def with_modelled(
    model: Model, *, duration: Mapping[str, float] | None = None, rate: Mapping[str, float] | None = None
) -> Model:
    """`model` with durations and rates of doses that an event table leaves to it, as parameters.

    `with_modelled(one_compartment, duration={"iv": 2.0})` has a parameter `duration_iv` with the prior
    lognormal(2.0, log_sd=1.0), which `priors` may change as any other: the duration of those doses into `iv`
    that have RATE -2. Other doses stay as they are. A function of time, or of covariates, is for the model's
    own `dosing`, by `as_modelled`.

    Args:
        model: the model.
        duration: input -> median of its `duration_<input>`, in the model's unit of time (RATE -2).
        rate: input -> median of its `rate_<input>`, in the input's unit (RATE -1).

    Raises:
        ValueError: an input or a parameter that the model has not, or has already.
    """
    inputs, taken = quantities(model.inputs()), quantities(model.params())
    added = []
    for kind, medians in (("duration", duration or {}), ("rate", rate or {})):
        check_names(f"with_modelled: {model.name}", "input", medians, inputs)
        for name, median in medians.items():
            unit = model.time if kind == "duration" else inputs[name].unit
            doc = f"{kind} of doses into {name} whose RATE is {-2 if kind == 'duration' else -1}"
            if f"{kind}_{name}" in taken:
                raise ValueError(f"with_modelled: {model.name} has a parameter '{kind}_{name}' already")
            added.append(_Stated(name, kind, float(median), unit, doc))
    stated = tuple(added)
    return replace(model, params=_Params(model.params, stated), dosing=_Dosing(model.dosing, stated))


@dataclass(frozen=True)
class _Stated:
    """What of the doses into an input is a parameter."""

    input: str
    kind: str
    median: float
    unit: str
    doc: str

    @property
    def parameter(self) -> str:
        return f"{self.kind}_{self.input}"


@dataclass(frozen=True)
class _Params:
    params: Callable[[], Any]
    stated: tuple[_Stated, ...]

    def __call__(self) -> Any:
        source = "value and prior: chosen by the caller of with_modelled"
        return with_fields(
            self.params(),
            {
                each.parameter: (
                    each.median,
                    Quantity(each.unit, lognormal(each.median, log_sd=_LOG_SD), source, each.doc),
                )
                for each in self.stated
            },
        )


@dataclass(frozen=True)
class _Dosing:
    """Rates and durations are stated first: what the model does to doses it does to these too."""

    dosing: Callable[[Any, Any], Any] | None
    stated: tuple[_Stated, ...]

    def __call__(self, u: Any, p: Any) -> Any:
        signals = dict(vars(u))
        for each in self.stated:
            said = {each.kind: getattr(p, each.parameter)}
            signals[each.input] = as_modelled(signals[each.input], **said)
        acting = replace_fields(u, signals)
        return acting if self.dosing is None else self.dosing(acting, p)
