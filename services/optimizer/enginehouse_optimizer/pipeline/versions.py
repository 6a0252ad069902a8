"""Versions of worker environments: what of them may change a stage's result."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterable, Mapping

from enginehouse.artifacts import canonical_json
from enginehouse.errors import FailedPreconditionError
from enginehouse.workers.environments import WorkerEnvironment, WorkerEnvironments
from enginehouse.workers.stage import worker_variables

_PROBE_SECONDS = 60.0

# Runs in the worker's interpreter. Imports no framework. A worker run from a checkout has one version for all its
# changes, so there its sources are digested as well.
_PROBE = """
import hashlib, importlib.metadata as metadata, json, os, pathlib, platform
import enginehouse_worker
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
names = ["enginehouse-worker", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorflow", "tensorflow-cpu",
         "keras", "tf2onnx", "h5py", "ml-dtypes", "tensorrt", "nvidia-tensorrt"]
found = {name: version(name) for name in names}
sources = hashlib.sha256()
if os.environ.get("ENGINEHOUSE_WORKER_PATH"):
    root = pathlib.Path(list(enginehouse_worker.__path__)[0])
    for path in sorted(root.rglob("*.py")):
        sources.update(str(path.relative_to(root)).encode() + b"\\0" + path.read_bytes() + b"\\0")
# Whether INT8 products saturate decides how weights are quantized.
flags = set()
try:
    for line in open("/proc/cpuinfo"):
        if line.startswith(("flags", "Features")):
            flags = set(line.split()) & {"avx_vnni", "avx512_vnni", "asimddp", "i8mm"}
            break
except OSError:
    pass
print(json.dumps({
    "cpu": sorted(flags),
    "python": platform.python_version(),
    "machine": platform.machine(),
    "packages": {name: value for name, value in found.items() if value},
    "sources": sources.hexdigest(),
}))
"""


class EnvironmentVersions:
    """The versions of the installed environments, each asked for once in the life of the service."""

    def __init__(self, environments: WorkerEnvironments) -> None:
        self.environments = environments
        self._known: dict[str, asyncio.Task[str]] = {}

    async def of(self, names: Iterable[str]) -> dict[str, str]:
        """For each environment, its version as canonical JSON.

        Raises:
            FailedPreconditionError: one is not installed, or its interpreter has no working enginehouse_worker.
        """
        return {name: await self._one(self.environments.environment(name)) for name in names}

    async def _one(self, environment: WorkerEnvironment) -> str:
        task = self._known.get(environment.name)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.ensure_future(_probe(environment))
            self._known[environment.name] = task
        # Shielded: a call that is cancelled must not cancel the probe for others.
        return await asyncio.shield(task)


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
    value: Mapping[str, object] = json.loads(out)
    return canonical_json(value)


def _broken(environment: WorkerEnvironment, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the worker environment {environment.name!r} ({environment.python}) does not work: expected it to import "
        f"enginehouse_worker. Install it again, or set ENGINEHOUSE_WORKER_PATH to a checkout's worker folder. [{why}]",
        details={"environment": environment.name},
    )
