"""Profiles of a population's likelihood against the exact likelihood of a linear model, in plain NumPy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats
from two_lines import START, Lines, drawn_cohort, population

from dtwin_jax import plot
from dtwin_jax.core.record import stack
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.twin.population_profile import profile_population
from dtwin_jax.twin.walk import Refit

TIME = [0.0, 1.0, 2.0, 4.0]
NAMES = ("level_pop", "slope_pop", "sd", "omega_level", "omega_slope")
POSITIVE = np.array([False, False, True, True, True])


@pytest.fixture(scope="module")
def fitted():
    people = stack(drawn_cohort({f"p{i}": (TIME,) for i in range(12)}, seed=4, channels=("y",)))
    found = estimate(population(Lines()), people, start=START)
    assert found.converged and found.names == NAMES
    return people, found


@pytest.fixture(scope="module")
def profiles(fitted):
    return {
        name: profile_population(population(Lines()), *fitted, name) for name in ("level_pop", "omega_slope")
    }


def minus_log_likelihood(people, values):
    """Of all measurements, at the numbers by their names."""
    x = np.stack([np.ones(4), TIME], axis=1)
    mean = x @ [values["level_pop"], values["slope_pop"]]
    omega = np.diag([values["omega_level"] ** 2, values["omega_slope"] ** 2])
    covariance = x @ omega @ x.T + values["sd"] ** 2 * np.eye(4)
    return -stats.multivariate_normal.logpdf(people.record.observations["y"].value, mean, covariance).sum()


@pytest.mark.parametrize("name", ["level_pop", "omega_slope"])
def test_fall_is_that_of_the_exact_likelihood(fitted, profiles, name):
    people, found = fitted
    profile = profiles[name]
    peak = minus_log_likelihood(people, found.estimate)
    for i in range(len(profile.value)):
        here = {other: value[i] for other, value in profile.others.items()} | {name: profile.value[i]}
        assert minus_log_likelihood(people, here) - peak == pytest.approx(profile.fall[i], abs=1e-4)


@pytest.mark.parametrize("name", ["level_pop", "omega_slope"])
def test_interval_ends_where_the_exact_profile_has_fallen_by_its_limit(fitted, profiles, name):
    """The others are sought anew by another optimiser, from the estimates."""
    people, found = fitted
    place = NAMES.index(name)
    others = [i for i in range(5) if i != place]
    start = np.array([found.estimate[one] for one in NAMES])
    start[POSITIVE] = np.log(start[POSITIVE])
    peak = minus_log_likelihood(people, found.estimate)
    for end in profiles[name].interval:

        def left(free, end=end):
            whole = start.copy()
            whole[others] = free
            whole[POSITIVE] = np.exp(whole[POSITIVE])
            whole[place] = end
            return minus_log_likelihood(people, dict(zip(NAMES, whole, strict=True)))

        best = optimize.minimize(left, start[others], method="BFGS").fun
        # The end is interpolated between two refits.
        assert best - peak == pytest.approx(0.5 * stats.chi2.ppf(0.95, 1), rel=0.01)
    assert profiles[name].identifiable and set(profiles[name].code) == {Refit.FOUND}
    assert profiles[name].estimate == pytest.approx(found.estimate[name])


def test_profiles_of_a_population_are_drawn_as_those_of_a_patient(profiles):
    fig = plot.profile_panels(list(profiles.values()), {"level_pop": "1"})
    assert len(fig.layout.annotations) == 2


def test_what_cannot_be_walked_from_is_refused(fitted):
    people, found = fitted
    with pytest.raises(ValueError, match="'level' cannot be profiled; there are level_pop, slope_pop"):
        profile_population(population(Lines()), people, found, "level")
    with pytest.raises(ValueError, match=r"by sampling \(saem\) is not profiled"):
        profile_population(population(Lines()), people, replace(found, by="saem"), "sd")
    still = estimate(population(Lines()), people, start=START, search=False)
    with pytest.raises(ValueError, match="has not converged"):
        profile_population(population(Lines()), people, still, "sd")
