"""Uncertainty of a network by NUTS, and of what it is told of each patient, against exact posteriors."""

from dataclasses import replace

import equinox as eqx
import jax
import numpy as np
import pytest
from scipy import special, stats

import dtwin_jax as dt
from dtwin_jax.core.prior import halfnormal
from dtwin_jax.models import linear_health

ERROR, TIME, SD = 0.1, np.array([0.5, 1.0, 2.0]), 0.5
# Of a push that does not change, with the model's rate of 0.1 back to rest.
SLOPE = (1.0 - np.exp(-0.1 * TIME)) / 0.1
METHOD = dt.Nuts(chains=4, warmup=300, draws=500, target_accept=0.95)
mechanism = replace(linear_health, flow=None, solver=dt.Solver(dt=0.5))
network = dt.Perceptron(centre=(0.0,), spread=(1.0,), width=2)


def push(t, x, u, p, net):
    return {"H": net(0.7)[0]}


def push_of_patient(t, x, u, p, net):
    return {"H": net(p.eta)[0]}


def record(values):
    return dt.Record(mechanism.inputs(), {"H": dt.Series(TIME, values)})


def known(model):
    return dict.fromkeys(dt.quantities(linear_health.params()))


def test_a_last_layer_has_the_posterior_of_bayesian_regression():
    seen = np.array([0.1, 0.3, 0.4])
    model = dt.hybrid(mechanism, push, network)
    made = dt.with_prior(model, model.params(), SD)
    tree = dt.calibrate(made, record(seen), key=jax.random.key(0), method=METHOD, priors=known(made))
    features = SD * np.array([*network().hidden(0.7), 1.0])
    precision = 1.0 / np.sum(features**2) + np.sum(SLOPE**2) / ERROR**2
    drawn = sum(features[i] * tree.posterior[f"w_{i}"].values.ravel() for i in range(3))
    # Effective draws: calibrate warns, and so fails, below 400.
    error = 4.0 / np.sqrt(400.0 * precision)
    assert drawn.mean() == pytest.approx(np.sum(SLOPE * seen) / ERROR**2 / precision, abs=error)
    assert drawn.std() == pytest.approx(precision**-0.5, rel=0.2)


def test_random_effects_into_a_network_have_the_posterior_of_quadrature():
    """Typical effect and scatter over four patients; each patient's own is integrated out."""
    model = dt.hybrid(mechanism, push_of_patient, network, latent=("eta",))
    shaped = eqx.tree_at(
        lambda q: q.net.layers[-1].weight, model.params(), 0.6 * np.ones((1, 2)) * np.array([1.0, -0.5])
    )
    model = dt.with_weights(model, shaped)
    net = eqx.combine(shaped.net, network())
    rate = jax.vmap(lambda eta: net(eta)[0])
    etas = np.array([-1.2, -0.3, 0.5, 1.4])
    noise = ERROR * np.random.default_rng(0).standard_normal((4, 3))
    seen = np.asarray(rate(etas))[:, None] * SLOPE + noise
    cohort = dt.stack({str(i): record(values) for i, values in enumerate(seen)})
    population = dt.Population(model, vary={"eta": halfnormal(1.0)})
    tree = dt.calibrate(population, cohort, key=jax.random.key(1), method=METHOD, priors=known(model))
    inner = np.linspace(-8.0, 8.0, 641)
    expected = np.asarray(rate(inner))[:, None] * SLOPE
    each = stats.norm.logpdf(seen[:, None], expected[None], ERROR).sum(axis=2)
    centres, scatters = np.linspace(-3.5, 3.5, 81), np.exp(np.linspace(np.log(0.02), np.log(4.5), 81))
    log = np.zeros((81, 81))
    for i, centre in enumerate(centres):
        for j, omega in enumerate(scatters):
            effect = -0.5 * ((inner - centre) / omega) ** 2
            log[i, j] = np.sum(special.logsumexp(each + effect - special.logsumexp(effect), axis=1))
            log[i, j] += stats.norm.logpdf(centre) + stats.halfnorm.logpdf(omega) + np.log(omega)
    weight = np.exp(log - special.logsumexp(log))
    for name, grid, w in (("eta_pop", centres, weight.sum(1)), ("omega_eta", scatters, weight.sum(0))):
        mean = float(w @ grid)
        sd = float(np.sqrt(w @ (grid - mean) ** 2))
        drawn = tree.posterior[name].values
        assert drawn.mean() == pytest.approx(mean, abs=4.0 * sd / 20.0)
        assert drawn.std() == pytest.approx(sd, rel=0.2)
