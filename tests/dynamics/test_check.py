"""Planted faults: each must be found and named, and nothing said of the same model without it."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import ConcentrationOnly, Inputs, Outputs, Params, State, exact, late_bolus

import dtwin_jax
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.check import check_model
from dtwin_jax.dynamics.filtering.kalman import Kalman
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.residual import additive, combined, log_normal, proportional
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models import CATALOGUE


def noise(y, p):
    return additive(y, p)


def observe(t, x, u, p):
    return ConcentrationOnly(concentration=x.central / p.V)


sound = replace(exact, name="sound", observe=observe, noise=noise, dosing=late_bolus)


def planted(**parts):
    return check_model(replace(sound, **parts))


def rate(central):
    """A drift of the one state."""
    return lambda t, x, u, p: State(central=central(t, x, u, p))


def test_sound_model_has_nothing_wrong():
    assert check_model(sound) == []
    assert check_model(sound, key=jax.random.key(7)) == []
    assert dtwin_jax.check_model is check_model


@pytest.mark.parametrize("error", [additive, proportional, combined, log_normal])
def test_residual_errors_follow_their_units(error):
    model = CATALOGUE["one_compartment"]
    assert check_model(replace(model, noise=error)) == []


def test_linear_flow_solves_its_drift():
    assert planted(flow=LinearFlow(sound.drift)) == []


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"observe": lambda t, x, u, p: ConcentrationOnly(x.central)},
            "observe: concentration does not have",
        ),
        (
            {"drift": rate(lambda t, x, u, p: u.iv - 0.3 * x.central), "flow": None},
            "drift: central does not have its unit",
        ),
        (
            {"drift": rate(lambda t, x, u, p: u.iv - p.k * x.central * jnp.sin(t)), "flow": None},
            "drift: central does not have its unit",
        ),
        ({"init": lambda p: State(central=1.0)}, "init: central does not have its unit"),
        (
            {"diffusion": lambda t, x, u, p: State(central=p.k * x.central)},
            "diffusion: central does not have its unit",
        ),
        (
            {"flow": lambda dt, x, u, p: State(central=x.central * jnp.exp(-dt))},
            "flow: central does not have",
        ),
        (
            {"noise": lambda y, p: additive(y, eqx.tree_at(lambda p: p.sd, p, p.k))},
            "noise: the error of concentration does not have its unit",
        ),
        (
            {"dosing": lambda u, p: Inputs(dtwin_jax.delay(u.iv, 1.0), u.clearance_ratio)},
            "dosing: the time of doses into iv",
        ),
        (
            {"drift": rate(lambda t, x, u, p: u.iv / (1.0 + u.iv / (p.k * p.V * p.sd)))},
            "not affine in the inputs that take doses (iv)",
        ),
        (
            {"flow": lambda dt, x, u, p: State(central=x.central * jnp.exp(-p.k * dt))},
            "flow: central does not move as the drift says",
        ),
        (
            {"flow": lambda dt, x, u, p: State(central=2 * exact.flow(dt, x, u, p).central)},
            "flow: central is not where it was",
        ),
        ({"drift": lambda t, x, u, p: Outputs(x.central, x.central)}, "drift returns Outputs, not a State"),
        ({"drift": lambda t, x, u, p: x.central}, "not a State"),
        ({"observe": lambda t, x, u, p: x.central}, "observe returns"),
        ({"noise": lambda y, p: {}}, "noise and observe differ in their outputs: concentration"),
        ({"dosing": lambda u, p: u.iv}, "dosing returns"),
        (
            {"drift": rate(lambda t, x, u, p: jnp.log(x.central)), "flow": None},
            "drift: central is not finite at the defaults",
        ),
        ({"drift": rate(lambda t, x, u, p: u.oral)}, "has no attribute 'oral'"),
        ({"time": "mg"}, "time: 'mg' is no unit of time"),
        ({"inputs": lambda: Inputs(iv=jnp.nan)}, "inputs: iv is not finite"),
    ],
)
def test_planted_fault_is_named(parts, said):
    found = planted(**parts)
    assert any(said in sentence for sentence in found), found


def test_unknown_unit_is_named():
    class Odd(Params):
        speed: Scalar = param(1.0, "furlong/fortnight-0.5")

    assert planted(params=Odd) == ["params: speed: unknown unit 'furlong/fortnight-0.5'"]


def test_inputs_without_neutral_values_are_said():
    class Bare(eqx.Module):
        iv: Scalar = var("mg/h")

    (said,) = planted(inputs=Bare)
    assert "missing 1 required positional argument: 'iv'" in said


def test_name_with_two_meanings_is_said():
    class Twice(eqx.Module):
        k: Scalar = var("mg")

    model = replace(
        sound,
        observe=lambda t, x, u, p: Twice(k=x.central),
        noise=lambda y, p: {"k": None},
    )
    assert check_model(model) == ["'k' is an output and a parameter: data of that name could be either"]


class Nothing(eqx.Module):
    """No inputs."""


def test_a_body_to_which_nothing_can_be_given_is_sound():
    """Inputs without fields pass every check, outputs without fields do not."""
    alone = replace(
        sound,
        inputs=Nothing,
        dosing=None,
        flow=None,
        init=lambda p: State(central=100.0 * p.sd * p.V),
        drift=rate(lambda t, x, u, p: -p.k * x.central),
    )
    assert check_model(alone) == []
    assert "observe returns Nothing" in planted(observe=lambda t, x, u, p: Nothing())[0]
    found = simulate(alone, Params(), Nothing(), jnp.asarray([1.0, 4.0]))
    np.testing.assert_allclose(found.state.central, 50.0 * np.exp([-0.3, -1.2]), rtol=1e-5)
    noisy = replace(alone, diffusion=rate(lambda t, x, u, p: 0.0 * x.central + 0.5), filter=Kalman())
    record = Record(Nothing(), {"concentration": Series([1.0, 4.0], [7.0, 3.0])})
    variance = 0.5**2 * -np.expm1(-0.6) / 0.6 / 25.0 + 0.1**2
    np.testing.assert_allclose(noisy.predict(Params(), record)["concentration"].variance[0], variance)
    assert len(stack({"a": record, "b": record})) == 2
