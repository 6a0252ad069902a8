"""`engine.json`: what an engine's directory says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import BatchProfile, Signature
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import read_json, write_json

FILE = "engine.json"


def describe_engine(
    *,
    backend: str,
    version: str,
    precision: str,
    signature: Signature,
    profile: BatchProfile,
    payload: str,
    device: Mapping[str, str],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields that every engine has; `max_batch_size` is 0 for an engine without a batch dimension."""
    return {
        "backend": backend,
        "backend_version": version,
        "precision": precision,
        **signature.to_json(),
        "max_batch_size": profile.max if signature.batched else 0,
        "profile": {"min": profile.min, "opt": profile.opt, "max": profile.max},
        "payload": payload,
        "device": dict(device),
        "options": dict(options),
    }


def write_engine(directory: Path, engine: Mapping[str, Any]) -> None:
    """Write `engine.json`, after the payload."""
    write_json(directory / FILE, dict(engine))


def read_engine(directory: Path, backend: str) -> dict[str, Any]:
    """Read `engine.json`.

    Raises:
        WorkerError: INVALID_ARGUMENT when it is missing, malformed, or another backend's.
    """
    engine = read_json(directory / FILE)
    if engine.get("backend") != backend:
        raise WorkerError("INVALID_ARGUMENT", f"the engine is for backend {engine.get('backend')!r}, not {backend!r}")
    try:
        Signature.from_json(engine)
        payload = directory / str(engine["payload"])
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerError("INVALID_ARGUMENT", f"{FILE} is malformed: {error!r}") from None
    if payload.resolve().parent != directory.resolve() or not payload.exists():
        raise WorkerError("INVALID_ARGUMENT", f"the engine's payload {engine['payload']!r} is not in its directory")
    return engine


def require_cpu(device: str, backend: str) -> None:
    """Raise FAILED_PRECONDITION for any device but the CPU."""
    if device != "cpu":
        raise WorkerError(
            "FAILED_PRECONDITION", f"backend {backend!r} runs on the CPU here; device {device!r} was asked for"
        )
