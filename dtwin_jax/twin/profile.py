"""How far one parameter can move while the others make up for it: profiles of the likelihood.

    fall(theta_i) = peak of log L - maximum over the other parameters of log L with theta_i held

The 95 % interval is where the fall is at most 1.92, half the quantile of chi-squared with one degree of
freedom. Where the fall never gets there, the parameter is practically not identifiable on that side.

Source: Raue et al. 2009, Bioinformatics 25:1923, doi 10.1093/bioinformatics/btp358.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from dtwin_jax.core.predictor import PENALTY, check_record, differentiated, log_likelihood
from dtwin_jax.core.quantity import values
from dtwin_jax.core.record import Record
from dtwin_jax.inference.density import (
    Override,
    estimated,
    parameters,
    patient_log_likelihood,
    standard_promotion,
)
from dtwin_jax.inference.diagnostics import unbounded_sd
from dtwin_jax.inference.target import Target
from dtwin_jax.twin.identify import information_matrix
from dtwin_jax.twin.walk import Point, Profile, Refit, Walk

# A side is followed to this many sds of the prior from the peak.
_REACH = 4.0
# Steps of one refit.
_STEPS = 500


def profile(
    f: Any,
    record: Record,
    name: str,
    *,
    key: Any,
    grid: Any = None,
    priors: Mapping[str, Override] | None = None,
    objective: str = "likelihood",
    level: float = 0.95,
) -> Profile:
    """The profile of one parameter of one patient, and the interval that it gives.

    From the peak outward, each refit starts at the best parameters of its neighbour. All of them run one
    compiled program, which is also that of the other parameters of the same model and record.

    Args:
        f: a predictor.
        record: of one patient.
        name: of the parameter.
        key: random key of the starts from which the peak is sought: the declared values, and prior draws.
        grid: values of the parameter at which to refit, in its unit; the interval's ends are interpolated
            between them. By default steps are chosen by how the objective falls, out to 4 sds of the
            prior (on its unbounded scale), and the ends are refined.
        priors: as in `fit`. They say what is estimated, and on which scale.
        objective: "likelihood" leaves the priors out; "posterior" profiles the density that `fit` climbs.
        level: of the interval, above 0 and below 1.

    Raises:
        ValueError: data, priors or a name that do not fit `f`, a grid beyond the parameter's limits, or data
            that no start explains.
    """
    search = _searching(f, record, name, priors or {}, objective, level)
    values_at = None if grid is None else _unbounded_grid(search, name, grid)
    peak = search.peak(key)
    walk = search.scaled(peak.u).walk()
    points = walk.both(peak) if values_at is None else walk.given(peak, values_at)
    return walk.result(objective, level, peak, points)


def profiles(
    f: Any,
    record: Record,
    names: Sequence[str],
    *,
    key: Any,
    starts: int = 4,
    steps: int = _STEPS,
    priors: Mapping[str, Override] | None = None,
    more: Callable[[], bool] = lambda: True,
) -> Iterator[Profile]:
    """Profiles of the likelihood with 95 % intervals, from one peak; each is made when it is asked for.

    Args:
        f: a predictor.
        record: of one patient.
        names: of the parameters.
        key: as in `profile`.
        starts: from how many the peak is sought; one, the declared values, where the data were made of them.
        steps: allowed to each refit.
        priors: as in `profile`.
        more: asked before every refit; once it says no, the profile at hand is left out, and all after it.

    Raises:
        ValueError: as in `profile`.
    """
    peak = None
    for name in names:
        search = replace(_searching(f, record, name, priors or {}, "likelihood", 0.95), steps=steps)
        peak = search.peak(key, starts) if peak is None else peak
        walk = search.scaled(peak.u).walk()
        points = walk.both(peak, more)
        if not more():
            return
        yield walk.result("likelihood", 0.95, peak, points)


def _searching(
    f: Any, record: Record, name: str, priors: Mapping[str, Override], objective: str, level: float
) -> "_Search":
    check_record(f, record)
    base, free = estimated(f, priors, tuple(record.known))
    if name not in free:
        raise ValueError(f"{name!r} is not estimated; estimated are {sorted(free)}")
    if objective not in ("likelihood", "posterior"):
        raise ValueError(f"objective: expected 'likelihood' or 'posterior', found {objective!r}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a share above 0 and below 1, as 0.95; found {level!r}")
    return _Search(
        Target(differentiated(f, "forward"), tuple(free.items())),
        jax.tree.map(jnp.asarray, base),
        jax.tree.map(jnp.asarray, record),
        float(objective == "posterior"),
        tuple(free).index(name),
        NormalDist().inv_cdf(0.5 + level / 2),
    )


def _unbounded_grid(search: "_Search", name: str, grid: Any) -> np.ndarray:
    rows = np.tile(np.asarray(search.target.bounded(jnp.zeros(len(search.target.names)))), (len(grid), 1))
    rows[:, search.index] = np.asarray(grid, float)
    with np.errstate(all="ignore"):
        found = np.asarray(jax.vmap(search.target.unbounded)(jnp.asarray(rows)))[:, search.index]
    if not np.all(np.isfinite(found)):
        wrong = np.asarray(grid, float)[~np.isfinite(found)][0]
        raise ValueError(f"grid: {wrong} is not a value that {name!r} can have")
    return np.sort(found)


@dataclass(frozen=True, eq=False)
class _Search:
    """What stays the same from refit to refit; the profiled parameter is the one at `index`.

    A refit climbs in coordinates in which the objective is about as curved in one direction as in any other:
    by `curvature` (name, name), the information of the data at a point, and of the prior.
    """

    target: Target
    base: Any
    record: Record
    weight: float
    index: int
    root: float
    steps: int = _STEPS
    curvature: np.ndarray | None = None

    def refit(self, start: np.ndarray, held: float | None = None) -> Point:
        """The optimum from `start` (name,), with the parameter held at a value if one is given."""
        begin, moves = np.array(start, float), np.ones(len(start), bool)
        if held is not None:
            begin[self.index], moves[self.index] = held, False
        u, energy, converged, explained = _climb(
            self.target, self.base, self.record, begin, self._coordinates(moves), self.weight, self.steps
        )
        code = Refit.FOUND if converged else Refit.NOT_CONVERGED
        code = code if explained and np.isfinite(energy) else Refit.NOT_EXPLAINED
        return Point(np.asarray(u), float(energy), code)

    def walk(self) -> Walk:
        """From a peak outward by refits."""
        prior = unbounded_sd(self.target.priors[self.index][1])
        bounded = lambda u: np.asarray(self.target.bounded(jnp.asarray(u)))  # noqa: E731
        return Walk(
            self.refit, bounded, self.target.names, self.index, self.root, 0.01 * prior, _REACH * prior
        )

    def scaled(self, u: np.ndarray) -> "_Search":
        """The search in coordinates of the curvature at `u`, where that is known."""
        found = np.asarray(_information(self.target, self.base, self.record, u))
        known = found + np.diag(self._prior_information())
        return replace(self, curvature=known) if np.all(np.isfinite(found)) else self

    def _prior_information(self) -> np.ndarray:
        return np.asarray([unbounded_sd(prior) ** -2.0 for _, prior in self.target.priors])

    def _coordinates(self, moves: np.ndarray) -> np.ndarray:
        """(name, name): a parameter that does not move has a row of zeros."""
        whole = np.diag(self._prior_information()) if self.curvature is None else self.curvature
        free = np.flatnonzero(moves)
        found = np.zeros(whole.shape)
        # Of L with L L' = curvature, the inverse of L' makes the curvature one in every direction.
        found[np.ix_(free, free)] = np.linalg.inv(np.linalg.cholesky(whole[np.ix_(free, free)])).T
        return found

    def peak(self, key: Any, starts: int = 4) -> Point:
        declared = jnp.stack([jnp.asarray(values(self.base)[name]) for name in self.target.names])
        first = self.target.unbounded(declared)
        drawn = jax.vmap(self.target.draw)(jax.random.split(key, starts - 1))
        ends = [self.scaled(np.asarray(u)).refit(np.asarray(u)) for u in (first, *drawn)]
        explained = [end for end in ends if end.code != Refit.NOT_EXPLAINED]
        if not explained:
            raise ValueError(
                f"{self.target.f.name} explains the measurements from no start: nothing to profile"
            )
        return min(explained, key=lambda end: end.energy)


@functools.partial(jax.jit, static_argnames=("target",))
@standard_promotion
def _information(target: Target, base: Any, record: Record, u: Any) -> Any:
    return information_matrix(target, parameters(target.names, base, target.bounded(u), record), record)


@functools.partial(jax.jit, static_argnames=("target", "steps"))
@standard_promotion
def _climb(
    target: Target, base: Any, record: Record, begin: Any, coordinates: Any, weight: Any, steps: int
) -> tuple:
    """(optimum, minus the objective there, whether converged, whether every measurement is explained)."""

    def whole(z: Any) -> Any:
        return begin + coordinates @ z

    def energy(z: Any, _: Any) -> Any:
        u = whole(z)
        likelihood = patient_log_likelihood(target.f, target.names, base, target.bounded(u), record)
        return -likelihood - weight * jnp.sum(target.log_prior(u))

    # In these coordinates an sd is about 1; solves are not known to more digits.
    solver = optx.BFGS(rtol=1e-6, atol=1e-6)
    found = optx.minimise(energy, solver, jnp.zeros_like(begin), None, max_steps=steps, throw=False)
    u = whole(found.value)
    each = log_likelihood(target.f, parameters(target.names, base, target.bounded(u), record), record)
    explained = jnp.all(jnp.stack([jnp.all(value > PENALTY) for value in each.values()]))
    likelihood = sum(jnp.sum(value) for value in each.values())
    lost = -likelihood - weight * jnp.sum(target.log_prior(u))
    return u, lost, found.result == optx.RESULTS.successful, explained
