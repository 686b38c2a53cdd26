"""What the network of a hybrid does: how much of the drift is its own, and where it has learned anything."""

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import assign, quantities, values
from dtwin_jax.core.record import Cohort, Record, stack
from dtwin_jax.dynamics.hybrid import parts_of
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.simulate import solve
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.dynamics.vector import packing

POINTS = 50


class RegionWarning(UserWarning):
    """A forecast leaves what the network has seen: there it extrapolates, and nothing holds it."""


class Walk(eqx.Module):
    """What a hybrid does along a trajectory; every number has the axes (patient, point) before its own.

    Attributes:
        features: states, and inputs that the residual sees, by name.
        mechanism: rate of each state by the mechanism.
        network: what the network adds to it, for the states that it corrects.
    """

    features: dict[str, Any]
    mechanism: dict[str, Any]
    network: dict[str, Any]


def residual_share(
    model: Model, p: Any, data: Record | Cohort, *, individual: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """How much of the drift the network does over the observed part of these records.

    Args:
        model: a hybrid.
        p: its parameters, what is known of patients not filled in.
        data: a record or a cohort, of which inputs, known values and times count.
        individual: name -> (patient,), values of each patient's own (`Trained.individual`).

    Returns:
        By corrected state the sum of the network's squared rates over that of the mechanism's and the
        network's, between 0 (the mechanism alone) and 1, at 50 times from the start to the last measurement
        of each patient.
    """
    walk = _walked(model, p, data, individual)
    share = {}
    for name, added in walk.network.items():
        ours, theirs = np.nansum(np.square(added)), np.nansum(np.square(walk.mechanism[name]))
        share[name] = float(ours / (ours + theirs)) if ours > 0 else 0.0
    return share


@dataclass(frozen=True)
class ResidualSize:
    """A penalty for `train`: the mean square of the network's rates in units of `scale`, times `weight`.

    It solves each patient once more. The loss that `train` reports is without it.

    Attributes:
        model: the hybrid.
        scale: corrected state and a rate that is large for it, as pairs.
        weight: of the penalty against a patient's log-likelihood.
        points: times from the start to the last measurement at which it looks.
    """

    model: Model
    scale: tuple[tuple[str, float], ...]
    weight: float = 1.0
    points: int = 20

    def __call__(self, p: Any, record: Record) -> Any:
        """Of one patient's parameters and record."""
        walk = _walk(self.model, p, record, self.points)
        squares = [jnp.mean(jnp.square(walk.network[name] / scale)) for name, scale in self.scale]
        return self.weight * sum(squares, jnp.zeros(()))


@dataclass(frozen=True)
class Region:
    """The states and inputs that a network was trained on.

    Attributes:
        names: of the features, states and inputs.
        low: least value of each.
        high: greatest value.
        centre: mean.
        precision: inverse of the covariance of the features over their sd.
        spread: sd of each.
        distance: greatest Mahalanobis distance from the centre.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    centre: np.ndarray
    spread: np.ndarray
    precision: np.ndarray
    distance: float

    def contains(self, features: np.ndarray) -> Any:
        """Whether each row (..., feature) is inside: every feature in its range, and all of them together."""
        inside = np.all((features >= self.low) & (features <= self.high), axis=-1)
        return inside & (self._far(features) <= self.distance * (1 + 1e-9))

    def outside(
        self,
        model: Model,
        p: Any,
        planned: Record | Cohort,
        *,
        individual: Mapping[str, Any] | None = None,
        tolerated: float = 0.05,
    ) -> np.ndarray:
        """The share of each patient's planned course outside of the region, (patient,).

        Warns (`RegionWarning`) where the mean is more than `tolerated`, and names the feature that is
        outside most. A course that cannot be solved is outside.
        """
        rows = _rows(_walked(model, p, planned, individual))
        share = np.mean(~self.contains(rows), axis=1)
        if np.mean(share) > tolerated:
            beyond = np.mean(~((rows >= self.low) & (rows <= self.high)), axis=(0, 1))
            worst = int(np.argmax(beyond))
            which = (
                f"{self.names[worst]} leaves {self.low[worst]:.3g} to {self.high[worst]:.3g}"
                if beyond[worst] > 0
                else f"{', '.join(self.names)} come together as they never did"
            )
            warnings.warn(
                f"{np.mean(share):.0%} of this forecast of {model.name} is outside of what its network was "
                f"trained on ({which}): there its residual is a guess",
                RegionWarning,
                stacklevel=2,
            )
        return share

    def _far(self, features: np.ndarray) -> Any:
        scaled = (features - self.centre) / self.spread
        return np.sqrt(np.einsum("...i,ij,...j->...", scaled, self.precision, scaled))


def region_of(
    model: Model, p: Any, data: Record | Cohort, *, individual: Mapping[str, Any] | None = None
) -> Region:
    """Where the solved courses of these patients went, from the start to the last measurement of each."""
    walk = _walked(model, p, data, individual)
    rows = _rows(walk)
    rows = rows[np.all(np.isfinite(rows), axis=-1)]
    if not len(rows):
        raise ValueError(f"region_of: {model.name} cannot be solved for any of these patients")
    centre, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > 1e-12 * (1.0 + np.abs(centre)), spread, 1.0)
    scaled = (rows - centre) / spread
    # A feature that follows from the others would make the covariance singular.
    covariance = scaled.T @ scaled / len(rows) + 1e-6 * np.eye(rows.shape[1])
    region = Region(
        _names(walk), rows.min(axis=0), rows.max(axis=0), centre, spread, np.linalg.inv(covariance), 0.0
    )
    return replace(region, distance=float(region._far(rows).max()))


def _walked(model: Model, p: Any, data: Record | Cohort, individual: Mapping[str, Any] | None) -> Walk:
    cohort = data if isinstance(data, Cohort) else stack({"1": data})
    own = {name: jnp.asarray(value) for name, value in (individual or {}).items()}
    record = jax.tree.map(jnp.asarray, cohort.record)
    return jax.tree.map(np.asarray, _walks(model, p, record, own))


@functools.partial(eqx.filter_jit)
def _walks(model: Model, p: Any, record: Record, individual: dict[str, Any]) -> Walk:
    declared = quantities(p)

    def one(record: Record, own: dict[str, Any]) -> Walk:
        known = {name: value for name, value in record.known.items() if name in declared}
        return _walk(model, assign(p, own | known), record, POINTS)

    return jax.vmap(one)(record, individual)


def _walk(model: Model, p: Any, record: Record, points: int) -> Walk:
    """One patient, from the start to the last time of the record, just after what happens at each time."""
    parts, t0 = parts_of(model), jnp.asarray(record.t0, float)
    ends = [jnp.max(jnp.asarray(series.time)) for series in record.observations.values()]
    last = functools.reduce(jnp.maximum, ends, t0)
    times = t0 + (last - t0) * jnp.linspace(0.0, 1.0, points)
    if model.diffusion is not None:
        # The course without noise, by a method for equations without.
        ordinary = Solver(rtol=model.solver.rtol, atol=model.solver.atol, adjoint=model.solver.adjoint)
        model = replace(model, diffusion=None, solver=ordinary)
    solution = solve(model, p, record.inputs, times, jnp.ones(points, bool), t0=t0)
    _, unpack = packing(jax.eval_shape(model.init, p))

    def at(t: Any, vector: Any, u: Any) -> Walk:
        x = unpack(vector)
        features = values(x) | {name: getattr(u, name) for name in parts.sees}
        return Walk(features, values(parts.base.drift(t, x, u, p)), dict(parts.corrections(t, x, u, p)))

    return jax.vmap(at)(times, solution.states, solution.inputs)


def _rows(walk: Walk) -> np.ndarray:
    """Features side by side, (patient, point, feature)."""
    columns = [value.reshape(*value.shape[:2], -1) for value in walk.features.values()]
    return np.concatenate(columns, axis=-1)


def _names(walk: Walk) -> tuple[str, ...]:
    names: list[str] = []
    for name, value in walk.features.items():
        count = int(np.prod(value.shape[2:]))
        names += [name] if value.ndim == 2 else [f"{name}[{i}]" for i in range(count)]
    return tuple(names)
