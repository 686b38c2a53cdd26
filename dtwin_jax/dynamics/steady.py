"""States of equal doses at equal intervals that have always been given, and moments that set a state anew.

A steady state is a fixed point of one interval, found by Newton's method: in one step where kinetics are
linear. Its derivatives are those of the equation that it solves, not of the steps that led there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.rules import NOTHING, RESET, STEADY, Restarts
from dtwin_jax.core.signal import AbstractSignal, Doses
from dtwin_jax.dynamics.dosing import Pieces, cross_event
from dtwin_jax.dynamics.vector import packing

# Intervals that are lived through before Newton's first step, where kinetics may not be linear; steps of his.
_WARM, _NEWTON = 3, 40
# The last of them as a share of the largest state: by the flow, by a solver in its relative tolerances. What
# is left is of second order in it, or is noise.
_BY_FLOW, _BY_SOLVER = 1e-10, 100.0

# (model, p) -> (dt, x, u) -> the state after `dt` under inputs that do not change.
Moving = Callable[[Any, Any], Callable[[Any, Any, Any], Any]]


def has_restarts(inputs: Any) -> bool:
    """Whether doses set the state anew."""
    rules = [signal.rules for signal in vars(inputs).values() if isinstance(signal, Doses)]
    return any(each is not None and each.set_anew for each in rules)


def with_restarts(model: Any, p: Any, inputs: Any, pieces: Pieces, moving: Moving) -> Pieces:
    """`pieces` with what sets the state anew at their ends.

    Args:
        model: the model.
        p: its parameters.
        inputs: that act on it.
        pieces: where the solve is cut.
        moving: how the state moves under constant inputs.
    """
    if not has_restarts(inputs):
        return pieces
    restarts = {
        name: signal.rules.restarts
        for name, signal in vars(inputs).items()
        if isinstance(signal, Doses) and signal.rules is not None and signal.rules.restarts.time.shape[0]
    }
    rows, which = _together(list(restarts.values()))
    state, found = _states(model, p, _without_doses(inputs), tuple(restarts), (rows, which), moving)
    time, kind, until = rows.time, rows.kind, rows.until
    event = jnp.searchsorted(pieces.event, time)
    # What a later row of the same moment clears counts for nothing.
    counts = (kind != NOTHING) & (until > time)
    clears = counts & ((kind == RESET) | (kind == STEADY))
    ends = pieces.bounds.shape[0] - 1

    def any_at(mask: Any) -> Any:
        return jnp.zeros(ends, int).at[event].add(mask.astype(int)) > 0

    def placed(leaf: Any) -> Any:
        mask = counts.reshape(counts.shape + (1,) * (leaf.ndim - 1))
        return jnp.zeros((ends, *leaf.shape[1:]), leaf.dtype).at[event].add(jnp.where(mask, leaf, 0.0))

    restart = any_at(clears), jax.tree.map(placed, state), any_at(counts & ~found)
    return eqx.tree_at(lambda s: s.restart, pieces, restart, is_leaf=lambda leaf: leaf is None)


def restarted(x: Any, restart: Any) -> Any:
    """The state as it is set anew at the end of a piece."""
    if restart is None:
        return x
    clear, added, _ = restart
    return jax.tree.map(lambda leaf, more: jnp.where(clear, more, leaf + more), x, added)


def lost_in(restart: Any) -> Any:
    """(piece,) whether a steady state that was not found came before."""
    *_, lost = restart
    return jnp.concatenate([jnp.zeros(1, bool), jnp.cumsum(lost.astype(int))[:-1] > 0])


def _together(restarts: list[Restarts]) -> tuple[Restarts, Any]:
    """The restarts of several inputs, and which of these each is of: a solve is compiled once for all."""
    joined = {
        name: jnp.concatenate([jnp.asarray(getattr(each, name)) for each in restarts])
        for name in vars(restarts[0])
        if name != "overlap"
    }
    which = jnp.concatenate([jnp.full(each.time.shape, i) for i, each in enumerate(restarts)])
    return replace_fields(restarts[0], joined), which


def _without_doses(inputs: Any) -> Any:
    none = {name: 0.0 for name, signal in vars(inputs).items() if isinstance(signal, Doses)}
    return replace_fields(inputs, none)


def _states(
    model: Any, p: Any, inputs: Any, names: tuple[str, ...], restarts: tuple[Restarts, Any], moving: Moving
) -> tuple[Any, Any]:
    """The state that each restart brings, (restart,) on every leaf; and whether it was found."""
    start = jax.tree.map(lambda x: jnp.asarray(x, float), model.init(p))
    pack, unpack = packing(jax.eval_shape(lambda: start))
    interval = _Interval(model, names, pack, unpack, moving)

    def one(row: Restarts, which: Any) -> tuple[Any, Any]:
        held = {n: s(row.time) for n, s in vars(inputs).items() if isinstance(s, AbstractSignal)}
        u = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), replace_fields(inputs, held))
        before, found = _steady(interval, (p, u, row, which, pack(start)))
        return unpack(before), found

    return jax.vmap(one)(*restarts)


@dataclass(frozen=True)
class _Interval:
    """One interval of a steady state, a function of `(p, u, row, which, start)` and the state before a dose.

    Of a row that is no steady state it is one in which nothing happens to `start`.

    Attributes:
        model: the model.
        names: inputs, of which `which` counts.
        pack: state to vector.
        unpack: vector to state.
        moving: how the state moves.
    """

    model: Any
    names: tuple[str, ...]
    pack: Any
    unpack: Any
    moving: Moving

    def residual(self, args: Any, x: Any, after: Any) -> Any:
        """What is 0 in a steady state: the change over an interval, at whose end the state is `after`; the
        drift under a constant rate."""
        p, u, row, which, start = args
        constant = replace_fields(u, self._into(which, _rate(row)))
        drift = self.pack(self.model.drift(row.time, self.unpack(x), constant, p))
        change = jnp.where(row.interval > 0, after - x, drift)
        return jnp.where(row.kind >= STEADY, change, start - x)

    def _into(self, which: Any, value: Any) -> dict[str, Any]:
        """`value` for the input of the row, and nothing for the others."""
        return {name: jnp.where(which == i, value, 0.0) for i, name in enumerate(self.names)}

    def after(self, args: Any, x: Any, dt: Any) -> Any:
        """The state `dt` after a dose that found the state `x`."""
        p, u, row, which, _ = args
        move, rate, infused = self.moving(self.model, p), _rate(row), row.duration > 0
        span = _span(row)
        whole = jax.lax.stop_gradient(jnp.floor(row.duration / span))
        bolus = self._into(which, jnp.where(infused, 0.0, row.amount))
        state = cross_event(self.model, row.time, self.unpack(x), u, bolus, p)
        first = jnp.where(infused, jnp.minimum(row.duration - whole * span, dt), 0.0)

        def part(state: Any, part: Any) -> Any:
            long, running = part
            return move(long, state, replace_fields(u, self._into(which, rate * running))), None

        parts = jnp.stack([first, dt - first]), jnp.stack([whole + 1.0, whole])
        return self.pack(jax.lax.scan(part, state, parts)[0])


def _rate(row: Restarts) -> Any:
    infused = row.duration > 0
    return jnp.where(infused, row.amount / jnp.where(infused, row.duration, 1.0), 0.0)


def _span(row: Restarts) -> Any:
    return jnp.where(row.interval > 0, row.interval, 1.0)


def _steady(interval: _Interval, args: Any) -> tuple[Any, Any]:
    """The state at a restart, a lag before a dose that finds the steady state.

    And whether this was found: else the state is the start, so that no NaN gets about.
    """
    model, fixed = interval.model, jax.lax.stop_gradient(args)
    _, _, row, _, start = fixed
    # The search is differentiated by the state, by Newton, in forward mode.
    solver = replace(model.solver, adjoint=diffrax.ForwardMode())
    forward = replace(interval, model=replace(model, solver=solver))
    by_flow = model.flow is not None
    near, warm = (_BY_FLOW, 0) if by_flow else (_BY_SOLVER * model.solver.rtol, _WARM)

    def slope_and_change(x: Any) -> Any:
        change = lambda x: (forward.residual(fixed, x, forward.after(fixed, x, _span(row))),) * 2  # noqa: E731
        return jax.jacfwd(change, has_aux=True)(x)

    def step(carry: Any) -> Any:
        x, _, _, count = carry
        slope, change = slope_and_change(x)
        # Under a constant rate there are no intervals to live through: the residual is a slope.
        lives = (row.interval > 0) & (count < warm)
        move = jnp.where(lives, change, -jnp.linalg.solve(slope, change))
        far = jnp.max(jnp.abs(move)) - near * jnp.max(jnp.abs(x + move))
        return x + move, slope, jnp.where(lives, jnp.inf, far), count + 1

    def going(carry: Any) -> Any:
        *_, far, count = carry
        return (far > 0) & (count < _NEWTON)

    nowhere = jnp.zeros((start.shape[0],) * 2, start.dtype)
    x, slope, far, _ = jax.lax.while_loop(going, step, (start, nowhere, jnp.asarray(jnp.inf), 0))
    found = far <= 0
    x = jax.lax.stop_gradient(jnp.where(found, x, start))
    slope = jax.lax.stop_gradient(jnp.where(found, slope, jnp.eye(start.shape[0])))

    # At the solution the first two steps go nowhere, but move with the arguments: derivatives to second
    # order. The third leads to the restart; one program is compiled for the three.
    moving = args[2]
    moves = (moving.kind >= STEADY) & (moving.interval > 0)
    ends = jnp.stack([_span(moving), _span(moving), jnp.where(moves, moving.interval - moving.lag, 0.0)])

    def moved(x: Any, part: Any) -> Any:
        dt, last = part
        after = interval.after(args, x, dt)
        nearer = x - jnp.linalg.solve(slope, interval.residual(args, x, after))
        return jnp.where(last, jnp.where(moves, after, x), nearer), None

    x, _ = jax.lax.scan(moved, x, (ends, jnp.arange(3) == 2))
    finite = jnp.all(jnp.isfinite(x))
    return jnp.where(found & finite, x, start), found & finite
