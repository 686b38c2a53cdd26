"""A likelihood at many places at once is that of one place after the other, by any approximation."""

import jax
import numpy as np
import pytest
from test_estimate import Decay, subjects

from dtwin_jax.core.predictor import differentiated
from dtwin_jax.core.prior import lognormal
from dtwin_jax.inference.effects import Effects
from dtwin_jax.inference.marginal import Marginal
from dtwin_jax.inference.nodes import scattered
from dtwin_jax.inference.objective import Objective
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.scan import scanned

assert subjects  # a fixture

EFFECTS = Effects(
    Population(differentiated(Decay(), "forward"), ("k",)), (("k", lognormal(0.5, log_sd=1.0)),)
)


@pytest.mark.parametrize("by", ["fo", "focei", "importance"])
def test_values_are_those_of_one_place_after_the_other(subjects, by):
    nets = scattered(64, 1, jax.random.key(0), subjects.numbers) if by == "importance" else None
    problem = Objective(Marginal(EFFECTS, by, 5), Decay().params(), subjects.record, nets)
    rng = np.random.default_rng(0)
    places = np.log([0.5, 0.2]) + 0.3 * rng.normal(size=(7, 2))
    wanted = [problem.value(place)[0] for place in places]
    # Where effects have no scatter left, or no bound, nothing is known.
    found = scanned(problem, np.concatenate([places, [[0.0, -20.0], [0.0, 20.0]]]))
    np.testing.assert_allclose(found[:7], wanted, rtol=1e-7)
    assert np.all(np.isinf(found[7:]))
