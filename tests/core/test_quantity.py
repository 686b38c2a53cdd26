"""Declarations on fields: read back as declared, changed without a trace of the old value, never retraced."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import Quantity, assign, param, quantities, replace_fields, values, var
from dtwin_jax.core.signal import Doses, Input
from dtwin_jax.core.types import Scalar


class Params(eqx.Module):
    CL: Scalar = param(4.0, "L/h", lognormal(4.0, 0.5), source="a paper", doc="clearance")
    V: Scalar = param(70, "L")


class Inputs(eqx.Module):
    oral: Input = var("mg/h", neutral=0.0)
    iv: Input = var("mg/h", neutral=0.0)


class Outputs(eqx.Module):
    glucose: Scalar = var("mg/dL", doc="in plasma", molar_mass=180.156, plausible=(10.0, 2000.0))


class Organ(eqx.Module):
    flow: Scalar = param(1.5, "L/min")


class Body(eqx.Module):
    liver: Organ
    kidney: Organ
    weight: Scalar = param(70.0, "kg")


@pytest.fixture
def body():
    return Body(Organ(), Organ(1.1))


def test_a_parameter_holds_what_was_declared():
    declared = quantities(Params())
    assert declared["CL"] == Quantity("L/h", lognormal(4.0, 0.5), "a paper", "clearance")
    assert declared["V"] == Quantity("L")


def test_a_channel_holds_what_was_declared():
    expected = Quantity("mg/dL", doc="in plasma", molar_mass=180.156, plausible=(10.0, 2000.0))
    assert quantities(Outputs) == {"glucose": expected}


def test_a_flat_class_is_read_without_an_instance():
    assert quantities(Params) == quantities(Params())


def test_parts_have_dotted_names_in_order_of_declaration(body):
    assert list(quantities(body)) == ["liver.flow", "kidney.flow", "weight"]
    assert {name: float(value) for name, value in values(body).items()} == {
        "liver.flow": 1.5,
        "kidney.flow": 1.1,
        "weight": 70.0,
    }


def test_inputs_with_a_neutral_value_need_no_arguments():
    assert float(Inputs().oral) == 0.0
    with pytest.raises(TypeError, match="glucose"):
        Outputs()


def test_plain_numbers_become_arrays_of_default_precision():
    for number in (3, 3.0, np.float32(3), np.float64(3), np.array(3), jnp.array(3)):
        CL = Params(CL=number).CL
        assert isinstance(CL, jax.Array) and CL.dtype == jnp.float64 and not CL.weak_type


def test_assign_changes_the_named_fields_only(body):
    changed = assign(body, {"kidney.flow": 0.9, "weight": 80})
    assert {name: float(value) for name, value in values(changed).items()} == {
        "liver.flow": 1.5,
        "kidney.flow": 0.9,
        "weight": 80.0,
    }
    assert float(body.kidney.flow) == 1.1


@given(st.dictionaries(st.sampled_from(["liver.flow", "kidney.flow", "weight"]), st.floats(-1e6, 1e6)))
def test_assigned_values_are_read_back(new):
    body = Body(Organ(), Organ(1.1))
    before = {name: float(value) for name, value in values(body).items()}
    after = {name: float(value) for name, value in values(assign(body, new)).items()}
    assert after == before | new


def test_assign_of_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Params has no parameter 'Cl'; it has \['CL', 'V'\]"):
        assign(Params(), {"Cl": 1.0})


def test_assign_takes_leading_axes_for_vmap():
    draws = np.array([1.0, 2.0, 3.0])
    p = assign(Params(), {"CL": draws})
    axes = replace_fields(jax.tree.map(lambda _: None, Params()), {"CL": 0})
    rate = jax.vmap(lambda p: p.CL / p.V, in_axes=(axes,))(p)
    np.testing.assert_allclose(rate, draws / 70.0, rtol=1e-15)


def test_replace_fields_takes_a_signal_in_place_of_a_number():
    doses = Doses([0.0, 12.0], [100.0, 50.0])
    u = replace_fields(Inputs(), {"oral": doses})
    assert u.oral is doses
    assert float(u.iv) == 0.0


def test_a_changed_value_does_not_retrace():
    traces = []

    @jax.jit
    def half_life(p):
        traces.append(p)
        return jnp.log(2.0) * p.V / p.CL

    p = Params()
    same = [
        p,
        Params(CL=5),
        Params(CL=np.float64(6.0)),
        assign(p, {"V": 80}),
        assign(p, {"V": np.array(90.0)}),
    ]
    for changed in same:
        assert float(half_life(changed)) == pytest.approx(np.log(2) * float(changed.V) / float(changed.CL))
    assert len(traces) == 1


def test_a_python_number_is_data_under_filter_jit():
    @eqx.filter_jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def double(p):
        return 2.0 * p.V

    assert [float(double(Params(V=volume))) for volume in (1.0, 2.0, 3)] == [2.0, 4.0, 6.0]
