"""Likelihoods by importance sampling and estimates by stochastic approximation, against exact ones.

Sources of truth: of Wang's ten subjects numerical integration in a separate program; of theophylline the
exact maximum by quadrature in a separate program.
"""

import jax
import numpy as np
import pytest
from test_estimate import EXACT, POPULATION, PRIORS, Decay, people, subjects

from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.population import Population

assert people and subjects  # fixtures

WANG = Population(Decay(), ("k",))
START = {"k_pop": 0.5, "omega_k": 0.2}


def test_objective_is_exact_within_the_error_that_is_told(subjects):
    keys = [jax.random.key(seed) for seed in range(8)]
    found = [
        estimate(WANG, subjects, by="importance", draws=256, key=key, start=START, search=False)
        for key in keys
    ]
    away = np.array([each.objective for each in found]) - 39.354803462611216
    told = np.array([each.monte_carlo_error for each in found])
    assert all(each.draws == 256 and each.nodes == 0 for each in found)
    assert np.sqrt(np.mean(away**2)) < 0.05
    # Eight draws of a normal distribution: their root mean square is within a factor of two of its sd.
    assert 0.5 < np.sqrt(np.mean(away**2)) / np.sqrt(np.mean(told**2)) < 2.0


@pytest.fixture(scope="module")
def saem(people):
    return estimate(POPULATION, people, by="saem", priors=PRIORS, key=jax.random.key(0))


def test_stochastic_approximation_finds_the_exact_maximum_of_theophylline(saem):
    assert saem.converged and saem.failed == ()
    for name, value in EXACT.items():
        assert saem.estimate[name] == pytest.approx(value, rel=0.03), name


def test_its_likelihood_is_the_exact_one_within_the_error_that_is_told(saem):
    # At most 0.1 above the least value, by what counts as converged.
    assert saem.draws == 512 and 0.02 < saem.monte_carlo_error < 0.1
    away = saem.objective - 118.10181939017798
    assert -4 * saem.monte_carlo_error < away < 0.1 + 4 * saem.monte_carlo_error


def test_what_random_methods_need_is_named(subjects):
    with pytest.raises(ValueError, match="saem is random: give a key"):
        estimate(WANG, subjects, by="saem")
    with pytest.raises(ValueError, match="draws: found 100, expected a multiple of 8"):
        estimate(WANG, subjects, by="importance", key=jax.random.key(0), draws=100)
