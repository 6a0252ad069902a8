"""Top-1 and top-5 of every mode against FP32, on Fashion-MNIST's test images.

    python benchmarks/accuracy/train.py resnet_v1_50 --work /tmp/accuracy          (PyTorch; once a network)
    python benchmarks/accuracy/evaluate.py --work /tmp/accuracy --out results/MACHINE/accuracy \\
        --networks resnet_v1_50 inception_v3 --modes onnxruntime-cpu-fp32 tensorrt-int8 --tensorrt-python PYTHON

Takes what `train.py` wrote through the worker's own stages: import, calibrate (on training images), quantize, build,
and verify on the test images. `--onnxruntime-python`, `--tensorrt-python` and `--tensorflow-python` are the worker
environments; the TensorFlow modes take the zoo's graph with the same weights (`frozen.py`). TF-TRT calibrates itself.
The FP32 that a mode is compared with is ONNX Runtime's; TensorFlow FP32 is a row like the others. A mode that has a row
is not measured again, and one that fails is listed. Writes `rows.jsonl`, `table.md`, `failed.txt`, `environments.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "worker")]

from tensorrt_speed import campaign as machine  # noqa: E402
from tensorrt_speed import rows  # noqa: E402

from accuracy import data  # noqa: E402
from accuracy.modes import MODES, Mode  # noqa: E402

SIZES = {"resnet_v1_50": 224, "inception_v3": 299}
ENVIRONMENTS = ("onnxruntime", "tensorrt", "tensorflow")
# MLPerf's bar: this share of FP32's top-1.
BAR = 0.99
FEWEST_SECONDS = 60.0
DONE = "result.json"


class Stages:
    """The worker's stages for one network; what is there already is not made again."""

    def __init__(self, folder: Path, arguments: argparse.Namespace, deadline: float) -> None:
        self.folder = folder
        self.pythons = {name: getattr(arguments, f"{name}_python") for name in ENVIRONMENTS}
        self._batch: int = arguments.batch
        self._deadline = deadline
        self._size = SIZES[folder.name]
        self._counts = {"train": arguments.calibration_samples, "t10k": arguments.test_samples}
        self._data: Path = arguments.data

    def stage(self, name: str, python: str, inputs: dict[str, Path], output: str, params: dict[str, Any]) -> Path:
        """Run a stage unless its result is there.

        Raises:
            RuntimeError: it failed; the message is the end of its log.
            subprocess.TimeoutExpired: the time is up.
        """
        target, making = self.folder / output, self.folder / f"{output}.making"
        if (target / DONE).exists():
            return target
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        making.mkdir(parents=True)
        spec = self.folder / f"{output}.json"
        given = {key: str(path) for key, path in inputs.items()}
        spec.write_text(json.dumps({"stage": name, "inputs": given, "output": str(making), "params": params}))
        command = [python, "-m", "enginehouse_worker", "stage", "--spec", str(spec), "--events-fd", "1"]
        begin = time.monotonic()
        left = self._deadline - begin
        if left < FEWEST_SECONDS:
            raise TimeoutError(f"no time is left for the stage {name}")
        with (self.folder / f"{output}.log").open("w+") as log:
            code = subprocess.run(
                command, env=environment(), stdout=log, stderr=subprocess.STDOUT, timeout=left, check=False
            ).returncode
            log.seek(0)
            if code:
                raise RuntimeError(f"the stage {name} ended with {code}: {log.read()[-2500:]}")
        making.rename(target)
        print(f"{self.folder.name}: {name} {output}: {time.monotonic() - begin:.1f} s", flush=True)
        return target

    def dataset(self, part: str) -> Path:
        """Images of a part at the network's size: training images to calibrate with, test images to verify on."""
        count = self._counts[part]
        target = self.folder / f"{part}-{count}"
        if not (target / "data.npz").exists():
            making = self.folder / f"{part}-{count}.making"
            data.write(self._data, part, making, self._size, count)
            making.rename(target)
        return target

    def source(self, name: str) -> Path:
        """A model to build from: `fp32`, `int8-DIALECT`, or `frozen`, the zoo's graph with these weights."""
        onnx = self.pythons["onnxruntime"]
        if name == "frozen":
            if not (self.folder / name / "signature.json").exists():
                command = [self.pythons["tensorflow"], str(ROOT / "benchmarks/accuracy/frozen.py"), str(self.folder)]
                quiet = environment() | {"CUDA_VISIBLE_DEVICES": "-1"}
                done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"frozen.py ended with {done.returncode}: {done.stderr[-2500:]}")
                print(done.stdout.strip(), flush=True)
            return self.folder / name
        if name == "fp32":
            return self.stage("import", onnx, {"model": self.folder / "uploaded"}, "fp32", {})
        model = self.source("fp32")
        given = {"model": model, "dataset": self.dataset("train")}
        table = self.stage("calibrate", onnx, given, "table", {"method": "entropy", **self._images(50)})
        dialect = name.removeprefix("int8-")
        return self.stage("quantize", onnx, {"model": model, "calibration": table}, name, {"dialect": dialect})

    def verification(self, mode: Mode) -> dict[str, Any]:
        """A mode's engine built and run on the test images: what the verify stage found."""
        python = self.pythons[mode.environment]
        inputs, params = {"model": self.source(mode.source)}, mode.build(self._batch)
        if mode.calibrates:
            inputs["dataset"] = self.dataset("train")
            params |= {"preprocessing": data.PREPROCESSING}
        test = self.dataset("t10k")
        reference = self.stage(
            "reference",
            self.pythons["onnxruntime"],
            {"model": self.source("fp32"), "dataset": test},
            f"reference-{test.name}",
            self._images(self._batch),
        )
        engine = self.stage("build", python, inputs, f"engine-{mode.name}", params)
        inputs = {"engine": engine, "reference": reference, "dataset": test}
        name = f"verified-{mode.name}-{test.name}"
        verified = self.stage("verify", python, inputs, name, self._images(self._batch))
        found: dict[str, Any] = json.loads((verified / "verification.json").read_text())
        if "not_verified" in found:
            raise RuntimeError(found["not_verified"])
        described = json.loads((engine / "engine.json").read_text())
        return {"backend_version": described.get("backend_version"), **found}

    @staticmethod
    def _images(batch: int) -> dict[str, Any]:
        return {"batch_size": batch, "preprocessing": data.PREPROCESSING}


def environment() -> dict[str, str]:
    """For a worker environment's Python: the worker, and nothing of this Python's."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**kept, "PYTHONPATH": str(ROOT / "worker"), "TF_CPP_MIN_LOG_LEVEL": "2"}


def row_of(network: str, mode: Mode, found: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """A row: what was found, and its share of FP32's."""
    names = ("top1", "top5", "reference_top1", "reference_top5", "top1_agreement", "sqnr_db")
    kept = {name: round(found[name], 5) for name in names if found.get(name) is not None}
    share = found["top1"] / found["reference_top1"] if found["reference_top1"] else None
    return {
        "model": network,
        "mode": mode.name,
        "backend": mode.backend,
        "backend_version": found["backend_version"],
        "precision": mode.precision,
        "samples": found["samples"],
        "accuracy": {"data": "Fashion-MNIST", **kept},
        **({} if share is None else {"share_of_fp32": round(share, 5), "reaches_99_percent": share >= BAR}),
        "training": training,
    }


def command(arguments: argparse.Namespace, network: str, mode: Mode) -> str:
    """What measures a row again, without where this machine keeps its files."""
    counts = f"--test-samples {arguments.test_samples} --calibration-samples {arguments.calibration_samples}"
    chosen = f"--networks {network} --modes {mode.name} {counts} --batch {arguments.batch}"
    return f"python benchmarks/accuracy/evaluate.py {chosen}"


def table(measured: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, in the order of the modes."""
    order = {name: number for number, name in enumerate(MODES)}
    lines = [
        "| network | mode | top-1 | top-5 | of FP32's top-1 | 99 % | same class as FP32 | SQNR of logits, dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(measured, key=lambda row: (row["model"], order[row["mode"]])):
        a = row["accuracy"]
        share, reached = row.get("share_of_fp32"), row.get("reaches_99_percent")
        cells = [
            row["model"],
            row["mode"],
            f"{100 * a['top1']:.2f} %",
            f"{100 * a['top5']:.2f} %" if "top5" in a else "",
            "" if share is None else f"{100 * share:.2f} %",
            "" if reached is None else "yes" if reached else "no",
            f"{100 * a['top1_agreement']:.2f} %" if "top1_agreement" in a else "",
            f"{a['sqnr_db']:.1f}" if "sqnr_db" in a else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def arguments_of(given: Sequence[str] | None = None) -> argparse.Namespace:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--work", type=Path, required=True, help="the folder of train.py")
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--networks", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    cli.add_argument("--modes", nargs="+", choices=tuple(MODES), default=list(MODES)[1:3])
    cli.add_argument("--data", type=Path, default=data.DATA, help="folder of the four .gz files")
    cli.add_argument("--test-samples", type=int, default=10_000)
    cli.add_argument("--calibration-samples", type=int, default=500)
    cli.add_argument("--batch", type=int, default=100)
    cli.add_argument("--deadline", type=float, default=3600.0, help="seconds after which nothing more is begun")
    for name in ENVIRONMENTS:
        cli.add_argument(f"--{name}-python", default=sys.executable, help=f"of the worker environment {name}")
    return cli.parse_args(given)


def main() -> None:
    arguments = arguments_of()
    out: Path = arguments.out
    deadline = time.monotonic() + arguments.deadline
    digest = rows.add_environment(out, machine.environment())
    path = out / "rows.jsonl"
    failed = []
    for network in arguments.networks:
        folder: Path = (arguments.work / network).resolve()
        try:
            training = json.loads((folder / "training.json").read_text())
        except OSError as error:
            failed.append(f"{network}: {error}; run train.py first")
            continue
        stages = Stages(folder, arguments, deadline)
        for mode in (MODES[name] for name in arguments.modes):
            known = {(row["model"], row["mode"], row["samples"], row["training"]["time"]) for row in rows.read(path)}
            if (network, mode.name, arguments.test_samples, training["time"]) in known:
                continue
            try:
                found = stages.verification(mode)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                failed.append(f"{network} {mode.name}: {error}")
                print(f"FAILED {failed[-1]}", flush=True)
                continue
            row = row_of(network, mode, found, training)
            row |= {
                "calibration_samples": arguments.calibration_samples,
                "environment": digest,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "command": command(arguments, network, mode),
            }
            rows.append(path, row)
            print(json.dumps({"model": network, "mode": mode.name, **row["accuracy"]}), flush=True)
    (out / "failed.txt").write_text("".join(f"{line}\n" for line in failed))
    (out / "table.md").write_text(table(rows.read(path)))
    print(table(rows.read(path)))


if __name__ == "__main__":
    main()
