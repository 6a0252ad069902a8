"""Answers that are kept: the right one, a copy, within the bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginehouse_inference.batching.request import Answer
from enginehouse_inference.batching.rows import OutputRows, RequestInput
from enginehouse_inference.models.batching import Batching, QueueDefaults
from enginehouse_inference.models.plan import ModelPlan, VersionPlan
from enginehouse_inference.models.response_cache import ResponseCache, cache_key
from enginehouse_inference.models.statistics import Statistics
from enginehouse_inference.models.version import EngineInfo, ModelVersion
from enginehouse_inference.protocol.request import CheckedRequest, RequestedOutput
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.errors import InvalidArgumentError
from enginehouse.workers.link import InferenceResult, LoadedModel
from enginehouse.workers.tensors import FilePart, TensorOutput, TensorSpec


def request(*inputs: RequestInput, outputs: tuple[str, ...] = ("y",), priority: int = 0) -> CheckedRequest:
    return CheckedRequest(
        inputs=inputs,
        outputs=tuple(RequestedOutput(name) for name in outputs),
        rows=1,
        shape="s",
        timeout_ns=None,
        priority=priority,
    )


def tensor(data: bytes, name: str = "x", shape: tuple[int, ...] = (1, 4), dtype: str = "UINT8") -> RequestInput:
    return RequestInput(name, dtype, shape, data)


def answer(data: bytearray) -> Answer:
    return Answer((OutputRows("y", "UINT8", (1, len(data)), (memoryview(data),)),), (), 1, 2, 3, 4)


def test_keys_differ_where_answers_may() -> None:
    keys = [
        cache_key(request(tensor(b"abcd"))),
        cache_key(request(tensor(b"abce"))),
        cache_key(request(tensor(b"abcd", shape=(1, 2, 2)))),
        cache_key(request(tensor(b"abcd", shape=(1, 1), dtype="INT32"))),
        cache_key(request(tensor(b"abcd", name="z"))),
        cache_key(request(tensor(b"abcd"), outputs=("y", "z"))),
        cache_key(request(tensor(b"ab"), tensor(b"cd", name="w"))),
        cache_key(request(tensor(b"abc"), tensor(b"d", name="w"))),
    ]
    assert None not in keys and len(set(keys)) == len(keys)
    assert keys[0] == cache_key(request(tensor(b"abcd"), priority=1))
    two = tensor(b"ab"), tensor(b"cd", name="w")
    assert cache_key(request(*two)) == cache_key(request(*reversed(two))), "in any order of inputs"


def test_what_lies_in_shared_memory_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "region"
    path.write_bytes(b"abcd")
    with path.open("rb") as file:
        assert cache_key(request(RequestInput("x", "UINT8", (1, 4), FilePart(file.fileno(), 0, 4)))) is None


def test_an_answer_is_copied_and_found_again() -> None:
    cache = ResponseCache(10_000)
    data = bytearray(b"rows")
    assert cache.find(b"k") is None
    cache.keep(b"k", answer(data))
    data[:] = b"gone"  # the worker's memory is used again
    found = cache.find(b"k")
    assert found is not None and found.cached and found.results == () and found.compute_ns == 0
    assert bytes(found.outputs[0].parts[0]) == b"rows" and found.outputs[0].shape == (1, 4)
    assert (cache.counts.hits, cache.counts.misses, cache.counts.answers) == (1, 1, 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000)), max_size=40), st.integers(0, 8000))
def test_it_keeps_no_more_than_it_may_and_the_last_that_were_used(uses: list[tuple[int, int]], most: int) -> None:
    cache = ResponseCache(most)
    order: list[int] = []
    for key, size in uses:
        name = str(key).encode()
        if cache.find(name) is None:
            cache.keep(name, answer(bytearray(size)))
            if 1024 + size > most:
                continue
        if key in order:
            order.remove(key)
        order.append(key)
        assert cache.counts.bytes <= most
    kept = cache.counts.answers
    assert all(cache.find(str(key).encode()) is not None for key in order[len(order) - kept :])
    cache.resize(0)
    assert (cache.counts.bytes, cache.counts.answers, bool(cache)) == (0, 0, False)


class Worker:
    """Adds one to each byte; counts how often."""

    device = "cpu"

    def __init__(self) -> None:
        self.runs = 0
        self.error: Exception | None = None

    def ready(self, key: str) -> bool:
        return True

    async def infer(self, key: str, inputs: Any, outputs: Any, deadline_ns: Any, places: Any) -> InferenceResult:
        self.runs += 1
        if self.error is not None:
            raise self.error
        values = np.frombuffer(b"".join(bytes(p) for p in inputs[0].parts), np.uint8) + 1
        frame = {"queue_ns": 0, "input_ns": 0, "compute_ns": 0, "output_ns": 0, "outputs": []}
        made = TensorOutput("y", "UINT8", inputs[0].shape, memoryview(values.tobytes()))
        return InferenceResult((made,), frame, lambda _: None)


def version(worker: Worker, cache_bytes: int) -> ModelVersion:
    spec = [TensorSpec(name, "UINT8", (-1, 4)) for name in "xy"]
    return ModelVersion(
        ModelPlan("m", (), batching=Batching(response_cache_bytes=cache_bytes)),
        VersionPlan(1),
        key="m:1:1",
        worker=worker,  # type: ignore[arg-type]
        loaded=LoadedModel((spec[0],), (spec[1],), True, 8, 0.0, 0),
        engine=EngineInfo("fake", "1", "FP32", "p", Path("/")),
        statistics=Statistics(),
        defaults=QueueDefaults(),
    )


async def test_equal_requests_are_computed_once_where_that_is_wanted() -> None:
    worker = Worker()
    served = version(worker, 100_000)
    got = [await served.infer(request(tensor(data)), None) for data in (b"abcd", b"abcd", b"bcde", b"abcd")]
    assert [bytes(a.outputs[0].parts[0]) for a in got] == [b"bcde", b"bcde", b"cdef", b"bcde"]
    assert [a.cached for a in got] == [False, True, False, True] and worker.runs == 2
    served.set_batching(Batching())
    assert not (await served.infer(request(tensor(b"abcd")), None)).cached


async def test_an_error_is_not_kept() -> None:
    worker = Worker()
    served = version(worker, 100_000)
    worker.error = InvalidArgumentError("no")
    with pytest.raises(InvalidArgumentError):
        await served.infer(request(tensor(b"abcd")), None)
    worker.error = None
    await asyncio.sleep(0)
    assert not (await served.infer(request(tensor(b"abcd")), None)).cached
