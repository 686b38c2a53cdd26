"""The Dask engine: the same work through a scheduler, on this machine or many that share a file system."""

import importlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dtwin_jax.jobs.agenda import Agenda
from dtwin_jax.jobs.crew import Outcome, Post, Worker, settings
from dtwin_jax.jobs.document import JobError
from dtwin_jax.jobs.folder import RunFolder
from dtwin_jax.jobs.piece import Piece

_GLANCE = "200ms"
# A thread of a Dask worker keeps its process, which keeps what it has compiled.
_own = threading.local()


@contextmanager
def client_of(scheduler: str | None, posts: Sequence[Post]) -> Iterator[Any]:
    """A client of a scheduler.

    Args:
        scheduler: its address; `"slurm"` for jobs as dask-jobqueue is configured; None for this machine.
        posts: on this machine one process each; of SLURM so many jobs.

    Raises:
        JobError: distributed or dask-jobqueue is not installed, or the scheduler does not answer.
    """
    distributed = _imported("distributed")
    if scheduler is None:
        with (
            distributed.LocalCluster(
                n_workers=len(posts), threads_per_worker=1, dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
    elif scheduler == "slurm":
        with _imported("dask_jobqueue").SLURMCluster() as cluster, distributed.Client(cluster) as client:
            cluster.scale(jobs=len(posts))
            yield client
    else:
        try:
            client = distributed.Client(scheduler, timeout=20)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise JobError(f"--scheduler {scheduler}: cannot be reached ({reason})") from None
        with client:
            yield client


def work_on_dask(agenda: Agenda, client: Any, posts: Sequence[Post], received: Sequence[int]) -> None:
    """Have everything done by the workers of a scheduler.

    Args:
        agenda: what is to be done.
        client: of `client_of`.
        posts: where the workers of this machine work, by their names 0, 1, ...; empty for other schedulers.
        received: signals to end, as they come.
    """
    agenda.folder.stop.unlink(missing_ok=True)
    places = [(list(post.cores), dict(post.environment)) for post in posts]
    own = settings()
    pieces: dict[Any, Piece] = {}
    while True:
        if received and not agenda.stopping:
            agenda.stop()
            agenda.folder.stop.touch()  # is seen after the next block of draws, on every machine
        while (piece := agenda.next(wait=False)) is not None:
            words = (str(agenda.folder.path), (piece.shard, piece.start, piece.stop), places, own)
            pieces[client.submit(do_remotely, *words, pure=False)] = piece
        if not pieces or len(received) > 1:
            break
        for future in _finished(list(pieces)):
            agenda.settle(pieces.pop(future), _outcome(future))
    agenda.folder.stop.unlink(missing_ok=True)


def do_remotely(
    folder: str, piece: Sequence[int], places: Sequence[Any], environment: Mapping[str, str]
) -> tuple[str, float, str]:
    """Do a piece in a process beside this Dask worker: kind, seconds and reason of its outcome."""
    distributed = _imported("distributed")
    if getattr(_own, "folder", None) != folder:
        if hasattr(_own, "worker"):
            _own.worker.close()
        name = distributed.get_worker().name
        mine = places[int(name) % len(places)] if places and str(name).isdigit() else ((), environment)
        safe = "".join(c if c.isalnum() else "-" for c in str(name))
        post = Post(tuple(mine[0]), mine[1])
        _own.worker, _own.folder = Worker(RunFolder(Path(folder)), f"dask-{safe}", post), folder
    outcome = _own.worker.ask(Piece(*piece))
    if outcome.kind == "stopped":
        _own.worker.close()
    return outcome.kind, outcome.seconds, outcome.why


def _finished(futures: list[Any]) -> list[Any]:
    """Those that have come to an end, after a short wait for one."""
    distributed = _imported("distributed")
    try:
        return list(distributed.wait(futures, timeout=_GLANCE, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []


def _outcome(future: Any) -> Outcome:
    distributed = _imported("distributed")
    try:
        return Outcome(*future.result())
    except distributed.scheduler.KilledWorker as error:
        return Outcome("died", why=f"the Dask worker {str(error).splitlines()[0]}")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise JobError(
            f"the engine 'dask' needs {name.replace('_', '-')}: pip install 'dtwin-jax[cluster]'"
        ) from None
