"""The steps that commands share: calibrate with checkpoints, forecast, report, and the table of a result."""

import json
import math
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from dtwin_jax.cli.terminal import Interrupted, number, say, seconds, table, warn
from dtwin_jax.jobs.document import JobError

SHOWN = 24


def check_output(path: Path) -> None:
    """Refuse a place that cannot be written to, before any work.

    Raises:
        JobError: names it.
    """
    if path.is_dir():
        raise JobError(f"{path}: found a directory, expected the name of a file to write")
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(
            f"{folder}: cannot be made ({error.strerror}); expected a folder to write to"
        ) from None
    if not os.access(folder, os.W_OK):
        raise JobError(f"{folder}: cannot be written to; expected a folder of your own")


def partial_of(result: Path) -> Path:
    """The folder of checkpoints of a result."""
    return result.with_name(f"{result.name}.partial")


def partial_of_score(result: Path) -> Path:
    """The folder of checkpoints of the calibration without the last measurements."""
    return result.with_name(f"{result.name}.score.partial")


def calibrate_study(
    study: Any, cohort: Any, partial: Path, *, fresh: bool, again: str, mesh: Any = None
) -> Any:
    """The result of a study for a cohort; blocks of an interrupted run are used.

    Args:
        study: of `prepare`.
        cohort: the study's, or that without the last measurements.
        partial: folder of checkpoints, left for the caller to remove.
        fresh: start from nothing.
        again: the command that goes on with an interrupted run.
        mesh: the devices that share the patients.
    """
    from dtwin_jax.inference.calibrate import calibrate
    from dtwin_jax.inference.diagnostics import CalibrationWarning
    from dtwin_jax.inference.svi import Svi

    if fresh:
        shutil.rmtree(partial, ignore_errors=True)
    found = _blocks(partial)
    if found:
        say(f"Found {found} blocks of an interrupted run in {partial}.")
    _announce(study, cohort)
    try:
        with warnings.catch_warnings():
            # They are in the result too, and printed from there.
            warnings.simplefilter("ignore", CalibrationWarning)
            tree = calibrate(
                study.f,
                cohort,
                key=study.key,
                priors=study.priors,
                method=study.method,
                checkpoint=None if isinstance(study.method, Svi) else partial,
                mesh=mesh,
            )
        for name, unit in study.units.items():
            tree["constant_data"][name].attrs["units"] = unit
    except KeyboardInterrupt:
        kept = _blocks(partial)
        what = f"{kept} blocks are kept in {partial}" if kept else "no block was finished"
        raise Interrupted(f"interrupted; {what}; to go on: {again}") from None
    resumed = int(tree.attrs["resumed_blocks"])
    if resumed:
        say(f"Resumed after {resumed} blocks; the draws are those of an unbroken run.")
    elif found:
        say("The blocks were of another job, data or seed, so sampling started anew.")
    return tree


def _blocks(partial: Path) -> int:
    return len(list(partial.glob("*/block-*.npz")))


def _announce(study: Any, cohort: Any) -> None:
    import jax
    import numpy as np

    method = study.method
    count = sum(int(np.sum(series.mask)) for series in cohort.record.observations.values())
    kind = "a population" if hasattr(study.f, "varying") else "each alone"
    people = f"{len(cohort)} patients ({kind})" if len(cohort) > 1 else "1 patient"
    dtype = "float64" if jax.config.read("jax_enable_x64") else "float32"
    device = jax.devices()[0]
    say(f"Calibrating {study.f.name}: {people}, {count} measurements, on {device.platform} in {dtype}.")
    say(f"{method.title}: {method.described()}.")


def show_result(tree: Any) -> None:
    """The table of a result, its times and its warnings."""
    from dtwin_jax.inference.diagnostics import summary

    found = summary(tree, individual=tree.attrs["kind"] == "independent")
    units = {
        str(name): str(value.attrs.get("units", "")) for name, value in tree["posterior"].data_vars.items()
    }
    rows = []
    for name in found["variable"].values[:SHOWN]:
        row = found.sel(variable=name)
        unit = units.get(str(name).partition("[")[0], "")
        ess = float(min(row["ess_bulk"], row["ess_tail"]))
        numbers = (number(float(row[column])) for column in ("median", "q05", "q95"))
        diagnosed = (f"{float(row['r_hat']):.3f}", f"{ess:.0f}") if math.isfinite(ess) else ("", "")
        rows.append((str(name), "" if unit == "1" else unit, *numbers, *diagnosed))
    table(("parameter", "unit", "median", "5%", "95%", "R-hat", "ESS"), rows, words=2)
    left = found.sizes["variable"] - len(rows)
    if left > 0:
        print(f"and {left} more, in the file")
    compiling, wall = float(tree.attrs["compile_seconds"]), float(tree.attrs["wall_seconds"])
    say(
        f"Calibrated in {seconds(wall)}: {seconds(compiling)} compiling, {seconds(wall - compiling)} running."
    )
    for sentence in complaints_of(tree):
        warn(sentence)
    for sentence in json.loads(tree.attrs.get("notes") or "[]"):
        say(f"{sentence}.")


def complaints_of(tree: Any) -> list[str]:
    """The warnings that a calibration ended with."""
    return [str(sentence) for sentence in json.loads(tree.attrs.get("warnings") or "[]")]


def load_result(path: Path) -> tuple[Any, Any]:
    """A result and its predictor, which may stand in a module beside it or in the current folder."""
    from dtwin_jax.inference.result import load

    for folder in (str(path.parent.resolve()), os.getcwd()):
        if folder not in sys.path:
            sys.path.append(folder)  # at the end, so that nothing there can take another module's place
    return load(path)


def predictive_key(tree: Any, seed: int | None, use: int) -> Any:
    """The random key of predictions: of a seed, or of that of the calibration.

    Args:
        tree: result of a calibration.
        seed: None for that of the calibration.
        use: a number for each use.
    """
    import jax
    import jax.numpy as jnp

    if seed is not None:
        return jax.random.fold_in(jax.random.key(seed), use)
    bits = jnp.asarray(json.loads(tree.attrs["seed"]), jnp.uint32)
    return jax.random.fold_in(jax.random.wrap_key_data(bits), use)


def write_forecast(f: Any, tree: Any, plan: Any, path: Path, seed: int | None = None) -> Any:
    """Forecast under a plan and write it to `path`; the seed is by default that of the calibration."""
    from dtwin_jax.inference.result import save
    from dtwin_jax.twin.forecast import forecast

    made = forecast(f, tree, plan, key=predictive_key(tree, seed, 101))
    save(made, path)
    for patient in json.loads(made.attrs["failed"]):
        warn(f"patient {patient}: the plan could not be solved for some draws")
    return made


def score_study(study: Any, tree: Any, result: Path, *, fresh: bool, again: str, mesh: Any = None) -> Any:
    """The result with scores of the last measurements, as predicted by a calibration without them."""
    import xarray as xr

    from dtwin_jax.report.tables import score_table
    from dtwin_jax.twin.assess import score

    held_out = study.held_out
    say(f"Scoring: calibrating again, without the last {held_out.last} of each patient's measurements.")
    partial = partial_of_score(result)
    blind = calibrate_study(study, held_out.cohort, partial, fresh=fresh, again=again, mesh=mesh)
    for sentence in complaints_of(blind):
        warn(f"without the last measurements: {sentence}")
    scores = score(study.f, blind, held_out.record, key=predictive_key(blind, None, 103))
    scores.attrs["last"] = held_out.last
    shown = score_table(scores)
    if shown is not None:
        table(shown.head, shown.rows)
    tree["scores"] = xr.DataTree(scores)
    return tree


def note_units(predictor: Any, tree: Any) -> None:
    """Say beside what was given, or is to be, in which unit it is."""
    from dtwin_jax.io.names import amount_unit

    schema, given = predictor.schema(), tree["constant_data"]
    for name, quantity in schema.inputs.items():
        amount = amount_unit(quantity.unit, schema.time_unit)
        for part, unit in (("amount", amount), ("value", quantity.unit), ("constant", quantity.unit)):
            if f"{name}_{part}" in given:
                given[f"{name}_{part}"].attrs["units"] = unit


def write_page(
    f: Any, tree: Any, path: Path, *, planned: Any = None, title: str | None, seed: int | None = None
) -> None:
    """The report: fits over the observed period, the plan, scores, and a predictive check for populations."""
    import jax

    from dtwin_jax.inference.population import Population
    from dtwin_jax.report import write_report
    from dtwin_jax.twin.forecast import forecast, forecast_new, observed_period, observed_times

    key = predictive_key(tree, seed, 102)
    curves = forecast(f, tree, observed_period(f, tree), key=key)
    replicates = None
    if isinstance(f, Population):
        replicates = forecast_new(f, tree, observed_times(f, tree), key=jax.random.fold_in(key, 1))
    model = f.predictor if isinstance(f, Population) else f
    for made in (tree, planned):
        if made is not None:
            note_units(model, made)
    scores = tree["scores"].to_dataset() if "scores" in tree.children else None
    write_report(
        tree,
        path,
        curves=curves,
        forecast=planned,
        replicates=replicates,
        scores=scores,
        title=title,
        model=model,
    )


def run_job(job: Any, result: Path, *, fresh: bool, again: str, mesh: Any = None, writes: bool = True) -> Any:
    """All that a job asks for: result, scores, forecast, report. Returns the result's tree.

    Args:
        job: of `read_job`.
        result: file.
        fresh: start from nothing.
        again: the command that goes on with an interrupted run.
        mesh: the devices that share the patients.
        writes: False in a process that only helps another one, which writes.

    Raises:
        JobError, TableError: before any work.
    """
    from dtwin_jax.inference.result import save
    from dtwin_jax.jobs.study import prepare

    spec = job.spec
    forecast_file = _beside(result, spec.forecast, f"{result.stem}-forecast.nc")
    page = _beside(result, spec.report, f"{result.stem}.html")
    for path in (result, forecast_file, page):
        if path is not None:
            check_output(path)
    study = prepare(job)
    how: dict[str, Any] = {"fresh": fresh, "again": again, "mesh": mesh}
    tree = calibrate_study(study, study.cohort, partial_of(result), **how)
    if writes:
        save(tree, result)
        show_result(tree)
    if study.held_out is not None:
        tree = score_study(study, tree, result, **how)
    if not writes:
        return tree
    if study.held_out is not None:
        save(tree, result)
    # Only now, so that a run that is stopped while it scores finds its first calibration again.
    for partial in (partial_of(result), partial_of_score(result)):
        shutil.rmtree(partial, ignore_errors=True)
    say(f"Result:   {result}")
    planned = None
    began = time.perf_counter()
    if forecast_file is not None:
        planned = write_forecast(study.f, tree, study.plan, forecast_file)
        say(f"Forecast: {forecast_file}  ({seconds(time.perf_counter() - began)})")
    began = time.perf_counter()
    if page is not None:
        write_page(study.f, tree, page, planned=planned, title=spec.report.title)
        say(f"Report:   {page}  ({seconds(time.perf_counter() - began)})")
    return tree


def _beside(result: Path, section: Any, default: str) -> Path | None:
    """The file of a section, relative to the result's folder; None where there is no section."""
    return None if section is None else result.parent / (section.file or default)
