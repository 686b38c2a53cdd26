"""Rosenbrock steps against closed forms: order, error, curve, stiffness; lanes that are alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from dtwin_jax.core.quantity import var
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics import rosenbrock
from dtwin_jax.dynamics.rosenbrock import RODAS4, RODAS5P, Rosenbrock

both = pytest.mark.parametrize("table", [RODAS4, RODAS5P], ids=["Rodas4", "Rodas5P"])


class Pair(eqx.Module):
    a: Scalar = var("1")
    b: Scalar = var("1")


def known(t):
    return Pair(2.0 + jnp.sin(t), jnp.exp(-t))


def rate(t, y):
    """Nonlinear, with time in it, and solved by `known`."""
    forced = 2.0 + jnp.sin(t)
    return Pair(jnp.cos(t) + forced**2 - y.a**2, (y.a - forced) * y.b**2 - y.b)


def solved(method, rate, y, end, count):
    """The end of `count` equal steps from 0, with the end a lane."""
    h = end / count

    def step(i, y):
        return method.step(rate, i * h, y, method.start(rate, i * h, y), h)[0]

    return jax.jit(lambda y: jax.lax.fori_loop(0, count, step, y))(y)


def distance(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)


def slope(sizes, errors):
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


@both
def test_error_falls_with_the_order_of_the_method(table):
    end, counts = jnp.full(1, 2.0), [16, 32, 64]
    errors = [distance(solved(Rosenbrock(table), rate, known(0 * end), end, n), known(end)) for n in counts]
    assert -slope(counts, errors) == pytest.approx(table.order, abs=0.2)


def first_steps(table):
    """Steps of four sizes side by side from one exact state: sizes, starts and what a step gives."""
    h, t = jnp.array([0.2, 0.1, 0.05, 0.025]), jnp.full(4, 0.3)
    method = Rosenbrock(table)
    return h, t, jax.jit(lambda t, h: method.step(rate, t, known(t), (), h))(t, h)


@both
def test_error_estimate_is_of_the_order_that_the_step_size_is_the_root_of(table):
    h, _, (_, error, _, _) = first_steps(table)
    size = jnp.hypot(error.a, error.b)
    assert slope(h, size) == pytest.approx(Rosenbrock(table).order, abs=0.3)


@both
def test_curve_meets_both_ends_and_is_one_order_less_between(table):
    h, t, (end, _, _, stages) = first_steps(table)
    curve = Rosenbrock(table).curve(known(t), h, stages)

    def at(share):
        return jax.tree.map(lambda *parts: jnp.polyval(jnp.stack(parts[::-1]), share), *curve)

    assert distance(at(0.0), known(t)) == 0.0
    assert distance(at(1.0), end) < 1e-14
    shares = np.linspace(0.1, 0.9, 9)
    wrong = [jnp.hypot(at(s).a - known(t + s * h).a, at(s).b - known(t + s * h).b) for s in shares]
    # Of one step the error is one order above that of the whole solution.
    assert slope(h, np.max(wrong, axis=0)) > table.order - 0.2


@both
def test_a_slow_solution_of_a_fast_rate_stays_accurate(table):
    """Prothero and Robinson 1974: `y' = -1e6 (y - cos t) - sin t` starts on the slow `cos t` and stays."""

    def fast(t, y):
        return -1e6 * (y - jnp.cos(t)) - jnp.sin(t)

    end = jnp.full(1, 5.0)
    assert distance(solved(Rosenbrock(table), fast, jnp.ones(1), end, 50), jnp.cos(end)) < 1e-6


@both
def test_a_fast_fall_is_over_after_one_step(table):
    """L-stable: nothing is left of a component that falls a million times within the step."""

    def fall(t, y):
        return -1e6 * y

    assert distance(solved(Rosenbrock(table), fall, jnp.ones(1), jnp.ones(1), 1), jnp.zeros(1)) < 1e-4


def test_a_lane_knows_nothing_of_its_neighbours():
    method = Rosenbrock()
    t, h = jnp.array([0.0, 0.5, 1.0]), jnp.array([0.1, 0.2, 0.05])
    step = jax.jit(lambda t, y, h: method.step(rate, t, y, (), h)[:2])
    beside = step(t, Pair(known(t).a.at[1].set(jnp.nan), known(t).b), h)
    assert bool(jnp.isnan(beside[0].a[1]))
    for lane in (0, 2):
        only = slice(lane, lane + 1)
        alone = step(t[only], known(t[only]), h[only])
        found = jax.tree.map(lambda leaf, only=only: leaf[only], beside)
        assert distance(found, alone) < 1e-15


class Chain(eqx.Module):
    amount: jax.Array = var("1")


def chain_rates(count):
    return jnp.geomspace(0.5, 200.0, count)


def chain(t, y):
    """Each flows into the next, none into time."""
    out = chain_rates(len(y.amount))[:, None] * y.amount
    return Chain(jnp.concatenate([jnp.zeros_like(out[:1]), out[:-1]]) - out)


@pytest.mark.parametrize("count", [3, 30], ids=["written out", "whole"])
def test_a_chain_of_states_in_one_array_ends_where_its_exponential_does(count):
    k = np.asarray(chain_rates(count))
    matrix = np.diag(k[:-1], -1) - np.diag(k)
    start = np.zeros((count, 2))
    start[0] = 1.0, 3.0
    end = jnp.full(2, 1.0)
    found = solved(Rosenbrock(), chain, Chain(jnp.asarray(start)), end, 40)
    np.testing.assert_allclose(found.amount, scipy.linalg.expm(matrix) @ start, atol=2e-5)


def in_an_array(t, y):
    moved = rate(t, Pair(*y.amount))
    return Chain(jnp.stack([moved.a, moved.b]))


def test_states_in_an_array_step_as_states_of_their_own():
    t, h = jnp.array([0.0, 0.5]), jnp.array([0.1, 0.2])
    own = Rosenbrock().step(rate, t, known(t), (), h)
    array = Rosenbrock().step(in_an_array, t, Chain(jnp.stack([known(t).a, known(t).b])), (), h)
    for one, other in zip(own[:2], array[:2], strict=True):
        np.testing.assert_allclose(jnp.stack([one.a, one.b]), other.amount, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("limit", ["_FEW_STATES", "_FEW_ENTRIES"])
def test_a_matrix_that_is_not_written_out_gives_the_same_step(monkeypatch, limit):
    t, h = jnp.array([0.0, 0.5]), jnp.array([0.1, 0.2])
    written = Rosenbrock().step(rate, t, known(t), (), h)
    monkeypatch.setattr(rosenbrock, limit, 1)
    whole = Rosenbrock().step(rate, t, known(t), (), h)
    assert distance(written, whole) < 1e-13


def test_entries_that_cannot_change_are_left_out_of_the_jacobian():
    """A ring of three, one of whose states drives nothing; against reverse derivatives of one lane."""

    def ring(t, rows):
        x, y, z = rows
        return [-x * y, x * y - y**2, jnp.sin(x) + jnp.floor(z) - 2.0 * z]

    t, rows = jnp.zeros(2), list(jnp.array([[1.0, 2.0], [0.5, 0.1], [0.3, 0.7]]))
    local = jax.jit(lambda t, rows: rosenbrock._linearised(ring, t, rows))
    found = rosenbrock._linearised(ring, t, rows)
    assert set(found.jacobian) == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2)}
    assert found.in_time == [None, None, None] and local(t, rows).in_time == [None, None, None]
    for lane in range(2):
        wanted = jnp.stack(jax.jacrev(lambda x: jnp.stack(ring(0.0, list(x))))(jnp.stack(rows)[:, lane]))
        for (i, j), entry in found.jacobian.items():
            assert float(entry[lane]) == pytest.approx(float(wanted[i, j]), abs=1e-14)


def test_a_state_that_only_listens_is_eliminated_without_filling_zeros():
    """An arrow: all states exchange with the first. Its pivot last fills nothing, first fills everything."""
    entries = {(0, i) for i in range(6)} | {(i, 0) for i in range(6)} | {(i, i) for i in range(6)}
    order, filled = rosenbrock._elimination(entries, 6)
    assert order.index(0) >= 4 and filled == entries
