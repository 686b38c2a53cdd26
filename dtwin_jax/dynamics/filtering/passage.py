"""A swarm of possible states on its way through the record of one patient."""

from dataclasses import dataclass
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax

from dtwin_jax.core.record import Record
from dtwin_jax.dynamics.filtering.body import Body
from dtwin_jax.dynamics.filtering.guide import Ahead, ahead_of, guided
from dtwin_jax.dynamics.filtering.run import ordered_inputs
from dtwin_jax.dynamics.filtering.sequence import Moments, Rows


class Swarm(eqx.Module):
    """Possible states (member, states), and the logs of their weights (member,), which sum to one."""

    members: Any
    log_weight: Any


class Expected(eqx.Module):
    """What a swarm expects of the measurements at a moment.

    Attributes:
        parts: channel -> parameter of its distribution -> (member,).
        log_weight: (member,).
    """

    parts: dict[str, dict[str, Any]]
    log_weight: Any


class Left(eqx.Module):
    """What every moment leaves behind; arrays (moment, ...).

    Attributes:
        expected: of the measurement there, before it was learned from.
        plain: the same of members that were not steered to it.
        shift: log of what the weights of `expected` summed to, at a row that was steered to.
        swarm: after what was learned there, before members are drawn anew.
        drawn: (member,) from which of them each member of the next moment comes.
    """

    expected: Expected
    plain: Expected
    shift: Any
    swarm: Swarm
    drawn: Any


@dataclass(frozen=True, eq=False)
class Passage:
    """A record passed: body, families of channels, moments, what they left, the moment of every row."""

    body: Body
    families: dict[str, type]
    moments: Moments
    left: Left
    order: Any


class _Carried(eqx.Module):
    """From moment to moment: the swarm, the one that was not steered, and the log of the sum of weights."""

    swarm: Swarm
    plain: Swarm
    shift: Any


def passed(
    model: Any, p: Any, record: Record, rows: Rows, names: tuple[str, ...], *, far: bool = False
) -> Passage:
    """The record passed by the swarm of `model.filter`.

    Args:
        model: with a diffusion.
        p: its parameters.
        record: of one patient.
        rows: measurements and wanted times.
        names: of the channels.
        far: steer across rows that are not learned from. States given all measurements want it; predictions
            of these rows do not.
    """
    if model.solver.dt is None:
        raise ValueError(f"{model.name} has a diffusion: its Solver needs a fixed step, dt")
    inputs, moments, order = ordered_inputs(model, p, record, rows)
    body, method = Body(model, p, inputs, names), model.filter
    at = jax.tree.map(lambda leaf: leaf[moments.row], rows)
    learns = (moments.row >= 0) & at.used & (at.time >= jnp.asarray(record.t0, float))
    logs = body.logarithmic() if method.guided else jnp.zeros(len(names), bool)
    ahead = ahead_of(rows, moments, learns, logs, far=far)
    families: dict[str, type] = {}

    def pass_moment(carried: _Carried, here: tuple[Any, ...]) -> tuple[_Carried, Left]:
        moment, row, learns, ahead, key = here
        key_move, key_row = jax.random.split(key)
        moved = _crossed(body, _moved(body, carried, moment, ahead, key_move), moment)
        expected, distributions = _expected(body, families, moved.swarm, moment)
        plain, unsteered = _expected(body, families, moved.plain, moment) if method.guided else (expected, {})
        informed = _chosen(learns, method.informed(moved.swarm, distributions, row, key_row), moved.swarm)
        following, drawn = method.renewed(informed, key_row)
        # Members that lack a part of what is known at this time are no reason to draw anew.
        renewed = learns & (ahead.next_time != moment.stop)
        following = _chosen(renewed, following, informed)
        drawn = jnp.where(renewed, drawn, jnp.arange(drawn.shape[0], dtype=drawn.dtype))
        if method.guided:
            also = _chosen(learns, method.informed(moved.plain, unsteered, row, key_row), moved.plain)
        else:
            also = following
        shift = jnp.where(learns & (row.censor == 0), 0.0, moved.shift)
        return _Carried(following, also, shift), Left(expected, plain, moved.shift, informed, drawn)

    key_start, key = jax.random.split(jax.random.key(method.seed))
    first = _first(body, method.members, key_start)
    keys = jax.random.split(key, moments.row.shape[0])
    _, left = jax.lax.scan(
        pass_moment, _Carried(first, first, jnp.asarray(0.0)), (moments, at, learns, ahead, keys)
    )
    return Passage(body, families, moments, left, order)


def _first(body: Body, members: int, key: Any) -> Swarm:
    start = body.start()
    noise = jax.random.normal(key, (members, start.shape[0]))
    weight = jnp.full((members,), -jnp.log(float(members)))
    return Swarm(start[None, :] + body.spread()[None, :] * noise, weight)


def _chosen(which: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(which, new, old), new, old)


def _moved(body: Body, carried: _Carried, moment: Any, ahead: Ahead, key: Any) -> _Carried:
    """The swarms at the end of a stretch."""
    swarm, method = carried.swarm, body.model.filter
    if not method.guided:
        moved = Swarm(_solved(body, swarm.members, moment, key), swarm.log_weight)
        return _Carried(moved, moved, carried.shift)
    weight = jnp.exp(swarm.log_weight)
    members, gained = guided(body, swarm.members, weight, moment, ahead, key)
    log_weight = swarm.log_weight + gained
    total = jax.scipy.special.logsumexp(log_weight)
    steered = Swarm(members, log_weight - total)
    plain, _ = guided(body, swarm.members, weight, moment, None, key)
    # Between rows of one time there is no stretch: the swarm that was not steered stays what it is.
    plain = _chosen(moment.stop > moment.start, Swarm(plain, swarm.log_weight), carried.plain)
    return _Carried(steered, plain, carried.shift + total)


def _crossed(body: Body, carried: _Carried, moment: Any) -> _Carried:
    """The swarms just after the event at the end of a stretch, if there is one."""

    def cross(members: Any) -> Any:
        after = jax.vmap(lambda x: body.jump(moment.stop, x, moment.held, moment.amount))(members)
        return jnp.where(moment.row < 0, after, members)

    swarm = Swarm(cross(carried.swarm.members), carried.swarm.log_weight)
    if not body.model.filter.guided:
        return _Carried(swarm, swarm, carried.shift)
    return _Carried(swarm, Swarm(cross(carried.plain.members), carried.plain.log_weight), carried.shift)


def _expected(
    body: Body, families: dict[str, type], swarm: Swarm, moment: Any
) -> tuple[Expected, dict[str, Any]]:
    """What is expected of the measurements; and channel -> distribution by member. It fills `families`."""

    def parts(x: Any) -> dict[str, dict[str, Any]]:
        found = body.measured(moment.stop, x, moment.held)
        families.update({name: type(d) for name, d in found.items()})
        return {
            name: {part: jnp.asarray(getattr(d, part)) for part in d.arg_constraints}
            for name, d in found.items()
        }

    each = jax.vmap(parts)(swarm.members)
    return Expected(each, swarm.log_weight), {name: families[name](**each[name]) for name in body.names}


def _solved(body: Body, members: Any, moment: Any, key: Any) -> Any:
    """Members at the end of a stretch by the model's own solver, each with noise of its own."""
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
