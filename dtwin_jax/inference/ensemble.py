"""Several trainings of one predictor from different starts: how they differ is what the data left open."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import central, check_cohort, differentiated
from dtwin_jax.core.record import Cohort, Record, stack
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.train import Trained, individual_of, train
from dtwin_jax.inference.training import Objective


@dataclass(frozen=True)
class Bands:
    """What an ensemble forecasts of a cohort.

    Attributes:
        expected: channel -> (member, patient, n), each member's expectation for a typical patient.
        drawn: channel -> (draw, patient, n), draws with differences between members and between patients,
            and the error of measurement. NaN where a draw's course cannot be solved.
    """

    expected: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]

    @property
    def unsolved(self) -> float:
        """The share of draws without a number, of all channels; intervals are of the others."""
        return float(np.mean([np.mean(~np.isfinite(value)) for value in self.drawn.values()]))

    def interval(self, channel: str, level: float = 0.9) -> np.ndarray:
        """(2, patient, n): the central interval that holds a new measurement with this probability."""
        tail = 50.0 * (1.0 - level)
        return np.nanpercentile(self.drawn[channel], [tail, 100.0 - tail], axis=0)


def train_ensemble(
    f: Any,
    data: Cohort,
    starts: Sequence[Any],
    *,
    key: Any,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> list[Trained]:
    """`train` once from each of `starts`, parameters that differ in their weights.

    Args:
        f: a predictor.
        data: the cohort.
        starts: parameters to start from, one a member.
        key: random key; each member draws its own batches.
        checkpoint: a file for each member, with its number appended.
        options: of `train`.
    """
    keys = jax.random.split(key, len(starts))
    paths = [None if checkpoint is None else f"{os.fspath(checkpoint)}.{i}" for i in range(len(starts))]
    return [
        train(f, data, params=p, key=k, checkpoint=path, **options)
        for p, k, path in zip(starts, keys, paths, strict=True)
    ]


def ensemble_forecast(
    f: Any,
    members: Sequence[Any],
    planned: Record | Cohort,
    *,
    key: Any,
    draws: int = 100,
    individual: Mapping[str, float] | tuple[str, ...] = (),
) -> Bands:
    """What the members expect of patients they have not seen, and where a measurement would be.

    Args:
        f: the predictor.
        members: parameters, one set a member.
        planned: records whose inputs, known values and times count.
        key: random key.
        draws: of each member.
        individual: what new patients differ in, and how much, as in `train`.
    """
    cohort = planned if isinstance(planned, Cohort) else stack({"1": planned})
    check_cohort(f, cohort)
    varied = individual_of(f, members[0], cohort, individual)
    objective = Objective(differentiated(f, "forward"), (), varied)
    together = jax.tree.map(
        lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *members
    )
    keys = jax.random.split(key, len(members))
    record = jax.tree.map(jnp.asarray, cohort.record)
    expected, drawn = jax.tree.map(np.asarray, _forecast(objective, draws, together, record, keys))
    return Bands(expected, {name: v.reshape(-1, *v.shape[2:]) for name, v in drawn.items()})


@functools.partial(eqx.filter_jit)
@standard_promotion
def _forecast(objective: Objective, draws: int, members: Any, record: Record, keys: Any) -> tuple[Any, Any]:
    names = [name for name, _, _ in objective.individual]
    arrays, rest = eqx.partition(members, eqx.is_array)

    def predicted(p: Any, effects: dict[str, Any], row: Record) -> dict[str, Any]:
        return objective.f.predict(objective.patient(p, effects, row), row)

    def patient(p: Any, row: Record, key: Any) -> tuple[Any, Any]:
        typical = predicted(p, dict.fromkeys(names, jnp.zeros(())), row)
        expected = {name: central(d) for name, d in typical.items()}
        if not names:
            # All draws have one course: it is solved once.
            return expected, {name: d.sample(key, (draws,)) for name, d in typical.items()}

        def draw(key: Any) -> dict[str, Any]:
            own, error = jax.random.split(key)
            eta = jax.random.normal(own, (len(names),))
            found = predicted(p, {name: eta[i] for i, name in enumerate(names)}, row)
            return {name: d.sample(error) for name, d in found.items()}

        return expected, jax.vmap(draw)(jax.random.split(key, draws))

    def member(arrays: Any, key: Any) -> tuple[Any, Any]:
        p, patients = eqx.combine(arrays, rest), record.t0.shape[0]
        each = jax.vmap(functools.partial(patient, p))(record, jax.random.split(key, patients))
        return each[0], {name: jnp.swapaxes(value, 0, 1) for name, value in each[1].items()}

    return jax.vmap(member)(arrays, keys)
