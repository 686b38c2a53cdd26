"""Cases of linear kinetics with known answers, run side by side as one cohort: one compilation for all."""

import csv
import json
from dataclasses import dataclass, field
from decimal import Decimal, getcontext

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import assign, values
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.simulate import simulate

getcontext().prec = 60


@dataclass
class Case:
    """One patient: what was given, and what is known of the answer at `times`."""

    name: str
    params: dict[str, float]
    doses: dict[str, list[tuple[float, float, float]]]
    times: list[float]
    after: dict[str, list[float]]
    before: dict[str, list[float]] = field(default_factory=dict)


def closed_form_cases(shared):
    """40-digit sums of exponentials: concentrations just after what happens at a time."""
    cases = {}
    with open(shared("reference/models/pk_linear_closed_form.csv")) as file:
        rows = list(csv.DictReader(file))
    for case in json.loads(shared("reference/models/pk_linear_closed_form_cases.json").read_text()):
        mine = [row for row in rows if row["case"] == case["case"]]
        doses: dict = {"oral": [], "iv": []}
        params = dict(case["params"])
        for dose in case["doses"]:
            route = "oral" if dose["kind"] == "oral" else "iv"
            doses[route].append((dose["t"], dose["amt"], dose.get("dur", 0.0)))
            params |= {name: dose[name] for name in ("ka", "F", "lag") if name in dose}
        times = [float(row["time"]) for row in mine]
        seen = {"concentration": [float(row["conc"]) for row in mine]}
        cases[case["case"]] = Case(case["case"], params, doses, times, seen)
    return cases


def exponential_cases(shared):
    """40-digit matrix exponentials: amounts in every compartment, before and after what happens at a time."""
    cases = {}
    for case in json.loads(shared("reference/cases/3_numerics/pk_expm.json").read_text())["cases"]:
        states = {1: ["central"], 2: ["depot", "central"]}[len(case["A"])]
        if case["id"].startswith("2cpt_bolus"):
            states = ["central", "peripheral"]
        route = "oral" if states[0] == "depot" else "iv"
        doses = {"oral": [], "iv": []}
        doses[route] = [(event["t"], event["amt"], event["dur"]) for event in case["events"]]
        answers = {}
        for side in ("before", "after"):
            amounts = np.array(case[f"amounts_{side}_events_at_t"])
            answers[side] = {name: amounts[:, i].tolist() for i, name in enumerate(states)}
        answers["after"]["concentration"] = case["conc_after"]
        rates = np.array(case["A"])
        cases[case["id"]] = Case(
            case["id"], _params(rates, case["V"], states), doses, case["times"], **answers
        )
    return cases


def _params(rates, volume, states):
    if "peripheral" in states:
        flow = rates[1, 0] * volume
        return {"V1": volume, "Q": flow, "V2": flow / -rates[1, 1], "CL": -rates[0, 0] * volume - flow}
    absorption = {"ka": -rates[0, 0]} if "depot" in states else {}
    return {"V": volume, "CL": -rates[-1, -1] * volume, **absorption}


def oral_case(name, ka, k, times, amount=100.0, volume=20.0):
    """First-order absorption and elimination by the textbook's difference of exponentials, in 60 digits."""
    ka_, k_ = Decimal(ka), Decimal(k * volume) / Decimal(volume)
    dose = Decimal(amount)
    central = [
        float(dose * ka_ / (ka_ - k_) * ((-k_ * Decimal(t)).exp() - (-ka_ * Decimal(t)).exp())) for t in times
    ]
    depot = [float(dose * (-ka_ * Decimal(t)).exp()) for t in times]
    params = {"CL": k * volume, "V": volume, "ka": ka}
    return Case(
        name, params, {"oral": [(0.0, amount, 0.0)], "iv": []}, times, {"central": central, "depot": depot}
    )


def run(model, cases, after=True):
    """The trajectory of every case, compiled once: case name -> {state or output: values at its times}."""
    records, names = {}, sorted({name for case in cases for name in case.params})
    for case in cases:
        inputs = model.inputs()
        signals = {
            route: Doses(*np.reshape(rows, (-1, 3)).T.astype(float)) for route, rows in case.doses.items()
        }
        series = Series(case.times, after=np.full(len(case.times), after))
        records[case.name] = Record(assign(inputs, signals), {"concentration": series})
    record = stack(records).record
    defaults = values(model.params())
    columns = {name: [case.params.get(name, float(defaults[name])) for case in cases] for name in names}
    base = jax.tree.map(lambda leaf: jnp.full(len(cases), leaf), model.params())
    p = assign(base, {name: jnp.asarray(column) for name, column in columns.items()})
    found = _solver(model)(p, record)
    assert np.all(found.outcome == 0)
    return {
        case.name: {
            name: np.asarray(value[i, : len(case.times)])
            for name, value in (vars(found.state) | vars(found.output)).items()
        }
        for i, case in enumerate(cases)
    }


_COMPILED: dict = {}


def _solver(model):
    def solve(p, record):
        series = record.observations["concentration"]
        return simulate(model, p, record.inputs, series.time, after=series.after, t0=record.t0)

    if model not in _COMPILED:
        _COMPILED[model] = jax.jit(jax.vmap(solve))
    return _COMPILED[model]


def assert_equal(found, case, rtol, *, side="after", share_of_peak=0.0):
    """Every value with a known answer, to `rtol` of itself, or to a share of the largest of its kind."""
    answers = getattr(case, side)
    for name, wanted in answers.items():
        floor = share_of_peak * np.max(np.abs(wanted))
        np.testing.assert_allclose(
            found[case.name][name], wanted, rtol=rtol, atol=floor, err_msg=f"{case.name}: {name} {side}"
        )
