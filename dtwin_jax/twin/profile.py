"""How far one parameter can move while the others make up for it: profiles of the likelihood.

    fall(theta_i) = peak of log L - maximum over the other parameters of log L with theta_i held

The 95 % interval is where the fall is at most 1.92, half the quantile of chi-squared with one degree of
freedom. Where the fall never gets there, the parameter is practically not identifiable on that side.

Source: Raue et al. 2009, Bioinformatics 25:1923, doi 10.1093/bioinformatics/btp358.
"""

import enum
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

# A side is followed to this many sds of the prior from the peak, and in at most so many refits.
_REACH = 4.0
_REFITS = 40
# Steps of one refit.
_STEPS = 500
# After so many refits that explain nothing, each nearer than the one before, a side is left open.
_LOST = 4
# The step aimed at, in units of the root of twice the fall, in which a parabola is a straight line.
_STEP = 0.4
# A refit that much better than the peak (in log-likelihood) shows that the peak was none.
_BETTER = 1e-4


class Refit(enum.IntEnum):
    """How the refit at one value of the profiled parameter ended."""

    FOUND = 0
    NOT_CONVERGED = 1
    NOT_EXPLAINED = 2


@dataclass(frozen=True, eq=False)
class Profile:
    """A profile; arrays have one row for each refit, sorted by the parameter's value, the peak among them.

    Attributes:
        name: of the parameter.
        objective: "likelihood", or "posterior" with the priors on the unbounded scales.
        value: (n,) values of the parameter, in its unit.
        fall: (n,) how far the objective's log lies below its peak; NaN where nothing explains the data.
        others: name -> (n,) the other parameters at their best for each value.
        code: (n,) a `Refit` code.
        estimate: the value at the peak.
        level: of the interval.
        interval: (low, high), in the parameter's unit; -inf or inf on a side that does not close.
        remarks: (low, high): "" where the side closes on refits that converged, else what is wrong with it.
    """

    name: str
    objective: str
    value: np.ndarray
    fall: np.ndarray
    others: dict[str, np.ndarray]
    code: np.ndarray
    estimate: float
    level: float
    interval: tuple[float, float]
    remarks: tuple[str, str]

    @property
    def identifiable(self) -> bool:
        """Whether the data bound the parameter on both sides."""
        return bool(np.all(np.isfinite(self.interval)))

    @property
    def failed(self) -> np.ndarray:
        """Values of the parameter whose refit did not converge, or explains no data."""
        return self.value[self.code != Refit.FOUND]


@dataclass(frozen=True, eq=False)
class _Point:
    u: np.ndarray
    energy: float
    code: Refit


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
    search = search.scaled(peak.u)
    if values_at is None:
        points = [*search.outward(peak, -1.0), *search.outward(peak, 1.0)]
    else:
        points = search.given(peak, values_at)
    return search.result(name, objective, level, peak, points)


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
        search = search.scaled(peak.u)
        points = [*search.outward(peak, -1.0, more), *search.outward(peak, 1.0, more)]
        if not more():
            return
        yield search.result(name, "likelihood", 0.95, peak, points)


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

    def refit(self, start: np.ndarray, held: float | None = None) -> _Point:
        """The optimum from `start` (name,), with the parameter held at a value if one is given."""
        begin, moves = np.array(start, float), np.ones(len(start), bool)
        if held is not None:
            begin[self.index], moves[self.index] = held, False
        u, energy, converged, explained = _climb(
            self.target, self.base, self.record, begin, self._coordinates(moves), self.weight, self.steps
        )
        code = Refit.FOUND if converged else Refit.NOT_CONVERGED
        code = code if explained and np.isfinite(energy) else Refit.NOT_EXPLAINED
        return _Point(np.asarray(u), float(energy), code)

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

    def peak(self, key: Any, starts: int = 4) -> _Point:
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

    def rise(self, point: _Point, peak: _Point) -> float:
        """The root of twice the fall: on a parabola, the distance from the peak in sds."""
        return float(np.sqrt(2.0 * max(point.energy - peak.energy, 0.0)))

    def outward(self, peak: _Point, sign: float, more: Callable[[], bool] = lambda: True) -> list[_Point]:
        """Refits on one side, from the peak on, until the interval has closed or cannot."""
        prior = unbounded_sd(self.target.priors[self.index][1])
        points: list[_Point] = []
        inner, outer, step, lost = peak, None, 0.01 * prior, 0
        while len(points) < _REFITS and lost < _LOST and more():
            here = float(inner.u[self.index])
            left = _REACH * prior - abs(here - float(peak.u[self.index]))
            if outer is None and left <= 1e-9 * prior:
                break
            at = here + sign * min(step, left) if outer is None else self._between(inner, outer, peak)
            point = self.refit(inner.u, at)
            points.append(point)
            if point.code == Refit.NOT_EXPLAINED:
                step, lost = 0.25 * min(step, left), lost + 1
                continue
            rise = self.rise(point, peak)
            if rise >= self.root:
                outer = point
            else:
                gained = max(rise - self.rise(inner, peak), 1e-12)
                step *= float(np.clip(_STEP / gained, 0.25, 4.0))
                inner = point
            if outer is not None and abs(rise - self.root) < 1e-3 * self.root:
                break
        return points

    def _between(self, inner: _Point, outer: _Point, peak: _Point) -> float:
        low, high = self.rise(inner, peak), self.rise(outer, peak)
        # Near the ends a straight line would be refined forever on one side only.
        share = np.clip((self.root - low) / (high - low), 0.05, 0.95)
        return float(inner.u[self.index] + share * (outer.u[self.index] - inner.u[self.index]))

    def given(self, peak: _Point, grid: np.ndarray) -> list[_Point]:
        """Refits at given values on the unbounded scale, each side from the peak outward."""
        middle, points = peak.u[self.index], []
        for ordered in (grid[grid < middle][::-1], grid[grid >= middle]):
            start = peak
            for at in ordered:
                points.append(self.refit(start.u, float(at)))
                start = points[-1] if points[-1].code != Refit.NOT_EXPLAINED else start
        return points

    def result(self, name: str, objective: str, level: float, peak: _Point, points: list[_Point]) -> Profile:
        """The profile of these refits, in the order of the parameter's value."""
        every = [peak, *points]
        theta = np.asarray(jax.vmap(self.target.bounded)(jnp.asarray([point.u for point in every])))
        order = np.argsort(theta[:, self.index], kind="stable")
        every, theta = [every[i] for i in order], theta[order]
        usable = [point for point in every if point.code != Refit.NOT_EXPLAINED]
        best = min(usable, key=lambda point: point.energy)
        # A refit that beats the peak takes its place; else the peak stays, whatever the rounding.
        best = best if best.energy < peak.energy - _BETTER else peak
        place = next(i for i, point in enumerate(every) if point is best)
        low, why_low = self._end(every[place::-1])
        high, why_high = self._end(every[place:])
        explained = np.asarray([point.code != Refit.NOT_EXPLAINED for point in every])
        return Profile(
            name=name,
            objective=objective,
            value=theta[:, self.index],
            fall=np.where(explained, [point.energy - best.energy for point in every], np.nan),
            others={n: theta[:, i] for i, n in enumerate(self.target.names) if i != self.index},
            code=np.asarray([int(point.code) for point in every]),
            estimate=float(theta[place, self.index]),
            level=level,
            interval=(-np.inf if low is None else low, np.inf if high is None else high),
            remarks=(why_low, why_high),
        )

    def _end(self, outward: list[_Point]) -> tuple[float | None, str]:
        """Where the interval ends on one side, and what is to be said of it; the peak is first."""
        peak, inner = outward[0], outward[0]
        for point in outward[1:]:
            if point.code == Refit.NOT_EXPLAINED:
                return None, f"nothing explains the data at {self._value(point.u):.4g}"
            low, high = self.rise(inner, peak), self.rise(point, peak)
            if high >= self.root:
                share = (self.root - low) / (high - low)
                at = self._value(inner.u + share * (point.u - inner.u))
                sure = inner.code == point.code == Refit.FOUND
                return at, "" if sure else "ends at a refit that did not converge"
            inner = point
        fall = max(point.energy - peak.energy for point in outward)
        return None, f"the log falls by {fall:.2g} only, at {self._value(inner.u):.4g}"

    def _value(self, u: np.ndarray) -> float:
        return float(self.target.bounded(jnp.asarray(u))[self.index])


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
