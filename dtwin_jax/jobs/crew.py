"""The processes that work on a run, seen from the one that has them work."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from dtwin_jax.jobs.folder import RunFolder
from dtwin_jax.jobs.piece import Piece

# What must be set before Python and JAX start, for the draws to be the same in every process.
SETTINGS = (
    "PYTHONHASHSEED",
    "EQX_ON_ERROR",
    "JAX_ENABLE_X64",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
_FIXED = {"PYTHONHASHSEED": "0", "EQX_ON_ERROR": "nan", "JAX_ENABLE_X64": "1"}


@dataclass(frozen=True)
class Post:
    """Where a process works.

    Attributes:
        cores: that it keeps to; none is all.
        environment: of its own.
    """

    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a piece.

    Attributes:
        kind: `"done"`; `"failed"` with an error; `"died"` with its process; `"stopped"` half way.
        seconds: that it took.
        why: it failed.
    """

    kind: str
    seconds: float = 0.0
    why: str = ""


class Worker:
    """One process, started anew when it has died."""

    def __init__(self, folder: RunFolder, name: str, post: Post):
        self.folder, self.name, self.post = folder, name, post
        self.process: subprocess.Popen[str] | None = None

    def ask(self, piece: Piece) -> Outcome:
        """Have a piece done, and wait until it is."""
        process = self.process
        if process is None or process.poll() is not None:
            process = self.process = self._started()
        question = {"folder": str(self.folder.path), **vars(piece)}
        line = ""
        try:
            self._say(question)
            assert process.stdout is not None
            line = process.stdout.readline()
        except BrokenPipeError:
            pass  # it died before it was asked
        if not line:
            code = process.wait()
            self.close()
            return Outcome("died", why=_death(code))
        answer = json.loads(line)
        return Outcome(answer["outcome"], answer["seconds"], answer.get("why", ""))

    def end(self, *, at_once: bool = False) -> None:
        """Have it stop after the block of draws that it is at, or at once."""
        process = self.process
        if at_once and process is not None:
            process.kill()
        try:
            self._say({"end": True})
        except (OSError, ValueError):
            pass  # it has ended already, or its pipe is closed

    def close(self) -> None:
        """End it, when it has nothing to do."""
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.wait()
        process.stdout.close()

    def _say(self, what: dict[str, Any]) -> None:
        process = self.process  # another thread may let go of it
        if process is not None:
            assert process.stdin is not None
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()

    def _started(self) -> subprocess.Popen[str]:
        logs = self.folder.path / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        cores = ",".join(map(str, self.post.cores))
        with open(logs / f"{socket.gethostname()}-{self.name}.txt", "ab") as log:
            # A fresh interpreter: after a fork JAX hangs.
            return subprocess.Popen(
                [sys.executable, "-m", "dtwin_jax.jobs.worker", *([cores] if cores else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={**os.environ, **_FIXED, **self.post.environment},
            )


def settings() -> dict[str, str]:
    """What of this process's environment the processes that work must have."""
    return _FIXED | {name: os.environ[name] for name in SETTINGS if name in os.environ}


def posts(count: int | None) -> list[Post]:
    """Where `count` processes work: one a GPU, else each on its share of the cores.

    Args:
        count: None for one a GPU or core that this process may use.
    """
    own = settings()
    gpus = _gpus()
    if gpus:
        return [
            Post((), own | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}) for i in range(count or len(gpus))
        ]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = count or len(cores) or 1
    shares = [tuple(cores[i::count]) or (cores[i % len(cores)],) for i in range(count)] if cores else []
    return [Post(share, own) for share in shares] or [Post((), own)] * count


def _gpus() -> list[str]:
    """The GPUs that JAX could use, found without starting it: it would take their memory."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if (platforms and "cuda" not in platforms and "gpu" not in platforms) or not any(
        find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)
    ):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def _death(code: int) -> str:
    return f"its process was ended by signal {-code}" if code < 0 else f"its process ended with code {code}"
