"""Normal beliefs about a state: how linear motion, a bolus and a measurement move them.

A measurement z with predicted mean z0, variance S and covariance c with the state moves mean and covariance
by the gain k = c / S: m + k (E z - z0), P - (S - Var z) k k', where E z and Var z are of what is known of z:
the value itself, or a normal cut at the limit for a censored one.

Sources: Kalman 1960, doi 10.1115/1.3662552; the noise's integral: Van Loan 1978,
doi 10.1109/TAC.1978.1101743 (recalled, not checked).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from dtwin_jax.core.record import ABOVE, BELOW
from dtwin_jax.dynamics.filtering.body import Body

# Doublings of the shortest step of a linear model: stretches of up to 2^40 time constants.
_DOUBLINGS = 40
_TERMS = 15


class Gaussian(eqx.Module):
    """What is believed of the state: mean (states,) and covariance (states, states)."""

    mean: Any
    covariance: Any


def linear_move(A: Any, b: Any, noise: Any, dt: Any, *, reverse: bool = True) -> tuple[Any, Any, Any]:
    """What dx = (A x + b) dt + diag(sqrt(noise)) dW does in `dt`: x -> M x + c + a normal with covariance Q.

    Over a short step by series, then doubled: the usual single exponential holds exp(-A dt) too, which loses
    all digits where dt is many time constants. Without `reverse` it is quicker, and has forward derivatives
    only.

    Returns:
        M (n, n), c (n,), Q (n, n).
    """
    n = A.shape[0]
    whole = jnp.zeros((n + 1, n + 1)).at[:n, :n].set(A).at[:n, n].set(b)
    spread = jnp.zeros((n + 1, n + 1)).at[jnp.arange(n), jnp.arange(n)].set(noise)
    size = jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(A), axis=1)) * dt)
    wanted = jnp.ceil(jnp.log2(jnp.maximum(size, 1e-300))) + 2.0
    halvings = jnp.clip(wanted, 0.0, float(_DOUBLINGS)).astype(int)
    h = dt * 0.5 ** halvings.astype(dt.dtype)
    # With |A| h at most 1/4 the terms left out are below 2^-k / k! of the first.
    M, Q = jnp.eye(n + 1), spread
    for k in range(_TERMS, 0, -1):
        M = jnp.eye(n + 1) + h / k * (whole @ M)
        if k > 1:
            grown = whole @ Q
            Q = spread + h / k * (grown + grown.T)
    M, Q = _doubled(M, h * Q, halvings, reverse)
    return M[:n, :n], M[:n, n], 0.5 * (Q + Q.T)[:n, :n]


def _doubled(M: Any, Q: Any, times: Any, reverse: bool) -> tuple[Any, Any]:
    """M and Q over a step that is doubled `times` times."""

    def double(_: Any, both: tuple[Any, Any]) -> tuple[Any, Any]:
        M, Q = both
        return M @ M, Q + M @ Q @ M.T

    if not reverse:
        # As many as the lane that needs most, and most stretches need one or two.
        return jax.lax.fori_loop(0, times, double, (M, Q))

    def perhaps(i: Any, both: tuple[Any, Any]) -> tuple[Any, Any]:
        return jax.lax.cond(i < times, lambda both: double(i, both), lambda both: both, both)

    return jax.lax.fori_loop(0, _DOUBLINGS, perhaps, (M, Q))


def jumped(body: Body, belief: Gaussian, t: Any, held: Any, amount: Any) -> tuple[Gaussian, Any]:
    """The belief just after boluses, and the matrix by which deviations have moved."""
    J = jax.jacfwd(lambda x: body.jump(t, x, held, amount))(belief.mean)
    moved = body.jump(t, belief.mean, held, amount)
    return Gaussian(moved, J @ belief.covariance @ J.T), J


def updated(belief: Gaussian, read: tuple[Any, Any, Any], value: Any, censor: Any) -> Gaussian:
    """The belief after a measurement with mean, variance and covariance `read`, all of one channel."""
    mean, variance, cross = read
    known, left = known_of(mean, variance, value, censor)
    gain = cross / variance
    P = belief.covariance - (variance - left) * gain[:, None] * gain[None, :]
    return Gaussian(belief.mean + gain * (known - mean), 0.5 * (P + P.T))


def known_of(mean: Any, variance: Any, value: Any, censor: Any) -> tuple[Any, Any]:
    """Mean and variance of a measurement, given what is known of it."""
    sd = jnp.sqrt(variance)
    # By symmetry a limit from below is one from above of the mirrored normal.
    sign = jnp.where(censor == ABOVE, -1.0, 1.0)
    a = sign * (value - mean) / sd
    hazard = jnp.exp(-0.5 * a**2 - 0.5 * jnp.log(2.0 * jnp.pi) - log_ndtr(a))
    limited = (censor == BELOW) | (censor == ABOVE)
    left = jnp.clip(1.0 - hazard * (a + hazard), 0.0, 1.0)
    return jnp.where(limited, mean - sign * sd * hazard, value), jnp.where(limited, left * variance, 0.0)
