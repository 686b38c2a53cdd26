"""What every model of the catalogue costs: compilation, steps, and a gradient in solves.

    python benchmarks/catalogue.py [name ...]

Models named replace their figures in catalogue.json; the others keep theirs. One patient under the model's
`example`, default solver. `gradient_forward` and `gradient_reverse`: processor time of the gradient of the
summed outputs by all estimated parameters, over that of a solve.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from setting import FOLDER, timed, write

from dtwin_jax.core.quantity import assign, quantities, values
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models import CATALOGUE

ROUNDS = 5


def costs(model):
    """Figures of one model."""
    record, p = model.example(), model.params()
    series = next(iter(record.observations.values()))
    times, names = np.asarray(series.time), [n for n, q in quantities(p).items() if q.prior]
    start = jnp.stack([jnp.asarray(values(p)[n], float) for n in names])

    def total(mode):
        prepared = model if mode is None else model.differentiated(mode)

        def summed(vector):
            moved = assign(p, {n: vector[i] for i, n in enumerate(names)})
            found = simulate(prepared, moved, record.inputs, times, t0=record.t0)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(found.output)), found.steps

        return summed

    solve = jax.jit(total(None))
    forward = jax.jit(jax.jacfwd(total("forward"), has_aux=True))
    reverse = jax.jit(jax.grad(total("reverse"), has_aux=True))
    (_, steps), first = timed(solve, start)
    later = {}
    for name, call in (("solve", solve), ("forward", forward), ("reverse", reverse)):
        call(start)
        later[name] = min(timed(call, start)[1].cpu for _ in range(ROUNDS))
    return {
        "states": len(values(model.init(p))),
        "estimated": len(names),
        "compile_s": first.cpu - later["solve"],
        "steps": int(steps),
        "solve_ms": 1e3 * later["solve"],
        "gradient_forward": later["forward"] / later["solve"],
        "gradient_reverse": later["reverse"] / later["solve"],
    }


if __name__ == "__main__":
    chosen = sys.argv[1:] or [n for n, m in CATALOGUE.items() if m.example and m.diffusion is None]
    kept = FOLDER / "catalogue.json"
    figures = json.loads(kept.read_text())["models"] if kept.exists() else {}
    for name in chosen:
        figures[name] = costs(CATALOGUE[name])
        print(name, {key: round(value, 3) for key, value in figures[name].items()}, flush=True)
        write("catalogue", {"models": {n: figures[n] for n in CATALOGUE if n in figures}})
        jax.clear_caches()
