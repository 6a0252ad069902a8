"""Engines as one file: from the server's blobs into a bundle, and from a bundle into blobs."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from enginehouse.artifacts.bundle import BundleWriter, ordered, read_bundle
from enginehouse.artifacts.files import sync_directory
from enginehouse.artifacts.manifest import EngineManifest, manifest_blobs
from enginehouse.client.blobs import AsyncBlobs, Progress
from enginehouse.errors import AlreadyExistsError

SUFFIX = ".engine"


async def export_bundle(
    blobs: AsyncBlobs, manifest_digest: str, target: Path, *, overwrite: bool, progress: Progress | None
) -> None:
    """Write the engine of a manifest as one file, which appears when it is whole and on the disk.

    Raises:
        AlreadyExistsError: the file is there, and `overwrite` is not set.
        DataLossError: a blob is not what its digest says.
    """
    if target.exists() and not overwrite:
        raise AlreadyExistsError(f"{target} exists: choose another name, or overwrite it")
    target.parent.mkdir(parents=True, exist_ok=True)
    manifest = await blobs.read(manifest_digest)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            await _write(blobs, manifest, stream, progress)
            stream.flush()
            await asyncio.to_thread(os.fsync, stream.fileno())
        beside.chmod(0o644)
        if not overwrite and target.exists():  # somebody else was faster
            raise AlreadyExistsError(f"{target} exists: choose another name, or overwrite it")
        beside.rename(target)
        sync_directory(target.parent)
    finally:
        beside.unlink(missing_ok=True)


async def upload_bundle(blobs: AsyncBlobs, path: Path, progress: Progress | None) -> str:
    """Check a bundle and upload what the project lacks of it; returns its manifest's digest.

    Raises:
        InvalidArgumentError: it is no bundle.
        DataLossError: it is damaged.
    """
    bundle = await asyncio.to_thread(read_bundle, path)
    total, before = sum(part.size for part in bundle.parts), 0

    def report(done: int, _: int) -> None:
        if progress is not None:
            progress(before + done, total)

    for part in bundle.parts:
        await blobs.upload_part(path, part.offset, part.size, part.digest, report)
        before += part.size
    return bundle.manifest_digest


async def _write(blobs: AsyncBlobs, manifest: bytes, stream: BinaryIO, progress: Progress | None) -> None:
    named = manifest_blobs(EngineManifest.from_json(manifest))
    sizes = {digest: await blobs.size(digest) for digest in ordered(named)}
    total, done = sum(sizes.values()), 0
    writer = BundleWriter(stream)
    writer.manifest(manifest)
    for digest, size in sizes.items():
        writer.begin(digest, size)
        async for chunk in blobs.chunks(digest):
            writer.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        writer.end()
    writer.finish()
