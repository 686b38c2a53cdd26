"""One step of training: the objective, its gradient, and what happens to a step that fails."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from dtwin_jax.core.predictor import PENALTY, log_likelihood
from dtwin_jax.core.quantity import assign, quantities, values
from dtwin_jax.core.record import Record
from dtwin_jax.inference.density import standard_promotion, with_known

Penalty = Callable[[Any, Record], Any]

# Steps that fail one after another before the best parameters are gone back to; without batches nothing
# would change at a second attempt.
FAILURES_OF_BATCHES = 3


class Weights(eqx.Module):
    """What training moves.

    Attributes:
        shared: leaves of the parameters, those with a prior on their unbounded scale.
        effects: name -> (patient,), each patient's distance from the typical value, in sd between patients.
    """

    shared: Any
    effects: dict[str, Any]


@dataclass(frozen=True)
class Objective:
    """The likelihood of a cohort as a function of `Weights`.

    Attributes:
        f: the predictor.
        scales: name and prior of the shared parameters that move on their unbounded scale.
        individual: name, prior and sd between patients (unbounded scale) of what each patient has.
    """

    f: Any
    scales: tuple[tuple[str, Any], ...]
    individual: tuple[tuple[str, Any, float], ...] = ()

    def shared(self, u: Any) -> Any:
        """Parameters with those of `scales` taken back from their unbounded scale."""
        return bind(self.scales, u)

    def patient(self, p: Any, effects: dict[str, Any], record: Record) -> Any:
        """One patient's parameters: what is known of the patient, and the own effects."""
        return with_known(self.moved(p, effects), record)

    def moved(self, p: Any, effects: dict[str, Any]) -> Any:
        """`p` with each value as far from the typical one as its effect says; effects may have axes."""
        import numpyro.distributions as dist

        new, typical = {}, values(p)
        for name, prior, spread in self.individual:
            to_bounds = dist.biject_to(prior.distribution().support)
            new[name] = to_bounds(to_bounds.inv(typical[name]) + spread * effects[name])
        return assign(p, new)

    def each(self, p: Any, effects: dict[str, Any], record: Record) -> tuple[Any, Any]:
        """By patient: minus the log-likelihood and the log density of the effects; whether it is lost."""

        def one(own: dict[str, Any], record: Record) -> tuple[Any, Any]:
            likelihood = log_likelihood(self.f, self.patient(p, own, record), record)
            lost = jnp.any(jnp.stack([jnp.any(value <= PENALTY) for value in likelihood.values()]))
            total = sum(jnp.sum(value) for value in likelihood.values())
            return sum((_standard(eta) for eta in own.values()), -total), lost

        return jax.vmap(one)(effects, record)

    def log_prior(self, u: Any, p: Any) -> Any:
        """Of the shared parameters, on their unbounded scale."""
        import numpyro.distributions as dist

        total = jnp.zeros(())
        unbounded, bounded = values(u), values(p)
        for name, prior in self.scales:
            d = prior.distribution()
            jacobian = dist.biject_to(d.support).log_abs_det_jacobian(unbounded[name], bounded[name])
            total = total + d.log_prob(bounded[name]) + jacobian
        return total


def _standard(eta: Any) -> Any:
    """Minus the log density of a standard normal."""
    return 0.5 * (eta**2 + jnp.log(2 * jnp.pi))


@dataclass(frozen=True)
class Task:
    """What is static of a training run."""

    objective: Objective
    optimiser: optax.GradientTransformation
    batch: int | None
    penalty: Penalty | None = None
    patience: int | None = None

    def loss(self, at: Weights, rest: Any, record: Record, patients: int) -> tuple[Any, tuple[Any, Any]]:
        """What is descended; the loss without penalty, and who is lost: of some or all of `patients`."""
        u = eqx.combine(at.shared, rest)
        p = self.objective.shared(u)
        each, lost = self.objective.each(p, at.effects, record)
        loss = jnp.mean(each) - self.objective.log_prior(u, p) / patients
        if self.penalty is None:
            return loss, (loss, lost)
        penalty = self.penalty
        held = jax.vmap(lambda own, row: penalty(self.objective.patient(p, own, row), row))
        return loss + jnp.mean(held(at.effects, record)), (loss, lost)

    def held_out(self, at: Weights, rest: Any, record: Record) -> Any:
        """Mean of minus the log-likelihood of patients who are not trained on, each at the typical value."""
        p = self.objective.shared(eqx.combine(at.shared, rest))
        none = {name: jnp.zeros(record.t0.shape) for name in at.effects}
        each, _ = self.objective.each(p, none, record)
        return jnp.mean(each) - sum((_standard(jnp.zeros(())) for _ in none), jnp.zeros(()))


class Data(eqx.Module):
    """What a run is given and never changes.

    Attributes:
        rest: parameters that do not move.
        record: of the patients trained on.
        held: of those held out, or None.
        lost: (patient,) those of whom the start cannot explain a measurement.
    """

    rest: Any
    record: Record
    held: Record | None
    lost: Any


class Progress(eqx.Module):
    """Where a run is; all that a checkpoint needs to keep.

    Attributes:
        at: the weights now.
        memory: the optimiser's.
        best: the weights with the least score.
        least: that score: the loss of those held out, else what is descended.
        key: random key, as numbers.
        size: factor on the optimiser's steps, halved after failures.
        failures: steps that failed, the last ones in a row.
        skipped: steps that failed, all.
        returns: returns to the best without a good step since.
        waited: steps since the score of those held out was best.
        done: steps, those that failed among them.
    """

    at: Weights
    memory: Any
    best: Weights
    least: Any
    key: Any
    size: Any
    failures: Any
    skipped: Any
    returns: Any
    waited: Any
    done: Any


def begin(task: Task, at: Weights, key: Any) -> Progress:
    """Nothing done yet."""
    zero = jnp.asarray(0)
    made = Progress(
        at=at,
        memory=task.optimiser.init(_tree(at)),
        best=at,
        least=jnp.asarray(jnp.inf),
        key=jax.random.key_data(key),
        size=jnp.asarray(1.0),
        failures=zero,
        skipped=zero,
        returns=zero,
        waited=zero,
        done=zero,
    )
    # A step makes strong types of weak ones: begun with these, a second program would be compiled after it.
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype) if eqx.is_array(leaf) else leaf, made)


def _tree(at: Weights) -> Any:
    # Where patients share everything the optimiser sees the parameters alone.
    return at if at.effects else at.shared


@eqx.filter_jit
@standard_promotion
def advance(task: Task, count: int, data: Data, progress: Progress) -> tuple[Progress, Any]:
    """`count` steps on; (count, 2): the loss before each step, and that of the patients held out.

    Steps after the patience has ended do nothing, and their losses are NaN.
    """
    dynamic, static = eqx.partition(progress, eqx.is_array)
    nothing = jnp.full(2, jnp.nan)

    def body(dynamic: Any, _: Any) -> tuple[Any, Any]:
        now = eqx.combine(dynamic, static)
        if task.patience is None:
            new, losses = _step(task, data, now)
            return eqx.filter(new, eqx.is_array), losses

        def go(dynamic: Any) -> tuple[Any, Any]:
            new, losses = _step(task, data, eqx.combine(dynamic, static))
            return eqx.filter(new, eqx.is_array), losses

        return jax.lax.cond(now.waited >= task.patience, lambda d: (d, nothing), go, dynamic)

    dynamic, losses = jax.lax.scan(body, dynamic, None, length=count)
    return eqx.combine(dynamic, static), losses


def _step(task: Task, data: Data, now: Progress) -> tuple[Progress, Any]:
    patients = data.record.t0.shape[0]
    key, subkey = jax.random.split(jax.random.wrap_key_data(now.key))
    slope, objective, loss, lost = _slope(task, data, now.at, subkey)
    finite = [jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(slope)]
    good = jnp.all(jnp.stack([jnp.isfinite(loss), *finite])) & ~lost
    slope = jax.tree.map(lambda g: jnp.where(good, g, 0.0), slope)
    score, held = objective, jnp.asarray(jnp.nan)
    if data.held is not None:
        score = held = task.held_out(now.at, data.rest, data.held)
    # The losses of batches are of different patients, and do not compare.
    compares = data.held is not None or task.batch is None or task.batch == patients
    better = good & (score < now.least) if compares else good
    best = _choose(better, now.at, now.best)
    moves, memory = task.optimiser.update(_tree(slope), now.memory, _tree(now.at))
    moves = jax.tree.map(lambda move: move * now.size, moves)
    moved = eqx.apply_updates(_tree(now.at), moves)
    moved = moved if now.at.effects else Weights(moved, {})
    failures = jnp.where(good, 0, now.failures + 1)
    back = failures >= (1 if task.batch is None else FAILURES_OF_BATCHES)
    new = Progress(
        at=_choose(back, best, _choose(good, moved, now.at)),
        memory=_choose(good, memory, now.memory),
        best=best,
        least=jnp.where(better, score, now.least),
        key=jax.random.key_data(key),
        size=jnp.where(back, 0.5 * now.size, now.size),
        failures=jnp.where(back, 0, failures),
        skipped=now.skipped + jnp.where(good, 0, 1),
        returns=jnp.where(good, 0, now.returns + back.astype(now.returns.dtype)),
        waited=jnp.where(better, 0, now.waited + 1) if data.held is not None else now.waited,
        done=now.done + 1,
    )
    return new, jnp.stack([loss, held])


def _slope(task: Task, data: Data, at: Weights, key: Any) -> tuple[Any, Any, Any, Any]:
    """Gradient, what is descended, the loss; whether a patient is lost who was not at the start."""
    patients = data.record.t0.shape[0]
    record, effects, before = data.record, at.effects, data.lost
    value = eqx.filter_value_and_grad(task.loss, has_aux=True)
    if task.batch is None:
        (objective, (loss, lost)), slope = value(at, data.rest, record, patients)
        return slope, objective, loss, jnp.any(lost & ~before)
    chosen = jax.random.choice(key, patients, (task.batch,), replace=False)
    seen = jax.tree.map(lambda leaf: leaf[chosen], record)
    own = Weights(at.shared, {name: eta[chosen] for name, eta in effects.items()})
    (objective, (loss, lost)), slope = value(own, data.rest, seen, patients)
    spread = {n: jnp.zeros_like(eta).at[chosen].set(slope.effects[n]) for n, eta in effects.items()}
    return Weights(slope.shared, spread), objective, loss, jnp.any(lost & ~before[chosen])


def _choose(this: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(this, a, b) if eqx.is_array(a) else b, new, old)


@eqx.filter_jit
@standard_promotion
def lost(objective: Objective, at: Weights, rest: Any, record: Record) -> Any:
    """Whether there is a measurement that the predictor cannot explain, by patient."""
    p = objective.shared(eqx.combine(at.shared, rest))
    return objective.each(p, at.effects, record)[1]


def mask(p: Any, where: Callable[[Any], Any]) -> Any:
    """True at the leaves that `where` chooses, if they are numbers."""
    none = jax.tree.map(lambda _: False, p)
    every = jax.tree.map(eqx.is_inexact_array, p)
    return eqx.tree_at(where, none, where(every))


def chosen_scales(p: Any, where: Callable[[Any], Any]) -> tuple[tuple[str, Any], ...]:
    """Name and prior of the chosen parameters that have one."""
    chosen = values(mask(p, where))
    return tuple(
        (name, q.prior) for name, q in quantities(p).items() if q.prior is not None and chosen[name] is True
    )


def unbind(scales: tuple[tuple[str, Any], ...], p: Any) -> Any:
    """`p` with the named parameters on their unbounded scale."""
    import numpyro.distributions as dist

    held = values(p)
    return assign(p, {n: dist.biject_to(prior.distribution().support).inv(held[n]) for n, prior in scales})


def bind(scales: tuple[tuple[str, Any], ...], u: Any) -> Any:
    """`unbind` undone."""
    import numpyro.distributions as dist

    held = values(u)
    return assign(u, {n: dist.biject_to(prior.distribution().support)(held[n]) for n, prior in scales})
