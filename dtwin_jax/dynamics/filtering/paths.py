"""What the paths of particles say of the state: their ancestors, and moments over them."""

from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.dynamics.filtering.gaussian import Gaussian


def ancestors(drawn: Any, start: Any, stop: Any) -> Any:
    """At each of the moments `start`, the rows from which the members at the moments `stop` come.

    Args:
        drawn: (moment, member) from which member of a moment each one of the next comes.
        start: (n,) not after `stop`.
        stop: (n,).

    Returns:
        (n, member).
    """
    count, members = drawn.shape
    own = jnp.broadcast_to(jnp.arange(members, dtype=drawn.dtype), (start.shape[0], members))

    def back(rows: Any, here: tuple[Any, Any]) -> tuple[Any, None]:
        moment, from_here = here
        inside = (start <= moment) & (moment < stop)
        return jnp.where(inside[:, None], from_here[rows], rows), None

    return jax.lax.scan(back, own, (jnp.arange(count), drawn), reverse=True)[0]


def moments_over(members: Any, weight: Any) -> Gaussian:
    """Mean and covariance of weighted states; members (n, member, states), weight (n, member)."""
    mean = jnp.einsum("nm,nms->ns", weight, members)
    apart = members - mean[:, None, :]
    return Gaussian(mean, jnp.einsum("nm,nms,nmr->nsr", weight, apart, apart))


def effective_rows(rows: Any, weight: Any) -> Any:
    """How many different rows there are by weight: 1 / sum over rows of the square of all weight on it.

    Args:
        rows: (n, member).
        weight: (n, member).

    Returns:
        (n,).
    """

    def one(rows: Any, weight: Any) -> Any:
        return 1.0 / jnp.sum(jnp.zeros_like(weight).at[rows].add(weight) ** 2)

    return jax.vmap(one)(rows, weight)
