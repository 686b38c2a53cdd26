"""Running a Gaussian filter, or its smoother, over the record of one patient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from dtwin_jax.core.record import Record
from dtwin_jax.core.types import Vector
from dtwin_jax.dynamics.filtering.body import Body
from dtwin_jax.dynamics.filtering.gaussian import Gaussian, jumped, updated
from dtwin_jax.dynamics.filtering.sequence import Moments, Rows, moments_of, on_reading_scale, rows_of, wanted


class States(eqx.Module):
    """What is believed of the state over time.

    Attributes:
        time: (n,).
        mean: the model's State, every leaf with a leading (n,) axis.
        sd: likewise.
        covariance: (n, states, states), in the order of the State's fields.
        effective: (n,) of a particle filter, how many different particles this rests on, by weight: where
            they are few the mean is noisy and the sd too small. None of a Gaussian filter.
    """

    time: Vector
    mean: Any
    sd: Any
    covariance: Any
    effective: Any = None


class _Step(eqx.Module):
    """What one moment leaves behind: the belief before and after it, and how deviations moved to it."""

    before: Gaussian
    after: Gaussian
    transition: Any
    mean: Any
    variance: Any


def one_step_ahead(model: Any, p: Any, record: Record) -> dict[str, Any]:
    """Channel -> distribution of every measurement given all earlier ones; the likelihood is their product.

    Pure, under `jit`, `vmap` and `grad`.
    """
    return predicted_until(model, p, record, jnp.zeros(0))[0]


def predicted_until(
    model: Any, p: Any, record: Record, ends: Any, start: Gaussian | None = None
) -> tuple[dict[str, Any], Gaussian]:
    """`one_step_ahead`, and the beliefs at the times `ends`, just after what happens there.

    Args:
        model: with a diffusion and a Gaussian filter.
        p: its parameters.
        record: of one patient.
        ends: (end,) sorted.
        start: the belief at the record's start; by default the filter's own.
    """
    import numpyro.distributions as dist

    measured, names, place = rows_of(record)
    rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), measured, wanted(ends))
    body, steps, order = _filtered(model, p, record, rows, names, start)
    families = body.families()
    seen = rows.time >= jnp.asarray(record.t0, float)
    mean = jnp.where(seen, steps.mean[order], jnp.nan)
    sd = jnp.where(seen, jnp.sqrt(steps.variance[order]), jnp.nan)
    found = {
        name: (dist.LogNormal if families[names.index(name)] is dist.LogNormal else dist.Normal)(
            mean[where], sd[where]
        )
        for name, where in place.items()
    }
    last = order[measured.time.shape[0] :]
    return found, jax.tree.map(lambda leaf: leaf[last], steps.after)


def estimate_states(model: Any, p: Any, record: Record, times: Vector, *, smooth: bool = True) -> States:
    """The state of an SDE at `times` given the record's measurements.

    Pure, under `jit` and `vmap`. The measurements are those of the record's `past` and `observations`.

    Args:
        model: a `Model` with a diffusion.
        p: its parameters.
        record: of one patient.
        times: (n,) sorted.
        smooth: given all measurements, by Rauch-Tung-Striebel or by the paths of the particles that are left
            (see `ParticleFilter.lag`); else given those up to each time.
    """
    measured, names, _ = rows_of(record)
    asked = wanted(times)
    rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), measured, asked)
    first = measured.time.shape[0]
    swarm = getattr(model.filter, "believed", None)
    if swarm is None:
        body, steps, order = _filtered(model, p, record, rows, names)
        belief, effective = _smoothed(steps) if smooth else steps.after, None
        belief = jax.tree.map(lambda leaf: leaf[order[first:]], belief)
    else:
        body, belief, effective = swarm(model, p, record, (rows, names, first), smooth)
    unpack = jax.vmap(body.packing[1])
    variance = jnp.diagonal(belief.covariance, axis1=1, axis2=2)
    sd = jnp.sqrt(jnp.maximum(variance, 0.0))
    return States(asked.time, unpack(belief.mean), unpack(sd), belief.covariance, effective)


def _filtered(
    model: Any, p: Any, record: Record, rows: Rows, names: tuple[str, ...], start: Gaussian | None = None
) -> tuple[Body, _Step, Any]:
    """The body, what every moment left, and the moment of every row."""
    inputs, moments, order = ordered_inputs(model, p, record, rows)
    body, method = Body(model, p, inputs, names), model.filter
    t0 = jnp.asarray(record.t0, float)
    logs = body.logarithmic()

    def pass_moment(belief: Gaussian, moment: Any) -> tuple[Gaussian, _Step]:
        moved, transition = method.move(body, belief, moment.start, moment.stop, moment.held)
        at = jumped(body, moved, moment.stop, moment.held, moment.amount)
        event = moment.row < 0
        moved, transition = jax.tree.map(
            lambda new, old: jnp.where(event, new, old), (at[0], at[1] @ transition), (moved, transition)
        )
        row = jax.tree.map(lambda leaf: leaf[moment.row], rows)
        read = method.read(body, moment.stop, moved, moment.held)
        one = tuple(part[row.channel] for part in read)
        value = on_reading_scale(row.value, logs[row.channel])
        learns = ~event & row.used & (row.time >= t0)
        informed = updated(moved, one, value, row.censor)
        after = jax.tree.map(lambda new, old: jnp.where(learns, new, old), informed, moved)
        return after, _Step(moved, after, transition, one[0], one[1])

    _, steps = jax.lax.scan(pass_moment, method.start(body) if start is None else start, moments)
    return body, steps, order


def ordered_inputs(model: Any, p: Any, record: Record, rows: Rows) -> tuple[Any, Moments, Any]:
    """Inputs as they act, the moments of a patient, and the position (n,) of every row among them."""
    inputs = record.inputs if model.dosing is None else model.dosing(record.inputs, p)
    moments = moments_of(inputs, rows, jnp.asarray(record.t0, float))
    count = moments.row.shape[0]
    # Events have row -1, which is the spare last place.
    order = jnp.zeros(rows.time.shape[0] + 1, int).at[moments.row].set(jnp.arange(count))
    return inputs, moments, order[:-1]


def _smoothed(steps: _Step) -> Gaussian:
    """Beliefs after every moment, given all measurements."""

    def back(later: Gaussian, step: tuple[Gaussian, Gaussian, Any]) -> tuple[Gaussian, Gaussian]:
        here, before, transition = step
        gain = _over(here.covariance @ transition.T, before.covariance)
        mean = here.mean + gain @ (later.mean - before.mean)
        covariance = here.covariance + gain @ (later.covariance - before.covariance) @ gain.T
        found = Gaussian(mean, 0.5 * (covariance + covariance.T))
        return found, found

    last = jax.tree.map(lambda leaf: leaf[-1], steps.after)
    here = jax.tree.map(lambda leaf: leaf[:-1], steps.after)
    following = jax.tree.map(lambda leaf: leaf[1:], (steps.before, steps.transition))
    _, found = jax.lax.scan(back, last, (here, *following), reverse=True)
    return jax.tree.map(lambda most, end: jnp.concatenate([most, end[None]]), found, last)


def _over(numerator: Any, covariance: Any) -> Any:
    """`numerator @ inverse(covariance)`, where states known exactly have no part."""
    sd = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance), 0.0))
    scale = jnp.where(sd > 0, 1.0 / jnp.where(sd > 0, sd, 1.0), 0.0)
    value, vector = jnp.linalg.eigh(scale[:, None] * covariance * scale[None, :])
    kept = value > 1e-12
    inverse = jnp.where(kept, 1.0 / jnp.where(kept, value, 1.0), 0.0)
    root = scale[:, None] * vector
    return (numerator @ root * inverse[None, :]) @ root.T
