"""The models, in ONNX Runtime on one thread: what every peer computes with. Imports nothing but ONNX Runtime."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import onnxruntime

MODELS = ("identity", "sums")


def session(folder: Path, model: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(folder / model / "model.onnx"), options, providers=["CPUExecutionProvider"])


def arguments() -> tuple[Path, Path]:
    """The models' folder, and the file to announce the port in."""
    return Path(sys.argv[1]), Path(sys.argv[2])


def announce(path: Path, port: int, **versions: Any) -> None:
    """Say where the server will serve, or does."""
    written = path.with_suffix(".new")
    written.write_text(json.dumps({"port": port, "versions": {"onnxruntime": onnxruntime.__version__, **versions}}))
    written.replace(path)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
