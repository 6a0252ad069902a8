"""The store under models, datasets and engines: what it holds, what nobody needs, what is damaged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from enginehouse.client.connection import Endpoint
from enginehouse.client.portal import Portal
from enginehouse.client.values.convert import duration
from enginehouse.client.values.store import Garbage, StoreFinding, StoreTotals, StoreUsage
from enginehouse.errors import UnavailableError
from enginehouse.v1 import store_pb2 as pb
from enginehouse.v1 import store_pb2_grpc

# A store of many blobs takes its time to list, an object store more of it.
_TIMEOUT_SECONDS = 3600.0


class AsyncStore:
    """The store of a project."""

    def __init__(self, endpoint: Endpoint, parent: str) -> None:
        self._endpoint = endpoint
        self._parent = parent

    async def usage(self) -> StoreUsage:
        """What the store holds, in bytes, by who needs it."""
        request = pb.GetUsageRequest(parent=self._parent)
        stub = self._endpoint.stub(store_pb2_grpc.StoreStub)
        return StoreUsage.from_proto(await self._endpoint.unary(stub.GetUsage, request, timeout=_TIMEOUT_SECONDS))

    async def collect_garbage(
        self,
        *,
        dry_run: bool = False,
        minimum_age: float | None = None,
        stage_results_unused_for: float | None = None,
    ) -> Garbage:
        """Remove what nobody names and no job uses; returns what went. Engines stay.

        Args:
            dry_run: remove nothing; returns what would go.
            minimum_age: seconds; nothing younger goes. An hour when None.
            stage_results_unused_for: seconds; results of stages not used for so long go too. The server's setting when
                None.

        Raises:
            FailedPreconditionError: another optimizer uses the same object store.
        """
        request = pb.CollectGarbageRequest(parent=self._parent, dry_run=dry_run)
        if minimum_age is not None:
            request.minimum_age.CopyFrom(duration(minimum_age))
        if stage_results_unused_for is not None:
            request.stage_results_unused_for.CopyFrom(duration(stage_results_unused_for))
        stub = self._endpoint.stub(store_pb2_grpc.StoreStub)
        return Garbage.from_proto(await self._endpoint.unary(stub.CollectGarbage, request, timeout=_TIMEOUT_SECONDS))

    async def check(self, *, repair: bool = False) -> AsyncIterator[StoreFinding | StoreTotals]:
        """Read every blob again and compare: each finding as it is made, the totals at the end.

        Args:
            repair: put damaged blobs into quarantine and forget stage results that lack one.

        Raises:
            UnavailableError: the server went away before the end.
        """
        request = pb.CheckStoreRequest(parent=self._parent, repair=repair)
        stub = self._endpoint.stub(store_pb2_grpc.StoreStub)
        async for response in self._endpoint.stream(stub.CheckStore, request):
            if response.HasField("totals"):
                yield StoreTotals.from_proto(response.totals)
                return
            yield StoreFinding.from_proto(response.finding)
        raise UnavailableError("the check ended before its totals: run it again")


class Store:
    """The store of a project. See `AsyncStore` for what each method does."""

    def __init__(self, portal: Portal, inner: AsyncStore) -> None:
        self._portal = portal
        self._inner = inner

    def usage(self) -> StoreUsage:
        """What the store holds, in bytes, by who needs it."""
        return self._portal.run(self._inner.usage())

    def collect_garbage(
        self,
        *,
        dry_run: bool = False,
        minimum_age: float | None = None,
        stage_results_unused_for: float | None = None,
    ) -> Garbage:
        """Remove what nobody names and no job uses; returns what went. Engines stay."""
        collect = self._inner.collect_garbage(
            dry_run=dry_run, minimum_age=minimum_age, stage_results_unused_for=stage_results_unused_for
        )
        return self._portal.run(collect)

    def check(self, *, repair: bool = False) -> Iterator[StoreFinding | StoreTotals]:
        """Read every blob again and compare: each finding as it is made, the totals at the end."""
        return self._portal.iterate(self._inner.check(repair=repair))
