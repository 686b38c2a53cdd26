"""Straight lines with normal effects, measured in channels with normal, log-normal and Poisson errors."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from dtwin_jax.core.occasions import NEVER
from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.types import Scalar
from dtwin_jax.inference.population import Population


class Params(eqx.Module):
    level: Scalar = param(2.0, "1", normal(2.0, 2.0))
    slope: Scalar = param(0.5, "/h", normal(0.5, 1.0))
    sd: Scalar = param(0.3, "1", lognormal(0.3, log_sd=0.5))
    broken: Scalar = param(0.0, "1")


class Nothing(eqx.Module):
    pass


@dataclass(frozen=True)
class Lines:
    """`y` is normal about level + slope t, `z` log-normal about exp(level - slope t), `n` a count."""

    name: str = "lines"
    proportional: bool = False

    def params(self) -> Any:
        return Params()

    def inputs(self) -> Any:
        return Nothing()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        told = {}
        lost = jnp.where(p.broken > 0, jnp.nan, 0.0)
        for name, series in record.observations.items():
            line = p.level + (-1.0 if name == "z" else 1.0) * p.slope * series.time + lost
            sd = p.sd * jnp.abs(line) if self.proportional else p.sd * jnp.ones_like(line)
            told[name] = {
                "y": dist.Normal(line, sd),
                "z": dist.LogNormal(line, sd),
                "n": dist.Poisson(jnp.exp(line)),
            }[name]
        return told


START = {"level_pop": 1.8, "slope_pop": 0.6, "sd": 0.25, "omega_level": 0.7, "omega_slope": 0.3}
BETA, OMEGA, SD = np.array([1.8, 0.6]), np.diag([0.49, 0.09]), 0.25
DESIGN = {
    "a": ([0.0, 1.0, 2.5, 4.0], [0.5, 3.0]),
    "b": ([0.0, 2.0], [1.0]),
    "c": ([1.0, 2.0, 3.0], []),
    "limited": ([0.0, 1.0, 3.0], [0.5, 2.0]),
}


def drawn_cohort(design, seed=0, proportional=False, channels=("y", "z"), **known):
    rng = np.random.default_rng(seed)
    records = {}
    for who, times in design.items():
        level, slope = BETA + rng.normal(size=2) * np.sqrt(np.diag(OMEGA))
        series = {}
        for name, time, sign in zip(channels, times, (1.0, -1.0), strict=False):
            line = level + sign * slope * np.asarray(time)
            value = line + SD * (np.abs(line) if proportional else 1.0) * rng.normal(size=len(time))
            if name == "n":
                value = rng.poisson(np.exp(line)).astype(float)
            if len(time):
                series[name] = Series(time, np.exp(value) if name == "z" else value)
        records[who] = Record(Nothing(), series, {k: v[who] for k, v in known.items()})
    return records


def population(f):
    return Population(f, ("level", "slope"))


class Levels(eqx.Module):
    level: Scalar = param(1.0, "1", normal(1.0, 2.0))
    sd: Scalar = param(0.3, "1", lognormal(0.3, log_sd=0.5))


class LevelsByOccasion(Levels):
    level_1: Scalar = param(1.0, "1")
    level_2: Scalar = param(1.0, "1")
    occasion_2: Scalar = param(NEVER, "h")


@dataclass(frozen=True)
class Steps:
    """`y` is normal about a level, which may be another one in the second occasion."""

    occasions: int = 1
    name: str = "steps"

    def params(self) -> Any:
        return Levels() if self.occasions == 1 else LevelsByOccasion()

    def inputs(self) -> Any:
        return Nothing()

    def by_occasion(self, names: tuple[str, ...], count: int) -> Any:
        return Steps(count)

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        time = record.observations["y"].time
        mean = p.level if self.occasions == 1 else jnp.where(time < p.occasion_2, p.level_1, p.level_2)
        return {"y": dist.Normal(mean * jnp.ones_like(time), p.sd)}
