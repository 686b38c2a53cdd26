"""Training that is stopped, killed, penalised or thrown off, against closed forms and the unbroken run."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from lines import TIME, Line, cohort, line
from scipy import optimize, stats

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.record import Cohort, Record
from dtwin_jax.inference import checkpoint
from dtwin_jax.inference import train as module
from dtwin_jax.inference.train import train

ROWS = np.array([[1.0, 2.0, 2.5, 4.0], [0.0, 1.5, 2.0, 3.0], [2.0, 2.0, 3.0, 4.5], [1.0, 1.0, 2.0, 3.5]])
SD, SLOPE = 0.3, 0.5
ADAM = optax.adam(0.1)


def run(data, *, start=1.0, f=line, **options):
    given = {"where": lambda p: p.level, "optimiser": ADAM, "steps": 20, "key": jax.random.key(0)} | options
    return train(f, data, params=assign(f.params(), {"level": start}), **given)


def minus_log_likelihood(level, rows):
    """By patient, at the default slope and error."""
    return -np.sum(stats.norm.logpdf(rows, np.reshape(level, (-1, 1)) + SLOPE * TIME, SD), axis=1)


def test_early_stopping_keeps_what_is_best_for_the_patients_held_out():
    held = cohort(np.tile(3.0 + SLOPE * TIME, (2, 1)))
    held = Cohort(("h0", "h1"), held.record)
    found = run(cohort(ROWS), start=5.0, steps=100, held_out=held, patience=6)
    assert len(found.loss) < 60
    level = float(found.params.level)
    assert found.held_loss.min() == pytest.approx(minus_log_likelihood(level, 3.0 + SLOPE * TIME[None])[0])
    # The best was six steps before the end, and each step is one tenth.
    assert found.held_loss.argmin() == len(found.loss) - 7
    assert level == pytest.approx(3.0, abs=0.1)


def test_all_steps_share_one_program(monkeypatch):
    seen = []

    def told(*args):
        seen.append([jax.typeof(leaf) for leaf in jax.tree.leaves(args[-1])])
        return advance(*args)

    advance = module.advance
    monkeypatch.setattr(module, "advance", told)
    run(cohort(ROWS), steps=50)
    assert len(seen) == 2 and seen[0] == seen[1]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(cohort(ROWS), batch=2, steps=12, checkpoint=tmp_path_factory.mktemp("kept") / "whole")


def same(found, whole):
    np.testing.assert_array_equal(found.loss, whole.loss)
    assert float(found.params.level) == float(whole.params.level)


def test_killed_training_goes_on_as_if_unbroken(unbroken, tmp_path, monkeypatch):
    steps = iter(range(5))

    def killed(*args):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return advance(*args)

    advance = module.advance
    monkeypatch.setattr(module, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        run(cohort(ROWS), batch=2, steps=12, checkpoint=tmp_path / "kept")
    done = []
    monkeypatch.setattr(module, "advance", lambda *args: done.append(1) or advance(*args))
    same(run(cohort(ROWS), batch=2, steps=12, checkpoint=tmp_path / "kept"), unbroken)
    assert len(done) == 12 - 5


def test_training_killed_while_it_writes_loses_only_that_step(unbroken, tmp_path, monkeypatch):
    write, written = np.savez, []

    def torn(file, **arrays):
        if len(written) == 4:
            file.write(b"half of a fi")
            raise KeyboardInterrupt
        written.append(1)
        write(file, **arrays)

    monkeypatch.setattr(checkpoint.np, "savez", torn)
    with pytest.raises(KeyboardInterrupt):
        run(cohort(ROWS), batch=2, steps=12, checkpoint=tmp_path / "kept")
    monkeypatch.setattr(checkpoint.np, "savez", write)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    same(run(cohort(ROWS), batch=2, steps=12, checkpoint=tmp_path / "kept"), unbroken)


def test_checkpoint_can_be_trained_further(tmp_path, unbroken):
    run(cohort(ROWS), batch=2, steps=3, checkpoint=tmp_path / "kept")
    same(run(cohort(ROWS), batch=2, steps=12, checkpoint=tmp_path / "kept"), unbroken)


@pytest.mark.parametrize("change", [{"start": 1.1}, {"batch": 3}, {"key": None}])
def test_checkpoint_of_another_training_is_refused(change, tmp_path):
    change = change | ({"key": jax.random.key(1)} if "key" in change else {})
    run(cohort(ROWS), batch=2, steps=1, checkpoint=tmp_path / "kept")
    with pytest.raises(ValueError, match="is of another training"):
        run(cohort(ROWS), **({"batch": 2, "checkpoint": tmp_path / "kept", "steps": 1} | change))


def heavy(p, record):
    return 8.0 * p.level**2


def test_penalty_is_descended_and_not_reported():
    found = run(
        cohort(ROWS), optimiser=optax.adam(optax.cosine_decay_schedule(0.1, 200)), steps=200, penalty=heavy
    )
    prior = lambda level: -stats.norm.logpdf(level, 1.0, 2.0) / 4  # noqa: E731
    loss = lambda level: np.mean(minus_log_likelihood(level, ROWS)) + prior(level)  # noqa: E731
    exact = optimize.minimize_scalar(lambda level: loss(level) + 8.0 * level**2)
    assert float(found.params.level) == pytest.approx(exact.x, abs=1e-3)
    assert found.loss[0] == pytest.approx(loss(1.0), rel=1e-10)
    assert found.loss[-1] == pytest.approx(loss(exact.x), abs=1e-3)


@pytest.mark.parametrize("individual", [{"level": 0.5}, ("level",)])
def test_individual_values_are_the_most_probable_of_the_hierarchical_model(individual):
    spread = 0.5 if isinstance(individual, dict) else 2.0
    found = run(
        cohort(ROWS),
        optimiser=optax.adam(optax.cosine_decay_schedule(0.2, 300)),
        steps=300,
        individual=individual,
    )

    def objective(v):
        level = v[0] + spread * v[1:]
        each = minus_log_likelihood(level, ROWS) - stats.norm.logpdf(v[1:])
        return np.mean(each) - stats.norm.logpdf(v[0], 1.0, 2.0) / 4

    exact = optimize.minimize(objective, np.r_[1.0, np.zeros(4)], method="BFGS")
    assert float(found.params.level) == pytest.approx(exact.x[0], abs=1e-2)
    np.testing.assert_allclose(found.individual["level"], exact.x[0] + spread * exact.x[1:], atol=1e-2)
    assert found.loss.min() == pytest.approx(exact.fun, abs=1e-4)


def test_individual_values_are_moved_in_batches_too():
    found = run(cohort(ROWS), steps=150, batch=2, individual={"level": 2.0})
    np.testing.assert_allclose(found.individual["level"], np.mean(ROWS - SLOPE * TIME, axis=1), atol=0.2)


@dataclass(frozen=True)
class Root(Line):
    """It predicts no number below 0, and its slope has no end at 0."""

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        return {"y": dist.Normal(jnp.sqrt(p.level) + 0.0 * record.observations["y"].time, p.sd)}


def test_step_that_loses_a_patient_is_taken_back_and_made_smaller():
    optimiser = optax.sgd(optax.cosine_decay_schedule(0.2, 80))
    found = run(cohort(np.full((2, 4), 0.5)), f=Root(), start=1.0, optimiser=optimiser, steps=80)
    exact = optimize.minimize_scalar(
        lambda v: -4 * stats.norm.logpdf(0.5, np.sqrt(v), 0.3) + (-stats.norm.logpdf(v, 1.0, 2.0)) / 2,
        bounds=(0.01, 1.0),
    )
    assert found.skipped > 0
    assert found.failed == ()
    assert float(found.params.level) == pytest.approx(exact.x, abs=1e-3)


def test_training_that_cannot_take_a_step_says_so():
    with pytest.raises(FloatingPointError, match="no step can be taken"):
        run(cohort(ROWS), f=Root(), start=0.0, steps=40)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patience": 3}, "patience needs held_out"),
        ({"held_out": cohort(ROWS)}, "'p0' is both trained on and held out"),
        ({"individual": {"depth": 1.0}}, "no parameter 'depth'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        run(cohort(ROWS), **options)


def test_what_is_known_of_patients_is_not_individual():
    with pytest.raises(ValueError, match="'level' is known"):
        run(cohort(ROWS, level=np.ones(4)), individual={"level": 1.0})
