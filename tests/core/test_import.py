"""What importing the package does, and does not do."""

import subprocess
import sys
from pathlib import Path

import dtwin_jax

PACKAGE = Path(dtwin_jax.__file__).parent

SCRIPT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from jax._src import xla_bridge
assert xla_bridge._backends == {}, xla_bridge._backends
"""


def modules(folder):
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_importing_the_package_starts_no_backend():
    # `jax.distributed.initialize` fails once a backend is up.
    names = [name for name in modules(PACKAGE) if name != "dtwin_jax.cli"]
    assert "dtwin_jax.core.prior" in names
    done = subprocess.run([sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
