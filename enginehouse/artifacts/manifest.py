"""The manifest of an engine: what it is, what it was made from and how, as canonical JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from enginehouse.artifacts.digest import canonical_json, digest_bytes, digest_json
from enginehouse.artifacts.tree import Tree
from enginehouse.errors import InvalidArgumentError

SCHEMA = 1


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; `dtype` in the Open Inference Protocol's names, -1 for a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class DeviceSpec:
    """What an engine was built for: `kind` is "cpu" or "gpu"."""

    kind: str
    product: str = ""
    compute_capability: str = ""
    driver_version: str = ""


@dataclass(frozen=True)
class ProfileSpec:
    """Batch sizes that an engine is built for."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class StageRecord:
    """How one stage was run. `key` is its cache key; `result` what it recorded (versions, counts, seconds, bytes)."""

    name: str
    stage: str
    environment: str
    key: str
    inputs: Mapping[str, str]
    params: Mapping[str, Any]
    result: Mapping[str, Any]


@dataclass(frozen=True)
class EngineManifest:
    """Everything there is to know of an engine. `files` is its directory; digests are of blobs beside it.

    `verification` holds what was measured, under the API's field names; times are RFC 3339 in UTC.
    """

    key: str
    model: str
    model_digest: str
    precision: str
    backend: str
    backend_version: str
    device: DeviceSpec
    profile: ProfileSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    max_batch_size: int
    files: Tree
    options: Mapping[str, str] = field(default_factory=dict)
    calibration_digest: str = ""
    build_log_digest: str = ""
    verification: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[StageRecord, ...] = ()
    create_time: str = ""

    def to_json(self) -> str:
        """Canonical JSON."""
        fields = {name: value for name, value in vars(self).items() if name not in ("files", "stages")}
        value = {
            "schema": SCHEMA,
            **fields,
            "device": asdict(self.device),
            "profile": asdict(self.profile),
            "inputs": [asdict(spec) for spec in self.inputs],
            "outputs": [asdict(spec) for spec in self.outputs],
            "files": self.files.to_json(),
            "stages": [vars(stage) for stage in self.stages],
        }
        return canonical_json(value)

    @property
    def digest(self) -> str:
        """Digest of the canonical JSON: the manifest's blob."""
        return digest_bytes(self.to_json().encode())

    @classmethod
    def from_json(cls, text: str | bytes) -> EngineManifest:
        """Read a manifest; fields that this version does not know are ignored.

        Raises:
            InvalidArgumentError: it is not a manifest, or one of a later schema.
        """
        try:
            value = json.loads(text)
            if value["schema"] > SCHEMA:
                raise InvalidArgumentError(
                    f"the manifest has schema {value['schema']}; this version reads {SCHEMA}: upgrade enginehouse"
                )
            known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
            return cls(
                **{
                    **known,
                    "device": DeviceSpec(**value["device"]),
                    "profile": ProfileSpec(**value["profile"]),
                    "inputs": _tensors(value["inputs"]),
                    "outputs": _tensors(value["outputs"]),
                    "files": Tree.from_json(value["files"]),
                    "stages": tuple(StageRecord(**stage) for stage in value.get("stages", ())),
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidArgumentError(f"not an engine manifest: {error!r}") from error


def _tensors(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(v["name"]), str(v["dtype"]), tuple(int(d) for d in v["shape"])) for v in values)


def engine_key(determinants: Mapping[str, Any]) -> str:
    """The key of an engine: the digest of everything that determines it, as canonical JSON.

    Raises:
        InvalidArgumentError: a value is not made of what JSON has.
    """
    return digest_json(determinants)
