"""The least of a smooth function of few numbers, which may be no number in places: damped BFGS."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# No number moves further in one step, which is a factor of e for a logarithm.
_LONGEST = 1.0
# Of what the slope promises, the share that a step must gain; and how often it is halved until it does.
_GAIN, _HALVINGS = 1e-4, 30

Function = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass
class Least:
    """Where a descent has ended.

    Attributes:
        at: the numbers.
        value: of the function there.
        slope: of the function there.
        message: why it ended.
    """

    at: np.ndarray
    value: float
    slope: np.ndarray
    message: str


def descended(
    function: Function, begin: np.ndarray, inverse: np.ndarray, *, flat: float, max_steps: int
) -> Least:
    """The least value near `begin`.

    Args:
        function: numbers -> value and slope; an infinite value is no place to be.
        begin: where to start, with a finite value.
        inverse: of the curvature there, positive definite.
        flat: the largest slope that is nothing.
        max_steps: at most.
    """
    here = Least(begin, *function(begin), "max_steps reached")
    first, fresh = inverse, True
    for _ in range(max_steps):
        if np.max(np.abs(here.slope)) < flat:
            here.message = "the slope is nothing"
            return here
        found = _step(function, here, inverse)
        if found is None and fresh:
            here.message = "no step gains anything"
            return here
        if found is None:
            inverse, fresh = first, True
            continue
        inverse, here, fresh = _updated(inverse, here, found), found, False
    return here


def _step(function: Function, here: Least, inverse: np.ndarray) -> Least | None:
    """The next place down the slope, None where there is none."""
    move = -inverse @ here.slope
    move /= max(np.max(np.abs(move)) / _LONGEST, 1.0)
    promised = float(here.slope @ move)
    for _ in range(_HALVINGS if promised < 0 else 0):
        value, slope = function(here.at + move)
        if value <= here.value + _GAIN * promised:
            return Least(here.at + move, value, slope, here.message)
        move, promised = move / 2.0, promised / 2.0
    return None


def _updated(inverse: np.ndarray, old: Least, new: Least) -> np.ndarray:
    """The inverse curvature by what the slope has changed along a step."""
    s, y = new.at - old.at, new.slope - old.slope
    along = float(s @ y)
    if not along > 1e-10 * float(np.linalg.norm(s) * np.linalg.norm(y)):
        return inverse
    pull = np.eye(len(s)) - np.outer(s, y) / along
    return pull @ inverse @ pull.T + np.outer(s, s) / along
