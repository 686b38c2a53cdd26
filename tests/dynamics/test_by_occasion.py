"""Parameters that change in the course of a record, against solves that are begun anew.

Source of truth: what was in the body when an occasion ended, given as doses to a patient of the model as it
is, with the parameters of the next occasion.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.rules import STEADY, Restarts, Rules
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.ensemble import simulate_cohort
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs

FIRST = {"CL": 1.0, "V": 20.0, "lag": 0.0}
SECOND = {"CL": 3.0, "V": 10.0, "lag": 1.5}
START = 24.0
TIME = np.array([1.0, 10.0, 23.9, 24.0, 24.5, 30.0, 50.0])
LATER = TIME >= START
DOSES = Inputs(oral=Doses([0.0, START], [100.0, 50.0]), iv=0.0)


def changed(model=one_compartment):
    found = model.by_occasion(tuple(FIRST), 2)
    each = {f"{name}_1": value for name, value in FIRST.items()}
    each |= {f"{name}_2": value for name, value in SECOND.items()}
    return found, assign(found.params(), each | {"occasion_2": START})


def begun_anew():
    """Concentrations at TIME."""
    p = one_compartment.params()
    early = simulate(
        one_compartment,
        assign(p, FIRST),
        Inputs(oral=Doses([0.0], [100.0]), iv=0.0),
        np.array([*TIME[~LATER], START]),
    )
    left = jax.tree.map(lambda leaf: leaf[-1], early.state)
    # The old dose is absorbed without a lag: it was in the depot.
    late = [
        simulate(one_compartment, assign(p, SECOND | {"lag": lag}), given, TIME[LATER], t0=START, after=at)
        for lag, given, at in (
            (0.0, Inputs(oral=Doses([START], [left.depot]), iv=Doses([START], [left.central])), LATER[LATER]),
            (SECOND["lag"], Inputs(oral=Doses([START], [50.0]), iv=0.0), ~LATER[LATER]),
        )
    ]
    later = sum(one.output.concentration for one in late)
    return np.concatenate([early.output.concentration[:-1], later])


@pytest.mark.parametrize("flow", [True, False])
def test_what_is_in_the_body_is_there_when_the_next_occasion_begins(flow):
    model, p = changed(one_compartment if flow else replace(one_compartment, flow=None))
    found = simulate(model, p, DOSES, TIME)
    np.testing.assert_allclose(found.output.concentration, begun_anew(), rtol=1e-10 if flow else 1e-4)


def test_a_cohort_is_solved_as_its_patients_are():
    model, p = changed()
    starts = jnp.asarray([24.0, 12.0, 40.0, 24.0])
    many = assign(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, starts.shape), p), {"occasion_2": starts})
    together = simulate_cohort(model, many, DOSES, TIME, in_axes=(0, None, None))
    for i, start in enumerate(starts):
        alone = simulate(model, assign(p, {"occasion_2": start}), DOSES, TIME)
        found = together.output.concentration[i]
        np.testing.assert_allclose(found, alone.output.concentration, rtol=1e-10)


def steady(times):
    """Doses of 100 mg every 12 h that have always been given, begun anew at each of `times`."""
    none, kind = np.zeros(len(times)), np.full(len(times), STEADY)
    until = np.append(times[1:], np.inf)
    again = Restarts(times, kind, none + 100.0, none, none.astype(int), none + 12.0, none, until)
    rules = Rules(none.astype(int), np.full(len(times), np.inf), again)
    return Inputs(oral=Doses(times, none + 100.0, rules=rules), iv=0.0)


@pytest.mark.parametrize("start", [40.0, 48.0])
def test_steady_state_is_that_of_the_occasion(start):
    """The truth is the model without occasions: a steady state forgets all that was before."""
    model, p = changed()
    times, early = np.array([1.0, 10.0, 50.0, 60.0]), slice(0, 2)
    found = simulate(model, assign(p, {"occasion_2": start}), steady(np.array([0.0, 48.0])), times)
    for part, own, at in ((early, FIRST, [0.0]), (slice(2, 4), SECOND, [48.0])):
        alone = simulate(
            one_compartment, assign(one_compartment.params(), own), steady(np.array(at)), times[part]
        )
        np.testing.assert_allclose(found.output.concentration[part], alone.output.concentration, rtol=1e-10)


def test_only_later_measurements_move_with_a_later_occasion():
    model, p = changed()

    def expected(clearance):
        return simulate(model, assign(p, {"CL_2": clearance}), DOSES, TIME).output.concentration

    slope = jax.jacfwd(expected)(jnp.asarray(3.0))
    # At its very beginning it has not acted yet.
    assert np.all(np.abs(slope[TIME <= START]) < 1e-12) and np.all(slope[TIME > START] < 0.0)
    difference = (expected(jnp.asarray(3.001)) - expected(jnp.asarray(2.999))) / 0.002
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-12)


def test_parameter_of_the_noise_is_refused():
    with pytest.raises(ValueError, match="'cv' is of the noise, which knows of no occasion"):
        one_compartment.by_occasion(("CL", "cv"), 2)


def by_volume(y, p):
    """A noise that depends on what the equations do."""
    return combined(y, p) | {"concentration": dist.Normal(y.concentration, p.V)}


def test_parameter_that_noise_shares_with_the_equations_is_refused():
    with pytest.raises(ValueError, match="'V' is of the noise"):
        replace(one_compartment, noise=by_volume).by_occasion(("CL", "V"), 2)


def test_equal_changes_are_one_model():
    assert changed()[0] == changed()[0]
    assert hash(changed()[0]) == hash(changed()[0])
    assert type(changed()[1]) is type(changed()[1])
