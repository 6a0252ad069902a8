"""The scopes of a measurement: from host memory, and on what is in device buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from enginehouse_worker.backends.base import Array, Signature, TensorSpec
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.runner.measure import run_for

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),), True)


class Copying:
    """An instance that knows host memory only."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self.calls.append("run")
        return {"y": np.array(inputs["x"])}

    def close(self) -> None: ...


class OnDevice(Copying):
    """One that has buffers of its own."""

    def launch(self, shapes: tuple[tuple[int, ...], ...], *, copies: bool = True) -> None:
        self.calls.append((shapes, copies))

    def wait(self) -> None:
        self.calls.append("wait")


def test_engine_scope_computes_without_copies() -> None:
    instance = OnDevice()
    measured = run_for(instance, SIGNATURE, batch=4, seconds=0, seed=1, scope="engine")
    assert instance.calls == ["run", (((4, 3),), False), "wait"]
    assert measured.inferences == 4 and len(measured.latencies_ns) == 1


def test_host_scope_runs_from_host_memory() -> None:
    instance = OnDevice()
    run_for(instance, SIGNATURE, batch=2, seconds=0, seed=1)
    assert instance.calls == ["run"]


@pytest.mark.parametrize(("scope", "code"), [("engine", "FAILED_PRECONDITION"), ("served", "INVALID_ARGUMENT")])
def test_scopes_that_a_runtime_has_not(scope: str, code: str) -> None:
    with pytest.raises(WorkerError) as raised:
        run_for(Copying(), SIGNATURE, batch=2, seconds=0, seed=1, scope=scope)
    assert raised.value.code == code
