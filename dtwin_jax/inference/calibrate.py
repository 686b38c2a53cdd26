"""Bayesian calibration: one patient, a cohort of independent patients, or a population."""

import hashlib
import json
import os
import time
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import check_cohort
from dtwin_jax.core.record import Cohort, Record, stack
from dtwin_jax.inference import nuts
from dtwin_jax.inference.density import Override
from dtwin_jax.inference.diagnostics import CalibrationWarning, complaints
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import Population, density_of
from dtwin_jax.inference.predictive import constrained, evaluate, prior_draws, theta_of
from dtwin_jax.inference.result import Posterior, assemble


def calibrate(
    f: Any,
    data: Record | Cohort,
    *,
    key: Any,
    priors: Mapping[str, Override] | None = None,
    method: Nuts = Nuts(),  # noqa: B008 (frozen)
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Any:
    """The posterior of parameters given data.

    Args:
        f: a predictor: every patient is calibrated alone; or a `Population` of it: all together.
        data: one record, or a cohort.
        key: random key. A patient's draws depend on the key and the patient's id, not on who else is there.
        priors: name -> `Prior`, a number (known to be that) or None (known), instead of the declared ones.
        method: settings of NUTS.
        checkpoint: a folder for blocks of draws. If it holds blocks of this very calibration (same model,
            data, settings and key), the run goes on after the last of them.
        progress: show a bar on standard error, when that is a terminal.

    Returns:
        An `xarray.DataTree` in ArviZ's schema: `posterior`, `sample_stats`, `log_likelihood`,
        `posterior_predictive`, `prior`, `observed_data`, `constant_data`.

    Raises:
        ValueError: data or priors that `f` cannot use.

    Warns:
        CalibrationWarning: R-hat, effective sample size, divergences or failing solves that a user must
            know of, with the parameter or patient named.
    """
    began = time.perf_counter()
    cohort = data if isinstance(data, Cohort) else stack({"1": data})
    predictor = f.predictor if isinstance(f, Population) else f
    check_cohort(predictor, cohort)
    _check_covariates(f, cohort)
    _check_precision()
    if isinstance(f, Population) and f.centred is None:
        f = replace(f, centred=f.correlation is None and _is_rich(f, cohort))
    density, base = density_of(f, priors or {}, tuple(cohort.record.known))
    run = Run(density, base, cohort, method, key, None if checkpoint is None else Path(checkpoint))
    draws = run.population(progress) if isinstance(f, Population) else run.patients(progress)
    posterior = _posterior(density, base, cohort, draws, key)
    attributes = {
        "wall_seconds": time.perf_counter() - began,
        "compile_seconds": run.compile_seconds,
        "chains": method.chains,
        "warmup": method.warmup,
        "draws": method.draws,
        "resumed_blocks": run.resumed,
        "seed": json.dumps(np.asarray(jax.random.key_data(key)).tolist()),
    }
    tree = assemble(f, density, base, cohort, posterior)
    tree.attrs |= attributes
    said = complaints(tree)
    tree.attrs["warnings"] = json.dumps(said, ensure_ascii=False)
    for sentence in said:
        warnings.warn(sentence, CalibrationWarning, stacklevel=2)
    return tree


def _check_covariates(f: Any, cohort: Cohort) -> None:
    for covariate in f.covariates if isinstance(f, Population) else ():
        if covariate.name not in cohort.record.known:
            have = sorted(cohort.record.known)
            raise ValueError(f"covariate {covariate.name!r} is not known of the patients; known are {have}")
        value = np.asarray(cohort.record.known[covariate.name])
        if covariate.power and not np.all(value > 0):
            patient = cohort.ids[int(np.argmax(value <= 0))]
            raise ValueError(
                f"patient {patient!r}: covariate {covariate.name!r} must be positive for a power"
            )


def _check_precision() -> None:
    if not jax.config.jax_enable_x64:
        warnings.warn(
            "calibrating in float32: gradients of a solve may be too rough for NUTS; call "
            "jax.config.update('jax_enable_x64', True) at the start of the program",
            CalibrationWarning,
            stacklevel=3,
        )


def _is_rich(f: Population, cohort: Cohort) -> bool:
    measured = sum(int(np.sum(series.mask)) for series in cohort.record.observations.values())
    return measured >= 2 * len(f.varying) * len(cohort)


@dataclass
class Run:
    """One calibration in progress: sampling in blocks, and what of it is on disk."""

    density: Any
    base: Any
    cohort: Cohort
    method: Nuts
    key: Any
    checkpoint: Path | None
    compile_seconds: float = 0.0
    resumed: int = 0

    def population(self, progress: bool) -> tuple[dict, dict]:
        """Draws and statistics, leading axes (chain, draw)."""
        keys = jax.random.split(self.key, self.method.chains)
        record = jax.tree.map(jnp.asarray, self.cohort.record)
        with _bar(self._blocks(), progress) as bar:
            return self._sample((self.base, record), keys, False, "population", bar)

    def patients(self, progress: bool) -> tuple[dict, dict]:
        """Draws and statistics, leading axes (chain, draw, patient)."""
        ids = self.cohort.ids
        size = min(self.method.group, len(ids))
        groups = [list(range(i, min(i + size, len(ids)))) for i in range(0, len(ids), size)]
        parts = []
        with _bar(self._blocks() * len(groups), progress) as bar:
            for number, members in enumerate(groups):
                # The last group is filled up, so that it needs no compilation of its own.
                filled = members + [members[-1]] * (size - len(members))
                record = jax.tree.map(jnp.asarray, self.cohort.take(filled).record)
                keys = jnp.stack([jax.random.fold_in(self.key, zlib.crc32(ids[i].encode())) for i in filled])
                keys = jax.vmap(lambda key: jax.random.split(key, self.method.chains))(keys)
                drawn = self._sample((self.base, record), keys, True, f"patients-{number:05d}", bar)
                parts.append(jax.tree.map(lambda leaf, n=len(members): leaf[:n], drawn))
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 2), joined)

    def _blocks(self) -> int:
        return -(-(self.method.warmup + self.method.draws) // self.method.block)

    def _sample(self, data: tuple, keys: Any, patients: bool, name: str, bar: Any) -> tuple[dict, dict]:
        folder = None if self.checkpoint is None else self.checkpoint / name
        store = _Store(folder, self._fingerprint(data, keys))
        state, blocks = store.restore(lambda: self._start(patients, data, keys))
        self.resumed += len(blocks)
        bar.update(len(blocks))
        while len(blocks) < self._blocks():
            state, drawn = self._timed(nuts.run_block, patients, data, state)
            blocks.append(jax.tree.map(np.asarray, drawn))
            store.save(len(blocks) - 1, state, blocks[-1])
            bar.update(1)
        axis = 2 if patients else 1
        keep = slice(self.method.warmup, self.method.warmup + self.method.draws)
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *blocks)
        return jax.tree.map(lambda leaf: leaf[(slice(None),) * axis + (keep,)], joined)

    def _start(self, patients: bool, data: tuple, keys: Any) -> Any:
        return self._timed(nuts.start, patients, data, keys)

    def _timed(self, function: Any, patients: bool, data: tuple, lanes: Any) -> Any:
        """Call a compiled function, and count as compilation the time of a call that had to compile."""
        known = function._cache_size()
        began = time.perf_counter()
        result = function(self.density, self.method, patients, data, lanes)
        if function._cache_size() > known:
            self.compile_seconds += time.perf_counter() - began
        return jax.block_until_ready(result)

    def _fingerprint(self, data: tuple, keys: Any) -> str:
        digest = hashlib.sha256(f"{self.density!r} {self.method!r} {jax.__version__}".encode())
        for leaf in jax.tree.leaves((data, jax.random.key_data(keys))):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()


class _Store:
    """Blocks of draws in a folder, each file whole or absent."""

    def __init__(self, folder: Path | None, fingerprint: str):
        self.folder, self.fingerprint = folder, fingerprint

    def restore(self, start: Any) -> tuple[Any, list]:
        """The state to go on from, and the blocks that precede it."""
        state, blocks = start(), []
        if self.folder is None or not self.folder.is_dir():
            return state, blocks
        structure = jax.tree.structure(state)
        while (path := self._path(len(blocks))).exists():
            with np.load(path) as saved:
                if str(saved["fingerprint"]) != self.fingerprint:
                    break
                state = jax.tree.unflatten(
                    structure, [jnp.asarray(saved[f"state{i}"]) for i in range(structure.num_leaves)]
                )
                z = {name[2:]: saved[name] for name in saved.files if name.startswith("z:")}
                stats = {name[2:]: saved[name] for name in saved.files if name.startswith("s:")}
                blocks.append((z, stats))
        return state, blocks

    def save(self, number: int, state: Any, block: tuple[dict, dict]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"state{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        arrays |= {f"z:{name}": leaf for name, leaf in block[0].items()}
        arrays |= {f"s:{name}": leaf for name, leaf in block[1].items()}
        temporary = self._path(number).with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.savez(file, fingerprint=np.asarray(self.fingerprint), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path(number))

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"block-{number:05d}.npz"


def _posterior(density: Any, base: Any, cohort: Cohort, draws: tuple[dict, dict], key: Any) -> Posterior:
    z, stats = draws
    record = jax.tree.map(jnp.asarray, cohort.record)
    values = {name: np.asarray(value) for name, value in constrained(density, base, record, z).items()}
    theta = theta_of(density, values, len(cohort))
    likelihood, expected, predictive = evaluate(density, base, record, theta, jax.random.fold_in(key, 1))
    prior = prior_draws(density, base, record, jax.random.split(jax.random.fold_in(key, 2), 1000))
    prior = {name: np.asarray(value) for name, value in prior.items() if value.ndim == 1}
    return Posterior(values, stats, likelihood, expected, predictive, prior)


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    # disable=None: no bar where standard error is not a terminal.
    return tqdm(total=total, desc="sampling", unit="block", disable=None if progress else True)
