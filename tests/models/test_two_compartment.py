"""Two- and three-compartment kinetics against sums of exponentials and matrix exponentials in 40 digits."""

from dataclasses import replace

import equinox as eqx
import kinetics
import pytest

from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import two_compartment
from dtwin_jax.models.one_compartment import Inputs, Outputs

TIGHT = Solver(rtol=1e-11, atol=1e-11)


class Params(eqx.Module):
    CL: Scalar = param(1.0, "L/h")
    V1: Scalar = param(20.0, "L")
    Q2: Scalar = param(2.0, "L/h")
    V2: Scalar = param(10.0, "L")
    Q3: Scalar = param(0.5, "L/h")
    V3: Scalar = param(50.0, "L")
    sd: Scalar = param(0.1, "mg/L")
    cv: Scalar = param(0.1, "1")


class State(eqx.Module):
    central: Scalar = var("mg")
    shallow: Scalar = var("mg")
    deep: Scalar = var("mg")


def init(p):
    return State(central=0.0, shallow=0.0, deep=0.0)


def drift(t, x, u, p):
    into_shallow = p.Q2 * (x.central / p.V1 - x.shallow / p.V2)
    into_deep = p.Q3 * (x.central / p.V1 - x.deep / p.V3)
    eliminated = p.CL / p.V1 * x.central
    return State(central=u.iv - eliminated - into_shallow - into_deep, shallow=into_shallow, deep=into_deep)


def observe(t, x, u, p):
    return Outputs(concentration=x.central / p.V1)


three_compartment = Model("three_compartment", Params, Inputs, init, drift, observe, combined)

# A sum of exponentials that is 0 at the start is so to rounding of its terms.
PATHS = {
    "flow": (two_compartment, 1e-10, 1e-15),
    "matrix_exponential": (replace(two_compartment, flow=LinearFlow(two_compartment.drift)), 1e-10, 1e-15),
    "solver": (replace(two_compartment, flow=None, solver=TIGHT), 1e-8, 1e-10),
}


@pytest.fixture(scope="module")
def tabled(shared):
    cases = [case for name, case in kinetics.closed_form_cases(shared).items() if name.startswith("2cmt")]
    for case in cases:
        case.params = {"Q" if name == "Q2" else name: value for name, value in case.params.items()}
        del case.params["Q3"], case.params["V3"]
    return [*cases, kinetics.exponential_cases(shared)["2cpt_bolus_multi"]]


@pytest.mark.parametrize("path", PATHS)
def test_tabled_cases_agree_before_and_after_events(path, tabled):
    model, rtol, floor = PATHS[path]
    assert len(tabled) == 3
    after, before = kinetics.run(model, tabled), kinetics.run(model, tabled, after=False)
    for case in tabled:
        kinetics.assert_equal(after, case, rtol, share_of_peak=floor)
        kinetics.assert_equal(before, case, rtol, side="before", share_of_peak=floor)


@pytest.mark.parametrize(
    ("flow", "rtol", "floor"), [(LinearFlow(drift), 1e-10, 0.0), (None, 1e-8, 1e-10)], ids=["exact", "solver"]
)
def test_three_compartments_agree(flow, rtol, floor, shared):
    model = replace(three_compartment, flow=flow, solver=TIGHT)
    case = kinetics.closed_form_cases(shared)["3cmt_inf_then_bolus"]
    kinetics.assert_equal(kinetics.run(model, [case]), case, rtol, share_of_peak=floor)
