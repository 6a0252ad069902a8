"""The servers that are compared: how each is started, and what its processes have cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import tritonclient.grpc as triton

from enginehouse.workers.environments import WorkerEnvironments
from serving.cases import MODELS

PEERS = Path(__file__).resolve().parent / "peers"
# For the floor, which is tuned with the front's own settings.
TUNING = PEERS.parents[2] / "services" / "inference"
OURS = "enginehouse"
FLOOR = "bare grpcio"
START_SECONDS = 180.0


@dataclass(frozen=True)
class ServerSpec:
    """A server to run. `environment`: the virtual environment of a peer; ours runs where this runs.

    `shared`: it takes system shared memory.
    """

    name: str
    program: str = ""
    arguments: tuple[str, ...] = ()
    environment: str = ""
    shared: bool = False


SERVERS = (
    ServerSpec(OURS, shared=True),
    ServerSpec("Triton (PyTriton)", "pytriton_peer.py", environment="pytriton", shared=True),
    ServerSpec("KServe", "kserve_peer.py", environment="kserve"),
    ServerSpec("MLServer", "mlserver_peer.py", environment="mlserver"),
    ServerSpec(FLOOR, "bare.py", ("threads",), environment="bare", shared=True),
    ServerSpec("bare grpc.aio", "bare.py", ("asyncio",), environment="bare", shared=True),
)


class NotStartedError(Exception):
    """A server could not be started; the message says why."""


@dataclass
class Server:
    """A running server. CPU time is that of its process and of all processes below it."""

    spec: ServerSpec
    port: int
    process: subprocess.Popen[bytes]
    versions: Mapping[str, str] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        """User and system time of the whole tree until now, children that have ended included."""
        root = psutil.Process(self.process.pid)
        total = 0.0
        for process in (root, *root.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def stop(self) -> None:
        tree = [*psutil.Process(self.process.pid).children(recursive=True)]
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in tree:
            if process.is_running():
                process.kill()


def start(spec: ServerSpec, models: Path, work: Path, environments: Path) -> Server:
    """Start a server and wait until it serves the models.

    Raises:
        NotStartedError: its environment is not there, or it ended, or it did not serve in time.
    """
    if spec.name == OURS:
        server = start_ours(spec, work)
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            _load_models(client, models)
        return server
    python = environments.absolute() / spec.environment / "bin" / "python"
    if not python.exists():
        raise NotStartedError(f"{python} is not there: see serving/environments.py")
    label = "-".join([spec.environment, *spec.arguments])
    announced = work / f"{label}.json"
    command = [str(python), str(PEERS / spec.program), str(models), str(announced), *spec.arguments]
    bare = spec.environment == "bare"
    variables = {"PYTHONPATH": str(TUNING)} if bare else {}
    return _launch(spec, command, variables, announced, awaited=() if bare else MODELS)


def start_ours(spec: ServerSpec, work: Path) -> Server:
    """Start our server, with no model.

    Raises:
        NotStartedError: it ended, or did not serve in time.
    """
    announced = work / f"{OURS}.json"
    variables = {
        "ENGINEHOUSE_PORT": "0",
        "ENGINEHOUSE_ANNOUNCE_FILE": str(announced),
        "ENGINEHOUSE_CACHE_DIR": str(work / "cache"),
        "ENGINEHOUSE_LOG_LEVEL": "warning",
    }
    server = _launch(spec, [sys.executable, "-m", "enginehouse_inference"], variables, announced)
    return replace(server, versions={"onnxruntime": _worker_version("onnxruntime"), "grpcio": grpc.__version__})


def _launch(
    spec: ServerSpec, command: list[str], variables: Mapping[str, str], announced: Path, awaited: Sequence[str] = ()
) -> Server:
    """Start a process and wait until it has announced its port and the awaited models are ready."""
    log = announced.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=announced.parent,  # MLServer and Triton leave files where they run
            env={**os.environ, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    try:
        while not announced.exists():
            _check(process, deadline)
        facts: dict[str, Any] = json.loads(announced.read_text())
        server = Server(spec, int(facts["port"]), process, facts.get("versions", {}))
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            for model in awaited:
                while not _ready(client, model):
                    _check(process, deadline)
    except NotStartedError as error:
        process.kill()
        lines = log.read_text(errors="replace").strip().splitlines()
        raise NotStartedError(f"{error}: {' / '.join(lines[-3:])[:300]}") from None
    return server


def _worker_version(package: str) -> str:
    """The version in the environment that our server computes in."""
    python = WorkerEnvironments.discover().for_backend("onnxruntime").python
    asked = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([str(python), "-c", asked], check=True, capture_output=True, text=True).stdout.strip()


def _check(process: subprocess.Popen[bytes], deadline: float) -> None:
    if process.poll() is not None:
        raise NotStartedError(f"it ended with status {process.returncode}")
    if time.monotonic() > deadline:
        raise NotStartedError(f"it does not serve after {START_SECONDS:g} s")
    time.sleep(0.05)


def _ready(client: Any, model: str) -> bool:
    try:
        return bool(client.is_model_ready(model))
    except triton.InferenceServerException:
        return False


def _load_models(client: Any, models: Path) -> None:
    for model in MODELS:
        config = {"engine_directory": str(models / model), "options": {"intra_op_threads": "1"}}
        client.load_model(model, config=json.dumps(config))
