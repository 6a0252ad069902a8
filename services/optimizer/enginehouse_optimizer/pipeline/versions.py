"""Versions of worker environments: what of them may change a stage's result."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterable, Mapping

from enginehouse.artifacts import canonical_json
from enginehouse.errors import FailedPreconditionError
from enginehouse.workers.environments import WorkerEnvironment, WorkerEnvironments
from enginehouse.workers.stage import worker_variables
from enginehouse_optimizer.pipeline.machine import machine_facts

_PROBE_SECONDS = 60.0

# An environment may be installed again while the service runs, so what it said is believed for this long only.
_FRESH_SECONDS = 10.0

# Runs in the worker's interpreter. Imports no framework. The worker's sources are digested as well: between releases it
# has one version for all its changes.
_PROBE = """
import hashlib, importlib.metadata as metadata, json, pathlib, platform
import enginehouse_worker
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
names = ["enginehouse-worker", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorflow", "tensorflow-cpu",
         "keras", "tf2onnx", "h5py", "ml-dtypes", "tensorrt", "nvidia-tensorrt", "tensorrt-cu12", "tensorrt-cu13",
         "tensorrt-cu12-bindings", "tensorrt-cu13-bindings", "tensorrt-rtx-cu13-bindings"]
found = {name: version(name) for name in names}
sources = hashlib.sha256()
root = pathlib.Path(list(enginehouse_worker.__path__)[0])
for path in sorted(root.rglob("*.py")):
    sources.update(str(path.relative_to(root)).encode() + b"\\0" + path.read_bytes() + b"\\0")
print(json.dumps({
    "python": platform.python_version(),
    "machine": platform.machine(),
    "packages": {name: value for name, value in found.items() if value},
    "sources": sources.hexdigest(),
}))
"""


class EnvironmentVersions:
    """The versions of the installed environments, and what of the machine matters beside them."""

    def __init__(self, environments: WorkerEnvironments, images: Mapping[str, str] | None = None) -> None:
        """Args: `images` are those of environments that run elsewhere: an image stands for its version."""
        self.environments = environments
        self._images = dict(images or {})
        self._known: dict[str, tuple[float, asyncio.Task[str]]] = {}

    async def of(self, names: Iterable[str]) -> dict[str, str]:
        """For each environment its version as canonical JSON, and the machine's facts.

        Raises:
            FailedPreconditionError: one is not installed, or its interpreter has no working enginehouse_worker.
        """
        versions = {}
        for name in names:
            image = self._images.get(name)
            if image is not None:
                versions[name] = canonical_json({"image": image})
            else:
                versions[name] = await self._one(self.environments.environment(name))
        return {**machine_facts(), **versions}

    async def _one(self, environment: WorkerEnvironment) -> str:
        asked, task = self._known.get(environment.name, (0.0, None))
        if task is None or (task.done() and (_failed(task) or time.monotonic() - asked > _FRESH_SECONDS)):
            task = asyncio.ensure_future(_probe(environment))
            self._known[environment.name] = (time.monotonic(), task)
        # Shielded: a call that is cancelled must not cancel the probe for others.
        return await asyncio.shield(task)


def _failed(task: asyncio.Task[str]) -> bool:
    return task.cancelled() or task.exception() is not None


async def _probe(environment: WorkerEnvironment) -> str:
    process = await asyncio.create_subprocess_exec(
        str(environment.python),
        "-c",
        _PROBE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=worker_variables(),
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), _PROBE_SECONDS)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
        raise _broken(environment, f"it did not answer in {_PROBE_SECONDS:g} s") from None
    if process.returncode != 0:
        raise _broken(environment, err.decode(errors="replace").strip()[-1000:])
    try:
        return canonical_json(json.loads(out))
    except ValueError:
        raise _broken(environment, f"it printed {out[-200:]!r} instead of its versions") from None


def _broken(environment: WorkerEnvironment, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the worker environment {environment.name!r} ({environment.python}) does not work: expected it to import "
        f"enginehouse_worker. Install it again, or set ENGINEHOUSE_WORKER_PATH to a checkout's worker folder. [{why}]",
        details={"environment": environment.name},
    )
