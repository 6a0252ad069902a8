"""All GPUs of the node through NVML: a lost GPU does not stop the others, a missing driver is awaited."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from enginehouse_telemetry.backoff import Backoff
from enginehouse_telemetry.nvml_device import NvmlDevice, open_device
from enginehouse_telemetry.nvml_errors import DeviceHidden, DeviceLost, NvmlBroken
from enginehouse_telemetry.nvml_library import close_library, open_library
from enginehouse_telemetry.pcie import PcieThroughput
from enginehouse_telemetry.processes import ProcessNames
from enginehouse_telemetry.readings import GpuIdentity, GpuReading
from enginehouse_telemetry.timing import Timings

# Waits in seconds between tries to bring NVML, or a lost GPU, back.
FIRST_WAIT, LAST_WAIT = 1.0, 60.0

# A GPU that was reset may need NVML to start anew. That interrupts all GPUs for a moment, so not with every try.
REOPEN_EVERY = 8


@dataclass
class _Slot:
    """A GPU that is or was there."""

    identity: GpuIdentity
    device: NvmlDevice | None
    backoff: Backoff
    message: str = ""


@dataclass(frozen=True)
class GpuStatus:
    """A GPU for ListDevices."""

    identity: GpuIdentity
    lost: bool
    message: str


class NvmlCollector:
    """Reads every GPU. One thread calls it; `statuses` and `message` may be read from any."""

    def __init__(
        self,
        *,
        detail_period: float = 1.0,
        names: ProcessNames | None = None,
        timings: Timings | None = None,
        clock: Callable[[], float] = time.monotonic,
        first_wait: float = FIRST_WAIT,
        last_wait: float = LAST_WAIT,
    ) -> None:
        self._detail_period = detail_period
        self._names = names or ProcessNames()
        self._timings = timings
        self._clock = clock
        self._waits = (first_wait, last_wait)
        self._pcie = PcieThroughput(detail_period, timings=timings, clock=clock)
        self._backoff = Backoff(first_wait, last_wait, clock)
        self._open = False
        self._reopen = False
        self._slots: list[_Slot] = []
        self._detail_due = clock()
        self.message = "NVML has not been asked yet"
        self.statuses: tuple[GpuStatus, ...] = ()

    def read(self) -> tuple[GpuReading, ...]:
        """A reading of every GPU, by index; none when NVML does not work (`message` says why)."""
        try:
            if not self._open and not self._try_open():
                return ()
            detail = self._clock() >= self._detail_due
            if detail:
                self._detail_due = self._clock() + self._detail_period
            readings = tuple(self._read_slot(slot, detail=detail) for slot in self._slots)
            if detail:
                self._names.keep(process.pid for reading in readings for process in reading.processes)
        except NvmlBroken as error:
            self._broke(str(error))
            return ()
        self._publish()
        if self._reopen:
            self._reopen = False
            self._shut()  # the next reading opens it
        return readings

    def close(self) -> None:
        """Release NVML."""
        self._pcie.close()
        if self._open:
            self._open = False
            close_library()

    def _try_open(self) -> bool:
        if not self._backoff.due:
            return False
        count = 0
        try:
            count = open_library()
            self._open = True
            self._slots = self._find(count)
        except NvmlBroken as error:
            self._broke(str(error))
            return False
        self._backoff.succeeded()
        self._detail_due = self._clock()
        self.message = "" if self._slots else "NVML works and finds no GPU that this process may use"
        self._watch_pcie()
        return True

    def _find(self, count: int) -> list[_Slot]:
        """A slot for each GPU that NVML lists, and for each that it listed before and lists no more."""
        before = {slot.identity.uuid: slot for slot in self._slots if slot.identity.uuid}
        at = {slot.identity.index: slot for slot in self._slots}
        slots = []
        for index in range(count):
            try:
                handle, identity = open_device(index)
                slots.append(_Slot(identity, self._device(handle, identity), self._new_backoff()))
                before.pop(identity.uuid, None)
            except DeviceHidden:
                continue
            except DeviceLost as error:
                old = at.get(index)
                slot = old or _Slot(GpuIdentity(index), None, self._new_backoff())
                before.pop(slot.identity.uuid, None)
                slots.append(self._lost(slot, str(error)))
        for slot in before.values():
            slots.append(self._lost(slot, "NVML does not list it any more"))
        return sorted(slots, key=lambda slot: slot.identity.index)

    def _read_slot(self, slot: _Slot, *, detail: bool) -> GpuReading:
        if slot.device is None and slot.backoff.due:
            self._try_again(slot)
            detail = True
        if slot.device is not None:
            try:
                reading = slot.device.read(detail=detail)
                slot.message = reading.state_message
                return dataclasses.replace(reading, **self._pcie.values(slot.identity.uuid))
            except DeviceLost as error:
                self._lost(slot, str(error))
                self._watch_pcie()
        identity = slot.identity
        return GpuReading(
            uuid=identity.uuid, index=identity.index, product=identity.product, lost=True, state_message=slot.message
        )

    def _try_again(self, slot: _Slot) -> None:
        """See whether a lost GPU is back.

        Raises:
            NvmlBroken: NVML does not work.
        """
        try:
            handle, identity = open_device(slot.identity.index)
            if slot.identity.uuid and identity.uuid != slot.identity.uuid:
                raise DeviceLost("another GPU is in its place")
            slot.device, slot.identity, slot.message = self._device(handle, identity), identity, ""
            slot.backoff.succeeded()
            self._watch_pcie()
        except DeviceLost as error:
            self._lost(slot, str(error))
            self._reopen = slot.backoff.failures % REOPEN_EVERY == 0

    def _broke(self, reason: str) -> None:
        self._shut()
        self._backoff.failed()
        self.message = f"NVML does not work: {reason}"
        self.statuses = ()

    def _shut(self) -> None:
        self._pcie.watch({})
        if self._open:
            self._open = False
            close_library()

    def _lost(self, slot: _Slot, reason: str) -> _Slot:
        slot.device, slot.message = None, reason
        slot.backoff.failed()
        return slot

    def _device(self, handle: object, identity: GpuIdentity) -> NvmlDevice:
        return NvmlDevice(handle, identity, self._names, timings=self._timings, clock=self._clock)

    def _new_backoff(self) -> Backoff:
        return Backoff(*self._waits, self._clock)

    def _watch_pcie(self) -> None:
        self._pcie.watch({s.identity.uuid: s.device.handle for s in self._slots if s.device is not None})

    def _publish(self) -> None:
        self.statuses = tuple(GpuStatus(s.identity, s.device is None, s.message) for s in self._slots)
