"""Calibration by shards in real processes; source of truth: one calibration of all patients in this one."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from sharded import JOB, PATIENTS, kill, lay_out, partition, wait_for, workers_of

from dtwin_jax import cli
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.diagnostics import CalibrationWarning
from dtwin_jax.jobs import crew
from dtwin_jax.jobs.agenda import Agenda
from dtwin_jax.jobs.crew import Outcome
from dtwin_jax.jobs.folder import RunFolder
from dtwin_jax.jobs.job import read_job
from dtwin_jax.jobs.opened import open_results
from dtwin_jax.jobs.piece import Piece, Workshop
from dtwin_jax.jobs.shards import plan_of_run, read_plan
from dtwin_jax.jobs.study import prepare

GROUPS = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive")
LONG = JOB.replace("draws = 20", "draws = 10_000_000").replace("block = 10", "block = 2000")


@pytest.fixture(autouse=True)
def environment_is_put_back(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The cohort calibrated at once, without shards."""
    study = prepare(read_job(lay_out(tmp_path_factory.mktemp("whole"))))
    with pytest.warns(CalibrationWarning):
        return calibrate(study.f, study.cohort, key=study.key, priors=study.priors, method=study.method)


def assert_same_draws(tree, whole):
    """The patients of a tree have the draws of the whole, bit by bit."""
    patients = list(tree["posterior"]["patient"].values)
    for group in GROUPS:
        one, other = tree[group].to_dataset(), whole[group].to_dataset().sel(patient=patients)
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name].values, other[name].values, f"{group}: {name}")


def start(folder, *options):
    environment = {**os.environ, "PYTHONHASHSEED": "0", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "dtwin_jax.cli", "calibrate", "job.toml", *options]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def blocks(folder):
    """Blocks of draws that are on disk."""
    return sorted((folder / "twin.shards" / "work").rglob("block-*.npz"))


@pytest.mark.parametrize(
    ("size", "patients"), [(1, PATIENTS[:3]), (3, PATIENTS), (7, PATIENTS[::-1])], ids=["1", "3", "reversed"]
)
def test_shards_do_not_change_draws(tmp_path, whole, size, patients):
    folder = RunFolder(tmp_path / "run")
    plan = plan_of_run(folder, read_job(lay_out(tmp_path, size=size, patients=patients)))
    workshop = Workshop(folder)
    for number, shard in enumerate(plan.shards):
        workshop.do(Piece(number, 0, len(shard.patients)), lambda: None)
    agenda = Agenda(folder, plan, range(len(plan.shards)), lambda line: None)
    while (piece := agenda.next()) is not None:
        agenda.settle(piece, Outcome("done"))
    agenda.close()
    tree = open_results(folder.path)
    assert sorted(tree["posterior"]["patient"].values) == sorted(patients)
    if patients[:3] == PATIENTS[:3]:
        assert plan.room.channels == {"level": 6}
    assert_same_draws(tree, whole)


def kill_a_worker(folder, killed):
    """Kill a worker of this process when it has written a block of draws."""
    wait_for(lambda: blocks(folder))
    killed.extend(workers_of(os.getpid())[:1])
    kill(killed[0])


def test_tasks_of_an_array_of_which_one_loses_its_worker_do_every_patient_once(tmp_path, whole, capfd):
    job = partition(tmp_path, [PATIENTS[:3], PATIENTS[3:]])
    killed: list[int] = []
    thread = threading.Thread(target=kill_a_worker, args=(tmp_path, killed))
    thread.start()
    first = cli.run(["calibrate", str(job), "--shard", "0/2", "--workers", "1"])
    thread.join()
    err = capfd.readouterr().err
    assert first == 0 and killed, err
    assert "its process was ended by signal 9; try 2 of 3" in err
    assert re.findall(r"^shard (\d): \d patients? in", err, re.MULTILINE) == ["0", "2"]
    assert cli.run(["calibrate", str(job), "--shard", "1/2", "--workers", "1"]) == 0
    assert re.findall(r"^shard (\d): \d patients? in", capfd.readouterr().err, re.MULTILINE) == ["1", "3"]
    tree = open_results(tmp_path / "twin.shards")
    assert list(tree["posterior"]["patient"].values) == list(PATIENTS)
    assert_same_draws(tree, whole)
    assert not blocks(tmp_path)

    assert cli.run(["calibrate", str(job), "--engine", "local"]) == 0
    err = capfd.readouterr().err
    assert "Skipped 4 that are finished" in err and not re.search(r"^shard", err, re.MULTILINE)
    assert cli.run(["status", str(tmp_path / "twin.shards")]) == 0
    out = capfd.readouterr().out
    assert "4 of 4 done, 0 under way" in out and "7 of 7 done, 0 failed" in out and "patients/s" in out


def test_patients_at_fault_are_named_and_the_others_are_there(tmp_path, whole, capfd):
    job = lay_out(tmp_path, size=3, model="fragile:model", patients=("P0", "P1", "P2", "P4"))
    assert cli.run(["calibrate", str(job), "--engine", "local", "--workers", "1"]) == 4
    err = capfd.readouterr().err
    assert "warning: patient P1: no result (ArithmeticError: an amount is negative)" in err
    assert "warning: patient P4: no result (its process was ended by signal 9)" in err
    tree = open_results(tmp_path / "twin.shards")
    assert list(tree["posterior"]["patient"].values) == ["P0", "P2"]
    assert set(json.loads(tree.attrs["lost"])) == {"P1", "P4"}
    assert_same_draws(tree, whole)
    assert cli.run(["status", str(tmp_path / "twin.shards")]) == 0
    out = capfd.readouterr().out
    assert "2 of 4 done, 2 failed" in out
    assert re.search(r"^P4 +1 +its process was ended by signal 9$", out, re.MULTILINE)


def test_a_run_that_is_told_to_end_or_killed_goes_on(tmp_path, capfd):
    lay_out(tmp_path, size=4, job=LONG)
    process = start(tmp_path, "--engine", "local", "--workers", "2")
    wait_for(lambda: len({path.parts[-4] for path in blocks(tmp_path)}) == 2, process)
    assert len(workers_of(process.pid)) == 2
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 75 and "Traceback" not in err
    assert "Told to end: all that is done is kept" in err.splitlines()[-1]
    before = {path: path.stat().st_mtime_ns for path in blocks(tmp_path)}
    assert not any(path.name.endswith(".tmp") for path in tmp_path.rglob("*"))
    assert cli.run(["status", str(tmp_path / "twin.shards")]) == 0
    out = capfd.readouterr().out
    assert "0 of 2 done, 2 under way" in out and re.search(
        r"^shard 1 +\d+ blocks? of draws", out, re.MULTILINE
    )

    process = start(tmp_path, "--engine", "local", "--workers", "1")
    wait_for(lambda: len(blocks(tmp_path)) > len(before) + 2, process)
    (worker,) = workers_of(process.pid)
    process.kill()
    process.communicate()
    # The orphan sees that nobody is left, and does not go on as a second one at the same work.
    wait_for(lambda: not os.path.exists(f"/proc/{worker}"))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(blocks(tmp_path)) > len(before) + 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--shard 3/3", ["3/3", "I from 0 to N - 1"]),
        ("--shard one", ["one", "0/8"]),
        ("--shard 0/2 --fresh", ["--fresh"]),
        ("--engine ray", ["ray", "local or dask"]),
        ("--engine local --scheduler tcp://a:1", ["--scheduler", "dask"]),
        ("--engine local --output .", ["found a folder with", "expected an empty one"]),
        ("--engine local --output job.toml", ["found a file"]),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, monkeypatch, capfd, options, words):
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["calibrate", "job.toml", *options.split()]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words), err
    assert not (tmp_path / "twin.shards").exists()


def test_fresh_forgets_what_is_there_and_nothing_else(tmp_path, capfd):
    job = lay_out(tmp_path, patients=PATIENTS[:2])
    folder = RunFolder(tmp_path / "twin.shards")
    plan_of_run(folder, read_job(job))
    (folder.path / "notes.txt").write_text("mine")
    folder.work(0).mkdir(parents=True)
    lay_out(tmp_path, patients=PATIENTS[:1])
    assert cli.run(["calibrate", str(job), "--engine", "local"]) == 2
    assert "another job, data" in capfd.readouterr().err
    assert (
        cli.run(["calibrate", str(job), "--engine", "dask", "--scheduler", "tcp://127.0.0.1:1", "--fresh"])
        == 2
    )
    assert read_plan(folder).patients == 1 and not folder.work(0).exists()
    assert (folder.path / "notes.txt").read_text() == "mine"


def test_help_has_examples_and_the_exit_codes(capfd):
    assert cli.run(["status", "--help"]) == 0
    assert cli.run(["calibrate", "--help"]) == 0
    out = capfd.readouterr().out
    for said in (
        "Example: dtwin status",
        "--shard $SLURM_ARRAY_TASK_ID/100",
        "75 told to end",
        "patients = 256",
    ):
        assert said in out


def test_processes_have_their_share_of_cores_or_a_gpu_each(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5, 6, 7})
    assert [post.cores for post in crew.posts(2)] == [(3, 5, 7), (4, 6)]
    assert [post.cores for post in crew.posts(None)] == [(3,), (4,), (5,), (6,), (7,)]
    assert [post.cores for post in crew.posts(7)][5:] == [(3,), (4,)]
    monkeypatch.setattr(crew, "find_spec", lambda name: name == "jax_cuda13_plugin")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    found = crew.posts(None)
    assert [post.environment["CUDA_VISIBLE_DEVICES"] for post in found] == ["2", "5"]
    assert all(post.cores == () and post.environment["PYTHONHASHSEED"] == "0" for post in found)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert len(crew.posts(None)) == 5
