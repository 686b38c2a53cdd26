"""What a user is told of a calibration; source of truth: draws made to be good or bad."""

import json

import jax
import numpy as np
import pytest
import xarray as xr
from lines import Inputs, line
from scipy import integrate, special, stats

from dtwin_jax.core.prior import beta, gamma, halfnormal, normal, uniform
from dtwin_jax.core.record import Record, Series
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.covariate import Covariate
from dtwin_jax.inference.diagnostics import complaints, summary, unbounded_sd
from dtwin_jax.inference.mixture import Mixture
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.result import _population_as_dict


def tree(draws, diverging=None, failed=None):
    chains, count = next(iter(draws.values())).shape[:2]
    dims = {2: ("chain", "draw"), 3: ("chain", "draw", "patient")}
    posterior = {name: (dims[x.ndim], x) for name, x in draws.items()}
    stats = {
        "diverging": (("chain", "draw"), np.zeros((chains, count), bool) if diverging is None else diverging)
    }
    made = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(posterior, {"patient": ["a", "b"]}),
            "sample_stats": xr.Dataset(stats),
        }
    )
    made.attrs = {"failed": json.dumps(failed or {})}
    return made


@pytest.fixture
def good():
    return np.random.default_rng(0).normal(size=(4, 1000))


def test_nothing_is_said_of_independent_draws(good):
    assert complaints(tree({"CL_pop": good})) == []


def test_summary_has_the_moments_of_the_draws(good):
    row = summary(tree({"CL_pop": good})).sel(variable="CL_pop")
    assert float(row["mean"]) == pytest.approx(good.mean())
    assert float(row["sd"]) == pytest.approx(good.std(ddof=1))
    assert float(row["q95"]) == pytest.approx(np.quantile(good, 0.95))


def test_patients_calibrated_alone_share_nothing_to_summarise(good):
    alone = tree({"CL": np.stack([good, good], axis=2)})
    assert summary(alone).sizes["variable"] == 0
    assert list(summary(alone, individual=True)["variable"].values) == ["CL[a]", "CL[b]"]


def test_chains_apart_are_named(good):
    (said,) = complaints(tree({"CL_pop": good, "V_pop": good + np.arange(4)[:, None]}))
    assert said.startswith("V_pop: R-hat")


def test_few_draws_are_named(good):
    (said,) = complaints(tree({"CL_pop": good[:, :50]}))
    assert said.startswith("CL_pop: effective sample size")


@pytest.mark.parametrize("bad", [np.full((4, 1000), 2.0), np.full((4, 1000), np.nan)])
def test_draws_that_say_nothing_are_named(good, bad):
    (said,) = complaints(tree({"CL_pop": good, "V_pop": bad}))
    assert said.startswith("V_pop: its draws do not move")


def test_a_single_chain_is_told(good):
    assert any("one chain" in said for said in complaints(tree({"CL_pop": good[:1]})))


def test_an_individual_parameter_is_named_with_its_patient(good):
    apart = np.stack([good, good + np.arange(4)[:, None]], axis=-1)
    (said,) = complaints(tree({"CL": apart}))
    assert said.startswith("CL[b]: R-hat")


def test_a_patient_who_is_surely_of_a_class_is_no_fault(good):
    # In one of the four chains rounding makes of 1 now and then the number before it.
    sure = np.where((np.arange(4)[:, None] < 1) & (good > 0), 1.0 - 2.0**-53, 1.0)
    probability = np.stack([sure, np.zeros_like(good)], axis=2)
    draws = tree({"level": np.stack([good, good], axis=2), "probability_2": probability})
    assert len(complaints(draws)) == 2
    population = Population(line, ("level",), mixture=Mixture(("level",)))
    draws.attrs["population"] = json.dumps(_population_as_dict(population))
    assert complaints(draws) == []


def test_divergences_and_failing_patients_are_counted(good):
    diverging = np.zeros((4, 1000), bool)
    diverging[0, :3] = True
    said = complaints(tree({"CL_pop": good}, diverging, {"b": 0.25}))
    assert said[0].startswith("3 of 4000 draws diverged")
    assert said[1] == "patient b: the model cannot explain a measurement in 25% of the draws"


def test_contraction_is_that_of_the_spread_on_the_log(good):
    made = tree({"CL": np.exp(0.1 * good)})
    made.attrs["priors"] = json.dumps({"CL": {"lognormal": {"median": 2.0, "log_sd": 0.5}}})
    row = summary(made).sel(variable="CL")
    assert float(row["contraction"]) == pytest.approx(1 - 0.2 * good.std(ddof=1))


@pytest.mark.parametrize(
    ("prior", "draw"),
    [
        (halfnormal(2.0), lambda x: np.log(stats.halfnorm.ppf(x))),
        (gamma(3.0, 2.0), lambda x: np.log(stats.gamma.ppf(x, 3.0))),
        (beta(2.0, 5.0), lambda x: special.logit(stats.beta.ppf(x, 2.0, 5.0))),
        (uniform(-1.0, 4.0), special.logit),
        (normal(3.0, 0.2), lambda x: stats.norm.ppf(x, 3.0, 0.2)),
        (normal(1.0, 2.0, low=0.5), lambda x: np.log(stats.truncnorm.ppf(x, -0.25, np.inf, 1.0, 2.0) - 0.5)),
        # In the tail a cut normal is all but exponential: SciPy has its quantiles by the logarithm.
        (normal(0.0, 1.0, low=9.0), lambda x: np.log(stats.truncnorm.ppf(x, 9.0, np.inf) - 9.0)),
        (
            normal(0.0, 1.0, low=-1.0, high=2.0),
            lambda x: special.logit((stats.truncnorm.ppf(x, -1, 2) + 1) / 3),
        ),
    ],
    # The address of a function is another in each worker.
    ids=lambda value: None if callable(value) else str(value),
)
def test_width_of_a_prior_on_its_unbounded_scale_equals_an_integral_over_its_quantiles(prior, draw):
    first, second = (integrate.quad(lambda x, k=k: draw(x) ** k, 0, 1, limit=200)[0] for k in (1, 2))
    assert unbounded_sd(prior) == pytest.approx(np.sqrt(second - first**2), rel=2e-3)


def test_a_parameter_that_the_data_say_little_of_is_named(good):
    made = tree({"ka": np.exp(good), "CL": np.exp(0.1 * good)})
    weak = {"lognormal": {"median": 1.0, "log_sd": 1.04}}
    made.attrs["priors"] = json.dumps({"ka": weak, "CL": weak})
    share = good.std(ddof=1) / 1.04
    assert complaints(made) == [
        f"the data say little of ka: its posterior is {share:.0%} as wide as its prior"
    ]
    assert share > 0.9


def test_patients_that_say_little_are_counted_and_not_named(good):
    made = tree({"ka": np.exp(np.stack([good, 0.2 * good], axis=-1))})
    made.attrs["priors"] = json.dumps({"ka": {"lognormal": {"median": 1.0, "log_sd": 1.0}}})
    assert complaints(made) == [
        "the data say little of ka for 1 of 2 patients: its posterior is at least 90% as wide as its prior"
    ]


def test_a_population_is_judged_by_what_its_patients_share(good):
    draws = {"ka_pop": np.exp(0.1 * good), "omega_ka": 0.5 * stats.halfnorm.ppf(stats.norm.cdf(good))}
    draws |= {"beta_ka_weight": 0.3 * good, "ka": np.exp(np.stack([good, good], axis=-1))}
    made = tree(draws)
    made.attrs["priors"] = json.dumps({"ka": {"lognormal": {"median": 1.0, "log_sd": 1.0}}})
    weight = Covariate("ka", "weight", "kg", reference=70.0, coefficient=normal(0.0, 0.6))
    made.attrs["population"] = json.dumps(
        {"vary": {"ka": halfnormal(0.5).as_dict()}, "covariates": [weight.as_dict()]}
    )
    (said,) = complaints(made)
    assert said.startswith("the data say little of omega_ka: its posterior is")
    contraction = summary(made, individual=True)["contraction"]
    assert float(contraction.sel(variable="beta_ka_weight")) == pytest.approx(1 - 0.5 * good.std(ddof=1))
    assert np.isnan(contraction.sel(variable=["ka[a]", "ka[b]"])).all()


def test_a_calibration_notes_what_its_data_say_little_of_without_a_warning():
    # All measured at time 0, where the slope has no effect; any warning would fail the test.
    record = Record(Inputs(), {"y": Series(np.zeros(3), [0.9, 1.1, 1.2])})
    made = calibrate(line, record, key=jax.random.key(0), priors={"sd": 0.3}, progress=False)
    (note,) = json.loads(made.attrs["notes"])
    assert note.startswith("the data say little of slope: its posterior is")
    assert json.loads(made.attrs["warnings"]) == []
    contraction = summary(made, individual=True)["contraction"]
    assert float(contraction.sel(variable="slope[1]")) == pytest.approx(0.0, abs=0.1)
    # The level's prior has an sd of 2, its three measurements one of 0.3.
    assert float(contraction.sel(variable="level[1]")) == pytest.approx(
        1 - (1 + 3 * (2 / 0.3) ** 2) ** -0.5, abs=0.01
    )
