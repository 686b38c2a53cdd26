"""Trajectories of a whole cohort, by the fastest path that a model has."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.signal import AbstractSignal
from dtwin_jax.dynamics.cycles import Cycles, cycles_of, schedule_of, solve_cycles
from dtwin_jax.dynamics.divided import mesh_for, over_devices, place
from dtwin_jax.dynamics.dosing import has_samples
from dtwin_jax.dynamics.explicit import Explicit
from dtwin_jax.dynamics.lanes import solve_lanes
from dtwin_jax.dynamics.plan import inputs_of, planned
from dtwin_jax.dynamics.rosenbrock import Rosenbrock
from dtwin_jax.dynamics.sensitivity import differentiated_as, with_sensitivities
from dtwin_jax.dynamics.simulate import Trajectory, simulate
from dtwin_jax.dynamics.steady import has_restarts

_IMPLICIT = (diffrax.Kvaerno3, diffrax.Kvaerno4, diffrax.Kvaerno5)
_EXPLICIT = (diffrax.Tsit5, diffrax.Dopri5, diffrax.Bosh3)
# Fewer than these are solved as fast by `simulate`, where their steps are explicit.
_FEW = 4
# Patients side by side: their states, stages and inputs fit the first caches of a processor.
LANES = 128
# Patients whose parameters, inputs and plans are laid out at once.
BLOCK = 4096


def simulate_cohort(  # noqa: PLR0913
    model: Any,
    p: Any,
    inputs: Any,
    times: Any,
    *,
    in_axes: tuple[Any, Any, Any] = (0, 0, 0),
    t0: Any = 0.0,
    after: Any = None,
    key: Any = None,
    lanes: int = LANES,
    block: int = BLOCK,
) -> Trajectory:
    """`simulate` of every patient of a cohort: the same numbers within the solver's tolerance, faster.

    The path is chosen by the model (and fewer than 4 patients with explicit steps go by the last):

    * with an exact flow, and no sampled input, by the flow; where all patients share one schedule, known
      when this is called, in which wanted times come at the same few gaps after events, once for each gap
      (derivatives are taken the other way, and so is a cohort in which a lag carries an event across a
      wanted time);
    * with a step size that adapts, in lanes: one loop in which every patient has his own step size, and the
      next of the queue takes the place of one who is finished. `Tsit5`, `Dopri5` and `Bosh3` take their own
      steps, `Kvaerno3`, `Kvaerno4` and `Kvaerno5` those of a `Rosenbrock` method of the same purpose;
    * else (an SDE, a fixed step, another method, doses with steady states) by `simulate` under `vmap`.

    Compiled at the first call for a size of cohort, which is rounded up: cohorts of a near size compile
    nothing anew. Under `jit` too.

    Where this process has several devices, and as many patients as `lanes` for each, they are divided among
    all; the result is where it would be with one. Under a transformation (`jit`, `grad`), and where arrays
    were placed on a device, they stay where the caller has them.

    Derivatives in forward and in reverse mode, with respect to all numbers in `p`, `inputs` (amounts, times
    and durations of doses) and `t0`. In lanes their cost is a solve with one direction beside it for each of
    those that is differentiated and that the equations read, a patient, not for each tangent; by more than 32
    of them (weights of a network) reverse mode raises a `RuntimeError`: take `jax.grad` of `simulate` under
    `jax.vmap`.

    Args:
        model: the `Model`.
        p: parameters.
        inputs: inputs, each a number or a signal.
        times: (patient, n), or (n,) for all; in any order.
        in_axes: as of `jax.vmap`, for `(p, inputs, times)`: which leaves have a leading (patient,) axis.
        t0: time of the initial state: a number, or (patient,).
        after: in the shape of `times`, True where the state just after an event at that time is wanted.
        key: random key, needed by a model with a diffusion.
        lanes: patients that are solved side by side.
        block: patients that are laid out at once; bounds the memory beside that of the result.

    Returns:
        A `Trajectory` with a leading (patient,) axis on every leaf.
    """
    cycles = _cycles(model, inputs, in_axes, times, after, t0)
    times, t0 = _array(times, float), _array(t0, float)
    after = np.zeros(times.shape, bool) if after is None else _array(after, bool)
    after = after if after.shape == times.shape else jnp.broadcast_to(after, times.shape)
    axes = (*in_axes, in_axes[2], 0 if t0.ndim else None)
    leaves, shared, structure = _flattened((p, inputs, times, after, t0), axes)
    count = _size(leaves, shared)
    how = _How(model, structure, shared, lanes, block)
    traced = any(isinstance(leaf, Tracer) for leaf in [*leaves, key])
    mesh = None if traced else mesh_for(leaves, count, lanes)
    size = count if traced else _rounded(count, 1 if mesh is None else mesh.size)
    keys = None if key is None else jax.random.split(key, size)
    if size == count and mesh is None:
        return _solved(how, leaves, keys, np.asarray(count), cycles, mesh)
    # By NumPy: of another size, JAX would compile the padding and the cutting anew.
    rows = np.minimum(np.arange(size), count - 1)
    leaves = [leaf if alone else np.asarray(leaf)[rows] for leaf, alone in zip(leaves, shared, strict=True)]
    if mesh is not None:
        leaves = place(mesh, leaves, shared)
    found = _solved(how, leaves, keys, np.asarray(count), cycles, mesh)
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)[:count]), found)


@dataclass(frozen=True)
class _How:
    """What a compiled solve depends on besides shapes: of `shared` leaves there is one for all patients."""

    model: Any
    structure: Any
    shared: tuple[bool, ...]
    lanes: int
    block: int

    @property
    def axes(self) -> Any:
        return jax.tree.unflatten(self.structure, [None if alone else 0 for alone in self.shared])


def _array(x: Any, dtype: Any) -> Any:
    """Of NumPy unless it is one of JAX already: called from outside of a program, that is the cheaper."""
    return jnp.asarray(x, dtype) if isinstance(x, jax.Array) else np.asarray(x, dtype)


def _flattened(trees: Any, axes: Any) -> tuple[list[Any], tuple[bool, ...], Any]:
    """Leaves, which of them all patients share, and the structure."""
    nothing = lambda node: node is None  # noqa: E731

    def said(axis: Any, tree: Any) -> tuple[str, ...]:
        # As text, for doses without rules hold a None that is no leaf. A struct of inputs makes 0.0 of a 0.
        first = axis is not None and np.ndim(axis) == 0 and axis == 0
        return ("0" if first else str(axis),) * len(jax.tree.leaves(tree))

    spread = jax.tree.map(said, axes, trees, is_leaf=nothing)
    found = jax.tree.leaves(spread)
    if any(axis not in ("0", "None") for axis in found):
        raise ValueError(
            f"simulate_cohort: in_axes holds {', '.join(found)}; wanted 0 (one a patient) or None (shared)"
        )
    leaves, structure = jax.tree.flatten(trees)
    return (
        [leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for leaf in leaves],
        tuple(axis == "None" for axis in found),
        structure,
    )


def _size(leaves: list[Any], shared: tuple[bool, ...]) -> int:
    """The number of patients."""
    own = [leaf for leaf, alone in zip(leaves, shared, strict=True) if not alone]
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in own}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"simulate_cohort: leading axes of p, inputs and times have sizes {sorted(sizes)}; "
            "wanted one number of patients (in_axes says what all share)"
        )
    return sizes.pop()


def _rounded(count: int, devices: int) -> int:
    """The next size that has a program: on each device up to 8 exactly, then four to every doubling."""
    if devices > 1:
        return devices * _rounded(-(-count // devices), 1)
    step = 2 ** max(0, count.bit_length() - 3)
    size = -(-count // step) * step
    # Rows that lie a multiple of a page apart would share the same few places of a cache.
    return size if size < 512 else size + 8


def _cycles(model: Any, inputs: Any, in_axes: tuple, times: Any, after: Any, t0: Any) -> Cycles | None:
    """How the schedule repeats, where the flow can make use of it."""
    by_flow = model.flow is not None and model.diffusion is None
    by_flow = by_flow and not has_samples(inputs) and not has_restarts(inputs)
    shared = in_axes[1] is None and in_axes[2] is None
    return cycles_of(inputs, times, after, t0) if by_flow and shared else None


@functools.partial(jax.jit, static_argnames=("how", "mesh"))
def _solved(
    how: _How, leaves: list[Any], keys: Any, count: Any, cycles: Cycles | None, mesh: Any
) -> Trajectory:
    """Trajectories of all rows; those from `count` on are padding."""
    if mesh is None:
        return _by_blocks(how, leaves, keys, count, cycles)
    return over_devices(functools.partial(_by_blocks, how), mesh, how.shared, leaves, keys, count, cycles)


def _by_blocks(how: _How, leaves: list[Any], keys: Any, count: Any, cycles: Cycles | None) -> Trajectory:
    size = next(leaf.shape[0] for leaf, alone in zip(leaves, how.shared, strict=True) if not alone)
    _, inputs, *_ = jax.tree.unflatten(how.structure, leaves)
    # A flow holds while inputs do not change.
    ours = replace(how.model, flow=None) if has_samples(inputs) else how.model
    # Lanes do not know steady states.
    method = None if has_restarts(inputs) else lanes_of(ours)
    few = size < _FEW and isinstance(method, Explicit)

    def solved(leaves: list[Any], keys: Any, waiting: Any) -> Trajectory:
        part = jax.tree.unflatten(how.structure, leaves)
        if method is not None:
            return _in_few(how, method, part) if few else _in_lanes(how, method, part, waiting)
        return _one_by_one(how, part, keys) if cycles is None else _in_cycles(how, part, cycles)

    blocks = -(-size // how.block)
    if blocks == 1:
        return solved(leaves, keys, count)
    rows = -(-size // blocks)

    def one(start: Any) -> Trajectory:
        row = jnp.minimum(start + jnp.arange(rows), size - 1)
        part = [leaf if alone else leaf[row] for leaf, alone in zip(leaves, how.shared, strict=True)]
        return solved(part, None if keys is None else keys[row], jnp.clip(count - start, 0, rows))

    found = jax.lax.map(one, rows * jnp.arange(blocks))
    return jax.tree.map(lambda leaf: leaf.reshape(blocks * rows, *leaf.shape[2:])[:size], found)


def lanes_of(model: Any) -> Explicit | Rosenbrock | None:
    """The step by which lanes solve a model; None where `simulate` solves each patient."""
    if model.diffusion is not None or model.solver.dt is not None or model.flow is not None:
        return None
    if model.solver.method in _IMPLICIT:
        return Rosenbrock()
    return Explicit(model.solver.method) if model.solver.method in _EXPLICIT else None


def _one_by_one(how: _How, part: Any, keys: Any) -> Trajectory:
    p, inputs, times, after, t0 = part

    def patient(p: Any, inputs: Any, times: Any, after: Any, t0: Any, key: Any) -> Trajectory:
        return simulate(how.model, p, inputs, times, t0=t0, after=after, key=key)

    axes = (*how.axes, None if keys is None else 0)
    return jax.vmap(patient, in_axes=axes)(p, inputs, times, after, t0, keys)


def _in_few(how: _How, method: Any, part: Any) -> Trajectory:
    """Trajectories one by one, of which Diffrax would have derivatives in one mode only."""
    leaves, structure = jax.tree.flatten(part)
    count = _size(leaves, how.shared)

    def alone(leaves: list[Any]) -> Trajectory:
        def patient(own: list[Any]) -> Trajectory:
            rows = iter(own)
            each = [leaf if same else next(rows) for leaf, same in zip(leaves, how.shared, strict=True)]
            p, inputs, times, after, t0 = jax.tree.unflatten(structure, each)
            return simulate(how.model, p, inputs, times, t0=t0, after=after)

        # In turn: a loop over one patient is a third of the time of one over a batch of one.
        return jax.lax.map(patient, [leaf for leaf, same in zip(leaves, how.shared, strict=True) if not same])

    def lanes(leaves: list[Any]) -> Trajectory:
        return _in_lanes(how, method, jax.tree.unflatten(structure, leaves), count)

    return differentiated_as(alone, lanes)(leaves)


def _in_cycles(how: _How, part: Any, cycles: Cycles) -> Trajectory:
    """Trajectories by gaps that repeat, or one by one where a patient's schedule turns out not to."""

    def alone(part: Any, cycles: Cycles) -> Trajectory:
        return _one_by_one(how, part, None)

    @jax.custom_jvp
    def solved(part: Any, cycles: Cycles) -> Trajectory:
        def acting(p: Any, inputs: Any, times: Any, after: Any, t0: Any) -> tuple[Any, Any]:
            inputs = inputs if how.model.dosing is None else how.model.dosing(inputs, p)
            return inputs, schedule_of(cycles, inputs, times, t0)

        inputs, schedule = jax.vmap(acting, in_axes=how.axes, out_axes=(0, -1))(*part)
        if schedule is None:
            return alone(part, cycles)
        p, *_ = jax.vmap(lambda *each: each, in_axes=how.axes)(*part)
        _, _, times, _, t0 = part
        return jax.lax.cond(
            jnp.all(schedule.fits),
            lambda: solve_cycles(how.model, p, inputs, schedule, times, t0, cycles),
            lambda: alone(part, cycles),
        )

    # Gaps that are equal depend on times that are not the same: derivatives are taken of each by itself.
    solved.defjvp(lambda primals, tangents: jax.jvp(alone, primals, tangents))
    return solved(part, cycles)


def _in_lanes(how: _How, method: Any, part: Any, waiting: Any) -> Trajectory:
    """Trajectories of the first `waiting` rows of a block."""
    model = how.model

    def plan(p: Any, inputs: Any, times: Any, after: Any, t0: Any) -> tuple[Any, Any]:
        acting = inputs if model.dosing is None else model.dosing(inputs, p)
        return planned(acting, times, after, t0), acting

    def whole(part: Any) -> tuple[Any, Any, Any]:
        p, *_ = each = jax.vmap(lambda *each: each, in_axes=how.axes)(*part)
        return each, p, jax.vmap(plan, in_axes=how.axes)(*part)

    def solve(leaves: list[Any], waiting: Any) -> tuple[Any, Any]:
        (*_, t0), p, (plans, acting) = whole(jax.tree.unflatten(how.structure, leaves))
        states, *told = solve_lanes(model, method, p, acting, plans, waiting, min(how.lanes, len(t0)))
        return states, told

    reads = functools.partial(_read, how)
    solved = with_sensitivities(solve, how.shared, reads)
    states, (outcome, steps) = solved(jax.tree.leaves(part), waiting)
    # The solve has these too: a compiler sees that they are the same.
    (_, _, times, after, t0), p, (plans, acting) = whole(part)

    def told(each: tuple) -> Trajectory:
        p, times, after, t0, plan, states, acting, outcome, steps = each
        states = jax.tree.map(lambda leaf: leaf[plan.back], states)
        start = jax.tree.map(lambda x: jnp.asarray(x, float), model.init(p))
        # At the start the state is as it was before a dose of that moment; before it, nothing is known.
        states = jax.tree.map(lambda x, x0: _where((times == t0) & ~after, x0[None], x), states, start)
        states = jax.tree.map(lambda x: _where(times < t0, jnp.nan, x), states)
        u = jax.tree.map(lambda leaf: leaf[plan.back], inputs_of(acting, plan, plan.time))
        output = jax.vmap(lambda t, x, u: model.observe(t, x, u, p))(times, states, u)
        return Trajectory(times, states, output, outcome, steps)

    return jax.vmap(told)((p, times, after, t0, plans, states, acting, outcome, steps))


def _read(how: _How, leaves: list[Any]) -> list[bool]:
    """For every leaf whether states may depend on it: of parameters, whether an equation reads it."""
    model = how.model
    each = [leaf if alone else leaf[0] for leaf, alone in zip(leaves, how.shared, strict=True)]
    p, inputs, *_ = jax.tree.unflatten(how.structure, each)

    def equations(p: Any) -> Any:
        acting = inputs if model.dosing is None else model.dosing(inputs, p)
        numbers = {n: jnp.zeros(()) for n, s in vars(acting).items() if isinstance(s, AbstractSignal)}
        t, x, u = jnp.zeros(()), model.init(p), replace_fields(acting, numbers)
        given = jax.tree.map(jnp.zeros_like, u)
        after = None if model.event is None else model.event(t, x, u, given, p)
        return x, acting, model.drift(t, x, u, p), after

    program = jax.make_jaxpr(equations)(p).jaxpr
    used = {id(v) for line in program.eqns for v in line.invars} | {id(v) for v in program.outvars}
    read = [id(v) in used for v in program.invars]
    return read + [True] * (len(leaves) - len(read))


def _where(mask: Any, new: Any, old: Any) -> Any:
    """Rows of `new` where the mask (n,) is, of `old` (n, ...) elsewhere."""
    mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (old.ndim - 1)), old.shape)
    return jnp.where(mask, new, old)
