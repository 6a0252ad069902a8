"""The engine that is served for a configured one: itself, the same for this GPU and TensorRT, or what policy says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import grpc
import grpc.aio
import structlog
from google.longrunning import operations_pb2

from enginehouse.artifacts.manifest import EngineManifest
from enginehouse.errors import EnginehouseError, FailedPreconditionError, InternalError, NotFoundError, UnavailableError
from enginehouse.names import parse
from enginehouse.rpc.status import from_proto, from_rpc_error
from enginehouse.v1 import blobs_pb2, blobs_pb2_grpc, engines_pb2, engines_pb2_grpc, optimizer_pb2_grpc
from enginehouse.v1 import optimizer_pb2 as pb
from enginehouse_inference.desired.building import request_like
from enginehouse_inference.desired.fetch import EngineCache
from enginehouse_inference.desired.fitting import Here, candidates, label_of, misfit

Policy = Literal["wait", "fallback", "fail"]

_CALL_SECONDS = 30.0
_PAGE = 1000
# Requests like ours that failed before, for reasons that may have passed; then somebody must look.
_MOST_ATTEMPTS = 5
_MAY_PASS = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")

_log = structlog.get_logger("engines")


class EngineChoice:
    """Chooses engines, and gives their directories.

    Args:
        channel: makes a channel to the optimizer; None when there is none: then every engine is taken as it is.
        here: what engines of a backend find here.
        policy: what to do when no engine like the configured one runs here: have the optimizer build one and wait for
            it, take one of another backend or precision that has the same inputs and outputs, or fail.
        gpu_product: this GPU as node labels have it, where its name does not say (MIG, time-slicing).
    """

    def __init__(
        self,
        cache: EngineCache,
        channel: Callable[[], grpc.aio.Channel] | None,
        here: Callable[[str], Awaitable[Here]],
        policy: Policy = "fail",
        *,
        target: str = "",
        gpu_product: str = "",
    ) -> None:
        self._cache = cache
        self._channel = channel
        self._here = here
        self._policy = policy
        self._target = target
        self._gpu_product = gpu_product
        self._chosen = _Chosen(cache.root / "chosen.json")

    async def directory(self, engine: str) -> Path:
        """The local directory of a chosen engine. Raises as `EngineCache.directory`."""
        return await self._cache.directory(engine)

    async def keep_only(self, engines: Callable[[], Iterable[str]]) -> None:
        """Remove all other engines from the disk, but those that were chosen in the place of these."""
        await self._cache.keep_only(lambda: [name for e in engines() for name in {e, self._chosen.of(e) or e}])

    async def choose(self, engine: str) -> str:
        """The name of the engine to serve; may take as long as a build.

        Raises:
            FailedPreconditionError: none runs here, and the policy has no other.
            EnginehouseError: the optimizer cannot build it.
        """
        if self._channel is None:
            return engine
        parse(engine, "engines")
        try:
            async with self._channel() as channel:
                chosen = await _Search(channel, self._here, self._policy, self._gpu_product).run(engine)
        except grpc.aio.AioRpcError as error:
            found = from_rpc_error(error, target=self._target)
            # What was chosen before can be served without the optimizer; `directory` says when it is not on the disk.
            if isinstance(found, (UnavailableError, NotFoundError)) and (known := self._chosen.of(engine)) is not None:
                return known
            raise found from error
        await asyncio.to_thread(self._chosen.note, engine, chosen)
        return chosen


class _Chosen:
    """Choices of before, for when the optimizer is away."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._known: dict[str, str] = dict(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def of(self, engine: str) -> str | None:
        return self._known.get(engine)

    def note(self, engine: str, chosen: str) -> None:
        if self.of(engine) == chosen:
            return
        self._known[engine] = chosen
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside = self._file.with_suffix(".partial")
            beside.write_text(json.dumps(self._known))
            beside.replace(self._file)
        except OSError as error:
            _log.warning("the choice of an engine cannot be kept for the next start", reason=str(error))


class _Search:
    """One search at the optimizer."""

    def __init__(
        self, channel: grpc.aio.Channel, here: Callable[[str], Awaitable[Here]], policy: Policy, gpu_product: str
    ) -> None:
        self._channel = channel
        self._ask_here = here
        self._policy = policy
        self._gpu_product = gpu_product

    async def run(self, name: str) -> str:
        stub = engines_pb2_grpc.EnginesStub(self._channel)
        engine = await stub.GetEngine(engines_pb2.GetEngineRequest(name=name), timeout=_CALL_SECONDS)
        why = await self._misfit(engine)
        if not why:
            return name
        others = await self._others(stub, engine)
        for other in candidates(engine, others, same_kind=True):
            if not await self._misfit(other):
                _log.info("an engine for this device is served", configured=name, engine=other.name, because=why)
                return str(other.name)
        here = await self._ask_here(engine.backend)
        if self._policy == "fallback":
            for other in candidates(engine, others, same_kind=False):
                if not await self._misfit(other):
                    _log.warning("another engine is served", configured=name, engine=other.name, because=why)
                    return str(other.name)
        # One of a backend that is not installed here would not run either.
        if self._policy == "wait" and here.product and here.has(engine.backend):
            return await self._build(engine, here, why)
        raise _missing(engine, why, here, self._policy)

    async def _misfit(self, engine: engines_pb2.Engine) -> str:
        here = await self._ask_here(engine.backend)
        why = misfit(engine, {}, here)
        if why and engine.device.kind == "gpu" and here.product and engine.manifest_digest:
            # It may have been built for more than one GPU or version: its manifest says.
            why = misfit(engine, (await self._manifest(engine)).options, here)
        return why

    async def _others(self, stub: Any, engine: engines_pb2.Engine) -> list[engines_pb2.Engine]:
        parent, _, _ = engine.name.partition("/engines/")
        found: list[engines_pb2.Engine] = []
        token = ""
        while True:
            request = engines_pb2.ListEnginesRequest(
                parent=parent, model=engine.model, page_size=_PAGE, page_token=token
            )
            page: engines_pb2.ListEnginesResponse = await stub.ListEngines(request, timeout=_CALL_SECONDS)
            found += page.engines
            token = page.next_page_token
            if not token:
                return found

    async def _build(self, engine: engines_pb2.Engine, here: Here, why: str) -> str:
        """Have the optimizer build an engine like this one for this GPU, and wait for it."""
        manifest = await self._manifest(engine)
        left_out = await self._left_out(engine)
        product = self._gpu_product or label_of(here.product)
        stub = optimizer_pb2_grpc.OptimizerStub(self._channel)
        for attempt in range(_MOST_ATTEMPTS):
            request = request_like(engine, manifest, left_out, product, attempt)
            operation = await stub.Optimize(request, timeout=_CALL_SECONDS)
            was_done = operation.done
            if not was_done:
                _log.info("waits for an engine", configured=engine.name, operation=operation.name, because=why)
                operation = await self._done(stub, operation.name)
            if not operation.HasField("error"):
                return _first_engine(operation)
            error = from_proto(operation.error)
            if not was_done or error.reason not in _MAY_PASS:
                break
        raise type(error)(
            f"{engine.name} does not run here ({why}; {here}), and the optimizer could not build one that does "
            f"({operation.name}): {error.message}",
            details=error.details,
            retry_after_seconds=error.retry_after_seconds,
        )

    async def _done(self, stub: Any, name: str) -> operations_pb2.Operation:
        """The finished operation. Servers end old connections on purpose: the stream is taken up where it was."""
        after = 0
        while True:
            async for event in stub.WatchOperation(pb.WatchOperationRequest(name=name, after_sequence=after)):
                after = event.sequence
                if event.HasField("operation"):
                    operation: operations_pb2.Operation = event.operation
                    return operation

    async def _manifest(self, engine: engines_pb2.Engine) -> EngineManifest:
        return EngineManifest.from_json(await self._blob(engine, engine.manifest_digest))

    async def _left_out(self, engine: engines_pb2.Engine) -> list[str]:
        if not engine.sensitivity_digest:
            return []
        table: Mapping[str, object] = json.loads(await self._blob(engine, engine.sensitivity_digest))
        excluded = table.get("excluded")
        return [str(name) for name in excluded] if isinstance(excluded, list) else []

    async def _blob(self, engine: engines_pb2.Engine, digest: str) -> bytes:
        parent, _, _ = engine.name.partition("/engines/")
        request = blobs_pb2.ReadBlobRequest(parent=parent, digest=digest)
        call = blobs_pb2_grpc.BlobsStub(self._channel).ReadBlob(request, timeout=_CALL_SECONDS)
        return b"".join([chunk.data async for chunk in call])


def _first_engine(operation: operations_pb2.Operation) -> str:
    response = pb.OptimizeResponse()
    if not operation.response.Unpack(response) or not response.engines:
        raise InternalError(f"{operation.name} has made no engine")
    name = str(response.engines[0].name)
    _log.info("the engine is built", operation=operation.name, engine=name)
    return name


def _missing(engine: engines_pb2.Engine, why: str, here: Here, policy: Policy) -> EnginehouseError:
    precision = engines_pb2.Precision.Name(engine.precision).removeprefix("PRECISION_").lower()
    wanted = f"{engine.backend}:{precision}@{label_of(here.product)}"
    todo = (
        f"build one: enginehouse optimize {engine.model.rsplit('/', 1)[-1]} --target {wanted}"
        if here.product
        else "start one on a GPU with ENGINEHOUSE_DEVICE=cuda:0, or configure an engine for a CPU"
    )
    other = "" if policy == "fallback" else "; with ENGINEHOUSE_MISSING_ENGINE=fallback another engine is served"
    none = "and no other engine with its inputs and outputs does" if policy == "fallback" else "nor does one like it"
    return FailedPreconditionError(
        f"{engine.name} does not run here, {none}: {why}; {here}. {todo[0].upper()}{todo[1:]}{other}",
        details={"engine": engine.name, "reason": why},
    )
