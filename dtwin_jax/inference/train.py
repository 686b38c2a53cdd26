"""Gradient training through the solver: what all patients share, network weights included."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtwin_jax.core.predictor import PENALTY, check_cohort, differentiated, log_likelihood
from dtwin_jax.core.quantity import assign, quantities, values
from dtwin_jax.core.record import Cohort, Record, stack
from dtwin_jax.inference.density import standard_promotion, with_known


@dataclass(frozen=True)
class Trained:
    """Parameters after training.

    Attributes:
        params: the best of all steps; with batches, whose losses do not compare, the last.
        loss: (steps,) before each step: mean over patients of minus the log-likelihood, plus minus the
            log prior of what was trained over the number of patients.
        failed: patients of whom the model cannot explain a measurement at `params`.
    """

    params: Any
    loss: np.ndarray
    failed: tuple[str, ...]


def train(
    f: Any,
    data: Record | Cohort,
    *,
    where: Callable[[Any], Any],
    optimiser: optax.GradientTransformation,
    steps: int,
    key: Any,
    params: Any = None,
    batch: int | None = None,
) -> Trained:
    """Move the parameters that all patients share along the gradient of their likelihood.

    Parameters with a prior move on their unbounded scale and are held by it; leaves without one (network
    weights) move as they are. What is known of a patient is filled in for that patient.

    Args:
        f: a predictor.
        data: one record, or a cohort.
        where: parameters -> the leaf, or a tuple of leaves, to train: `lambda p: (p.CL, p.net)`.
        optimiser: an Optax optimiser.
        steps: gradient steps.
        key: random key, for the choice of batches.
        params: where to start; the predictor's defaults if None.
        batch: patients a step, drawn at random; None takes all.

    A bar shows the loss on standard error, when that is a terminal.

    Raises:
        ValueError: data that `f` cannot use, or a batch larger than the cohort.
    """
    from tqdm import tqdm

    cohort = data if isinstance(data, Cohort) else stack({"1": data})
    check_cohort(f, cohort)
    if batch is not None and not 1 <= batch <= len(cohort):
        raise ValueError(f"train: batch must be between 1 and {len(cohort)} patients, found {batch}")
    p = f.params() if params is None else params
    task = _Task(differentiated(f, "reverse"), _chosen_scales(p, where), optimiser, batch)
    trained, rest = eqx.partition(_unbound(task.scales, p), _mask(p, where))
    record = jax.tree.map(jnp.asarray, cohort.record)
    state = (trained, optimiser.init(trained), trained, jnp.asarray(jnp.inf), key)
    history: list[np.ndarray] = []
    chunk = max(1, min(25, steps))
    with tqdm(total=steps, desc="training", unit="step", disable=None) as bar:
        while (done := sum(len(part) for part in history)) < steps:
            state, loss = _run(task, min(chunk, steps - done), rest, record, state)
            history.append(np.asarray(loss))
            bar.set_postfix(loss=f"{history[-1][-1]:.4g}")
            bar.update(len(history[-1]))
    best = _bind(task.scales, eqx.combine(state[2], rest))
    return Trained(best, np.concatenate(history), _unexplained(task.f, best, record, cohort.ids))


@dataclass(frozen=True)
class _Task:
    """What is static of a training run."""

    f: Any
    scales: tuple[tuple[str, Any], ...]
    optimiser: optax.GradientTransformation
    batch: int | None

    def loss(self, trained: Any, rest: Any, record: Record, patients: int) -> Any:
        """Of the patients of `record`, some or all of a cohort of so many `patients`."""
        u = eqx.combine(trained, rest)
        p = _bind(self.scales, u)
        each = jax.vmap(functools.partial(_minus_log_likelihood, self.f, p))(record)
        return jnp.mean(each) - self._log_prior(u, p) / patients

    def _log_prior(self, u: Any, p: Any) -> Any:
        import numpyro.distributions as dist

        total = jnp.zeros(())
        unbounded, bounded = values(u), values(p)
        for name, prior in self.scales:
            d = prior.distribution()
            jacobian = dist.biject_to(d.support).log_abs_det_jacobian(unbounded[name], bounded[name])
            total = total + d.log_prob(bounded[name]) + jacobian
        return total


def _minus_log_likelihood(f: Any, p: Any, record: Record) -> Any:
    return -sum(jnp.sum(value) for value in log_likelihood(f, with_known(p, record), record).values())


def _mask(p: Any, where: Callable[[Any], Any]) -> Any:
    none = jax.tree.map(lambda _: False, p)
    every = jax.tree.map(eqx.is_inexact_array, p)
    return eqx.tree_at(where, none, where(every))


def _chosen_scales(p: Any, where: Callable[[Any], Any]) -> tuple[tuple[str, Any], ...]:
    chosen = values(_mask(p, where))
    return tuple(
        (name, q.prior) for name, q in quantities(p).items() if q.prior is not None and chosen[name] is True
    )


def _unbound(scales: tuple[tuple[str, Any], ...], p: Any) -> Any:
    import numpyro.distributions as dist

    held = values(p)
    return assign(p, {n: dist.biject_to(prior.distribution().support).inv(held[n]) for n, prior in scales})


def _bind(scales: tuple[tuple[str, Any], ...], u: Any) -> Any:
    import numpyro.distributions as dist

    held = values(u)
    return assign(u, {n: dist.biject_to(prior.distribution().support)(held[n]) for n, prior in scales})


@functools.partial(eqx.filter_jit)
@standard_promotion
def _run(task: _Task, count: int, rest: Any, record: Record, state: tuple) -> tuple[tuple, Any]:
    patients = record.t0.shape[0]

    def step(state, _):
        trained, memory, best, least, key = state
        key, subkey = jax.random.split(key)
        seen = record
        if task.batch is not None:
            chosen = jax.random.choice(subkey, patients, (task.batch,), replace=False)
            seen = jax.tree.map(lambda leaf: leaf[chosen], record)
        loss, slope = eqx.filter_value_and_grad(task.loss)(trained, rest, seen, patients)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(slope)]))
        slope = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), slope)
        better = (loss < least) if task.batch is None else jnp.isfinite(loss)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), trained, best)
        moved, memory = task.optimiser.update(slope, memory, trained)
        trained = eqx.apply_updates(trained, moved)
        return (trained, memory, best, jnp.where(better, loss, least), key), loss

    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic, x):
        new, loss = step(eqx.combine(dynamic, static), x)
        return eqx.filter(new, eqx.is_array), loss

    dynamic, losses = jax.lax.scan(body, dynamic, None, length=count)
    return eqx.combine(dynamic, static), losses


def _unexplained(f: Any, p: Any, record: Record, ids: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(np.asarray(ids)[np.asarray(_lost(f, p, record))].tolist())


@eqx.filter_jit
def _lost(f: Any, p: Any, record: Record) -> Any:
    """Whether there is a measurement that `f` cannot explain, by patient."""

    def one(record):
        likelihood = log_likelihood(f, with_known(p, record), record)
        return jnp.any(jnp.stack([jnp.any(value <= PENALTY) for value in likelihood.values()]))

    return jax.vmap(one)(record)
