"""`dtwin calibrate --hosts`: one of several processes that share the patients of a population."""

import os
import shutil
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from dtwin_jax.cli.steps import partial_of, partial_of_score, run_job
from dtwin_jax.jobs.document import JobError


def run_together(job_file: Path, output: Path | None, *, fresh: bool, by_shards: bool) -> Any:
    """Calibrate with the other processes; the first one says and writes all that there is. Returns the tree.

    Raises:
        JobError: nothing says which processes there are, or the job has no population.
    """
    if by_shards:
        raise JobError("--engine hosts has no shards; leave out --workers, --scheduler and --shard")
    first = _join()
    import jax

    from dtwin_jax.inference.hosts import wait_for_all
    from dtwin_jax.jobs.job import read_job

    job = read_job(job_file)
    if job.spec.population is None:
        raise JobError(
            f"{job.document.file}: --engine hosts is for a [population], found none; "
            "patients each alone are shared by --engine local or dask"
        )
    if job.spec.svi is not None:
        raise JobError(f"{job.document.file}: [svi] is of one process; leave it out, or --engine hosts")
    result = output or job.result
    if fresh and first:
        for partial in (partial_of(result), partial_of_score(result)):
            shutil.rmtree(partial, ignore_errors=True)
    wait_for_all("checkpoints")
    again = " ".join(
        ["dtwin calibrate", str(job_file), *([f"--output {output}"] if output else []), "--engine hosts"]
    )
    mesh = jax.make_mesh((jax.device_count(),), ("patient",))
    with ExitStack() as silenced:
        if not first:
            nowhere = silenced.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silenced.enter_context(redirect_stdout(nowhere))
            silenced.enter_context(redirect_stderr(nowhere))
        return run_job(job, result, fresh=False, again=again, mesh=mesh, writes=first)


def _join() -> bool:
    """Whether this is the first process, which writes."""
    import jax

    from dtwin_jax.inference.hosts import join_hosts

    try:
        join_hosts()
    except ValueError as error:
        raise JobError(f"--engine hosts: {error}") from None
    return jax.process_index() == 0
