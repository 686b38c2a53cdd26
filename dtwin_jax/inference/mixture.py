"""Mixtures of subpopulations: patients of several classes, of whom nobody knows which.

A patient of the second class has other typical values than one of the first, and so on; all else is shared.
His likelihood is the sum of those of the classes, each with the class's share of the population.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import Prior, lognormal, normal, prior_from_dict
from dtwin_jax.core.record import Record

# Of the first parameter, whose moves order the classes, and of the others.
DEFAULT_SHIFT, OTHER_SHIFT = lognormal(1.0, log_sd=1.0), normal(0.0, 1.0)
# Of the facts of a patient, the class that he is taken to be of, from 0. No covariate can be called so.
CLASS = "mixture class"


@dataclass(frozen=True)
class Mixture:
    """Subpopulations that differ in typical values.

    From each class to the next the typical value moves on the parameter's unbounded scale (the log of
    positive ones) by a shift of its own, `shift_CL_2` from the first class to the second. A class's share of
    the population is `share_2`, and so on; what is left is the share of the first.

    Attributes:
        vary: the parameters, which vary between patients too: names, or name -> prior of the shift
            (estimated) or a number (known). By default the shift of the first is positive, lognormal(1,
            log_sd=1), so that classes are in the order of its typical values; of others it is normal(0, 1).
        classes: how many; of one, there is no mixture.
        concentration: of the Dirichlet prior of the shares; more than 1 keeps them from 0.
    """

    vary: Any
    classes: int = 2
    concentration: float = 1.0

    def __post_init__(self):
        if isinstance(self.vary, str):
            raise ValueError(f"Mixture: expected names or a mapping, found the text {self.vary!r}")
        if self.classes < 1:
            raise ValueError(f"Mixture: found {self.classes} classes, expected 1 or more")
        if not self.concentration > 0:
            raise ValueError(f"Mixture: found a concentration of {self.concentration}, expected one above 0")
        given: Any = self.vary
        if not isinstance(given, Mapping):
            given = dict(one if isinstance(one, tuple) else (one, None) for one in given)
        if not given:
            raise ValueError("Mixture: no parameter is named that classes differ in")
        usual = [DEFAULT_SHIFT] + [OTHER_SHIFT] * (len(given) - 1)
        pairs = zip(given.items(), usual, strict=True)
        filled = ((name, default if one is None else one) for (name, one), default in pairs)
        vary = tuple((name, s if isinstance(s, Prior) else float(s)) for name, s in filled)
        for name, one in vary:
            if isinstance(one, float) and not math.isfinite(one):
                raise ValueError(f"Mixture: the shift of {name} is {one}, expected a finite number")
        object.__setattr__(self, "vary", vary)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that classes differ in."""
        return tuple(name for name, _ in self.vary)

    @property
    def shifts(self) -> tuple[tuple[str, Prior], ...]:
        """Label and prior of the estimated shifts, class by class."""
        later = range(2, self.classes + 1)
        return tuple(
            (f"shift_{name}_{k}", one) for k in later for name, one in self.vary if isinstance(one, Prior)
        )

    @property
    def shares(self) -> tuple[str, ...]:
        """What the shares of all classes but the first are called."""
        return tuple(f"share_{k}" for k in range(2, self.classes + 1))

    @property
    def probabilities(self) -> tuple[str, ...]:
        """What the probabilities are called of a patient's being of each class but the first."""
        return tuple(f"probability_{k}" for k in range(2, self.classes + 1))

    def moves(self, effects: tuple[str, ...], values: Mapping[str, Any]) -> Any:
        """How far each class is moved from the first, (class, effect).

        Args:
            effects: of each random effect, the parameter that it moves.
            values: label -> the shifts that are estimated.
        """
        rows = [jnp.zeros(len(effects))]
        for k in range(2, self.classes + 1):
            row = rows[-1]
            for name, given in self.vary:
                row = row.at[effects.index(name)].add(values.get(f"shift_{name}_{k}", given))
            rows.append(row)
        return jnp.stack(rows)

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        vary = {name: one.as_dict() if isinstance(one, Prior) else one for name, one in self.vary}
        return {"vary": vary, "classes": self.classes, "concentration": self.concentration}


def mixture_from_dict(data: Mapping[str, Any] | None) -> Mixture | None:
    """What `Mixture.as_dict` made."""
    if data is None:
        return None
    vary = {
        name: prior_from_dict(one) if isinstance(one, dict) else one for name, one in data["vary"].items()
    }
    return Mixture(vary, data["classes"], data["concentration"])


def log_shares(logits: Any) -> Any:
    """Logs of the shares (class,) from the logs of their ratios to the first's."""
    return jax.nn.log_softmax(jnp.concatenate([jnp.zeros(1), logits]))


def logits_of(shares: np.ndarray) -> np.ndarray:
    """The inverse of `log_shares`, from the shares themselves."""
    return np.log(shares[1:] / shares[0])


def of_class(record: Record, number: Any) -> Record:
    """Patients who are taken to be of classes (patient,), from 0."""
    return replace(record, known=dict(record.known) | {CLASS: number})
