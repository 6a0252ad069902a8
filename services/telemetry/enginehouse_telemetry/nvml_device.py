"""One GPU: asks its questions, remembers which ones it does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pynvml as nv

from enginehouse_telemetry.nvml_errors import UNSUPPORTED, DeviceHidden, DeviceLost, code_of, raise_if_fatal
from enginehouse_telemetry.nvml_queries import IDENTITY, QUERIES, Query
from enginehouse_telemetry.nvml_values import cuda_version
from enginehouse_telemetry.processes import ProcessNames, read_processes
from enginehouse_telemetry.readings import GpuIdentity, GpuReading
from enginehouse_telemetry.timing import Timings

# What a device does not support may come to be supported: MIG or ECC is switched. Asking is cheap this rarely.
ASK_AGAIN_SECONDS = 300.0


def open_device(index: int) -> tuple[Any, GpuIdentity]:
    """A GPU's handle and identity.

    Raises:
        DeviceHidden: it is not ours to use.
        DeviceLost: it is lost.
        NvmlBroken: NVML does not work.
    """
    try:
        handle = nv.nvmlDeviceGetHandleByIndex(index)
    except nv.NVMLError as error:
        raise_if_fatal(error)
        if code_of(error) == nv.NVML_ERROR_NO_PERMISSION:
            raise DeviceHidden(str(error)) from error
        raise DeviceLost(str(error)) from error
    values: dict[str, Any] = {}
    for query in IDENTITY:
        try:
            values.update(query.ask(handle))
        except nv.NVMLError as error:
            raise_if_fatal(error)
        except UnicodeDecodeError:
            continue  # a damaged InfoROM: what cannot be read is absent
    for field, call in (("driver_version", nv.nvmlSystemGetDriverVersion), ("cuda_driver_version", _cuda_version)):
        try:
            values[field] = call()
        except nv.NVMLError as error:
            raise_if_fatal(error)
    return handle, GpuIdentity(index=index, **values)


def _cuda_version() -> str:
    return cuda_version(nv.nvmlSystemGetCudaDriverVersion())


class NvmlDevice:
    """A GPU that is present."""

    def __init__(
        self,
        handle: Any,
        identity: GpuIdentity,
        names: ProcessNames,
        *,
        queries: Sequence[Query] = QUERIES,
        timings: Timings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.handle = handle
        self.identity = identity
        self._queries = (*queries, Query("processes", lambda h: {"processes": read_processes(h, names)}, detail=True))
        self._timings = timings
        self._clock = clock
        self._ask_again: dict[str, float] = {}
        self._details: dict[str, Any] = {}
        self._detail_problems: list[str] = []

    def read(self, *, detail: bool) -> GpuReading:
        """A reading; detail questions are asked again when `detail`, else their last answers stand.

        Raises:
            DeviceLost: it is lost.
            NvmlBroken: NVML does not work any more.
        """
        if detail:
            self._details, self._detail_problems = self._ask(detail=True)
        values, problems = self._ask(detail=False)
        return GpuReading(
            uuid=self.identity.uuid,
            index=self.identity.index,
            state_message="; ".join([*problems, *self._detail_problems]),
            product=self.identity.product,
            pcie_generation_max=self.identity.pcie_generation_max,
            pcie_width_max=self.identity.pcie_width_max,
            **values,
            **self._details,
        )

    def _ask(self, *, detail: bool) -> tuple[dict[str, Any], list[str]]:
        """The answers to the questions of one kind, and what went wrong."""
        values: dict[str, Any] = {}
        problems: list[str] = []
        for query in self._queries:
            if query.detail is not detail or self._ask_again.get(query.name, 0.0) > self._clock():
                continue
            started = time.perf_counter()
            try:
                values.update(query.ask(self.handle))
                self._ask_again.pop(query.name, None)
            except nv.NVMLError as error:
                raise_if_fatal(error)
                if code_of(error) in UNSUPPORTED:
                    self._ask_again[query.name] = self._clock() + ASK_AGAIN_SECONDS
                else:
                    problems.append(f"{query.name}: {error}")
            finally:
                if self._timings is not None:
                    self._timings.add(query.name, time.perf_counter() - started)
        return values, problems
