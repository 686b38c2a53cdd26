"""Filters against the joint normal density of what is measured, in closed form, and against each other."""

from dataclasses import replace
from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from dtwin_jax.core.predictor import log_likelihood
from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import assign, param, var
from dtwin_jax.core.record import Record, Series, scenario, stack
from dtwin_jax.core.signal import Doses, Input, Sampled
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.filtering.gaussian import linear_move
from dtwin_jax.dynamics.filtering.kalman import ExtendedKalman, Kalman, UnscentedKalman
from dtwin_jax.dynamics.filtering.run import estimate_states
from dtwin_jax.dynamics.filtering.swarm import EnsembleKalman, ParticleFilter
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive, log_normal
from dtwin_jax.dynamics.solver import Solver

TIGHT = Solver(rtol=1e-10, atol=1e-13)


class Params(eqx.Module):
    ka: Scalar = param(1.1, "/h", lognormal(1.0, 0.5))
    k: Scalar = param(0.4, "/h", lognormal(0.4, 0.5))
    noise_depot: Scalar = param(0.3, "mg/h")
    noise: Scalar = param(0.5, "mg/h")
    sd: Scalar = param(0.2, "mg", lognormal(0.2, 0.5))
    sd_depot: Scalar = param(0.5, "mg")


class Inputs(eqx.Module):
    oral: Input = var("mg/h", neutral=0.0)


class State(eqx.Module):
    depot: Scalar = var("mg")
    central: Scalar = var("mg")


class Outputs(eqx.Module):
    amount: Scalar = var("mg")
    depot: Scalar = var("mg")


def drift(t, x, u, p):
    return State(depot=u.oral - p.ka * x.depot, central=p.ka * x.depot - p.k * x.central)


def diffusion(t, x, u, p):
    return State(depot=p.noise_depot, central=p.noise)


MODEL = Model(
    name="noisy absorption",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(depot=2.0, central=1.0),
    drift=drift,
    observe=lambda t, x, u, p: Outputs(amount=x.central, depot=x.depot),
    noise=additive,
    diffusion=diffusion,
    solver=Solver(method=diffrax.Heun, dt=0.05),
    filter=Kalman(),
)
DOSES = Doses([1.0, 2.5, 2.5], [5.0, 3.0, 4.0], [0.0, 0.0, 1.5])
# Two channels at times of their own; a measurement before and one after the dose of its time.
RECORD = Record(
    Inputs(DOSES),
    {
        "amount": Series(
            [0.0, 0.7, 1.0, 1.0, 2.5, 4.0, 9.0],
            [1.2, 1.5, 2.0, 1.6, 3.9, 6.0, 2.5],
            after=[False, False, False, True, True, False, False],
        ),
        "depot": Series([0.5, 1.0, 5.0], [1.4, 5.2, 2.3], after=[False, True, False]),
    },
)
P = Params()


def joint(record, p=P):
    """Mean and covariance of all measurements of two linear states: exponentials and quadrature by SciPy."""
    A = np.array([[-p.ka, 0.0], [p.ka, -p.k]], float)
    spread = np.diag([float(p.noise_depot), float(p.noise)]) ** 2

    def power(t):
        # Of a lower triangle, by hand.
        a, b = np.exp(A[0, 0] * t), np.exp(A[1, 1] * t)
        return np.array([[a, 0.0], [A[1, 0] * (a - b) / (A[0, 0] - A[1, 1]), b]])

    def integral(t):
        each = lambda i, j: integrate.quad(lambda s: (power(s) @ spread @ power(s).T)[i, j], 0, t)[0]  # noqa: E731
        return np.array([[each(i, j) for j in (0, 1)] for i in (0, 1)])

    def given(t, after):
        total = power(t) @ np.array([2.0, 1.0])
        inputs = record.inputs.oral
        for when, amount, long in zip(inputs.time, inputs.amount, inputs.duration, strict=True):
            if long == 0.0 and (when < t or (when == t and after)):
                total = total + power(t - when) @ [amount, 0.0]
            elif long > 0.0 and when < t:
                end = min(t, when + long)
                rate = amount / long
                for i in (0, 1):
                    flown = integrate.quad(lambda s, i=i: power(t - s)[i, 0], when, end)[0]
                    total[i] += rate * flown
        return total

    rows = [
        (t, after, i)
        for i, name in ((1, "amount"), (0, "depot"))
        for t, after in zip(record.observations[name].time, record.observations[name].after, strict=True)
    ]
    mean = np.array([given(t, after)[i] for t, after, i in rows])
    covariance = np.zeros((len(rows), len(rows)))
    for a, (t, _, i) in enumerate(rows):
        for b, (s, _, j) in enumerate(rows):
            early, late = (t, s) if t <= s else (s, t)
            moved = power(late - early) @ integral(early)
            covariance[a, b] = moved[j, i] if t <= s else moved[i, j]
    sd = np.where([i == 1 for _, _, i in rows], float(p.sd), float(p.sd_depot))
    return mean, covariance + np.diag(sd**2)


def total(model, p, record):
    return sum(jnp.sum(value) for value in log_likelihood(model, p, record).values())


# Compiled once for all tests of a model and a shape.
by_channel = jax.jit(log_likelihood, static_argnums=0)
total_of = jax.jit(total, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def moments(model, p, record):
    """Mean and sd expected of each channel."""
    return {name: (found.loc, found.scale) for name, found in model.predict(p, record).items()}


def measured(record):
    return np.concatenate([record.observations[name].value for name in ("amount", "depot")])


def test_kalman_gives_the_joint_density_of_a_dosed_patient():
    mean, covariance = joint(RECORD)
    exact = stats.multivariate_normal(mean, covariance).logpdf(measured(RECORD))
    found = total_of(MODEL, P, RECORD)
    assert found == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize(
    "method", [ExtendedKalman(TIGHT), UnscentedKalman(TIGHT), UnscentedKalman(TIGHT, kappa=1.0)]
)
def test_other_gaussian_filters_equal_it_on_a_linear_model(method):
    exact = by_channel(MODEL, P, RECORD)
    found = by_channel(replace(MODEL, filter=method), P, RECORD)
    for name in exact:
        np.testing.assert_allclose(found[name], exact[name], atol=1e-8)


def test_gradient_equals_finite_differences():
    for method in (Kalman(), ExtendedKalman(TIGHT)):
        model = replace(MODEL, filter=method)
        higher, lower = (total_of(model, assign(P, {"k": k}), RECORD) for k in (0.4 + 1e-5, 0.4 - 1e-5))
        for mode, derivative in (("forward", jax.jacfwd), ("reverse", jax.grad)):
            prepared = model.differentiated(mode)
            along = derivative(lambda k, model=prepared: total(model, assign(P, {"k": k}), RECORD))
            np.testing.assert_allclose(jax.jit(along)(0.4), (higher - lower) / 2e-5, rtol=1e-6)


def test_smoothed_states_are_those_of_the_joint_normal():
    times = np.array([0.5, 1.7, 4.0, 6.0])
    mean, covariance = joint(RECORD)
    asked = {"amount": Series(times), "depot": Series(times)}
    both = Record(RECORD.inputs, {n: _joined(RECORD.observations[n], asked[n]) for n in asked})
    whole_mean, whole = joint(both)
    new = [7, 8, 9, 10, 14, 15, 16, 17]
    old = [i for i in range(len(whole_mean)) if i not in new]
    noise = np.diag(np.repeat([float(P.sd), float(P.sd_depot)], 4) ** 2)
    gain = whole[np.ix_(new, old)] @ np.linalg.inv(covariance)
    exact = whole_mean[new] + gain @ (measured(RECORD) - mean)
    variance = np.diag(whole[np.ix_(new, new)] - noise - gain @ whole[np.ix_(old, new)])
    for method in (Kalman(), ExtendedKalman(TIGHT), UnscentedKalman(TIGHT)):
        model = replace(MODEL, filter=method)
        found = jax.jit(lambda p, model=model: estimate_states(model, p, RECORD, times))(P)
        np.testing.assert_allclose(np.concatenate([found.mean.central, found.mean.depot]), exact, atol=1e-7)
        np.testing.assert_allclose(
            np.concatenate([found.sd.central, found.sd.depot]), np.sqrt(variance), rtol=1e-6
        )


def _joined(measured, asked):
    return Series(
        np.concatenate([measured.time, asked.time]),
        np.concatenate([measured.value, asked.value]),
        after=np.concatenate([measured.after, np.ones(len(asked.time), bool)]),
    )


def test_what_is_past_and_what_is_masked_condition_a_forecast_as_they_should():
    plan = scenario(RECORD, until=9.0, every=3.0)
    mean, sd = moments(MODEL, P, plan)["amount"]
    early = {
        n: Series(s.time[s.time <= 6], s.value[s.time <= 6], after=s.after[s.time <= 6])
        for n, s in RECORD.observations.items()
    }
    cut = scenario(Record(RECORD.inputs, early), until=9.0, every=3.0)
    before, _ = moments(MODEL, P, cut)["amount"]
    np.testing.assert_allclose(mean[:3], before[:3], rtol=1e-12)
    assert mean[3] != before[3]
    _, forgotten = moments(MODEL, P, replace(plan, past={}))["amount"]
    assert np.all(forgotten[1:] > sd[1:])


def test_a_padded_cohort_gives_each_patient_his_own():
    other = Record(Inputs(Doses([3.0], [6.0])), {"amount": Series([2.0, 5.0], [1.0, 3.0])})
    cohort = stack({"a": RECORD, "b": other}).record
    found = jax.jit(jax.vmap(lambda r: total(MODEL, P, r)))(cohort)
    alone = [total_of(MODEL, P, record) for record in (RECORD, other)]
    np.testing.assert_allclose(found, alone, atol=1e-10)


@pytest.mark.parametrize("censor", [-1, 1])
def test_a_limit_moves_the_belief_as_a_cut_normal_does(censor):
    limit = Series([2.0], [1.6], censor=[censor])
    record = Record(Inputs(), {"amount": limit, "depot": Series([2.0, 3.0], [0.2, 0.1])})
    mean, covariance = joint(replace(record, inputs=Inputs(Doses([], []))))
    told_mean, told_sd = moments(MODEL, P, record)["depot"]
    m, S = mean[0], covariance[0, 0]
    a, b = ((1.6 - m) / np.sqrt(S), np.inf) if censor == 1 else (-np.inf, (1.6 - m) / np.sqrt(S))
    known, left = stats.truncnorm.stats(a, b, m, np.sqrt(S))
    gain = covariance[1:, 0] / S
    exact = mean[1:] + gain * (known - m)
    np.testing.assert_allclose(told_mean[0], exact[0], atol=1e-8)
    variance = covariance[1, 1] - gain[0] ** 2 * (S - left)
    np.testing.assert_allclose(told_sd[0], np.sqrt(variance), rtol=1e-7)


class Growth(eqx.Module):
    rate: Scalar = param(0.3, "/h", lognormal(0.3, 0.5))
    sigma2: Scalar = param(0.25, "/h")
    cv: Scalar = param(0.2, "1")


class Size(eqx.Module):
    size: Scalar = var("mg")


GROWTH = Model(
    name="geometric",
    params=Growth,
    inputs=Inputs,
    init=lambda p: Size(size=1.5),
    drift=lambda t, x, u, p: Size(size=p.rate * x.size),
    observe=lambda t, x, u, p: Size(size=x.size),
    noise=log_normal,
    diffusion=lambda t, x, u, p: Size(size=jnp.sqrt(p.sigma2) * x.size),
    solver=Solver(method=diffrax.ItoMilstein, dt=0.02),
    filter=ExtendedKalman(TIGHT),
)


def test_moments_of_geometric_brownian_motion_are_exact():
    rate, variance, t = 0.3, 0.25, 1.0
    mean = 1.5 * np.exp(rate * t)
    spread = mean * np.sqrt(np.exp(variance * t) - 1.0)
    nothing = Record(Inputs(), {"size": Series([], [])})
    for method in (ExtendedKalman(TIGHT), UnscentedKalman(TIGHT)):
        model = replace(GROWTH, filter=method)
        found = jax.jit(lambda p, model=model: estimate_states(model, p, nothing, np.array([t])))(Growth())
        np.testing.assert_allclose([found.mean.size[0], found.sd.size[0]], [mean, spread], rtol=1e-8)


def test_particles_give_the_exact_likelihood_within_the_error_of_monte_carlo():
    # The log of the size is a random walk with drift, so the exact filter is Kalman's on its own scale.
    times, value = np.array([0.5, 1.0, 2.0]), np.array([1.9, 1.5, 3.0])
    drift = (0.3 - 0.125) * times
    covariance = 0.25 * np.minimum(times[:, None], times[None, :]) + 0.04 * np.eye(3)
    exact = (
        stats.multivariate_normal(np.log(1.5) + drift, covariance).logpdf(np.log(value)) - np.log(value).sum()
    )
    record = Record(Inputs(), {"size": Series(times, value)})
    find = lambda seed: total(replace(GROWTH, filter=ParticleFilter(400, seed=seed)), Growth(), record)  # noqa: E731
    each = np.asarray(jax.jit(jax.vmap(find))(jnp.arange(8)))
    error = np.std(each, ddof=1) / np.sqrt(len(each))
    assert error < 0.1
    assert abs(np.mean(each) - exact) < 4 * error + 0.02


def test_an_ensemble_equals_kalman_within_the_error_of_monte_carlo():
    exact = total_of(MODEL, P, RECORD)
    find = lambda seed: total(replace(MODEL, filter=EnsembleKalman(1500, seed=seed)), P, RECORD)  # noqa: E731
    each = jax.jit(jax.vmap(find))(jnp.arange(3))
    assert np.std(each) < 0.5
    assert abs(np.mean(each) - exact) < 0.6


def test_noise_of_many_time_constants_is_the_stationary_one():
    A, b, noise = jnp.array([[-2.0, 0.5], [0.0, -300.0]]), jnp.array([1.0, 2.0]), jnp.array([0.1, 4.0])
    moved, offset, covariance = linear_move(A, b, noise, jnp.asarray(1e4))
    np.testing.assert_allclose(moved, 0.0, atol=1e-12)
    np.testing.assert_allclose(offset, -np.linalg.solve(A, b), rtol=1e-10)
    np.testing.assert_allclose(A @ covariance + covariance @ A.T, -jnp.diag(noise), atol=1e-9)


def test_kalman_refuses_what_it_would_get_wrong():
    sampled = Record(Inputs(Sampled([0.0, 1.0], [0.0, 1.0])), RECORD.observations)
    with pytest.raises(ValueError, match="use ExtendedKalman"):
        moments(MODEL, P, sampled)
    with pytest.raises(ValueError, match="diffusion that is the same in every state"):
        moments(replace(GROWTH, filter=Kalman()), Growth(), Record(Inputs(), {"size": Series([1.0], [1.0])}))
    tidal = replace(
        MODEL, drift=lambda t, x, u, p: State(depot=jnp.sin(t) - x.depot, central=0.0 * x.central)
    )
    with pytest.raises(ValueError, match="not with time"):
        moments(tidal, P, RECORD)
