"""Makes the models that `measure.py` times: FP32, INT8 with Q/DQ, and what ONNX Runtime says they compute.

    python benchmarks/tensorrt_speed/models.py prepare --work /tmp/speed --models resnet50-v1.5 resnet_v1_50 ...

`resnet50-v1.5` is torchvision's ResNet-50, random weights of seed 0 (needs PyTorch and torchvision);
`resnet_v1_50-keras` and `-pytorch` are version 1 of both frameworks with the same weights (`frameworks/networks.py`);
the others are `benchmarks/graphs` filled from seeds (see `weightless.py`). Each is calibrated and quantized by the
worker's own stages on synthetic images. `resnet50-v1.5` also comes with UINT8 input, normalized inside the model. Needs
ONNX and ONNX Runtime, no GPU. What is there already is not made again.

A model's folder has `fp32/`, `int8/`, perhaps `fp32-uint8/` and `int8-uint8/`, `images.npy` (what it was calibrated
on, where TensorRT's own calibration is measured) and `reference.npz` and `reference-uint8.npz`: images, and ONNX
Runtime's FP32 outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "worker")]

from frameworks import networks  # noqa: E402

GRAPHS = ("resnet_v1_50", "resnet_v2_50", "inception_v3", "inception_v4", "vgg16", "vgg19")
TORCHVISION = "resnet50-v1.5"
TWO_FRAMEWORKS = (networks.KERAS, networks.PYTORCH)
MODELS = (TORCHVISION, *GRAPHS, *TWO_FRAMEWORKS)
CALIBRATION = {"distribution": "images", "samples": 64, "seed": 0}
REFERENCE = {"distribution": "images", "samples": 16, "seed": 1}
# ImageNet's, for pixels of 0 to 255.
PREPROCESSING = {"mean": [123.675, 116.28, 103.53], "deviation": [58.395, 57.12, 57.375]}
AT_ONCE = 3
DONE = "prepared.json"


def stage(name: str, inputs: dict[str, Path], output: Path, params: dict[str, Any]) -> Path:
    """Run a stage of the worker with this Python; what a run that was cut left is made again."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    spec = output.parent / f"{output.name}.json"
    folders = {key: str(path) for key, path in inputs.items()}
    spec.write_text(json.dumps({"stage": name, "inputs": folders, "output": str(output), "params": params}))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'worker'}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "enginehouse_worker", "stage", "--spec", str(spec), "--events-fd", "2"]
    begin = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"stage {name} of {output} failed ({done.returncode}):\n{done.stdout}\n{done.stderr}"[-4000:]
        )
    print(f"{output.parent.name}: {name} {output.name}: {time.monotonic() - begin:.1f} s", flush=True)
    return output


def torchvision_model(work: Path) -> None:
    """Export torchvision's ResNet-50 with random weights of seed 0, and import it as an uploaded model is.

    PyTorch writes equal biases once and an Identity for each other use, which TensorRT 8.6 runs as kernels: the import
    stage folds them.
    """
    import torch
    import torchvision

    torch.manual_seed(0)
    networks.export(torchvision.models.resnet50(weights=None), work / "uploaded" / "model.onnx", 224)
    stage("import", {"model": work / "uploaded"}, work / "fp32", {})


def framework_model(name: str, work: Path) -> None:
    """ResNet-50 version 1 as Keras or as PyTorch exports it, with the same weights, through the import stage."""
    exported = networks.pytorch_model(work / ("uploaded" if name == networks.PYTORCH else "pytorch"))
    if name == networks.KERAS:
        imported = stage("import", {"model": exported}, work / "pytorch-imported", {})
        networks.keras_model(imported, work / "uploaded")
    stage("import", {"model": work / "uploaded"}, work / "fp32", {})


def graph_model(name: str, folder: Path) -> None:
    """Fill a graph of `benchmarks/graphs` from its seeds."""
    import onnx
    from weightless import fill

    graph = ROOT / "benchmarks" / "graphs" / f"{name}.onnx"
    onnx.save(fill(onnx.load(str(graph))), str(folder / "model.onnx"))
    (folder / "signature.json").write_bytes(graph.with_suffix(".json").read_bytes())


def images(model: Path, description: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Synthetic images of a model's input: the same that the stages take."""
    from enginehouse_worker.backends.base import Signature
    from enginehouse_worker.synthetic import SyntheticDataset

    signature = Signature.from_json(json.loads((model / "signature.json").read_text()))
    batches = SyntheticDataset(description, signature, None).batches(16)
    return np.concatenate([batch[signature.inputs[0].name] for batch in batches])


def reference(model: Path, target: Path) -> None:
    """Keep some images and what ONNX Runtime's CPU provider makes of them."""
    from enginehouse_worker.backends.onnxruntime.session import create_session

    session = create_session(model / "model.onnx")
    inputs = images(model, REFERENCE)
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: inputs[begin : begin + 4]})[0] for begin in range(0, len(inputs), 4)]
    np.savez(target, input=inputs, output=np.concatenate(parts))


def quantized(work: Path, source: str, target: str) -> None:
    """Calibrate and quantize one of a model's forms."""
    table = stage("calibrate", {"model": work / source}, work / f"{target}-table", {"synthetic": CALIBRATION})
    stage("quantize", {"model": work / source, "calibration": table}, work / target, {"dialect": "tensorrt"})


def prepare_one(name: str, work: Path) -> None:
    """Make everything of a model."""
    if (work / DONE).exists():
        return
    begin = time.monotonic()
    model = work / "fp32"
    if name == TORCHVISION:
        torchvision_model(work)
    elif name in TWO_FRAMEWORKS:
        framework_model(name, work)
    else:
        model.mkdir(parents=True, exist_ok=True)
        graph_model(name, model)
    quantized(work, "fp32", "int8")
    reference(model, work / "reference.npz")
    if name == TORCHVISION:
        np.save(work / "images.npy", images(model, CALIBRATION))
        pixels = stage("preprocess", {"model": model}, work / "fp32-uint8", {"preprocessing": PREPROCESSING})
        quantized(work, "fp32-uint8", "int8-uint8")
        reference(pixels, work / "reference-uint8.npz")
    seconds = round(time.monotonic() - begin, 1)
    (work / DONE).write_text(json.dumps({"model": name, "seconds": seconds}) + "\n")
    print(f"{name}: prepared in {seconds} s", flush=True)


def prepare(work: Path, models: list[str]) -> int:
    """Make several models, some at once, each in a process of its own; returns how many failed."""

    def one(name: str) -> int:
        command = [sys.executable, __file__, "one", "--work", str(work), "--models", name]
        code = subprocess.run(command, check=False).returncode
        if code:
            print(f"{name}: failed ({code})", flush=True)
        return int(code != 0)

    begin = time.monotonic()
    # The longest first.
    ordered = sorted(models, key=lambda name: (name != TORCHVISION, not name.startswith("vgg"), models.index(name)))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        failed = sum(pool.map(one, ordered))
    print(f"prepared {len(models) - failed} of {len(models)} models in {time.monotonic() - begin:.0f} s", flush=True)
    return failed


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("command", choices=("prepare", "one"))
    cli.add_argument("--work", type=Path, required=True)
    cli.add_argument("--models", nargs="+", choices=MODELS, default=[TORCHVISION, *GRAPHS])
    arguments = cli.parse_args()
    if arguments.command == "one":
        for name in arguments.models:
            prepare_one(name, arguments.work / name)
    else:
        raise SystemExit(prepare(arguments.work, arguments.models) > 0)


if __name__ == "__main__":
    main()
