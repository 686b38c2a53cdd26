"""Bootstrap and SIR of a linear normal population, whose likelihood is known.

Sources of truth: the level of a patient is normal about `mean` with variance omega^2, his four measurements
about it with variance 0.3^2, so the mean of these is normal with variance v = omega^2 + 0.09 / 4. The best
mean is the mean of all, the best v their variance; and the likelihood of both is summed on a grid.
"""

import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest
from two_lines import Lines, Nothing

from dtwin_jax.core.prior import normal
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.inference.doubts import EstimationWarning
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.population import Population
from dtwin_jax.twin import bootstrap as module
from dtwin_jax.twin.bootstrap import bootstrap
from dtwin_jax.twin.sir import sir

NOISE = 0.09 / 4
N = 30
GROUP = np.repeat([0.0, 1.0, 2.0], [5, 10, 15])
PRIORS = {"level": normal(0.0, 10.0), "slope": 0.0, "sd": 0.3}
POPULATION = Population(Lines(), ("level",))
TIME = np.arange(4.0)
KEY = jax.random.key(3)


def patients():
    rng = np.random.default_rng(1)
    rows = 2.0 + 0.7 * rng.normal(size=(N, 1)) + 0.3 * rng.normal(size=(N, len(TIME)))
    series = [{"y": Series(TIME, row)} for row in rows]
    known = [{"group": group} for group in GROUP]
    return stack({f"p{i}": Record(Nothing(), series[i], known[i]) for i in range(N)})


PATIENTS = patients()
MEANS = np.asarray(PATIENTS.record.observations["y"].value).mean(axis=1)


@pytest.fixture(scope="module")
def found():
    return estimate(POPULATION, PATIENTS, priors=PRIORS)


def again(found, replicates, **more):
    return bootstrap(
        POPULATION, PATIENTS, found, key=KEY, priors=PRIORS, replicates=replicates, progress=False, **more
    )


@pytest.fixture(scope="module")
def replicated(found):
    return again(found, 60)


def test_every_replicate_is_the_best_of_its_patients(found, replicated):
    data = replicated.data
    assert data["outcome"].values.tolist() == [0] * 60 and replicated.warnings == ()
    for drawn, estimated in zip(data["drawn"].values, data["estimate"].values, strict=True):
        mean = np.average(MEANS, weights=drawn)
        variance = np.average((MEANS - mean) ** 2, weights=drawn)
        np.testing.assert_allclose(estimated, [mean, np.sqrt(variance - NOISE)], rtol=1e-4)


def test_standard_errors_are_the_analytic_ones(replicated):
    """Of the mean that of all patients over root N; that of an sd of 60 draws is off by a twelfth or so."""
    error = replicated.data["standard_error"].sel(parameter="level_pop")
    assert float(error) == pytest.approx(MEANS.std() / np.sqrt(N), rel=4.0 / np.sqrt(2 * 60))
    bias = replicated.data["bias"].sel(parameter="level_pop")
    assert abs(float(bias)) < 4.0 * MEANS.std() / np.sqrt(N * 60)


def test_a_summary_is_printed(found, replicated):
    said = str(replicated)
    assert "60 of 60 replicates of 30 patients count" in said and "97.5 %" in said
    assert f"{found.estimate['omega_level']:.5g}" in said


def test_groups_keep_their_sizes(found):
    drawn = again(found, 4, by="group").data["drawn"].values
    for group in (0.0, 1.0, 2.0):
        assert np.all(drawn[:, group == GROUP].sum(axis=1) == np.sum(group == GROUP))
    assert np.any(drawn[0] != drawn[1])


def test_a_run_that_was_killed_ends_as_one_that_was_not(found, replicated, tmp_path, monkeypatch):
    one = module._replicate

    def killed(*given):
        if given[4] == 3:
            raise KeyboardInterrupt
        return one(*given)

    monkeypatch.setattr(module, "_replicate", killed)
    with pytest.raises(KeyboardInterrupt):
        again(found, 6, path=tmp_path / "kept.npz")
    counted = []
    monkeypatch.setattr(module, "_replicate", lambda *given: counted.append(given[4]) or one(*given))
    data = again(found, 6, path=tmp_path / "kept.npz").data
    assert counted == [3, 4, 5]
    for name in ("vector", "minus_two_log_likelihood", "drawn"):
        np.testing.assert_array_equal(data[name], replicated.data[name][:6])
    # More replicates are added to those in the file, fewer are the first of them.
    assert again(found, 2, path=tmp_path / "kept.npz").data["vector"].equals(data["vector"][:2])
    assert counted == [3, 4, 5]
    with pytest.raises(ValueError, match="is of another bootstrap"):
        again(found, 6, path=tmp_path / "kept.npz", by="group")


def test_replicates_that_fail_are_counted_and_named(found, monkeypatch):
    def lost(problem, psi, key, max_steps):
        at, message = module_sought(problem, psi, key, max_steps)
        number = len(seen)
        seen.append(number)
        if number == 1:
            raise np.linalg.LinAlgError("Singular matrix")
        return at + (0.5 if number == 2 else 0.0), message

    seen, module_sought = [], module.sought
    monkeypatch.setattr(module, "sought", lost)
    with pytest.warns(EstimationWarning, match="1 of 5 replicates"):
        told = again(found, 5)
    assert told.data["outcome"].values.tolist() == [0, 2, 1, 0, 0]
    assert np.isnan(told.data["estimate"].values[1]).all()
    counting = told.data["estimate"].values[[0, 3, 4]]
    np.testing.assert_allclose(told.data["mean"], counting.mean(axis=0))
    assert "3 of 5 replicates" in str(told) and "! 1 of 5 replicates have a likelihood that is" in str(told)


def test_replicates_by_a_random_method_are_the_best_of_their_patients():
    """Within what 200 iterations leave open, some hundredths of a standard error of 0.1."""
    how = {"by": "saem", "key": jax.random.key(1), "draws": 64, "max_steps": 200}
    saem = estimate(POPULATION, PATIENTS, priors=PRIORS, **how)
    data = again(saem, 2, max_steps=200).data
    for drawn, estimated in zip(data["drawn"].values, data["estimate"].values, strict=True):
        mean = np.average(MEANS, weights=drawn)
        variance = np.average((MEANS - mean) ** 2, weights=drawn)
        np.testing.assert_allclose(estimated, [mean, np.sqrt(variance - NOISE)], atol=0.015)


def exact(level):
    """Quantiles of mean and omega, flat beforehand: by sums over a grid."""
    mean = np.linspace(MEANS.mean() - 1.2, MEANS.mean() + 1.2, 801)
    omega = np.linspace(1e-3, 2.5, 1201)
    v = omega[:, None] ** 2 + NOISE
    log = -0.5 * N * np.log(v) - 0.5 * N * (MEANS.var() + (mean - MEANS.mean()) ** 2) / v
    mass = np.exp(log - log.max())
    mass /= mass.sum()
    sides = [(1 - level) / 2, (1 + level) / 2]
    return np.array(
        [np.interp(sides, np.cumsum(mass.sum(axis=axis)), grid) for axis, grid in ((0, mean), (1, omega))]
    )


@pytest.fixture(scope="module")
def weighed(found):
    return sir(POPULATION, PATIENTS, found, key=KEY, draws=4000, priors=PRIORS, level=0.9, progress=False)


def test_intervals_are_those_of_the_exact_likelihood(found, weighed):
    """A quantile of 4000 draws has a standard error of some 0.03 standard deviations."""
    sd = weighed.data["standard_error"].values[:, None]
    away = (weighed.data["interval"].values - exact(0.9)) / sd
    np.testing.assert_allclose(away, 0.0, atol=0.1)
    assert weighed.warnings == () and weighed.data["pareto_k"].values[-1] < 0.5
    assert weighed.data["effective"].values[-1] > 2000 and not np.any(weighed.data["lost"].values)
    # The symmetric interval of the standard error is far off.
    high = found.estimate["omega_level"] + 1.645 * found.errors()["omega_level"]
    assert exact(0.9)[1, 1] - high > 0.3 * sd[1]


def test_the_likelihood_of_draws_is_the_exact_one(weighed):
    mean, omega = weighed.data["estimate"].values[:200].T
    v = omega**2 + NOISE
    square = MEANS.var() + (mean - MEANS.mean()) ** 2
    y = np.asarray(PATIENTS.record.observations["y"].value)
    within = np.sum((y - MEANS[:, None]) ** 2) / 0.09
    size = len(TIME) * np.log(2 * np.pi) + len(TIME) * np.log(0.09) + np.log(v / NOISE)
    wanted = N * size + within + N * square / v
    np.testing.assert_allclose(weighed.data["minus_two_log_likelihood"].values[:200], wanted, rtol=1e-8)


def test_a_poor_proposal_is_told_of(found):
    """With a covariance a hundred times too small."""
    narrow = replace(found, curvature=found.curvature * 1e4)
    with pytest.warns(EstimationWarning, match=r"Pareto k|draws are worth"):
        sir(POPULATION, PATIENTS, narrow, key=KEY, draws=400, rounds=1, priors=PRIORS, progress=False)


def test_what_does_not_fit_is_refused(found):
    with pytest.raises(ValueError, match="by: no fact 'sex' of the patients; there are group"):
        again(found, 2, by="sex")
    other = Population(Lines(), ("slope",))
    with pytest.raises(ValueError, match="give the population and the priors that were estimated"):
        sir(other, PATIENTS, found, key=KEY, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimationWarning)
        short = estimate(POPULATION, PATIENTS, priors=PRIORS, max_steps=1, start={"level_pop": 9.0})
    with pytest.raises(ValueError, match="has not converged"):
        again(short, 2)
