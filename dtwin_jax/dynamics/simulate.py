"""The trajectory of a model: exact where it has a closed form between events, by Diffrax elsewhere."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax

from dtwin_jax.core.types import Scalar, Vector
from dtwin_jax.dynamics.dosing import Pieces, corners, cut, has_samples, inputs_at, jump, piece_of
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.dynamics.vector import packing


class Trajectory(eqx.Module):
    """What `simulate` returns.

    Attributes:
        time: (n,) as asked for.
        state: the model's State, every leaf with a leading (n,) axis; NaN from a failure on.
        output: the model's Outputs, likewise.
        outcome: an `Outcome` code; compare with `Outcome.SOLVED`.
        steps: steps the solver took, 0 on the exact path.
    """

    time: Vector
    state: Any
    output: Any
    outcome: Any
    steps: Any


class Solution(eqx.Module):
    """States at the asked times, as vectors: (n, states)."""

    states: Any
    outcome: Any
    steps: Any


def simulate(
    model: Any, p: Any, inputs: Any, times: Vector, *, t0: Any = 0.0, after: Any = None, key: Any = None
) -> Trajectory:
    """Solve `model` and observe it at `times`.

    Pure and differentiable, under `jit`, `vmap` and `grad`. A solve that fails returns NaN from the
    failure on and says so in `outcome`.

    Args:
        model: the `Model`.
        p: its parameters.
        inputs: its inputs, each a number or a signal.
        times: (n,) sorted, none before `t0`.
        t0: time of the initial state.
        after: (n,) True where the state just after an event at that time is wanted; before by default.
        key: random key, needed by a model with a diffusion.
    """
    times = jnp.asarray(times, dtype=float)
    after = jnp.zeros(times.shape, bool) if after is None else jnp.asarray(after)
    solution = solve(model, p, inputs, times, after, t0=t0, key=key)
    _, unpack = packing(jax.eval_shape(model.init, p))
    state = jax.vmap(unpack)(solution.states)
    output = jax.vmap(lambda t, x: model.observe(t, x, p))(times, state)
    return Trajectory(times, state, output, solution.outcome, solution.steps)


def solve(model: Any, p: Any, inputs: Any, times: Any, after: Any, *, t0: Any, key: Any = None) -> Solution:
    """States of `model` at `times` (any order), by the exact flow if it has one, else by its solver."""
    t0 = jnp.asarray(t0, dtype=float)
    if not times.shape[0]:
        # Diffrax refuses to save nothing.
        start = solve(model, p, inputs, t0[None], jnp.zeros(1, bool), t0=t0, key=key)
        return Solution(start.states[:0], start.outcome, start.steps)
    if model.dosing is not None:
        inputs = model.dosing(inputs, p)
    t1 = jnp.maximum(jnp.max(times), t0)
    if model.flow is not None and model.diffusion is None and not has_samples(inputs):
        return _solve_by_flow(model, p, inputs, cut(inputs, t0, t1), times, after)
    if model.diffusion is None:
        return _solve_by_steps(model, p, inputs, cut(inputs, t0, t1), times, after, _terms_of(model))
    # The fixed steps of an SDE solver must land on the measurements, or they are interpolated.
    pieces = cut(inputs, t0, t1, stops=times)
    return _solve_by_steps(model, p, inputs, pieces, times, after, _noisy_terms_of(model, t0, t1, key))


def _solve_by_flow(model: Any, p: Any, inputs: Any, pieces: Pieces, times: Any, after: Any) -> Solution:
    x0 = model.init(p)
    pack, unpack = packing(jax.eval_shape(lambda: x0))
    bounds = pieces.bounds

    def cross(x, piece):
        start, stop, held, amount = piece
        u = inputs_at(inputs, held, start)
        end = model.flow(stop - start, unpack(x), u, p)
        return pack(jump(model.drift, stop, end, u, amount, p)), x

    _, starts = jax.lax.scan(cross, pack(x0), (bounds[:-1], bounds[1:], pieces.held, pieces.amount))
    index = piece_of(pieces.event, times, after)

    def reach(t, k):
        u = inputs_at(inputs, jax.tree.map(lambda leaf: leaf[k], pieces.held), t)
        return pack(model.flow(t - bounds[k], unpack(starts[k]), u, p))

    states = jax.vmap(reach)(times, index)
    finite = jnp.all(jnp.isfinite(states))
    outcome = jnp.where(finite, int(Outcome.SOLVED), int(Outcome.NOT_FINITE))
    return Solution(states, outcome, jnp.asarray(0))


def _solve_by_steps(
    model: Any, p: Any, inputs: Any, pieces: Pieces, times: Any, after: Any, terms: Any
) -> Solution:
    x0 = model.init(p)
    pack, unpack = packing(jax.eval_shape(lambda: x0))
    order = jnp.argsort(times)
    times, after = times[order], after[order]
    index = piece_of(pieces.event, times, after)
    start0 = pack(x0)
    options = {"stepsize_controller": _step_sizes(model.solver, corners(inputs)), **model.solver.arguments()}

    def cross(carry, piece):
        x, states, outcome, steps = carry
        k, start, stop, held, amount = piece
        # A piece after a failure is solved from the initial state, and its result thrown away: a NaN
        # would make the controller shrink its step until max_steps.
        x = jnp.where(outcome == Outcome.SOLVED, x, start0)
        saved, end, code, taken = _solve_piece(terms(inputs, held, p), x, start, stop, times, options)
        seen = jnp.where((outcome == Outcome.SOLVED) & jnp.isfinite(saved), saved, jnp.nan)
        outcome = jnp.where(outcome == Outcome.SOLVED, code, outcome)
        states = jnp.where((index == k)[:, None], seen, states)
        u = inputs_at(inputs, held, stop)
        end = pack(jump(model.drift, stop, unpack(end), u, amount, p))
        return (end, states, outcome, steps + taken), None

    states = jnp.full((times.shape[0], start0.shape[0]), jnp.nan, start0.dtype)
    carry = (start0, states, jnp.asarray(int(Outcome.SOLVED)), jnp.asarray(0))
    count = jnp.arange(pieces.bounds.shape[0] - 1)
    rows = (count, pieces.bounds[:-1], pieces.bounds[1:], pieces.held, pieces.amount)
    (_, states, outcome, steps), _ = jax.lax.scan(cross, carry, rows)
    unsorted = jnp.argsort(order)
    return Solution(states[unsorted], outcome, steps)


def _step_sizes(solver: Solver, turns: Any) -> diffrax.AbstractStepSizeController:
    if solver.dt is not None:
        return diffrax.ConstantStepSize()
    control = diffrax.PIDController(rtol=solver.rtol, atol=jnp.asarray(solver.atol))
    if turns is None:
        return control
    # A step across a corner is rejected until it is tiny, which on an IVGTT took 137 steps instead of 32
    # and left 300 times the error.
    return diffrax.ClipStepSizeController(control, step_ts=turns)


def _solve_piece(terms: Any, x: Any, start: Any, stop: Any, times: Any, options: dict) -> tuple:
    """States at `times` (those inside the piece), state at its end, outcome, steps."""
    found = diffrax.diffeqsolve(
        terms,
        t0=start,
        t1=stop,
        y0=x,
        saveat=diffrax.SaveAt(
            subs=[
                diffrax.SubSaveAt(ts=jnp.clip(times, start, stop)),
                diffrax.SubSaveAt(t1=True),
            ]
        ),
        **options,
    )
    ys: Any = found.ys
    saved, end = ys[0], ys[1][0]
    finite = jnp.all(jnp.isfinite(end))
    code = jnp.where(finite, int(Outcome.SOLVED), int(Outcome.NOT_FINITE))
    exhausted = found.result == diffrax.RESULTS.max_steps_reached
    code = jnp.where(exhausted, int(Outcome.MAX_STEPS), code)
    failed = ~exhausted & (found.result != diffrax.RESULTS.successful)
    return saved, end, jnp.where(failed, int(Outcome.NOT_FINITE), code), found.stats["num_steps"]


def _terms_of(model: Any) -> Any:
    def terms(inputs: Any, held: Any, p: Any) -> diffrax.AbstractTerm:
        return diffrax.ODETerm(_vector_field(model.drift, model, inputs, held, p))

    return terms


def _noisy_terms_of(model: Any, t0: Any, t1: Any, key: Any) -> Any:
    if key is None:
        raise ValueError(f"{model.name} has a diffusion: simulate needs key=jax.random.key(...)")
    if model.solver.dt is None:
        raise ValueError(f"{model.name} has a diffusion: its Solver needs a fixed step, dt")

    def terms(inputs: Any, held: Any, p: Any) -> diffrax.AbstractTerm:
        states = jax.eval_shape(lambda: packing(jax.eval_shape(model.init, p))[0](model.init(p)))
        # One path for the whole solve: every piece reads its own part of it. It is twice as long, because
        # the last step may end a rounding error late, where a path that has ended is NaN.
        end = jnp.where(t1 > t0, t1 + (t1 - t0), t0 + 1.0)
        path = diffrax.VirtualBrownianTree(t0, end, model.solver.dt / 4, states.shape, key)
        drift = _vector_field(model.drift, model, inputs, held, p)
        diffusion = _vector_field(model.diffusion, model, inputs, held, p)

        def spread(t: Any, x: Any, args: Any) -> lineax.AbstractLinearOperator:
            return lineax.DiagonalLinearOperator(diffusion(t, x, args))

        return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(spread, path))

    return terms


def _vector_field(function: Any, model: Any, inputs: Any, held: Any, p: Any) -> Any:
    pack, unpack = packing(jax.eval_shape(model.init, p))

    def field(t: Scalar, x: Vector, _: Any) -> Vector:
        return pack(function(t, unpack(x), inputs_at(inputs, held, t), p))

    return field
