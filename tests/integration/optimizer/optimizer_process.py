"""A real optimizer in a process of its own, and what tests say to it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
from google.longrunning import operations_pb2, operations_pb2_grpc

from enginehouse.artifacts import digest_bytes
from enginehouse.errors import EnginehouseError
from enginehouse.rpc.status import from_proto, from_rpc_error
from enginehouse.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    engines_pb2,
    engines_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    optimizer_pb2,
    optimizer_pb2_grpc,
    serving_pb2_grpc,
    store_pb2_grpc,
)

ROOT = Path(__file__).resolve().parents[3]
FAKE_WORKER = ROOT / "tests" / "unit" / "workers" / "fake_worker"
PARENT = "projects/default"
FP32 = engines_pb2.PRECISION_FP32
INT8 = engines_pb2.PRECISION_INT8
CHUNK = 1 << 20


def fake_workers(*names: str) -> dict[str, str]:
    """Variables that make this interpreter the named worker environments, and the only ones."""
    return {
        "ENGINEHOUSE_WORKERS_DIR": os.devnull,
        "ENGINEHOUSE_WORKER_PATH": str(FAKE_WORKER),
        "ENGINEHOUSE_WORKERS": json.dumps(dict.fromkeys(names, sys.executable)),
    }


class OptimizerProcess:
    """`python -m enginehouse_optimizer` on a folder."""

    def __init__(self, root: Path, *, program: Path | None = None, **variables: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.data_dir = root / "data"
        self.variables = {
            **os.environ,
            **fake_workers("onnxruntime", "tensorflow"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "services" / "optimizer")]),
            "ENGINEHOUSE_DATA_DIR": str(self.data_dir),
            "ENGINEHOUSE_PORT": "0",
            "ENGINEHOUSE_ANNOUNCE_FILE": str(root / "announce.json"),
            "ENGINEHOUSE_STAGE_GRACE_SECONDS": "1",
            **variables,
        }
        self.command = [sys.executable, *([str(program)] if program else ["-m", "enginehouse_optimizer"])]
        self.log = root / "optimizer.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        announce = self.root / "announce.json"
        announce.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self.variables, stdout=log, stderr=log)
        end = time.monotonic() + 30
        while not announce.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        said = json.loads(announce.read_text())
        assert said["pid"] == self.process.pid
        self.channel = grpc.insecure_channel(f"127.0.0.1:{said['port']}")
        self.blobs = blobs_pb2_grpc.BlobsStub(self.channel)
        self.models = models_pb2_grpc.ModelsStub(self.channel)
        self.engines = engines_pb2_grpc.EnginesStub(self.channel)
        self.optimizer = optimizer_pb2_grpc.OptimizerStub(self.channel)
        self.store = store_pb2_grpc.StoreStub(self.channel)
        self.serving = serving_pb2_grpc.ServingConfigsStub(self.channel)
        self.operations = operations_pb2_grpc.OperationsStub(self.channel)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal the process; returns its exit status."""
        assert self.process is not None
        self.channel.close()
        self.process.send_signal(number)
        return self.process.wait(40)

    def stage_pids(self) -> list[int]:
        """Processes of stages that run now."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    # What tests say

    def upload(self, data: bytes, *, parent: str = PARENT, digest: str = "") -> str:
        digest = digest or digest_bytes(data)
        answer = self.blobs.WriteBlob(chunks(data, parent=parent, digest=digest))
        assert answer.complete and answer.committed_bytes == len(data)
        return digest

    def download(self, digest: str, offset: int = 0) -> bytes:
        data = b""
        for part in self.blobs.ReadBlob(blobs_pb2.ReadBlobRequest(parent=PARENT, digest=digest, offset=offset)):
            assert part.offset == offset + len(data) and zlib.crc32(part.data) == part.crc32
            assert len(part.data) <= CHUNK
            data += part.data
        return data

    def model(self, data: bytes | None = None, **orders: str) -> str:
        """Register a Keras file; for the fake worker, one that makes stages behave as ordered."""
        name = f"m-{uuid4().hex[:8]}"
        if data is None:
            data = b"PK\x03\x04" + json.dumps({**orders, "nonce": name}).encode()
        model = models_pb2.Model(format=models_pb2.MODEL_FORMAT_KERAS, blob=self.upload(data), file_name="x.keras")
        request = models_pb2.CreateModelRequest(parent=PARENT, model_id=name, model=model)
        return str(self.models.CreateModel(request).name)

    def dataset(self, data: bytes, name: str = "") -> models_pb2.Dataset:
        request = models_pb2.CreateDatasetRequest(
            parent=PARENT,
            dataset_id=name or f"d-{uuid4().hex[:8]}",
            dataset=models_pb2.Dataset(blob=self.upload(data), file_name="x.npz"),
        )
        answer: models_pb2.Dataset = self.models.CreateDataset(request)
        return answer

    def optimize(self, model: str, *precisions: Any, **fields: Any) -> operations_pb2.Operation:
        targets = [
            optimizer_pb2.EngineTarget(backend="onnxruntime", precision=precision) for precision in precisions or [FP32]
        ]
        request = {"parent": PARENT, "model": model, "targets": targets, **fields}
        operation: operations_pb2.Operation = self.optimizer.Optimize(optimizer_pb2.OptimizeRequest(**request))
        return operation

    def watch(self, name: str, after: int = 0, timeout: float = 60) -> Iterator[optimizer_pb2.OperationEvent]:
        request = optimizer_pb2.WatchOperationRequest(name=name, after_sequence=after)
        return iter(self.optimizer.WatchOperation(request, timeout=timeout))

    def await_stage(self, name: str, stage: str, state: str = "RUNNING", message: str = "") -> None:
        """Until a stage is in a state (and says a message)."""
        wanted = optimizer_pb2.StageState.Value(f"STAGE_STATE_{state}")
        for event in self.watch(name):
            if event.stage.name == stage and event.stage.state == wanted and message in event.stage.message:
                return
        raise AssertionError(f"{stage} was never {state}")

    def result(self, operation: operations_pb2.Operation, timeout: float = 60) -> list[engines_pb2.Engine]:
        """The engines of an operation, awaited; its error is raised."""
        events = list(self.watch(operation.name, timeout=timeout))
        final = events[-1].operation
        assert final.done
        if final.HasField("error"):
            raise from_proto(final.error)
        response = optimizer_pb2.OptimizeResponse()
        final.response.Unpack(response)
        return list(response.engines)

    def metadata(self, name: str) -> optimizer_pb2.OptimizeMetadata:
        operation = self.operations.GetOperation(operations_pb2.GetOperationRequest(name=name))
        metadata = optimizer_pb2.OptimizeMetadata()
        operation.metadata.Unpack(metadata)
        return metadata

    def states(self, name: str) -> dict[str, str]:
        """The state of each stage of an operation."""
        return {
            stage.name: optimizer_pb2.StageState.Name(stage.state).removeprefix("STAGE_STATE_")
            for stage in self.metadata(name).stages
        }


def chunks(
    data: bytes, *, digest: str, parent: str = PARENT, offset: int = 0, size: int | None = None, piece: int = CHUNK
) -> Iterator[blobs_pb2.WriteBlobRequest]:
    first = True
    position = offset
    while first or position < len(data):
        part = data[position : position + piece]
        message = blobs_pb2.WriteBlobRequest(offset=position, data=part, crc32=zlib.crc32(part))
        if first:
            message.parent, message.digest = parent, digest
            message.size_bytes = len(data) if size is None else size
        yield message
        first = False
        position += len(part)


def error_of(call: Any, *args: Any, **kwargs: Any) -> EnginehouseError:
    """The error that a call ends with, as the SDK would raise it."""
    try:
        answer = call(*args, **kwargs)
        if hasattr(answer, "__next__"):
            list(answer)
    except grpc.RpcError as error:
        return from_rpc_error(error)
    raise AssertionError(f"no error: {answer}")


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def zip_of(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()
