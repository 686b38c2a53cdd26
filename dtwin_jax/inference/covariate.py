"""What a covariate does to a parameter: a move on the unbounded scale of the parameter's prior (the log of
positive ones), by a formula of one coefficient.

What takes more coefficients than one, a maturation for example, belongs in the model's equations, where
whatever is known of a patient arrives as a parameter.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import Prior, prior_from_dict
from dtwin_jax.core.record import Cohort

Form = Callable[[Any, Any, Any], Any]


def power(coefficient: Any, value: Any, reference: Any) -> Any:
    """A positive parameter is proportional to `(value / reference) ** coefficient`; the value is positive."""
    return coefficient * jnp.log(value / reference)


def linear(coefficient: Any, value: Any, reference: Any) -> Any:
    """A positive parameter is proportional to `exp(coefficient * (value - reference))`."""
    return coefficient * (value - reference)


def proportional(coefficient: Any, value: Any, reference: Any) -> Any:
    """A positive parameter is proportional to `1 + coefficient * (value - reference)`, which is positive."""
    return jnp.log1p(coefficient * (value - reference))


def differing(coefficient: Any, value: Any, reference: Any) -> Any:
    """Two groups: a positive parameter of those who differ from the reference is `exp(coefficient)` times as
    large. Of more groups than two, each but the first has a fact of its own, 0 or 1."""
    return coefficient * (value != reference)


@dataclass(frozen=True)
class Covariate:
    """The effect of a covariate on a parameter.

    Attributes:
        parameter: the parameter moved.
        name: the covariate, found in each patient's `known`.
        unit: UCUM unit of the covariate.
        reference: the covariate's value at which the effect is none.
        coefficient: a prior (estimated) or a number (known).
        form: (coefficient, value, reference) -> the move of the parameter on its unbounded scale: `power`
            (allometry), `linear`, `proportional`, `differing`, or any other function of JAX.
        label: name of the coefficient in results; by default `beta_<parameter>_<name>`.
    """

    parameter: str
    name: str
    unit: str
    reference: float
    coefficient: Prior | float
    form: Form = power
    label: str = ""

    def __post_init__(self):
        object.__setattr__(self, "label", self.label or f"beta_{self.parameter}_{self.name}")

    def shift(self, coefficient: Any, value: Any) -> Any:
        """The move of the parameter on its unbounded scale."""
        return self.form(coefficient, value, self.reference)

    def as_dict(self) -> dict[str, Any]:
        """The covariate as plain data; of its form, where it is imported from."""
        given = self.coefficient
        return vars(self) | {
            "coefficient": given.as_dict() if isinstance(given, Prior) else given,
            "form": f"{self.form.__module__}:{getattr(self.form, '__qualname__', '?')}",
        }


def covariate_from_dict(data: dict[str, Any]) -> Covariate:
    """What `as_dict` made.

    Raises:
        ValueError: the form is no function of a module, or that cannot be imported.
    """
    given, form = data["coefficient"], data["form"]
    module, _, name = form.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise ValueError(f"covariate {data['name']!r}: cannot import its form {form!r}") from None
    coefficient = prior_from_dict(given) if isinstance(given, dict) else given
    return Covariate(**(data | {"coefficient": coefficient, "form": found}))


def check_covariates(covariates: tuple[Covariate, ...], cohort: Cohort) -> None:
    """Refuse covariates that are not known of all patients, or of which the known effect is no number.

    Raises:
        ValueError: names the covariate, and the patient.
    """
    for covariate in covariates:
        if covariate.name not in cohort.record.known:
            have = sorted(cohort.record.known)
            raise ValueError(f"covariate {covariate.name!r} is not known of the patients; known are {have}")
        value = np.asarray(cohort.record.known[covariate.name])
        if covariate.form is power and not np.all(value > 0):
            patient = cohort.ids[int(np.argmax(value <= 0))]
            raise ValueError(
                f"patient {patient!r}: covariate {covariate.name!r} must be positive for a power"
            )
        given = covariate.coefficient
        moved = np.zeros(1) if isinstance(given, Prior) else np.asarray(covariate.shift(given, value))
        if not np.all(np.isfinite(moved)):
            patient = cohort.ids[int(np.argmin(np.isfinite(moved)))]
            raise ValueError(f"patient {patient!r}: the effect of {covariate.name!r} is no number")
