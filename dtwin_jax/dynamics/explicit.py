"""Explicit Runge-Kutta steps of many patients side by side, by the tableaus of Diffrax."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Explicit:
    """A method of Diffrax whose first stage is the last one of the step before (`Tsit5`, `Dopri5`, `Bosh3`).

    States are structs of arrays whose last axis is the lane; a step size and a time are one a lane.
    """

    method: Callable[[], Any] = diffrax.Tsit5

    @property
    def order(self) -> int:
        """Of the error estimate, plus one: what the step size is the root of."""
        return self.method().order(None)

    def start(self, rate: Callable[..., Any], t: Any, y: Any) -> Any:
        """What a first step wants to know: the rate."""
        return rate(t, y)

    def step(self, rate: Callable[..., Any], t: Any, y: Any, first: Any, h: Any) -> tuple[Any, Any, Any, Any]:
        """The state after `h`, its error, the rate there and what `between` needs."""
        table = self.method().tableau
        stages, moved = [first], y
        for row, share in zip(table.a_lower, table.c, strict=True):
            moved = _sum(y, h, row, stages)
            stages.append(rate(t + float(share) * h, moved))
        # Of a stiffly accurate method the last stage is at the end.
        error = _sum(None, h, table.b_error, stages)
        return moved, error, stages[-1], stages

    def curve(self, y: Any, h: Any, stages: Any) -> list[Any]:
        """The state within the step, a polynomial of its share: coefficients from the constant up."""
        weights = weights_within(self.method)
        return [y, *(_sum(None, h, column, stages) for column in weights.T[1:])]


def _sum(y: Any, h: Any, weights: Any, stages: list[Any]) -> Any:
    """`y + h * sum of weights * stages`, or without `y`."""
    used = [(float(w), stage) for w, stage in zip(weights, stages, strict=True) if w != 0]

    def leaf(*parts: Any) -> Any:
        found = sum(w * part for (w, _), part in zip(used, parts, strict=True))
        return jnp.broadcast_to(h, jnp.shape(found)) * found

    moved = jax.tree.map(leaf, *(stage for _, stage in used))
    return moved if y is None else jax.tree.map(jnp.add, y, moved)


@functools.cache
def weights_within(method: Callable[[], Any]) -> np.ndarray:
    """Polynomials of the share of a step, (stage, coefficient from the constant up), that weigh the stages.

    Read from Diffrax's interpolation: its value for stages that are unit vectors is the weights.
    """
    solver = method()
    count = len(solver.tableau.b_sol)
    shares = np.linspace(0.0, 1.0, 5)

    @jax.jit
    def told(k: Any, end: Any) -> Any:
        local = solver.interpolation_cls(t0=0.0, t1=1.0, y0=jnp.zeros(count), y1=end, k=k)
        return jax.vmap(local.evaluate)(jnp.asarray(shares))

    k = np.eye(count)
    # As one program: compiled operation by operation, it would take most of a second.
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        values = np.asarray(told(k, k.T @ np.asarray(solver.tableau.b_sol)))
    found = np.linalg.solve(np.vander(shares, increasing=True), values).T
    found = np.where(np.abs(found) < 1e-12, 0.0, found)
    return found[:, : np.flatnonzero(np.any(found, axis=0))[-1] + 1]
