"""Training of what patients share against SciPy's optimum of the same objective."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from lines import Line, cohort, line
from runaway import measured, runaway
from scipy import optimize, stats

from dtwin_jax.core.quantity import assign, values
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.inference.train import train
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs

TIMES = np.array([0.5, 2.0, 6.0, 12.0])
MEASURED = np.array([[4.4, 3.9, 2.6, 1.5], [9.6, 8.2, 6.0, 2.9], [4.9, 4.3, 3.1, 2.0]])
AMOUNTS = np.array([100.0, 200.0, 110.0])
SD = 0.3
DOSED = stack(
    {
        f"p{i}": Record(Inputs(iv=Doses([0.0], [AMOUNTS[i]])), {"concentration": Series(TIMES, MEASURED[i])})
        for i in range(3)
    }
)
START = assign(one_compartment.params(), {"sd": SD, "cv": 0.0, "CL": 2.0, "V": 30.0})


def objective(u):
    """Mean minus log-likelihood of boluses, less the priors in the logs of CL and V over the patients."""
    clearance, volume = np.exp(u)
    expected = AMOUNTS[:, None] / volume * np.exp(-clearance / volume * TIMES)
    likelihood = np.sum(stats.norm.logpdf(MEASURED, expected, SD))
    prior = np.sum(stats.norm.logpdf(u, np.log([1.0, 20.0]), 1.5))
    return -(likelihood + prior) / 3


@pytest.fixture(scope="module")
def trained():
    return train(
        one_compartment,
        DOSED,
        where=lambda p: (p.CL, p.V),
        optimiser=optax.adam(optax.cosine_decay_schedule(0.05, 400)),
        steps=400,
        key=jax.random.key(0),
        params=START,
    )


def test_training_reaches_the_optimum_of_scipy(trained):
    exact = optimize.minimize(objective, np.log([2.0, 30.0]), method="BFGS", options={"gtol": 1e-8})
    assert float(trained.params.CL) == pytest.approx(np.exp(exact.x[0]), rel=1e-3)
    assert float(trained.params.V) == pytest.approx(np.exp(exact.x[1]), rel=1e-3)
    assert trained.loss.min() == pytest.approx(exact.fun, abs=1e-4)
    assert trained.failed == ()


def test_first_loss_is_the_objective_at_the_start(trained):
    assert len(trained.loss) == 400
    assert trained.loss[0] == pytest.approx(objective(np.log([2.0, 30.0])), rel=1e-10)


def test_only_chosen_leaves_move(trained):
    before, after = values(START), values(trained.params)
    moved = {name for name in before if float(before[name]) != float(after[name])}
    assert moved == {"CL", "V"}


def few_steps(data, **options):
    given = {"where": lambda p: p.level, "optimiser": optax.adam(0.1), "steps": 20} | options
    return train(line, data, key=jax.random.key(0), **given)


ROWS = np.array([[1.0, 2.0, 2.5, 4.0], [0.0, 1.5, 2.0, 3.0], [2.0, 2.0, 3.0, 4.5], [1.0, 1.0, 2.0, 3.5]])


def test_batches_of_equal_patients_train_as_all_of_them():
    # The prior counts once for the whole cohort, whatever the batch.
    same = cohort(np.tile(ROWS[:1], (4, 1)))
    whole, batch = few_steps(same), few_steps(same, batch=1)
    np.testing.assert_allclose(batch.loss, whole.loss, rtol=1e-10)


def test_batches_are_drawn_anew_at_every_step():
    found = few_steps(cohort(ROWS), batch=1, optimiser=optax.sgd(0.0), steps=30)
    prior = stats.norm.logpdf(1.0, 1.0, 2.0)
    each = -np.sum(stats.norm.logpdf(ROWS, 1.0 + 0.5 * np.array([0.0, 1.0, 2.5, 4.0]), 0.3), axis=1)
    distance = np.abs(found.loss[:, None] - (each - prior / 4))
    assert np.all(distance.min(axis=1) < 1e-9)
    assert set(distance.argmin(axis=1)) == {0, 1, 2, 3}


@pytest.mark.parametrize("batch", [0, 5])
def test_batch_that_is_no_part_of_the_cohort_is_refused(batch):
    with pytest.raises(ValueError, match=f"between 1 and 4 patients, found {batch}"):
        few_steps(cohort(ROWS), batch=batch)


@dataclass(frozen=True)
class Root(Line):
    """The slope of a square root has no end at 0."""

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        return {"y": dist.Normal(jax.numpy.sqrt(p.level) + 0.0 * record.observations["y"].time, p.sd)}


def test_step_without_a_finite_gradient_is_not_taken():
    start = assign(line.params(), {"level": 0.0})
    found = train(
        Root(),
        cohort(ROWS),
        where=lambda p: (p.level, p.sd),
        optimiser=optax.sgd(0.1),
        steps=3,
        key=jax.random.key(0),
        params=start,
    )
    assert np.all(np.isfinite(found.loss))
    assert (float(found.params.level), float(found.params.sd)) == pytest.approx((0.0, 0.3))


def test_patient_of_whom_training_explains_nothing_is_named():
    records = {"well": measured([0.2, 1.0], [0.6, 0.9]), "ending": measured([10.0, 20.0], [1.0, 1.0])}
    found = train(
        runaway,
        stack(records),
        where=lambda p: p.start,
        optimiser=optax.adam(0.01),
        steps=5,
        key=jax.random.key(0),
    )
    assert found.failed == ("ending",)
    assert np.all(np.isfinite(found.loss))
