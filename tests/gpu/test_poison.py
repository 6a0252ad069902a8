"""A worker that loses its device under load: what was in flight fails, the port and other workers live on."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import Workshop
from conftest import PROFILE, Notes, Small
from machine import OWN_ANSWER, Machine, worst_row

from enginehouse import Balancing, Client, Retry
from enginehouse.errors import EnginehouseError, UnavailableError
from services import Services, running_services, wait_for

pytestmark = pytest.mark.timeout(550)

CLIENTS = 6


@pytest.fixture(scope="module")
def services(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with running_services(machine, tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture(scope="module")
def other(
    machine: Machine, services: Services, workshop: Workshop, small: Small, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    """Where "other" is served, by a worker that must notice nothing.

    On a GPU that is the CPU's worker of the same process, else another process's.
    """
    cpu = replace(machine, backend="onnxruntime", device="cpu", environment=machine.onnx)
    engine = asyncio.run(Workshop(cpu, workshop.root).built("small-other", small.model, "FP32", PROFILE))
    with ExitStack() as ending:
        running = services
        if not machine.gpu:
            running = ending.enter_context(running_services(machine, tmp_path_factory.mktemp("other")))
        load_by_hand(running, "other", engine)
        yield running


def load_by_hand(services: Services, name: str, engine: Path) -> None:
    config = {"engine_directory": str(engine), "instances": 2}
    services.triton().load_model(name, config=json.dumps(config))


class Load:
    """Clients that ask without a pause and note what they are told."""

    def __init__(self, services: Services, model: str, images: Any, right: Any) -> None:
        self.address = services.address
        self.answers = 0
        self.wrong: list[str] = []
        self.errors: list[EnginehouseError] = []
        self._stop = threading.Event()
        self._arguments = (model, images, right)
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        model, images, right = self._arguments
        random = np.random.default_rng(seed)
        # Each failure is to be seen, so nothing is sent again.
        once = Balancing(retry=Retry(max_attempts=1))
        with Client(inference=self.address, balancing=once) as client:
            while not self._stop.is_set():
                picked = random.integers(0, len(images), size=int(random.integers(1, 17)))
                try:
                    found = client.infer(model, images[picked], timeout=60).only()
                except EnginehouseError as error:
                    self.errors.append(error)
                    time.sleep(0.02)
                    continue
                if (difference := worst_row(found, right, picked)) > OWN_ANSWER:
                    self.wrong.append(f"{len(picked)} rows are off by {difference:.3g}")
                self.answers += 1


def test_a_lost_device_costs_its_worker_alone(
    machine: Machine, services: Services, other: Services, engine: Path, int8_engine: Path, small: Small, notes: Notes
) -> None:
    (untouched,) = other.workers()
    load_by_hand(services, "quick", engine)
    load_by_hand(services, "int8", int8_engine)
    client = services.client
    right = np.concatenate([client.infer("quick", image[None]).only() for image in small.images])
    (before,) = (worker for worker in services.workers() if worker.pid != untouched.pid)
    with (
        Load(services, "quick", small.images, right) as load,
        Load(other, "other", small.images, small.expected) as elsewhere,
    ):
        wait_for(lambda: load.answers > 50 and elsewhere.answers > 50)
        workers = len(services.workers())
        services.poison.touch()
        begin = time.monotonic()
        wait_for(lambda: before.pid not in [worker.pid for worker in services.workers()])
        wait_for(lambda: len(services.workers()) == workers)
        wait_for(lambda: client.model_ready("quick") and client.model_ready("int8"))
        recovered, answers = time.monotonic() - begin, load.answers
        wait_for(lambda: load.answers > answers + 50)
    notes.add("poisoned: seconds until both models were ready again", round(recovered, 2))
    notes.add("poisoned: answers, requests that failed", [load.answers, len(load.errors)])
    notes.add("poisoned: what they were told", sorted({error.message[:300] for error in load.errors})[:6])
    assert load.errors and all(isinstance(error, UnavailableError) for error in load.errors)
    assert not load.wrong and not elsewhere.wrong and not elsewhere.errors
    assert untouched in other.workers() and before not in services.workers()
    assert any("device context" in error.message for error in load.errors)
    assert "status 70" in services.log()
    assert worst_row(client.infer("quick", small.images[:16]).only(), right, range(16)) < OWN_ANSWER
    assert len(client.infer("int8", small.images[:16]).only()) == 16


def test_a_second_loss_is_recovered_too(machine: Machine, services: Services, small: Small) -> None:
    client = services.client
    if not client.model_ready("quick"):
        pytest.skip("needs the models of the test before")
    before = services.workers()
    services.poison.touch()
    if machine.gpu:
        # Idle until somebody asks: a lost context is noticed by the next call that uses it.
        async def ask() -> None:
            for _ in range(50):
                try:
                    await asyncio.to_thread(client.infer, "quick", small.images[:1], timeout=20)
                except EnginehouseError:
                    return
                await asyncio.sleep(0.1)

        asyncio.run(ask())
    wait_for(lambda: len(services.workers()) == len(before) and services.workers() != before)
    wait_for(lambda: client.model_ready("quick"))
    assert len(client.infer("quick", small.images[:3]).only()) == 3
