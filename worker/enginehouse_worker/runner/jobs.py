"""What frames ask for: a load, an inference, a measurement; and how the answers leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import Instance
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.runner.framing import Channel
from enginehouse_worker.runner.instances import Model, monotonic_ns
from enginehouse_worker.runner.measure import run_for
from enginehouse_worker.runner.segments import SegmentMap, SegmentPool
from enginehouse_worker.runner.tensors import read_inputs, write_outputs

Frame = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """The front: where answers go, its segments, and ours for it. Any thread may use it."""

    channel: Channel
    segments: SegmentMap
    pool: SegmentPool

    def error(self, identifier: Any, error: WorkerError) -> None:
        """Answer a frame with an error."""
        try:
            self.channel.send({"type": "error", "id": identifier, "code": error.code, "message": error.message})
        except OSError:
            return  # the front is gone; the receiving thread notices


@dataclass(frozen=True)
class Load:
    """What a `load` frame asks for."""

    key: str
    engine: Path
    instances: int
    warmup: tuple[int, ...]
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, frame: Frame) -> Load:
        """Raises KeyError, TypeError or ValueError when the frame is bad."""
        return cls(
            key=str(frame["model"]),
            engine=Path(str(frame["engine"])),
            instances=int(frame.get("instances", 1)),
            warmup=tuple(int(b) for b in frame.get("warmup", (1,))),
            options=dict(frame.get("options", {})),
        )


@dataclass(frozen=True)
class Inference:
    peer: Peer
    model: Model
    frame: Frame
    received_ns: int

    @property
    def id(self) -> int:
        return int(self.frame["id"])

    def run(self, instance: Instance) -> None:
        begin = monotonic_ns()
        frame, model = self.frame, self.model
        deadline = frame.get("deadline")
        if deadline is not None and begin >= int(deadline):
            raise WorkerError("DEADLINE_EXCEEDED", "the deadline passed before an instance was free")
        names = [str(n) for n in frame.get("outputs") or ()] or list(model.outputs)
        if unknown := [n for n in names if n not in model.outputs]:
            raise WorkerError("INVALID_ARGUMENT", f"unknown output {unknown[0]!r}; known: {', '.join(model.outputs)}")
        try:
            inputs = read_inputs(frame["inputs"], self.peer.segments)
        except (KeyError, TypeError) as error:
            raise WorkerError("INVALID_ARGUMENT", f"a bad infer frame: {type(error).__name__}: {error}") from None
        computing = monotonic_ns()
        results = instance.run(inputs, names)
        computed = monotonic_ns()
        outputs = write_outputs(results, model.outputs, names, self.peer.pool)
        # The arrays may look into the request's segment, which this answer frees.
        del inputs, results
        self.peer.channel.send(
            {
                "type": "result",
                "id": frame["id"],
                "outputs": outputs.described,
                "queue_ns": begin - self.received_ns,
                "input_ns": computing - begin,
                "compute_ns": computed - computing,
                "output_ns": monotonic_ns() - computed,
            }
        )

    def fail(self, error: WorkerError) -> None:
        self.peer.error(self.id, error)


@dataclass(frozen=True)
class Measurement:
    peer: Peer
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
            scope=str(self.frame.get("scope", "host")),
        )
        self.peer.channel.send({"type": "measured", "id": self.id, **asdict(measured)})

    def fail(self, error: WorkerError) -> None:
        self.peer.error(self.id, error)
