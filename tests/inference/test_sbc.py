"""Simulation-based calibration where the posterior is known: a normal mean with a normal prior."""

import numpy as np
import pytest

from dtwin_jax.inference import sbc

DRAWS, REPEATS = 127, 400
# Share of 400 repeats that reject at p < 0.001, from a run of the same protocol in a separate program.
POWER = {
    256: {"correct": 0.0, "sd x0.8": 0.435, "sd x1.25": 0.1975, "shift .2 sd": 0.07},
    512: {"correct": 0.0, "sd x0.8": 0.9175, "sd x1.25": 0.8525, "shift .2 sd": 0.375},
}
FAULT = {"correct": (1.0, 0.0), "sd x0.8": (0.8, 0.0), "sd x1.25": (1.25, 0.0), "shift .2 sd": (1.0, 0.2)}


def conjugate(rng, replicates, fault="correct"):
    """Truth and posterior draws of a normal mean: prior N(0, 1), five observations with sd 1."""
    factor, shift = FAULT[fault]
    truth = rng.normal(size=replicates)
    measured = truth + rng.normal(size=(5, replicates))
    mean, sd = measured.sum(axis=0) / 6, 6**-0.5
    return truth, mean + shift * sd + factor * sd * rng.normal(size=(DRAWS, replicates))


@pytest.fixture(scope="module")
def rejected():
    """(replicates, fault) -> share of repeats with p < 0.001."""

    def p_value(rng, replicates, fault):
        return sbc.uniformity(sbc.ranks(*conjugate(rng, replicates, fault)), DRAWS)

    rng = np.random.default_rng(1)
    return {
        (n, fault): np.mean([p_value(rng, n, fault) < 1e-3 for _ in range(REPEATS)])
        for n in POWER
        for fault in FAULT
    }


@pytest.mark.parametrize("replicates", POWER)
@pytest.mark.parametrize("fault", FAULT)
def test_power_is_that_of_the_protocol(rejected, replicates, fault):
    expected = POWER[replicates][fault]
    share = (expected * REPEATS + 1) / (REPEATS + 2)
    error = np.sqrt(2 * share * (1 - share) / REPEATS)
    assert rejected[replicates, fault] == pytest.approx(expected, abs=4 * error)


def test_exact_posterior_draws_pass():
    truth, drawn = conjugate(np.random.default_rng(2), 512)
    assert sbc.complaints(sbc.check({"mean": truth}, {"mean": drawn})) == []


def test_draws_that_are_too_narrow_fail_ranks_and_coverage():
    truth, drawn = conjugate(np.random.default_rng(2), 512)
    said = sbc.complaints(sbc.check({"mean": truth}, {"mean": sbc.rescaled(drawn, 0.8)}))
    assert any("not uniform" in sentence for sentence in said)
    assert any("80% interval" in sentence for sentence in said)


def test_p_values_of_uniform_ranks_are_uniform():
    ranks = np.random.default_rng(3).integers(0, DRAWS + 1, size=(4000, 512))
    p = sbc.uniformity(ranks, DRAWS)
    assert np.quantile(p, (0.05, 0.5, 0.95)) == pytest.approx([0.05, 0.5, 0.95], abs=0.03)


def test_uniformity_equals_a_plain_count():
    ranks = np.random.default_rng(4).integers(0, 8, size=160)
    counted = np.asarray([sum(rank in (2 * i, 2 * i + 1) for rank in ranks) for i in range(4)])
    stats = pytest.importorskip("scipy.stats")
    assert sbc.uniformity(ranks, 7, bins=4) == pytest.approx(stats.chisquare(counted).pvalue, rel=1e-12)


def test_intervals_of_few_draws_cover_their_level():
    rng = np.random.default_rng(5)
    truth, drawn = rng.normal(size=200_000), rng.normal(size=(19, 200_000))
    assert sbc.coverage(truth, drawn, 0.9) == pytest.approx(0.9, abs=0.003)


def test_rescaled_draws_keep_their_mean():
    drawn = np.random.default_rng(7).normal(3.0, 2.0, size=(DRAWS, 5))
    narrow = sbc.rescaled(drawn, 0.8)
    np.testing.assert_allclose(narrow.mean(axis=0), drawn.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(narrow.std(axis=0), 0.8 * drawn.std(axis=0), rtol=1e-12)


def test_autocorrelation_is_that_of_an_autoregression():
    rng, share = np.random.default_rng(8), 0.3
    x = [rng.normal(size=2000)]
    for _ in range(DRAWS - 1):
        x.append(share * x[-1] + np.sqrt(1 - share**2) * rng.normal(size=2000))
    assert sbc.autocorrelation(np.asarray(x)) == pytest.approx(share, abs=0.01)
    assert sbc.autocorrelation(rng.normal(size=(DRAWS, 2000))) == pytest.approx(0.0, abs=0.005)


def test_bins_of_unequal_width_are_refused():
    with pytest.raises(ValueError, match="do not divide"):
        sbc.uniformity(np.arange(10), 100)


def test_values_that_are_not_finite_are_refused():
    truth, drawn = conjugate(np.random.default_rng(9), 4)
    drawn[3, 2] = np.nan
    with pytest.raises(ValueError, match="draws of 'mean': 1 values"):
        sbc.check({"mean": truth}, {"mean": drawn})
