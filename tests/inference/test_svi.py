"""Guides of a population against exact posteriors on a grid, Bayes' rule, and the sampler's own density."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lines import TIME, cohort, line
from scipy import stats

from dtwin_jax.core.prior import halfnormal, normal
from dtwin_jax.inference import evidence, svi
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.diagnostics import CalibrationWarning, faults, summary
from dtwin_jax.inference.guide import effects_given, laid, linear_at, nothing_moved
from dtwin_jax.inference.joint import joint_of
from dtwin_jax.inference.population import Covariate, Population, density_of
from dtwin_jax.inference.start import potential_energy
from dtwin_jax.inference.svi import Svi

PATIENTS, LEVEL, OMEGA, SD, SLOPE = 60, 1.3, 0.5, 0.4, 0.5
POPULATION = Population(line, {"level": halfnormal(0.7)})
PRIORS = {"slope": SLOPE}
METHOD = Svi(draws=2000, proposals=3000, batch=20)


def measured(seed):
    rng = np.random.default_rng(seed)
    levels = rng.normal(LEVEL, OMEGA, PATIENTS)
    return levels[:, None] + SLOPE * TIME + rng.normal(0.0, SD, (PATIENTS, len(TIME)))


VALUES = measured(0)


def calibrated(values, **options):
    given = {"priors": PRIORS, "method": METHOD} | options
    return calibrate(POPULATION, cohort(values), key=jax.random.key(0), progress=False, **given)


@pytest.fixture(scope="module")
def tree():
    return calibrated(VALUES)


@pytest.fixture(scope="module")
def exact():
    """Means and sds of the numbers, and of the patients' levels, from a grid that holds all the mass."""
    residual = VALUES - SLOPE * TIME
    n, total, square = len(TIME), residual.sum(axis=1), np.sum(residual**2)
    axes = np.linspace(0.8, 1.8, 91), np.linspace(0.2, 0.9, 91), np.linspace(0.3, 0.6, 91)
    level, omega, sd = np.meshgrid(*axes, indexing="ij")
    # Of a patient the measurements are normal, with covariance sd^2 I + omega^2 11'.
    away = total[:, None, None, None] - n * level
    variance = sd**2 + n * omega**2
    squares = square - 2 * level * total.sum() + PATIENTS * n * level**2
    log = -0.5 * (squares - np.sum(away**2, axis=0) * omega**2 / variance) / sd**2
    log -= 0.5 * PATIENTS * ((n - 1) * np.log(sd**2) + np.log(variance))
    log += stats.norm.logpdf(level, 1.0, 2.0) + stats.halfnorm.logpdf(omega, scale=0.7)
    log += stats.lognorm.logpdf(sd, 0.5, scale=0.3)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    ends = [0, -1]
    edges = np.concatenate([side.ravel() for side in (weight[ends], weight[:, ends], weight[..., ends])])
    assert edges.max() < 1e-7

    def moments(mean, spread=0.0):
        middle = np.sum(weight * mean)
        return middle, np.sqrt(np.sum(weight * (spread + (mean - middle) ** 2)))

    own = [moments(level + omega**2 / variance * each, omega**2 * sd**2 / variance) for each in away]
    return {"level_pop": moments(level), "omega_level": moments(omega), "sd": moments(sd)}, np.array(own)


def test_numbers_of_a_population_are_those_of_the_grid(tree, exact):
    for name, (mean, sd) in exact[0].items():
        drawn = tree["posterior"][name].values
        assert drawn.shape == (1, 2000)
        assert abs(drawn.mean() - mean) < 0.1 * sd, name
        assert drawn.std() == pytest.approx(sd, rel=0.1), name


def test_patients_are_those_of_the_grid(tree, exact):
    drawn, (mean, sd) = tree["posterior"]["level"].values[0], exact[1].T
    # The Monte Carlo error of a mean is 0.03 sd, of which 60 are looked at.
    np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - mean) / sd, 0.13)
    np.testing.assert_allclose(drawn.std(axis=0), sd, rtol=0.1)


def test_guide_that_fits_is_believed_and_draws_of_it_have_no_r_hat(tree):
    assert tree.attrs["converged"] and tree.attrs["weighed"]
    assert tree.attrs["pareto_k"] < 0.5
    assert np.all(tree["sample_stats"]["pareto_k"].values < 0.5)
    assert json.loads(tree.attrs["warnings"]) == []
    table = summary(tree, individual=True)
    for column in ("r_hat", "ess_bulk", "ess_tail"):
        assert np.all(np.isnan(table[column].values))


def test_bound_rises_to_the_evidence(tree):
    bound = tree["bound"]
    assert len(bound["elbo"]) == tree.attrs["steps"] / METHOD.block == len(bound["step"])
    assert float(bound["elbo"][-1]) > float(bound["elbo"][0])
    # What is given to numbers and effects cannot exceed the likelihood of the measurements at its peak.
    likeliest = float(tree["log_likelihood"]["y"].sum(("patient", "y_point")).max())
    assert float(bound["elbo"][-1]) < likeliest


def test_result_has_the_groups_of_any_other(tree):
    groups = {"posterior", "sample_stats", "prior", "log_likelihood", "posterior_predictive"}
    assert groups | {"observed_data", "constant_data", "bound"} == set(tree.children)
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "patient", "y_point")


def test_second_fit_compiles_nothing():
    programs = (evidence.start, evidence.lay, evidence.run_block, evidence.integrals, evidence.proposed)
    before = [each._cache_size() for each in programs]
    # Another key, other limits and other data; not one program.
    again = calibrated(measured(1), method=replace(METHOD, max_steps=9000, rate=0.08))
    assert [each._cache_size() for each in programs] == before
    assert again.attrs["converged"]


def narrow(settled):
    def narrowed(self, psi):
        place, state = settled(self, psi)
        mean, count = state.mean
        scale = mean.scale - 2.0 * jnp.eye(len(mean.centre))
        return place, replace(state, mean=(replace(mean, scale=scale), count))

    return narrowed


def test_guide_that_is_too_narrow_is_told(monkeypatch):
    monkeypatch.setattr(svi._Fit, "settled", narrow(svi._Fit.settled))
    with pytest.warns(
        CalibrationWarning, match="Pareto k of the population's numbers is .* the guide's, not"
    ):
        found = calibrated(VALUES)
    assert found.attrs["pareto_k"] > METHOD.k_limit and not found.attrs["weighed"]
    found.attrs["pareto_k"], found.attrs["weighed"] = 0.1, 1
    found["sample_stats"]["pareto_k"].values[[3, 5]] = 0.8, np.inf
    assert any("for the effects of 2 of 60 patients (p3, p5)" in sentence for sentence in faults(found))


def test_guide_that_has_not_settled_is_told():
    with pytest.warns(CalibrationWarning, match="not settled after 500 steps: raise max_steps"):
        calibrated(VALUES, method=replace(METHOD, max_steps=500))


def test_bound_that_is_no_number_is_tried_in_smaller_steps_and_then_given_up(monkeypatch):
    rates = []

    def failing(joint, pace, data, place, state, rate):
        rates.append(float(rate))
        return state, jnp.full(pace.block, jnp.nan)

    monkeypatch.setattr(svi, "run_block", failing)
    with pytest.raises(FloatingPointError, match="the bound is no number however small the steps"):
        calibrated(VALUES)
    assert len(rates) == 5 and np.allclose(np.diff(np.log(rates)), np.log(0.3))


def test_gradient_of_batches_is_that_of_all_patients():
    density, base = density_of(POPULATION, PRIORS, ())
    record = jax.tree.map(jnp.asarray, cohort(VALUES).record)
    joint, data = joint_of(density, base, record), (base, record)
    place = evidence.lay(joint, base, record, jnp.array([0.9, -0.5, -0.6]), jnp.zeros((PATIENTS, 1)))
    shared, own = nothing_moved(joint, PATIENTS)
    rng = np.random.default_rng(3)
    shared = replace(shared, centre=jnp.asarray(rng.normal(size=joint.numbers)), louder=jnp.array([-1.5]))
    own = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape)), own)
    noise = rng.normal(size=(2, joint.numbers)), rng.normal(size=(2, PATIENTS, 3, joint.effects))

    @jax.jit
    @standard_promotion
    def of(rows, nodes):
        ours = jax.tree.map(lambda leaf: leaf[rows], own)
        slope = jax.grad(lambda at: evidence.bound(joint, data, place, at, rows, (noise[0], nodes)))
        return slope((shared, ours))

    everyone, all_own = of(jnp.arange(PATIENTS), noise[1])
    batches = [np.arange(PATIENTS)[i::3] for i in range(3)]
    parts = [of(jnp.asarray(rows), noise[1][:, rows]) for rows in batches]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *[part[0] for part in parts])
    for found, wanted in zip(jax.tree.leaves(mean), jax.tree.leaves(everyone), strict=True):
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)
    for rows, (_, part) in zip(batches, parts, strict=True):
        # A patient of the batch stands for three.
        for found, wanted in zip(jax.tree.leaves(part), jax.tree.leaves(all_own), strict=True):
            np.testing.assert_allclose(found / 3, wanted[rows], rtol=1e-10, atol=1e-10)


def test_density_in_parts_is_that_of_the_sampler():
    weight = Covariate("slope", "weight", "kg", 70.0, normal(0.5, 0.3))
    population = Population(line, ["level", "slope"], (weight,), correlation=2.0, centred=False)
    people = cohort(VALUES[:3], weight=np.array([50.0, 70.0, 90.0]))
    density, base = density_of(population, {}, ())
    record = jax.tree.map(jnp.asarray, people.record)
    joint = joint_of(density, base, record)
    assert dict(joint.own) == {"standard effects": (2,)}
    rng = np.random.default_rng(2)
    psi, z = jnp.asarray(rng.normal(size=joint.numbers)), jnp.asarray(rng.normal(size=(3, 2)))

    @jax.jit
    @standard_promotion
    def both():
        own = jax.vmap(lambda row, z: joint.log_patient(base, row, psi, z))(record, z)
        one = jax.tree.map(lambda leaf: leaf[1], record)
        sampled = potential_energy(density, (base, record, None), joint.unpacked(psi, z))
        return joint.log_prior(base, one, psi) + jnp.sum(own), sampled

    in_parts, energy = both()
    assert float(in_parts) == pytest.approx(-float(energy), abs=1e-10)


@pytest.mark.parametrize("numbers", [(1.0, -0.9, -0.7), (1.9, -0.9, 0.4), (0.2, -0.9, -1.6)])
def test_guide_of_a_line_is_exact_at_numbers_where_it_was_not_laid(numbers):
    density, base = density_of(POPULATION, PRIORS, ())
    record = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), cohort(VALUES[:1]).record)
    joint = joint_of(density, base, jax.tree.map(lambda leaf: leaf[None], record))
    assert [name for name, _ in joint.shared] == ["level_pop", "sd", "omega_level"]

    @standard_promotion
    def guide():
        place = laid(joint, (base, record), jnp.array([1.0, -0.9, -0.7]), jnp.eye(3), jnp.zeros(1))
        shared, own = nothing_moved(joint, 1)
        own = jax.tree.map(lambda leaf: leaf[0], own)
        psi = jnp.asarray(numbers)
        return effects_given(joint, place, shared, own, linear_at(joint, (base, record), psi))

    found = jax.jit(guide)()
    level, sd, omega = numbers[0], np.exp(numbers[1]), np.exp(numbers[2])
    precision = 1.0 + len(TIME) * omega**2 / sd**2
    away = VALUES[0] - SLOPE * TIME - level
    assert float(found.root[0, 0] ** 2) == pytest.approx(precision, rel=1e-3)
    assert float(found.mean[0]) == pytest.approx(omega * away.sum() / sd**2 / precision, rel=1e-3)


def test_what_it_cannot_do_is_refused(tmp_path):
    people = cohort(VALUES[:3])
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"Svi is for a Population; .* Nuts\(\) or Laplace\(\)"):
        calibrate(line, people, key=key, method=Svi())
    with pytest.raises(ValueError, match="Svi keeps no blocks on disk: leave checkpoint out"):
        calibrate(POPULATION, people, key=key, method=Svi(), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="Svi looks at batches on one device: leave mesh out"):
        calibrate(POPULATION, people, key=key, method=Svi(), mesh=jax.make_mesh((1,), ("patient",)))
    with pytest.raises(ValueError, match="Svi: batch must be at least 1, found 0"):
        Svi(batch=0)
    with pytest.raises(ValueError, match="Svi: max_steps must be at least a block of 100, found 50"):
        Svi(max_steps=50)
    with pytest.raises(ValueError, match="Svi: rate must be positive, found nan"):
        Svi(rate=float("nan"))
