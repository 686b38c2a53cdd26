"""Gradient training through the solver: what all patients share, network weights included."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtwin_jax.core.predictor import check_cohort, differentiated
from dtwin_jax.core.prior import Prior
from dtwin_jax.core.quantity import check_names, quantities
from dtwin_jax.core.record import Cohort, Record, stack
from dtwin_jax.inference import checkpoint as file
from dtwin_jax.inference.training import (
    Data,
    Objective,
    Penalty,
    Progress,
    Task,
    Weights,
    advance,
    begin,
    chosen_scales,
    lost,
    mask,
    unbind,
)

# Returns to the best parameters, none of them followed by a step that could be taken, after which a
# training is given up: its steps are then a thousand times smaller than asked for.
RETURNS = 10


@dataclass(frozen=True)
class Options:
    """What is less often asked of `train`.

    Attributes:
        held_out: patients who are not trained on. The parameters with the least loss of theirs are the
            result, each taken at the typical value of what is individual.
        patience: steps without a less loss of theirs after which training ends; None goes on to the end.
        checkpoint: a file in which the training is kept after every step. If it is there, the training goes
            on from it, and ends as it would have unbroken: a kill costs the step in progress.
        penalty: (p, record) -> number, whose mean over patients is descended besides the loss and never
            reported as part of it: the size of a residual, or of its weights.
        individual: parameters that each patient has a value of: name -> sd between patients, on the
            parameter's unbounded scale (the log, where positive), about the typical value; or only names,
            for the sd of their normal or log-normal priors. Values and typical values are trained together,
            held by that distribution: the most probable ones of a hierarchical model.
    """

    held_out: Cohort | None = None
    patience: int | None = None
    checkpoint: str | os.PathLike[str] | None = None
    penalty: Penalty | None = None
    individual: Mapping[str, float] | tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """Parameters after training.

    Attributes:
        params: the best of all steps, by the loss of patients held out where there are any; with batches,
            whose losses do not compare, the last.
        loss: (steps,) before each step: mean over patients of minus the log-likelihood, plus minus the
            log prior of what was trained over the number of patients. Never with a penalty.
        failed: patients of whom the model cannot explain a measurement at `params`.
        held_loss: (steps,) before each step: mean over patients held out of minus the log-likelihood; NaN
            where none are.
        individual: name -> (patient,) values of what each patient has.
        skipped: steps that were not taken, since loss or gradient was not finite, or a patient was lost whom
            the start explains. After some in a row the training went back to its best, with smaller steps.
    """

    params: Any
    loss: np.ndarray
    failed: tuple[str, ...]
    held_loss: np.ndarray = field(default_factory=lambda: np.empty(0))
    individual: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: int = 0


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
    **options: Any,
) -> Trained:
    """Move the parameters that all patients share along the gradient of their likelihood.

    Parameters with a prior move on their unbounded scale and are held by it; leaves without one (network
    weights) move as they are. What is known of a patient is filled in for that patient.

    Args:
        f: a predictor.
        data: one record, or a cohort.
        where: parameters -> the leaf, or a tuple of leaves, to train: `lambda p: (p.CL, p.net)`.
        optimiser: an Optax optimiser; `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))` clips
            the gradient.
        steps: gradient steps.
        key: random key, for the choice of batches.
        params: where to start; the predictor's defaults if None.
        batch: patients a step, drawn at random; None takes all.
        options: `held_out`, `patience`, `checkpoint`, `penalty`, `individual`, as in `Options`.

    A bar shows the loss on standard error, when that is a terminal.

    Raises:
        ValueError: data that `f` cannot use, a batch larger than the cohort, options that contradict each
            other, a checkpoint of another training.
        FloatingPointError: no step can be taken, however small.
    """
    chosen = Options(**options)
    cohort = data if isinstance(data, Cohort) else stack({"1": data})
    _check(f, cohort, batch, chosen)
    p = f.params() if params is None else params
    prepared = differentiated(f, "reverse")
    objective = Objective(prepared, chosen_scales(p, where), individual_of(f, p, cohort, chosen.individual))
    task = Task(objective, optimiser, batch, chosen.penalty, chosen.patience)
    shared, rest = eqx.partition(unbind(objective.scales, p), mask(p, where))
    start = Weights(shared, {name: jnp.zeros(len(cohort)) for name, _, _ in objective.individual})
    record = jax.tree.map(jnp.asarray, cohort.record)
    held = None if chosen.held_out is None else jax.tree.map(jnp.asarray, chosen.held_out.record)
    given = Data(rest, record, held, lost(objective, start, rest, record))
    progress, losses = _run(task, given, begin(task, start, key), steps, chosen.checkpoint, cohort.ids)
    best = progress.best
    found = objective.shared(eqx.combine(best.shared, rest))
    own = objective.moved(found, best.effects)
    failed = np.asarray(cohort.ids)[np.asarray(lost(objective, best, rest, record))]
    return Trained(
        found,
        losses[:, 0],
        tuple(failed.tolist()),
        losses[:, 1],
        {name: np.asarray(getattr(own, name)) for name, _, _ in objective.individual},
        int(progress.skipped),
    )


def _check(f: Any, cohort: Cohort, batch: int | None, options: Options) -> None:
    check_cohort(f, cohort)
    if batch is not None and not 1 <= batch <= len(cohort):
        raise ValueError(f"train: batch must be between 1 and {len(cohort)} patients, found {batch}")
    if options.held_out is None:
        if options.patience is not None:
            raise ValueError("train: patience needs held_out, the patients whose loss it waits for")
        return
    check_cohort(f, options.held_out)
    if both := sorted(set(cohort.ids) & set(options.held_out.ids)):
        raise ValueError(f"train: patient {both[0]!r} is both trained on and held out")


def individual_of(
    f: Any, p: Any, cohort: Cohort, wanted: Mapping[str, float] | tuple[str, ...]
) -> tuple[tuple[str, Prior, float], ...]:
    """Name, prior and sd between patients of what each patient has; refuses what is known."""
    declared, found = quantities(p), []
    check_names(f.name, "parameter", wanted, declared)
    for name in wanted:
        prior = declared[name].prior
        if prior is None or name in cohort.record.known:
            raise ValueError(f"train: {name!r} is known, so patients have no values of it to be trained")
        if isinstance(wanted, Mapping):
            spread = wanted[name]
        else:
            args = dict(prior.args)
            plain = prior.family in ("normal", "lognormal") and not {"low", "high"} & set(args)
            if not plain:
                raise ValueError(f"train: how much {name!r} varies cannot be told from {prior}: give its sd")
            spread = args["log_sd"] if prior.family == "lognormal" else args["sd"]
        found.append((name, prior, float(spread)))
    return tuple(found)


def _run(
    task: Task, data: Data, progress: Progress, steps: int, path: Any, ids: tuple[str, ...]
) -> tuple[Progress, np.ndarray]:
    """All steps; (done, 2) losses."""
    from tqdm import tqdm

    losses = np.empty((0, 2))
    mark = ""
    if path is not None:
        said = {"f": task.objective.f.name, "ids": ids, "batch": task.batch, "patience": task.patience}
        said["individual"] = [(name, spread) for name, _, spread in task.objective.individual]
        mark = file.fingerprint(said, progress, data)
        if Path(path).exists():
            progress, losses = file.kept(path, mark, progress)
    # With a file every step is kept, without one the processor is given many at once.
    chunk = 1 if path is not None else max(1, min(25, steps))
    with tqdm(total=steps, initial=len(losses), desc="training", unit="step", disable=None) as bar:
        while len(losses) < steps and not _ended(task, progress):
            progress, new = advance(task, min(chunk, steps - len(losses)), data, progress)
            new = np.asarray(new)[: int(progress.done) - len(losses)]
            losses = np.concatenate([losses, new])
            if path is not None:
                file.keep(path, mark, progress, losses)
            bar.set_postfix(loss=f"{losses[-1, 0]:.4g}")
            bar.update(len(new))
            if int(progress.returns) >= RETURNS:
                raise FloatingPointError(
                    f"train: {task.objective.f.name}: no step can be taken from the best parameters found, "
                    f"even one {float(progress.size):.2g} of what was asked for: loss or gradient is not "
                    "finite, or patients cannot be solved. Start elsewhere, or lower the tolerance"
                )
    return progress, losses


def _ended(task: Task, progress: Progress) -> bool:
    return task.patience is not None and int(progress.waited) >= task.patience
