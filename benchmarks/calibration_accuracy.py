"""Top-1 accuracy of INT8 against FP32 by calibration method, on Fashion-MNIST.

    .venv/workers/tensorflow/bin/python benchmarks/calibration_accuracy.py --out results/MACHINE/calibration-accuracy

Trains a small residual network with batch norms (fixed seed, a few minutes), then takes it through the optimizer's own
stages: freeze, convert, calibrate by each method on training images, quantize, reference, build and verify on the test
images, for ONNX Runtime. The TensorRT dialect is run by ONNX Runtime too, as the graph that it is. Needs Debian's
package `dataset-fashion-mnist` (or its four files in `--data`) and both worker environments. Writes `rows.jsonl`,
`table.md` and `environments.json`.
"""

from __future__ import annotations

import argparse
import gzip
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
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
DATA = Path("/usr/share/datasets/fashion-mnist")
# Mean and deviation of the training images' pixels in [0, 1].
MEAN, DEVIATION = 0.2860, 0.3530
METHODS: dict[str, dict[str, Any]] = {
    "entropy": {"method": "entropy"},
    "max": {"method": "max"},
    "percentile 99.9": {"method": "percentile", "percentile": 99.9},
    "percentile 99.99": {"method": "percentile", "percentile": 99.99},
    "mse": {"method": "mse"},
}
DIALECTS = ("onnxruntime", "tensorrt")


def images(folder: Path, part: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Normalized images (n, 28, 28, 1) and labels (n,) of "train" or "t10k", from the IDX files of a folder."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return ((pixels / 255.0 - MEAN) / DEVIATION).astype(np.float32), labels.astype(np.int64)


def network(width: int) -> Any:
    """A stem, three residual blocks of `width`, 2 and 4 times `width` filters, and a linear classifier."""
    import keras
    from keras import layers

    def convolution(x: Any, filters: int, size: int, stride: int) -> Any:
        x = layers.Conv2D(filters, size, stride, "same", use_bias=False, kernel_initializer="he_normal")(x)
        return layers.BatchNormalization()(x)

    def block(x: Any, filters: int, stride: int) -> Any:
        shortcut = convolution(x, filters, 1, stride) if stride > 1 else x
        main = layers.ReLU()(convolution(x, filters, 3, stride))
        return layers.ReLU()(layers.Add()([shortcut, convolution(main, filters, 3, 1)]))

    x = inputs = layers.Input((28, 28, 1))
    x = layers.ReLU()(convolution(x, width, 3, 2))
    for filters, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        x = block(x, filters, stride)
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Softmax()(x))


def train(folder: Path, target: Path, width: int, epochs: int, seed: int) -> None:
    """Train on the 60,000 training images, with random flips, and save a Keras file."""
    import keras

    keras.utils.set_random_seed(seed)
    x, y = images(folder, "train")
    model = network(width)
    batch = 128
    steps = epochs * -(-len(x) // batch)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=3e-3, warmup_steps=steps // 10)
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.02), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    random = np.random.default_rng(seed)
    for epoch in range(epochs):
        flip = random.random(len(x)) < 0.5
        order = random.permutation(len(x))
        seen = np.where(flip[:, None, None, None], x[:, :, ::-1], x)[order]
        history = model.fit(seen, y[order], batch_size=batch, shuffle=False, verbose=0)
        print(f"epoch {epoch + 1} of {epochs}: {history.history['accuracy'][0]:.4f} of the training images", flush=True)
    model.save(target)


def stage(python: Path, name: str, inputs: dict[str, Path], output: Path, params: dict[str, Any]) -> Path:
    """Run one build stage as the optimizer does."""
    output.mkdir()
    spec = output.with_suffix(".json")
    paths = {key: str(value) for key, value in inputs.items()}
    spec.write_text(json.dumps({"stage": name, "inputs": paths, "output": str(output), "params": params}))
    command = [str(python), "-m", "enginehouse_worker", "stage", "--spec", str(spec), "--events-fd", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "worker"), "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"the stage {name} failed: {done.stderr[-2000:]}")
    return output


def accuracy(reference: npt.NDArray[np.float32], found: npt.NDArray[np.float32], labels: Any) -> dict[str, float]:
    """What the verify stage finds, from probabilities (samples, classes) of FP32 and INT8; SQNR is of the logits."""
    left, right = (np.log(np.maximum(p.astype(np.float64), 1e-7)) for p in (reference, found))
    left, right = left - left.mean(1, keepdims=True), right - right.mean(1, keepdims=True)
    return {
        "top1": float((found.argmax(1) == labels).mean()),
        "reference_top1": float((reference.argmax(1) == labels).mean()),
        "top1_agreement": float((found.argmax(1) == reference.argmax(1)).mean()),
        "sqnr_db": float(10 * np.log10((left**2).sum() / ((left - right) ** 2).sum())),
    }


def outputs(directory: Path) -> npt.NDArray[np.float32]:
    """The sole output that the reference stage wrote."""
    with np.load(directory / "outputs.npz") as arrays:
        return np.asarray(arrays[arrays.files[0]])


def measure(model: Path, work: Path, python: Path, folder: Path, samples: int) -> list[dict[str, Any]]:
    """A row a dialect and method, for the converted model of a directory."""
    (calibration := work / "calibration-data").mkdir()
    (test := work / "test-data").mkdir()
    np.savez(calibration / "data.npz", x=images(folder, "train")[0][:samples])
    x, y = images(folder, "t10k")
    np.savez(test / "data.npz", x=x, labels=y)
    size = {"batch_size": 100}
    reference = stage(python, "reference", {"model": model, "dataset": test}, work / "reference", size)
    rows = []
    for label, params in METHODS.items():
        name = label.replace(" ", "-")
        calibrated = {"model": model, "dataset": calibration}
        table = stage(python, "calibrate", calibrated, work / f"table-{name}", {**params, "batch_size": 50})
        for dialect in DIALECTS:
            where = f"{name}-{dialect}"
            inputs = {"model": model, "calibration": table}
            quantized = stage(python, "quantize", inputs, work / f"{where}-int8", {"dialect": dialect})
            if dialect == "onnxruntime":
                build = {"backend": "onnxruntime", "precision": "int8", "profile": {"min": 1, "opt": 100, "max": 100}}
                engine = stage(
                    python, "build", {"model": quantized}, work / f"{where}-engine", {**build, "options": {}}
                )
                inputs = {"engine": engine, "reference": reference, "dataset": test}
                verified = stage(python, "verify", inputs, work / f"{where}-verified", size)
                found = json.loads((verified / "verification.json").read_text())
                found = {key: found[key] for key in ("top1", "reference_top1", "top1_agreement", "sqnr_db")}
            else:
                # The ONNX Runtime backend builds no engine of it, but computes what its pairs say.
                int8 = stage(
                    python, "reference", {"model": quantized, "dataset": test}, work / f"{where}-outputs", size
                )
                found = accuracy(outputs(reference), outputs(int8), y)
            rows.append(
                {
                    "model": "residual network, Fashion-MNIST", "backend": "onnxruntime", "precision": "INT8",
                    "dialect": dialect, "method": label, "calibration_samples": samples, "samples": len(y),
                    "accuracy": found,
                }
            )  # fmt: skip
            print(f"{dialect}, {label}: top-1 {found['top1']:.4f}, SQNR {found['sqnr_db']:.1f} dB", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| dialect | calibration | FP32 top-1 | INT8 top-1 | INT8 / FP32 | same class as FP32 | SQNR of logits, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        a = row["accuracy"]
        lines.append(
            f"| {row['dialect']} | {row['method']} | {a['reference_top1']:.4f} | {a['top1']:.4f} | "
            f"{a['top1'] / a['reference_top1']:.4f} | {a['top1_agreement']:.4f} | {a['sqnr_db']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def environment(python: Path) -> dict[str, Any]:
    """CPU and versions of both worker environments."""
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(tuple(part.strip() for part in line.split(":", 1)) for line in info.splitlines() if ":" in line)
    query = "import json, importlib.metadata as m; print(json.dumps({d: m.version(d) for d in %r}))"
    versions: dict[str, str] = {}
    for executable, names in (
        (sys.executable, ["tensorflow-cpu", "keras", "tf2onnx"]),
        (python, ["onnxruntime", "onnx"]),
    ):
        output = subprocess.run([str(executable), "-c", query % names], check=True, stdout=subprocess.PIPE, text=True)
        versions |= json.loads(output.stdout)
    return {
        "cpu": fields.get("model name", "unknown"),
        "cpu_flags": sorted(
            set(fields.get("flags", "").split()) & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"}
        ),
        "cores": os.cpu_count(),
        "os": platform.platform(),
        "python": platform.python_version(),
        **versions,
        "numpy": np.__version__,
    }


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--data", type=Path, default=DATA, help="folder of the four .gz files")
    cli.add_argument("--model", type=Path, help="where the trained Keras file is kept: read when it is there")
    cli.add_argument("--width", type=int, default=24)
    cli.add_argument("--epochs", type=int, default=6)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--samples", type=int, default=500, help="training images to calibrate with")
    cli.add_argument(
        "--onnxruntime", type=Path, default=ROOT / ".venv" / "workers" / "onnxruntime" / "bin" / "python",
        help="the onnxruntime worker environment's Python",
    )  # fmt: skip
    arguments = cli.parse_args()
    if not (arguments.data / "train-images-idx3-ubyte.gz").is_file():
        sys.exit(f"{arguments.data} has no train-images-idx3-ubyte.gz; install Debian's dataset-fashion-mnist")
    here = environment(arguments.onnxruntime)
    digest = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:16]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        trained = arguments.model or work / "network.keras"
        if not trained.is_file():
            train(arguments.data, trained, arguments.width, arguments.epochs, arguments.seed)
        (upload := work / "upload").mkdir()
        (upload / "network.keras").write_bytes(trained.read_bytes())
        tensorflow = Path(sys.executable)
        frozen = stage(tensorflow, "freeze", {"model": upload}, work / "frozen", {})
        model = stage(tensorflow, "convert", {"frozen": frozen}, work / "model", {"layout": "nchw"})
        rows = measure(model, work, arguments.onnxruntime, arguments.data, arguments.samples)
    # The command as anyone would type it; where this machine keeps the files is no part of the measurement.
    given = [f"--{name} {getattr(arguments, name)}" for name in ("width", "epochs", "seed", "samples")]
    for row in rows:
        row |= {
            "environment": digest,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": " ".join(["python benchmarks/calibration_accuracy.py", *given]),
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (arguments.out / "table.md").write_text(table(rows))
    (arguments.out / "environments.json").write_text(json.dumps({digest: here}, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
