"""Whatever dies, whenever: every job ends, every published engine verifies, nothing half-written is visible.

The optimizer is a real process, killed for real; the worker is the one without a framework, so that each stage can be
held where it is to be killed.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from google.longrunning import operations_pb2
from optimizer_process import FP32, INT8, PARENT, OptimizerProcess, error_of

from enginehouse.artifacts import EngineManifest, Tree, digest_bytes
from enginehouse.errors import FailedPreconditionError, InternalError, InvalidArgumentError, ResourceExhaustedError
from enginehouse.v1 import engines_pb2
from enginehouse.v1 import optimizer_pb2 as pb

Start = Callable[..., OptimizerProcess]
SYNTHETIC = pb.CalibrationSpec(synthetic=pb.SyntheticData(samples=8))
KILLED = Path(__file__).parent / "killed_optimizer.py"

# Stages as the worker calls them, and the first such one of a request for an FP32 and an INT8 engine.
STAGES = {
    "freeze": "freeze",
    "convert": "convert",
    "calibrate": "calibrate",
    "quantize": "quantize onnxruntime",
    "reference": "reference",
    "build": "build onnxruntime fp32",
    "verify": "verify onnxruntime fp32",
}
POINTS = (
    "inputs are half written",
    "a built engine is not stored",
    "a built engine is half stored",
    "its result is not noted",
    "its result is noted",
    "manifests are not made",
    "manifests are made",
    "one of two engines is written",
    "engines are published",
    "the end is not written",
    "the end is written",
)


def sampled(names: tuple[str, ...], *always: str) -> list[object]:
    """All of them, those not named only among the slow tests."""
    return [name if name in always else pytest.param(name, marks=pytest.mark.slow) for name in names]


def audit(server: OptimizerProcess) -> list[str]:
    """Check all that can be seen, and all that is kept; returns the published engines' names."""
    operations = server.operations.ListOperations(operations_pb2.ListOperationsRequest(name=PARENT)).operations
    assert all(operation.done and operation.WhichOneof("result") for operation in operations)
    engines = server.engines.ListEngines(engines_pb2.ListEnginesRequest(parent=PARENT)).engines
    for engine in engines:
        for file in engine.files:
            data = server.download(file.digest)
            assert digest_bytes(data) == file.digest and len(data) == file.size_bytes, (engine.name, file.path)
        manifest = EngineManifest.from_json(server.download(engine.manifest_digest))
        assert manifest.digest == engine.manifest_digest and manifest.key == engine.key
        assert {entry.path for entry in manifest.files.entries} == {file.path for file in engine.files}
    for file in (server.data_dir / "projects" / "default" / "blobs" / "sha256").rglob("*"):
        assert not file.is_file() or digest_bytes(file.read_bytes()) == f"sha256:{file.name}", file
    with sqlite3.connect(server.data_dir / "optimizer.sqlite") as database:
        for (tree,) in database.execute("SELECT tree FROM stage_results"):
            for entry in Tree.from_json(json.loads(tree)).entries:
                assert server.download(entry.digest) is not None
    assert not list((server.data_dir / "work").glob("*"))
    return [engine.name for engine in engines]


def both(server: OptimizerProcess, model: str) -> operations_pb2.Operation:
    return server.optimize(model, FP32, INT8, calibration=SYNTHETIC)


@pytest.mark.parametrize("stage", sampled(tuple(STAGES), "convert"))
def test_the_service_killed_in_a_stage(start: Start, tmp_path: Path, stage: str) -> None:
    server = start()
    gate = tmp_path / "gate"
    operation = both(server, server.model(**{stage: "gate"}, gate=str(gate)))
    server.await_stage(operation.name, STAGES[stage], message="started")
    server.stop(signal.SIGKILL)
    gate.touch()
    server.start()
    engines = server.result(operation)
    assert audit(server) == sorted(engine.name for engine in engines) and len(engines) == 2
    states = server.states(operation.name)
    before = list(STAGES)[: list(STAGES).index(stage)]
    assert all(states[STAGES[name]] == "REUSED" for name in before if name in ("freeze", "convert")), states


@pytest.mark.parametrize("point", sampled(POINTS, "one of two engines is written"))
def test_the_service_killed_while_it_writes(tmp_path: Path, point: str) -> None:
    server = OptimizerProcess(tmp_path, program=KILLED, KILL_AT=point)
    operation = both(server, server.model())
    assert server.process is not None
    assert server.process.wait(60) == -signal.SIGKILL
    server.channel.close()
    del server.variables["KILL_AT"]
    server.start()
    try:
        engines = server.result(operation)
        assert audit(server) == sorted(engine.name for engine in engines) and len(engines) == 2
        stages = server.metadata(operation.name).stages
        assert all(stage.seconds == 0.01 for stage in stages), "also of stages that are reused"
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("stages", [("build",), pytest.param(tuple(STAGES), marks=pytest.mark.slow)], ids=len)
def test_a_stage_killed_and_its_job_tried_again(start: Start, tmp_path: Path, stages: tuple[str, ...]) -> None:
    server = start()
    for stage in stages:
        name = STAGES[stage]
        gate = tmp_path / stage
        operation = both(server, server.model(**{stage: "gate"}, gate=str(gate)))
        server.await_stage(operation.name, name, message="started")
        waiting = error_of(server.optimizer.RetryOptimization, pb.RetryOptimizationRequest(name=operation.name))
        assert isinstance(waiting, FailedPreconditionError) and "not done" in waiting.message
        for pid in server.stage_pids():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(InternalError, match="SIGKILL") as caught:
            server.result(operation)
        assert caught.value.details["stage"].split()[0] == stage
        gate.touch()
        request = pb.RetryOptimizationRequest(name=operation.name, request_id=str(uuid4()))
        retry = server.optimizer.RetryOptimization(request)
        assert retry.name != operation.name
        assert server.optimizer.RetryOptimization(request).name == retry.name
        assert len(server.result(retry)) == 2
        if stage != "freeze":
            assert server.states(retry.name)["freeze"] == "REUSED"
            log = pb.GetStageLogRequest(name=retry.name, stage="freeze")
            assert "freeze starts" in server.optimizer.GetStageLog(log).text, "the log of the run that is reused"
    own = pb.RetryOptimizationRequest(name=retry.name, request_id=request.request_id)
    assert isinstance(error_of(server.optimizer.RetryOptimization, own), InvalidArgumentError)
    assert len(audit(server)) == 2 * len(stages)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose device has 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all space that is left on a device."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return filler


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    server = OptimizerProcess(small_disk)
    server.log = tmp_path / "optimizer.log"
    try:
        done = both(server, server.model())
        published = {engine.name for engine in server.result(done)}
        # A stage fills the disk.
        with pytest.raises(ResourceExhaustedError, match="No space left"):
            server.result(both(server, server.model(build="full")))
        assert set(audit(server)) == published
        # The disk is full when a stage ends, and for the service itself.
        gate = tmp_path / "gate"
        operation = both(server, server.model(build="gate", gate=str(gate)))
        server.await_stage(operation.name, "build onnxruntime fp32", message="started")
        filler = fill(small_disk)
        refused = error_of(server.upload, os.urandom(1 << 20))
        assert isinstance(refused, ResourceExhaustedError), refused
        gate.touch()
        time.sleep(2)  # until the stage has met the full disk
        assert server.process is not None and server.process.poll() is None
        assert {
            engine.name for engine in server.engines.ListEngines(engines_pb2.ListEnginesRequest(parent=PARENT)).engines
        } == published
        filler.unlink()
        with pytest.raises(ResourceExhaustedError):
            server.result(operation)
        assert set(audit(server)) == published
        # It recovers by itself.
        again = server.optimizer.RetryOptimization(pb.RetryOptimizationRequest(name=operation.name))
        assert len(server.result(again)) == 2
        assert len(audit(server)) == len(published) + 2
    finally:
        assert server.stop() == 0
