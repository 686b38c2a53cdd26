"""Warfarin against a tight solve, and the peak of the posterior of one patient against nlmixr's."""

from dataclasses import replace

import jax
import numpy as np
from tabled import case, rows, table

from dtwin_jax.core.quantity import quantities, values
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.inference.fit import fit
from dtwin_jax.models import warfarin
from dtwin_jax.models.warfarin import Inputs

tight = replace(warfarin, solver=replace(warfarin.solver, rtol=1e-10, atol=1e-10))


def test_the_typical_patient_agrees_with_reference(shared):
    wanted = table(shared("reference/models/warfarin_pkpd_typical.csv"))
    given = case(shared("reference/models/warfarin_pkpd_case.json"))["params"]
    p = warfarin.params()
    for name, value in given.items():
        ours = (
            jax.nn.sigmoid(p.logit_Emax)
            if name == "emax"
            else values(p)[{"cl": "CL", "v": "V", "ec50": "EC50", "e0": "E0"}.get(name, name)]
        )
        np.testing.assert_allclose(ours, value, rtol=1e-14, err_msg=name)
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
    channels = {"concentration": "cp", "pca": "pca"}
    observed = {name: Series(times[kinds == kind], seen[kinds == kind]) for name, kind in channels.items()}
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


def test_spreads_are_those_of_the_source(shared):
    wanted = case(shared("reference/models/warfarin_map_subject1_case.json"))["omega_variance"]
    priors = {n: dict(q.prior.args) for n, q in quantities(warfarin.params()).items() if q.prior}
    found = {n: args.get("log_sd", args.get("sd")) ** 2 for n, args in priors.items()}
    names = {"ktr": "ktr", "ka": "ka", "cl": "CL", "emax": "logit_Emax", "ec50": "EC50"}
    assert set(found) == set(names.values())
    for name, variance in wanted.items():
        np.testing.assert_allclose(found[names[name]], variance, rtol=1e-6, err_msg=name)
