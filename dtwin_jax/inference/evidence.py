"""How high a guide's evidence lower bound is, steps that raise it, and what its draws weigh.

Each step looks at a batch of patients, who stand for all. What all patients say near the guide's place is
known to first order, and only the rest is left to chance.

Source: of the gradients Roeder et al. 2017, arXiv:1703.09194, and Tucker et al. 2019, arXiv:1810.04152; of
what is known of all: Johnson & Zhang 2013, Advances in Neural Information Processing Systems 26.
"""

import functools
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.guide import (
    Effects,
    Own,
    Place,
    Shared,
    drawn_numbers,
    effects_given,
    heavy,
    laid,
    linear_at,
    log_numbers,
)
from dtwin_jax.inference.joint import Joint
from dtwin_jax.inference.start import starting_points

ADAM: Any = optax.scale_by_adam(b1=0.9, b2=0.99)
# Patients who are laid side by side, and draws times patients that are weighed at once.
_SIDE, _POINTS = 128, 2048


@dataclass(frozen=True)
class Pace:
    """What a step looks at, and how many are taken in a block; as `Svi` has them."""

    batch: int
    samples: int
    nodes: int
    block: int


class State(eqx.Module):
    """Where a fit is.

    Attributes:
        shared: the population's part of the guide.
        own: the patients', leading axis (patient,).
        memory: the optimiser's, of `shared` and of each patient.
        mean: of `shared` over the steps of a rate, and how many.
        order: of the patients in this pass, and how many are done.
        key: random key.
    """

    shared: Shared
    own: Own
    memory: tuple[Any, Any]
    mean: tuple[Shared, Any]
    order: tuple[Any, Any]
    key: Any


def bound(joint: Joint, data: tuple, place: Place, moved: tuple[Shared, Own], rows: Any, noise: tuple) -> Any:
    """The evidence lower bound, with each patient's likelihood integrated by nodes, from the patients `rows`.

    Its derivative is that of a path: of the numbers by all that hangs on them, of the guide's own numbers
    without the score, by squared weights of nodes.

    Args:
        joint: the density.
        data: known parameter values, and the records of all patients.
        place: of all.
        moved: the guide; of the patients `rows` only.
        rows: places of the patients.
        noise: standard normal, (sample, number) and (sample, row, node, effect).
    """
    base, record = data
    shared, own = moved
    still = jax.lax.stop_gradient(shared)
    ours, there = jax.tree.map(lambda leaf: leaf[rows], record), place.of(rows)
    one = jax.tree.map(lambda leaf: leaf[0], record)
    factor = len(place.level) / len(rows)

    def once(noise: Any, noises: Any) -> Any:
        psi = drawn_numbers(place, shared, noise)
        known = lambda place: place.level + place.slope @ (psi - place.psi)  # noqa: E731

        def patient(record: Any, place: Place, own: Own, noise: Any) -> Any:
            linear = linear_at(joint, (base, record), psi)
            found = integrated(
                lambda psi, z: joint.log_patient(base, record, psi, z),
                psi,
                effects_given(joint, place, still, jax.lax.stop_gradient(own), linear),
                effects_given(joint, place, shared, own, jax.lax.stop_gradient(linear)),
                noise,
            )
            return found - known(place)

        each = jax.vmap(patient, in_axes=(0, _BY_PATIENT, 0, 0))(ours, there, own, noises)
        prior = joint.log_prior(base, one, psi) - log_numbers(place, still, psi)
        return prior + jnp.sum(known(place)) + factor * jnp.sum(each)

    return jnp.mean(jax.vmap(once)(*noise))


def integrated(density: Any, psi: Any, by_numbers: Effects, by_guide: Effects, noise: Any) -> Any:
    """Log of the mean over nodes of a patient's density over the guide's.

    Its derivative by `psi` is that of the value at these nodes; that by the guide's own numbers weighs each
    node by the square of its share, in place of the score.

    Args:
        density: (psi, effects) -> log density of measurements and effects.
        psi: the numbers.
        by_numbers: the guide, a function of `psi` alone.
        by_guide: the same, a function of the guide's own numbers alone.
        noise: standard normal, (node, effect).
    """
    ratio = lambda psi, z, guide: density(psi, z) - guide.log_density(z)  # noqa: E731
    nodes, others = jax.vmap(by_numbers.draw)(noise), jax.vmap(by_guide.draw)(noise)
    at = jax.lax.stop_gradient((psi, nodes, by_numbers))
    steep = jax.vmap(jax.value_and_grad(ratio, argnums=(0, 1, 2)), in_axes=(None, 0, None))
    value, (slope, push, turn) = jax.lax.stop_gradient(steep(*at))
    share = jax.nn.softmax(value)
    rest = jax.tree.map(lambda leaf, by: jnp.tensordot(share, by, 1) * leaf, by_numbers, turn)
    linear = (share @ slope) @ psi + jnp.sum(share @ (push * nodes))
    linear += sum(jnp.sum(leaf) for leaf in jax.tree.leaves(rest)) + jnp.sum(share**2 @ (push * others))
    total = jax.scipy.special.logsumexp(value) - jnp.log(len(value))
    return total + linear - jax.lax.stop_gradient(linear)


_BY_PATIENT = Place(None, None, 0, 0, 0, 0, 0, 0)


@functools.partial(jax.jit, static_argnames=("joint", "pace"))
@standard_promotion
def run_block(joint: Joint, pace: Pace, data: tuple, place: Place, state: State, rate: Any) -> tuple:
    """`pace.block` steps on; the bound before each, not finite where the step was not taken."""
    patients, batch = len(place.level), pace.batch

    def step(state: State, _: None) -> tuple[State, Any]:
        key, key_order, key_noise = jax.random.split(state.key, 3)
        order, done = state.order
        over = done + batch > patients
        order = jax.lax.cond(over, lambda: jax.random.permutation(key_order, patients), lambda: order)
        done = jnp.where(over, 0, done)
        rows = jax.lax.dynamic_slice_in_dim(order, done, batch)
        keys = jax.random.split(key_noise)
        noise = (
            jax.random.normal(keys[0], (pace.samples, joint.numbers)),
            jax.random.normal(keys[1], (pace.samples, batch, pace.nodes, joint.effects)),
        )
        at = (state.shared, jax.tree.map(lambda leaf: leaf[rows], state.own))
        memory = (state.memory[0], jax.tree.map(lambda leaf: leaf[rows], state.memory[1]))
        loss, slope = jax.value_and_grad(lambda at: -bound(joint, data, place, at, rows, noise))(at)
        sound = jnp.isfinite(loss)
        for leaf in jax.tree.leaves(slope):
            sound &= jnp.all(jnp.isfinite(leaf))
        push, first = ADAM.update(slope[0], memory[0])
        pushes, others = jax.vmap(ADAM.update)(slope[1], memory[1])
        moved = jax.tree.map(lambda x, by: x - rate * by, at, (push, pushes))
        moved, memory = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), (moved, (first, others)), (at, memory)
        )
        mean, count = state.mean
        mean = jax.tree.map(lambda old, new: old + (new - old) / (count + 1.0), mean, moved[0])
        put = lambda whole, part: whole.at[rows].set(part)  # noqa: E731
        own = jax.tree.map(put, state.own, moved[1])
        memory = (memory[0], jax.tree.map(put, state.memory[1], memory[1]))
        return State(moved[0], own, memory, (mean, count + 1.0), (order, done + batch), key), jnp.where(
            sound, -loss, jnp.nan
        )

    return jax.lax.scan(step, state, None, length=pace.block)


@functools.partial(jax.jit, static_argnames=("joint", "candidates"))
@standard_promotion
def start(joint: Joint, candidates: int, base: Any, record: Any, key: Any) -> Any:
    """Numbers that are likely of the patients in `record`, stacked."""
    centring = jnp.zeros(len(joint.density.population.varying))
    (z, _, _), _ = starting_points(joint.density, (base, record, centring), key[None], candidates, False)
    return joint.packed({name: value[0] for name, value in z.items()})


@functools.partial(jax.jit, static_argnames=("joint",))
@standard_promotion
def lay(joint: Joint, base: Any, record: Any, psi: Any, peaks: Any) -> Place:
    """The place of all patients at the numbers `psi`, with units in which they are nearly standard normal."""
    patients = len(peaks)
    side = min(_SIDE, patients)
    # The last group is filled up with the last patient.
    rows = jnp.minimum(jnp.arange(-(-patients // side) * side), patients - 1).reshape(-1, side)
    one = lambda record, first: laid(joint, (base, record), psi, jnp.eye(joint.numbers), first)  # noqa: E731
    group = lambda rows: jax.vmap(one, out_axes=_BY_PATIENT)(  # noqa: E731
        jax.tree.map(lambda leaf: leaf[rows], record), peaks[rows]
    )
    found = jax.lax.map(group, rows)
    flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:patients]  # noqa: E731
    parts = [flat(part) for part in (found.peak, found.pull, found.middle, found.spread)]
    level, slope = flat(found.level), flat(found.slope)
    first = jax.tree.map(lambda leaf: leaf[0], record)
    bend = -jax.hessian(lambda psi: joint.log_prior(base, first, psi))(psi)
    value, axes = jnp.linalg.eigh(bend)
    # The square of the scores stands for the curvature of the likelihood.
    curvature = (axes * jnp.maximum(value, 1e-2)) @ axes.T + slope.T @ slope
    root = jnp.linalg.cholesky(jnp.linalg.inv(curvature))
    return Place(psi, root, *parts, level=level, slope=slope)


@functools.partial(jax.jit, static_argnames=("joint", "nodes"))
@standard_promotion
def integrals(
    joint: Joint, nodes: int, data: tuple, place: Place, moved: tuple[Shared, Own], psi: Any, random: tuple
) -> tuple[Any, Any, Any]:
    """Each patient's effects integrated out at draws of the numbers.

    Args:
        joint: the density.
        nodes: of each patient; of heavier tails than the guide has.
        data: known parameter values, and the records of all patients.
        place: of all.
        moved: the guide.
        psi: (draw, number).
        random: keys (patient,); and the turn of each draw (draw,): of equal turns the nodes are the same.

    Returns:
        Log density of numbers and measurements (draw,); a node drawn by its weight (draw, patient, effect);
        and log ratio at a single node, without what it changes by as the numbers do (draw, patient).
    """
    base, record = data
    keys, turn = random
    draws, patients = len(psi), len(keys)
    side = max(min(_POINTS // patients, draws), 1)
    one = jax.tree.map(lambda leaf: leaf[0], record)

    def draw(psi: Any, turn: Any) -> tuple:
        def patient(record: Any, place: Place, own: Own, key: Any) -> tuple:
            linear = linear_at(joint, (base, record), psi)
            guide = effects_given(joint, place, moved[0], own, linear)
            key_nodes, key_one = jax.random.split(jax.random.fold_in(key, turn))
            z = jax.vmap(guide.draw)(heavy(key_nodes, (nodes, joint.effects)))
            ratio = jax.vmap(lambda z: joint.log_patient(base, record, psi, z) - guide.log_heavy(z))(z)
            # What is no number weighs nothing.
            ratio = jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
            total = jax.scipy.special.logsumexp(ratio) - jnp.log(nodes)
            known = place.level + place.slope @ (psi - place.psi)
            return total, z[jax.random.categorical(key_one, ratio)], ratio[0] - known

        each, z, single = jax.vmap(patient, in_axes=(0, _BY_PATIENT, 0, 0))(record, place, moved[1], keys)
        return joint.log_prior(base, one, psi) + jnp.sum(each), z, single

    # The last block is filled up with the last draw.
    at = jnp.minimum(jnp.arange(-(-draws // side) * side), draws - 1).reshape(-1, side)
    found = jax.lax.map(lambda rows: jax.vmap(draw)(psi[rows], turn[rows]), at)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:draws], found)


@functools.partial(jax.jit, static_argnames=("draws", "proposals"))
@standard_promotion
def proposed(draws: int, proposals: int, place: Place, shared: Shared, key: Any) -> tuple[Any, Any, Any]:
    """Draws of the guide's numbers (draw, number); others of heavier tails; and the log density of those."""
    keys, count = jax.random.split(key), len(place.psi)
    noise = jax.random.normal(keys[0], (draws, count)), heavy(keys[1], (proposals, count))
    own, other = (jax.vmap(lambda e: drawn_numbers(place, shared, e))(each) for each in noise)
    return own, other, jax.vmap(lambda psi: log_numbers(place, shared, psi, tails=True))(other)
