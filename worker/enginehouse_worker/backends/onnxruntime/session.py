"""ONNX Runtime sessions and the options that reach them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse_worker.backends import options as read
from enginehouse_worker.errors import WorkerError

OPTIONS = ("intra_op_threads", "inter_op_threads", "graph_optimization", "spinning")
_LEVELS = ("all", "extended", "basic", "disabled")
_MAX_THREADS = 1024
# ONNX Runtime 1.23 makes a Pad with zeros the padding of the MaxPool after it, which is minus infinity: wrong where all
# of a window is negative, and 0.3% of ResNet-50 v2's logits.
_DISABLED_OPTIMIZERS = ["Pad_Fusion"]
# It takes a Clip before a QuantizeLinear away, which makes ReLU6 free with integer kernels and gains nothing without.
# It fails where the Clip reads an input of the graph, as segments of graphs begin (in imported models none does).
_CLIP_REWRITE = "ClipQuantRewrite"
# The same of a Relu, also before FP8, whose range has both signs: nothing clips then.
_RELU_REWRITE = "ReluQuantRewrite"


def check_options(options: Mapping[str, Any]) -> None:
    """Raise INVALID_ARGUMENT for an unknown option or a bad value.

    `intra_op_threads`: threads of one operator (0, the default: one a core). `inter_op_threads`: operators run at once.
    `graph_optimization`: "all" (the default), "extended", "basic" or "disabled". `spinning`: "true" (the default) lets
    threads wait for work in a loop, which is faster and burns CPU when idle; "false" lets them sleep.
    """
    read.check_known(options, OPTIONS, "onnxruntime")
    read.integer(options, "intra_op_threads", 0, 0, _MAX_THREADS)
    read.integer(options, "inter_op_threads", 0, 0, _MAX_THREADS)
    read.choice(options, "graph_optimization", "all", _LEVELS)
    read.choice(options, "spinning", "true", ("true", "false"))


def create_session(
    model: bytes | Path,
    options: Mapping[str, Any] | None = None,
    *,
    widen_int8_products: bool = False,
    integer_kernels: bool = True,
    optimized_model: Path | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    `widen_int8_products` avoids 16-bit saturation at some speed. Without `integer_kernels` Q/DQ only round, and what is
    between them runs in FP32. `optimized_model` also writes what the graph became.

    Raises:
        WorkerError: INVALID_ARGUMENT when ONNX Runtime cannot load the model, with its reason.
    """
    import onnxruntime

    chosen = options or {}
    levels = onnxruntime.GraphOptimizationLevel
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = read.integer(chosen, "intra_op_threads", 0, 0, _MAX_THREADS)
    settings.inter_op_num_threads = read.integer(chosen, "inter_op_threads", 0, 0, _MAX_THREADS)
    settings.graph_optimization_level = {
        "all": levels.ORT_ENABLE_ALL,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "basic": levels.ORT_ENABLE_BASIC,
        "disabled": levels.ORT_DISABLE_ALL,
    }[read.choice(chosen, "graph_optimization", "all", _LEVELS)]
    if read.choice(chosen, "spinning", "true", ("true", "false")) == "false":
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if widen_int8_products:
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if not integer_kernels:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimized_model is not None:
        settings.optimized_model_filepath = str(optimized_model)
    disabled = _DISABLED_OPTIMIZERS if integer_kernels else [*_DISABLED_OPTIMIZERS, _CLIP_REWRITE, _RELU_REWRITE]
    try:
        source = model if isinstance(model, bytes) else str(model)
        return onnxruntime.InferenceSession(
            source, settings, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except Exception as error:
        raise WorkerError("INVALID_ARGUMENT", f"ONNX Runtime cannot load the model: {error}") from error
