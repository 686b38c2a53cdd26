"""Forecasts of an event from a patient's visits: at each, a distribution of the time until the event.

A record holds the measurements in `past`, the facts in `known`, and the event as one series of
`observations`: at each visit the time until the event, or until it is known not to have happened, censored
above. The hazard follows from what was known at that visit (landmarking; van Houwelingen 2007,
doi 10.1111/j.1467-9469.2006.00529.x) and is constant within each interval after it, so a patient who leaves
in the middle of an interval counts for exactly as long as seen. Visits of one patient look at one event: the
sum of their log-likelihoods is a composite one, good for fitting, whose curvature is no standard error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.record import ABOVE, SEEN, Cohort, Record, Series
from dtwin_jax.neural.hazard import PiecewiseExponential
from dtwin_jax.neural.heads import HazardHead
from dtwin_jax.neural.sequence import Scaling, scaling_of, sequence_at, unit_scaling


class Weights(eqx.Module):
    """Of a forecaster: a network of visits, what it reads from it, and the scale of its inputs."""

    encoder: Any
    head: HazardHead
    scaling: Scaling


@dataclass(frozen=True)
class EventForecaster:
    """A predictor of the time from each visit to an event.

    Attributes:
        encoder: channels, facts, width, key -> network from a `Sequence` to states (n, width):
            `recurrent.lstm`, `attention.transformer`, `graph.graph`, ...
        channels: names in a record's `past`, one at least.
        facts: names in a record's `known`.
        edges: where the hazard after a visit may change, > 0 and rising.
        event: name of the series of times until the event.
        width: of the state.
        seed: of the first weights.
        name: of the predictor.
    """

    encoder: Callable[[int, int, int, Any], Any]
    channels: tuple[str, ...]
    facts: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    event: str = "event"
    width: int = 16
    seed: int = 0
    name: str = "event_forecaster"

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError(f"{self.name}: channels must name one at least")
        if any(b <= a for a, b in zip((0.0, *self.edges), self.edges, strict=False)):
            raise ValueError(f"{self.name}: edges must rise from above 0, found {self.edges}")

    def params(self) -> Weights:
        """First weights, for inputs as they are; see `started` for those of a cohort."""
        first, second = jax.random.split(jax.random.key(self.seed))
        channels, facts = len(self.channels), len(self.facts)
        return Weights(
            self.encoder(channels, facts, self.width, first),
            HazardHead(self.width, len(self.edges) + 1, key=second),
            unit_scaling(channels, facts),
        )

    def started(self, cohort: Cohort) -> Weights:
        """First weights for training on `cohort`: its scaling, and its rate of the event whatever is seen."""
        p = self.params()
        bias = jnp.full(len(self.edges) + 1, _log_rate(cohort.record.observations[self.event]))
        scaling = scaling_of(cohort.record, self.channels, self.facts)
        weight = jnp.zeros_like(p.head.linear.weight)
        return eqx.tree_at(
            lambda p: (p.head.linear.bias, p.head.linear.weight, p.scaling), p, (bias, weight, scaling)
        )

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        """The time until the event, from each time of its series on, by what was known then."""
        times = record.observations[self.event].time
        sequence = sequence_at(record, times, self.channels, self.facts, p.scaling)
        return {self.event: PiecewiseExponential(p.head(p.encoder(sequence)), self.edges)}


def until_event(visits: Any, end: float, happened: bool, *, longest: float = np.inf) -> Series:
    """The series of times from each visit to an event.

    Args:
        visits: sorted; those at or after `end` are left out.
        end: time of the event, or until which the patient was seen without it.
        happened: whether the event happened at `end`.
        longest: times above it are cut there, and censored.
    """
    visits = np.asarray(visits, float)
    visits = visits[visits < end]
    left = end - visits
    seen = happened & (left <= longest)
    return Series(visits, np.minimum(left, longest), censor=np.where(seen, SEEN, ABOVE))


def _log_rate(series: Series) -> float:
    mask = np.asarray(series.mask)
    events = np.sum(mask & (np.asarray(series.censor) == SEEN))
    # Half an event where there is none: a rate that is not 0.
    return float(np.log(max(events, 0.5) / np.sum(np.asarray(series.value)[mask])))
