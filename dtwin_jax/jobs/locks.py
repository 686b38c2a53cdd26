"""Files that one process holds at a time; whoever dies lets go."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def lock(path: Path) -> int | None:
    """Hold a file until the process ends or the returned descriptor is closed; None if another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        # A file system without locks: files are whole anyhow, at worst a shard is worked on twice.
        pass
    return descriptor


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process after another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # as in `lock`
        yield
