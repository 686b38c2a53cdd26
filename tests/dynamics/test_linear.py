"""Building blocks of linear pieces against the same functions in 60 decimal digits."""

from decimal import Decimal, getcontext

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from small_models import Inputs, Params, State, drift, flow

from dtwin_jax.core.quantity import var
from dtwin_jax.core.signal import Doses
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import LinearFlow, filling, passage, phi1
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.simulate import simulate

getcontext().prec = 60

ARGUMENTS = [0.0, 1e-14, -1e-14, 1e-5, -3e-3, 0.0499, -0.0499, 0.0501, -0.0501, 0.7, -1.0, 5.0, -30.0, -600.0]
# Absorption and elimination: apart, the same to rounding, the same, one of them 0, both 0.
RATES = [
    (1.0, 0.2),
    (0.2, 1.0),
    (0.3, 0.3 * (1 + 1e-13)),
    (0.3, 0.3),
    (0.3, 0.3 * (1 + 1e-6)),
    (1.0, 0.0),
    (0.0, 0.0),
]
SPANS = [0.0, 1e-3, 1.0, 24.0]


def exact_phi1(z):
    z = Decimal(z)
    return (z.exp() - 1) / z if z else Decimal(1)


def exact_phi1_slope(z):
    z = Decimal(z)
    return (z.exp() - exact_phi1(z)) / z if z else Decimal("0.5")


def exact_passage(first, second, dt):
    first, second, dt = Decimal(first), Decimal(second), Decimal(dt)
    return (-first * dt).exp() * dt * exact_phi1((first - second) * dt)


def exact_passage_slope(first, second, dt):
    """Derivative with respect to the second rate."""
    first, second, dt = Decimal(first), Decimal(second), Decimal(dt)
    return -(-first * dt).exp() * dt * dt * exact_phi1_slope((first - second) * dt)


def numbers(function, *arguments):
    return [float(function(*each)) for each in zip(*arguments, strict=True)]


def test_phi1_and_its_derivative_keep_their_digits():
    z = jnp.asarray(ARGUMENTS)
    np.testing.assert_allclose(phi1(z), numbers(exact_phi1, ARGUMENTS), rtol=4e-16 * 4)
    slope = jax.vmap(jax.grad(phi1))(z)
    np.testing.assert_allclose(slope, numbers(exact_phi1_slope, ARGUMENTS), rtol=1e-12)


@pytest.mark.parametrize("dt", SPANS)
def test_passage_and_its_derivatives_keep_their_digits(dt):
    first, second = np.transpose(RATES)
    spans = np.full(len(RATES), dt)
    np.testing.assert_allclose(
        jax.vmap(passage)(first, second, spans), numbers(exact_passage, first, second, spans), rtol=1e-14
    )
    by_second = jax.vmap(jax.grad(passage, argnums=1))(first, second, spans)
    np.testing.assert_allclose(
        by_second, numbers(exact_passage_slope, first, second, spans), rtol=1e-11, atol=1e-300
    )
    by_first = jax.vmap(jax.grad(passage, argnums=0))(first, second, spans)
    np.testing.assert_allclose(
        by_first, numbers(exact_passage_slope, second, first, spans), rtol=1e-11, atol=1e-300
    )


@pytest.mark.parametrize("dt", SPANS)
def test_filling_is_the_integral_of_the_decay(dt):
    rates = np.array([0.0, 1e-12, 0.3, 50.0])
    wanted = [float(Decimal(dt) * exact_phi1(-Decimal(rate) * Decimal(dt))) for rate in rates]
    np.testing.assert_allclose(filling(rates, dt), wanted, rtol=1e-14)


def test_linear_flow_equals_the_closed_form():
    p, u, x = Params(k=0.4), Inputs(iv=3.0, clearance_ratio=1.2), State(central=7.0)
    for dt in (0.0, 0.3, 40.0):
        step = jnp.asarray(dt)
        np.testing.assert_allclose(
            LinearFlow(drift)(step, x, u, p).central, flow(step, x, u, p).central, rtol=1e-12
        )


class Chain(eqx.Module):
    """A vector among the states: a chain of compartments."""

    chain: jax.Array = var("mg")
    end: Scalar = var("mg")


MATRIX = np.array(
    [[-3.0, 0.1, 0.0, 0.0], [3.0, -0.4, 0.0, 0.0], [0.0, 0.3, -900.0, 0.0], [0.0, 0.0, 900.0, 0.0]]
)


def chain_drift(t, x, u, p):
    rate = jnp.asarray(MATRIX) @ jnp.append(x.chain, x.end) + u.iv * jnp.asarray([1.0, 0.0, 0.0, 0.0])
    return Chain(chain=rate[:3], end=rate[3])


@pytest.mark.parametrize("dt", [0.01, 2.0, 500.0])
def test_linear_flow_of_a_stiff_chain_equals_scipy(dt):
    """SciPy's exponential of the augmented matrix; rates are 9000 apart, one is 0."""
    augmented = np.zeros((5, 5))
    augmented[:4, :4], augmented[0, 4] = MATRIX, 2.0
    start = np.array([1.0, 0.0, 2.0, 0.5])
    wanted = scipy.linalg.expm(augmented * dt) @ np.append(start, 1.0)
    x = Chain(chain=jnp.asarray(start[:3]), end=start[3])
    found = jax.jit(LinearFlow(chain_drift))(jnp.asarray(dt), x, Inputs(iv=2.0), Params())
    np.testing.assert_allclose(jnp.append(found.chain, found.end), wanted[:4], rtol=1e-9)


@pytest.mark.parametrize("doses", [1, 6])
def test_a_vector_among_the_states_goes_through_few_doses_and_many(doses):
    """As many times as the vector is long, so that mixing them up would go unseen by shapes."""
    start = np.array([1.0, 0.0, 2.0, 0.5])
    model = Model(
        name="chain",
        params=Params,
        inputs=Inputs,
        init=lambda p: Chain(chain=jnp.asarray(start[:3]), end=start[3]),
        drift=chain_drift,
        observe=lambda t, x, u, p: Chain(chain=x.chain, end=x.end),
        noise=lambda y, p: {},
        flow=LinearFlow(chain_drift),
    )
    when, times = np.arange(1.0, doses + 1.0), np.array([0.5, 1.5, 2.5])
    found = simulate(model, Params(), Inputs(iv=Doses(when, np.full(doses, 4.0))), jnp.asarray(times)).state
    for i, t in enumerate(times):
        wanted = scipy.linalg.expm(MATRIX * t) @ start
        wanted += sum(scipy.linalg.expm(MATRIX * (t - at))[:, 0] * 4.0 for at in when if at < t)
        np.testing.assert_allclose(np.append(found.chain[i], found.end[i]), wanted, rtol=1e-9)


def test_linear_flow_is_equal_by_content():
    assert LinearFlow(drift) == LinearFlow(drift) and hash(LinearFlow(drift)) == hash(LinearFlow(drift))
