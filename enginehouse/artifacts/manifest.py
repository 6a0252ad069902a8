"""The manifest of an engine: what it is, what it was made from and how, as canonical JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from enginehouse.artifacts.digest import canonical_json, digest_bytes, digest_json, parse_digest
from enginehouse.artifacts.tree import Tree
from enginehouse.errors import DataLossError, InvalidArgumentError

SCHEMA = 1
# Far more than any manifest has; what is larger is not read.
MAX_MANIFEST_BYTES = 16 << 20
_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1
_TEXTS = ("key", "model", "model_digest", "precision", "backend", "backend_version", "create_time")
_OPTIONAL_DIGESTS = ("calibration_digest", "build_log_digest", "sensitivity_digest", "layers_digest")


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
    sensitivity_digest: str = ""
    layers_digest: str = ""
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
            value = json.loads(text, parse_constant=_no_constant)
            if value["schema"] > SCHEMA:
                raise InvalidArgumentError(
                    f"the manifest has schema {value['schema']}; this version reads {SCHEMA}: upgrade enginehouse"
                )
            known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
            manifest = cls(
                **{
                    **known,
                    "device": DeviceSpec(**value["device"]),
                    "profile": ProfileSpec(**value["profile"]),
                    "inputs": read_tensors(value["inputs"]),
                    "outputs": read_tensors(value["outputs"]),
                    "files": Tree.from_json(value["files"]),
                    "stages": tuple(StageRecord(**stage) for stage in value.get("stages", ())),
                }
            )
            _check_types(manifest)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InvalidArgumentError(f"not an engine manifest: {error!r}") from error
        return manifest


def manifest_blobs(manifest: EngineManifest) -> dict[str, int | None]:
    """The blobs that belong to an engine beside its manifest, by digest: sizes in bytes, None where it says none.

    Raises:
        InvalidArgumentError: it says two sizes of one blob.
    """
    blobs: dict[str, int | None] = {}
    for entry in manifest.files.entries:
        if blobs.setdefault(entry.digest, entry.size) != entry.size:
            raise InvalidArgumentError(f"the manifest says two sizes of {entry.digest}")
    for field_name in _OPTIONAL_DIGESTS:
        if digest := getattr(manifest, field_name):
            blobs.setdefault(digest, None)
    return blobs


def check_key(manifest: EngineManifest) -> None:
    """Raises DataLossError when the engine's key does not follow from its build stage."""
    builds = [stage.key for stage in manifest.stages if stage.stage == "build"]
    if not any(engine_key({"build": key}) == manifest.key for key in builds):
        raise DataLossError(f"the manifest's key {manifest.key} does not follow from its build stage: it was changed")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_types(manifest: EngineManifest) -> None:
    """Raises ValueError, TypeError or InvalidArgumentError when a field is not what it should be."""
    texts = [getattr(manifest, name) for name in _TEXTS] + list(vars(manifest.device).values())
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a field that should be text is not")
    for digest in (manifest.key, manifest.model_digest):
        parse_digest(digest)
    for name in _OPTIONAL_DIGESTS:
        if getattr(manifest, name) != "":
            parse_digest(getattr(manifest, name))
    for mapping in (manifest.options, manifest.verification):
        if not isinstance(mapping, dict):
            raise TypeError("options and verification should be objects")
    profile = manifest.profile
    for number in (profile.min, profile.opt, profile.max, manifest.max_batch_size):
        if type(number) is not int or not 0 <= number <= _MAX_INT32:
            raise ValueError(f"{number!r} is no batch size")
    if not isinstance(manifest.batched, bool):
        raise TypeError("batched should be true or false")
    for spec in (*manifest.inputs, *manifest.outputs):
        if not all(-1 <= size <= _MAX_INT64 for size in spec.shape):
            raise ValueError(f"{spec.name!r} has the shape {spec.shape}")
    for stage in manifest.stages:
        if not all(isinstance(text, str) for text in (stage.name, stage.stage, stage.environment, stage.key)):
            raise TypeError("a stage's field that should be text is not")


def read_tensors(values: Any) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of JSON. Raises TypeError, KeyError or ValueError when they are none."""
    return tuple(TensorSpec(str(v["name"]), str(v["dtype"]), tuple(int(d) for d in v["shape"])) for v in values)


def engine_key(determinants: Mapping[str, Any]) -> str:
    """The key of an engine: the digest of everything that determines it, as canonical JSON.

    Raises:
        InvalidArgumentError: a value is not made of what JSON has.
    """
    return digest_json(determinants)
