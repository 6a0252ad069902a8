"""The runner's loop: takes frames, gives work to loaders and instances, and never dies of a bad frame."""

from __future__ import annotations

import base64
import ctypes
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from enginehouse_worker.backends.base import Backend, DeviceMemory, DeviceMemoryBackend
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.runner.framing import BadFrameError, Channel, take_socket
from enginehouse_worker.runner.instances import Model, as_worker_error, load_model, monotonic_ns, resident_bytes
from enginehouse_worker.runner.jobs import Frame, Inference, Load, Measurement, Peer
from enginehouse_worker.runner.regions import RegionMap, region_numbers
from enginehouse_worker.runner.segments import Segment, SegmentMap, SegmentPool

PROTOCOL = 1
_PR_SET_PDEATHSIG = 1
# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


class Runner:
    """Serves one front process over one channel.

    Args:
        backends: name to exact version of what this environment runs.
        find_backend: the backend of that name; raises WorkerError when this environment lacks it.
    """

    def __init__(
        self, channel: Channel, device: str, backends: Mapping[str, str], find_backend: Callable[[str], Backend]
    ) -> None:
        self._channel = channel
        self._device = device
        self._backends = dict(backends)
        self._find_backend = find_backend
        self._models: dict[str, Model] = {}
        self._segments = SegmentMap()
        self._pool = SegmentPool(self._announce, self._drop)
        self._regions = RegionMap()
        self._memory_lock = threading.Lock()
        self._memory: DeviceMemory | None = None
        self._peer = Peer(channel, self._segments, self._pool, self._regions, self._device_memory)
        # Loads and unloads in order, away from the thread that answers pings.
        self._changes: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # Opening the device and its regions takes time too, and must not wait for a load.
        self._openings: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve until `shutdown` or the end of the stream."""
        self._channel.send(
            {
                "type": "ready",
                "protocol": PROTOCOL,
                "pid": os.getpid(),
                "backends": self._backends,
                "device": self._device,
                "memory": ["host", "cuda"] if self._memory_backend() else ["host"],
            }
        )
        loader = threading.Thread(target=self._change, name="loader", daemon=True)
        loader.start()
        threading.Thread(target=self._open, name="regions", daemon=True).start()
        while True:
            try:
                received = self._channel.receive()
            except BadFrameError as error:
                self._peer.error(None, WorkerError("INVALID_ARGUMENT", str(error)))
                continue
            if received is None:
                return  # the front is gone: nobody wants what runs
            frame, descriptor = received
            if frame.get("type") == "shutdown":
                break
            self._handle(frame, descriptor)
        self._changes.put(None)
        loader.join()
        for model in list(self._models.values()):
            model.close()

    def _handle(self, frame: Frame, descriptor: int | None) -> None:
        received_ns = monotonic_ns()
        identifier = frame.get("id")
        try:
            kind = frame.get("type")
            if kind == "infer":
                self._release(frame.get("release", ()))
                self._infer(frame, received_ns)
            elif kind == "release":
                self._release(frame["segments"])
            elif kind == "segment":
                if descriptor is None:
                    raise WorkerError("INVALID_ARGUMENT", "a segment frame without its descriptor")
                number, size = int(frame["segment"]), int(frame["bytes"])
                self._segments.add(number, size, descriptor, file=bool(frame.get("file")))
            elif kind == "drop":
                self._segments.drop(int(frame["segment"]))
            elif kind == "ping":
                if self._memory is not None:
                    self._memory.check()
                self._channel.send({"type": "pong", "id": identifier})
            elif kind == "cancel":
                self._cancel(int(frame["id"]))
            elif kind == "measure":
                self._model(frame).queue.put(Measurement(self._peer, self._model(frame), frame))
            elif kind == "region":
                region, size = int(frame["region"]), int(frame["bytes"])
                handle = base64.b64decode(str(frame["handle"]), validate=True)
                self._openings.put(lambda: self._open_region(identifier, region, size, handle))
            elif kind == "close":
                region = int(frame["region"])
                self._openings.put(lambda: self._close_region(identifier, region))
            elif kind == "load":
                load = Load.parse(frame)
                self._changes.put(lambda: self._load(identifier, load))
            elif kind == "unload":
                self._changes.put(lambda: self._unload(frame))
            else:
                raise WorkerError("UNIMPLEMENTED", f"unknown frame type {kind!r}")
        except (KeyError, TypeError, ValueError) as error:
            message = f"a bad {frame.get('type')} frame: {type(error).__name__}: {error}"
            self._peer.error(identifier, WorkerError("INVALID_ARGUMENT", message))
        except (WorkerError, OSError) as error:
            self._peer.error(identifier, as_worker_error(error, f"a {frame.get('type')} frame"))

    def _infer(self, frame: Frame, received_ns: int) -> None:
        model = self._model(frame)
        numbers = region_numbers(frame)
        if numbers and self._memory_backend() is None:
            raise WorkerError("FAILED_PRECONDITION", f"a worker on {self._device!r} takes no CUDA memory")
        hold = self._regions.hold(numbers)
        try:
            model.queue.put(Inference(self._peer, model, frame, received_ns, hold))
        except BaseException:
            hold.release()
            raise

    def _memory_backend(self) -> DeviceMemoryBackend | None:
        """The backend that reaches the memory of this worker's device; None when the device is no GPU."""
        if not self._device.startswith(("cuda", "gpu")):
            return None
        found = (self._find_backend(name) for name in self._backends)
        return next((backend for backend in found if isinstance(backend, DeviceMemoryBackend)), None)

    def _device_memory(self) -> DeviceMemory:
        with self._memory_lock:
            if self._memory is None:
                backend = self._memory_backend()
                if backend is None:
                    raise WorkerError("FAILED_PRECONDITION", f"a worker on {self._device!r} takes no CUDA memory")
                self._memory = backend.device_memory(self._device)
            return self._memory

    def _open(self) -> None:
        while True:
            self._openings.get()()

    def _open_region(self, identifier: Any, region: int, size: int, handle: bytes) -> None:
        try:
            self._regions.open(region, size, handle, self._device_memory())
            self._channel.send({"type": "opened", "id": identifier})
        except BaseException as error:
            self._peer.error(identifier, as_worker_error(error, "opening device memory"))

    def _close_region(self, identifier: Any, region: int) -> None:
        try:
            self._regions.close(region, lambda: self._channel.send({"type": "closed", "id": identifier}))
        except BaseException as error:
            self._peer.error(identifier, as_worker_error(error, "closing device memory"))

    def _release(self, segments: Sequence[Any]) -> None:
        for segment in segments:
            self._pool.release(int(segment))

    def _model(self, frame: Frame) -> Model:
        model = self._models.get(str(frame["model"]))
        if model is None:
            raise WorkerError("NOT_FOUND", f"no model {frame['model']!r} is loaded in this worker")
        return model

    def _cancel(self, identifier: int) -> None:
        for model in list(self._models.values()):
            if (job := model.queue.remove(identifier)) is not None:
                job.fail(WorkerError("CANCELLED", "cancelled before it began"))
                return

    def _change(self) -> None:
        while (change := self._changes.get()) is not None:
            change()

    def _load(self, identifier: Any, load: Load) -> None:
        begin, resident = monotonic_ns(), resident_bytes()
        try:
            if load.key in self._models:
                raise WorkerError("ALREADY_EXISTS", f"a model {load.key!r} is loaded already")
            model = load_model(
                load.key,
                load.engine,
                self._find_backend,
                device=self._device,
                instances=load.instances,
                warmup=load.warmup,
                options=load.options,
            )
            self._models[load.key] = model
            self._channel.send(
                {
                    "type": "loaded",
                    "id": identifier,
                    **model.signature.to_json(),
                    "max_batch_size": model.max_batch_size,
                    "seconds": (monotonic_ns() - begin) / 1e9,
                    "memory_bytes": max(resident_bytes() - resident, 0),
                    **model.facts(),
                }
            )
        except BaseException as error:
            if not isinstance(error, WorkerError):
                traceback.print_exc()
            self._peer.error(identifier, as_worker_error(error, f"loading {load.engine}"))

    def _unload(self, frame: Frame) -> None:
        identifier = frame.get("id")
        try:
            key = str(frame["model"])
            model = self._models.pop(key, None)
            if model is None:
                raise WorkerError("NOT_FOUND", f"no model {key!r} is loaded in this worker")
            model.close()
            self._channel.send({"type": "unloaded", "id": identifier})
        except BaseException as error:
            traceback.print_exc()
            self._peer.error(identifier, as_worker_error(error, "unloading"))

    def _announce(self, segment: Segment) -> None:
        frame = {"type": "segment", "segment": segment.id, "bytes": segment.size}
        self._channel.send(frame, segment.descriptor)

    def _drop(self, segment: Segment) -> None:
        self._channel.send({"type": "drop", "segment": segment.id})


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the front dies, also while a framework's call never returns."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before we asked


def keep_freed_blocks() -> None:
    """Have the C library keep freed blocks of up to 32 MiB: else each batch of megabytes pays for fresh zeroed pages.

    The front does the same (design decision 7). Where the C library has no `mallopt` (musl) all works, slower.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def main(fd: int, device: str) -> int:
    """Serve engines over an inherited socket until the front says so or is gone; returns the exit status."""
    die_with_parent(os.getppid())
    keep_freed_blocks()  # before any large one is allocated
    # The front decides when we stop: it drains first, and a terminal's or a supervisor's signal reaches both of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from enginehouse_worker.backends import registry

    Runner(Channel(take_socket(fd)), device, registry.installed(), registry.get).run()
    sys.stdout.flush()
    sys.stderr.flush()
    # Frameworks' threads and destructors may hang or crash at interpreter exit; everything of ours is closed.
    os._exit(0)
