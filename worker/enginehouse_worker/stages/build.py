"""build: a model in, an engine out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginehouse_worker.backends import registry
from enginehouse_worker.backends.base import BatchProfile, TimingCacheBackend
from enginehouse_worker.backends.calibrating import CalibratingBackend
from enginehouse_worker.data.preprocessing import read_preprocessing
from enginehouse_worker.datasets import Dataset, open_dataset
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.graphs.signature_file import read_signature
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params

_DATA = ("synthetic", "max_samples", "preprocessing")
_PARAMS = ("backend", "precision", "profile", "options", *_DATA)
# As many as the calibrate stage takes by default.
_MAX_SAMPLES = 512
_MAX_BATCH = 65536
_PACKAGES = ("onnxruntime", "tensorflow-cpu", "tensorflow", "tensorrt", "tensorrt-rtx-cu13-bindings", "onnx", "numpy")


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    params.require("backend")
    params.require("precision")
    backend = registry.get(params.text("backend", ""))
    precision = params.text("precision", "").upper()
    profile = _profile(params.nested("profile", ("min", "opt", "max")))
    model = ctx.input("model")
    ctx.progress(0.1, f"{backend.name} builds at {precision}")
    options = params.mapping("options")
    data = _calibration_data(ctx, params)
    if data is not None:
        if not isinstance(backend, CalibratingBackend):
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"backend {backend.name!r} does not calibrate while it builds; leave `dataset` and `synthetic` out",
            )
        engine = backend.build(model, ctx.output, precision=precision, profile=profile, options=options, data=data)
    elif "timing_cache" not in ctx.inputs:
        engine = backend.build(model, ctx.output, precision=precision, profile=profile, options=options)
    elif isinstance(backend, TimingCacheBackend):
        cache = ctx.input("timing_cache")
        engine = backend.build(
            model, ctx.output, precision=precision, profile=profile, options=options, timing_cache=cache
        )
    else:
        raise WorkerError("INVALID_ARGUMENT", f"backend {backend.name!r} has no timing cache; leave that input out")
    return {"engine": engine, **_timing_cache(ctx.output)}


def _calibration_data(ctx: StageContext, params: Params) -> Dataset | None:
    """What the stage was given to calibrate with, or None."""
    if "dataset" not in ctx.inputs and "synthetic" not in params:
        for name in _DATA:
            if name in params:
                raise WorkerError("INVALID_ARGUMENT", f"build: {name!r} goes with a dataset or `synthetic`")
        return None
    return open_dataset(
        ctx.inputs.get("dataset"),
        params.mapping("synthetic") if "synthetic" in params else None,
        read_signature(ctx.input("model")),
        params.integer("max_samples", _MAX_SAMPLES, 1),
        preprocessing=read_preprocessing(params),
    )


def _timing_cache(output: Path) -> dict[str, Any]:
    path = output / "timing.cache"
    return {"timing_cache_bytes": path.stat().st_size} if path.is_file() else {}


def _profile(params: Params) -> BatchProfile:
    profile = BatchProfile(
        min=params.integer("min", 1, 1, _MAX_BATCH),
        opt=params.integer("opt", 8, 1, _MAX_BATCH),
        max=params.integer("max", 64, 1, _MAX_BATCH),
    )
    if not profile.min <= profile.opt <= profile.max:
        raise WorkerError("INVALID_ARGUMENT", f"build: profile is {profile}; expected min <= opt <= max")
    return profile


STAGE = Stage("build", ("model", "timing_cache", "dataset"), run, _PACKAGES)
