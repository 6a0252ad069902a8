"""Stand-ins for what a benchmark is given, and rows made up for tests. No number here is a measurement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from enginehouse.bench.environment import Gpu, Gpus, Machine
from enginehouse.bench.modes import Mode, known_modes
from enginehouse.bench.rows import Accuracy, Lane, NotRun, Row
from enginehouse.bench.seams import Engine, JobStage, Measurement, RunSummary, Tensor
from enginehouse.bench.statistics import Latency
from enginehouse.bench.suite import ModelSpec, Suite
from enginehouse.errors import EnginehouseError, FailedPreconditionError, UnavailableError


def machine(gpus: int = 0) -> Machine:
    devices = tuple(Gpu(index, "NVIDIA T4", 16 * 2**30, "7.5", 70.0) for index in range(gpus))
    missing = None if gpus else "no NVIDIA GPU: NVML library not found"
    return Machine(
        "Test CPU", ("avx2",), 1, 2, 4, 4, 8 * 2**30, Gpus(devices, None, None, missing), "OS", "Linux 6", "x"
    )


def lane(
    model: str = "resnet_v1_50",
    mode: str = "onnxruntime-cpu-fp32",
    batch: int = 1,
    scope: str = "host",
    device: str | None = None,
) -> Lane:
    known = known_modes()[mode]
    device = device or ("cpu" if known.device == "cpu" else "gpu:0")
    return Lane(model, mode, known.backend, known.precision, device, batch, scope)


def row(
    of: Lane,
    rate: float,
    *,
    latency: float | None = None,
    environment: str = "e",
    round_id: str | None = "same",
    **more: Any,
) -> Row:
    mean = latency if latency is not None else 1000 * of.batch / rate
    shape = Latency(mean, mean, mean * 1.1, mean * 1.2, mean * 1.3, mean * 1.4)
    identifier = None if round_id is None else f"{round_id}/{of.model}/{of.scope}/{of.batch}"
    return Row(
        of, rate, shape, (rate * 0.99, rate * 1.01), True, environment, "2026-01-01T00:00:00.000Z", identifier, **more
    )


class FakeEngines:
    """Engines at once; `failing` modes and models raise."""

    def __init__(self, failing: Mapping[str, EnginehouseError] | None = None) -> None:
        self.failing, self.built = dict(failing or {}), list[str]()
        self.gone, self.ran = False, list[JobStage]()

    async def check(self, model: ModelSpec) -> None:
        if model.name in self.failing:
            raise self.failing[model.name]

    async def reachable(self) -> bool:
        return not self.gone

    def stages(self, engine: Engine) -> Sequence[JobStage]:
        return self.ran

    async def engine(self, model: ModelSpec, mode: Mode, suite: Suite) -> Engine:
        if mode.name in self.failing:
            raise self.failing[mode.name]
        self.built.append(f"{model.name} {mode.name}")
        return Engine(
            name=f"projects/default/engines/{model.name}-{mode.name}",
            key=f"sha256:{model.name}-{mode.name}",
            backend=mode.backend,
            backend_version="1.0",
            precision=mode.precision,
            device_kind=mode.device,
            device_product="Test CPU",
            max_batch_size=max(suite.all_batches),
            inputs=(Tensor("x", "FP32", (-1, 4)),),
            accuracy=Accuracy("synthetic", sqnr_db=30.0),
        )

    async def download(self, engine: Engine, directory: Path) -> Path:
        return directory / engine.key


class FakeWorker:
    """Measures made-up windows: `rates` by mode, or an error."""

    def __init__(self, owner: FakeWorkers) -> None:
        self._owner, self.loaded, self.closed, self.dead = owner, set[str](), False, False
        self.pid = 100 + len(owner.started)
        self.software: Mapping[str, str] = {"python": "3", "onnxruntime": "1"}

    async def load(self, key: str, directory: Path, *, warmup: Sequence[int], options: Mapping[str, Any]) -> None:
        self.loaded.add(key)

    async def measure(self, key: str, *, batch: int, seconds: float, seed: int, scope: str) -> Measurement:
        assert key in self.loaded and not self.closed
        await asyncio.sleep(0)
        if self.dead:
            raise UnavailableError("the worker is gone")
        self._owner.order.append((key, batch))
        if len(self._owner.order) == self._owner.cancel_at:
            self._owner.cancel()
            await asyncio.sleep(0)
        error = self._owner.failures.pop((key, batch), None)
        if error is not None:
            self.dead = isinstance(error, UnavailableError)
            raise error
        if scope == "engine" and not key.startswith("tensorrt"):
            raise FailedPreconditionError("this runtime copies with every batch")
        rates = self._owner.rates.get(key, [100.0])
        rate = rates.pop(0) if len(rates) > 1 else rates[0]
        calls = 5
        return Measurement([round(batch * 1e9 / rate)] * calls, round(calls * batch * 1e9 / rate), 10**6, calls * batch)

    async def unload(self, key: str) -> None:
        self.loaded.discard(key)

    async def close(self) -> None:
        self.closed = True


class FakeWorkers:
    def __init__(self, missing: Sequence[str] = ()) -> None:
        self.missing, self.started = missing, list[FakeWorker]()
        self.order: list[tuple[str, int]] = []
        self.rates: dict[str, list[float]] = {}
        self.failures: dict[tuple[str, int], EnginehouseError] = {}
        self.cancel_at, self.cancel = 0, lambda: None

    def environment(self, mode: Mode) -> str:
        name = mode.environment or mode.backend
        if name in self.missing:
            raise FailedPreconditionError(f"the {name} worker environment is not installed")
        return name

    async def start(self, environment: str, device: str) -> FakeWorker:
        self.started.append(FakeWorker(self))
        return self.started[-1]


class FakeServing:
    def __init__(self) -> None:
        self.published: set[str] = set()
        self.most = self._now = self.calls = 0
        self.gone = False

    async def publish(self, name: str, engine: Engine, *, instances: int, options: Mapping[str, Any]) -> None:
        self.published.add(name)

    async def withdraw(self, name: str) -> None:
        self.published.discard(name)

    async def infer(self, name: str, inputs: Mapping[str, Any]) -> None:
        assert name in self.published
        self._now += 1
        self.calls += 1
        self.most = max(self.most, self._now)
        await asyncio.sleep(0.0005)
        self._now -= 1

    async def software(self) -> Mapping[str, str]:
        return {"server": "1"}

    async def reachable(self) -> bool:
        return not self.gone


class FakeTelemetry:
    """Samples of a host, and of a GPU when asked for."""

    def __init__(self, gpu: bool = False) -> None:
        self.gpu, self.processes = gpu, list[int]()

    async def samples(self, period_seconds: float) -> AsyncIterator[Mapping[str, Any]]:
        from enginehouse.bench.recording import utc

        while True:
            gpu: dict[str, Any] = {"index": 0, "power_draw_watts": 50.0, "throttle_reasons_mask": 0}
            if self.processes:
                gpu["processes"] = [{"pid": pid, "kind": "compute"} for pid in self.processes]
            gpus = [gpu] if self.gpu else []
            yield {"time": utc(), "node": "n", "host": {"cpu_utilization_percent": 90.0}, "gpus": gpus}
            await asyncio.sleep(0.002)


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.planned = self.done = self.windows = 0
        self.rows: list[Row] = []
        self.missing: list[NotRun] = []
        self.summary: RunSummary | None = None

    def started(self, planned: int, done: int) -> None:
        self.planned, self.done = planned, done

    def phase(self, name: str) -> None: ...

    def window(self, lane: str, index: int, inferences_per_second: float) -> None:
        self.windows += 1

    def row(self, row: Row) -> None:
        self.rows.append(row)

    def not_run(self, entry: NotRun) -> None:
        self.missing.append(entry)

    def finished(self, summary: RunSummary) -> None:
        self.summary = summary
