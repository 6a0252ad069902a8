"""A configured engine for a GPU on a server without one: what each policy makes of it, with real workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_world import Server, floats, tensor
from optimizer_double import OptimizerDouble

from enginehouse.v1 import engines_pb2

MODEL = "projects/default/models/double"
H200 = engines_pb2.Device(kind="gpu", product="NVIDIA H200", compute_capability="9.0")


@pytest.fixture
def optimizer(models: Path) -> Iterator[OptimizerDouble]:
    double = OptimizerDouble()
    double.start()
    signature = [engines_pb2.TensorSpec(name="x", dtype="FP32", shape=[-1, 4])]
    alike = {"model": MODEL, "inputs": signature, "batched": True}
    on_gpu = double.publish("on-gpu", models / "double", backend="tensorrt", device=H200, **alike)
    double.publish("on-cpu", models / "double", backend="onnxruntime", device=engines_pb2.Device(kind="cpu"), **alike)
    double.publish("other", models / "triple", backend="onnxruntime", model=f"{MODEL}-2", inputs=signature)
    double.configure("m", {1: on_gpu})
    yield double
    double.stop()


def state(client: Any) -> tuple[str, str]:
    (model,) = client.get_model_repository_index().models
    return model.state, model.reason


def test_another_engine_is_served_where_that_is_wanted(
    start_server: Callable[..., Server], optimizer: OptimizerDouble
) -> None:
    failing = start_server("failing", optimizer=optimizer.address).client()
    assert failing.is_server_ready()
    reached, reason = state(failing)
    assert reached == "UNAVAILABLE"
    assert "on-gpu does not run here" in reason and "ENGINEHOUSE_MISSING_ENGINE=fallback" in reason
    server = start_server("falling-back", optimizer=optimizer.address, missing_engine="fallback")
    sent = floats(2)

    def answer(running: Server) -> Any:
        return running.client().infer("m", [tensor("x", sent, "FP32")]).as_numpy("y")

    np.testing.assert_allclose(answer(server), 2 * sent)
    assert "another engine is served" in server.log() and "on-cpu" in server.log()
    server.stop()
    optimizer.stop()
    # Without the optimizer: the choice of before, whose files nobody removed as unwanted.
    again = start_server(
        "falling-back", optimizer=optimizer.address, missing_engine="fallback", startup_wait_seconds="0.1"
    )
    np.testing.assert_allclose(answer(again), 2 * sent)
