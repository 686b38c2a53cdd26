"""What is done with shards that fail; source of truth: the rules as written, and pieces made by hand."""

import json

import numpy as np
import pytest
import xarray as xr
from sharded import JOB, lay_out, partition

from dtwin_jax.core.files import replacing
from dtwin_jax.inference.result import ResultError, read_tree, save
from dtwin_jax.jobs.agenda import Agenda
from dtwin_jax.jobs.crew import Outcome
from dtwin_jax.jobs.document import JobError
from dtwin_jax.jobs.folder import RunFolder, read_manifest
from dtwin_jax.jobs.job import read_job
from dtwin_jax.jobs.opened import open_results
from dtwin_jax.jobs.shards import check_job, plan_of_run
from dtwin_jax.jobs.status import status_of


@pytest.fixture
def run(tmp_path):
    """Folder and plan of a run of seven patients in shards of four and three."""
    folder = RunFolder(tmp_path / "run")
    return folder, plan_of_run(folder, read_job(lay_out(tmp_path, size=4)))


def write_piece(folder, plan, piece):
    """A result in which the clearance of patient `Pi` is i in all draws."""
    patients = list(plan.shards[piece.shard].patients[piece.start : piece.stop])
    value = np.broadcast_to([float(name[1:]) for name in patients], (2, 3, len(patients))).copy()
    scale = {"chain": [0, 1], "draw": [0, 1, 2], "patient": patients}
    posterior = xr.Dataset({"CL": (("chain", "draw", "patient"), value, {"units": "L/h"})}, scale)
    prior = xr.Dataset({"CL": (("chain", "draw"), np.ones((1, 5)))}, {"chain": [0], "draw": np.arange(5)})
    tree = xr.DataTree.from_dict({"posterior": posterior, "prior": prior})
    warned = [f"CL[{name}]: draw more" for name in patients if name == "P2"]
    said = {"failed": {}, "warnings": warned, "notes": []}
    tree.attrs = {name: json.dumps(value) for name, value in said.items()}
    tree.attrs |= {"wall_seconds": 1.0, "compile_seconds": 0.25}
    path = piece.file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(tree, path)


def work(agenda, bad, kind="failed"):
    """Do all that an agenda has; pieces with a bad patient fail. Returns how many patients each had."""
    sizes = []
    while (piece := agenda.next()) is not None:
        sizes.append(len(piece))
        patients = agenda.plan.shards[piece.shard].patients[piece.start : piece.stop]
        if bad & set(patients):
            agenda.settle(piece, Outcome(kind, why=f"cannot do {min(bad & set(patients))}"))
            continue
        write_piece(agenda.folder, agenda.plan, piece)
        agenda.settle(piece, Outcome("done"))
    agenda.close()
    return sizes


def test_without_failures_every_shard_is_done_once(run):
    lines = []
    agenda = Agenda(*run, range(2), lines.append)
    assert work(agenda, set()) == [4, 3]
    assert [line.split(";")[0][:21] for line in lines] == ["shard 0: 4 patients i", "shard 1: 3 patients i"]
    assert "2 of 2 shards, 0 patients failed so far" in lines[-1]
    assert (run[0].log).read_text().count("shard ") == 2


@pytest.mark.parametrize("kind", ["failed", "died"])
def test_only_the_patient_at_fault_is_lost(run, kind):
    folder, plan = run
    agenda = Agenda(folder, plan, range(2), lambda line: None)
    # The whole three times, halves once, the one at fault three times; of the other shard nothing is new.
    assert work(agenda, {"P1"}, kind) == [4, 4, 4, 2, 1, 1, 1, 1, 2, 3]
    assert agenda.failed == {"P1": "cannot do P1"}
    tree = open_results(folder.path)
    assert list(tree["posterior"]["patient"].values) == ["P0", "P2", "P3", "P4", "P5", "P6"]
    np.testing.assert_array_equal(tree["posterior"]["CL"][1, 2], [0, 2, 3, 4, 5, 6])
    assert json.loads(tree.attrs["lost"]) == {"P1": "cannot do P1"}
    assert json.loads(tree.attrs["warnings"]) == ["CL[P2]: draw more"]
    assert tree.attrs["wall_seconds"] == 3.0  # of P0, of P2 and P3, of the second shard
    assert tree["posterior"]["CL"].attrs["units"] == "L/h"
    assert not folder.work(0).exists()


def test_a_shard_of_which_all_are_lost_has_a_manifest_and_no_result(run):
    folder, plan = run
    work(Agenda(folder, plan, range(2), lambda line: None), {"P4", "P5", "P6"})
    assert not folder.result(1).exists()
    assert set(read_manifest(folder, 1, plan.mark).failed) == {"P4", "P5", "P6"}
    assert list(open_results(folder.path)["posterior"]["patient"].values) == ["P0", "P1", "P2", "P3"]
    found = status_of(folder)
    assert (found.patients, len(found.failed), found.left) == (4, 3, 0)


def test_a_finished_shard_is_not_done_again(run):
    folder, plan = run
    work(Agenda(folder, plan, range(1), lambda line: None), set())
    again = Agenda(folder, plan, range(2), lambda line: None)
    assert again.skipped == 1
    assert work(again, set()) == [3]


def test_a_kill_between_result_and_manifest_loses_nothing(run, monkeypatch):
    folder, plan = run
    agenda = Agenda(folder, plan, range(1), lambda line: None)
    piece = agenda.next()
    write_piece(folder, plan, piece)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dtwin_jax.jobs.agenda.write_manifest", killed)
        agenda.settle(piece, Outcome("done"))
        with pytest.raises(KeyboardInterrupt):
            agenda.close()
    assert folder.result(0).exists() and read_manifest(folder, 0, plan.mark) is None
    assert piece.file(folder).exists()  # so a worker that is asked again has it at once
    again = Agenda(folder, plan, range(1), lambda line: None)
    again.settle(again.next(), Outcome("done"))
    assert read_manifest(folder, 0, plan.mark).patients == ["P0", "P1", "P2", "P3"]


def test_two_runs_do_not_work_on_one_shard(run):
    first, second = (Agenda(*run, range(2), lambda line: None) for _ in range(2))
    assert first.next().shard == 0
    assert second.next().shard == 1
    assert second.next(wait=False) is None and second.busy == [0]
    first.close()
    third = Agenda(*run, range(1), lambda line: None)
    assert third.next().shard == 0


def test_what_was_stopped_is_not_counted_as_a_failure(run):
    agenda = Agenda(*run, range(1), lambda line: None)
    for _ in range(5):
        piece = agenda.next()
        agenda.settle(piece, Outcome("stopped"))
    assert len(agenda.next()) == 4
    agenda.stop()
    assert agenda.next() is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], ["cut short"]),
        (lambda text: "", ["cut short"]),
        (lambda text: "[]", ["expected shard, mark"]),
        (lambda text: text.replace('"patients": [', '"people": ['), ["people"]),
        (lambda text: text.replace('"failed": {}', '"failed": 3'), ["failed", "found 3"]),
        (lambda text: text.replace('"shard": 0', '"shard": 1'), ["found 1", "expected 0"]),
        (lambda text: text.replace('"mark": "', '"mark": "x'), ["another run"]),
        (lambda text: text.replace('"schema": 1', '"schema": 9'), ["schema", "found 9"]),
    ],
)
def test_a_damaged_manifest_is_told_in_one_line(run, change, words):
    folder, plan = run
    work(Agenda(folder, plan, range(2), lambda line: None), set())
    path = folder.manifest(0)
    path.write_text(change(path.read_text()))
    for look in (
        lambda: Agenda(folder, plan, range(2), lambda line: None),
        lambda: status_of(folder),
        lambda: open_results(folder.path),
    ):
        with pytest.raises(ResultError) as caught:
            look()
        told = str(caught.value)
        assert told.startswith(str(path)) and "\n" not in told
        assert all(word in told for word in [*words, "remove 00000.json"]), told


def test_a_result_that_was_cut_short_or_removed_is_told(run):
    folder, plan = run
    work(Agenda(folder, plan, range(2), lambda line: None), set())
    whole = folder.result(1).read_bytes()
    folder.result(1).write_bytes(whole[:-10])
    with pytest.raises(ResultError, match=f"found {len(whole) - 10} bytes, expected {len(whole)}"):
        open_results(folder.path)
    folder.result(1).unlink()
    with pytest.raises(ResultError, match="found no such file"):
        status_of(folder)


def test_shards_that_are_not_finished_are_not_passed_over_in_silence(run):
    folder, plan = run
    work(Agenda(folder, plan, range(1), lambda line: None), set())
    with pytest.raises(ResultError, match="found 1 of 2 shards finished"):
        open_results(folder.path)
    assert open_results(folder.path, unfinished=True)["posterior"].sizes["patient"] == 4
    with pytest.raises(ResultError, match=r"found no plan\.json"):
        open_results(folder.path.parent)


def test_results_are_read_when_they_are_looked_at(run, monkeypatch):
    from dtwin_jax.jobs import opened

    folder, plan = run
    work(Agenda(folder, plan, range(2), lambda line: None), set())
    looked, values = [], opened._values
    monkeypatch.setattr(
        opened, "_values", lambda path, *rest: looked.append(path.stem) or values(path, *rest)
    )
    tree = open_results(folder.path)
    assert looked == []
    np.testing.assert_array_equal(tree.sel(patient=["P6"])["posterior"]["CL"], np.full((2, 3, 1), 6))
    assert looked == ["00001"]
    clearance = tree["posterior"]["CL"]
    np.testing.assert_array_equal(clearance.isel(patient=[5, 0, 3], draw=1, chain=slice(1)), [[5, 0, 3]])
    np.testing.assert_array_equal(clearance.isel(patient=-1, draw=[2, 0]), [[6, 6], [6, 6]])
    assert clearance.isel(patient=slice(2, 2)).shape == (2, 3, 0)
    np.testing.assert_array_equal(clearance[0, 0], np.arange(7))
    two = read_tree(save(tree.sel(patient=["P5", "P1"]), folder.path.parent / "two.nc"), "two patients")
    np.testing.assert_array_equal(two["posterior"]["CL"][0, 0], [5, 1])


def test_the_plan_is_kept_and_one_of_another_job_is_refused(run, tmp_path):
    folder, plan = run
    job = tmp_path / "job.toml"
    assert plan_of_run(folder, read_job(job)) == plan
    lay_out(tmp_path, size=4, patients=("P0", "P1"))  # other data
    with pytest.raises(JobError, match="a run of another job, data"):
        plan_of_run(folder, read_job(job))
    lay_out(tmp_path, size=3)
    with pytest.raises(JobError, match="a run of another job, data"):
        plan_of_run(folder, read_job(job))
    with replacing(folder.plan) as draft:
        draft.write_text('{"schema": 1, "mark": "x"}')
    with pytest.raises(ResultError, match=r"plan.json: found no whole plan.*--fresh"):
        plan_of_run(folder, read_job(job))


def test_shards_go_over_partitions_and_a_patient_in_two_is_refused(tmp_path):
    job = partition(tmp_path / "a", [["P0", "P1", "P2"], ["P3"], ["P4", "P5"]], size=2)
    plan = plan_of_run(RunFolder(tmp_path / "run"), read_job(job))
    assert [shard.patients for shard in plan.shards] == [("P0", "P1"), ("P2", "P3"), ("P4", "P5")]
    assert [shard.tables for shard in plan.shards] == [(0,), (0, 1), (2,)]
    assert plan.room.channels == {"level": 6}
    job = partition(tmp_path / "b", [["P0", "P1"], ["P1"]])
    with pytest.raises(ValueError, match=r"part-1.parquet: patient 'P1': found rows here and in .*part-0"):
        plan_of_run(RunFolder(tmp_path / "other"), read_job(job))


@pytest.mark.parametrize("section", ['[population]\nvary = ["slope"]\n', "[score]\n", "[report]\n"])
def test_what_shards_do_not_have_is_refused_with_its_line(tmp_path, section):
    job = lay_out(tmp_path, job=JOB + section)
    line = job.read_text().count("\n") - section.count("\n") + 1
    with pytest.raises(JobError, match=f"job.toml: line {line}, key .*expected a job without it"):
        check_job(read_job(job))
