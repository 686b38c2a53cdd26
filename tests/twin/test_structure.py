"""Ranks of models whose identifiability is known from their equations."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.signal import Doses, Sampled
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.models import minimal_model, one_compartment
from dtwin_jax.models.minimal_model import Inputs as Insulin
from dtwin_jax.models.one_compartment import Inputs
from dtwin_jax.twin.structure import structural_rank

KEY = jax.random.key(0)
ORAL = Inputs(oral=Doses([0.0], [100.0]))


def kinetics(inputs, names=None):
    return structural_rank(one_compartment, inputs=inputs, until=48.0, key=KEY, names=names)


def test_volume_clearance_and_bioavailability_are_not_determined_by_an_oral_dose():
    found = kinetics(ORAL, ["CL", "V", "ka", "F"])
    assert found.rank == 3 and found.clear and not found.identifiable
    assert found.undetermined == ("CL", "V", "F")
    (unseen,) = found.unseen
    assert set(unseen.names) == {"CL", "V", "F"}
    np.testing.assert_allclose([unseen.weights[name] for name in unseen.names], 1.0, rtol=1e-6)
    assert unseen.words.startswith(
        "CL, V, F can move together unseen: log CL by +1, log V by +1, log F by +1"
    )
    assert found.words.startswith("3 combinations of 4 parameters are determined; CL, V, F")


def test_all_is_determined_by_an_oral_dose_of_known_bioavailability():
    found = kinetics(ORAL)
    assert found.names == ("CL", "V", "ka") and found.noise == ("sd", "cv")
    assert found.rank == 3 and found.clear and found.identifiable
    assert found.unseen == () and found.undetermined == ()
    assert found.words == "all 3 parameters are determined, at least locally"


def test_a_dose_into_the_vein_beside_the_oral_one_determines_bioavailability():
    both = Inputs(oral=Doses([0.0], [100.0]), iv=Doses([12.0], [50.0]))
    found = kinetics(both, ["CL", "V", "ka", "F"])
    assert found.identifiable and found.clear


def test_what_no_output_depends_on_is_said_to_be_unseen():
    found = kinetics(Inputs(iv=Doses([0.0], [100.0])), ["CL", "V", "ka", "F", "cv"])
    assert found.rank == 2 and found.undetermined == ("ka", "F", "cv")
    assert {direction.words for direction in found.unseen} == {
        "nothing is seen of ka",
        "nothing is seen of F",
        "nothing is seen of cv",
    }
    assert "nothing was given" not in found.words


def test_nothing_is_determined_where_nothing_is_given():
    found = kinetics(Inputs())
    assert found.rank == 0 and found.undetermined == ("CL", "V", "ka")
    assert "nothing was given" in found.words


class Params(eqx.Module):
    b: Scalar = param(2.7e-5, "1", lognormal(2.7e-5, 0.5))
    p: Scalar = param(1.2e-2, "1", lognormal(1.2e-2, 0.5))
    c: Scalar = param(3.0, "1", lognormal(3.0, 0.5))
    d: Scalar = param(4.0, "1", lognormal(4.0, 0.5))
    T0: Scalar = param(4e8, "1")
    V0: Scalar = param(0.09, "1")


class None_(eqx.Module):
    pass


class State(eqx.Module):
    T: Scalar = var("1")
    I: Scalar = var("1")  # noqa: E741
    V: Scalar = var("1")


class Outputs(eqx.Module):
    V: Scalar = var("1")


def drift(t, x, u, p):
    infection = p.b * x.T * x.V
    return State(T=-infection, I=infection - p.d * x.I, V=p.p * x.I - p.c * x.V)


virus = Model(
    name="target_cell_limited",
    params=Params,
    inputs=None_,
    init=lambda p: State(T=p.T0, I=0.0, V=p.V0),
    drift=drift,
    observe=lambda t, x, u, p: Outputs(V=x.V),
    noise=lambda y, p: {},
    time="d",
    source="Baccam et al. 2006, J Virol 80:7590: influenza; from viral load, only p T0 is determined",
)


def test_viral_load_determines_all_rates_of_infection_when_target_cells_are_known():
    found = structural_rank(virus, until=8.0, key=KEY)
    assert found.names == ("b", "p", "c", "d")
    assert found.identifiable and found.clear


def test_viral_load_sees_only_the_product_of_production_and_target_cells():
    found = structural_rank(virus, until=8.0, key=KEY, names=["b", "p", "c", "d", "T0", "V0"])
    assert found.rank == 5 and found.clear
    assert found.undetermined == ("p", "T0")
    assert [direction.words for direction in found.unseen] == ["only the product of p and T0 is seen"]


def test_glucose_determines_the_minimal_model_with_known_insulin():
    insulin = Sampled([0.0, 4.0, 20.0, 60.0, 180.0], [4.5, 90.0, 40.0, 15.0, 5.0])
    found = structural_rank(
        minimal_model, inputs=Insulin(insulin=insulin), until=180.0, key=KEY, names=["SG", "p2", "SI"]
    )
    assert found.identifiable and found.clear


class Rates(eqx.Module):
    one: Scalar = param(0.3, "1", lognormal(0.3, 0.5))
    other: Scalar = param(0.2, "1", lognormal(0.2, 0.5))
    start: Scalar = param(1.0, "1", lognormal(1.0, 0.5))


class Amount(eqx.Module):
    amount: Scalar = var("1")


two_exits = Model(
    name="two_exits",
    params=Rates,
    inputs=None_,
    init=lambda p: Amount(amount=p.start),
    drift=lambda t, x, u, p: Amount(amount=-(p.one + p.other) * x.amount),
    observe=lambda t, x, u, p: Amount(amount=x.amount),
    noise=lambda y, p: {},
)


def test_a_sum_of_rates_is_found_though_its_direction_differs_from_point_to_point():
    found = structural_rank(two_exits, until=5.0, key=KEY)
    assert found.rank == 2 and found.clear
    assert found.undetermined == ("one", "other")
    (unseen,) = found.unseen
    # d one = -d other; on the logs their ratio is that of the rates, which differs from point to point.
    assert unseen.local and "can move together unseen near these values" in unseen.words
    ratio = min(abs(unseen.weights["one"]), abs(unseen.weights["other"]))
    assert 0.2 < ratio < 0.99 and unseen.weights["one"] * unseen.weights["other"] < 0


def test_an_unknown_initial_state_counts_as_a_parameter():
    found = structural_rank(two_exits, until=5.0, key=KEY, names=["one", "start"], states=["amount"])
    assert found.names == ("one", "start", "init.amount")
    assert found.rank == 2 and found.clear
    # The state starts at its own value, whatever the parameter says.
    assert [direction.words for direction in found.unseen] == ["nothing is seen of start"]


def test_what_cannot_be_asked_is_refused():
    def asked(model=two_exits, **options):
        return structural_rank(model, until=5.0, key=KEY, **options)

    with pytest.raises(ValueError, match="two_exits is an SDE"):
        asked(replace(two_exits, diffusion=lambda t, x, u, p: Amount(amount=p.one)))
    with pytest.raises(ValueError, match="two_exits has no parameter 'two'"):
        asked(names=["two"])
    with pytest.raises(ValueError, match="two_exits has no state 'mass'"):
        asked(states=["mass"])
    with pytest.raises(ValueError, match="two_exits has no channel 'mass'"):
        asked(channels=["mass"])
    for end in (-1.0, 0.0, float("nan")):
        with pytest.raises(ValueError, match=f"until: expected a time after 0.*found {end}"):
            structural_rank(two_exits, until=end, key=KEY)
    with pytest.raises(ValueError, match=r"cannot be solved until 5\.0"):
        asked(replace(two_exits, drift=lambda t, x, u, p: Amount(amount=jnp.log(-x.amount))))
