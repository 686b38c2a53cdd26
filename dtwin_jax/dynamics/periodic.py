"""The periodic steady state of a driven or beating model, and its derivatives.

The state after many periods, as the fixed point of the map over one period. What the map conserves (a
total volume of blood) makes `I - J` singular, so nothing here solves with it: powers of the map's
derivative are summed by doubling, which has the same limit as running period after period, and keeps the
conserved amounts of the initial state.
"""

import enum
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from dtwin_jax.core.quantity import assign, values
from dtwin_jax.dynamics.simulate import solve
from dtwin_jax.dynamics.started import Start, started
from dtwin_jax.dynamics.vector import packing

# 2^10 periods: of a part that loses 1 % a period, 3e-5 is left, and Newton's next step squares it; for
# derivatives 2^12 leave 1e-18.
_DOUBLINGS = 12


class PeriodicOutcome(enum.IntEnum):
    """How the search for a periodic state ended."""

    FOUND = 0
    NOT_CONVERGED = 1
    FAILED = 2


class Periodic(eqx.Module):
    """What `periodic` returns.

    Attributes:
        state: the model's State at the start of a period.
        residual: largest change of a state over one period, in units of the solver's tolerance of it.
        outcome: a `PeriodicOutcome` code.
        iterations: Newton steps taken.
    """

    state: Any
    residual: Any
    outcome: Any
    iterations: Any


@dataclass(frozen=True)
class Search:
    """How a periodic state is sought.

    Attributes:
        settle: periods that are run before the first Newton step.
        iterations: Newton steps allowed.
        tolerance: change over a period that counts as none, in units of the solver's tolerance. The state
            that is returned is a Newton step further.
        turns: states that count cycles, by name: after a period they are taken to be where they were.
    """

    settle: int = 2
    iterations: int = 30
    tolerance: float = 10.0
    turns: tuple[str, ...] = ()


_SEARCH = Search()


def periodic(
    model: Any,
    p: Any,
    inputs: Any,
    period: Any,
    *,
    t0: Any = 0.0,
    state: Any = None,
    search: Search = _SEARCH,
) -> Periodic:
    """The state to which `model` returns after every `period`.

    Under `jit` and `vmap`; differentiable in `p`, `inputs`, `period`, `t0` and, where something is
    conserved, in the initial state, forward and in reverse. Derivatives are those of the fixed point: none
    goes through the periods that were run. Only first derivatives.

    Args:
        model: an ODE `Model`.
        p: its parameters.
        inputs: its inputs over one period from `t0`.
        period: time from a state to the same state.
        t0: time at the start of the period.
        state: initial state; by default `model.init(p)`.
        search: how it is sought.
    """
    if model.diffusion is not None:
        raise ValueError(
            f"{model.name} is an SDE: it has no periodic state; use replace(model, diffusion=None)"
        )
    first = model.init(p) if state is None else state
    pack, unpack = packing(jax.eval_shape(lambda: first))
    leaves, structure = jax.tree.flatten((p, inputs, period, t0))
    over = _OnePeriod(started(model.differentiated("forward")), structure, pack, unpack, search.turns)
    numbers = [jnp.asarray(leaf, dtype=float) for leaf in leaves]
    found, residual, taken = _fixed_point(over, search)(pack(first), *numbers)
    near = jnp.where(residual <= search.tolerance, PeriodicOutcome.FOUND, PeriodicOutcome.NOT_CONVERGED)
    finite = jnp.all(jnp.isfinite(found)) & jnp.isfinite(residual)
    outcome = jnp.where(finite, near, int(PeriodicOutcome.FAILED))
    return Periodic(unpack(found), residual, outcome, taken.astype(int))


@dataclass(frozen=True)
class _OnePeriod:
    """The map over one period: (state, numbers of the setting) -> state, as vectors."""

    model: Any
    structure: Any
    pack: Any
    unpack: Any
    turns: tuple[str, ...]

    def __call__(self, vector: Any, *numbers: Any) -> Any:
        p, inputs, period, t0 = jax.tree.unflatten(self.structure, numbers)
        start = self.unpack(vector)
        # Just before an event at the end, which belongs to the next period.
        end = solve(self.model, Start(p, start), inputs, (t0 + period)[None], jnp.zeros(1, bool), t0=t0)
        reached = self.unpack(end.states[0])
        return self.pack(assign(reached, {name: values(start)[name] for name in self.turns}))


def _fixed_point(over: _OnePeriod, search: Search) -> Any:
    """(initial state, numbers) -> fixed point, residual, Newton steps, with the derivative of the former."""

    @jax.custom_jvp
    def found(first: Any, *numbers: Any) -> tuple:
        return _newton(over, first, numbers, search)

    def moved(primals: tuple, tangents: tuple) -> tuple:
        result = found(*primals)
        change = _move(over, result[0], primals[1:], tangents)
        return result, (change, jnp.zeros_like(result[1]), jnp.zeros_like(result[2]))

    found.defjvp(moved, symbolic_zeros=True)
    return found


def _newton(over: _OnePeriod, first: Any, numbers: tuple, search: Search) -> tuple:
    solver = over.model.solver
    settled = jax.lax.fori_loop(0, search.settle, lambda _, x: over(x, *numbers), first)

    def going(carry: tuple) -> Any:
        _, residual, taken = carry
        return (taken < search.iterations) & ~(residual <= search.tolerance)

    def step(carry: tuple) -> tuple:
        x, before, taken = carry
        reached, jacobian = _value_and_jacobian(lambda x: over(x, *numbers), x)
        change = reached - x
        residual = jnp.max(jnp.abs(change) / (jnp.asarray(solver.atol) + solver.rtol * jnp.abs(x)))
        total, _ = _sum_of_powers(jacobian)
        proposal = x + total @ change
        # Where a step of Newton made it worse, or leads nowhere, the body itself leads on.
        trusted = jnp.all(jnp.isfinite(proposal)) & (residual < before)
        return jnp.where(trusted, proposal, reached), residual, taken + 1

    return jax.lax.while_loop(going, step, (settled, jnp.asarray(jnp.inf), jnp.asarray(0.0)))


def _move(over: _OnePeriod, x: Any, numbers: tuple, tangents: tuple) -> Any:
    """The tangent of the fixed point; linear in the tangents, so that it can be transposed."""
    first, *others = tangents
    moving = [i for i, tangent in enumerate(others) if not isinstance(tangent, SymbolicZero)]

    def reached(x: Any, chosen: list) -> Any:
        new = dict(zip(moving, chosen, strict=True))
        return over(x, *(new.get(i, number) for i, number in enumerate(numbers)))

    jacobian, columns = jax.jacfwd(reached, argnums=(0, 1))(x, [numbers[i] for i in moving])
    total, power = _sum_of_powers(jacobian)
    pushed = [jnp.tensordot(c, others[i], jnp.ndim(others[i])) for i, c in zip(moving, columns, strict=True)]
    change = total @ sum(pushed, jnp.zeros_like(x))
    return change if isinstance(first, SymbolicZero) else change + power @ first


def _value_and_jacobian(function: Any, x: Any) -> tuple:
    push = jax.vmap(lambda v: jax.jvp(function, (x,), (v,)), out_axes=(None, -1))
    return push(jnp.eye(x.shape[0], dtype=x.dtype))


def _sum_of_powers(matrix: Any) -> tuple:
    """`I + J + ... + J^(2^m - 1)`, and `J^(2^m)`."""
    total, power = jnp.eye(matrix.shape[0], dtype=matrix.dtype), matrix
    for _ in range(_DOUBLINGS):
        total = total + power @ total
        power = power @ power
    return total, power
