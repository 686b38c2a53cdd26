"""Random effects that are drawn anew for every occasion of a patient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtwin_jax.core.occasions import beginnings, in_occasions
from dtwin_jax.core.predictor import Predictor
from dtwin_jax.core.prior import halfnormal
from dtwin_jax.core.record import Cohort

DEFAULT_GAMMA = halfnormal(0.3)


@dataclass(frozen=True)
class Occasions:
    """Variability between the occasions of a patient, on top of that between patients.

    In each occasion a parameter is, on its unbounded scale, that of the patient plus a normal effect of sd
    `gamma`. What is in the body when an occasion ends is there when the next begins.

    Attributes:
        count: how many occasions a patient has at most; `with_occasions` tells a record when they begin.
        vary: the parameters that change, which vary between patients too: names, or name -> prior of gamma
            (default half-normal(0.3)).
    """

    count: int
    vary: Any

    def __post_init__(self):
        if self.count < 2:
            raise ValueError(f"Occasions: found a count of {self.count}, expected 2 or more")
        if isinstance(self.vary, str):
            raise ValueError(f"Occasions: expected names or a mapping, found the text {self.vary!r}")
        given: Any = self.vary
        if not isinstance(given, Mapping):
            pairs = [(one, DEFAULT_GAMMA) if isinstance(one, str) else one for one in given]
            given = dict(pairs)
        object.__setattr__(self, "vary", tuple(given.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that change."""
        return tuple(name for name, _ in self.vary)

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Name of a parameter in an occasion, and of the parameter: all of one occasion, then of the next."""
        each = {name: in_occasions(name, self.count) for name in self.names}
        return tuple((each[name][k], name) for k in range(self.count) for name in self.names)

    def of(self, predictor: Predictor) -> Any:
        """The predictor whose parameters change.

        Raises:
            ValueError: it cannot.
        """
        change = getattr(predictor, "by_occasion", None)
        if change is None:
            raise ValueError(f"{predictor.name}: its parameters cannot change by occasion")
        return change(self.names, self.count)

    def check(self, cohort: Cohort) -> None:
        """Refuse patients of whom it is not known when occasions begin.

        Raises:
            ValueError: names the fact, or the patient.
        """
        known = cohort.record.known
        for name in beginnings(self.count):
            if name not in known:
                raise ValueError(f"{name!r} is not known of the patients: give each `with_occasions`")
        times = np.stack([cohort.record.t0, *(known[name] for name in beginnings(self.count))])
        late = np.any(np.diff(times, axis=0) < 0, axis=0)
        if np.any(late):
            raise ValueError(f"patient {cohort.ids[int(np.argmax(late))]!r}: occasions do not begin in order")

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"count": self.count, "vary": {name: prior.as_dict() for name, prior in self.vary}}
