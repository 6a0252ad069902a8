"""Runs one stage in this process: reads the spec, reports events, and writes `result.json` last."""

from __future__ import annotations

import errno
import importlib
import platform
import resource
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from enginehouse_worker.digests import file_digest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.files import listing, read_json, write_json
from enginehouse_worker.stages.cancellation import exit_on_termination
from enginehouse_worker.stages.context import Progress, Stage, StageContext
from enginehouse_worker.stages.events import Events
from enginehouse_worker.stages.params import close_matches

STAGES = (
    "freeze",
    "convert",
    "import",
    "preprocess",
    "prepare",
    "calibrate",
    "sensitivity",
    "quantize",
    "layers",
    "reference",
    "build",
    "verify",
)
# `import` is a word of Python.
_MODULES = {"import": "import_onnx"}
_SPEC_KEYS = ("stage", "inputs", "output", "params")


def main(spec_path: Path, events_fd: int) -> int:
    """Run the stage that a spec file describes; returns 0, or 1 after an `error` event."""
    events = Events(events_fd)
    exit_on_termination(lambda: events.error("CANCELLED", "the stage was stopped by SIGTERM", {}))
    try:
        spec = read_json(spec_path)
        stage = load_stage(spec)
        run(stage, context(stage, spec, events.progress))
        return 0
    except BrokenPipeError:
        print("nobody reads this stage's events: stopping", file=sys.stderr)
        return 1
    except WorkerError as error:
        traceback.print_exc()
        events.error(error.code, error.message, error.details)
    except MemoryError:
        traceback.print_exc()
        message = "the stage ran out of memory; use a smaller batch_size or a machine with more memory"
        events.error("RESOURCE_EXHAUSTED", message, {})
    except OSError as error:
        traceback.print_exc()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = "RESOURCE_EXHAUSTED" if full else "INTERNAL"
        events.error(code, f"a file could not be read or written: {error}", {})
    except Exception as error:
        traceback.print_exc()
        events.error("INTERNAL", f"{type(error).__name__}: {error}; the log has the traceback", {})
    return 1


def load_stage(spec: Mapping[str, Any]) -> Stage:
    """Import the module of the spec's stage, and with it nothing of the other stages' frameworks.

    Raises:
        WorkerError: INVALID_ARGUMENT when the spec has unknown or missing keys or names no stage.
    """
    for key in spec:
        if key not in _SPEC_KEYS:
            raise WorkerError(
                "INVALID_ARGUMENT", f"the spec has an unknown key {key!r}; known: {', '.join(_SPEC_KEYS)}"
            )
    name = spec.get("stage")
    if name not in STAGES:
        near = close_matches(str(name), STAGES)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise WorkerError("INVALID_ARGUMENT", f"unknown stage {name!r}; expected one of {', '.join(STAGES)}{hint}")
    module = importlib.import_module(f"enginehouse_worker.stages.{_MODULES.get(name, name)}")
    stage: Stage = module.STAGE
    return stage


def context(stage: Stage, spec: Mapping[str, Any], progress: Progress) -> StageContext:
    """Check what the spec says against the stage and the file system.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the input, path or value that is wrong.
    """
    inputs = spec.get("inputs", {})
    params = spec.get("params", {})
    output = spec.get("output")
    if not isinstance(inputs, dict) or not all(isinstance(path, str) for path in inputs.values()):
        raise WorkerError("INVALID_ARGUMENT", "the spec's `inputs` must be an object of directory paths")
    if not isinstance(params, dict):
        raise WorkerError("INVALID_ARGUMENT", "the spec's `params` must be an object")
    if not isinstance(output, str):
        raise WorkerError("INVALID_ARGUMENT", "the spec's `output` must be the path of an empty directory")
    for name, path in inputs.items():
        if name not in stage.inputs:
            expected = ", ".join(stage.inputs) or "none"
            raise WorkerError("INVALID_ARGUMENT", f"{stage.name}: unknown input {name!r}; expected: {expected}")
        if not Path(path).is_dir():
            raise WorkerError("INVALID_ARGUMENT", f"{stage.name}: input {name!r} is not a directory: {path}")
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        message = f"{stage.name}: the output directory is not empty (it holds {listing(directory)}); give an empty one"
        raise WorkerError("INVALID_ARGUMENT", message)
    return StageContext(stage.name, {name: Path(path) for name, path in inputs.items()}, directory, params, progress)


def run(stage: Stage, ctx: StageContext) -> None:
    """Run the stage and record what it took; `result.json` appears only when everything else is on disk."""
    begin = time.monotonic()
    ctx.progress(0.0, f"{stage.name} begins")
    facts = stage.run(ctx)
    files = {
        str(path.relative_to(ctx.output)): {"digest": file_digest(path), "bytes": path.stat().st_size}
        for path in sorted(ctx.output.rglob("*"))
        if path.is_file()
    }
    ctx.progress(1.0, f"{stage.name} is done")
    result = {
        "stage": stage.name,
        "files": files,
        "packages": installed_versions(stage.packages),
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - begin, 3),
        # Linux counts ru_maxrss in KiB.
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **facts,
    }
    write_json(ctx.output / "result.json", result)


def installed_versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """The versions of those distributions that are installed here, without importing them."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
