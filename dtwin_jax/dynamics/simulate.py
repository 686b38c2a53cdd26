"""The trajectory of a model: exact where it has a closed form between events, by Diffrax elsewhere."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax

from dtwin_jax.core.types import Scalar, Vector
from dtwin_jax.dynamics.dosing import (
    Pieces,
    corners,
    cross_event,
    cut,
    has_samples,
    inputs_at,
    known_to,
    piece_of,
)
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.dynamics.steady import lost_in, restarted, with_restarts
from dtwin_jax.dynamics.vector import packing

# Up to this many events, a solve stops at the events only and interpolates the wanted times, which costs
# every piece a pass over all of them; with more, it stops at each wanted time too. An exact solution takes
# them in one pass.
FEW_EVENTS = 4


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
    """States at the asked times, as vectors: (n, states); and the inputs that acted there, by field (n,)."""

    states: Any
    inputs: Any
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
        times: (n,) sorted. Before `t0` the result is NaN.
        t0: time of the initial state.
        after: (n,) True where the state just after an event at that time is wanted; before by default.
        key: random key, needed by a model with a diffusion.
    """
    times = jnp.asarray(times, dtype=float)
    after = jnp.zeros(times.shape, bool) if after is None else jnp.asarray(after)
    solution = solve(model, p, inputs, times, after, t0=t0, key=key)
    _, unpack = packing(jax.eval_shape(model.init, p))
    state = jax.vmap(unpack)(solution.states)
    output = jax.vmap(lambda t, x, u: model.observe(t, x, u, p))(times, state, solution.inputs)
    return Trajectory(times, state, output, solution.outcome, solution.steps)


def solve(model: Any, p: Any, inputs: Any, times: Any, after: Any, *, t0: Any, key: Any = None) -> Solution:
    """States of `model` at `times` (any order), by the exact flow if it has one, else by its solver.

    NaN at times before `t0`: nothing is known of the state there.
    """
    t0 = jnp.asarray(t0, dtype=float)
    found = _solve(model, p, inputs, times, after, t0, key)
    return eqx.tree_at(lambda s: s.states, found, jnp.where((times >= t0)[:, None], found.states, jnp.nan))


def _solve(model: Any, p: Any, inputs: Any, times: Any, after: Any, t0: Any, key: Any) -> Solution:
    if not times.shape[0]:
        # Diffrax refuses to save nothing.
        start = _solve(model, p, inputs, t0[None], jnp.zeros(1, bool), t0, key)
        none = jax.tree.map(lambda leaf: leaf[:0], start.inputs)
        return Solution(start.states[:0], none, start.outcome, start.steps)
    if model.dosing is not None:
        inputs = model.dosing(inputs, p)
    t1 = jnp.maximum(jnp.max(times), t0)
    if model.flow is not None and model.diffusion is None and not has_samples(inputs):
        pieces = with_restarts(model, p, inputs, cut(inputs, t0, t1), _by_flow)
        return _solve_by_flow(model, p, inputs, pieces, times, after)
    if model.diffusion is None:
        pieces = with_restarts(model, p, inputs, cut(inputs, t0, t1), _by_steps)
        if pieces.event.shape[0] <= FEW_EVENTS:
            return _solve_by_steps(model, p, inputs, pieces, (times, after), _terms_of(model), inside=True)
        terms = _terms_of(model)
    else:
        known_to(f"{model.name}, which has a diffusion,", inputs)
        terms = _noisy_terms_of(model, t0, t1, key)
    pieces = with_restarts(model, p, inputs, cut(inputs, t0, t1, stops=times), _by_steps)
    return _solve_by_steps(model, p, inputs, pieces, (times, after), terms, inside=False)


def _solve_by_flow(model: Any, p: Any, inputs: Any, pieces: Pieces, times: Any, after: Any) -> Solution:
    bounds = pieces.bounds

    def cross(x, piece):
        start, stop, held, amount, restart = piece
        u = inputs_at(inputs, held, start)
        end = restarted(model.flow(stop - start, x, u, p), restart)
        return cross_event(model, stop, end, u, amount, p), x

    # States stay apart here: in one vector, a cohort's would lie with the short axis last.
    start = jax.tree.map(lambda x: jnp.asarray(x, float), model.init(p))
    rows = (bounds[:-1], bounds[1:], pieces.held, pieces.amount, pieces.restart)
    # A few pieces in a row are compiled into the loops over measurements, which halves a gradient's time.
    few = pieces.event.shape[0] <= FEW_EVENTS
    _, starts = jax.lax.scan(cross, start, rows, unroll=few)
    index = piece_of(pieces.event, times, after)
    acting = _inputs_in(inputs, pieces, times, index)
    # Looked up before the flow, not in it, where they would keep its exponentials from being vectorised.
    begin, x = jax.tree.map(lambda leaf: _select(leaf, index) if few else leaf[index], (bounds[:-1], starts))
    found = jax.vmap(lambda dt, x, u: model.flow(dt, x, u, p))(times - begin, x, acting)
    pack, _ = packing(jax.eval_shape(lambda: start))
    states = jax.vmap(pack)(found)
    if pieces.restart is not None:
        # Put in afterwards: 0 times a NaN on the way would enter the gradient of what patients share.
        states = jnp.where(lost_in(pieces.restart)[index][:, None], jnp.nan, states)
    finite = jnp.all(jnp.isfinite(states))
    outcome = jnp.where(finite, int(Outcome.SOLVED), int(Outcome.NOT_FINITE))
    return Solution(states, acting, outcome, jnp.asarray(0))


def _select(few: Any, index: Any) -> Any:
    """`few[index]` without an indirection, for a leading axis of a few."""
    found = jnp.broadcast_to(few[0], (*index.shape, *few.shape[1:]))
    index = index.reshape(index.shape + (1,) * (few.ndim - 1))
    for k in range(1, few.shape[0]):
        found = jnp.where(index == k, few[k][None], found)
    return found


def _solve_by_steps(
    model: Any, p: Any, inputs: Any, pieces: Pieces, wanted: tuple[Any, Any], terms: Any, *, inside: bool
) -> Solution:
    """Solve piece by piece.

    Args:
        model: the model.
        p: its parameters.
        inputs: its inputs.
        pieces: where to cut.
        wanted: times, and whether after an event at that time.
        terms: (inputs, held, p) -> what Diffrax solves.
        inside: the wanted times lie inside the pieces, and are interpolated; else every one is a cut.
    """
    x0 = model.init(p)
    pack, unpack = packing(jax.eval_shape(lambda: x0))
    order = jnp.argsort(wanted[0])
    times, after = wanted[0][order], wanted[1][order]
    start0 = pack(x0)
    options = {"stepsize_controller": step_sizes(model.solver, corners(inputs)), **model.solver.arguments()}

    def cross(carry, piece):
        x, outcome, steps = carry
        start, stop, held, amount, restart = piece
        going = outcome == Outcome.SOLVED
        # A piece after a failure is solved from the initial state, and its result thrown away: a NaN
        # would make the controller shrink its step until max_steps.
        x = jnp.where(going, x, start0)
        saves = times if inside else times[:0]
        saved, end, code, taken = _solve_piece(terms(inputs, held, p), x, start, stop, saves, options)
        outcome = jnp.where(going, code, outcome)
        reached = outcome == Outcome.SOLVED
        seen = jnp.where(going & jnp.isfinite(saved), saved, jnp.nan)
        limits = jnp.where(going, x, jnp.nan), jnp.where(reached, end, jnp.nan)
        if restart is not None:
            outcome = jnp.where(reached & restart[2], int(Outcome.NOT_FINITE), outcome)
        u = inputs_at(inputs, held, stop)
        following = pack(cross_event(model, stop, restarted(unpack(end), restart), u, amount, p))
        return (following, outcome, steps + taken), (seen, *limits)

    carry = (start0, jnp.asarray(int(Outcome.SOLVED)), jnp.asarray(0))
    rows = (pieces.bounds[:-1], pieces.bounds[1:], pieces.held, pieces.amount, pieces.restart)
    (_, outcome, steps), (seen, starts, ends) = jax.lax.scan(cross, carry, rows)
    index = piece_of(pieces.event, times, after)
    if inside:
        states = seen[index, jnp.arange(times.shape[0])]
    else:
        states = jnp.where(after[:, None], starts[index], ends[index])
    solution = Solution(states, _inputs_in(inputs, pieces, times, index), outcome, steps)
    back = jnp.argsort(order)
    return eqx.tree_at(
        lambda s: (s.states, s.inputs),
        solution,
        (states[back], jax.tree.map(lambda leaf: leaf[back], solution.inputs)),
    )


def _by_flow(model: Any, p: Any) -> Any:
    """How the state moves under constant inputs."""
    return lambda dt, x, u: model.flow(dt, x, u, p)


def _by_steps(model: Any, p: Any) -> Any:
    """The same by the solver; NaN where it fails."""
    pack, unpack = packing(jax.eval_shape(model.init, p))
    options = {"stepsize_controller": step_sizes(model.solver, None), **model.solver.arguments()}

    def move(dt: Any, x: Any, u: Any) -> Any:
        start, none = jnp.zeros(()), jnp.zeros(0)
        _, end, code, _ = _solve_piece(_terms_of(model)(u, {}, p), pack(x), start, dt, none, options)
        return unpack(jnp.where(code == Outcome.SOLVED, end, jnp.nan))

    return move


def _inputs_in(inputs: Any, pieces: Pieces, times: Any, index: Any) -> Any:
    """The inputs as plain numbers at `times`, each in its piece `index`: every field (n,)."""

    def at(t, k):
        return inputs_at(inputs, jax.tree.map(lambda leaf: leaf[k], pieces.held), t)

    return jax.vmap(at)(times, index)


def step_sizes(solver: Solver, turns: Any) -> diffrax.AbstractStepSizeController:
    """The controller of `solver`, with steps that end at `turns`, times at which an input turns."""
    if solver.dt is not None:
        return diffrax.ConstantStepSize()
    control = diffrax.PIDController(rtol=solver.rtol, atol=jnp.asarray(solver.atol), dtmax=solver.longest)
    if turns is None:
        return control
    # A step across a corner is rejected until it is tiny, which on an IVGTT took 137 steps instead of 32
    # and left 300 times the error. A step ends just before the corner, where the signal still moves with
    # the line that leads there: at the corner itself its derivative by the corner's time is the next line's.
    return diffrax.ClipStepSizeController(control, jump_ts=turns)


def _solve_piece(terms: Any, x: Any, start: Any, stop: Any, times: Any, options: dict) -> tuple:
    """States at `times` (those inside the piece), state at its end, outcome, steps."""
    subs = [diffrax.SubSaveAt(t1=True)]
    if times.shape[0]:
        # A time at an end of the piece is no part of that end, and does not move with it.
        low, high = jax.lax.stop_gradient((start, stop))
        inside = (times >= low) & (times <= high)
        subs.append(diffrax.SubSaveAt(ts=jnp.where(inside, times, jnp.where(times < low, low, high))))
    found = diffrax.diffeqsolve(terms, t0=start, t1=stop, y0=x, saveat=diffrax.SaveAt(subs=subs), **options)
    ys: Any = found.ys
    end = ys[0][0]
    if isinstance(terms, diffrax.ODETerm):
        # Where an event falls on another, the piece between them takes no step, but moves with its limits.
        end = jnp.where(stop != start, end, x + (stop - start) * terms.vf(start, x, None))
    saved = ys[1] if times.shape[0] else jnp.zeros((0, end.shape[0]), end.dtype)
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
