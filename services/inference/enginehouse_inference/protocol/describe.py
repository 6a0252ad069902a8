"""A served version as ModelMetadata and ModelConfig describe it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2, service_pb2

from enginehouse.workers.tensors import TensorSpec
from enginehouse_inference.batching.policy import QueuePolicy, TimeoutAction
from enginehouse_inference.devices.devices import gpu_index
from enginehouse_inference.models.version import ModelVersion

# Triton's names where it has one, because clients look at them.
_PLATFORMS = {
    "onnxruntime": "onnxruntime_onnx",
    "tensorrt": "tensorrt_plan",
    "tensorflow": "tensorflow_savedmodel",
    "tf-trt": "tensorflow_savedmodel",
}
_TYPES = {"BYTES": "TYPE_STRING"}


def metadata(version: ModelVersion, versions: Sequence[str]) -> service_pb2.ModelMetadataResponse:
    """Names, dtypes and whole shapes (-1 where any size goes, the batch included)."""
    return service_pb2.ModelMetadataResponse(
        name=version.model,
        versions=versions,
        platform=_platform(version),
        inputs=[_tensor(t, version.loaded.batched) for t in version.loaded.inputs],
        outputs=[_tensor(t, version.loaded.batched) for t in version.loaded.outputs],
    )


def config(version: ModelVersion) -> Any:
    """The Triton model configuration that this version is served by."""
    batched = version.loaded.batched
    gpu = gpu_index(version.worker.device)
    kind = model_config_pb2.ModelInstanceGroup
    message = model_config_pb2.ModelConfig(
        name=version.model,
        platform=_platform(version),
        backend=version.engine.backend,
        max_batch_size=version.max_batch_size,
        input=[_config_tensor(model_config_pb2.ModelInput, t, batched) for t in version.loaded.inputs],
        output=[_config_tensor(model_config_pb2.ModelOutput, t, batched) for t in version.loaded.outputs],
        instance_group=[
            kind(
                name=f"{version.model}_0",
                count=version.loading.instances,
                kind=kind.KIND_CPU if gpu is None else kind.KIND_GPU,
                gpus=[] if gpu is None else [gpu],
            )
        ],
        default_model_filename=version.engine.payload,
        version_policy=model_config_pb2.ModelVersionPolicy(
            specific=model_config_pb2.ModelVersionPolicy.Specific(versions=[version.plan.version])
        ),
    )
    for key, value in {
        **dict(version.loading.options),
        "precision": version.engine.precision,
        "backend_version": version.engine.backend_version,
        **({"device_product": version.engine.device_product} if version.engine.device_product else {}),
    }.items():
        message.parameters[key].string_value = value
    policy = version.batcher.policy
    if policy.join or policy.levels:  # Triton has priorities within its dynamic batcher only
        batching = message.dynamic_batching
        batching.preferred_batch_size.extend(policy.preferred_batch_sizes)
        batching.max_queue_delay_microseconds = policy.max_queue_delay_ns // 1000
        _describe_queue(policy.queue, batching.default_queue_policy)
        batching.priority_levels = len(policy.levels)
        batching.default_priority_level = policy.default_level if policy.levels else 0
        for level, queue in enumerate(policy.levels, 1):
            _describe_queue(queue, batching.priority_queue_policy[level])
    message.response_cache.enable = bool(version.cache)
    return message


def _describe_queue(policy: QueuePolicy, message: Any) -> None:
    delays = policy.timeout_action is TimeoutAction.DELAY
    message.timeout_action = message.DELAY if delays else message.REJECT
    message.max_queue_size = policy.max_queue_size
    message.default_timeout_microseconds = (policy.queue_timeout_ns or 0) // 1000
    message.allow_timeout_override = policy.allow_timeout_override


def memory_usage(version: ModelVersion) -> list[service_pb2.MemoryUsage]:
    """What loading the version took, of the host's memory and of the device's."""
    loaded, gpu = version.loaded, gpu_index(version.worker.device)
    usage = [("CPU", 0, loaded.memory_bytes), ("GPU", gpu or 0, loaded.device_memory_bytes)]
    return [service_pb2.MemoryUsage(type=kind, id=index, byte_size=size) for kind, index, size in usage if size]


def _platform(version: ModelVersion) -> str:
    return _PLATFORMS.get(version.engine.backend, version.engine.backend)


def _tensor(spec: TensorSpec, batched: bool) -> service_pb2.ModelMetadataResponse.TensorMetadata:
    shape = (-1, *spec.shape[1:]) if batched else spec.shape
    return service_pb2.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.dtype, shape=shape)


def _config_tensor(kind: Any, spec: TensorSpec, batched: bool) -> Any:
    dims = spec.shape[1:] if batched else spec.shape
    dtype = model_config_pb2.DataType.Value(_TYPES.get(spec.dtype, f"TYPE_{spec.dtype}"))
    message = kind(name=spec.name, data_type=dtype, dims=dims or (1,))
    if not dims:
        # Triton's configuration cannot say rank 0 but as a reshape of one element.
        message.reshape.SetInParent()
    return message
