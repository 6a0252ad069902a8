"""freeze: a model of TensorFlow or Keras, or an architecture of the zoo, in; a frozen GraphDef out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse_worker.archives import extract
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import write_json
from enginehouse_worker.freezing import formats
from enginehouse_worker.freezing.guarded import run_guarded
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params

if TYPE_CHECKING:
    from enginehouse_worker.freezing.frozen_graph import Frozen

_PARAMS = ("zoo", "format", "import", "allow_unsafe")
_MAX_SEED = 2**32 - 1
_MAX_CLASSES = 1_000_000


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    directory = ctx.inputs.get("model")
    if (directory is None) == ("zoo" not in params):
        wrong = "neither" if directory is None else "both"
        raise WorkerError("INVALID_ARGUMENT", f"freeze: give a `model` input or `zoo` parameters; {wrong} were given")
    if directory is None:
        for name in ("format", "import", "allow_unsafe"):
            if name in params:
                raise WorkerError("INVALID_ARGUMENT", f"freeze: parameter {name!r} is for a `model`, not for the zoo")
        return _freeze_zoo(ctx, params)
    if "weights" in ctx.inputs:
        raise WorkerError("INVALID_ARGUMENT", "freeze: the input `weights` is for the zoo; a model has its own")
    path = formats.uploaded_file(directory)
    format_ = params.text("format", "", formats.FORMATS) if "format" in params else formats.format_of(path)
    return run_guarded(lambda: freeze_file(ctx, params, path, format_), path.name)


def _freeze_zoo(ctx: StageContext, params: Params) -> dict[str, Any]:
    from enginehouse_worker.zoo.entries import architecture

    zoo = params.nested("zoo", ("architecture", "seed", "classes"))
    zoo.require("architecture")
    entry = architecture(zoo.text("architecture", ""))
    seed = zoo.integer("seed", 0, 0, _MAX_SEED)
    classes = zoo.integer("classes", entry.classes, 2, _MAX_CLASSES)
    directory = ctx.inputs.get("weights")
    weights = formats.uploaded_file(directory) if directory is not None else None

    def make() -> dict[str, Any]:
        from enginehouse_worker.freezing.freeze import freeze
        from enginehouse_worker.zoo import make_model

        model = make_model(entry, classes=classes, seed=seed, weights=weights, progress=ctx.progress)
        ctx.progress(0.6, "freezing")
        made = {
            "architecture": entry.name,
            "classes": classes,
            "published_parameters": entry.parameters,
            "weights": {"file": weights.name} if weights else {"seed": seed},
        }
        return {"zoo": made, **_write(ctx, freeze(model), "zoo")}

    return run_guarded(make, weights.name if weights else entry.name)


def freeze_file(ctx: StageContext, params: Params, path: Path, format_: str) -> dict[str, Any]:
    """Freeze an uploaded file in this process; returns facts.

    Raises:
        WorkerError: INVALID_ARGUMENT when the file is not what its format says, is damaged, or cannot be frozen.
    """
    formats.check_content(path, format_)
    options = params.nested("import", ("inputs", "outputs", "signature"))
    for name, only in (
        ("inputs", formats.FROZEN_GRAPH),
        ("outputs", formats.FROZEN_GRAPH),
        ("signature", formats.SAVED_MODEL),
    ):
        if name in options and format_ != only:
            raise WorkerError("INVALID_ARGUMENT", f"freeze: `import.{name}` is for a {only}, not for {format_}")
    ctx.progress(0.1, f"reading {path.name}")
    if format_ in (formats.KERAS, formats.KERAS_HDF5):
        from enginehouse_worker.freezing.freeze import freeze
        from enginehouse_worker.freezing.keras_file import load_keras_file

        model = load_keras_file(path, format_, allow_unsafe=params.boolean("allow_unsafe", False))
        ctx.progress(0.6, "freezing")
        return _write(ctx, freeze(model), format_)
    if format_ == formats.FROZEN_GRAPH:
        from enginehouse_worker.freezing.frozen_graph import freeze_graph_file

        frozen = freeze_graph_file(path, options.strings("inputs"), options.strings("outputs"))
        return _write(ctx, frozen, format_)
    from enginehouse_worker.freezing.saved_model import DEFAULT_SIGNATURE, find_saved_model, freeze_saved_model

    unpacked = ctx.output / ".unpacked"
    try:
        extract(path, unpacked)
        signature = options.text("signature", "") or DEFAULT_SIGNATURE
        frozen = freeze_saved_model(find_saved_model(unpacked), signature, path.name)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return {"signature": signature, **_write(ctx, frozen, format_)}


def _write(ctx: StageContext, frozen: Frozen, format_: str) -> dict[str, Any]:
    from enginehouse_worker.freezing.frozen_file import write_graph

    ctx.progress(0.8, "writing the frozen graph")
    write_graph(ctx.output / "frozen.pb", frozen.graph, frozen.weights)
    write_json(ctx.output / "signature.json", frozen.signature.to_json())
    return {
        "format": format_,
        "parameters": frozen.parameters,
        "nodes": len(frozen.graph.node),
        "inputs": [spec.name for spec in frozen.signature.inputs],
        "outputs": [spec.name for spec in frozen.signature.outputs],
        "batched": frozen.signature.batched,
        **({"unused_inputs": list(frozen.unused)} if frozen.unused else {}),
    }


STAGE = Stage("freeze", ("model", "weights"), run, ("tensorflow-cpu", "tensorflow", "keras", "h5py", "numpy"))
