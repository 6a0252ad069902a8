"""Enginehouse: build, store, serve and watch deep-learning inference engines.

    from enginehouse import Client, Target

    with Client.from_environment() as client:
        model = client.models.upload("model.onnx")
        (engine,) = client.optimize(model, [Target("onnxruntime", "fp32")]).result()
        client.load("mine", engine)
        print(client.infer("mine", images).only())

Importing this package costs nothing; its names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginehouse.client import (
        TLS,
        Alias,
        AsyncClient,
        AsyncJob,
        AutomaticExclusion,
        Balancing,
        Batching,
        BatchProfile,
        Calibration,
        Client,
        ClusterNode,
        Dataset,
        Device,
        DeviceList,
        Engine,
        EngineFile,
        GpuAllocation,
        GpuDevice,
        GpuProcess,
        GpuSample,
        Hedging,
        HostSample,
        ImportOptions,
        InferResult,
        Job,
        JobEvent,
        JobView,
        MigInstance,
        Model,
        ModelIndex,
        ModelSignature,
        Preprocessing,
        PriorityQueue,
        Retry,
        Sample,
        ServedVersion,
        ServingConfig,
        StageView,
        Synthetic,
        Target,
        TensorSpec,
        TfRecordFeatures,
        Token,
        Verification,
        VerificationSpec,
        Zoo,
    )
    from enginehouse.errors import EnginehouseError

__all__ = [
    "TLS",
    "Alias",
    "AsyncClient",
    "AsyncJob",
    "AutomaticExclusion",
    "Balancing",
    "BatchProfile",
    "Batching",
    "Calibration",
    "Client",
    "ClusterNode",
    "Dataset",
    "Device",
    "DeviceList",
    "Engine",
    "EngineFile",
    "EnginehouseError",
    "GpuAllocation",
    "GpuDevice",
    "GpuProcess",
    "GpuSample",
    "Hedging",
    "HostSample",
    "ImportOptions",
    "InferResult",
    "Job",
    "JobEvent",
    "JobView",
    "MigInstance",
    "Model",
    "ModelIndex",
    "ModelSignature",
    "Preprocessing",
    "PriorityQueue",
    "Retry",
    "Sample",
    "ServedVersion",
    "ServingConfig",
    "StageView",
    "Synthetic",
    "Target",
    "TensorSpec",
    "TfRecordFeatures",
    "Token",
    "Verification",
    "VerificationSpec",
    "Zoo",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("enginehouse.errors" if name == "EnginehouseError" else "enginehouse.client"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
