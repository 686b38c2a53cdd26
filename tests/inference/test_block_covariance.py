"""Random effects of which some are correlated, against normal distributions written out.

Source of truth: measurements that move linearly with normal effects are jointly normal.
"""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from lines import Inputs
from scipy import stats

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.types import Scalar
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.population import Population

TIME = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
DESIGN = np.stack([np.ones_like(TIME), TIME, TIME**2], axis=1)
CENTRE, SD = np.array([1.0, -0.5, 0.4]), 0.2
SCATTER, RHO = np.array([0.6, 0.5, 0.4]), 0.7
COVARIANCE = np.diag(SCATTER**2)
COVARIANCE[0, 2] = COVARIANCE[2, 0] = RHO * SCATTER[0] * SCATTER[2]


class Params(eqx.Module):
    a: Scalar = param(0.0, "1", normal(0.0, 1.0))
    b: Scalar = param(0.0, "1", normal(0.0, 1.0))
    c: Scalar = param(0.0, "1", normal(0.0, 1.0))
    sd: Scalar = param(0.3, "1", lognormal(0.3, log_sd=1.0))


@dataclass(frozen=True)
class Parabola:
    """a + b t + c t^2 is measured."""

    name: str = "parabola"

    def params(self) -> Any:
        return Params()

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        time = record.observations["y"].time
        return {"y": dist.Normal(p.a + p.b * time + p.c * time**2, p.sd)}


RNG = np.random.default_rng(2)
VALUES = RNG.multivariate_normal(CENTRE, COVARIANCE, 40) @ DESIGN.T + SD * RNG.normal(size=(40, 5))
PATIENTS = stack({str(i): Record(Inputs(), {"y": Series(TIME, row)}) for i, row in enumerate(VALUES)})
POPULATION = Population(Parabola(), ("a", "b", "c"), correlation=1.0, blocks=(("a", "c"),))


def minus_two_log_likelihood(centre, covariance, sd):
    spread = DESIGN @ covariance @ DESIGN.T + sd**2 * np.eye(len(TIME))
    return -2.0 * np.sum(stats.multivariate_normal.logpdf(VALUES, DESIGN @ centre, spread))


def test_likelihood_is_that_of_the_block_covariance():
    root = np.linalg.cholesky(COVARIANCE)
    start = dict(zip(("a_pop", "b_pop", "c_pop"), CENTRE, strict=True)) | {"sd": SD, "root_c_a": root[2, 0]}
    start |= {f"omega_{name}": root[i, i] for i, name in enumerate("abc")}
    found = estimate(POPULATION, PATIENTS, start=start, search=False)
    assert [name for name in found.names if name.startswith("root")] == ["root_c_a"]
    truth = minus_two_log_likelihood(CENTRE, COVARIANCE, SD)
    assert found.minus_two_log_likelihood == pytest.approx(truth, abs=1e-8)
    assert found.estimate["corr_c_a"] == pytest.approx(RHO) and "corr_b_a" not in found.estimate
    assert [found.estimate[f"omega_{name}"] for name in "abc"] == pytest.approx(SCATTER)


@pytest.mark.parametrize(("by", "within"), [("focei", 1e-4), ("saem", 0.05)])
def test_the_best_block_covariance_is_found(by, within):
    """It is best where no move of one of its numbers gains anything."""
    found = estimate(POPULATION, PATIENTS, by=by, key=jax.random.key(0))
    told, at = found.estimate, [found.estimate[f"{name}_pop"] for name in "abc"]

    def covariance(scatter, rho):
        made = np.diag(np.square(scatter))
        made[0, 2] = made[2, 0] = rho * scatter[0] * scatter[2]
        return made

    scatter = np.array([told[f"omega_{name}"] for name in "abc"])
    best = minus_two_log_likelihood(at, covariance(scatter, told["corr_c_a"]), told["sd"])
    moved = []
    for step in (0.005, -0.005):
        moved += [
            minus_two_log_likelihood(at, covariance(scatter * np.exp(way), told["corr_c_a"]), told["sd"])
            for way in step * np.eye(3)
        ]
        moved.append(minus_two_log_likelihood(at, covariance(scatter, told["corr_c_a"] + step), told["sd"]))
    # By a parabola through three points, the best value lies this share of a step away.
    up, down = np.array(moved[:4]), np.array(moved[4:])
    assert np.all(up + down > 2 * best)
    away = 0.005 * (down - up) / (2 * (up + down - 2 * best))
    assert np.all(np.abs(away) < within)
