"""Patients who eliminate a drug by Michaelis-Menten kinetics, solved by SciPy; and a linear model of it."""

from dataclasses import replace

import diffrax
import numpy as np
from scipy.integrate import solve_ivp

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.hybrid import hybrid
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs
from dtwin_jax.neural.residual import Perceptron

VOLUME, VMAX, KM = 20.0, 15.0, 4.0  # L, mg/h, mg/L
TIMES = np.array([1.0, 3.0, 6.0, 10.0, 16.0, 24.0])
CV = 0.03

# The same mechanism without its closed form, which a hybrid cannot use, in steps that are right to 1e-4.
mechanism = replace(one_compartment, flow=None, solver=Solver(diffrax.Bosh3, dt=1.0, max_steps=25))


def elimination(t, x, u, p, net):
    """A change of the rate constant with the concentration: nothing is eliminated where nothing is."""
    return {"central": -0.1 * x.central * net(x.central / p.V)[0]}


saturable = hybrid(mechanism, elimination, Perceptron(centre=(10.0,), spread=(10.0,), width=5))


def start(model):
    """Its parameters, with the error known."""
    return assign(model.params(), {"CL": 2.0, "V": 20.0, "sd": 0.02, "cv": CV})


def concentration(dose, times=TIMES):
    """mg/L after a bolus."""
    rate = lambda t, a: -VMAX * (a / VOLUME) / (KM + a / VOLUME)  # noqa: E731
    found = solve_ivp(rate, (0.0, times[-1]), [dose], t_eval=times, rtol=1e-9, atol=1e-9)
    return found.y[0] / VOLUME


def patients(doses, *, seed=0):
    """A cohort with one bolus each, measured with error."""
    rng = np.random.default_rng(seed)
    records = {}
    for i, dose in enumerate(doses):
        seen = concentration(dose) * np.exp(CV * rng.standard_normal(len(TIMES)))
        given = Inputs(iv=Doses([0.0], [dose]))
        records[f"p{i}"] = Record(given, {"concentration": Series(TIMES, seen)})
    return stack(records)
