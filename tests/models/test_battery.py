"""One battery over every model of the catalogue: properties that no model may lack.

A new model is covered by being in the catalogue. `REST` says where it is at rest.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.predictor import log_likelihood
from dtwin_jax.core.quantity import assign, quantities, replace_fields, values
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses, Sampled, Steps
from dtwin_jax.dynamics.check import check_model
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.models import CATALOGUE, minimal_model
from dtwin_jax.models.minimal_model import Inputs as InsulinInputs

# Parameters at which nothing moves while nothing is given; None where a model is never at rest.
REST = {"minimal_model": {"G0": 91.34}, "linear_health_sde": {"sigma2": 0.0}}
SPAN = {"h": 30.0, "min": 120.0, "d": 60.0, "a": 5.0}
PATIENTS = 20
KEY = jax.random.key(5)

every_model = pytest.mark.parametrize("name", CATALOGUE)
every_ode = pytest.mark.parametrize(
    "name", [name for name, model in CATALOGUE.items() if model.diffusion is None]
)


def tight(name):
    """The model with a solver so close that finite differences see its derivative, not its steps."""
    model = CATALOGUE[name]
    if model.solver.dt is not None:
        return model
    return replace(model, solver=replace(model.solver, rtol=1e-10, atol=1e-12))


def adaptive(model):
    return model.flow is None and model.solver.dt is None


def parameters(model):
    """A little below the defaults, and none of them 0."""
    changed = {
        name: float(value) * (0.95 - 0.02 * i) or 0.1 + 0.02 * i
        for i, (name, value) in enumerate(values(model.params()).items())
    }
    return assign(model.params(), changed)


def record(model, doses=2, times=18):
    """Doses where an amount goes in, elsewhere steps (or samples, where there is no flow to hold them)."""
    span, signals = SPAN[model.time], {}
    for i, (name, quantity) in enumerate(quantities(model.inputs()).items()):
        start, neutral = span * (0.05 * i + 0.01), float(getattr(model.inputs(), name))
        if quantity.unit.endswith(f"/{model.time}"):
            when = start + 0.4 * span * np.arange(doses)
            signals[name] = Doses(when, np.full(doses, 50.0), np.where(np.arange(doses) % 2, 0.1 * span, 0.0))
        else:
            kind = Sampled if model.flow is None else Steps
            when = start + (0.2 + 0.03 * i) * span * np.arange(doses + 1)
            signals[name] = kind(when, neutral + (neutral or 1.0) * np.resize([0.5, 2.0, 0.0], doses + 1))
    seen = Series(span * (np.arange(times) + 0.5) / times, np.ones(times))
    outputs = model.schema().outputs
    return Record(replace_fields(model.inputs(), signals), dict.fromkeys(outputs, seen))


def answer(model, p, record):
    """All outputs at all times as one vector, and the outcome."""
    series = next(iter(record.observations.values()))
    key = None if model.diffusion is None else KEY
    found = simulate(model, p, record.inputs, series.time, after=series.after, t0=record.t0, key=key)
    return jnp.concatenate(jax.tree.leaves(found.output)), found.outcome


@functools.cache
def one(model):
    return jax.jit(functools.partial(answer, model))


@functools.cache
def many(model):
    return jax.jit(jax.vmap(functools.partial(answer, model)))


@functools.cache
def jacobian(model):
    return jax.jit(jax.jacfwd(lambda p, record: answer(model.differentiated("forward"), p, record)[0]))


@functools.cache
def reverse_gradient(model):
    return jax.jit(
        jax.grad(lambda p, record, weight: answer(model.differentiated("reverse"), p, record)[0] @ weight)
    )


@functools.cache
def cohort(name):
    """Patients of unlike numbers of doses and samples, the first with the fewest, none like another."""
    model = tight(name)
    rows = {f"p{i}": record(model, doses=1 + i % 2, times=15 + i % 4) for i in range(PATIENTS)}
    p = parameters(model)
    spread = jax.tree.map(lambda leaf: leaf * (1 + 0.01 * jnp.arange(float(PATIENTS))), p)
    return spread, stack(rows)


def row(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def repeated(tree):
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (PATIENTS, *np.shape(leaf))), tree)


@every_model
def test_model_is_sound(name):
    """Units scale; drift affine in doses; flow solves the drift; structs and values as they should be."""
    assert check_model(CATALOGUE[name]) == []


@every_model
def test_equations_say_the_same_compiled_and_not(name):
    model, p = CATALOGUE[name], parameters(CATALOGUE[name])
    x, u, t = model.init(p), model.inputs(), jnp.asarray(0.7)

    def equations(t, x, u, p):
        made = [model.init(p), model.drift(t, x, u, p), model.observe(t, x, u, p)]
        made += [] if model.flow is None else [model.flow(t, x, u, p)]
        return made + ([] if model.diffusion is None else [model.diffusion(t, x, u, p)])

    compiled, eager = jax.jit(equations)(t, x, u, p), equations(t, x, u, p)
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


@every_model
def test_cohort_equals_patients_one_by_one(name):
    model, (p, patients) = tight(name), cohort(name)
    together, outcome = many(model)(p, patients.record)
    assert np.all(outcome == Outcome.SOLVED) and np.all(np.isfinite(together))
    for index in (0, 1, 7):
        alone, _ = one(model)(row(p, index), patients.at(index))
        # An adaptive step turns rounding into an error within its tolerance.
        rtol = 1e-10 if adaptive(model) else 1e-12
        np.testing.assert_allclose(together[index], alone, rtol=rtol, atol=1e-12)


@every_model
def test_padding_changes_nothing(name):
    """A patient alone, with nothing padded, and the same in a cohort of patients with more of everything."""
    model, (p, patients) = tight(name), cohort(name)
    bare = record(model, doses=1, times=15)
    alone, _ = one(model)(row(p, 0), bare)
    padded, _ = one(model)(row(p, 0), patients.at(0))
    outputs = len(bare.observations)
    padded = np.reshape(padded, (outputs, -1))[:, :15].ravel()
    np.testing.assert_allclose(padded, alone, rtol=1e-12, atol=1e-12)


@every_ode
def test_padding_adds_nothing_to_the_likelihood(name):
    model, (p, patients) = CATALOGUE[name], cohort(name)
    total = functools.partial(_total, model)
    alone = jax.jit(total)(row(p, 0), record(model, doses=1, times=15))
    padded = jax.jit(total)(row(p, 0), patients.at(0))
    np.testing.assert_allclose(padded, alone, rtol=1e-12)


def _total(model, p, record):
    return sum(jnp.sum(each) for each in log_likelihood(model, p, record).values())


@every_model
def test_gradients_are_finite_and_equal_finite_differences(name):
    """Forward and reverse against central differences, for every parameter at once."""
    model, p, patient = tight(name), parameters(tight(name)), cohort(name)[1].at(1)
    forward = values(jacobian(model)(p, patient))
    names = list(forward)
    assert 2 * len(names) <= PATIENTS
    moves, base = np.zeros((PATIENTS, len(names))), np.array([float(values(p)[n]) for n in names])
    # A longer step where the solver chooses its own, anew at every parameter.
    steps = (3e-4 if adaptive(model) else 1e-5) * np.abs(base)
    for i in range(len(names)):
        moves[2 * i, i], moves[2 * i + 1, i] = steps[i], -steps[i]
    moved = assign(repeated(p), {n: jnp.asarray(base[i] + moves[:, i]) for i, n in enumerate(names)})
    shifted = np.asarray(many(model)(moved, repeated(patient))[0])
    weight = jnp.cos(jnp.arange(float(shifted.shape[1])))
    backward = values(reverse_gradient(model)(p, patient, weight))
    size = np.max(np.abs(shifted))
    for i, n in enumerate(names):
        numeric = (shifted[2 * i] - shifted[2 * i + 1]) / (2 * steps[i])
        # In units of the outputs: what a change of the parameter by itself does.
        scaled, wanted = np.asarray(forward[n]) * base[i], numeric * base[i]
        assert np.all(np.isfinite(scaled))
        np.testing.assert_allclose(scaled, wanted, rtol=1e-5, atol=2e-6 * size, err_msg=n)
        np.testing.assert_allclose(
            backward[n] * base[i], weight @ scaled, rtol=1e-6, atol=1e-8 * size, err_msg=n
        )


@every_model
def test_a_body_at_rest_stays_at_rest(name):
    """No dose, neutral inputs: the rate is 0 at the start, and so is every later change."""
    if REST.get(name, {}) is None:
        pytest.skip(f"{name} is never at rest")
    model = CATALOGUE[name]
    p = assign(model.params(), REST.get(name, {}))
    start = model.init(p)
    for part, rate in values(model.drift(jnp.asarray(0.0), start, model.inputs(), p)).items():
        np.testing.assert_allclose(rate, 0.0, atol=1e-12, err_msg=part)
    signals = {
        n: Doses([0.0, 1.0], 0.0) if q.unit.endswith(f"/{model.time}") else getattr(model.inputs(), n)
        for n, q in quantities(model.inputs()).items()
    }
    quiet = Record(replace_fields(model.inputs(), signals), record(model).observations)
    found, _ = one(tight(name))(p, quiet)
    at_start = jnp.stack(jax.tree.leaves(model.observe(jnp.asarray(0.0), start, model.inputs(), p)))
    wanted = np.repeat(at_start, found.shape[0] // at_start.shape[0])
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@every_ode
def test_noise_free_data_give_the_parameters_back(name):
    """Gauss-Newton from a start 10 % off, over the parameters that have a prior and move an output."""
    model, patient = tight(name), cohort(name)[1].at(1)
    truth = parameters(model)
    data, _ = one(model)(truth, patient)
    slopes = values(jacobian(model)(truth, patient))
    estimated = [n for n, q in quantities(truth).items() if q.prior and np.any(np.abs(slopes[n]) > 1e-12)]
    wanted = np.array([float(values(truth)[n]) for n in estimated])
    now = wanted * (1 + 0.1 * np.cos(3 * np.arange(len(wanted))))
    for _ in range(8):
        p = assign(truth, dict(zip(estimated, map(float, now), strict=True)))
        misfit = np.asarray(data - one(model)(p, patient)[0])
        columns = np.stack([np.asarray(values(jacobian(model)(p, patient))[n]) for n in estimated], axis=1)
        # Relative changes: the parameters differ by powers of ten.
        move, _, rank, _ = np.linalg.lstsq(columns * now, misfit, rcond=1e-12)
        assert rank == len(estimated)
        now = now * (1 + np.clip(move, -0.5, 0.5))
    np.testing.assert_allclose(now, wanted, rtol=1e-6)


@every_model
def test_new_values_never_retrace(name):
    model, (p, patients) = tight(name), cohort(name)
    compiled = one(model)
    compiled(row(p, 0), patients.at(0))
    before = compiled._cache_size()
    fresh = assign(model.params(), {n: float(v) * 1.01 for n, v in values(model.params()).items()})
    compiled(fresh, patients.at(3))
    one(replace(model))(row(p, 2), patients.at(2))
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
    np.testing.assert_allclose(found[others], sound[others], rtol=1e-12, atol=1e-12)


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
