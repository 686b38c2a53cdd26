"""Virtual populations against the distributions that they are drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dtwin_jax.core.quantity import replace_fields, values
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.model import expect
from dtwin_jax.models import egfr, one_compartment
from dtwin_jax.models.uva_padova import uva_padova, virtual_patients
from dtwin_jax.twin.virtual import fit_joint, virtual_population

KEY = jax.random.key(11)
RANGE = {"concentration": (2.0, 10.0)}


def drug_record():
    u = replace_fields(one_compartment.inputs(), {"iv": Doses([0.0], [100.0])})
    return Record(u, {"concentration": Series([1.0, 12.0])})


def test_without_conditions_parameters_follow_their_priors():
    """Kolmogorov-Smirnov against SciPy's log-normal; what has no prior stays as it is."""
    found = virtual_population(one_compartment, 500, drug_record(), key=KEY)
    assert len(found) == 500 and found.acceptance == 1.0 and found.refused == {}
    assert stats.kstest(np.log(found.params.CL), stats.norm(0.0, 1.5).cdf).pvalue > 1e-3
    assert np.all(found.params.F == 1.0)


def test_the_acceptance_rate_is_the_prior_probability_of_the_condition():
    """Concentration just after the bolus is 100/V: within 2 to 10 where V is within 10 to 50."""
    u = replace_fields(one_compartment.inputs(), {"iv": Doses([0.0], [100.0])})
    record = Record(u, {"concentration": Series([0.0], after=[True])})
    found = virtual_population(
        one_compartment, 1500, record, key=KEY, plausible={"concentration": (2.0, 10.0)}
    )
    wanted = np.diff(stats.norm(np.log(20.0), 1.5).cdf(np.log([10.0, 50.0])))[0]
    error = np.sqrt(wanted * (1 - wanted) / found.drawn)
    assert abs(found.acceptance - wanted) < 4 * error
    assert np.all((found.params.V >= 10.0) & (found.params.V <= 50.0))
    assert found.refused["concentration"] == round(found.drawn * (1 - found.acceptance))


def test_a_condition_of_the_caller_is_held():
    found = virtual_population(
        one_compartment, 100, drug_record(), key=KEY, accept=lambda p, y: y["concentration"][1] < 1.0
    )
    assert 0 < found.acceptance < 1 and set(found.refused) == {"accept"}
    after = 100 / found.params.V * np.exp(-found.params.CL / found.params.V * 12.0)
    assert np.all(after < 1.0)


def test_a_condition_that_nobody_meets_is_told_with_its_count():
    with pytest.raises(ValueError, match=r"0 of 640 virtual patients are plausible; refused by conc.*: 640"):
        virtual_population(
            one_compartment, 5, drug_record(), key=KEY, plausible={"concentration": (-2.0, -1.0)}, batch=64
        )
    with pytest.raises(ValueError, match="has no output 'glucose'"):
        virtual_population(one_compartment, 5, drug_record(), key=KEY, plausible={"glucose": (1.0, 2.0)})


@pytest.mark.parametrize("wrong", [{"n": 0}, {"batch": 0}, {"batch": -3}])
def test_numbers_below_one_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} of at least 1, found {wrong[name]}"):
        virtual_population(one_compartment, **{"n": 5, "record": drug_record(), "key": KEY} | wrong)


def test_a_declared_range_holds_unless_it_is_replaced_or_lifted():
    """An eGFR that starts at 300, where the model declares 0 to 250."""
    record = Record(egfr.inputs(), {"egfr": Series([0.0])}, {"egfr0": 300.0})
    with pytest.raises(ValueError, match="refused by egfr: 640"):
        virtual_population(egfr, 5, record, key=KEY, batch=64)
    for limits in ((0.0, 400.0), None):
        found = virtual_population(egfr, 5, record, key=KEY, plausible={"egfr": limits}, batch=64)
        assert found.acceptance == 1.0


def test_a_joint_distribution_gives_back_what_it_was_fitted_to():
    """A bivariate log-normal, a normal with negative values, and an empirical covariate."""
    rng = np.random.default_rng(0)
    z = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 400)
    age = rng.choice([20.0, 30.0, 75.0], 400)
    table = {"a": np.exp(1 + 0.3 * z[:, 0]), "b": np.exp(0.5 * z[:, 1]), "c": z[:, 1] - 1, "age": age}
    joint = fit_joint(table, empirical=("age",))
    drawn = joint.draw(20000, key=KEY)
    assert abs(np.mean(np.log(drawn["a"])) - np.mean(np.log(table["a"]))) < 0.01
    assert abs(np.std(np.log(drawn["b"])) - np.std(np.log(table["b"]))) < 0.01
    wanted = np.corrcoef(np.log(table["a"]), np.log(table["b"]))[0, 1]
    assert abs(np.corrcoef(np.log(drawn["a"]), np.log(drawn["b"]))[0, 1] - wanted) < 0.02
    assert drawn["age"].min() >= 20.0 and drawn["age"].max() <= 75.0
    assert abs(np.mean(drawn["age"] < 25.0) - np.mean(age < 25.0)) < 0.03


def test_few_people_determine_no_correlations():
    """Of independent columns, five people show large correlations by chance: most of them is taken away."""
    rng = np.random.default_rng(1)
    table = {f"x{i}": np.exp(rng.normal(size=5)) for i in range(12)}
    raw = np.corrcoef(np.log(np.stack(list(table.values()))))
    shrunk = fit_joint(table).correlation
    assert np.max(np.abs(raw - np.eye(12))) > 0.8
    assert np.max(np.abs(shrunk - np.eye(12))) < 0.35
    assert np.all(np.linalg.eigvalsh(shrunk) > 0)


def test_a_joint_distribution_needs_people():
    with pytest.raises(ValueError, match="table is empty"):
        fit_joint({})
    with pytest.raises(ValueError, match="of at least 3"):
        fit_joint({"a": [1.0, 2.0]})
    with pytest.raises(ValueError, match="a of person 1 is not finite"):
        fit_joint({"a": [1.0, np.nan, 2.0]})


MEAL = replace_fields(
    uva_padova.inputs(), {"meal": Doses([60.0], [60e3], [12.0]), "insulin": Doses([60.0], [3.0])}
)
AFTER_MEAL = Record(MEAL, {"glucose": Series([60.0, 90.0, 120.0, 180.0, 240.0])})


@jax.jit
def peaks(p):
    return jax.vmap(lambda p: jnp.max(expect(uva_padova, p, AFTER_MEAL).glucose))(p)


@pytest.mark.parametrize("group", ["adolescent", "adult", "child"])
def test_the_diabetes_cohort_reproduces_the_distribution_of_its_thirty_patients(group):
    """By age group: mean and sd of the log of every parameter, and peak glucose after 60 g with 3 U."""
    own = [p for name, p in virtual_patients().items() if name.startswith(group)]
    errors = ("sd", "cv_glucose", "cv_cgm")
    table = {n: np.array([float(values(p)[n]) for p in own]) for n in values(own[0]) if n not in errors}
    found = virtual_population(uva_padova, 250, AFTER_MEAL, key=KEY, like=fit_joint(table))
    assert found.acceptance > 0.5
    drawn = values(found.params)
    for name, column in table.items():
        # Ten people's own mean and sd, moved by the sampling error of 250 and by refusals.
        spread = np.std(np.log(column), ddof=1)
        assert abs(np.mean(np.log(drawn[name])) - np.mean(np.log(column))) < 0.3 * spread + 1e-9, name
        assert np.std(np.log(drawn[name])) == pytest.approx(spread, rel=0.3, abs=1e-9), name
    theirs = peaks(jax.tree.map(lambda *leaves: jnp.stack(leaves), *own))
    assert stats.ks_2samp(np.asarray(theirs), np.asarray(peaks(found.params))).pvalue > 0.05
    assert found.cohort(AFTER_MEAL).ids[:2] == ("virtual 1", "virtual 2")


def test_what_is_known_of_all_is_not_drawn():
    seen = drug_record()
    known = Record(seen.inputs, seen.observations, {"V": 30.0})
    found = virtual_population(one_compartment, 20, known, key=KEY)
    assert np.all(np.asarray(found.params.V) == 30.0) and np.ptp(np.asarray(found.params.CL)) > 0
    with pytest.raises(ValueError, match="n of at least 1"):
        virtual_population(one_compartment, 0, seen, key=KEY)
