"""Expected information against closed forms, central differences, and the scatter of estimates."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dtwin_jax.core.prior import lognormal, normal, uniform
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.core.types import Scalar
from dtwin_jax.inference.fit import fit
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs, Params
from dtwin_jax.twin.directions import Direction, sparse_basis
from dtwin_jax.twin.identify import fisher_information

TIME = np.array([0.0, 1.0, 2.5, 4.0])


class Coefficients(eqx.Module):
    level: Scalar = param(1.0, "1", normal(1.0, 2.0))
    slope: Scalar = param(0.5, "/h", normal(0.5, 3.0))
    sd: Scalar = param(0.3, "1", lognormal(0.3, log_sd=0.5))


class Nothing(eqx.Module):
    pass


def normal_line(mean, p):
    return dist.Normal(mean, p.sd)


def log_normal_line(mean, p):
    return dist.LogNormal(mean, p.sd)


def bernoulli_line(mean, p):
    return dist.Bernoulli(logits=mean)


def poisson_line(mean, p):
    return dist.Poisson(jnp.exp(mean))


def gamma_line(mean, p):
    return dist.Gamma(jnp.exp(mean), 2.0)


def student_line(mean, p):
    return dist.StudentT(4.0, mean, p.sd)


@dataclass(frozen=True)
class Line:
    """y(t) scatters about level + slope t."""

    noise: Any = normal_line
    name: str = "line"

    def params(self) -> Any:
        return Coefficients()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        return {"y": self.noise(p.level + p.slope * record.observations["y"].time, p)}


def design(times=TIME, **options):
    return Record(Nothing(), {"y": Series(times, np.zeros(len(times)), **options)})


X = np.stack([np.ones_like(TIME), TIME], axis=1)


def test_information_of_a_regression_is_its_design_matrix_squared():
    found = fisher_information(Line(), Coefficients(), design())
    expected = np.zeros((3, 3))
    expected[:2, :2] = X.T @ X / 0.3**2
    # Of the log of a normal's sd, n samples tell 2 n.
    expected[2, 2] = 2 * len(TIME)
    assert found.names == ("level", "slope", "sd")
    np.testing.assert_allclose(found.matrix, expected, rtol=1e-12, atol=1e-12)
    covariance = np.linalg.inv(expected)
    error = found.standard_error()
    np.testing.assert_allclose(list(error.values()), np.sqrt(np.diag(covariance)) * [1, 1, 0.3], rtol=1e-10)
    relative = found.standard_error(relative=True)
    assert relative["slope"] == pytest.approx(error["slope"] / 0.5)
    assert found.correlation()[0, 1] == pytest.approx(
        covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    )
    with_prior = np.linalg.inv(expected + np.diag([2.0**-2, 3.0**-2, 0.5**-2]))
    np.testing.assert_allclose(found.covariance(prior=True), with_prior, rtol=1e-10, atol=1e-14)
    assert found.shrinkage()["slope"] == pytest.approx(with_prior[1, 1] / 3.0**2)


def test_masked_samples_and_values_do_not_count_and_patients_add_up():
    mask = np.array([True, False, True, True])
    masked = design(mask=mask)
    other = design([3.0, 7.0])
    f, p, names = Line(), Coefficients(), ["level", "slope"]
    one = fisher_information(f, p, masked, names)
    np.testing.assert_allclose(one.matrix, X[mask].T @ X[mask] / 0.09, rtol=1e-12)
    two = fisher_information(f, p, other, names)
    both = fisher_information(f, p, stack({"a": masked, "b": other}), names)
    np.testing.assert_allclose(both.matrix, one.matrix + two.matrix, rtol=1e-12)


@pytest.mark.parametrize(
    ("noise", "weight"),
    [
        (log_normal_line, lambda m: np.full_like(m, 0.3**-2)),
        (bernoulli_line, lambda m: np.exp(m) / (1 + np.exp(m)) ** 2),
        (poisson_line, np.exp),
        # Of a Gamma's shape k the information is trigamma(k), by its series here.
        (gamma_line, lambda m: np.exp(2 * m) * sum((np.exp(m) + k) ** -2.0 for k in range(200_000))),
    ],
)
def test_information_of_other_distributions_equals_the_textbook(noise, weight):
    found = fisher_information(Line(noise), Coefficients(), design(), ["level", "slope"])
    expected = X.T @ (weight(1.0 + 0.5 * TIME)[:, None] * X)
    np.testing.assert_allclose(found.matrix, expected, rtol=1e-4)


def test_a_distribution_without_known_information_is_named_with_its_channel():
    with pytest.raises(ValueError, match="channel 'y': the information of StudentT is not known"):
        fisher_information(Line(student_line), Coefficients(), design())


def test_a_design_without_samples_and_a_name_without_a_prior_are_refused():
    with pytest.raises(ValueError, match="no sample that counts"):
        fisher_information(Line(), Coefficients(), Record(Nothing(), {"y": Series(TIME)}))
    with pytest.raises(ValueError, match=r"'slope' is not estimated.*\['level', 'sd'\]"):
        fisher_information(Line(), Coefficients(), design(), ["slope"], priors={"slope": None})


def test_parameters_between_limits_are_on_the_logit():
    priors = {"slope": uniform(0.0, 2.0), "level": 1.0, "sd": 0.3}
    found = fisher_information(Line(), Coefficients(), design(), priors=priors)
    # d slope / d logit at a share of 0.25 is 2 * 0.25 * 0.75.
    np.testing.assert_allclose(found.matrix, [[TIME @ TIME / 0.09 * 0.375**2]], rtol=1e-10)
    assert found.standard_error()["slope"] == pytest.approx(0.3 / np.sqrt(TIME @ TIME))


DOSE, TIMES = 100.0, np.array([0.5, 2.0, 6.0, 12.0, 24.0])
P = Params(CL=2.0, V=25.0, ka=0.8, sd=0.05, cv=0.1)


def bolus(names, u):
    """Mean and sd of concentrations after an intravenous bolus, from the logs of the parameters."""
    p = {"CL": 2.0, "V": 25.0, "sd": 0.05, "cv": 0.1} | dict(zip(names, np.exp(u), strict=True))
    mean = DOSE / p["V"] * np.exp(-p["CL"] / p["V"] * TIMES)
    return mean, np.sqrt(p["sd"] ** 2 + (p["cv"] * mean) ** 2)


def planned(**inputs):
    return Record(Inputs(**inputs), {"concentration": Series(TIMES, np.zeros(len(TIMES)))})


IV = planned(iv=Doses([0.0], [DOSE]))
ORAL = planned(oral=Doses([0.0], [DOSE]))


def test_information_of_a_bolus_equals_central_differences_of_the_closed_form():
    names = ("CL", "V", "sd", "cv")
    found = fisher_information(one_compartment, P, IV, names)
    u, step = np.log([2.0, 25.0, 0.05, 0.1]), 1e-5
    moves = step * np.eye(4)
    ups, downs = ([bolus(names, u + sign * move) for move in moves] for sign in (1, -1))
    slopes = [
        np.stack([(a[k] - b[k]) / (2 * step) for a, b in zip(ups, downs, strict=True)], axis=1)
        for k in (0, 1)
    ]
    variance = bolus(names, u)[1][:, None] ** 2
    expected = slopes[0].T @ (slopes[0] / variance) + 2 * slopes[1].T @ (slopes[1] / variance)
    np.testing.assert_allclose(found.matrix, expected, rtol=1e-7)


def test_absorption_is_not_seen_after_an_intravenous_dose():
    found = fisher_information(one_compartment, P, IV)
    assert found.standard_error()["ka"] == np.inf
    assert found.shrinkage()["ka"] == pytest.approx(1.0)
    assert found.standard_error()["CL"] < 0.5
    flattest = found.flat()[0]
    assert flattest.names == ("ka",)
    assert flattest.words == "nothing is seen of ka"


def test_volume_clearance_and_bioavailability_move_together_unseen_after_an_oral_dose():
    priors = {"F": lognormal(0.7, 0.5), "cv": 0.1, "sd": 0.05}
    found = fisher_information(one_compartment, Params(CL=2.0, V=25.0, ka=0.8, F=0.7), ORAL, priors=priors)
    assert np.linalg.matrix_rank(found.matrix, tol=1e-9 * np.abs(found.matrix).max()) == 3
    direction = found.flat()[0]
    assert set(direction.names) == {"CL", "V", "F"}
    np.testing.assert_allclose([direction.weights[n] for n in ("CL", "V", "F")], 1.0, rtol=1e-6)
    error = found.standard_error()
    assert all(error[name] == np.inf for name in ("CL", "V", "F"))
    assert 0 < error["ka"] < 1
    known = fisher_information(one_compartment, P, ORAL, ["CL", "V", "ka"])
    assert all(np.isfinite(list(known.standard_error().values())))


def test_errors_expected_are_those_that_fits_of_simulated_patients_scatter_by():
    rng = np.random.default_rng(1)
    mean, sd = bolus((), ())
    records = {
        str(i): Record(
            Inputs(iv=Doses([0.0], [DOSE])),
            {"concentration": Series(TIMES, mean + sd * rng.normal(size=len(TIMES)))},
        )
        for i in range(200)
    }
    flat = {"CL": lognormal(2.0, log_sd=20.0), "V": lognormal(25.0, log_sd=20.0)}
    priors = flat | {"ka": None, "sd": 0.05, "cv": 0.1}
    fits = fit(one_compartment, stack(records), key=jax.random.key(0), priors=priors, starts=1)
    found = fisher_information(one_compartment, P, IV, priors=priors)
    assert fits.failed == ()
    scatter = np.cov(np.log([fits.estimate[name] for name in found.names]))
    # The relative error of a variance from 200 draws is 0.1.
    np.testing.assert_allclose(scatter, found.covariance(), rtol=0.35)
    np.testing.assert_allclose(np.median(fits.covariance, axis=0), found.covariance(), rtol=0.1)


def test_a_design_that_cannot_be_predicted_is_told_by_patient():
    early = Record(Inputs(), {"concentration": Series([0.0], [0.0])})
    cohort = stack({"well": IV, "undosed": early})
    found = fisher_information(
        one_compartment, P, cohort, ["CL", "V"], priors={"sd": 0.0, "cv": 0.1, "ka": None}
    )
    assert found.failed == ("undosed",)
    assert np.isnan(found.standard_error()["CL"])
    with pytest.raises(ValueError, match="undosed cannot be predicted"):
        found.flat()


def lost_line(mean, p):
    return dist.Normal(jnp.where(mean < 2.0, mean, jnp.nan), p.sd)


def test_a_sample_whose_prediction_failed_is_not_taken_for_one_without_information():
    found = fisher_information(Line(lost_line), Coefficients(), design())
    assert found.failed == ("1",) and np.all(np.isnan(found.matrix))
    early = fisher_information(Line(lost_line), Coefficients(), design(mask=TIME < 2.0))
    assert early.failed == () and early.matrix[0, 0] == pytest.approx(2 / 0.09)


def test_directions_are_said_in_words():
    logs = {"b": "log", "p": "log"}
    assert Direction({"b": 1.0, "p": -1.0}, logs).words == "only the product of b and p is seen"
    assert Direction({"b": 1.0, "p": 1.0}, logs).words == "only the ratio of b and p is seen"
    assert Direction({"b": 1.0, "p": -0.5}, logs).words == "only b^0.5 p is seen"
    assert Direction({"b": 1.0, "p": -1.0}, logs, local=True).words == (
        "only the product of b and p is seen near these values"
    )
    three = Direction({"a": 1.0, "b": 0.5, "c": -1.0, "d": 0.0}, dict.fromkeys("acd", "log") | {"b": "own"})
    assert three.words == "a, c, b can move together unseen: log a by +1, log c by -1, b by +0.5"


def test_a_plane_is_described_by_its_simplest_directions():
    simple = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]).T
    mixed = simple @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    found = sparse_basis(mixed)
    assert sorted((np.abs(found) > 1e-9).sum(axis=0)) == [2, 2]
    assert np.linalg.matrix_rank(np.hstack([found, simple])) == 2
