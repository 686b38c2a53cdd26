"""What measurements do to the draws of live twins: states carried, weights moved, draws renewed."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.core.predictor import PENALTY
from dtwin_jax.core.record import Record
from dtwin_jax.dynamics.advance import advance, beginning, log_likelihood_of
from dtwin_jax.dynamics.filtering.gaussian import Gaussian
from dtwin_jax.dynamics.filtering.weights import drawn_rows, effective_of
from dtwin_jax.inference.density import parameters, standard_promotion
from dtwin_jax.inference.target import Target
from dtwin_jax.twin.draws import beside, covariance_of, root_of, spread

# Draws are renewed when the effective number falls below this share.
_FEW = 0.5
# Stages in which a likelihood is taken in, at most; the last takes all that is left.
_STAGES = 12
# Draws that are carried side by side on a processor: enough to fill its vector units.
_LANES = 512
# Metropolis steps of a renewal, each of this size over the root of the number of parameters.
_MOVES = 8
_REACH = 2.38


@functools.partial(jax.jit, static_argnames=("target",))
@standard_promotion
def beginnings(target: Target, base: Any, record: Record, theta: Any) -> Gaussian:
    """What every draw believes of the state at the start, (patient, draw, states)."""

    def one(theta: Any, record: Record) -> Gaussian:
        return beginning(target.f, parameters(target.names, base, theta, record))

    return jax.vmap(lambda theta, record: jax.vmap(lambda row: one(row, record))(theta))(theta, record)


@functools.partial(jax.jit, static_argnames=("model",))
@standard_promotion
def learned(model: Any, live: Any, record: Record, past: Record | None, stop: Any, keys: Any) -> Any:
    """The twins `live` at `stop`, after the measurements of `record`; with `past`, renewed exactly."""
    if past is None:
        u, belief, weight, renewed, lost, stuck = _learned_by_stages(model, live, record, stop, keys)
    else:
        u, belief, weight, renewed, lost, stuck = _learned_at_once(model, live, record, past, stop, keys)
    # Nobody has come to `stop`: what was given on the way is still to be given.
    new, old = (u, belief, weight, stop, stop), (live.u, live.belief, live.log_weight, live.time, live.given)
    moved = jax.tree.map(lambda n, o: jnp.where(beside(stuck, n), o, n), new, old)
    moved = dict(zip(("u", "belief", "log_weight", "time", "given"), moved, strict=True))
    renewed = live.renewed + jnp.where(stuck, 0, renewed)
    return replace(live, renewed=renewed, lost=live.lost + lost, **moved)


def keys_of(key: Any, count: int) -> Any:
    """(patient,) keys: those given, or those split from one."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if key.ndim > (0 if typed else 1) else jax.random.split(key, count)


def _learned_at_once(
    model: Any, live: Any, record: Record, past: Record, stop: Any, keys: Any
) -> tuple[Any, Gaussian, Any, Any, Any, Any]:
    """Weighed by the whole likelihood, and where few draws are left moved on the exact posterior."""
    moved, found, solved = carried(model, live, live.u, live.belief, record, stop, live.given)
    lost = _lost(found)
    weight = normalized(live.log_weight + jnp.where(lost[:, None], jax.vmap(passed_over)(solved), found))
    few = effective_of(weight) < _FEW * weight.shape[1]

    def renew(state: tuple) -> tuple:
        new = _moved(model, live, past, stop, state, keys)
        return jax.tree.map(lambda n, old: jnp.where(beside(few, n), n, old), new, state)

    # Of a ward most updates renew nobody, and then no time is spent on it.
    state = (live.u, moved, weight)
    u, belief, weight = jax.lax.cond(jnp.any(few), renew, lambda state: state, state)
    return u, belief, weight, few.astype(int), lost.astype(int), ~jnp.any(solved, axis=1)


def _learned_by_stages(
    model: Any, live: Any, record: Record, stop: Any, keys: Any
) -> tuple[Any, Gaussian, Any, Any, Any, Any]:
    """Weighed by as much of the likelihood as leaves enough draws, renewed by the kernel, and again.

    Renewed are draws and beliefs before the measurements, which then are met anew: the few draws that a
    whole likelihood leaves would not know the spread of all directions. Patients go by blocks, so that one
    who needs many stages holds up few others.
    """
    target, draws = Target(model, live.priors), live.u.shape[1]

    def patient(one: tuple) -> tuple:
        return _learned_alone(target, live.base, one)

    everyone = (live.u, live.belief, live.log_weight, record, stop, live.given, keys)
    return by_blocks(patient, everyone, draws)


def by_blocks(patient: Any, everyone: Any, draws: int) -> Any:
    """`patient` of every leading row of `everyone`, as many side by side as the device is wide.

    Within a block a solve takes the steps, and a loop the turns, of the one that needs most.
    """
    count = jax.tree.leaves(everyone)[0].shape[0]
    # An accelerator is wide enough for all.
    wide = count if jax.default_backend() != "cpu" else max(1, _LANES // draws)
    return jax.lax.map(patient, everyone, batch_size=min(wide, count))


def _learned_alone(target: Target, base: Any, one: tuple) -> tuple[Any, Gaussian, Any, Any, Any, Any]:
    u, before, weight, record, stop, given, key = one

    def learn(carry: tuple) -> tuple:
        u, before, _, weight, left, (lost, stuck), stage = carry
        moved, found, solved = _carried_alone(target, base, u, before, record, stop, given)
        lost = jnp.where(stage == 0, _lost(found), lost)
        stuck = jnp.where(stage == 0, ~jnp.any(solved), stuck)
        found = jnp.where(lost, passed_over(solved), found)
        part = jnp.where(stage < _STAGES - 1, _bearable(weight, found, left), left)
        weight = normalized(weight + part * found)
        left = left - part
        new = spread(u, before, weight, jax.random.fold_in(key, stage))
        u, before, weight = jax.tree.map(lambda n, old: jnp.where(left > 0, n, old), new, (u, before, weight))
        return u, before, moved, weight, left, (lost, stuck), stage + 1

    neither = (jnp.asarray(False), jnp.asarray(False))
    begin = (u, before, before, weight, jnp.ones_like(stop), neither, jnp.asarray(0))
    u, _, belief, weight, _, (lost, stuck), stage = jax.lax.while_loop(
        lambda carry: carry[4] > 0, learn, begin
    )
    return u, belief, weight, stage - 1, lost.astype(int), stuck


def _bearable(log_weight: Any, found: Any, left: Any) -> Any:
    """The largest part of the likelihood, up to `left`, that leaves enough draws effective."""
    least = _FEW * log_weight.shape[0]

    def halve(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = 0.5 * (low + high)
        enough = effective_of(normalized(log_weight + middle * found)) >= least
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    enough = effective_of(normalized(log_weight + left * found)) >= least
    low, _ = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(left), left))
    return jnp.where(enough, left, low)


def _lost(found: Any) -> Any:
    """(patient,) whether no draw explains the measurements."""
    # Beside a measurement that costs the penalty another may win a little back.
    return jnp.all(found <= 0.5 * PENALTY, axis=-1)


def passed_over(solved: Any) -> Any:
    """What weighs draws where measurements do not: one that was not solved has not followed its patient."""
    return jnp.where(solved | ~jnp.any(solved), 0.0, PENALTY)


def normalized(log_weight: Any) -> Any:
    """Logs of weights that sum to one over the last axis."""
    return log_weight - jax.scipy.special.logsumexp(log_weight, axis=-1, keepdims=True)


def carried(
    model: Any, live: Any, u: Any, belief: Gaussian, record: Record, stop: Any, given: Any
) -> tuple[Gaussian, Any, Any]:
    """Every draw's belief at `stop`, log-likelihood of the record, and whether solved, (patient, draw).

    A draw that could not be solved keeps the belief that it had, which must not be NaN where draws are
    averaged, and loses its weight.
    """
    target = Target(model, live.priors)

    def patient(u: Any, belief: Gaussian, record: Record, stop: Any, given: Any) -> Any:
        return _carried_alone(target, live.base, u, belief, record, stop, given)

    return jax.vmap(patient)(u, belief, record, stop, given)


def _carried_alone(
    target: Target, base: Any, u: Any, belief: Gaussian, record: Record, stop: Any, given: Any
) -> tuple[Gaussian, Any, Any]:
    """`carried` of one patient."""

    def draw(u: Any, belief: Gaussian) -> tuple[Gaussian, Any, Any]:
        p = parameters(target.names, base, target.bounded(u), record)
        moved, predicted = advance(target.f, p, belief, record, stop, given)
        good = jnp.all(jnp.isfinite(moved.mean)) & jnp.all(jnp.isfinite(moved.covariance))
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, belief)
        return kept, jnp.where(good, log_likelihood_of(predicted, record), PENALTY), good

    return jax.vmap(draw)(u, belief)


def _moved(model: Any, live: Any, past: Record, stop: Any, state: tuple, keys: Any) -> tuple:
    """Draws of equal weight, moved by Metropolis steps on the posterior of everything measured."""
    target = Target(model, live.priors)
    u, _, weight = state
    never = jnp.full(stop.shape, -jnp.inf, dtype=float)

    def density(u: Any) -> tuple[Gaussian, Any]:
        theta = jax.vmap(jax.vmap(target.bounded))(u)
        start = beginnings(target, live.base, past, theta)
        belief, found, _ = carried(model, live, u, start, past, stop, never)
        return belief, found + jnp.sum(jax.vmap(jax.vmap(target.log_prior))(u), axis=2)

    roots = jax.vmap(lambda u, weight: root_of(covariance_of(u, weight)[1]))(u, weight)
    rows = jax.vmap(lambda w, k: drawn_rows(w, jax.random.uniform(k), w.shape[0]))(weight, keys)
    u = jax.vmap(lambda u, rows: u[rows])(u, rows)

    def step(carry: tuple, count: Any) -> tuple[tuple, None]:
        u, belief, at = carry
        each = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, count)))(keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, u.shape[1:]))(each[:, 0])
        noise = noise * (_REACH / u.shape[2] ** 0.5)
        chance = jax.vmap(lambda key: jax.random.uniform(key, at.shape[1:]))(each[:, 1])
        proposed = u + jnp.einsum("pij,pdj->pdi", roots, noise)
        new, there = density(proposed)
        accepted = jnp.log(chance) < there - at
        taken = jax.tree.map(
            lambda n, old: jnp.where(beside(accepted, n), n, old),
            (proposed, new, there),
            (u, belief, at),
        )
        return taken, None

    (u, belief, _), _ = jax.lax.scan(step, (u, *density(u)), jnp.arange(_MOVES))
    return u, belief, jnp.full_like(weight, -jnp.log(float(weight.shape[1])))
