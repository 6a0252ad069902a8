"""Which engine is served for a configured one: for this GPU and TensorRT, by policy, built where it is missing."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from enginehouse_inference.desired.choice import EngineChoice
from enginehouse_inference.desired.fetch import EngineCache
from enginehouse_inference.desired.fitting import Here, candidates, misfit
from google.longrunning import operations_pb2

from enginehouse.artifacts import EngineManifest, Tree, digest_bytes
from enginehouse.artifacts.manifest import DeviceSpec, ProfileSpec, StageRecord
from enginehouse.errors import EnginehouseError, FailedPreconditionError, UnavailableError
from enginehouse.rpc.status import to_proto
from enginehouse.v1 import blobs_pb2, blobs_pb2_grpc, engines_pb2, engines_pb2_grpc, optimizer_pb2_grpc
from enginehouse.v1 import optimizer_pb2 as pb

PARENT = "projects/default"
INT8, FP32 = engines_pb2.PRECISION_INT8, engines_pb2.PRECISION_FP32
H200 = Here(frozenset({"tensorrt", "onnxruntime"}), "NVIDIA H200", "9.0", {"tensorrt": "8.6.0"})
CPU = Here(frozenset({"onnxruntime"}))


def engine(
    name: str = "a", product: str = "NVIDIA H200", capability: str = "9.0", version: str = "8.6.0",
    backend: str = "tensorrt", precision: Any = INT8, **more: Any,
) -> engines_pb2.Engine:  # fmt: skip
    kind = "cpu" if product == "cpu" else "gpu"
    tensor = engines_pb2.TensorSpec(name="x", dtype="FP32", shape=[-1, 4])
    return engines_pb2.Engine(
        name=f"{PARENT}/engines/{name}", model=f"{PARENT}/models/m", model_digest="sha256:m", backend=backend,
        precision=precision, backend_version=version, batched=True, inputs=[tensor],
        profile=engines_pb2.BatchProfile(min=1, opt=8, max=64),
        device=engines_pb2.Device(kind=kind, product=product, compute_capability=capability), **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "options", "here", "why"),
    [
        (engine(), {}, H200, ""),
        (engines_pb2.Engine(name="x"), {}, CPU, ""),
        (engine(), {}, CPU, "not installed"),
        (engine(), {}, Here(H200.environments), r"built for NVIDIA H200 \(9.0\)"),
        (engine(product="NVIDIA A100-SXM4-80GB", capability="8.0"), {}, H200, "built for NVIDIA A100"),
        (engine(product="NVIDIA A100-SXM4-80GB", capability="8.0"), {"hardware_compatible": "true"}, H200, ""),
        (engine(product="NVIDIA H100"), {}, H200, "built for NVIDIA H100"),
        (engine(product="any"), {}, H200, ""),
        (engine(product="any", capability="8.9"), {}, H200, r"built for any GPU of compute capability 8\.9"),
        # Where NVML does not say which GPU this is, the worker that loads the engine does.
        (engine(product="NVIDIA H100"), {}, Here(H200.environments, gpu=True), ""),
        (engine(product="NVIDIA H200 MIG 1g.18gb"), {}, H200, ""),
        (engine(version="8.5.3"), {}, H200, "built by tensorrt 8.5.3"),
        (engine(version="8.5.3"), {"version_compatible": "true"}, H200, ""),
        (engine(version="7.2.1"), {"version_compatible": "true"}, H200, "built by tensorrt 7.2.1"),
        (engine(product="cpu", backend="onnxruntime"), {}, CPU, ""),
    ],
)
def test_what_runs_here(given: engines_pb2.Engine, options: dict[str, str], here: Here, why: str) -> None:
    said = misfit(given, options, here)
    assert bool(said) == bool(why)
    assert re.search(why, said), said


def test_candidates_are_what_clients_cannot_tell_apart() -> None:
    configured = engine()
    old, new = engine("old"), engine("new")
    new.create_time.FromSeconds(10)
    other_input = engine("input")
    other_input.inputs[0].shape[1] = 5
    on_cpu = engine("cpu", product="cpu", backend="onnxruntime", precision=FP32)
    on_cpu_int8 = engine("cpu8", product="cpu", backend="onnxruntime")
    wider = engine("wider")
    wider.profile.max = 128
    others = [configured, old, new, other_input, on_cpu, on_cpu_int8, wider]
    assert [e.name[-3:] for e in candidates(configured, others, same_kind=True)] == ["new", "old"]
    ranked = [e.name.rsplit("/", 1)[1] for e in candidates(configured, others, same_kind=False)]
    assert ranked[:3] == ["new", "old", "wider"] and ranked[3:] == ["cpu8", "cpu"]


class Optimizer(engines_pb2_grpc.EnginesServicer, optimizer_pb2_grpc.OptimizerServicer, blobs_pb2_grpc.BlobsServicer):
    """What an optimizer answers; `ends` are how its builds end: an engine or an error, in their order."""

    def __init__(self, engines: Sequence[engines_pb2.Engine]) -> None:
        self.engines = {e.name: e for e in engines}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[pb.OptimizeRequest] = []
        self.ends: list[engines_pb2.Engine | EnginehouseError] = []
        self.operations: dict[str, operations_pb2.Operation] = {}
        self.broken_streams = 0

    def describe(self, described: engines_pb2.Engine, **manifest: Any) -> None:
        """Give an engine a manifest."""
        device = DeviceSpec("gpu", described.device.product)
        made = EngineManifest(
            digest_bytes(b"k"), described.model, digest_bytes(b"m"), "INT8", "tensorrt", "8.6.0", device,
            ProfileSpec(1, 8, 64), (), (),
            True, 64, Tree(()), **manifest,
        )  # fmt: skip
        described.manifest_digest = self.blob(made.to_json().encode())

    def blob(self, data: bytes) -> str:
        self.blobs[digest_bytes(data)] = data
        return digest_bytes(data)

    async def GetEngine(self, request: Any, context: Any) -> engines_pb2.Engine:
        if request.name not in self.engines:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such engine")
        return self.engines[request.name]

    async def ListEngines(self, request: Any, context: Any) -> engines_pb2.ListEnginesResponse:
        known = sorted(self.engines.values(), key=lambda e: e.name)
        begin = int(request.page_token or 0)
        token = str(begin + 1) if begin + 1 < len(known) else ""
        return engines_pb2.ListEnginesResponse(engines=known[begin : begin + 1], next_page_token=token)

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[blobs_pb2.ReadBlobResponse]:
        data = self.blobs[request.digest]
        yield blobs_pb2.ReadBlobResponse(data=data, crc32=zlib.crc32(data))

    async def Optimize(self, request: pb.OptimizeRequest, context: Any) -> operations_pb2.Operation:
        self.requests.append(request)
        name = f"{PARENT}/operations/{request.request_id}"
        return self.operations.setdefault(name, operations_pb2.Operation(name=name))

    async def WatchOperation(self, request: Any, context: Any) -> AsyncIterator[pb.OperationEvent]:
        yield pb.OperationEvent(sequence=1)
        if self.broken_streams:
            self.broken_streams -= 1
            return
        operation = self.operations[request.name]
        if operation.done:
            yield pb.OperationEvent(sequence=2, operation=operation)
            return
        end = self.ends.pop(0)
        operation.done = True
        if isinstance(end, EnginehouseError):
            operation.error.CopyFrom(to_proto(end))
        else:
            self.engines[end.name] = end
            operation.response.Pack(pb.OptimizeResponse(engines=[end]))
        yield pb.OperationEvent(sequence=2, operation=operation)


class World:
    def __init__(self, folder: Path, *engines: engines_pb2.Engine) -> None:
        self.folder = folder
        self.optimizer = Optimizer(engines)
        self.server = grpc.aio.server()
        engines_pb2_grpc.add_EnginesServicer_to_server(self.optimizer, self.server)
        optimizer_pb2_grpc.add_OptimizerServicer_to_server(self.optimizer, self.server)
        blobs_pb2_grpc.add_BlobsServicer_to_server(self.optimizer, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> World:
        await self.server.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.server.stop(None)

    def choice(self, policy: Any = "fail", here: Here = H200, gpu_product: str = "") -> EngineChoice:
        def channel() -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(self.address)

        async def facts(backend: str) -> Here:
            return here

        cache = EngineCache(self.folder, channel, self.address)
        return EngineChoice(cache, channel, facts, policy, target=self.address, gpu_product=gpu_product)


A100 = {"product": "NVIDIA A100-SXM4-80GB", "capability": "8.0"}


async def test_the_engine_for_this_gpu_is_served(tmp_path: Path) -> None:
    async with World(tmp_path, engine("a", **A100), engine("b")) as world:
        assert await world.choice().choose(f"{PARENT}/engines/b") == f"{PARENT}/engines/b"
        assert await world.choice().choose(f"{PARENT}/engines/a") == f"{PARENT}/engines/b"
    # The optimizer is away: what was chosen before.
    assert await world.choice().choose(f"{PARENT}/engines/a") == f"{PARENT}/engines/b"
    with pytest.raises(UnavailableError):
        await world.choice().choose(f"{PARENT}/engines/new")


async def test_policies_when_none_runs_here(tmp_path: Path) -> None:
    on_cpu = engine("cpu", product="cpu", backend="onnxruntime", precision=FP32)
    name = f"{PARENT}/engines/a"
    async with World(tmp_path, engine("a", **A100), on_cpu) as world:
        with pytest.raises(FailedPreconditionError, match=r"a does not run here.*A100.*tensorrt:int8@NVIDIA-H200"):
            await world.choice("fail").choose(name)
        assert await world.choice("fallback").choose(name) == on_cpu.name
        assert await world.choice("fallback", CPU).choose(name) == on_cpu.name
        for policy in ("wait", "fail"):
            with pytest.raises(FailedPreconditionError, match="serves without a GPU"):
                await world.choice(policy, CPU).choose(name)
        del world.optimizer.engines[on_cpu.name]
        with pytest.raises(FailedPreconditionError, match="no other engine"):
            await world.choice("fallback").choose(name)
        assert world.optimizer.requests == []


async def test_a_manifest_says_for_what_else_it_was_built(tmp_path: Path) -> None:
    wide = engine("a", **A100)
    async with World(tmp_path, wide) as world:
        world.optimizer.describe(wide, options={"hardware_compatible": "true"})
        assert await world.choice().choose(wide.name) == wide.name


async def test_a_missing_engine_is_built_like_the_configured_one(tmp_path: Path) -> None:
    configured = engine("a", **A100)
    async with World(tmp_path, configured) as world:
        optimizer = world.optimizer
        configured.calibration_digest = "sha256:" + "1" * 64
        configured.sensitivity_digest = optimizer.blob(json.dumps({"excluded": ["conv2"]}).encode())

        def record(stage: str, **params: Any) -> StageRecord:
            return StageRecord(stage, stage, "e", digest_bytes(b"k"), {}, params, {})

        optimizer.describe(
            configured,
            options={"optimization_level": "4"},
            verification={"data": f"{PARENT}/datasets/d"},
            stages=(
                record("convert", layout="nchw"),
                record("quantize", exclude=["conv1"]),
                record("verify", minimum_relative_accuracy=0.98, minimum_sqnr_db=12.0, max_samples=64),
            ),
        )
        optimizer.ends, optimizer.broken_streams = [engine("built")], 1
        first, second = await asyncio.gather(*(world.choice("wait").choose(configured.name) for _ in range(2)))
        assert first == second == f"{PARENT}/engines/built"
        assert len({request.request_id for request in optimizer.requests}) == 1, "replicas ask for one build"
        request = optimizer.requests[0]
        (target,) = request.targets
        assert (target.backend, target.precision, target.gpu_product) == ("tensorrt", INT8, "NVIDIA-H200")
        assert (dict(target.options), target.profile.max) == ({"optimization_level": "4"}, 64)
        assert request.calibration.table == configured.calibration_digest, "one calibration for all GPUs"
        assert list(request.calibration.exclude) == ["conv1", "conv2"] and request.input_layout == "nchw"
        assert request.verification.dataset == f"{PARENT}/datasets/d" and request.verification.max_samples == 64
        assert request.verification.minimum_relative_accuracy == 0.98
        assert await world.choice("wait").choose(configured.name) == f"{PARENT}/engines/built"
        assert len(optimizer.requests) == 2, "it is published now: nobody asks again"


async def test_builds_that_fail_are_tried_again_only_when_that_may_help(tmp_path: Path) -> None:
    configured = engine("a", **A100)
    async with World(tmp_path, configured) as world:
        optimizer = world.optimizer
        optimizer.describe(configured)
        optimizer.ends = [UnavailableError("evicted"), engine("built")]
        choice = world.choice("wait", gpu_product="NVIDIA-H200-MIG-1g.18gb")
        with pytest.raises(UnavailableError, match=r"could not build.*evicted"):
            await choice.choose(configured.name)
        assert await choice.choose(configured.name) == f"{PARENT}/engines/built"
        assert len({request.request_id for request in optimizer.requests}) == 2
        assert optimizer.requests[0].targets[0].gpu_product == "NVIDIA-H200-MIG-1g.18gb"
        del optimizer.engines[f"{PARENT}/engines/built"]
        optimizer.operations.clear()
        optimizer.requests.clear()
        optimizer.ends = [FailedPreconditionError("no such node")]
        for _ in range(2):
            with pytest.raises(FailedPreconditionError, match="no such node"):
                await choice.choose(configured.name)
        assert len({request.request_id for request in optimizer.requests}) == 1
