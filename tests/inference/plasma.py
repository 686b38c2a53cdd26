"""A predictor in closed form: a bolus of 100 mg in one compartment. It compiles at once."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from lines import Inputs

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.types import Scalar

DOSE = 100.0
TIME = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 12.0])


class Params(eqx.Module):
    CL: Scalar = param(3.0, "L/h", lognormal(3.0, log_sd=1.0))
    V: Scalar = param(20.0, "L", lognormal(20.0, log_sd=1.0))
    sd: Scalar = param(0.1, "1", lognormal(0.1, log_sd=1.0))


@dataclass(frozen=True)
class Plasma:
    """The log of a concentration is measured."""

    name: str = "plasma"

    def params(self) -> Any:
        return Params()

    def inputs(self) -> Any:
        return Inputs()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        time = record.observations["y"].time
        return {"y": dist.LogNormal(jnp.log(DOSE / p.V) - p.CL / p.V * time, p.sd)}


plasma = Plasma()


def log_mean(clearance: Any, volume: Any, time: Any = TIME) -> Any:
    """What is expected of the log of a concentration."""
    return np.log(DOSE / volume) - clearance / volume * time


def patients(values: Any, time: Any = TIME) -> Any:
    """One patient a row of concentrations."""
    return stack({f"p{i}": Record(Inputs(), {"y": Series(time, row)}) for i, row in enumerate(values)})
