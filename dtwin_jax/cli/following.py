"""`dtwin follow`."""

import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from dtwin_jax.cli.terminal import Interrupted, say, warn

# Seconds between two looks at a directory; and without a line after which the lines of a pipe are taken.
_POLL, _PAUSE = 0.5, 0.1
# Lines and seconds after which they are taken without a pause.
_LINES, _SECONDS = 1000, 1.0
# Predictions of a horizon, without --every.
_POINTS = 12
_STATE = "twin.npz"


def follow(  # noqa: PLR0913, PLR0917 (each is an option of the command)
    result: Annotated[Path, typer.Argument(help="Result of `dtwin calibrate`.")],
    facts: Annotated[str, typer.Argument(help="Directory of new files, or - for JSON lines in a pipe.")],
    output: Annotated[Path | None, typer.Option(help="Folder; default: RESULT-live.")] = None,
    alarm: Annotated[
        list[str] | None, typer.Option(help="CHANNEL<LIMIT within TIME p>=PROBABILITY (repeatable).")
    ] = None,
    rules: Annotated[Path | None, typer.Option(help="Alarms in TOML.")] = None,
    horizon: Annotated[
        str | None, typer.Option(help="How far to predict, such as 30min; default: as far as the alarms.")
    ] = None,
    every: Annotated[
        str | None, typer.Option(help="Spacing of the predictions; default: a twelfth of the horizon.")
    ] = None,
    ahead: Annotated[
        str | None,
        typer.Option(
            help="How far after a patient's last fact another is believed; default: 30 d, or 366 d of a "
            "model that counts in days."
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=2, help="Of each twin, at most.")] = 200,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of all random numbers.")] = 0,
    once: Annotated[bool, typer.Option("--once", help="Take what is there, and stop.")] = False,
) -> None:
    """Follow patients: new facts in, updated forecasts and alarms out.

    Every file of the directory (.csv or .jsonl, in the order of names) is one batch, and so are lines of a
    pipe that come together. Files whose name begins with "." or ends in .tmp or .part are not looked at:
    write under such a name, then rename. Stop with Ctrl-C; the same command goes on, also after a kill.
    Facts that are known are passed over, so a directory may be read and a pipe be sent again.

    \b
    Example: dtwin follow ward.nc incoming --alarm "glucose<70 within 30min p>=0.3"
             tail -n +1 -f facts.jsonl | dtwin follow ward.nc - --horizon 12h

    \b
    A fact is a line of JSON, or a row of a table with such columns. Numbers are in the model's units, or a
    text with its unit. A value below a limit is "<0.5", or has "censor": -1.
      {"patient": "3", "time": 30.0, "channel": "concentration", "value": 2.6}
      {"patient": "3", "time": "24 h", "input": "oral", "amount": 320, "duration": 0}
    A dose that was taken is not changed by another of its time; a bolus (duration 0) and an infusion of one
    time are two doses. To undo a wrong fact, mend its line, remove twin.npz and start again: all is taken
    anew, and other patients come to the same twins.

    \b
    In the folder, each whole at any moment:
      twin.npz       the twins and all that was taken
      forecast.csv   patient, channel, time, mean and quantiles of what would be measured
      alarms.jsonl   beginnings and ends
      refused.jsonl  what was not taken: file, line, field, found, expected
      status.csv     time, facts, effective draws, renewals, updates that nothing explains, share of
                     draws whose forecast was not solved (alarms are of the others; "no forecast" over half)

    \b
    Alarms as a file:
      [[alarms]]
      channel = "glucose"
      below = 70              # or above
      within = "30 min"       # of the patient's last measurement
      probability = 0.3       # that a measurement would be beyond the limit at some predicted time

    \b
    Exit codes: 0 fine; 1 unexpected failure; 2 bad result, rules or arguments; 130 interrupted.
    """
    from dtwin_jax.cli.steps import check_output, load_result
    from dtwin_jax.jobs.ward import ward_of

    folder = output or result.with_name(f"{result.stem}-live")
    _check_source(facts, folder, once)
    f, tree = load_result(result)
    ward = ward_of(f, tree, draws=draws, seed=seed)
    if ahead:
        ward = replace(ward, ahead=_time("--ahead", ahead, ward.model.schema().time_unit))
    plan = _plan(ward, rules, alarm or [], horizon, every)
    check_output(folder / _STATE)
    with _alone(folder):
        state = _start(folder, ward, plan)
        subjects = ward.subjects()
        batches = _from_pipe(subjects) if facts == "-" else _from_folder(Path(facts), subjects, once)
        _run(folder, ward, plan, state, batches)


def _check_source(facts: str, folder: Path, once: bool) -> None:
    from dtwin_jax.jobs.document import JobError

    if facts == "-":
        if once:
            raise JobError(
                "--once: found with a pipe, expected with a directory: a pipe has an end of its own"
            )
        return
    if not Path(facts).is_dir():
        raise JobError(f"{facts}: found no directory, expected one, or - for a pipe")
    if folder.resolve() == Path(facts).resolve():
        raise JobError(f"{facts}: is the output folder too; pass another --output")


def _plan(ward: Any, rules: Path | None, texts: list[str], horizon: str | None, every: str | None) -> Any:
    import numpy as np

    from dtwin_jax.jobs.alarms import alarm_of, read_rules
    from dtwin_jax.jobs.document import JobError
    from dtwin_jax.jobs.outlook import Plan
    from dtwin_jax.jobs.plan import MOST_POINTS

    schema = ward.model.schema()
    alarms = [*(read_rules(rules, schema) if rules else ()), *(alarm_of(text, schema) for text in texts)]
    furthest = max((alarm.within for alarm in alarms), default=None)
    end = _time("--horizon", horizon, schema.time_unit) if horizon else furthest
    if end is None:
        raise JobError("--horizon: found none, expected how far to predict, such as 30min, or an alarm")
    if furthest is not None and furthest > end * (1 + 1e-12):
        raise JobError(f"--horizon: found {end:g}, expected as far as the alarms: {furthest:g}")
    step = _time("--every", every, schema.time_unit) if every else end / _POINTS
    if step > min([end, *(alarm.within for alarm in alarms)]) * (1 + 1e-12) or end / step > MOST_POINTS:
        raise JobError(f"--every: found {step:g}, expected a spacing that fits the horizon and every alarm")
    count = int(np.floor(end / step * (1 + 1e-12)))
    return Plan(step * np.arange(1, count + 1), tuple({alarm.name: alarm for alarm in alarms}.values()))


def _time(option: str, text: str, unit: str) -> float:
    from dtwin_jax.jobs.document import JobError
    from dtwin_jax.jobs.values import measure

    try:
        found = measure(text).to(unit)
    except ValueError as error:
        raise JobError(f"{option}: {error}") from None
    if not found > 0:
        raise JobError(f"{option}: found {text!r}, expected a time above 0")
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: two streams in one would undo each other's steps."""
    from dtwin_jax.jobs.document import JobError

    try:
        import fcntl
    except ImportError:  # not on this system: nobody holds it
        yield
        return
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JobError(f"{folder}: another dtwin follow writes there; pass another --output") from None
        for draft in folder.glob(".*.tmp"):  # of a stream that was killed
            draft.unlink(missing_ok=True)
        yield


class _Now(NamedTuple):
    """Where a stream is, and the forecasts from there."""

    state: Any
    outlook: Any


def _start(folder: Path, ward: Any, plan: Any) -> _Now:
    """The state that was kept, or a new one, with what it tells."""
    from dtwin_jax.jobs.kept import keep, kept
    from dtwin_jax.jobs.outlook import alarmed, is_due, outlook_of, write
    from dtwin_jax.jobs.ward import begun

    path = folder / _STATE
    if path.exists():
        state = kept(path, ward)
        say(f"Going on after step {state.step}, with {len(state.taken)} facts in {path}.")
    else:
        state = begun(ward)
    outlook = outlook_of(ward, state, plan)
    # In the middle of a batch alarms wait for its end, as they would have without the stop.
    if state.told == (-1, -1) or not is_due(state):
        state = alarmed(ward, state, plan, outlook)
        keep(path, ward, state)
    write(folder, ward, state, plan, outlook)
    say(f"Following {len(ward.ids)} patients of {ward.model.name}: {folder}")
    return _Now(state, outlook)


class _Batch(NamedTuple):
    """Facts that came together."""

    name: str
    facts: list[Any]
    refusals: list[Any]


def _run(folder: Path, ward: Any, plan: Any, now: _Now, batches: Iterator[_Batch | None]) -> None:
    step = now.state.step
    try:
        for batch in batches:
            rests = batch is None
            now = _rested(folder, ward, plan, now) if rests else _taken(folder, ward, plan, now, batch)
            step = now.state.step
        _rested(folder, ward, plan, now)
    except KeyboardInterrupt:
        what = f"interrupted in or after step {step}; the twins are whole in {folder / _STATE}"
        raise Interrupted(f"{what}; to go on: the same command") from None


def _taken(folder: Path, ward: Any, plan: Any, now: _Now, batch: _Batch) -> _Now:
    """The stream after a batch, on disk after every step of it."""
    from dtwin_jax.jobs.kept import keep
    from dtwin_jax.jobs.outlook import alarmed, is_due, outlook_of, write
    from dtwin_jax.jobs.stream import brings_the_last, taken_in

    began = time.perf_counter()
    before, path = now.state, folder / _STATE
    state, outlook = before, now.outlook
    for state in taken_in(ward, before, batch.facts, batch.refusals):
        if state is not before:
            keep(path, ward, state)
    known = set(map(id, before.refused))
    refused = [one for one in state.refused if id(one) not in known]
    new = state.taken[len(before.taken) :]
    # After a stop, batches known already pass by: alarms are looked at where the one that was open ends.
    moved = state.step > before.step or len(new) > 0
    if is_due(state) and (moved or brings_the_last(ward, state, batch.facts)):
        outlook = outlook_of(ward, state, plan, outlook, set(new["patient"].tolist()))
        state = alarmed(ward, state, plan, outlook)
        keep(path, ward, state)
    if state is not before:
        write(folder, ward, state, plan, outlook)
    _tell(before, state, batch.name, refused, len(new), time.perf_counter() - began)
    return _Now(state, outlook)


def _rested(folder: Path, ward: Any, plan: Any, now: _Now) -> _Now:
    """The stream where nothing is new: alarms wait no longer for a batch which does not come again."""
    from dtwin_jax.jobs.kept import keep
    from dtwin_jax.jobs.outlook import alarmed, is_due, write

    if not is_due(now.state):
        return now
    state = alarmed(ward, now.state, plan, now.outlook)
    keep(folder / _STATE, ward, state)
    write(folder, ward, state, plan, now.outlook)
    _tell_events(now.state, state)
    return _Now(state, now.outlook)


def _tell(before: Any, state: Any, name: str, refused: list[Any], taken: int, wall: float) -> None:
    from dtwin_jax.jobs.facts import Refusal

    for one in refused:
        warn(f"refused: {Refusal(**one)}")
    _tell_events(before, state)
    counts = f"taken {taken}, refused {len(refused)}, alarms {len(state.standing)}"
    print(f"{name}: {counts}, {wall:.2f} s", flush=True)


def _tell_events(before: Any, state: Any) -> None:
    for event in state.events[len(before.events) :]:
        chance = "" if event["probability"] is None else f", probability {event['probability']:.2g}"
        say(f"{event['patient']}: {event['rule']} {event['alarm']}{chance}")


def _from_folder(folder: Path, subjects: Any, once: bool) -> Iterator[_Batch | None]:
    """The files of a directory by name, those that are new or have changed; None where there is none."""
    from dtwin_jax.jobs.document import JobError
    from dtwin_jax.jobs.facts import read_facts

    seen: dict[str, tuple[int, int]] = {}
    while True:
        try:
            marks = _marks(folder)
        except OSError as error:
            raise JobError(f"{folder}: cannot be read ({error.strerror})") from None
        new = sorted(name for name, mark in marks.items() if seen.get(name) != mark)
        for name in new:
            seen[name] = marks[name]
            yield _Batch(name, *read_facts(folder / name, subjects))
        if once and not new:
            return
        if not new:
            yield None
            time.sleep(_POLL)


def _marks(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> time of change and size of the files that are whole."""
    found = {}
    for name in os.listdir(folder):
        if name.startswith(".") or name.endswith((".tmp", ".part")):
            continue
        try:
            about = os.stat(folder / name)
        except FileNotFoundError:
            continue  # taken away in between
        if stat.S_ISREG(about.st_mode):
            found[name] = (about.st_mtime_ns, about.st_size)
    return found


def _from_pipe(subjects: Any) -> Iterator[_Batch | None]:
    """The lines of standard input, those together that come together; None where none has come."""
    from dtwin_jax.jobs.facts import facts_of_lines

    first = 1
    for lines in _lines_together(_chunks(sys.stdin.fileno())):
        yield _Batch("pipe", *facts_of_lines(lines, subjects, "pipe", first)) if lines else None
        first += len(lines)


def _chunks(descriptor: int) -> "queue.Queue[bytes]":
    """What is read, as it comes; nothing is its end."""
    found: queue.Queue[bytes] = queue.Queue(maxsize=64)

    def read() -> None:
        while True:
            chunk = os.read(descriptor, 1 << 16)
            found.put(chunk)
            if not chunk:
                return

    threading.Thread(target=read, daemon=True).start()
    return found


def _lines_together(chunks: "queue.Queue[bytes]") -> Iterator[list[bytes]]:
    """Lines that came together; none where none has come for a while."""
    lines: list[bytes] = []
    rest, since, ended = b"", 0.0, False
    while not ended:
        try:
            chunk = chunks.get(timeout=_PAUSE if lines else _POLL)
        except queue.Empty:
            chunk = None
        else:
            since = since if lines else time.monotonic()
            ended = not chunk
            *whole, rest = (rest + (chunk or b"\n" * bool(rest))).split(b"\n")
            lines += whole
        late = chunk is None or ended or len(lines) >= _LINES or time.monotonic() - since > _SECONDS
        if late:
            yield lines
            lines = []
