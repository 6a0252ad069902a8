"""Copies between a caller's memory and a slot: direct where the copy engines reach it, else by pinned memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import Array, FilePiece, Pieces
from enginehouse_worker.backends.tensorrt import cuda
from enginehouse_worker.backends.tensorrt.device_arrays import DeviceView
from enginehouse_worker.backends.tensorrt.host_memory import PINNED
from enginehouse_worker.backends.tensorrt.layouts import Layout
from enginehouse_worker.backends.tensorrt.ring import Slot


@dataclass
class Ticket:
    """A batch that was begun. `views`: results in the slot's own memory; `late`: those the host copies at the end."""

    slot: Slot
    views: dict[str, Array] = field(default_factory=dict)
    late: list[tuple[Array, Array]] = field(default_factory=list)


class Transfers:
    """Queues copies on streams.

    Args:
        types: what the engine stores each tensor in.
    """

    def __init__(self, types: Mapping[str, np.dtype[Any]]) -> None:
        self._runtime = cuda.runtime()
        self._kinds = self._runtime.cudaMemcpyKind
        self._types = types

    def bring(
        self,
        slot: Slot,
        name: str,
        array: Array | Pieces | DeviceView,
        layout: Layout,
        stream: Any,
        *,
        pinned: bool = False,
    ) -> None:
        """Queue an input's copy to the device; `pinned` when the array is known to be."""
        size, stored = layout.sizes[name], self._types[name]
        if isinstance(array, DeviceView):
            self._await_owner(slot, array, stream)
            self._copy(slot.device[name], array.pointer, size, self._kinds.cudaMemcpyDeviceToDevice, stream, name)
            return
        if isinstance(array, Pieces):
            if array.dtype == stored and (places := _locked(array)) is not None:
                to = slot.device[name]
                for place in places:
                    self._copy(to, _address(place), place.size, self._kinds.cudaMemcpyHostToDevice, stream, name)
                    to += place.size
                return
            if array.dtype == stored:
                staging = slot.host(name, stored, array.shape)
                array.write_to(staging)
                array, pinned = staging, True
            else:
                array = array.joined()
        if not pinned and not _direct(array, stored, size):
            staging = slot.host(name, stored, array.shape)
            np.copyto(staging, array, casting="same_kind")
            array = staging
        self._copy(slot.device[name], _address(array), size, self._kinds.cudaMemcpyHostToDevice, stream, name)

    def fetch(
        self,
        ticket: Ticket,
        name: str,
        place: Array | DeviceView | None,
        shape: tuple[int, ...],
        layout: Layout,
        stream: Any,
    ) -> None:
        """Queue an output's copy to its place, or to the slot's own memory when it has none."""
        slot, stored, size = ticket.slot, self._types[name], layout.sizes[name]
        if isinstance(place, DeviceView):
            self._await_owner(slot, place, stream)
            self._copy(place.pointer, slot.device[name], size, self._kinds.cudaMemcpyDeviceToDevice, stream, name)
            return
        if place is None or not _direct(place, stored, size):
            staging = slot.host(name, stored, shape)
            if place is None:
                ticket.views[name] = staging
            else:
                ticket.late.append((place, staging))
            place = staging
        self._copy(_address(place), slot.device[name], size, self._kinds.cudaMemcpyDeviceToHost, stream, name)

    def order(self, event: Any, before: Any, after: Any) -> None:
        """What is queued on `after` from now on waits for what is on `before` now."""
        cuda.checked(self._runtime.cudaEventRecord(event, before), "recording an event")
        cuda.checked(self._runtime.cudaStreamWaitEvent(after, event, 0), "waiting for an event")

    def _copy(self, to: int, source: int, size: int, kind: Any, stream: Any, name: str) -> None:
        if size:
            cuda.checked(self._runtime.cudaMemcpyAsync(to, source, size, kind, stream), f"copying {name}")

    def _await_owner(self, slot: Slot, view: DeviceView, stream: Any) -> None:
        if view.stream is not None:
            self.order(slot.foreign, view.stream, stream)


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _locked(pieces: Pieces) -> list[Array] | None:
    """The bytes of an array in pieces, where the copy engines can read all of them where they are."""
    places = [part.mapped if isinstance(part, FilePiece) else part for part in pieces.parts]
    found = [place for place in places if place is not None and _direct(place, place.dtype, place.size)]
    return found if len(found) == len(places) else None


def _direct(array: Array, stored: np.dtype[Any], size: int) -> bool:
    """Whether the copy engines can read or write the array where it is."""
    return array.dtype == stored and array.flags.c_contiguous and PINNED.cover(_address(array), size)
