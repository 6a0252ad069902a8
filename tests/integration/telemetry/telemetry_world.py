"""A fake NVML library driven by a file, and the real service as a subprocess."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc

from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse.v1 import telemetry_pb2_grpc as pb_grpc

PATIENCE = 30.0

HOPPER = {
    "uuid": "GPU-aaaa",
    "name": "NVIDIA H200",
    "serial": "1650000000001",
    "vbios": "96.00.99.00.01",
    "pci": "00000000:3B:00.0",
    "capability": "9.0",
    "memory.total": 150754820096,
    "memory.used": 1073741824,
    "memory.reserved": 536870912,
    "utilization.gpu": 45,
    "utilization.memory": 20,
    "utilization.encoder": 1,
    "utilization.decoder": 2,
    "pstate": 0,
    "power": 70123,
    "power.average": 70000,
    "power.instant": 71000,
    "power.limit": 700000,
    "power.enforced": 650000,
    "power.default": 700000,
    "power.min": 200000,
    "power.max": 700000,
    "temperature": 34,
    "temperature.memory": 40,
    "pcie.gen": 5,
    "pcie.gen.max": 5,
    "pcie.width": 16,
    "pcie.width.max": 16,
    "pcie.replays": 3,
    "pcie.tx": 1000,
    "pcie.rx": 2000,
    "clock.graphics": 1965,
    "clock.sm": 1980,
    "clock.memory": 3201,
    "clock.video": 1545,
    "clock.max.graphics": 1980,
    "clock.max.sm": 1980,
    "clock.max.memory": 3201,
    "energy": 123456789012,
    "reasons": "0x5",
    "ecc": 1,
    "ecc.corrected.volatile": 1,
    "ecc.uncorrected.volatile": 0,
    "ecc.corrected.aggregate": 4,
    "ecc.uncorrected.aggregate": 2,
    "mig": 0,
    "persistence": 1,
    "compute_mode": 3,
    "process.compute": "4242:1000000 4243:0xffffffffffffffff",
    "process.graphics": "4244:5",
}

# A passively cooled board of an older kind: no memory sensor, no ECC, no energy counter, and sentinels for the rest.
TURING = {
    "uuid": "GPU-bbbb",
    "name": "Tesla T4",
    "memory.total": 16106127360,
    "memory.used": 0,
    "utilization.gpu": 0,
    "utilization.memory": 0,
    "pstate": 32,
    "power": "0xFFFFFFFF",
    "temperature": 60,
    "temperature.memory": 0,
    "pcie.gen": "0xFFFFFFFF",
    "energy": "0xFFFFFFFFFFFFFFFF",
    "ecc.corrected.volatile": "0xFFFFFFFFFFFFFFFF",
    "clock.sm": "!4",
    "reasons": 0,
}


class Control:
    """The file that the fake library reads: a mapping of keys, rewritten whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {"driver": "550.54.15", "cuda": 12040, "count": 0, "process.4242": "python3"}

    def gpu(self, index: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._values[f"{index}.{name}"] = value
        self._values["count"] = max(int(self._values["count"]), index + 1)

    def set(self, **values: Any) -> None:
        """Set keys ("_" stands for "."; "gpu0_lost" is "0.lost"); None removes one."""
        for name, value in values.items():
            key = name.removeprefix("gpu").replace("_", ".") if name.startswith("gpu") else name
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = value
        self.write()

    def write(self) -> None:
        draft = self.path.with_suffix(".draft")
        draft.write_text("".join(f"{key} {value}\n" for key, value in self._values.items()))
        draft.replace(self.path)


def build(folder: Path, *flags: str) -> Path:
    """Compile the fake library."""
    library = folder / "libfake.so"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", *flags, "-o", str(library), str(source)], check=True)
    return library


def install(library: Path, folder: Path) -> None:
    """Put a library where the loader finds it, in one step."""
    folder.mkdir(exist_ok=True)
    shutil.copy(library, folder / "draft")
    (folder / "draft").replace(folder / "libnvidia-ml.so.1")


def eventually(check: Callable[[], Any], what: str) -> Any:
    """The first true result of `check`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if result := check():
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {PATIENCE} s")


class Agent:
    """The running service."""

    def __init__(self, process: subprocess.Popen[bytes], ports: Mapping[str, int], log: Path) -> None:
        self.process, self.ports, self.log = process, ports, log
        self.channel = grpc.insecure_channel(f"127.0.0.1:{ports['port']}")
        self.stub = pb_grpc.TelemetryStub(self.channel)

    def snapshot(self, *paths: str) -> pb.Sample:
        request = pb.GetSnapshotRequest(parent="projects/default")
        request.read_mask.paths.extend(paths)
        return self.stub.GetSnapshot(request, timeout=PATIENCE)

    def devices(self) -> pb.ListDevicesResponse:
        return self.stub.ListDevices(pb.ListDevicesRequest(parent="projects/default/nodes/node-1"), timeout=PATIENCE)

    def when(self, check: Callable[[pb.Sample], Any], what: str) -> pb.Sample:
        """The first sample for which `check` is true."""

        def look() -> pb.Sample | None:
            sample = self.snapshot()
            return sample if check(sample) else None

        return eventually(look, what)

    def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.ports['metrics_port']}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return response.read().decode()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def environment(libraries: Path, control: Path, **settings: str) -> dict[str, str]:
    """Variables of a process that loads the fake library."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENGINEHOUSE_")}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "LD_LIBRARY_PATH": str(libraries),
        "FAKE_NVML_CONTROL": str(control),
        **{f"ENGINEHOUSE_{name}": value for name, value in settings.items()},
    }


@contextlib.contextmanager
def running(folder: Path, libraries: Path, control: Path, **settings: str) -> Iterator[Agent]:
    """The service, sampling every 100 ms unless `settings` say otherwise."""
    announced = folder / "announced.json"
    defaults = {
        "PORT": "0",
        "METRICS_PORT": "0",
        "NODE_NAME": "node-1",
        "SAMPLE_PERIOD_SECONDS": "0.1",
        "DETAIL_PERIOD_SECONDS": "0.1",
        "ANNOUNCE_FILE": str(announced),
    }
    log = folder / "agent.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "enginehouse_telemetry"],
            env=environment(libraries, control, **{**defaults, **settings}),
            stdout=sink,
            stderr=sink,
        )
    agent = None
    try:
        eventually(lambda: announced.exists() or process.poll() is not None, "starting")
        assert process.poll() is None, log.read_text()
        agent = Agent(process, json.loads(announced.read_text()), log)
        yield agent
    finally:
        if agent is not None:
            agent.channel.close()
        if process.poll() is None:
            process.kill()
            process.wait()
