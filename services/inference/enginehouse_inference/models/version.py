"""One served version of a model."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from enginehouse.errors import InvalidArgumentError, UnavailableError
from enginehouse.workers.link import LoadedModel
from enginehouse_inference.batching.batcher import Answer, Batcher
from enginehouse_inference.devices.supervisor import DeviceWorker
from enginehouse_inference.models.plan import Batching, Loading, QueueDefaults, VersionPlan
from enginehouse_inference.models.statistics import Statistics
from enginehouse_inference.protocol.request import CheckedRequest, Signature


@dataclass(frozen=True)
class EngineInfo:
    """What `engine.json` says that clients see."""

    backend: str
    backend_version: str
    precision: str
    payload: str
    directory: Path
    device_kind: str = ""
    device_product: str = ""


class ModelVersion:
    """A loaded engine with its queue. `key` is its name in the worker."""

    def __init__(
        self,
        model: str,
        plan: VersionPlan,
        loading: Loading,
        batching: Batching,
        *,
        key: str,
        worker: DeviceWorker,
        loaded: LoadedModel,
        engine: EngineInfo,
        statistics: Statistics,
        defaults: QueueDefaults,
    ) -> None:
        self.model = model
        self.plan = plan
        self.loading = loading
        self.batching = batching
        self.key = key
        self.worker = worker
        self.loaded = loaded
        self.engine = engine
        self.statistics = statistics
        self.signature = Signature(
            inputs={t.name: t for t in loaded.inputs},
            outputs={t.name: t for t in loaded.outputs},
            batched=loaded.batched,
        )
        self._defaults = defaults
        self.batcher = Batcher(
            f"{model!r}",
            policy=batching.policy(loaded.batched, loaded.max_batch_size, defaults),
            batched=loaded.batched,
            instances=loading.instances,
            outputs=tuple(self.signature.outputs),
            run=lambda inputs, outputs, deadline_ns, places: worker.infer(key, inputs, outputs, deadline_ns, places),
            observer=statistics,
            concurrency=loaded.concurrency,
        )

    @property
    def version(self) -> str:
        return str(self.plan.version)

    @property
    def max_batch_size(self) -> int:
        """As ModelConfig says it: 0 without a batch dimension."""
        return self.loaded.max_batch_size if self.loaded.batched else 0

    @property
    def ready(self) -> bool:
        """Whether the worker has it loaded now."""
        return self.worker.ready(self.key)

    def set_batching(self, batching: Batching) -> None:
        """Batch by another configuration from now on."""
        self.batching = batching
        self.batcher.set_policy(batching.policy(self.loaded.batched, self.loaded.max_batch_size, self._defaults))

    async def infer(self, request: CheckedRequest, deadline_ns: int | None) -> Answer:
        """Compute a request.

        Raises:
            UnavailableError: the worker is being restarted, or the version unloaded.
            EnginehouseError: see `Batcher.infer`.
        """
        if not self.ready:
            raise UnavailableError(
                f"model {self.model!r} version {self.version} is not ready: {self.worker.reason(self.key)}",
                retry_after_seconds=1.0,
            )
        limit = self.max_batch_size
        if request.device_memory and 0 < limit < request.rows:
            raise InvalidArgumentError(
                f"model {self.model!r}: {request.rows} rows: expected at most {limit} (the engine's largest batch) in "
                "a request that uses CUDA shared memory, which is not split"
            )
        if request.timeout_ns is not None:
            latest = time.monotonic_ns() + request.timeout_ns
            deadline_ns = latest if deadline_ns is None else min(deadline_ns, latest)
        return await self.batcher.infer(
            request.inputs,
            rows=request.rows,
            shape=request.shape,
            outputs=frozenset(o.name for o in request.outputs),
            deadline_ns=deadline_ns,
            alone=bool(request.device_memory),
            places=request.places,
        )

    async def close(self, drain_seconds: float) -> None:
        """Answer what waits and runs, then unload."""
        reason = f"model {self.model!r} version {self.version} is being unloaded"
        try:
            await asyncio.wait_for(self.batcher.close(reason), drain_seconds)
        except asyncio.TimeoutError:
            self.batcher.fail(UnavailableError(reason, retry_after_seconds=1.0))
        await self.worker.unload(self.key)
