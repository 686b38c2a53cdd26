"""What a planned design can tell of the parameters: expected Fisher information, before any measurement.

The information is that of the parameters on the scales on which they are estimated (log for positive ones),
so a standard error of a positive parameter is a relative one.

    normal      M = sum over samples of (dm dm' + 2 ds ds') / s^2, m mean, s sd, d by parameters
    otherwise   M = sum over samples of d^2 KL(at p | at q) / dq^2 at q = p

Source: Fedorov & Leonov 2014, Optimal Design for Nonlinear Response Models, ch. 1 (recalled, not checked).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import check_cohort, differentiated
from dtwin_jax.core.quantity import assign, values
from dtwin_jax.core.record import Cohort, Record, stack
from dtwin_jax.inference.density import Override, estimated, parameters, standard_promotion
from dtwin_jax.inference.diagnostics import LITTLE, unbounded_sd
from dtwin_jax.inference.target import Target
from dtwin_jax.twin.directions import Direction, directions, scale_of

# An eigenvalue below this share of the largest is 0: sensitivities of a solve are known to 1e-6 or better,
# and the information is their square.
_ZERO = 1e-11
# A parameter that moves less than this share of the one that moves most, both in sds of their priors, is left
# out of a direction.
_SMALL = 0.05


@dataclass(frozen=True, eq=False)
class Information:
    """Expected Fisher information of a design, on the parameters' unbounded scales.

    Attributes:
        names: of the parameters, in the order of the arrays.
        matrix: (name, name), of the data alone; NaN where the design cannot be predicted.
        prior: (name,) information of the prior: 1 / its variance on the unbounded scale.
        value: (name,) the parameters' values, each in its own unit.
        slope: (name,) derivative of the value by the unbounded parameter.
        scales: (name,) "log", "own" or "logit": what the unbounded scale is.
        failed: ids of the patients whose design cannot be predicted at these values, or has a sample with no
            measurement error.
    """

    names: tuple[str, ...]
    matrix: np.ndarray
    prior: np.ndarray
    value: np.ndarray
    slope: np.ndarray
    scales: tuple[str, ...]
    failed: tuple[str, ...] = ()

    def covariance(self, *, prior: bool = False) -> np.ndarray:
        """Inverse of the information, (name, name), on the unbounded scales.

        Args:
            prior: add the prior's information, which gives the expected posterior covariance.

        Returns:
            Parameters that the data do not determine have an infinite variance, and NaN beside it.
        """
        if not np.all(np.isfinite(self.matrix)):
            return np.full(self.matrix.shape, np.nan)
        if prior:
            return np.linalg.inv(self.matrix + np.diag(self.prior))
        eigenvalue, vector, sd = self._scaled()
        zero = eigenvalue <= _ZERO * max(eigenvalue.max(), 1e-300)
        known = vector[:, ~zero]
        scaled = (known / eigenvalue[~zero]) @ known.T
        # A vector's component is known to the root of the eigenvalue's precision.
        lost = np.any(np.abs(vector[:, zero]) > 1e-4, axis=1)
        scaled[lost, :] = scaled[:, lost] = np.nan
        scaled[lost, lost] = np.inf
        return sd[:, None] * scaled * sd[None, :]

    def standard_error(self, *, prior: bool = False, relative: bool = False) -> dict[str, float]:
        """Least standard error of each parameter (Cramér-Rao), by the delta method.

        Args:
            prior: with the prior's information; without it the error is infinite for a parameter that the
                data do not determine.
            relative: as a share of the parameter's value; in its unit otherwise.
        """
        error = np.abs(self.slope) * np.sqrt(np.diagonal(self.covariance(prior=prior)))
        if relative:
            error = error / np.abs(self.value)
        return dict(zip(self.names, error.tolist(), strict=True))

    def correlation(self, *, prior: bool = False) -> np.ndarray:
        """Of the estimates on the unbounded scales, (name, name); NaN for what is not determined."""
        covariance = self.covariance(prior=prior)
        variance = np.diagonal(covariance)
        sd = np.sqrt(np.where(np.isfinite(variance), variance, np.nan))
        return covariance / (sd[:, None] * sd[None, :])

    def shrinkage(self) -> dict[str, float]:
        """Expected posterior variance over prior variance: 0 the data decide, 1 the prior does.

        Source: Combes et al. 2013, doi 10.1007/s11095-013-1079-3, for individual parameters.
        """
        share = np.diagonal(self.covariance(prior=True)) * self.prior
        return dict(zip(self.names, share.tolist(), strict=True))

    def flat(self, *, wide: float = LITTLE) -> tuple[Direction, ...]:
        """Directions that the data do not inform: along them the posterior is nearly as wide as the prior.

        Args:
            wide: least sd of the expected posterior along the direction, as a share of the prior's.

        Returns:
            The flattest first; directions are orthogonal where each parameter is in units of its prior's sd.
            What their words call unseen may be seen a little, as `wide` allows.

        Raises:
            ValueError: the design cannot be predicted.
        """
        if self.failed:
            raise ValueError(f"no directions: the design of {', '.join(self.failed)} cannot be predicted")
        eigenvalue, vector, sd = self._scaled()
        chosen = 1.0 / np.sqrt(1.0 + np.maximum(eigenvalue, 0.0)) >= wide
        local = [True] * int(chosen.sum())
        return directions(self.names, self.scales, vector[:, chosen], sd, small=_SMALL, local=local)

    def _scaled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues and vectors with each parameter in units of its prior's sd, and these sds."""
        sd = 1.0 / np.sqrt(self.prior)
        eigenvalue, vector = np.linalg.eigh(sd[:, None] * self.matrix * sd[None, :])
        return eigenvalue, vector, sd


def fisher_information(
    f: Any,
    p: Any,
    record: Record | Cohort,
    names: Sequence[str] | None = None,
    *,
    priors: Mapping[str, Override] | None = None,
) -> Information:
    """Expected Fisher information of a planned design at parameters `p`.

    Args:
        f: a predictor that returns normal, log-normal, Poisson or finite distributions, or any for which
            NumPyro has a Kullback-Leibler divergence.
        p: its parameters.
        record: times and channels to be measured; the values do not matter, nor does censoring, but masked
            samples do not count: plan with `Series(times, np.zeros(len(times)))`. Of a cohort, all patients
            together, who share `p` except for what is known of each.
        names: the parameters, by default all that have a prior and are not known of the patients.
        priors: name -> `Prior`, a number or None, as in `fit`.

    Raises:
        ValueError: a name without a prior, a record without a sample that counts, or a channel whose
            distribution has no information that could be computed.
    """
    cohort = record if isinstance(record, Cohort) else stack({"1": record})
    check_cohort(f, cohort)
    _, free = estimated(f, priors or {}, tuple(cohort.record.known))
    chosen = tuple(free if names is None else names)
    for name in chosen:
        if name not in free:
            raise ValueError(
                f"{name!r} is not estimated, found in names; estimated are {sorted(free)}: give it a prior, "
                f"priors={{{name!r}: ...}}"
            )
    if not any(np.any(series.mask) for series in cohort.record.observations.values()):
        raise ValueError(
            "the design has no sample that counts, all are masked: give times to be measured as "
            "Series(times, np.zeros(len(times)))"
        )
    numbers = {name: given for name, given in (priors or {}).items() if isinstance(given, int | float)}
    p = assign(p, numbers)
    target = Target(differentiated(f, "forward"), tuple((name, free[name]) for name in chosen))
    each, value, slope = _each(target, p, jax.tree.map(jnp.asarray, cohort.record))
    each = np.asarray(each)
    lost = ~np.all(np.isfinite(each), axis=(1, 2))
    return Information(
        names=chosen,
        matrix=np.full(each.shape[1:], np.nan) if np.any(lost) else each.sum(axis=0),
        prior=np.asarray([unbounded_sd(free[name]) ** -2.0 for name in chosen]),
        value=np.asarray(value),
        slope=np.asarray(slope),
        scales=tuple(scale_of(free[name]) for name in chosen),
        failed=tuple(np.asarray(cohort.ids)[lost].tolist()),
    )


@functools.partial(jax.jit, static_argnames=("target",))
@standard_promotion
def _each(target: Target, p: Any, record: Record) -> tuple[Any, Any, Any]:
    value = jnp.stack([jnp.asarray(values(p)[name]) for name in target.names])
    matrix = jax.vmap(functools.partial(information_matrix, target, p))(record)
    return matrix, value, jnp.diagonal(jax.jacfwd(target.bounded)(target.unbounded(value)))


def information_matrix(target: Target, p: Any, record: Record) -> Any:
    """Information of one patient's samples, (name, name): pure, under `jit`, `vmap` and `jax.jacfwd`.

    NaN where a sample that counts cannot be predicted, or has no error.
    """
    value = jnp.stack([jnp.asarray(values(p)[name]) for name in target.names])
    u = target.unbounded(value)

    def predicted(u: Any) -> dict[str, Any]:
        return target.f.predict(parameters(target.names, p, target.bounded(u), record), record)

    here, near = _linearised(predicted, u)
    total = jnp.zeros((u.shape[0], u.shape[0]))
    for name, series in record.observations.items():
        rows = _informations(name, lambda u, name=name: near(u)[name], u, series)
        # A failed solve has no derivative, but says so in its value.
        rows = jnp.where(_finite(here[name], rows.shape[:1])[:, None, None], rows, jnp.nan)
        total = total + jnp.sum(jnp.where(series.mask[:, None, None], rows, 0.0), axis=0)
    return total


def _linearised(predicted: Any, u: Any) -> tuple[Any, Any]:
    """What is predicted at `u`, and a function that predicts the same to first order near it.

    Information depends on first derivatives only, so one pass through the solver is enough for all channels.
    """
    structure = jax.tree.structure(jax.eval_shape(predicted, u))

    def numbers(u: Any) -> tuple[list[Any], list[Any]]:
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(predicted(u))]
        return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)], leaves

    slopes, leaves = jax.jacfwd(numbers, has_aux=True)(u)

    def near(v: Any) -> Any:
        left = iter(slopes)
        moved = [
            leaf + next(left) @ (v - u) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf
            for leaf in leaves
        ]
        return jax.tree.unflatten(structure, moved)

    return jax.tree.unflatten(structure, leaves), near


def _informations(channel: str, at: Any, u: Any, series: Any) -> Any:
    """Information of each sample, (n, name, name)."""
    import numpyro.distributions as dist

    shape, kind = jnp.shape(series.time), at(u)
    if isinstance(kind, dist.Normal | dist.LogNormal):

        def moments(u: Any) -> Any:
            d = at(u)
            return jnp.stack([jnp.broadcast_to(d.loc, shape), jnp.broadcast_to(d.scale, shape)])

        scale, (middle, spread) = moments(u)[1], jax.jacfwd(moments)(u)
        return (_outer(middle) + 2.0 * _outer(spread)) / (scale**2)[:, None, None]
    if isinstance(kind, dist.Poisson):
        rate = lambda u: jnp.broadcast_to(at(u).rate, shape)  # noqa: E731
        return _outer(jax.jacfwd(rate)(u)) / rate(u)[:, None, None]
    if getattr(kind, "has_enumerate_support", False):
        return _of_finite(at, u, shape)
    return _of_divergence(channel, kind, at, u, shape)


def _finite(d: Any, shape: tuple[int, ...]) -> Any:
    """(n,) whether the numbers of a distribution are finite."""
    found = jnp.ones(shape, bool)
    for leaf in jax.tree.leaves(d):
        finite = jnp.isfinite(jnp.asarray(leaf))
        if finite.shape[:1] == shape:
            finite = jnp.all(finite.reshape(*shape, -1), axis=1)
        found = found & (finite if finite.shape == shape else jnp.all(finite))
    return found


def _outer(rows: Any) -> Any:
    return rows[:, :, None] * rows[:, None, :]


def _of_finite(at: Any, u: Any, shape: tuple[int, ...]) -> Any:
    """The expected square of the score, summed over everything that can be measured."""
    outcomes = jnp.reshape(at(u).enumerate_support(expand=False), (-1,))

    def log_mass(u: Any) -> Any:
        each = [jnp.broadcast_to(at(u).log_prob(outcome), shape) for outcome in outcomes]
        return jnp.stack(each, axis=1)

    mass, score = jnp.exp(log_mass(u)), jax.jacfwd(log_mass)(u)
    # What cannot happen says nothing, whatever its score.
    score = jnp.where((mass > 0)[:, :, None], score, 0.0)
    return jnp.einsum("no,noi,noj->nij", mass, score, score)


def _of_divergence(channel: str, kind: Any, at: Any, u: Any, shape: tuple[int, ...]) -> Any:
    """The curvature of the divergence of nearby distributions from this one."""
    from numpyro.distributions.kl import kl_divergence

    here = jax.tree.map(jax.lax.stop_gradient, at(u))

    def apart(other: Any) -> Any:
        return jnp.broadcast_to(kl_divergence(here, at(other)), shape)

    try:
        return jax.jacfwd(jax.jacfwd(apart))(u)
    except NotImplementedError:
        raise ValueError(
            f"channel {channel!r}: the information of {type(kind).__name__} is not known; known are normal, "
            "log-normal, Poisson and finite distributions, and those with a divergence in numpyro "
            "(Beta, Gamma, Dirichlet)"
        ) from None
