"""verify: an engine and the FP32 reference's outputs in, how well they agree out; refuses an engine that is too far
off.

An engine that was built for a device that is not here (TensorRT for RTX builds without a GPU) is not run: what is
written then says why, and no gate applies.

When an output is a softmax, SQNR and cosine are of the logits it was computed from (see `metrics.logits`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse_worker.backends import registry
from enginehouse_worker.backends.base import Array, Instance, Signature
from enginehouse_worker.data.preprocessing import read_preprocessing
from enginehouse_worker.datasets import Dataset, open_dataset
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import read_json, write_json
from enginehouse_worker.metrics import OutputComparison, is_classifier, is_distribution, top_k_hits
from enginehouse_worker.npy import NpyError, NpyMember
from enginehouse_worker.stages.context import Progress, Stage, StageContext
from enginehouse_worker.stages.params import Params

_PARAMS = ("synthetic", "max_samples", "batch_size", "preprocessing", "minimum_relative_accuracy", "minimum_sqnr_db")
_REFERENCE = "outputs.npz"
# Of the reference, looked at together.
_CHECKED_ROWS = 8
FILE = "verification.json"
_PACKAGES = ("onnxruntime", "tensorflow-cpu", "tensorflow", "tensorrt", "tensorrt-rtx-cu13-bindings", "numpy")


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    directory = ctx.input("engine")
    engine = read_json(directory / "engine.json")
    backend = registry.get(str(engine.get("backend")))
    references = _open_reference(ctx.input("reference"))
    try:
        loaded = backend.load(directory, device=_device(engine), options={})
    except WorkerError as error:
        if error.code != "FAILED_PRECONDITION" or not _built_for_elsewhere(engine):
            raise
        return _not_verified(ctx, engine, error.message)
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
    smallest = int(engine.get("profile", {}).get("min", 1))
    size = min(max(params.integer("batch_size", 8, 1, 4096), smallest), largest)
    instance = loaded.new_instance()
    try:
        comparison = _Comparison(references, dataset)
        _compare(instance, dataset, comparison, size, smallest, ctx.progress)
    finally:
        instance.close()
        loaded.close()
    verification = _summary(comparison.outputs, dataset.samples) | comparison.accuracy()
    verification["data"] = dataset.describe()
    write_json(ctx.output / FILE, verification)
    refuse_if_inaccurate(verification, params, str(engine.get("precision")))
    return {"verification": verification}


def _device(engine: dict[str, Any]) -> str:
    """The first device of the kind that an engine was built for."""
    return "cuda:0" if engine.get("device", {}).get("kind") == "gpu" else "cpu"


def _built_for_elsewhere(engine: dict[str, Any]) -> bool:
    """Whether the build stage could not run the engine either, having been told another device to build for."""
    return str(engine.get("trial", "run")) != "run"


def _not_verified(ctx: StageContext, engine: dict[str, Any], why: str) -> dict[str, Any]:
    capability = engine.get("device", {}).get("compute_capability", "another device")
    reason = f"it was built for compute capability {capability}, which cannot be run on this machine: {why}"
    verification = {"samples": 0, "accuracy_measured": False, "outputs": {}, "not_verified": reason}
    write_json(ctx.output / FILE, verification)
    ctx.progress(1.0, "the engine cannot be run on this machine: it is not verified")
    return {"verification": verification}


def _open_reference(directory: Path) -> dict[str, NpyMember]:
    path = directory / _REFERENCE
    if not path.is_file():
        raise WorkerError("INVALID_ARGUMENT", f"the reference input has no {_REFERENCE}; run the reference stage")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [NpyMember(path, name) for name in archive.namelist()]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise WorkerError("INVALID_ARGUMENT", f"{_REFERENCE} cannot be read: {error}") from None
    return {member.name: member for member in members}


def _rows(member: NpyMember, size: int) -> Iterator[Array]:
    try:
        yield from member.rows(size, member.shape[0])
    except NpyError as error:
        raise WorkerError("INVALID_ARGUMENT", f"{_REFERENCE} cannot be read: {error}") from None


def _check_reference(references: dict[str, NpyMember], signature: Signature, samples: int) -> None:
    # The reference has no text: it is not compared.
    names = {spec.name for spec in signature.outputs if spec.dtype != "BYTES"}
    if set(references) != names:
        raise WorkerError(
            "INVALID_ARGUMENT", f"the reference has outputs {sorted(references)}, the engine {sorted(names)}"
        )
    for name, member in references.items():
        if member.shape[0] != samples:
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"the reference has {member.shape[0]} samples of {name!r}, the data {samples}; give both the same data",
            )


class _Comparison:
    """Every output of the engine against the reference's, and the accuracy of the first that is a classifier's, batch
    by batch: neither is in memory as a whole.

    Raises:
        WorkerError: INVALID_ARGUMENT for a label of a class that the classifier does not have.
    """

    def __init__(self, references: dict[str, NpyMember], dataset: Dataset) -> None:
        self._references = references
        classifiers = [name for name, member in references.items() if is_classifier(member.shape, member.dtype)]
        self.outputs = {
            name: OutputComparison(
                softmax=all(is_distribution(rows) for rows in _rows(member, _CHECKED_ROWS)),
                classifier=name in classifiers,
            )
            for name, member in references.items()
        }
        self._labels = dataset.labels() if classifiers else None
        if self._labels is not None:
            self._classifier = classifiers[0]
            classes = references[self._classifier].shape[1]
            _check_labels(self._labels, self._classifier, classes)
            # Of five classes or fewer, five guesses are always right.
            self._hits = {f"{of}top{k}": 0 for of in ("", "reference_") for k in ((1, 5) if classes > 5 else (1,))}

    def add(self, begin: int, expected: dict[str, Array], actual: dict[str, Array]) -> None:
        """Compare the samples from number `begin` on."""
        for name, comparison in self.outputs.items():
            try:
                comparison.add(expected[name], actual[name])
            except ValueError as error:
                raise WorkerError("INVALID_ARGUMENT", f"the engine's output {name!r} has {error}") from None
        if self._labels is not None:
            for measure in self._hits:
                scores = (expected if measure.startswith("reference_") else actual)[self._classifier]
                labels = self._labels[begin : begin + len(scores)]
                self._hits[measure] += top_k_hits(scores, labels, int(measure[-1]))

    def accuracy(self) -> dict[str, Any]:
        """Empty when there are no labels, or no classifier."""
        if self._labels is None:
            return {}
        samples = len(self._labels)
        shares = {measure: hits / samples for measure, hits in self._hits.items()}
        return {"accuracy_measured": True, "labelled_samples": samples, **shares}

    def references(self, size: int) -> Iterator[dict[str, Array]]:
        """The reference's outputs, `size` samples at a time."""
        streams = {name: _rows(member, size) for name, member in self._references.items()}
        while batch := {name: rows for name, stream in streams.items() if (rows := next(stream, None)) is not None}:
            yield batch


def _compare(
    instance: Instance, dataset: Dataset, comparison: _Comparison, size: int, smallest: int, progress: Progress
) -> None:
    done = 0
    for batch, expected in zip(dataset.batches(size), comparison.references(size), strict=True):
        count = len(next(iter(batch.values())))
        # An engine may have a smallest batch: fill up with the last sample, and leave its outputs out.
        padded = {name: _at_least(array, smallest) for name, array in batch.items()}
        outputs = instance.run(padded, [])
        comparison.add(done, expected, {name: outputs[name][:count] for name in expected})
        done += count
        progress(done / dataset.samples, f"sample {done} of {dataset.samples}")


def _check_labels(labels: npt.NDArray[np.int64], output: str, classes: int) -> None:
    """Labels that count otherwise than the model would give accuracies near 0 to both, which pass any gate."""
    if labels.min() < 0 or labels.max() >= classes:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"the labels go from {labels.min()} to {labels.max()}, and the model's output {output!r} has {classes} "
            f"classes: expected class indices from 0 to {classes - 1} (a TFRecord's label_offset is subtracted)",
        )


def _at_least(array: Array, smallest: int) -> Array:
    missing = smallest - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def _summary(comparisons: dict[str, OutputComparison], samples: int) -> dict[str, Any]:
    outputs = {name: comparison.summary() for name, comparison in comparisons.items()}
    found: dict[str, Any] = {"samples": samples, "accuracy_measured": False, "outputs": outputs}
    for measure in ("sqnr_db", "cosine", "top1_agreement"):
        values = [summary[measure] for summary in outputs.values() if measure in summary]
        if values:
            # An engine is as good as its worst output.
            found[measure] = min(values)
    if all(summary.get("exact") for summary in outputs.values()):
        found["exact"] = True
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
    elif precision == "FP8":
        remedy = (
            "calibrate with another method or with more data of the kind that it will serve, or exclude sensitive "
            "layers by name or operator type"
        )
    else:
        remedy = "build it in a higher precision"
    return f"the {precision} engine has {measured}; {remedy}, or lower the threshold"


STAGE = Stage("verify", ("engine", "reference", "dataset"), run, _PACKAGES)
