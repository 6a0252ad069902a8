"""The batcher's asyncio shell, with a fake engine that doubles numbers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from enginehouse_inference.batching.batcher import Answer, Batcher
from enginehouse_inference.batching.policy import BatchPolicy, QueuePolicy
from enginehouse_inference.batching.rows import RequestInput
from enginehouse_inference.models.statistics import Statistics

from enginehouse.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from enginehouse.workers.link import InferenceResult
from enginehouse.workers.regions import Place
from enginehouse.workers.tensors import TensorInput, TensorOutput


class Engine:
    """Doubles `x` into `y` and negates it into `z`, one batch for each `step()`, or at once when `free`."""

    def __init__(self, *, free: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.outputs: list[Sequence[str]] = []
        self.released: list[set[int]] = []
        self.error: Exception | None = None
        self.spoil = 0
        self.poison: int | None = None
        # Columns of the outputs, by batch; 2 when there is none left.
        self.widths: list[int] = []
        self._gate = asyncio.Semaphore(10**6 if free else 0)

    def step(self) -> None:
        self._gate.release()

    async def __call__(
        self,
        inputs: Sequence[TensorInput],
        outputs: Sequence[str],
        deadline_ns: int | None,
        places: Sequence[Place] = (),
    ) -> InferenceResult:
        (tensor,) = inputs
        values = np.frombuffer(b"".join(bytes(p) for p in tensor.parts), np.int32).reshape(tensor.shape)  # type: ignore[arg-type]
        self.batches.append(values[:, 0].tolist())
        self.outputs.append(outputs)
        await self._gate.acquire()
        if self.error is not None:
            raise self.error
        if self.poison in values:
            raise InvalidArgumentError(f"{self.poison} is poison")
        number = len(self.batches)
        width = self.widths.pop(0) if self.widths else 2
        made = {n: np.resize(v, (len(values), width)) for n, v in {"y": values * 2, "z": -values}.items()}
        tensors = tuple(
            TensorOutput(n, "INT32", (len(values) + self.spoil, width), memoryview(made[n].tobytes())) for n in outputs
        )
        frame = {
            "queue_ns": 0,
            "input_ns": 1,
            "compute_ns": 2,
            "output_ns": 3,
            "outputs": [{"segment": number}],
        }
        return InferenceResult(tensors, frame, self.released.append)


def batcher(
    engine: Engine, statistics: Statistics | None = None, concurrency: int = 1, queue: Any = None, **policy: Any
) -> Batcher:
    return Batcher(
        "'m'",
        policy=BatchPolicy(**{"max_batch_size": 4, "queue": QueuePolicy(**(queue or {})), **policy}),
        batched=True,
        instances=1,
        outputs=("y", "z"),
        run=engine,
        observer=statistics or Statistics(),
        concurrency=concurrency,
    )


async def ask(shell: Batcher, *numbers: int, outputs: Sequence[str] = ("y",), **more: Any) -> Answer:
    data = np.array([[n, n] for n in numbers], np.int32)
    request = RequestInput("x", "INT32", data.shape, data.tobytes())
    return await shell.infer([request], rows=len(numbers), shape="s", outputs=frozenset(outputs), **more)


def column(answer: Answer, name: str = "y") -> list[int]:
    (rows,) = [t for t in answer.outputs if t.name == name]
    return [int(n) for n in np.frombuffer(b"".join(bytes(p) for p in rows.parts), np.int32).reshape(rows.shape)[:, 0]]


async def test_requests_that_wait_share_a_batch_and_get_their_rows() -> None:
    engine = Engine(free=False)
    statistics = Statistics()
    shell = batcher(engine, statistics)
    tasks = [asyncio.create_task(ask(shell, *numbers)) for numbers in ((1,), (2, 3), (4,), (5, 6))]
    await asyncio.sleep(0)
    for _ in range(3):
        engine.step()
    answers = await asyncio.gather(*tasks)
    assert engine.batches == [[1], [2, 3, 4], [5, 6]]
    assert [column(a) for a in answers] == [[2], [4, 6], [8], [10, 12]]
    assert (statistics.executions, {n: t.infer.count for n, t in statistics.batches.items()}) == (3, {1: 1, 3: 1, 2: 1})


async def test_a_large_request_is_split_and_rejoined_in_order() -> None:
    engine = Engine()
    answer = await ask(batcher(engine), *range(10))
    assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert column(answer) == [2 * n for n in range(10)]


async def test_each_gets_the_outputs_it_asked_for() -> None:
    engine = Engine(free=False)
    shell = batcher(engine)
    tasks = [asyncio.create_task(ask(shell, 9))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(ask(shell, n, outputs=o)) for n, o in ((1, ["z"]), (2, ["y"]))]
    await asyncio.sleep(0)
    engine.step()
    engine.step()
    _, first, second = await asyncio.gather(*tasks)
    assert list(engine.outputs[1]) == ["y", "z"]
    assert [t.name for t in first.outputs] == ["z"] and column(first, "z") == [-1]
    assert [t.name for t in second.outputs] == ["y"] and column(second) == [4]


async def test_shared_memory_is_released_when_the_last_answer_is_dropped() -> None:
    engine = Engine()
    answer: Answer | None = await ask(batcher(engine), *range(5))
    await asyncio.sleep(0)
    assert engine.released == []
    assert answer is not None
    answer = None
    assert engine.released == [{1}, {2}] or engine.released == [{2}, {1}]


async def test_a_cancelled_request_is_not_computed() -> None:
    engine = Engine(free=False)
    shell = batcher(engine, join=False)
    running = asyncio.create_task(ask(shell, 1))
    waiting = asyncio.create_task(ask(shell, 2))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    engine.step()
    await running
    assert engine.batches == [[1]]
    assert shell.waiting == 0


async def test_a_client_that_leaves_while_its_batch_runs_leaks_nothing() -> None:
    engine = Engine(free=False)
    shell = batcher(engine)
    running = asyncio.create_task(ask(shell, 1))
    await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    engine.step()
    await shell.close("closing")
    await asyncio.sleep(0)
    assert engine.released == [{1}]


async def test_deadlines_and_full_queues() -> None:
    engine = Engine(free=False)
    shell = batcher(engine, queue={"max_queue_size": 1, "queue_timeout_ns": 20_000_000})
    running = asyncio.create_task(ask(shell, 1))
    waiting = asyncio.create_task(ask(shell, 2))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError, match="1 requests wait") as full:
        await ask(shell, 3)
    assert full.value.retry_after_seconds
    with pytest.raises(DeadlineExceededError, match="in the queue"):
        await waiting
    with pytest.raises(DeadlineExceededError, match="before"):
        await ask(shell, 4, deadline_ns=1)
    engine.step()
    await running
    assert engine.batches == [[1]]


async def test_an_error_reaches_everyone_in_the_batch_and_nobody_else() -> None:
    engine = Engine(free=False)
    shell = batcher(engine)
    engine.error = UnavailableError("the worker died", retry_after_seconds=1)
    tasks = [asyncio.create_task(ask(shell, *range(6)))]
    await asyncio.sleep(0.01)
    engine.step()
    with pytest.raises(UnavailableError, match="the worker died"):
        await tasks[0]
    assert shell.waiting == 0, "the rest of a request that failed must not run"
    engine.error = None
    engine.step()
    assert column(await ask(shell, 7)) == [14]
    assert engine.batches == [[0, 1, 2, 3], [7]]


async def test_one_clients_bad_values_do_not_fail_its_neighbours() -> None:
    engine = Engine(free=False)
    engine.poison = 3
    shell = batcher(engine)
    tasks = [asyncio.create_task(ask(shell, n)) for n in (0, 1, 3, 2)]
    await asyncio.sleep(0.01)
    for _ in range(5):
        engine.step()
    _, first, poisoned, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert engine.batches == [[0], [1, 3, 2], [1], [3], [2]]
    assert isinstance(first, Answer) and column(first) == [2]
    assert isinstance(last, Answer) and column(last) == [4]
    assert isinstance(poisoned, InvalidArgumentError)


async def test_an_engine_that_changes_the_batch_is_found_out() -> None:
    engine = Engine()
    engine.spoil = 1
    with pytest.raises(InternalError, match=r"'y' has shape \[2, 2\] for a batch of 1"):
        await ask(batcher(engine), 1)


async def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    engine = Engine(free=False)
    shell = batcher(engine, join=False)
    tasks = [asyncio.create_task(ask(shell, n)) for n in (1, 2)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(shell.close("it is being unloaded"))
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="unloaded"):
        await ask(shell, 3)
    assert not closing.done()
    engine.step()
    engine.step()
    await asyncio.gather(closing, *tasks)


async def test_pieces_that_do_not_fit_fail_their_request_and_not_its_neighbours() -> None:
    engine = Engine(free=False)
    engine.widths = [2, 3]
    shell = batcher(engine)
    split = asyncio.create_task(ask(shell, *range(5)))
    await asyncio.sleep(0)
    neighbour = asyncio.create_task(ask(shell, 9))
    await asyncio.sleep(0)
    for _ in range(4):
        engine.step()
    with pytest.raises(InternalError, match="do not fit"):
        await asyncio.wait_for(split, 5)
    assert (await neighbour).outputs[0].shape == (1, 3)
    assert engine.batches == [[0, 1, 2, 3], [4, 9]]


async def test_a_request_that_failed_holds_no_memory() -> None:
    engine = Engine(free=False)
    shell = batcher(engine)
    gc.disable()
    try:
        task = asyncio.create_task(ask(shell, *range(5)))
        await asyncio.sleep(0)
        engine.step()
        await asyncio.sleep(0.01)
        engine.error = UnavailableError("the worker died")
        engine.step()
        await asyncio.wait({task})
        del task
        await asyncio.sleep(0)
        # Its first piece had come: the shared memory goes back at once, not with the next garbage collection.
        assert engine.released == [{1}]
    finally:
        gc.enable()


async def test_an_instance_that_computes_gets_another_batch_when_it_is_large() -> None:
    engine = Engine(free=False)
    shell = batcher(engine, concurrency=2)
    tasks = [asyncio.create_task(ask(shell, n)) for n in (1, 2)]
    await asyncio.sleep(0.01)
    assert engine.batches == [[1]]  # the second waits for others
    tasks += [asyncio.create_task(ask(shell, n)) for n in (3, 4, 5)]
    await asyncio.sleep(0.01)
    assert engine.batches == [[1], [2, 3]]  # half of the most; both are taken now
    for _ in range(3):
        engine.step()
    assert [column(answer) for answer in await asyncio.gather(*tasks)] == [[2], [4], [6], [8], [10]]
    assert engine.batches == [[1], [2, 3], [4, 5]]
