#!/opt/enginehouse/service/bin/python
"""What the benchmark's pod runs: a suite, its report, and a copy of both in object storage.

    enginehouse-benchmark SUITE

Engines are built for the GPU of this pod. Where its node's label nvidia.com/gpu.product says more than the GPU's name
(MIG, time-slicing), set ENGINEHOUSE_GPU_PRODUCT to the label. RESULTS is the folder for results; a pod that takes an
evicted one's place goes on there. RESULTS_URL, if set, is a URL that fsspec knows, to which they are copied under JOB's
name; RESULTS_OPTIONS is what that URL's client takes, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def commands(suite: str, results: Path) -> list[list[str]]:
    """What to run, in order; the report comes of whatever rows there are."""
    resume = ["--resume"] if results.exists() else []
    return [
        ["enginehouse", "bench", "run", suite, "--out", str(results), *resume],
        ["enginehouse", "report", str(results)],
    ]


def gpu_product() -> str:
    """This pod's GPU as feature discovery labels nodes with it; empty where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError:
        return ""
    return "-".join(str(name).split())


def upload(results: Path, variables: Mapping[str, str]) -> str:
    """Copy the results to `RESULTS_URL/JOB`; returns that URL."""
    import fsspec

    url = f"{variables['RESULTS_URL'].rstrip('/')}/{variables.get('JOB') or results.name}"
    files, path = fsspec.url_to_fs(url, **json.loads(variables.get("RESULTS_OPTIONS") or "{}"))
    files.put(f"{results}/", path, recursive=True)
    return url


def main() -> int:
    """The exit status of the first command that failed, else 0."""
    if len(sys.argv) != 2 or not os.environ.get("RESULTS"):
        print("usage: RESULTS=FOLDER enginehouse-benchmark SUITE", file=sys.stderr)
        return 2
    results = Path(os.environ["RESULTS"])
    if not os.environ.get("ENGINEHOUSE_GPU_PRODUCT"):
        os.environ["ENGINEHOUSE_GPU_PRODUCT"] = gpu_product()
    statuses = [subprocess.run(command, check=False).returncode for command in commands(sys.argv[1], results)]
    if os.environ.get("RESULTS_URL") and results.exists():
        print(f"results are at {upload(results, os.environ)}", flush=True)
    print(f"results are in {results}", flush=True)
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
