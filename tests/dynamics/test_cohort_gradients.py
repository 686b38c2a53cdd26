"""Derivatives of a cohort in lanes, in both modes, against those of `simulate` and finite differences."""

import functools
from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import (
    TIGHT,
    Inputs,
    OnlyTime,
    Params,
    StartParams,
    blowing_up,
    exact,
    late_infusion,
    stepped,
)

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.signal import Doses, Sampled
from dtwin_jax.core.types import Scalar, Vector
from dtwin_jax.dynamics import sensitivity
from dtwin_jax.dynamics.ensemble import simulate_cohort
from dtwin_jax.dynamics.sensitivity import MOST_DIRECTIONS
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models import minimal_model
from dtwin_jax.models.minimal_model import Inputs as Insulin

COUNT = 6
TIMES = np.array([0.5, 1.0, 2.0, 3.7, 6.0, 11.0])
late = replace(stepped, dosing=late_infusion)
late_exact = replace(exact, dosing=late_infusion)


def tree(p, count=COUNT, spread=0.1):
    return jax.tree.map(lambda leaf: float(leaf) * (1 + spread * jnp.arange(float(count))), p)


def doses():
    when = np.array([0.0, 1.6]) + np.linspace(0.0, 0.3, COUNT)[:, None]
    return Inputs(iv=eqx.filter_vmap(Doses)(when, np.full((COUNT, 2), 10.0)), clearance_ratio=1.3)


AXES = (0, jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, doses()), None)


def loss_in_lanes(p, inputs):
    """Of all outputs, each weighed otherwise."""
    found = simulate_cohort(late, p, inputs, TIMES, in_axes=AXES)
    return weighed(found.output)


slopes_in_lanes = jax.jit(jax.grad(loss_in_lanes, argnums=(0, 1)))


def loss_one_by_one(p, inputs):
    """By the closed form, which JAX differentiates by itself."""
    one = lambda p, inputs: simulate(late_exact, p, inputs, TIMES).output  # noqa: E731
    return weighed(jax.vmap(one, in_axes=AXES[:2])(p, inputs))


def weighed(output):
    weight = jnp.cos(jnp.arange(float(COUNT * len(TIMES)))).reshape(COUNT, -1)
    return jnp.sum(weight * output.concentration**2) + jnp.sum(jnp.sin(output.amount))


def same(found, wanted, rtol=1e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-9)


def test_gradient_equals_that_of_the_closed_form():
    """By parameters, amounts, times and durations of doses of every patient and an input that all share."""
    found = slopes_in_lanes(tree(Params()), doses())
    wanted = jax.jit(jax.grad(loss_one_by_one, argnums=(0, 1)))(tree(Params()), doses())
    assert all(np.any(np.abs(leaf) > 1e-3) for leaf in jax.tree.leaves(replace(wanted[0], sd=1.0)))
    same(found, wanted)


def test_gradient_equals_finite_differences():
    p, inputs = tree(Params()), doses()
    slope, _ = slopes_in_lanes(p, inputs)
    loss = jax.jit(loss_in_lanes)
    for name in ("k", "lag", "duration"):
        value, step = getattr(p, name), 1e-4

        def at(shift, name=name, value=value):
            return float(loss(assign(p, {name: value.at[2].add(shift)}), inputs))

        found = (8 * (at(step) - at(-step)) - at(2 * step) + at(-2 * step)) / (12 * step)
        np.testing.assert_allclose(found, getattr(slope, name)[2], rtol=1e-6, atol=1e-7)


def test_both_modes_give_one_jacobian():
    p, inputs = tree(Params()), doses()

    def outputs(k):
        return simulate_cohort(late, replace(p, k=k), inputs, TIMES, in_axes=AXES).output.amount

    forward, reverse = jax.jit(jax.jacfwd(outputs))(p.k), jax.jit(jax.jacrev(outputs))(p.k)
    np.testing.assert_allclose(reverse, forward, rtol=1e-12, atol=1e-12)
    # Nobody depends on another's parameters.
    others = ~np.eye(COUNT, dtype=bool)[:, None, :].repeat(len(TIMES), axis=1)
    assert np.all(np.asarray(forward)[others] == 0.0) and np.any(np.asarray(forward) != 0.0)


def test_curvature_is_forward_over_reverse():
    p, inputs = tree(Params()), doses()

    def of(loss):
        return lambda scale: loss(replace(p, k=p.k * scale[0], F=p.F * scale[1]), inputs)

    found, wanted = (jax.jit(jax.hessian(of(loss)))(jnp.ones(2)) for loss in (loss_in_lanes, loss_one_by_one))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("method", [diffrax.Dopri5, diffrax.Kvaerno5])
def test_gradient_of_other_methods_by_shared_parameters_in_blocks(method):
    """A shared parameter gathers what all patients say of it, over blocks of two lanes."""
    model = replace(minimal_model, solver=replace(TIGHT, method=method, rtol=1e-9, atol=1e-11))
    glucose = Insulin(insulin=Sampled([0.0, 10.0, 60.0], [4.5, 80.0, 6.0]))
    times, p = np.linspace(1.0, 90.0, 7), minimal_model.params()
    axes = jax.tree.map(lambda _: None, p)
    axes = eqx.tree_at(lambda t: t.SI, axes, 0, is_leaf=lambda leaf: leaf is None)
    own = {"SI": p.SI * jnp.linspace(0.5, 1.5, COUNT), "SG": jnp.asarray(p.SG), "G0": jnp.asarray(p.G0)}

    def lanes(own):
        ways = {"in_axes": (axes, None, None), "lanes": 2, "block": 3}
        found = simulate_cohort(model, assign(p, own), glucose, times, **ways)
        return jnp.sum(jnp.log(found.output.glucose) ** 2)

    def alone(own):
        tight = replace(minimal_model, solver=TIGHT)
        one = lambda p: simulate(tight, p, glucose, times).output.glucose  # noqa: E731
        return jnp.sum(jnp.log(jax.vmap(one, in_axes=(axes,))(assign(p, own))) ** 2)

    same(jax.jit(jax.grad(lanes))(own), jax.jit(jax.grad(alone))(own))


def test_few_patients_have_both_modes():
    """Fewer than are worth lanes."""
    p = tree(Params(), 2)
    inputs = Inputs(iv=1.0, clearance_ratio=1.0)

    def outputs(k):
        found = simulate_cohort(stepped, replace(p, k=k), inputs, TIMES, in_axes=(0, None, None))
        return found.output.amount

    one = lambda k: simulate(exact, replace(Params(), k=k), inputs, TIMES).output.amount  # noqa: E731
    wanted = jax.jit(jax.vmap(jax.jacfwd(one)))(p.k)
    for mode in (jax.jacfwd, jax.jacrev):
        found = jax.jit(mode(outputs))(p.k)
        for i, slope in enumerate(wanted):
            np.testing.assert_allclose(found[i, :, i], slope, rtol=1e-7, atol=1e-9)


def test_a_patient_who_fails_spoils_no_gradient():
    p = jax.tree.map(lambda leaf: jnp.full(4, float(leaf)), StartParams())
    times = np.array([0.25, 0.75, 1.5])

    def loss(start):
        found = simulate_cohort(
            blowing_up, replace(p, start=start), OnlyTime(), times, in_axes=(0, None, None)
        )
        return jnp.sum(jnp.where(jnp.isfinite(found.state.level), found.state.level, 0.0))

    start = jnp.array([0.1, 1.0, 0.2, 0.3])
    wanted = 1.0 / (1.0 - jnp.outer(start, times)) ** 2
    wanted = jnp.sum(wanted.at[1, 2].set(0.0), axis=1)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(start), wanted, rtol=1e-4)


class ManyParams(eqx.Module):
    """Weights of a network, say."""

    weight: Vector = eqx.field(default_factory=lambda: jnp.full(MOST_DIRECTIONS + 1, 0.01))
    sd: Scalar = 1.0


def sink(t, x, u, p):
    return replace(x, level=-jnp.sum(p.weight) * x.level)


def test_more_numbers_than_directions_are_forward_only():
    many = replace(blowing_up, params=ManyParams, init=lambda p: type(blowing_up.init(StartParams()))(1.0))
    many = replace(many, drift=sink, solver=TIGHT)
    p, scale = ManyParams(), jnp.linspace(0.5, 1.5, COUNT)

    def level(weight):
        people = ManyParams(weight=jnp.outer(scale, weight), sd=jnp.ones(COUNT))
        return simulate_cohort(many, people, OnlyTime(), TIMES, in_axes=(0, None, None)).state.level

    along = jnp.ones(MOST_DIRECTIONS + 1)
    _, found = jax.jvp(level, (p.weight,), (along,))
    rate = jnp.outer(scale, TIMES)
    wanted = -rate * len(along) * jnp.exp(-rate * jnp.sum(p.weight))
    np.testing.assert_allclose(found, wanted, rtol=1e-8)
    with pytest.raises(RuntimeError, match=f"by {MOST_DIRECTIONS + 1} numbers a patient"):
        jax.grad(lambda weight: jnp.sum(level(weight)))(p.weight)


def test_parameters_that_no_equation_reads_cost_no_direction(monkeypatch):
    """Of the noise, and of outputs alone."""
    p, inputs, counts = tree(Params()), doses(), []
    units = sensitivity._units
    monkeypatch.setattr(
        sensitivity, "_units", lambda parts, sizes: counts.append(sizes) or units(parts, sizes)
    )

    def loss(model, own):
        return jnp.sum(
            simulate_cohort(model, assign(p, own), inputs, TIMES, in_axes=AXES).output.concentration
        )

    names = ("k", "V", "F", "lag", "sd")
    own = {name: getattr(p, name) for name in names}
    for model, wanted in ((stepped, [1]), (late, [1, 1, 1])):
        jax.eval_shape(jax.grad(functools.partial(loss, model)), own)
        assert counts.pop() == wanted
