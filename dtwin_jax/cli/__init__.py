"""The command `dtwin`."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from dtwin_jax.cli.environment import fix_order_of_sets, prepare


def main() -> NoReturn:
    """Run the command with the arguments of the process, and end it with the exit code."""
    fix_order_of_sets()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command with these arguments, and return its exit code."""
    prepare()
    try:
        from dtwin_jax.cli.app import call
    except ImportError as error:
        print(f"dtwin needs {error.name}: pip install 'dtwin-jax[cli]'", file=sys.stderr)
        return 1
    return call(arguments)
