"""Every rule of dosing, from the table to the concentration.

Truth: NONMEM 7.4.3's own predictions, printed to five digits; the same regimens solved step by step; the
closed form of a steady state of Michaelis-Menten kinetics; finite differences.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from event_tables import CASES, TIMES, drug, parameters, predictions, table

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.record import stack
from dtwin_jax.core.rules import STEADY, Restarts, Rules
from dtwin_jax.core.signal import Doses, delay
from dtwin_jax.dynamics.dosing import cut
from dtwin_jax.dynamics.ensemble import simulate_cohort
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.io.table import read_table

NAMES = tuple(CASES)
# By steps: a constant rate, overlapping tails, a lag beyond the interval, resets, sums.
FEW = (
    "steady infusion with lag",
    "overlapping infusions",
    "constant rate",
    "lag beyond the interval",
    "reset",
)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    def cohort(names, **options):
        path = tmp_path_factory.mktemp("events") / "events.csv"
        path.write_text(table(names, **options))
        units = {"AMT": "mg", "DV": "mg/L"}
        return stack(read_table(path, drug, inputs={"1": "oral", "2": "iv"}, units=units)).record

    return cohort


def solved(model, names, record):
    p = jax.vmap(lambda values: assign(drug.params(), values))(parameters(names))
    series = record.observations["concentration"]
    return simulate_cohort(model, p, record.inputs, series.time, t0=record.t0, after=series.after)


def test_every_rule_gives_what_nonmem_predicts(read):
    found = solved(drug, NAMES, read(NAMES)).output.concentration
    for name, ours, theirs in zip(NAMES, found, predictions(), strict=True):
        # NONMEM prints five digits.
        np.testing.assert_allclose(ours, theirs, rtol=6e-5, atol=1e-7, err_msg=name)


def alone(cmt, since, amount, duration):
    """Concentration after one dose, mg/L, by the textbook; `since` its start, h."""
    k, ka, volume = 1.1 / 20.0, 1.5, 20.0
    if since < 0:
        return 0.0
    on, off = min(since, duration), max(since - duration, 0.0)
    if cmt == 2 and not duration:
        return amount / volume * np.exp(-k * since)
    if cmt == 2:
        return amount / duration / (k * volume) * -np.expm1(-k * on) * np.exp(-k * off)
    if not duration:
        return amount * ka / (volume * (ka - k)) * (np.exp(-k * since) - np.exp(-ka * since))
    parts = [-np.expm1(-rate * on) * np.exp(-rate * off) / rate for rate in (k, ka)]
    return amount / duration * ka / (volume * (ka - k)) * (parts[0] - parts[1])


def summed(case, when):
    """The sum over all doses of their own concentrations; of a steady state 2000 before the first."""
    total = 0.0
    for i, (time, cmt, amount, evid, interval, steady, more, rate) in enumerate(case.rows):
        clears = [row[0] for row in case.rows[i + 1 :] if row[3] in (3, 4) or row[5] == 1]
        if evid == 3 or time > when or any(clear <= when for clear in clears):
            continue
        if steady and not interval:
            # A constant rate until now, as one long infusion.
            total += alone(cmt, when - time + 5000.0, rate * 5000.0, 5000.0)
            continue
        share, lag = (case.share, case.lag) if cmt == 2 else (1.0, 0.0)
        duration = case.long if rate == -2 else share * amount / rate if rate else 0.0
        for k in range(-2000 if steady else 0, int(more) + 1):
            total += alone(cmt, when - time - lag - k * interval, share * amount, duration)
    return total


def test_every_rule_is_the_sum_of_single_doses(read):
    # A state that is followed backwards is no sum of doses.
    names = tuple(name for name in NAMES if CASES[name].lag < 24.0)
    found = solved(drug, names, read(names)).output.concentration
    for name, ours in zip(names, found, strict=True):
        truth = [summed(CASES[name], when) for when in TIMES]
        np.testing.assert_allclose(ours, truth, rtol=1e-10, atol=1e-12, err_msg=name)


def test_pieces_of_patients_side_by_side_are_in_order(read):
    """As compiled for all at once, so of each alone: ends of infusions that are equal but for a rounding, as
    products and sums are rounded here together and there apart, once took one place between them."""
    record = read(FEW)
    p = jax.vmap(lambda values: assign(drug.params(), values))(parameters(FEW))
    bounds = lambda p, record: cut(drug.dosing(record.inputs, p), record.t0, jnp.asarray(100.0)).bounds  # noqa: E731
    found = jax.jit(jax.vmap(bounds))(p, record)
    assert np.all(np.diff(found) >= 0)
    for i in range(len(FEW)):
        alone = bounds(*jax.tree.map(lambda leaf, i=i: leaf[i], (p, record)))
        np.testing.assert_allclose(found[i], alone, rtol=1e-14)


def test_steps_give_what_the_flow_gives(read):
    record = read(FEW)
    steps = replace(drug, flow=None, solver=Solver(rtol=1e-9, atol=1e-11))
    exact, found = (solved(model, FEW, record) for model in (drug, steps))
    assert np.all(found.outcome == Outcome.SOLVED)
    scale = np.max(np.abs(exact.output.concentration), axis=1, keepdims=True)
    np.testing.assert_allclose(
        found.output.concentration / scale, exact.output.concentration / scale, atol=1e-7
    )


def moved(record, by):
    """The record with all amounts, durations and intervals multiplied, and all doses moved."""
    amount, duration, interval, shift = by

    def doses(signal):
        again = signal.rules.restarts
        infused = again.interval > 0
        restarts = eqx.tree_at(
            lambda r: (r.time, r.amount, r.duration, r.interval),
            again,
            (
                again.time + shift,
                again.amount * amount,
                again.duration * jnp.where(infused & jnp.isfinite(again.duration), duration, 1.0),
                again.interval * interval,
            ),
        )
        # That of a dose whose duration the model states is NaN.
        stated = jnp.where(jnp.isfinite(signal.duration), duration, 1.0)
        parts = signal.time + shift, signal.amount * amount, signal.duration * stated
        return Doses(*parts, rules=Rules(signal.rules.held, signal.rules.until + shift, restarts))

    inputs = record.inputs
    return eqx.tree_at(lambda u: (u.oral, u.iv), inputs, tuple(map(doses, (inputs.oral, inputs.iv))))


def test_gradients_are_finite_differences_at_every_rule(read):
    """By clearance, volume, absorption, bioavailability, lag and modelled duration; by amounts, durations,
    intervals and times of doses: relative to the largest, 1e-6."""
    times = np.array([2.7, 6.3, 15.1, 31.7, 55.9, 77.3])
    record = read(NAMES, times=times)
    values = parameters()
    # Not at 0, where a finite difference would be of two rules.
    values["lag"] = values["lag"] + 0.37
    names = ("CL", "V", "ka", "F", "lag", "duration_iv")
    point = jnp.stack(
        [
            *(jnp.asarray(values[name]) for name in names),
            *jnp.ones((3, len(NAMES))),
            jnp.full(len(NAMES), 0.1),
        ]
    )

    def concentration(z, known, record):
        p = assign(drug.params(), known | dict(zip(names, z[:6], strict=True)))
        return simulate(drug, p, moved(record, z[6:]), times).output.concentration

    known = {name: values[name] for name in ("sd", "cv")}
    everywhere = jax.jit(jax.vmap(concentration, in_axes=(1, 0, 0)))
    forward = jax.jit(jax.vmap(jax.jacfwd(concentration), in_axes=(1, 0, 0)))(point, known, record)
    reverse = jax.jit(jax.vmap(jax.jacrev(concentration), in_axes=(1, 0, 0)))(point, known, record)
    np.testing.assert_allclose(reverse, forward, rtol=1e-9, atol=1e-9)
    labels = (*names, "amounts", "durations", "intervals", "times")
    touched = set()
    for i, label in enumerate(labels):
        step = jnp.zeros(len(labels)).at[i].set(1.0)[:, None] * 1e-5 * jnp.abs(point)
        above, below = (everywhere(point + sign * step, known, record) for sign in (1.0, -1.0))
        expected = np.asarray((above - below) / (2 * step[i][:, None]))
        for name, ours, theirs in zip(NAMES, forward[:, :, i], expected, strict=True):
            size = np.max(np.abs(theirs))
            np.testing.assert_allclose(ours, theirs, atol=1e-6 * size + 1e-8, err_msg=f"{name}: {label}")
            touched |= {label} if size > 1e-3 else set()
    assert touched == set(labels)


def test_second_derivatives_of_a_steady_state(read):
    record = jax.tree.map(lambda leaf: leaf[0], read(("steady infusion with lag",)))
    values = {
        name: jnp.asarray(column[0]) for name, column in parameters(("steady infusion with lag",)).items()
    }

    def level(z):
        p = assign(drug.params(), values | {"CL": z[0], "lag": z[1]})
        return simulate(drug, p, record.inputs, jnp.array([9.0])).output.concentration[0]

    z = jnp.array([1.1, 3.16])
    slope, steps = jax.jit(jax.grad(level)), 1e-4 * jnp.eye(2)
    expected = jnp.stack([(slope(z + step) - slope(z - step)) / 2e-4 for step in steps])
    np.testing.assert_allclose(jax.jit(jax.hessian(level))(z), expected, rtol=1e-6)


def saturable(rtol=1e-9):
    """Elimination by Michaelis-Menten kinetics, CL Km the largest rate, ka the constant Km in mg."""

    def drift(t, x, u, p):
        return type(x)(depot=u.oral - x.depot, central=u.iv - p.CL * p.ka * x.central / (p.ka + x.central))

    return replace(drug, drift=drift, flow=None, dosing=None, solver=Solver(rtol=rtol, atol=1e-11))


def steady_boluses(interval, amount=100.0):
    one, zero, none = np.ones(1), np.zeros(1), np.zeros(1, int)
    again = Restarts(
        zero, np.full(1, STEADY), amount * one, zero, none, interval * one, zero, np.full(1, np.inf)
    )
    return Doses([0.0], [amount], rules=Rules(none, np.full(1, np.inf), again))


def test_steady_state_of_saturable_kinetics_is_the_closed_form():
    """Over an interval T, Km ln(C1 / C0) + C1 - C0 = Vmax T, with C1 = C0 + dose."""
    model, largest, half, dose = saturable().differentiated("reverse"), 12.0, 30.0, 100.0
    u = eqx.tree_at(lambda u: u.iv, drug.inputs(), steady_boluses(12.0, dose))

    def before(largest):
        p = assign(drug.params(), {"CL": largest / half, "ka": half})
        return simulate(model, p, u, jnp.array([12.0])).state.central[0]

    closed = lambda largest: dose / (jnp.exp((largest * 12.0 - dose) / half) - 1.0)  # noqa: E731
    np.testing.assert_allclose(jax.jit(before)(largest), closed(largest), rtol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.grad(before))(largest), jax.grad(closed)(largest), rtol=1e-6)


def predicted(tmp_path, rows):
    """Concentrations of one patient's rows `TIME,CMT,AMT,EVID,II,SS,DV`, CL 1 L/h, V 20 L."""
    path = tmp_path / "rows.csv"
    path.write_text("ID,TIME,CMT,AMT,EVID,II,SS,DV\n" + "".join(f"1,{row}\n" for row in rows))
    units = {"AMT": "mg", "DV": "mg/L"}
    record = read_table(path, drug, inputs={"1": "oral", "2": "iv"}, units=units)["1"]
    series, p = record.observations["concentration"], assign(drug.params(), {"CL": 1.0, "V": 20.0, "ka": 1.5})
    return simulate(drug, p, record.inputs, series.time, after=series.after).output.concentration


def test_a_measurement_stands_between_what_happens_before_and_after_it(tmp_path):
    seen = "2,.,0,.,.,1"
    found = predicted(
        tmp_path, ["0,2,100,1,.,.,.", "48,2,.,3,.,.,.", f"48,{seen}", "48,2,100,1,.,.,.", f"48,{seen}"]
    )
    np.testing.assert_allclose(found, [0.0, 5.0], atol=1e-12)
    # Time goes back at the reset, to that of the row before.
    rows = ["0,2,100,1,.,.,.", "24,2,100,1,.,.,.", f"24,{seen}", "0,2,50,4,.,.,.", f"0,{seen}"]
    np.testing.assert_allclose(predicted(tmp_path, rows), [5.0 * (1.0 + np.exp(-1.2)), 2.5], rtol=1e-12)


def test_of_two_steady_states_of_a_moment_the_later_row_counts(tmp_path):
    seen, oral = "1,.,0,.,.,1", "0,1,100,1,12,1,."
    alone = predicted(tmp_path, [oral, f"1,{seen}"])
    for first in ("0,2,50,1,12,1,.", "0,2,50,1,12,2,."):
        np.testing.assert_allclose(predicted(tmp_path, [first, oral, f"1,{seen}"]), alone, rtol=1e-12)
    both = predicted(tmp_path, [oral, "0,2,50,1,12,2,.", f"1,{seen}"])
    iv = 2.5 * np.exp(-0.05) / -np.expm1(-0.6)
    np.testing.assert_allclose(both, alone + iv, rtol=1e-12)


def test_a_patient_without_a_steady_state_leaves_the_gradient_of_others_alone():
    u = eqx.tree_at(lambda u: u.iv, drug.inputs(), steady_boluses(12.0))

    def level(factor, clearance):
        p = assign(drug.params(), {"CL": factor * clearance, "V": 20.0})
        found = simulate(drug, p, u, jnp.array([9.0])).output.concentration[0]
        return jnp.where(jnp.isfinite(found), found, 0.0)

    # Nothing is eliminated of the second.
    total = lambda factor, each: jnp.sum(jax.vmap(level, in_axes=(None, 0))(factor, each))  # noqa: E731
    both, one = (jax.jit(jax.grad(total))(1.0, jnp.array(each)) for each in ([1.0, 0.0], [1.0]))
    np.testing.assert_allclose(both, one, rtol=1e-12)
    assert both < 0


def test_what_has_no_steady_state_is_told():
    # More is given in an interval than can be eliminated.
    u = eqx.tree_at(lambda u: u.iv, drug.inputs(), steady_boluses(2.0))
    p = assign(drug.params(), {"CL": 0.4, "ka": 30.0})
    found = jax.jit(lambda p: simulate(saturable(1e-6), p, u, jnp.array([1.0])))(p)
    assert found.outcome != Outcome.SOLVED and np.isnan(found.state.central[0])


def test_a_modelled_duration_that_no_model_states_is_told(read):
    record = jax.tree.map(lambda leaf: leaf[0], read(("duration",)))
    found = simulate(replace(drug, dosing=None), drug.params(), record.inputs, jnp.array([9.0]))
    assert np.isnan(found.output.concentration[0]) and found.outcome != Outcome.SOLVED


def test_infusions_that_overlap_more_than_there_is_room_for_are_told(read):
    record = jax.tree.map(lambda leaf: leaf[0], read(("steady duration",)))
    p = assign(drug.params(), {"CL": 1.1, "V": 20.0, "ka": 1.5, "duration_iv": 49.0})
    assert np.isnan(simulate(drug, p, record.inputs, jnp.array([9.0])).output.concentration[0])


def test_a_lag_moves_doses_and_not_the_moment_of_a_steady_state():
    late = delay(steady_boluses(12.0), 2.0)
    np.testing.assert_array_equal(late.time, [2.0])
    np.testing.assert_array_equal(late.rules.restarts.time, [0.0])
    np.testing.assert_array_equal(late.rules.restarts.lag, [2.0])


def test_a_model_with_noise_refuses_steady_states():
    noisy = replace(saturable(), diffusion=lambda t, x, u, p: x, solver=Solver(dt=0.1))
    u = eqx.tree_at(lambda u: u.iv, drug.inputs(), steady_boluses(12.0))
    with pytest.raises(ValueError, match="does not know resets and steady states"):
        simulate(noisy, drug.params(), u, jnp.array([1.0]), key=jax.random.key(0))
