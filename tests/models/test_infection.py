"""Virus within a host and an epidemic, against closed forms and tight solves of the papers' own equations."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import lambertw
from tabled import case, table

from dtwin_jax.core.signal import Steps
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models import hcv, hiv, influenza, influenza_eclipse, sarscov2, seir
from dtwin_jax.models.hcv import Inputs as HcvInputs
from dtwin_jax.models.hcv import Params as HcvParams
from dtwin_jax.models.hiv import Inputs as HivInputs
from dtwin_jax.models.hiv import Params as HivParams
from dtwin_jax.models.hiv import State as HivState
from dtwin_jax.models.influenza import EclipseParams, reproductive_number
from dtwin_jax.models.influenza import Params as FluParams
from dtwin_jax.models.sarscov2 import growth, peak
from dtwin_jax.models.seir import Params as SeirParams
from dtwin_jax.models.seir import never_infected


@functools.cache
def solved(model, rtol=1e-12, atol=1e-14):
    tight = replace(model, solver=replace(model.solver, rtol=rtol, atol=atol, max_steps=16384))
    return jax.jit(lambda p, u, t: simulate(tight, p, u, t))


def parameters_of(shared, name):
    (found,) = [row for row in case(shared("reference/models/viral_params.json")) if row["model"] == name]
    return found["params"], found


def perelson(t, V0, c, d):
    """The closed form of the paper, all virus."""
    share = c / (c - d)
    return V0 * (
        np.exp(-c * t) + share * (share * (np.exp(-d * t) - np.exp(-c * t)) - d * t * np.exp(-c * t))
    )


def test_hiv_equals_closed_form(shared):
    reference = table(shared("reference/models/viral_hiv_perelson1996_closed_form.csv"))
    p = HivParams(V0=reference["V0"][0], c=reference["c"][0], delta=reference["delta"][0])
    found = simulate(hiv, p, HivInputs(efficacy=1.0), reference["time_d"])
    np.testing.assert_allclose(found.output.viral_load, reference["V"], rtol=1e-12)
    np.testing.assert_allclose(found.state.infectious * p.V0, reference["V_infectious"], rtol=1e-12)


@functools.partial(jax.jit, static_argnums=0)
def moved(flow, dt, efficacy, p):
    """The state after `dt` from one that is not at rest, and its derivatives."""

    def state(dt, efficacy, p):
        start = HivState(*map(jnp.asarray, (1.0, 0.9, 0.3)))
        return flow(dt, start, HivInputs(efficacy=efficacy), p)

    return state(dt, efficacy, p), jax.jacfwd(state, argnums=(0, 1, 2))(dt, efficacy, p)


@pytest.mark.parametrize("delta", [0.8, 0.8 * (1 + 1e-9), 0.1, 3.0], ids=["equal", "nearly", "slow", "fast"])
@pytest.mark.parametrize("efficacy", [0.0, 0.95, 1.0])
def test_hiv_equals_matrix_exponential_at_any_efficacy(delta, efficacy):
    """The exponential of the drift's own matrix: rates far apart, alike and equal, in derivatives too."""
    for dt in (0.1, 3.0):
        at = *map(jnp.asarray, (dt, efficacy)), HivParams(c=0.8, delta=delta)
        found, wanted = (jax.tree.leaves(moved(flow, *at)) for flow in (hiv.flow, LinearFlow(hiv.drift)))
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-14)


def test_hiv_follows_the_published_patient(shared):
    """Column of the benchmark collection: the model at its nominal values, beside the 16 measurements."""
    reference = table(shared("reference/models/viral_hiv_perelson1996_patient_data.csv"))
    p = HivParams(V0=1.86e6, c=2.06, delta=0.53)
    found = simulate(hiv, p, HivInputs(efficacy=1.0), reference["time_d"]).output.viral_load
    np.testing.assert_allclose(found, reference["V_model_closed_form_c2p06_d0p53"], rtol=1e-10)
    off = np.log(found[2:] / reference["V_copies_per_ml_measured"][2:])
    assert np.sqrt(np.mean(off**2)) < 0.4


def test_hiv_with_equal_rates_has_no_singularity():
    """c = delta, where the closed form divides by zero: value as beside it, gradient finite."""

    def last(p):
        return simulate(hiv, p, HivInputs(efficacy=1.0), jnp.asarray([3.0])).output.viral_load[0]

    value, gradient = jax.value_and_grad(last)(HivParams(c=0.8, delta=0.8))
    beside = [perelson(3.0, 2.16e5, 0.8 * (1 + offset), 0.8) for offset in (-1e-4, 1e-4)]
    np.testing.assert_allclose(value, np.mean(beside), rtol=1e-6)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))


def test_hcv_agrees_with_reference(shared):
    reference = table(shared("reference/models/viral_hcv_tcl.csv"))
    given, about = parameters_of(shared, "viral_hcv_tcl")
    c, d, delta, s, beta, made = (given[n] for n in ("c", "d", "delta", "s", "beta", "p"))
    R0 = beta * made * s / (c * delta * d)
    target, infected = s / (d * R0), (1 - 1 / R0) * s / delta
    p = HcvParams(V0=made * infected / c, R0=R0, c=c, delta=delta, d=d)
    found = solved(hcv)(p, HcvInputs(epsilon=about["eps"]), reference["time_d"])
    np.testing.assert_allclose(found.output.viral_load, reference["V"], rtol=1e-8)
    np.testing.assert_allclose(found.state.target * target, reference["T"], rtol=1e-8)
    np.testing.assert_allclose(jnp.exp(found.state.log_infected) * infected, reference["I"], rtol=1e-8)
    np.testing.assert_allclose([HcvParams().V0, HcvParams().R0], [p.V0, R0], rtol=1e-4)


def test_hcv_without_production_is_cleared_at_its_own_rate_and_can_come_back():
    """Virus alone falls as exp(-c t); when production starts again it finds the cells still infected."""
    t = jnp.asarray([1.0, 2.0, 20.0, 21.0])
    cleared = solved(hcv, 1e-6, 1e-8)(hcv.params(), HcvInputs(epsilon=Steps([0.0, 20.0], [1.0, 0.5])), t)
    np.testing.assert_allclose(cleared.output.viral_load[:2] / 4.7597e5, np.exp([-8.0, -16.0]), rtol=1e-2)
    assert cleared.output.viral_load[2] < 1e-4
    infected = jnp.exp(cleared.state.log_infected[3])
    np.testing.assert_allclose(cleared.output.viral_load[3] / 4.7597e5, 0.5 * infected, rtol=0.1)


def test_influenza_agrees_with_reference(shared):
    reference = table(shared("reference/models/viral_influenza_baccam2006.csv"))
    given, _ = parameters_of(shared, "influenza_baccam2006")
    constants = {n: given[n] for n in ("beta", "c", "delta")}
    p = FluParams(
        V0=given["V0"], R0=reproductive_number(p=given["p"], T0=given["T0"], **constants), **constants
    )
    found = solved(influenza)(p, influenza.inputs(), reference["time_d"])
    np.testing.assert_allclose(found.output.viral_load, reference["V"], rtol=1e-8)
    np.testing.assert_allclose(jnp.exp(found.state.log_target) * given["T0"], reference["T"], rtol=1e-8)
    infected = found.state.producing * found.output.viral_load / given["p"]
    np.testing.assert_allclose(infected, reference["I"], rtol=1e-7, atol=1e-12)


def test_influenza_with_eclipse_agrees_with_scipy():
    """The paper's own form: T, E, I, V, solved by DOP853 in units of cells and of virus."""
    beta, made, c, k, delta, T0, V0 = 3.2e-5, 0.046, 5.2, 4.0, 5.2, 4e8, 0.075
    times = np.array([0.5, 1.0, 2.0, 3.0, 5.0, 8.0])

    def paper(t, x):
        target, latent, producing, virus = x
        infected = beta * target * virus
        return [
            -infected,
            infected - k * latent,
            k * latent - delta * producing,
            made * producing - c * virus,
        ]

    wanted = solve_ivp(paper, (0, 8), [T0, 0, 0, V0], "DOP853", times, rtol=1e-12, atol=1e-12).y[3]
    R0 = reproductive_number(p=made, beta=beta, T0=T0, c=c, delta=delta)
    np.testing.assert_allclose(R0, 21.8, atol=0.05)
    p = EclipseParams(V0=V0, R0=R0, beta=beta, c=c, delta=delta, k=k)
    found = solved(influenza_eclipse)(p, influenza_eclipse.inputs(), times).output.viral_load
    np.testing.assert_allclose(found, wanted, rtol=1e-8)
    # At the default tolerance, in the model's own logarithms.
    usual = jax.jit(lambda p, t: simulate(influenza_eclipse, p, influenza_eclipse.inputs(), t))(p, times)
    np.testing.assert_allclose(usual.output.viral_load, wanted, rtol=1e-4)


def test_sarscov2_keeps_its_conserved_quantity_and_reaches_its_peak():
    p, t = replace(sarscov2.params(), V0=10.0), jnp.linspace(0.0, 25.0, 501)
    found = solved(sarscov2)(p, sarscov2.inputs(), t)
    load, log_target = found.output.viral_load, found.state.log_target
    kept = p.beta * load + p.gamma * jnp.expm1(log_target) - p.delta * log_target
    np.testing.assert_allclose(kept, kept[0], atol=1e-9 * float(p.beta * peak(p)))
    np.testing.assert_allclose(jnp.max(load), peak(p), rtol=2e-3)
    log_load = jnp.log(load)
    np.testing.assert_allclose((log_load[20] - log_load[0]) / t[20], growth(p), rtol=1e-5)
    fall = p.gamma * jnp.exp(log_target[-1]) - p.delta
    np.testing.assert_allclose((log_load[-1] - log_load[-11]) / (t[-1] - t[-11]), fall, rtol=1e-6)


def test_blocked_replication_lets_virus_fall_at_the_loss_of_infected_cells():
    u = replace(sarscov2.inputs(), efficacy=1.0)
    found = solved(sarscov2)(sarscov2.params(), u, jnp.asarray([2.0, 7.0])).state.log_virus
    np.testing.assert_allclose(found, -0.93 * np.array([2.0, 7.0]), rtol=1e-12)


def test_seir_agrees_with_reference_and_final_size(shared):
    reference = table(shared("reference/models/seir.csv"))
    given, about = parameters_of(shared, "seir")
    p = SeirParams(**given)
    found = solved(seir, 1e-13, 1e-22)(p, seir.inputs(), reference["time_d"])
    for name in ("S", "E", "I", "R"):
        # Two solves of the falling tail differ by some 2e-11 persons of a million.
        np.testing.assert_allclose(
            getattr(found.state, name), reference[name], rtol=1e-8, atol=1e-10, err_msg=name
        )
    np.testing.assert_allclose(never_infected(p), about["S_infinity_fraction_lambertw"], rtol=1e-12)
    np.testing.assert_allclose(found.state.S[-1] / p.N, never_infected(p), rtol=1e-9)


def test_final_size_solves_its_equation_by_the_lambert_function():
    for beta in (0.05, 0.2, 0.5):
        p, ratio, start = SeirParams(beta=beta), beta * 7.0, 1 - 30e-6
        wanted = -lambertw(-ratio * start * np.exp(-ratio)).real / ratio
        np.testing.assert_allclose(never_infected(p), wanted, rtol=1e-10)


RARE = {
    "hiv": (hiv, {"V0": 1e-12}, {"efficacy": 1.0}),
    "hcv cured": (hcv, {}, {"epsilon": 1.0, "eta": 1.0}),
    "hcv without production": (hcv, {}, {"epsilon": 1.0}),
    "hcv after all was blocked": (hcv, {}, {"epsilon": Steps([0.0, 20.0], [1.0, 0.0])}),
    "hcv after nearly all was blocked": (hcv, {}, {"epsilon": Steps([0.0, 20.0], [0.9999, 0.0])}),
    "hcv without infection": (hcv, {}, {"eta": 1.0}),
    "influenza without production": (influenza, {}, {"efficacy": 1.0}),
    "sarscov2 without replication": (sarscov2, {}, {"efficacy": 1.0}),
    "influenza of one virion": (influenza, {"V0": 1e-12}, {}),
    "influenza that cannot spread": (influenza, {"R0": 1e-6}, {"efficacy": 1.0}),
    "eclipse": (influenza_eclipse, {"V0": 1e-12}, {"efficacy": 0.99}),
    "sarscov2": (sarscov2, {"V0": 1e-12}, {"efficacy": 1.0}),
    "no epidemic": (seir, {"E0": 0.0, "I0": 0.0}, {}),
    "nobody meets": (seir, {}, {"contact": 0.0}),
}


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=(1, 2))
def last(model, p, u):
    found = simulate(model, p, u, jnp.asarray([30.0, 100.0])).output
    return sum(jnp.sum(each) for each in jax.tree.leaves(found))


@pytest.mark.parametrize("name", RARE)
def test_rare_courses_are_finite(name):
    model, p, u = RARE[name]
    value, gradient = last(model, replace(model.params(), **p), replace(model.inputs(), **u))
    assert np.isfinite(value) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_treatment_begun_later_lowers_virus_less():
    def load(start):
        u = replace(influenza.inputs(), efficacy=Steps([0.0, start], [0.0, 0.97]))
        t = jnp.linspace(0.5, 8.0, 16)
        return jnp.sum(jnp.log(solved(influenza, 1e-6, 1e-8)(influenza.params(), u, t).output.viral_load))

    assert load(1.0) < load(2.0) < load(4.0)
