"""Effects that change between occasions of a patient, against normal distributions written out.

Source of truth: where measurements move linearly with normal effects they are jointly normal, with a
covariance of three parts: omega^2 of all of a patient's, gamma^2 of those of one occasion, the errors' own.
"""

import functools
import json
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from lines import Inputs
from scipy import stats

from dtwin_jax.core.occasions import NEVER, with_occasions
from dtwin_jax.core.prior import halfnormal, lognormal, normal
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.core.types import Scalar
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.occasions import Occasions
from dtwin_jax.inference.population import Population, density_of
from dtwin_jax.inference.result import _population_as_dict, _population_from_dict
from dtwin_jax.inference.start import potential_energy
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs as Given
from dtwin_jax.twin.forecast import forecast, forecast_new

MEAN, SD, OMEGA, GAMMA = 1.2, 0.4, 0.9, 0.5
TIME, START = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), 2.0


class Level(eqx.Module):
    level: Scalar = param(1.0, "1", normal(1.0, 2.0))
    sd: Scalar = param(0.3, "1", lognormal(0.3, log_sd=0.5))


class TwoLevels(Level):
    level_1: Scalar = param(1.0, "1")
    level_2: Scalar = param(1.0, "1")
    occasion_2: Scalar = param(NEVER, "h")


@dataclass(frozen=True)
class Plain:
    """A level that is measured."""

    occasions: int = 1
    name: str = "level"

    def params(self) -> Any:
        return Level() if self.occasions == 1 else TwoLevels()

    def inputs(self) -> Any:
        return Inputs()

    def by_occasion(self, names: tuple[str, ...], count: int) -> Any:
        assert (names, count) == (("level",), 2)
        return Plain(2)

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        time = record.observations["y"].time
        mean = p.level if self.occasions == 1 else jnp.where(time < p.occasion_2, p.level_1, p.level_2)
        return {"y": dist.Normal(mean * jnp.ones_like(time), p.sd)}


RNG = np.random.default_rng(3)
MOVES = OMEGA * RNG.normal(size=(6, 1)) + np.repeat(GAMMA * RNG.normal(size=(6, 2)), (2, 3), axis=1)
VALUES = MEAN + MOVES + SD * RNG.normal(size=MOVES.shape)
OCCASIONS = Occasions(2, {"level": halfnormal(0.6)})
POPULATION = Population(Plain(), {"level": halfnormal(0.7)}, occasions=OCCASIONS)


@pytest.fixture(scope="module")
def patients():
    """The last of them has one occasion only."""
    starts = [[START]] * (len(VALUES) - 1) + [[]]
    return stack(
        {
            str(i): with_occasions(Record(Inputs(), {"y": Series(TIME, row)}), start, 2)
            for i, (row, start) in enumerate(zip(VALUES, starts, strict=True))
        }
    )


def minus_two_log_likelihood(mean, sd, omega, gamma):
    total = 0.0
    for i, row in enumerate(VALUES):
        late = TIME >= START if i < len(VALUES) - 1 else np.zeros(len(TIME), bool)
        same = late[:, None] == late[None, :]
        covariance = omega**2 + gamma**2 * same + sd**2 * np.eye(len(TIME))
        total -= 2.0 * stats.multivariate_normal.logpdf(row, np.full(len(TIME), mean), covariance)
    return total


@pytest.mark.parametrize("by", ["fo", "foce", "focei", "laplace", "quadrature"])
def test_likelihood_is_that_of_the_joint_normal(patients, by):
    start = {"level_pop": MEAN, "sd": SD, "omega_level": OMEGA, "gamma_level": GAMMA}
    found = estimate(POPULATION, patients, by=by, nodes=3, start=start, search=False)
    truth = minus_two_log_likelihood(MEAN, SD, OMEGA, GAMMA)
    assert found.minus_two_log_likelihood == pytest.approx(truth, abs=1e-8)
    assert found.effects == ("level", "level_1", "level_2")
    # Nothing is known of an occasion that a patient does not have.
    assert found.eta[-1, 2] == pytest.approx(0.0, abs=1e-10)


def test_the_most_likely_numbers_are_found(patients):
    from scipy.optimize import minimize

    found = estimate(POPULATION, patients)
    exact = minimize(
        lambda v: minus_two_log_likelihood(v[0], *np.exp(v[1:])),
        [1.0, -1.0, -1.0, -1.0],
        method="Nelder-Mead",
        options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 4000, "maxfev": 4000},
    )
    assert found.converged and found.minus_two_log_likelihood == pytest.approx(exact.fun, abs=1e-6)
    assert found.estimate["gamma_level"] == pytest.approx(np.exp(exact.x[3]), rel=1e-3)


@pytest.mark.parametrize(
    ("by", "correlation", "within"), [("importance", None, 0.02), ("saem", None, 0.05), ("saem", 1.0, 0.05)]
)
def test_random_methods_find_them_too(patients, by, correlation, within):
    exact = estimate(POPULATION, patients)
    population = replace(POPULATION, correlation=correlation)
    found = estimate(population, patients, by=by, key=jax.random.key(1))
    assert found.converged
    away = found.objective - exact.objective
    assert abs(away) < 4 * found.monte_carlo_error + (0.1 if by == "saem" else 0.0)
    for name, value in exact.estimate.items():
        assert found.estimate[name] == pytest.approx(value, rel=within, abs=0.02), name


def test_joint_density_for_the_sampler_is_the_product_of_its_parts(patients):
    density, base = density_of(POPULATION, {}, ())
    record = jax.tree.map(jnp.asarray, patients.record)
    rng = np.random.default_rng(5)
    own, moves = rng.normal(1.0, 1.0, len(VALUES)), rng.normal(0.0, 1.0, (len(VALUES), 2))
    z = {"level_pop": MEAN, "sd": np.log(SD), "omega_level": np.log(OMEGA), "gamma_level": np.log(GAMMA)}
    z |= {"random effects": own[:, None], "occasion effects": moves}
    z = {name: jnp.asarray(value) for name, value in z.items()}
    found = -float(standard_promotion(potential_energy)(density, (base, record, None), z))
    late = np.array([TIME >= START] * 5 + [np.zeros(len(TIME), bool)])
    level = own[:, None] + GAMMA * np.where(late, moves[:, 1:], moves[:, :1])
    truth = (
        stats.norm.logpdf(MEAN, 1.0, 2.0)
        + stats.norm.logpdf(np.log(SD), np.log(0.3), 0.5)
        + stats.halfnorm.logpdf(OMEGA, scale=0.7)
        + np.log(OMEGA)
        + stats.halfnorm.logpdf(GAMMA, scale=0.6)
        + np.log(GAMMA)
        + np.sum(stats.norm.logpdf(own, MEAN, OMEGA))
        + np.sum(stats.norm.logpdf(moves))
        + np.sum(stats.norm.logpdf(VALUES, level, SD))
    )
    assert found == pytest.approx(truth, abs=1e-10)
    assert density.individual == ("level", "level_1", "level_2")


def test_population_is_told_as_plain_data_and_back():
    for population in (POPULATION, replace(POPULATION, correlation=1.0, blocks=(("level",),))):
        told = json.loads(json.dumps(_population_as_dict(population)))
        assert _population_from_dict(Plain(), told) == population


@pytest.mark.filterwarnings("ignore::dtwin_jax.inference.diagnostics.CalibrationWarning")
def test_posterior_and_forecast_have_a_value_for_each_occasion(patients):
    few = Nuts(chains=1, warmup=20, draws=20, block=20, candidates=8, max_depth=4)
    tree = calibrate(POPULATION, patients, key=jax.random.key(0), method=few, progress=False)
    drawn = tree["posterior"]
    level = {name: drawn[name].values for name in ("level", "level_1", "level_2")}
    assert all(value.shape == (1, 20, len(VALUES)) for value in level.values())
    assert drawn["gamma_level"].dims == ("chain", "draw") and "occasion effects" not in drawn
    expected = np.where(TIME[:, None] < START, level["level_1"][..., None, :], level["level_2"][..., None, :])
    expected[..., -1] = level["level_1"][..., None, -1]
    told = forecast(POPULATION, tree, patients.record, key=jax.random.key(1))
    found = told["predictions"]["y_expected"].values
    np.testing.assert_allclose(found, np.moveaxis(expected[0], -1, -2), rtol=1e-12)
    new = forecast_new(POPULATION, tree, patients.record, key=jax.random.key(1))["predictions"]["y_expected"]
    assert np.all(np.abs(np.diff(new.values[:, :-1], axis=2)[..., 1]) > 0.0)


def test_what_occasions_need_is_named(patients):
    record = Record(Inputs(), {"y": Series(TIME, VALUES[0])})
    with pytest.raises(ValueError, match="'occasion_2' is not known of the patients"):
        estimate(POPULATION, stack({"1": record}))
    with pytest.raises(ValueError, match="3 occasions begin, expected 2 at most"):
        with_occasions(record, [1.0, 2.0], 2)
    with pytest.raises(ValueError, match=r"expected times after 0\.0 that increase"):
        with_occasions(record, [2.0, 1.0], 3)
    with pytest.raises(ValueError, match="no parameter 'sd'"):
        Population(Plain(), ["level"], occasions=Occasions(2, ["sd"]))
    with pytest.raises(ValueError, match="line: its parameters cannot change by occasion"):
        from lines import line

        _ = Population(line, ["level"], occasions=Occasions(2, ["level"])).solved


# Two doses a day apart, the second while a tenth of the first is left.
TYPICAL = {"CL_pop": 2.0, "V_pop": 20.0, "cv": 0.1, "omega_CL": 0.3, "omega_V": 0.2, "gamma_CL": 0.25}
SAMPLES = np.array([1.0, 6.0, 16.0, 25.0, 30.0, 40.0])


def study(seed, count=24):
    """Patients simulated by the closed form of a bolus, clearance changing with the occasion."""
    rng = np.random.default_rng(seed)
    records = {}
    for i in range(count):
        log_cl = np.log(TYPICAL["CL_pop"]) + TYPICAL["omega_CL"] * rng.normal()
        first, second = np.exp(log_cl + TYPICAL["gamma_CL"] * rng.normal(size=2))
        volume = TYPICAL["V_pop"] * np.exp(TYPICAL["omega_V"] * rng.normal())
        early, late = SAMPLES[SAMPLES < 24.0], SAMPLES[SAMPLES >= 24.0] - 24.0
        left = 100.0 * np.exp(-first / volume * 24.0)
        amount = np.concatenate(
            [100.0 * np.exp(-first / volume * early), (left + 100.0) * np.exp(-second / volume * late)]
        )
        seen = amount / volume * (1.0 + TYPICAL["cv"] * rng.normal(size=len(SAMPLES)))
        record = Record(
            Given(iv=Doses([0.0, 24.0], [100.0, 100.0])), {"concentration": Series(SAMPLES, seen)}
        )
        records[str(i)] = with_occasions(record, [24.0], 2)
    return stack(records)


def test_a_simulated_study_is_recovered():
    """The mean of the replicates' estimates is within three of its standard errors of the truth."""
    population = Population(one_compartment, ("CL", "V"), occasions=Occasions(2, ("CL",)))
    find = functools.partial(estimate, population, priors={"ka": None, "sd": 0.0}, start=TYPICAL)
    found = [find(study(seed)) for seed in range(6)]
    assert all(each.converged and each.failed == () for each in found)
    for name, truth in TYPICAL.items():
        logs = np.log([each.estimate[name] for each in found])
        error = logs.std(ddof=1) / np.sqrt(len(logs))
        assert abs(logs.mean() - np.log(truth)) < 3.0 * error + 0.02, name
