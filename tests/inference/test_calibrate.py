"""Calibration of independent patients against posteriors that are known, and its result on disk."""

import json
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import xarray as xr
from lines import Inputs as NoInputs
from lines import cohort, line
from runaway import measured, runaway
from scipy import integrate, stats

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses, Steps
from dtwin_jax.dynamics.residual import log_normal
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.diagnostics import CalibrationWarning, summary
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.result import ResultError, cohort_of, load, save
from dtwin_jax.inference.run import Run
from dtwin_jax.models import linear_health, one_compartment
from dtwin_jax.models.linear_health import Inputs as HealthInputs
from dtwin_jax.models.one_compartment import Inputs as DrugInputs

METHOD = Nuts(chains=4, warmup=300, draws=1000, candidates=16)
FEW = Nuts(chains=2, warmup=10, draws=20, block=30, candidates=8, max_depth=4)

# linear_health with its rate and noise known is linear in H0 and gamma: a Gaussian posterior.
ALPHA, SD = -0.3, 0.2
MEANS, SPREADS = np.array([0.2, 1.0]), np.array([0.5, 1.0])
PRIORS = {name: None for name in ("beta_E", "beta_B", "beta_C", "beta_S", "beta_G")} | {
    "alpha": ALPHA,
    "sd": SD,
    "gamma": normal(MEANS[0], SPREADS[0]),
    "H0": normal(MEANS[1], SPREADS[1]),
}


def expected(treatment, t, gamma, start):
    """H(t) by quadrature of the equation's solution."""
    edges = [s for s in treatment.time if 0 < s < t]
    moved, _ = integrate.quad(
        lambda s: np.exp(ALPHA * (t - s)) * treatment.value[np.sum(treatment.time <= s) - 1],
        0.0,
        t,
        points=edges or None,
    )
    return start * np.exp(ALPHA * t) - gamma * moved


def health_record(seed):
    """Six measurements under a treatment that starts and stops at times of the patient's own."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0.2, 6.0, 6))
    on, off = np.sort(rng.uniform(0.0, 5.0, 2))
    treatment = Steps([0.0, on, off], [0.0, 1.0 + seed % 2, 0.0])
    truth = rng.normal(MEANS, SPREADS)
    values = [expected(treatment, t, *truth) for t in times] + rng.normal(0.0, SD, 6)
    return Record(HealthInputs(T=treatment), {"H": Series(times, values)})


RECORDS = {name: health_record(seed) for seed, name in enumerate("abcde")}
COHORT = stack({name: RECORDS[name] for name in "abc"})


def exact_posterior(record):
    """Mean and covariance of (gamma, H0) by Bayes' rule for linear Gaussian models."""
    series, treatment = record.observations["H"], record.inputs.T
    ends = np.append(treatment.time[1:], np.inf)
    design = np.zeros((len(series.time), 2))
    for i, t in enumerate(series.time):
        design[i, 1] = np.exp(ALPHA * t)
        for start, end, level in zip(treatment.time, ends, treatment.value, strict=True):
            if start < t:
                # The integral of exp(alpha (t - s)) from the step's start to its end, or to t.
                until = min(end, t)
                design[i, 0] -= level * (np.exp(ALPHA * (t - start)) - np.exp(ALPHA * (t - until))) / ALPHA
    covariance = np.linalg.inv(np.diag(SPREADS**-2.0) + design.T @ design / SD**2)
    return covariance @ (MEANS / SPREADS**2 + design.T @ series.value / SD**2), covariance


def calibrated(cohort, *, key=0, **options):
    given = {"priors": PRIORS, "method": METHOD} | options
    return calibrate(linear_health, cohort, key=jax.random.key(key), progress=False, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("blocks")


@pytest.fixture(scope="module")
def tree(folder):
    return calibrated(COHORT, checkpoint=folder)


def test_posterior_of_a_linear_model_equals_the_closed_form(tree):
    table = summary(tree, individual=True)
    for patient in COHORT.ids:
        mean, covariance = exact_posterior(RECORDS[patient])
        for i, name in enumerate(("gamma", "H0")):
            row, sd = table.sel(variable=f"{name}[{patient}]"), np.sqrt(covariance[i, i])
            error = sd / np.sqrt(float(row["ess_bulk"]))
            assert float(row["mean"]) == pytest.approx(mean[i], abs=4 * error), (patient, name)
            assert float(row["sd"]) == pytest.approx(sd, rel=0.1), (patient, name)


def test_posterior_correlation_equals_the_closed_form(tree):
    for patient in COHORT.ids:
        drawn = tree["posterior"].to_dataset().sel(patient=patient)
        _, covariance = exact_posterior(RECORDS[patient])
        exact = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        found = np.corrcoef(drawn["gamma"].values.ravel(), drawn["H0"].values.ravel())[0, 1]
        assert found == pytest.approx(exact, abs=0.1)


def draws_of(tree, patient):
    chosen = tree["posterior"].to_dataset().sel(patient=patient)
    return np.stack([chosen[name].values for name in ("gamma", "H0")])


def test_draws_do_not_depend_on_the_order_of_patients(tree):
    turned = calibrated(COHORT.take([2, 0, 1]))
    for patient in COHORT.ids:
        np.testing.assert_allclose(draws_of(turned, patient), draws_of(tree, patient), atol=1e-10)


def test_draws_do_not_depend_on_who_else_is_there(tree):
    other = calibrated(stack({name: RECORDS[name] for name in "dbe"}))
    np.testing.assert_allclose(draws_of(other, "b"), draws_of(tree, "b"), atol=1e-10)


LINES = cohort(np.array([[1.0, 1.6, 2.2, 3.1], [0.2, 0.4, 1.5, 2.4], [2.0, 2.1, 3.3, 3.5]]))


def lines(data=LINES, *, key=0, method=FEW, **options):
    """Three lines, a few draws: the warnings say so."""
    with pytest.warns(CalibrationWarning):
        return calibrate(line, data, key=jax.random.key(key), method=method, progress=False, **options)


def test_draws_do_not_depend_on_groups():
    # Groups of two: the last is filled up with a patient who is then left out.
    together, grouped = lines(), lines(method=replace(FEW, group=2))
    assert list(grouped["posterior"]["patient"].values) == list(LINES.ids)
    xr.testing.assert_allclose(
        grouped["posterior"].to_dataset(), together["posterior"].to_dataset(), rtol=1e-8
    )


def test_another_key_gives_other_draws(tree):
    assert not np.any(draws_of(calibrated(COHORT, key=1), "a") == draws_of(tree, "a"))


def blocks(folder):
    """In the order in which they were written: those of the warm-up first."""
    found = folder.glob("patients-00000*/block-*.npz")
    return sorted(found, key=lambda path: ("warmup" not in path.parent.name, path))


def test_interrupted_calibration_goes_on_to_the_same_draws(tree, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    written = blocks(tmp_path / "copy")
    assert len(written) == 26  # (300 + 1000) / 50
    for path in written[15:]:
        path.unlink()
    resumed = calibrated(COHORT, checkpoint=tmp_path / "copy")
    assert resumed.attrs["resumed_blocks"] == 15
    xr.testing.assert_identical(resumed["posterior"].to_dataset(), tree["posterior"].to_dataset())
    xr.testing.assert_identical(resumed["sample_stats"].to_dataset(), tree["sample_stats"].to_dataset())
    assert len(blocks(tmp_path / "copy")) == 26


def test_blocks_of_another_calibration_are_not_used(tmp_path):
    lines(checkpoint=tmp_path)
    assert lines(checkpoint=tmp_path).attrs["resumed_blocks"] == 2
    assert lines(checkpoint=tmp_path, key=1).attrs["resumed_blocks"] == 0
    assert lines(checkpoint=tmp_path, priors={"level": normal(1.0, 3.0)}).attrs["resumed_blocks"] == 0
    # Their blocks replaced the first ones: the first calibration finds none of its own.
    assert lines(checkpoint=tmp_path).attrs["resumed_blocks"] == 0


def test_result_has_the_groups_dimensions_and_units_of_arviz(tree):
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "prior",
        "log_likelihood",
        "posterior_predictive",
        "observed_data",
        "constant_data",
    }
    gamma = tree["posterior"]["gamma"]
    assert gamma.dims == ("chain", "draw", "patient")
    assert gamma.shape == (4, 1000, 3)
    assert gamma.attrs["units"] == "/a"
    assert tree["posterior"]["H0"].attrs["units"] == "1"
    for group in ("log_likelihood", "posterior_predictive"):
        assert tree[group]["H"].dims == ("chain", "draw", "patient", "H_point")
    assert tree["observed_data"]["H"].dims == ("patient", "H_point")
    assert tree["constant_data"]["T_value"].dims == ("patient", "T_dose")
    assert tree.attrs["time_unit"] == "a"


def test_log_likelihood_equals_the_normal_density(tree):
    drawn = tree["posterior_predictive"]["H_expected"]
    thinned = tree["log_likelihood"]["H"].sel(draw=drawn["draw"])
    exact = stats.norm.logpdf(tree["observed_data"]["H"].values, drawn.values, SD)
    np.testing.assert_allclose(thinned.values, exact, rtol=1e-10)


def test_prior_group_follows_the_priors(tree):
    with pytest.raises(KeyError):
        tree["prior"]["alpha"]
    for i, name in enumerate(("gamma", "H0")):
        sample = tree["prior"][name].values.ravel()
        assert stats.kstest(sample, stats.norm(MEANS[i], SPREADS[i]).cdf).pvalue > 1e-3


def test_leave_one_out_of_arviz_on_the_result_equals_the_exact_one(tree):
    from arviz_stats.base import array_stats

    pointwise, shape, _ = array_stats.loo(tree["log_likelihood"]["H"].values, chain_axis=0, draw_axis=1)
    # By the posterior of a linear Gaussian model with one point deleted.
    exact = [[_exact_loo(RECORDS[patient], i) for i in range(6)] for patient in COHORT.ids]
    # Importance weights of a heavier tail are not to be relied on.
    trusted = np.asarray(shape) < 0.7
    assert np.mean(trusted) > 0.9
    np.testing.assert_allclose(
        np.asarray(pointwise)[trusted], np.asarray(exact)[trusted], rtol=0.05, atol=0.1
    )


def _exact_loo(record, i):
    series = record.observations["H"]
    without = Series(np.delete(series.time, i), np.delete(series.value, i))
    mean, covariance = exact_posterior(Record(record.inputs, {"H": without}))
    row = np.array([expected(record.inputs.T, series.time[i], *unit) for unit in np.eye(2)])
    return stats.norm.logpdf(series.value[i], row @ mean, np.sqrt(row @ covariance @ row + SD**2))


def test_saved_result_comes_back_whole(tree, tmp_path):
    f, back = load(save(tree, tmp_path / "result.nc"))
    assert f == linear_health
    assert set(back.children) == set(tree.children)
    for group in tree.children:
        xr.testing.assert_equal(back[group].to_dataset(), tree[group].to_dataset())
    assert list(tmp_path.iterdir()) == [tmp_path / "result.nc"]


def test_cohort_comes_back_from_a_saved_result(tree, tmp_path):
    f, back = load(save(tree, tmp_path / "result.nc"))
    again = cohort_of(f, back)
    assert again.ids == COHORT.ids
    found, wanted = jax.tree.leaves(again.record), jax.tree.leaves(COHORT.record)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_file_that_was_cut_short_is_named(tree, tmp_path):
    path = save(tree, tmp_path / "result.nc")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ResultError, match=r"result\.nc: found no whole NetCDF file"):
        load(path)


def test_file_that_is_absent_is_named(tmp_path):
    with pytest.raises(ResultError, match=r"absent\.nc: no such file"):
        load(tmp_path / "absent.nc")


def test_few_draws_are_told_and_a_predictor_that_cannot_be_imported_must_be_passed(tmp_path):
    local = replace(line, name="written_here")
    # Two chains of twenty draws: the parameters of whom nothing can be said are named.
    with pytest.warns(CalibrationWarning) as said:
        made = calibrate(local, LINES, key=jax.random.key(0), method=FEW, progress=False)
    sentences = [str(one.message) for one in said]
    assert any(
        re.match(r"(level|slope|sd)\[p[012]\]: (R-hat|effective sample size) is", one) for one in sentences
    )
    assert json.loads(made.attrs["warnings"]) == sentences
    path = save(made, tmp_path / "local.nc")
    with pytest.raises(ResultError, match="pass predictor="):
        load(path)
    f, _ = load(path, predictor=local)
    assert f is local


def test_posterior_of_a_censored_mean_equals_quadrature():
    seen, low, high = np.array([0.3, 1.1, 0.8]), -0.2, 1.5
    value = np.append(seen, [low, low, high])
    series = Series(np.arange(6.0), value, censor=[0, 0, 0, -1, -1, 1])
    tree = calibrate(
        line,
        Record(NoInputs(), {"y": series}),
        key=jax.random.key(0),
        priors={"level": normal(0.0, 2.0), "slope": 0.0, "sd": 0.7},
        method=METHOD,
        progress=False,
    )

    def joint(mean):
        seen_part = np.prod(stats.norm.pdf(seen, mean, 0.7))
        tails = stats.norm.cdf(low, mean, 0.7) ** 2 * stats.norm.sf(high, mean, 0.7)
        return stats.norm.pdf(mean, 0.0, 2.0) * seen_part * tails

    mass, first, second = (
        integrate.quad(lambda m, k=k: m**k * joint(m), -4, 5, epsabs=0.0)[0] for k in range(3)
    )
    mean, sd = first / mass, np.sqrt(second / mass - (first / mass) ** 2)
    # A single record is a patient called 1.
    row = summary(tree, individual=True).sel(variable="level[1]")
    assert float(row["mean"]) == pytest.approx(mean, abs=4 * sd / np.sqrt(float(row["ess_bulk"])))
    assert float(row["sd"]) == pytest.approx(sd, rel=0.1)


DOSED = Record(
    DrugInputs(iv=Doses([0.0], [100.0])),
    {
        "concentration": Series(
            [0.5, 2.0, 6.0, 12.0, 24.0], [4.6, 4.1, 3.2, 2.0, 0.9], censor=[1, 0, 0, 0, -1]
        )
    },
)
SCATTER = {"sd": lognormal(0.1, 0.5), "cv": lognormal(0.1, 0.5)}
TRUTH = {
    "additive": lambda y, p: stats.norm(y, p["sd"]),
    "proportional": lambda y, p: stats.norm(y, p["cv"] * y),
    "combined": lambda y, p: stats.norm(y, np.sqrt(p["sd"] ** 2 + (p["cv"] * y) ** 2)),
    "log-normal": lambda y, p: stats.lognorm(p["cv"], scale=y),
}
GIVEN = {
    "additive": {"cv": 0.0},
    "proportional": {"sd": 0.0},
    "combined": {},
    "log-normal": {"sd": 0.0},
}


def some_draws(self, progress):
    """Draws of unbounded parameters, in place of a sampler's."""
    rng = np.random.default_rng(0)
    centre = {"CL": 1.4, "V": 3.0, "sd": -2.3, "cv": -2.3}
    z = {name: rng.normal(centre[name], 0.3, (2, 20, 1)) for name, _ in self.density.priors}
    return z, {"diverging": np.zeros((2, 20, 1), bool)}, None


@pytest.mark.parametrize("error", TRUTH)
def test_log_likelihood_equals_scipy_for_every_residual_error(error, monkeypatch):
    monkeypatch.setattr(Run, "patients", some_draws)
    f = replace(one_compartment, noise=log_normal) if error == "log-normal" else one_compartment
    priors = {"CL": lognormal(4.0, 0.3), "V": lognormal(20.0, 0.3), "ka": None} | SCATTER | GIVEN[error]
    with pytest.warns(CalibrationWarning):
        tree = calibrate(f, DOSED, key=jax.random.key(0), priors=priors, progress=False)
    drawn = {name: value.values for name, value in tree["posterior"].data_vars.items()}
    series = DOSED.observations["concentration"]
    # A bolus into one compartment.
    y = 100.0 / drawn["V"] * np.exp(-drawn["CL"] / drawn["V"] * series.time[:, None, None, None])
    truth = TRUTH[error](np.moveaxis(y, 0, -1), drawn_for_points(drawn))
    parts = {-1: truth.logcdf(series.value), 0: truth.logpdf(series.value), 1: truth.logsf(series.value)}
    expected = np.stack([parts[code][..., i] for i, code in enumerate(series.censor)], axis=-1)
    np.testing.assert_allclose(
        tree["log_likelihood"]["concentration"].values, expected, rtol=1e-8, atol=1e-12
    )


def drawn_for_points(drawn):
    return {name: value[..., None] for name, value in drawn.items()}


def test_patient_whose_solve_fails_is_named_and_no_other():
    pair = stack({"well": measured([0.2, 1.0], [0.6, 0.9]), "ending": measured([10.0, 20.0], [1.0, 1.0])})
    with pytest.warns(CalibrationWarning) as said:
        tree = calibrate(runaway, pair, key=jax.random.key(0), method=FEW, progress=False)
    sentences = [str(one.message) for one in said]
    assert "patient ending: the model cannot explain a measurement in 100% of the draws" in sentences
    assert not any(sentence.startswith("patient well") for sentence in sentences)
    assert np.all(np.isfinite(tree["posterior"]["start"].values))
