"""The section of a job file that names a guide; the expected words are written by hand."""

import pytest

from dtwin_jax.inference.svi import Svi
from dtwin_jax.jobs.document import JobError
from dtwin_jax.jobs.job import read_job

JOB = 'model = "one_compartment"\n[data]\nfile = "table.csv"\n'


def read(folder, more):
    (folder / "table.csv").write_text("patient,time,name,value,unit\nAna,1,concentration,5.0,mg/L\n")
    (folder / "job.toml").write_text(JOB + more)
    return read_job(folder / "job.toml")


def refusal(folder, more):
    with pytest.raises(JobError) as caught:
        read(folder, more)
    return str(caught.value)


def test_population_may_be_learnt_from_batches(tmp_path):
    job = read(tmp_path, '[population]\nvary = ["CL"]\n[svi]\nbatch = 64\n')
    assert job.method == Svi(batch=64)


def test_guide_of_patients_each_alone_is_a_fault(tmp_path):
    assert "patients each alone have no population's numbers" in refusal(tmp_path, "[svi]\nbatch = 64\n")


def test_guide_of_a_mixture_is_a_fault(tmp_path):
    more = '[population]\nvary = ["CL"]\nmixture = { vary = ["CL"] }\n[svi]\nbatch = 64\n'
    assert "one peak for each patient" in refusal(tmp_path, more)


def test_settings_that_make_no_sense_are_a_fault(tmp_path):
    said = refusal(tmp_path, '[population]\nvary = ["CL"]\n[svi]\nbatch = 0\nrates = 0.1\n')
    assert "batch" in said and "rates" in said
