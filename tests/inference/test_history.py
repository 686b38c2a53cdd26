"""A network that remembers a patient's history through the state of a recurrent network or a transformer."""

from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtwin_jax as dt
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs
from dtwin_jax.neural.attention import transformer
from dtwin_jax.neural.recurrent import gru
from dtwin_jax.neural.sequence import sequence_at, unit_scaling

VOLUME, PAST, TIMES = 20.0, np.array([2.0, 6.0, 12.0]), np.array([26.0, 30.0, 36.0, 44.0])
mechanism = replace(one_compartment, flow=None, solver=dt.Solver(diffrax.Bosh3, dt=2.0, max_steps=30))


class Remembering(eqx.Module):
    """What a history says of a clearance."""

    encoder: eqx.Module
    head: eqx.nn.Linear

    def __call__(self, context):
        return self.head(context)


def remembering(encoder, width):
    head = eqx.nn.Linear(width, 1, key=jax.random.key(1))
    nothing = jax.tree.map(jnp.zeros_like, eqx.filter(head, eqx.is_array))
    return Remembering(encoder(1, 0, width, jax.random.key(0)), eqx.combine(nothing, head))


def recurrent():
    return remembering(gru, 6)


def attending():
    return remembering(transformer, 8)


def own_clearance(t, x, u, p, net):
    """0.1 /h is the typical rate of elimination, which the history turns up or down."""
    return {"central": -x.central * 0.1 * jnp.expm1(net(p.context)[0])}


def encode(net, record):
    times = record.past["concentration"].time
    sequence = sequence_at(record, times, ("concentration",), (), unit_scaling(1, 0))
    scaled = replace(sequence, value=sequence.value / 5.0)
    return net.encoder(scaled)[-1]


def cohort(seed, count):
    """First a dose at 0, seen three times; then one at 24 h, to be predicted. Clearances are unknown."""
    rng, records = np.random.default_rng(seed), {}
    for i in range(count):
        rate = 0.1 * np.exp(0.5 * rng.standard_normal())

        def level(t, rate=rate):
            after = np.where(t > 24.0, np.exp(-rate * np.maximum(t - 24.0, 0.0)), 0.0)
            return 200.0 / VOLUME * (np.exp(-rate * t) + after) * np.exp(0.03 * rng.standard_normal(len(t)))

        records[f"{seed}_{i}"] = dt.Record(
            Inputs(iv=dt.Doses([0.0, 24.0], [200.0, 200.0])),
            {"concentration": dt.Series(TIMES, level(TIMES))},
            past={"concentration": dt.Series(PAST, level(PAST))},
        )
    return dt.stack(records)


@pytest.mark.parametrize(("net", "width"), [(recurrent, 6), (attending, 8)], ids=["gru", "transformer"])
def test_history_tells_the_clearance_of_patients_not_trained_on(net, width):
    model = dt.informed(dt.hybrid(mechanism, own_clearance, net, context=width), encode)
    p = dt.assign(model.params(), {"CL": 2.0, "V": VOLUME, "sd": 0.02, "cv": 0.1})
    found = dt.train(
        model,
        cohort(1, 16),
        where=lambda p: p.net,
        optimiser=optax.chain(optax.clip_by_global_norm(10.0), optax.adam(0.02)),
        steps=80,
        key=jax.random.key(2),
        params=p,
    )
    unseen = cohort(2, 8).record
    seen = unseen.observations["concentration"].value
    predict = jax.jit(jax.vmap(lambda p, r: model.predict(p, r)["concentration"].mean, in_axes=(None, 0)))
    error = {
        name: np.mean(np.abs(np.log(predict(q, unseen) / seen)))
        for name, q in (("typical", p), ("own", found.params))
    }
    assert error["own"] < 0.5 * error["typical"]
