"""Points about a peak over which a density is summed to its integral, in coordinates in which the peak's
curvature is 1: a grid for quadrature, or random points from a distribution with heavy tails.

Source: Pinheiro & Bates 1995, doi 10.1080/10618600.1995.10474663 (grid); Owen 1997, doi
10.1214/aos/1031594731 (scrambled nets).
"""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from scipy import special, stats
from scipy.stats import qmc

from dtwin_jax.inference.importance import FREEDOM

# Nets of which each is random by itself: by how much their sums differ tells how far off their mean is.
NETS = 8


class Nodes(eqx.Module):
    """Points and the logs of their weights.

    Attributes:
        at: (node, 1 or patient, effect).
        log_weight: (node, 1 or patient).
    """

    at: Any
    log_weight: Any


def grid(nodes: int, effects: int) -> Nodes:
    """Gauss-Hermite quadrature, the same for all patients; `nodes` in each direction."""
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    where = np.stack(np.meshgrid(*[at] * effects, indexing="ij"), axis=-1).reshape(-1, effects)
    log_weight = np.stack(np.meshgrid(*[np.log(weight)] * effects, indexing="ij"), axis=-1)
    total = log_weight.reshape(-1, effects).sum(axis=1) + 0.5 * np.sum(where**2, axis=1)
    return Nodes(where[:, None], total[:, None])


def scattered(draws: int, effects: int, key: Any, patients: np.ndarray) -> Nodes:
    """Draws of a multivariate t distribution: scrambled Sobol nets, of each patient by key and number.

    Args:
        draws: of each patient, a multiple of `NETS`.
        effects: how many.
        key: random key.
        patients: (patient,) numbers of theirs.
    """
    seed = np.asarray(jax.random.key_data(key)).tolist()
    at = np.stack([_nets(draws, effects, [*seed, int(number)]) for number in patients], axis=1)
    square = np.sum(at**2, axis=-1)
    size = special.gammaln((FREEDOM + effects) / 2) - special.gammaln(FREEDOM / 2)
    size -= effects / 2 * np.log(FREEDOM * np.pi)
    log_density = size - (FREEDOM + effects) / 2 * np.log1p(square / FREEDOM)
    return Nodes(at, -log_density - np.log(draws))


def _nets(draws: int, effects: int, seed: list[int]) -> np.ndarray:
    """(draw, effect): one net after the other."""
    rng = np.random.default_rng(seed)
    nets = [_net(draws // NETS, effects + 1, rng) for _ in range(NETS)]
    uniform = np.clip(np.concatenate(nets), 1e-12, 1.0 - 1e-12)
    wide = np.sqrt(FREEDOM / stats.chi2.ppf(uniform[:, -1], FREEDOM))
    return wide[:, None] * special.ndtri(uniform[:, :-1])


def _net(points: int, dimensions: int, rng: np.random.Generator) -> np.ndarray:
    engine = qmc.Sobol(dimensions, scramble=True, rng=rng)
    return engine.random_base2((points - 1).bit_length())[:points]
