"""Whether perfect measurements would determine the parameters: structural local identifiability.

The outputs of a noise-free experiment are measured without end: densely, from the first thousandth of it on.
Their derivatives by the parameters are a matrix whose rank is the number of parameter combinations that the
outputs determine near a point; the rank at random points is that of almost all points.

Taylor coefficients at the start would need no horizon, but they see one instant: a dose that comes later, a
lag, a start at rest and a sampled input are beyond them, and a coefficient of order k holds rates to the
power k, so that a rate a tenth of another is lost in rounding after few orders. Derivatives along a whole
solution have none of this. What they have is the error of the solver, and that is measured: the same
derivatives are computed with a hundred times the tolerance, and by Weyl's inequality a singular value below
the norm of the difference cannot be told from 0.

Source: Miao, Xia, Perelson & Wu 2011, SIAM Rev 53:3, doi 10.1137/090757009 (sensitivity-based methods).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import Prior
from dtwin_jax.core.quantity import assign, check_names, quantities, values
from dtwin_jax.dynamics.dosing import has_samples
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.started import Start, started
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.diagnostics import unbounded_sd
from dtwin_jax.twin.directions import Direction, directions, scale_of, sparse_basis

# Random points are so far from the given values (sd on the unbounded scale); their number.
_SPREAD = 0.3
_POINTS = 3
# Relative tolerance of the solver, and that of the solve that tells its error.
_TIGHT, _LOOSE = 1e-11, 1e-9
# Singular values are known to rounding at best: to this share of the largest.
_ROUNDING = 1e-10
# The largest value taken for 0 and the smallest that is not should be so far apart.
_CLEAR = 100.0
_SAMPLES = 100
# A parameter with a smaller share in an unseen direction (of sensitivities of norm 1) takes no part in it.
_ABSENT = 1e-3


@dataclass(frozen=True, eq=False)
class Structure:
    """What perfect measurements of a model's outputs determine, near almost every point.

    Attributes:
        names: the parameters asked about, and initial states as `init.<state>`.
        rank: how many combinations of them are determined.
        undetermined: parameters that are not, because they take part in an unseen direction.
        unseen: directions in which the parameters can move without any change of the outputs; `local` where
            they differ from point to point, and this is one of them.
        singular: (point, name) singular values of the sensitivities, columns scaled to norm 1, largest first.
        error: (point,) what the solver's error may add to a singular value.
        noise: parameters with a prior that were not asked about, since they are in the noise only.
        given: False where the model has inputs and all of them were neutral.
    """

    names: tuple[str, ...]
    rank: int
    undetermined: tuple[str, ...]
    unseen: tuple[Direction, ...]
    singular: np.ndarray
    error: np.ndarray
    noise: tuple[str, ...] = ()
    given: bool = True

    @property
    def identifiable(self) -> bool:
        """Whether every parameter is determined, at least locally."""
        return self.rank == len(self.names)

    @property
    def gap(self) -> float:
        """Smallest singular value that counts over the largest that does not (or the error), at worst.

        Above 100 the rank is clear; near 1 it is a guess.
        """
        ratios = []
        for singular, error in zip(self.singular, self.error, strict=True):
            below = singular[self.rank] if self.rank < len(singular) else 0.0
            least = singular[self.rank - 1] if self.rank else 1.0
            ratios.append(float(least / max(below, error)))
        return min(ratios)

    @property
    def clear(self) -> bool:
        """Whether the gap leaves no doubt of the rank."""
        return self.gap >= _CLEAR

    @property
    def words(self) -> str:
        """The result in a few sentences."""
        count = len(self.names)
        whole = f"all {count} parameters are determined, at least locally"
        told = [
            whole if self.identifiable else f"{self.rank} combinations of {count} parameters are determined"
        ]
        told += [direction.words for direction in self.unseen]
        if not self.given and len(self.undetermined) == count:
            told.append("nothing was given: say what, inputs=...")
        if not self.clear:
            told.append(f"the rank is not clear (gap {self.gap:.1g}): try another horizon")
        return "; ".join(told)


def structural_rank(
    model: Model,
    p: Any = None,
    *,
    until: float,
    key: Any,
    inputs: Any = None,
    names: Sequence[str] | None = None,
    states: Sequence[str] = (),
    channels: Sequence[str] | None = None,
) -> Structure:
    """Which parameters perfect measurements of the outputs determine, locally.

    Args:
        model: an ODE model.
        p: parameters about which to look, three random points near them; by default the declared values.
        until: end of the experiment, which begins at 0, in the model's unit of time: above 0, long enough to
            see its slowest motion, and within a thousand times its fastest.
        key: random key of the points.
        inputs: what is given, numbers or signals; by default nothing.
        names: parameters that are not known; by default those with a prior, but for those of the noise.
            Their scale is that of their prior; without one, the log where the value is positive.
        states: names of states whose initial value is not known either, one number each.
        channels: outputs that are measured; by default all.

    Returns:
        Local identifiability: that no other parameters nearby give the same outputs. Elsewhere there may be
        some, as where absorption and elimination are exchanged.

    Raises:
        ValueError: an SDE, float32, an end not after the start, an unknown name, nothing to ask about, or a
            model that cannot be solved at the points.
    """
    if not until > 0:
        raise ValueError(f"until: expected a time after 0, where the experiment begins; found {until}")
    p = model.params() if p is None else p
    inputs = model.inputs() if inputs is None else inputs
    start = model.init(p)
    channels = tuple(model.schema().outputs if channels is None else channels)
    declared = quantities(p)
    usual = (name for name, quantity in declared.items() if quantity.prior is not None)
    asked = tuple(usual if names is None else names)
    _check(model, p, start, asked, states, channels)
    scales = tuple(_scale(declared[name].prior, values(p)[name]) for name in asked)
    scales += tuple(_scale(None, values(start)[name]) for name in states)
    free = _Free(model, asked, tuple(states), tuple(declared[name].prior for name in asked), scales, channels)
    data = (key, p, start, jax.tree.map(jnp.asarray, inputs), jnp.asarray(float(until)))
    tight = np.asarray(_sensitivities(free, _TIGHT, *data))
    exact = model.flow is not None and not has_samples(inputs)
    loose = tight if exact else np.asarray(_sensitivities(free, _LOOSE, *data))
    if not np.all(np.isfinite(tight)) or not np.all(np.isfinite(loose)):
        raise ValueError(f"{model.name} cannot be solved until {until} at points near these values")
    noise = () if names else _in_noise(free, p, tight)
    kept = np.asarray([i for i, name in enumerate(free.names) if name not in noise], int)
    if not kept.size:
        raise ValueError(f"{model.name}: only its noise has priors; say what is not known, names=[...]")
    found = _judged(free, kept, tight[:, :, kept], loose[:, :, kept], noise)
    return replace(found, given=_given(model, inputs))


def _given(model: Model, inputs: Any) -> bool:
    neutral = values(model.inputs())
    return not neutral or any(
        hasattr(signal, "time") or bool(np.any(np.asarray(signal) != np.asarray(neutral[name])))
        for name, signal in values(inputs).items()
    )


def _check(
    model: Model, p: Any, start: Any, names: Sequence[str], states: Sequence[str], channels: Sequence[str]
) -> None:
    if model.diffusion is not None:
        raise ValueError(
            f"{model.name} is an SDE: ask of the ODE, dataclasses.replace(model, diffusion=None)"
        )
    if jnp.result_type(float) != jnp.float64:
        raise ValueError("a rank needs float64: call jax.config.update('jax_enable_x64', True) first")
    check_names(model.name, "parameter", names, quantities(p))
    check_names(model.name, "state", states, quantities(start))
    check_names(model.name, "channel", channels, model.schema().outputs)
    if not names and not states:
        raise ValueError(f"{model.name}: no parameter has a prior; say what is not known, names=[...]")


def _scale(prior: Prior | None, value: Any) -> str:
    if prior is not None:
        return scale_of(prior)
    return "log" if float(value) > 0 else "own"


@dataclass(frozen=True)
class _Free:
    """What is not known of a model: parameters, then initial states; scales are of both."""

    model: Model
    asked: tuple[str, ...]
    states: tuple[str, ...]
    priors: tuple[Prior | None, ...]
    scales: tuple[str, ...]
    channels: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.asked + tuple(f"init.{name}" for name in self.states)

    def solved_by(self, tolerance: float) -> Model:
        """The model, started where its parameters say, and solved to this relative tolerance."""
        old = self.model
        # States may be tiny, or start at 0: the absolute tolerance is there to divide by.
        solver = replace(
            old.solver.differentiated("forward"),
            rtol=tolerance,
            atol=tolerance * 1e-6,
            max_steps=100_000,
            dt=None,
        )
        return replace(started(old), solver=solver)

    def unbounded(self, p: Any, start: Any) -> tuple[Any, Any]:
        """(name,) values on the unbounded scales, and how far random points are from them."""
        given = [values(p)[name] for name in self.asked] + [values(start)[name] for name in self.states]
        priors = (*self.priors, *([None] * len(self.states)))
        u, spread = [], []
        for prior, scale, value in zip(priors, self.scales, given, strict=True):
            u.append(_bijector(prior, scale).inv(value))
            if scale != "own":
                spread.append(_SPREAD)
            else:
                spread.append(_SPREAD * (jnp.abs(value) if prior is None else unbounded_sd(prior)))
        return jnp.stack([jnp.asarray(each, float) for each in u]), jnp.asarray(spread)

    def parameters(self, p: Any, u: Any) -> Start:
        priors = (*self.priors, *([None] * len(self.states)))
        bounded = [
            _bijector(prior, scale)(u[i])
            for i, (prior, scale) in enumerate(zip(priors, self.scales, strict=True))
        ]
        count = len(self.asked)
        p = assign(p, dict(zip(self.asked, bounded[:count], strict=True)))
        return Start(p, assign(self.model.init(p), dict(zip(self.states, bounded[count:], strict=True))))


def _bijector(prior: Prior | None, scale: str) -> Any:
    import numpyro.distributions as dist

    if prior is not None:
        return dist.biject_to(prior.distribution().support)
    return dist.biject_to(dist.constraints.positive if scale == "log" else dist.constraints.real)


@functools.partial(jax.jit, static_argnames=("free", "tolerance"))
@standard_promotion
def _sensitivities(free: _Free, tolerance: Any, key: Any, p: Any, start: Any, inputs: Any, until: Any) -> Any:
    """Derivatives of the outputs, as shares of their size: (point, output and time, name)."""
    model = free.solved_by(tolerance)
    # Even times see what is slow, and times even on the log what is fast.
    share = jnp.concatenate([jnp.linspace(0.0, 1.0, _SAMPLES), jnp.geomspace(1e-3, 1.0, _SAMPLES)])
    times = until * jnp.sort(share)
    middle, spread = free.unbounded(p, start)

    def outputs(u: Any) -> tuple[Any, Any]:
        found = simulate(model, free.parameters(p, u), inputs, times).output
        y = jnp.stack([getattr(found, channel) for channel in free.channels])
        return y, y

    def at(noise: Any) -> Any:
        slope, y = jax.jacfwd(outputs, has_aux=True)(middle + spread * noise)
        size = jnp.abs(y) + 1e-3 * jnp.max(jnp.abs(y), axis=1, keepdims=True)
        shares = slope / jnp.where(size > 0, size, 1.0)[:, :, None]
        # A solve that failed has no derivative, but says so in its value.
        shares = jnp.where(jnp.isfinite(y)[:, :, None], shares, jnp.nan)
        return jnp.reshape(shares, (-1, middle.shape[0]))

    return jax.vmap(at)(jax.random.normal(key, (_POINTS, middle.shape[0])))


def _in_noise(free: _Free, p: Any, sensitivities: np.ndarray) -> tuple[str, ...]:
    """Parameters that no output depends on, but the noise."""
    unseen = ~np.any(sensitivities, axis=(0, 1))[: len(free.asked)]
    moved = np.asarray(_noise_moves(free, p))
    return tuple(name for name, here, there in zip(free.asked, unseen, moved, strict=True) if here and there)


@functools.partial(jax.jit, static_argnames=("free",))
@standard_promotion
def _noise_moves(free: _Free, p: Any) -> Any:
    """(name,) whether the noise about outputs of 1 depends on each parameter."""
    u, _ = replace(free, states=(), scales=free.scales[: len(free.asked)]).unbounded(p, None)

    def noise(u: Any) -> list[Any]:
        q = free.parameters(p, jnp.concatenate([u, jnp.zeros(len(free.states))])).p
        example = eqx.filter_eval_shape(
            lambda: free.model.observe(jnp.asarray(0.0), free.model.init(p), free.model.inputs(), p)
        )
        found = free.model.noise(jax.tree.map(lambda leaf: jnp.ones(leaf.shape), example), q)
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(found)]
        return [jnp.ravel(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    slopes = jax.jacfwd(lambda u: jnp.concatenate([jnp.zeros(0), *noise(u)]))(u)
    return jnp.any(slopes != 0, axis=0)


def _judged(
    free: _Free, kept: np.ndarray, tight: np.ndarray, loose: np.ndarray, noise: tuple[str, ...]
) -> Structure:
    names, scales = ([each[i] for i in kept] for each in (free.names, free.scales))
    rows = [_decomposed(a, b) for a, b in zip(tight, loose, strict=True)]
    singular, error = np.stack([row.singular for row in rows]), np.asarray([row.error for row in rows])
    ranks = (singular > error[:, None]).sum(axis=1)
    rank = int(ranks.max())
    # Of the points that have the rank, the one where it shows best.
    kept_least = np.where(ranks == rank, singular[:, rank - 1] / error if rank else 1.0, 0.0)
    best = rows[int(np.argmax(kept_least))]
    null = best.vectors[rank:].T
    null = np.where(np.abs(null) < _ABSENT, 0.0, null)
    taking = np.any(null != 0, axis=1)
    unseen, unit = sparse_basis(null), 1.0 / best.size
    others = [row for row, each in zip(rows, ranks, strict=True) if each == rank and row is not best]
    turns = [not others or any(row.sees(move, rank) for row in others) for move in (unseen * unit[:, None]).T]
    return Structure(
        names=tuple(names),
        rank=rank,
        undetermined=tuple(name for name, part in zip(names, taking, strict=True) if part),
        unseen=directions(names, scales, unseen, unit, small=_ABSENT, local=turns),
        singular=singular,
        error=error,
        noise=noise,
    )


@dataclass(frozen=True, eq=False)
class _Decomposition:
    singular: np.ndarray
    vectors: np.ndarray
    size: np.ndarray
    error: float

    def sees(self, move: np.ndarray, rank: int) -> bool:
        """Whether the outputs change at this point when the parameters make a move (name,)."""
        scaled = move * self.size
        return float(np.linalg.norm(self.vectors[:rank] @ scaled)) > _ABSENT * float(np.linalg.norm(scaled))


def _decomposed(tight: np.ndarray, loose: np.ndarray) -> _Decomposition:
    """Singular values and right vectors of the derivatives, each column divided by its norm."""
    norm, wrong = np.linalg.norm(tight, axis=0), np.linalg.norm(tight - loose, axis=0)
    nothing = norm <= np.maximum(wrong, _ROUNDING * norm.max())
    size = np.where(nothing, 1.0, norm)
    scaled = np.where(nothing, 0.0, tight / size)
    _, singular, vectors = np.linalg.svd(scaled, full_matrices=True)
    difference = np.where(nothing, 0.0, (tight - loose) / size)
    error = np.linalg.norm(difference, 2) + _ROUNDING * max(singular[0], 1.0)
    return _Decomposition(singular, vectors, size, float(error))
