"""A small cohort whose patients are calibrated by shards, for the tests of it."""

import os
import signal
import time
from pathlib import Path

import numpy as np

PATIENTS = tuple(f"P{i}" for i in range(7))

JOB = """\
model = "{model}"
output = "twin.nc"
[data]
file = "{table}"
[sampler]
chains = 2
warmup = 20
draws = 20
candidates = 2
max_depth = 3
block = 10
group = 2
[shards]
patients = {size}
"""

# Importing this module makes a worker fail for some patients, by an error or by a death of the process.
FRAGILE = """\
import os, signal, sys
from dtwin_jax.jobs import piece
from straight import line as model

sound = piece.calibrate

def calibrate(f, cohort, **settings):
    if "P1" in cohort.ids:
        raise ArithmeticError("an amount is\\nnegative")
    if "P4" in cohort.ids:
        os.kill(os.getpid(), signal.SIGKILL)
    return sound(f, cohort, **settings)

# Of a worker of pytest itself there is no spec.
if "jobs.worker" in getattr(sys.modules["__main__"].__spec__, "name", ""):
    piece.calibrate = calibrate
"""


def rows(patients=PATIENTS):
    """Header and rows of a table; the third patient has the most samples."""
    yield ("patient", "time", "name", "value", "unit")
    for name in patients:
        i = PATIENTS.index(name)
        noise = np.random.default_rng(i).normal(size=6)
        for j, hour in enumerate((1.0, 2.0, 4.0, 8.0, 12.0, 24.0)[: 6 if i == 2 else 3]):
            yield (name, hour, "level", round(1 + 0.1 * i + 0.5 * hour + 0.3 * noise[j], 4), "1")


def lay_out(folder, *, size=2, model="straight:line", patients=PATIENTS, job=JOB):
    """A folder with a job and its table; the path of the job."""
    folder.mkdir(parents=True, exist_ok=True)
    table = "\n".join(",".join(map(str, row)) for row in rows(patients))
    (folder / "table.csv").write_text(table + "\n")
    _write_modules(folder)
    (folder / "job.toml").write_text(job.format(model=model, table="table.csv", size=size))
    return folder / "job.toml"


def partition(folder, parts, *, size=2):
    """A job whose table is a folder of Parquet files with these patients; the path of the job."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "table").mkdir(parents=True)
    for i, patients in enumerate(parts):
        head, *body = rows(patients)
        columns = {name: [row[j] for row in body] for j, name in enumerate(head)}
        pq.write_table(pa.table(columns), folder / "table" / f"part-{i}.parquet")
    (folder / "table" / "_metadata.parquet").write_bytes(b"a writer's own")
    (folder / "job.toml").write_text(JOB.format(model="straight:line", table="table", size=size))
    _write_modules(folder)
    return folder / "job.toml"


def _write_modules(folder):
    # The workers do not see the folder of the tests.
    (folder / "straight.py").write_text((Path(__file__).parent / "straight.py").read_text())
    (folder / "fragile.py").write_text(FRAGILE)


def workers_of(parent):
    """Process ids of the workers that a process has."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes()
            stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if b"dtwin_jax.jobs.worker" in words and int(stat[1]) == parent and stat[0] != "Z":
            found.append(int(entry.name))
    return found


def kill(process, how=signal.SIGKILL):
    """Send a signal to a process that may have ended."""
    try:
        os.kill(process, how)
    except ProcessLookupError:
        pass


def wait_for(found, process=None, every=0.01):
    """What `found` returns, as soon as it returns something, while a process runs."""
    until = time.monotonic() + 300
    while not (what := found()):
        assert time.monotonic() < until
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(every)
    return what
