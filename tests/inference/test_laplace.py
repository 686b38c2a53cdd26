"""Weighed draws against exact posteriors: conjugate, by quadrature, of two modes; and who is not trusted."""

import json
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from lines import TIME, cohort, line
from lines import Inputs as NoInputs
from runaway import measured, runaway
from scipy import stats

from dtwin_jax.core.prior import normal, uniform
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.types import Scalar
from dtwin_jax.inference import posteriors
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.diagnostics import CalibrationWarning, summary
from dtwin_jax.inference.importance import FREEDOM, Mixture, resampled, smoothed
from dtwin_jax.inference.laplace import Laplace
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import Population

KEY = jax.random.key(0)
# Slopes from flat to steep, and one patient with an outlier.
VALUES = np.array([[1.0, 1.4, 2.2, 3.1], [0.2, 0.1, 0.5, 0.4], [2.0, 2.9, 9.0, 4.4], [-1.0, 0.0, 1.1, 2.9]])


def calibrated(values, *, priors=None, key=KEY, **settings):
    return calibrate(line, cohort(values), key=key, priors=priors, method=Laplace(**settings), progress=False)


@pytest.fixture(scope="module")
def tree():
    return calibrated(VALUES, draws=4000, proposals=4000)


def moments_by_quadrature(value):
    """Mean and sd of level, log slope and log sd of one patient, on a grid that holds all of the mass."""
    middle, reach = np.array([0.5, np.log(0.5), np.log(0.3)]), np.array([8.0, 5.0, 4.0])
    # The second grid is laid about what the first found.
    for _ in range(2):
        axes = np.linspace(middle - reach, middle + reach, 121, axis=1)
        a, b, s = np.meshgrid(*axes, indexing="ij")
        log = stats.norm.logpdf(a, 1.0, 2.0) + stats.norm.logpdf(b, np.log(0.5), 0.8)
        log += stats.norm.logpdf(s, np.log(0.3), 0.5)
        for t, y in zip(TIME, value, strict=True):
            log += stats.norm.logpdf(y, a + np.exp(b) * t, np.exp(s))
        weight = np.exp(log - log.max())
        weight /= weight.sum()
        middle = np.array([np.sum(weight * x) for x in (a, b, s)])
        sd = np.array(
            [np.sqrt(np.sum(weight * (x - m) ** 2)) for x, m in zip((a, b, s), middle, strict=True)]
        )
        reach = 9.0 * sd
    return middle, sd


def test_moments_are_those_of_quadrature(tree):
    posterior, ess = tree["posterior"], tree["sample_stats"]["ess"].values
    assert not tree["sample_stats"]["sampled"].values.any()
    for i, value in enumerate(VALUES):
        mean, sd = moments_by_quadrature(value)
        drawn = [
            posterior["level"].values[0, :, i],
            np.log(posterior["slope"].values[0, :, i]),
            np.log(posterior["sd"].values[0, :, i]),
        ]
        for x, m, s in zip(drawn, mean, sd, strict=True):
            assert abs(x.mean() - m) < 4.0 * s / np.sqrt(ess[i])
            # Second moments of heavy tails converge slowly.
            assert x.std() == pytest.approx(s, rel=0.15)


def test_conjugate_posterior_is_met():
    priors = {"level": normal(0.0, 2.0), "slope": 0.5, "sd": 0.4}
    found = calibrated(VALUES, priors=priors, draws=4000, proposals=4000)
    variance = 1.0 / (2.0**-2 + len(TIME) * 0.4**-2)
    mean = variance * np.sum(VALUES - 0.5 * TIME, axis=1) * 0.4**-2
    drawn, stats_of = found["posterior"]["level"].values[0], found["sample_stats"]
    sd = np.sqrt(variance)
    assert np.all(np.abs(drawn.mean(0) - mean) < 4.0 * sd / np.sqrt(stats_of["ess"].values))
    np.testing.assert_allclose(drawn.std(0), sd, rtol=0.06)
    assert np.all(stats_of["pareto_k"].values < 0.3)


class Root(eqx.Module):
    root: Scalar = param(0.5, "1", normal(0.3, 2.0))


@dataclass(frozen=True)
class Square:
    """Its square is measured, not the sign."""

    name: str = "square"

    def params(self) -> Any:
        return Root()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        time = record.observations["y"].time
        return {"y": dist.Normal(p.root**2 + 0.0 * time, 0.3)}


def test_both_modes_are_drawn_from():
    record = Record(NoInputs(), {"y": Series([0.0, 1.0], [1.5, 1.7])})
    found = calibrate(Square(), record, key=KEY, method=Laplace(starts=6, draws=4000, proposals=4000))
    root = np.linspace(-4.0, 4.0, 20001)
    log = stats.norm.logpdf(root, 0.3, 2.0)
    log += sum(stats.norm.logpdf(y, root**2, 0.3) for y in (1.5, 1.7))
    weight = np.exp(log - log.max())
    share = weight[root > 0].sum() / weight.sum()
    drawn = found["posterior"]["root"].values.ravel()
    error = np.sqrt(share * (1 - share) / float(found["sample_stats"]["ess"][0]))
    assert abs(np.mean(drawn > 0) - share) < 4.0 * error
    assert 0.2 < share < 0.8


def test_draws_depend_on_the_patient_alone(tree):
    alone = calibrate(
        line,
        cohort(VALUES).take([2]),
        key=KEY,
        method=Laplace(draws=4000, proposals=4000),
        progress=False,
    )
    for name in ("level", "slope", "sd"):
        together = tree["posterior"][name].sel(patient="p2").values
        np.testing.assert_allclose(alone["posterior"][name].values[..., 0], together, rtol=1e-6)


def test_summary_tells_effective_draws_of_the_weights(tree):
    table, ess = summary(tree, individual=True), tree["sample_stats"]["ess"].values
    for column in ("ess_bulk", "ess_tail"):
        assert float(table[column].sel(variable="slope[p1]")) == ess[1]
    assert np.isnan(table["r_hat"].sel(variable="slope[p1]"))
    assert tree.attrs["method"] == Laplace.title
    assert tree.attrs["warnings"] == "[]"


def test_another_cohort_of_a_near_size_compiles_nothing():
    def programs():
        return posteriors._values._cache_size(), posteriors._slopes._cache_size()

    calibrated(np.tile(VALUES, (9, 1)))
    before = programs()
    calibrated(np.tile(VALUES, (11, 1)))
    assert programs() == before


def test_who_cannot_be_trusted_is_sampled(tree):
    method = Laplace(draws=600, k_limit=-5.0, fallback=Nuts(chains=2, warmup=300, draws=500, block=100))
    with pytest.warns(CalibrationWarning):
        found = calibrate(line, cohort(VALUES[:2]), key=KEY, method=method, progress=False)
    told = found["sample_stats"]
    assert told["sampled"].values.all() and np.all(np.isfinite(told["r_hat"].values))
    for i in range(2):
        mean, sd = moments_by_quadrature(VALUES[i])
        drawn = np.log(found["posterior"]["slope"].values[0, :, i])
        assert abs(drawn.mean() - mean[1]) < 5.0 * sd[1] / np.sqrt(told["ess"].values[i])
    assert not any("Pareto" in sentence for sentence in json.loads(found.attrs["warnings"]))


def test_who_cannot_be_trusted_is_named():
    method = Laplace(rounds=2, k_limit=-5.0, fallback=None)
    with pytest.warns(CalibrationWarning, match=r"Pareto k is above -5 for 2 of 2 patients \(p0, p1\)"):
        calibrate(line, cohort(VALUES[:2]), key=KEY, method=method, progress=False)


def test_patient_who_cannot_be_solved_is_told_and_harms_nobody():
    records = {"well": measured([0.2, 1.0], [0.6, 0.9]), "ending": measured([10.0, 20.0], [1.0, 1.0])}
    method = Laplace(fallback=None)
    with pytest.warns(CalibrationWarning, match="patient ending: the model cannot explain"):
        found = calibrate(runaway, stack(records), key=KEY, method=method, progress=False)
    told = found["sample_stats"]
    assert told["pareto_k"].sel(patient="well") < 0.7
    assert json.loads(found.attrs["failed"]) == {"ending": 1.0}
    assert all(np.isfinite(found["posterior"][name].sel(patient="well")).all() for name in found["posterior"])


def test_a_declared_value_that_the_prior_forbids_harms_nobody():
    found = calibrated(VALUES[:1], priors={"level": uniform(2.0, 5.0)})
    assert np.all(found["posterior"]["level"].values > 2.0)
    assert summary(found)["variable"].size == 0


def test_who_is_not_efficient_enough_is_named():
    method = Laplace(proposals=4000, rounds=1, fallback=None)
    with pytest.warns(CalibrationWarning, match=r"fewer than 50% of the proposals are effective for \d of 4"):
        calibrate(line, cohort(VALUES), key=KEY, method=method, progress=False)


def test_effective_draws_are_no_more_than_are_kept():
    with pytest.warns(CalibrationWarning, match="effective sample size is 20, below 400"):
        found = calibrated(VALUES[:1], draws=20)
    assert float(found["sample_stats"]["ess"][0]) == 20.0


def test_population_is_refused():
    with pytest.raises(ValueError, match=r"a Population needs method=Nuts\(\)"):
        calibrate(Population(line, ("level",)), cohort(VALUES), key=KEY, method=Laplace())


def mixture():
    rng = np.random.default_rng(1)
    root = np.tril(rng.normal(size=(1, 2, 3, 3))) / 3 + np.eye(3)
    return Mixture(rng.normal(size=(1, 2, 3)), root, np.array([[0.3, 0.7]]))


def test_density_of_proposals_is_that_of_scipy():
    at = mixture()
    u = np.random.default_rng(2).normal(size=(1, 6, 3))
    exact = sum(
        share * stats.multivariate_t(centre, root @ root.T, FREEDOM).pdf(u[0])
        for share, centre, root in zip(at.share[0], at.centre[0], at.root[0], strict=True)
    )
    found = at.log_density(u)[0] - np.log(exact)
    np.testing.assert_allclose(found, found[0], atol=1e-12)


def test_proposals_are_drawn_from_their_density():
    at = mixture()
    u = at.draw(jax.random.split(KEY, 1), 40_000)[0]
    mean = at.share[0] @ at.centre[0]
    scale = FREEDOM / (FREEDOM - 2.0)
    second = sum(
        share * (scale * root @ root.T + np.outer(centre, centre))
        for share, centre, root in zip(at.share[0], at.centre[0], at.root[0], strict=True)
    )
    np.testing.assert_allclose(u.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(u.T), second - np.outer(mean, mean), atol=0.15)


def test_a_proposal_learns_where_the_weights_are():
    goal, sd = np.array([2.0, -1.0]), np.array([0.3, 0.6])
    root = 3.0 * np.tile(np.eye(2), (1, 2, 1, 1))
    at = Mixture(np.array([[[0.0, 0.0], [0.5, 0.5]]]), root, np.full((1, 2), 0.5))
    for _ in range(4):
        u = at.draw(jax.random.split(KEY, 1), 4000)
        log = stats.norm.logpdf(u, goal, sd).sum(-1) - at.log_density(u)
        weights, k = smoothed(log)
        at = at.learnt(u, weights)
    assert 1.0 / np.sum(weights**2) > 0.6 * 4000
    assert k[0] < 0.3
    np.testing.assert_allclose(at.share[0] @ at.centre[0], goal, atol=0.05)


@pytest.mark.parametrize("k", [0.3, 0.6, 1.0])
def test_pareto_k_is_that_of_the_tail(k):
    # The ratio U^-k has a Pareto tail of shape k.
    ratios = -k * np.log(np.random.default_rng(0).uniform(size=(20, 4000)))
    weights, found = smoothed(ratios)
    assert np.mean(found) == pytest.approx(k, abs=0.08)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)


def test_weights_of_nothing_but_failures_are_not_trusted():
    weights, k = smoothed(np.full((1, 50), -np.inf))
    assert np.isinf(k[0])
    np.testing.assert_allclose(weights, 1 / 50)


def test_draws_that_repeat_have_no_tail_to_trust():
    # A chain that stood still: its draw is the cut of the tail and more than a quarter of it.
    ratios = np.random.default_rng(0).normal(size=(2, 400))
    ratios[0, :80] = 10.0
    ratios[0, 80:100] = 11.0 + np.arange(20) / 100
    weights, k = smoothed(ratios)
    assert np.isinf(k[0]) and k[1] < 0.7
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert np.all(np.isinf(smoothed(ratios[:, -20:])[1]))  # too few to have a tail


def test_resampling_keeps_counts_within_one():
    weights = np.random.default_rng(0).dirichlet(np.ones(30), size=1)
    u = np.arange(30.0)[None, :, None]
    drawn = resampled(u, weights, jax.random.split(KEY, 1), 1000)[0, :, 0].astype(int)
    counts = np.bincount(drawn, minlength=30)
    assert np.all(np.abs(counts - 1000 * weights[0]) <= 1.0)
