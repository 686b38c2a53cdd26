"""NUTS through a filter: an SDE of one patient, and of a population, against posteriors by quadrature."""

import equinox as eqx
import jax
import numpy as np
from scipy import special, stats

import dtwin_jax as dt
from dtwin_jax.core.prior import halfnormal, lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.residual import additive

SD, FAST = 0.2, 0.6
TIME = 0.5 * np.arange(1.0, 13.0)
METHOD = dt.Nuts(chains=4, warmup=300, draws=600, target_accept=0.95)


class Params(eqx.Module):
    rate: Scalar = param(0.5, "/h", lognormal(FAST, log_sd=0.6), doc="return to 0")
    noise: Scalar = param(0.7, "mg/L/h^0.5", lognormal(0.7, log_sd=0.5), doc="Wiener noise")
    sd: Scalar = param(SD, "mg/L", doc="error of measurement")


class Inputs(eqx.Module):
    none: dt.Input = var("1", neutral=0.0)


class State(eqx.Module):
    level: Scalar = var("mg/L")


class Outputs(eqx.Module):
    level: Scalar = var("mg/L")


MODEL = dt.Model(
    name="ornstein_uhlenbeck",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(level=2.0 + 0.0 * p.rate),
    drift=lambda t, x, u, p: State(level=-p.rate * x.level),
    diffusion=lambda t, x, u, p: State(level=p.noise + 0.0 * x.level),
    observe=lambda t, x, u, p: Outputs(level=x.level),
    noise=additive,
    filter=dt.Kalman(),
)


def drawn(rate, noise, seed):
    """Measurements of one patient from the joint normal law."""
    mean, covariance = law(rate, noise)
    return np.random.default_rng(seed).multivariate_normal(mean, covariance)


def law(rate, noise):
    """Mean and covariance of measurements of dx = -rate x dt + noise dW from x = 2, in closed form."""
    early, apart = np.minimum.outer(TIME, TIME), np.abs(np.subtract.outer(TIME, TIME))
    covariance = noise**2 * np.exp(-rate * apart) * -np.expm1(-2.0 * rate * early) / (2.0 * rate)
    return 2.0 * np.exp(-rate * TIME), covariance + SD**2 * np.eye(len(TIME))


def log_likelihood(rate, noise, values):
    return stats.multivariate_normal(*law(rate, noise)).logpdf(values)


def record(values):
    return dt.Record(Inputs(none=0.0), {"level": dt.Series(TIME, values)})


def moments(grids, log_density):
    """Mean and sd of every coordinate of a density on a grid."""
    weight = np.exp(log_density - special.logsumexp(log_density))
    found = []
    for axis, grid in enumerate(grids):
        others = tuple(i for i in range(len(grids)) if i != axis)
        w = weight.sum(axis=others)
        mean = float(w @ grid)
        found.append((mean, float(np.sqrt(w @ (grid - mean) ** 2))))
    return found


def check(tree, name, mean, sd, transform=np.log):
    """Within four Monte Carlo standard errors of the mean, and a fifth of the sd."""
    draws = transform(np.asarray(tree.posterior[name]))
    effective = 400.0  # calibrate warns, and so fails, below
    np.testing.assert_allclose(draws.mean(), mean, atol=4.0 * sd / np.sqrt(effective))
    np.testing.assert_allclose(draws.std(), sd, rtol=0.2)


def test_one_patient_has_the_posterior_of_the_closed_form():
    values = drawn(0.5, 0.7, 0)
    tree = dt.calibrate(MODEL, record(values), key=jax.random.key(1), method=METHOD)
    grids = (np.linspace(-4.0, 2.0, 121), np.linspace(-2.5, 1.5, 81))
    log = np.array(
        [
            [
                log_likelihood(np.exp(a), np.exp(b), values)
                + stats.norm.logpdf(a, np.log(FAST), 0.6)
                + stats.norm.logpdf(b, np.log(0.7), 0.5)
                for b in grids[1]
            ]
            for a in grids[0]
        ]
    )
    for name, (mean, sd) in zip(("rate", "noise"), moments(grids, log), strict=True):
        check(tree, name, mean, sd)


def test_population_has_the_posterior_of_the_closed_form():
    """Typical rate and its scatter over four patients; each patient's own rate is integrated out."""
    rates = 0.5 * np.exp([-0.5, 0.1, 0.4, 0.7])
    values = [drawn(rate, 0.7, 10 + i) for i, rate in enumerate(rates)]
    cohort = dt.stack({str(i): record(value) for i, value in enumerate(values)})
    population = dt.Population(MODEL, vary={"rate": halfnormal(0.5)})
    tree = dt.calibrate(population, cohort, key=jax.random.key(2), method=METHOD, priors={"noise": 0.7})
    inner = np.linspace(-5.0, 3.0, 321)
    each = np.array([[log_likelihood(np.exp(a), 0.7, value) for a in inner] for value in values])
    grids = (np.linspace(-3.0, 1.5, 91), np.linspace(np.log(0.005), np.log(2.5), 91))
    log = np.zeros((91, 91))
    for i, centre in enumerate(grids[0]):
        for j, omega in enumerate(np.exp(grids[1])):
            # Where the scatter is far below the spacing, the sum over rates still has unit weight.
            effect = -0.5 * ((inner - centre) / omega) ** 2
            effect = effect - special.logsumexp(effect)
            log[i, j] = np.sum(special.logsumexp(each + effect, axis=1))
            log[i, j] += stats.norm.logpdf(centre, np.log(FAST), 0.6)
            log[i, j] += stats.halfnorm.logpdf(omega, scale=0.5) + np.log(omega)
    (mean, sd), _ = moments(grids, log)
    check(tree, "rate_pop", mean, sd)
    omega = np.exp(grids[1])
    weight = np.exp(log - special.logsumexp(log)).sum(axis=0)
    middle = float(weight @ omega)
    check(tree, "omega_rate", middle, float(np.sqrt(weight @ (omega - middle) ** 2)), transform=np.asarray)
