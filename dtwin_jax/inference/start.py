"""Where chains begin: the likeliest of many prior draws, and a short climb from there."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# Draws looked at side by side, and points climbed from.
LANES = 8
_RATE = 0.05
# Prior draws of which the median is what is typical.
_TYPICAL = 1024


def potential_energy(density: Any, data: tuple, z: dict[str, Any]) -> Any:
    """Minus the log of the joint density at unbounded `z`."""
    from numpyro.infer.util import potential_energy

    return potential_energy(density, data, {}, z)


def starting_points(density: Any, data: tuple, keys: Any, count: int) -> tuple[Any, Any, Any]:
    """For each key, a likely point.

    The likeliest of `count` prior draws, so that no chain starts in a far tail where solves fail, and the
    end of `density.climb` gradient steps from the best of them, since a likely draw may still belong to a
    false mode. Every key has draws of its own, so chains that end in different modes still tell of them.

    Returns:
        Unbounded point, its potential energy and gradient, with leading axis (lane,).
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
        best = _descend(density, data, drawn, rounds)
        chosen = jnp.argmin(best[1])
        return jax.tree.map(lambda leaf: leaf[chosen], best)

    return jax.vmap(search)(keys)


def _descend(density: Any, data: tuple, drawn: Any, rounds: int) -> tuple:
    """The best point of each lane: first among its draws, then along a climb from the best of those.

    What the density says is held stays as it is during the climb. Draws and climb share one loop, and so
    one compiled copy of the solver and its derivative.
    """
    optimiser = optax.adam(_RATE)
    slope_at = jax.vmap(jax.value_and_grad(lambda z: potential_energy(density, data, z)))
    first = jax.tree.map(lambda leaf: leaf[0], drawn)
    start = (first, jnp.full((LANES,), jnp.inf), jax.tree.map(jnp.zeros_like, first))
    memory = optimiser.init(first)

    def step(carry, i):
        at, moment, best = carry
        energy, slope = slope_at(at)
        here = (at, energy, slope)
        best = _where(jnp.isfinite(energy) & (energy < best[1]), here, best)
        turn = i + 1 == rounds
        base, _, slope = _where(turn, best, here)
        moment = _where(turn, memory, moment)
        push = {name: jnp.nan_to_num(g) * (name not in density.held) for name, g in slope.items()}
        moved, moment = optimiser.update(push, moment, base)
        climbed = optax.apply_updates(base, moved)
        following = jax.tree.map(lambda leaf: leaf[jnp.minimum(i + 1, rounds - 1)], drawn)
        return (_where(i + 1 < rounds, following, climbed), moment, best), None

    (_, _, best), _ = jax.lax.scan(step, (first, memory, start), jnp.arange(rounds + density.climb))
    return best


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
