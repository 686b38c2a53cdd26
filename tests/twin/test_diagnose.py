"""Residuals of fitted populations where they are known in closed form.

With normal effects that enter linearly, and normal errors, the measurements of a patient are one normal
vector whose mean and covariance are plain matrices: CWRES are that vector whitened by the symmetric root,
NPDE by the triangular one. With proportional errors CWRES have a closed form at given effects, and the place
of a single measurement is an integral, taken here by quadrature in plain NumPy.
"""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy import special, stats
from two_lines import (
    BETA,
    DESIGN,
    OMEGA,
    SD,
    START,
    Lines,
    Nothing,
    Steps,
    drawn_cohort,
    population,
)

from dtwin_jax.core.occasions import with_occasions
from dtwin_jax.core.prior import halfnormal
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.occasions import Occasions
from dtwin_jax.inference.population import Population
from dtwin_jax.twin.diagnose import diagnose


@pytest.fixture(scope="module")
def linear():
    """A cohort with two channels, padding, and one measurement below a limit."""
    records = drawn_cohort(DESIGN)
    y = records["limited"].observations["y"]
    censored = Series(y.time, y.value, censor=[0, -1, 0])
    observed = records["limited"].observations | {"y": censored}
    records["limited"] = replace(records["limited"], observations=observed)
    people = stack(records)
    found = estimate(population(Lines()), people, start=START, search=False)
    return people, found, diagnose(population(Lines()), people, found, key=jax.random.key(1), samples=4000)


def elsewhere(found, people, **changes):
    """The same estimates for other patients, at some effects."""
    eta = 0.3 * np.random.default_rng(9).normal(size=(len(people), 2))
    return replace(found, ids=people.ids, eta=eta, **changes)


def rows(people, index):
    """What was seen of a patient, on the scale of normal errors, and its design matrix."""
    values, design, places = [], [], []
    for name, sign in (("y", 1.0), ("z", -1.0)):
        series = people.at(index).observations[name]
        seen = series.mask & (series.censor == 0)
        value = np.log(np.where(seen, series.value, 1.0)) if name == "z" else series.value
        values += value[seen].tolist()
        design += [[1.0, sign * t] for t in series.time[seen]]
        places += [(name, i) for i in np.flatnonzero(seen)]
    return np.asarray(values), np.asarray(design), places


def told(tree, who, kind, places):
    data = tree["residuals"].sel(patient=who)
    return np.asarray([float(data[f"{name}_{kind}"][i]) for name, i in places])


def symmetric_root(v):
    variance, axis = np.linalg.eigh(v)
    return axis @ np.diag(variance**-0.5) @ axis.T


def test_conditional_residuals_of_a_linear_model_are_the_whitened_measurements(linear):
    people, _, tree = linear
    for i, who in enumerate(people.ids):
        y, x, places = rows(people, i)
        v = x @ OMEGA @ x.T + SD**2 * np.eye(len(y))
        exact = symmetric_root(v) @ (y - x @ BETA)
        np.testing.assert_allclose(told(tree, who, "cwres", places), exact, atol=1e-7)


def test_individual_residuals_are_those_at_the_posterior_mean_of_the_effects(linear):
    people, _, tree = linear
    for i, who in enumerate(people.ids):
        y, x, places = rows(people, i)
        if who == "limited":
            continue
        v = x @ OMEGA @ x.T + SD**2 * np.eye(len(y))
        eta = OMEGA @ x.T @ np.linalg.solve(v, y - x @ BETA)
        np.testing.assert_allclose(tree["effects"]["eta"].sel(patient=who), eta, atol=1e-5)
        np.testing.assert_allclose(told(tree, who, "iwres", places), (y - x @ (BETA + eta)) / SD, atol=1e-4)


def test_prediction_errors_of_a_linear_model_are_normal_quantiles(linear):
    """Within five standard errors of 4000 simulated data sets."""
    people, _, tree = linear
    for i, who in enumerate(people.ids):
        y, x, places = rows(people, i)
        v = x @ OMEGA @ x.T + SD**2 * np.eye(len(y))
        # The order of rows is that of the data set: all of `y`, then all of `z`; on the scale of `z` itself
        # the vector is not normal, so only patients without it have this closed form of NPDE.
        npd = (y - x @ BETA) / np.sqrt(np.diag(v))
        within = 5.0 * np.sqrt(stats.norm.cdf(npd) * stats.norm.sf(npd) / 4000) / stats.norm.pdf(npd)
        found = told(tree, who, "npd", places)
        assert np.all(np.abs(found - npd) < within + 1e-3)
        if all(name == "y" for name, _ in places):
            npde = np.linalg.solve(np.linalg.cholesky(v), y - x @ BETA)
            error = np.sqrt(stats.norm.cdf(npde) * stats.norm.sf(npde)) / stats.norm.pdf(npde) + np.abs(npde)
            found = told(tree, who, "npde", places)
            assert np.all(np.abs(found - npde) < 5.0 * error / np.sqrt(4000))


def test_what_was_not_seen_has_no_residual(linear):
    people, _, tree = linear
    for name in ("y", "z"):
        series = people.record.observations[name]
        seen = series.mask & (series.censor == 0)
        for kind in ("iwres", "cwres", "npde", "npd"):
            np.testing.assert_array_equal(np.isfinite(tree["residuals"][f"{name}_{kind}"]), seen)
        np.testing.assert_array_equal(np.isfinite(tree["residuals"][f"{name}_individual"]), series.mask)


def test_predictions_are_the_models_own(linear):
    people, found, tree = linear
    time, eta = people.record.observations["y"].time, found.eta
    own = BETA[0] + eta[:, :1] + (BETA[1] + eta[:, 1:]) * time
    seen = people.record.observations["y"].mask
    data = tree["residuals"]
    np.testing.assert_allclose(data["y_individual"].values[seen], own[seen], rtol=1e-12)
    np.testing.assert_allclose(data["y_population"].values[seen], (BETA[0] + BETA[1] * time)[seen])
    course = tree["courses"]
    level, slope = BETA + eta[0]
    np.testing.assert_allclose(course["z_individual"][0], np.exp(level - slope * course["z_time"][0]))
    assert float(course["y_time"][0, -1]) == 4.0


def test_simulated_values_are_those_of_new_patients_whoever_else_is_there(linear):
    people, found, tree = linear
    few = people.take([2, 0])
    part = replace(found, ids=few.ids, eta=found.eta[[2, 0]])
    again = diagnose(population(Lines()), few, part, key=jax.random.key(1), samples=4000)["predictions"]
    np.testing.assert_allclose(again["y"], tree["predictions"]["y"][:, [2, 0]], rtol=1e-12)
    drawn = again["y"].values[:, 0, 2]
    mean, variance = BETA[0] + 3.0 * BETA[1], OMEGA[0, 0] + 9.0 * OMEGA[1, 1] + SD**2
    assert np.mean(drawn) == pytest.approx(mean, abs=5.0 * np.sqrt(variance / 4000))
    assert np.var(drawn) == pytest.approx(variance, rel=5.0 * np.sqrt(2.0 / 4000))


def test_residuals_under_proportional_errors(linear):
    """CWRES at the effects found, in closed form; NPDE of single measurements by quadrature."""
    f = Lines(proportional=True)
    design = {f"p{i}": ([t],) for i, t in enumerate((0.0, 1.0, 2.0, 3.0, 4.0))} | {"two": ([1.0, 3.0],)}
    people = stack(drawn_cohort(design, seed=3, proportional=True, channels=("y",)))
    found = elsewhere(linear[1], people)
    data = diagnose(population(f), people, found, key=jax.random.key(2), samples=4000)["residuals"]
    at, weight = np.polynomial.hermite_e.hermegauss(120)
    for i, who in enumerate(people.ids):
        series = people.at(i).observations["y"]
        x = np.stack([np.ones(series.mask.sum()), series.time[series.mask]], axis=1)
        y, mean = series.value[series.mask], x @ (BETA + found.eta[i])
        v = x @ OMEGA @ x.T + np.diag((SD * mean) ** 2)
        exact = symmetric_root(v) @ (y - mean + x @ found.eta[i])
        np.testing.assert_allclose(data["y_cwres"].values[i][series.mask], exact, atol=1e-8)
        np.testing.assert_allclose(data["y_iwres"].values[i][series.mask], (y - mean) / (SD * mean))
        if who == "two":
            continue
        line = x[0] @ BETA + np.sqrt(x[0] @ OMEGA @ x[0]) * at
        place = np.sum(weight * stats.norm.cdf((y - line) / (SD * np.abs(line)))) / np.sum(weight)
        z = special.ndtri(place)
        within = 5.0 * np.sqrt(place * (1 - place) / 4000) / stats.norm.pdf(z) + 1e-3
        assert float(data["y_npd"][i, 0]) == pytest.approx(z, abs=within)
        assert float(data["y_npde"][i, 0]) == float(data["y_npd"][i, 0])


def test_effects_of_occasions_are_part_of_the_residuals():
    """Measurements of one occasion share an effect besides that of the patient."""
    occasions = Occasions(2, {"level": halfnormal(0.5)})
    people = Population(Steps(), ("level",), occasions=occasions)
    time, rng = [0.0, 1.0, 2.0, 3.0], np.random.default_rng(5)
    rows = {
        who: with_occasions(Record(Nothing(), {"y": Series(time, 1.0 + rng.normal(size=4))}), [1.5], 2)
        for who in ("a", "b")
    }
    start = {"level_pop": 1.0, "sd": 0.4, "omega_level": 0.9, "gamma_level": 0.5}
    found = estimate(people, stack(rows), start=start, search=False)
    tree = diagnose(people, stack(rows), found, key=jax.random.key(0), samples=2000)
    same = np.kron(np.eye(2), np.ones((2, 2)))
    v = 0.81 + 0.25 * same + 0.16 * np.eye(4)
    for i, who in enumerate(rows):
        exact = symmetric_root(v) @ (rows[who].observations["y"].value - 1.0)
        np.testing.assert_allclose(tree["residuals"]["y_cwres"][i], exact, atol=1e-7)
    drawn = tree["predictions"]["y"].values[:, 0]
    np.testing.assert_allclose(np.cov(drawn.T), v, atol=5.0 * 1.3 * np.sqrt(2.0 / 2000))
    assert tree["effects"]["effect"].values.tolist() == list(found.effects) and len(found.effects) == 3


@pytest.fixture(scope="module")
def partly(linear):
    """One patient is beyond the model, another was not fitted; counts beside lines."""
    broken = {who: float(who == "b") for who in DESIGN}
    people = stack(drawn_cohort(DESIGN, channels=("y", "n"), broken=broken))
    found = elsewhere(linear[1], people, failed=("c",))
    return diagnose(population(Lines()), people, found, key=jax.random.key(1), samples=200)


def test_a_patient_beyond_the_model_is_named_and_has_no_number(partly):
    assert json.loads(partly.attrs["failed"]) == ["b", "c"]
    assert json.loads(partly.attrs["unsimulated"]) == ["b"]
    assert np.isnan(partly["effects"]["eta"].sel(patient="b")).all()
    for name, value in partly["residuals"].data_vars.items():
        assert np.isnan(value.sel(patient="b")).all(), name
    assert np.isfinite(partly["residuals"]["y_cwres"].sel(patient="a")).all()
    assert np.isnan(partly["courses"]["y_individual"].sel(patient="b")).all()


def test_a_patient_not_fitted_has_only_what_needs_no_effects(partly):
    data = partly["residuals"].sel(patient="c")
    for kind, known in {"cwres": 0, "iwres": 0, "individual": 0, "population": 3, "npde": 3}.items():
        assert np.isfinite(data[f"y_{kind}"]).sum() == known, kind


def test_counts_have_predictions_and_no_residuals(partly):
    assert "n_individual" in partly["residuals"]
    assert not {"n_iwres", "n_cwres", "n_npde"} & set(partly["residuals"].data_vars)


def test_what_does_not_belong_together_is_refused(linear):
    people, found, _ = linear
    how = {"key": jax.random.key(0)}
    with pytest.raises(ValueError, match=r"the estimate has level_pop.*give the population and the priors"):
        diagnose(population(Lines()), people, found, priors={"sd": 0.25}, **how)
    with pytest.raises(ValueError, match="of other patients"):
        diagnose(population(Lines()), people.take([0]), found, **how)
    with pytest.raises(ValueError, match="3 simulated data sets are too few for patients with 6"):
        diagnose(population(Lines()), people, found, samples=3, **how)
