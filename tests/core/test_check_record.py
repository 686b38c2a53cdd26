"""What a record is refused for, before any work; source of truth: the sentence a user reads."""

import equinox as eqx
import numpy as np
import pytest

from dtwin_jax import Doses, Record, Series
from dtwin_jax.core.predictor import check_record
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs


def record(inputs=None, known=None):
    seen = {"concentration": Series([1.0, 2.0], [3.0, 2.0])}
    return Record(Inputs() if inputs is None else inputs, seen, known or {})


CHANGED = eqx.tree_at(lambda one: one.censor, Series([1.0], [3.0]), np.array([-1]))


def test_a_sound_record_passes():
    check_record(one_compartment, record(Inputs(oral=Doses([0.0], [100.0])), {"weight": 70.0}))


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (record(Inputs(oral=Doses([-1.0], [100.0]))), "time -1.0 is before the record's start 0.0"),
        (record(Inputs(oral=Doses([0.0], [100.0], [-2.0]))), "negative duration"),
        (record(known={"weight": np.nan}), "known 'weight': found nan"),
        (Record(Inputs(), {"Cp": Series([1.0], [3.0])}), "has no channel 'Cp'"),
        (Record(Inputs(), {"concentration": Series([2.0, 1.0], [3.0, 2.0])}), "times must not decrease"),
        (Record(Inputs(), {"concentration": Series([1.0], [np.inf])}), "not finite"),
        (Record(Inputs(), {"concentration": CHANGED}), "censor was changed in a Series made without one"),
    ],
)
def test_a_fault_is_named_with_the_patient(bad, told):
    with pytest.raises(ValueError, match=r"patient 'P7'|one_compartment") as error:
        check_record(one_compartment, bad, "P7")
    assert told in str(error.value)
