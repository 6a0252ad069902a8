"""Models that come and go: supervision, replacement and shutdown, with workers that are objects."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from enginehouse_inference.desired.models import DesiredModels
from enginehouse_inference.desired.pace import Pace
from enginehouse_inference.models.catalog import Catalog, State
from enginehouse_inference.models.manager import ModelManager
from enginehouse_inference.models.plan import ModelPlan, VersionPlan

from enginehouse.errors import AbortedError, InvalidArgumentError, ResourceExhaustedError, UnavailableError

sys.path.insert(0, str(Path(__file__).parent))

from fake_device import FakeDevice, until
from simulated_loop import now_ns, simulate

SECONDS = 5.0


class World:
    def __init__(self, folder: Path, *, starts: bool = True) -> None:
        (folder / "engine.json").write_text(json.dumps({"backend": "fake", "batched": True, "max_batch_size": 4}))
        self.folder = folder
        self.ready: list[tuple[str, bool]] = []
        self.catalog = Catalog(lambda name: self.ready.append((name, self.catalog.is_ready(name))))
        self.devices = FakeDevice(starts=starts)
        self.manager = ModelManager(self.catalog, self.devices, None, drain_seconds=0.05)  # type: ignore[arg-type]
        self.desired = DesiredModels(self.manager, self.catalog, None, None)  # type: ignore[arg-type]

    def plan(self, name: str, *versions: int) -> ModelPlan:
        return ModelPlan(name, tuple(VersionPlan(v, directory=self.folder) for v in versions or (1,)))

    def config(self) -> str:
        return json.dumps({"engine_directory": str(self.folder)})

    async def close(self) -> None:
        await asyncio.wait_for(asyncio.gather(self.manager.close(), self.devices.device.close()), SECONDS)


@pytest.mark.parametrize("state", [State.LOADING, State.UNLOADING, State.UNAVAILABLE])
def test_a_refusal_names_the_models_state(state: State) -> None:
    """By it a client knows that another server may have the model ready, and asks that one."""
    catalog = Catalog()
    catalog.set_state("m", 1, state, "a reason")
    with pytest.raises(UnavailableError, match=r"is not ready: .*a reason") as refusal:
        catalog.find("m", "")
    assert refusal.value.details == {"model": "m", "model_state": state.value}
    assert refusal.value.retry_after_seconds == 1.0


async def test_a_device_that_is_still_starting_can_be_closed(tmp_path: Path) -> None:
    world = World(tmp_path, starts=False)
    world.manager.want("m", world.plan("m"))
    await asyncio.sleep(0.01)
    await world.close()


async def test_no_more_engines_load_at_once_than_may(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.manager = ModelManager(
        world.catalog,
        world.devices,
        None,
        drain_seconds=0.05,
        concurrent_loads=2,  # type: ignore[arg-type]
    )
    reading, most = 0, 0
    loaded = world.devices.device.load

    async def load(*args: Any, **more: Any) -> Any:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        try:
            return await loaded(*args, **more)
        finally:
            reading -= 1

    world.devices.device.load = load  # type: ignore[method-assign]
    world.devices.hold("m0")
    tasks = [world.manager.want(name, world.plan(name)) for name in ("m0", "m1", "m2", "m3", "m4")]
    await until(lambda: world.devices.loads)
    await asyncio.sleep(0.01)
    assert most == 2 and reading == 2
    world.devices.gate("m0").set()
    await asyncio.wait_for(asyncio.gather(*tasks), SECONDS)
    assert most == 2 and all(world.catalog.is_ready(f"m{n}") for n in range(5))
    await world.close()


def test_bytes_come_at_their_pace() -> None:
    async def fetch(pace: Pace, chunks: int) -> None:
        for _ in range(chunks):
            await pace.spend(100)

    async def main() -> None:
        pace = Pace(1000)
        await asyncio.gather(fetch(pace, 10), fetch(pace, 20))
        assert round(now_ns() / 1e9, 6) == 3.0
        await asyncio.sleep(10)
        await pace.spend(100)
        assert round(now_ns() / 1e9, 6) == 13.1, "what was not used is not owed"
        await fetch(Pace(), 1000)
        assert round(now_ns() / 1e9, 6) == 13.1

    simulate(main())


async def test_a_load_that_lasts_does_not_hold_up_the_end(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.devices.hold("m")
    world.manager.want("m", world.plan("m"))
    await until(lambda: world.devices.loads)
    await world.close()
    assert not world.devices.started[0].alive


async def test_a_client_hears_that_another_load_took_its_place(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.devices.hold("m")
    first = asyncio.create_task(world.desired.load("m", world.config()))
    await until(lambda: world.devices.loads)
    second = asyncio.create_task(world.desired.load("m", world.config()))
    await asyncio.sleep(0.01)
    world.devices.gate("m").set()
    # Not a CancelledError: gRPC takes that for a caller who has gone, and answers nothing.
    with pytest.raises(AbortedError, match="took the place"):
        await asyncio.wait_for(first, SECONDS)
    await asyncio.wait_for(second, SECONDS)
    assert world.catalog.is_ready("m")
    await until(lambda: len(world.devices.started[0].loaded) == 1)
    await world.close()


async def test_a_load_goes_on_when_its_client_leaves(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.devices.hold("m")
    call = asyncio.create_task(world.desired.load("m", world.config()))
    await until(lambda: world.devices.loads)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    world.devices.gate("m").set()
    await until(lambda: world.catalog.is_ready("m"))
    await world.close()


async def test_a_worker_that_dies_in_the_middle_of_a_load_is_replaced_and_loads_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.devices.hold("m")
    task = world.manager.want("m", world.plan("m"))
    await until(lambda: world.devices.loads)
    await world.devices.started[0].kill()
    world.devices.gate("m").set()
    await asyncio.wait_for(task, SECONDS)
    assert len(world.devices.started) == 2 and world.catalog.is_ready("m")
    await world.close()


async def test_a_model_that_keeps_crashing_its_load_is_given_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.devices.hold("m")
    task = world.manager.want("m", world.plan("m"))
    for count in (1, 2, 3):
        await until(lambda n=count: len(world.devices.loads) == n)
        await world.devices.started[-1].kill()
    with pytest.raises(UnavailableError, match="crashed its worker 3 times"):
        await asyncio.wait_for(task, SECONDS)
    await asyncio.sleep(0.05)
    assert len(world.devices.loads) == 3
    await world.close()


async def test_an_engine_that_does_not_fit_after_a_crash_is_loaded_when_it_does(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.manager.want("m", world.plan("m"))
    world.devices.errors["m"] = [ResourceExhaustedError("out of memory")]
    await world.devices.started[0].kill()
    await until(lambda: world.ready[-1] == ("m", False) and len(world.devices.loads) == 2)
    await until(lambda: world.catalog.is_ready("m"))
    assert len(world.devices.started) == 2
    await world.close()


async def test_a_version_that_can_never_load_does_not_keep_another_from_its_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginehouse_inference.models.manager._RETRY_SECONDS", (0.01,))
    world = World(tmp_path)
    world.devices.errors["m"] = [InvalidArgumentError("no engine"), ResourceExhaustedError("out of memory")]
    with pytest.raises(ResourceExhaustedError):
        await world.manager.want("m", world.plan("m", 2, 1))
    await until(lambda: all(slot.ready for _, slot in world.catalog.slots("m")))
    await world.close()


async def test_a_model_that_is_being_unloaded_is_not_ready(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.manager.want("m", world.plan("m"))
    world.devices.hold("m")  # its unloading lasts
    world.manager.want("m", None)
    await until(lambda: world.catalog.slot("m", 1).state is State.UNLOADING)
    assert world.ready[-1] == ("m", False)
    await world.close()


async def test_from_the_moment_a_worker_dies_its_engines_say_why_they_are_not_ready(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.manager.want("m", world.plan("m"))
    version = world.catalog.find("m", "")
    await world.devices.started[0].kill()
    # Before the loop has had a turn in which the supervisor learns of it.
    assert not version.ready
    assert version.worker.reason(version.key) == "it died; a new one is being started"
    with pytest.raises(UnavailableError, match="not ready: it died"):
        await version.worker.infer(version.key, [], [], None)
    await until(lambda: version.ready)
    await world.close()
