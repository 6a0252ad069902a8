"""verify: an engine and the FP32 reference's outputs in, how well they agree out; refuses an engine that is too far
off.

When an output is a softmax, SQNR and cosine are of the logits it was computed from (see `metrics.logits`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends import registry
from enginehouse_worker.backends.base import Array, Instance, Signature
from enginehouse_worker.data.preprocessing import read_preprocessing
from enginehouse_worker.datasets import Dataset, open_dataset
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import read_json, write_json
from enginehouse_worker.metrics import OutputComparison, top_k_accuracy
from enginehouse_worker.stages.context import Progress, Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("synthetic", "max_samples", "batch_size", "preprocessing", "minimum_relative_accuracy", "minimum_sqnr_db")
_REFERENCE = "outputs.npz"
FILE = "verification.json"


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    directory = ctx.input("engine")
    engine = read_json(directory / "engine.json")
    backend = registry.get(str(engine.get("backend")))
    references = _read_reference(ctx.input("reference"))
    loaded = backend.load(directory, device=_device(engine), options={})
    signature = loaded.signature
    dataset = open_dataset(
        ctx.inputs.get("dataset"),
        params.mapping("synthetic") if "synthetic" in params else None,
        signature,
        params.integer("max_samples", 2**31 - 1, 1) if "max_samples" in params else None,
        preprocessing=read_preprocessing(params),
    )
    _check_reference(references, signature, dataset.samples)
    largest = int(engine["max_batch_size"])
    size = min(params.integer("batch_size", 8, 1, 4096), largest)
    smallest = int(engine.get("profile", {}).get("min", 1))
    instance = loaded.new_instance()
    try:
        comparisons, scores = _compare(instance, dataset, references, signature, size, smallest, ctx.progress)
    finally:
        instance.close()
        loaded.close()
    verification = _summary(comparisons, references, scores, dataset)
    verification["data"] = dataset.describe()
    write_json(ctx.output / FILE, verification)
    refuse_if_inaccurate(verification, params, str(engine.get("precision")))
    return {"verification": verification}


def _device(engine: dict[str, Any]) -> str:
    """The first device of the kind that an engine was built for."""
    return "cuda:0" if engine.get("device", {}).get("kind") == "gpu" else "cpu"


def _read_reference(directory: Path) -> dict[str, Array]:
    path = directory / _REFERENCE
    if not path.is_file():
        raise WorkerError("INVALID_ARGUMENT", f"the reference input has no {_REFERENCE}; run the reference stage")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise WorkerError("INVALID_ARGUMENT", f"{_REFERENCE} cannot be read: {error}") from None


def _check_reference(references: dict[str, Array], signature: Signature, samples: int) -> None:
    names = {spec.name for spec in signature.outputs}
    if set(references) != names:
        raise WorkerError(
            "INVALID_ARGUMENT", f"the reference has outputs {sorted(references)}, the engine {sorted(names)}"
        )
    for name, value in references.items():
        if len(value) != samples:
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"the reference has {len(value)} samples of {name!r}, the data {samples}; give both the same data",
            )


def _compare(
    instance: Instance,
    dataset: Dataset,
    references: dict[str, Array],
    signature: Signature,
    size: int,
    smallest: int,
    progress: Progress,
) -> tuple[dict[str, OutputComparison], Array | None]:
    comparisons = {spec.name: OutputComparison(references[spec.name]) for spec in signature.outputs}
    classifier = next((name for name, c in comparisons.items() if c.is_classifier), None)
    scores: list[Array] = []
    done = 0
    for batch in dataset.batches(size):
        count = len(next(iter(batch.values())))
        # An engine may have a smallest batch: fill up with the last sample, and leave its outputs out.
        padded = {name: _at_least(array, smallest) for name, array in batch.items()}
        outputs = instance.run(padded, [])
        for name, comparison in comparisons.items():
            try:
                comparison.add(done, outputs[name][:count])
            except ValueError as error:
                raise WorkerError("INVALID_ARGUMENT", f"the engine's output {name!r} has {error}") from None
        if classifier is not None:
            scores.append(outputs[classifier][:count])
        done += count
        progress(done / dataset.samples, f"sample {done} of {dataset.samples}")
    return comparisons, np.concatenate(scores) if scores else None


def _at_least(array: Array, smallest: int) -> Array:
    missing = smallest - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def _summary(
    comparisons: dict[str, OutputComparison], references: dict[str, Array], scores: Array | None, dataset: Dataset
) -> dict[str, Any]:
    outputs = {name: comparison.summary() for name, comparison in comparisons.items()}
    found: dict[str, Any] = {"samples": dataset.samples, "accuracy_measured": False, "outputs": outputs}
    for measure in ("sqnr_db", "cosine", "top1_agreement"):
        values = [summary[measure] for summary in outputs.values() if measure in summary]
        if values:
            # An engine is as good as its worst output.
            found[measure] = min(values)
    if all(summary.get("exact") for summary in outputs.values()):
        found["exact"] = True
    labels = dataset.labels()
    if labels is not None and scores is not None:
        name = next(name for name, comparison in comparisons.items() if comparison.is_classifier)
        found["accuracy_measured"] = True
        found["labelled_samples"] = len(labels)
        for prefix, output in (("", scores), ("reference_", references[name])):
            found[f"{prefix}top1"] = top_k_accuracy(output, labels, 1)
            # Of five classes or fewer, five guesses are always right.
            if output.shape[1] > 5:
                found[f"{prefix}top5"] = top_k_accuracy(output, labels, 5)
    return found


def refuse_if_inaccurate(verification: dict[str, Any], params: Params, precision: str) -> None:
    """Raise FAILED_PRECONDITION, with the numbers, for an engine below the wanted accuracy.

    Labels decide where there are labels, the SQNR elsewhere.
    """
    unfit = [name for name, summary in verification["outputs"].items() if summary.get("finite") is False]
    if unfit:
        message = f"the {precision} engine's outputs {unfit} are not finite"
        raise WorkerError("FAILED_PRECONDITION", message, verification)
    relative = params.number("minimum_relative_accuracy", 0.0, 0.0, 1.0)
    minimum = params.number("minimum_sqnr_db", 0.0, -200.0, 200.0)
    if verification["accuracy_measured"]:
        top1, reference = verification["top1"], verification["reference_top1"]
        if top1 < relative * reference:
            measured = (
                f"top-1 {top1:.4f} where FP32 has {reference:.4f}, on {verification['labelled_samples']} labelled "
                f"samples: {top1 / reference:.2%} of it, and at least {100 * relative:g}% is wanted"
            )
            raise WorkerError("FAILED_PRECONDITION", _refusal(precision, measured), verification)
    elif "minimum_sqnr_db" in params and verification.get("sqnr_db", minimum) < minimum:
        measured = (
            f"an SQNR of {verification['sqnr_db']:.2f} dB against FP32, on {verification['samples']} samples, and at "
            f"least {minimum:g} dB are wanted (there are no labels to measure accuracy with)"
        )
        raise WorkerError("FAILED_PRECONDITION", _refusal(precision, measured), verification)


def _refusal(precision: str, measured: str) -> str:
    if precision == "INT8":
        remedy = (
            "calibrate with another method or with more data of the kind that it will serve, exclude sensitive layers "
            "by name or operator type, or let automatic exclusion find them"
        )
    else:
        remedy = "build it in a higher precision"
    return f"the {precision} engine has {measured}; {remedy}, or lower the threshold"


STAGE = Stage(
    "verify", ("engine", "reference", "dataset"), run, ("onnxruntime", "tensorflow-cpu", "tensorflow", "numpy")
)
