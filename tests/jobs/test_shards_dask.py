"""Calibration by shards through a Dask scheduler; source of truth: all shards done by this process."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from sharded import PATIENTS, kill, lay_out, wait_for, workers_of

from dtwin_jax import cli
from dtwin_jax.jobs.folder import RunFolder
from dtwin_jax.jobs.job import read_job
from dtwin_jax.jobs.opened import open_results
from dtwin_jax.jobs.piece import Piece, Workshop
from dtwin_jax.jobs.shards import plan_of_run

distributed = pytest.importorskip("distributed", reason="needs dtwin-jax[cluster]")


@pytest.fixture(autouse=True)
def environment_is_put_back(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())


def children(parent):
    """Process ids of a process's children, whichever of its threads has started them."""
    found = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_workers_of_a_scheduler_do_every_patient_once_though_one_is_killed(tmp_path, capfd):
    job = lay_out(tmp_path, size=2)
    other = RunFolder(tmp_path / "other")
    plan = plan_of_run(other, read_job(job))
    workshop = Workshop(other)
    for number, shard in enumerate(plan.shards):
        workshop.do(Piece(number, 0, len(shard.patients)), lambda: None)

    killed = []

    def murder():
        """Kill a Dask worker, or its process, when it has written a block of draws."""
        work = tmp_path / "twin.shards" / "work"
        wait_for(lambda: list(work.rglob("block-*.npz")))
        first, second = [child for child in children(os.getpid()) if workers_of(child)]
        killed.extend([first, *workers_of(second)])
        for process in killed:
            kill(process)

    thread = threading.Thread(target=murder)
    thread.start()
    code = cli.run(["calibrate", str(job), "--engine", "dask", "--workers", "2"])
    thread.join()
    err = capfd.readouterr().err
    assert code == 0 and killed, err
    assert "its process was ended by signal 9; try 2 of 3" in err
    tree = open_results(tmp_path / "twin.shards")
    assert list(tree["posterior"]["patient"].values) == list(PATIENTS)
    for number, shard in enumerate(plan.shards):
        with xr.open_datatree(Piece(number, 0, len(shard.patients)).file(other)) as own:
            theirs = tree.sel(patient=list(shard.patients))["posterior"]["slope"]
            np.testing.assert_array_equal(own["posterior"]["slope"], theirs)
