"""Parts joined into one model: against each part alone, and against the same equations written by hand."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TIGHT

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import assign, param, quantities, values, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.check import check_model
from dtwin_jax.dynamics.couple import couple
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models import minimal_model, one_compartment

drug = replace(one_compartment, flow=None, solver=TIGHT)


class EffectParams(eqx.Module):
    kout: Scalar = param(0.5, "/d", lognormal(0.5, 0.5))
    IC50: Scalar = param(2.0e-6, "g/mL", lognormal(2.0e-6, 0.5))
    baseline: Scalar = param(10.0, "kg", lognormal(10.0, 0.2))
    sd: Scalar = param(0.1, "kg")


class EffectInputs(eqx.Module):
    exposure: Input = var("g/mL", neutral=0.0)
    feeding: Input = var("kg/d", neutral=0.0)


class Mass(eqx.Module):
    mass: Scalar = var("kg")


def shrink(t, x, u, p):
    inhibited = 1 - u.exposure / (p.IC50 + u.exposure)
    return Mass(p.kout * p.baseline * inhibited + u.feeding - p.kout * x.mass)


# Another unit of time, and of concentration, than the drug's.
effect = Model(
    "effect",
    EffectParams,
    EffectInputs,
    lambda p: Mass(p.baseline),
    shrink,
    lambda t, x, u, p: Mass(x.mass),
    additive,
    time="d",
    solver=TIGHT,
)
both = couple("both", {"drug": drug, "effect": effect}, {"effect.exposure": "drug.concentration"})
TIMES = np.array([0.5, 2.0, 6.0, 12.0, 30.0])


@pytest.fixture(scope="module")
def run():
    return jax.jit(lambda p, u: simulate(both, p, u, TIMES))


def given(model, **signals):
    return eqx.tree_at(lambda u: [getattr(u, n) for n in signals], model.inputs(), list(signals.values()))


def by_hand(t, y, p):
    """Both parts in hours, in one function: depot and central in mg, mass in kg."""
    depot, central, mass = y
    concentration = central / p.drug.V * 1e-6  # mg/L to g/mL
    inhibited = 1 - concentration / (p.effect.IC50 + concentration)
    rate = p.effect.kout * p.effect.baseline * inhibited - p.effect.kout * mass
    return [-p.drug.ka * depot, p.drug.ka * depot - p.drug.CL / p.drug.V * central, rate / 24]


def test_two_parts_equal_their_equations_written_together(run):
    """SciPy's DOP853 at 1e-12 on one system in hours, with a lag: the units of both wires are converted."""
    from scipy.integrate import solve_ivp

    p = assign(both.params(), {"drug.lag": 0.25})
    found = run(p, given(both, oral=Doses([0.0], [100.0])))
    start = [100.0, 0.0, float(p.effect.baseline)]
    wanted = solve_ivp(by_hand, (0.0, 30.0), start, "DOP853", TIMES - 0.25, args=(p,), rtol=1e-12, atol=1e-14)
    # Before the lag has passed the mass rests at its baseline, so the whole solution is 0.25 h late.
    np.testing.assert_allclose(found.state.effect.mass, wanted.y[2], rtol=1e-9)
    np.testing.assert_allclose(found.output.concentration, wanted.y[1] / p.drug.V, rtol=1e-9)


def test_a_drug_inside_a_composite_equals_the_drug_alone(run):
    """The closed form of one compartment, doses and infusion with a lag."""
    doses = Doses([0.0, 8.0], [100.0, 50.0], [0.0, 3.0])
    p = assign(both.params(), {"drug.lag": 0.25, "drug.F": 0.7})
    found = run(p, given(both, oral=doses, iv=Doses([1.0], [20.0])))
    alone = simulate(
        one_compartment, p.drug, given(one_compartment, oral=doses, iv=Doses([1.0], [20.0])), TIMES
    )
    np.testing.assert_allclose(found.output.concentration, alone.output.concentration, rtol=1e-8)


def test_a_composite_is_a_sound_model():
    assert check_model(both) == []
    assert both == couple("both", {"drug": drug, "effect": effect}, {"effect.exposure": "drug.concentration"})
    assert list(vars(both.inputs())) == ["oral", "iv", "feeding"]
    assert quantities(both.inputs())["feeding"].unit == "kg/h"
    assert list(both.schema().outputs) == ["concentration", "mass"]
    assert quantities(both.params())["effect.kout"].prior == lognormal(0.5, 0.5)


def test_a_dose_in_another_unit_of_time_moves_as_much_as_in_its_own():
    """2 kg fed at once, in a composite of hours and in the part alone, of days."""
    p = both.params()
    found = simulate(both, p, given(both, feeding=Doses([6.0], [2.0])), np.array([5.0, 30.0]))
    alone = simulate(
        effect, p.effect, given(effect, feeding=Doses([0.25], [2.0])), np.array([5.0, 30.0]) / 24
    )
    np.testing.assert_allclose(found.output.mass, alone.output.mass, rtol=1e-10)


def test_predictions_and_gradients_pass_through_the_wires():
    """A dose's effect on the mass, by clearance: forward mode against central differences."""
    record = Record(given(both, oral=Doses([0.0], [100.0])), {"mass": Series([12.0], [9.0])})

    @jax.jit
    def mass(clearance):
        return both.predict(assign(both.params(), {"drug.CL": clearance}), record)["mass"].mean[0]

    slope = jax.grad(mass)(1.0)
    assert abs(slope - (mass(1.001) - mass(0.999)) / 0.002) < 1e-5 * abs(slope)


def test_one_input_may_drive_several_parts():
    prompt = replace(drug, dosing=None)
    pair = couple("pair", {"a": prompt, "b": prompt}, {"a.oral": "tablet", "b.oral": "tablet"})
    p = assign(pair.params(), {"b.CL": 2.0})
    found = simulate(pair, p, given(pair, tablet=Doses([0.0], [100.0])), TIMES)
    for part, concentration in (("a", found.output.a_concentration), ("b", found.output.b_concentration)):
        u = given(one_compartment, oral=Doses([0.0], [100.0]))
        alone = simulate(one_compartment, getattr(p, part), u, TIMES)
        np.testing.assert_allclose(concentration, alone.output.concentration, rtol=1e-8)
    assert list(vars(pair.inputs())) == ["tablet", "a_iv", "b_iv"]


class Nothing(eqx.Module):
    """No state."""


class GainParams(eqx.Module):
    slope: Scalar = param(0.5, "L/h", lognormal(0.5, 0.5))
    sd: Scalar = param(0.1, "L/h")


class Setting(eqx.Module):
    setting: Input = var("1", neutral=2.0)


class Clearance(eqx.Module):
    clearance: Scalar = var("L/h")


gain = Model(
    "gain",
    GainParams,
    Setting,
    lambda p: Nothing(),
    lambda t, x, u, p: Nothing(),
    lambda t, x, u, p: Clearance(p.slope * u.setting),
    additive,
)


def test_a_part_may_drive_a_parameter_of_another():
    """A clearance set by a part without a state, halved at 6 h: two closed forms one after the other."""
    driven = couple("driven", {"gain": gain, "drug": drug}, {"drug.CL": "gain.clearance"})
    u = given(driven, iv=Doses([0.0], [100.0]), setting=Steps([0.0, 6.0], [4.0, 2.0]))
    found = simulate(driven, driven.params(), u, np.array([6.0, 10.0])).output.concentration
    wanted = 5.0 * np.exp([-2.0 / 20 * 6, -2.0 / 20 * 6 - 1.0 / 20 * 4])
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    told = quantities(driven.params())["drug.CL"]
    assert told.prior is None and told.source == "driven by gain.clearance"
    assert float(values(driven.params())["drug.CL"]) == 1.0
    assert quantities(driven.params())["drug.V"].prior is not None
    assert check_model(driven) == []


class Level(eqx.Module):
    level: Input = var("1", neutral=0.0)


class Shown(eqx.Module):
    shown: Scalar = var("1")


class Plain(eqx.Module):
    sd: Scalar = param(0.1, "1")


through = Model(
    "through",
    Plain,
    Level,
    lambda p: Nothing(),
    lambda t, x, u, p: Nothing(),
    lambda t, x, u, p: Shown(0.5 * u.level),
    additive,
)


def test_an_algebraic_loop_is_told_with_the_ports_along_it():
    with pytest.raises(ValueError, match="algebraic loop") as told:
        couple("ring", {"a": through, "b": through}, {"a.level": "b.shown", "b.level": "a.shown"})
    for port in ("a.level", "a.shown", "b.level", "b.shown"):
        assert port in str(told.value)


def test_outputs_that_contain_inputs_are_read_in_order():
    """Two in a row, given against the order of reading: a quarter of what goes in."""
    row = couple("row", {"second": through, "first": through, "drug": drug}, {"second.level": "first.shown"})
    found = simulate(row, row.params(), given(row, level=Steps([0.0], [8.0])), np.array([1.0]))
    assert found.output.second_shown[0] == 2.0 and found.output.first_shown[0] == 4.0


@pytest.mark.parametrize(
    ("wires", "told"),
    [
        ({"effect.exposure": "drug.level"}, r"drug has no output 'level'; it has \['concentration'\]"),
        ({"effect.dose": "drug.concentration"}, "effect has no input or parameter 'dose'"),
        ({"effect.feeding": "drug.concentration"}, "'mg/L' cannot drive 'kg/d'"),
        ({"liver.dose": "drug.concentration"}, "there is no part 'liver'"),
        ({"effect": "drug.concentration"}, "names a part; wanted 'part.field'"),
        ({"drug.oral": "shared", "effect.exposure": "shared"}, "'mg/h' cannot drive 'g/mL'"),
        ({"drug.oral": "shared", "drug.iv": "shared"}, "drug.oral, drug.iv, and drug would change its"),
    ],
)
def test_a_wrong_wire_is_told(wires, told):
    with pytest.raises(ValueError, match=told):
        couple("wrong", {"drug": drug, "effect": effect}, wires)


def test_noise_of_every_part_is_its_own():
    record = Record(
        given(both, oral=Doses([0.0], [100.0])),
        {"mass": Series([2.0], [9.0]), "concentration": Series([2.0], [4.0])},
    )
    found = both.predict(both.params(), record)
    assert float(found["mass"].scale[0]) == pytest.approx(0.1)
    expected = float(found["concentration"].loc[0])
    assert float(found["concentration"].scale[0]) == pytest.approx(np.hypot(0.1, 0.1 * expected))


def test_a_part_alone_is_a_composite_of_one():
    alone, model = couple("alone", {"part": minimal_model}, {}), minimal_model
    u, p, t = model.inputs(), model.params(), jnp.asarray(0.0)
    rate = alone.drift(t, alone.init(alone.params()), alone.inputs(), alone.params()).part
    assert values(rate) == values(model.drift(t, model.init(p), u, p))
    assert alone.schema().outputs == model.schema().outputs
