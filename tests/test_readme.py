"""The README's Python runs as it stands; source of truth: a reader who pastes it."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pasted(tmp_path_factory):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {"__name__": "pasted"}
    code = "\n".join(blocks).replace("dtwin_jax/data/", f"{ROOT}/dtwin_jax/data/")
    with warnings.catch_warnings():
        # A short run on five measurements may well complain; that it finishes is what is tested.
        warnings.simplefilter("ignore")
        exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_twin_explains_the_measurements_it_was_given(pasted):
    twin = pasted["twin"]
    low, high = np.quantile(twin["posterior_predictive"]["concentration"].values, (0.05, 0.95), (0, 1))
    seen = twin["observed_data"]["concentration"].values
    assert np.mean((low <= seen) & (seen <= high)) >= 0.8


def test_the_second_dose_of_the_plan_shows_in_the_forecast(pasted):
    course = np.median(pasted["future"]["predictions"]["concentration_expected"].values[:, 0], axis=0)
    time = pasted["future"]["predictions"]["concentration_time"].values[0]
    assert course[time == 26.0] > course[time == 24.0]


def test_the_cohort_has_the_twelve_people_of_the_study(pasted):
    assert len(pasted["cohort"]) == 12
