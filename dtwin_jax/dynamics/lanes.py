"""One loop that solves many patients side by side, each with its own step size, events and times.

A lane holds one patient. In a turn every lane takes one step, tells the states at the wanted times that lie
in it; every few turns, lanes at an event are taken across it, and idle ones are given the next patients.
So nobody waits for the slowest of a block, and what is worked on fits the cache. Arrays have the lane as
their last axis and every state is its own array, so that a compiler can fuse a stage of all lanes.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.signal import AbstractSignal, Doses, Sampled
from dtwin_jax.dynamics.dosing import cross_event
from dtwin_jax.dynamics.plan import Plan, lines
from dtwin_jax.dynamics.solver import Outcome
from dtwin_jax.dynamics.tolerance import norm, scale_of
from dtwin_jax.dynamics.vector import packing

# Turns after which what they told is written, and idle lanes are filled.
_BURST = 8
# Wanted times that are told at once: this part of those between two events, and at most so many.
_TOLD, _MOST = 1 / 16, 16
# How much a step may shrink and grow, and its share of what the error would allow: as in Diffrax.
_SHRINK, _GROW, _SAFETY = 0.2, 10.0, 0.9
# A step this much smaller than the times it leads to no longer moves them.
_STUCK = 1e-14


class Lanes(eqx.Module):
    """Where the lanes are.

    Attributes:
        patient: row of the queue.
        idle: finished, or never filled.
        piece: of the patient's plan.
        cursor: the next wanted time.
        t: time.
        y: state.
        first: what the method carries from one step to the next.
        h: the step that the error allows.
        stop: end of the piece.
        since: its start.
        base: inputs at its start.
        slope: of the sampled ones.
        p: parameters.
        steps: taken so far.
        taken: those since the last event.
        outcome: an `Outcome`.
    """

    patient: Any
    idle: Any
    piece: Any
    cursor: Any
    t: Any
    y: Any
    first: Any
    h: Any
    stop: Any
    since: Any
    base: dict[str, Any]
    slope: dict[str, Any]
    p: Any
    steps: Any
    taken: Any
    outcome: Any


@dataclass(frozen=True)
class _Queue:
    """The patients to be solved, and how: leading axis patient, tables flattened.

    A table of one axis has one layout; of two the compiler may copy the whole of it in every turn.
    """

    model: Any
    method: Any
    p: Any
    inputs: Any
    plan: Plan
    waiting: Any

    @property
    def rows(self) -> int:
        return self.plan.start.shape[0]

    @property
    def pieces(self) -> int:
        return self.plan.stop.shape[0] // self.rows

    @property
    def wanted(self) -> int:
        return self.plan.time.shape[0] // self.rows

    @property
    def told(self) -> int:
        """Wanted times that are told at once."""
        pieces = self.pieces if self.jumps else 1
        return min(max(round(self.wanted / pieces * _TOLD), 1), _MOST)

    @property
    def jumps(self) -> bool:
        """Whether an input jumps at the end of some piece."""
        signals = [signal for signal in vars(self.inputs).values() if isinstance(signal, AbstractSignal)]
        return not all(isinstance(signal, Sampled) for signal in signals)

    @property
    def boluses(self) -> bool:
        """Whether the state jumps too."""
        return any(isinstance(signal, Doses) for signal in vars(self.inputs).values())


def solve_lanes(
    model: Any, method: Any, p: Any, inputs: Any, plan: Plan, waiting: Any, width: int
) -> tuple[Any, Any, Any]:
    """Solve the first `waiting` rows of a queue.

    Args:
        model: the Model, without a diffusion.
        method: an `Explicit` or a `Rosenbrock`.
        p: parameters, every leaf with a leading (row,) axis.
        inputs: inputs likewise, of which only kinds and names count: times and values are in the plan.
        plan: their plans, likewise.
        waiting: how many rows are patients; others are padding.
        width: lanes.

    Returns:
        States at the wanted times of the plan, (row, n, ...) by leaf, NaN from a failure on; outcomes and
        steps, (row,).
    """
    rows, wanted = plan.time.shape
    queue = _Queue(model, method, p, inputs, jax.tree.map(jnp.ravel, plan), waiting)
    lanes = _empty(queue, min(width, rows))
    one = jax.tree.map(lambda y: y[..., 0], lanes.y)
    pack, unpack = packing(one)

    def burst(carry: tuple) -> tuple:
        lanes, following, *results = carry
        none = (following >= waiting) | ~jnp.any(lanes.idle)
        fill = functools.partial(_filled, queue)
        lanes, following = jax.lax.cond(none, lambda *same: same, fill, lanes, following)
        lanes, ((at, columns), *ended) = jax.lax.scan(turn, lanes, length=_BURST)
        if queue.jumps:
            lanes = _settled(queue, lanes)
        # Written here and not in every turn: a write into a large array wakes all threads.
        states, *others = results
        # Without the promise that rows differ, a derivative looks in all of the array for who wrote last.
        states = states.at[_apart(at, rows * wanted)].set(
            jnp.stack(columns, axis=-1), mode="drop", unique_indices=True
        )
        put = lambda old, new: old.at[new[0]].set(new[1], mode="drop")  # noqa: E731
        return lanes, following, states, *map(put, others, ended)

    def turn(lanes: Lanes, _: None) -> tuple:
        lanes, states = _stepped(queue, lanes)
        if not queue.jumps:
            # Only the lines change that inputs follow; of a piece of no length the next turn makes an end.
            here = _at_end(queue, lanes).astype(int)
            lanes = _placed(queue, replace(lanes, piece=lanes.piece + here))
        ended = (lanes.cursor >= wanted) | (lanes.outcome != Outcome.SOLVED)
        row = jnp.where(ended & ~lanes.idle, lanes.patient, rows)
        told = states, (row, lanes.outcome), (row, lanes.steps)
        return replace(lanes, idle=lanes.idle | ended), told

    states = jnp.full((rows * wanted, pack(one).shape[0]), jnp.nan)
    blank = jnp.zeros(rows, int)
    carry = (lanes, jnp.asarray(0), states, blank, blank)
    unfinished = lambda c: jnp.any(~c[0].idle) | (c[1] < waiting)  # noqa: E731
    *_, states, outcomes, steps = jax.lax.while_loop(unfinished, burst, carry)
    return jax.vmap(jax.vmap(unpack))(states.reshape(rows, wanted, -1)), outcomes, steps


def _apart(rows: Any, end: int) -> Any:
    """Rows to write; those from `end` on, which are dropped, all different."""
    return jnp.where(rows < end, rows, end + jnp.arange(rows.size).reshape(rows.shape))


def _empty(queue: _Queue, width: int) -> Lanes:
    """Lanes that hold nobody."""
    zero, none = jnp.zeros(width), jnp.zeros(width, int)
    p = _last(jax.tree.map(lambda leaf: leaf[:width], queue.p))
    y = _initial(queue, p)
    base, slope = (dict.fromkeys(part, zero) for part in (queue.plan.base, queue.plan.slope))
    lanes = Lanes(
        patient=none,
        idle=jnp.ones(width, bool),
        piece=none,
        cursor=none,
        t=zero,
        y=y,
        first=y,
        h=zero,
        stop=zero,
        since=zero,
        base=base,
        slope=slope,
        p=p,
        steps=none,
        taken=none,
        outcome=none,
    )
    return replace(lanes, first=queue.method.start(_rate(queue, lanes), zero, y))


def _filled(queue: _Queue, lanes: Lanes, following: Any) -> tuple[Lanes, Any]:
    """Idle lanes given the next patients, the first of which is `following`."""
    row = following + jnp.cumsum(lanes.idle) - 1
    new = lanes.idle & (row < queue.waiting)
    patient = jnp.where(new, row, lanes.patient)
    p = _last(jax.tree.map(lambda leaf: leaf[patient], queue.p))
    none = jnp.zeros_like(patient)
    start = replace(
        lanes,
        patient=patient,
        idle=lanes.idle & ~new,
        piece=none,
        cursor=none,
        t=queue.plan.start[patient],
        y=_initial(queue, p),
        p=p,
        steps=none,
        taken=none,
        outcome=none,
    )
    start = _placed(queue, start)
    first = queue.method.start(_rate(queue, start), start.t, start.y)
    start = replace(start, first=first, h=_guess(queue, jax.lax.stop_gradient(start)))
    kept = _chosen(new, start, lanes)
    return replace(kept, idle=start.idle), following + jnp.sum(new)


def _stepped(queue: _Queue, lanes: Lanes) -> tuple[Lanes, tuple[Any, Any]]:
    """Lanes after a step that is kept where its error is small; rows and states of wanted times in it."""
    solver, method = queue.model.solver, queue.method
    left = lanes.stop - lanes.t
    ends = lanes.h >= left
    h = jnp.where(ends, left, lanes.h)
    t = jnp.where(ends, lanes.stop, lanes.t + h)
    y, error, first, stages = method.step(_rate(queue, lanes), lanes.t, lanes.y, lanes.first, h)
    # Step sizes are no part of what is differentiated; the ends of pieces are.
    size = norm(*jax.lax.stop_gradient((error, scale_of(solver, lanes.y, y))))
    finite = jnp.isfinite(size)
    good = finite & (size <= 1.0) & ~lanes.idle
    cursor, at, share, more = _due(queue, lanes, jnp.where(good, t, -jnp.inf), h)
    told = functools.partial(_told, method)
    # A compiler that fuses would work out the stages again for every number told; not across a branch.
    states = jax.lax.cond(jnp.any(cursor > lanes.cursor), told, _untold, lanes.y, h, stages, share)
    # With more wanted times in it than are told at once, the same step is taken again.
    accepted = good & ~more
    # A state that overflowed says nothing but that the step was too long. (exp and log are vectorised, a
    # power is not.)
    factor = _SAFETY * jnp.exp(jnp.log(jnp.maximum(size, 1e-10)) / -method.order)
    factor = jnp.where(finite, jnp.clip(factor, _SHRINK, _GROW), _SHRINK)
    # A step that was cut short at an event says little of the next.
    grown = jnp.where(ends, jnp.maximum(h * factor, lanes.h), h * factor)
    grown = jax.lax.stop_gradient(jnp.where(good, grown, h * jnp.minimum(factor, 1.0)))
    if solver.longest is not None:
        grown = jnp.minimum(grown, solver.longest)
    stuck = ~good & (grown < _STUCK * jnp.maximum(jnp.abs(lanes.t), jnp.abs(lanes.stop)))
    counted = ~lanes.idle & ~(good & more) & (left > 0)
    one = counted.astype(int)
    taken = lanes.taken + one
    outcome = jnp.where(taken >= solver.max_steps, int(Outcome.MAX_STEPS), lanes.outcome)
    outcome = jnp.where(stuck, int(Outcome.NOT_FINITE), outcome)
    after = replace(
        lanes,
        cursor=cursor,
        t=jnp.where(accepted, t, lanes.t),
        y=_chosen(accepted, y, lanes.y),
        first=_chosen(accepted, first, lanes.first),
        h=jnp.where(counted, grown, lanes.h),
        steps=lanes.steps + one,
        taken=taken,
        outcome=jnp.where(lanes.idle, lanes.outcome, outcome),
    )
    return after, (at, states)


def _due(queue: _Queue, lanes: Lanes, reached: Any, h: Any) -> tuple[Any, Any, Any, Any]:
    """The next wanted times up to `reached`: cursors behind, rows, shares of the step, may more come."""
    following = lanes.cursor[None] + jnp.arange(queue.told)[:, None]
    row = lanes.patient[None] * queue.wanted + jnp.minimum(following, queue.wanted - 1)
    time = queue.plan.time[row]
    due = (time <= reached[None]) & (following < queue.wanted)
    wide = h > 0
    share = jnp.clip((time - lanes.t[None]) / jnp.where(wide, h, 1.0)[None], 0.0, 1.0)
    share = jnp.where(wide[None], share, 0.0)
    at = jnp.where(due, row, queue.rows * queue.wanted)
    told = jnp.sum(due, axis=0)
    return lanes.cursor + told, at, share, told == queue.told


def _told(method: Any, y: Any, h: Any, stages: Any, share: Any) -> list[Any]:
    """Every state at shares (told, lane) of a step."""
    states = []
    for *lower, highest in zip(*map(jax.tree.leaves, method.curve(y, h, stages)), strict=True):
        # (states of the leaf, wanted times, lanes)
        value = highest.reshape(-1, 1, highest.shape[-1])
        for c in lower[::-1]:
            value = value * share[None] + c.reshape(-1, 1, c.shape[-1])
        states.extend(jnp.broadcast_to(value, (len(value), *share.shape)))
    return states


def _untold(y: Any, h: Any, stages: Any, share: Any) -> list[Any]:
    """Nothing, in the place of `_told`."""
    return [jnp.zeros_like(share)] * sum(leaf[..., 0].size for leaf in jax.tree.leaves(y))


def _chosen(mask: Any, new: Any, old: Any) -> Any:
    """Leaves of `new` in the lanes of the mask, of `old` elsewhere."""
    return jax.tree.map(lambda n, o: jnp.where(jnp.broadcast_to(mask, jnp.shape(o)), n, o), new, old)


def _at_end(queue: _Queue, lanes: Lanes) -> Any:
    """Lanes at the end of a piece that is not their last."""
    return ~lanes.idle & (lanes.t >= lanes.stop) & (lanes.piece + 1 < queue.pieces)


def _settled(queue: _Queue, lanes: Lanes) -> Lanes:
    """Lanes at an event, taken across it and any other of that time."""

    def cross(lanes: Lanes) -> Lanes:
        return _crossed(queue, lanes, _at_end(queue, lanes))

    return jax.lax.while_loop(lambda lanes: jnp.any(_at_end(queue, lanes)), cross, lanes)


def _crossed(queue: _Queue, lanes: Lanes, here: Any) -> Lanes:
    """Lanes just after the event at the end of their piece, where `here`."""
    if queue.boluses:
        row = lanes.patient * queue.pieces + lanes.piece
        amount = {name: table[row] for name, table in queue.plan.amount.items()}
        after = _each(lambda t, x, u, a, p: cross_event(queue.model, t, x, u, a, p))
        moved = after(lanes.t, lanes.y, _inputs(queue, lanes, lanes.t), amount, lanes.p)
        lanes = replace(lanes, y=_chosen(here, moved, lanes.y))
    lanes = _placed(
        queue, replace(lanes, piece=lanes.piece + here.astype(int), taken=jnp.where(here, 0, lanes.taken))
    )
    first = queue.method.start(_rate(queue, lanes), lanes.t, lanes.y)
    return replace(lanes, first=_chosen(here, first, lanes.first))


def _placed(queue: _Queue, lanes: Lanes) -> Lanes:
    """Lanes with what the plan says of the piece that each is in."""
    plan, row = queue.plan, lanes.patient * queue.pieces + lanes.piece
    before = plan.stop[jnp.maximum(row - 1, 0)]
    return replace(
        lanes,
        stop=plan.stop[row],
        since=jnp.where(lanes.piece > 0, before, plan.start[lanes.patient]),
        base={name: table[row] for name, table in plan.base.items()},
        slope={name: table[row] for name, table in plan.slope.items()},
    )


def _rate(queue: _Queue, lanes: Lanes) -> Any:
    drift = _each(queue.model.drift)
    return lambda t, y: drift(t, y, _inputs(queue, lanes, t), lanes.p)


def _inputs(queue: _Queue, lanes: Lanes, t: Any) -> Any:
    return replace_fields(queue.inputs, lines(lanes.base, lanes.slope, t - lanes.since))


def _initial(queue: _Queue, p: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, float), _each(queue.model.init)(p))


def _each(function: Any) -> Any:
    """A function of one patient, of all lanes."""
    return jax.vmap(function, in_axes=-1, out_axes=-1)


def _last(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), tree)


def _guess(queue: _Queue, lanes: Lanes) -> Any:
    """A first step, by the rule of Hairer, Norsett & Wanner 1993 (Solving ODEs I, II.4)."""
    rate, solver = _rate(queue, lanes), queue.model.solver
    slope = rate(lanes.t, lanes.y)
    scale = scale_of(solver, lanes.y, lanes.y)
    d0, d1 = norm(lanes.y, scale), norm(slope, scale)
    small = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = jnp.where(small, 1e-6, 0.01 * d0 / jnp.where(small, 1.0, d1))
    then = rate(
        lanes.t + h0, jax.tree.map(lambda y, f: y + jnp.broadcast_to(h0, y.shape) * f, lanes.y, slope)
    )
    most = jnp.maximum(d1, norm(jax.tree.map(jnp.subtract, then, slope), scale) / h0)
    flat = most <= 1e-15
    h1 = (0.01 / jnp.where(flat, 1.0, most)) ** (1.0 / queue.method.order)
    h = jnp.minimum(100 * h0, jnp.where(flat, jnp.maximum(1e-6, h0 * 1e-3), h1))
    return h if solver.longest is None else jnp.minimum(h, solver.longest)
