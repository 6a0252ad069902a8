"""The engine that is served: built from a model's folder by the backend's own build stage, or made up for a CPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from enginehouse.workers.environments import WorkerEnvironments
from enginehouse.workers.process import worker_variables

# UINT8 images to ten numbers that tell images apart; the least that a CPU can do with what it is sent.
TINY = """
import json, sys
from pathlib import Path
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
folder = Path(sys.argv[1])
weights = numpy_helper.from_array(np.random.default_rng(0).standard_normal((150528 // 3136, 10), np.float32), "w")
steps = numpy_helper.from_array(np.array([0, -1, 3136], np.int64), "rows")
nodes = [
    helper.make_node("Reshape", ["image", "rows"], ["strips"]),
    helper.make_node("Cast", ["strips"], ["numbers"], to=TensorProto.FLOAT),
    helper.make_node("ReduceMean", ["numbers"], ["means"], axes=[2], keepdims=0),
    helper.make_node("MatMul", ["means", "w"], ["scores"]),
]
values = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["b", 224, 224, 3]),
          helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", 10])]
graph = helper.make_graph(nodes, "tiny", values[:1], values[1:], [weights, steps])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.save(model, str(folder / "model.onnx"))
(folder / "engine.json").write_text(json.dumps({
    "backend": "onnxruntime", "precision": "FP32", "batched": True, "max_batch_size": 256, "payload": "model.onnx",
    "inputs": [{"name": "image", "dtype": "UINT8", "shape": [-1, 224, 224, 3]}],
    "outputs": [{"name": "scores", "dtype": "FP32", "shape": [-1, 10]}], "device": {"kind": "cpu"},
    "profile": {"min": 1, "opt": 64, "max": 256}}))
"""


def tiny(work: Path) -> Path:
    """A network of four operations for ONNX Runtime."""
    folder = work / "tiny"
    if not (folder / "engine.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        python = WorkerEnvironments.discover().for_backend("onnxruntime").python
        subprocess.run([str(python), "-c", TINY, str(folder)], check=True)
    return folder


def build(model: Path, work: Path, backend: str, precision: str, largest: int) -> Path:
    """Build an engine once; returns its folder.

    Args:
        model: a folder with `model.onnx` and `signature.json`, such as `int8-uint8` of `tensorrt_speed/models.py`.
        largest: batch of the profile, which is tuned for it.
    """
    folder = work / f"{backend}-{precision.lower()}-{largest}"
    if (folder / "result.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    spec = work / f"{folder.name}.json"
    params = {"backend": backend, "precision": precision, "profile": {"min": 1, "opt": largest, "max": largest}}
    described = {"stage": "build", "inputs": {"model": str(model)}, "output": str(folder), "params": params}
    spec.write_text(json.dumps(described))
    environment = WorkerEnvironments.discover().for_backend(backend)
    command = [str(environment.python), "-m", "enginehouse_worker", "stage", "--spec", str(spec), "--events-fd", "2"]
    subprocess.run(command, check=True, env=worker_variables({}, os.environ))
    return folder
