"""A normal guide of a population's posterior: of its numbers, and of each patient's effects given these.

What the measurements of a patient say of his parameters is taken for a normal likelihood, which is the
patient's own; the population's scatter, at any value of its numbers, makes of it a normal distribution of his
effects. So the guide knows how effects hang on typical values and standard deviations, without which these
would seem to be known too well. Where measurements are normal about straight lines it is exact.

Source: Johnson et al. 2016, Composing graphical models with neural networks, arXiv:1603.06277; of the
likelihoods: Khan & Lin 2017, Conjugate-computation variational inference, arXiv:1703.04265.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from dtwin_jax.inference.joint import Joint

# Curvature that a likelihood has at least, of effects that have a standard normal prior.
_FLAT = 1e-4
# Degrees of freedom of heavy tails: a chi-square of four is minus twice the log of two uniforms.
_FREEDOM = 4.0
# Of an effect, to either side, for curvatures.
_NUDGE = 1e-3
# Of a climb to a peak: how far the first step may go, what the last may promise in nats, how many at most.
_FIRST, _CLOSE, _STEPS = 1.0, 1e-5, 24


class Place(eqx.Module):
    """What the guide is laid about: a point of the numbers, and every patient's peak there.

    Attributes:
        psi: (number,).
        root: (number, number), lower triangular: the unit of the numbers.
        peak: (patient, effect).
        pull: (patient, effect, effect) root of the curvature of the patient's likelihood.
        middle: (patient, effect) parameters without effects.
        spread: (patient, effect, effect) what effects make of them.
        level: (patient,) log of the patient's likelihood with the effects integrated out, by Laplace.
        slope: (patient, number) its derivative.
    """

    psi: Any
    root: Any
    peak: Any
    pull: Any
    middle: Any
    spread: Any
    level: Any
    slope: Any

    def of(self, rows: Any) -> "Place":
        """The same of these patients."""
        names = ("peak", "pull", "middle", "spread", "level", "slope")
        return Place(self.psi, self.root, *(getattr(self, name)[rows] for name in names))


class Shared(eqx.Module):
    """What of the guide is the population's, in units of its place.

    Attributes:
        centre: (number,).
        scale: (number, number) lower triangular, of the diagonal its logs.
        louder: (alike,) by how much likelihoods narrow, in logs, as numbers that all share rise.
    """

    centre: Any
    scale: Any
    louder: Any


class Own(eqx.Module):
    """What of the guide is a patient's, relative to his place; may have a leading axis (patient,).

    Attributes:
        shift: (effect,) of the peak, in standard deviations.
        turn: (effect, effect) of the pull, lower triangular, of the diagonal its logs.
        follow: (effect, alike) how the peak moves with numbers that all share.
    """

    shift: Any
    turn: Any
    follow: Any


def nothing_moved(joint: Joint, patients: int) -> tuple[Shared, Own]:
    """The guide as its place has it."""
    count, effects, alike = joint.numbers, joint.effects, len(joint.alike)
    shared = Shared(jnp.zeros(count), jnp.zeros((count, count)), jnp.zeros(alike))
    own = Own(
        jnp.zeros((patients, effects)),
        jnp.zeros((patients, effects, effects)),
        jnp.zeros((patients, effects, alike)),
    )
    return shared, own


def _lower(entries: Any) -> Any:
    """A lower triangular matrix of which the diagonal is given by logs."""
    return jnp.tril(entries, -1) + jnp.diag(jnp.exp(jnp.diagonal(entries)))


def drawn_numbers(place: Place, shared: Shared, noise: Any) -> Any:
    """The numbers (number,) from standard normal noise."""
    return place.psi + place.root @ (shared.centre + _lower(shared.scale) @ noise)


def log_numbers(place: Place, shared: Shared, psi: Any, *, tails: bool = False) -> Any:
    """Log density of the guide at the numbers; with `tails`, of its like from noise that is `heavy`."""
    unit = solve_triangular(place.root, psi - place.psi, lower=True)
    noise = solve_triangular(_lower(shared.scale), unit - shared.centre, lower=True)
    size = jnp.sum(jnp.diagonal(shared.scale)) + jnp.sum(jnp.log(jnp.diagonal(place.root)))
    return (_log_heavy if tails else _log_normal)(noise) - size


def heavy(key: Any, shape: tuple[int, int]) -> Any:
    """Noise (draw, coordinate) of which each draw is of a t distribution."""
    keys = jax.random.split(key)
    wide = -2.0 * jnp.sum(jnp.log1p(-jax.random.uniform(keys[1], (2, *shape[:1]))), axis=0) / _FREEDOM
    # Never so small that a draw is no number.
    return jax.random.normal(keys[0], shape) / jnp.sqrt(jnp.maximum(wide, 1e-6))[:, None]


def _log_normal(noise: Any) -> Any:
    return -0.5 * jnp.sum(noise**2) - 0.5 * len(noise) * jnp.log(2.0 * jnp.pi)


def _log_heavy(noise: Any) -> Any:
    count = len(noise)
    size = math.lgamma((_FREEDOM + count) / 2) - math.lgamma(_FREEDOM / 2)
    size -= 0.5 * count * math.log(_FREEDOM * math.pi)
    return size - 0.5 * (_FREEDOM + count) * jnp.log1p(jnp.sum(noise**2) / _FREEDOM)


class Effects(eqx.Module):
    """A patient's effects given the numbers: mean (effect,), and root of the precision."""

    mean: Any
    root: Any

    def draw(self, noise: Any) -> Any:
        """Effects from standard noise."""
        return self.mean + solve_triangular(self.root, noise, lower=True, trans=1)

    def log_density(self, z: Any) -> Any:
        """At effects `z`, from normal noise."""
        return _log_normal(self.root.T @ (z - self.mean)) + self._size()

    def log_heavy(self, z: Any) -> Any:
        """At effects `z`, from noise that is `heavy`."""
        return _log_heavy(self.root.T @ (z - self.mean)) + self._size()

    def _size(self) -> Any:
        return jnp.sum(jnp.log(jnp.diagonal(self.root)))


class Linear(eqx.Module):
    """A patient's parameters at some numbers, to first order in the effects.

    Attributes:
        psi: the numbers.
        middle: (effect,) parameters without effects, unbounded.
        spread: (effect, effect) what effects make of them.
    """

    psi: Any
    middle: Any
    spread: Any


def linear_at(joint: Joint, data: tuple[Any, Any], psi: Any) -> Linear:
    """The parameters of one patient (`data`: known values, and the record) at the numbers `psi`."""

    def twice(z: Any) -> tuple[Any, Any]:
        found = joint.parameters(*data, psi, z)
        return found, found

    spread, middle = jax.jacfwd(twice, has_aux=True)(jnp.zeros(joint.effects))
    return Linear(psi, middle, spread)


def effects_given(joint: Joint, place: Place, shared: Shared, own: Own, linear: Linear) -> Effects:
    """The guide of one patient's effects, given the numbers at which `linear` was taken.

    Args:
        joint: the density.
        place: of the patient.
        shared: the population's part of the guide.
        own: the patient's.
        linear: of the patient.
    """
    apart = (linear.psi - place.psi)[joint.alike]
    loud = jnp.exp(shared.louder @ apart)
    pull = place.pull @ _lower(own.turn)
    standard = jnp.eye(joint.effects)
    firm = jnp.linalg.cholesky(standard + place.pull @ place.pull.T)
    peak = place.peak + solve_triangular(firm, own.shift + own.follow @ apart, lower=True, trans=1)
    away = solve_triangular(place.spread, linear.middle - place.middle, lower=True)
    ratio = solve_triangular(place.spread, linear.spread, lower=True).T
    wider = ratio @ pull
    root = jnp.linalg.cholesky(standard + loud * (wider @ wider.T))
    # What the likelihood says, as effects at the place: its precision times its peak.
    asked = ratio @ peak + wider @ (pull.T @ (peak - away))
    half = solve_triangular(root, loud * asked, lower=True)
    return Effects(solve_triangular(root, half, lower=True, trans=1), root)


def laid(joint: Joint, data: tuple[Any, Any], psi: Any, root: Any, first: Any) -> Place:
    """The place of one patient at the numbers `psi`: his peak is climbed from effects `first`.

    Steps are Newton's, within a radius that shrinks where they do not lead upwards.
    """
    value_and_slope = jax.value_and_grad(lambda z: joint.log_patient(*data, psi, z))
    nudges = _NUDGE * jnp.concatenate([jnp.zeros((1, joint.effects)), jnp.eye(joint.effects)])
    nudges = jnp.concatenate([nudges, -nudges[1:]])

    def looked_at(z: Any) -> tuple:
        value, slope = jax.vmap(value_and_slope)(z + nudges)
        up, down = jnp.split(slope[1:], 2)
        bend = (down - up) / (2.0 * _NUDGE)
        return value[0], slope[0], (bend + bend.T) / 2.0

    def step(carry: tuple) -> tuple:
        best, trial, radius, _, count = carry
        value, slope, bend = looked_at(trial)
        sound = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope)) & jnp.all(jnp.isfinite(bend))
        better = sound & (value > best[1])
        length = jnp.linalg.norm(trial - best[0])
        here = (trial, value, slope, bend)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), here, best)
        radius = jnp.where(better, 2.0 * radius, 0.25 * jnp.minimum(length, radius))
        move = jnp.linalg.solve(standard + _above(best[3]), best[2])
        size = jnp.maximum(jnp.linalg.norm(move), 1e-12)
        following = best[0] + move * jnp.minimum(1.0, radius / size)
        # Where nothing better is found near by, the promise is one of rounding.
        ended = (0.5 * best[2] @ move < _CLOSE) | (radius < _CLOSE)
        return best, following, radius, ended, count + 1

    standard = jnp.eye(joint.effects)
    start = ((first, -jnp.inf, jnp.zeros_like(first), standard), first, jnp.asarray(_FIRST), False, 0)
    going = lambda carry: ~carry[3] & (carry[4] < _STEPS)  # noqa: E731
    (peak, _, _, bend), *_ = jax.lax.while_loop(going, step, start)
    pull = jnp.linalg.cholesky(_above(bend) + _FLAT * standard)
    linear = linear_at(joint, data, psi)
    unknown = jnp.zeros(()), jnp.zeros_like(psi)
    place = Place(psi, root, peak, pull, linear.middle, linear.spread, *unknown)
    shared, own = nothing_moved(joint, 1)
    own = jax.tree.map(lambda leaf: leaf[0], own)

    def integrated(psi: Any) -> Any:
        guide = effects_given(joint, place, shared, own, linear_at(joint, data, psi))
        return joint.log_patient(*data, psi, guide.mean) - guide.log_density(guide.mean)

    level, slope = jax.value_and_grad(integrated)(psi)
    known = jnp.isfinite(level) & jnp.all(jnp.isfinite(slope))
    return eqx.tree_at(
        lambda place: (place.level, place.slope),
        place,
        (jnp.where(known, level, 0.0), jnp.where(known, slope, 0.0)),
    )


def _above(bend: Any) -> Any:
    """The part of a curvature that is the likelihood's, where it bends down."""
    value, axes = jnp.linalg.eigh(bend - jnp.eye(len(bend)))
    return (axes * jnp.maximum(value, 0.0)) @ axes.T
