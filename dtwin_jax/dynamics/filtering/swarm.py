"""Filters that carry many possible states: bootstrap particles, and the ensemble Kalman filter.

Between measurements every member follows the model's SDE by its own solver and its own noise. The keys are
fixed, so a likelihood is the same for the same parameters; it is an estimate, with the error of Monte Carlo.

Sources: Gordon et al. 1993, doi 10.1049/ip-f-2.1993.0015; Evensen 2003, doi 10.1007/s10236-003-0036-9.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax

from dtwin_jax.core.predictor import Mode, log_cdf, log_survival
from dtwin_jax.core.record import ABOVE, BELOW, Record
from dtwin_jax.dynamics.filtering.body import Body
from dtwin_jax.dynamics.filtering.gaussian import known_of
from dtwin_jax.dynamics.filtering.run import ordered_inputs
from dtwin_jax.dynamics.filtering.sequence import Rows, rows_of
from dtwin_jax.dynamics.filtering.weights import drawn_rows, effective_of


class Swarm(eqx.Module):
    """Possible states (member, states), and the logs of their weights (member,), which sum to one."""

    members: Any
    log_weight: Any


@dataclass(frozen=True)
class ParticleFilter:
    """The bootstrap particle filter: any error, any diffusion.

    Its likelihood steps where particles are drawn anew, so it has no useful derivative: for comparing, for
    checking other filters, and for live twins, not for NUTS.

    Attributes:
        members: how many.
        seed: of the noise.
        spread: (p) -> State, sd of the state at the start; without it the start is known.
        renew: members are drawn anew when the effective number falls below this share.
    """

    members: int = 500
    seed: int = 0
    spread: Callable[[Any], Any] | None = None
    renew: float = 0.5

    def differentiated(self, mode: Mode) -> "ParticleFilter":
        """The filter itself: its solver takes fixed steps, in either mode."""
        return self

    def predict(self, model: Any, p: Any, record: Record) -> dict[str, Any]:
        """Channel -> mixture over members of the distribution of every measurement given all earlier ones."""
        import numpyro.distributions as dist

        rows, names, place = rows_of(record)
        families, parts, log_weight = _passed(model, p, record, rows, names)
        weight = jnp.exp(log_weight)
        found = {}
        for name, where in place.items():
            each = {part: value[where] for part, value in parts[name].items()}
            mix = dist.Categorical(probs=weight[where])
            found[name] = dist.MixtureSameFamily(mix, families[name](**each))
        return found

    def informed(self, swarm: Swarm, errors: dict[str, Any], row: Any, key: Any) -> Swarm:
        """The swarm after a measurement; `errors`: channel -> distribution by member."""
        each = jnp.stack([_log_density(d, row) for d in errors.values()])
        log_weight = swarm.log_weight + each[row.channel]
        log_weight = log_weight - jax.scipy.special.logsumexp(log_weight)
        n = log_weight.shape[0]
        drawn = drawn_rows(log_weight, jax.random.uniform(key), n)
        anew = Swarm(swarm.members[drawn], jnp.full((n,), -jnp.log(float(n))))
        few = effective_of(log_weight) < self.renew * n
        return jax.tree.map(lambda new, old: jnp.where(few, new, old), anew, Swarm(swarm.members, log_weight))


@dataclass(frozen=True)
class EnsembleKalman(ParticleFilter):
    """The ensemble Kalman filter with perturbed measurements, normal or log-normal: for many states."""

    def predict(self, model: Any, p: Any, record: Record) -> dict[str, Any]:
        """Channel -> distribution of every measurement given all earlier ones."""
        import numpyro.distributions as dist

        rows, names, place = rows_of(record)
        families, parts, _ = _passed(model, p, record, rows, names)
        found = {}
        for name, where in place.items():
            loc, scale = parts[name]["loc"][where], parts[name]["scale"][where]
            variance = jnp.var(loc, axis=1, ddof=1) + jnp.mean(scale**2, axis=1)
            family = dist.LogNormal if families[name] is dist.LogNormal else dist.Normal
            found[name] = family(jnp.mean(loc, axis=1), jnp.sqrt(variance))
        return found

    def informed(self, swarm: Swarm, errors: dict[str, Any], row: Any, key: Any) -> Swarm:
        """The swarm after a measurement; `errors`: channel -> distribution by member."""
        import numpyro.distributions as dist

        loc = jnp.stack([d.loc for d in errors.values()])[row.channel]
        scale = jnp.stack([jnp.broadcast_to(d.scale, d.loc.shape) for d in errors.values()])[row.channel]
        logs = jnp.asarray([isinstance(d, dist.LogNormal) for d in errors.values()])[row.channel]
        value = jnp.where(logs, jnp.log(jnp.where(row.value > 0, row.value, 1.0)), row.value)
        n = loc.shape[0]
        noise, spare = jax.random.normal(key, (2, n))
        apart = loc - jnp.mean(loc)
        variance = jnp.sum(apart**2) / (n - 1) + jnp.mean(scale**2)
        cross = apart @ (swarm.members - jnp.mean(swarm.members, axis=0)[None, :]) / (n - 1)
        # Of a limit only a distribution is known: every member is moved to a value drawn from it.
        known, left = known_of(jnp.mean(loc), variance, value, row.censor)
        moved = known + jnp.sqrt(left) * spare - loc - scale * noise
        return Swarm(swarm.members + moved[:, None] * (cross / variance)[None, :], swarm.log_weight)


def _log_density(d: Any, row: Any) -> Any:
    below, above = log_cdf(d, row.value), log_survival(d, row.value)
    return jnp.where(row.censor == BELOW, below, jnp.where(row.censor == ABOVE, above, d.log_prob(row.value)))


def _passed(model: Any, p: Any, record: Record, rows: Rows, names: tuple[str, ...]) -> tuple[Any, Any, Any]:
    """Of every row, before it was learned from: families, their parameters by member, and log weights."""
    if model.solver.dt is None:
        raise ValueError(f"{model.name} has a diffusion: its Solver needs a fixed step, dt")
    inputs, moments, order = ordered_inputs(model, p, record, rows)
    body, method = Body(model, p, inputs, names), model.filter
    t0 = jnp.asarray(record.t0, float)
    families: dict[str, type] = {}

    def errors(t: Any, x: Any, held: Any) -> dict[str, dict[str, Any]]:
        found = body.measured(t, x, held)
        families.update({name: type(d) for name, d in found.items()})
        return {
            name: {part: jnp.asarray(getattr(d, part)) for part in d.arg_constraints}
            for name, d in found.items()
        }

    def pass_moment(swarm: Swarm, here: tuple[Any, Any]) -> tuple[Swarm, tuple[Any, Any]]:
        moment, key = here
        key_move, key_row = jax.random.split(key)
        members = _moved(body, swarm.members, moment, key_move)
        after = jax.vmap(lambda x: body.jump(moment.stop, x, moment.held, moment.amount))(members)
        event = moment.row < 0
        moved = Swarm(jnp.where(event, after, members), swarm.log_weight)
        parts = jax.vmap(lambda x: errors(moment.stop, x, moment.held))(moved.members)
        row = jax.tree.map(lambda leaf: leaf[moment.row], rows)
        distributions = {name: families[name](**parts[name]) for name in names}
        informed = method.informed(moved, distributions, row, key_row)
        learns = ~event & row.used & (row.time >= t0)
        following = jax.tree.map(lambda new, old: jnp.where(learns, new, old), informed, moved)
        return following, (parts, moved.log_weight)

    key_start, key = jax.random.split(jax.random.key(method.seed))
    n, start = method.members, body.start()
    noise = jax.random.normal(key_start, (n, start.shape[0]))
    first = Swarm(start[None, :] + body.spread()[None, :] * noise, jnp.full((n,), -jnp.log(float(n))))
    keys = jax.random.split(key, moments.row.shape[0])
    _, (parts, log_weight) = jax.lax.scan(pass_moment, first, (moments, keys))
    early = rows.time < t0
    pick = lambda leaf: jnp.where(early[:, None], jnp.nan, leaf[order])  # noqa: E731
    return families, jax.tree.map(pick, parts), log_weight[order]


def _moved(body: Body, members: Any, moment: Any, key: Any) -> Any:
    # The fast path of noise, which is not remembered, does not run backwards.
    options = {**body.model.solver.arguments(), "adjoint": diffrax.ForwardMode()}

    def one(x: Any, key: Any) -> Any:
        noise = diffrax.UnsafeBrownianPath(x.shape, key)
        spread = lambda t, x, held: lineax.DiagonalLinearOperator(body.diffusion(t, x, held))  # noqa: E731
        terms = diffrax.MultiTerm(diffrax.ODETerm(body.drift), diffrax.ControlTerm(spread, noise))
        found = diffrax.diffeqsolve(terms, t0=moment.start, t1=moment.stop, y0=x, args=moment.held, **options)
        ys: Any = found.ys
        return jnp.where(found.result == diffrax.RESULTS.successful, ys[0], jnp.nan)

    return jax.vmap(one)(members, jax.random.split(key, members.shape[0]))
