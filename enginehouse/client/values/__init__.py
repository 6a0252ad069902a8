"""What the SDK takes and returns: frozen dataclasses, made from and turned into the protocol's messages."""

from __future__ import annotations

from enginehouse.client.values.cluster import ClusterNode
from enginehouse.client.values.datasets import Dataset, TfRecordFeatures
from enginehouse.client.values.engines import (
    Alias,
    BatchProfile,
    Device,
    Engine,
    EngineFile,
    TensorSpec,
    Verification,
)
from enginehouse.client.values.inference import InferResult, ModelIndex, ModelSignature
from enginehouse.client.values.jobs import JobEvent, JobView, StageView
from enginehouse.client.values.models import ImportOptions, Model, Preprocessing, Zoo
from enginehouse.client.values.serving import Batching, PriorityQueue, ServedVersion, ServingConfig
from enginehouse.client.values.targets import AutomaticExclusion, Calibration, Synthetic, Target, VerificationSpec
from enginehouse.client.values.telemetry import (
    DeviceList,
    GpuAllocation,
    GpuDevice,
    GpuProcess,
    GpuSample,
    HostSample,
    MigInstance,
    Sample,
)

__all__ = [
    "Alias",
    "AutomaticExclusion",
    "BatchProfile",
    "Batching",
    "Calibration",
    "ClusterNode",
    "Dataset",
    "Device",
    "DeviceList",
    "Engine",
    "EngineFile",
    "GpuAllocation",
    "GpuDevice",
    "GpuProcess",
    "GpuSample",
    "HostSample",
    "ImportOptions",
    "InferResult",
    "JobEvent",
    "JobView",
    "MigInstance",
    "Model",
    "ModelIndex",
    "ModelSignature",
    "Preprocessing",
    "PriorityQueue",
    "Sample",
    "ServedVersion",
    "ServingConfig",
    "StageView",
    "Synthetic",
    "Target",
    "TensorSpec",
    "TfRecordFeatures",
    "Verification",
    "VerificationSpec",
    "Zoo",
]
