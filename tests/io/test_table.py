"""Tables of patients. Truth: the rows of each table, read by eye, and the catalogue of bad inputs."""

import math
from dataclasses import dataclass

import equinox as eqx
import numpy as np
import pytest

from dtwin_jax.core.predictor import Schema, check_record
from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, quantities, var
from dtwin_jax.core.record import stack
from dtwin_jax.core.signal import Doses, Input, Sampled, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.io.rows import TableError
from dtwin_jax.io.table import read_table


class DrugParams(eqx.Module):
    CL: Scalar = param(4.0, "L/h", lognormal(4.0, 0.5))
    V: Scalar = param(70.0, "L", lognormal(70.0, 0.5))
    ka: Scalar = param(1.0, "1/h", lognormal(1.0, 0.5))
    WT: Scalar = param(70.0, "kg")
    female: Scalar = param(0.0, "1")


class DrugInputs(eqx.Module):
    oral: Input = var("mg/h", neutral=0.0)
    iv: Input = var("mg/h", neutral=0.0)
    renal: Input = var("mL/min", neutral=100.0)


class DrugOutputs(eqx.Module):
    concentration: Scalar = var("mg/L", plausible=(0.0, 1e6))


class Depot(eqx.Module):
    oral: Input = var("mg/h", neutral=0.0)


class GlucoseInputs(eqx.Module):
    insulin: Input = var("m[IU]/L", neutral=0.0)


class GlucoseOutputs(eqx.Module):
    glucose: Scalar = var("mg/dL", molar_mass=180.156, plausible=(10.0, 1500.0))
    creatinine: Scalar = var("mg/dL", molar_mass=113.118, plausible=(0.01, 50.0))


@dataclass(frozen=True)
class Fake:
    name: str
    inputs: type
    outputs: type
    params: type = DrugParams
    time_unit: str = "h"

    def schema(self):
        return Schema(
            quantities(self.inputs), quantities(self.outputs), quantities(self.params), self.time_unit
        )

    def predict(self, p, record):
        raise NotImplementedError


DRUG = Fake("drug", DrugInputs, DrugOutputs)
TABLET = Fake("tablet", Depot, DrugOutputs)
GLUCOSE = Fake("glucose_model", GlucoseInputs, GlucoseOutputs, time_unit="min")

LONG = "patient,time,name,value,unit,duration\n"
WIDE = "ID,TIME,AMT,RATE,DV,EVID,MDV,CMT,UNIT\n"
CATALOGUE = "reference/cases/6_bad_inputs/files/"


@pytest.fixture
def table(tmp_path):
    def write(text, name="patients.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path, f=DRUG, **options):
    with pytest.raises(TableError) as caught:
        read_table(path, f, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# What is read


def test_long_rows_become_doses_measurements_and_known_values(table):
    path = table(
        LONG + "P1,0,oral,100,mg,\nP1,0,WT,70000,g,\nP1,1,iv,0.05,g,2\nP1,1,concentration,900,ug/L,\n"
        "P1,4,concentration,2.4,mg/L,\nP2,1,concentration,3,mg/L,\n"
    )
    records = read_table(path, DRUG)
    assert list(records) == ["P1", "P2"]
    first = records["P1"]
    assert isinstance(first.inputs.oral, Doses)
    np.testing.assert_array_equal(first.inputs.oral.amount, [100.0])
    np.testing.assert_array_equal(first.inputs.oral.duration, [0.0])
    np.testing.assert_array_equal(first.inputs.iv.amount, [50.0])
    np.testing.assert_array_equal(first.inputs.iv.duration, [2.0])
    np.testing.assert_array_equal(first.observations["concentration"].time, [1.0, 4.0])
    np.testing.assert_allclose(first.observations["concentration"].value, [0.9, 2.4], rtol=1e-15)
    assert first.known == {"WT": 70.0}
    assert float(records["P2"].inputs.oral) == 0.0
    assert float(records["P2"].t0) == 0.0
    check_record(DRUG, first)


def test_wide_rows_say_the_same_as_long_rows(table):
    wide = table(WIDE + "1,0,100,.,.,1,1,2,mg\n1,0,50,25,.,1,1,1,mg\n1,1,.,.,0.9,0,0,,mg/L\n", "w.csv")
    long = table(LONG + "1,0,oral,100,mg,\n1,0,iv,50,mg,2\n1,1,concentration,0.9,mg/L,\n", "l.csv")
    wide, long = read_table(wide, DRUG, inputs={"1": "iv", "2": "oral"})["1"], read_table(long, DRUG)["1"]
    # Of an event table, that the rate of the infusion was stated, and how measurements lie among events.
    assert wide.inputs.iv.rules is not None and np.all(wide.observations["concentration"].after)
    wide = eqx.tree_at(lambda r: r.inputs.iv, wide, Doses([0.0], [50.0], [2.0]))
    wide.observations["concentration"] = long.observations["concentration"]
    assert eqx.tree_equal(wide, long)


def test_an_infusion_lasts_amount_over_rate_in_the_model_unit_of_time(table):
    path = table(WIDE + "1,0,60,2,.,1,1,1,mg\n1,60,.,.,1,0,0,,mg/L\n")
    record = read_table(path, TABLET, units={"TIME": "min"})["1"]
    np.testing.assert_allclose(record.inputs.oral.duration, [0.5])
    np.testing.assert_allclose(record.observations["concentration"].time, [1.0])


def test_a_rate_with_a_duration_is_an_infusion(table):
    path = table(LONG + "P1,0,iv,10,mg/h,3\nP1,1,concentration,1,mg/L,\n")
    signal = read_table(path, DRUG)["P1"].inputs.iv
    assert isinstance(signal, Doses)
    np.testing.assert_array_equal(signal.amount, [30.0])


def test_an_input_in_its_own_unit_is_sampled_or_held(table):
    path = table(LONG + "P1,0,insulin,10,uU/mL,\nP1,5,insulin,0.02,IU/L,\nP1,5,glucose,5,mmol/L,\n")
    sampled = read_table(path, GLUCOSE)["P1"].inputs.insulin
    assert isinstance(sampled, Sampled)
    np.testing.assert_allclose(sampled.value, [10.0, 20.0])
    assert isinstance(read_table(path, GLUCOSE, inputs={"insulin": "steps"})["P1"].inputs.insulin, Steps)


def test_a_measurement_is_before_the_dose_unless_its_row_stands_after(table):
    rows = ("P1,0,oral,100,mg,\n", "P1,0,concentration,0.1,mg/L,\n", "P1,1,concentration,2,mg/L,\n")
    late = read_table(table(LONG + "".join(rows)), DRUG)["P1"].observations["concentration"]
    early = read_table(table(LONG + rows[1] + rows[0] + rows[2]), DRUG)["P1"].observations["concentration"]
    np.testing.assert_array_equal(late.after, [True, False])
    np.testing.assert_array_equal(early.after, [False, False])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_without_a_time_does_not_change_what_stands_after_a_dose(table, place):
    rows = ["P1,0,oral,100,mg,\n", "P1,0,concentration,0.1,mg/L,\n"]
    rows.insert(place, "P1,,WT,70,kg,\n")
    record = read_table(table(LONG + "".join(rows)), DRUG)["P1"]
    np.testing.assert_array_equal(record.observations["concentration"].after, [True])


def test_another_patients_dose_is_no_tie(table):
    path = table(LONG + "P1,0,oral,100,mg,\nP2,0,concentration,0.1,mg/L,\nP1,0,concentration,1,mg/L,\n")
    records = read_table(path, DRUG)
    assert not records["P2"].observations["concentration"].after.any()
    assert records["P1"].observations["concentration"].after.all()


def test_values_beyond_a_limit_are_censored_in_every_form(table):
    long = table(
        "id,time,name,value,unit,censor\n1,1,concentration,<0.1,mg/L,\n1,2,concentration,0.1,mg/L,-1\n"
        "1,3,concentration,5,mg/L,>\n1,4,concentration,2,mg/L,0\n",
        "l.csv",
    )
    wide = table(
        "ID,TIME,DV,CENS,LLOQ,UNIT\n1,1,<0.1,,,mg/L\n1,2,0,1,0.1,mg/L\n1,3,5,-1,,mg/L\n1,4,2,0,0.1,mg/L\n",
        "w.csv",
    )
    columns = table(
        "ID,TIME,concentration,UNIT\n1,1,<0.1,mg/L\n1,2,< 0.1,mg/L\n1,3,>5,mg/L\n1,4,2,mg/L\n", "c.csv"
    )
    for path in (long, wide, columns):
        series = read_table(path, DRUG)["1"].observations["concentration"]
        np.testing.assert_array_equal(series.censor, [-1, -1, 1, 0])
        np.testing.assert_array_equal(series.value, [0.1, 0.1, 5.0, 2.0])


def test_a_constant_covariate_is_known_and_a_varying_one_is_held(table):
    path = table(
        "ID,TIME,DV,UNIT,WT,female,renal,site\n1,1,2,mg/L,154,1,90,7\n"
        "1,2,1,mg/L,154,1,60,\n1,3,0.5,mg/L,,1,60,7\n"
    )
    record = read_table(path, DRUG, units={"WT": "[lb_av]"}, covariates={"site": "1", "renal": "mL/min"})["1"]
    assert record.known["WT"] == pytest.approx(154 * 0.45359237)
    assert record.known["female"] == 1.0
    assert record.known["site"] == 7.0
    assert isinstance(record.inputs.renal, Steps)
    np.testing.assert_array_equal(record.inputs.renal.time, [1.0, 2.0])
    np.testing.assert_array_equal(record.inputs.renal.value, [90.0, 60.0])


def test_event_2_changes_covariates_only(table):
    path = table("ID,TIME,EVID,DV,UNIT,renal\n1,0,2,5,mg/L,90\n1,1,0,2,mg/L,90\n1,2,2,,,60\n")
    record = read_table(path, DRUG, units={"renal": "mL/min"})["1"]
    np.testing.assert_array_equal(record.observations["concentration"].time, [1.0])
    np.testing.assert_array_equal(record.inputs.renal.time, [0.0, 2.0])


def test_missing_dv_is_ignored_where_mdv_says_so(table):
    path = table(WIDE + "1,1,,,2,0,0,,mg/L\n1,2,,,99,0,1,,mg/L\n1,3,,,,0,1,,\n")
    assert len(read_table(path, DRUG)["1"].observations["concentration"].time) == 1


def test_without_evid_a_row_with_an_amount_is_a_dose(table):
    path = table("ID,TIME,AMT,DV\n1,0,100,.\n1,1,.,2\n")
    record = read_table(path, TABLET, units={"AMT": "mg", "DV": "mg/L"})["1"]
    np.testing.assert_array_equal(record.inputs.oral.amount, [100.0])
    np.testing.assert_array_equal(record.observations["concentration"].value, [2.0])


def test_dvid_names_the_output(table):
    path = table("ID,TIME,DV,DVID,UNIT\n1,0,100,1,mg/dL\n1,0,1.1,2.0,mg/dL\n1,1,5,pain,1\n")
    record = read_table(path, GLUCOSE, rename={"1": "glucose", "2": "creatinine", "pain": None})["1"]
    np.testing.assert_array_equal(record.observations["glucose"].value, [100.0])
    np.testing.assert_array_equal(record.observations["creatinine"].value, [1.1])


def test_a_column_for_each_measurement_skips_blank_cells(table):
    path = table("id,time,Glucose,creatinine,unit\n1,0,100,,mg/dL\n1,1,,1.1,mg/dL\n1,2,90,1.2,mg/dL\n")
    record = read_table(path, GLUCOSE)["1"]
    np.testing.assert_array_equal(record.observations["glucose"].time, [0.0, 2.0])
    np.testing.assert_array_equal(record.observations["creatinine"].time, [1.0, 2.0])


def test_columns_are_renamed_ignored_and_read_in_any_case(table):
    path = table("Subject,Time,Conc,Site\n1,0,2,x\n")
    options = {"rename": {"subject": "ID", "conc": "concentration", "Site": None}}
    record = read_table(path, DRUG, units={"conc": "mg/L"}, **options)["1"]
    np.testing.assert_array_equal(record.observations["concentration"].value, [2.0])


def test_negative_times_move_the_start(table):
    path = table(LONG + "P1,-2,oral,1,mg,\nP1,1,concentration,1,mg/L,\n")
    record = read_table(path, DRUG)["P1"]
    assert float(record.t0) == -2.0
    check_record(DRUG, record)


def test_an_input_sampled_before_0_does_not_move_the_start(table):
    rows = "P1,-10,insulin,10,uU/mL,\nP1,5,insulin,20,uU/mL,\nP1,5,glucose,90,mg/dL,\n"
    record = read_table(table(LONG + rows), GLUCOSE)["P1"]
    assert float(record.t0) == 0.0
    np.testing.assert_array_equal(record.inputs.insulin.time, [-10.0, 5.0])
    check_record(GLUCOSE, record)


@pytest.mark.parametrize("first", ["oral,1,mg", "concentration,0,mg/L"])
def test_a_dose_or_measurement_before_0_moves_the_start(table, first):
    path = table(LONG + f"P1,-2,{first},\nP1,1,concentration,1,mg/L,\n")
    assert float(read_table(path, DRUG)["P1"].t0) == -2.0


def test_the_start_may_be_given(table):
    path = table(LONG + "P1,-2,concentration,1,mg/L,\nP1,9,concentration,1,mg/L,\n")
    assert float(read_table(path, DRUG, t0=-5.0)["P1"].t0) == -5.0
    assert float(read_table(path, DRUG, t0=8.0)["P1"].t0) == 8.0


def test_a_dose_before_the_start_that_was_given_is_refused(table):
    path = table(LONG + "P1,1,oral,5,mg,\nP1,9,concentration,1,mg/L,\n")
    message = refusal(path, t0=8.0)
    assert message.startswith("line 2, column 'time', patient 'P1'") and "t0, 8 h" in message


def test_one_measurement_and_a_dose_after_the_last_are_accepted(table):
    records = read_table(table(LONG + "P1,1,concentration,1,mg/L,\nP1,9,oral,1,mg,\n"), DRUG)
    assert len(records["P1"].observations["concentration"].time) == 1


def test_patients_may_be_interleaved_and_keep_the_order_of_the_file(table):
    path = table(LONG + "b,1,concentration,1,mg/L,\na,1,concentration,2,mg/L,\nb,2,concentration,3,mg/L,\n")
    records = read_table(path, DRUG)
    assert list(records) == ["b", "a"]
    np.testing.assert_array_equal(records["b"].observations["concentration"].value, [1.0, 3.0])
    assert len(stack(records)) == 2


def test_quoted_cells_and_blank_lines_keep_the_line_numbers(table):
    path = table(
        'id,time,name,value,unit\n\n"a,\nb",1,concentration,1,mg/L\n\n"a,\nb",2,concentration,x,mg/L\n'
    )
    assert refusal(path).startswith("line 6, column 'value', patient 'a,\\nb': found 'x'")


def test_a_predictor_without_inputs_reads_measurements(table):
    @dataclass(frozen=True)
    class Score:
        name: str = "score"

        def schema(self):
            return Schema({}, quantities(DrugOutputs), {}, "d")

    record = read_table(table("id,time,concentration,unit\n1,0,2,mg/L\n"), Score())["1"]
    assert record.inputs is None


def test_parquet_is_known_by_its_content(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    big = 2**53
    columns = {
        "ID": pa.array([big, big, big + 1], pa.int64()),
        "TIME": [0.0, 1.0, 1.0],
        "AMT": [100.0, None, None],
        "DV": [None, 2.5, 3.5],
        "CMT": [1.0, None, None],
        "UNIT": ["mg", "mg/L", "mg/L"],
    }
    path = tmp_path / "patients.csv"
    pq.write_table(pa.table(columns), path)
    records = read_table(path, DRUG, inputs={"1": "oral"})
    assert list(records) == [str(big), str(big + 1)]
    np.testing.assert_array_equal(records[str(big)].inputs.oral.amount, [100.0])
    columns["DV"] = [None, 2.5, math.nan]
    pq.write_table(pa.table(columns), path)
    message = refusal(path, inputs={"1": "oral"})
    assert message == f"row 3, column 'DV', patient '{big + 1}': found 'nan', expected a finite number"
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a whole Parquet file" in refusal(path)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_file_read_in_batches_is_the_file_read_at_once(table, monkeypatch, size):
    rows = "".join(f"P{i},{k},concentration,{k}.5,mg/L,\n" for i in range(10) for k in range(10))
    path = table(LONG + rows)
    whole = read_table(path, DRUG)
    monkeypatch.setattr("dtwin_jax.io.rows.BATCH", size)
    assert eqx.tree_equal(read_table(path, DRUG), whole)
    assert refusal(table(LONG + rows + "P9,10,concentration,x,mg/L,\n")).startswith(
        "line 102, column 'value'"
    )


def test_the_phenobarbital_table_has_its_published_counts(shared):
    # Grasela & Donn 1985: 59 infants, 155 concentrations; 744 rows, the others are doses.
    names = {"weight_kg": "WT", "time_h": "time", "dose_mg": "iv", "conc_mg_per_L": "concentration"}
    ignored = {"apgar": None, "apgar_ind": None}
    units = {"WT": "kg", "iv": "mg", "concentration": "mg/L"}
    records = read_table(shared("data/pk/phenobarb.csv"), DRUG, rename=names | ignored, units=units)
    assert len(records) == 59
    assert sum(len(record.observations["concentration"].time) for record in records.values()) == 155
    assert sum(len(record.inputs.iv.time) for record in records.values()) == 744 - 155
    assert records["1"].known == {"WT": 1.4}


# What is refused: the place, what was found, what was expected


ROW = "P1,1,concentration,1,mg/L,\n"


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("P1,nan,concentration,1,mg/L,\n", ["line 3, column 'time', patient 'P1'", "'nan'", "finite number"]),
        ("P1,,concentration,1,mg/L,\n", ["line 3, column 'time', patient 'P1'", "nothing", "a time"]),
        ("P1,,oral,1,mg,\n", ["line 3, column 'time', patient 'P1'", "nothing", "a time"]),
        (
            "P1,2,concentration,inf,mg/L,\n",
            ["line 3, column 'value', patient 'P1'", "'inf'", "finite number"],
        ),
        ("P1,2,concentration,1e999,mg/L,\n", ["line 3, column 'value', patient 'P1'", "'1e999'"]),
        ("P1,2,concentration,1_0,mg/L,\n", ["line 3, column 'value', patient 'P1'", "'1_0'"]),
        ('P1,2,concentration,"1,5",mg/L,\n', ["line 3, column 'value', patient 'P1'", "'1,5'"]),
        ("P1,2,concentration,two,mg/L,\n", ["line 3, column 'value', patient 'P1'", "'two'"]),
        ("P1,2,concentration,,mg/L,\n", ["line 3, column 'value', patient 'P1'", "nothing", "a number"]),
        ("P1,2,concentration,<,mg/L,\n", ["line 3, column 'value', patient 'P1'", "'<'"]),
        ("P1,0.5,concentration,1,mg/L,\n", ["line 3, column 'time', patient 'P1'", "0.5 after 1 on line 2"]),
        (
            "P1,2,concentration,-0.3,mg/L,\n",
            ["line 3, column 'value', patient 'P1'", "-0.3 mg/L", "0 to 1e+06"],
        ),
        ("P1,2,concentration,1,,\n", ["line 3, column 'unit', patient 'P1'", "nothing", "a unit", "'mg/L'"]),
        ("P1,2,concentration,1,mgg/L,\n", ["line 3, column 'unit', patient 'P1'", "'mgg/L'", "mean 'mg/L'"]),
        ("P1,2,concentration,1,h,\n", ["line 3, column 'unit', patient 'P1'", "'h'", "cannot become 'mg/L'"]),
        ("P1,2,concentration,1,mmol/L,\n", ["line 3, column 'unit', patient 'P1'", "molar mass"]),
        ("P1,2,oral,1,mL,\n", ["line 3, column 'unit', patient 'P1'", "'mL'", "'oral'"]),
        ("P1,2,oral,-1,mg,\n", ["line 3, column 'value', patient 'P1'", "-1 of 'oral'", "not negative"]),
        ("P1,2,oral,1,mg,-1\n", ["line 3, column 'duration', patient 'P1'", "-1", "not negative"]),
        ("P1,2,concentration,1,mg/L,1\n", ["line 3, column 'duration', patient 'P1'", "only an input"]),
        ("P1,2,oral,<1,mg,\n", ["line 3, column 'value', patient 'P1'", "only measurements have a limit"]),
        (
            "P1,2,concentratoin,1,mg/L,\n",
            ["line 3, column 'name', patient 'P1'", "mean 'concentration'", "oral"],
        ),
        ("P1,2,,1,mg/L,\n", ["line 3, column 'name', patient 'P1'", "nothing", "outputs concentration"]),
        (
            "P1,1,concentration,1,mg/L,\n",
            ["line 3, column 'value', patient 'P1'", "as on line 2", "each row once"],
        ),
        (",2,concentration,1,mg/L,\n", ["line 3, column 'patient'", "nothing", "the id of a patient"]),
        ("  ,2,concentration,1,mg/L,\n", ["line 3, column 'patient'", "nothing"]),
        ("P2,2,oral,1,mg,\n", ["line 3, patient 'P2'", "no measurement", "concentration"]),
        ("P1,2,concentration,1\n", ["line 3", "found 4 fields", "expected 6 fields"]),
        ("P1,2,concentration,1,mg/L,,\n", ["line 3", "found 7 fields", "expected 6 fields"]),
        (
            "P1,2,WT,70,kg,\nP1,2,WT,71,kg,\n",
            ["line 4, column 'value', patient 'P1'", "71", "70, as on line 3"],
        ),
        ("P1,2,iv,1,mg/h,\nP1,2,iv,1,mg,\n", ["line 4", "a dose of 'iv'", "a value over time, as on line 3"]),
        ('P1,2,"concentration,1,mg/L,\n\n\n', ["line 3", "unexpected end of data"]),
    ],
)
def test_a_bad_row_of_long_form_is_refused_with_its_place(table, rows, parts):
    message = refusal(table(LONG + ROW + rows))
    assert all(part in message for part in parts), message


def test_a_censor_without_a_limit_or_with_an_unknown_sign_is_refused(table):
    header = "id,time,name,value,unit,censor\n"
    message = refusal(table(header + "1,1,concentration,,mg/L,<\n"))
    assert (
        message
        == "line 2, column 'value', patient '1': found nothing, expected the limit that the value is beyond"
    )
    message = refusal(table(header + "1,1,concentration,1,mg/L,low\n"))
    assert message.startswith("line 2, column 'censor', patient '1': found 'low', expected -1 or '<'")


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("1,2,1,,,7,1,1,mg\n", ["line 3, column 'EVID', patient '1'", "found 7", "0 (observation)"]),
        ("1,2,1,-3,,1,1,1,mg\n", ["line 3, column 'RATE', patient '1'", "found -3", "-2 (the model has"]),
        ("1,2,-1,,,1,1,1,mg\n", ["line 3, column 'AMT', patient '1'", "found -1", "not negative"]),
        ("1,2,,,,1,1,1,mg\n", ["line 3, column 'AMT', patient '1'", "found nothing", "amount of a dose"]),
        ("1,2,5,,1,0,0,1,mg\n", ["line 3, column 'AMT', patient '1'", "found 5", "no amount"]),
        ("1,2,1,,,1,1,1,mg/L\n", ["line 3, column 'UNIT', patient '1'", "'mg/L'", "'oral'"]),
        ("1,2,1,,,1,1,1,\n", ["line 3, column 'UNIT', patient '1'", "nothing", "such as 'mg'"]),
        ("1,2,1,,,1,1,2,mg\n", ["line 3, column 'CMT', patient '1'", "'2'", "inputs={'2': 'iv'}"]),
        ("1,2,,,,0,0,,mg/L\n", ["line 3, column 'DV', patient '1'", "nothing", "MDV 1"]),
        ("1,2,,,1,0,5,,mg/L\n", ["line 3, column 'MDV', patient '1'", "found 5", "0 or 1"]),
        ("1,0,,,1,0,0,,mg/L\n", ["line 3, column 'TIME', patient '1'", "0 after 1 on line 2"]),
    ],
)
def test_a_bad_row_of_nonmem_form_is_refused_with_its_place(table, rows, parts):
    message = refusal(table(WIDE + "1,1,,,1,0,0,,mg/L\n" + rows), inputs={"1": "oral"})
    assert all(part in message for part in parts), message


def test_censored_rows_of_nonmem_form_need_a_limit(table):
    path = table("ID,TIME,DV,CENS,LLOQ,UNIT\n1,1,,1,,mg/L\n")
    assert "line 2, column 'DV', patient '1': found nothing, expected a limit" in refusal(path)
    path = table("ID,TIME,DV,CENS,LIMIT,UNIT\n1,1,1,-1,0.5,mg/L\n")
    assert "line 2, column 'LIMIT', patient '1': found 0.5, expected blank" in refusal(path)
    path = table("ID,TIME,DV,CENS,LIMIT,UNIT\n1,1,1,1,1,mg/L\n")
    assert "line 2, column 'LIMIT', patient '1': found 1, expected a limit below" in refusal(path)


def test_a_value_may_be_known_to_lie_between_two_limits(table):
    path = table(
        "ID,TIME,DV,CENS,LIMIT,UNIT\n1,1,1,1,0,ug/L\n1,2,1,1,.,ug/L\n1,3,7,0,0,ug/L\n2,1,3,0,0,ug/L\n"
    )
    records = read_table(path, DRUG)
    seen = records["1"].observations["concentration"]
    np.testing.assert_array_equal(seen.limit, [0.0, -np.inf, -np.inf])
    np.testing.assert_allclose(seen.value[:2], 1e-3)
    assert records["2"].observations["concentration"].limit is None
    assert stack(records).record.observations["concentration"].limit.shape == (2, 3)


def test_a_dose_into_one_of_several_inputs_needs_a_compartment(table):
    path = table("ID,TIME,AMT,DV,UNIT\n1,0,1,,mg\n1,1,,1,mg/L\n")
    message = refusal(path)
    assert message.startswith("line 2, column 'cmt', patient '1': found no such column, expected an input")
    assert "inputs={'1': 'oral'}" in message


def test_an_output_that_nobody_named_is_refused(table):
    path = table("ID,TIME,DV,DVID,UNIT\n1,0,100,glucos,mg/dL\n")
    message = refusal(path, GLUCOSE)
    assert message.startswith("line 2, column 'DVID', patient '1': found 'glucos', expected one of glucose")
    assert "did you mean 'glucose'" in message
    assert "column 'dvid'" in refusal(table("ID,TIME,DV,UNIT\n1,0,100,mg/dL\n"), GLUCOSE)


def test_two_dvids_are_not_merged_into_one_output(table):
    path = table("ID,TIME,DV,DVID,UNIT\n1,0,1,a,mg/L\n1,1,1,b,mg/L\n")
    assert "line 2, column 'DVID', patient '1': found 'a'" in refusal(path)


def test_a_covariate_that_varies_without_an_input_is_refused(table):
    path = table("ID,TIME,DV,UNIT,WT\n1,0,1,mg/L,70\n1,1,1,mg/L,71\n")
    message = refusal(path, units={"WT": "kg"})
    assert message.startswith(
        "line 3, column 'WT', patient '1': found 71 for 'WT', expected 70, as on line 2"
    )


def test_a_parameter_with_a_dimension_needs_a_unit(table):
    path = table("ID,TIME,DV,UNIT,WT\n1,0,1,mg/L,70\n")
    assert refusal(path).startswith(
        "line 2, column 'WT', patient '1': found no unit, expected a unit for 'WT'"
    )


def test_unknown_columns_are_listed_with_a_suggestion(table):
    path = table("ID,TIME,DV,UNITS,site\n1,0,1,mg/L,7\n")
    message = refusal(path)
    assert message.startswith("line 1: unknown columns 'UNITS', 'site', expected one of id, time")
    assert "did you mean 'unit'" in message
    assert "rename={'UNITS': None}" in message


def test_a_missing_column_names_what_seems_misspelt(table):
    assert "line 1, column 'time': the column is missing, found 'tiem'" in refusal(
        table("id,tiem,dv\n1,0,1\n")
    )
    assert "line 1, column 'id': the column is missing" in refusal(table("time,dv\n0,1\n"))
    assert "line 1, column 'name'" in refusal(table("id,time,nmae,value,unit\n1,0,concentration,1,mg/L\n"))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (LONG.encode(), "no data rows"),
        (b"id,time,ID\n1,1,1\n", "line 1, column 'ID': found the column twice"),
        (b"id;time;dv\n1;1;1\n", "expected columns separated by commas"),
        (b"id,time,dv\n1,1,\xe9\n", "line 2: found byte 0xe9, expected text in UTF-8"),
        ("id,time\n".encode("utf-16"), "found text in UTF-16"),
        (b"id,time,dv\n1,\x001,1\n", "line 2: found a NUL byte"),
        (b"\x80\x04\x95rest", "found a Python pickle"),
        (b"PK\x03\x04rest", "found a zip archive"),
        (b"\x1f\x8brest", "found a gzip archive"),
        (b'{"resourceType": 1}', "found a JSON document"),
        (b"PAR1 and nothing", "not a whole Parquet file"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_its_content(table, content, part):
    assert part in refusal(table(content))


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    assert refusal(tmp_path / "none.csv") == "no such file"
    assert refusal(tmp_path).startswith("found a directory")


def test_arguments_that_name_nothing_are_refused(table):
    path = table("ID,TIME,DV\n1,0,1\n")
    with pytest.raises(ValueError, match=r"drug has no input 'orl'.*did you mean 'oral'"):
        read_table(path, DRUG, inputs={"1": "orl"})
    with pytest.raises(ValueError, match="form is 'long' or 'wide'"):
        read_table(path, DRUG, form="tall")
    assert "units has 'DVV'" in refusal(path, units={"DVV": "mg/L"})
    assert "no column for the covariate 'site'" in refusal(path, covariates={"site": "1"})


# The catalogue of bad inputs, read in place


C01 = {"covariates": {"wt": "kg"}, "inputs": {"1": "oral"}, "rename": {"cp": "concentration"}}


def test_the_clean_table_of_the_catalogue(shared):
    records = read_table(shared(CATALOGUE + "c01_good.csv"), DRUG, **C01)
    assert list(records) == ["P1", "P2", "P3"]
    for record in records.values():
        np.testing.assert_array_equal(record.observations["concentration"].time, [1, 2, 4, 8, 24])
        np.testing.assert_array_equal(record.observations["concentration"].value, [8.1, 6.9, 4.8, 2.4, 0.22])
        np.testing.assert_array_equal(record.inputs.oral.amount, [100.0])
        assert record.known == {"WT": 70.0}


@pytest.mark.parametrize("name", ["c02_crlf_bom.csv", "c03_shuffled_columns.csv"])
def test_a_spreadsheets_export_and_another_order_of_columns_change_nothing(shared, name):
    clean = read_table(shared(CATALOGUE + "c01_good.csv"), DRUG, **C01)
    assert eqx.tree_equal(read_table(shared(CATALOGUE + name), DRUG, **C01), clean)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("c04_unicode_ids.csv", ["Zoë-Ø", "患者001", "Иван 7"]),
        ("c05_huge_ids.csv", ["9007199254740993", "9007199254740992", "18446744073709551617"]),
        ("c06_leading_zero_ids.csv", ["007", "07", "7"]),
    ],
)
def test_ids_are_kept_exactly(shared, name, ids):
    assert list(read_table(shared(CATALOGUE + name), DRUG, **C01)) == ids


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("t01_nan_time.csv", ["line 4", "time", "P1"]),
        ("t03_negative_conc.csv", ["line 4", "dv", "-0.3"]),
        ("t06_dose_without_time.csv", ["line 2", "time"]),
        ("t10_no_rows.csv", ["no data rows"]),
        ("t14_wrong_columns.csv", ["time", "tiem"]),
        ("t15_wrong_dtype.csv", ["line 4", "two"]),
        ("t33_ragged_line.csv", ["line 4", "found 5 fields", "expected 13 fields"]),
        ("m01_malicious.pkl", ["a Python pickle"]),
        ("m03_truncated.npz", ["m03_truncated", "a zip archive"]),
    ],
)
def test_bad_tables_of_the_catalogue_are_refused(shared, name, parts):
    path = shared(CATALOGUE + name)
    message = f"{path}: {refusal(path, **C01)}"
    assert all(part in message for part in parts), message


def test_a_left_censored_row_keeps_its_limit(shared):
    records = read_table(shared(CATALOGUE + "t18_blq_ok.csv"), DRUG, **C01)
    series = records["P1"].observations["concentration"]
    np.testing.assert_array_equal(series.censor, [0, 0, 0, 0, -1])
    assert series.value[-1] == 0.1
    assert not records["P2"].observations["concentration"].censor.any()


def test_glucose_in_two_units_is_converted_and_the_impossible_value_is_named(shared):
    path = shared(CATALOGUE + "u01_mgdl_vs_mmol.csv")
    message = refusal(path, GLUCOSE)
    assert message.startswith("line 4, column 'glucose', patient 'P1': found 110 mmol/L (1981.72 mg/dL)")


def test_a_missing_unit_is_not_guessed_but_may_be_given(shared):
    path = shared(CATALOGUE + "u02_unit_missing.csv")
    assert refusal(path, GLUCOSE).startswith(
        "line 2, column 'unit', patient 'P1': found nothing, expected a unit"
    )
    record = read_table(path, GLUCOSE, units={"glucose": "mmol/L"})["P1"]
    np.testing.assert_allclose(record.observations["glucose"].value, [5.5 * 18.0156])


def test_creatinine_in_two_units_agrees(shared):
    path = shared(CATALOGUE + "u07_creatinine.csv")
    series = read_table(path, GLUCOSE, units={"TIME": "h"})["P1"].observations["creatinine"]
    np.testing.assert_allclose(series.value, [1.2, 106 / 88.42], rtol=5e-4)
    np.testing.assert_array_equal(series.time, [0.0, 1440.0])
