"""Which numerical method solves a model, and how closely."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace

import diffrax

from dtwin_jax.core.predictor import Mode


class Outcome(enum.IntEnum):
    """How a solve ended; one code a patient, so that a failure is that patient's alone."""

    SOLVED = 0
    MAX_STEPS = 1
    NOT_FINITE = 2


@dataclass(frozen=True)
class Solver:
    """A Diffrax method with its tolerances.

    For a stiff model: `Solver(diffrax.Kvaerno3, rtol=1e-9, atol=(...))`, `atol` the relative tolerance times
    the size of each state, gives six digits and more on the usual hard problems (`benchmarks/solvers.py`).
    One absolute tolerance for all is right only where states are of one size.

    Attributes:
        method: makes the Diffrax solver: `diffrax.Tsit5` (explicit), `diffrax.Kvaerno5` (implicit, stiff),
            `diffrax.ItoMilstein` or `diffrax.Euler` (SDE, Itô), `diffrax.Heun` (SDE in the sense of
            Stratonovich, or with noise that does not depend on the state; filters take Itô's).
        rtol: relative tolerance of the step size controller.
        atol: absolute tolerance, one number or one for each state in the order of the State's fields.
        max_steps: steps allowed between two events; more is reported as `Outcome.MAX_STEPS`.
        longest: longest step. A body at rest lets the step grow past what an explicit method bears of the
            fastest time constant: the rest stays right, its derivatives do not. Some three of these time
            constants are safe.
        dt: fixed step, needed for an SDE; for an ODE it replaces the adaptive controller.
        adjoint: a Diffrax adjoint. None lets the caller decide: reverse mode for `jax.grad`, forward mode
            inside `fit` and `calibrate`, where few parameters make it cheaper.
    """

    method: Callable[[], diffrax.AbstractSolver] = diffrax.Tsit5
    rtol: float = 1e-6
    atol: float | tuple[float, ...] = 1e-8
    max_steps: int = 4096
    longest: float | None = None
    dt: float | None = None
    adjoint: diffrax.AbstractAdjoint | None = None

    def differentiated(self, mode: Mode) -> "Solver":
        """This solver with the adjoint for `mode`, unless one was chosen."""
        if self.adjoint is not None:
            return self
        reverse = diffrax.RecursiveCheckpointAdjoint()
        return replace(self, adjoint=diffrax.ForwardMode() if mode == "forward" else reverse)

    def tightened(self, factor: float) -> "Solver":
        """This solver with tolerances (or a fixed step) `factor` times as large, and steps allowed for it."""
        given, steps = self.atol, int(self.max_steps / factor)
        atol = tuple(factor * each for each in given) if isinstance(given, tuple) else factor * given
        dt = None if self.dt is None else factor * self.dt
        return replace(self, rtol=factor * self.rtol, atol=atol, dt=dt, max_steps=steps)

    def arguments(self) -> dict:
        """Keyword arguments for `diffrax.diffeqsolve`."""
        return {
            "solver": self.method(),
            "dt0": self.dt,
            "max_steps": self.max_steps,
            "adjoint": self.adjoint or diffrax.RecursiveCheckpointAdjoint(),
            "throw": False,
        }
