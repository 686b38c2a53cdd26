"""Many independent posteriors by Laplace's approximation, corrected by importance sampling.

Each patient's peaks are found, draws are proposed about them and weighed by the density itself. How far the
weights can be trusted is told by the Pareto k of their tail; where they cannot, the proposal learns from
them and draws again, and who still fails is sampled by NUTS. So the answer is never Laplace's alone.

Source: Tierney & Kadane 1986, doi 10.1080/01621459.1986.10478240; Pareto k: Vehtari et al. 2024, Journal of
Machine Learning Research 25(72).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import numpy as np

from dtwin_jax.core.predictor import differentiated
from dtwin_jax.core.record import Record
from dtwin_jax.inference.gauss_newton import Places, climbed
from dtwin_jax.inference.importance import Mixture, resampled, smoothed
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.posteriors import Posteriors
from dtwin_jax.inference.target import Target, first_points

# What the last step of a climb may still promise, in nats: a hundredth of a standard deviation.
_CLOSE = 5e-5
# Of the first proposals, the share that lies to the sides of the best peak, and how many sds away.
_ASIDE, _AWAY = 0.5, 1.3


@dataclass(frozen=True)
class Laplace:
    """Settings of Laplace's approximation with importance sampling, for cohorts of independent patients.

    Attributes:
        draws: draws of each patient that are kept, resampled by their weights.
        proposals: draws of each patient that are weighed in a round.
        rounds: at most so many; each proposal learns from the one before.
        starts: climbs of each patient: from the declared parameters and the likeliest prior draws.
        candidates: prior draws looked at for starts.
        max_steps: of a climb.
        k_limit: Pareto k up to which weights are trusted.
        efficiency: share of proposals that must be effective draws. Where a proposal misses the tails of a
            posterior, the spread is too small before the Pareto k tells.
        group: patients side by side.
        fallback: how those are sampled whose weights cannot be trusted; None leaves them, and says so.
    """

    title: ClassVar[str] = "Laplace with importance sampling"

    draws: int = 1000
    proposals: int = 1000
    rounds: int = 8
    starts: int = 2
    candidates: int = 24
    max_steps: int = 100
    k_limit: float = 0.7
    efficiency: float = 0.5
    group: int = 256
    fallback: Nuts | None = Nuts()  # noqa: RUF009 (frozen)

    def described(self) -> str:
        """How much of it."""
        instead = "left, and named" if self.fallback is None else f"sampled: {self.fallback.described()}"
        return f"{self.draws} draws of {self.proposals}; who is not trusted is {instead}"


@dataclass
class Weighed:
    """What importance sampling made of each patient; leading axis patient, NumPy arrays.

    Attributes:
        u: (draw, name) resampled, unbounded.
        pareto_k: of the weights.
        ess: effective draws, before resampling.
        rounds: taken.
        trusted: k and effective draws are within their limits.
    """

    u: np.ndarray
    pareto_k: np.ndarray
    ess: np.ndarray
    rounds: np.ndarray
    trusted: np.ndarray


def weigh(
    density: Any,
    base: Any,
    record: Record,
    keys: Any,
    method: Laplace,
    note: Callable[[int], None] = lambda done: None,
) -> Weighed:
    """Draws of every patient of a cohort by weighed proposals, and whether they can be trusted.

    Args:
        density: a `PatientDensity`.
        base: known parameters.
        record: of the patients, stacked.
        keys: (patient,); a patient's draws depend on the key and on no other patient.
        method: settings.
        note: told how many more patients are done, as they are.
    """
    target = Target(differentiated(density.predictor, "forward"), density.priors)
    posteriors = Posteriors(target, base, jax.tree.map(np.asarray, record))
    patients, names = posteriors.patients, len(target.names)
    proposal = _about(_peaks(posteriors, keys, method), posteriors.scales())
    found = Weighed(
        u=np.zeros((patients, method.draws, names)),
        pareto_k=np.full(patients, np.inf),
        ess=np.zeros(patients),
        rounds=np.zeros(patients, int),
        trusted=np.zeros(patients, bool),
    )
    waiting = np.arange(patients)
    for turn in range(method.rounds):
        for start in range(0, len(waiting), method.group):
            members = waiting[start : start + method.group]
            _weigh_once(posteriors, proposal, keys, (members, turn), method, found)
            note(int(np.sum(found.trusted[members])))
        waiting = waiting[~found.trusted[waiting]]
    return found


def _peaks(posteriors: Posteriors, keys: Any, method: Laplace) -> Places:
    """Ends of the climbs of all patients; leading axes (patient, start)."""
    patients, target = posteriors.patients, posteriors.target
    candidates = max(method.candidates, method.starts - 1)
    points = np.asarray(first_points(target, candidates + 1, posteriors.base, keys))
    looked = points[:, 1:].reshape(-1, points.shape[2])
    value = posteriors.values(np.repeat(np.arange(patients), candidates), looked)
    order = np.argsort(-value.reshape(patients, -1), axis=1, kind="stable")[:, : method.starts - 1]
    likeliest = np.take_along_axis(points[:, 1:], order[..., None], axis=1)
    begin = np.concatenate([points[:, :1], likeliest], axis=1)
    owner = np.repeat(np.arange(patients), method.starts)
    climbs = begin.reshape(len(owner), -1)
    found = climbed(posteriors, owner, climbs, close=_CLOSE, max_steps=method.max_steps)
    return Places(*(x.reshape(patients, method.starts, *x.shape[1:]) for x in vars(found).values()))


def _about(places: Places, scale: np.ndarray) -> Mixture:
    """Proposals about the ends of climbs, and to both sides of the best along the direction least known.

    Args:
        places: leading axes (patient, start).
        scale: of the parameters (name,), in which directions are compared.
    """
    sound = np.isfinite(places.value) & np.all(np.isfinite(places.u), axis=2)
    sound &= np.all(np.isfinite(places.information), axis=(2, 3))
    standard = np.diag(scale**-2.0)
    information = np.where(sound[..., None, None], places.information, standard).astype(float)
    places = replace(places, u=np.where(sound[..., None], places.u, 0.0).astype(float))
    value, vectors = np.linalg.eigh(information * scale * scale[:, None])
    covariance = scale[:, None] * (vectors / value[..., None, :]) @ np.swapaxes(vectors, -1, -2) * scale
    # The mass about a peak, by Laplace; a climb that has not arrived counts where there is no better end.
    height = np.where(sound, places.value, -np.inf).astype(float)
    mass = height - np.sum(np.log(value), axis=-1) / 2
    best = height == height.max(axis=1, keepdims=True)
    mass = np.where((places.arrived | best) & np.isfinite(mass), mass, -1e9)
    mass = np.maximum(np.exp(mass - mass.max(axis=1, keepdims=True)), 1e-6)
    rows, chosen = np.arange(len(best)), np.argmax(height, axis=1)
    widest = _AWAY * scale * vectors[rows, chosen, :, 0] / np.sqrt(value[rows, chosen, :1])
    middle, root = places.u[rows, chosen], np.linalg.cholesky(covariance)
    sides = np.stack([middle - widest, middle + widest], axis=1)
    return Mixture(
        centre=np.concatenate([places.u, sides], axis=1),
        root=np.concatenate([root, *[root[rows, chosen][:, None]] * 2], axis=1),
        share=np.concatenate(
            [(1 - _ASIDE) * mass / mass.sum(axis=1, keepdims=True), np.full((len(rows), 2), _ASIDE / 2)],
            axis=1,
        ),
    )


def _weigh_once(
    posteriors: Posteriors,
    proposal: Mixture,
    keys: Any,
    group: tuple[np.ndarray, int],
    method: Laplace,
    found: Weighed,
) -> None:
    """A round of one group (members, turn); `found` and `proposal` take up what came of it."""
    members, turn = group
    ours = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, turn)))(keys[members])
    at = proposal.of(members)
    u = at.draw(ours[:, 0], method.proposals)
    owner = np.repeat(members, u.shape[1])
    value = posteriors.values(owner, u.reshape(len(owner), -1)).reshape(u.shape[:2])
    weights, k = smoothed(value - at.log_density(u))
    ess = 1.0 / np.sum(weights**2, axis=1)
    drawn, learnt = resampled(u, weights, ours[:, 1], method.draws), at.learnt(u, weights)
    trusted = (k <= method.k_limit) & (ess >= method.efficiency * method.proposals)
    better = trusted | (ess > found.ess[members])
    for old, new in ((found.u, drawn), (found.pareto_k, k), (found.ess, ess)):
        old[members[better]] = new[better]
    for name, new in vars(learnt).items():
        getattr(proposal, name)[members] = new
    found.rounds[members] += 1
    found.trusted[members] = trusted
