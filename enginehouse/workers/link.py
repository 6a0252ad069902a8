"""A worker process as an object: load engines, run and measure them, know when it dies.

One event loop's thread uses a `WorkerProcess`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enginehouse.errors import FailedPreconditionError, InternalError, UnavailableError
from enginehouse.workers.calls import Calls
from enginehouse.workers.environments import WorkerEnvironment
from enginehouse.workers.framing import Frame
from enginehouse.workers.inputs import describe_places, shared_parts, used_regions, write_inputs
from enginehouse.workers.opened import OpenRegions
from enginehouse.workers.process import LogSink, LogTail, describe_exit, spawn
from enginehouse.workers.regions import DeviceRegion, Place, held
from enginehouse.workers.results import InferenceResult, LoadedModel, Measurement, loaded_model, used_segments
from enginehouse.workers.segments import Segment, SegmentMap, SegmentPool
from enginehouse.workers.shared import SharedFile, SharedSegment
from enginehouse.workers.tensors import Array, TensorInput, TensorOutput, tensor_input
from enginehouse.workers.transport import Transport

__all__ = ["InferenceResult", "LoadedModel", "Measurement", "WorkerProcess"]

PROTOCOL = 1
# A framework's import is part of it: TensorFlow takes seconds when its files are not in the page cache.
START_SECONDS = 120.0
# A worker that closed its socket exits; one that does not is killed.
EXIT_SECONDS = 5.0
# Segments to give back that need not wait for the next request.
RELEASES = 8


class WorkerProcess:
    """A running worker. Make one with `await WorkerProcess.start(...)`.

    Every call fails with UnavailableError once the process is gone; what was in flight then does too.
    """

    def __init__(self, process: asyncio.subprocess.Process, transport: Transport, tail: LogTail, name: str) -> None:
        """Private: `start` and `attach` make workers."""
        self._process = process
        self._transport = transport
        self._tail = tail
        self._name = name
        # The worker's segments that we are done with, told with the next request.
        self._releases: list[int] = []
        self._gone: UnavailableError | None = None
        self._theirs = SegmentMap()
        self._pool = SegmentPool(self._announce, self._drop)
        self._calls = Calls(transport.send, self._pool.release, self._discard)
        self._ready: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._watching: asyncio.Task[None] | None = None
        self._regions = OpenRegions(self._call)
        # What third processes own and the worker knows, with the numbers that we gave it.
        self._shared: weakref.WeakKeyDictionary[SharedSegment | SharedFile, int] = weakref.WeakKeyDictionary()
        self.backends: Mapping[str, str] = {}
        self.memory: Sequence[str] = ("host",)
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(
        cls,
        environment: WorkerEnvironment,
        device: str = "cpu",
        log: LogSink | None = None,
        variables: Mapping[str, str] | None = None,
        *,
        timeout: float = START_SECONDS,
    ) -> WorkerProcess:
        """Start a worker and wait until it is ready to load engines.

        Args:
            log: called with each line that the worker prints; None prints them to our standard error.
            variables: environment variables to set or override.

        Raises:
            UnavailableError: it did not start in time; the message has the end of its log.
        """
        process, sock, log_pipe = await spawn(environment, device, variables or {})
        worker = cls.attach(
            process, sock, log_pipe, name=f"{environment.name} worker {process.pid} on {device}", log=log
        )
        try:
            await asyncio.wait({worker._ready}, timeout=timeout)
            if not worker._ready.done():
                raise UnavailableError(f"the {worker._name} was not ready in {timeout:g} s: {worker._tail.last()}")
            ready = worker._ready.result()
            if ready.get("protocol") != PROTOCOL:
                raise UnavailableError(
                    f"the {worker._name} speaks protocol {ready.get('protocol')}, this process {PROTOCOL}: "
                    "install the same version of enginehouse-worker and enginehouse"
                )
        except BaseException:
            await worker.kill()
            raise
        worker.backends = dict(ready["backends"])
        worker.memory = tuple(ready.get("memory") or ("host",))
        return worker

    @classmethod
    def attach(
        cls,
        process: asyncio.subprocess.Process,
        sock: socket.socket,
        log_pipe: int,
        *,
        name: str,
        log: LogSink | None = None,
    ) -> WorkerProcess:
        """Talk to a process that runs, over a non-blocking socket; it may not be ready yet."""
        worker = cls(process, Transport(sock), LogTail(log), name)
        worker._transport.start(worker._receive, worker._lost)
        worker._watching = asyncio.create_task(worker._watch(log_pipe))
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._gone is None

    @property
    def obituary(self) -> str:
        """How the worker ended, with the end of its log; empty while it lives."""
        return self._gone.message if self._gone is not None else ""

    async def load(
        self,
        key: str,
        engine_dir: Path,
        instances: int = 1,
        warmup: Sequence[int] = (1,),
        options: Mapping[str, Any] | None = None,
    ) -> LoadedModel:
        """Load an engine directory under a key of our choice.

        Args:
            warmup: batch sizes that each instance runs once before the load is done.

        Raises:
            EnginehouseError: what the worker says is wrong with the engine.
        """
        frame = await self._call(
            {
                "type": "load",
                "model": key,
                "engine": str(engine_dir),
                "instances": instances,
                "warmup": list(warmup),
                "options": dict(options or {}),
            }
        )
        return loaded_model(frame)

    async def unload(self, key: str) -> None:
        """Unload once what is queued for it has run."""
        await self._call({"type": "unload", "model": key})

    async def ping(self) -> None:
        """Return when the worker has answered."""
        await self._call({"type": "ping"})

    async def infer(
        self,
        key: str,
        inputs: Mapping[str, Array] | Sequence[TensorInput],
        outputs: Sequence[str] = (),
        deadline_ns: int | None = None,
        places: Sequence[Place] = (),
    ) -> InferenceResult:
        """Run one batch on a free instance.

        Args:
            inputs: tensors whose parts are copied straight into shared memory, or arrays by name.
            outputs: names to compute; all when empty.
            deadline_ns: CLOCK_MONOTONIC; work not begun by then fails with DeadlineExceededError.
            places: outputs that go into clients' device memory.

        Raises:
            UnavailableError: the worker is gone.
            EnginehouseError: what the worker says.
        """
        self._check()
        if isinstance(inputs, Mapping):
            inputs = [tensor_input(name, array) for name, array in inputs.items()]
        regions = used_regions(inputs, places)
        with held(regions):
            for region in regions:
                await self.open_region(region)
            return await self._infer(key, inputs, outputs, deadline_ns, places)

    async def open_region(self, region: DeviceRegion) -> None:
        """Have the worker open a client's device memory; nothing when it has.

        Raises:
            FailedPreconditionError: the worker takes host memory only.
            EnginehouseError: what the worker says is wrong with the handle.
        """
        if "cuda" not in self.memory:
            raise FailedPreconditionError(
                f"the {self._name} takes no CUDA shared memory: send the tensors with the request, or in system "
                "shared memory"
            )
        await self._regions.open(region)

    async def close_region(self, region: DeviceRegion) -> None:
        """Have the worker close a client's device memory, once what uses it has run. Nothing when it is not open."""
        await self._regions.close(region)

    async def _infer(
        self,
        key: str,
        inputs: Sequence[TensorInput],
        outputs: Sequence[str],
        deadline_ns: int | None,
        places: Sequence[Place],
    ) -> InferenceResult:
        self._check()  # it may have died while it opened a region
        segment, described = write_inputs(self._pool, inputs, self._number)
        request: Frame = {"type": "infer", "model": key, "inputs": described, "outputs": list(outputs)}
        if deadline_ns is not None:
            request["deadline"] = deadline_ns
        if places:
            request["places"] = describe_places(places)
        if self._releases:
            # In the same message: a frame of its own would wake the worker once more for each result.
            request["release"], self._releases = self._releases, []
        # Others' memory stays as it is until the worker has answered, whoever waits for that.
        frame = await self._call(request, segment, shared_parts(inputs))
        try:
            views = tuple(self._output(t) for t in frame["outputs"])
        except InternalError:
            self._check()  # its death overtook its answer, and took the segments
            self._discard(frame)
            raise
        return InferenceResult(views, frame, self._release)

    async def measure(
        self,
        key: str,
        batch: int = 8,
        seconds: float = 1.0,
        seed: int = 0,
        shapes: Mapping[str, Sequence[int]] | None = None,
        scope: str = "host",
    ) -> Measurement:
        """Time random inputs back to back on one instance, inside the worker.

        Args:
            shapes: whole shapes by input name, where dynamic dimensions other than the batch should not be 1.
            scope: "host": host memory to host memory; "engine": device buffers to device buffers.

        Raises:
            FailedPreconditionError: the backend's runtime always copies, so that it has no scope "engine".
        """
        frame = await self._call(
            {
                "type": "measure",
                "model": key,
                "batch": batch,
                "seconds": seconds,
                "seed": seed,
                "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
                "scope": scope,
            }
        )
        latencies = tuple(int(n) for n in frame["latencies_ns"])
        return Measurement(latencies, int(frame["cpu_ns"]), int(frame["wall_ns"]), int(frame["inferences"]))

    async def close(self, timeout: float = 10.0) -> int:
        """Let the worker finish what runs and exit; kill it when that takes longer. Returns the exit status."""
        if self.alive:
            with contextlib.suppress(OSError):
                self._transport.send({"type": "shutdown"})
            await asyncio.wait({self.exited}, timeout=timeout)
        return await self.kill()

    async def kill(self) -> int:
        """End the worker at once. Returns the exit status."""
        self._kill()
        if self._watching is not None:
            await asyncio.shield(self._watching)
        return await asyncio.shield(self.exited)

    def __repr__(self) -> str:
        return f"<{self._name}>"

    def _check(self) -> None:
        if self._gone is not None:
            raise UnavailableError(self._gone.message, retry_after_seconds=self._gone.retry_after_seconds)

    async def _call(self, frame: Frame, segment: Segment | None = None, keep: Sequence[object] = ()) -> Frame:
        self._check()
        return await self._calls.call(frame, segment, keep)

    def _receive(self, frame: Frame, descriptor: int | None) -> None:
        kind = frame.get("type")
        if kind == "segment":
            if descriptor is None:
                raise InternalError(f"the {self._name} announced a segment, and its descriptor did not arrive")
            self._theirs.add(int(frame["segment"]), int(frame["bytes"]), descriptor)
        elif kind == "drop":
            self._theirs.drop(int(frame["segment"]))
        elif kind == "ready":
            if not self._ready.done():
                self._ready.set_result(frame)
        else:
            self._answer(frame)

    def _answer(self, frame: Frame) -> None:
        if not self._calls.answer(frame) and frame.get("type") == "error":
            raise InternalError(f"the {self._name} could not understand a frame: {frame.get('message')}")

    def _discard(self, frame: Frame) -> None:
        """Free the outputs of a result that nobody waits for."""
        if frame.get("type") == "result":
            self._release(used_segments(frame))

    def _output(self, tensor: Mapping[str, Any]) -> TensorOutput:
        name, dtype, shape = tensor["name"], tensor["dtype"], tuple(tensor["shape"])
        if "region" in tensor:
            return TensorOutput(name, dtype, shape, memoryview(b""), placed=True)
        return TensorOutput(name, dtype, shape, self._theirs.view(tensor["segment"], tensor["offset"], tensor["bytes"]))

    def _release(self, segments: set[int]) -> None:
        self._releases += segments
        if len(self._releases) >= RELEASES and self._gone is None:
            self._transport.send({"type": "release", "segments": self._releases})
            self._releases = []

    def _number(self, shared: SharedSegment | SharedFile) -> int:
        """What the worker knows another's segment by; it is told of it before its first use, and when it is gone."""
        number = self._shared.get(shared)
        if number is None:
            number = self._shared[shared] = self._pool.take_number()
            frame: Frame = {"type": "segment", "segment": number, "bytes": shared.size}
            if isinstance(shared, SharedFile):
                frame["file"] = True
            self._transport.send(frame, shared.descriptor)
            gone = weakref.finalize(shared, self._transport.send, {"type": "drop", "segment": number})
            gone.atexit = False
        return number

    def _announce(self, segment: Segment) -> None:
        self._transport.send({"type": "segment", "segment": segment.id, "bytes": segment.size}, segment.descriptor)

    def _drop(self, segment: Segment) -> None:
        self._transport.send({"type": "drop", "segment": segment.id})

    def _lost(self, reason: str) -> None:
        """The socket ended or carried nonsense: the worker is of no more use, and `_watch` reports its end."""
        asyncio.get_running_loop().call_later(0.0 if reason else EXIT_SECONDS, self._kill)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                self._process.kill()

    async def _watch(self, log_pipe: int) -> None:
        follow = asyncio.create_task(self._tail.follow(log_pipe))
        status = await self._process.wait()
        # The log's end may still be in the pipe; a grandchild that holds it open must not hold us.
        await asyncio.wait({follow}, timeout=0.5)
        follow.cancel()
        self._transport.close()
        text = f"the {self._name} {describe_exit(status)}"
        if status and (last := self._tail.last()):
            text += f"; its log ends: {last}"
        self._gone = UnavailableError(text, retry_after_seconds=1.0)
        if not self._ready.done():
            self._ready.set_exception(self._gone)
            self._ready.exception()  # retrieved, also when nobody waits any more
        self._calls.fail(lambda: UnavailableError(text, retry_after_seconds=1.0))
        self._pool.close()
        self._theirs.close()
        self.exited.set_result(status)
