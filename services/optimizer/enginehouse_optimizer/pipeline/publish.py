"""Makes engines of finished stages: the manifest, its blob, and the row that the world sees. All or nothing.

The payload's blobs are stored already (they are the build stage's output), then the manifest's blob, then the row in
one transaction; so a reader of the row finds every byte, and a crash before it leaves only blobs that nobody names.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from enginehouse.artifacts import BlobStore, EngineManifest
from enginehouse.artifacts.manifest import DeviceSpec, ProfileSpec, StageRecord, TensorSpec
from enginehouse.errors import DataLossError, InternalError, InvalidArgumentError, NotFoundError
from enginehouse.v1 import engines_pb2 as pb
from enginehouse_optimizer.pipeline.flights import read_json_file
from enginehouse_optimizer.pipeline.inputs import Inputs
from enginehouse_optimizer.pipeline.plan import Output, Plan, PlannedEngine, PlannedStage
from enginehouse_optimizer.storage.stage_results import StageResult

# Of what a verification holds, what the API has fields for.
MEASURES = ("top1", "top5", "reference_top1", "reference_top5", "sqnr_db", "cosine", "top1_agreement")
# Why an engine was not verified: it was built for a device that is not here.
NOT_VERIFIED = "not_verified"
_NOT_PAYLOAD = ("result.json", "timing.cache")


def make_manifest(
    store: BlobStore, inputs: Inputs, plan: Plan, engine: PlannedEngine, results: Mapping[str, StageResult]
) -> EngineManifest:
    """The manifest of one engine. Reads the disk: call it from a thread.

    Raises:
        InternalError: a stage did not write what its protocol says.
    """
    build = results[engine.build]
    described = read_json_file(store, build.tree, "engine.json")
    measured = read_json_file(store, results[engine.verify].tree, "verification.json")
    stages = {stage.name: stage for name in (engine.build, engine.verify) for stage in plan.lineage(name)}
    try:
        return EngineManifest(
            key=engine.key,
            model=inputs.model.name,
            model_digest=inputs.model.digest,
            precision=engine.target.precision,
            backend=str(described["backend"]),
            backend_version=str(described["backend_version"]),
            device=_device(described.get("device", {})),
            profile=ProfileSpec(*engine.target.profile),
            inputs=_tensors(described["inputs"]),
            outputs=_tensors(described["outputs"]),
            batched=bool(described["batched"]),
            max_batch_size=int(described["max_batch_size"]),
            files=build.tree.without(*_NOT_PAYLOAD),
            options=dict(engine.target.options),
            calibration_digest=_file(results, engine.calibrate, "calibration.json"),
            build_log_digest=build.log_digest,
            sensitivity_digest=_file(results, engine.sensitivity, "sensitivity.json"),
            layers_digest=_file(results, engine.layers, "layers.json"),
            verification={**measured, "data": inputs.verification.data.label, "measured_on": measured.get("data")},
            stages=tuple(_record(stage, plan, results[stage.name]) for stage in plan.stages if stage.name in stages),
            create_time=datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InternalError(
            f"stage {engine.build!r} wrote an engine.json that is not as expected: {error!r}"
        ) from error


def _file(results: Mapping[str, StageResult], stage: str | None, path: str) -> str:
    """The digest of a file that a stage wrote; empty when the engine has no such stage."""
    entry = results[stage].tree.find(path) if stage else None
    return entry.digest if entry else ""


def engine_message(name: str, manifest: EngineManifest, manifest_digest: str) -> pb.Engine:
    """A manifest as the API shows it.

    Raises:
        InvalidArgumentError: it says what the API has no words for, such as a later version's precision.
    """
    try:
        return _message(name, manifest, manifest_digest)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidArgumentError(f"not an engine manifest that this version knows: {error}") from error


def _message(name: str, manifest: EngineManifest, manifest_digest: str) -> pb.Engine:
    message = pb.Engine(
        name=name,
        key=manifest.key,
        model=_model(name, manifest),
        model_digest=manifest.model_digest,
        calibration_digest=manifest.calibration_digest,
        precision=pb.Precision.Value(f"PRECISION_{manifest.precision}"),
        backend=manifest.backend,
        backend_version=manifest.backend_version,
        device=pb.Device(**vars(manifest.device)),
        profile=pb.BatchProfile(**vars(manifest.profile)),
        inputs=[pb.TensorSpec(name=t.name, dtype=t.dtype, shape=t.shape) for t in manifest.inputs],
        outputs=[pb.TensorSpec(name=t.name, dtype=t.dtype, shape=t.shape) for t in manifest.outputs],
        batched=manifest.batched,
        max_batch_size=manifest.max_batch_size,
        verification=None if NOT_VERIFIED in manifest.verification else _verification(manifest.verification),
        files=[pb.EngineFile(path=f.path, digest=f.digest, size_bytes=f.size) for f in manifest.files.entries],
        manifest_digest=manifest_digest,
        build_log_digest=manifest.build_log_digest,
        sensitivity_digest=manifest.sensitivity_digest,
        layers_digest=manifest.layers_digest,
        size_bytes=manifest.files.size,
    )
    message.create_time.FromJsonString(manifest.create_time)
    return message


def has_files(store: BlobStore, engine: pb.Engine) -> bool:
    """Whether every file of an engine is stored and undamaged. Reads the disk: call it from a thread."""
    try:
        for file in engine.files:
            store.path(file.digest)
    except (NotFoundError, DataLossError):
        return False
    return True


def _model(name: str, manifest: EngineManifest) -> str:
    """The model that an engine of that name is of: not the manifest's, when it was imported under another one."""
    owner, _, engine_id = name.rpartition("/engines/")
    suffix = f"-{manifest.backend}-{manifest.precision.lower()}-{manifest.key.partition(':')[2][:12]}"
    if not owner or not engine_id.endswith(suffix):
        return manifest.model
    return f"{owner}/models/{engine_id.removesuffix(suffix)}"


def _verification(measured: Mapping[str, Any]) -> pb.Verification:
    message = pb.Verification(data=str(measured.get("data", "")), samples=int(measured.get("samples", 0)))
    for name in MEASURES:
        value = measured.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(message, name, float(value))
    return message


def _record(stage: PlannedStage, plan: Plan, result: StageResult) -> StageRecord:
    keys = {
        name: plan.stage(source.stage).key if isinstance(source, Output) else source.digest
        for name, source in stage.inputs.items()
    }
    # The files are named by the manifest where they matter; of the rest, versions, counts and costs are worth keeping.
    facts = {name: value for name, value in result.result.items() if name not in ("files", "engine", "verification")}
    return StageRecord(stage.name, stage.stage, stage.environment, stage.key, keys, dict(stage.params), facts)


def _device(value: Mapping[str, Any]) -> DeviceSpec:
    fields = ("kind", "product", "compute_capability", "driver_version")
    return DeviceSpec(**{"kind": "cpu", **{name: str(value[name]) for name in fields if name in value}})


def _tensors(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(v["name"]), str(v["dtype"]), tuple(int(d) for d in v["shape"])) for v in values)
