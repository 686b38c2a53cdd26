"""The peaks of many patients' posteriors at once: Levenberg-Marquardt steps on the Fisher information."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

# Beyond this damping no step helps any more.
_STUCK = 1e10
# What the next step may promise, in nats, where no step gains anything: a thousandth of a standard deviation.
_NEAR = 1e-6
# Of the first step; and a step is at most this many standard deviations of the prior long.
_DAMPING, _LONGEST = 1e-2, 2.0


@runtime_checkable
class Climbable(Protocol):
    """Log densities of many patients, which can be climbed."""

    def slopes(self, owner: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
        """As of `Posteriors`."""
        ...

    def scales(self) -> np.ndarray:
        """How far each coordinate (name,) may reach, as a standard deviation."""
        ...


@dataclass
class Places:
    """Where climbs have ended; leading axis climb.

    Attributes:
        u: unbounded parameters (name,).
        value: the log density there.
        gradient: its slope (name,).
        information: its expected curvature (name, name), positive definite.
        arrived: the peak is near enough, and every measurement is explained there.
    """

    u: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    information: np.ndarray
    arrived: np.ndarray


def climbed(
    posteriors: Climbable, owner: np.ndarray, begin: np.ndarray, *, close: float, max_steps: int
) -> Places:
    """Peaks from given starts.

    Args:
        posteriors: of the patients, or whatever else has their slopes.
        owner: (climb,) whose posterior is climbed.
        begin: (climb, name) where from.
        close: what the next step would gain at most where a climb ends, in nats: half the square of its
            distance from the peak in standard deviations.
        max_steps: of each climb.
    """
    at = Places(begin.copy(), *posteriors.slopes(owner, begin))
    at.value[np.isnan(at.value)] = -np.inf
    sds = posteriors.scales()
    damping, growth = np.full(len(owner), _DAMPING), np.full(len(owner), 2.0)
    explained = at.arrived.copy()
    at.arrived &= _left(at) < close
    going = np.flatnonzero(~at.arrived & np.isfinite(at.value))
    for _ in range(max_steps):
        if not len(going):
            break
        move, promised = _move(at, going, damping[going], sds)
        found = Places(at.u[going] + move, *posteriors.slopes(owner[going], at.u[going] + move))
        gain = found.value - at.value[going]
        better = gain > 0.0  # not where it is NaN
        # Damping by how well the gain was foretold. Source: Nielsen 1999, IMM-REP-1999-05, DTU.
        foretold = np.divide(gain, promised, out=np.zeros_like(gain), where=better)
        foretold = np.clip(foretold, 0.0, 2.0)
        less = damping[going] * np.maximum(1.0 / 3.0, 1.0 - (2.0 * foretold - 1.0) ** 3)
        damping[going] = np.where(better, np.maximum(less, 1e-12), damping[going] * growth[going])
        growth[going] = np.where(better, 2.0, growth[going] * 2.0)
        explained[going[better]] = found.arrived[better]
        found.arrived &= _left(found) < close
        for old, new in zip(vars(at).values(), vars(found).values(), strict=True):
            old[going[better]] = new[better]
        stuck = damping[going] > _STUCK
        # A solver's own errors can hide the last of a peak.
        at.arrived[going] |= stuck & explained[going] & (_left(at)[going] < _NEAR)
        going = going[~at.arrived[going] & ~stuck]
    return at


def _left(at: Places) -> np.ndarray:
    """What the next full step would gain."""
    step = np.linalg.solve(at.information, at.gradient[..., None])[..., 0]
    return np.sum(at.gradient * step, axis=1) / 2.0


def _move(at: Places, rows: np.ndarray, damping: np.ndarray, sds: np.ndarray) -> tuple[np.ndarray, ...]:
    """The damped step of some climbs, and what it should gain."""
    gradient, information = at.gradient[rows], at.information[rows]
    diagonal = np.einsum("pii->pi", information)
    damped = information + (damping[:, None] * diagonal)[..., None] * np.eye(information.shape[1])
    move = np.linalg.solve(damped, gradient[..., None])[..., 0]
    move /= np.maximum(np.max(np.abs(move) / (_LONGEST * sds), axis=1), 1.0)[:, None]
    curved = np.einsum("pi,pij,pj->p", move, information, move)
    return move, np.sum(gradient * move, axis=1) - curved / 2.0


def inverse_of_peak(curvature: np.ndarray) -> np.ndarray:
    """The covariance that belongs to a curvature (name, name); NaN where it is not a peak's."""
    if not np.all(np.isfinite(curvature)) or np.linalg.eigvalsh(curvature).min() <= 0:
        return np.full(curvature.shape, np.nan)
    try:
        return np.linalg.inv(curvature)
    except np.linalg.LinAlgError:  # along a flat direction, of which rounding makes a least bit more than 0
        return np.full(curvature.shape, np.nan)
