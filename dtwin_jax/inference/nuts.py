"""NUTS over many lanes at once, in blocks that compile once: NumPyro's kernel under a loop that can stop.

What NumPyro adapts in its warm-up is the size of steps; metrics are learnt between blocks, from all chains.

Warm-up and sampling run through one compiled block of iterations, so a calibration compiles twice in all
(starting points, block), a second one of the same structure not at all, and after every block the state
can be saved.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.population import PatientDensity
from dtwin_jax.inference.start import coordinates, flat_energy, starting_points

# Up to so many parameters of a patient, a few hundred draws of warm-up tell how they hang together.
FEW = 16


@dataclass(frozen=True)
class Nuts:
    """Settings of the No-U-Turn sampler.

    Attributes:
        chains: independent chains.
        warmup: iterations of adaptation, not kept.
        draws: iterations kept, for each chain.
        target_accept: mean acceptance that the step size is adapted to; more is slower and safer.
        max_depth: doublings of a trajectory at most.
        dense: adapt a full mass matrix: better for a few correlated parameters. None: for one patient of at
            most `FEW` parameters. It starts from the curvature where a chain does, as a diagonal one too.
        candidates: prior draws of which the likeliest starts a chain.
        block: iterations between two reports of progress, and between two checkpoints.
        group: independent patients sampled side by side. Enough to fill the vector units, few enough that a
            finished group is soon on disk and the slowest trajectory holds few others up.
    """

    title: ClassVar[str] = "NUTS"

    chains: int = 4
    warmup: int = 1000
    draws: int = 1000
    target_accept: float = 0.8
    max_depth: int = 10
    dense: bool | None = None
    candidates: int = 64
    block: int = 50
    group: int = 16

    def described(self) -> str:
        """How much of it."""
        return f"{self.chains} chains, {self.warmup} iterations of warm-up, {self.draws} draws"


def _kernel(density: Any, method: Nuts) -> tuple[Callable, Callable]:
    from numpyro.infer.hmc import hmc

    init, sample = hmc(potential_fn_gen=lambda *data: flat_energy(density, data), algo="NUTS")

    def start(data, z, key, metric):
        return init(
            z,
            num_warmup=method.warmup,
            target_accept_prob=method.target_accept,
            max_tree_depth=method.max_depth,
            dense_mass=is_dense(density, method),
            inverse_mass_matrix=metric,
            model_args=data,
            rng_key=key,
        )

    return start, sample


def is_dense(density: Any, method: Nuts) -> bool:
    """Whether a full mass matrix is adapted."""
    if method.dense is not None:
        return method.dense
    return isinstance(density, PatientDensity) and len(density.priors) <= FEW


def first_state(density: Any, method: Nuts, data: tuple, keys: Any) -> Any:
    """Sampler states of all lanes before the first iteration; `keys` has a lane axis."""
    keys = jax.vmap(jax.random.split)(keys)
    dense = is_dense(density, method)
    (z, energy, slope), metrics = starting_points(density, data, keys[:, 0], method.candidates, dense)
    points = _vectors(z), energy, _vectors(slope)
    return state_at(density, method, data, (points, metrics, keys[:, 1], jnp.zeros(len(keys), int)))


def state_at(density: Any, method: Nuts, data: tuple, lanes: tuple) -> Any:
    """Sampler states that keep their metric, and adapt the size of their steps until the warm-up is over.

    Args:
        density: the NumPyro model.
        method: the settings.
        data: its arguments.
        lanes: points, metrics, keys, and iterations of warm-up done, each with a lane axis; of a point the
            vector of unbounded coordinates, their potential energy and its slope.
    """
    from numpyro.infer.hmc_util import build_adaptation_schedule, dual_averaging
    from numpyro.infer.util import ParamInfo

    start, _ = _kernel(density, method)
    points, metrics, keys, done = lanes
    raw = jax.vmap(jax.random.key_data)(keys)
    state = jax.vmap(lambda point, *rest: start(data, ParamInfo(*point), *rest))(points, raw, metrics)
    adapting = state.adapt_state
    # Sizes are tried about that of the metric, not ten times as large at first as is NumPyro's way: where
    # such a step ends, a solve may cost as much as a hundred others.
    about: Any = dual_averaging()[0]
    sizes = jax.vmap(about)(jnp.log(adapting.step_size))
    last = jnp.full_like(state.i, len(build_adaptation_schedule(method.warmup)) - 1)
    adapting = adapting._replace(window_idx=last, ss_state=sizes)
    return state._replace(i=done.astype(state.i.dtype), adapt_state=adapting)


def settling(method: Nuts) -> int:
    """Iterations at the end of the warm-up after which no metric is learnt."""
    from numpyro.infer.hmc_util import build_adaptation_schedule

    *windows, last = build_adaptation_schedule(method.warmup)
    return method.warmup - last.start if windows else -(-method.warmup // 2)


def points_at(density: Any, method: Nuts, data: tuple, z: Any) -> tuple[Any, Any, Any]:
    """The points of `state_at` at named unbounded coordinates with a lane axis."""
    flat = _vectors(z)
    return flat, *jax.vmap(jax.value_and_grad(flat_energy(density, data)))(flat)


def _vectors(z: dict[str, Any]) -> Any:
    """(lane, coordinate) of what has names and a lane axis."""
    return jax.vmap(lambda one: ravel_pytree(one)[0])(z)


def advance(density: Any, method: Nuts, data: tuple, state: Any) -> tuple[Any, tuple]:
    """`method.block` iterations of every lane.

    Returns:
        The next state; unbounded draws by name and statistics, with leading axes (lane, iteration).
    """
    start, sample = _kernel(density, method)

    def lane(state):
        # NumPyro's kernel keeps its settings in a closure that init fills; this runs nothing.
        jax.eval_shape(start, data, state.z, state.rng_key, None)

        def step(state, _):
            state = sample(state, model_args=data, model_kwargs={})
            stats = {
                "diverging": state.diverging,
                "acceptance_rate": state.accept_prob,
                "n_steps": state.num_steps,
                "energy": state.energy,
            }
            return state, (state.z, stats)

        return jax.lax.scan(step, state, None, length=method.block)

    state, (z, stats) = jax.vmap(lane)(state)
    return state, (jax.vmap(jax.vmap(coordinates(density, data)))(z), stats)


def _over_patients(function: Callable, patients: bool) -> Callable:
    """`function(density, method, (base, record, centring), lanes)`, over a patient axis if there is one."""
    if not patients:
        return function

    def mapped(density, method, data, lanes):
        one = lambda data, lanes: function(density, method, data, lanes)  # noqa: E731
        return jax.vmap(one, in_axes=((None, 0, None), 0))(data, lanes)

    return mapped


@functools.partial(jax.jit, static_argnames=("density", "method", "patients"))
@standard_promotion
def start(density: Any, method: Nuts, patients: bool, data: tuple, keys: Any) -> Any:
    """Compiled `first_state`; with `patients`, data and keys have a leading patient axis."""
    return _over_patients(first_state, patients)(density, method, data, keys)


@functools.partial(jax.jit, static_argnames=("density", "method", "patients"))
@standard_promotion
def start_at(density: Any, method: Nuts, patients: bool, data: tuple, lanes: tuple) -> Any:
    """Compiled `state_at`."""
    return _over_patients(state_at, patients)(density, method, data, lanes)


@functools.partial(jax.jit, static_argnames=("density", "method", "patients"))
@standard_promotion
def points(density: Any, method: Nuts, patients: bool, data: tuple, z: Any) -> Any:
    """Compiled `points_at`."""
    return _over_patients(points_at, patients)(density, method, data, z)


@functools.partial(jax.jit, static_argnames=("density", "method", "patients"))
@standard_promotion
def run_block(density: Any, method: Nuts, patients: bool, data: tuple, state: Any) -> tuple[Any, tuple]:
    """Compiled `advance`; with `patients`, data and state have a leading patient axis."""
    return _over_patients(advance, patients)(density, method, data, state)
