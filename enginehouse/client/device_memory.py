"""Device memory shared with an inference process: each allocation is registered once, and named by requests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from enginehouse.client.connection import Endpoint
from enginehouse.client.cuda import Allocation, DeviceDriver, open_driver
from enginehouse.client.device_arrays import DeviceArray
from enginehouse.errors import EnginehouseError, FailedPreconditionError, InvalidArgumentError

# Registrations kept: the server holds each open, and a freed allocation's memory comes back when it lets go.
KEEP = 64
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class Placed:
    """Where an array lies: `offset` bytes into a registered region."""

    region: str
    offset: int


class SharedDeviceMemory:
    """The allocations that one inference process knows.

    Args:
        driver: opens the device's driver when it is first needed.
    """

    def __init__(self, endpoint: Endpoint, driver: Callable[[], DeviceDriver] | None = None) -> None:
        self._endpoint = endpoint
        self._open = driver
        self._driver: DeviceDriver | None = None
        # Region names, least recently used first.
        self._regions: OrderedDict[Allocation, str] = OrderedDict()
        self._uses: Counter[str] = Counter()
        self._owner = os.getpid()
        self._prefix = f"enginehouse-{uuid.uuid4().hex}-"
        self._numbers = itertools.count()

    async def place(self, array: DeviceArray, what: str) -> Placed:
        """Where an array lies once the work that it waits for is done; `release` it after the request.

        Raises:
            FailedPreconditionError: there is no driver here, or no GPU there.
            InvalidArgumentError: its memory cannot be shared, or the server cannot open it.
        """
        if self._driver is None:
            self._driver = (self._open or open_driver)()
        driver = self._driver
        allocation = driver.allocation(array.pointer, what)
        if array.stream is not None:
            await asyncio.to_thread(driver.synchronize, array)
        # In use before anything else happens, or it might be taken back.
        if allocation not in self._regions:
            own = await self._register(driver, allocation, what)
            name = self._use(allocation, own)
            if name != own:  # another request registered it meanwhile
                await self._unregister(own)
        else:
            name = self._use(allocation)
        return Placed(name, array.pointer - allocation.base)

    async def release(self, placed: Iterable[Placed]) -> None:
        """Requests that named these have ended."""
        for item in placed:
            self._uses[item.region] -= 1
        self._uses = +self._uses
        idle = [key for key, name in self._regions.items() if not self._uses[name]]
        for name in [self._regions.pop(key) for key in idle[: max(len(self._regions) - KEEP, 0)]]:
            await self._unregister(name)

    def forget(self, region: str) -> bool:
        """The server does not know a region any more. False when it is none of ours."""
        known = [allocation for allocation, name in self._regions.items() if name == region]
        for allocation in known:
            del self._regions[allocation]
        return region.startswith(self._prefix)  # also when another request has noticed already

    async def close(self) -> None:
        """Take all registrations back, as far as the server is there to hear it."""
        names = list(self._regions.values()) if os.getpid() == self._owner else []  # a forked child's are its parent's
        self._regions.clear()
        await asyncio.gather(*(self._unregister(name) for name in names))

    async def _register(self, driver: DeviceDriver, allocation: Allocation, what: str) -> str:
        name = f"{self._prefix}{next(self._numbers)}"
        request = pb.CudaSharedMemoryRegisterRequest(
            name=name,
            raw_handle=driver.handle(allocation),
            device_id=allocation.device,
            byte_size=allocation.size,
        )
        try:
            await self._endpoint.unary(self._stub().CudaSharedMemoryRegister, request)
        except (FailedPreconditionError, InvalidArgumentError) as error:
            raise type(error)(
                f"{what}: the inference process at {self._endpoint.address} cannot use its device memory: "
                f"{error.message} (that takes a server with a GPU on this machine; elsewhere pass a NumPy array)",
                details=error.details,
            ) from None
        return name

    def _use(self, allocation: Allocation, name: str = "") -> str:
        kept = self._regions.setdefault(allocation, name)
        self._regions.move_to_end(allocation)
        self._uses[kept] += 1
        return kept

    async def _unregister(self, name: str) -> None:
        with contextlib.suppress(EnginehouseError):
            request = pb.CudaSharedMemoryUnregisterRequest(name=name)
            await self._endpoint.unary(self._stub().CudaSharedMemoryUnregister, request, timeout=_CLOSE_SECONDS)

    def _stub(self) -> Any:
        return self._endpoint.stub(service_pb2_grpc.GRPCInferenceServiceStub)
