"""The solver as a value: equal by content, prepared for a mode of derivatives unless one was chosen."""

from dataclasses import replace

import diffrax
import pytest

from dtwin_jax.dynamics.solver import Outcome, Solver


def test_solvers_are_equal_by_content():
    assert Solver() == Solver() and hash(Solver(rtol=1e-3)) == hash(Solver(rtol=1e-3))
    assert Solver() != Solver(diffrax.Kvaerno5)


@pytest.mark.parametrize(
    ("mode", "adjoint"),
    [("forward", diffrax.ForwardMode), ("reverse", diffrax.RecursiveCheckpointAdjoint)],
)
def test_adjoint_follows_the_mode_unless_one_was_chosen(mode, adjoint):
    assert isinstance(Solver().differentiated(mode).adjoint, adjoint)
    chosen = Solver(adjoint=diffrax.DirectAdjoint())
    assert chosen.differentiated(mode) is chosen


def test_a_tighter_one_has_smaller_tolerances_or_a_smaller_step():
    finer = Solver(rtol=1e-4, atol=(1e-6, 1e-2), max_steps=100).tightened(0.5)
    assert finer == Solver(rtol=5e-5, atol=(5e-7, 5e-3), max_steps=200)
    assert Solver(dt=0.2, atol=1e-3).tightened(0.5).dt == 0.1


def test_arguments_never_raise_inside_compiled_code():
    arguments = replace(Solver(), max_steps=7).arguments()
    assert arguments["throw"] is False and arguments["max_steps"] == 7
    assert isinstance(arguments["solver"], diffrax.Tsit5)


def test_outcomes_are_codes_that_can_be_stacked():
    assert [int(code) for code in Outcome] == [0, 1, 2] and Outcome.SOLVED == 0
