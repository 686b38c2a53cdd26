"""The linear health model against closed forms in 40 digits, and the moments of its noise."""

import csv
import functools
import json
from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.signal import Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import linear_health, linear_health_sde
from dtwin_jax.models.linear_health import Inputs, Params

stepped = replace(linear_health, flow=None, solver=Solver(diffrax.Dopri8, rtol=1e-12, atol=1e-13))
PATHS = 3000


def table(path):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def case(shared):
    """The paper's case: three covariates, a treatment in three steps."""
    given = json.loads(shared("reference/models/paper_linear_health_ode_case.json").read_text())
    (e, b, c), (x_e, x_b, x_c) = given["beta"], given["x"]
    p = Params(alpha=given["a"], beta_E=e, beta_B=b, beta_C=c, gamma=given["g"], H0=given["H0"])
    starts, _, levels = zip(*given["Ts"], strict=True)
    return p, Inputs(E=x_e, B=x_b, C=x_c, T=Steps(list(starts), list(levels)))


@pytest.mark.parametrize(("model", "rtol"), [(linear_health, 1e-10), (stepped, 1e-9)], ids=["flow", "solver"])
def test_trajectory_agrees_with_reference(model, rtol, case, shared):
    reference = table(shared("reference/models/paper_linear_health_ode.csv"))
    found = jax.jit(lambda p, u, t: simulate(model, p, u, t).output.H)(*case, reference["t"])
    np.testing.assert_allclose(found, reference["H"], rtol=rtol)


@pytest.mark.parametrize(
    ("model", "rtol"), [(linear_health, 1e-10), (stepped, 1e-10)], ids=["flow", "solver"]
)
def test_gradients_agree_with_reference(model, rtol, case, shared):
    with open(shared("reference/models/paper_linear_health_gradients.csv")) as file:
        reference = {row["quantity"]: float(row["value"]) for row in csv.DictReader(file)}

    def end(p, u):
        return simulate(model, p, u, jnp.asarray([20.0])).output.H[0]

    value, gradient = jax.jit(jax.value_and_grad(end))(*case)
    np.testing.assert_allclose(value, reference["H_end"], rtol=rtol)
    for name in ("alpha", "gamma", "H0"):
        np.testing.assert_allclose(getattr(gradient, name), reference[f"dHend_d{name}"], rtol=rtol)


class GeometricParams(eqx.Module):
    mu: Scalar = param(0.05, "/a")
    sigma2: Scalar = param(0.04, "/a")
    H0: Scalar = param(0.2, "1")
    sd: Scalar = param(0.1, "1")


class H(eqx.Module):
    H: Scalar = var("1")


class Nothing(eqx.Module):
    T: Scalar = var("1", neutral=0.0)


def geometric_drift(t, x, u, p):
    return H(H=p.mu * x.H)


def geometric_diffusion(t, x, u, p):
    return H(H=jnp.sqrt(p.sigma2) * x.H)


def geometric_start(p):
    return H(H=p.H0)


def see(t, x, u, p):
    return H(H=x.H)


geometric = Model(
    "geometric_brownian",
    GeometricParams,
    Nothing,
    geometric_start,
    geometric_drift,
    see,
    additive,
    diffusion=geometric_diffusion,
    time="a",
    solver=Solver(diffrax.ItoMilstein, dt=1 / 16),
)


@functools.partial(jax.jit, static_argnums=0)
def paths(model, p, u, times, keys):
    return jax.vmap(lambda key: simulate(model, p, u, times, key=key).output.H)(keys)


def assert_moments(found, mean, variance, errors=4.0):
    """Sample mean and variance within `errors` standard errors, taken from the sample itself."""
    n = len(found)
    spread = (found - found.mean(0)) ** 2
    assert np.all(np.abs(found.mean(0) - mean) <= errors * found.std(0) / np.sqrt(n))
    assert np.all(np.abs(spread.mean(0) - variance) <= errors * spread.std(0) / np.sqrt(n))


def test_moments_of_both_processes_agree_with_closed_forms(shared):
    reference = table(shared("reference/models/paper_sde_moments.csv"))
    theta, mu, sigma, start = (reference[name][0] for name in ("theta", "mu", "sigma_ou", "H0"))
    rows = np.flatnonzero((reference["t"] > 0) & (reference["t"] <= 4))
    times, keys = reference["t"][rows], jax.random.split(jax.random.key(1), PATHS)
    # theta (mu - H) is alpha H and a constant push.
    p = Params(alpha=-theta, beta_E=theta * mu, sigma2=sigma**2, H0=start)
    model = replace(linear_health_sde, solver=Solver(diffrax.ItoMilstein, dt=1 / 16))
    found = np.asarray(paths(model, p, Inputs(E=1.0), times, keys))
    # The scheme's own variance is sigma^2 / (2 theta - theta^2 dt): 1.6 % high, within a standard error.
    assert_moments(found, reference["ou_mean"][rows], reference["ou_var"][rows])
    near = list(times).index(1.0), list(times).index(2.0)
    lagged = np.prod([found[:, i] - found[:, i].mean() for i in near], axis=0)
    wanted = reference["ou_autocov_with_t_plus_1"][rows][near[0]]
    assert abs(lagged.mean() - wanted) <= 4 * lagged.std() / np.sqrt(PATHS)

    q = GeometricParams(
        mu=reference["mu_gbm"][0], sigma2=reference["sigma_gbm"][0] ** 2, H0=reference["H0"][0]
    )
    found = np.asarray(paths(geometric, q, Nothing(), times, keys))
    assert_moments(found, reference["gbm_mean"][rows], reference["gbm_var"][rows])
    assert_moments(found < reference["gbm_median"][rows], 0.5, 0.25)


def additive_diffusion(t, x, u, p):
    return H(H=jnp.sqrt(p.sigma2))


def test_orders_of_convergence_are_those_of_the_methods(shared):
    """Strong order 1/2 (Euler) and 1 (Milstein) on geometric Brownian motion, whose closed form needs W(1).

    W(1) is the end of the process with drift 0 and diffusion 1 under the same key. Euler's mean is exact.
    """
    case = json.loads(shared("reference/cases/3_numerics/sde.json").read_text())["gbm"]
    mu, sigma, start = 0.3, 0.5, 1.5
    p = GeometricParams(mu=mu, sigma2=sigma**2, H0=start)
    keys, end = jax.random.split(jax.random.key(2), PATHS), np.array([1.0])

    def ends(model, p, method, dt):
        model = replace(model, solver=Solver(method, dt=dt))
        return np.asarray(paths(model, p, Nothing(), end, keys))[:, 0]

    noise = replace(geometric, diffusion=additive_diffusion)
    w = ends(noise, GeometricParams(mu=0.0, sigma2=1.0, H0=0.0), diffrax.Euler, 1 / 8)
    truth = start * np.exp((mu - sigma**2 / 2) + sigma * w)
    for method, name in ((diffrax.Euler, "EM"), (diffrax.ItoMilstein, "Milstein")):
        coarse, fine = (ends(geometric, p, method, dt) for dt in (1 / 8, 1 / 64))
        slope = np.log2(np.mean(np.abs(coarse - truth)) / np.mean(np.abs(fine - truth))) / 3
        order, margin = case["strong"][name]
        assert abs(slope - order) <= margin
        if method is diffrax.Euler:
            exact = next(row for row in case["em_weak_bias_exact"] if row["n"] == 8)
            assert_moments(coarse, exact["E_EM"], exact["E_EM2"] - exact["E_EM"] ** 2)


def test_same_key_is_the_same_path_at_a_halved_step():
    """Property: refining the step changes the error of the scheme, not the path of the noise."""
    p, keys = Params(alpha=-0.5, sigma2=0.09, H0=0.2), jax.random.split(jax.random.key(3), 5)
    times = np.array([0.5, 1.0])

    def at(dt):
        model = replace(linear_health_sde, solver=Solver(diffrax.ItoMilstein, dt=dt))
        return np.asarray(paths(model, p, Inputs(), times, keys))

    once, coarse, fine = at(1 / 64), at(1 / 64), at(1 / 128)
    np.testing.assert_array_equal(once, coarse)
    assert np.max(np.abs(coarse - fine)) < 0.05 * np.std(fine[:, 1])
