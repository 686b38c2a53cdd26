"""One calibration in progress: sampling in blocks, and what of it is on disk."""

import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.files import replacing
from dtwin_jax.core.record import Cohort
from dtwin_jax.inference import nuts
from dtwin_jax.inference.devices import everywhere, spans_processes, spread
from dtwin_jax.inference.hosts import agree, of_process_0
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import best_centring
from dtwin_jax.inference.predictive import constrained

# Iterations of the pilot run that finds how much to centre the random effects.
PILOT = 300

# Called after every block that was sampled and is on disk; what it raises ends the calibration, which can be
# gone on with. This is how a process that is told to end leaves nothing half done.
after_block: ContextVar[Callable[[], None]] = ContextVar("after_block", default=lambda: None)


@dataclass
class Run:
    """One calibration in progress: sampling in blocks, and what of it is on disk."""

    density: Any
    base: Any
    cohort: Cohort
    method: Nuts
    key: Any
    checkpoint: Path | None
    mesh: Any = None
    resumed: int = 0

    def population(self, progress: bool) -> tuple[dict, dict, Any]:
        """Draws and statistics, leading axes (chain, draw), and the centring of the draws' coordinates."""
        key, key_pilot = jax.random.split(self.key)
        keys = jax.random.split(key, self.method.chains)
        record = jax.tree.map(jnp.asarray, self.cohort.record)
        population = self.density.population
        effects = len(population.varying)
        piloted = population.correlation is None and population.centred is None
        pilot = -(-min(PILOT, self.method.warmup) // self.method.block) if piloted else 0
        with progress_bar(self._blocks() + pilot, "sampling", "block", progress) as bar:
            # Of a plain number the type is weak, and the pilot run would share no program with the rest.
            value = 0.5 if piloted else float(bool(population.centred))
            centring = jnp.full(effects, value, dtype=float)
            if piloted:
                first = jax.random.split(key_pilot, self.method.chains)
                blocks = self._run_blocks((self.base, record, centring), first, False, ("pilot", pilot), bar)
                z, _ = self._joined(blocks, 1, slice(pilot * self.method.block // 2, None))
                values = constrained(self.density, self.base, record, z, centring)
                centring = best_centring(self.density, values)
                if self._together:
                    centring = jnp.asarray(of_process_0(centring))
            data = (self.base, record, centring)
            drawn = self._sample(data, keys, False, "population", bar)
        return (*drawn, centring)

    def patients(self, progress: bool) -> tuple[dict, dict, None]:
        """Draws and statistics, leading axes (chain, draw, patient); no centring."""
        ids = self.cohort.ids
        size = min(self.method.group, len(ids))
        groups = [list(range(i, min(i + size, len(ids)))) for i in range(0, len(ids), size)]
        parts = []
        with progress_bar(self._blocks() * len(groups), "sampling", "block", progress) as bar:
            for number, members in enumerate(groups):
                # The last group is filled up, so that it needs no compilation of its own.
                filled = members + [members[-1]] * (size - len(members))
                record = jax.tree.map(jnp.asarray, self.cohort.take(filled).record)
                keys = patient_keys(self.key, self.cohort.take(filled))
                keys = jax.vmap(lambda key: jax.random.split(key, self.method.chains))(keys)
                drawn = self._sample((self.base, record, None), keys, True, f"patients-{number:05d}", bar)
                kept = slice(len(members))
                parts.append(jax.tree.map(lambda leaf, kept=kept: leaf[kept], drawn))
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return (*jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 2), joined), None)

    def _blocks(self) -> int:
        return -(-(self.method.warmup + self.method.draws) // self.method.block)

    def _sample(self, data: tuple, keys: Any, patients: bool, name: str, bar: Any) -> tuple[dict, dict]:
        blocks = self._run_blocks(data, keys, patients, (name, self._blocks()), bar)
        keep = slice(self.method.warmup, self.method.warmup + self.method.draws)
        return self._joined(blocks, 2 if patients else 1, keep)

    def _joined(self, blocks: list, axis: int, keep: slice) -> tuple[dict, dict]:
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *blocks)
        return jax.tree.map(lambda leaf: leaf[(slice(None),) * axis + (keep,)], joined)

    def _run_blocks(self, data: tuple, keys: Any, patients: bool, stage: tuple[str, int], bar: Any) -> list:
        """The blocks of a stage (its name, how many): those on disk, then new ones."""
        name, count = stage
        folder = None if self.checkpoint is None else self.checkpoint / name
        fingerprint = self._fingerprint(data, keys)
        store = _Store(folder, fingerprint)
        saved, blocks = store.restore()
        if self._together:
            agree("the calibration", fingerprint, "Give all the same model, data, settings and key.")
            agree("what is in the checkpoint", str(len(blocks)), "Give all one folder that all can read.")
        self.resumed += len(blocks)
        bar.update(len(blocks))
        data, keys, saved = self._placed(data, keys, saved)
        if saved:
            # Only the shape of a state is wanted of `start` here, and that compiles nothing.
            begin = functools.partial(nuts.start, self.density, self.method, patients)
            state = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(begin, data, keys)), saved)
        else:
            self._agree_on_program(nuts.start, patients, data, keys)
            state = nuts.start(self.density, self.method, patients, data, keys)
        self._agree_on_program(nuts.run_block, patients, data, state)
        while len(blocks) < count:
            state, drawn = nuts.run_block(self.density, self.method, patients, data, state)
            blocks.append(jax.tree.map(np.asarray, drawn))
            if not self._together or jax.process_index() == 0:
                store.save(len(blocks) - 1, state, blocks[-1])
            bar.update(1)
            after_block.get()()
        return blocks[:count]

    def _placed(self, data: tuple, keys: Any, saved: list) -> tuple[tuple, Any, list]:
        """`data`, `keys` and a saved state where they are computed with."""
        if self.mesh is None:
            return data, keys, saved
        base, _, centring = data
        base, centring, keys, saved = everywhere((base, centring, keys, saved), self.mesh)
        return (base, spread(self.cohort, self.mesh), centring), keys, saved

    @property
    def _together(self) -> bool:
        """Whether several processes share the patients."""
        return self.mesh is not None and spans_processes(self.mesh)

    def _agree_on_program(self, function: Any, patients: bool, data: tuple, lanes: Any) -> None:
        """Stop, rather than hang, where processes have not compiled the same."""
        if self._together:
            lowered = function.lower(self.density, self.method, patients, data, lanes)
            agree("the compiled program", lowered.as_text(), "Set PYTHONHASHSEED=0 and use equal versions.")

    def _fingerprint(self, data: tuple, keys: Any) -> str:
        described = f"{_described(self.density)} {self.method!r} {jax.__version__}"
        digest = hashlib.sha256(described.encode())
        for leaf in jax.tree.leaves((data, jax.random.key_data(keys))):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()


def _described(density: Any) -> str:
    """`density` in words that another process finds too, with the files that its functions are written in."""
    modules = {getattr(part, "__module__", None) for part in vars(density.predictor).values()}
    sources = []
    for name in sorted(name for name in modules if name in sys.modules):
        try:
            sources.append(inspect.getsource(sys.modules[name]))
        except (OSError, TypeError):
            continue  # a notebook, or a built-in
    return " ".join([re.sub(r" at 0x[0-9a-f]+", "", repr(density)), *sources])


class _Store:
    """Blocks of draws in a folder, each file whole or absent."""

    def __init__(self, folder: Path | None, fingerprint: str):
        self.folder, self.fingerprint = folder, fingerprint

    def restore(self) -> tuple[list, list]:
        """The leaves of the state to go on from, and the blocks that precede it; both empty at the start."""
        leaves: list = []
        blocks: list = []
        if self.folder is None or not self.folder.is_dir():
            return leaves, blocks
        while (path := self._path(len(blocks))).exists():
            with np.load(path) as saved:
                if str(saved["fingerprint"]) != self.fingerprint:
                    break
                count = sum(name.startswith("state") for name in saved.files)
                leaves = [jnp.asarray(saved[f"state{i}"]) for i in range(count)]
                z = {name[2:]: saved[name] for name in saved.files if name.startswith("z:")}
                stats = {name[2:]: saved[name] for name in saved.files if name.startswith("s:")}
                blocks.append((z, stats))
        return leaves, blocks

    def save(self, number: int, state: Any, block: tuple[dict, dict]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"state{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        arrays |= {f"z:{name}": leaf for name, leaf in block[0].items()}
        arrays |= {f"s:{name}": leaf for name, leaf in block[1].items()}
        with replacing(self._path(number)) as draft, open(draft, "wb") as file:
            np.savez(file, allow_pickle=False, fingerprint=np.asarray(self.fingerprint), **arrays)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"block-{number:05d}.npz"


def patient_keys(key: Any, cohort: Cohort) -> Any:
    """A random key for each patient, by the id alone: (patient,)."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(cohort.numbers)


def progress_bar(total: int, what: str, unit: str, progress: bool) -> Any:
    """A bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    # disable=None: no bar where standard error is not a terminal.
    return tqdm(total=total, desc=what, unit=unit, disable=None if progress else True)
