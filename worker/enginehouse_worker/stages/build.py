"""build: a model in, an engine out."""

from __future__ import annotations

from typing import Any

from enginehouse_worker.backends import registry
from enginehouse_worker.backends.base import BatchProfile
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("backend", "precision", "profile", "options")
_MAX_BATCH = 65536


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    params.require("backend")
    params.require("precision")
    backend = registry.get(params.text("backend", ""))
    precision = params.text("precision", "").upper()
    profile = _profile(params.nested("profile", ("min", "opt", "max")))
    model = ctx.input("model")
    ctx.progress(0.1, f"{backend.name} builds at {precision}")
    engine = backend.build(model, ctx.output, precision=precision, profile=profile, options=params.mapping("options"))
    return {"engine": engine}


def _profile(params: Params) -> BatchProfile:
    profile = BatchProfile(
        min=params.integer("min", 1, 1, _MAX_BATCH),
        opt=params.integer("opt", 8, 1, _MAX_BATCH),
        max=params.integer("max", 64, 1, _MAX_BATCH),
    )
    if not profile.min <= profile.opt <= profile.max:
        raise WorkerError("INVALID_ARGUMENT", f"build: profile is {profile}; expected min <= opt <= max")
    return profile


STAGE = Stage("build", ("model",), run, ("onnxruntime", "tensorflow-cpu", "tensorflow", "onnx", "numpy"))
