"""Tumours under treatment: Claret, Simeoni, regrowth, against closed forms and tight solves."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tabled import case, table

from dtwin_jax.core.signal import Doses, Steps
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import claret, lesion_regrowth, regrowth, simeoni, stein_regrowth
from dtwin_jax.models.claret import Inputs as Exposure
from dtwin_jax.models.claret import Params as ClaretParams
from dtwin_jax.models.claret import nadir
from dtwin_jax.models.regrowth import Inputs as Treatment
from dtwin_jax.models.regrowth import Params as RegrowthParams
from dtwin_jax.models.regrowth import SteinParams
from dtwin_jax.models.simeoni import Inputs as Drug
from dtwin_jax.models.simeoni import Params as SimeoniParams
from dtwin_jax.models.simeoni import State, brake


def test_claret_equals_closed_form(shared):
    reference = table(shared("reference/models/claret_tgi_closed_form.csv"))
    first = {name: float(column[0]) for name, column in reference.items()}
    p = ClaretParams(TS0=first["TS0"], KL=first["KL"], KD=first["KD0"], lam=first["lambda_"])
    found = simulate(claret, p, Exposure(exposure=first["exposure"]), reference["t_week"]).output.size
    # The table has 15 digits.
    np.testing.assert_allclose(found, reference["TS_mm"], rtol=2e-14)
    np.testing.assert_allclose(nadir(jnp.asarray(1.0), p), first["t_nadir_week"], rtol=1e-14)


def test_claret_equals_solver_while_exposure_changes():
    u, t = Exposure(exposure=Steps([0.0, 6.0, 12.0], [1.0, 0.0, 2.0])), jnp.asarray([3.0, 9.0, 40.0])
    solved = simulate(replace(claret, flow=None, solver=Solver(rtol=1e-11)), ClaretParams(), u, t).output.size
    np.testing.assert_allclose(simulate(claret, ClaretParams(), u, t).output.size, solved, rtol=1e-9)


def test_nadir_without_shrinkage_is_the_start():
    value, slope = jax.value_and_grad(lambda e: nadir(e, ClaretParams()))(jnp.asarray(0.0))
    assert value == 0.0 and slope == 0.0


@pytest.fixture(scope="module")
def xenograft():
    tight = replace(simeoni, solver=Solver(rtol=1e-11, atol=1e-14))
    usual = jax.jit(lambda p, u, t: simulate(simeoni, p, u, t))
    return jax.jit(lambda p, u, t: simulate(tight, p, u, t)), usual


def test_simeoni_agrees_with_reference(shared, xenograft):
    reference = table(shared("reference/models/simeoni_tgi.csv"))
    about = case(shared("reference/models/simeoni_tgi_case.json"))
    given = about["params"]
    p = SimeoniParams(
        w0=given["w0"],
        l0=given["lambda0"],
        l1=given["lambda1"],
        k1=given["k1"],
        k2=given["k2"],
        psi=given["psi"],
        kel=about["kel_per_day"],
    )
    u = Drug(dose=Doses(about["dose_days"], about["C0_ng_ml"] * float(p.V)))
    found = xenograft[0](p, u, reference["t_day"])
    for name in ("x1", "x2", "x3", "x4"):
        np.testing.assert_allclose(
            getattr(found.state, name), reference[name], rtol=1e-6, atol=1e-13, err_msg=name
        )
    np.testing.assert_allclose(found.output.mass, reference["w_g"], rtol=1e-8)
    default = xenograft[1](p, u, reference["t_day"])
    np.testing.assert_allclose(default.output.mass, reference["w_g"], rtol=1e-5)


def test_a_tumour_of_any_mass_brakes_without_overflow():
    """In float32, where (l0 w / l1)^20 overflows above 100 g."""
    p = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), SimeoniParams())
    for mass, wanted in ((0.0, 1.0), (1e-30, 1.0), (1e3, 0.814 / 0.273 / 1e3), (1e6, 0.814 / 0.273 / 1e6)):
        value, slope = jax.value_and_grad(brake)(jnp.asarray(mass, jnp.float32), p)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        assert np.isfinite(slope)


def test_an_untreated_xenograft_grows_exponentially_and_then_in_a_line():
    p, none = SimeoniParams(), jnp.asarray(0.0)

    def rate(mass):
        x = State(concentration=0.0, x1=mass, x2=0.0, x3=0.0, x4=0.0)
        return simeoni.drift(none, x, Drug(), p).x1

    np.testing.assert_allclose(rate(0.01), 0.273 * 0.01, rtol=1e-12)
    np.testing.assert_allclose(rate(100.0), 0.814, rtol=1e-12)


def test_regrowth_equals_the_two_exponentials():
    p, t = RegrowthParams(), np.linspace(0.0, 900.0, 7)
    found = simulate(regrowth, p, Treatment(treatment=1.0), t).output.psa
    wanted = 14.0 * (0.95 * np.exp(-0.03 * t) + 0.05 * np.exp(0.002 * t))
    np.testing.assert_allclose(found, wanted, rtol=1e-13)
    found = simulate(stein_regrowth, SteinParams(), Treatment(treatment=1.0), t).output.psa
    np.testing.assert_allclose(found, 14.0 * (np.exp(-0.03 * t) + np.exp(0.002 * t) - 1), rtol=1e-12)


def test_psa_follows_treatment_on_and_off():
    """Falls on treatment, rises off it; each nadir higher than the one before."""
    u = Treatment(treatment=Steps([0.0, 200.0, 320.0, 520.0], [1.0, 0.0, 1.0, 0.0]))
    psa = simulate(regrowth, RegrowthParams(), u, jnp.asarray([0.0, 200.0, 320.0, 520.0])).output.psa
    assert psa[1] < 0.2 * psa[0] and psa[2] > 1.2 * psa[1] and psa[3] > psa[1]


@pytest.mark.parametrize("model", [regrowth, stein_regrowth, lesion_regrowth], ids=lambda m: m.name)
def test_regrowth_is_finite_for_long_and_for_none(model):
    def last(p, level):
        out = simulate(model, p, Treatment(treatment=level), jnp.asarray([0.0, 4000.0])).output
        return sum(jnp.sum(each) for each in jax.tree.leaves(out))

    for level in (0.0, 1.0):
        value, gradient = jax.value_and_grad(last, argnums=(0, 1))(model.params(), jnp.asarray(level))
        assert np.isfinite(value) and all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))
