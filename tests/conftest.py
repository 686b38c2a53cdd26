"""Settings that every test runs under, made before JAX and Equinox are imported."""

import gc
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# JAX and Equinox read these variables when they are imported. Plugins load before this file; none of
# those in use imports either, and one that does would make the settings below silently void.
early = sorted({"jax", "equinox"} & set(sys.modules))
if early:
    raise RuntimeError(f"{' and '.join(early)} imported before tests/conftest.py: a pytest plugin does it")

# Compilation is most of the time of the suite, so compiled programs are kept between runs. Equinox's
# runtime checks put callbacks into programs, and such programs are never kept: a failed check becomes
# NaN instead. Subprocesses and the workers of xdist inherit the variables.
os.environ.setdefault("EQX_ON_ERROR", "nan")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# So is byte code where Python was told to write none: without it each of them takes 5 s more to import. It
# has a folder of its own, so that none is found where tests look at what was written.
if sys.dont_write_bytecode:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(ROOT / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode = False

import hypothesis
import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The first example compiles, so no deadline; the same examples in every run.
hypothesis.settings.register_profile("dtwin", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("dtwin")


@pytest.fixture(scope="session")
def shared():
    """Path of a file of data outside the repository; skips the test where it is absent."""

    def find(name: str) -> Path:
        path = ROOT.parent / "shared" / name
        if not path.exists():
            pytest.skip(f"needs shared/{name} beside the repository")
        return path

    return find


def subject(nodeid):
    """What a test shares compiled functions with: its file, in the battery its model."""
    path, _, test = nodeid.partition("::")
    return f"{path} {test.partition('[')[2]}" if path.endswith("test_battery.py") else path


def pytest_xdist_make_scheduler(config, log):
    """One worker runs all tests of a subject."""
    from xdist.scheduler import LoadScopeScheduling

    class BySubject(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return subject(nodeid)

    return BySubject(config, log)


def pytest_runtest_teardown(item, nextitem):
    """Forget compiled programs between subjects, before they fill what one process may map.

    Every program maps memory of its own; Linux allows 65530 mappings, and XLA's compiler ends the process
    when it gets no more.
    """
    maps = Path("/proc/self/maps")
    done = nextitem is None or subject(item.nodeid) != subject(nextitem.nodeid)
    if done and maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
        gc.collect()
