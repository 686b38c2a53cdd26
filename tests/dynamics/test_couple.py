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
from dtwin_jax.core.signal import Doses, Input, Steps, delay
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
    assert list(vars(pair.inputs())) == ["a_iv", "b_iv", "tablet"]


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


class Hours(eqx.Module):
    shown: Scalar = var("h")


class Flow(eqx.Module):
    flow: Scalar = var("mg/h")


through_hours = replace(through, observe=lambda t, x, u, p: Hours(0.5 * u.level))
pump = replace(through, observe=lambda t, x, u, p: Flow(10.0 * u.level))


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


def test_a_wire_may_drive_a_parameter_by_an_input_of_the_composite():
    """A clearance that is given: two closed forms, one after the other."""
    prompt = replace(drug, dosing=None)
    driven = couple("driven", {"drug": prompt}, {"drug.CL": "clearance"})
    u = given(driven, iv=Doses([0.0], [100.0]), clearance=Steps([0.0, 6.0], [2.0, 1.0]))
    found = simulate(driven, driven.params(), u, np.array([6.0, 10.0])).output.concentration
    np.testing.assert_allclose(found, 5.0 * np.exp([-0.6, -0.6 - 0.2]), rtol=1e-9)
    assert float(driven.inputs().clearance) == 1.0 and quantities(driven.inputs())["clearance"].unit == "L/h"


class Weighed(eqx.Module):
    setting: Input = var("mg/mL", neutral=0.0)


@pytest.mark.parametrize("order", [("effect.exposure", "gain.setting"), ("gain.setting", "effect.exposure")])
def test_a_shared_input_has_one_unit_whatever_the_order(order):
    """g/mL for one and mg/mL for the other: the first wire names the unit, both see the same amount."""
    weighed = replace(gain, inputs=Weighed)
    pair = couple("pair", {"effect": effect, "gain": weighed}, dict.fromkeys(order, "level"))
    unit = quantities(pair.inputs())["level"].unit
    u = given(pair, level=jnp.asarray(3e-6 if unit == "g/mL" else 3e-3))
    now = pair.drift.join.ports(jnp.asarray(0.0), pair.init(pair.params()), u, pair.params())
    np.testing.assert_allclose(now["effect"][1].exposure, 3e-6)
    np.testing.assert_allclose(now["gain"][1].setting, 3e-3)


def test_a_driven_parameter_is_refused_where_no_wire_has_a_value():
    pair = {"effect": effect, "other": effect}
    for field, role in (("baseline", "init"), ("sd", "noise")):
        with pytest.raises(ValueError, match=f"effect.{field} is driven by a wire, but the {role} of effect"):
            couple("wrong", pair, {f"effect.{field}": "other.mass"})
    with pytest.raises(ValueError, match=r"drug\.lag is driven by a wire, but the dosing of drug uses it"):
        couple("wrong", {"drug": drug, "late": through_hours}, {"drug.lag": "late.shown"})
    with pytest.raises(ValueError, match=r"drug\.oral is driven by a wire, but the dosing of drug works"):
        couple("wrong", {"drug": drug, "pump": pump}, {"drug.oral": "pump.flow"})


def test_names_that_would_be_two_things_are_refused():
    prompt = replace(drug, dosing=None)
    with pytest.raises(ValueError, match=r"share the names \['b_iv'\]"):
        couple("wrong", {"a": prompt, "b": prompt}, {"a.oral": "b_iv"}).inputs()


def test_no_part_and_a_part_with_a_dot_are_refused():
    with pytest.raises(ValueError, match="none: parts is empty"):
        couple("none", {}, {})
    with pytest.raises(ValueError, match=r"name of part 'a\.b' has a dot.*call it 'a_b'"):
        couple("dotted", {"a.b": drug}, {})


def test_a_compiled_observe_is_no_loop():
    """Each output of a function compiled by itself contains what it is made of, not all of its arguments."""

    def two(t, x, u, p):
        shown, sent = jax.jit(lambda level: (Shown(0.5 * level), 2.0 * x.mass))(u.exposure * 1e6)
        return Pair(shown=shown.shown, mass=sent / 2.0)

    both_ways = replace(effect, observe=two, noise=lambda y, p: additive(y, Sds()))
    # What `a` is fed depends on its mass only, and what it shows on what it is fed: no loop.
    wires = {"a.exposure": "b.exposure", "b.mass": "a.mass"}
    joined = couple("ring", {"a": both_ways, "b": weighing}, wires)
    assert [str(port) for port in joined.drift.join.order] == ["a.mass", "b.exposure"]


def test_another_unit_of_time_changes_nothing_but_names():
    """A part of days with dosing, event, noise of its drift and doses, alone and in a composite of hours."""
    alone = replace(counted, solver=TIGHT)
    joined = couple("joined", {"part": alone}, {}, time="h", solver=TIGHT)
    times = np.array([2.0, 30.9, 31.1, 40.0])
    u = given(joined, feeding=Doses([7.0, 29.0], [2.0, 1.0]))
    found = simulate(joined, joined.params(), u, times)
    part = given(alone, feeding=Doses(np.array([7.0, 29.0]) / 24, [2.0, 1.0]))
    wanted = simulate(alone, alone.params(), part, times / 24)
    np.testing.assert_allclose(found.state.part.mass, wanted.state.mass, rtol=1e-9)
    np.testing.assert_allclose(found.state.part.doses, [0.0, 1.0, 2.0, 2.0])
    # A dose that dosing leaves alone stays at its time to the last bit, as does a measurement there.
    tied = couple("tied", {"drug": drug}, {}, time="min")
    seen = np.array([31.0, 31.0])
    given_at = given(tied, iv=Doses([31.0], [100.0]))
    found = simulate(tied, tied.params(), given_at, seen, after=np.array([False, True]))
    np.testing.assert_allclose(found.output.concentration, [0.0, 5.0], atol=1e-12)


def test_noise_of_the_drift_is_restated_by_the_root_of_the_unit_of_time():
    spread = lambda t, x, u, p: Mass(p.kout * p.baseline)  # noqa: E731
    noisy = couple("noisy", {"part": replace(effect, diffusion=spread)}, {}, time="h")
    p = noisy.params()
    spread = noisy.diffusion(jnp.asarray(1.0), noisy.init(p), noisy.inputs(), p).part.mass
    np.testing.assert_allclose(spread, 5.0 / np.sqrt(24))


def test_settings_of_the_solver_are_converted_with_the_unit_of_time():
    slow = replace(effect, solver=replace(TIGHT, longest=2.0, dt=0.5))
    made = couple("hours", {"effect": slow}, {}, time="h").solver
    assert made.longest == 48.0 and made.dt == 12.0


class Counted(eqx.Module):
    mass: Scalar = var("kg")
    doses: Scalar = var("1")


class Pair(eqx.Module):
    shown: Scalar = var("1")
    mass: Scalar = var("kg")


class OfMass(eqx.Module):
    mass: Input = var("kg", neutral=10.0)


class Exposure(eqx.Module):
    exposure: Scalar = var("g/mL")


class Sds(eqx.Module):
    sd: Scalar = param(0.1, "1")


weighing = replace(
    through, inputs=OfMass, observe=lambda t, x, u, p: Exposure(1e-7 * u.mass), name="weighing"
)


def counting(t, x, u, given, p):
    return Counted(x.mass, x.doses + jnp.where(given.feeding > 0, 1.0, 0.0))


counted = replace(
    effect,
    name="counted",
    init=lambda p: Counted(p.baseline, 0.0),
    drift=lambda t, x, u, p: Counted(shrink(t, x, u, p).mass, 0.0),
    observe=lambda t, x, u, p: Mass(x.mass),
    dosing=lambda u, p: EffectInputs(u.exposure, delay(u.feeding, 1.0 / 12.0)),
    event=counting,
)


def test_a_part_alone_is_a_composite_of_one():
    alone, model = couple("alone", {"part": minimal_model}, {}), minimal_model
    u, p, t = model.inputs(), model.params(), jnp.asarray(0.0)
    rate = alone.drift(t, alone.init(alone.params()), alone.inputs(), alone.params()).part
    assert values(rate) == values(model.drift(t, model.init(p), u, p))
    assert alone.schema().outputs == model.schema().outputs
