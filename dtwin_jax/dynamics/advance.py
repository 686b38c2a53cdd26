"""One stretch of a life: from what is believed of a state, past new measurements, to the next belief."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.core.predictor import likelihood_of
from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.record import Record
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.filtering.body import Body
from dtwin_jax.dynamics.filtering.gaussian import Gaussian
from dtwin_jax.dynamics.filtering.run import predicted_until
from dtwin_jax.dynamics.model import Model, expect_until, noisy
from dtwin_jax.dynamics.started import Start, started
from dtwin_jax.dynamics.vector import packing


def beginning(model: Model, p: Any) -> Gaussian:
    """What is believed of the state before anything was measured; of an ODE it is known."""
    body = Body(model, p, model.inputs(), ())
    if model.diffusion is not None:
        return model.filter.start(body)
    mean = body.start()
    return Gaussian(mean, jnp.zeros((mean.shape[0], mean.shape[0]), mean.dtype))


def advance(
    model: Model, p: Any, belief: Gaussian, record: Record, stop: Any, given: Any
) -> tuple[Gaussian, dict[str, Any]]:
    """The belief at `stop`, and what was predicted of the measurements until then.

    Pure, under `jit`, `vmap` and `grad`. The state of an ODE is known: its covariance stays 0.

    Args:
        model: an ODE, or an SDE with a Gaussian filter.
        p: its parameters.
        belief: at the record's start.
        record: inputs, and measurements from its start to `stop`; its `past` is not looked at.
        stop: time, not before the start.
        given: boluses up to this time, this one included, have been given, and are not given again.

    Returns:
        The belief just after what happens at `stop`; and channel -> distribution of every measurement of the
        record given all earlier ones.
    """
    inputs = record.inputs if model.dosing is None else model.dosing(record.inputs, p)
    record = Record(_not_given(inputs, given), record.observations, record.known, record.t0)
    moving = started(replace(model, dosing=None))
    _, unpack = packing(jax.eval_shape(model.init, p))
    at = Start(p, unpack(belief.mean))
    if model.diffusion is not None:
        predicted, ends = predicted_until(moving, at, record, stop[None], belief)
        return jax.tree.map(lambda leaf: leaf[0], ends), predicted
    expected, ends = expect_until(moving, at, record, stop[None])
    return Gaussian(ends[0], belief.covariance), noisy(moving, at, expected, record)


def log_likelihood_of(predicted: dict[str, Any], record: Record) -> Any:
    """Of all measurements together, a scalar."""
    return sum(jnp.sum(value) for value in likelihood_of(predicted, record).values())


def _not_given(inputs: Any, given: Any) -> Any:
    """The inputs without the boluses that lie before, or at, the time `given`."""
    left = {}
    for name, signal in vars(inputs).items():
        if isinstance(signal, Doses):
            done = (jnp.asarray(signal.duration) == 0) & (jnp.asarray(signal.time) <= given)
            time, amount, duration = signal.plain("a live twin")
            left[name] = Doses(time, jnp.where(done, 0.0, amount), duration)
    return replace_fields(inputs, left)


def over_by(model: Model, p: Any, inputs: Any, time: Any, given: Any) -> dict[str, Any]:
    """Input -> (dose,), whether a dose is wholly in the state at `time`; boluses are up to `given`."""
    reached = inputs if model.dosing is None else model.dosing(inputs, p)
    return {
        name: jnp.where(s.duration > 0, s.time + s.duration <= time, s.time <= given)
        for name, s in vars(reached).items()
        if isinstance(s, Doses)
    }
