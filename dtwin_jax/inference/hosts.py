"""Several processes that calibrate together: they must run one program on one calibration, or would hang."""

import hashlib
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def join_hosts() -> None:
    """Join the processes that were started together, before JAX has computed anything.

    SLURM (`srun`) and Open MPI (`mpirun`) say who they are. Elsewhere three variables do:
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        ValueError: nothing says which processes there are, or a variable is not a whole number.
    """
    if jax.distributed.is_initialized():
        return
    # Without it CPUs of several processes have no sums; other devices have means of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    count, own = _whole("JAX_NUM_PROCESSES"), _whole("JAX_PROCESS_ID")
    try:
        # Whoever has nothing to write waits at the end for process 0.
        jax.distributed.initialize(num_processes=count, process_id=own, shutdown_timeout_seconds=3600)
    except ValueError as error:
        raise ValueError(
            f"nothing says which processes belong together ({error}); start them by srun or "
            "mpirun, or set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from None


def _whole(variable: str) -> int | None:
    found = os.environ.get(variable)
    if found is not None and not found.isdecimal():
        raise ValueError(f"{variable}: expected a whole number, found {found!r}")
    return None if found is None else int(found)


def agree(what: str, said: str, remedy: str) -> None:
    """Stop every process unless all say the same.

    Args:
        what: that which is to be equal, for the message.
        said: it, in words.
        remedy: what to look at where it differs.

    Raises:
        RuntimeError: in every process, with the numbers of those that differ from process 0.
    """
    digest = np.frombuffer(hashlib.sha256(said.encode()).digest(), np.uint8)
    every = np.asarray(multihost_utils.process_allgather(digest))
    others = [number for number, other in enumerate(every) if not np.array_equal(other, every[0])]
    if others:
        raise RuntimeError(
            f"{what} differs between process 0 and process {', '.join(map(str, others))} of {len(every)}; "
            f"together they would never end. {remedy}"
        )


def wait_for_all(where: str) -> None:
    """Go on when all processes have come to the point of this name."""
    multihost_utils.sync_global_devices(where)


def of_process_0(array: Any) -> Any:
    """`array` as process 0 has it, for numbers that machines may round differently."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(array)))[0]
