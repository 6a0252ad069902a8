"""What each method needs: every method of every service has its line here, and one without is denied."""

from __future__ import annotations

from enum import Enum


class Role(str, Enum):
    """What a caller may do in a project."""

    INFER = "infer"
    READ = "read"
    LOAD = "load"
    SUBMIT = "submit"
    TELEMETRY = "telemetry"
    ADMIN = "admin"


class Access(Enum):
    """Methods that need no role."""

    OPEN = "everybody, without any credentials"
    AUTHENTICATED = "every caller who is known"


# Who edits what is served, or has engines built, also looks at them.
_INCLUDES = {
    Role.LOAD: frozenset({Role.READ}),
    Role.SUBMIT: frozenset({Role.READ}),
    Role.ADMIN: frozenset(Role),
}

Needed = Access | tuple[Role, ...]
"""Any one of the roles, or none."""

_SERVED = (Role.INFER, Role.READ)
_NEEDED: dict[str, dict[str, Needed]] = {
    # A list would name the models.
    "grpc.health.v1.Health": {"Check": Access.OPEN, "List": Access.AUTHENTICATED, "Watch": Access.OPEN},
    # The API is public; what is behind it is not.
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": Access.AUTHENTICATED},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": Access.AUTHENTICATED},
    "enginehouse.v1.Blobs": {"FindBlob": (Role.READ,), "WriteBlob": (Role.SUBMIT,), "ReadBlob": (Role.READ,)},
    "enginehouse.v1.Models": {
        "CreateModel": (Role.SUBMIT,),
        "GetModel": (Role.READ,),
        "ListModels": (Role.READ,),
        "DeleteModel": (Role.SUBMIT,),
        "CreateDataset": (Role.SUBMIT,),
        "GetDataset": (Role.READ,),
        "ListDatasets": (Role.READ,),
        "DeleteDataset": (Role.SUBMIT,),
    },
    "enginehouse.v1.Engines": {
        "GetEngine": (Role.READ,),
        "ListEngines": (Role.READ,),
        "DeleteEngine": (Role.SUBMIT,),
        "PinEngine": (Role.SUBMIT,),
        "ImportEngine": (Role.SUBMIT,),
        # Moving an alias changes what is served.
        "SetAlias": (Role.LOAD,),
        "GetAlias": (Role.READ,),
        "ListAliases": (Role.READ,),
        "DeleteAlias": (Role.LOAD,),
    },
    "enginehouse.v1.Optimizer": {
        "Optimize": (Role.SUBMIT,),
        "WatchOperation": (Role.READ,),
        "RetryOptimization": (Role.SUBMIT,),
        "GetStageLog": (Role.READ,),
    },
    "google.longrunning.Operations": {
        "GetOperation": (Role.READ,),
        "ListOperations": (Role.READ,),
        "WaitOperation": (Role.READ,),
        "CancelOperation": (Role.SUBMIT,),
        "DeleteOperation": (Role.SUBMIT,),
    },
    "enginehouse.v1.ServingConfigs": {
        "GetServingConfig": (Role.READ,),
        "ListServingConfigs": (Role.READ,),
        "UpdateServingConfig": (Role.LOAD,),
        "DeleteServingConfig": (Role.LOAD,),
        "WatchServingConfigs": (Role.READ,),
    },
    "enginehouse.v1.Store": {
        "GetUsage": (Role.READ,),
        "CollectGarbage": (Role.ADMIN,),
        "CheckStore": (Role.ADMIN,),
    },
    "enginehouse.v1.Telemetry": {
        "ListDevices": (Role.TELEMETRY,),
        "GetSnapshot": (Role.TELEMETRY,),
        "StreamSamples": (Role.TELEMETRY,),
        "ListSamples": (Role.TELEMETRY,),
    },
    "enginehouse.v1.ClusterTelemetry": {
        "GetClusterSnapshot": (Role.TELEMETRY,),
        "StreamCluster": (Role.TELEMETRY,),
    },
    "inference.GRPCInferenceService": {
        # The protocol's health checks, which name nothing.
        "ServerLive": Access.OPEN,
        "ServerReady": Access.OPEN,
        "ModelReady": _SERVED,
        "ServerMetadata": _SERVED,
        "ModelMetadata": _SERVED,
        "ModelInfer": (Role.INFER,),
        "ModelStreamInfer": (Role.INFER,),
        "ModelConfig": _SERVED,
        "ModelStatistics": _SERVED,
        "RepositoryIndex": _SERVED,
        "RepositoryModelLoad": (Role.LOAD,),
        "RepositoryModelUnload": (Role.LOAD,),
        "SystemSharedMemoryStatus": (Role.INFER,),
        "SystemSharedMemoryRegister": (Role.INFER,),
        "SystemSharedMemoryUnregister": (Role.INFER,),
        "CudaSharedMemoryStatus": (Role.INFER,),
        "CudaSharedMemoryRegister": (Role.INFER,),
        "CudaSharedMemoryUnregister": (Role.INFER,),
        "TraceSetting": (Role.ADMIN,),
        "LogSettings": (Role.ADMIN,),
    },
}
_METHODS = {f"/{service}/{name}": needed for service, names in _NEEDED.items() for name, needed in names.items()}


def needed_for(method: str) -> Needed | None:
    """What a method such as "/enginehouse.v1.Models/GetModel" needs; None: nobody said, and nobody may call it."""
    return _METHODS.get(method)


def with_included(role: Role) -> frozenset[Role]:
    """A role and those that it includes."""
    return _INCLUDES.get(role, frozenset()) | {role}
