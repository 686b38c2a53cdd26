"""Calibration by shards in an array of jobs of a real SLURM; source of truth: the ids, and SLURM's word."""

import json
import os
import subprocess
import sys

import pytest
from one_node_slurm import missing, one_node_slurm
from sharded import PATIENTS, lay_out, wait_for

from dtwin_jax.jobs.opened import open_results

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "SLURM is here")

SCRIPT = """\
#!/bin/bash
#SBATCH --array=0-1
#SBATCH --cpus-per-task=1
#SBATCH --requeue
#SBATCH --output={folder}/task-%a.txt
#SBATCH --open-mode=append
exec {python} -m dtwin_jax.cli calibrate job.toml --shard $SLURM_ARRAY_TASK_ID/2 --workers 1
"""


def test_an_array_does_every_patient_once_though_a_task_is_requeued(tmp_path):
    lay_out(tmp_path, size=2)
    script = tmp_path / "array.sh"
    script.write_text(SCRIPT.format(folder=tmp_path, python=sys.executable))
    run = tmp_path / "twin.shards"
    with one_node_slurm(tmp_path / "slurm") as environment:
        environment |= {"PYTHONHASHSEED": "0"}

        def slurm(*command):
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
            )
            return done.stdout

        number = slurm("sbatch", "--parsable", str(script)).strip()
        wait_for(lambda: list((run / "work").rglob("block-*.npz")))
        # It gets SIGTERM, as before a preemption, and is started again.
        slurm("scontrol", "requeue", f"{number}_1")

        def states(job):
            return slurm("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").split()

        wait_for(lambda: states(f"{number}_1") == ["PENDING"], every=0.5)
        # SLURM itself would wait two minutes.
        slurm("scontrol", "update", f"jobid={number}_1", "StartTime=now")
        wait_for(lambda: set(states(number)) == {"COMPLETED"}, every=0.5)
    told = (tmp_path / "task-1.txt").read_text()
    assert "Told to end: all that is done is kept" in told
    manifests = [json.loads(path.read_text()) for path in sorted((run / "shards").glob("*.json"))]
    assert [one["patients"] for one in manifests] == [["P0", "P1"], ["P2", "P3"], ["P4", "P5"], ["P6"]]
    assert list(open_results(run)["posterior"]["patient"].values) == list(PATIENTS)
    log = (run / "log.txt").read_text()
    assert all(log.count(f"shard {shard}: ") == 1 for shard in range(4)), log
    assert os.path.exists(tmp_path / "task-0.txt")
