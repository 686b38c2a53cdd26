"""Linear kinetics under every absorption, against sums of exponentials and Taylor series in many digits."""

from dataclasses import replace
from decimal import Decimal, getcontext

import jax
import kinetics
import numpy as np
import pytest

from dtwin_jax.core.rules import DURATION, STEADY, Restarts, Rules
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.check import check_model
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import one_compartment, three_compartment, two_compartment
from dtwin_jax.models.absorption import sequential, transit, zero_order
from dtwin_jax.models.one_compartment import Inputs

TIGHT = Solver(rtol=1e-11, atol=1e-11)
BASES = {1: one_compartment, 2: two_compartment, 3: three_compartment}
ABSORPTIONS = {
    "first_order": lambda base: base,
    "zero_order": zero_order,
    "sequential": sequential,
    "transit": transit,
}
# One and two compartments after a depot have files of their own.
VARIANTS = [("first_order", 3)] + [(kind, n) for kind in ABSORPTIONS if kind != "first_order" for n in BASES]
# As the models name them: clearance, volumes, flows between them.
NUMBERS = {
    1: {"CL": 1.3, "V": 17.0},
    2: {"CL": 1.3, "V1": 17.0, "Q": 2.1, "V2": 11.0},
    3: {"CL": 1.3, "V1": 17.0, "Q2": 2.1, "V2": 11.0, "Q3": 0.6, "V3": 47.0},
}
GIVEN = {"F": 0.7, "lag": 0.5, "ka": 0.9, "duration": 2.5, "MTT": 1.6}
NEEDS = {
    "first_order": ("ka",),
    "zero_order": ("duration",),
    "sequential": ("duration", "ka"),
    "transit": ("MTT", "ka"),
}
DOSES = {"oral": [(0.0, 100.0, 0.0), (12.0, 60.0, 0.0)], "iv": [(4.0, 50.0, 2.0), (30.0, 20.0, 0.0)]}
TIMES = [0.25, 0.6, 1.0, 2.0, 3.5, 5.0, 8.0, 12.0, 13.0, 16.0, 24.0, 30.0, 40.0, 60.0]


def disposition(n):
    """Rates between the compartments, central first, and out of the body."""
    p = {name: Decimal(value) for name, value in NUMBERS[n].items()}
    volumes = [p[name] for name in ("V", "V1", "V2", "V3") if name in p]
    flows = [p[name] for name in ("Q", "Q2", "Q3") if name in p]
    rates = [[Decimal(0)] * n for _ in range(n)]
    rates[0][0] = -(p["CL"] + sum(flows)) / volumes[0]
    for i, flow in enumerate(flows, start=1):
        rates[i][0], rates[0][i], rates[i][i] = flow / volumes[0], flow / volumes[i], -flow / volumes[i]
    return rates, volumes[0]


def with_gut(kind, rates):
    """The matrix of the compartments, those of the gut first; and where the body begins."""
    ka, ktr = Decimal(GIVEN["ka"]), 4 / Decimal(GIVEN["MTT"])
    leaving = {"zero_order": [], "transit": [ktr] * 4 + [ka]}.get(kind, [ka])
    size, first = len(leaving) + len(rates), len(leaving)
    whole = [[Decimal(0)] * size for _ in range(size)]
    for i, rate in enumerate(leaving):
        whole[i][i], whole[i + 1][i] = -rate, rate
    for i, row in enumerate(rates):
        whole[first + i][first:] = row
    return whole, first


def moved(rates, x, inflow, dt):
    """`exp(rates dt) x` and what flows in meanwhile, by the Taylor series of the solution, in 150 digits."""
    term, total, k = list(x), list(x), 0
    while k < 10 or max(map(abs, term)) > Decimal(10) ** -60:
        k += 1
        grown = [sum(a * b for a, b in zip(row, term, strict=True) if a) for row in rates]
        if k == 1:
            grown = [a + b for a, b in zip(grown, inflow, strict=True)]
        term = [dt / k * each for each in grown]
        total = [a + b for a, b in zip(total, term, strict=True)]
    return total


def exact(kind, n):
    """Concentrations at `TIMES` by the compartments written out as a matrix."""
    getcontext().prec = 150
    rates, volume = disposition(n)
    whole, first = with_gut(kind, rates)
    F, lag, lasting = (Decimal(GIVEN[name]) for name in ("F", "lag", "duration"))
    over = lasting if kind in ("zero_order", "sequential") else Decimal(0)
    given = [(Decimal(t) + lag, F * Decimal(a), over, 0) for t, a, _ in DOSES["oral"]]
    given += [(Decimal(t), Decimal(a), Decimal(d), first) for t, a, d in DOSES["iv"]]
    stops = sorted({edge for t, _, d, _ in given for edge in (t, t + d)} | set(map(Decimal, TIMES)))
    x, now, found = [Decimal(0)] * len(whole), Decimal(0), []
    for stop in stops:
        inflow = [Decimal(0)] * len(x)
        for t, amount, duration, into in given:
            if duration and t <= now < t + duration:
                inflow[into] += amount / duration
        x, now = moved(whole, x, inflow, stop - now), stop
        if float(stop) in TIMES:
            found.append(float(x[first] / volume))
        for t, amount, duration, into in given:
            if t == stop and not duration:
                x[into] += amount
    return found


def test_stages_as_fast_as_depot_and_elimination_keep_their_digits():
    """Rates that are equal, or but for a millionth, where sums of exponentials lose their digits."""
    getcontext().prec = 150
    wanted = []
    for name, ka in {"equal": 0.2, "nearly": 0.2 * (1 + 1e-6)}.items():
        params = {"CL": 4.0, "V": 20.0, "ka": ka, "MTT": 20.0}
        x, now, found = [Decimal(100)] + [Decimal(0)] * 5, Decimal(0), []
        rates = [[Decimal(0)] * 6 for _ in range(6)]
        for i, rate in enumerate([Decimal("0.2")] * 4 + [Decimal(ka), Decimal("0.2")]):
            rates[i][i] = -rate
            if i < 5:
                rates[i + 1][i] = rate
        for t in map(Decimal, TIMES):
            x, now = moved(rates, x, [Decimal(0)] * 6, t - now), t
            found.append(float(x[-1] / 20))
        doses = {"oral": [(0.0, 100.0, 0.0)], "iv": [(0.0, 0.0, 0.0)]}
        wanted.append(kinetics.Case(name, params, doses, TIMES, {"concentration": found}))
    found = kinetics.run(transit(one_compartment), wanted)
    for each in wanted:
        kinetics.assert_equal(found, each, 1e-10)


def case(kind, n):
    params = NUMBERS[n] | {name: GIVEN[name] for name in ("F", "lag", *NEEDS[kind])}
    return kinetics.Case(kind, params, DOSES, TIMES, {}, {"concentration": exact(kind, n)})


@pytest.mark.parametrize(("kind", "n"), VARIANTS)
def test_every_absorption_equals_its_taylor_series(kind, n):
    model, wanted = ABSORPTIONS[kind](BASES[n]), case(kind, n)
    found = kinetics.run(model, [wanted], after=False)
    kinetics.assert_equal(found, wanted, 1e-10, side="before")


@pytest.mark.parametrize(("kind", "n"), [("zero_order", 1), ("sequential", 2), ("transit", 3)])
def test_the_exact_path_equals_the_solver(kind, n):
    model = ABSORPTIONS[kind](BASES[n])
    assert model.flow is not None
    wanted = case(kind, n)
    stepped = kinetics.run(replace(model, flow=None, solver=TIGHT), [wanted], after=False)
    kinetics.assert_equal(stepped, wanted, 1e-7, side="before")


@pytest.mark.parametrize("kind", ["zero_order", "transit"])
def test_a_steady_state_is_that_of_sixty_doses(kind):
    """Doses of a steady state are absorbed as all others are."""
    model, one, times = ABSORPTIONS[kind](one_compartment), np.ones(1), np.array([0.5, 1.0, 3.0, 8.0, 12.0])
    always = Restarts(
        *(0 * one, np.array([STEADY]), 100 * one, 0 * one, np.array([DURATION])),
        *(12 * one, 0 * one, np.inf * one),
    )
    steady = Doses([0.0], [100.0], rules=Rules(np.array([DURATION]), np.inf * one, always))
    starts = 12.0 * np.arange(60)

    @jax.jit
    def concentration(oral, times):
        return simulate(model, model.params(), Inputs(oral=oral), times).output.concentration

    wanted = concentration(Doses(starts, 100.0), starts[-1] + times)
    np.testing.assert_allclose(concentration(steady, times), wanted, rtol=1e-10)


def test_three_compartments_hold_every_tabled_case(shared):
    """A clearance of 0 between compartments leaves fewer of them."""
    cases = list(kinetics.closed_form_cases(shared).values())
    assert len(cases) == 7
    found = kinetics.run(three_compartment, cases)
    for each in cases:
        kinetics.assert_equal(found, each, 1e-10)


@pytest.mark.parametrize(("n", "name"), [(1, "1cmt_inf"), (3, "3cmt_inf_then_bolus")])
def test_absorption_at_a_constant_rate_equals_an_infusion(n, name, shared):
    """The tabled infusions, given by mouth over a duration that is a parameter."""
    wanted = kinetics.closed_form_cases(shared)[name]
    (time, amount, duration), *rest = wanted.doses["iv"]
    given = {k: v for k, v in wanted.params.items() if n == 3 or k in ("CL", "V1")}
    params = {"V" if n == 1 and k == "V1" else k: v for k, v in given.items()} | {"duration": duration}
    swallowed = replace(wanted, params=params, doses={"oral": [(time, amount, 0.0)], "iv": rest})
    found = kinetics.run(zero_order(BASES[n]), [swallowed])
    kinetics.assert_equal(found, wanted, 1e-10)


@pytest.mark.parametrize(("kind", "n"), VARIANTS)
def test_every_variant_is_sound(kind, n):
    """Units, doses, and that the flow solves the drift; and two of one kind are the same model."""
    model = ABSORPTIONS[kind](BASES[n])
    assert check_model(model) == []
    assert model == ABSORPTIONS[kind](BASES[n]) and hash(model) == hash(ABSORPTIONS[kind](BASES[n]))
