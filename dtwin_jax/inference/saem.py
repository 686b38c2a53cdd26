"""Maximum likelihood by stochastic approximation: random effects are drawn, and their moments averaged.

Every iteration moves the parameters of all patients by a few Metropolis steps towards their distribution
given the data and the present numbers. Typical values, coefficients and covariances are then the best for
moments that are averaged over iterations; what all patients share follows the averaged score by steps of
Newton's. So do, where effects are transformed, the typical values, coefficients and shapes, by the density of
the individual parameters: no moments say which are best. At first the latest draws count alone, so that the
search forgets where it began; then all count alike.

In a mixture individual parameters are drawn whatever the class; which one they belong to is as probable as
their density in it says, and moments are averaged class by class.

Source: Kuhn & Lavielle 2005, doi 10.1016/j.csda.2004.07.033; Delyon, Lavielle & Moulines 1999, doi
10.1214/aos/1018031103.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.record import Record, repeated
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.effects import Effects, log_normal_density
from dtwin_jax.inference.marginal import Marginal
from dtwin_jax.inference.posteriors import information_of, measured

# Draws of all patients together, at least: of few patients several chains run side by side.
_DRAWS = 100
# The share of iterations in which the latest draws count alone; in the first half of these variances shrink
# by no more than a twentieth each.
_EXPLORING, _COOLING = 0.6, 0.95
# Metropolis steps of all effects together, the acceptance that steps aim at, and how fast they learn how far
# to go.
_TOGETHER, _ACCEPTED, _LEARNING = 2, 0.4, 0.2
# A shared number moves no further in one iteration; and no class has a smaller share.
_LONGEST, _LEAST = 0.5, 1e-6


@dataclass(frozen=True)
class _Parts:
    """Where the numbers of a population are in their vector."""

    effects: Effects

    @property
    def shared(self) -> np.ndarray:
        """Parameters without random effects, whose likelihood is that of the measurements alone."""
        names = [name for name, _ in self.effects.priors]
        return np.asarray([i for i, name in enumerate(names) if name not in self.effects.varying], int)

    @property
    def central(self) -> np.ndarray:
        """Typical values of varying parameters, and coefficients."""
        count = len(self.effects.priors)
        varying = [i for i in range(count) if i not in self.shared]
        return np.asarray([*varying, *range(count, count + len(self.effects.coefficients))], int)

    @property
    def shifts(self) -> np.ndarray:
        """Shifts between classes."""
        labels = dict(self.effects.population.shifts)
        return np.asarray([i for i, name in enumerate(self.effects.names) if name in labels], int)

    @property
    def shaped(self) -> bool:
        """Whether effects are transformed."""
        return bool(self.effects.population.boxcox)

    @property
    def climbing(self) -> np.ndarray:
        """What follows a score."""
        return np.concatenate([self.shared, self.central]) if self.shaped else self.shared


@dataclass
class _Moments:
    """Averages over iterations.

    Attributes:
        weight: (class, patient) probability of a class.
        first: (class, patient, effect) of the individual parameters, each times the weight.
        second: (effect, effect) their products, summed over patients; where effects are transformed, those of
            the normal effects about their class.
        information: (climbing, climbing) expected curvature of the log densities that scores are of.
    """

    weight: np.ndarray
    first: np.ndarray
    second: np.ndarray
    information: np.ndarray

    def moved(self, new: "_Moments", gain: float) -> "_Moments":
        """A share `gain` of the way to new ones."""
        pairs = zip(vars(self).values(), vars(new).values(), strict=True)
        return _Moments(*(old + gain * (now - old) for old, now in pairs))


def approximated(
    effects: Effects, base: Any, record: Record, psi: np.ndarray, key: Any, iterations: int
) -> np.ndarray:
    """The numbers at which the likelihood is highest.

    Args:
        effects: of the population.
        base: known parameters.
        record: of the patients.
        psi: where to start.
        key: random key.
        iterations: how many.
    """
    parts, patients = _Parts(effects), record.t0.shape[0]
    chains = -(-_DRAWS // patients)
    rows = repeated(record, chains)
    at = np.asarray(_middle(effects, psi, rows))
    scale = np.ones((at.shape[0], at.shape[1] + 1))
    about = at[:patients]
    exploring = int(_EXPLORING * iterations)
    moments = None
    for k, each in enumerate(jax.random.split(key, iterations)):
        drawn = _iterated(effects, base, rows, psi, at, scale, about, each)
        at, scale, weight, second, score, information = drawn
        weight = np.asarray(weight).T.reshape(effects.classes, chains, patients)
        first = np.einsum("kcp,cpi->kpi", weight, np.asarray(at).reshape(chains, patients, -1)) / chains
        sums = (np.asarray(each) / chains for each in (second, information))
        new = _Moments(weight.mean(axis=1), first, *sums)
        gain = 1.0 if k < exploring else 1.0 / (k - exploring + 1.0)
        moments = new if moments is None else moments.moved(new, gain)
        about = moments.first.sum(axis=0)
        slowest = _COOLING if k < exploring // 2 else 0.0
        psi = _maximised(parts, record, psi, moments, slowest)
        psi = _climbed(parts, psi, np.asarray(score) / chains, moments.information, gain)
    return psi


def _climbed(
    parts: _Parts, psi: np.ndarray, score: np.ndarray, information: np.ndarray, gain: float
) -> np.ndarray:
    """The numbers that follow a score, moved along it."""
    if not len(parts.climbing):
        return psi
    ridge = 1e-8 * np.trace(information) * np.eye(len(information))
    step = np.linalg.solve(information + ridge, score)
    psi = psi.copy()
    psi[parts.climbing] += gain * np.clip(step, -_LONGEST, _LONGEST)
    return psi


def _maximised(
    parts: _Parts, record: Record, psi: np.ndarray, moments: _Moments, slowest: float
) -> np.ndarray:
    """Typical values, coefficients and covariances that fit the moments best."""
    effects, central, psi = parts.effects, parts.central, psi.copy()
    old = np.asarray(effects.root(jnp.asarray(psi)))
    weight, patients = moments.weight, moments.weight.shape[1]
    covariance = moments.second / patients
    if not parts.shaped:
        inverse = np.linalg.inv(old @ old.T)
        middle, slope = (np.asarray(each) for each in _sloped(effects, psi, record))
        slope = slope[..., central]
        left = np.einsum("cp,cpik,ij,cpjl->kl", weight, slope, inverse, slope, optimize=True)
        away = moments.first - weight[..., None] * middle
        right = np.einsum("cpik,ij,cpj->k", slope, inverse, away, optimize=True)
        step = np.linalg.lstsq(left, right, rcond=None)[0]
        # Shifts between classes have a bound, to which the best may be far.
        bound = np.where(np.isin(central, parts.shifts), _LONGEST, np.inf)
        psi[central] += np.clip(step, -bound, bound)
        middle = np.asarray(_middles(effects, psi, record))
        cross = np.einsum("cpi,cpj->ij", middle, moments.first)
        own = np.einsum("cp,cpi,cpj->ij", weight, middle, middle)
        covariance = (moments.second - cross - cross.T + own) / patients
    share = np.maximum(weight.mean(axis=1), _LEAST)
    psi[effects.before_shares : effects.before_scatter] = np.log(share[1:] / share[0])
    psi[effects.before_scatter :] = effects.scatter_of(covariance, slowest * old @ old.T)
    return psi


@functools.partial(jax.jit, static_argnames=("effects",))
@standard_promotion
def _middle(effects: Effects, psi: Any, record: Record) -> Any:
    """Where the effects of every patient are about in the first class, (patient, effect): typical parameters,
    and 0 for those of occasions."""
    names = [name for name, _ in effects.priors]
    places = np.asarray([names.index(name) for name in effects.varying])
    typical = effects.centres(psi, record)[:, places]
    return jnp.pad(typical, ((0, 0), (0, len(effects.effects) - len(places))))


@functools.partial(jax.jit, static_argnames=("effects",))
@standard_promotion
def _middles(effects: Effects, psi: Any, record: Record) -> Any:
    """The same in every class, (class, patient, effect)."""
    return _middle(effects, psi, record)[None] + effects.class_moves(psi)[:, None]


@functools.partial(jax.jit, static_argnames=("effects",))
@standard_promotion
def _sloped(effects: Effects, psi: Any, record: Record) -> tuple[Any, Any]:
    return _middles(effects, psi, record), jax.jacfwd(lambda psi: _middles(effects, psi, record))(psi)


@functools.partial(jax.jit, static_argnames=("effects",))
@standard_promotion
def _iterated(
    effects: Effects, base: Any, record: Record, psi: Any, at: Any, scale: Any, about: Any, key: Any
) -> tuple:
    """Draws moved on, how far their steps are, and what is averaged of them.

    Args:
        effects: of the population.
        base: known parameters.
        record: of the patients, once for each chain, (row,).
        psi: the present numbers.
        at: (row, effect) individual parameters.
        scale: (row, effect + 1) lengths of the steps of each effect, and of all together.
        about: (patient, effect) where steps of all effects together take their shape from.
        key: random key.
    """
    middle, root = _middle(effects, psi, record), effects.root(psi)
    centres, count = effects.centres(psi, record), at.shape[1]

    def fit(eta: Any) -> Any:
        found = measured(effects.target, base, record, centres + effects.spread(psi, eta))
        return sum(jnp.sum(each["fit"], axis=1) for each in found.values())

    def density(eta: Any) -> Any:
        return jax.scipy.special.logsumexp(_by_class(effects, psi, root, eta), axis=1)

    def accepted(state: tuple, eta: Any, log_ratio: Any, likelihood: Any, key: Any) -> tuple:
        taken = jnp.log(jax.random.uniform(key, log_ratio.shape)) < log_ratio
        old, before = state
        return (jnp.where(taken[:, None], eta, old), jnp.where(taken, likelihood, before)), taken

    def anew(state: tuple, key: Any) -> tuple:
        """Effects drawn as if there were no data."""
        draw, choose = jax.random.split(key)
        eta = jax.random.normal(draw, state[0].shape) @ root.T
        if effects.classes > 1:
            which = jax.random.categorical(
                jax.random.fold_in(draw, 1), effects.log_shares(psi), shape=(len(eta),)
            )
            eta = eta + effects.class_moves(psi)[which]
        likelihood = fit(eta)
        return accepted(state, eta, likelihood - state[1], likelihood, choose)[0]

    def along(state: tuple, way: tuple) -> tuple:
        """One effect moved, or all together, by steps of which two in five should be taken."""
        (eta, likelihood), scale = state
        i, key = way
        draw, choose = jax.random.split(key)
        z = jax.random.normal(draw, eta.shape)
        alone = z * jnp.sqrt(jnp.sum(root**2, axis=1)) * (jnp.arange(count) == i)
        move = jnp.where(i < count, alone, jnp.einsum("rij,rj->ri", shape, z))
        new = eta + scale[:, i, None] * move
        found = fit(new)
        ratio = found + density(new) - likelihood - density(eta)
        kept, taken = accepted((eta, likelihood), new, ratio, found, choose)
        learnt = jnp.exp(_LEARNING * (jnp.where(taken, 1.0, 0.0) - _ACCEPTED))
        return (kept, scale.at[:, i].multiply(learnt)), None

    first, second = jax.random.split(key)
    eta = effects.restored(psi, at - middle)
    shape = _shape(effects, base, record, psi, about)
    state = anew((eta, fit(eta)), first)
    ways = jnp.minimum(jnp.arange(count + _TOGETHER), count)
    (state, scale), _ = jax.lax.scan(along, (state, scale), (ways, jax.random.split(second, len(ways))))
    eta = state[0]
    at = effects.transformed(psi, eta) + middle
    score, information = _score(effects, base, record, psi, eta)
    weight = jax.nn.softmax(_by_class(effects, psi, root, eta), axis=1)
    second = at.T @ at
    if _Parts(effects).shaped:
        apart = eta[:, None] - effects.class_moves(psi)
        second = jnp.einsum("rk,rki,rkj->ij", weight, apart, apart)
    return at, scale, weight, second, score, information


def _by_class(effects: Effects, psi: Any, root: Any, eta: Any) -> Any:
    """Log densities of effects about the first class, times the shares of the classes: (row, class)."""
    if effects.classes == 1:
        return log_normal_density(root, eta)[:, None]
    each = jax.vmap(lambda move: log_normal_density(root, eta - move))(effects.class_moves(psi))
    return (each + effects.log_shares(psi)[:, None]).T


def _shape(effects: Effects, base: Any, record: Record, psi: Any, about: Any) -> Any:
    """Roots of the covariances that a patient's effects have about a point, (row, effect, effect)."""
    own = jax.tree.map(lambda leaf: leaf[: len(about)], record)
    eta = effects.restored(psi, about - _middle(effects, psi, own))
    curvature = Marginal(effects, "laplace").joint(base, own, psi, eta)[2]
    half = jnp.linalg.cholesky(curvature)
    inverse = jax.vmap(lambda half: jax.scipy.linalg.solve_triangular(half.T, jnp.eye(len(half))))(half)
    usable = jnp.all(jnp.isfinite(inverse), axis=(1, 2), keepdims=True)
    inverse = jnp.where(usable, inverse, effects.root(psi)[None])
    return jnp.tile(inverse, (record.t0.shape[0] // len(about), 1, 1))


def _score(effects: Effects, base: Any, record: Record, psi: Any, eta: Any) -> tuple[Any, Any]:
    """Of what follows a score: that of all patients, and the expected curvature of what it is of."""
    parts = _Parts(effects)
    found = [_shared_score(effects, base, record, effects.individual(psi, record, eta))]
    if parts.shaped:
        each = _central_score(effects, record, psi, eta)
        found.append((jnp.sum(each, axis=0), each.T @ each))
    return jnp.concatenate([score for score, _ in found]), jax.scipy.linalg.block_diag(*(c for _, c in found))


def _shared_score(effects: Effects, base: Any, record: Record, u: Any) -> tuple[Any, Any]:
    """Of shared numbers: the score of all measurements, and its expected curvature."""
    shared = _Parts(effects).shared
    if not len(shared):
        return jnp.zeros(0), jnp.zeros((0, 0))
    rows = functools.partial(measured, effects.target, base, record)
    along = lambda way: jax.jvp(rows, (u,), (jnp.broadcast_to(way, u.shape),))  # noqa: E731
    value, slope = jax.vmap(along, out_axes=(None, 0))(jnp.eye(u.shape[1])[shared])
    parts = [information_of(value[name], slope[name], series) for name, series in record.observations.items()]
    return sum(jnp.sum(each[0], axis=0) for each in parts), sum(jnp.sum(each[1], axis=0) for each in parts)


def _central_score(effects: Effects, record: Record, psi: Any, eta: Any) -> Any:
    """Of typical values, coefficients and shapes: the score of the individual parameters, (row, number)."""
    at = _middle(effects, psi, record) + effects.transformed(psi, eta)
    stretch = jnp.exp(effects.log_stretch(psi, eta))

    def log_density(new: Any) -> Any:
        # The effects that make the same parameters under other numbers, to first order.
        away = _middle(effects, new, record) + effects.transformed(new, eta) - at
        moved = eta - away / stretch
        each = _by_class(effects, new, effects.root(psi), moved)
        density = jax.scipy.special.logsumexp(each, axis=1)
        return density - jnp.sum(effects.log_stretch(new, moved), axis=1)

    return jax.jacfwd(log_density)(psi)[:, _Parts(effects).central]
