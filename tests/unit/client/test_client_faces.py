"""The synchronous face: the same surface, threads, forks, closing; and what importing costs."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from client_servers import Servers

import enginehouse
from enginehouse import AsyncClient, AsyncJob, Client, Job, Target
from enginehouse.client import aio, calibrations, store, sync_resources
from enginehouse.client.addresses import from_environment
from enginehouse.client.connection import TLS
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.local.state import ServiceState, StackState, write_state

PAIRS = [
    (AsyncClient, Client),
    (AsyncJob, Job),
    (aio.AsyncModels, sync_resources.Models),
    (aio.AsyncDatasets, sync_resources.Datasets),
    (aio.AsyncEngines, sync_resources.Engines),
    (aio.AsyncJobs, sync_resources.Jobs),
    (aio.AsyncServing, sync_resources.Serving),
    (aio.AsyncTelemetry, sync_resources.Telemetry),
    (store.AsyncStore, store.Store),
    (calibrations.AsyncCalibrations, calibrations.Calibrations),
]
# `load`, `unload` and `start` of these are the clients' own methods.
INTERNAL = {AsyncClient: {"suspend", "leave_cluster"}, aio.AsyncServing: {"load", "unload"}, aio.AsyncJobs: {"start"}}


def _methods(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and callable(member)
    }


@pytest.mark.parametrize(("asynchronous", "synchronous"), PAIRS, ids=lambda kind: kind.__name__)
def test_the_two_surfaces_are_the_same(asynchronous: type, synchronous: type) -> None:
    wanted, found = _methods(asynchronous), _methods(synchronous)
    assert set(wanted) - INTERNAL.get(asynchronous, set()) == set(found)
    for name, signature in found.items():
        assert [(p.name, p.kind, p.default) for p in signature.parameters.values()] == [
            (p.name, p.kind, p.default) for p in wanted[name].parameters.values()
        ], name
        assert getattr(synchronous, name).__doc__, name
    constructors = [inspect.signature(kind).parameters.keys() for kind in (AsyncClient, Client)]
    assert constructors[0] == constructors[1]


def test_every_exported_name_exists() -> None:
    for name in enginehouse.__all__:
        assert getattr(enginehouse, name) is not None
    assert set(enginehouse.__all__) - {"EnginehouseError"} == set(enginehouse.client.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = enginehouse.Nothing


def test_values_calls_and_streams(sync_client: Client, sync_servers: Servers) -> None:
    x = np.ones((1, 3), np.float32)
    assert sync_client.infer("double", x).only().tolist() == [[2.0, 2.0, 2.0]]
    job = sync_client.optimize("m", [Target("onnxruntime", "fp32")])
    assert [event.sequence for event in job.events()] == [1, 2, 3, 4, 5]
    assert job.result(5) == []
    assert [int(r["y"][0, 0]) for r in sync_client.infer_stream("double", (n * x for n in range(3)))] == [0, 2, 4]
    stream = sync_client.telemetry.stream()
    assert next(stream).sequence == 1
    stream.close()


def test_several_threads_share_a_client(sync_client: Client) -> None:
    def one(n: int) -> float:
        return float(sync_client.infer("double", np.full((1, 3), n, np.float32)).only()[0, 0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(64))) == [2.0 * n for n in range(64)]


def test_closing(sync_servers: Servers) -> None:
    client = Client(sync_servers.address, sync_servers.address)
    client.models.list()
    before = threading.active_count()
    client.close()
    client.close()
    assert threading.active_count() < before
    with pytest.raises(FailedPreconditionError, match="closed"):
        client.models.list()
    Client().close()  # never used


def test_a_callback_may_not_call_the_client(sync_client: Client, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"model")
    with pytest.raises(FailedPreconditionError, match="would wait for itself"):
        sync_client.models.upload(path, progress=lambda done, size: sync_client.models.list())


FORK_ATTEMPTS = 6
FORKS = """
import os, sys
from enginehouse import Client
client = Client(sys.argv[1])
client.models.create_zoo(f"m{os.getpid()}", "vgg16")
if (child := os.fork()) == 0:
    print("child", len(client.models.list()), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", len(client.models.list()))
"""


def test_a_forked_child_goes_on_with_the_client(sync_servers: Servers) -> None:
    # In a process of its own: a gRPC server in the forking process is another matter.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # As docs/clients.md says: gRPC's own handlers of fork() now and then wait for ever on a busy machine.
    environment["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    command = [sys.executable, "-c", FORKS, sync_servers.address]
    found = []
    for attempt in range(1, FORK_ATTEMPTS + 1):
        output = subprocess.PIPE
        # A session of its own, so that a child that hangs goes with its parent.
        process = subprocess.Popen(
            command, stdout=output, stderr=output, text=True, env=environment, start_new_session=True
        )
        try:
            found.append(process.communicate(timeout=10))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            found.append(process.communicate())
        # Each attempt makes a model of its own.
        if found[-1][0].split() in (["child", str(n), "parent", str(n)] for n in range(1, attempt + 1)):
            return
    # A thread of gRPC's can hold one of its locks at the fork, which the child then waits for: but not each time.
    raise AssertionError(f"no fork of {FORK_ATTEMPTS} went well: {found}")


def test_importing_is_light() -> None:
    heavy = "matplotlib pydantic structlog typer rich psutil yaml pynvml jinja2 onnxruntime tensorflow"
    code = (
        "import sys, enginehouse\n"
        "assert not {'grpc', 'numpy', 'google'} & set(sys.modules), 'import enginehouse is not lazy'\n"
        "from enginehouse import Client\n"
        f"print(*[name for name in {heavy.split()!r} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.split() == []


def test_the_environment_comes_before_the_local_stack_and_that_before_defaults(tmp_path: Path) -> None:
    home = {"ENGINEHOUSE_HOME": str(tmp_path)}
    assert from_environment(home).addresses.optimizer == "127.0.0.1:8010"
    write_state(tmp_path, StackState((ServiceState("optimizer", 1, 2.0, 4321, "log"),)))
    assert from_environment(home).addresses.optimizer == "127.0.0.1:4321"
    given = from_environment({**home, "ENGINEHOUSE_OPTIMIZER": "there:1", "ENGINEHOUSE_PROJECT": "mine"})
    assert (given.addresses.optimizer, given.project, given.tls) == ("there:1", "mine", None)
    assert Client.from_environment({**home, "ENGINEHOUSE_CLIENT_CA": "/ca.pem"}).addresses.inference == "127.0.0.1:8001"
    (tmp_path / "state.json").write_text("{half")
    assert from_environment(home).addresses.optimizer == "127.0.0.1:8010"


def test_half_a_certificate_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="both or neither"):
        TLS(certificate=Path("c.pem"))
