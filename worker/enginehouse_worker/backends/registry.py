"""Backends by name, imported only when asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata, util

from enginehouse_worker.backends.base import Backend
from enginehouse_worker.errors import WorkerError


@dataclass(frozen=True)
class _Entry:
    """Where a backend lives. It is installed when one of `modules` is; its version is that of its distribution.

    `beside` is another backend that it needs in the same environment, `before` the first version (major, minor) of its
    framework that lacks it.
    """

    module: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    beside: str = ""
    before: tuple[int, int] | None = None


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
    "tf-trt": _Entry(
        "enginehouse_worker.backends.tftrt",
        ("tensorflow",),
        ("tensorflow",),
        beside="tensorrt",
        before=(2, 18),
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
            f"backend {name!r} needs {_needs(entry)}, which is not installed here (usable backends: {here})",
        )
    backend: Backend = importlib.import_module(entry.module).BACKEND
    return backend


def framework_version(name: str) -> str:
    """The exact version of a backend's framework, without importing it; empty when it is not installed."""
    return _version(_BACKENDS[name])


def _version(entry: _Entry) -> str:
    if all(util.find_spec(module) is None for module in entry.modules):
        return ""
    if entry.beside and not _version(_BACKENDS[entry.beside]):
        return ""
    for distribution in entry.distributions:
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        if entry.before is None or tuple(int(part) for part in version.split(".")[:2]) < entry.before:
            return version
    return ""


def _needs(entry: _Entry) -> str:
    before = f" before {entry.before[0]}.{entry.before[1]}" if entry.before else ""
    beside = f" with {_BACKENDS[entry.beside].distributions[0]}" if entry.beside else ""
    return f"{entry.distributions[0]}{before}{beside}"
