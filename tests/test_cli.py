"""The command: what it prints, where it writes, how it refuses, how it goes on after a kill."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr

from dtwin_jax import cli
from dtwin_jax.inference import nuts
from dtwin_jax.inference.result import save
from dtwin_jax.models import CATALOGUE, SUBJECTS

TABLE = """\
patient,time,name,value,unit,duration
Zoë,0,oral,300,mg,0
Zoë,1,concentration,5.0,mg/L,
Zoë,8,concentration,2.0,mg/L,
患者,0,oral,200,mg,0
患者,2,concentration,4.0,mg/L,
患者,9,concentration,1.0,mg/L,
"""

JOB = """\
model = "one_compartment"
output = "twin.nc"
[data]
file = "table.csv"
[priors]
CL = { lognormal = { median = 3.0, log_sd = 0.3 } }
V = { lognormal = { median = 30.0, log_sd = 0.3 } }
ka = 1.5
sd = 0.5
cv = 0.0
[population]
vary = ["CL"]
[sampler]
chains = 2
warmup = 20
draws = 380
candidates = 2
max_depth = 4
block = 10
"""


def lay_out(folder, job=JOB):
    folder.mkdir(exist_ok=True)
    (folder / "table.csv").write_text(TABLE)
    (folder / "job.toml").write_text(job)
    return folder


@pytest.fixture(autouse=True)
def environment_is_put_back(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """A folder with a calibrated twin."""
    folder = lay_out(tmp_path_factory.mktemp("twin"))
    assert cli.run(["calibrate", str(folder / "job.toml")]) == 0
    return folder


def test_a_calibration_leaves_a_whole_result_and_nothing_else(twin):
    assert {path.name for path in twin.iterdir()} == {"job.toml", "table.csv", "twin.nc"}
    with xr.open_datatree(twin / "twin.nc") as tree:
        assert [str(who) for who in tree["posterior"]["patient"].values] == ["Zoë", "患者"]
        assert tree["posterior"].sizes["draw"] == 380


def test_a_calibration_says_what_it_did(tmp_path, capfd):
    folder = lay_out(tmp_path / "job")
    assert cli.run(["calibrate", str(folder / "job.toml"), "--output", str(tmp_path / "other.nc")]) == 0
    out, err = capfd.readouterr()
    assert "CL_pop" in out and "omega_CL" in out and "Traceback" not in err
    assert "float64" in err and "compiling" in err and str(tmp_path / "other.nc") in err
    assert "warning: CL_pop" in err  # so few draws are not enough
    assert not (folder / "twin.nc").exists()


def test_strict_turns_warnings_into_an_exit_code(tmp_path):
    folder = lay_out(tmp_path)
    assert cli.run(["calibrate", str(folder / "job.toml"), "--strict"]) == 3
    assert (folder / "twin.nc").exists()


def test_a_job_with_plan_and_report_writes_both(tmp_path):
    more = """
    [forecast]
    until = "24 h"
    every = "4 h"
    [[forecast.doses]]
    input = "oral"
    amount = "own"
    every = "12 h"
    count = 2
    [report]
    title = "Zoë & 患者"
    """
    folder = lay_out(tmp_path, JOB + more)
    assert cli.run(["calibrate", str(folder / "job.toml")]) == 0
    with xr.open_datatree(folder / "twin-forecast.nc") as tree:
        np.testing.assert_array_equal(tree["predictions"]["concentration_time"][0], np.arange(0, 25, 4.0))
        np.testing.assert_array_equal(tree["constant_data"]["oral_amount"], [[300, 300], [200, 200]])
    page = (folder / "twin.html").read_text(encoding="utf-8")
    assert "Zoë &amp; 患者" in page


def test_a_forecast_by_options_equals_that_of_a_plan_file(twin, tmp_path, capfd):
    plan = tmp_path / "plan.toml"
    plan.write_text('until = 24\nevery = "6 h"\n[[doses]]\ninput = "oral"\namount = "0.1 g"\n')
    result, a, b = str(twin / "twin.nc"), tmp_path / "a.nc", tmp_path / "b.nc"
    assert cli.run(["forecast", result, str(plan), "--output", str(a)]) == 0
    options = ["--until", "1d", "--every", "6", "--dose", "oral=100mg@0"]
    assert cli.run(["forecast", result, *options, "--output", str(b)]) == 0
    with xr.open_datatree(a) as first, xr.open_datatree(b) as second:
        xr.testing.assert_identical(first["predictions"].to_dataset(), second["predictions"].to_dataset())
    assert "Zoë" in capfd.readouterr().out


def test_a_forecast_of_the_command_equals_that_of_the_job(tmp_path):
    plan = "until = 24\nevery = 6\n"
    folder = lay_out(tmp_path, "seed = 7\n" + JOB + f"[forecast]\n{plan}")
    (folder / "plan.toml").write_text(plan)
    assert cli.run(["calibrate", str(folder / "job.toml")]) == 0
    made, options = {}, {"same": [], "named": ["--seed", "7"], "other": ["--seed", "8"]}
    for name, option in options.items():
        arguments = [folder / "twin.nc", folder / "plan.toml", "--output", folder / f"{name}.nc", *option]
        assert cli.run(["forecast", *map(str, arguments)]) == 0
    for name in ("twin-forecast", *options):
        with xr.open_datatree(folder / f"{name}.nc") as tree:
            made[name] = tree["predictions"]["concentration"].values
    np.testing.assert_array_equal(made["twin-forecast"], made["same"])
    np.testing.assert_array_equal(made["twin-forecast"], made["named"])
    assert not np.array_equal(made["same"], made["other"])


OWN_MODEL = """\
from dataclasses import replace
from dtwin_jax.models import one_compartment
def observe(t, x, u, p):
    return one_compartment.observe(t, x, u, p)
mine = replace(one_compartment, name="mine", observe=observe)
"""


@pytest.mark.parametrize("where", ["beside the result", "in the current folder"])
def test_a_model_of_ones_own_can_be_forecast(twin, tmp_path, where, monkeypatch):
    module = f"own_model_of_test_cli_{where.replace(' ', '_')}"
    (tmp_path / f"{module}.py").write_text(OWN_MODEL)
    folder = tmp_path if where == "beside the result" else tmp_path / "results"
    folder.mkdir(exist_ok=True)
    with xr.open_datatree(twin / "twin.nc") as tree:
        tree.load().attrs["predictor"] = f"{module}:mine"
        save(tree, folder / "twin.nc")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in {"", "."}])
    monkeypatch.chdir(tmp_path if where == "in the current folder" else twin)
    options = ["--until", "2", "--every", "1"]
    assert cli.run(["forecast", str(folder / "twin.nc"), *options]) == 0


def test_a_score_is_printed_kept_and_reported(tmp_path, capfd):
    lines = TABLE.replace("Zoë,8", "Zoë,4,concentration,3.5,mg/L,\nZoë,8")
    folder = lay_out(tmp_path, JOB + "[score]\nlast = 1\n[report]\n")
    (folder / "table.csv").write_text(lines)
    assert cli.run(["calibrate", str(folder / "job.toml")]) == 0
    out, err = capfd.readouterr()
    assert "CRPS" in out and "in 90% band" in out and "calibrating again" in err
    with xr.open_datatree(folder / "twin.nc") as tree:
        # The last of each of the two patients, and the calibration itself has seen all five.
        assert tree["scores"]["n"].values == [2.0] and np.isfinite(tree["scores"]["crps"]).all()
        assert tree["scores"].attrs["last"] == 1
        assert int(tree["observed_data"]["concentration_mask"].sum()) == 5
    page = (folder / "twin.html").read_text(encoding="utf-8")
    assert '<section id="scores">' in page
    assert {path.name for path in folder.iterdir()} == {"job.toml", "table.csv", "twin.nc", "twin.html"}


def test_a_score_that_was_stopped_goes_on_after_both_calibrations_blocks(tmp_path, capfd):
    folder = lay_out(tmp_path, JOB + "[score]\nlast = 1\n")
    arguments, run_block = ["calibrate", str(folder / "job.toml")], nuts.run_block

    def stopped_while_it_scores(*args):
        if len(list(folder.glob("twin.nc.score.partial/*/block-*.npz"))) >= 3:
            raise KeyboardInterrupt
        return run_block(*args)

    stopped_while_it_scores._cache_size = run_block._cache_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuts, "run_block", stopped_while_it_scores)
        assert cli.run(arguments) == 130
    assert "3 blocks are kept in" in capfd.readouterr().err
    assert (folder / "twin.nc").exists() and (folder / "twin.nc.partial").exists()
    assert cli.run(arguments) == 0
    assert capfd.readouterr().err.count("Resumed after") == 2
    assert {path.name for path in folder.iterdir()} == {"job.toml", "table.csv", "twin.nc"}


def test_a_report_says_the_unit_of_what_was_given(twin, tmp_path):
    page = tmp_path / "page.html"
    assert cli.run(["report", str(twin / "twin.nc"), "--output", str(page)]) == 0
    assert "oral: %{customdata:.4g} mg at" in page.read_text(encoding="utf-8")


def test_a_report_needs_only_the_result(twin, tmp_path):
    page = tmp_path / "page.html"
    assert cli.run(["report", str(twin / "twin.nc"), "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!")
    assert '<section id="model">' in text and "ka depot - (CL / V) central" in text and "<details>" in text


def columns(text):
    rows = list(csv.reader(text.splitlines()))
    return dict(zip(rows[0], np.asarray(rows[1:], float).T, strict=True))


def test_a_simulation_equals_the_closed_form(capfd):
    args = "simulate one_compartment --until 24h --every 2 --dose iv=100mg@0 --set CL=50mL/min --set V=10"
    assert cli.run(args.split()) == 0
    found = columns(capfd.readouterr().out)
    t = found["time (h)"][1:]
    np.testing.assert_allclose(found["concentration (mg/L)"][1:], 10 * np.exp(-3.0 / 10 * t), rtol=1e-9)
    np.testing.assert_allclose(found["central (mg)"][1:], 100 * np.exp(-3.0 / 10 * t), rtol=1e-9)


def test_paths_of_a_stochastic_model_are_those_of_the_seed(tmp_path):
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        args = f"simulate linear_health_sde --until 1 --every 0.5 --paths 3 --seed {seed}"
        assert cli.run([*args.split(), "--output", str(tmp_path / name)]) == 0
        made.append((tmp_path / name).read_text())
    assert made[0] == made[1] != made[2]
    assert list(columns(made[0])["path"]) == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_simulation_that_fails_writes_nothing(tmp_path, capfd):
    args = f"simulate minimal_model --until 100 --every 10 --max-steps 1 --output {tmp_path}/x.csv"
    assert cli.run(args.split()) == 1
    assert "--max-steps" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_models_are_listed_by_subject(capfd):
    assert cli.run(["models"]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    listed = [words[0] for words in lines if words and words[0] in CATALOGUE]
    assert listed == [model.name for models in SUBJECTS.values() for model in models]
    heads = [" ".join(words).lower() for words in lines]
    assert all(subject in heads for subject in SUBJECTS)


def test_a_model_is_described_with_its_equations(capfd):
    assert cli.run(["models", "topp"]) == 0
    out = capfd.readouterr().out
    assert "    I' = B sigma G^2 / (alpha + G^2) - k I" in out
    assert "Valid: Daily averages" in out and "Stiffness: Time constants" in out
    assert "Solver: Kvaerno5, relative tolerance 1e-7" in out and "Checked: Three courses" in out


def test_a_described_composite_has_one_title_and_the_prose_of_its_parts(capfd):
    assert cli.run(["models", "reflex_circulation"]) == 0
    out = capfd.readouterr().out
    assert out.count("reflex_circulation: Heart, vessels and the baroreflex") == 1
    assert "vessels (vessels): Two beds side by side" in out
    assert "The corners of `a` and of the valves are kinks" in out
    assert "Kind: Ordinary differential equations, time in s\n" in out


def test_a_described_model_is_json_for_scripts(capfd):
    assert cli.run(["models", "one_compartment", "--json"]) == 0
    described = json.loads(capfd.readouterr().out)
    clearance = described["parameters"][0]
    assert (clearance["name"], clearance["unit"], clearance["value"]) == ("CL", "L/h", 1.0)
    assert clearance["prior"] == {"lognormal": {"median": 1.0, "log_sd": 1.5}}
    assert {"valid", "stiffness", "solver", "checked", "wires"} <= set(described)
    assert "ka depot" in described["parts"][0]["equations"]


def test_a_card_is_one_page(tmp_path, capfd):
    page = tmp_path / "cards" / "card.html"
    assert cli.run(["models", "one_compartment", "--card", str(page)]) == 0
    out, err = capfd.readouterr()
    assert out == "" and page.as_uri() in err
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!") and '<section id="profiles">' in text
    assert [path.name for path in page.parent.iterdir()] == ["card.html"]


def test_a_card_needs_a_model_and_a_place(tmp_path, capfd):
    assert "--card" in refusal(["models", "--card", tmp_path / "card.html"], capfd)
    assert str(tmp_path) in refusal(["models", "one_compartment", "--card", tmp_path], capfd)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", ["demo", "calibrate", "forecast", "simulate", "follow", "models", "report"]
)
def test_help_has_an_example_and_the_exit_codes(command, capfd):
    assert cli.run([command, "--help"]) == 0
    out = capfd.readouterr().out
    assert f"Example: dtwin {command}" in out and "Exit codes:" in out


def test_the_demo_does_not_touch_a_job_that_was_changed(tmp_path, capfd):
    (tmp_path / "theoph.toml").write_text("model = 'mine'\n")
    assert cli.run(["demo", "--output", str(tmp_path)]) == 2
    assert "theoph.toml" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["theoph.toml"]


def refusal(arguments, capfd):
    """The one line on standard error of a command that must refuse."""
    capfd.readouterr()
    assert cli.run([str(argument) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[sampler]", "[sampler]\nattol = 1"), ["line 14", "sampler.attol", "unknown key"]),
        (("one_compartment", "one_compartmnt"), ["line 1", "'model'", "did you mean 'one_compartment'"]),
        (("vary = [", "vary = "), ["line 12", "not valid TOML"]),
        (("CL = {", "Cl = {"), ["line 6", "priors.Cl", "did you mean 'CL'"]),
        (("table.csv", "tables.csv"), ["line 4", "data.file", "tables.csv"]),
    ],
)
def test_a_bad_job_is_refused_in_one_line(tmp_path, capfd, change, words):
    folder = lay_out(tmp_path, JOB.replace(*change))
    err = refusal(["calibrate", folder / "job.toml"], capfd)
    assert str(folder / "job.toml") in err and all(word in err for word in words)
    assert not (folder / "twin.nc").exists() and not (folder / "twin.nc.partial").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("1.0,mg/L", "l.0,mg/L"), ["line 7", "'value'", "'患者'", "l.0"]),
        (("5.0,mg/L", "5.0,mg/Q"), ["line 3", "unit", "mg/Q"]),
        (("8,concentration", "8,concentratoin"), ["line 4", "concentratoin", "did you mean 'concentration'"]),
        (("time,name", "tme,name"), ["'time'", "'tme'"]),
        (("9,conc", "1,conc"), ["line 7", "'time'", "1 after 2"]),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path, capfd, change, words):
    folder = lay_out(tmp_path)
    (folder / "table.csv").write_text(TABLE.replace(*change))
    err = refusal(["calibrate", folder / "job.toml"], capfd)
    assert "table.csv" in err and all(word in err for word in words)
    assert sorted(path.name for path in folder.iterdir()) == ["job.toml", "table.csv"]


@pytest.mark.parametrize("command", ["forecast", "report"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99, None])
def test_a_result_that_is_cut_short_is_refused(twin, tmp_path, capfd, command, kept):
    broken = tmp_path / "broken.nc"
    if kept is not None:
        whole = (twin / "twin.nc").read_bytes()
        broken.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    options = ["--until", "1", "--every", "1"] if command == "forecast" else []
    err = refusal([command, broken, *options, "--output", tmp_path / "out"], capfd)
    assert "broken.nc" in err and "expected a result of dtwin calibrate" in err
    assert not (tmp_path / "out").exists()


def test_a_forecast_is_not_a_result(twin, tmp_path, capfd):
    made = tmp_path / "f.nc"
    options = ["--until", "2", "--every", "1"]
    assert cli.run(["forecast", str(twin / "twin.nc"), *options, "--output", str(made)]) == 0
    assert "f.nc" in refusal(["forecast", made, *options], capfd)
    err = refusal(
        ["report", twin / "twin.nc", "--forecast", twin / "twin.nc", "--output", tmp_path / "p"], capfd
    )
    assert "found no predictions" in err and not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nope", ["nope"]),
        ("calibrate", ["job", "dtwin calibrate --help"]),
        ("calibrate nowhere.toml", ["nowhere.toml", "no such file"]),
        ("models nope", ["no model 'nope'"]),
        ("simulate one_compartment --until 24", ["--every"]),
        ("simulate one_compartment --until 24 --every 0", ["--every", "found 0"]),
        (
            "simulate one_compartment --until 24 --every 1 --set cl=1",
            ["no parameter 'cl'", "did you mean 'CL'"],
        ),
        ("simulate one_compartment --until 24 --every 1 --set CL=1kg", ["--set 'CL=1kg'", "'kg'"]),
        ("simulate one_compartment --until 24 --every 1 --dose orl=1@0", ["--dose", "did you mean 'oral'"]),
        ("simulate one_compartment --until 24 --every 1 --dose oral=own", ["own"]),
        ("simulate one_compartment --until 24 --every 1 --dose iv=1@-5", ["--dose iv", "-5", "0 or later"]),
        (
            "simulate one_compartment --until 24 --every 1 --dose iv=1@0 --input iv=2",
            ["--dose", "'iv'", "held at 2"],
        ),
        ("simulate one_compartment --until 24 --every 1 --paths 2", ["--paths", "not stochastic"]),
        ("simulate one_compartment --until 24 --every 1 --rtol 0", ["--rtol", "above 0"]),
        ("simulate one_compartment --until -1 --every 1", ["--until"]),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, words, capfd):
    err = refusal(arguments.split(), capfd)
    assert all(word in err for word in words)


def start(arguments, folder, **options):
    environment = {**os.environ, "PYTHONHASHSEED": "0", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "dtwin_jax.cli", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def stop_after(process, block, how):
    until = time.monotonic() + 300
    while not block.exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.001)
    process.send_signal(how)


def test_a_run_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    folder, whole = lay_out(tmp_path / "stopped"), lay_out(tmp_path / "whole")
    earlier = b"an earlier result"
    (folder / "twin.nc").write_bytes(earlier)
    partial = folder / "twin.nc.partial"
    for how, expected, block in ((signal.SIGKILL, -signal.SIGKILL, 1), (signal.SIGINT, 130, 6)):
        process = start(["calibrate", "job.toml"], folder)
        stop_after(process, partial / "population" / f"block-{block:05d}.npz", how)
        code, _, err = finish(process)
        assert code == expected
        assert (folder / "twin.nc").read_bytes() == earlier
    last = err.strip().splitlines()[-1]
    assert (
        last.startswith("error: interrupted; ")
        and "twin.nc.partial; to go on: dtwin calibrate job.toml" in last
    )
    assert "Traceback" not in err
    code, _, err = finish(start(["calibrate", "job.toml"], folder))
    assert code == 0 and "Resumed after" in err and "Traceback" not in err
    assert not partial.exists()
    code, _, err = finish(start(["calibrate", "job.toml"], whole))
    assert code == 0 and "Resumed" not in err
    with xr.open_datatree(folder / "twin.nc") as a, xr.open_datatree(whole / "twin.nc") as b:
        for group in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive"):
            xr.testing.assert_equal(a[group].to_dataset(), b[group].to_dataset())


def interrupted_after(count, function):
    """`function`, until it is called once more often than that."""
    calls = iter(range(count))

    def called(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*args)

    called._cache_size = function._cache_size
    return called


def test_blocks_of_another_seed_are_not_used_and_fresh_forgets_all(tmp_path, capfd):
    folder = lay_out(tmp_path)
    arguments = ["calibrate", str(folder / "job.toml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuts, "run_block", interrupted_after(3, nuts.run_block))
        assert cli.run(arguments) == 130
    assert "interrupted; 3 blocks are kept" in capfd.readouterr().err
    kept = shutil.copytree(folder / "twin.nc.partial", tmp_path / "kept")
    (folder / "job.toml").write_text("seed = 1\n" + JOB)
    assert cli.run(arguments) == 0
    assert "sampling started anew" in capfd.readouterr().err
    shutil.copytree(kept, folder / "twin.nc.partial")
    (folder / "job.toml").write_text(JOB)
    assert cli.run([*arguments, "--fresh"]) == 0
    err = capfd.readouterr().err
    assert "Found" not in err and "Resumed" not in err and not (folder / "twin.nc.partial").exists()


def test_a_refusal_of_the_real_command_is_one_line(tmp_path):
    code, out, err = finish(start(["calibrate", "job.toml"], tmp_path))
    assert (code, out) == (2, "")
    assert err == "error: job.toml: no such file; expected a job file in TOML\n"


def test_help_and_version_do_not_load_jax():
    code = (
        "import sys, dtwin_jax.cli as c; c.run(['--help']); c.run(['--version']); print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert done.stdout.splitlines()[-2].startswith("dtwin_jax ")
