"""Draws of Stan by httpstan: the chains of one run in turn, and the processor time of the sampler alone.

    PYTHON benchmarks/stan_draws.py MODEL.stan [SETTINGS.json RESULT.json]

PYTHON is that of an environment with `httpstan` and `setuptools<80`, apart from this project's. With MODEL
alone the model is compiled, once for all runs. SETTINGS holds `data`, `inits` (one a chain), `warmup`,
`draws`, `seed` and `names` as Stan writes them (`typical.1`); RESULT gets `draws`, name -> (chain, draw),
`leapfrogs` and `diverging`, (chain, draw), `cpu_s`, and `sampling_cpu_s`, the share of it after the warm-up
by Stan's own clock. httpstan's HTTP layer is not used.
"""

import asyncio
import json
import re
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpstan.models
from httpstan.services import arguments

# Logger, initial point, draws, diagnostics: each writes to a connection of its own.
_WRITERS = 4
_SAMPLER = "hmc_nuts_diag_e_adapt"


def compiled(path: Path) -> Any:
    """The model's module, compiled if it has not been yet."""
    code = path.read_text()
    name = httpstan.models.calculate_model_name(code)
    try:
        return httpstan.models.import_services_extension_module(name)
    except KeyError:
        asyncio.run(httpstan.models.build_services_extension_module(code))
        return httpstan.models.import_services_extension_module(name)


def read(connection: socket.socket, messages: list[dict]) -> None:
    with connection, connection.makefile("r") as lines:
        messages.extend(json.loads(line) for line in lines)


def sampling_share(messages: list[dict]) -> float:
    """The part of a chain's time that came after its warm-up."""
    told = " ".join(str(each["values"]) for each in messages if each["topic"] == "logger")
    found = {part: float(s) for s, part in re.findall(r"([0-9.e-]+) seconds \((Sampling|Total)\)", told)}
    return found["Sampling"] / found["Total"]


def chain(module: Any, asked: dict, number: int) -> tuple[list[dict], float, float]:
    """Values of every draw kept, the processor seconds of Stan's function, and the share after warm-up."""
    given = {
        name: arguments.lookup_default(arguments.Method.SAMPLE, name)
        for name in arguments.function_arguments(_SAMPLER, module)
        if name not in ("socket_filename", "data", "init")
    }
    given |= {"num_warmup": asked["warmup"], "num_samples": asked["draws"], "save_warmup": False}
    given |= {"random_seed": asked["seed"], "chain": number + 1, "refresh": 0}
    messages: list[dict] = []
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        place = f"{folder}/socket"
        server.bind(place)
        server.listen(_WRITERS)

        def receive() -> None:
            # Stan connects all its writers first; each is read by a thread, so that none ever waits.
            readers = [
                threading.Thread(target=read, args=(server.accept()[0], messages)) for _ in range(_WRITERS)
            ]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()

        receiver = threading.Thread(target=receive)
        receiver.start()
        # Of this thread: what the readers take is not Stan's.
        began = time.thread_time()
        code = getattr(module, f"{_SAMPLER}_wrapper")(
            place, data=asked["data"], init=asked["inits"][number], **given
        )
        took = time.thread_time() - began
        receiver.join()
    if code:
        raise SystemExit(f"Stan ended with code {code}: {[m['values'] for m in messages[-3:]]}")
    draws = [each["values"] for each in messages if each["topic"] == "sample" and "lp__" in each["values"]]
    return draws, took, sampling_share(messages)


def main() -> None:
    module = compiled(Path(sys.argv[1]))
    if len(sys.argv) == 2:
        return
    asked = json.loads(Path(sys.argv[2]).read_text())
    found = [chain(module, asked, number) for number in range(len(asked["inits"]))]

    def column(name: str) -> list[list[float]]:
        return [[draw[name] for draw in draws] for draws, *_ in found]

    result = {
        "draws": {name: column(name) for name in asked["names"]},
        "leapfrogs": column("n_leapfrog__"),
        "diverging": column("divergent__"),
        "cpu_s": sum(seconds for _, seconds, _ in found),
        "sampling_cpu_s": sum(seconds * share for _, seconds, share in found),
    }
    Path(sys.argv[3]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
