"""Proposals of heavy tails for many posteriors at once, their weights, and what they learn from them.

Source of the learning: Cappé et al. 2008, Adaptive importance sampling in general mixture classes, doi
10.1007/s11222-008-9059-x.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

# Degrees of freedom: tails heavy enough for a posterior with exponential ones.
FREEDOM = 5.0
# How much wider a part is made than the draws that it learnt from, and the share that is kept for all alike.
_WIDER, _KEPT = 1.1, 0.1
# The logarithm of a weight that is nothing beside the largest.
_NOTHING = -600.0
# Draws of a tail that a law may be fitted to.
_FEWEST = 5


@dataclass
class Mixture:
    """A mixture of multivariate t distributions for every patient; leading axes (patient, part).

    Attributes:
        centre: (name,).
        root: (name, name), lower triangular; the scale is its square.
        share: of the part; those of a patient sum to 1.
    """

    centre: np.ndarray
    root: np.ndarray
    share: np.ndarray

    def of(self, patients: np.ndarray) -> "Mixture":
        """The mixtures of these patients."""
        return Mixture(self.centre[patients], self.root[patients], self.share[patients])

    def draw(self, keys: Any, count: int) -> np.ndarray:
        """(patient, draw, name), of each patient by the key alone."""
        patients, _, names = self.centre.shape
        u = np.empty((patients, count, names))
        for i, seed in enumerate(np.asarray(jax.random.key_data(keys))):
            rng = np.random.default_rng(seed)
            part = rng.choice(len(self.share[i]), count, p=self.share[i] / self.share[i].sum())
            wide = np.sqrt(FREEDOM / rng.chisquare(FREEDOM, count))
            moved = np.einsum("dij,dj->di", self.root[i][part], rng.standard_normal((count, names)))
            u[i] = self.centre[i][part] + wide[:, None] * moved
        return u

    def log_density(self, u: np.ndarray) -> np.ndarray:
        """At draws (patient, draw, name): (patient, draw), up to a constant."""
        return _log_sum(self._parts(u)[0])

    def learnt(self, u: np.ndarray, weights: np.ndarray) -> "Mixture":
        """The mixtures moved towards weighed draws (patient, draw, name), (patient, draw)."""
        each, square = self._parts(u)
        names = u.shape[2]
        ours = np.exp(each - _log_sum(each)[:, None]) * weights[:, None]
        mass = ours.sum(axis=2)  # of the parts; all together 1
        # What a t distribution makes of a far draw.
        near = ours * (FREEDOM + names) / (FREEDOM + square)
        centre = np.einsum("pkd,pdi->pki", near, u) / np.maximum(near.sum(axis=2), 1e-300)[..., None]
        away = u[:, None] - centre[:, :, None]
        spread = (
            np.einsum("pkd,pkdi,pkdj->pkij", near, away, away) / np.maximum(mass, 1e-300)[..., None, None]
        )
        # Few effective draws say little of a covariance; the old one counts as many draws as there are names.
        worth = mass / np.sum(weights**2, axis=1)[:, None]
        doubt = (names / (worth + names))[..., None, None]
        old = self.root @ np.swapaxes(self.root, -1, -2)
        seen = (worth > 1.0)[..., None]
        return Mixture(
            np.where(seen, centre, self.centre),
            np.linalg.cholesky(np.where(seen[..., None], _WIDER * ((1 - doubt) * spread + doubt * old), old)),
            (1 - _KEPT) * mass / mass.sum(axis=1, keepdims=True) + _KEPT / mass.shape[1],
        )

    def _parts(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log densities of the parts (patient, part, draw), and squared distances from their centres."""
        away = u[:, None] - self.centre[:, :, None]
        z = np.einsum("pkij,pkdj->pkdi", np.linalg.inv(self.root), away)
        square = np.sum(z**2, axis=3)
        log_size = np.sum(np.log(np.diagonal(self.root, axis1=2, axis2=3)), axis=2)
        tail = (FREEDOM + u.shape[2]) / 2.0 * np.log1p(square / FREEDOM)
        return (np.log(self.share) - log_size)[..., None] - tail, square


def _log_sum(parts: np.ndarray) -> np.ndarray:
    best = parts.max(axis=1)
    return best + np.log(np.sum(np.exp(parts - best[:, None]), axis=1))


def smoothed(log_ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights that sum to 1, and the Pareto k of their tail.

    Args:
        log_ratio: (patient, draw) log of the posterior over the proposal, up to a constant of each patient.

    Returns:
        Weights (patient, draw) with smoothed tails; k (patient,), infinite where there is no tail to look at
        because most draws are as good as impossible, or the same few stand in it again and again.
    """
    from arviz_stats.base.array import array_stats

    best = log_ratio.max(axis=1, keepdims=True)
    usable = np.isfinite(best)
    relative = np.where(usable, np.maximum(log_ratio - np.where(usable, best, 0.0), -700.0), 0.0)
    k = np.full(len(relative), np.inf)
    enough = usable[:, 0] & (np.mean(relative > _NOTHING, axis=1) >= 0.25) & _has_tail(relative)
    if np.any(enough):
        # ArviZ thinks of leaving one out, where ratios are those of minus what it is given.
        relative[enough], k[enough] = array_stats.psislw(-relative[enough], axis=-1)
    weights = np.exp(relative - relative.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True), np.where(np.isnan(k), np.inf, k)


def _has_tail(relative: np.ndarray) -> np.ndarray:
    """Whether a generalized Pareto law can be fitted: its scale is the tail's lower quarter, above the cut.

    Chains that stand still repeat a draw until the quarter is the cut itself. The tail is the one of Vehtari
    et al. 2024, Pareto smoothed importance sampling, doi 10.48550/arXiv.1507.02646.
    """
    count = relative.shape[1]
    tail = int(min(0.2 * count, 3.0 * np.sqrt(count)))
    if tail < _FEWEST:
        return np.zeros(len(relative), bool)
    ordered = np.exp(np.sort(relative, axis=1)[:, -tail - 1 :])
    return ordered[:, int(tail / 4 + 0.5)] > ordered[:, 0]


def resampled(u: np.ndarray, weights: np.ndarray, keys: Any, count: int) -> np.ndarray:
    """`count` draws of each patient, each as often as it weighs, in random order: (patient, count, name)."""
    drawn = np.empty((len(u), count, u.shape[2]))
    for i, seed in enumerate(np.asarray(jax.random.key_data(keys))):
        rng = np.random.default_rng(seed)
        # Systematic: no draw comes more or less than once oftener than its weight says.
        ticks = (np.arange(count) + rng.random()) / count
        rows = np.minimum(np.searchsorted(np.cumsum(weights[i]), ticks), len(weights[i]) - 1)
        drawn[i] = u[i][rng.permutation(rows)]
    return drawn
