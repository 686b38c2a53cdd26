"""A model as a value, as a schema for files, and as a predictor of records."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from small_models import Inputs, Params, exact, stepped

from dtwin_jax.core.predictor import Predictor
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Sampled
from dtwin_jax.dynamics.filtering.swarm import ParticleFilter
from dtwin_jax.dynamics.model import expect

DOSES = Inputs(iv=Doses([0.0, 6.0], [100.0, 50.0]))
P = Params(k=0.3, V=5.0, sd=0.2)


def amount(t):
    """Closed form of the two doses, just before what happens at `t`."""
    return 100 * np.exp(-0.3 * t) + np.where(t > 6, 50 * np.exp(-0.3 * (t - 6)), 0.0)


def test_models_are_equal_by_content_and_predict():
    assert replace(exact) == exact and hash(replace(exact)) == hash(exact)
    assert exact != stepped
    assert isinstance(exact, Predictor)


def test_schema_has_names_units_and_priors():
    schema = exact.schema()
    assert {name: q.unit for name, q in schema.inputs.items()} == {"iv": "mg/h", "clearance_ratio": "1"}
    assert {name: q.unit for name, q in schema.outputs.items()} == {"concentration": "mg/L", "amount": "mg"}
    assert list(schema.parameters) == ["k", "V", "F", "lag", "duration", "sd"]
    assert schema.parameters["k"].prior is not None and schema.parameters["V"].prior is None
    assert schema.time_unit == "h"


def test_preparing_for_a_mode_changes_the_solver_only():
    forward = stepped.differentiated("forward")
    assert replace(forward, solver=stepped.solver) == stepped
    assert forward.solver != stepped.solver


def test_only_what_a_solver_solves_has_a_tolerance():
    record, half = Record(DOSES, {}), stepped.solver.tightened(0.5)
    assert exact.tightened(0.5, record) is None
    assert stepped.tightened(0.5, record) == replace(stepped, solver=half)
    varying = Inputs(iv=DOSES.iv, clearance_ratio=Sampled([0.0, 9.0], [1.0, 2.0]))
    # A flow holds for constant inputs only.
    assert exact.tightened(0.5, Record(varying, {})).solver == exact.solver.tightened(0.5)
    noisy = replace(exact, diffusion=exact.drift)
    assert noisy.tightened(0.5, record).filter.solver == noisy.filter.solver.tightened(0.5)
    assert replace(noisy, filter=ParticleFilter()).tightened(0.5, record) is None


@pytest.mark.parametrize("model", [exact, stepped], ids=["flow", "solver"])
def test_each_channel_is_expected_at_its_own_times(model):
    """Closed form; channels interleave, one has a time twice, before and after a dose."""
    concentration = Series([0.5, 6.0, 6.0, 12.0], after=[False, False, True, False])
    times = np.array([2.0, 7.0])
    record = Record(DOSES, {"amount": Series(times), "concentration": concentration})
    found = jax.jit(lambda p, record: expect(model, p, record))(P, record)
    np.testing.assert_allclose(found.amount, amount(times), rtol=1e-9)
    wanted = amount(concentration.time) + np.array([0.0, 0.0, 50.0, 0.0])
    np.testing.assert_allclose(found.concentration, wanted / 5.0, rtol=1e-9)


def test_a_record_without_channels_expects_nothing():
    found = expect(exact, P, Record(DOSES, {}))
    assert found.amount.shape == found.concentration.shape == (0,)
    assert exact.predict(P, Record(DOSES, {})) == {}


def test_prediction_is_the_noise_about_what_is_expected_of_the_channels_asked_for():
    record = Record(DOSES, {"concentration": Series([1.0, 3.0])})
    assert expect(exact, P, record).amount.shape == (0,)
    predicted = exact.predict(P, record)
    assert list(predicted) == ["concentration"]
    np.testing.assert_allclose(
        predicted["concentration"].mean, amount(np.array([1.0, 3.0])) / 5.0, rtol=1e-12
    )
    np.testing.assert_allclose(predicted["concentration"].variance, 0.04, rtol=1e-12)
