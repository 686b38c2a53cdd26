"""A hybrid against its mechanism, against closed forms, and against a truth that the mechanism lacks."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from saturable import KM, TIMES, VMAX, VOLUME, concentration, mechanism, patients, saturable, start

from dtwin_jax.core.prior import normal
from dtwin_jax.core.quantity import assign, quantities
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.check import check_model
from dtwin_jax.dynamics.hybrid import hybrid, informed, parts_of, with_prior, with_weights
from dtwin_jax.dynamics.region import residual_share
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.inference.fit import fit
from dtwin_jax.inference.train import train
from dtwin_jax.models import linear_health, linear_health_sde, minimal_model, one_compartment
from dtwin_jax.models.one_compartment import Inputs, State
from dtwin_jax.neural.residual import Perceptron

TRAINING = patients([60.0, 120.0, 220.0, 350.0, 500.0, 700.0], seed=1)
UNSEEN = [90.0, 280.0, 600.0]


def concentrations(model, p, dose):
    return np.asarray(simulate(model, p, Inputs(iv=Doses([0.0], [dose])), TIMES).output.concentration)


def trained(model, where, steps):
    optimiser = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(0.05))
    return train(
        model,
        TRAINING,
        where=where,
        optimiser=optimiser,
        steps=steps,
        key=jax.random.key(0),
        params=start(model),
    )


@pytest.fixture(scope="module")
def linear():
    return trained(one_compartment, lambda p: (p.CL, p.V), 100)


@pytest.fixture(scope="module")
def with_network():
    return trained(saturable, lambda p: (p.CL, p.V, p.net), 150)


def test_hybrid_is_its_mechanism_before_training():
    ours, theirs = (concentrations(m, start(m), 300.0) for m in (saturable, mechanism))
    np.testing.assert_array_equal(ours, theirs)


def test_network_recovers_the_missing_term_on_patients_not_trained_on(linear, with_network):
    error = {"linear": [], "hybrid": []}
    for dose in UNSEEN:
        truth = concentration(dose)
        error["linear"].append(np.log(concentrations(mechanism, linear.params, dose) / truth))
        error["hybrid"].append(np.log(concentrations(saturable, with_network.params, dose) / truth))
    rmse = {name: np.sqrt(np.mean(np.square(each))) for name, each in error.items()}
    print(rmse)
    assert rmse["hybrid"] < 0.5 * rmse["linear"]


def test_what_is_learned_is_the_difference_of_the_rates(with_network):
    # The whole rate constant of elimination, /h, over the concentrations that were seen.
    p = with_network.params
    level = np.array([3.0, 10.0, 25.0])
    amount = jnp.asarray(level * float(p.V))
    rate = jax.vmap(lambda a: saturable.drift(jnp.asarray(0.0), State(0.0, a), Inputs(), p).central)(amount)
    true = -VMAX / (KM + level) / VOLUME
    np.testing.assert_allclose(rate / amount, true, rtol=0.15)


def test_parameters_keep_their_names_and_the_weights_are_no_quantities():
    made = hybrid(mechanism, parts_of(saturable).residual, parts_of(saturable).net, latent=("eta",))
    declared = quantities(made.params())
    assert set(declared) == {*quantities(mechanism.params()), "eta"}
    assert declared["CL"] == quantities(mechanism.params())["CL"]
    assert declared["eta"].prior == normal(0.0, 1.0)


def test_hybrids_of_equal_parts_are_equal_and_share_compiled_code():
    again = hybrid(mechanism, parts_of(saturable).residual, replace(parts_of(saturable).net))
    assert again == saturable and hash(again) == hash(saturable)
    assert type(again.params()) is type(saturable.params())


def test_hybrid_passes_the_checks_of_any_model():
    assert check_model(saturable) == []


def test_trained_weights_become_the_defaults_of_a_hashable_model(with_network):
    kept = with_weights(saturable, with_network.params)
    assert kept == with_weights(saturable, with_network.params)
    assert kept != saturable and hash(kept) != hash(saturable)
    for mine, theirs in zip(
        jax.tree.leaves(kept.params()), jax.tree.leaves(with_network.params), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_last_layer_with_a_prior_starts_as_trained_and_says_what_it_is(with_network):
    p = with_network.params
    made = with_prior(saturable, p, 2.0)
    names = {f"w_{i}" for i in range(6)}
    declared = quantities(made.params())
    assert set(declared) == {*quantities(p), *names}
    assert all(declared[name].prior == normal(0.0, 1.0) for name in names)
    x = State(jnp.asarray(3.0), jnp.asarray(200.0))
    at = jnp.asarray(0.0), x, Inputs()
    before, after = (m.drift(*at, q).central for m, q in ((saturable, p), (made, made.params())))
    assert float(after) == pytest.approx(float(before), rel=1e-12)
    # The bias, the last of the weights, moves the rate by 2 of its own units.
    moved = made.drift(*at, assign(made.params(), {"w_5": made.params().w_5 + 1.0})).central
    assert float(moved - after) == pytest.approx(-0.1 * 200.0 * 2.0)


class Reading(eqx.Module):
    """A network that reads a history into one number, and uses it."""

    weight: Any


def reading():
    return Reading(jnp.asarray(0.2))


def last_measured(net, record):
    """Nothing of what is to be predicted: that would be more than the past."""
    told = sum(jnp.sum(jnp.where(s.mask, s.value, 0.0)) for s in record.observations.values())
    return jnp.stack([net.weight * (record.past["concentration"].value[-1] + told)])


def by_context(t, x, u, p, net):
    return {"central": -0.1 * p.context[0] * x.central}


def test_history_reaches_the_drift_and_the_future_does_not():
    model = hybrid(mechanism, by_context, reading, context=1)
    f = informed(model, last_measured)
    p = f.params()

    def record(past, future):
        given = Inputs(iv=Doses([0.0], [100.0]))
        series = {"concentration": Series([4.0], [future])}
        return Record(given, series, past={"concentration": Series([-1.0], [past])})

    expected = lambda past, future: float(f.predict(p, record(past, future))["concentration"].mean[0])  # noqa: E731
    # CL / V = 0.05 /h, and 0.1 * 0.2 of the last value on top.
    assert expected(3.0, 1.0) == pytest.approx(5.0 * np.exp(-4.0 * (0.05 + 0.06)), rel=1e-4)
    assert expected(3.0, 99.0) == expected(3.0, 1.0)
    assert expected(0.0, 1.0) == pytest.approx(5.0 * np.exp(-0.2), rel=1e-4)


def test_hybrid_without_a_context_takes_no_history():
    with pytest.raises(ValueError, match="no context to be filled in"):
        informed(saturable, last_measured)


def insulin_effect(t, x, u, p, net):
    return {"action": 1e-3 * net(u.insulin)[0]}


def nudged(p):
    """Every weight moved, so that the network says something."""
    return eqx.tree_at(lambda q: q.net, p, jax.tree.map(lambda w: w + 0.3, p.net))


NET = Perceptron(centre=(20.0,), spread=(20.0,), width=2)


def test_residual_sees_only_the_inputs_that_it_names():
    seeing = hybrid(minimal_model, insulin_effect, NET, sees=("insulin",))
    blind = hybrid(minimal_model, insulin_effect, NET)
    p = nudged(seeing.params())
    x = seeing.init(p)

    def slope(model):
        given = type(model.inputs())
        rate = lambda level: model.drift(jnp.asarray(0.0), x, given(insulin=level), p).action  # noqa: E731
        return float(jax.grad(rate)(jnp.asarray(30.0)))

    assert slope(blind) == pytest.approx(float(p.p2 * p.SI), rel=1e-9)
    added = float(jax.grad(lambda level: 1e-3 * p.net(level)[0])(jnp.asarray(30.0)))
    assert slope(seeing) == pytest.approx(slope(blind) + added, rel=1e-9)
    assert abs(added) > 1e-7


def test_bolus_moves_a_hybrid_as_it_moves_the_mechanism():
    p = nudged(saturable.params())
    given = Inputs(iv=Doses([1.0], [100.0]))
    found = simulate(saturable, p, given, jnp.array([1.0, 1.0]), after=jnp.array([False, True]))
    assert np.diff(found.state.central)[0] == pytest.approx(100.0, rel=1e-12)


def test_doses_through_an_input_that_the_residual_sees_are_refused():
    def sees_the_rate(t, x, u, p, net):
        return {"central": net(u.iv)[0]}

    made = hybrid(mechanism, sees_the_rate, NET, sees=("iv",))
    with pytest.raises(ValueError, match="sees the input 'iv', so no doses"):
        simulate(made, made.params(), Inputs(iv=Doses([0.0], [1.0])), TIMES)


def nothing(t, x, u, p, net):
    return {"nowhere": net(0.0)[0]}


def vector(t, x, u, p, net):
    return {"central": net(0.0)}


@pytest.mark.parametrize(
    ("residual", "options", "said"),
    [
        (nothing, {}, "no state 'nowhere'"),
        (vector, {}, "has shape"),
        (insulin_effect, {"sees": ("wine",)}, "no input 'wine'"),
        (insulin_effect, {"latent": ("CL",)}, "a parameter 'CL' already"),
    ],
)
def test_what_the_mechanism_has_not_is_refused(residual, options, said):
    with pytest.raises(ValueError, match=said):
        hybrid(mechanism, residual, NET, **options)


def test_model_that_is_no_hybrid_has_no_parts():
    with pytest.raises(ValueError, match="is no hybrid"):
        parts_of(mechanism)


def own_change(t, x, u, p, net):
    return {"H": net(x.H)[0]}


def test_hybrid_of_a_model_with_noise_is_filtered_as_its_mechanism():
    small = replace(linear_health_sde, flow=None)
    noisy = hybrid(small, own_change, Perceptron(centre=(0.0,), spread=(1.0,), width=2))
    series = {"H": Series([0.5, 1.0, 2.0], [0.3, 0.1, -0.2])}
    ours, theirs = (
        f.predict(f.params(), Record(small.inputs(), series))["H"] for f in (noisy, linear_health_sde)
    )
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.variance, theirs.variance, rtol=1e-6)
    walked = residual_share(noisy, nudged(noisy.params()), Record(small.inputs(), series))
    assert 0 < walked["H"] <= 1


def push_alone(t, x, u, p, net):
    return {"H": net(0.7)[0]}


def test_laplace_of_a_last_layer_is_bayesian_regression():
    # A push c that does not change: H is c (1 - exp(-0.1 t)) / 0.1, and c is linear in the weights.
    sd, error, times = 0.5, 0.1, np.array([0.5, 1.0, 2.0])
    seen = np.array([0.1, 0.3, 0.4])
    net = Perceptron(centre=(0.0,), spread=(1.0,), width=2)
    pushed = hybrid(replace(linear_health, flow=None, solver=Solver(dt=0.25)), push_alone, net)
    made = with_prior(pushed, pushed.params(), sd)
    known = dict.fromkeys(quantities(linear_health.params()))
    record = Record(made.inputs(), {"H": Series(times, seen)})
    found = fit(made, record, key=jax.random.key(0), priors=known, starts=1)
    features = sd * np.array([*net().hidden(0.7), 1.0])
    slope = (1.0 - np.exp(-0.1 * times)) / 0.1
    precision = 1.0 / np.sum(features**2) + np.sum(slope**2) / error**2
    weights = np.array([found.estimate[name][0] for name in found.names])
    assert features @ weights == pytest.approx(np.sum(slope * seen) / error**2 / precision, rel=1e-4)
    assert features @ found.covariance[0] @ features == pytest.approx(1.0 / precision, rel=1e-4)
