"""Derivatives of a loop over patients in both modes, by sensitivities that are solved along with the states.

A `while_loop` has no reverse mode. What one patient depends on are few numbers, though, and his states depend
on those of nobody else. So one solve with all these directions beside it gives the Jacobian of every patient;
what it does to tangents is a sum of products, and that JAX turns round.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp

#: Up to so many numbers a patient, derivatives are taken in both modes; by more, in forward mode only.
MOST_DIRECTIONS = 32

Solve = Callable[[list[Any], Any], tuple[Any, Any]]


def with_sensitivities(solve: Solve, shared: tuple[bool, ...], reads: Callable[[list[Any]], Any]) -> Solve:
    """`solve`, which JAX can differentiate forward only, differentiable in both modes.

    A derivative costs a solve with one direction beside it for each number that is moved, whichever the mode
    and however many tangents or cotangents there are. By more than `MOST_DIRECTIONS` numbers it is forward
    mode of `solve` itself, and reverse mode raises a `RuntimeError`.

    Args:
        solve: (leaves, waiting) -> states, whose leaves are (patient, ...), and what has no derivative. The
            states of a patient depend on his own rows of the leaves only.
        shared: which of the leaves all patients have in common; others are (patient, ...).
        reads: (leaves) -> for each, whether states depend on it at all; where in doubt, that they do.
    """
    solved = jax.custom_jvp(solve)

    def rule(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        (leaves, waiting), (moves, _) = primals, tangents
        live = [i for i, read in enumerate(reads(leaves)) if read and _moves(moves[i])]
        sizes = [math.prod(_own(leaves[i], shared[i])) for i in live]

        def along(*directions: Any) -> tuple[Any, Any, Any]:
            some = lambda chosen: solve(_placed(leaves, live, chosen), waiting)  # noqa: E731
            return jax.jvp(some, ([leaves[i] for i in live],), (list(directions),), has_aux=True)

        if not live:
            states, other = solve(leaves, waiting)
            moved = jax.tree.map(jnp.zeros_like, states)
        elif sum(sizes) > MOST_DIRECTIONS:
            states, moved, other = along(*(moves[i] for i in live))
            moved = jax.tree.map(lambda leaf: _forward_only(leaf, sum(sizes)), moved)
        else:
            parts = [(leaves[i], shared[i]) for i in live]
            states, jacobian, other = jax.vmap(along, out_axes=(None, 0, None))(*_units(parts, sizes))
            count = jax.tree.leaves(states)[0].shape[0]
            rows = [_by_patient(moves[i], shared[i], count) for i in live]
            moved = jax.tree.map(lambda j: _product(j, jnp.concatenate(rows)), jacobian)
        return (states, other), (moved, jax.tree.map(_no_tangent, other))

    solved.defjvp(rule, symbolic_zeros=True)
    return solved


def differentiated_as(function: Callable[[list[Any]], Any], other: Callable[[list[Any]], Any]) -> Any:
    """`function` of leaves, with the derivatives of `other`, which finds the same in another way."""
    solved = jax.custom_jvp(function)

    def rule(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        (leaves,), (moves,) = primals, tangents
        live = [i for i, move in enumerate(moves) if _moves(move)]
        return jax.jvp(
            lambda chosen: other(_placed(leaves, live, chosen)),
            ([leaves[i] for i in live],),
            ([moves[i] for i in live],),
        )

    solved.defjvp(rule, symbolic_zeros=True)
    return solved


def _moves(tangent: Any) -> bool:
    """Whether a tangent is of a real number and not zero for certain."""
    zero = isinstance(tangent, jax.custom_derivatives.SymbolicZero)
    return not zero and jnp.issubdtype(tangent.dtype, jnp.floating)


def _own(leaf: Any, alone: bool) -> tuple[int, ...]:
    """The shape of a leaf for one patient."""
    return jnp.shape(leaf) if alone else jnp.shape(leaf)[1:]


def _placed(leaves: list[Any], places: list[int], chosen: list[Any]) -> list[Any]:
    found = dict(zip(places, chosen, strict=True))
    return [found.get(i, leaf) for i, leaf in enumerate(leaves)]


def _units(parts: list[tuple[Any, bool]], sizes: list[int]) -> list[Any]:
    """For every leaf (direction, *its shape): each number of a patient by itself, of all patients at once."""
    found, start, total = [], 0, sum(sizes)
    for (leaf, alone), size in zip(parts, sizes, strict=True):
        unit = jnp.eye(total, size, -start, dtype=leaf.dtype).reshape(total, *_own(leaf, alone))
        whole = (total, *jnp.shape(leaf))
        found.append(jnp.broadcast_to(unit if alone else unit[:, None], whole))
        start += size
    return found


def _by_patient(tangent: Any, alone: bool, count: int) -> Any:
    """A tangent as (number, patient)."""
    row = tangent.reshape(1, -1) if alone else tangent.reshape(count, -1)
    return jnp.broadcast_to(row, (count, row.shape[1])).T


def _product(jacobian: Any, tangent: Any) -> Any:
    """Sum over directions of (direction, patient, ...) times (direction, patient)."""
    rows = tangent.reshape(*tangent.shape, *(1,) * (jacobian.ndim - 2))
    return sum(j * row.astype(j.dtype) for j, row in zip(jacobian, rows, strict=True))


def _forward_only(tangent: Any, count: int) -> Any:
    message = (
        f"simulate_cohort: reverse-mode derivatives by {count} numbers a patient; in lanes there are those "
        f"by {MOST_DIRECTIONS} at most. Take jax.grad of `simulate` under jax.vmap, or jax.jvp"
    )
    return eqxi.nondifferentiable_backward(tangent, msg=message)


def _no_tangent(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, jax.dtypes.float0)
