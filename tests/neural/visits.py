"""Records of two channels at their own times, and the five networks over them."""

import equinox as eqx
import jax
import numpy as np

from dtwin_jax.core.record import Record, Series
from dtwin_jax.neural import attention, graph, recurrent
from dtwin_jax.neural.sequence import Scaling, sequence_at

CHANNELS, FACTS = ("bilirubin", "albumin"), ("age",)
SCALING = Scaling(*(np.asarray(x) for x in ([2.0, 3.5], [1.5, 0.5], [50.0], [10.0])))
ENCODERS = (recurrent.plain, recurrent.lstm, recurrent.gru, attention.transformer, graph.graph)
WIDTH = 4
VISITS = np.array([0.0, 0.4, 1.1, 3.0])


class Inputs(eqx.Module):
    """None."""


def record(*, unmeasured=9.0, later=0.7, channels=CHANNELS):
    """Bilirubin at all visits but the second, where a number stands that nobody measured; albumin twice."""
    past = {
        "bilirubin": Series(VISITS, [1.0, unmeasured, 2.5, later], mask=[True, False, True, True]),
        "albumin": Series([-0.5, 1.0], [3.9, 3.1]),
    }
    return Record(Inputs(), {}, {"age": np.asarray(61.0)}, past={name: past[name] for name in channels})


def network(encoder, seed=0):
    return encoder(len(CHANNELS), len(FACTS), WIDTH, jax.random.key(seed))


@eqx.filter_jit
def states(net, given, times):
    """Hidden states of a network at `times` of a record."""
    return net(sequence_at(given, times, CHANNELS, FACTS, SCALING))
