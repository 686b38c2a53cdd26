"""Settings of the process, made before JAX and Equinox are imported."""

import os
import sys
from pathlib import Path

SEED = "PYTHONHASHSEED"


def prepare() -> None:
    """Double precision, and compiled programs kept between runs; what the user has set stays."""
    # Equinox's runtime checks put callbacks into programs, and such programs are never kept.
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtwin_jax" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # nowhere to keep them: they are compiled each time
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def fix_order_of_sets() -> None:
    """Start this process anew with a fixed order of sets, unless it has one.

    NumPyro iterates over sets of names while a program is traced. In another order it is another program:
    not found among the kept ones, and not equal to the last digit, so a resumed run would differ.
    """
    if SEED in os.environ or os.name != "posix":
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, SEED: "0"})
