"""Estimates that are not what they look like are told of, and better ends are looked for.

Source of truth: models that are made so: two parameters of which only the product is measured, one that
nothing depends on, one whose prior ends before the best value, patients who are all alike, two peaks.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from lines import Inputs

from dtwin_jax.core.prior import lognormal, normal, uniform
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.types import Scalar
from dtwin_jax.inference.doubts import EstimationWarning
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.population import Population


class Params(eqx.Module):
    level: Scalar = param(1.0, "1", lognormal(1.0, log_sd=1.0))
    factor: Scalar = param(1.0, "1")
    idle: Scalar = param(1.0, "1")
    sd: Scalar = param(0.3, "1", lognormal(0.3, log_sd=1.0))


@dataclass(frozen=True)
class Product:
    """A level times a factor is measured."""

    name: str = "product"

    def params(self) -> Any:
        return Params()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        mean = p.level * p.factor + 0.0 * p.idle
        return {"y": dist.Normal(mean * jnp.ones_like(record.observations["y"].time), p.sd)}


def patients(spread, mean=2.0, rise=0.0):
    """Of 20 patients, five measurements each, of the same errors; log levels that scatter by `spread`."""
    rng = np.random.default_rng(0)
    levels = mean * np.exp(spread * rng.normal(size=(20, 1)))
    rows = levels + rng.permuted(np.tile([-0.3, -0.2, 0.0, 0.1, 0.4], (20, 1)), axis=1)
    rows = rows + rise * np.arange(5.0)
    return stack({str(i): Record(Inputs(), {"y": Series(np.arange(5.0), row)}) for i, row in enumerate(rows)})


VARIED = patients(0.4)
POPULATION = Population(Product(), ("level",))


def test_a_sound_estimate_has_nothing_said_of_it():
    found = estimate(POPULATION, VARIED)
    assert found.converged and found.warnings == ()
    assert "by focei: -2 log likelihood without n log(2 pi)" in str(found)
    assert f"{found.estimate['level_pop']:.5g}" in str(found)


@pytest.mark.parametrize(
    ("priors", "spread", "sentence"),
    [
        ({"factor": lognormal(1.0, log_sd=1.0)}, 0.4, "level_pop and factor make up for each other"),
        ({"idle": lognormal(1.0, log_sd=1.0)}, 0.4, "the likelihood is flat along idle"),
        # All patients are above the end.
        ({"level": uniform(0.1, 1.5)}, 0.1, "level_pop is at an end of what its prior allows, 1.5"),
    ],
)
def test_what_the_data_cannot_tell_is_named(priors, spread, sentence):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", EstimationWarning)
        found = estimate(POPULATION, patients(spread), priors=priors)
    assert sentence in str(found)
    assert tuple(str(each.message) for each in said) == found.warnings


def test_a_spread_that_is_none_has_collapsed():
    with pytest.warns(EstimationWarning, match=r"omega_level \(.*\) has collapsed: .* level varies"):
        estimate(POPULATION, patients(0.0))


def test_a_search_that_is_cut_short_says_so():
    with pytest.warns(EstimationWarning, match="the search ended before the peak: max_steps reached"):
        found = estimate(POPULATION, VARIED, max_steps=1)
    assert not found.converged


class Wavy(eqx.Module):
    start: Scalar = param(2.0, "1", normal(2.0, 1.0))
    turn: Scalar = param(-1.0, "1", normal(0.0, 2.0))
    sd: Scalar = param(0.3, "1", lognormal(0.3, log_sd=0.5))


@dataclass(frozen=True)
class Cubic(Product):
    """Rises by turn^3 - 3 turn: by 3 at one turn, and by as much as 2 near another, -1."""

    name: str = "cubic"

    def params(self) -> Any:
        return Wavy()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        mean = p.start + (p.turn**3 - 3.0 * p.turn) * record.observations["y"].time
        return {"y": dist.Normal(mean, p.sd)}


@pytest.mark.filterwarnings("ignore::dtwin_jax.inference.doubts.EstimationWarning")
def test_more_starts_find_the_higher_peak():
    population, cohort = Population(Cubic(), ("start",)), patients(0.3, rise=3.0)
    one = estimate(population, cohort)
    many = estimate(population, cohort, starts=4, key=jax.random.key(2))
    assert one.estimate["turn"] == pytest.approx(-1.0, abs=1e-3)
    assert many.estimate["turn"] == pytest.approx(2.1038, abs=0.01)  # the root of turn^3 - 3 turn = 3
    assert len(many.ends) == 4 and many.objective < one.objective - 10.0
    assert many.objective == pytest.approx(min(many.ends), abs=1e-6)
    # Every end is of one of the two peaks, whatever was looked at before.
    low, high = one.objective, many.objective
    assert all(min(abs(end - low), abs(end - high)) < 0.01 for end in many.ends)


def test_more_starts_than_one_need_a_key():
    with pytest.raises(ValueError, match="more than one start is random: give a key"):
        estimate(POPULATION, VARIED, starts=2)
