"""Filters that carry many possible states: particles, bootstrap or guided, and the ensemble Kalman filter.

Between measurements every member follows the model's SDE by its own solver and its own noise. The keys are
fixed, so a likelihood is the same for the same parameters; it is an estimate, with the error of Monte Carlo.

Sources: Gordon et al. 1993, doi 10.1049/ip-f-2.1993.0015; smoothing by paths: Kitagawa 1996,
doi 10.1080/10618600.1996.10474692, with a lag: Olsson et al. 2008, doi 10.3150/07-BEJ6150 (both recalled, not
checked); Evensen 2003, doi 10.1007/s10236-003-0036-9.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import Mode, log_cdf, log_survival
from dtwin_jax.core.record import ABOVE, BELOW, Record
from dtwin_jax.dynamics.filtering.body import Body
from dtwin_jax.dynamics.filtering.gaussian import Gaussian, known_of
from dtwin_jax.dynamics.filtering.passage import Passage, Swarm, passed
from dtwin_jax.dynamics.filtering.paths import ancestors, effective_rows, moments_over
from dtwin_jax.dynamics.filtering.sequence import Rows, on_reading_scale, rows_of
from dtwin_jax.dynamics.filtering.weights import drawn_rows, effective_of


@dataclass(frozen=True)
class ParticleFilter:
    """A particle filter: any error, any diffusion.

    Its likelihood steps where particles are drawn anew, so it has no useful derivative: for comparing, for
    checking other filters, and for live twins, not for NUTS.

    With `guided`, particles are steered to the measurement they are about to meet, and weighed for it: where
    a sensor is precise beside the noise of the body, far fewer do as well. It takes normal and log-normal
    errors, and steps of its own (`dtwin_jax.dynamics.filtering.guide`) of the solver's `dt` instead of the
    solver's method. Over a stretch that ends at an event, and to values beyond a limit, nothing is steered.
    A step costs two to five times that of a bootstrap filter. Rows of one time, of several channels, have
    the right likelihood together.

    `estimate_states` smooths by the paths that the last particles came by. That holds for any noise, also
    where some states have none, but the further back, the fewer different paths are left: `States.effective`
    tells how many. Where they are too few: more members, `guided`, or a `lag`.

    Attributes:
        members: how many.
        seed: of the noise, an integer; a traced one lets `vmap` run many.
        spread: (p) -> State, sd of the state at the start; without it the start is known.
        renew: members are drawn anew when the effective number falls below this share.
        guided: steered to the next measurement; else by the model alone (bootstrap).
        lag: a smoothed state rests on measurements up to this much later, in the model's time. A finite one
            forgets what is later still, and keeps paths different in a long record.
    """

    members: int = 500
    seed: Any = 0
    spread: Callable[[Any], Any] | None = None
    renew: float = 0.5
    guided: bool = False
    lag: float = np.inf

    def differentiated(self, mode: Mode) -> "ParticleFilter":
        """The filter itself: its solver takes fixed steps, in either mode."""
        return self

    def predict(self, model: Any, p: Any, record: Record) -> dict[str, Any]:
        """Channel -> mixture over members of the distribution of every measurement given all earlier ones."""
        from dtwin_jax.dynamics.filtering.mixture import Guided

        rows, names, place = rows_of(record)
        whole = passed(model, p, record, rows, names)
        near, plain, shift = _of_rows(whole, rows)
        if not self.guided:
            return {name: _mixture(whole, near, name, where) for name, where in place.items()}
        # Of what is beyond a limit a probability is asked for: that of the particles which it weighs.
        limited = (rows.censor == BELOW) | (rows.censor == ABOVE)
        own = jax.tree.map(lambda one, other: jnp.where(limited[:, None], one, other), near, plain)
        found = {}
        for name, where in place.items():
            mixture, steered = _mixture(whole, own, name, where), _mixture(whole, near, name, where)
            found[name] = Guided(
                mixture.mixing_distribution, mixture.component_distribution, near=steered, shift=shift[where]
            )
        return found

    def believed(
        self, model: Any, p: Any, record: Record, asked: tuple[Rows, tuple[str, ...], int], smooth: bool
    ) -> tuple[Body, Gaussian, Any]:
        """The body, what is believed of it at rows, and on how many different particles each belief rests.

        Args:
            model: with a diffusion.
            p: its parameters.
            record: of one patient.
            asked: rows, names of the channels, and which row is the first at which a state is wanted.
            smooth: given what was measured up to `lag` later.
        """
        rows, names, first = asked
        whole = passed(model, p, record, rows, names, far=smooth)
        left, stop = whole.left, whole.moments.stop
        here = whole.order[first:]
        end = here
        if smooth:
            last = jnp.searchsorted(stop, stop[here] + self.lag, side="right") - 1
            end = jnp.maximum(here, last.astype(here.dtype))
        weight = jnp.exp(left.swarm.log_weight[end])
        rows_here = ancestors(left.drawn, here, end)
        belief = moments_over(jax.vmap(lambda x, rows: x[rows])(left.swarm.members[here], rows_here), weight)
        # Copies made since the stretch that led here are no different states.
        arrived = jnp.searchsorted(stop, stop[here], side="left").astype(here.dtype)
        return whole.body, belief, effective_rows(ancestors(left.drawn, arrived, end), weight)

    def informed(self, swarm: Swarm, errors: dict[str, Any], row: Any, key: Any) -> Swarm:
        """The swarm after a measurement; `errors`: channel -> distribution by member."""
        each = jnp.stack([_log_density(d, row) for d in errors.values()])
        log_weight = swarm.log_weight + each[row.channel]
        return Swarm(swarm.members, log_weight - jax.scipy.special.logsumexp(log_weight))

    def renewed(self, swarm: Swarm, key: Any) -> tuple[Swarm, Any]:
        """The swarm with members drawn anew where few count, and from which member each comes."""
        n = swarm.log_weight.shape[0]
        few = effective_of(swarm.log_weight) < self.renew * n
        drawn = drawn_rows(swarm.log_weight, jax.random.uniform(key), n)
        drawn = jnp.where(few, drawn, jnp.arange(n, dtype=drawn.dtype))
        log_weight = jnp.where(few, -jnp.log(float(n)), swarm.log_weight)
        return Swarm(swarm.members[drawn], log_weight), drawn


@dataclass(frozen=True)
class EnsembleKalman(ParticleFilter):
    """The ensemble Kalman filter with perturbed measurements, normal or log-normal: for many states.

    It moves members to what is measured, so it has no use for `guided`, `renew` and `lag`, and their paths
    are no draws given later measurements: `estimate_states` takes `smooth=False`.
    """

    def __post_init__(self) -> None:
        """Raise for what only particles can be."""
        if self.guided:
            raise ValueError("EnsembleKalman cannot be guided: take ParticleFilter(guided=True)")

    def predict(self, model: Any, p: Any, record: Record) -> dict[str, Any]:
        """Channel -> distribution of every measurement given all earlier ones."""
        import numpyro.distributions as dist

        rows, names, place = rows_of(record)
        whole = passed(model, p, record, rows, names)
        near, _, _ = _of_rows(whole, rows)
        found = {}
        for name, where in place.items():
            loc, scale = near.parts[name]["loc"][where], near.parts[name]["scale"][where]
            variance = jnp.var(loc, axis=1, ddof=1) + jnp.mean(scale**2, axis=1)
            family = dist.LogNormal if whole.families[name] is dist.LogNormal else dist.Normal
            found[name] = family(jnp.mean(loc, axis=1), jnp.sqrt(variance))
        return found

    def believed(
        self, model: Any, p: Any, record: Record, asked: tuple[Rows, tuple[str, ...], int], smooth: bool
    ) -> tuple[Body, Gaussian, Any]:
        """The body, what is believed of it at rows, and the number of members."""
        if smooth:
            raise ValueError("EnsembleKalman does not smooth: pass smooth=False, or take another filter")
        return super().believed(model, p, record, asked, smooth)

    def informed(self, swarm: Swarm, errors: dict[str, Any], row: Any, key: Any) -> Swarm:
        """The swarm after a measurement; `errors`: channel -> distribution by member."""
        import numpyro.distributions as dist

        loc = jnp.stack([d.loc for d in errors.values()])[row.channel]
        scale = jnp.stack([jnp.broadcast_to(d.scale, d.loc.shape) for d in errors.values()])[row.channel]
        logs = jnp.asarray([isinstance(d, dist.LogNormal) for d in errors.values()])[row.channel]
        value = on_reading_scale(row.value, logs)
        n = loc.shape[0]
        noise, spare = jax.random.normal(key, (2, n))
        apart = loc - jnp.mean(loc)
        variance = jnp.sum(apart**2) / (n - 1) + jnp.mean(scale**2)
        cross = apart @ (swarm.members - jnp.mean(swarm.members, axis=0)[None, :]) / (n - 1)
        # Of a limit only a distribution is known: every member is moved to a value drawn from it.
        known, left = known_of(jnp.mean(loc), variance, value, row.censor)
        moved = known + jnp.sqrt(left) * spare - loc - scale * noise
        return Swarm(swarm.members + moved[:, None] * (cross / variance)[None, :], swarm.log_weight)

    def renewed(self, swarm: Swarm, key: Any) -> tuple[Swarm, Any]:
        """The swarm itself: members count alike."""
        return swarm, jnp.arange(swarm.log_weight.shape[0])


def _log_density(d: Any, row: Any) -> Any:
    below, above = log_cdf(d, row.value), log_survival(d, row.value)
    return jnp.where(row.censor == BELOW, below, jnp.where(row.censor == ABOVE, above, d.log_prob(row.value)))


def _of_rows(whole: Passage, rows: Rows) -> tuple[Any, Any, Any]:
    """By row: what was expected there, the same of members that were not steered, and the shift."""
    early = rows.time < whole.moments.start[0]
    pick = lambda leaf: jnp.where(early[:, None], jnp.nan, leaf[whole.order])  # noqa: E731
    near, plain = (jax.tree.map(pick, one) for one in (whole.left.expected, whole.left.plain))
    return near, plain, whole.left.shift[whole.order]


def _mixture(whole: Passage, expected: Any, name: str, where: slice) -> Any:
    import numpyro.distributions as dist

    each = {part: value[where] for part, value in expected.parts[name].items()}
    mix = dist.Categorical(probs=jnp.exp(expected.log_weight[where]))
    return dist.MixtureSameFamily(mix, whole.families[name](**each))
