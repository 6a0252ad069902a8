"""Whole models on one device, the clock simulated: each request gets its own rows once, or is told why not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from enginehouse_inference.batching.batcher import Answer, Batcher
from enginehouse_inference.batching.policy import BatchPolicy, QueuePolicy, TimeoutAction
from enginehouse_inference.batching.rows import RequestInput
from enginehouse_inference.batching.turns import DeviceTurns
from enginehouse_inference.models.statistics import Statistics
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.errors import DeadlineExceededError, EnginehouseError, ResourceExhaustedError
from enginehouse.workers.link import InferenceResult
from enginehouse.workers.regions import Place
from enginehouse.workers.tensors import TensorInput, TensorOutput

sys.path.insert(0, str(Path(__file__).parent))

from simulated_loop import now_ns, simulate

MS = 1_000_000


@dataclass
class Engine:
    """Answers each row with its double, after `cost_ms`."""

    cost_ms: float
    batches: list[list[int]] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    running: int = 0
    most: int = 0

    async def __call__(
        self,
        inputs: Sequence[TensorInput],
        outputs: Sequence[str],
        deadline_ns: int | None,
        places: Sequence[Place] = (),
    ) -> InferenceResult:
        values = np.frombuffer(b"".join(bytes(part) for part in inputs[0].parts), np.int32)  # type: ignore[arg-type]
        self.batches.append(values.tolist())
        self.begun.append(now_ns())
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.cost_ms / 1e3)
        finally:
            self.running -= 1
        frame = {"queue_ns": 0, "input_ns": 0, "compute_ns": int(self.cost_ms * MS), "output_ns": 0, "outputs": []}
        made = memoryview((values * 2).tobytes())
        return InferenceResult((TensorOutput("y", "INT32", (len(values), 1), made),), frame, lambda _: None)


@dataclass(frozen=True)
class Call:
    """A request to one of two models, `after_ms` the one before."""

    after_ms: int
    model: int
    rows: int
    priority: int
    deadline_ms: int | None
    timeout_ms: int | None
    cancel_ms: int | None
    alone: bool


calls = st.lists(
    st.builds(
        Call,
        after_ms=st.sampled_from([0, 0, 0, 1, 3]),
        model=st.integers(0, 1),
        rows=st.sampled_from([1, 1, 2, 3, 9]),
        priority=st.integers(0, 3),
        deadline_ms=st.sampled_from([None, None, 4, 30]),
        timeout_ms=st.sampled_from([None, None, 2, 20]),
        cancel_ms=st.sampled_from([None, None, None, 0, 2, 9]),
        alone=st.sampled_from([False, False, False, True]),
    ),
    max_size=25,
)
queues = st.builds(
    QueuePolicy,
    max_queue_size=st.integers(1, 8),
    queue_timeout_ns=st.sampled_from([None, 8 * MS]),
    timeout_action=st.sampled_from(TimeoutAction),
)
policies = st.builds(
    BatchPolicy,
    max_batch_size=st.integers(1, 6),
    join=st.booleans(),
    max_queue_delay_ns=st.sampled_from([0, 2 * MS]),
    preferred_batch_sizes=st.sampled_from([(), (2,)]),
    queue=queues,
    levels=st.one_of(st.just(()), st.tuples(queues, queues)),
    default_level=st.just(2),
)


def make(name: str, engine: Engine, policy: BatchPolicy, device: DeviceTurns | None, **more: int) -> Batcher:
    return Batcher(
        name,
        policy=policy,
        batched=True,
        outputs=("y",),
        run=engine,
        observer=Statistics(),
        clock=now_ns,
        device=device,
        **{"instances": 1, **more},
    )


async def ask(batcher: Batcher, numbers: Sequence[int], call: Call | None = None) -> Answer:
    call = call or Call(0, 0, 1, 0, None, None, None, False)
    data = np.array(numbers, np.int32).reshape(-1, 1)
    return await batcher.infer(
        [RequestInput("x", "INT32", data.shape, data.tobytes())],
        rows=len(data),
        shape="s",
        outputs=frozenset("y"),
        deadline_ns=None if call.deadline_ms is None else now_ns() + call.deadline_ms * MS,
        alone=call.alone,
        priority=call.priority,
        timeout_ns=None if call.timeout_ms is None else call.timeout_ms * MS,
    )


async def stop(tasks: Sequence[asyncio.Task[Answer]], batchers: Sequence[Batcher]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for batcher in batchers:
        await batcher.close("the end")


def rows_of(answer: Answer) -> list[int]:
    (rows,) = answer.outputs
    return np.frombuffer(b"".join(bytes(p) for p in rows.parts), np.int32).tolist()  # type: ignore[no-any-return]


@settings(max_examples=200, deadline=None)
@given(
    calls,
    st.tuples(policies, policies),
    st.tuples(st.sampled_from([1, 5]), st.sampled_from([2, 7])),
    st.sampled_from([0, 1, 2]),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_each_request_gets_its_rows_or_an_error_and_nothing_is_left(
    calls: list[Call],
    policies: tuple[BatchPolicy, BatchPolicy],
    costs: tuple[int, int],
    limit: int,
    instances: int,
    concurrency: int,
) -> None:
    engines = [Engine(cost) for cost in costs]
    moments: dict[int, int] = {}

    async def one(batcher: Batcher, number: int, call: Call) -> Answer:
        moments[number] = now_ns()
        return await ask(batcher, range(100 * number, 100 * number + call.rows), call)

    async def main() -> list[Answer | BaseException]:
        device = DeviceTurns(limit) if limit else None
        batchers = [
            make(name, engine, policy, device, instances=instances, concurrency=concurrency)
            for name, engine, policy in zip("ab", engines, policies, strict=True)
        ]
        tasks = []
        for number, call in enumerate(calls):
            await asyncio.sleep(call.after_ms / 1e3)
            tasks.append(asyncio.create_task(one(batchers[call.model], number, call)))
            if call.cancel_ms is not None:
                asyncio.get_running_loop().call_later(call.cancel_ms / 1e3, tasks[-1].cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for batcher in batchers:
            await batcher.close("the end")
            assert batcher.waiting == 0
        return results

    results = simulate(main())
    computed: dict[int, list[int]] = {}
    begun: dict[int, int] = {}
    for engine in engines:
        for values, moment in zip(engine.batches, engine.begun, strict=True):
            for value in values:
                computed.setdefault(value // 100, []).append(value)
                begun[value // 100] = moment
        assert engine.most <= (min(limit, instances * concurrency) if limit else instances * concurrency)
    for number, (call, result) in enumerate(zip(calls, results, strict=True)):
        wanted = list(range(100 * number, 100 * number + call.rows))
        mine = computed.get(number, [])
        # Never twice, never out of order.
        assert mine == wanted[: len(mine)]
        if isinstance(result, Answer):
            assert rows_of(result) == [2 * n for n in wanted]
            assert mine == wanted
        elif isinstance(result, asyncio.CancelledError):
            assert call.cancel_ms is not None
        else:
            assert isinstance(result, (DeadlineExceededError, ResourceExhaustedError)), result
            assert isinstance(result, EnginehouseError)
            if isinstance(result, ResourceExhaustedError):
                assert result.retry_after_seconds and not mine
            else:
                assert mine != wanted, "computed in full, and answered that it was late"
        if call.deadline_ms is not None and mine:
            assert begun[number] < moments[number] + call.deadline_ms * MS, "begun after its deadline"


def test_a_device_is_shared_by_time_and_not_by_batches() -> None:
    """A model of long batches and one of short ones, both with more work than the device can do."""
    long, short = Engine(10), Engine(1)

    async def main() -> tuple[int, int]:
        device = DeviceTurns(1)
        policy = BatchPolicy(max_batch_size=1, queue=QueuePolicy(max_queue_size=10_000))
        batchers = [make("long", long, policy, device), make("short", short, policy, device)]
        tasks = [asyncio.create_task(ask(b, [n])) for b in batchers for n in range(2_000)]
        await asyncio.sleep(2.0)
        done = len(long.batches), len(short.batches)
        await stop(tasks, batchers)
        return done

    longs, shorts = simulate(main())
    assert abs(longs * 10 - shorts) <= 20, (longs, shorts)


def test_a_share_is_of_the_time_and_what_nobody_wants_is_anybodys() -> None:
    first, second = Engine(5), Engine(5)

    async def main() -> None:
        device = DeviceTurns(2)
        policy = BatchPolicy(max_batch_size=1, queue=QueuePolicy(max_queue_size=10_000))
        heavy = make("heavy", first, policy, device, share=3, instances=2)
        light = make("light", second, policy, device, instances=2)
        alone = asyncio.gather(*(ask(light, [n]) for n in range(40)))
        await alone
        assert now_ns() == 100 * MS, "alone it has the device to itself"
        both = [asyncio.create_task(ask(b, [n])) for b in (heavy, light) for n in range(400)]
        await asyncio.sleep(0.5)
        # 200 batches: three quarters and one.
        assert abs(len(first.batches) - 150) <= 4 and abs(len(second.batches) - 40 - 50) <= 4
        await stop(both, [heavy, light])

    simulate(main())


def test_a_model_that_was_idle_is_owed_nothing_and_waits_for_no_backlog() -> None:
    busy, rare = Engine(4), Engine(1)

    async def main() -> None:
        device = DeviceTurns(1)
        policy = BatchPolicy(max_batch_size=1, queue=QueuePolicy(max_queue_size=10_000))
        batchers = [make("busy", busy, policy, device), make("rare", rare, policy, device)]
        backlog = [asyncio.create_task(ask(batchers[0], [n])) for n in range(1_000)]
        await asyncio.sleep(1.0)
        for _ in range(20):
            begin = now_ns()
            await ask(batchers[1], [0])
            assert now_ns() - begin <= (4 + 1) * MS + 1000, "it waited for more than the batch that ran"
            await asyncio.sleep(0.05)
        done, begin = len(busy.batches), now_ns()
        many = asyncio.gather(*(ask(batchers[1], [n]) for n in range(100)))
        await many
        # Time that it did not use earlier is not given back: half of the time since was the other's.
        assert abs((len(busy.batches) - done) * 4 - 100) <= 12, (now_ns() - begin) / MS
        await stop(backlog, batchers)

    simulate(main())


def test_a_request_waits_no_longer_than_the_delay_and_late_ones_cost_nothing() -> None:
    engine = Engine(10)

    async def main() -> None:
        batcher = make("m", engine, BatchPolicy(max_batch_size=8, max_queue_delay_ns=3 * MS), None)
        await asyncio.gather(ask(batcher, [1]), ask(batcher, [2]))
        assert engine.begun == [3 * MS] and engine.batches == [[1, 2]]
        running = asyncio.create_task(ask(batcher, range(8)))
        await asyncio.sleep(0)
        begin = now_ns()
        late = await asyncio.gather(ask(batcher, [3], Call(0, 0, 1, 0, 5, None, None, False)), return_exceptions=True)
        assert isinstance(late[0], DeadlineExceededError) and now_ns() - begin == 5 * MS
        await running
        await batcher.close("the end")
        assert [3] not in engine.batches

    simulate(main())
