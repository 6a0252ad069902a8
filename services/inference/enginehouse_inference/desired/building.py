"""Asking the optimizer for an engine like another one, for another GPU: the same calibration, options and limits."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from enginehouse.artifacts.manifest import EngineManifest, StageRecord
from enginehouse.v1 import engines_pb2
from enginehouse.v1 import optimizer_pb2 as pb

_QUANTIZED = (engines_pb2.PRECISION_INT8, engines_pb2.PRECISION_FP8)


def request_like(
    engine: engines_pb2.Engine, manifest: EngineManifest, left_out: list[str], gpu_product: str, attempt: int
) -> pb.OptimizeRequest:
    """The request for an engine like a published one.

    All replicas that want it make the same request, with the same id, so that it is built once.

    Args:
        left_out: layers that sensitivity left in higher precision.
        gpu_product: as node labels have it.
        attempt: how many such requests have failed before.
    """
    parent, _, _ = engine.name.partition("/engines/")
    target = pb.EngineTarget(
        backend=engine.backend,
        precision=engine.precision,
        profile=engine.profile,
        options=dict(manifest.options),
        gpu_product=gpu_product,
    )
    request = pb.OptimizeRequest(
        parent=parent,
        model=engine.model,
        targets=[target],
        request_id=str(uuid5(NAMESPACE_URL, f"enginehouse {engine.name} {gpu_product} {attempt}")),
        fold_preprocessing=_stage(manifest, "preprocess") is not None,
    )
    if (convert := _stage(manifest, "convert")) is not None:
        request.input_layout = str(convert.params.get("layout", ""))
    if engine.precision in _QUANTIZED:
        request.calibration.CopyFrom(_calibration(engine, manifest, left_out))
    request.verification.CopyFrom(_verification(manifest))
    return request


def _calibration(engine: engines_pb2.Engine, manifest: EngineManifest, left_out: list[str]) -> pb.CalibrationSpec:
    """One calibration for all GPUs: the engine's own table; its data where its backend calibrates for itself."""
    if engine.calibration_digest:
        quantize = _stage(manifest, "quantize")
        excluded = [str(name) for name in quantize.params.get("exclude", ())] if quantize else []
        return pb.CalibrationSpec(table=engine.calibration_digest, exclude=sorted({*excluded, *left_out}))
    build = _stage(manifest, "build")
    synthetic = build.params.get("synthetic") if build else None
    if synthetic:
        return pb.CalibrationSpec(synthetic=_synthetic(synthetic))
    return pb.CalibrationSpec(dataset=str(manifest.verification.get("data", "")))


def _verification(manifest: EngineManifest) -> pb.VerificationSpec:
    verify = _stage(manifest, "verify")
    params: dict[str, Any] = dict(verify.params) if verify else {}
    spec = pb.VerificationSpec()
    data = str(manifest.verification.get("data", ""))
    if data.startswith("projects/"):
        spec.dataset = data
        spec.max_samples = int(params.get("max_samples", 0))
    elif params.get("synthetic"):
        spec.synthetic.CopyFrom(_synthetic(params["synthetic"]))
    for name in ("minimum_relative_accuracy", "minimum_sqnr_db"):
        if name in params:
            setattr(spec, name, float(params[name]))
    return spec


def _synthetic(value: dict[str, Any]) -> pb.SyntheticData:
    return pb.SyntheticData(
        distribution=str(value.get("distribution", "")),
        samples=int(value.get("samples", 0)),
        seed=int(value.get("seed", 0)),
    )


def _stage(manifest: EngineManifest, stage: str) -> StageRecord | None:
    return next((record for record in manifest.stages if record.stage == stage), None)
