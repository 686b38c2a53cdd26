"""Job files: what is accepted, and how each mistake is told; expected lines and words are written by hand."""

import textwrap
from importlib import resources

import numpy as np
import pytest

from dtwin_jax.core.prior import halfnormal, lognormal, normal
from dtwin_jax.inference.covariate import power
from dtwin_jax.inference.mixture import Mixture
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.io.rows import TableError
from dtwin_jax.jobs.document import JobError
from dtwin_jax.jobs.job import read_job
from dtwin_jax.jobs.plan import dose_rule, plan_of, planned, read_plan
from dtwin_jax.jobs.study import prepare
from dtwin_jax.jobs.values import Measure, measure
from dtwin_jax.models import one_compartment

TABLE = """\
patient,time,name,value,unit,duration
Ana,0,weight,70,kg,
Ana,0,oral,300,mg,0
Ana,1,concentration,5.0,mg/L,
Ana,8,concentration,2.0,mg/L,
Bo,0,weight,50,kg,
Bo,0,oral,200,mg,0
Bo,2,concentration,4.0,mg/L,
Bo,9,concentration,1.0,mg/L,
"""

JOB = """\
model = "one_compartment"
[data]
file = "table.csv"
covariates = { weight = "kg" }
[priors]
CL = { lognormal = { median = 3.0, log_sd = 1.0 } }
cv = 0
"""


@pytest.fixture
def write(tmp_path):
    def writes(text, name="job.toml"):
        (tmp_path / "table.csv").write_text(TABLE)
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        return path

    return writes


def refusal(path):
    with pytest.raises(JobError) as caught:
        prepare(read_job(path))
    return str(caught.value)


def test_a_short_job_has_the_defaults(write):
    job = read_job(write(JOB))
    assert job.predictor == one_compartment
    assert job.method == Nuts()
    assert job.result.name == "job.nc"
    study = prepare(job)
    assert study.cohort.ids == ("Ana", "Bo")
    assert study.priors == {"CL": lognormal(3.0, log_sd=1.0), "cv": 0.0}
    assert study.f == one_compartment and study.plan is None


def test_a_full_job_says_everything(write):
    text = (
        JOB
        + """\
[population]
vary = { CL = { halfnormal = 0.3 }, V = { halfnormal = { scale = 0.4 } } }
correlation = 2
centred = false
[[population.covariates]]
parameter = "CL"
name = "weight"
reference = 70
coefficient = { normal = [0.75, 0.5] }
[sampler]
chains = 2
dense = true
"""
    )
    study = prepare(read_job(write(text)))
    assert study.f.vary == (("CL", halfnormal(0.3)), ("V", halfnormal(0.4)))
    assert (study.f.correlation, study.f.centred) == (2.0, False)
    (covariate,) = study.f.covariates
    assert (covariate.unit, covariate.coefficient, covariate.form) == ("kg", normal(0.75, 0.5), power)
    assert study.method == Nuts(chains=2, dense=True)


EVENTS = """\
ID,TIME,CMT,AMT,DV,OCC
1,0,1,300,.,1
1,2,.,.,5,1
1,24,1,300,.,2
1,26,.,.,6,2
"""
OF_EVENTS = """\
model = "one_compartment"
[data]
file = "events.csv"
units = { AMT = "mg", DV = "mg/L" }
inputs = { "1" = "oral" }
[population]
vary = ["CL", "V"]
correlation = 1
blocks = [["CL", "V"]]
occasions = { CL = { halfnormal = 0.2 } }
"""


def test_occasions_are_those_of_the_table(write):
    path = write(OF_EVENTS)
    (path.parent / "events.csv").write_text(EVENTS)
    study = prepare(read_job(path))
    assert (study.f.occasions.count, study.f.occasions.vary) == (2, (("CL", halfnormal(0.2)),))
    assert study.f.blocks == (("CL", "V"),)
    assert float(study.cohort.record.known["occasion_2"][0]) == 24.0


def test_occasions_that_the_table_lacks_are_a_fault(write):
    more = '[population]\nvary = ["CL"]\noccasions = ["CL"]\n'
    assert "no patient of the table has a second one" in refusal(write(JOB + more))
    path = write(OF_EVENTS.replace("{ CL =", "{ ka ="))
    (path.parent / "events.csv").write_text(EVENTS)
    assert "ka" in refusal(path)


def test_skewed_effects_and_subpopulations_are_read(write):
    more = """\
[population]
vary = ["CL", "V", "ka"]
boxcox = { V = 0.5, ka = { normal = [0.0, 0.3] } }
mixture = { vary = ["CL"], classes = 3 }
"""
    study = prepare(read_job(write(JOB + more)))
    assert study.f.boxcox == (("V", 0.5), ("ka", normal(0.0, 0.3)))
    assert study.f.mixture == Mixture(("CL",), classes=3)
    assert "'V' is in the mixture and in boxcox" in refusal(write(JOB + more.replace('["CL"]', '["V"]')))
    assert "no parameter 'F'" in refusal(write(JOB + more.replace('["CL"]', '["F"]')))


def test_measurements_outside_the_window_are_not_used(write):
    text = JOB.replace(
        "[priors]", 'from = { concentration = "90 min" }\nuntil = { concentration = 8.5 }\n[priors]'
    )
    cohort = prepare(read_job(write(text))).cohort
    series = cohort.record.observations["concentration"]
    assert [list(t[m]) for t, m in zip(series.time, series.mask, strict=True)] == [[8.0], [2.0]]


def test_the_start_may_be_given_with_its_unit(write):
    text = JOB.replace("[priors]", 't0 = "-90 min"\n[priors]')
    np.testing.assert_array_equal(prepare(read_job(write(text))).cohort.record.t0, [-1.5, -1.5])
    with pytest.raises(TableError, match=r"line 3.*a dose of 'oral' at 0 h, expected none before t0, 0.5 h"):
        prepare(read_job(write(text.replace("-90 min", "30 min"))))


def test_a_score_leaves_out_the_last_measurements(write):
    study = prepare(read_job(write(JOB + "[score]\n")))
    kept = study.held_out.cohort.record.observations["concentration"]
    held = study.held_out.record.observations["concentration"]
    assert [list(t[m]) for t, m in zip(kept.time, kept.mask, strict=True)] == [[1.0], [2.0]]
    assert [list(t[m]) for t, m in zip(held.time, held.mask, strict=True)] == [[8.0], [9.0]]


def test_a_covariate_is_converted_to_the_unit_that_the_job_says(write, tmp_path):
    path = write(COVARIATE)
    (tmp_path / "table.csv").write_text(TABLE.replace("70,kg", "70000,g"))
    study = prepare(read_job(path))
    np.testing.assert_allclose(study.cohort.record.known["weight"], [70.0, 50.0])
    assert [(one.name, one.unit) for one in study.f.covariates] == [("weight", "kg")]
    assert study.units == {"weight": "kg"}


def test_only_the_named_patients_are_read(write):
    text = JOB.replace("[priors]", 'patients = ["Bo"]\n[priors]')
    assert prepare(read_job(write(text))).cohort.ids == ("Bo",)


@pytest.mark.parametrize("name", ["theoph", "fsigt", "indometh"])
def test_the_shipped_jobs_are_right(name):
    with resources.as_file(resources.files("dtwin_jax") / "data" / f"{name}.toml") as path:
        study = prepare(read_job(path))
    assert len(study.cohort) == {"theoph": 12, "fsigt": 1, "indometh": 6}[name]


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("model =", "modle ="), 1, ["'modle'", "unknown key", "did you mean 'model'"]),
        (("one_comp", "on_comp"), 1, ["'model'", "on_compartment", "did you mean 'one_compartment'"]),
        (("one_compartment", "os:nothing"), 1, ["'model'", "cannot import 'os:nothing'"]),
        (("one_compartment", "os:sep"), 1, ["'model'", "found a str", "expected a model"]),
        (('file = "table.csv"', "file = 3"), 3, ["'data.file'", "found 3", "string"]),
        (("table.csv", "tabel.csv"), 3, ["'data.file'", "no file", "tabel.csv"]),
        (("file =", "fil ="), 3, ["'data.fil'", "did you mean 'file'"]),
        (('"kg" }', '"kgg" }'), 4, ["'data.covariates.weight'", "unknown unit 'kgg'"]),
        (("CL =", "Cl ="), 6, ["'priors.Cl'", "no parameter 'Cl'", "did you mean 'CL'"]),
        (("lognormal", "lognorm"), 6, ["'priors.CL'", "unknown prior 'lognorm'"]),
        (("median = 3.0", "median = -3.0"), 6, ["'priors.CL'", "median must be positive", "-3.0"]),
        (("median = 3.0, ", ""), 6, ["'priors.CL'", "median"]),
        (("cv = 0", "cv = true"), 7, ["'priors.cv'", "found True", "a number (known) or a prior"]),
        (("cv = 0", "cv = nan"), 7, ["'priors.cv'", "found nan"]),
        (("cv = 0", "cv = 0\n[sampler]\nchains = 1.5"), 9, ["'sampler.chains'", "found 1.5", "integer"]),
        (("cv = 0", "cv = 0\n[sampler]\ndraws = 0"), 9, ["'sampler.draws'", "found 0", "1"]),
        (("cv = 0", "cv = 0\n[sampler]\ntarget_accept = 1.0"), 9, ["'sampler.target_accept'", "less than 1"]),
        (("cv = 0", "cv = 0\n[solver]\nattol = 1e-6"), 8, ["'solver'", "unknown key"]),
        (("cv = 0", "cv = 0\n[population]\nvary = ['CL', 'F']"), 9, ["vary[1]", "'F'", "known"]),
        (("cv = 0", "cv = 0\n[population]\nvary = ['CL', 'cv']"), 9, ["vary[1]", "'cv'", "[priors] has 0"]),
        (("cv = 0", "cv = 0\n[population]\nvary = ['kaa']"), 9, ["vary[0]", "did you mean 'ka'"]),
        (("cv = 0", "cv = 0\n[population]\n"), 8, ["'population.vary'", "missing"]),
        (("[priors]", "from = { conc = 8.0 }\n[priors]"), 5, ["'data.from.conc'", "concentration"]),
        (
            ("[priors]", "from = { concentration = '8 mg' }\n[priors]"),
            5,
            ["'data.from.concentration'", "'mg'"],
        ),
        (("[priors]", "t0 = '8 mg'\n[priors]"), 5, ["'data.t0'", "'mg'"]),
        (("[priors]", "t0 = true\n[priors]"), 5, ["'data.t0'", "found True"]),
        (("cv = 0", "cv = 0\n[score]\nlast = 0"), 9, ["'score.last'", "found 0", "1"]),
        (("cv = 0", "cv = 0\n[score]\nlats = 1"), 9, ["'score.lats'", "did you mean 'last'"]),
        (("cv = 0", "cv = 0\n[score]\nlast = 2"), 9, ["'score.last'", "more than 2 measurements"]),
        (("[priors]", "inputs = { 1 = 'orall' }\n[priors]"), 5, ["'data.inputs.1'", "did you mean 'oral'"]),
        (("[priors]", "patients = ['Bob']\n[priors]"), 5, ["patients[0]", "'Bob'", "did you mean 'Bo'"]),
        (("[priors]", "from = { concentration = 8.5 }\n[priors]"), 2, ["'data'", "'Ana'", "no measurement"]),
    ],
)
def test_a_mistake_is_told_with_its_line(write, change, line, words):
    assert change[0] in JOB
    path = write(JOB.replace(*change))
    first = refusal(path).splitlines()
    told = [
        row for row in first if row.startswith(f"{path}: line {line}, key ") and all(w in row for w in words)
    ]
    assert len(told) == 1, first


COVARIATE = (
    JOB
    + """\
[population]
vary = ["CL"]
[[population.covariates]]
parameter = "CL"
name = "weight"
unit = "kg"
reference = 70.0
coefficient = 0.75
"""
)


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (('parameter = "CL"', 'parameter = "V"'), 11, ["'V' does not vary", "CL"]),
        (('name = "weight"', 'name = "wight"'), 12, ["'wight'", "did you mean 'weight'"]),
        (('unit = "kg"\n', 'unit = "g"\n'), 13, ["found 'g'", "'kg'"]),
        (("reference = 70.0", "reference = 0.0"), 14, ["reference", "positive"]),
        (("coefficient = 0.75", ""), 10, ["covariates[0].coefficient", "missing"]),
    ],
)
def test_a_mistake_in_a_covariate_is_told(write, change, line, words):
    path = write(COVARIATE.replace(*change))
    told = refusal(path)
    assert told.startswith(f"{path}: line {line}, key 'population.covariates[0]")
    assert all(word in told for word in words)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(write):
    text = """\
    model = "one_compartment"
    sead = 1
    [data]
    file = "nowhere.csv"
    [priors]
    kaa = 1.0
    V = "thirty"
    [sampler]
    chains = 0
    [forecast]
    until = "144 mg"
    every = 1
    """
    lines = refusal(write(text)).splitlines()
    assert [row.split(": line ")[1].split("'")[1] for row in lines] == [
        "sead",
        "data.file",
        "priors.kaa",
        "priors.V",
        "sampler.chains",
        "forecast.until",
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("job.toml", b"model = \n", ["line 1", "not valid TOML"]),
        ("job.toml", b"a = 1\nb = [1,\n", ["not valid TOML", "end of the file"]),
        ("job.toml", b"a = 1\na = 2\n", ["line 2", "not valid TOML"]),
        ("job.yaml", b"model: one_compartment\nsolver:\n  attol: 1e-8\n", ["found YAML", "TOML"]),
        ("job.toml", b"model: !!python/object/apply:os.system ['touch pwned']\n", ["found YAML", "TOML"]),
        ("job.toml", b'{"model": "one_compartment"}', ["found JSON", "TOML"]),
        ("job.toml", b'model = "one"\nname = "\xff\xfe"\n', ["line 2", "0xff", "UTF-8"]),
        ("job.toml", b"", ["line 1", "'model'", "missing"]),
        ("job.toml", b"\x80\x04\x95\x00", ["line 1", "UTF-8"]),
    ],
)
def test_what_is_no_job_is_told(write, tmp_path, name, content, words):
    path = write(content, name)
    told = refusal(path)
    assert all(row.startswith(f"{path}: ") for row in told.splitlines())
    assert all(word in told for word in words)
    assert not (tmp_path / "pwned").exists()


def test_a_file_that_is_not_there_is_told(tmp_path):
    assert refusal(tmp_path / "job.toml") == f"{tmp_path}/job.toml: no such file; expected a job file in TOML"
    assert "found a directory" in refusal(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(write):
    assert read_job(write(b"\xef\xbb\xbf" + JOB.replace("\n", "\r\n").encode())).spec.seed == 0


def test_a_model_of_ones_own_stands_beside_the_job(write, tmp_path):
    (tmp_path / "my_model_of_test_job.py").write_text(
        "from dtwin_jax.models import one_compartment as mine\n"
    )
    job = read_job(write(JOB.replace("one_compartment", "my_model_of_test_job:mine")))
    assert job.predictor == one_compartment


PLAN = """\
until = "2 d"
every = 60
[[doses]]
input = "oral"
amount = "own"
every = "12 h"
count = 2
[[doses]]
input = "oral"
amount = "0.1 g"
start = 6
duration = "30 min"
"""


@pytest.fixture
def cohort(write):
    return prepare(read_job(write(JOB))).cohort


def test_a_plan_gives_each_patient_his_own_dose_in_order_of_time(write, cohort):
    plan = read_plan(write(PLAN, "plan.toml"), one_compartment.schema())
    record = planned(plan, cohort, one_compartment.schema())
    oral = record.inputs.oral
    np.testing.assert_array_equal(oral.time, [[0, 6, 12], [0, 6, 12]])
    np.testing.assert_allclose(oral.amount, [[300, 100, 300], [200, 100, 200]])
    np.testing.assert_allclose(oral.duration, [[0, 0.5, 0], [0, 0.5, 0]])
    np.testing.assert_array_equal(record.observations["concentration"].time, [[0.0], [0.0]])


def test_a_plan_may_add_to_what_was_given(write, cohort):
    schema = one_compartment.schema()
    plan = plan_of({"until": 24, "every": 1, "keep": True, "doses": [dose_rule("oral=50@4")]}, schema)
    oral = planned(plan, cohort, schema).inputs.oral
    np.testing.assert_allclose(oral.amount, [[300, 50], [200, 50]])
    np.testing.assert_allclose(oral.time, [[0, 4], [0, 4]])


def test_a_plan_of_options_equals_that_of_a_file(write):
    schema = one_compartment.schema()
    doses = [dose_rule("oral=own@0,every=12 h,count=2"), dose_rule("oral=0.1g@6,duration=30min")]
    made = plan_of({"until": "2d", "every": "60", "doses": doses}, schema)
    assert made == read_plan(write(PLAN, "plan.toml"), schema)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"oral"', '"orl"'), ["line 4", "doses[0].input", "did you mean 'oral'"]),
        (('"own"', '"mine"'), ["line 5", "doses[0].amount", "'mine'"]),
        (('"0.1 g"', '"0.1 L"'), ["line 10", "doses[1].amount", "'L'"]),
        (('every = "12 h"\n', ""), ["line 3", "doses[0]", "'every' is missing"]),
        (("every = 60", "every = 0"), ["line 2", "'every'", "found 0"]),
        (("every = 60", "every = 1e-9"), ["line 2", "'every'", "100,000"]),
        (("count = 2", "count = 0"), ["line 7", "doses[0].count", "found 0"]),
        (("start = 6", "strat = 6"), ["line 11", "doses[1].strat", "did you mean 'start'"]),
        (("every = 60", "every = 60\nhold = { oral = 1 }"), ["line 5", "doses[0].input", "held at 1"]),
    ],
)
def test_a_mistake_in_a_plan_is_told(write, change, words):
    path = write(PLAN.replace(*change), "plan.toml")
    with pytest.raises(JobError) as caught:
        read_plan(path, one_compartment.schema())
    assert str(caught.value).startswith(f"{path}: ")
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"until": 24, "every": 1, "doses": [dose_rule("iv=own@0")]}, ["'own'", "'Ana'", "'iv'"]),
        ({"until": 0, "every": 1}, ["until is 0", "after"]),
        ({"until": 24, "every": 1, "doses": [dose_rule("oral=1@-2")]}, ["'oral'", "-2", "'Ana'"]),
    ],
)
def test_a_plan_that_no_patient_can_follow_is_told(cohort, options, words):
    schema = one_compartment.schema()
    with pytest.raises(JobError) as caught:
        planned(plan_of(options, schema), cohort, schema)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "text", ["oral", "oral=", "=5@0", "oral=5@0,evry=2", "oral=x@0", "oral=5@0,count=two"]
)
def test_a_dose_that_is_not_of_the_form_is_told(text):
    with pytest.raises(JobError, match="--dose"):
        dose_rule(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (3, Measure(3.0)),
        ("3", Measure(3.0)),
        ("1e-3 mg/L", Measure(1e-3, "mg/L")),
        (".5h", Measure(0.5, "h")),
    ],
)
def test_a_number_may_have_a_unit(given, expected):
    assert measure(given) == expected


def test_amounts_are_doses_of_the_inputs_unit_times_time():
    assert measure("0.1 g").to("(mg/h).(h)") == pytest.approx(100)
