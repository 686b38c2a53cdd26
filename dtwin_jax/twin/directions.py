"""Directions among the parameters along which nothing changes, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dtwin_jax.core.prior import Prior


@dataclass(frozen=True)
class Direction:
    """A way in which parameters can move together without the measurements telling.

    Attributes:
        weights: name -> move on the parameter's scale, the largest in size being 1; 0 where it takes no part.
        scales: name -> "log", "own" or "logit".
        local: whether it is known to be one at some values only, and may turn elsewhere, as that of two rates
            of which the sum is seen; a product or a ratio is the same everywhere.
    """

    weights: dict[str, float]
    scales: dict[str, str]
    local: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that take part, the strongest first."""
        taking = [name for name, weight in self.weights.items() if weight]
        return tuple(sorted(taking, key=lambda name: -round(abs(self.weights[name]), 6)))

    @property
    def words(self) -> str:
        """What is, and what is not seen, as a sentence without its full stop."""
        names = self.names
        if len(names) == 1:
            return f"nothing is seen of {names[0]}"
        where = " near these values" if self.local else ""
        if len(names) == 2 and all(self.scales[name] == "log" for name in names):
            first, second = sorted(names, key=list(self.weights).index)
            power = -self.weights[second] / self.weights[first]
            if abs(abs(power) - 1.0) < 0.01:
                return (
                    f"only the {'product' if power > 0 else 'ratio'} of {first} and {second} is seen{where}"
                )
            if not self.local:
                return f"only {first}^{power:.3g} {second} is seen"
        moves = ", ".join(f"{_on(self.scales[name], name)} by {self.weights[name]:+.2g}" for name in names)
        return f"{', '.join(names)} can move together unseen{where}: {moves}"


def _on(scale: str, name: str) -> str:
    return name if scale == "own" else f"{scale} {name}"


def scale_of(prior: Prior) -> str:
    """The unbounded scale of a parameter: "log", "log distance to a limit of", "own" or "logit"."""
    args = dict(prior.args)
    limits = {"low", "high"} & set(args)
    if prior.family in ("lognormal", "halfnormal", "gamma") or (limits == {"low"} and args["low"] == 0.0):
        return "log"
    if len(limits) == 1:
        return "log distance to a limit of"
    return "own" if prior.family == "normal" and not limits else "logit"


def directions(
    names: Sequence[str],
    scales: Sequence[str],
    columns: np.ndarray,
    unit: np.ndarray,
    *,
    small: float,
    local: Sequence[bool],
) -> tuple[Direction, ...]:
    """A `Direction` of each column.

    Args:
        names: of the parameters.
        scales: of the parameters, as `scale_of` says them.
        columns: (name, direction) moves, each in its parameter's `unit`, which makes them comparable.
        unit: (name,) on the unbounded scale.
        small: share of a direction's largest move below which a parameter takes no part.
        local: of each direction, whether it is known at these values only.
    """
    found = []
    for column, here in zip(np.asarray(columns).T, local, strict=True):
        taking = np.abs(column) >= small * np.abs(column).max()
        moves = np.where(taking, column * unit, 0.0)
        weights = moves / moves[np.argmax(np.abs(moves).round(9))] + 0.0
        named = dict(zip(names, weights.tolist(), strict=True))
        found.append(Direction(named, dict(zip(names, scales, strict=True)), here))
    return tuple(found)


def sparse_basis(columns: np.ndarray) -> np.ndarray:
    """The same space as that of `columns` (name, direction), by vectors with as many zeros as can be.

    Reduced column echelon form with full pivoting: each vector has a parameter of its own.
    """
    rows = np.array(columns.T)
    for i in range(len(rows)):
        flat = np.argmax(np.abs(rows[i:]).round(9))
        pivot, column = i + flat // rows.shape[1], flat % rows.shape[1]
        rows[[i, pivot]] = rows[[pivot, i]]
        rows[i] /= rows[i, column]
        for j in range(len(rows)):
            if j != i:
                rows[j] -= rows[j, column] * rows[i]
    return rows.T
