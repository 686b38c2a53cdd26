"""Rules of event tables as they are read. Truth: rows of tables, read by eye, as NONMEM reads them."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from dtwin_jax.core.occasions import NEVER
from dtwin_jax.core.predictor import check_cohort
from dtwin_jax.core.quantity import param
from dtwin_jax.core.record import stack
from dtwin_jax.core.rules import ADDED, MODELLED_DURATION, MODELLED_RATE, RATE, RESET, STEADY
from dtwin_jax.io.rows import TableError
from dtwin_jax.io.table import read_table
from dtwin_jax.models import one_compartment

HEAD = "ID,TIME,CMT,AMT,EVID,RATE,II,ADDL,SS,DV\n"
SEEN = "1,9,.,.,0,.,.,.,.,2\n"


@pytest.fixture
def read(tmp_path):
    def records(text, f=one_compartment, **options):
        path = tmp_path / "events.csv"
        path.write_text(text)
        units = {"AMT": "mg", "DV": "mg/L"} | options.pop("units", {})
        return read_table(path, f, units=units, inputs={"1": "oral", "2": "iv"}, **options)

    return records


def refusal(read, text, **options):
    with pytest.raises(TableError) as caught:
        read(text, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).partition("events.csv: ")[2]


def test_additional_doses_are_given(read):
    doses = read(HEAD + "1,1,1,100,1,.,12,2,.,.\n" + SEEN)["1"].inputs.oral
    np.testing.assert_array_equal(doses.time, [1.0, 13.0, 25.0])
    np.testing.assert_array_equal(doses.amount, [100.0] * 3)
    assert doses.rules is None


def test_intervals_are_in_the_unit_of_the_table(read):
    text = HEAD + "1,60,1,100,1,50,720,1,1,.\n1,90,.,.,0,.,.,.,.,2\n"
    doses = read(text, units={"TIME": "min"})["1"].inputs.oral
    np.testing.assert_allclose(doses.time, [1.0, 13.0])
    np.testing.assert_allclose(doses.duration, [2.0 / 60.0] * 2)
    np.testing.assert_allclose(doses.rules.restarts.interval, [12.0])


def test_a_steady_state_is_a_restart_and_a_dose(read):
    rows = "1,0,2,100,1,10,24,1,1,.\n1,12,2,50,1,.,24,.,2,.\n"
    doses = read(HEAD + rows + SEEN.replace("9", "20"))["1"].inputs.iv
    np.testing.assert_array_equal(doses.time, [0.0, 12.0, 24.0])
    np.testing.assert_array_equal(doses.duration, [10.0, 0.0, 10.0])
    np.testing.assert_array_equal(doses.rules.held, [RATE, 0, RATE])
    again = doses.rules.restarts
    np.testing.assert_array_equal(again.kind, [STEADY, ADDED])
    np.testing.assert_array_equal(again.interval, [24.0, 24.0])
    assert np.all(np.isinf(doses.rules.until)) and again.overlap == 2


def test_room_is_made_for_infusions_that_overlap(read):
    doses = read(HEAD + "1,0,2,100,1,2,12,.,1,.\n" + SEEN)["1"].inputs.iv
    assert doses.rules.restarts.overlap == 6  # 50 h, every 12, and one


def test_a_constant_rate_is_not_given_any_more(read):
    doses = read(HEAD + "1,0,2,0,1,10,.,.,1,.\n" + SEEN)["1"].inputs.iv
    assert len(doses.time) == 0
    again = doses.rules.restarts
    assert (again.kind[0], again.amount[0] / again.duration[0], again.interval[0]) == (STEADY, 10.0, 0.0)


def test_a_reset_ends_what_stands_before_it(read):
    rows = "1,0,1,100,1,.,12,4,.,.\n1,30,.,.,3,.,.,.,.,.\n1,30,1,50,1,.,.,.,.,.\n1,40,2,20,4,.,.,.,.,.\n"
    record = read(HEAD + rows + SEEN.replace("9", "50"))["1"]
    oral = record.inputs.oral
    np.testing.assert_array_equal(oral.time, [0.0, 12.0, 24.0, 30.0, 36.0, 48.0])
    np.testing.assert_array_equal(oral.rules.until, [30.0, 30.0, 30.0, 40.0, 30.0, 30.0])
    np.testing.assert_array_equal(oral.impulses()[1], [100.0, 100.0, 100.0, 50.0, 0.0, 0.0])
    assert (*oral.rules.restarts.kind, oral.rules.restarts.time[0]) == (RESET, RESET, 30.0)
    assert record.inputs.iv.rules is None


def test_a_time_that_goes_back_at_a_reset_goes_on(read):
    rows = "1,0,1,100,1,.,.,.,.,.\n1,20,.,.,0,.,.,.,.,3\n1,0,1,50,4,.,.,.,.,.\n1,5,.,.,0,.,.,.,.,1\n"
    record = read(HEAD + rows)["1"]
    np.testing.assert_array_equal(record.inputs.oral.time, [0.0, 20.0])
    np.testing.assert_array_equal(record.observations["concentration"].time, [20.0, 25.0])
    np.testing.assert_array_equal(record.observations["concentration"].after, [False, True])


def test_modelled_rates_and_durations_are_left_to_the_model(read):
    rows = "1,0,1,100,1,-1,.,.,.,.\n1,1,1,100,1,-2,.,.,.,.\n"
    doses = read(HEAD + rows + SEEN)["1"].inputs.oral
    np.testing.assert_array_equal(doses.rules.held, [MODELLED_RATE, MODELLED_DURATION])
    assert np.all(np.isnan(doses.duration))


def test_a_duration_has_a_column(read):
    text = HEAD.replace("RATE", "DUR") + "1,0,2,100,1,4,.,.,.,.\n" + SEEN
    doses = read(text)["1"].inputs.iv
    assert doses.duration == [4.0] and doses.rules is None


def test_a_covariate_is_carried_on_or_back(read):
    from test_table import DRUG

    text = "ID,TIME,CMT,AMT,EVID,DV,renal\n1,0,1,9,1,.,90\n1,4,.,.,0,1,90\n1,8,.,.,0,1,60\n"
    options = {"units": {"renal": "mL/min"}}
    on, back = (
        read(text, DRUG, carry=carry, **options)["1"].inputs.renal for carry in ("forward", "backward")
    )
    np.testing.assert_array_equal(on.value, [90.0, 60.0])
    np.testing.assert_array_equal(on.time, [0.0, 8.0])
    # Just after the row before, whose measurement is made with its own value.
    assert back.time[1] > 4.0 and back(4.0) == 90.0
    np.testing.assert_allclose(back.time, [0.0, 4.0], rtol=1e-14)
    with pytest.raises(ValueError, match="carry is 'forward' or 'backward', found 'sideways'"):
        read(text, DRUG, carry="sideways", **options)


def test_patients_with_rules_and_without_lie_side_by_side(read):
    rows = "1,0,1,100,1,.,24,1,1,.\n1,9,.,.,0,.,.,.,.,2\n2,0,1,100,1,.,.,.,.,.\n2,9,.,.,0,.,.,.,.,2\n"
    doses = stack(read(HEAD + rows)).record.inputs.oral
    assert doses.rules.restarts.kind.shape == (2, 1) and doses.rules.until.shape == (2, 2)


def test_an_additional_dose_meets_a_measurement_by_the_clock(read):
    text = "ID,TIME,CMT,AMT,EVID,II,ADDL,DV\n1,8:20,1,100,1,12,1,.\n1,20:20,.,.,0,.,.,2\n"
    record = read(text)["1"]
    assert record.inputs.oral.time[1] == record.observations["concentration"].time[0]


def test_a_reset_may_end_an_additional_dose_and_be_told_twice(read):
    rows = "1,0,1,100,1,.,24,6,.,.\n1,24,.,.,3,.,.,.,.,.\n1,0,1,100,4,.,24,6,.,.\n"
    record = read(HEAD + rows + "1,5,.,.,0,.,.,.,.,2\n")["1"]
    assert np.sum(record.inputs.oral.impulses()[1] > 0) == 8  # one, and seven anew


FAULTS = {
    "amount in a reset": (
        "1,0,1,100,3,.,.,.,.,.\n",
        "line 2, column 'AMT', patient '1': found 100, expected no amount",
    ),
    "amount in no dose": (
        "1,0,1,100,2,.,.,.,.,.\n",
        "line 2, column 'AMT', patient '1': found 100, expected no amount",
    ),
    "rate of a measurement": (
        "1,0,.,.,0,5,.,.,.,2\n",
        "line 2, column 'RATE', patient '1': found 5, expected no rate",
    ),
    "rate of nothing": (
        "1,0,1,0,1,5,.,.,.,.\n",
        "line 2, column 'AMT', patient '1': found 0, expected an amount",
    ),
    "added constant rate": (
        "1,0,1,0,1,5,12,.,2,.\n",
        "line 2, column 'AMT', patient '1': found 0, expected an amount",
    ),
    "dose without compartment": (
        "1,0,.,100,1,.,.,.,.,.\n",
        "line 2, column 'CMT', patient '1': found nothing",
    ),
    "steady state without interval": (
        "1,0,1,100,1,.,.,.,1,.\n",
        "line 2, column 'II', patient '1': found nothing",
    ),
    "additional doses without interval": (
        "1,0,1,100,1,.,0,3,.,.\n",
        "line 2, column 'II', patient '1': found 0",
    ),
    "negative rate": ("1,0,1,100,1,-3,.,.,.,.\n", "line 2, column 'RATE', patient '1': found -3"),
    "measurement in a dose": ("1,0,1,100,1,.,.,.,.,7\n", "line 2, column 'DV', patient '1': found 7"),
    "time going back": (
        "1,5,1,100,1,.,.,.,.,.\n1,4,1,100,1,.,.,.,.,.\n",
        "line 3, column 'TIME', patient '1': found 4 after 5 on line 2",
    ),
    "no number": ("1,0,1,1OO,1,.,.,.,.,.\n", "line 2, column 'AMT', patient '1': found '1OO'"),
    "patient apart": (
        "1,0,1,100,1,.,.,.,.,.\n2,0,1,100,1,.,.,.,.,.\n1,1,.,.,0,.,.,.,.,2\n",
        "line 4, column 'ID', patient '1': found '1' again",
    ),
    "strange steady state": ("1,0,1,100,1,.,12,.,4,.\n", "line 2, column 'SS', patient '1': found 4"),
    "steady state of a measurement": ("1,0,.,.,0,.,12,.,1,2\n", "line 2, column 'SS', patient '1': found 1"),
    "additional measurements": ("1,0,.,.,0,.,12,2,.,2\n", "line 2, column 'ADDL', patient '1': found 2"),
    "part of an additional dose": (
        "1,0,1,100,1,.,12,1.5,.,.\n",
        "line 2, column 'ADDL', patient '1': found 1.5",
    ),
    "constant rate with an interval": (
        "1,0,2,0,1,10,12,.,1,.\n",
        "line 2, column 'II', patient '1': found 12",
    ),
    "the same dose twice": (
        "1,0,1,100,1,.,12,1,.,.\n1,0,1,100,1,.,12,1,.,.\n",
        "line 3, column 'AMT', patient '1': found the same 'oral' as on line 2",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_with_its_row(read, fault):
    rows, said = FAULTS[fault]
    assert refusal(read, HEAD + rows + SEEN).startswith(said)


def test_a_covariate_that_is_missing_is_a_fault(read):
    text = "ID,TIME,AMT,CMT,EVID,DV,WT\n1,0,100,1,1,.,70\n1,9,.,.,0,2,.\n2,0,100,1,1,.,.\n2,9,.,.,0,2,.\n"
    said = refusal(read, text, covariates={"WT": "kg"})
    assert said.startswith("line 4, column 'WT', patient '2': found nothing")


def test_a_duration_and_a_rate_are_a_fault(read):
    text = "ID,TIME,AMT,CMT,EVID,DV,RATE,DUR\n1,0,100,1,1,.,5,2\n1,9,.,.,0,2,.,.\n"
    assert refusal(read, text).startswith(
        "line 2, column 'DUR', patient '1': found 2, expected a duration or"
    )


def test_rules_are_kept_in_a_result(read):
    import xarray as xr

    from dtwin_jax.inference.result import cohort_of, constant_data, observed_data

    rows = "1,0,1,100,1,-2,24,1,1,.\n1,9,.,.,0,.,.,.,.,2\n2,0,2,100,1,.,.,.,.,.\n2,9,.,.,0,.,.,.,.,2\n"
    cohort = stack(read(HEAD + rows))
    parts = {
        "observed_data": observed_data(cohort.record, list(cohort.ids), {}),
        "constant_data": constant_data(cohort.record, list(cohort.ids)),
    }
    again = cohort_of(one_compartment, xr.DataTree.from_dict(parts))
    leaves = zip(jax.tree.leaves(again.record), jax.tree.leaves(cohort.record), strict=True)
    for found, expected in leaves:
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(
        ValueError, match="patient '1', input 'oral': a dose has RATE -2, but the model states no duration"
    ):
        check_cohort(one_compartment, again)


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [
        ("DATE", "2/28/2024", "3/1/2024"),
        ("DAT1", "28-02-24", "01-03-24"),
        ("DAT2", "2024-02-28", "2024-03-01"),
        ("DAT3", "24/28/02", "24/01/03"),
        ("DATE", "1", "3"),
    ],
)
def test_dates_and_clocks_are_hours_since_the_first_row(read, column, first, second):
    text = f"ID,{column},TIME,CMT,AMT,EVID,DV\n1,{first},22:30,1,100,1,.\n1,{second},8:15,.,.,0,2\n"
    record = read(text)["1"]
    np.testing.assert_allclose(record.inputs.oral.time, [0.0])
    # The leap day is between them.
    np.testing.assert_allclose(record.observations["concentration"].time, [33.75], rtol=1e-12)


def test_a_clock_without_dates_is_in_hours(read):
    record = read("ID,TIME,CMT,AMT,EVID,DV\n1,8:30,1,100,1,.\n1,9:45:36,.,.,0,2\n")["1"]
    np.testing.assert_allclose(record.inputs.oral.time, [8.5])
    np.testing.assert_allclose(record.observations["concentration"].time, [9.76])


@pytest.mark.parametrize(
    ("day", "time", "said"),
    [
        (
            "2/30/2024",
            "8:00",
            "column 'DATE', patient '1': found '2/30/2024', expected a number of days, or month,",
        ),
        ("soon", "8:00", "column 'DATE', patient '1': found 'soon'"),
        ("20240131", "8:00", "column 'DATE', patient '1': found '20240131', expected a number of days"),
        ("3/1/2024", "8:75", "column 'TIME', patient '1': found '8:75'"),
    ],
)
def test_a_strange_date_or_clock_is_a_fault(read, day, time, said):
    text = f"ID,DATE,TIME,CMT,AMT,EVID,DV\n1,{day},{time},1,100,1,.\n1,3/2/2024,8:15,.,.,0,2\n"
    assert refusal(read, text).startswith(f"line 2, {said}")


def test_a_clock_and_another_unit_are_a_fault(read):
    text = "ID,TIME,CMT,AMT,EVID,DV\n1,8:30,1,100,1,.\n1,9:45,.,.,0,2\n"
    assert refusal(read, text, units={"TIME": "d"}).startswith(
        "column 'TIME': times are clocks or have dates"
    )


class Limited(type(one_compartment.params())):
    lloq_concentration: jax.Array = param(0.5, "mg/L")


def test_a_model_with_a_limit_knows_it_from_the_table_in_the_unit_of_its_measurements(read):
    """Method M2: what is below is left out by MDV 1, and what is left is conditioned on LLOQ."""
    text = (
        "ID,TIME,DV,EVID,MDV,AMT,CMT,LLOQ\n"
        "1,0,.,1,1,10,1,.\n1,1,300,0,0,.,.,50\n1,9,.,0,1,.,.,50\n"
        "2,0,.,1,1,10,1,.\n2,1,400,0,0,.,.,.\n2,2,200,0,0,.,.,20\n"
    )
    limited = replace(one_compartment, params=Limited)
    records = read(text, limited, units={"DV": "ug/L"})
    assert {who: float(record.known["lloq_concentration"]) for who, record in records.items()} == {
        "1": pytest.approx(0.05),
        "2": pytest.approx(0.02),
    }
    np.testing.assert_allclose(records["1"].observations["concentration"].value, [0.3])
    assert not read(text, units={"DV": "ug/L"})["1"].known
    assert "found 60 for 'lloq_concentration', expected 50, as on line 3" in refusal(
        read, text.replace("1,9,.,0,1,.,.,50", "1,9,70,0,0,.,.,60"), f=limited, units={"DV": "ug/L"}
    )


def test_a_limit_has_the_unit_of_its_own_output(read):
    text = "ID,TIME,DV,EVID,MDV,AMT,CMT,LLOQ\n1,0,.,1,1,10,1,.\n1,1,300,0,0,.,.,50\n"
    limited = replace(one_compartment, params=Limited)
    for units, limit in (
        ({"DV": "mg/L", "concentration": "ug/L"}, 0.05),
        ({"DV": "ug/L", "lloq_concentration": "mg/L"}, 50.0),
    ):
        known = read(text, limited, units=units)["1"].known
        assert float(known["lloq_concentration"]) == pytest.approx(limit)


OCC = "ID,TIME,CMT,AMT,EVID,DV,OCC\n"


def test_occasions_begin_at_their_first_rows(read):
    first = "1,0,1,100,1,.,1\n1,2,.,.,0,3,1\n1,24,1,100,1,.,2\n1,26,.,.,0,4,2\n1,48,.,.,0,1,7\n"
    found = read(OCC + first + "2,0,1,50,1,.,3\n2,4,.,.,0,2,3\n")
    assert [float(found["1"].known[name]) for name in ("occasion_2", "occasion_3")] == [24.0, 48.0]
    # Those that the second patient lacks never begin.
    assert all(float(found["2"].known[name]) == NEVER for name in ("occasion_2", "occasion_3"))
    stack(found)


def test_one_occasion_of_all_is_none(read):
    assert read(OCC + "1,0,1,100,1,.,1\n1,2,.,.,0,3,1\n")["1"].known == {}


def test_rows_before_the_first_occasion_are_of_none(read):
    found = read(OCC + "1,0,.,.,0,0,0\n1,0,1,100,1,.,1\n1,2,.,.,0,3,1\n1,24,1,100,1,.,2\n1,26,.,.,0,4,2\n")
    assert {name: float(at) for name, at in found["1"].known.items()} == {"occasion_2": 24.0}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("1,0,1,9,1,.,1\n1,2,.,.,0,3,\n", "line 3, column 'OCC', patient '1': found nothing"),
        ("1,0,1,9,1,.,1\n1,2,.,.,0,3,2\n1,3,.,.,0,3,1\n", "line 4, column 'OCC', patient '1': found 1"),
        ("1,0,1,9,1,.,1\n1,5,.,.,0,3,2\n1,5,1,9,1,.,3\n", "line 4, column 'OCC', patient '1': found 3"),
    ],
)
def test_occasions_that_make_no_sense_are_a_fault(read, rows, said):
    assert refusal(read, OCC + rows).startswith(said)
