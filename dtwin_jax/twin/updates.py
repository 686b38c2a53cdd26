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
from dtwin_jax.inference.fit import Target
from dtwin_jax.twin.draws import beside, covariance_of, root_of, spread

# Draws are renewed when the effective number falls below this share.
_FEW = 0.5
# Stages in which a likelihood is taken in, at most; the last takes all that is left.
_STAGES = 12
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
def learned(model: Any, live: Any, record: Record, past: Record | None, stop: Any, key: Any) -> Any:
    """The twins `live` at `stop`, after the measurements of `record`; with `past`, renewed exactly."""
    if past is None:
        u, belief, weight, renewed, lost = _learned_by_stages(model, live, record, stop, key)
    else:
        u, belief, weight, renewed, lost = _learned_at_once(model, live, record, past, stop, key)
    counted = {"renewed": live.renewed + renewed, "lost": live.lost + lost}
    return replace(live, u=u, belief=belief, log_weight=weight, time=stop, given=stop, **counted)


def _learned_at_once(
    model: Any, live: Any, record: Record, past: Record, stop: Any, key: Any
) -> tuple[Any, Gaussian, Any, Any, Any]:
    """Weighed by the whole likelihood, and where few draws are left moved on the exact posterior."""
    moved, found = carried(model, live, live.u, live.belief, record, stop, live.given)
    lost = _lost(found)
    weight = _normal(live.log_weight + jnp.where(lost[:, None], 0.0, found))
    few = effective_of(weight) < _FEW * weight.shape[1]

    def renew(state: tuple) -> tuple:
        new = _moved(model, live, past, stop, state, jax.random.split(key, len(live.ids)))
        return jax.tree.map(lambda n, old: jnp.where(beside(few, n), n, old), new, state)

    # Of a ward most updates renew nobody, and then no time is spent on it.
    state = (live.u, moved, weight)
    u, belief, weight = jax.lax.cond(jnp.any(few), renew, lambda state: state, state)
    return u, belief, weight, few.astype(int), lost.astype(int)


def _learned_by_stages(
    model: Any, live: Any, record: Record, stop: Any, key: Any
) -> tuple[Any, Gaussian, Any, Any, Any]:
    """Weighed by as much of the likelihood as leaves enough draws, renewed by the kernel, and again.

    Renewed are draws and beliefs before the measurements, which then are met anew: the few draws that a
    whole likelihood leaves would not know the spread of all directions.
    """

    def learn(carry: tuple) -> tuple:
        u, before, _, weight, left, renewed, lost, stage = carry
        moved, found = carried(model, live, u, before, record, stop, live.given)
        lost = jnp.where(stage == 0, _lost(found), lost)
        found = jnp.where(lost[:, None], 0.0, found)
        part = jnp.where(stage < _STAGES - 1, jax.vmap(_bearable)(weight, found, left), left)
        weight = _normal(weight + part[:, None] * found)
        left = left - part
        again = left > 0
        keys = jax.random.split(jax.random.fold_in(key, stage), len(live.ids))
        state = (u, before, weight)
        new = jax.lax.cond(jnp.any(again), lambda: jax.vmap(spread)(*state, keys), lambda: state)
        u, before, weight = jax.tree.map(lambda n, old: jnp.where(beside(again, n), n, old), new, state)
        return u, before, moved, weight, left, renewed + again.astype(int), lost, stage + 1

    none = jnp.zeros(live.time.shape, int)
    begin = (live.u, live.belief, live.belief, live.log_weight, jnp.ones(live.time.shape, float))
    u, _, belief, weight, _, renewed, lost, _ = jax.lax.while_loop(
        lambda carry: jnp.any(carry[4] > 0), learn, (*begin, none, none == 1, jnp.asarray(0))
    )
    return u, belief, weight, renewed, lost.astype(int)


def _bearable(log_weight: Any, found: Any, left: Any) -> Any:
    """The largest part of the likelihood, up to `left`, that leaves enough draws effective."""
    least = _FEW * log_weight.shape[0]

    def halve(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = 0.5 * (low + high)
        enough = effective_of(_normal(log_weight + middle * found)) >= least
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    enough = effective_of(_normal(log_weight + left * found)) >= least
    low, _ = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(left), left))
    return jnp.where(enough, left, low)


def _lost(found: Any) -> Any:
    """(patient,) whether no draw explains the measurements."""
    # Beside a measurement that costs the penalty another may win a little back.
    return jnp.all(found <= 0.5 * PENALTY, axis=1)


def _normal(log_weight: Any) -> Any:
    return log_weight - jax.scipy.special.logsumexp(log_weight, axis=-1, keepdims=True)


def carried(
    model: Any, live: Any, u: Any, belief: Gaussian, record: Record, stop: Any, given: Any
) -> tuple[Gaussian, Any]:
    """Every draw's belief at `stop`, and log-likelihood of the record, (patient, draw).

    A draw that could not be solved keeps the belief that it had, which must not be NaN where draws are
    averaged, and loses its weight.
    """
    target = Target(model, live.priors)

    def draw(u: Any, belief: Gaussian, record: Record, stop: Any, given: Any) -> tuple[Gaussian, Any]:
        p = parameters(target.names, live.base, target.bounded(u), record)
        moved, predicted = advance(model, p, belief, record, stop, given)
        good = jnp.all(jnp.isfinite(moved.mean)) & jnp.all(jnp.isfinite(moved.covariance))
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, belief)
        return kept, jnp.where(good, log_likelihood_of(predicted, record), PENALTY)

    def patient(u: Any, belief: Gaussian, record: Record, stop: Any, given: Any) -> tuple[Gaussian, Any]:
        return jax.vmap(lambda u, b: draw(u, b, record, stop, given))(u, belief)

    return jax.vmap(patient)(u, belief, record, stop, given)


def _moved(model: Any, live: Any, past: Record, stop: Any, state: tuple, keys: Any) -> tuple:
    """Draws of equal weight, moved by Metropolis steps on the posterior of everything measured."""
    target = Target(model, live.priors)
    u, _, weight = state
    never = jnp.full(stop.shape, -jnp.inf, dtype=float)

    def density(u: Any) -> tuple[Gaussian, Any]:
        theta = jax.vmap(jax.vmap(target.bounded))(u)
        start = beginnings(target, live.base, past, theta)
        belief, found = carried(model, live, u, start, past, stop, never)
        return belief, found + jnp.sum(jax.vmap(jax.vmap(target.log_prior))(u), axis=2)

    roots = jax.vmap(lambda u, weight: root_of(covariance_of(u, weight)[1]))(u, weight)
    rows = jax.vmap(lambda w, k: drawn_rows(w, jax.random.uniform(k), w.shape[0]))(weight, keys)
    u = jax.vmap(lambda u, rows: u[rows])(u, rows)

    def step(carry: tuple, count: Any) -> tuple[tuple, None]:
        u, belief, at = carry
        key_noise, key_accept = jax.random.split(jax.random.fold_in(keys[0], count))
        noise = jax.random.normal(key_noise, u.shape) * (_REACH / u.shape[2] ** 0.5)
        proposed = u + jnp.einsum("pij,pdj->pdi", roots, noise)
        new, there = density(proposed)
        accepted = jnp.log(jax.random.uniform(key_accept, at.shape)) < there - at
        taken = jax.tree.map(
            lambda n, old: jnp.where(beside(accepted, n), n, old),
            (proposed, new, there),
            (u, belief, at),
        )
        return taken, None

    (u, belief, _), _ = jax.lax.scan(step, (u, *density(u)), jnp.arange(_MOVES))
    return u, belief, jnp.full_like(weight, -jnp.log(float(weight.shape[1])))
