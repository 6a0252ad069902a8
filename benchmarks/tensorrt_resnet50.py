"""ResNet-50 in TensorRT: engine-only and host-to-host throughput and latency, against implicit calibration.

    python benchmarks/tensorrt_resnet50.py prepare --work /tmp/rn50          (PyTorch, torchvision, ONNX Runtime)
    python benchmarks/tensorrt_resnet50.py measure --work /tmp/rn50 --out results/h200/tensorrt-resnet50   (TensorRT)

`prepare` exports torchvision's ResNet-50 (v1.5, random weights, seed 0), calibrates it on synthetic images and places
Q/DQ for TensorRT, with the worker's own stages. `measure` builds FP16 and INT8 engines with the worker's builder and,
beside them, an INT8 engine with TensorRT's implicit entropy calibrator on the same images; then times all of them in
turns, window by window, so that a ratio compares the same minutes. Rows follow the project's format.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "worker"))

SIZE = 224
IMAGES = 128
BATCHES = (1, 8, 32, 128, 256)
PROFILE = {"min": 1, "opt": 128, "max": 256}
IN_FLIGHT = 8
ENGINES = ("fp16", "int8", "int8-batch1", "int8-implicit")


def stage(name: str, inputs: dict[str, Path], output: Path, params: dict[str, Any]) -> Path:
    """Run a stage of the worker with this Python."""
    output.mkdir(parents=True, exist_ok=True)
    spec = output.parent / f"{output.name}.json"
    folders = {key: str(path) for key, path in inputs.items()}
    spec.write_text(json.dumps({"stage": name, "inputs": folders, "output": str(output), "params": params}))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'worker'}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "enginehouse_worker", "stage", "--spec", str(spec), "--events-fd", "2"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return output


def prepare(work: Path) -> None:
    """Write the FP32 model, the Q/DQ model and the calibration images."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None).eval()
    model = work / "fp32"
    model.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        network,
        torch.zeros(2, 3, SIZE, SIZE),
        str(model / "model.onnx"),
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    signature = {
        "inputs": [{"name": "input", "dtype": "FP32", "shape": [-1, 3, SIZE, SIZE]}],
        "outputs": [{"name": "logits", "dtype": "FP32", "shape": [-1, 1000]}],
        "batched": True,
    }
    (model / "signature.json").write_text(json.dumps(signature))
    random = np.random.default_rng(0)
    dataset = work / "images"
    dataset.mkdir(exist_ok=True)
    np.savez(dataset / "data.npz", input=random.standard_normal((IMAGES, 3, SIZE, SIZE), dtype=np.float32))
    calibrated = stage("calibrate", {"model": model, "dataset": dataset}, work / "table", {"method": "entropy"})
    stage("quantize", {"model": model, "calibration": calibrated}, work / "int8", {"dialect": "tensorrt"})


def implicit_engine(work: Path, output: Path) -> Path:
    """An INT8 engine calibrated by TensorRT itself, with our builder's other settings."""
    from enginehouse_worker.backends.tensorrt import cuda
    from enginehouse_worker.backends.tensorrt.builder import set_options
    from enginehouse_worker.backends.tensorrt.library import open_library
    from enginehouse_worker.backends.tensorrt.network import parse
    from enginehouse_worker.backends.tensorrt.options import build_options

    library = open_library()
    trt = library.trt
    images = np.load(work / "images" / "data.npz")["input"]
    batch = PROFILE["opt"]  # a calibration batch must have the calibration profile's shape
    memory = cuda.Memory(images[:batch].nbytes)

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self.at = 0

        def get_batch_size(self) -> int:
            return batch

        def get_batch(self, names: list[str]) -> list[int] | None:
            if self.at + batch > len(images):
                return None
            part = np.ascontiguousarray(images[self.at : self.at + batch])
            self.at += batch
            runtime = cuda.runtime()
            kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            cuda.checked(runtime.cudaMemcpy(memory.pointer, part.ctypes.data, part.nbytes, kind), "copying")
            return [memory.pointer]

        def read_calibration_cache(self) -> None:
            return None

        def write_calibration_cache(self, cache: Any) -> None: ...

    builder = trt.Builder(library.logger)
    network, parser = parse(library, builder, work / "fp32" / "model.onnx", strongly_typed=False)
    config = builder.create_builder_config()
    for name in ("TF32", "FP16", "INT8"):
        config.set_flag(getattr(trt.BuilderFlag, name))
    set_options(library, config, build_options({}))
    shapes = [(PROFILE[key], 3, SIZE, SIZE) for key in ("min", "opt", "max")]
    profile = builder.create_optimization_profile()
    profile.set_shape("input", *shapes)
    config.add_optimization_profile(profile)
    config.set_calibration_profile(profile)
    config.int8_calibrator = calibrator = Calibrator()
    data = builder.build_serialized_network(network, config)
    assert data is not None, library.messages.take_errors()
    memory.close()
    del parser, calibrator
    output.mkdir(parents=True, exist_ok=True)
    reference = json.loads((work / "engines" / "int8" / "engine.json").read_text())
    (output / "model.plan").write_bytes(bytes(data))
    (output / "engine.json").write_text(json.dumps(reference))
    return output


def build(work: Path, only: list[str]) -> dict[str, Path]:
    """Build what is missing of the engines wanted; returns their directories by name."""
    from enginehouse_worker.backends import registry
    from enginehouse_worker.backends.base import BatchProfile

    backend = registry.get("tensorrt")
    found: dict[str, Path] = {}
    wanted = {
        "fp16": ("fp32", "FP16", PROFILE),
        "int8": ("int8", "INT8", PROFILE),
        "int8-batch1": ("int8", "INT8", {"min": 1, "opt": 1, "max": 1}),
    }
    for name, (source, precision, profile) in wanted.items():
        if name not in only:
            continue
        folder = found[name] = work / "engines" / name
        if not (folder / "engine.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            begin = time.monotonic()
            backend.build(work / source, folder, precision=precision, profile=BatchProfile(**profile), options={})
            print(f"built {name} in {time.monotonic() - begin:.1f} s", flush=True)
    if "int8-implicit" not in only:
        return found
    folder = found["int8-implicit"] = work / "engines" / "int8-implicit"
    if not (folder / "engine.json").exists():
        begin = time.monotonic()
        implicit_engine(work, folder)
        print(f"built int8-implicit in {time.monotonic() - begin:.1f} s", flush=True)
    return found


def keep_busy(instance: Any, shapes: Any, seconds: float, *, copies: bool) -> tuple[int, float]:
    """Launch batches back to back; returns how many, and the seconds until the last was done."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(IN_FLIGHT):
            instance.launch(shapes, copies=copies)
        instance.wait()
        count += IN_FLIGHT
    return count, time.perf_counter() - begin


def overlapped(instances: list[Any], shapes: Any, seconds: float) -> float:
    """Batches a second, each from pinned memory to pinned memory, on all instances at once."""
    counts = [0] * len(instances)
    begin = time.perf_counter()

    def work(index: int) -> None:
        while time.perf_counter() - begin < seconds:
            instances[index].launch(shapes)
            instances[index].wait()
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(instances))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


def latencies(instance: Any, shapes: Any, seconds: float, *, copies: bool) -> list[float]:
    """Milliseconds of batches run one at a time."""
    found, begin = [], time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        instance.launch(shapes, copies=copies)
        instance.wait()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def power_w() -> float | None:
    query = ["nvidia-smi", "--query-gpu=power.draw.instant", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def check(work: Path) -> None:
    """Run images in batches of many sizes in a random order on two instances: every answer must be the image's own.

    Raises:
        AssertionError: an answer differs from the same engine's answer to the image alone by more than rounding.
    """
    from enginehouse_worker.backends import registry

    images = np.load(work / "images" / "data.npz")["input"]
    random = np.random.default_rng(1)
    for name in ("fp16", "int8"):
        engine = registry.get("tensorrt").load(work / "engines" / name, device="cuda:0", options={"cuda_graphs": "4"})
        instances = [engine.new_instance() for _ in range(2)]
        alone = np.concatenate([instances[0].run({"input": image[None]}, ())["logits"].copy() for image in images])
        worst = 0.0
        for number in range(60):
            chosen = random.integers(0, len(images), size=int(random.choice([1, 2, 3, 7, 8, 31, 32, 100, 128])))
            found = instances[number % 2].run({"input": images[chosen]}, ())["logits"]
            worst = max(worst, float(np.linalg.norm(found - alone[chosen]) / np.linalg.norm(alone[chosen])))
        print(f"{name}: 60 batches of mixed sizes, worst relative difference {worst:.2e}", flush=True)
        # Tactics of another profile size round otherwise; another image's answer would differ by far more.
        others = np.linalg.norm(alone[1:] - alone[:-1], axis=1).mean() / np.linalg.norm(alone, axis=1).mean()
        assert worst < 0.5 * others, (name, worst, others)
        for instance in instances:
            instance.close()
        engine.close()


def measure(work: Path, out: Path, rounds: int, seconds: float, only: list[str]) -> None:
    """Build, then time all engines in turns; one row an engine, batch and scope."""
    from enginehouse_worker.backends import registry

    backend = registry.get("tensorrt")
    folders = build(work, only)
    check(work)
    engines = {name: backend.load(folder, device="cuda:0", options={}) for name, folder in folders.items()}
    instances = {name: [engine.new_instance() for _ in range(3)] for name, engine in engines.items()}
    environment = {
        "python": platform.python_version(),
        "tensorrt": backend.version(),
        "device": json.loads((folders["int8"] / "engine.json").read_text())["device"],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
    rows = []
    for batch in BATCHES:
        shapes = ((batch, 3, SIZE, SIZE),)
        names = [name for name in engines if batch == 1 or name != "int8-batch1"]
        windows: dict[tuple[str, str], list[float]] = {}
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(rounds):
            for name in names:
                first = instances[name][0]
                count, took = keep_busy(first, shapes, seconds, copies=False)
                windows.setdefault((name, "engine"), []).append(count * batch / took)
                windows.setdefault((name, "host"), []).append(batch * overlapped(instances[name], shapes, seconds))
                for scope, copies in (("engine", False), ("host", True)):
                    times.setdefault((name, scope), []).extend(latencies(first, shapes, seconds / 2, copies=copies))
        for (name, scope), rates in windows.items():
            taken = sorted(times[(name, scope)])
            row = {
                "model": "resnet50-v1.5",
                "engine": name,
                "scope": scope,
                "batch": batch,
                "inferences_per_second": round(statistics.median(rates), 1),
                "interval": [round(min(rates), 1), round(max(rates), 1)],
                "latency_ms": {
                    "mean": round(statistics.fmean(taken), 4),
                    **{f"p{q}": round(taken[min(len(taken) - 1, len(taken) * q // 100)], 4) for q in (50, 90, 99)},
                },
                "instances": 3 if scope == "host" else 1,
                "cuda_graph": True,
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
        watts = power_w()
        print(f"batch {batch}: {watts} W after the last window", flush=True)
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("step", choices=("prepare", "measure"))
    cli.add_argument("--work", type=Path, required=True)
    cli.add_argument("--out", type=Path)
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--seconds", type=float, default=1.0)
    cli.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    arguments = cli.parse_args()
    steps: dict[str, Callable[[], None]] = {
        "prepare": lambda: prepare(arguments.work),
        "measure": lambda: measure(
            arguments.work, arguments.out, arguments.rounds, arguments.seconds, arguments.engines
        ),
    }
    steps[arguments.step]()


if __name__ == "__main__":
    main()
