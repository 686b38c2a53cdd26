"""What a program is made of, in words that another process finds too: to know a calibration again by."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import jax
import numpy as np

_WHOLE = (type, ModuleType, np.ndarray, jax.Array)


def described(whole: Any) -> str:
    """`whole` and all that it is made of, with the files that its functions are written in."""
    parts = list(_parts(whole, set()))
    sources = dict(map(_source, parts))
    return " ".join([*map(placeless, parts), *(sources[name] for name in sorted(sources))])


def placeless(part: Any) -> str:
    """`repr` without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(part))


def _parts(whole: Any, seen: set[int]) -> Iterator[Any]:
    """`whole`, what its fields and items are, and what its functions were made with."""
    # Without its decorators: of a process that checks types all functions have some.
    whole = inspect.unwrap(whole) if isinstance(whole, FunctionType) else whole
    yield whole
    inner: Any = ()
    if isinstance(whole, Mapping):
        inner = whole.values()
    elif isinstance(whole, tuple | list):
        inner = whole
    elif hasattr(whole, "__dict__") and not isinstance(whole, _WHOLE) and id(whole) not in seen:
        seen.add(id(whole))
        inner = vars(whole).values()
        if isinstance(whole, FunctionType):
            inner = [*inner, whole.__defaults__, *map(_kept, whole.__closure__ or ())]
        elif hasattr(whole, "func"):  # `functools.partial`
            inner = [*inner, whole.func, whole.args, whole.keywords]
    for each in inner:
        yield from _parts(each, seen)


def _kept(cell: Any) -> Any:
    """What a function keeps of where it was made; nothing before it is there."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _source(part: Any) -> tuple[str, str]:
    """The name and the text of the file that a part is written in, or of itself where there is no file."""
    module: Any = sys.modules.get(str(getattr(part, "__module__", None)))
    for name, written in ((getattr(module, "__name__", ""), module), (placeless(part), part)):
        try:
            return name, inspect.getsource(written)
        except (OSError, TypeError):
            continue  # a module of a notebook, a built-in, or nothing written
    return "", ""
