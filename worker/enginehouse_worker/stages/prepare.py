"""prepare: image files or TFRecords in, UINT8 pixels of the model's size out, as an `.npz` that the other stages read.

Images are decoded one at a time and written as they come, so memory does not grow with their number. Their order is
spread evenly over classes and files (see `data.spread`), so that the first N samples stand for all, whoever takes them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array, Signature
from enginehouse_worker.data.examples import DEFAULT_IMAGE, DEFAULT_LABEL, ExampleReader
from enginehouse_worker.data.layouts import is_channels_first
from enginehouse_worker.data.npz import LABELS, ORIGIN, SOLE_INPUT
from enginehouse_worker.data.pixels import RESAMPLING, Fitting, ImageSize, decode
from enginehouse_worker.data.samples import EncodedImages, open_images, open_tfrecord
from enginehouse_worker.data.spread import spread_over
from enginehouse_worker.digests import file_digest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import listing, write_json
from enginehouse_worker.graphs.signature_file import FILE as SIGNATURE
from enginehouse_worker.graphs.signature_file import read_signature
from enginehouse_worker.npy import Rows, write_npz_rows
from enginehouse_worker.stages.context import Progress, Stage, StageContext
from enginehouse_worker.stages.params import Params

FILE = "data.npz"
_PARAMS = ("format", "central_fraction", "resampling", "max_samples", "tfrecord")
_FORMATS = ("images", "tfrecord")
_CENTRAL_FRACTION = 0.875
_REPORT_EVERY = 16


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    params.require("format")
    form = params.text("format", "", _FORMATS)
    fitting = Fitting(
        image_size(_signature(ctx.input("model"))),
        params.number("central_fraction", 0.0, 0.0, 1.0) or _CENTRAL_FRACTION,
        params.text("resampling", "bilinear", ("", *RESAMPLING)) or "bilinear",
    )
    reader = _example_reader(params)
    limit = params.integer("max_samples", 2**31 - 1, 1)
    upload = _uploaded(ctx.input("dataset"))
    with (
        tempfile.TemporaryDirectory(dir=ctx.output, prefix=".scratch-") as scratch,
        _open(form, upload, Path(scratch), reader) as images,
    ):
        order = spread_over(images.labels, images.count)[:limit]
        shape = (len(order), fitting.size.height, fitting.size.width, fitting.size.channels)
        arrays = {SOLE_INPUT: Rows(np.uint8, shape, _pixels(images, order, fitting, ctx.progress))}
        if images.labels is not None:
            labels = np.asarray(images.labels, np.int64)[order]
            arrays[LABELS] = Rows(np.int64, labels.shape, [labels])
        write_npz_rows(ctx.output / FILE, arrays)
    data = {
        "format": form,
        "digest": file_digest(upload),
        "image": [fitting.size.height, fitting.size.width, fitting.size.channels],
        "central_fraction": fitting.central_fraction,
        "resampling": fitting.resampling,
    }
    write_json(ctx.output / ORIGIN, data)
    return {
        "samples": len(order),
        "available": images.count,
        "labelled": images.labels is not None,
        "classes": len(set(images.labels)) if images.labels is not None else 0,
        "data": {"kind": "dataset", **data},
    }


def image_size(signature: Signature) -> ImageSize:
    """The size of the images that a model takes.

    Raises:
        WorkerError: INVALID_ARGUMENT when it takes no images, or of no fixed size.
    """
    taken = ", ".join(f"{spec.name!r} {spec.dtype} {list(spec.shape)}" for spec in signature.inputs)
    hint = "store what it takes in an .npz"
    if len(signature.inputs) != 1 or len(signature.inputs[0].shape) != 4:
        raise WorkerError(
            "INVALID_ARGUMENT", f"image files are for a model of one image input; it takes {taken}: {hint}"
        )
    shape = signature.inputs[0].shape[1:]
    channels, height, width = shape if is_channels_first(shape) else (shape[2], shape[0], shape[1])
    if channels not in (1, 3):
        raise WorkerError("INVALID_ARGUMENT", f"image files have 1 or 3 channels; the model takes {taken}: {hint}")
    if height < 1 or width < 1:
        raise WorkerError("INVALID_ARGUMENT", f"the model's images have no fixed size; it takes {taken}: {hint}")
    return ImageSize(height, width, channels)


def _signature(directory: Path) -> Signature:
    if (directory / SIGNATURE).is_file():
        return read_signature(directory)
    # Only a lone uploaded graph is read for its signature.
    from enginehouse_worker.graphs.index import load_model
    from enginehouse_worker.graphs.signature import graph_signature

    return graph_signature(load_model(directory))


def _example_reader(params: Params) -> ExampleReader:
    given = params.nested("tfrecord", ("image", "label", "label_offset"))
    return ExampleReader(
        given.text("image", "") or DEFAULT_IMAGE,
        given.text("label", "") or DEFAULT_LABEL,
        given.integer("label_offset", 0, -(2**31)),
    )


def _uploaded(directory: Path) -> Path:
    files = [path for path in directory.iterdir() if path.is_file()]
    if len(files) != 1:
        raise WorkerError("INVALID_ARGUMENT", f"the dataset: expected exactly one file; found: {listing(directory)}")
    return files[0]


def _open(form: str, file: Path, scratch: Path, reader: ExampleReader) -> AbstractContextManager[EncodedImages]:
    return open_images(file, scratch) if form == "images" else open_tfrecord(file, scratch, reader)


def _pixels(images: EncodedImages, order: list[int], fitting: Fitting, progress: Progress) -> Iterator[Array]:
    for done, number in enumerate(order):
        name, data = images.read(number)
        yield decode(data, name, fitting)
        if done % _REPORT_EVERY == 0:
            progress(done / len(order), f"image {done + 1} of {len(order)}")


STAGE = Stage("prepare", ("model", "dataset"), run, ("pillow", "onnx", "numpy"))
