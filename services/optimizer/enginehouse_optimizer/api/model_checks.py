"""Checks what a caller says of a model beside its bytes, and digests what determines it."""

from __future__ import annotations

import difflib
import math
import re

from enginehouse.artifacts import digest_json, parse_digest
from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import models_pb2 as pb
from enginehouse_optimizer.pipeline.zoo import ARCHITECTURES

RESAMPLINGS = ("bilinear", "bicubic", "lanczos", "nearest")
_MAX_SEED = 2**32 - 1
_MAX_CLASSES = 1_000_000
_MAX_NAMES = 64
_MAX_CHANNELS = 16
_NAME = re.compile(r"[^\x00-\x1f]{1,512}")


def check_architecture(name: str) -> None:
    """Raises InvalidArgumentError, with close matches, when the zoo has no such architecture."""
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
        raise InvalidArgumentError(f"the zoo has no {name!r}: it has {', '.join(ARCHITECTURES)}{hint}")


def zoo_digest(zoo: pb.ZooSource) -> str:
    """The digest of an architecture with its weights.

    Raises:
        InvalidArgumentError: there is no such architecture, seed or number of classes.
    """
    check_architecture(zoo.architecture)
    if not 0 <= zoo.seed <= _MAX_SEED:
        raise InvalidArgumentError(f"zoo.seed is {zoo.seed}: expected 0 to {_MAX_SEED}")
    if zoo.classes and not 2 <= zoo.classes <= _MAX_CLASSES:
        raise InvalidArgumentError(f"zoo.classes is {zoo.classes}: expected 2 to {_MAX_CLASSES}, or 0 for the usual")
    source: dict[str, object] = {"architecture": zoo.architecture, "seed": zoo.seed}
    if zoo.weights:
        parse_digest(zoo.weights)
        source["weights"] = zoo.weights
    if zoo.classes:
        source["classes"] = zoo.classes
    return digest_json({"zoo": source})


def file_digest(blob: str, options: pb.ImportOptions) -> str:
    """The digest of an uploaded model: its bytes', unless options say how to read them.

    Raises:
        InvalidArgumentError: an option is no name.
    """
    for what, names in (("inputs", options.inputs), ("outputs", options.outputs)):
        if len(names) > _MAX_NAMES or any(not _NAME.fullmatch(name) for name in names):
            raise InvalidArgumentError(f"import_options.{what}: expected at most {_MAX_NAMES} names of tensors")
    if options.signature and not _NAME.fullmatch(options.signature):
        raise InvalidArgumentError("import_options.signature is not a name")
    given = {"inputs": list(options.inputs), "outputs": list(options.outputs), "signature": options.signature}
    return digest_json({"blob": blob, "import": given}) if any(given.values()) else blob


def check_preprocessing(given: pb.Preprocessing) -> None:
    """Raises InvalidArgumentError when a photograph cannot be prepared so."""
    for what, values in (("mean", given.mean), ("deviation", given.deviation)):
        if len(values) > _MAX_CHANNELS or not all(math.isfinite(value) for value in values):
            raise InvalidArgumentError(f"preprocessing.{what} is {list(values)}: expected one number, or one a channel")
    if any(value <= 0 for value in given.deviation):
        raise InvalidArgumentError(f"preprocessing.deviation is {list(given.deviation)}: expected numbers above 0")
    if not 0.0 <= given.central_fraction <= 1.0:
        raise InvalidArgumentError(f"preprocessing.central_fraction is {given.central_fraction}: expected 0 to 1")
    if given.resampling and given.resampling not in RESAMPLINGS:
        raise InvalidArgumentError(
            f"preprocessing.resampling is {given.resampling!r}: expected one of {', '.join(RESAMPLINGS)}"
        )
