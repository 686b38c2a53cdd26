"""A cohort divided over two devices of the host, against the same on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).parent / "two_devices.py"


def run(devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    told = subprocess.run([sys.executable, str(SCRIPT)], env=env, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


def test_two_devices_give_the_numbers_of_one():
    """By lanes and by a flow; a cohort that does not divide evenly, and one too small to be divided."""
    one, two = run(1), run(2)
    assert (one["over"], two["over"]) == ([1, 1, 1, 1], [2, 2, 1, 1])
    for a, b in zip(one["found"], two["found"], strict=True):
        for alone, divided in zip(a, b, strict=True):
            np.testing.assert_allclose(divided, alone, rtol=1e-12)
