"""Engines and what describes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from enginehouse.client.values.convert import enum_name, enum_value, id_of, time_or_none, value_or_none
from enginehouse.errors import DataLossError, InvalidArgumentError
from enginehouse.v1 import engines_pb2 as pb


def precision_name(value: int) -> str:
    """ "fp32", "tf32", "fp16", "bf16", "int8" or "fp8"."""
    return enum_name(pb.Precision, value, "PRECISION_")


def precision_value(name: str) -> pb.Precision.ValueType:
    """The protocol's precision of a name.

    Raises:
        InvalidArgumentError: there is no such precision.
    """
    value: pb.Precision.ValueType = enum_value(pb.Precision, name, "PRECISION_", "precision")
    return value


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `dtype` in the Open Inference Protocol's names ("FP32"); -1 is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def from_proto(cls, message: pb.TensorSpec) -> TensorSpec:
        return cls(message.name, message.dtype, tuple(message.shape))


@dataclass(frozen=True)
class BatchProfile:
    """Batch sizes that an engine is built for: the smallest, the one it is tuned for, the largest."""

    min: int = 1
    opt: int = 8
    max: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InvalidArgumentError(f"a batch profile needs 1 <= min <= opt <= max, got {self}")

    @classmethod
    def from_proto(cls, message: pb.BatchProfile) -> BatchProfile:
        return cls(message.min, message.opt, message.max)

    def to_proto(self) -> pb.BatchProfile:
        return pb.BatchProfile(min=self.min, opt=self.opt, max=self.max)


@dataclass(frozen=True)
class Device:
    """What an engine was built for. `kind` is "cpu" or "gpu"; `compute_capability` ("9.0") is empty for a CPU."""

    kind: str
    product: str
    compute_capability: str = ""
    driver_version: str = ""

    @classmethod
    def from_proto(cls, message: pb.Device) -> Device:
        return cls(message.kind, message.product, message.compute_capability, message.driver_version)


@dataclass(frozen=True)
class EngineFile:
    """A payload file: its path relative to the engine's directory, its digest, its size in bytes."""

    path: str
    digest: str
    size_bytes: int

    @classmethod
    def from_proto(cls, message: pb.EngineFile) -> EngineFile:
        return cls(message.path, message.digest, message.size_bytes)

    def relative(self) -> PurePosixPath:
        """The path, once it is known to stay inside the engine's directory.

        Raises:
            DataLossError: it would leave it.
        """
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise DataLossError(f"engine file {self.path!r} would lie outside the engine's directory")
        return path


@dataclass(frozen=True)
class Verification:
    """What verification measured; None is not measured. Accuracies are fractions in [0, 1], `sqnr_db` is in dB."""

    data: str
    samples: int
    top1: float | None = None
    top5: float | None = None
    reference_top1: float | None = None
    reference_top5: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None

    @classmethod
    def from_proto(cls, message: pb.Verification) -> Verification:
        return cls(
            data=message.data,
            samples=message.samples,
            top1=value_or_none(message, "top1"),
            top5=value_or_none(message, "top5"),
            reference_top1=value_or_none(message, "reference_top1"),
            reference_top5=value_or_none(message, "reference_top5"),
            sqnr_db=value_or_none(message, "sqnr_db"),
            cosine=value_or_none(message, "cosine"),
            top1_agreement=value_or_none(message, "top1_agreement"),
        )


@dataclass(frozen=True)
class Engine:
    """A published engine: immutable, named by the digest of everything that determines it.

    `aliases` are ids, such as "prod"; `sensitivity_digest` and `layers_digest` are of tables that not every engine has.
    """

    name: str
    key: str
    model: str
    model_digest: str
    precision: str
    backend: str
    backend_version: str
    device: Device
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[EngineFile, ...]
    size_bytes: int
    batched: bool = False
    max_batch_size: int = 0
    profile: BatchProfile | None = None
    calibration_digest: str = ""
    verification: Verification | None = None
    manifest_digest: str = ""
    build_log_digest: str = ""
    create_time: datetime | None = None
    sensitivity_digest: str = ""
    layers_digest: str = ""
    pinned: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The last part of the name: {model}-{backend}-{precision}-{12 digits of the key}."""
        return id_of(self.name)

    @classmethod
    def from_proto(cls, message: pb.Engine) -> Engine:
        return cls(
            name=message.name,
            key=message.key,
            model=message.model,
            model_digest=message.model_digest,
            precision=precision_name(message.precision),
            backend=message.backend,
            backend_version=message.backend_version,
            device=Device.from_proto(message.device),
            inputs=tuple(TensorSpec.from_proto(t) for t in message.inputs),
            outputs=tuple(TensorSpec.from_proto(t) for t in message.outputs),
            files=tuple(EngineFile.from_proto(f) for f in message.files),
            size_bytes=message.size_bytes,
            batched=message.batched,
            max_batch_size=message.max_batch_size,
            profile=_profile(message),
            calibration_digest=message.calibration_digest,
            verification=Verification.from_proto(message.verification) if message.HasField("verification") else None,
            manifest_digest=message.manifest_digest,
            build_log_digest=message.build_log_digest,
            create_time=time_or_none(message, "create_time"),
            sensitivity_digest=message.sensitivity_digest,
            layers_digest=message.layers_digest,
            pinned=message.pinned,
            aliases=tuple(message.aliases),
        )


@dataclass(frozen=True)
class Alias:
    """A name for an engine of a model that can move; written "{model}:{id}" where an engine is wanted."""

    name: str
    engine: str
    etag: str = ""
    update_time: datetime | None = None

    @property
    def id(self) -> str:
        """The last part of the name, such as "prod"."""
        return id_of(self.name)

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.name.rsplit("/aliases/", 1)[0]

    @property
    def short(self) -> str:
        """As commands take it: "{model}:{id}"."""
        return f"{id_of(self.model)}:{self.id}"

    @classmethod
    def from_proto(cls, message: pb.Alias) -> Alias:
        return cls(message.name, message.engine, message.etag, time_or_none(message, "update_time"))


def _profile(message: pb.Engine) -> BatchProfile | None:
    """None where the engine has none (a model without a batch dimension sends zeros or nothing)."""
    if not message.HasField("profile") or message.profile.max < 1:
        return None
    return BatchProfile.from_proto(message.profile)
