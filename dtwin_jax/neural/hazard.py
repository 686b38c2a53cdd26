"""The time to an event whose hazard is constant in each of a few intervals: exact under any censoring."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints


class PiecewiseExponential(dist.Distribution):
    """Time to an event, with one rate in each interval between `edges`; the last goes on for ever."""

    arg_constraints = {"rate": constraints.independent(constraints.positive, 1)}  # noqa: RUF012 (as in NumPyro)
    support = constraints.nonnegative  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    pytree_data_fields = ("rate",)
    pytree_aux_fields = ("edges",)

    def __init__(self, rate: Any, edges: tuple[float, ...], *, validate_args: bool | None = None):
        """Rates > 0 of shape (..., interval), and the (interval - 1) inner edges, rising from above 0."""
        self.rate, self.edges = rate, edges
        super().__init__(jnp.shape(rate)[:-1], validate_args=validate_args)

    def cumulative_hazard(self, value: Any) -> Any:
        """Integral of the hazard from 0 to `value`, which broadcasts with the batch of rates."""
        at = self._at(value)
        return jnp.sum(at.rate * jnp.clip(at.value - at.start, 0.0, at.length), axis=-1)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Log of the density of an event at `value`; an edge belongs to the interval that it ends."""
        at = self._at(value)
        ended = at.value <= at.start + at.length
        inside = ended & jnp.concatenate([jnp.ones_like(ended[..., :1]), ~ended[..., :-1]], axis=-1)
        return jnp.sum(jnp.where(inside, jnp.log(at.rate), 0.0), axis=-1) - self.cumulative_hazard(value)

    def cdf(self, value: Any) -> Any:
        """Probability of the event by `value`."""
        return -jnp.expm1(-self.cumulative_hazard(value))

    def within(self, horizon: Any, after: Any = 0.0) -> Any:
        """Probability of the event in the `horizon` after `after`, given none until then."""
        after = jnp.asarray(after, jnp.result_type(self.rate))
        return -jnp.expm1(self.cumulative_hazard(after) - self.cumulative_hazard(after + horizon))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Times at which the cumulative hazard reaches a standard exponential."""
        dtype = jnp.result_type(self.rate)
        at = self._at(jax.random.exponential(key, (*sample_shape, *self.batch_shape), dtype))
        return jnp.sum(jnp.clip((at.value - _hazard_before(at)) / at.rate, 0.0, at.length), axis=-1)

    @property
    def mean(self) -> Any:
        """Expected time: the integral of the probability to be without the event."""
        at = self._at(jnp.zeros(()))
        survived = jnp.exp(-_hazard_before(at))
        return jnp.sum(survived * -jnp.expm1(-at.rate * at.length) / at.rate, axis=-1)

    def _at(self, value: Any) -> "_At":
        dtype = jnp.result_type(self.rate)
        ends = jnp.asarray([0.0, *self.edges, jnp.inf], dtype)
        parts = (jnp.asarray(value, dtype)[..., None], jnp.asarray(self.rate), ends[:-1], jnp.diff(ends))
        rank = max(part.ndim for part in parts)
        return _At(*(jnp.reshape(part, (1,) * (rank - part.ndim) + part.shape) for part in parts))


class _At(NamedTuple):
    """Values, and rates, starts and lengths of the intervals, of one rank, intervals last."""

    value: Any
    rate: Any
    start: Any
    length: Any


def _hazard_before(at: _At) -> Any:
    """Cumulative hazard at the start of each interval."""
    spent = at.rate[..., :-1] * at.length[..., :-1]
    return jnp.concatenate([jnp.zeros_like(at.rate[..., :1]), jnp.cumsum(spent, axis=-1)], axis=-1)
