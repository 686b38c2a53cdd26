"""A small calibration of two patients, to follow them from there on."""

import warnings

import jax

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.diagnostics import CalibrationWarning
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.models.one_compartment import Inputs, one_compartment

PRIORS = {
    "CL": lognormal(3.0, log_sd=0.3),
    "V": lognormal(30.0, log_sd=0.3),
    "ka": 1.5,
    "sd": 0.5,
    "cv": 0.0,
}


def person(dose, times, values):
    return Record(Inputs(oral=Doses([0.0], [dose])), {"concentration": Series(times, values)})


COHORT = stack({"Zoë": person(300.0, [1.0, 8.0], [5.0, 2.0]), "患者": person(200.0, [2.0, 9.0], [4.0, 1.0])})


def calibrated():
    """The result; its draws are few, so it warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return calibrate(
            one_compartment,
            COHORT,
            key=jax.random.key(0),
            priors=PRIORS,
            method=Nuts(chains=2, warmup=40, draws=40),
        )
