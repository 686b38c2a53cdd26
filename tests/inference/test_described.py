"""What a calibration is known again by: another model, wherever it is written, and other data are others."""

import importlib
import linecache
import sys
from functools import partial, wraps
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lines import TIME, Inputs, line

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Sampled, Steps
from dtwin_jax.dynamics.autocorrelated import autocorrelated
from dtwin_jax.inference.covariate import Covariate
from dtwin_jax.inference.described import described
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.occasions import Occasions
from dtwin_jax.inference.population import Population, density_of
from dtwin_jax.inference.run import Run

WRITTEN = """
import equinox as eqx
from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive

class Params(eqx.Module):
    k: Scalar = param(1.0, "/h", lognormal(1.0, log_sd=1.0))
    sd: Scalar = param(1.0, "1", lognormal(1.0, log_sd=1.0))

class Inputs(eqx.Module):
    pass

class State(eqx.Module):
    a: Scalar = var("1")

class Outputs(eqx.Module):
    y: Scalar = var("1")

def init(p):
    return State(a=1.0)

def drift(t, x, u, p):
    return State(a=-{factor} * p.k * x.a)

def observe(t, x, u, p):
    return Outputs(y=x.a)

def form(coefficient, value, reference):
    return {factor} * coefficient * (value - reference)

decay = Model("decay", Params, Inputs, init, drift, observe, noise=additive, time="h")
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The module of a user, with a factor in it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def imported(factor):
        (tmp_path / "of_a_user.py").write_text(WRITTEN.replace("{factor}", str(factor)))
        sys.modules.pop("of_a_user", None)
        importlib.invalidate_caches()
        linecache.clearcache()
        return importlib.import_module("of_a_user")

    yield imported
    sys.modules.pop("of_a_user", None)


def by_age(form):
    return Covariate("level", "age", "a", 50.0, 0.1, form)


def words(f):
    return described(density_of(f, {}, ())[0])


@pytest.mark.parametrize(
    "made",
    [
        lambda module: module.decay,
        lambda module: Population(module.decay, ("k",), occasions=Occasions(2, ("k",))),
        lambda module: autocorrelated(module.decay, 2.0, lognormal(2.0, log_sd=1.0)),
        lambda module: Population(line, ("level",), (by_age(module.form),)),
    ],
    ids=["alone", "by occasion", "in another", "form of a covariate"],
)
def test_a_model_is_another_when_its_file_is(written, made):
    first, again, other = (words(made(written(factor))) for factor in (1.0, 1.0, 2.0))
    assert first == again != other


def scaled(factor, x):
    return factor * x


def test_a_function_is_another_when_it_was_made_with_something_else():
    def made(factor):
        return lambda x: factor * x

    for make in (made, lambda factor: lambda x, factor=factor: factor * x, lambda f: partial(scaled, f)):
        assert described(make(2.0)) == described(make(2.0)) != described(make(3.0))
        assert described(jax.jit(make(2.0))) != described(jax.jit(make(3.0)))


def test_a_check_of_types_makes_no_other_function_of_it():
    @wraps(scaled)
    def checked(*given):
        return scaled(*given)

    assert described(checked) == described(scaled)


def test_a_function_that_knows_itself_is_described():
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    assert "factorial" in described(factorial)


class OneInput(eqx.Module):
    u: Any


def mark(record):
    """Of a calibration of one patient with this record."""
    cohort = stack({"a": record})
    density, base = density_of(line, {}, ())
    run = Run(density, base, cohort, Nuts(), jax.random.key(0), None)
    keys = jax.random.split(jax.random.key(0), 4)
    return run._fingerprint(base, jax.tree.map(jnp.asarray, cohort.record), keys)


def test_data_are_others_when_their_channel_or_the_kind_of_an_input_is():
    series = Series(TIME, np.ones(4))
    marks = [mark(Record(Inputs(), {name: series})) for name in ("y", "y", "z")]
    assert marks[0] == marks[1] != marks[2]
    given = (OneInput(kind(TIME, TIME)) for kind in (Steps, Sampled))
    steps, sampled = (mark(Record(each, {"y": series})) for each in given)
    assert steps != sampled
