"""A population's likelihood at many draws of its numbers, in blocks, each draw with its own peaks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import PENALTY
from dtwin_jax.core.record import Record
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.gauss_newton import climbed
from dtwin_jax.inference.marginal import Marginal
from dtwin_jax.inference.nodes import Nodes
from dtwin_jax.inference.objective import LEAST, Objective

# Draws times patients that are solved at once.
_ROWS = 2048
# What the last step towards a peak may promise, in nats; the likelihood takes one more step of Newton's.
_CLOSE, _STEPS = 1e-8, 100


def scanned(problem: Objective, psi: np.ndarray) -> np.ndarray:
    """-2 log likelihood at `psi` (draw, number): (draw,), infinite where it is not known.

    The peaks of the effects are sought anew at every draw, from those that `problem` has.
    """
    count, patients = len(psi), len(problem.eta)
    block = min(count, max(_ROWS // patients, 1))
    total = np.empty(count)
    for start in range(0, count, block):
        # The last block is filled up, so that it needs no program of its own.
        rows = np.minimum(np.arange(start, start + block), count - 1)
        total[rows] = _Block(problem, psi[rows]).totals()
    return total


class _Block:
    """Some draws of the numbers, all patients under each: what is climbed is (draw and patient,)."""

    def __init__(self, problem: Objective, psi: np.ndarray):
        self.problem, self.psi = problem, psi
        root = jax.vmap(problem.marginal.effects.root)(jnp.asarray(psi))
        self.sd = np.sqrt(np.sum(np.asarray(root) ** 2, axis=2))  # (draw, effect)
        diagonal = np.asarray(jnp.diagonal(root, axis1=1, axis2=2))
        self.usable = np.all((diagonal > LEAST) & (diagonal < 1.0 / LEAST), axis=1)
        self.eta = np.tile(problem.eta, (len(psi), 1))

    def totals(self) -> np.ndarray:
        """-2 log likelihood (draw,)."""
        problem, shape = self.problem, (len(self.psi), *self.problem.eta.shape)
        arrived = np.ones(len(self.eta), bool)
        if problem.marginal.by != "fo":
            rows = np.arange(len(self.eta))
            best = climbed(self, rows, self.eta, close=_CLOSE, max_steps=_STEPS)
            lost = np.flatnonzero(~best.arrived)
            if len(lost):
                again = climbed(self, lost, np.zeros_like(best.u[lost]), close=_CLOSE, max_steps=_STEPS)
                best.u[lost[again.arrived]] = again.u[again.arrived]
                best.arrived[lost] |= again.arrived
            arrived = best.arrived
            self.eta = np.where(np.isfinite(best.u), best.u, 0.0)
        eta = self.eta.reshape(shape)
        each = _values(problem.marginal, problem.base, problem.record, self.psi, eta, problem.scattered)
        arrived = arrived.reshape(len(self.psi), problem.classes, problem.patients).all(axis=1)
        each = np.where(arrived, np.asarray(each), np.inf)
        known = np.all(np.isfinite(each) & (each < -PENALTY), axis=1) & self.usable
        return np.where(known, np.sum(np.where(known[:, None], each, 0.0), axis=1), np.inf)

    def slopes(self, owner: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
        """As of `Posteriors`: of all together, of whom the others stay where they are."""
        problem, whole = self.problem, self.eta.copy()
        whole[owner] = u
        shape = (len(self.psi), *problem.eta.shape)
        found = _joint(problem.marginal, problem.base, problem.record, self.psi, whole.reshape(shape))
        flat = (np.asarray(part) for part in found)
        value, slope, curvature, explained = (
            np.array(part.reshape(-1, *part.shape[2:])[owner]) for part in flat
        )
        lost = ~np.isfinite(value) | ~np.all(np.isfinite(curvature), axis=(1, 2))
        value[lost], slope[lost], curvature[lost], explained[lost] = -np.inf, 0.0, np.eye(u.shape[1]), False
        return value, slope, curvature, explained

    def scales(self) -> np.ndarray:
        """The largest standard deviation of each effect."""
        return np.max(self.sd, axis=0)


@functools.partial(jax.jit, static_argnames=("marginal",))
@standard_promotion
def _joint(marginal: Marginal, base: Any, record: Record, psi: Any, eta: Any) -> tuple:
    return jax.vmap(lambda psi, eta: marginal.joint(base, record, psi, eta))(psi, eta)


@functools.partial(jax.jit, static_argnames=("marginal",))
@standard_promotion
def _values(
    marginal: Marginal, base: Any, record: Record, psi: Any, eta: Any, scattered: Nodes | None
) -> Any:
    return jax.vmap(lambda psi, eta: marginal.minus_two(base, record, psi, eta, scattered))(psi, eta)
