"""Occasions of a patient: spells of time that each begin at a known time, and what is called after them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dtwin_jax.core.record import Record

# A time that no record reaches.
NEVER = 1e30


def in_occasions(name: str, count: int) -> tuple[str, ...]:
    """Names of a parameter's values in each occasion: `CL_1`, `CL_2`, ..."""
    return tuple(f"{name.replace('.', '_')}_{k}" for k in range(1, count + 1))


def beginnings(count: int) -> tuple[str, ...]:
    """Names of the facts that say when the second occasion begins, and those after it."""
    return tuple(f"occasion_{k}" for k in range(2, count + 1))


def occasions_in(known: Iterable[str]) -> int:
    """How many occasions a patient has at most, of whom facts of these names are known."""
    names, count = set(known), 1
    while beginnings(count + 1)[-1] in names:
        count += 1
    return count


def with_occasions(record: Record, starts: Sequence[float], count: int) -> Record:
    """`record`, with what is known of when its occasions begin.

    Args:
        record: of one patient.
        starts: when the second occasion begins, and those after it, in order; the first begins with the
            record.
        count: how many occasions patients have at most; those that this one lacks never begin.

    Raises:
        ValueError: more occasions than `count`, or none before the second.
    """
    times = [float(start) for start in starts]
    if len(times) > count - 1:
        raise ValueError(f"starts: {len(times) + 1} occasions begin, expected {count} at most")
    if any(late <= early for early, late in zip([float(record.t0), *times], times, strict=False)):
        raise ValueError(f"starts: found {times}, expected times after {float(record.t0)} that increase")
    times += [NEVER] * (count - 1 - len(times))
    return replace(record, known=dict(record.known) | dict(zip(beginnings(count), times, strict=True)))
