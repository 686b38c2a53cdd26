"""How long this process has compiled."""

from typing import Any

import jax

# Between a traced function and a program: lowering, and the compiler itself.
_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")
_spent = [0.0]


def _note(event: str, duration_secs: float, **_: Any) -> None:
    if event in _EVENTS:
        _spent[0] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_note)


def compiling_seconds() -> float:
    """Seconds that this process has spent compiling so far, programs found in a cache hardly counting."""
    return _spent[0]
