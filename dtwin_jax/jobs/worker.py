"""A process that calibrates one piece after another: `python -m dtwin_jax.jobs.worker CORES`.

It is told on standard input and answers on standard output, a line of JSON each:

    {"folder": "/runs/study", "shard": 3, "start": 0, "stop": 256}     {"outcome": "done", "seconds": 41.2}
    {"end": true}                                                      {"outcome": "stopped"}

Told to end, or by SIGTERM, it finishes its block of draws. When whoever started it is gone it ends at once.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO


class Stopped(BaseException):
    """The process was told to end; what was done is on disk."""


def main(arguments: list[str]) -> None:
    """Answer until standard input ends."""
    # Libraries and models may print; the answers go where nothing else is written.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    # Ctrl-C reaches the whole group of processes; whoever started this one says what is to be done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _pin(arguments[0] if arguments else "")
    asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked, stopping), daemon=True).start()
    serve(asked, stopping, answers)


def serve(asked: Any, stopping: threading.Event, answers: TextIO) -> None:
    """Answer one question after another, for ever."""
    workshops: dict[str, Any] = {}
    while True:
        question = asked.get()
        began = time.perf_counter()
        answer = _do(question, stopping, workshops)
        answer["seconds"] = round(time.perf_counter() - began, 3)
        answers.write(json.dumps(answer, ensure_ascii=False) + "\n")


def _do(question: dict[str, Any], stopping: threading.Event, workshops: dict[str, Any]) -> dict[str, Any]:
    # Only now, when the process is pinned: XLA counts the cores when it starts.
    from dtwin_jax.jobs.folder import RunFolder
    from dtwin_jax.jobs.piece import Piece, Workshop

    folder = RunFolder(Path(question["folder"]))

    def between() -> None:
        if stopping.is_set() or folder.stop.exists():
            raise Stopped

    try:
        between()
        if question["folder"] not in workshops:
            workshops[question["folder"]] = Workshop(folder)
        piece = Piece(question["shard"], question["start"], question["stop"])
        workshops[question["folder"]].do(piece, between)
    except Stopped:
        return {"outcome": "stopped"}
    except Exception as error:
        # Whatever a model of the user's raises: the shard has failed, and others are to be done.
        traceback.print_exc()
        text = " ".join(str(error).split())
        return {"outcome": "failed", "why": f"{type(error).__name__}: {text[:300]}"}
    return {"outcome": "done"}


def _listen(asked: Any, stopping: threading.Event) -> None:
    for line in sys.stdin:
        question = json.loads(line)
        if "end" in question:
            stopping.set()
        else:
            asked.put(question)
    # Nobody is left to answer to. Blocks of draws are whole on disk, so nothing is lost by leaving at once.
    os._exit(0)


def _pin(cores: str) -> None:
    """Keep to these cores, `0,2`: threads of many processes on all cores hold each other up."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


if __name__ == "__main__":
    main(sys.argv[1:])
