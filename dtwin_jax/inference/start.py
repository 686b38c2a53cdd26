"""Where chains begin: the likeliest of many prior draws, a short climb, and the curvature at its end."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

# Draws looked at side by side, and points climbed from.
LANES = 8
_RATE = 0.05
# Prior draws of which the median is what is typical.
_TYPICAL = 1024
# Of a coordinate, to either side of a point, for the curvature there: far below the spread of a posterior,
# far above what the tolerance of a solver moves.
_NUDGE = 1e-3


def potential_energy(density: Any, data: tuple, z: dict[str, Any]) -> Any:
    """Minus the log of the joint density at unbounded `z`."""
    from numpyro.infer.util import potential_energy

    return potential_energy(density, data, {}, z)


def starting_points(
    density: Any, data: tuple, keys: Any, count: int, dense: bool
) -> tuple[tuple[Any, Any, Any], Any]:
    """For each key, a likely point.

    The likeliest of `count` prior draws, so that no chain starts in a far tail where solves fail, and the
    end of `density.climb` gradient steps from the best of them, since a likely draw may still belong to a
    false mode. Every key has draws of its own, so chains that end in different modes still tell of them.

    Returns:
        Unbounded point, its potential energy and gradient, with leading axis (lane,); and a first
        guess of the covariance about it: (lane, coordinate, coordinate) if `dense`, else its diagonal.
    """

    # Points compare only where what is held is equal, and at what is typical of it: with one scatter between
    # patients small by chance, a mode that needs little of that one looks the better.
    many = jax.random.split(jax.random.key(0), _TYPICAL)
    typical = jax.vmap(lambda k: _draw(density, data, k))(many) if density.held else {}
    level = {name: jnp.median(typical[name]) for name in density.held}

    def search(key: Any) -> tuple:
        rounds = -(-count // LANES)
        drawn = jax.vmap(lambda k: _draw(density, data, k))(jax.random.split(key, rounds * LANES))
        held = {name: jnp.broadcast_to(at, drawn[name].shape) for name, at in level.items()}
        drawn = jax.tree.map(lambda leaf: leaf.reshape(rounds, LANES, *leaf.shape[1:]), drawn | held)
        return _descend(density, data, drawn, rounds, dense)

    return jax.vmap(search)(keys)


def _descend(density: Any, data: tuple, drawn: Any, rounds: int, dense: bool) -> tuple[tuple, Any]:
    """The best point of all lanes, each first among its draws, then along a climb from the best of those.

    What the density says is held stays as it is during the climb. Draws, climb and what the curvature is told
    from share one loop, and so one compiled copy of the solver and its derivative.

    Returns:
        Point, energy and slope; covariance, or its diagonal.
    """
    optimiser = optax.adam(_RATE)
    slope_at = jax.vmap(jax.value_and_grad(lambda z: potential_energy(density, data, z)))
    first = jax.tree.map(lambda leaf: leaf[0], drawn)
    start = (first, jnp.full((LANES,), jnp.inf), jax.tree.map(jnp.zeros_like, first))
    memory = optimiser.init(first)
    searched = rounds + density.climb
    nudges, unravel = _nudges(first)

    def step(carry, i):
        at, moment, best = carry
        energy, slope = slope_at(at)
        here = (at, energy, slope)
        better = jnp.isfinite(energy) & (energy < best[1]) & (i < searched)
        best = _where(better, here, best)
        turn = i + 1 == rounds
        base, _, push = _where(turn, best, here)
        moment = _where(turn, memory, moment)
        push = {name: jnp.nan_to_num(g) * (name not in density.held) for name, g in push.items()}
        moved, moment = optimiser.update(push, moment, base)
        climbed = optax.apply_updates(base, moved)
        following = jax.tree.map(lambda leaf: leaf[jnp.minimum(i + 1, rounds - 1)], drawn)
        following = _where(i + 1 < rounds, following, climbed)
        apart = unravel(nudges[jnp.clip(i + 1 - searched, 0, len(nudges) - 1)])
        nudged = jax.tree.map(lambda leaf, d: leaf[None] + d, _least(best)[0], apart)
        following = _where(i + 1 < searched, following, nudged)
        return (following, moment, best), slope

    steps = jnp.arange(searched + len(nudges))
    (_, _, best), slopes = jax.lax.scan(step, (first, memory, start), steps)
    about = jax.tree.map(lambda leaf: leaf[searched:], slopes)
    return _least(best), _covariance(about, dense)


def _least(best: tuple) -> tuple:
    """Of the lanes' points, that of the least energy."""
    chosen = jnp.argmin(best[1])
    return jax.tree.map(lambda leaf: leaf[chosen], best)


def _nudges(points: Any) -> tuple[Any, Any]:
    """Moves up and down each coordinate, (round, LANES, coordinate); and points (LANES,) from a round."""
    one, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], points))
    moves = (
        jnp.repeat(_NUDGE * jnp.eye(one.size), 2, axis=0)
        * jnp.tile(jnp.asarray([1.0, -1.0]), one.size)[:, None]
    )
    rounds = -(-2 * one.size // LANES)
    filled = jnp.concatenate([moves, jnp.zeros((rounds * LANES - 2 * one.size, one.size))])
    return filled.reshape(rounds, LANES, one.size), jax.vmap(unravel)


def _covariance(slopes: Any, dense: bool) -> Any:
    """The inverse of the curvature or its diagonal, from the `slopes` (round, LANES, ...) after `_nudges`.

    Where the energy is flat or bends down, and where a slope is not finite, the spread is 1 as for want of
    knowledge: never more, since a prior that is wider would make a first step that solves fail at.
    """
    count = sum(leaf[0, 0].size for leaf in jax.tree.leaves(slopes))
    flat = jax.vmap(jax.vmap(lambda slope: ravel_pytree(slope)[0]))(slopes).reshape(-1, count)
    up, down = flat[0 : 2 * count : 2], flat[1 : 2 * count : 2]
    curvature = (up - down) / (2 * _NUDGE)
    known = jnp.all(jnp.isfinite(curvature))
    curvature = jnp.where(known, (curvature + curvature.T) / 2, jnp.eye(count))
    bends, axes = jnp.linalg.eigh(curvature)
    covariance = (axes / jnp.maximum(bends, 1.0)) @ axes.T
    return covariance if dense else jnp.diag(covariance)


def _where(condition: Any, yes: Any, no: Any) -> Any:
    """`jnp.where` over trees; `condition` is a scalar or has the leading axis."""

    def pick(a, b):
        return jnp.where(jnp.reshape(condition, condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(pick, yes, no)


def _draw(density: Any, data: tuple, key: Any) -> dict[str, Any]:
    from numpyro import handlers
    from numpyro.infer.util import unconstrain_fn

    trace = handlers.trace(handlers.seed(density, key)).get_trace(*data, likelihood=False)
    values = {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    return unconstrain_fn(density, (*data, False), {}, values)
