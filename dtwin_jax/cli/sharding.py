"""`dtwin calibrate --engine`, which calibrates a cohort by shards, and `dtwin status`."""

import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dtwin_jax.cli.terminal import Interrupted, say, seconds, table, warn

# Told to end, with everything on disk; finished, but without some patients.
STOPPED, LOST = 75, 4
_SHOWN = 20
_OWN = ("plan.json", "log.txt", "stop", "shards", "work", "locks", "logs")


def run_shards(
    job_file: Path, output: Path | None, *, where: tuple[str, int | None, str | None, str | None], fresh: bool
) -> tuple[int, int]:
    """Calibrate a cohort by shards; finished ones are skipped.

    Args:
        job_file: of the cohort.
        output: the run's folder; by default beside the job's result.
        where: engine, number of processes, scheduler of Dask, and `"i/n"` for every n-th shard from i on.
        fresh: forget what an earlier run has left.

    Returns:
        The exit code, and how many shards ended with convergence warnings.
    """
    import jax

    from dtwin_jax.jobs.agenda import Agenda, said_of
    from dtwin_jax.jobs.crew import posts
    from dtwin_jax.jobs.engine import told_to_end
    from dtwin_jax.jobs.folder import RunFolder
    from dtwin_jax.jobs.job import read_job
    from dtwin_jax.jobs.shards import check_job, plan_of_run

    engine, workers, scheduler, stripe = where
    step = _checked(engine, workers, scheduler, stripe, fresh)
    # The processes that work have the GPUs; this one must not take their memory.
    jax.config.update("jax_platforms", "cpu")
    job = read_job(job_file)
    check_job(job)
    folder = RunFolder(_folder(output or job.result.with_suffix(".shards"), fresh))
    plan = plan_of_run(folder, job)
    began = time.perf_counter()
    agenda = Agenda(folder, plan, range(len(plan.shards))[step], say)
    left = len(agenda.shards) - agenda.skipped
    places = posts(workers)[:left] if workers is None else posts(workers)
    _announce(agenda, job.predictor.name, scheduler or f"{len(places)} processes", engine)
    with told_to_end() as received:
        try:
            if left:
                _work(engine, agenda, scheduler, places, received)
        finally:
            agenda.close()
    say(
        f"{len(agenda.finished)} of {len(agenda.shards)} shards are done, in {folder.path}, "
        f"{seconds(time.perf_counter() - began)} in all."
    )
    return _code(agenda, received, f"dtwin calibrate {job_file}"), said_of(agenda.finished.values())


def _checked(
    engine: str, workers: int | None, scheduler: str | None, stripe: str | None, fresh: bool
) -> slice:
    """Which shards are meant.

    Raises:
        JobError: options that do not go together.
    """
    from dtwin_jax.jobs.document import JobError

    if engine not in {"local", "dask"}:
        raise JobError(f"--engine {engine}: expected local or dask; or hosts, for a population")
    if scheduler is not None and engine != "dask":
        raise JobError("--scheduler: expected --engine dask beside it")
    if stripe is None:
        return slice(None)
    found = re.fullmatch(r"(\d+)/(\d+)", stripe)
    if found is None or not int(found[1]) < int(found[2]):
        raise JobError(f"--shard {stripe}: expected I/N with I from 0 to N - 1, such as 0/8")
    if fresh:
        raise JobError(
            "--shard: found --fresh beside it, which would remove what the other tasks do; run "
            "the first task without --shard, or name another --output"
        )
    if engine == "dask":
        raise JobError(
            "--shard: found --engine dask beside it; expected local, for tasks without a scheduler"
        )
    return slice(int(found[1]), None, int(found[2]))


def _folder(path: Path, fresh: bool) -> Path:
    """The folder of a run, made if it is not there.

    Raises:
        JobError: something else is there.
    """
    from dtwin_jax.jobs.document import JobError

    if path.exists() and not path.is_dir():
        raise JobError(f"{path}: found a file, expected a folder for the results of shards")
    foreign = [one.name for one in path.iterdir() if one.name not in _OWN] if path.is_dir() else []
    if foreign and not (path / "plan.json").exists():
        raise JobError(f"{path}: found a folder with {foreign[0]!r} in it, expected an empty one or a run's")
    for name in _OWN if fresh else ():
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink(missing_ok=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"{path}: cannot be made ({error.strerror}); expected a folder to write to") from None
    return path.resolve()


def _announce(agenda: Any, model: str, hands: str, engine: str) -> None:
    patients = sum(len(agenda.plan.shards[i].patients) for i in agenda.shards)
    say(f"Calibrating {model}: {patients} patients, each alone, in {len(agenda.shards)} shards.")
    if agenda.skipped:
        say(f"Skipped {agenda.skipped} that are finished.")
    if agenda.skipped < len(agenda.shards):
        say(f"Engine {engine}: {hands}.")


def _work(engine: str, agenda: Any, scheduler: str | None, places: list, received: list[int]) -> None:
    if engine == "local":
        from dtwin_jax.jobs.engine import work_here

        work_here(agenda, places, received)
        return
    from dtwin_jax.jobs.cluster import client_of, work_on_dask

    with client_of(scheduler, places) as client:
        work_on_dask(agenda, client, places if scheduler is None else [], received)


def _code(agenda: Any, received: list[int], again: str) -> int:
    """The exit code, after what is to be said beside it."""
    done = len(agenda.finished) == len(agenda.shards)
    if received and not done:
        if received[0] == signal.SIGINT:
            raise Interrupted(
                f"interrupted; everything done is kept; to go on: {again} with the same options"
            )
        say("Told to end: all that is done is kept, and the same command goes on.")
        return STOPPED
    for patient, why in list(agenda.failed.items())[:_SHOWN]:
        warn(f"patient {patient}: no result ({why})")
    if len(agenda.failed) > _SHOWN:
        warn(f"and {len(agenda.failed) - _SHOWN} more patients without a result; see dtwin status")
    if agenda.busy:
        warn(f"{len(agenda.busy)} shards are worked on by another process, and were left to it")
        return 1
    return LOST if agenda.failed else 0


def status(
    folder: Annotated[Path, typer.Argument(help="Folder of `dtwin calibrate --engine`.")],
) -> None:
    """How far a calibration by shards is: shards, speed, expected end, patients who failed.

    It reads files only, so it may be asked on any machine that sees the folder, at any time.

    \b
    Example: dtwin status study.shards

    \b
    Exit codes: 0 fine; 1 unexpected failure; 2 not such a folder, or a damaged file in it.
    """
    from dtwin_jax.jobs.folder import RunFolder
    from dtwin_jax.jobs.status import plural, span, status_of

    found = status_of(RunFolder(folder))
    doubtful = sum('"' in one.attributes.get("warnings", "") for one in found.finished)
    going = found.under_way
    rows = [
        ("shards", f"{len(found.finished)} of {len(found.plan.shards)} done, {len(going)} under way"),
        ("patients", f"{found.patients} of {found.plan.patients} done, {len(found.failed)} failed"),
        ("speed", found.pace.said(found.left)),
        ("warnings", f"of convergence, in {plural(doubtful, 'shard')}"),
    ]
    rows += [
        (f"shard {one.shard}", f"{plural(one.blocks, 'block')} of draws, last written {span(one.age)} ago")
        for one in going
    ]
    table(("job", found.plan.file), rows, words=2)
    if found.failed:
        print()
        failed = [(who, str(shard), why) for who, (shard, why) in found.failed.items()]
        table(("failed patient", "shard", "why"), failed, words=3)
    sys.stdout.flush()
