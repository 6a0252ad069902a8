"""The runner's loop: takes frames, gives work to loaders and instances, and never dies of a bad frame."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import Backend, Instance
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.runner.framing import BadFrameError, Channel, take_socket
from enginehouse_worker.runner.instances import Model, as_worker_error, load_model, monotonic_ns, resident_bytes
from enginehouse_worker.runner.measure import run_for
from enginehouse_worker.runner.segments import Segment, SegmentMap, SegmentPool
from enginehouse_worker.runner.tensors import read_inputs, write_outputs

PROTOCOL = 1
_PR_SET_PDEATHSIG = 1

Frame = Mapping[str, Any]


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
        # Loads and unloads in order, away from the thread that answers pings.
        self._changes: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve until `shutdown` or the end of the stream."""
        self._channel.send(
            {
                "type": "ready",
                "protocol": PROTOCOL,
                "pid": os.getpid(),
                "backends": self._backends,
                "device": self._device,
            }
        )
        loader = threading.Thread(target=self._change, name="loader", daemon=True)
        loader.start()
        while True:
            try:
                received = self._channel.receive()
            except BadFrameError as error:
                self._error(None, WorkerError("INVALID_ARGUMENT", str(error)))
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
                self._model(frame).queue.put(_Inference(self, self._model(frame), frame, received_ns))
            elif kind == "release":
                self._pool.release(int(frame["segment"]))
            elif kind == "segment":
                if descriptor is None:
                    raise WorkerError("INVALID_ARGUMENT", "a segment frame without its descriptor")
                self._segments.add(int(frame["segment"]), int(frame["bytes"]), descriptor)
            elif kind == "drop":
                self._segments.drop(int(frame["segment"]))
            elif kind == "ping":
                self._channel.send({"type": "pong", "id": identifier})
            elif kind == "cancel":
                self._cancel(int(frame["id"]))
            elif kind == "measure":
                self._model(frame).queue.put(_Measurement(self, self._model(frame), frame))
            elif kind == "load":
                load = _Load.parse(frame)
                self._changes.put(lambda: self._load(identifier, load))
            elif kind == "unload":
                self._changes.put(lambda: self._unload(frame))
            else:
                raise WorkerError("UNIMPLEMENTED", f"unknown frame type {kind!r}")
        except (KeyError, TypeError, ValueError) as error:
            message = f"a bad {frame.get('type')} frame: {type(error).__name__}: {error}"
            self._error(identifier, WorkerError("INVALID_ARGUMENT", message))
        except (WorkerError, OSError) as error:
            self._error(identifier, as_worker_error(error, f"a {frame.get('type')} frame"))

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

    def _load(self, identifier: Any, load: _Load) -> None:
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
                }
            )
        except BaseException as error:
            if not isinstance(error, WorkerError):
                traceback.print_exc()
            self._error(identifier, as_worker_error(error, f"loading {load.engine}"))

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
            self._error(identifier, as_worker_error(error, "unloading"))

    def _announce(self, segment: Segment) -> None:
        frame = {"type": "segment", "segment": segment.id, "bytes": segment.size}
        self._channel.send(frame, segment.descriptor)

    def _drop(self, segment: Segment) -> None:
        self._channel.send({"type": "drop", "segment": segment.id})

    def _error(self, identifier: Any, error: WorkerError) -> None:
        try:
            self._channel.send({"type": "error", "id": identifier, "code": error.code, "message": error.message})
        except OSError:
            return  # the front is gone; the receiving thread notices

    def answer(self, frame: Frame) -> None:
        """Send an answer from an instance's thread."""
        self._channel.send(frame)

    def compute(self, model: Model, frame: Frame, received_ns: int, instance: Instance) -> None:
        """Run an `infer` frame on an instance and send its result."""
        begin = monotonic_ns()
        deadline = frame.get("deadline")
        if deadline is not None and begin >= int(deadline):
            raise WorkerError("DEADLINE_EXCEEDED", "the deadline passed before an instance was free")
        names = [str(n) for n in frame.get("outputs") or ()] or list(model.outputs)
        if unknown := [n for n in names if n not in model.outputs]:
            raise WorkerError("INVALID_ARGUMENT", f"unknown output {unknown[0]!r}; known: {', '.join(model.outputs)}")
        try:
            inputs = read_inputs(frame["inputs"], self._segments)
        except (KeyError, TypeError) as error:
            raise WorkerError("INVALID_ARGUMENT", f"a bad infer frame: {type(error).__name__}: {error}") from None
        computing = monotonic_ns()
        results = instance.run(inputs, names)
        computed = monotonic_ns()
        outputs = write_outputs(results, model.outputs, names, self._pool)
        # The arrays may look into the request's segment, which this answer frees.
        del inputs, results
        self._channel.send(
            {
                "type": "result",
                "id": frame["id"],
                "outputs": outputs.described,
                "queue_ns": begin - received_ns,
                "input_ns": computing - begin,
                "compute_ns": computed - computing,
                "output_ns": monotonic_ns() - computed,
            }
        )

    def fail(self, identifier: int, error: WorkerError) -> None:
        self._error(identifier, error)


@dataclass(frozen=True)
class _Load:
    """What a `load` frame asks for."""

    key: str
    engine: Path
    instances: int
    warmup: tuple[int, ...]
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, frame: Frame) -> _Load:
        """Raises KeyError, TypeError or ValueError when the frame is bad."""
        return cls(
            key=str(frame["model"]),
            engine=Path(str(frame["engine"])),
            instances=int(frame.get("instances", 1)),
            warmup=tuple(int(b) for b in frame.get("warmup", (1,))),
            options=dict(frame.get("options", {})),
        )


@dataclass(frozen=True)
class _Inference:
    runner: Runner
    model: Model
    frame: Frame
    received_ns: int

    @property
    def id(self) -> int:
        return int(self.frame["id"])

    def run(self, instance: Instance) -> None:
        self.runner.compute(self.model, self.frame, self.received_ns, instance)

    def fail(self, error: WorkerError) -> None:
        self.runner.fail(self.id, error)


@dataclass(frozen=True)
class _Measurement:
    runner: Runner
    model: Model
    frame: Frame

    @property
    def id(self) -> int:
        return int(self.frame["id"])

    def run(self, instance: Instance) -> None:
        measured = run_for(
            instance,
            self.model.signature,
            batch=int(self.frame.get("batch", 1)),
            seconds=float(self.frame.get("seconds", 1.0)),
            seed=int(self.frame.get("seed", 0)),
            shapes={str(k): tuple(int(d) for d in v) for k, v in self.frame.get("shapes", {}).items()},
        )
        self.runner.answer({"type": "measured", "id": self.id, **asdict(measured)})

    def fail(self, error: WorkerError) -> None:
        self.runner.fail(self.id, error)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the front dies, also while a framework's call never returns."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before we asked


def main(fd: int, device: str) -> int:
    """Serve engines over an inherited socket until the front says so or is gone; returns the exit status."""
    die_with_parent(os.getppid())
    # The front decides when we stop: it drains first, and a terminal's or a supervisor's signal reaches both of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from enginehouse_worker.backends import registry

    Runner(Channel(take_socket(fd)), device, registry.installed(), registry.get).run()
    sys.stdout.flush()
    sys.stderr.flush()
    # Frameworks' threads and destructors may hang or crash at interpreter exit; everything of ours is closed.
    os._exit(0)
