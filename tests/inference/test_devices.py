"""Populations over several devices and processes against the same on one device."""

import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
import pytest
from lines import TIME, line
from spread_lines import COHORT, FEW, VALUES, calibrated

from dtwin_jax import cli
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.hosts import join_hosts
from dtwin_jax.inference.result import load

PROGRAM = Path(__file__).with_name("spread_lines.py")


def start(what, file, devices=1, **variables):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"PYTHONHASHSEED": "0", "XLA_FLAGS": flags} | variables
    command = [sys.executable, str(PROGRAM), what, str(file)]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE)


def finish(processes):
    """What they said, at the end of all."""
    try:
        return [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    file = tmp_path_factory.mktemp("devices") / "found.npz"
    process = start("compare", file, devices=2)
    (said,) = finish([process])
    assert process.returncode == 0, said
    with np.load(file) as found:
        return {name: found[name] for name in found.files}


@pytest.fixture(scope="module")
def alone():
    """The calibration on one device."""
    return calibrated()


@pytest.mark.parametrize("case", ["independent", "correlated", "solved by steps"])
def test_density_and_gradient_over_two_devices_are_those_of_one(compared, case):
    names = [name for name in compared if name.startswith(f"{case}/one ")]
    assert len(names) > 4
    for name in names:
        one, many = compared[name], compared[name.replace("/one ", "/many ")]
        assert np.ptp(one) > 0
        np.testing.assert_allclose(many, one, rtol=1e-10, atol=1e-10, err_msg=name)


def test_devices_tell_each_other_one_sum_and_nothing_else(compared):
    counts = {
        name.partition("/")[2]: int(n) for name, n in compared.items() if name.startswith("collectives")
    }
    assert counts.pop("all-reduce") == 1
    assert counts and not any(counts.values())


def test_draws_over_two_devices_are_those_of_one(compared, alone):
    for name, value in alone["posterior"].data_vars.items():
        np.testing.assert_allclose(compared[f"draws/{name}"], value, rtol=1e-4, atol=1e-6, err_msg=str(name))


JOB = """
model = "lines:line"
seed = 3
output = "by-job.nc"
[data]
file = "people.csv"
covariates = { weight = "kg" }
[population]
vary = { level = { halfnormal = 0.7 }, slope = { halfnormal = 0.4 } }
[[population.covariates]]
parameter = "slope"
name = "weight"
reference = 70.0
coefficient = { normal = [0.5, 0.3] }
[sampler]
"""


def write_job(file):
    """The calibration of `alone` as a job."""
    rows = ["patient,time,name,value,unit"]
    for i, (patient, values) in enumerate(zip(COHORT.ids, VALUES, strict=True)):
        rows += [f"{patient},0,weight,{COHORT.record.known['weight'][i]},kg"]
        rows += [f"{patient},{t},y,{value!r},1" for t, value in zip(TIME, values.tolist(), strict=True)]
    (file.parent / "people.csv").write_text("\n".join(rows))
    given = {name: value for name, value in asdict(FEW).items() if value is not None}
    settings = [f"{name} = {str(value).lower()}" for name, value in given.items()]
    file.write_text(JOB + "\n".join(settings))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The file that two processes wrote, each with patients of its own."""
    file = tmp_path_factory.mktemp("hosts") / "found.nc"
    write_job(file.with_suffix(".toml"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    known = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [start("together", file, JAX_PROCESS_ID=str(number), **known) for number in range(2)]
    said = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    # The first process says what there is to say, for both.
    assert "Result: " in said[0] and "Calibrating" not in said[1]
    return file


def test_two_processes_with_patients_of_their_own_give_the_result_of_one(together, alone):
    _, tree = load(together, predictor=line)
    assert tree.attrs["kind"] == "population"
    for group in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "observed_data"):
        assert set(tree[group].data_vars) == set(alone[group].data_vars)
        for name, value in alone[group].data_vars.items():
            np.testing.assert_allclose(tree[group][name], value, rtol=1e-4, atol=1e-6, err_msg=str(name))


def test_job_of_two_hosts_gives_the_result_of_one(together, alone):
    folder = together.parent
    _, tree = load(folder / "by-job.nc", predictor=line)
    for name, value in alone["posterior"].data_vars.items():
        np.testing.assert_allclose(tree["posterior"][name], value, rtol=1e-4, atol=1e-6, err_msg=str(name))
    assert not (folder / "by-job.nc.partial").exists()


def test_hosts_beside_shards_are_refused(tmp_path, capsys):
    write_job(tmp_path / "job.toml")
    assert cli.run(["calibrate", str(tmp_path / "job.toml"), "--engine", "hosts", "--workers", "2"]) == 2
    assert "--engine hosts has no shards; leave out --workers" in capsys.readouterr().err


def test_host_that_nobody_told_of_others_says_what_to_set(tmp_path):
    write_job(tmp_path / "job.toml")
    command = [sys.executable, "-m", "dtwin_jax.cli", "calibrate", "job.toml", "--engine", "hosts"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "--engine hosts: nothing says which processes belong together" in done.stderr
    assert "JAX_COORDINATOR_ADDRESS=host:port" in done.stderr


def test_blocks_of_two_processes_are_gone_on_with_by_one(together, alone):
    partial = together.with_suffix(".partial")
    again = calibrated(checkpoint=partial)
    assert again.attrs["resumed_blocks"] == len(list(partial.glob("*/block-*.npz"))) == 3
    np.testing.assert_allclose(again["posterior"]["sd"], alone["posterior"]["sd"], rtol=1e-4)


@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_would_hang_stop_and_say_why(together, process):
    data, program = together.with_suffix(f".{process}").read_text().splitlines()
    assert data.startswith("the calibration differs between process 0 and process 1 of 2; ")
    assert program.startswith("the compiled program differs between process 0 and process 1 of 2; ")


def test_mesh_of_two_axes_is_refused():
    mesh = jax.make_mesh((1, 1), ("patient", "chain"))
    with pytest.raises(ValueError, match=r"expected one axis.*found \{'patient': 1, 'chain': 1\}"):
        calibrated(mesh)


def test_mesh_for_patients_each_alone_is_refused():
    with pytest.raises(ValueError, match="mesh is for a Population"):
        calibrate(line, COHORT, key=jax.random.key(0), mesh=jax.make_mesh((1,), ("patient",)))


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_variable_of_a_host_that_is_no_number_is_named(monkeypatch, name):
    monkeypatch.setenv(name, "two")
    with pytest.raises(ValueError, match=f"{name}: expected a whole number, found 'two'"):
        join_hosts()
