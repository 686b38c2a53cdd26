"""Particle filters, bootstrap and guided, against the joint normal of a discretised linear model."""

from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from dtwin_jax.core.predictor import likelihood_of, log_likelihood
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.filtering.paths import ancestors, effective_rows
from dtwin_jax.dynamics.filtering.run import estimate_states
from dtwin_jax.dynamics.filtering.swarm import EnsembleKalman, ParticleFilter
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.solver import Solver


class Params(eqx.Module):
    ka: Scalar = param(1.1, "/h")
    k: Scalar = param(0.4, "/h")
    noise_depot: Scalar = param(0.6, "mg/h")
    noise: Scalar = param(0.4, "mg/h")
    sd: Scalar = param(0.02, "mg")
    cv: Scalar = param(0.03, "1")


class Inputs(eqx.Module):
    oral: Input = var("mg/h", neutral=0.0)


class State(eqx.Module):
    depot: Scalar = var("mg")
    central: Scalar = var("mg")


class Outputs(eqx.Module):
    amount: Scalar = var("mg")
    index: Scalar = var("1")


# The log of the index is linear in the state, so with all else linear the joint density is known.
MODEL = Model(
    name="noisy absorption",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(depot=2.0, central=1.0),
    drift=lambda t, x, u, p: State(depot=u.oral - p.ka * x.depot, central=p.ka * x.depot - p.k * x.central),
    observe=lambda t, x, u, p: Outputs(amount=x.central, index=jnp.exp(x.depot)),
    noise=lambda y, p: {
        "amount": dist.Normal(y.amount, p.sd),
        "index": dist.LogNormal(jnp.log(y.index), p.cv),
    },
    diffusion=lambda t, x, u, p: State(depot=p.noise_depot, central=p.noise),
    solver=Solver(method=diffrax.Heun, dt=0.1),
)
P = Params(*(jnp.asarray(value) for value in (1.1, 0.4, 0.6, 0.4, 0.02, 0.03)))
STEP, DOSE = 0.1, 3.0
# Two readings at one time, one of them to be made a limit; one just before a dose; one masked.
AMOUNT = [(0.5, False), (1.0, False), (2.2, False), (3.0, False), (4.0, False)]
INDEX = [(0.5, False), (1.6, False), (4.5, False)]
ROWS = [(t, after, 1) for t, after in AMOUNT] + [(t, after, 0) for t, after in INDEX]
SD = np.where([i == 1 for _, _, i in ROWS], float(P.sd), float(P.cv))
MASKED, LIMITED = 3, 0
USED = np.arange(len(ROWS)) != MASKED
TIMES = np.array([0.3, 1.0, 2.0, 3.4, 5.0])
WANTED = [(t, True, i) for i in (0, 1) for t in TIMES]


def joint(points, p=P):
    """Mean and covariance of states (time, after, index): Heun's step in the drift, Euler's in noise."""
    A = np.array([[-p.ka, 0.0], [p.ka, -p.k]], float)
    M = np.eye(2) + STEP * A + STEP**2 * A @ A / 2
    spread = np.diag([float(p.noise_depot), float(p.noise)]) ** 2 * STEP
    power = [np.eye(2)]
    own = [np.zeros((2, 2))]
    for _ in range(60):
        power.append(M @ power[-1])
        own.append(M @ own[-1] @ M.T + spread)
    steps = [round(t / STEP) for t, _, _ in points]
    mean, covariance = np.zeros(len(points)), np.zeros((len(points), len(points)))
    for a, (t, after, i) in enumerate(points):
        state = power[steps[a]] @ [2.0, 1.0]
        if t > 1.0 or (t == 1.0 and after):
            state = state + power[steps[a] - 10] @ [DOSE, 0.0]
        mean[a] = state[i]
        for b, (_, _, j) in enumerate(points):
            if steps[b] <= steps[a]:
                covariance[a, b] = covariance[b, a] = (power[steps[a] - steps[b]] @ own[steps[b]])[i, j]
    return mean, covariance


def readings(p=P):
    mean, covariance = joint(ROWS, p)
    return mean, covariance + np.diag(SD**2)


VALUE = np.random.default_rng(5).multivariate_normal(*readings())


def conditioned(mean, covariance, asked, given, value):
    gain = covariance[np.ix_(asked, given)] @ np.linalg.inv(covariance[np.ix_(given, given)])
    left = covariance[np.ix_(asked, asked)] - gain @ covariance[np.ix_(given, asked)]
    return mean[asked] + gain @ (value - mean[given]), left


def cohort_of(censor=0):
    """The patient and another; with `censor` his first amount only lies below or above a limit."""
    n, value = len(AMOUNT), VALUE.copy()
    value[LIMITED] -= 0.1 * censor
    amount = Series([t for t, _ in AMOUNT], value[:n], mask=USED[:n], censor=[censor] + [0] * (n - 1))
    index = Series([t for t, _ in INDEX], np.exp(value[n:]))
    record = Record(Inputs(Doses([1.0], [DOSE])), {"amount": amount, "index": index})
    return stack({"a": record, "b": OTHER}).record


OTHER = Record(Inputs(Doses([0.4], [1.0])), {"amount": Series([1.0, 2.0], [1.1, 1.3])})


def swapped(cohort):
    return jax.tree.map(lambda leaf: leaf[::-1], cohort)


COHORT = cohort_of()
RECORD = jax.tree.map(lambda leaf: leaf[0], COHORT)
SEEDS = jnp.arange(32)


def by_seed(cohort, guided, p=P):
    """Log-likelihood of every patient and seed, and mean, variance and cdf of what is predicted."""
    return _by_seed(cohort, guided, p)


@eqx.filter_jit
def _by_seed(cohort, guided, p):

    def one(record, seed):
        model = replace(MODEL, filter=ParticleFilter(200, seed=seed, guided=guided))
        with numpyro.validation_enabled(False):
            found = model.predict(p, record)
        value = sum(jnp.sum(each) for each in likelihood_of(found, record).values())
        amount = found["amount"]
        return value, jnp.stack([amount.mean, amount.variance, amount.cdf(VALUE[: len(AMOUNT)])])

    return jax.vmap(lambda record: jax.vmap(lambda seed: one(record, seed))(SEEDS))(cohort)


@eqx.filter_jit
def states_by_seed(smooth, guided=True, lag=np.inf):
    """States of every seed."""

    def one(seed):
        method = ParticleFilter(200, seed=seed, guided=guided, lag=lag)
        return estimate_states(replace(MODEL, filter=method), P, RECORD, TIMES, smooth=smooth)

    return jax.vmap(one)(SEEDS)


def log_density(given, p=P):
    """Of the readings `given`, on the scale of the record."""
    mean, covariance = readings(p)
    logs = [row for row in given if row >= len(AMOUNT)]
    part = stats.multivariate_normal(mean[given], covariance[np.ix_(given, given)])
    return part.logpdf(VALUE[given]) - np.sum(VALUE[logs])


def assert_unbiased(log_value, exact, largest_error):
    """The mean of likelihoods (not of their logs) is the exact one within four standard errors."""
    ratio = np.exp(np.asarray(log_value) - exact)
    error = np.std(ratio, ddof=1) / np.sqrt(len(ratio))
    assert error < largest_error
    assert abs(np.mean(ratio) - 1.0) < 4 * error


def assert_near(each, exact, largest_error):
    """The mean over seeds (first axis) is exact within four and a half standard errors, everywhere."""
    each = np.asarray(each)
    error = np.std(each, axis=0, ddof=1) / np.sqrt(len(each))
    assert np.max(error) < largest_error
    np.testing.assert_array_less(np.abs(np.mean(each, axis=0) - exact), 4.5 * error + 1e-12)


def test_guided_particles_give_the_exact_likelihood_where_bootstrap_ones_are_lost():
    exact = log_density(np.flatnonzero(USED))
    guided, bootstrap = by_seed(COHORT, True)[0][0], by_seed(COHORT, False)[0][0]
    assert_unbiased(guided, exact, 0.02)
    assert np.var(bootstrap) > 100 * np.var(guided)


def test_a_state_without_noise_is_no_obstacle():
    p = replace(P, noise_depot=jnp.asarray(0.0))
    assert_unbiased(by_seed(COHORT, True, p)[0][0], log_density(np.flatnonzero(USED), p), 0.03)


@pytest.mark.parametrize("censor", [-1, 1])
def test_a_value_beyond_a_limit_counts_with_its_probability(censor):
    cohort = cohort_of(censor)
    limit = cohort.observations["amount"].value[0, LIMITED]
    seen = np.array([row for row in np.flatnonzero(USED) if row != LIMITED])
    mean, left = conditioned(*readings(), [LIMITED], seen, VALUE[seen])
    beyond = stats.norm(mean[0], np.sqrt(left[0, 0])).cdf(limit)
    exact = log_density(seen) + np.log(beyond if censor == -1 else 1.0 - beyond)
    assert_unbiased(by_seed(cohort, True)[0][0], exact, 0.04)


@pytest.mark.parametrize("smooth", [True, False])
def test_states_are_those_of_the_joint_normal(smooth):
    """Smoothed (given all) and filtered (given what is past): mean, sd and covariance."""
    points = WANTED + ROWS
    mean, covariance = joint(points)
    noise = np.concatenate([np.zeros(len(WANTED)), SD])
    covariance += np.diag(noise**2)
    exact_mean, exact_sd, exact_cross = np.zeros((2, 5)), np.zeros((2, 5)), np.zeros(5)
    for k, t in enumerate(TIMES):
        rows = [r for r in np.flatnonzero(USED) if smooth or ROWS[r][0] <= t]
        given = [len(WANTED) + r for r in rows]
        exact_mean[:, k], left = conditioned(mean, covariance, [k, k + 5], given, VALUE[rows])
        exact_sd[:, k], exact_cross[k] = np.sqrt(np.diag(left)), left[0, 1]
    found = states_by_seed(smooth)
    assert_near(np.stack([found.mean.depot, found.mean.central], 1), exact_mean, 0.04)
    # Of n draws that differ the variance is short by its nth part; so little counts twice in 200 members.
    sd = np.stack([found.sd.depot, found.sd.central], 1)
    np.testing.assert_allclose(np.mean(sd, axis=0), exact_sd, rtol=0.1, atol=1e-3)
    np.testing.assert_allclose(np.mean(found.covariance[:, :, 0, 1], axis=0), exact_cross, atol=0.01)


def test_states_say_on_how_few_different_paths_they_rest():
    smoothed = states_by_seed(True)
    bootstrap = states_by_seed(True, guided=False)
    assert np.all(smoothed.effective <= 200.0 + 1e-9)
    # Of a precise sensor few bootstrap paths survive, and their sd says too little.
    assert np.all(np.mean(bootstrap.effective[:, :3], axis=0) < 5)
    assert np.all(np.mean(smoothed.effective[:, :3], axis=0) > 20)
    assert np.mean(bootstrap.sd.depot[:, 0]) < 0.7 * np.mean(smoothed.sd.depot[:, 0])


def test_a_lag_keeps_paths_apart_and_forgets_what_is_later_still():
    # Up to 1.2 h later, of the states at 0.3 h: the readings at 0.5 and 1.0 h.
    mean, covariance = joint(WANTED + ROWS)
    covariance += np.diag(np.concatenate([np.zeros(len(WANTED)), SD]) ** 2)
    rows = [r for r in np.flatnonzero(USED) if ROWS[r][0] <= 1.5]
    exact, _ = conditioned(mean, covariance, [0, 5], [len(WANTED) + r for r in rows], VALUE[rows])
    found = states_by_seed(True, lag=1.2)
    assert_near(np.stack([found.mean.depot[:, 0], found.mean.central[:, 0]], 1), exact, 0.03)
    whole = states_by_seed(True)
    assert np.mean(found.effective[:, 0]) > 1.2 * np.mean(whole.effective[:, 0])


def test_what_is_predicted_does_not_know_what_was_measured():
    each = by_seed(COHORT, True)[1][0]
    expected, covariance = readings()
    for row, (time, _) in enumerate(AMOUNT):
        given = [r for r in np.flatnonzero(USED) if ROWS[r][0] < time]
        mean, left = conditioned(expected, covariance, [row], given, VALUE[given])
        share = stats.norm(mean[0], np.sqrt(left[0, 0])).cdf(VALUE[row])
        assert_near(each[:, :, row], np.array([mean[0], left[0, 0], share]), 0.02)


def test_a_patient_is_the_same_beside_any_other():
    found, other = by_seed(COHORT, True)[0], by_seed(swapped(COHORT), True)[0]
    np.testing.assert_allclose(found, other[::-1], rtol=1e-9)
    assert np.all(np.isfinite(found)) and np.var(found[1]) > 0


class Growth(eqx.Module):
    rate: Scalar = param(0.8, "/h")
    cv: Scalar = param(0.02, "1")


class Size(eqx.Module):
    size: Scalar = var("mg")


GROWTH = Model(
    name="logistic",
    params=Growth,
    inputs=Inputs,
    init=lambda p: Size(size=0.4),
    drift=lambda t, x, u, p: Size(size=p.rate * x.size * (1.0 - x.size / 2.0)),
    observe=lambda t, x, u, p: Size(size=x.size),
    noise=lambda y, p: {"size": dist.LogNormal(jnp.log(y.size), p.cv)},
    diffusion=lambda t, x, u, p: Size(size=0.2 * x.size),
    solver=Solver(method=diffrax.ItoMilstein, dt=0.5),
)


def test_weights_are_exact_where_drift_and_noise_are_not_linear():
    """Logistic growth in steps so long that a guide can only be rough; the density on a fine grid."""
    times, value = [1.0, 2.0, 4.0], np.array([0.75, 0.9, 1.9])
    x = np.linspace(0.02, 5.0, 2500)
    rate = lambda x: 0.8 * x * (1.0 - x / 2.0)  # noqa: E731
    step = lambda x: x + 0.25 * (rate(x) + rate(x + 0.5 * rate(x)))  # noqa: E731
    passage = stats.norm(step(x)[None, :], 0.2 * np.sqrt(0.5) * x[None, :]).pdf(x[:, None]) * (x[1] - x[0])
    sensor = [stats.norm(np.log(x), 0.02).pdf(np.log(v)) / v for v in value]
    density = stats.norm(step(0.4), 0.2 * np.sqrt(0.5) * 0.4).pdf(x)
    density = sensor[0] * (passage @ density)
    density = sensor[1] * (passage @ passage @ density)
    density = sensor[2] * (np.linalg.matrix_power(passage, 4) @ density)
    exact = np.log(np.sum(density) * (x[1] - x[0]))
    record = Record(Inputs(), {"size": Series(times, value)})

    def one(seed):
        model = replace(GROWTH, filter=ParticleFilter(100, seed=seed, guided=True))
        return jnp.sum(log_likelihood(model, Growth(), record)["size"])

    assert_unbiased(jax.jit(jax.vmap(one))(SEEDS), exact, 0.05)


def test_ancestors_and_their_number_are_those_counted_by_hand():
    drawn = jnp.asarray([[0, 0, 2], [1, 1, 0], [0, 1, 2]])
    rows = ancestors(drawn, jnp.asarray([0, 1, 2]), jnp.asarray([2, 2, 2]))
    np.testing.assert_array_equal(rows, [[0, 0, 0], [1, 1, 0], [0, 1, 2]])
    weight = jnp.asarray([[0.5, 0.25, 0.25]] * 3)
    np.testing.assert_allclose(effective_rows(rows, weight), [1.0, 1.0 / (0.75**2 + 0.25**2), 1 / 0.375])


def test_an_ensemble_filters_states_and_refuses_what_it_cannot():
    with pytest.raises(ValueError, match="smooth=False"):
        estimate_states(replace(MODEL, filter=EnsembleKalman()), P, RECORD, TIMES)
    with pytest.raises(ValueError, match="cannot be guided"):
        EnsembleKalman(guided=True)
