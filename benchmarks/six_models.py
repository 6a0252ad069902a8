"""The paper's six networks through the optimizer: what each stage costs and what each engine is worth.

    python benchmarks/six_models.py --out results/epyc-2-cores/six-models [--models resnet_v1_50 ...]

Starts services of its own in a temporary folder, and for each network of the zoo (random weights, seed 0) asks for
TensorFlow FP32, ONNX Runtime FP32 and INT8 engines, verified on the same synthetic images. Writes a row a network as
soon as it is done (a network that has one is not run again), and the table in Markdown. "ONNX against TensorFlow" is
the L2 norm of the logits' difference over that of the reference, which is 10^(-SQNR/20) of the TensorFlow engine
against the ONNX reference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from enginehouse.client import BatchProfile, Calibration, Client, Synthetic, Target, VerificationSpec
from enginehouse.local.plan import StackOptions
from enginehouse.local.stack import down, up

MODELS = ("resnet_v1_50", "resnet_v2_50", "inception_v3", "inception_v4", "vgg16", "vgg19")
PROFILE = BatchProfile(1, 4, 8)
# Stages by their names in a job, and what the table calls them.
STAGES = {
    "freeze": "freeze",
    "convert": "convert",
    "calibrate": "calibrate",
    "quantize onnxruntime": "quantize",
    "build onnxruntime int8": "build INT8",
    "verify onnxruntime int8": "verify INT8",
    "build tensorflow fp32": "build TensorFlow",
}
# Random weights lose more to INT8 than trained ones: measured here, refused nowhere.
NO_GATE_DB = -200.0


def measure(client: Client, name: str, images: int) -> dict[str, Any]:
    """Build the three engines of a network; returns its row."""
    model = client.models.ensure_zoo(name)
    data = Synthetic("images", images)
    targets = [
        Target("tensorflow", "FP32", profile=PROFILE),
        Target("onnxruntime", "FP32", profile=PROFILE),
        Target("onnxruntime", "INT8", profile=PROFILE),
    ]
    begin = time.monotonic()
    job = client.optimize(
        model,
        targets,
        calibration=Calibration(synthetic=data),
        verification=VerificationSpec(synthetic=data, minimum_sqnr_db=NO_GATE_DB),
        input_layout="nchw",
    )
    tensorflow, fp32, int8 = job.result()
    records = {
        record["name"]: record
        for engine in (tensorflow, fp32, int8)
        for record in client.engines.manifest(engine)["stages"]
    }
    assert tensorflow.verification is not None and int8.verification is not None
    noise_db = tensorflow.verification.sqnr_db
    return {
        "model": name,
        "parameters": records["freeze"]["result"]["parameters"],
        "input": list(fp32.inputs[0].shape[1:]),
        "images": images,
        "seconds": time.monotonic() - begin,
        "onnx_against_tensorflow": 0.0 if noise_db is None else 10 ** (-noise_db / 20),
        "int8_sqnr_db": int8.verification.sqnr_db,
        "int8_top1_agreement": int8.verification.top1_agreement,
        "fp32_bytes": fp32.size_bytes,
        "int8_bytes": int8.size_bytes,
        "stages": {name: _cost(record["result"]) for name, record in records.items()},
    }


def _cost(result: Mapping[str, Any]) -> dict[str, float]:
    return {"seconds": round(result["seconds"], 2), "peak_memory_bytes": result["peak_memory_bytes"]}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown: costs are seconds and GB at the peak."""
    heads = ["network", "parameters", "input", "FP32 MB", "INT8 MB", "ONNX against TensorFlow", "INT8 SQNR dB"]
    heads += STAGES.values()
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        found = [row["stages"][name] for name in STAGES]
        costs = [f"{cost['seconds']:.0f} s, {cost['peak_memory_bytes'] / 1e9:.1f} GB" for cost in found]
        cells = [
            row["model"],
            f"{row['parameters']:,}",
            "x".join(str(d) for d in row["input"]),
            f"{row['fp32_bytes'] / 1e6:.0f}",
            f"{row['int8_bytes'] / 1e6:.0f}",
            f"{row['onnx_against_tensorflow']:.1e}",
            f"{row['int8_sqnr_db']:.1f}",
            *costs,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def environment() -> dict[str, Any]:
    """This machine; the frameworks' versions are in each row's engines."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "enginehouse": metadata.version("enginehouse"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    cli.add_argument("--images", type=int, default=16)
    arguments = cli.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    missing = [name for name in arguments.models if name not in {row["model"] for row in rows}]
    (arguments.out / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        ports = {"optimizer": 0, "inference": 0, "telemetry": 0}
        stack = up(StackOptions(Path(folder), ports, metrics_port=None)) if missing else None
        try:
            for name in missing:
                assert stack is not None
                with Client(optimizer=stack.addresses()["optimizer"]) as client:
                    rows.append(measure(client, name, arguments.images))
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                print(json.dumps(rows[-1]), flush=True)
        finally:
            if stack is not None:
                down(Path(folder))
    rows.sort(key=lambda row: MODELS.index(row["model"]))
    (arguments.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
