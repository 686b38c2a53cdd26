"""The local engine: processes of this machine, each at one shard after another."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dtwin_jax.jobs.agenda import Agenda
from dtwin_jax.jobs.crew import Post, Worker

# How often a process that waits for others looks whether it was told to end, s.
GLANCE = 0.1


@contextmanager
def told_to_end() -> Iterator[list[int]]:
    """The signals to end (SIGTERM, Ctrl-C) that came meanwhile; they end nothing by themselves."""
    received: list[int] = []
    before: dict[Any, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, lambda came, _: received.append(came))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work_here(agenda: Agenda, posts: Sequence[Post], received: Sequence[int]) -> None:
    """Have everything done by processes at `posts`.

    Args:
        agenda: what is to be done.
        posts: one process each.
        received: signals to end, as they come. After the first, every process finishes its block of draws;
            after a second one they end at once.
    """
    workers = [Worker(agenda.folder, f"worker-{i}", post) for i, post in enumerate(posts)]
    threads = [threading.Thread(target=_work, args=(agenda, worker), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(GLANCE)
        if received:
            agenda.stop()
        for worker in workers if agenda.stopping else ():
            worker.end(at_once=len(received) > 1)


def _work(agenda: Agenda, worker: Worker) -> None:
    while (piece := agenda.next()) is not None:
        outcome = worker.ask(piece)
        if outcome.kind == "stopped":
            worker.close()  # told to end by somebody else, it would do nothing more
        agenda.settle(piece, outcome)
    worker.close()
