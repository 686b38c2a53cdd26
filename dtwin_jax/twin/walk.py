"""A profile: from a peak outward, one number held at value after value, the others refitted at each.

Source: as of `profile`.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# A side is followed in at most so many refits.
_REFITS = 40
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
class Point:
    """Where a refit has ended.

    Attributes:
        u: all numbers, unbounded.
        energy: minus the log of what is maximised.
        code: how it ended.
    """

    u: np.ndarray
    energy: float
    code: Refit


@dataclass(frozen=True, eq=False)
class Walk:
    """What stays the same from refit to refit.

    Attributes:
        refit: (where to start, the held number) -> the optimum of the others; all unbounded.
        bounded: unbounded numbers -> those of `names` on their own scales.
        names: of the numbers that are told.
        index: position of the profiled number.
        root: of twice the fall, where an interval ends.
        first: length of the first step.
        reach: how far a side is followed.
    """

    refit: Callable[[np.ndarray, float], Point]
    bounded: Callable[[np.ndarray], np.ndarray]
    names: tuple[str, ...]
    index: int
    root: float
    first: float
    reach: float

    def both(self, peak: Point, more: Callable[[], bool] = lambda: True) -> list[Point]:
        """Refits on both sides of a peak."""
        return [*self.outward(peak, -1.0, more), *self.outward(peak, 1.0, more)]

    def rise(self, point: Point, peak: Point) -> float:
        """The root of twice the fall: on a parabola, the distance from the peak in sds."""
        return float(np.sqrt(2.0 * max(point.energy - peak.energy, 0.0)))

    def outward(self, peak: Point, sign: float, more: Callable[[], bool] = lambda: True) -> list[Point]:
        """Refits on one side, from the peak on, until the interval has closed or cannot."""
        points: list[Point] = []
        inner, outer, step, lost = peak, None, self.first, 0
        while len(points) < _REFITS and lost < _LOST and more():
            here = float(inner.u[self.index])
            left = self.reach - abs(here - float(peak.u[self.index]))
            if outer is None and left <= 1e-9 * self.reach:
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

    def _between(self, inner: Point, outer: Point, peak: Point) -> float:
        low, high = self.rise(inner, peak), self.rise(outer, peak)
        # Near the ends a straight line would be refined forever on one side only.
        share = np.clip((self.root - low) / (high - low), 0.05, 0.95)
        return float(inner.u[self.index] + share * (outer.u[self.index] - inner.u[self.index]))

    def given(self, peak: Point, grid: np.ndarray) -> list[Point]:
        """Refits at given values on the unbounded scale, each side from the peak outward."""
        middle, points = peak.u[self.index], []
        for ordered in (grid[grid < middle][::-1], grid[grid >= middle]):
            start = peak
            for at in ordered:
                points.append(self.refit(start.u, float(at)))
                start = points[-1] if points[-1].code != Refit.NOT_EXPLAINED else start
        return points

    def result(self, objective: str, level: float, peak: Point, points: list[Point]) -> Profile:
        """The profile of these refits, in the order of the parameter's value."""
        every = [peak, *points]
        theta = np.stack([self.bounded(point.u) for point in every])
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
            name=self.names[self.index],
            objective=objective,
            value=theta[:, self.index],
            fall=np.where(explained, [point.energy - best.energy for point in every], np.nan),
            others={n: theta[:, i] for i, n in enumerate(self.names) if i != self.index},
            code=np.asarray([int(point.code) for point in every]),
            estimate=float(theta[place, self.index]),
            level=level,
            interval=(-np.inf if low is None else low, np.inf if high is None else high),
            remarks=(why_low, why_high),
        )

    def _end(self, outward: list[Point]) -> tuple[float | None, str]:
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
        return float(self.bounded(u)[self.index])
