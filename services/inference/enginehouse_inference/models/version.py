"""One served version of a model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from enginehouse.errors import InvalidArgumentError, UnavailableError
from enginehouse.workers.link import LoadedModel
from enginehouse_inference.batching.batcher import Answer, Batcher
from enginehouse_inference.batching.policy import BatchPolicy
from enginehouse_inference.batching.turns import DeviceTurns
from enginehouse_inference.devices.supervisor import DeviceWorker
from enginehouse_inference.models.batching import Batching, QueueDefaults
from enginehouse_inference.models.plan import ModelPlan, VersionPlan
from enginehouse_inference.models.response_cache import ResponseCache, cache_key
from enginehouse_inference.models.statistics import Statistics
from enginehouse_inference.protocol.request import CheckedRequest, Signature


@dataclass(frozen=True)
class EngineInfo:
    """What `engine.json` says that clients see.

    `optimal_batch_size`: that of the profile for the largest batches; 0 when there is none.
    """

    backend: str
    backend_version: str
    precision: str
    payload: str
    directory: Path
    device_kind: str = ""
    device_product: str = ""
    optimal_batch_size: int = 0


class ModelVersion:
    """A loaded engine with its queue. `key` is its name in the worker.

    Args:
        model: what is served under its name, this version among it.
        plan: this version.
        turns: limits the batches of all models of the device; None does not.
    """

    def __init__(
        self,
        model: ModelPlan,
        plan: VersionPlan,
        *,
        key: str,
        worker: DeviceWorker,
        loaded: LoadedModel,
        engine: EngineInfo,
        statistics: Statistics,
        defaults: QueueDefaults,
        turns: DeviceTurns | None = None,
    ) -> None:
        self.model = model.name
        self.plan = plan
        self.loading = model.loading
        self.batching = model.batching
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
        self.cache = ResponseCache(model.batching.response_cache_bytes)
        self.batcher = Batcher(
            f"{model.name!r}",
            policy=self._policy(model.batching),
            batched=loaded.batched,
            instances=model.loading.instances,
            outputs=tuple(self.signature.outputs),
            run=lambda inputs, outputs, deadline_ns, places: worker.infer(key, inputs, outputs, deadline_ns, places),
            observer=statistics,
            concurrency=loaded.concurrency,
            device=turns,
            share=model.batching.device_share,
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
        """Batch and keep answers by another configuration from now on."""
        self.batching = batching
        self.batcher.set_share(batching.device_share)
        self.batcher.set_policy(self._policy(batching))
        self.cache.resize(batching.response_cache_bytes)

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
        if not self.cache or (key := cache_key(request)) is None:
            return await self._compute(request, deadline_ns)
        answer = self.cache.find(key)
        if answer is None:
            answer = await self._compute(request, deadline_ns)
            self.cache.keep(key, answer)
        return answer

    async def _compute(self, request: CheckedRequest, deadline_ns: int | None) -> Answer:
        return await self.batcher.infer(
            request.inputs,
            rows=request.rows,
            shape=request.shape,
            outputs=frozenset(o.name for o in request.outputs),
            deadline_ns=deadline_ns,
            alone=bool(request.device_memory),
            places=request.places,
            priority=request.priority,
            timeout_ns=request.timeout_ns,
        )

    def _policy(self, batching: Batching) -> BatchPolicy:
        loaded = self.loaded
        return batching.policy(loaded.batched, loaded.max_batch_size, self._defaults, self.engine.optimal_batch_size)

    async def close(self, drain_seconds: float) -> None:
        """Answer what waits and runs, then unload."""
        reason = f"model {self.model!r} version {self.version} is being unloaded"
        try:
            await asyncio.wait_for(self.batcher.close(reason), drain_seconds)
        except asyncio.TimeoutError:
            self.batcher.fail(UnavailableError(reason, retry_after_seconds=1.0))
        await self.worker.unload(self.key)
