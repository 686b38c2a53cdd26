"""Warfarin against a tight solve, and the peak of the posterior of one patient against nlmixr's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from tabled import case, rows, table

from dtwin_jax.core.predictor import PENALTY, likelihood_of
from dtwin_jax.core.quantity import quantities, values
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.inference.fit import fit
from dtwin_jax.models import warfarin
from dtwin_jax.models.warfarin import Inputs

CHANNELS = {"concentration": "cp", "pca": "pca"}
tight = replace(warfarin, solver=replace(warfarin.solver, rtol=1e-10, atol=1e-10))


def test_the_typical_patient_agrees_with_reference(shared):
    wanted = table(shared("reference/models/warfarin_pkpd_typical.csv"))
    given = case(shared("reference/models/warfarin_pkpd_case.json"))["params"]
    p = warfarin.params()
    for name, value in given.items():
        own = values(p) | {"emax": jax.nn.sigmoid(p.logit_Emax)}
        renamed = {"cl": "CL", "v": "V", "ec50": "EC50", "e0": "E0"}
        np.testing.assert_allclose(own[renamed.get(name, name)], value, rtol=1e-14, err_msg=name)
    u = Inputs(oral=Doses([0.0], [100.0]))
    after = np.ones(wanted["t_h"].size, bool)
    found = jax.jit(lambda p, u: simulate(tight, p, u, wanted["t_h"], after=after))(p, u)
    for name, column in {"depot": "depot", "gut": "gut", "central": "center", "pca": "pca"}.items():
        np.testing.assert_allclose(
            getattr(found.state, name), wanted[column], rtol=1e-7, atol=1e-7, err_msg=name
        )
    np.testing.assert_allclose(found.output.concentration, wanted["cp_mg_L"], rtol=1e-7)


def test_the_peak_of_the_first_patient_is_that_of_nlmixr(shared):
    about = case(shared("reference/models/warfarin_map_subject1_case.json"))
    kinds, times, seen = (
        np.array(about["dvid"]),
        np.array(about["times"], float),
        np.array(about["dv"], float),
    )
    observed = {name: Series(times[kinds == kind], seen[kinds == kind]) for name, kind in CHANNELS.items()}
    found = fit(
        warfarin, Record(Inputs(oral=Doses([0.0], [100.0])), observed), key=jax.random.key(0), starts=1
    )
    assert found.failed == ()
    names = {"ktr": "ktr", "ka": "ka", "cl": "CL", "ec50": "EC50"}
    for row in rows(shared("reference/models/warfarin_map_subject1_expected.csv")):
        if row["param"] in names:
            ours = found.estimate[names[row["param"]]][0]
        elif row["param"] == "emax":
            ours = jax.nn.sigmoid(found.estimate["logit_Emax"][0])
        else:
            continue
        np.testing.assert_allclose(ours, float(row["posologyr_expected"]), rtol=1e-3, err_msg=row["param"])


def bateman(t, dose, ktr, ka, k, V):
    """Concentration after two compartments emptied one after the other, by partial fractions."""
    rates = np.array([ktr, ka, k])
    share = [ktr * ka / np.prod(np.delete(rates, i) - rate) for i, rate in enumerate(rates)]
    return dose / V * sum(c * np.exp(-rate * t) for c, rate in zip(share, rates, strict=True))


def test_every_patient_of_the_study_is_explained(shared):
    """32 patients side by side: concentrations by Bateman's formula, every activity explained."""
    patients: dict = {}
    for row in rows(shared("reference/models/data_warfarin_pkpd.csv")):
        patients.setdefault(row["id"], []).append(row)
    records = {}
    for name, mine in patients.items():
        (dose,) = [float(row["amt"]) for row in mine if row["evid"] == "1"]
        seen = {
            channel: [
                (float(r["time"]), float(r["dv"])) for r in mine if r["dvid"] == kind and r["evid"] == "0"
            ]
            for channel, kind in CHANNELS.items()
        }
        series = {channel: Series(*map(list, zip(*pairs, strict=True))) for channel, pairs in seen.items()}
        records[name] = Record(Inputs(oral=Doses([0.0], [dose])), series)
    cohort = stack(records).record
    p = jax.tree.map(lambda leaf: jnp.full(32, leaf), warfarin.params())

    @jax.jit
    def typical(cohort):
        predicted = tight.predict_cohort(p, cohort)
        mean = jax.vmap(lambda each: each["concentration"].mean)(predicted)
        return mean, jax.vmap(likelihood_of)(predicted, cohort)["pca"]

    found, scores = typical(cohort)
    seen, doses = cohort.observations["concentration"], cohort.inputs.oral.amount
    typically = {name: float(value) for name, value in values(warfarin.params()).items()}
    k = typically["CL"] / typically["V"]
    wanted = bateman(seen.time, doses, typically["ktr"], typically["ka"], k, typically["V"])
    np.testing.assert_allclose(found[seen.mask], wanted[seen.mask], rtol=1e-6, atol=1e-8)
    assert len(records) == 32 and np.all(scores > PENALTY)


def test_spreads_are_those_of_the_source(shared):
    wanted = case(shared("reference/models/warfarin_map_subject1_case.json"))["omega_variance"]
    priors = {n: dict(q.prior.args) for n, q in quantities(warfarin.params()).items() if q.prior}
    found = {n: args.get("log_sd", args.get("sd")) ** 2 for n, args in priors.items()}
    names = {"ktr": "ktr", "ka": "ka", "cl": "CL", "emax": "logit_Emax", "ec50": "EC50"}
    assert set(found) == set(names.values())
    for name, variance in wanted.items():
        np.testing.assert_allclose(found[names[name]], variance, rtol=1e-6, err_msg=name)
