"""Following patients by the command: directory and pipe, stops and kills, and what it refuses."""

import json
import os
import queue
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from followed import calibrated

from dtwin_jax import cli
from dtwin_jax.cli import following
from dtwin_jax.inference.result import save
from dtwin_jax.jobs import kept as kept_module

ALARM = "concentration<1.5 within 6h p>=0.3"
OPTIONS = ("--alarm", ALARM, "--draws", "30", "--every", "3h")
FILES = ("forecast.csv", "alarms.jsonl", "refused.jsonl", "status.csv")


@pytest.fixture(autouse=True)
def environment_is_put_back(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return save(calibrated(), tmp_path_factory.mktemp("result") / "twin.nc")


def seen(patient, when, value):
    return {"patient": patient, "time": when, "channel": "concentration", "value": value}


def given(patient, when, amount):
    return {"patient": patient, "time": when, "input": "oral", "amount": amount}


def lay(folder, name, *rows):
    """A file of facts, renamed into place."""
    folder.mkdir(exist_ok=True)
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (folder / f".{name}").write_text(text)
    (folder / f".{name}").rename(folder / name)
    return folder


def follow(result, facts, output, *options):
    arguments = ["follow", result, facts, "--output", output, *OPTIONS, *options]
    return cli.run([str(argument) for argument in arguments])


def state(folder):
    with np.load(folder / "twin.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def differences(a, b):
    """Names of what two folders do not have in common, to the last bit."""
    one, other = state(a), state(b)
    wrong = [name for name in one.keys() | other.keys() if not np.array_equal(one[name], other[name])]
    return wrong + [name for name in FILES if (a / name).read_bytes() != (b / name).read_bytes()]


ROWS = (seen("Zoë", 10.0, 1.5), given("Zoë", "720 min", 300), seen("Zoë", 13, 6.5), seen("患者", 12, "<0.4"))


def test_a_directory_and_a_pipe_give_the_same_twins(result, tmp_path, capfd, monkeypatch):
    lines = lay(tmp_path / "in", "a.jsonl", *ROWS)
    lay(tmp_path / "in", "half.jsonl.part", "{")
    assert follow(result, lines, tmp_path / "dir", "--once") == 0
    out, err = capfd.readouterr()
    assert out.startswith("a.jsonl: taken 4, refused 0, alarms ") and out.count("\n") == 1
    assert "Zoë: concentration<1.5 within 6 h p>=0.3 ends" in err
    with open(lines / "a.jsonl", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert follow(result, "-", tmp_path / "pipe") == 0
    assert capfd.readouterr().out.startswith("pipe: taken 4, refused 0")
    assert not differences(tmp_path / "dir", tmp_path / "pipe")
    table = tmp_path / "table" / "a.csv"
    table.parent.mkdir()
    table.write_text(
        "patient,time,channel,value,input,amount\n"
        "Zoë,10,concentration,1.5,,\nZoë,12,,,oral,300\nZoë,13,concentration,6.5,,\n患者,12,concentration,<0.4,,\n"
    )
    assert follow(result, table.parent, tmp_path / "csv", "--once") == 0
    assert not differences(tmp_path / "dir", tmp_path / "csv")


def test_what_is_told_is_whole_and_bad_lines_end_nothing(result, tmp_path, capfd):
    facts = lay(tmp_path / "in", "a.jsonl", *ROWS[:1], "{\n", seen("Zoe", 11, 1.0), seen("Zoë", 7.5, 1.0))
    output = tmp_path / "out"
    assert follow(result, facts, output, "--once") == 0
    out, err = capfd.readouterr()
    assert out.startswith("a.jsonl: taken 1, refused 3,")
    assert (
        "warning: refused: a.jsonl: line 3, field 'patient': found 'Zoe'; did you mean 'Zoë'? expected" in err
    )
    refused = [json.loads(line) for line in (output / "refused.jsonl").read_text().splitlines()]
    assert [(one["file"], one["line"], one["field"]) for one in refused] == [
        ("a.jsonl", 2, ""),
        ("a.jsonl", 3, "patient"),
        ("a.jsonl", 4, "time"),
    ]
    forecast = [line.split(",") for line in (output / "forecast.csv").read_text().splitlines()]
    assert forecast[0] == ["patient", "channel", "time", "mean", "q05", "q50", "q95"]
    assert [row[:3] for row in forecast[1:3]] == [["Zoë", "concentration", t] for t in ("13", "16")]
    assert all(float(row[4]) < float(row[5]) < float(row[6]) for row in forecast[1:])
    events = [json.loads(line) for line in (output / "alarms.jsonl").read_text().splitlines()]
    assert [one["alarm"] for one in events if one["patient"] == "Zoë"] == ["begins"]
    assert (output / "status.csv").read_text().splitlines()[1].startswith("Zoë,10,4,")
    before = {name: (output / name).read_bytes() for name in FILES}
    assert follow(result, facts, output, "--once") == 0
    out, err = capfd.readouterr()
    assert out.startswith("a.jsonl: taken 0, refused 0, alarms 2, ") and "warning" not in err
    assert {name: (output / name).read_bytes() for name in FILES} == before


def start(result, facts, output, **options):
    arguments = [result, facts, "--output", output, *OPTIONS, *options.pop("more", ())]
    return subprocess.Popen(
        [sys.executable, "-m", "dtwin_jax.cli", "follow", *map(str, arguments)],
        env={**os.environ, "PYTHONHASHSEED": "0", "NO_COLOR": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def step(output):
    return json.loads(state(output)["said"].tobytes())["step"] if (output / "twin.npz").exists() else -1


def wait(process, output, steps):
    """Until so many steps are on disk; whatever stands there meanwhile is whole, or `state` would fail."""
    until = time.monotonic() + 300
    while step(output) < steps:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.001)


def test_a_stream_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(result, tmp_path):
    facts = tmp_path / "in"
    for i in range(3):
        rows = [seen("Zoë", 10.0 + 10 * i + 0.5 * j, 2.0 + 0.5 * i - 0.1 * j) for j in range(16)]
        lay(
            facts, f"{i}.jsonl", given("Zoë", 9.0 + 10 * i, 50 + i), seen("患者", 11.0 + i, 0.5), *rows, "{\n"
        )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for steps in (7, 23):
        process = start(result, facts, killed, more=("--once",))
        wait(process, killed, steps)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL and steps <= step(killed) < 48
    process = start(result, facts, killed, more=("--once",))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "Going on after step" in err and "Traceback" not in err
    assert follow(result, facts, whole, "--once") == 0
    assert step(whole) == 48 and not differences(killed, whole)
    assert {path.name for path in killed.iterdir()} == {"twin.npz", ".lock", *FILES}


def stopped_after(monkeypatch, count):
    """Interrupts the stream when the state has been kept so often."""
    kept = []

    def keep(*arguments):
        kept_module_keep(*arguments)
        kept.append(arguments)
        if len(kept) == count:
            raise KeyboardInterrupt

    kept_module_keep = kept_module.keep
    monkeypatch.setattr(kept_module, "keep", keep)


def test_alarms_wait_for_the_end_of_the_batch_that_a_stop_has_cut(result, tmp_path, monkeypatch):
    # The second file crosses the limit up and down: only within it would the alarm end. A bad line that is
    # met again is nothing new.
    facts = lay(tmp_path / "in", "a.jsonl", ROWS[0], "{\n")
    lay(facts, "b.jsonl", *ROWS[1:3], seen("Zoë", 30.0, 0.6))
    whole, cut, gone, idle = (tmp_path / name for name in ("whole", "cut", "gone", "idle"))
    assert follow(result, facts, whole, "--once") == 0
    # Kept: the beginning, the step and the alarms of a.jsonl, the first step of b.jsonl.
    for output in (cut, gone, idle):
        with monkeypatch.context() as patch:
            stopped_after(patch, 4)
            assert follow(result, facts, output, "--once") == 130
        assert step(output) == 2
    assert follow(result, facts, cut, "--once") == 0
    assert not differences(cut, whole)
    # Of a batch that does not come again the alarms are looked at where it stopped.
    (tmp_path / "none").mkdir()
    before = (gone / "alarms.jsonl").read_text()
    assert follow(result, tmp_path / "none", gone, "--once") == 0
    more = (gone / "alarms.jsonl").read_text().removeprefix(before)
    assert [json.loads(one)["alarm"] for one in more.splitlines()] == ["ends"]
    # Without an end of the facts they are looked at where nothing is new.
    with monkeypatch.context() as patch:
        patch.setattr(following, "time", SimpleNamespace(sleep=interrupted))
        assert follow(result, tmp_path / "none", idle) == 130
    assert (idle / "alarms.jsonl").read_text() == before + more


def interrupted(_):
    raise KeyboardInterrupt


def test_lines_of_a_pipe_come_together_and_a_pipe_that_rests_gives_none():
    chunks = queue.Queue()
    lines = following._lines_together(chunks)
    chunks.put(b"a\nb\nc")
    assert next(lines) == [b"a", b"b"] and next(lines) == []
    chunks.put(b"d\n")
    assert next(lines) == [b"cd"]
    chunks.put(b"e")
    chunks.put(b"")
    assert list(lines) == [[b"e"]]


def test_a_stream_takes_files_as_they_come_until_it_is_interrupted(result, tmp_path, capfd):
    facts, output = lay(tmp_path / "in", "a.jsonl", ROWS[0]), tmp_path / "out"
    process = start(result, facts, output)
    wait(process, output, 1)
    assert follow(result, facts, output, "--once") == 2
    assert "another dtwin follow writes there" in capfd.readouterr().err
    lay(facts, "b.jsonl", *ROWS[1:])
    wait(process, output, 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("error: interrupted in or after step ")
    assert out.startswith("a.jsonl: taken 1, refused 0")


def refusal(capfd, *arguments):
    capfd.readouterr()
    assert cli.run(["follow", *map(str, arguments)]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_bad_arguments_are_refused_in_one_line(result, tmp_path, capfd):
    facts = lay(tmp_path / "in", "a.jsonl")
    told = {
        (result, tmp_path / "gone", *OPTIONS): "gone: found no directory",
        (result, facts, "--output", facts, *OPTIONS): "is the output folder too",
        (result, facts): "--horizon",
        (result, facts, "--horizon", "3kg"): "--horizon",
        (result, facts, "--horizon", "0"): "a time above 0",
        (result, facts, "--horizon", "3h", "--alarm", ALARM): "as far as the alarms: 6",
        (result, facts, "--alarm", ALARM, "--every", "7h"): "--every: found 7",
        (result, facts, "--alarm", "x<1 within 6 p>=0.3"): "no output 'x'",
        (result, "-", *OPTIONS, "--once"): "--once: found with a pipe, expected with a directory",
        (result, facts, *OPTIONS, "--ahead", "0 d"): "--ahead: found '0 d', expected a time above 0",
        (result, facts, "--rules", tmp_path / "gone.toml"): "gone.toml: no such file",
        (facts / "a.jsonl", facts, *OPTIONS): "expected a result of dtwin calibrate",
    }
    for arguments, words in told.items():
        assert words in refusal(capfd, *arguments)


def test_a_stream_of_another_seed_is_refused(result, tmp_path, capfd):
    facts, output = lay(tmp_path / "in", "a.jsonl"), tmp_path / "out"
    assert follow(result, facts, output, "--once") == 0
    before = (output / "twin.npz").read_bytes()
    err = refusal(capfd, result, facts, "--output", output, *OPTIONS, "--seed", 1)
    assert "found a stream of seed 0, expected 1" in err
    assert (output / "twin.npz").read_bytes() == before


def test_rules_may_change_between_two_runs(result, tmp_path):
    facts, output = lay(tmp_path / "in", "a.jsonl", ROWS[0]), tmp_path / "out"
    assert follow(result, facts, output, "--once") == 0
    arguments = [result, facts, "--output", output, "--draws", 30, "--once"]
    assert cli.run(["follow", *map(str, arguments), "--horizon", "6h", "--every", "3h"]) == 0
    events = [json.loads(line) for line in (output / "alarms.jsonl").read_text().splitlines()]
    assert [one["alarm"] for one in events if one["patient"] == "Zoë"] == ["begins", "ends"]


def test_help_has_an_example_and_the_exit_codes(capfd):
    assert cli.run(["follow", "--help"]) == 0
    out = capfd.readouterr().out
    assert "Example: dtwin follow" in out and "Exit codes:" in out
