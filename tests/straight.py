"""A predictor without differential equations: points about a straight line. It compiles at once."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import numpyro.distributions as dist

from dtwin_jax.core.predictor import Schema
from dtwin_jax.core.prior import normal
from dtwin_jax.core.quantity import param, quantities, var
from dtwin_jax.core.record import Record
from dtwin_jax.core.types import Scalar


class Params(eqx.Module):
    start: Scalar = param(1.0, "1", normal(1.0, 2.0))
    slope: Scalar = param(0.5, "/h", normal(0.5, 0.8))
    sd: Scalar = param(0.3, "1")


class Inputs(eqx.Module):
    pass


class Outputs(eqx.Module):
    level: Scalar = var("1")


@dataclass(frozen=True)
class Line:
    """The level at time t is normal about start + slope t."""

    name: str = "line"

    def params(self) -> Any:
        return Params()

    def inputs(self) -> Any:
        return Inputs()

    def schema(self) -> Schema:
        return Schema({}, quantities(Outputs), quantities(Params), "h")

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        return {"level": dist.Normal(p.start + p.slope * record.observations["level"].time, p.sd)}


line = Line()
