"""Which stage starts next: slots, priorities, memory; no processes here, only what they are said to take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from enginehouse_optimizer.pipeline import slots as slots_module
from enginehouse_optimizer.pipeline.slots import Demand, Holding, StageQueue, StageSlots
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.stage_costs import StageCosts

from enginehouse.workers.memory import available_memory_bytes

GIB = 1 << 30


class Stages:
    """Stages that run until they are told to end; `started` says in which order they began."""

    def __init__(self, slots: StageSlots, free: Callable[[], int | None] = lambda: None) -> None:
        self.used: dict[int, int] = {}
        self.queue = StageQueue(slots, free, lambda group: self.used[group])
        self.started: list[str] = []
        self.told: list[str] = []
        self.holdings: dict[str, Holding] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def want(self, name: str, demand: Demand, *, priority: int = 0, job: int = 0) -> None:
        self._ends[name] = asyncio.Event()

        async def run() -> None:
            async with self.queue.hold(demand, lambda: (-priority, job), self.told.append) as holding:
                self.started.append(name)
                self.holdings[name] = holding
                await self._ends[name].wait()

        self._tasks[name] = asyncio.ensure_future(run())
        await asyncio.sleep(0.001)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await asyncio.sleep(0.001)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await asyncio.sleep(0.001)


async def test_waiting_stages_start_by_priority_then_by_age() -> None:
    stages = Stages(StageSlots(total=1))
    demand = Demand("build", "a")
    await stages.want("first", demand, job=1)
    await stages.want("late", demand, job=4)
    await stages.want("early", demand, job=2)
    await stages.want("low", demand, priority=-5, job=1)
    await stages.want("urgent", demand, priority=7, job=9)
    for name in ("first", "urgent", "early", "late", "low"):
        assert stages.started[-1] == name
        await stages.end(name)


async def test_a_stage_without_a_slot_lets_others_pass() -> None:
    stages = Stages(StageSlots(total=3, per_environment=2, environments={"b": 1}, stages={"convert": 1}))
    await stages.want("convert 1", Demand("convert", "a"))
    await stages.want("convert 2", Demand("convert", "a"), priority=100)
    await stages.want("convert 3", Demand("convert", "b"))
    await stages.want("build a", Demand("build", "a"), priority=-100)
    await stages.want("build b", Demand("build", "b"))
    assert stages.started == ["convert 1", "build a", "build b"]
    await stages.end("convert 1")
    assert stages.started[-1] == "convert 2", "though convert 3 has waited, and is of another environment"
    await stages.end("build b")
    await stages.cancel("convert 2")
    assert stages.started[-1] == "convert 3"


async def test_a_stage_waits_for_memory_and_none_passes_it() -> None:
    free = 10 * GIB
    stages = Stages(StageSlots(total=4, per_environment=4), lambda: free)
    await stages.want("big", Demand("convert", "a", 8 * GIB))
    await stages.want("bigger", Demand("convert", "a", 9 * GIB))
    await stages.want("small", Demand("build", "a", GIB))
    assert stages.started == ["big"], "small fits beside big, but would keep bigger waiting"
    assert stages.told == ["waits for memory: expected to take 9.0 GiB, 2.0 GiB are free"]
    await stages.end("big")
    assert stages.started == ["big", "bigger", "small"]


async def test_what_runs_is_expected_to_grow_to_its_peak() -> None:
    free = 10 * GIB
    stages = Stages(StageSlots(total=4, per_environment=4), lambda: free)
    await stages.want("one", Demand("convert", "a", 6 * GIB))
    stages.holdings["one"].group = 1
    stages.used[1], free = 5 * GIB, 5 * GIB
    await stages.want("two", Demand("build", "a", 4 * GIB))
    assert stages.started == ["one", "two"], "of 5 GiB free, one will take 1 GiB more"


async def test_what_would_run_alone_starts_whatever_it_takes() -> None:
    stages = Stages(StageSlots(total=2, per_environment=2), lambda: GIB)
    await stages.want("huge", Demand("convert", "a", 100 * GIB))
    assert stages.started == ["huge"]


async def test_memory_that_others_free_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "LOOK_AGAIN_SECONDS", 0.01)
    free = GIB
    stages = Stages(StageSlots(total=2, per_environment=2), lambda: free)
    await stages.want("one", Demand("build", "a"))
    await stages.want("two", Demand("build", "a", 2 * GIB))
    assert stages.started == ["one"]
    free = 3 * GIB
    while stages.started != ["one", "two"]:
        await asyncio.sleep(0.01)


async def test_a_budget_bounds_what_runs_together() -> None:
    stages = Stages(StageSlots(total=4, per_environment=4, memory_bytes=4 * GIB))
    for name in ("one", "two", "three"):
        await stages.want(name, Demand("build", "a", 2 * GIB))
    assert stages.started == ["one", "two"]
    await stages.end("one")
    assert stages.started == ["one", "two", "three"]


def test_costs_are_those_of_equal_inputs() -> None:
    costs = StageCosts(Database(":memory:"))
    assert costs.expected("tensorflow", "convert", 0) > costs.expected("onnxruntime", "build", 0) > 0
    assert costs.expected("tensorflow", "convert", GIB) > 5 * GIB
    costs.record("tensorflow", "convert", 1000, 5)
    costs.record("tensorflow", "convert", 1010, 7)
    costs.record("tensorflow", "convert", 9000, 99)
    assert costs.expected("tensorflow", "convert", 1001) == 7
    assert costs.expected("onnxruntime", "convert", 1001) > 99
    costs.record("tensorflow", "convert", 1010, 6)
    assert costs.expected("tensorflow", "convert", 1001) == 6, "the last run counts"


def test_available_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 5000 kB\n")
    assert available_memory_bytes(tmp_path, tmp_path / "none") == 5000 << 10
    for name, text in {"max": "3000000", "current": "2000000", "stat": "anon 1\ninactive_file 500000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_memory_bytes(tmp_path, tmp_path) == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory_bytes(tmp_path, tmp_path) == 5000 << 10
    assert available_memory_bytes(tmp_path / "none", tmp_path) is None
    assert available_memory_bytes() is not None
