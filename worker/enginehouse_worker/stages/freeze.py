"""freeze: a Keras file, or an architecture of the zoo, in; a frozen GraphDef out."""

from __future__ import annotations

from typing import Any

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import sole_file, write_json, write_whole
from enginehouse_worker.stages.context import Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("zoo", "classes", "format", "import", "allow_unsafe")
_WEIGHTS = ("random", "imagenet")


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    model_directory = ctx.inputs.get("model")
    if (model_directory is None) == ("zoo" not in params):
        wrong = "neither" if model_directory is None else "both"
        raise WorkerError("INVALID_ARGUMENT", f"freeze: give a `model` input or `zoo` parameters; {wrong} were given")
    facts: dict[str, Any] = {}
    if model_directory is not None:
        from enginehouse_worker.freezing.keras_file import load_keras_file

        model = load_keras_file(sole_file(model_directory, (".keras", ".h5", ".hdf5"), "the Keras model"))
        _check_classes(model, params)
    else:
        from enginehouse_worker.zoo import make_model
        from enginehouse_worker.zoo.entries import ENTRIES, architecture

        zoo = params.nested("zoo", ("architecture", "seed", "weights"))
        zoo.require("architecture")
        entry = architecture(zoo.text("architecture", ""))
        weights = zoo.text("weights", "random", _WEIGHTS)
        seed = zoo.integer("seed", 0, 0, 2**32 - 1)
        classes = params.integer("classes", entry.classes, 2, 1_000_000)
        model = make_model(entry, classes=classes, weights=weights, seed=seed, progress=ctx.progress)
        facts["zoo"] = {"architecture": entry.name, "weights": weights, "seed": seed, "classes": classes}
        facts["architectures"] = sorted(ENTRIES)
    facts["parameters"] = int(model.count_params())
    ctx.progress(0.6, "freezing")
    from enginehouse_worker.freezing.freeze import freeze

    frozen = freeze(model)
    ctx.progress(0.8, "writing the frozen graph")
    write_whole(ctx.output / "frozen.pb", frozen.graph.SerializeToString(deterministic=True))
    write_json(ctx.output / "signature.json", frozen.signature.to_json())
    return {**facts, "nodes": len(frozen.graph.node)}


def _check_classes(model: Any, params: Params) -> None:
    if "classes" not in params:
        return
    wanted = params.integer("classes", 0, 2, 1_000_000)
    found = [tensor.shape[-1] for tensor in model.outputs]
    if wanted not in found:
        raise WorkerError("INVALID_ARGUMENT", f"freeze: the model's outputs have {found} classes, not {wanted}")


STAGE = Stage("freeze", ("model",), run, ("tensorflow-cpu", "tensorflow", "keras", "h5py", "numpy"))
