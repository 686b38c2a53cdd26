"""The forecast of a calibrated twin as a program of its own, which needs nothing of this package to run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.core.predictor import check_cohort
from dtwin_jax.core.record import Cohort, Record
from dtwin_jax.inference.predictive import evaluated, theta_of
from dtwin_jax.inference.result import density_from
from dtwin_jax.twin.forecast import for_patients, sampled


def exported(
    f: Any, tree: Any, planned: Record, *, samples: int = 1000, platforms: Sequence[str] | None = None
) -> jax.export.Exported:
    """`forecast` with model and posterior inside, for any plan of the shapes of this one.

    `exported(...).serialize()` are bytes to keep; with the extra `export`. Elsewhere
    `jax.export.deserialize(them).call(leaves, key)` gives `{"expected": ..., "measured": ...}`, each a
    channel -> (sample, patient, n): what `forecast` calls `<channel>_expected` and `<channel>`, and the same
    for the same key.

    Args:
        f: the predictor or `Population` of the calibration.
        tree: result of `calibrate`.
        planned: as of `forecast`. `leaves` are `jax.tree.leaves(planned)`, or those of another plan in which
            as many doses are given and as many times asked for; their types count.
        samples: posterior draws used, at most; they are part of the program.
        platforms: "cpu", "cuda", "rocm", "tpu" that it shall run on; by default the one at hand.

    Returns:
        A program of `(leaves, jax.random.key_data(key))`.

    Raises:
        ValueError: the plan is for other patients, or the model cannot take it.
    """
    density, base = density_from(f, tree)
    leaves, structure = jax.tree.flatten(planned)
    ids, whole = for_patients(tree, planned)
    cohort = Cohort(tuple(ids), whole)
    check_cohort(density.predictor, cohort)
    theta = jnp.asarray(theta_of(density, sampled(tree, samples)[0], len(ids)))

    def program(leaves: list[Any], key: Any) -> dict[str, Any]:
        _, record = for_patients(tree, jax.tree.unflatten(structure, leaves))
        keys = jax.random.split(jax.random.wrap_key_data(key), len(theta))
        _, expected, measured = evaluated(
            density.predictor, density.names, base, record, theta, keys, cohort.numbers
        )
        return {"expected": expected, "measured": measured}

    made = jax.export.export(jax.jit(program), platforms=platforms)
    return made(leaves, jax.random.key_data(jax.random.key(0)))
