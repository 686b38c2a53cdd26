"""Particles that are steered to the measurement they are about to meet, and weighed for it.

A step of length h, from x to x', is normal with mean m(x), the drift's step by Heun's method, and variance
V = diag(g(x)^2 h): Euler-Maruyama's, but of second order where there is no noise. The readings y at the time
T that lies ahead are about linear in x'. With the drift's derivative at the swarm's centre, frozen from
there to T, they have slope B, mean z(x') = z + B (x' - centre) and covariance S, which holds the noise
still to come and the sensors'. So x' is drawn from the normal that it is given y, with gain
K = V B' (B V B' + S)^-1, and the log-weight gains

    log p(x' | x) - log q(x' | x, y) = log N(y; z(m), B V B' + S) - log N(y; z(x'), S)

(Bayes), which never asks for the density of a state without noise. However rough the approximation, the
weights are exact for the discretised process: it costs particles, not truth.

Sources: Durham & Gallant 2002, doi 10.1198/073500102288618397 (recalled, not checked); Golightly & Wilkinson
2008, doi 10.1016/j.csda.2007.05.019 (recalled, not checked); Whitaker et al. 2017,
doi 10.1007/s11222-016-9660-3. There the drift stays constant up to T, here its derivative does, so states
that are only felt through others are steered too.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from dtwin_jax.core.record import SEEN
from dtwin_jax.dynamics.filtering.body import Body
from dtwin_jax.dynamics.filtering.gaussian import linear_move
from dtwin_jax.dynamics.filtering.sequence import Moments, Rows, on_reading_scale


class Ahead(eqx.Module):
    """Of every moment, what the stretch that ends there leads to; arrays (moment, ...).

    Attributes:
        time: of the readings ahead, infinite where there are none to steer to.
        value: (channel,) what is read, of the log where a channel is log-normal.
        seen: (channel,) which channels are.
        next_time: of the next row that is learned from after this moment, if no event lies between.
    """

    time: Any
    value: Any
    seen: Any
    next_time: Any


class _Aim(eqx.Module):
    """Readings ahead, seen from a state x: mean `expected + slope (x - centre)`, root of the covariance."""

    centre: Any
    expected: Any
    slope: Any
    root: Any


def ahead_of(rows: Rows, moments: Moments, learns: Any, logs: Any, *, far: bool) -> Ahead:
    """What every stretch may be steered to.

    Rows that are seen, after the stretch, before any further event, and at the stretch's end; with `far` also
    later ones, up to the first row that is learned from.
    """
    (count,) = logs.shape
    row = jax.tree.map(lambda leaf: leaf[moments.row], rows)
    value = on_reading_scale(row.value, logs[row.channel])
    seen = learns & (row.censor == SEEN) & jnp.isfinite(value) & ~(logs[row.channel] & (row.value <= 0))
    never = jnp.asarray(jnp.inf)

    def back(later: Ahead, here: tuple[Any, ...]) -> tuple[Ahead, Ahead]:
        stop, event, learns, seen, value, channel = here
        kept = ~event & ((later.time == stop) | (~learns if far else False))
        own = seen & (jnp.arange(count) == channel)
        found = Ahead(
            time=jnp.where(seen, stop, jnp.where(kept, later.time, never)),
            value=jnp.where(own, value, later.value),
            seen=own | (kept & later.seen),
            next_time=jnp.where(event, never, jnp.where(learns, stop, later.next_time)),
        )
        return found, eqx.tree_at(lambda a: a.next_time, found, later.next_time)

    none = Ahead(never, jnp.zeros(count), jnp.zeros(count, bool), never)
    parts = (moments.stop, moments.row < 0, learns, seen, value, row.channel)
    return jax.lax.scan(back, none, parts, reverse=True)[1]


def guided(
    body: Body, members: Any, weight: Any, moment: Any, ahead: Ahead | None, key: Any
) -> tuple[Any, Any]:
    """Members (member, states) at the end of a stretch, and what their log-weights gain (member,).

    Args:
        body: the equations.
        members: at its start.
        weight: (member,) theirs; it only says where the swarm's centre is.
        moment: the stretch.
        ahead: what to steer to, None for not at all.
        key: of the noise.
    """
    solver = body.model.solver
    span = moment.stop - moment.start
    # Rounding of a stretch that is a multiple of the step must not add a tiny one.
    steps = jnp.ceil(span / solver.dt * (1.0 - 1e-9))
    count, h = steps.astype(int), span / jnp.maximum(steps, 1.0)

    def step(k: Any, both: tuple[Any, Any]) -> tuple[Any, Any]:
        x, gained = both
        t = moment.start + k.astype(h.dtype) * h
        mean = jax.vmap(lambda x: _drifted(body, t, x, h, moment.held))(x)
        sd = jax.vmap(lambda x: body.diffusion(t, x, moment.held))(x) * jnp.sqrt(h)
        key_state, key_reading = jax.random.split(jax.random.fold_in(key, k))
        moved = sd * jax.random.normal(key_state, x.shape)
        if ahead is None:
            return mean + moved, gained
        aim = _aim(body, (t, h), weight @ x, moment.held, ahead)
        apart = jax.random.normal(key_reading, (x.shape[0], aim.root.shape[0])) @ aim.root.T
        left = jax.vmap(_left, in_axes=(None, None, 0))(aim, ahead, mean)
        moved, gain = jax.vmap(_steered, in_axes=(None, 0, 0, 0, 0))(aim, left, sd, moved, apart)
        return mean + moved, gained + gain

    start = (members, jnp.zeros(members.shape[0]))
    members, gained = jax.lax.fori_loop(0, jnp.minimum(count, solver.max_steps), step, start)
    return jnp.where(count <= solver.max_steps, members, jnp.nan), gained


def _drifted(body: Body, t: Any, x: Any, h: Any, held: Any) -> Any:
    first = body.drift(t, x, held)
    return x + 0.5 * h * (first + body.drift(t + h, x + h * first, held))


def _aim(body: Body, step: tuple[Any, Any], x: Any, held: Any, ahead: Ahead) -> _Aim:
    """The readings ahead from the end of a `step` (start, length) that the swarm's centre `x` begins."""
    t, h = step
    rate = body.drift(t, x, held)
    A = jax.jacfwd(lambda x: body.drift(t, x, held))(x)
    noise = body.diffusion(t, x, held) ** 2
    centre = _drifted(body, t, x, h, held)
    end = jnp.where(jnp.isfinite(ahead.time), ahead.time, t + h)
    M, c, Q = linear_move(A, rate - A @ x, noise, jnp.maximum(end - t - h, 0.0), reverse=False)
    there = M @ centre + c
    loc, scale = body.reading(end, there, held)
    H = jax.jacfwd(lambda x: body.reading(end, x, held)[0])(there)
    H = jnp.where(ahead.seen[:, None], H, 0.0)
    root = jnp.linalg.cholesky(H @ Q @ H.T + jnp.diag(jnp.where(ahead.seen, scale**2, 1.0)))
    slope = H @ M
    # Where no reading can be told from the centre (the log of what is not positive), nothing is steered.
    fine = jnp.all(jnp.isfinite(root)) & jnp.all(jnp.isfinite(slope)) & jnp.all(jnp.isfinite(centre))
    fine = fine & jnp.all(jnp.isfinite(loc) | ~ahead.seen)
    return _Aim(
        centre=jnp.where(fine, centre, 0.0),
        expected=jnp.where(fine, loc, jnp.nan),
        slope=jnp.where(fine, slope, 0.0),
        root=jnp.where(fine, root, jnp.eye(root.shape[0])),
    )


def _left(aim: _Aim, ahead: Ahead, x: Any) -> Any:
    """What is read, less what is expected of it from `x`; (channel,)."""
    known = ahead.seen & jnp.isfinite(aim.expected)
    return jnp.where(known, ahead.value - aim.expected - aim.slope @ (x - aim.centre), 0.0)


def _steered(aim: _Aim, left: Any, sd: Any, moved: Any, apart: Any) -> tuple[Any, Any]:
    """How far a member moves from its mean, given the readings, and what its log-weight gains.

    A draw of state and reading together is moved by the gain to the reading that was seen, so that no root of
    a covariance without rank is needed.

    Args:
        aim: the readings ahead.
        left: (channel,) what is read, less what is expected of it.
        sd: (states,) of the step.
        moved: (states,) a draw of the step.
        apart: (channel,) a draw of the readings, less what is expected of them then.
    """
    variance = sd**2
    whole = (aim.slope * variance[None, :]) @ aim.slope.T + aim.root @ aim.root.T
    root = jnp.linalg.cholesky(whole)
    solved = jax.scipy.linalg.cho_solve((root, True), left - aim.slope @ moved - apart)
    moved = moved + variance * (aim.slope.T @ solved)
    return moved, _log_normal(root, left) - _log_normal(aim.root, left - aim.slope @ moved)


def _log_normal(root: Any, z: Any) -> Any:
    """Log-density of a normal with mean 0 and this root of its covariance, without its constant."""
    scaled = jax.scipy.linalg.solve_triangular(root, z, lower=True)
    return -0.5 * jnp.sum(scaled**2) - jnp.sum(jnp.log(jnp.diagonal(root)))
