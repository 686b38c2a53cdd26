"""States as logs: the same bodies, always positive, against closed forms."""

from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dtwin_jax as dt
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.residual import additive, log_normal

RATE, NOISE, CV, START = 0.3, 0.5, 0.2, 1.5


class Params(eqx.Module):
    rate: Scalar = param(RATE, "/h")
    noise: Scalar = param(NOISE, "/h^0.5")
    cv: Scalar = param(CV, "1")
    sd: Scalar = param(0.1, "mg")


class Inputs(eqx.Module):
    infusion: dt.Input = var("mg/h", neutral=0.0)


class State(eqx.Module):
    size: Scalar = var("mg")
    depot: Scalar = var("mg")


class Outputs(eqx.Module):
    size: Scalar = var("mg")


def drift(t, x, u, p):
    return State(size=p.rate * x.size, depot=u.infusion - p.rate * x.depot)


GROWING = dt.Model(
    name="growing",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(size=START + 0.0 * p.rate, depot=0.0 * p.rate),
    drift=drift,
    diffusion=lambda t, x, u, p: State(size=p.noise * x.size, depot=0.0 * x.depot),
    observe=lambda t, x, u, p: Outputs(size=x.size),
    noise=log_normal,
    solver=dt.Solver(diffrax.Euler, dt=0.5),
    filter=dt.Kalman(),
)
TIME = np.array([0.5, 1.0, 3.0, 4.5])
VALUES = np.array([1.9, 1.4, 2.8, 6.0])
RECORD = dt.Record(Inputs(), {"size": dt.Series(TIME, VALUES)})


def test_likelihood_of_geometric_brownian_motion_is_that_of_the_closed_form():
    """Logs are jointly normal; Kalman refuses the natural scale, where noise grows with the state."""
    found = dt.log_states(GROWING, "size").predict(Params(), RECORD)["size"].log_prob(jnp.asarray(VALUES))
    mean = np.log(START) + (RATE - NOISE**2 / 2) * TIME
    covariance = NOISE**2 * np.minimum.outer(TIME, TIME) + CV**2 * np.eye(4)
    wanted = stats.multivariate_normal(mean, covariance).logpdf(np.log(VALUES)) - np.sum(np.log(VALUES))
    np.testing.assert_allclose(np.sum(found), wanted, rtol=1e-10)
    with pytest.raises(ValueError, match="diffusion"):
        GROWING.predict(Params(), RECORD)


def test_paths_stay_positive_and_have_the_exact_law_where_natural_ones_do_not():
    """Euler with steps of 0.5 h and a noise of 2 / h^0.5: a natural step falls below 0 one time in five."""
    p = dt.assign(Params(), {"noise": 2.0})
    times = np.array([4.0])

    def ends(model):
        run = lambda key: dt.simulate(model, p, Inputs(), times, key=key).output.size[0]  # noqa: E731
        return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 4000)))

    positive = ends(dt.log_states(GROWING, "size"))
    assert np.any(ends(GROWING) < 0) and np.all(positive > 0)
    law = stats.norm(np.log(START) + (RATE - 2.0) * 4.0, 2.0 * np.sqrt(4.0))
    assert stats.kstest(np.log(positive), law.cdf).pvalue > 0.01


def test_an_ode_gives_the_same_course_with_doses_into_other_states():
    model = replace(GROWING, diffusion=None, noise=additive, solver=dt.Solver(rtol=1e-10, atol=1e-12))
    inputs = Inputs(infusion=dt.Doses([1.0], [3.0]))
    found = dt.simulate(dt.log_states(model, "size"), Params(), inputs, TIME)
    np.testing.assert_allclose(found.output.size, START * np.exp(RATE * TIME), rtol=1e-8)
    depot = np.where(TIME >= 3.0, 3.0 * np.exp(-RATE * (TIME - 1.0)), 0.0)
    np.testing.assert_allclose(np.asarray(found.state.depot)[[0, 2, 3]], depot[[0, 2, 3]], rtol=1e-8)


def test_a_spread_of_the_start_is_in_proportion():
    spread = lambda p: State(size=0.3 * START + 0.0 * p.rate, depot=0.0 * p.rate)  # noqa: E731
    model = dt.log_states(replace(GROWING, filter=dt.Kalman(spread=spread)), "size")
    found = dt.estimate_states(model, Params(), dt.Record(Inputs(), {"size": dt.Series([], [])}), TIME[:1])
    np.testing.assert_allclose(found.sd.size[0], np.hypot(0.3, NOISE * np.sqrt(0.5)), rtol=1e-8)


def test_states_that_take_doses_and_unknown_ones_are_refused():
    with pytest.raises(ValueError, match=r"input 'infusion' of growing flows into 'depot'"):
        dt.log_states(GROWING, "depot")
    with pytest.raises(ValueError, match="sise"):
        dt.log_states(GROWING, "sise")


def test_a_state_that_starts_at_zero_is_refused():
    grown = replace(GROWING, init=lambda p: State(size=0.0 * p.rate, depot=0.0 * p.rate))
    with pytest.raises(ValueError, match=r"state 'size' of growing starts at 0.0: expected above 0"):
        dt.log_states(grown, "size")


@pytest.mark.parametrize("gate", [lambda t, x: x.depot, lambda t, x: jnp.where(t > 20.0, 1.0, 0.0)])
def test_an_input_that_waits_for_another_state_or_a_time_is_refused(gate):
    """At the start, an empty depot and time 0, the input moves nothing: later a bolus would."""

    def gated(t, x, u, p):
        rates = drift(t, x, u, p)
        return State(size=rates.size + u.infusion * gate(t, x), depot=-p.rate * x.depot)

    with pytest.raises(ValueError, match="input 'infusion' of growing flows into 'size'"):
        dt.log_states(replace(GROWING, drift=gated), "size")
