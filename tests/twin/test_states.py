"""States of a calibration against the joint normal law of a linear SDE, over its parameter by quadrature."""

from dataclasses import replace

import equinox as eqx
import jax
import numpy as np
import pytest
from handmade import result
from scipy import linalg, special, stats

import dtwin_jax as dt
from dtwin_jax.core.prior import halfnormal, lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.residual import additive, proportional
from dtwin_jax.twin.states import labels

SD, NOISE, START = 0.3, 0.6, 4.0
PRIOR = lognormal(0.5, log_sd=0.5)
SEEN = np.array([0.5, 1.5, 3.0, 4.0, 6.0])
VALUES = np.array([3.4, 2.6, 3.5, 1.0, 1.3])
DOSE = (2.0, 1.5)
ASKED = np.array([0.0, 1.0, 2.0, 3.0, 5.0, 7.0])


class Params(eqx.Module):
    rate: Scalar = param(0.5, "/h", PRIOR)
    noise: Scalar = param(NOISE, "mg/h^0.5")
    sd: Scalar = param(SD, "mg")


class Inputs(eqx.Module):
    dose: dt.Input = var("mg/h", neutral=0.0)


class State(eqx.Module):
    amount: Scalar = var("mg")
    area: Scalar = var("mg.h")


class Outputs(eqx.Module):
    amount: Scalar = var("mg")


def diffusion(t, x, u, p):
    return State(amount=p.noise + 0.0 * x.amount, area=0.0 * x.amount)


# The area is not measured: of it is known what the amount, and the rate, tell.
MODEL = dt.Model(
    name="noisy_elimination",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(amount=START + 0.0 * p.rate, area=0.0 * p.rate),
    drift=lambda t, x, u, p: State(amount=u.dose - p.rate * x.amount, area=x.amount),
    diffusion=diffusion,
    observe=lambda t, x, u, p: Outputs(amount=x.amount),
    noise=additive,
    filter=dt.Kalman(),
)


def record(values=VALUES, t0=0.0):
    return dt.Record(
        Inputs(dose=dt.Doses([t0 + DOSE[0]], [DOSE[1]])), {"amount": dt.Series(t0 + SEEN, values)}, t0=t0
    )


def prior_law(rate, times):
    """Mean (2n,) and covariance of both states at sorted `times`, by exponentials (Van Loan 1978)."""
    A, Q = np.array([[-rate, 0.0], [1.0, 0.0]]), np.diag([NOISE**2, 0.0])
    mean, covariance, now = np.array([START, 0.0]), np.zeros((2, 2)), 0.0
    means, moved, own = [], [], []
    # The dose moves the mean at its time, for what is asked for then too.
    for time in times:
        for stop, dose in ((DOSE[0], DOSE[1]), (time, 0.0)) if now < DOSE[0] <= time else ((time, 0.0),):
            block = linalg.expm(np.block([[-A, Q], [np.zeros((2, 2)), A.T]]) * (stop - now))
            F = block[2:, 2:].T
            mean = F @ mean + [dose, 0.0]
            covariance = F @ covariance @ F.T + F @ block[:2, 2:]
            moved.append(F)
            now = stop
        means.append(mean)
        own.append((covariance, len(moved)))
    n = len(times)
    whole = np.zeros((2 * n, 2 * n))
    for i, (early, since) in enumerate(own):
        for j in range(i, n):
            F = np.eye(2)
            for step in moved[since : own[j][1]]:
                F = step @ F
            whole[2 * j : 2 * j + 2, 2 * i : 2 * i + 2] = F @ early
            whole[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = (F @ early).T
    return np.concatenate(means), whole


def conditioned(rate, values=VALUES, smooth=True):
    """Log-likelihood of `values`, and mean and variance (asked, state), given all or those until then."""
    times = np.unique(np.concatenate([SEEN, ASKED]))
    mean, covariance = prior_law(rate, times)
    seen = 2 * np.searchsorted(times, SEEN)
    middle, variance = np.zeros((len(ASKED), 2)), np.zeros((len(ASKED), 2))
    for k, time in enumerate(ASKED):
        rows = seen if smooth else seen[SEEN <= time]
        own = 2 * np.searchsorted(times, time) + np.arange(2)
        gain = covariance[np.ix_(own, rows)] @ np.linalg.inv(
            covariance[np.ix_(rows, rows)] + SD**2 * np.eye(len(rows))
        )
        middle[k] = mean[own] + gain @ (values[: len(rows)] - mean[rows])
        variance[k] = np.diag(covariance[np.ix_(own, own)] - gain @ covariance[np.ix_(rows, own)])
    total = covariance[np.ix_(seen, seen)] + SD**2 * np.eye(len(seen))
    return stats.multivariate_normal(mean[seen], total).logpdf(values), middle, variance


def over(weight, mean, variance):
    """Mean, mean of the variance and variance of the mean (asked, state), over rates with `weight`."""
    middle = np.tensordot(weight, mean, 1)
    return middle, np.tensordot(weight, variance, 1), np.tensordot(weight, (mean - middle) ** 2, 1)


def exact(smooth=True, values=VALUES):
    """Log of the rate on a grid, its posterior weight there, and moments of the states over it."""
    grid = np.linspace(np.log(0.5) - 2.0, np.log(0.5) + 2.0, 201)
    each = [conditioned(np.exp(a), values, smooth) for a in grid]
    log = np.array([one[0] for one in each]) + stats.norm.logpdf(grid, np.log(0.5), 0.5)
    weight = np.exp(log - special.logsumexp(log))
    return grid, weight, over(weight, np.array([one[1] for one in each]), np.array([one[2] for one in each]))


def drawn(model, rates):
    """The result of one patient with these draws of the rate."""
    return result(model, dt.stack({"1": record()}), {}, {"rate": np.reshape(rates, (1, -1, 1))})


def check(found, moments, **bounds):
    middle, within, between = moments
    np.testing.assert_allclose(found["mean"].values[0], middle, **bounds)
    np.testing.assert_allclose(found["sd_within"].values[0], np.sqrt(np.maximum(within, 0.0)), **bounds)
    np.testing.assert_allclose(found["sd_between"].values[0], np.sqrt(between), **bounds)
    np.testing.assert_allclose(found["sd"].values[0], np.sqrt(np.maximum(within + between, 0.0)), **bounds)


@pytest.mark.parametrize("smooth", [True, False])
def test_draws_at_quantiles_of_the_posterior_give_the_exact_law_of_the_states(smooth):
    """200 quantiles stand for a continuous density: moments are off by at most 0.002 mg (mg.h)."""
    grid, weight, moments = exact(smooth)
    assert np.sqrt(moments[2]).max() > 0.3  # what is not known of the rate matters
    at = (np.arange(200) + 0.5) / 200
    rate = np.exp(np.interp(at, np.cumsum(weight) - 0.5 * weight, grid))
    tree = drawn(MODEL, rate)
    found = dt.states_of(MODEL, tree, ASKED, smooth=smooth)
    check(found, moments, atol=0.002)
    assert found["mean"].dims == ("patient", "point", "state")
    assert list(found["unit"].sel(state=["amount", "area"]).values) == ["mg", "mg.h"]
    assert found["failed"].item() == 0.0


def test_a_calibration_gives_the_exact_law_within_its_monte_carlo_error():
    """400 draws worth more than 200: means within four standard errors, sds within a fifth."""
    method = dt.Nuts(chains=4, warmup=200, draws=500)
    tree = dt.calibrate(MODEL, record(), key=jax.random.key(1), method=method, progress=False)
    found = dt.states_of(MODEL, tree, ASKED, samples=400)
    middle, within, between = exact()[2]
    error = np.sqrt(between / 200.0)
    assert np.all(np.abs(found["mean"].values[0] - middle) <= 4.0 * error + 1e-8)
    np.testing.assert_allclose(found["sd_between"].values[0], np.sqrt(between), rtol=0.2, atol=1e-6)
    np.testing.assert_allclose(found["sd"].values[0], np.sqrt(within + between), rtol=0.1, atol=1e-6)


def test_patients_of_a_population_have_states_by_their_own_parameters_and_starts():
    """Of two patients, one an hour later: moments over just these draws, by the joint law."""
    values = (VALUES, VALUES[::-1].copy())
    cohort = dt.stack({"a": record(values[0]), "b": record(values[1], t0=1.0)})
    f = dt.Population(MODEL, vary={"rate": halfnormal(0.5)})
    rates = np.random.default_rng(0).lognormal(np.log(0.5), 0.4, (2, 5, 2))
    values_of = {"rate": rates, "rate_pop": rates[..., 0], "omega_rate": rates[..., 1]}
    tree = result(f, cohort, {}, values_of)
    found = dt.states_of(f, tree, np.stack([ASKED, 1.0 + ASKED]))
    for i, one in enumerate(values):
        each = [conditioned(rate, one) for rate in rates[..., i].ravel()]
        moments = over(np.full(10, 0.1), np.array([e[1] for e in each]), np.array([e[2] for e in each]))
        check(found.isel(patient=[i]), moments, atol=1e-6)
    np.testing.assert_array_equal(found["time"].values[1], 1.0 + ASKED)


def test_other_measurements_of_the_patient_move_the_states_and_not_the_draws():
    tree = drawn(MODEL, [0.3, 0.5, 0.8])
    other = VALUES + 1.0
    found = dt.states_of(MODEL, tree, ASKED, data=record(other))
    each = [conditioned(rate, other) for rate in (0.3, 0.5, 0.8)]
    check(
        found,
        over(np.full(3, 1 / 3), np.array([e[1] for e in each]), np.array([e[2] for e in each])),
        atol=1e-6,
    )


def test_of_an_ode_only_the_draws_differ():
    """The closed form with the dose of 1.5 mg at 2 h; at that time the dose is in."""
    model = replace(MODEL, name="elimination", diffusion=None)
    tree = drawn(model, [0.3, 0.5, 0.8])
    found = dt.states_of(model, tree, ASKED)
    rate = np.array([0.3, 0.5, 0.8])[:, None]
    course = START * np.exp(-rate * ASKED) + np.where(ASKED >= 2.0, 1.5 * np.exp(-rate * (ASKED - 2.0)), 0.0)
    np.testing.assert_allclose(found["mean"].sel(state="amount")[0], course.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["sd"].sel(state="amount")[0], course.std(axis=0), rtol=1e-4, atol=1e-6)
    assert np.all(found["sd_within"] == 0.0)


def test_a_draw_that_cannot_be_solved_is_left_out_and_told():
    tree = drawn(MODEL, [0.3, np.nan, 0.8, 0.5])
    found = dt.states_of(MODEL, tree, ASKED)
    assert found["failed"].item() == 0.25
    each = [conditioned(rate) for rate in (0.3, 0.5, 0.8)]
    check(
        found,
        over(np.full(3, 1 / 3), np.array([e[1] for e in each]), np.array([e[2] for e in each])),
        atol=1e-6,
    )


def test_particles_say_on_how_many_different_ones_states_rest():
    method = dt.ParticleFilter(members=400, guided=True)
    model = replace(MODEL, name="particles", filter=method, solver=dt.Solver(dt=0.1))
    tree = drawn(model, [0.4, 0.6])
    found = dt.states_of(model, tree, ASKED)
    each = [conditioned(rate) for rate in (0.4, 0.6)]
    middle, within, _ = over(np.full(2, 0.5), np.array([e[1] for e in each]), np.array([e[2] for e in each]))
    few = found["effective"].values[0].min()
    assert 1.0 < few <= 400.0
    error = np.sqrt(within.max() / few)
    np.testing.assert_allclose(found["mean"].values[0], middle, atol=4.0 * error)


def test_states_kept_as_logs_say_so_in_their_unit():
    names, units = labels(dt.log_states(dt.log_states(LOGS, "left"), "right"), Params())
    assert (names, units) == (["left", "right"], ["log(mg)", "log(mg)"])


def test_by_default_states_are_those_of_the_observed_period():
    tree = drawn(MODEL, [0.4, 0.6])
    np.testing.assert_allclose(dt.states_of(MODEL, tree)["time"].values, np.linspace(0.0, 6.0, 120)[None])


def test_refuses_times_and_patients_that_do_not_fit():
    cohort = dt.stack({"a": record(), "b": record()})
    tree = result(MODEL, cohort, {}, {"rate": np.full((1, 2, 2), 0.5)})
    with pytest.raises(ValueError, match=r"patient 'a': times begin at -1, before the record's start 0"):
        dt.states_of(MODEL, tree, [-1.0, 2.0])
    with pytest.raises(ValueError, match=r"must not decrease"):
        dt.states_of(MODEL, tree, [2.0, 1.0])
    with pytest.raises(ValueError, match=r"times have shape \(3, 2\), expected \(n,\) or \(2, n\)"):
        dt.states_of(MODEL, tree, np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"data of patients \['b', 'a'\], the calibration had \['a', 'b'\]"):
        dt.states_of(MODEL, tree, ASKED, data=cohort.take([1, 0]))
    with pytest.raises(ValueError, match="the plan is for 1 patient"):
        dt.states_of(MODEL, tree, ASKED, data=record())


class Pair(eqx.Module):
    left: Scalar = var("mg")
    right: Scalar = var("mg")


LOGS = replace(
    MODEL,
    init=lambda p: Pair(left=START + 0.0 * p.rate, right=START + 0.0 * p.rate),
    drift=lambda t, x, u, p: Pair(left=-p.rate * x.left, right=-p.rate * x.right),
    diffusion=lambda t, x, u, p: Pair(left=0.1 * x.left, right=0.1 * x.right),
    observe=lambda t, x, u, p: Outputs(amount=x.left + x.right),
    noise=proportional,
    filter=dt.ExtendedKalman(),
)
