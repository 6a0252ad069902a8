"""Checks an engine that was exported elsewhere before it is published: its manifest, and every file that it names.

The manifest comes from outside, so nothing of it is believed that can be checked: each blob must be here with the size
and the digest that it says, the engine's key must follow from its build stage, and the payload must say the same of
itself as the manifest does.
"""

from __future__ import annotations

import json
from typing import Any

from enginehouse.artifacts import BlobStore, EngineManifest, parse_digest
from enginehouse.artifacts.manifest import MAX_MANIFEST_BYTES, check_key, manifest_blobs, read_tensors
from enginehouse.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from enginehouse.names import check_id, parse
from enginehouse.v1 import engines_pb2 as pb
from enginehouse_optimizer.pipeline.publish import engine_message

_DESCRIPTION = "engine.json"
_MAX_DESCRIPTION_BYTES = 1 << 22
# Lists of engines name the files of each: far more than any engine has would make them too large to send.
_MAX_FILES = 10_000
# What the payload and the manifest both say, beside inputs and outputs.
_SAID_TWICE = ("backend", "backend_version", "precision", "batched", "max_batch_size")


def imported_engine(store: BlobStore, project: str, manifest_digest: str, model_id: str) -> pb.Engine:
    """The engine of a manifest, ready to publish. Reads every file: call it from a thread.

    Args:
        model_id: the model to publish it under; the manifest's own when empty.

    Raises:
        InvalidArgumentError: the blob is not a manifest of an engine.
        FailedPreconditionError: a file was not uploaded.
        DataLossError: the manifest does not fit its files.
    """
    manifest = _manifest(store, manifest_digest)
    model = check_id(model_id or parse(manifest.model, "models").id, "model_id")
    engine_id = f"{model}-{manifest.backend}-{manifest.precision.lower()}-{manifest.key[7:19]}"
    name = str(parse(f"projects/{project}/engines/{engine_id}", "engines"))
    if len(manifest.files.entries) > _MAX_FILES:
        raise InvalidArgumentError(
            f"the manifest names {len(manifest.files.entries)} files: expected at most {_MAX_FILES}"
        )
    for digest, size in manifest_blobs(manifest).items():
        _check_blob(store, digest, size)
    check_key(manifest)
    _check_payload(store, manifest)
    return engine_message(name, manifest, manifest_digest)


def _manifest(store: BlobStore, digest: str) -> EngineManifest:
    parse_digest(digest)
    if not store.has(digest):
        raise _not_uploaded(digest, "the manifest")
    size = store.size(digest)
    if size > MAX_MANIFEST_BYTES:
        raise InvalidArgumentError(f"the manifest has {size} bytes: expected at most {MAX_MANIFEST_BYTES}")
    return EngineManifest.from_json(store.read_bytes(digest))


def _check_blob(store: BlobStore, digest: str, size: int | None) -> None:
    if not store.has(digest):
        raise _not_uploaded(digest, "a file of the engine")
    actual = store.size(digest)
    if size is not None and actual != size:
        raise DataLossError(
            f"{digest} has {actual} bytes, the manifest says {size}: they do not belong together",
            details={"digest": digest},
        )
    store.path(digest)  # which verifies


def _check_payload(store: BlobStore, manifest: EngineManifest) -> None:
    entry = manifest.files.find(_DESCRIPTION)
    if entry is None or entry.size > _MAX_DESCRIPTION_BYTES:
        raise InvalidArgumentError(f"the manifest names no {_DESCRIPTION} of at most {_MAX_DESCRIPTION_BYTES} bytes")
    try:
        said: Any = json.loads(store.read_bytes(entry.digest))
        different = [name for name in _SAID_TWICE if said[name] != getattr(manifest, name)]
        different += [name for name in ("inputs", "outputs") if read_tensors(said[name]) != getattr(manifest, name)]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DataLossError(f"the engine's {_DESCRIPTION} is not as expected: {error!r}") from error
    if different:
        raise DataLossError(f"the manifest and the engine's {_DESCRIPTION} do not agree on {', '.join(different)}")


def _not_uploaded(digest: str, what: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{what}, {digest}, is not complete in this project: upload it with WriteBlob first",
        details={"digest": digest},
    )
