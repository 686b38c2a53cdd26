"""The commands, and how their mistakes are told."""

import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from dtwin_jax.cli import calibrating, following, looking, predicting, sharding
from dtwin_jax.cli.terminal import Interrupted, fail, say, warn

FINE, FAILED, BAD_INPUT, DOUBTFUL, INTERRUPTED = 0, 1, 2, 3, 130

_ABOUT = """Digital twins of patients: models, calibration to data, forecasts, reports.

\b
Start with       dtwin demo
then look at     dtwin models, dtwin calibrate --help

\b
Exit codes: 0 fine; 1 unexpected failure; 2 bad input, named on standard error;
3 convergence warnings, with --strict only; 4 done but for named patients (by shards);
75 told to end, and resumable (by shards); 130 interrupted.
DTWIN_DEBUG=1 shows tracebacks. Compiled programs are kept in JAX_COMPILATION_CACHE_DIR
(by default in ~/.cache/dtwin_jax). Computation is in float64 (JAX_ENABLE_X64=0 for float32).
"""

app = typer.Typer(
    name="dtwin",
    help=_ABOUT,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command, long_help in (
    (calibrating.demo, None),
    (calibrating.calibrate, calibrating.JOB_HELP),
    (sharding.status, None),
    (predicting.forecast, None),
    (following.follow, None),
    (predicting.simulate, None),
    (looking.models, None),
    (looking.report, None),
):
    app.command(command.__name__, help=long_help)(command)


def _show_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dtwin_jax {version('dtwin-jax')}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Nothing of its own: every command has its own options."""


# The class of all complaints about arguments has no public name.
_Usage: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def call(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; every failure is told on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an id may have letters that the terminal has not
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _code(app(list(arguments) or ["--help"], prog_name="dtwin", standalone_mode=False))
        except (Interrupted, KeyboardInterrupt) as interrupt:
            say()
            fail(str(interrupt) or "interrupted")
            return INTERRUPTED
        except (BrokenPipeError, typer.Abort):
            # Whoever read the output has gone.
            sys.stdout = open(os.devnull, "w")
            return FAILED
        except _Usage as error:
            where = getattr(error, "ctx", None)
            fail(f"{error.format_message()} See '{where.command_path if where else 'dtwin'} --help'.")
            return BAD_INPUT
        except Exception as error:
            return _tell(error)


def _code(returned: Any) -> int:
    if returned == INTERRUPTED:  # Typer has caught it
        fail("interrupted")
    return returned if isinstance(returned, int) else FINE


def _tell(error: Exception) -> int:
    if os.environ.get("DTWIN_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, _bad_inputs()):
        fail(str(error))
        return BAD_INPUT
    text = " ".join(str(error).split())
    fail(f"{type(error).__name__}: {text[:500]} (DTWIN_DEBUG=1 shows where)")
    return FAILED


def _bad_inputs() -> tuple[type[Exception], ...]:
    """Errors that are the caller's, of the modules that were loaded."""
    homes = {
        "dtwin_jax.jobs.document": "JobError",
        "dtwin_jax.io.rows": "TableError",
        "dtwin_jax.inference.result": "ResultError",
        "dtwin_jax.core.units": "UnitError",
    }
    return tuple(getattr(sys.modules[home], name) for home, name in homes.items() if home in sys.modules)


def _show_warning(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
    text = " ".join(str(message).split())
    warn(text if len(text) <= 200 else text[:197] + "...")
