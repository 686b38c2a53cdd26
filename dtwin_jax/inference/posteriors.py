"""The posteriors of a cohort's patients, evaluated at any points of any of them.

Points are solved together, in blocks of one size, so that two programs serve every question that is asked:
how dense, and how steep. A predictor that solves a cohort faster than one by one is asked for a block.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import PENALTY, likelihood_of, predict_cohort
from dtwin_jax.core.record import SEEN, Record, Series
from dtwin_jax.inference.density import parameters, standard_promotion
from dtwin_jax.inference.target import Target

# Points of a block: at most, and for each patient where there are few. A slope is as many solves as there are
# parameters, and more.
_VALUES, _SLOPES = (2048, 64), (64, 4)


@dataclass(frozen=True, eq=False)
class Posteriors:
    """The posteriors of patients on their unbounded scales.

    Attributes:
        target: the density of one.
        base: known parameters.
        record: of the patients, stacked; NumPy arrays.
    """

    target: Target
    base: Any
    record: Record

    @property
    def patients(self) -> int:
        """How many."""
        return self.record.t0.shape[0]

    def scales(self) -> np.ndarray:
        """Standard deviations of the priors, (name,)."""
        return np.asarray(self.target.prior_sds())

    def values(self, owner: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Log densities (point,) at `u` (point, name) of the patients `owner` (point,).

        What the model cannot explain costs `PENALTY` a measurement; NaN is minus infinity.
        """
        (found,) = self._in_blocks(lambda *each: (_values(*each),), _VALUES, owner, u)
        return np.where(np.isnan(found), -np.inf, found)

    def slopes(self, owner: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
        """Log densities (point,), gradients (point, name), informations (point, name, name), explained.

        The information of a normal or log-normal measurement is Fisher's; of any other, and of one beyond a
        limit, the square of its score. It is positive definite. `explained` (point,) is whether the model has
        a likelihood for every measurement.
        """
        return self._in_blocks(_slopes, _SLOPES, owner, u)

    def _in_blocks(
        self, function: Callable[..., tuple], size: tuple[int, int], owner: np.ndarray, u: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        most, each = size
        count, block = len(owner), min(most, 1 << (each * self.patients - 1).bit_length())
        parts = []
        for start in range(0, count, block):
            # The last block is filled up, so that it needs no program of its own.
            rows = np.minimum(np.arange(start, start + block), count - 1)
            record = jax.tree.map(lambda leaf, rows=owner[rows]: leaf[rows], self.record)
            parts.append(function(self.target, self.base, record, u[rows]))
        return tuple(np.concatenate(each)[:count] for each in zip(*parts, strict=True))


@functools.partial(jax.jit, static_argnames=("target",))
@standard_promotion
def _values(target: Target, base: Any, record: Record, u: Any) -> Any:
    rows = measured(target, base, record, u)
    likelihood = sum(jnp.sum(each["fit"], axis=1) for each in rows.values())
    return likelihood + jnp.sum(jax.vmap(target.log_prior)(u), axis=1)


@functools.partial(jax.jit, static_argnames=("target",))
@standard_promotion
def _slopes(target: Target, base: Any, record: Record, u: Any) -> tuple[Any, Any, Any, Any]:
    rows = functools.partial(measured, target, base, record)
    # All points in one direction at a time: the steps of a solve are shared by its derivatives.
    along = lambda direction: jax.jvp(rows, (u,), (jnp.broadcast_to(direction, u.shape),))  # noqa: E731
    value, slope = jax.vmap(along, out_axes=(None, 0))(jnp.eye(u.shape[1], dtype=u.dtype))
    parts = [information_of(value[name], slope[name], series) for name, series in record.observations.items()]
    prior, push, pull = jax.vmap(target.prior_curvature)(u)
    total = prior + sum(jnp.sum(each["fit"], axis=1) for each in value.values())
    gradient = push + sum(each[0] for each in parts)
    information = jax.vmap(jnp.diag)(pull) + sum(each[1] for each in parts)
    return total, gradient, information, functools.reduce(jnp.logical_and, [each[2] for each in parts])


def measured(target: Target, base: Any, record: Record, u: Any) -> dict[str, dict[str, Any]]:
    """Of every measurement, (point, n) by channel: its log-likelihood `fit`; and of a normal or log-normal
    one its moments `mean` and `log_sd`, its `value` on their scale, and `stretch`, what the change of scale
    adds to `fit`.
    """
    import numpyro.distributions as dist

    fill = functools.partial(parameters, target.names, base)
    p = jax.vmap(lambda u, record: fill(target.bounded(u), record))(u, record)
    predicted = predict_cohort(target.f, p, record)
    likelihood = jax.vmap(likelihood_of)(predicted, record)
    found = {}
    for name, fit in likelihood.items():
        found[name] = {"fit": fit}
        if isinstance(d := predicted[name], dist.Normal | dist.LogNormal):
            mean, log_sd = (_spread(moment, fit.shape) for moment in (d.loc, jnp.log(jnp.asarray(d.scale))))
            value = jnp.asarray(record.observations[name].value, float)
            if isinstance(d, dist.LogNormal):
                value = jnp.log(jnp.where(value > 0, value, 1.0))
            stretch = -value if isinstance(d, dist.LogNormal) else jnp.zeros_like(value)
            found[name] |= {"mean": mean, "log_sd": log_sd, "value": value, "stretch": stretch}
    return found


def _spread(moment: Any, shape: tuple[int, ...]) -> Any:
    """A moment (point, n), where one may stand for all measurements of a point."""
    moment = jnp.asarray(moment)
    return jnp.broadcast_to(moment[:, None] if moment.ndim == 1 else moment, shape)


def information_of(value: dict[str, Any], slope: dict[str, Any], series: Series) -> tuple[Any, Any, Any]:
    """Gradient (point, name), information (point, name, name), whether all is explained (point,)."""
    # What has no slope cannot be climbed, and tells nothing of who can.
    smooth = [jnp.all(jnp.isfinite(each), axis=0) for each in slope.values()]
    explained = (value["fit"] > PENALTY) & functools.reduce(jnp.logical_and, smooth)
    used = series.mask & explained
    score = jnp.where(used, slope["fit"], 0.0)
    normal = used & (series.censor == SEEN) if "mean" in value else jnp.zeros_like(used)
    found = _squared(jnp.where(normal, 0.0, score))
    if "mean" in value:
        sd = jnp.exp(jnp.where(normal, value["log_sd"], 0.0))
        found += _squared(jnp.where(normal, slope["mean"] / sd, 0.0))
        found += 2.0 * _squared(jnp.where(normal, slope["log_sd"], 0.0))
    return jnp.sum(score, axis=2).T, found, jnp.all(explained | ~series.mask, axis=1)


def _squared(slope: Any) -> Any:
    """(name, point, n) times itself, summed over n."""
    return jnp.einsum("ipn,jpn->pij", slope, slope)
