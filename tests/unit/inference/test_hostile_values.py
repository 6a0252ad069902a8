"""Values that strangers send and that once were answered INTERNAL, or never: each was found by malformed requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginehouse_inference.batching.batcher import Batcher
from enginehouse_inference.batching.policy import BatchPolicy
from enginehouse_inference.batching.request import MAX_BATCHES, SHARED_PIECES
from enginehouse_inference.batching.rows import RequestInput
from enginehouse_inference.models.catalog import Catalog
from enginehouse_inference.models.load_request import plan_from_load
from enginehouse_inference.models.statistics import Statistics
from enginehouse_inference.protocol import parameters
from enginehouse_inference.protocol.regions import Regions
from tritonclient.grpc import service_pb2 as pb

from enginehouse.errors import EnginehouseError, InvalidArgumentError
from enginehouse.workers.link import InferenceResult
from enginehouse.workers.tensors import TensorOutput

# Python refuses to read numbers of so many digits.
DIGITS = "9" * 5000


def test_numbers_of_thousands_of_digits() -> None:
    request = pb.ModelInferRequest()
    request.parameters["priority"].string_param = DIGITS
    with pytest.raises(InvalidArgumentError, match="whole number"):
        parameters.integer(request.parameters, "priority", "model m")
    request.parameters["priority"].string_param = str(2**64 - 1)
    assert parameters.integer(request.parameters, "priority", "model m") == 2**64 - 1
    catalog = Catalog(lambda name: None)
    catalog._models["m"] = {1: None}  # type: ignore[dict-item]
    with pytest.raises(InvalidArgumentError, match="expected a number"):
        catalog.find("m", DIGITS)


def test_nul_in_names_of_files() -> None:
    with pytest.raises(InvalidArgumentError, match="shared memory key"):
        Regions(Path("/dev/shm")).register("r", "a\0b", 0, 16)
    with pytest.raises(InvalidArgumentError, match="engine_directory"):
        plan_from_load("m", '{"engine_directory": "/a\\u0000"}')


def test_json_deeper_than_python_reads() -> None:
    with pytest.raises(InvalidArgumentError, match="not JSON"):
        plan_from_load("m", "[" * 100_000)


class Counting:
    """Doubles rows; counts the batches whose shared memory is held."""

    def __init__(self) -> None:
        self.held = self.most = self.batches = 0

    def _release(self, segments: set[int]) -> None:
        self.held -= 1

    async def __call__(self, inputs: Any, outputs: Any, deadline_ns: Any, places: Any = ()) -> InferenceResult:
        (tensor,) = inputs
        values = np.frombuffer(b"".join(bytes(part) for part in tensor.parts), np.int32)
        self.batches += 1
        self.held += 1
        self.most = max(self.most, self.held)
        await asyncio.sleep(0)
        data = memoryview((values * 2).tobytes())
        frame = {"queue_ns": 5, "input_ns": 1, "compute_ns": 2, "output_ns": 3, "outputs": [{"segment": self.batches}]}
        return InferenceResult((TensorOutput("y", "INT32", tensor.shape, data),), frame, self._release)


def batcher(run: Counting, rows: int) -> Batcher:
    policy = BatchPolicy(max_batch_size=rows)
    return Batcher(
        "m", policy=policy, batched=True, instances=1, outputs=("y",), run=run, observer=Statistics(), concurrency=1
    )


async def test_a_request_of_many_batches_holds_few_segments() -> None:
    # Each holds a descriptor, here and in the worker: a request of some megabytes took all that a process may have.
    run = Counting()
    values = np.arange(1000, dtype=np.int32).reshape(500, 2)
    tensor = RequestInput("x", "INT32", (500, 2), values.tobytes())
    answer = await batcher(run, 2).infer([tensor], rows=500, shape=2, outputs=frozenset({"y"}))
    assert run.batches == 250 and run.most <= SHARED_PIECES + 2
    doubled = np.frombuffer(b"".join(answer.outputs[0].parts), np.int32)
    np.testing.assert_array_equal(doubled.reshape(500, 2), 2 * values)
    assert (answer.input_ns, answer.compute_ns, answer.output_ns) == (1, 2, 3)
    del answer
    await asyncio.sleep(0)  # the last batch's task ends
    assert run.held == 0


@pytest.mark.parametrize("rows", [2 * MAX_BATCHES + 1, 2**62, 2**63 - 1])
async def test_rows_without_bytes_are_not_computed_for_ever(rows: int) -> None:
    run = Counting()
    tensor = RequestInput("x", "INT32", (rows, 0), b"")
    with pytest.raises(InvalidArgumentError, match=f"at most {MAX_BATCHES}") as caught:
        await batcher(run, 2).infer([tensor], rows=rows, shape=0, outputs=frozenset({"y"}))
    assert isinstance(caught.value, EnginehouseError) and run.batches == 0


async def test_as_many_batches_as_may_be_are_computed() -> None:
    run = Counting()
    tensor = RequestInput("x", "INT32", (MAX_BATCHES, 1), np.zeros(MAX_BATCHES, np.int32).tobytes())
    answer = await batcher(run, 1).infer([tensor], rows=MAX_BATCHES, shape=1, outputs=frozenset({"y"}))
    assert run.batches == MAX_BATCHES and answer.outputs[0].shape == (MAX_BATCHES, 1)
