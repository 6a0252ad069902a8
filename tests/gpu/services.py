"""The real services as processes, with workers whose device can be spoiled on demand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tritonclient.grpc as triton
from machine import ROOT, Machine, with_poison

from enginehouse import Client
from enginehouse.local.plan import StackOptions
from enginehouse.local.stack import down, up

SECONDS = 240.0


@dataclass(frozen=True)
class Services:
    """A running stack: `poison` is the file that costs one worker its device."""

    home: Path
    client: Client
    poison: Path
    environment: Mapping[str, str]
    inference_pid: int

    @property
    def address(self) -> str:
        return str(self.client.addresses.inference)

    def triton(self) -> Any:
        return triton.InferenceServerClient(self.address)

    def workers(self) -> list[psutil.Process]:
        """The engine runners of the inference process."""
        children = psutil.Process(self.inference_pid).children(recursive=True)
        return [child for child in children if _is_runner(child)]

    def log(self, service: str = "inference") -> str:
        return (self.home / "logs" / f"{service}.log").read_text()


def _is_runner(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return "enginehouse_worker" in command and "serve" in command


@contextmanager
def running_services(machine: Machine, home: Path) -> Iterator[Services]:
    """All three services on free ports; engines run on the machine's device."""
    home.mkdir(parents=True, exist_ok=True)
    spoilt, trigger = with_poison(machine.environment, home)
    workers = {machine.onnx.name: str(machine.onnx.python), spoilt.name: str(spoilt.python)}
    paths = [str(ROOT), *(str(ROOT / "services" / name) for name in ("optimizer", "inference", "telemetry"))]
    environment = {
        "ENGINEHOUSE_WORKERS": json.dumps(workers),
        "ENGINEHOUSE_WORKER_PATH": str(ROOT / "worker"),
        "ENGINEHOUSE_DEVICE": machine.device,
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH", "")])]),
    }
    free = {"optimizer": 0, "inference": 0, "telemetry": 0}
    state = up(StackOptions(home, free, metrics_port=None, timeout=SECONDS, variables=environment))
    (inference,) = (service.pid for service in state.services if service.name == "inference")
    try:
        with Client.from_environment({"ENGINEHOUSE_HOME": str(home)}, timeout=120.0) as client:
            yield Services(home, client, trigger, environment, inference)
    finally:
        down(home, timeout=20)


def request(name: str, array: Any, dtype: str) -> Any:
    """A tritonclient input with its data in the message."""
    item = triton.InferInput(name, list(array.shape), dtype)
    item.set_data_from_numpy(array)
    return item


def command(services: Services, *arguments: str) -> str:
    """What a command of the CLI prints.

    Raises:
        AssertionError: it failed; with what it said.
    """
    done = subprocess.run(
        [sys.executable, "-c", "from enginehouse.cli.entry import main; main()", *arguments],
        env={**os.environ, **services.environment, "ENGINEHOUSE_HOME": str(services.home), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until the condition holds; returns what it returned."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.05)
    return result
