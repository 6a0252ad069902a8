"""Backends by name, imported only when asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata, util

from enginehouse_worker.backends.base import Backend
from enginehouse_worker.errors import WorkerError


@dataclass(frozen=True)
class _Entry:
    """Where a backend lives. It is installed when one of `modules` is; its version is that of its distribution."""

    module: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]


_BACKENDS = {
    "onnxruntime": _Entry(
        "enginehouse_worker.backends.onnxruntime",
        ("onnxruntime",),
        ("onnxruntime", "onnxruntime-gpu"),
    ),
    "tensorflow": _Entry(
        "enginehouse_worker.backends.tensorflow",
        ("tensorflow",),
        ("tensorflow-cpu", "tensorflow", "tensorflow-intel"),
    ),
    "tensorrt": _Entry(
        "enginehouse_worker.backends.tensorrt",
        ("tensorrt", "tensorrt_rtx", "tensorrt_bindings", "tensorrt_rtx_bindings"),
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx-cu13-bindings"),
    ),
}


def names() -> tuple[str, ...]:
    """Every backend there is, installed here or not."""
    return tuple(sorted(_BACKENDS))


def installed() -> dict[str, str]:
    """The backends that this environment can run, with their frameworks' versions. Imports no framework."""
    return {name: version for name, entry in sorted(_BACKENDS.items()) if (version := _version(entry))}


def get(name: str) -> Backend:
    """A backend that is installed here.

    Raises:
        WorkerError: INVALID_ARGUMENT when there is no such backend; FAILED_PRECONDITION when its framework is not
        installed.
    """
    if name not in _BACKENDS:
        raise WorkerError("INVALID_ARGUMENT", f"unknown backend {name!r}; expected one of {', '.join(names())}")
    entry = _BACKENDS[name]
    if not _version(entry):
        here = ", ".join(installed()) or "none"
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"backend {name!r} needs {entry.distributions[0]}, which is not installed here (usable backends: {here})",
        )
    backend: Backend = importlib.import_module(entry.module).BACKEND
    return backend


def framework_version(name: str) -> str:
    """The exact version of a backend's framework, without importing it; empty when it is not installed."""
    return _version(_BACKENDS[name])


def _version(entry: _Entry) -> str:
    if all(util.find_spec(module) is None for module in entry.modules):
        return ""
    for distribution in entry.distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""
