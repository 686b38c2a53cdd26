"""States of a calibrated twin over time, with all that is not known of them.

Given parameters p the state x at a time has, by the model's filter, a mean and a variance; a calibration has
draws of p. Over both,

    E x = E_p m(p),    var x = E_p v(p) + var_p m(p),

what is left within a draw (noise in the body and in measurements) and what lies between draws (parameters).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import check_cohort
from dtwin_jax.core.quantity import quantities, values
from dtwin_jax.core.record import Cohort, Record
from dtwin_jax.dynamics.filtering.run import estimate_states
from dtwin_jax.dynamics.logarithmic import kept_as_logs
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.simulate import solve
from dtwin_jax.dynamics.vector import packing
from dtwin_jax.inference.density import parameters, standard_promotion
from dtwin_jax.inference.predictive import theta_of
from dtwin_jax.inference.result import cohort_of, density_from
from dtwin_jax.twin.forecast import even_until_last, for_patients, sampled

# Draws that are filtered side by side: bounds memory, which particles need much of.
BLOCK = 8


def states_of(
    f: Any,
    tree: Any,
    times: Any = None,
    *,
    data: Record | Cohort | None = None,
    samples: int = 200,
    smooth: bool = True,
) -> Any:
    """States of the patients of a calibration, with their uncertainty over posterior draws.

    Of a model with a diffusion a state is uncertain even where parameters are known; of an ODE it is not, and
    only the draws differ. No random key is needed: draws are thinned evenly, and particles have a seed.

    Args:
        f: the model or `Population` of the calibration.
        tree: result of `calibrate`.
        times: (n,) for all patients or (patient, n), ascending, not before a patient's start; by default 120
            even ones up to each patient's last measurement. A state at the time of a dose is that after it.
        data: other measurements and inputs of the same patients, in the same order, on which the states rest;
            those of the calibration by default. The draws stay as they are.
        samples: posterior draws used, at most.
        smooth: given all measurements; else given those up to each time.

    Returns:
        `xarray.Dataset` over patient, point and state: `mean`, `sd` of all, `sd_within` draws on average and
        `sd_between` draws, sd^2 being the sum of the squares of these two; in the units of the coordinate
        `unit`, a state kept by `log_states` as its log. `time` (patient, point); `failed` (patient), share of
        draws that could not be solved, which are left out; of a particle filter `effective` (patient,
        point), different particles on which a draw's state rests, the mean over draws.

    Raises:
        ValueError: `f` is no `Model`, the data are of other patients, or times are not as above.
    """
    density, base = density_from(f, tree)
    model = density.predictor
    if not isinstance(model, Model):
        raise ValueError(f"states_of: {model.name} is a {type(model).__name__}, expected a Model")
    ids, record = _data(f, tree, data)
    check_cohort(density.predictor, Cohort(tuple(ids), record))
    when = _times(ids, record, times)
    drawn, _ = sampled(tree, samples)
    theta = jnp.asarray(np.moveaxis(theta_of(density, drawn, len(ids)), 0, 1))
    names = density.names
    found = _over_draws(
        model, names, base, jax.tree.map(jnp.asarray, record), jnp.asarray(when), theta, smooth
    )
    return _dataset(model, base, ids, when, found, {"time_unit": model.time, "smooth": int(smooth)})


def _data(f: Any, tree: Any, data: Record | Cohort | None) -> tuple[list[str], Record]:
    """Ids and the stacked record on which states rest."""
    if data is None:
        data = cohort_of(f, tree)
    if not isinstance(data, Cohort):
        return for_patients(tree, data)
    ids, record = for_patients(tree, data.record)
    # One record alone is calibrated as patient "1", and may be stacked under any name.
    if len(ids) > 1 and list(data.ids) != ids:
        raise ValueError(f"states_of: data of patients {list(data.ids)[:5]}, the calibration had {ids[:5]}")
    return ids, record


def _times(ids: list[str], record: Record, times: Any) -> np.ndarray:
    """(patient, n) checked."""
    if times is None:
        return even_until_last(record, 120)
    given = np.asarray(times, float)
    if given.ndim not in (1, 2) or not given.shape[-1] or (given.ndim == 2 and len(given) != len(ids)):
        raise ValueError(
            f"states_of: times have shape {given.shape}, expected (n,) or ({len(ids)}, n) with n at least 1"
        )
    given = np.broadcast_to(given, (len(ids), given.shape[-1]))
    for patient, row, start in zip(ids, given, np.asarray(record.t0, float), strict=True):
        where = f"states_of: patient {patient!r}: times"
        if not np.all(np.isfinite(row)) or np.any(np.diff(row) < 0):
            raise ValueError(f"{where} must be finite and must not decrease, found {row[:8]}")
        if row[0] < start:
            raise ValueError(f"{where} begin at {row[0]:g}, before the record's start {start:g}")
    return given


@functools.partial(jax.jit, static_argnames=("model", "names", "smooth"))
@standard_promotion
def _over_draws(
    model: Model, names: tuple[str, ...], base: Any, record: Record, times: Any, theta: Any, smooth: bool
) -> dict[str, Any]:
    """Moments of every patient's states; theta (patient, draw, name)."""

    def patient(one: tuple[Record, Any, Any]) -> dict[str, Any]:
        record, times, theta = one

        def draw(row: Any) -> tuple[Any, Any, Any]:
            return _believed(model, parameters(names, base, row, record), record, times, smooth)

        return _mixed(*jax.lax.map(draw, theta, batch_size=BLOCK))

    return jax.lax.map(patient, (record, times, theta))


def _believed(model: Model, p: Any, record: Record, times: Any, smooth: bool) -> tuple[Any, Any, Any]:
    """Mean and variance (n, states) of one draw, and its different particles, (n,) or None."""
    if model.diffusion is None:
        after = jnp.ones(times.shape, bool)
        states = solve(model, p, record.inputs, times, after, t0=record.t0).states
        return states, jnp.zeros_like(states), None
    found = estimate_states(model, p, record, times, smooth=smooth)
    pack, _ = packing(jax.eval_shape(model.init, p))
    variance = jnp.diagonal(found.covariance, axis1=1, axis2=2)
    return jax.vmap(pack)(found.mean), jnp.where(variance < 0, 0.0, variance), found.effective


def _mixed(mean: Any, variance: Any, effective: Any) -> dict[str, Any]:
    """Moments over draws (draw, n, states), without the draws that were not solved; NaN if none was."""
    good = jnp.all(jnp.isfinite(mean) & jnp.isfinite(variance), axis=(1, 2))
    count = jnp.sum(good)

    def over(each: Any) -> Any:
        kept = good.reshape(-1, *[1] * (each.ndim - 1))
        return jnp.sum(jnp.where(kept, each, 0.0), axis=0) / count

    middle = over(mean)
    within, between = over(variance), over((mean - middle[None]) ** 2)
    found = {"mean": middle, "sd": jnp.sqrt(within + between), "failed": jnp.mean(~good)}
    found |= {"sd_within": jnp.sqrt(within), "sd_between": jnp.sqrt(between)}
    return found if effective is None else found | {"effective": over(effective)}


def _dataset(
    model: Model,
    base: Any,
    ids: list[str],
    when: np.ndarray,
    found: dict[str, Any],
    attributes: dict[str, Any],
) -> Any:
    import xarray as xr

    axes = ("patient", "point", "state")
    variables: dict[str, Any] = {
        name: (axes[: np.ndim(value)], np.asarray(value)) for name, value in found.items()
    }
    variables["time"] = (axes[:2], when, {"units": model.time})
    names, units = labels(model, base)
    places = {"patient": ids, "state": names, "unit": ("state", units)}
    return xr.Dataset(variables, places, {"name": model.name, **attributes})


def labels(model: Model, p: Any) -> tuple[list[str], list[str]]:
    """Names and units of the states in the order of the solver's vector; of an array `gut[0]`, `gut[1]`."""
    example = jax.eval_shape(model.init, p)
    declared, logs = quantities(example), kept_as_logs(model)
    names, units = [], []
    for name, field in values(example).items():
        unit = declared[name].unit
        size = math.prod(field.shape)
        names += [name] if field.shape == () else [f"{name}[{i}]" for i in range(size)]
        units += [f"log({unit})" if name in logs else unit] * size
    return names, units
