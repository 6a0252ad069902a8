"""Peak memory of the calibrate stage against the number of images.

    .venv/bin/python benchmarks/calibration_memory.py --out results/MACHINE/calibration-memory

Fills a weightless graph (ResNet-50 by default) and runs `enginehouse_worker stage` for calibrate, a process each time,
with synthetic images and with a `.npz` file of as many. Peak memory is the stage's own account (its process's resident
set). Writes `rows.jsonl`, `memory.svg` and `environments.json`. Needs the onnxruntime worker environment; runs in the
main one, which has matplotlib.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
GRAPH = ROOT / "benchmarks" / "graphs" / "resnet_v1_50.onnx"
WORKER = ROOT / ".venv" / "workers" / "onnxruntime" / "bin" / "python"
_QUERY = "import json, importlib.metadata as m; print(json.dumps({d: m.version(d) for d in %r}))"
VERSIONS = _QUERY % (("onnxruntime", "onnx", "numpy"),)


def calibrate(python: Path, model: Path, dataset: Path | None, output: Path, params: dict[str, Any]) -> dict[str, Any]:
    """Run the stage as the optimizer does and return its `result.json`."""
    output.mkdir()
    spec = output.with_suffix(".json")
    inputs = {"model": str(model)} | ({"dataset": str(dataset)} if dataset else {})
    spec.write_text(json.dumps({"stage": "calibrate", "inputs": inputs, "output": str(output), "params": params}))
    command = [str(python), "-m", "enginehouse_worker", "stage", "--spec", str(spec), "--events-fd", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "worker")}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"the stage calibrate failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def write_images(folder: Path, images: int, shape: list[int]) -> Path:
    """A `.npz` of normally distributed FP32 images, written one at a time."""
    folder.mkdir()
    raw = folder / "x.npy"
    stored = np.lib.format.open_memmap(raw, mode="w+", dtype=np.float32, shape=(images, *shape))
    random = np.random.default_rng(0)
    for number in range(images):
        stored[number] = random.standard_normal(shape, dtype=np.float32)
    stored.flush()
    np.savez(folder / "data.npz", x=np.load(raw, mmap_mode="r"))
    raw.unlink()
    return folder


def plot(rows: list[dict[str, Any]], path: Path, model: str) -> None:
    """Peak memory against images, a line for each kind of data."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "enginehouse"
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for kind, marker in (("synthetic", "o"), ("npz", "s")):
        points = [(row["images"], row["peak_memory_bytes"] / 2**30) for row in rows if row["data"] == kind]
        axes.plot(*zip(*points, strict=True), marker=marker, label=kind)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images")
    axes.set_ylabel("peak memory, GiB")
    axes.set_title(f"calibrate, {model}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def environment(python: Path) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(tuple(part.strip() for part in line.split(":", 1)) for line in info.splitlines() if ":" in line)
    versions = subprocess.run([str(python), "-c", VERSIONS], check=True, stdout=subprocess.PIPE, text=True).stdout
    return {
        "cpu": fields.get("model name", "unknown"),
        "cores": os.cpu_count(),
        "os": platform.platform(),
        "python": platform.python_version(),
        **json.loads(versions),
    }


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--graph", type=Path, default=GRAPH)
    cli.add_argument("--images", type=int, nargs="+", default=[50, 100, 200, 500])
    cli.add_argument("--method", default="entropy")
    cli.add_argument("--batch", type=int, default=4)
    cli.add_argument("--onnxruntime", type=Path, default=WORKER, help="the onnxruntime worker environment's Python")
    arguments = cli.parse_args()
    python = arguments.onnxruntime
    here = environment(python)
    digest = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:16]
    signature = json.loads(arguments.graph.with_suffix(".json").read_text())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (model := work / "model").mkdir()
        fill = [str(python), str(ROOT / "benchmarks" / "weightless.py"), "fill", str(arguments.graph)]
        subprocess.run([*fill, str(model / "model.onnx")], check=True)
        (model / "signature.json").write_text(json.dumps(signature))
        for images in arguments.images:
            npz = write_images(work / f"images-{images}", images, signature["inputs"][0]["shape"][1:])
            synthetic = {"distribution": "images", "samples": images, "seed": 0}
            common = {"method": arguments.method, "batch_size": arguments.batch, "max_samples": images}
            for kind, dataset, more in (("synthetic", None, {"synthetic": synthetic}), ("npz", npz, {})):
                result = calibrate(python, model, dataset, work / f"{kind}-{images}", {**common, **more})
                rows.append(
                    {
                        "model": arguments.graph.stem, "method": arguments.method, "data": kind, "images": images,
                        "batch": arguments.batch, "tensors": result["tensors"],
                        "peak_memory_bytes": result["peak_memory_bytes"], "seconds": result["seconds"],
                        "environment": digest, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                        "command": " ".join(
                            ["python benchmarks/calibration_memory.py --images", *map(str, arguments.images)]
                        ),
                    }
                )  # fmt: skip
                peak = result["peak_memory_bytes"] / 2**30
                print(f"{images} images, {kind}: {peak:.2f} GiB, {result['seconds']:.0f} s", flush=True)
            (npz / "data.npz").unlink()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (arguments.out / "environments.json").write_text(json.dumps({digest: here}, indent=2) + "\n")
    plot(rows, arguments.out / "memory.svg", arguments.graph.stem)


if __name__ == "__main__":
    main()
