"""ResNet-50 of Keras and of PyTorch in ONNX Runtime, FP32 and INT8, in turns on the CPU.

    python benchmarks/tensorrt_speed/models.py prepare --work /tmp/c7 --models resnet_v1_50-keras resnet_v1_50-pytorch
    python benchmarks/frameworks/cpu.py --work /tmp/c7 --out results/MACHINE/frameworks

The models are those of `models.py` (PyTorch and torchvision make them); quantized here in ONNX Runtime's dialect, by
the worker's stages, from the same calibration tables. Run it with a Python that has ONNX and ONNX Runtime. Writes
`rows.jsonl`, `topology.json` (whether the two graphs are the same), `ratios.json`, `table.md` and `environments.json`.
A ratio is of windows next to each other: the median, and the 95 % interval of the median by order statistics.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "worker")]

from tensorrt_speed import campaign as machine  # noqa: E402
from tensorrt_speed import rows  # noqa: E402
from tensorrt_speed.measure import take_turns  # noqa: E402
from tensorrt_speed.models import stage  # noqa: E402
from tensorrt_speed.runners import random_images  # noqa: E402
from tensorrt_speed.variants import Point  # noqa: E402

from frameworks.networks import KERAS, PYTORCH  # noqa: E402

PRECISIONS = ("fp32", "int8")
CONFIDENCE = 0.95


class CpuRunner:
    """An engine in the worker's ONNX Runtime backend, batches one after the other."""

    def __init__(self, folder: Path, threads: int) -> None:
        from enginehouse_worker.backends import registry

        options = {"intra_op_threads": str(threads)}
        self._engine = registry.get("onnxruntime").load(folder, device="cpu", options=options)
        self._instance = self._engine.new_instance()
        self._spec = self._engine.signature.inputs[0]
        self._inputs: dict[int, dict[str, Any]] = {}
        self._milliseconds: list[float] = []

    def outputs(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The sole output for some images, (n, classes)."""
        parts = [self._instance.run({self._spec.name: images[i : i + 4]}, ()) for i in range(0, len(images), 4)]
        return np.concatenate([next(iter(part.values())).copy() for part in parts])

    def warm(self, batch: int, scope: str, instances: int) -> None:
        shape = (batch, *self._spec.shape[1:])
        self._inputs[batch] = {self._spec.name: random_images(shape, self._spec.dtype, batch)}
        for _ in range(3):
            self._instance.run(self._inputs[batch], ())

    def rate(self, batch: int, scope: str, instances: int, seconds: float) -> float:
        self._milliseconds = []
        begin = time.perf_counter()
        while not self._milliseconds or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            self._instance.run(self._inputs[batch], ())
            self._milliseconds.append((time.perf_counter() - start) * 1e3)
        return len(self._milliseconds) * batch / (time.perf_counter() - begin)

    def latencies(self, batch: int, scope: str, seconds: float) -> list[float]:
        """Those of the last window: one batch at a time is all that there is."""
        return self._milliseconds

    def close(self) -> None:
        self._instance.close()
        self._engine.close()


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """The median of independent values, and its interval from order statistics (binomial, no assumption of a form).

    With fewer than six values the whole range, which is the widest there is.
    """
    ordered, n = sorted(values), len(values)
    rank, tail = 0, 0.5**n
    while 2 * (tail + math.comb(n, rank + 1) * 0.5**n) <= 1 - confidence:
        rank += 1
        tail += math.comb(n, rank) * 0.5**n
    return statistics.median(ordered), ordered[rank], ordered[n - 1 - rank]


def ratio(ours: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """`ours` over `base`, window by window."""
    value, low, high = median_interval([a / b for a, b in zip(ours, base, strict=True)])
    return {"ratio": round(value, 4), "interval": [round(low, 4), round(high, 4)], "windows": len(ours)}


def engine(work: Path, model: str, precision: str) -> Path:
    """An engine of ONNX Runtime, made by the stages unless it is there."""
    folder = work / model
    built = folder / f"onnxruntime-{precision}"
    if (built / "engine.json").exists():
        return built
    source = folder / "fp32"
    if precision == "int8":
        inputs = {"model": source, "calibration": folder / "int8-table"}
        source = stage("quantize", inputs, folder / "int8-onnxruntime", {"dialect": "onnxruntime"})
    params = {"backend": "onnxruntime", "precision": precision, "profile": {"min": 1, "opt": 8, "max": 64}}
    return stage("build", {"model": source}, built, {**params, "options": {}})


def topology(work: Path) -> dict[str, Any]:
    """Both graphs compared as they run, and how far their outputs are apart on the same images."""
    import onnx
    from enginehouse_worker.metrics import Agreement

    from frameworks.topology import Graph, difference

    keras, pytorch = (Graph(onnx.load(str(work / name / "fp32" / "model.onnx"))) for name in (KERAS, PYTORCH))
    ours, theirs = (np.load(work / name / "reference.npz") for name in (KERAS, PYTORCH))
    if not np.array_equal(ours["input"], theirs["input"]):
        raise ValueError("the two models were given different images: prepare both again in one folder")
    agreement = Agreement()
    agreement.add(ours["output"], theirs["output"])
    found = difference(keras, pytorch)
    return {"left": KERAS, "right": PYTORCH, **found, "outputs_sqnr_db": agreement.sqnr_db}


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows, and the ratios of PyTorch's graph to Keras's."""
    runners = {
        f"{model}-{precision}": CpuRunner(engine(arguments.work, model, precision), arguments.threads)
        for precision in PRECISIONS
        for model in (KERAS, PYTORCH)
    }
    measured, ratios = [], []
    try:
        for batch in arguments.batches:
            points = [Point(name, batch, "host", 1) for name in runners]
            found = take_turns(dict(runners), points, arguments.rounds, arguments.seconds, _fail)
            for point, (rates, milliseconds, _) in found.items():
                model, _, precision = point.variant.rpartition("-")
                measured.append(
                    {
                        "model": model, "variant": point.variant, "backend": "onnxruntime",
                        "precision": precision.upper(), "batch": batch, "scope": "host",
                        "concurrency": 1, "instances": 1, "threads": arguments.threads,
                        **rows.speed(rates), "latency_ms": rows.latency(milliseconds),
                    }
                )  # fmt: skip
            for precision in PRECISIONS:
                ours, base = (found[Point(f"{m}-{precision}", batch, "host", 1)][0] for m in (PYTORCH, KERAS))
                compared = {"of": PYTORCH, "to": KERAS, "precision": precision.upper(), "batch": batch}
                ratios.append({**compared, **ratio(ours, base)})
                print(json.dumps(ratios[-1]), flush=True)
    finally:
        for runner in runners.values():
            runner.close()
    return measured, ratios


def _fail(name: str, error: BaseException) -> None:
    raise RuntimeError(f"{name} failed: {error}") from error


def table(measured: Sequence[dict[str, Any]], ratios: Sequence[dict[str, Any]]) -> str:
    """Images/s and ratios as Markdown."""
    lines = ["| precision | batch | Keras | PyTorch | PyTorch / Keras | 95 % interval |", "|---|---|---|---|---|---|"]
    speed = {(row["model"], row["precision"], row["batch"]): row["inferences_per_second"] for row in measured}
    for row in ratios:
        keras, pytorch = (speed[model, row["precision"], row["batch"]] for model in (KERAS, PYTORCH))
        low, high = row["interval"]
        lines.append(
            f"| {row['precision']} | {row['batch']} | {keras:.1f} | {pytorch:.1f} | {row['ratio']:.3f} | "
            f"{low:.3f} to {high:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--work", type=Path, required=True, help="the folder of models.py")
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    cli.add_argument("--rounds", type=int, default=12, help="windows of each point")
    cli.add_argument("--seconds", type=float, default=1.0, help="length of a window")
    cli.add_argument("--threads", type=int, default=1)
    arguments = cli.parse_args()
    graphs = topology(arguments.work)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "topology.json").write_text(json.dumps(graphs, indent=1) + "\n")
    print(f"same graph: {graphs['same']}, outputs agree to {graphs['outputs_sqnr_db']} dB", flush=True)
    facts = machine.environment() | {name: metadata.version(name) for name in ("onnx", "onnxruntime")}
    digest = rows.add_environment(arguments.out, facts)
    measured, ratios = measure(arguments)
    settings = f"--batches {' '.join(map(str, arguments.batches))} --rounds {arguments.rounds} --seconds"
    common = {
        "device": facts["cpu"],
        "environment": digest,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": f"python benchmarks/frameworks/cpu.py {settings} {arguments.seconds} --threads {arguments.threads}",
    }
    (arguments.out / "rows.jsonl").write_text("".join(json.dumps({**row, **common}) + "\n" for row in measured))
    (arguments.out / "ratios.json").write_text(json.dumps(ratios, indent=1) + "\n")
    (arguments.out / "table.md").write_text(table(measured, ratios))
    print(table(measured, ratios))


if __name__ == "__main__":
    main()
