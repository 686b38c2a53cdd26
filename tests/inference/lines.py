"""A predictor without differential equations: points about a straight line. It compiles at once."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import numpy as np
import numpyro.distributions as dist

from dtwin_jax.core.predictor import Schema
from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param, quantities, var
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.types import Scalar


class Params(eqx.Module):
    level: Scalar = param(1.0, "1", normal(1.0, 2.0))
    slope: Scalar = param(0.5, "/h", lognormal(0.5, log_sd=0.8))
    sd: Scalar = param(0.3, "1", lognormal(0.3, log_sd=0.5))


class Inputs(eqx.Module):
    pass


class Outputs(eqx.Module):
    y: Scalar = var("1")


@dataclass(frozen=True)
class Line:
    """y(t) is normal about level + slope t."""

    name: str = "line"

    def params(self) -> Any:
        return Params()

    def inputs(self) -> Any:
        return Inputs()

    def schema(self) -> Schema:
        return Schema({}, {"y": quantities(Outputs)["y"]}, quantities(Params), "h")

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        return {"y": dist.Normal(p.level + p.slope * record.observations["y"].time, p.sd)}


line = Line()

TIME = np.array([0.0, 1.0, 2.5, 4.0])


def cohort(values, **known):
    """One patient a row of `values`, measured at TIME, with facts given as one value a patient."""
    return stack(
        {
            f"p{i}": Record(
                Inputs(), {"y": Series(TIME, row)}, {name: fact[i] for name, fact in known.items()}
            )
            for i, row in enumerate(values)
        }
    )
