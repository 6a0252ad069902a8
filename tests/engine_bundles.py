"""Engines as an exporter would write them, made of plain files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse.artifacts import EngineManifest, Tree, TreeEntry, digest_bytes
from enginehouse.artifacts.bundle import BundleWriter, ordered
from enginehouse.artifacts.manifest import (
    DeviceSpec,
    ProfileSpec,
    StageRecord,
    engine_key,
    manifest_blobs,
    read_tensors,
)

TENSOR = {"name": "x", "dtype": "FP32", "shape": [-1, 4]}
ENGINE_JSON = {
    "backend": "onnxruntime",
    "backend_version": "1.0",
    "precision": "FP32",
    "inputs": [TENSOR],
    "outputs": [{**TENSOR, "name": "y"}],
    "batched": True,
    "max_batch_size": 8,
    "payload": "model.bin",
}


def engine_files(weights: bytes = b"weights" * 300, **changes: Any) -> dict[str, bytes]:
    """The files of an engine, by path."""
    return {"engine.json": json.dumps({**ENGINE_JSON, **changes}).encode(), "sub/model.bin": weights}


def folder_files(folder: Path) -> dict[str, bytes]:
    """The files of an engine's directory, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest_of(
    files: Mapping[str, bytes], model: str = "m", extra: Mapping[str, bytes] | None = None
) -> EngineManifest:
    """The manifest of an engine with those files; `extra` by field, such as "calibration_digest"."""
    said = json.loads(files["engine.json"])
    build = digest_bytes(repr(sorted(files.items())).encode())
    return EngineManifest(
        key=engine_key({"build": build}),
        model=f"projects/elsewhere/models/{model}",
        model_digest=digest_bytes(b"model"),
        precision=said["precision"],
        backend=said["backend"],
        backend_version=said["backend_version"],
        device=DeviceSpec("cpu", "Some CPU"),
        profile=ProfileSpec(1, 4, 8),
        inputs=read_tensors(said["inputs"]),
        outputs=read_tensors(said["outputs"]),
        batched=said["batched"],
        max_batch_size=said["max_batch_size"],
        files=Tree(tuple(TreeEntry(path, digest_bytes(data), len(data)) for path, data in files.items())),
        stages=(StageRecord("build", "build", "onnxruntime", build, {}, {}, {}),),
        create_time="2026-01-01T00:00:00Z",
        **{name: digest_bytes(data) for name, data in (extra or {}).items()},
    )


def write_bundle(path: Path, manifest: EngineManifest, blobs: Mapping[str, bytes]) -> Path:
    """A bundle of a manifest and the bytes of its blobs, by digest."""
    with path.open("wb") as stream:
        writer = BundleWriter(stream)
        writer.manifest(manifest.to_json().encode())
        for digest in ordered(manifest_blobs(manifest)):
            writer.begin(digest, len(blobs[digest]))
            writer.write(blobs[digest])
            writer.end()
        writer.finish()
    return path


def bundle(path: Path, files: Mapping[str, bytes], model: str = "m", extra: Mapping[str, bytes] | None = None) -> Path:
    """A bundle of an engine with those files."""
    every = [*files.values(), *(extra or {}).values()]
    return write_bundle(path, manifest_of(files, model, extra), {digest_bytes(data): data for data in every})
