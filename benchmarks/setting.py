"""What every benchmark does: settings of JAX, time of a call, and results written with their origin."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Equinox's runtime checks cost time in every solve, ours and an opponent's alike.
os.environ.setdefault("EQX_ON_ERROR", "nan")

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: by the clock, and of the processor over all threads."""

    wall: float
    cpu: float


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Timing]:
    """The result of a call, finished on the device, and its time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(function(*args, **kwargs))
    return result, Timing(time.perf_counter() - wall, time.process_time() - cpu)


def interleaved(candidates: dict[str, Callable[[], Any]], rounds: int, repeats: int = 1) -> dict[str, Any]:
    """Compile and run times of candidates called in turn, so that a busy machine slows all of them alike.

    Returns:
        Candidate -> seconds of the first call, medians over rounds of the seconds of a later call by the
        clock (`run_s`) and of the processor (`run_cpu_s`).
    """
    first = {name: timed(call)[1] for name, call in candidates.items()}
    later: dict[str, list[Timing]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            later[name].append(timed(lambda call=call: [call() for _ in range(repeats)])[1])
    return {
        name: {
            "first_call_s": first[name].wall,
            "run_s": float(np.median([t.wall for t in later[name]])) / repeats,
            "run_cpu_s": float(np.median([t.cpu for t in later[name]])) / repeats,
        }
        for name in candidates
    }


def against(figures: dict[str, dict[str, float]], opponent: str) -> dict[str, dict[str, float]]:
    """`figures` with `times_opponent`: how many times faster than the opponent each is, wall and CPU."""
    base = figures[opponent]
    return {
        name: one
        | {
            "times_opponent": base["run_s"] / one["run_s"],
            "times_opponent_cpu": base["run_cpu_s"] / one["run_cpu_s"],
        }
        for name, one in figures.items()
    }


def data_folder(path: Path) -> Path:
    """`path`, from the repository's root if relative; ends the program where there is none."""
    found = path if path.is_absolute() else FOLDER.parent / path
    if not found.is_dir():
        raise SystemExit(
            f"{found}: no such folder. The measurements are not part of this repository: name theirs, --data"
        )
    return found


def write(name: str, results: dict[str, Any]) -> Path:
    """Write `results` beside the script, with the command, device, precision, versions and date."""
    device = jax.devices()[0]
    origin = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{device.platform}: {device.device_kind}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
        "dtype": "float64" if jax.config.jax_enable_x64 else "float32",
        "versions": {name: version(name) for name in ("dtwin-jax", "jax", "numpyro", "diffrax", "equinox")},
    }
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(origin | results, indent=1) + "\n")
    return path
