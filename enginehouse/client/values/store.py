"""What the store says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.v1 import store_pb2 as pb


@dataclass(frozen=True)
class StoreUsage:
    """Bytes of a project's store, and how many blobs it has. A blob that several need is counted once."""

    blobs: int
    bytes: int
    model_bytes: int
    dataset_bytes: int
    engine_bytes: int
    stage_result_bytes: int
    garbage_bytes: int
    unfinished_upload_bytes: int
    quarantined_bytes: int
    timing_cache_bytes: int = 0

    @classmethod
    def from_proto(cls, message: pb.Usage) -> StoreUsage:
        return cls(**{name: getattr(message, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Garbage:
    """What a collection removed, or would remove; `bytes` of blobs."""

    blobs: int
    bytes: int
    stage_results: int
    finished_operations: int
    unfinished_uploads: int
    quarantined: int

    @classmethod
    def from_proto(cls, message: pb.CollectGarbageResponse) -> Garbage:
        return cls(**{name: getattr(message, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class StoreFinding:
    """Something wrong: `kind` is "damaged", "missing" or "inconsistent"; `resource` is who names the blob, or empty."""

    kind: str
    digest: str
    resource: str
    message: str
    repaired: bool

    @classmethod
    def from_proto(cls, message: pb.Finding) -> StoreFinding:
        return cls(message.kind, message.digest, message.resource, message.message, message.repaired)


@dataclass(frozen=True)
class StoreTotals:
    """What a check looked at, and how many findings it made."""

    blobs: int
    bytes: int
    findings: int
    engines: int

    @classmethod
    def from_proto(cls, message: pb.CheckTotals) -> StoreTotals:
        return cls(message.blobs, message.bytes, message.findings, message.engines)
