"""CPU time of INT8 against FP32 on ONNX Runtime, interleaved in one run: our own stages and runtime, no services.

    .venv/workers/onnxruntime/bin/python benchmarks/onnxruntime_int8.py --out results/NAME

Fills the weightless ResNet-50, calibrates it on synthetic images, quantizes and builds both engines through
`enginehouse_worker stage`, then alternates windows of FP32 and INT8 on one thread and reports the ratio of CPU times
per inference for each batch size. Writes `rows.jsonl` (the rows of every benchmark), `ratios.json` and
`environments.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "worker")]

from enginehouse_worker.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from weightless import fill  # noqa: E402

GRAPH = ROOT / "benchmarks" / "graphs" / "resnet_v1_50.onnx"
PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}


def stage(name: str, inputs: dict[str, Path], output: Path, params: dict[str, Any]) -> Path:
    """Run one build stage as the optimizer does."""
    output.mkdir()
    spec = output.with_suffix(".json")
    spec.write_text(
        json.dumps(
            {"stage": name, "inputs": {k: str(v) for k, v in inputs.items()}, "output": str(output), "params": params}
        )
    )
    command = [sys.executable, "-m", "enginehouse_worker", "stage", "--spec", str(spec), "--events-fd", "2"]
    started = time.perf_counter()
    subprocess.run(
        command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "worker")}, stderr=subprocess.DEVNULL
    )
    print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    return output


def engines(graph: Path, work: Path, samples: int) -> dict[str, Path]:
    """FP32 and INT8 engines of a weightless graph."""
    model = work / "model"
    model.mkdir()
    filled = fill(onnx.load(graph))
    onnx.save(filled, model / "model.onnx")
    (model / "signature.json").write_bytes(graph.with_suffix(".json").read_bytes())
    (model / "result.json").write_text("{}")
    synthetic = {"distribution": "normal", "samples": samples, "seed": 0}
    table = stage(
        "calibrate", {"model": model}, work / "table", {"method": "entropy", "batch_size": 8, "synthetic": synthetic}
    )
    int8 = stage("quantize", {"model": model, "calibration": table}, work / "int8", {"dialect": "onnxruntime"})
    profile = {"min": 1, "opt": 8, "max": 64}
    return {
        precision: stage(
            "build",
            {"model": source},
            work / f"engine-{precision}",
            {"backend": "onnxruntime", "precision": precision, "profile": profile, "options": {}},
        )
        for precision, source in (("fp32", model), ("int8", int8))
    }


def window(instance: Any, inputs: dict[str, Any], seconds: float) -> tuple[list[float], float]:
    """Latencies in ms, and CPU ms per batch, over at least `seconds`."""
    latencies = []
    cpu, begin = time.process_time(), time.perf_counter()
    while time.perf_counter() - begin < seconds or len(latencies) < 3:
        start = time.perf_counter()
        instance.run(inputs, ())
        latencies.append((time.perf_counter() - start) * 1e3)
    return latencies, (time.process_time() - cpu) * 1e3 / len(latencies)


def environment() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(tuple(part.strip() for part in line.split(":", 1)) for line in info.splitlines() if ":" in line)
    flags = set(fields.get("flags", "").split())
    import onnxruntime

    return {
        "cpu": fields.get("model name", "unknown"),
        "cpu_flags": sorted(flags & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"}),
        "cores": os.cpu_count(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "numpy": np.__version__,
    }


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--graph", type=Path, default=GRAPH)
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    cli.add_argument("--rounds", type=int, default=8)
    cli.add_argument("--seconds", type=float, default=1.0)
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--samples", type=int, default=32)
    arguments = cli.parse_args()
    here = environment()
    digest = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:16]
    rows: list[dict[str, Any]] = []
    ratios: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        built = engines(arguments.graph, Path(folder), arguments.samples)
        backend = OnnxRuntimeBackend()
        options = {"intra_op_threads": arguments.threads}
        loaded = {p: backend.load(path, device="cpu", options=options) for p, path in built.items()}
        instances = {p: engine.new_instance() for p, engine in loaded.items()}
        spec = loaded["fp32"].signature.inputs[0]
        for batch in arguments.batches:
            shape = (batch, *spec.shape[1:])
            inputs = {spec.name: np.random.default_rng(batch).standard_normal(shape, dtype=np.float32)}
            for instance in instances.values():
                instance.run(inputs, ())
            windows: dict[str, list[tuple[list[float], float]]] = {p: [] for p in instances}
            for _ in range(arguments.rounds):
                for precision, instance in instances.items():
                    windows[precision].append(window(instance, inputs, arguments.seconds))
            for precision, measured in windows.items():
                latencies = [ms for each, _ in measured for ms in each]
                rates = [batch * len(each) / sum(each) * 1e3 for each, _ in measured]
                rows.append(
                    {
                        "model": "resnet_v1_50", "backend": "onnxruntime", "precision": precision,
                        "device": here["cpu"], "batch": batch, "scope": "host", "concurrency": 1, "instances": 1,
                        "inferences_per_second": statistics.median(rates),
                        "latency_ms": {
                            "mean": statistics.fmean(latencies), "max": max(latencies),
                            **{name: float(np.percentile(latencies, q)) for name, q in PERCENTILES.items()},
                        },
                        "interval": [min(rates), max(rates)],
                        "stable": (max(rates[-3:]) - min(rates[-3:])) <= 0.05 * max(rates[-3:]),
                        "cpu_ms": statistics.median(cpu for _, cpu in measured) / batch,
                        "environment": digest,
                        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                        "command": " ".join(["python", "benchmarks/onnxruntime_int8.py", *sys.argv[1:]]),
                    }
                )  # fmt: skip
            pairs = [i[1] / f[1] for f, i in zip(windows["fp32"], windows["int8"], strict=True)]
            ratios[str(batch)] = {
                "int8_cpu_time_over_fp32": statistics.median(pairs),
                "interval": [min(pairs), max(pairs)],
                "pairs": len(pairs),
            }
            print(f"batch {batch}: INT8 takes {statistics.median(pairs):.3f} of FP32's CPU time", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (arguments.out / "ratios.json").write_text(json.dumps(ratios, indent=2) + "\n")
    (arguments.out / "environments.json").write_text(json.dumps({digest: here}, indent=2) + "\n")


if __name__ == "__main__":
    main()
