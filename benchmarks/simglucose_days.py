"""Days of virtual patients by simglucose itself, for `ensemble.py`, in an environment of its own.

    PYTHON benchmarks/simglucose_days.py < days.json

PYTHON is one that has simglucose 0.2.11 and, in place of the rest that it asks for, numpy, scipy, pandas and
setuptools below 81. Reads [{"patient": name, "meals": [[minute, grams], ...], "boluses": [[minute, units],
...]}, ...]; writes {"cpu_s": seconds of the processor, "cgm": [[mg/dL at every minute, 1441 of them], ...]}.
"""

import json
import sys
import time
import types

# It registers environments of reinforcement learning when it is imported; no patient needs them.
gym = types.ModuleType("gym.envs.registration")
gym.register = lambda **_: None
sys.modules |= {"gym": types.ModuleType("gym"), "gym.envs": types.ModuleType("gym.envs"), gym.__name__: gym}

from simglucose.patient.t1dpatient import Action, T1DPatient  # noqa: E402


def day(asked: dict) -> list[float]:
    """The sensor's glucose of one day, basal insulin and what is asked for."""
    patient = T1DPatient.withName(asked["patient"])
    basal = patient._params.u2ss * patient._params.BW / 6000
    meals, boluses = dict(asked["meals"]), dict(asked["boluses"])
    found = [patient.observation.Gsub]
    for minute in range(1440):
        patient.step(Action(CHO=meals.get(minute, 0.0), insulin=basal + boluses.get(minute, 0.0)))
        found.append(patient.observation.Gsub)
    return [float(value) for value in found]


def main() -> None:
    asked, start = json.load(sys.stdin), time.process_time()
    found = [day(each) for each in asked]
    json.dump({"cpu_s": time.process_time() - start, "cgm": found}, sys.stdout)


if __name__ == "__main__":
    main()
