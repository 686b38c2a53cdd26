"""A distribution of which only what is above a limit can be measured."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr
from numpyro.distributions import constraints

from dtwin_jax.core.tails import log_between, log_survival

# Scales below the middle, where next to nothing is cut off: further down draws would lose digits.
_NOTHING = 1e4
_BISECTIONS = 60


class Truncated(dist.Distribution):
    """A normal, log-normal or Student-t distribution, given that it is above `low`.

    Exact however far above the middle `low` is.
    """

    arg_constraints = {}  # noqa: RUF012 (as in NumPyro)
    support = constraints.real  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    pytree_data_fields = ("whole", "low")

    def __init__(self, whole: Any, low: Any, *, validate_args: bool | None = None):
        """The distribution without the condition, and the limit; a value at the limit is possible."""
        _check_family(whole)
        self.whole: Any = whole
        self.low = jnp.broadcast_to(jnp.asarray(low, jnp.result_type(whole.loc)), whole.batch_shape)
        super().__init__(whole.batch_shape, validate_args=validate_args)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Log density; minus infinity below the limit."""
        within = self.whole.log_prob(value) - log_survival(self.whole, self.low)
        return jnp.where(value >= self.low, within, -jnp.inf)

    def log_cdf(self, value: Any) -> Any:
        """Log of P(X <= value)."""
        return log_between(self.whole, self.low, value) - log_survival(self.whole, self.low)

    def log_survival(self, value: Any) -> Any:
        """Log of P(X > value)."""
        beyond = log_survival(self.whole, jnp.maximum(value, self.low))
        return beyond - log_survival(self.whole, self.low)

    def cdf(self, value: Any) -> Any:
        """P(X <= value)."""
        return jnp.exp(self.log_cdf(value))

    @property
    def central(self) -> Any:
        """The middle of the distribution without the condition: the model's own value."""
        return self.whole.loc if not self._logarithmic else jnp.exp(self.whole.loc)

    @property
    def mean(self) -> Any:
        """Mean, given the condition."""
        d, a = self.whole, self._start
        if self._logarithmic:
            beyond = log_ndtr(d.scale - a) - log_ndtr(-a)
            return jnp.exp(d.loc + 0.5 * d.scale**2 + beyond)
        standard, lift = self._standard, 1.0
        if self._student:
            # With one degree of freedom or less there is no mean.
            heavy = standard.df <= 1.0
            lift = (standard.df + a**2) / jnp.where(heavy, 1.0, standard.df - 1.0)
            lift = jnp.where(heavy, jnp.inf, lift)
        return d.loc + d.scale * lift * jnp.exp(standard.log_prob(a) - log_survival(standard, a))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws, by the inverse of the survival."""
        shape = (*sample_shape, *self.batch_shape)
        standard, low = self._standard, jnp.maximum(self._start, -_NOTHING)
        uniform = jax.random.uniform(key, shape, jnp.result_type(low), jnp.finfo(low.dtype).tiny)
        wanted = jnp.log(uniform) + log_survival(standard, low)

        def halve(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
            middle = 0.5 * (ends[0] + ends[1])
            further = log_survival(standard, low + middle / (1.0 - middle)) > wanted
            return jnp.where(further, middle, ends[0]), jnp.where(further, ends[1], middle)

        ends = jnp.zeros(shape, low.dtype), jnp.ones(shape, low.dtype)
        share, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, ends)
        drawn = self.whole.loc + self.whole.scale * (low + share / (1.0 - share))
        return jnp.exp(drawn) if self._logarithmic else drawn

    @property
    def _logarithmic(self) -> bool:
        return isinstance(self.whole, dist.LogNormal)

    @property
    def _standard(self) -> Any:
        one = jnp.ones(self.batch_shape, self.low.dtype)
        zero = jnp.zeros_like(one)
        return dist.StudentT(self.whole.df, zero, one) if self._student else dist.Normal(zero, one)

    @property
    def _student(self) -> bool:
        return isinstance(self.whole, dist.StudentT)

    @property
    def _start(self) -> Any:
        """The limit in standard deviations from the middle."""
        low = self.low
        if self._logarithmic:
            low = jnp.where(low > 0, jnp.log(jnp.where(low > 0, low, 1.0)), -jnp.inf)
        return (low - self.whole.loc) / self.whole.scale


def _check_family(whole: Any) -> None:
    if not isinstance(whole, dist.Normal | dist.LogNormal | dist.StudentT):
        found = type(whole).__name__
        raise ValueError(f"Truncated: found {found}, expected a normal, log-normal or Student's t")
