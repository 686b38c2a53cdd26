"""Laws of tumour growth against closed forms in 15 digits, and their limits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tabled import table

from dtwin_jax.core.signal import Steps
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import tumour_bertalanffy, tumour_exponential, tumour_gompertz, tumour_logistic
from dtwin_jax.models.tumour_growth import BertalanffyParams, CapacityParams, ExponentialParams, Inputs

ALL = (tumour_exponential, tumour_logistic, tumour_gompertz, tumour_bertalanffy)


def volume(model, p, u, times):
    return simulate(model, p, u, jnp.asarray(times)).output.volume


@pytest.mark.parametrize("model", ALL[:3], ids=lambda model: model.name)
def test_growth_equals_closed_form(model, shared):
    reference = table(shared("reference/models/tumour_growth_closed_forms.csv"))
    mm3 = 1000.0  # from cm3
    r, K, V0 = (float(reference[name][0]) for name in ("r", "K", "V0"))
    if model is tumour_exponential:
        p = ExponentialParams(V0=V0 * mm3, r=r)
    else:
        p = CapacityParams(V0=V0 * mm3, r=r, K=K * mm3)
    found = volume(model, p, Inputs(), reference["t_day"])
    wanted = mm3 * reference[model.name.removeprefix("tumour_")]
    # The table has 15 digits.
    np.testing.assert_allclose(found, wanted, rtol=2e-14)


def test_bertalanffy_equals_closed_form():
    """Bertalanffy's edge: a/b + (edge0 - a/b) exp(-b t / 3), cubed."""
    p, t = BertalanffyParams(V0=100.0, a=0.9, b=0.06), np.linspace(0.0, 200.0, 9)
    edge = 15.0 + (np.cbrt(100.0) - 15.0) * np.exp(-0.02 * t)
    np.testing.assert_allclose(volume(tumour_bertalanffy, p, Inputs(), t), edge**3, rtol=1e-13)


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.name)
def test_flow_equals_solver_while_treatment_changes(model):
    u, t = Inputs(treatment=Steps([0.0, 30.0, 90.0], [0.0, 1.5, 0.5])), [15.0, 60.0, 200.0]
    solved = volume(replace(model, flow=None, solver=Solver(rtol=1e-11, atol=1e-9)), model.params(), u, t)
    np.testing.assert_allclose(volume(model, model.params(), u, t), solved, rtol=1e-9)


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.name)
@pytest.mark.parametrize(
    ("V0", "level", "days"), [(1e-9, 0.0, 100.0), (1e4, 1e3, 1000.0), (1e7, 1.0, 3000.0), (1e4, 1.0, 0.0)]
)
def test_rare_courses_are_finite(model, V0, level, days):
    """A single cell, overwhelming treatment, a huge tumour, treatment as strong as growth."""
    p = replace(model.params(), V0=V0)
    if hasattr(p, "r"):
        p = replace(p, kill=p.r)

    def last(p, level):
        return volume(model, p, Inputs(treatment=level), [days])[0]

    value, gradient = jax.value_and_grad(last, argnums=(0, 1))(p, jnp.asarray(level))
    assert np.isfinite(value) and all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))


def test_logistic_growth_is_smooth_where_treatment_balances_it():
    """V' = -r V^2 / K: V0 / (1 + r V0 t / K), and derivatives from either side agree."""
    p = CapacityParams(V0=1e4, r=0.02, K=1e5, kill=0.02)

    def last(level):
        return volume(tumour_logistic, p, Inputs(treatment=level), [100.0])[0]

    slope = jax.grad(last)
    np.testing.assert_allclose(last(jnp.asarray(1.0)), 1e4 / (1 + 0.02 * 1e4 * 100.0 / 1e5), rtol=1e-14)
    sides = slope(jnp.asarray(1 - 1e-7)), slope(jnp.asarray(1 + 1e-7))
    np.testing.assert_allclose(sides, slope(jnp.asarray(1.0)), rtol=1e-6)
