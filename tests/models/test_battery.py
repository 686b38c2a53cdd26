"""One battery over every model of the catalogue: properties that no model may lack.

A new model is covered by being in the catalogue. What is particular to it stands in `cases.py`.
"""

import functools
import os
from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Case

from dtwin_jax.core.predictor import check_record, log_likelihood
from dtwin_jax.core.quantity import assign, quantities, replace_fields, values
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses, Sampled, Steps
from dtwin_jax.dynamics.check import check_model
from dtwin_jax.dynamics.ensemble import lanes_of, simulate_cohort
from dtwin_jax.dynamics.model import expect
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.models import CATALOGUE, minimal_model
from dtwin_jax.models.minimal_model import Inputs as InsulinInputs

SPAN = {"ms": 50.0, "s": 5.0, "min": 120.0, "h": 30.0, "d": 60.0, "wk": 20.0, "mo": 24.0, "a": 5.0}
PATIENTS = 8
BARE = dict(doses=1, times=15)  # the shortest patient of the cohort, with nothing padded
DIRECTIONS = 3
KEY = jax.random.key(5)


def each(names):
    return pytest.mark.parametrize("name", names)


every_model = each(list(CATALOGUE))
every_ode = each([name for name, model in CATALOGUE.items() if model.diffusion is None])


def case(name):
    return CASES.get(name, Case())


@functools.cache
def tight(name):
    """The model with a solver so close that finite differences see its derivative, not its steps."""
    model = CATALOGUE[name]
    if model.solver.dt is not None:
        return model
    atol = tuple(1e-4 * np.atleast_1d(model.solver.atol).astype(float))
    solver = replace(model.solver, rtol=case(name).rtol, atol=atol[0] if len(atol) == 1 else atol)
    return replace(model, solver=replace(solver, max_steps=max(solver.max_steps, 16384)))


def adaptive(model):
    return model.flow is None and model.solver.dt is None


def parameters(name):
    """A little below the defaults, and none of them 0."""
    changed, moved = {}, case(name).moved
    for i, (n, value) in enumerate(values(CATALOGUE[name].params()).items()):
        factor = moved.get(n, 0.95 - 0.02 * (i % 5))
        changed[n] = float(value) * factor or (0.1 + 0.02 * (i % 5) if n not in moved else 0.0)
    return assign(CATALOGUE[name].params(), changed)


def record(name, doses=2, times=18):
    """Doses where an amount goes in, elsewhere steps (or samples, where there is no flow to hold them)."""
    model, about, signals = CATALOGUE[name], case(name), {}
    span = about.span or SPAN[model.time]
    for i, (n, quantity) in enumerate(quantities(model.inputs()).items()):
        start, neutral = span * (0.05 * (i % 6) + 0.01), float(getattr(model.inputs(), n))
        if quantity.unit.endswith(f"/{model.time}") and n not in about.levels:
            when = start + 0.4 * span * np.arange(doses)
            amount = np.full(doses, about.amount.get(n, 50.0))
            signals[n] = Doses(when, amount, np.where(np.arange(doses) % 2, 0.1 * span, 0.0))
        else:
            kind = Sampled if model.flow is None else Steps
            when = start + (0.2 + 0.03 * (i % 6)) * span * np.arange(doses + 1)
            usual = neutral + (neutral or 1.0) * np.array([0.5, 2.0, 0.0])
            signals[n] = kind(when, np.resize(about.levels.get(n, usual), doses + 1))
    seen = Series(span * (np.arange(times) + 0.5) / times, np.ones(times))
    outputs = model.schema().outputs
    return Record(replace_fields(model.inputs(), signals), dict.fromkeys(outputs, seen))


def answer(model, p, record):
    """All outputs at all times, (outputs, times), and the outcome."""
    series = next(iter(record.observations.values()))
    key = None if model.diffusion is None else KEY
    found = simulate(model, p, record.inputs, series.time, after=series.after, t0=record.t0, key=key)
    return jnp.stack(jax.tree.leaves(found.output)), found.outcome


@functools.cache
def one(model):
    return jax.jit(functools.partial(answer, model))


@functools.cache
def many(model):
    return jax.jit(jax.vmap(functools.partial(answer, model)))


@functools.cache
def moves(model):
    """(p, record, (k, parameters) relative moves) -> outputs' derivatives along each, (k, outputs, times)."""
    forward, names = model.differentiated("forward"), list(values(model.params()))

    def along(p, record, move):
        def moved(size):
            relative = {n: (1 + size * move[i]) * values(p)[n] for i, n in enumerate(names)}
            return answer(forward, assign(p, relative), record)[0]

        return jax.jvp(moved, (0.0,), (1.0,))[1]

    return jax.jit(jax.vmap(along, in_axes=(None, None, 0)))


@functools.cache
def reverse_gradient(model):
    return jax.jit(
        jax.grad(
            lambda p, record, weight: jnp.sum(answer(model.differentiated("reverse"), p, record)[0] * weight)
        )
    )


@functools.cache
def cohort(name):
    """Patients of unlike numbers of doses and samples, the first and fourth with the fewest."""
    rows = {f"p{i}": record(name, doses=1 + i % 2, times=15 + i % 4) for i in range(PATIENTS)}
    spread = jax.tree.map(lambda leaf: leaf * (1 + 0.01 * jnp.arange(float(PATIENTS))), parameters(name))
    return spread, stack(rows)


def row(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def repeated(tree):
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (PATIENTS, *np.shape(leaf))), tree)


def directions(name):
    """Relative moves of parameters: each one that data recover by itself, then all of them at random."""
    names = list(values(CATALOGUE[name].params()))
    units = np.eye(len(names))[[names.index(n) for n in recovered(name)]]
    rng = np.random.default_rng(3)
    return np.concatenate([units, rng.choice([-1.0, 1.0], (DIRECTIONS, len(names)))])


def only_if_asked(name):
    if case(name).slow and not os.environ.get("DTWIN_SLOW"):
        pytest.skip(f"{name} takes minutes to compile: set DTWIN_SLOW=1 to compare it")


def recovered(name):
    chosen = case(name).recovered
    if chosen is not None:
        return list(chosen)
    # Errors of measurement are no part of what is expected.
    p = quantities(CATALOGUE[name].params())
    return [n for n, q in p.items() if q.prior and n.split("_")[0] not in ("sd", "cv")]


def sizes(found):
    """The largest value of each output, (outputs, 1): what its errors are compared with."""
    return np.maximum(np.max(np.abs(found), axis=-1, keepdims=True), 1e-12)


@every_model
def test_model_is_sound(name):
    """Units scale; drift affine in doses; flow solves the drift; structs and values as they should be."""
    assert check_model(CATALOGUE[name]) == []


@every_model
def test_typical_study_is_a_record_of_the_model_that_it_can_predict(name):
    """What is to be measured counts as measured, so that a design has information."""
    model = CATALOGUE[name]
    assert model.example is not None, "give it an example: what is given, and when what is measured"
    study = model.example()
    check_record(model, study)
    assert study.observations and all(np.all(s.mask) for s in study.observations.values())
    mean = replace(model, diffusion=None)  # an SDE's outputs without its noise
    predicted = values(jax.jit(lambda p: expect(mean, p, study))(model.params()))
    assert all(np.all(np.isfinite(predicted[channel])) for channel in study.observations)


@every_model
def test_equations_say_the_same_compiled_and_not(name):
    model, p = CATALOGUE[name], parameters(name)
    x, u, t = model.init(p), model.inputs(), jnp.asarray(0.7)

    def equations(t, x, u, p):
        made = [model.init(p), model.drift(t, x, u, p), model.observe(t, x, u, p)]
        made += [] if model.flow is None else [model.flow(t, x, u, p)]
        made += [] if model.event is None else [model.event(t, x, u, u, p)]
        return made + ([] if model.diffusion is None else [model.diffusion(t, x, u, p)])

    compiled, eager = jax.jit(equations)(t, x, u, p), equations(t, x, u, p)
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


@every_model
def test_cohort_equals_patients_one_by_one(name):
    """Padded and in a batch, or bare and alone: the first and fifth patients are alike but for parameters."""
    model, (p, patients) = tight(name), cohort(name)
    together, outcome = many(model)(p, patients.record)
    assert np.all(outcome == Outcome.SOLVED) and np.all(np.isfinite(together))
    for index in (0, 4):
        alone, _ = one(model)(row(p, index), record(name, **BARE))
        # An adaptive step turns rounding into an error within its tolerance.
        rtol = case(name).slack * max(100 * case(name).rtol, 1e-9) if adaptive(model) else 1e-12
        padded = together[index][:, : BARE["times"]]
        np.testing.assert_array_less(np.abs(padded - alone), rtol * (np.abs(alone) + sizes(alone)) + 1e-12)


@each([name for name, model in CATALOGUE.items() if lanes_of(model)])
def test_lanes_agree_with_diffrax(name):
    """The cohort by the ensemble's own steps, against Diffrax patient by patient, at a tight tolerance."""
    only_if_asked(name)
    model, (p, patients) = tight(name), cohort(name)
    wanted, _ = many(model)(p, patients.record)
    series = next(iter(patients.record.observations.values()))
    found = simulate_cohort(
        model, p, patients.record.inputs, series.time, t0=patients.record.t0, after=series.after
    )
    assert np.all(found.outcome == Outcome.SOLVED)
    output = np.stack(jax.tree.leaves(found.output), axis=1)
    # Kvaerno5 itself may be off by 1.4e-8 at its tolerance here (pressure_and_kidney; Rodas5P by 5e-11).
    rtol = case(name).slack * max(100 * case(name).rtol, 2e-8)
    size = np.stack([sizes(patient) for patient in wanted])
    np.testing.assert_array_less(np.abs(output - wanted), rtol * (np.abs(wanted) + size) + 1e-12)


@each(["one_compartment", "minimal_model", "linear_health"])
def test_padding_adds_nothing_to_the_likelihood(name):
    model, (p, patients) = CATALOGUE[name], cohort(name)
    total = functools.partial(_total, model)
    alone = jax.jit(total)(row(p, 0), record(name, **BARE))
    padded = jax.jit(total)(row(p, 0), patients.at(0))
    np.testing.assert_allclose(padded, alone, rtol=1e-12)


def _total(model, p, record):
    return sum(jnp.sum(each) for each in log_likelihood(model, p, record).values())


@every_model
def test_gradients_are_finite_and_equal_finite_differences(name):
    """Forward and reverse against central differences, in directions that move every parameter."""
    only_if_asked(name)
    model, p, patient = tight(name), parameters(name), record(name, **BARE)
    names = list(values(p))
    along = directions(name)
    forward = np.asarray(moves(model)(p, patient, along))
    assert np.all(np.isfinite(forward))
    # A longer step where the solver chooses its own, anew at every parameter.
    step = case(name).step if adaptive(model) else 1e-5
    lanes = np.zeros((PATIENTS, len(names)))
    lanes[: 2 * DIRECTIONS] = np.repeat(along[-DIRECTIONS:], 2, axis=0) * np.resize(
        [step, -step], 2 * DIRECTIONS
    ).reshape(-1, 1)
    moved = {n: values(p)[n] * (1 + jnp.asarray(lanes[:, i])) for i, n in enumerate(names)}
    shifted = np.asarray(many(model)(assign(repeated(p), moved), repeated(cohort(name)[1].at(0)))[0])
    shifted = shifted[..., : BARE["times"]]
    size = sizes(shifted[-1])
    for k in range(DIRECTIONS):
        numeric = (shifted[2 * k] - shifted[2 * k + 1]) / (2 * step)
        found = forward[k - DIRECTIONS]
        reach = np.maximum(size, np.max(np.abs(numeric), axis=-1, keepdims=True))
        bound = case(name).slack * (1e-5 * np.abs(numeric) + 2e-6 * reach)
        np.testing.assert_array_less(np.abs(found - numeric), bound)
    weight = jnp.cos(jnp.arange(float(shifted[0].size))).reshape(shifted[0].shape) / size
    backward = values(reverse_gradient(model)(p, patient, weight))
    backward = np.array([float(backward[n] * values(p)[n]) for n in names])
    assert np.all(np.isfinite(backward))
    wanted = np.sum(forward * np.asarray(weight), axis=(1, 2))
    reach = np.sum(np.abs(forward * np.asarray(weight)), axis=(1, 2))
    bound = case(name).slack * (1e-6 * reach + 1e-8 * size.size)
    np.testing.assert_array_less(np.abs(along @ backward - wanted), bound)


@every_model
def test_a_body_at_rest_stays_at_rest(name):
    """No dose, neutral inputs: the rate is 0 at the start, and so is every later change."""
    rest = case(name).rest
    if rest is None:
        pytest.skip(f"{name} is never at rest")
    model = CATALOGUE[name]
    p, u = assign(model.params(), rest), model.inputs()
    start, now = model.init(p), jnp.asarray(0.0)
    largest = max(abs(float(value)) for value in values(start).values())
    for part, rate in values(model.drift(now, start, u, p)).items():
        np.testing.assert_allclose(rate, 0.0, atol=1e-11 * max(1.0, largest), err_msg=part)
    signals = {}
    for n, signal in vars(record(name, **BARE).inputs).items():
        still = np.full(np.shape(signal.time), float(getattr(u, n)))
        signals[n] = (
            Doses(signal.time, 0.0) if isinstance(signal, Doses) else type(signal)(signal.time, still)
        )
    quiet = Record(replace_fields(u, signals), record(name, **BARE).observations)
    found, _ = one(tight(name))(p, quiet)
    at_start = jnp.stack(jax.tree.leaves(model.observe(now, start, u, p)))[:, None]
    np.testing.assert_allclose(found, np.broadcast_to(at_start, found.shape), rtol=1e-8, atol=1e-11)


@every_ode
def test_noise_free_data_give_the_parameters_back(name):
    """Gauss-Newton from a start 10 % off, over the parameters that the record determines."""
    only_if_asked(name)
    model, patient, estimated = tight(name), record(name, **BARE), recovered(name)
    if not estimated:
        pytest.skip(f"nothing of {name} is estimated")
    truth = parameters(name)
    data, _ = one(model)(truth, patient)
    scale = sizes(data)
    wanted = np.array([float(values(truth)[n]) for n in estimated])
    now = wanted * (1 + 0.1 * np.cos(3 * np.arange(len(wanted))))
    for _ in range(10):
        p = assign(truth, dict(zip(estimated, map(float, now), strict=True)))
        misfit = np.ravel((data - one(model)(p, patient)[0]) / scale)
        # Relative changes: the parameters differ by powers of ten.
        columns = np.asarray(moves(model)(p, patient, directions(name)))[: len(estimated)] / scale
        move, _, rank, _ = np.linalg.lstsq(columns.reshape(len(estimated), -1).T, misfit, rcond=1e-12)
        assert rank == len(estimated)
        now = now * (1 + np.clip(move, -0.3, 0.3))
    np.testing.assert_allclose(now, wanted, rtol=1e-5)


@every_model
def test_new_values_never_retrace(name):
    model, (p, patients) = tight(name), cohort(name)
    compiled = many(model)
    compiled(p, patients.record)
    before = compiled._cache_size()
    compiled(jax.tree.map(lambda leaf: leaf * 1.01, p), patients.record)
    many(replace(model))(p, patients.record)
    assert compiled._cache_size() == before


@every_model
def test_one_failed_patient_is_told_and_leaves_the_others_alone(name):
    """Parameters that are no numbers: the outcome says so, and nobody else notices."""
    model, (p, patients) = tight(name), cohort(name)
    sound, _ = many(model)(p, patients.record)
    broken = jax.tree.map(lambda leaf: leaf.at[4].set(jnp.nan), p)
    found, outcome = many(model)(broken, patients.record)
    assert np.flatnonzero(outcome != Outcome.SOLVED).tolist() == [4]
    assert np.any(np.isnan(found[4]))
    others = np.arange(PATIENTS) != 4
    # An implicit method looks at the whole batch when it decides to compute Jacobians anew.
    implicit = model.flow is None and isinstance(model.solver.method(), diffrax.AbstractImplicitSolver)
    rtol = 1e-6 * case(name).slack if implicit else 1e-12
    reach = np.abs(sound[others]) + sizes(sound[others])
    np.testing.assert_array_less(np.abs(found[others] - sound[others]), rtol * reach + 1e-12)


def test_a_stiff_patient_of_256_is_told_and_leaves_the_others_alone():
    """One patient needs more steps than allowed; the other 255 equal the run with a mild one in its place."""
    model = replace(minimal_model, solver=Solver(max_steps=100))
    insulin = Sampled([0.0, 10.0, 60.0], [4.5, 60.0, 10.0])
    seen = Record(InsulinInputs(insulin), {"glucose": Series([10.0, 120.0], [250.0, 90.0])})
    p = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, 256), model.params())
    p = assign(p, {"SG": jnp.linspace(0.01, 0.03, 256)})

    @jax.jit
    def run(p):
        return jax.vmap(lambda p: (answer(model, p, seen), _total(model, p, seen)))(p)

    (mild, all_solved), _ = run(p)
    (found, outcome), score = run(assign(p, {"SG": p.SG.at[17].set(1e4)}))
    assert np.all(all_solved == Outcome.SOLVED)
    assert np.flatnonzero(outcome == Outcome.MAX_STEPS).tolist() == [17]
    assert np.all(np.isfinite(score)) and np.argmin(score) == 17
    others = np.arange(256) != 17
    np.testing.assert_allclose(found[others], mild[others], rtol=1e-12)
