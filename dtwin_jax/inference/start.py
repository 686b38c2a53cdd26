"""Where chains begin: the likeliest of many prior draws, a short climb, and the curvature at its end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from dtwin_jax.inference.density import standard_promotion

# Draws looked at side by side, and points climbed from.
LANES = 8
_RATE = 0.05
# Prior draws of which the median is what is typical.
_TYPICAL = 256
# Of a coordinate, to either side of a point, for the curvature there: far below the spread of a posterior,
# far above what the tolerance of a solver moves.
_NUDGE = 1e-3


def potential_energy(density: Any, data: tuple, z: dict[str, Any]) -> Any:
    """Minus the log of the joint density at unbounded `z`."""
    from numpyro.infer.util import potential_energy

    return potential_energy(density, data, {}, z)


@standard_promotion
def coordinates(density: Any, data: tuple) -> Any:
    """From the vector of all unbounded coordinates to name -> value.

    As one vector a sampler or a climb treats them at once, where a program for each name would take several
    times as long to compile.
    """
    like = jax.eval_shape(lambda: _draw(density, data, jax.random.key(0)))
    return ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))[1]


def flat_energy(density: Any, data: tuple) -> Any:
    """`potential_energy` of the vector of all coordinates."""
    named = coordinates(density, data)
    return lambda flat: potential_energy(density, data, named(flat))


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
    rounds = -(-count // LANES)
    own = jax.vmap(lambda key: jax.random.split(key, rounds * LANES))(keys).reshape(-1)
    # Points compare only where what is held is equal, and at what is typical of it: with one scatter between
    # patients small by chance, a mode that needs little of that one looks the better.
    many = jax.random.split(jax.random.key(0), _TYPICAL if density.held else 0)
    drawn = jax.vmap(lambda key: _draw(density, data, key))(jnp.concatenate([own, many]))
    held = np.concatenate([np.full(drawn[name][0].size, name in density.held) for name in sorted(drawn)])
    flat, places = jax.vmap(lambda one: ravel_pytree(one)[0])(drawn), np.flatnonzero(held)
    if len(places):
        typical = jnp.median(flat[len(own) :, places], axis=0)
        flat = flat.at[:, places].set(typical)
    drawn = flat[: len(own)].reshape(len(keys), rounds, LANES, len(held))
    best, covariance = jax.vmap(lambda each: _descend(density, data, each, held, dense))(drawn)
    named = jax.vmap(coordinates(density, data))
    return (named(best[0]), best[1], named(best[2])), covariance


def _descend(density: Any, data: tuple, drawn: Any, held: Any, dense: bool) -> tuple[tuple, Any]:
    """The best point of all lanes, each first among its draws, then along a climb from the best of those.

    What is `held` (coordinate,) stays as it is during the climb. Draws (round, LANES, coordinate), climb and
    what the curvature is told from share one loop, and so one compiled copy of the solver and its derivative.

    Returns:
        Point, energy and slope; covariance, or its diagonal.
    """
    optimiser = optax.adam(_RATE)
    slope_at = jax.vmap(jax.value_and_grad(flat_energy(density, data)))
    rounds, first = len(drawn), drawn[0]
    start = (first, jnp.full((LANES,), jnp.inf), jnp.zeros_like(first))
    memory = optimiser.init(first)
    searched = rounds + density.climb
    nudges = _nudges(first.shape[1])

    def step(carry, i):
        at, moment, best = carry
        energy, slope = slope_at(at)
        here = (at, energy, slope)
        better = jnp.isfinite(energy) & (energy < best[1]) & (i < searched)
        best = _where(better, here, best)
        turn = i + 1 == rounds
        base, _, push = _where(turn, best, here)
        moment = _where(turn, memory, moment)
        moved, moment = optimiser.update(jnp.where(held, 0.0, jnp.nan_to_num(push)), moment, base)
        climbed: Any = optax.apply_updates(base, moved)
        following = jnp.where(i + 1 < rounds, drawn[jnp.minimum(i + 1, rounds - 1)], climbed)
        apart = nudges[jnp.clip(i + 1 - searched, 0, len(nudges) - 1)]
        following = jnp.where(i + 1 < searched, following, _least(best)[0] + apart)
        return (following, moment, best), slope

    steps = jnp.arange(searched + len(nudges))
    (_, _, best), slopes = jax.lax.scan(step, (first, memory, start), steps)
    return _least(best), _covariance(slopes[searched:], dense)


def _least(best: tuple) -> tuple:
    """Of the lanes' points, that of the least energy."""
    chosen = jnp.argmin(best[1])
    return jax.tree.map(lambda leaf: leaf[chosen], best)


def _nudges(count: int) -> Any:
    """Moves up and down each of the coordinates, (round, LANES, coordinate)."""
    moves = (
        jnp.repeat(_NUDGE * jnp.eye(count), 2, axis=0) * jnp.tile(jnp.asarray([1.0, -1.0]), count)[:, None]
    )
    rounds = -(-2 * count // LANES)
    filled = jnp.concatenate([moves, jnp.zeros((rounds * LANES - 2 * count, count))])
    return filled.reshape(rounds, LANES, count)


def _covariance(slopes: Any, dense: bool) -> Any:
    """The inverse of the curvature or its diagonal, from the `slopes` (round, LANES, ...) after `_nudges`.

    Where the energy is flat or bends down, and where a slope is not finite, the spread is 1 as for want of
    knowledge: never more, since a prior that is wider would make a first step that solves fail at.
    """
    count = slopes.shape[-1]
    flat = slopes.reshape(-1, count)
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
