"""A worker for each engine: it ends with its engine, or with the load that failed, and its deaths stay counted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from enginehouse_inference.devices import devices as module
from enginehouse_inference.devices.devices import Devices
from enginehouse_inference.devices.supervisor import DeviceWorker

from enginehouse.errors import InvalidArgumentError
from enginehouse.workers.environments import WorkerEnvironment

sys.path.insert(0, str(Path(__file__).parent))

from fake_device import QUICK, FakeDevice, until


class Environments:
    """Any backend's environment."""

    def for_backend(self, backend: str) -> Any:
        return WorkerEnvironment("fake", Path("python"))


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()

    def worker(environment: Any, device: str, settings: Any, ended: Any = None) -> DeviceWorker:
        return DeviceWorker(environment, device, settings, fake._start, ended)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "DeviceWorker", worker)
    return fake


async def load(worker: DeviceWorker, key: str) -> None:
    await worker.load(key, Path(), instances=1, warmup=(), options={}, changed=lambda: None)


@pytest.mark.parametrize("per_model", [True, False])
async def test_who_shares_a_worker(fake: FakeDevice, per_model: bool) -> None:
    devices = Devices(Environments(), "cpu", QUICK, per_model)  # type: ignore[arg-type]
    one, other = (devices.worker("onnxruntime") for _ in range(2))
    assert (one is not other) == per_model
    await load(one, "a:1")
    await load(other, "b:1")
    assert len(fake.started) == (2 if per_model else 1)
    await one.unload("a:1")
    assert len(devices.workers) == 1 and other.ready("b:1")
    assert [worker.alive for worker in fake.started] == ([False, True] if per_model else [True])
    await devices.close()


async def test_a_load_that_fails_leaves_no_worker(fake: FakeDevice) -> None:
    devices = Devices(Environments(), "cpu", QUICK, True)  # type: ignore[arg-type]
    fake.errors["bad"] = [InvalidArgumentError("no model")]
    with pytest.raises(InvalidArgumentError, match="no model"):
        await load(devices.worker("onnxruntime"), "bad:1")
    assert devices.workers == [] and not fake.started[0].alive
    await devices.close()


async def test_deaths_are_counted_after_the_worker_went(fake: FakeDevice) -> None:
    devices = Devices(Environments(), "cpu", QUICK, True)  # type: ignore[arg-type]
    worker = devices.worker("onnxruntime")
    await load(worker, "a:1")
    await fake.started[0].kill()
    await until(lambda: len(fake.started) == 2 and worker.ready("a:1"))
    assert devices.deaths() == {worker.name: 1}
    await worker.unload("a:1")
    assert devices.workers == [] and devices.deaths() == {worker.name: 1}


async def test_a_gpu_is_shared(fake: FakeDevice) -> None:
    devices = Devices(Environments(), "cuda:0", QUICK, True)  # type: ignore[arg-type]
    assert devices.worker("tensorrt", "gpu") is devices.worker("tensorrt", "gpu")
    assert devices.worker("onnxruntime", "cpu") is not devices.worker("onnxruntime", "cpu")
    await devices.close()
