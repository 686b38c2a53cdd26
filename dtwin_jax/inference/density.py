"""The log-likelihood of a patient as a function of a few numbers, with its gradient.

A patient has few parameters, so the gradient is computed in forward mode in the same pass as the value,
and handed to whoever differentiates in reverse: samplers and optimisers pay one solve, not two. Where the
likelihood is not finite, the gradient is zero, so one failing patient does not poison the sum over patients.

Under `vmap`, over chains or patients or both, a predictor that solves many in one loop is asked for all of
them at once: a loop of its own for each, batched by JAX, takes two to three times as long.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.core.predictor import Predictor, differentiated, likelihood_of, log_likelihood, predict_cohort
from dtwin_jax.core.prior import Prior
from dtwin_jax.core.quantity import assign, check_names, quantities
from dtwin_jax.core.record import Record

# From about this many parameters on, reverse mode through the solver is the cheaper one.
FORWARD_LIMIT = 16

Override = Prior | float | None


def standard_promotion(function: Callable) -> Callable:
    """Trace `function` under JAX's standard promotion of types and ranks, on which NumPyro relies."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return wrapped


def estimated(f: Predictor, priors: Mapping[str, Override], known: Any = ()) -> tuple[Any, dict[str, Prior]]:
    """What is estimated of `f`, and the values of the rest.

    Args:
        f: the predictor.
        priors: name -> a `Prior` (estimate), a number (known to be that), or None (known, at its default).
        known: names known from the data, not estimated whatever their prior.

    Returns:
        Parameters with the known numbers filled in; name -> prior of the estimated ones.

    Raises:
        ValueError: a name that `f` does not have, a prior for what the data know, or nothing to estimate.
    """
    p = f.params()
    declared = quantities(p)
    check_names(f.name, "parameter", priors, declared)
    for name, given in priors.items():
        if isinstance(given, Prior) and name in known:
            raise ValueError(f"{name!r} is known of the patients, and has a prior: leave one of the two out")
    numbers = {
        name: float(given)
        for name, given in priors.items()
        if given is not None and not isinstance(given, Prior)
    }
    chosen = {name: priors.get(name, quantity.prior) for name, quantity in declared.items()}
    free = {name: prior for name, prior in chosen.items() if isinstance(prior, Prior) and name not in known}
    if not free:
        raise ValueError(f"{f.name}: no parameter has a prior, so there is nothing to estimate")
    return assign(p, numbers), free


def parameters(names: tuple[str, ...], base: Any, theta: Any, record: Record) -> Any:
    """One patient's parameters: `base`, with what is known of the patient, with `theta` by `names`."""
    return assign(with_known(base, record), {name: theta[i] for i, name in enumerate(names)})


def with_known(p: Any, record: Record) -> Any:
    """`p` with what is known of the patient filled in; other covariates are passed over."""
    declared = quantities(p)
    return assign(p, {name: value for name, value in record.known.items() if name in declared})


def patient_log_likelihood(
    f: Predictor, names: tuple[str, ...], base: Any, theta: Any, record: Record
) -> Any:
    """Log-likelihood of one patient, a scalar, differentiable in `theta` of shape (names,)."""
    if len(names) > FORWARD_LIMIT:
        return _total(differentiated(f, "reverse"), names, base, theta, record)
    return with_forward_gradient(f, names, base, theta, record)


def _total(f: Predictor, names: tuple[str, ...], base: Any, theta: Any, record: Record) -> Any:
    values = log_likelihood(f, parameters(names, base, theta, record), record)
    return sum(jnp.sum(value) for value in values.values())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def with_forward_gradient(f: Predictor, names: tuple[str, ...], base: Any, theta: Any, record: Record) -> Any:
    """`patient_log_likelihood` with a gradient in forward mode, however many `names` there are."""
    return _total(differentiated(f, "forward"), names, base, theta, record)


def _forward(f: Predictor, names: tuple[str, ...], base: Any, theta: Any, record: Record) -> tuple:
    value, gradient = _steep(f, names)(base, theta, record)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    return value, jnp.where(finite, gradient, 0.0)


def _steep(f: Predictor, names: tuple[str, ...]) -> Callable[..., tuple[Any, Any]]:
    """(base, theta, record) -> value and gradient of one patient; of many under `vmap`, as is fastest."""

    def one(base: Any, theta: Any, record: Record) -> tuple[Any, Any]:
        def value_twice(theta):
            value = _total(differentiated(f, "forward"), names, base, theta, record)
            return value, value

        gradient, value = jax.jacfwd(value_twice, has_aux=True)(theta)
        return value, gradient

    if not getattr(f, "solved_together", False):
        return one
    alone, many = jax.custom_batching.custom_vmap(one), _steep_together(f, names)

    @alone.def_vmap
    def _(size: int, batched: Any, *arguments: Any) -> tuple:
        return many(*_batched(size, batched, arguments)), (True, True)

    return alone


def _steep_together(f: Predictor, names: tuple[str, ...]) -> Callable[..., tuple[Any, Any]]:
    """`_steep` of many: every leaf of the arguments, and the results, have a leading axis.

    Derivatives are taken in here: to be batched there are only points, and more of them are a longer axis.
    """

    @jax.custom_batching.custom_vmap
    def many(base: Any, theta: Any, record: Record) -> tuple[Any, Any]:
        def total(theta: Any) -> Any:
            p = jax.vmap(functools.partial(parameters, names))(base, theta, record)
            predicted = predict_cohort(differentiated(f, "forward"), p, record)
            likelihood = jax.vmap(likelihood_of)(predicted, record)
            return sum(jnp.sum(value, axis=1) for value in likelihood.values())

        # All points in one direction at a time: the steps of a solve are shared by its derivatives.
        along = lambda direction: jax.jvp(total, (theta,), (jnp.broadcast_to(direction, theta.shape),))  # noqa: E731
        directions = jnp.eye(theta.shape[1], dtype=theta.dtype)
        return jax.vmap(along, out_axes=(None, -1))(directions)

    @many.def_vmap
    def _(size: int, batched: Any, *arguments: Any) -> tuple:
        joined = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), _batched(size, batched, arguments)
        )
        value, gradient = many(*joined)
        return (value.reshape(size, -1), gradient.reshape(size, -1, gradient.shape[-1])), (True, True)

    return many


def _batched(size: int, batched: Any, arguments: tuple) -> Any:
    """`arguments` with a leading axis of `size` on every leaf; those that have none are repeated."""
    batched = jax.tree.leaves(batched)
    leaves, structure = jax.tree.flatten(arguments)
    spread = [
        leaf if has else jnp.broadcast_to(leaf, (size, *jnp.shape(leaf)))
        for leaf, has in zip(leaves, batched, strict=True)
    ]
    return jax.tree.unflatten(structure, spread)


def _backward(f: Predictor, names: tuple[str, ...], gradient: Any, cotangent: Any) -> tuple:
    return None, cotangent * gradient, None


with_forward_gradient.defvjp(_forward, _backward)
