"""What frames ask for: a load, an inference, a measurement; and how the answers leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from enginehouse_worker.backends.base import Array, DeviceArray, DeviceMemory, Instance, Pieces, PipelinedInstance
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.runner.framing import Channel
from enginehouse_worker.runner.instances import Model, monotonic_ns
from enginehouse_worker.runner.measure import run_for
from enginehouse_worker.runner.regions import Hold, RegionMap
from enginehouse_worker.runner.segments import SegmentMap, SegmentPool
from enginehouse_worker.runner.tensors import pieces_of, place_outputs, read_inputs, write_outputs

Frame = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """The front: where answers go, its segments and regions, and our segments for it. Any thread may use it.

    `memory` opens the device's side of them; FAILED_PRECONDITION where this worker has none.
    """

    channel: Channel
    segments: SegmentMap
    pool: SegmentPool
    regions: RegionMap
    memory: Callable[[], DeviceMemory]

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
    """`hold` keeps the regions that the frame names open until the answer."""

    peer: Peer
    model: Model
    frame: Frame
    received_ns: int
    hold: Hold = field(default_factory=lambda: Hold(lambda: None))

    @property
    def id(self) -> int:
        return int(self.frame["id"])

    def run(self, instance: Instance) -> None:
        begin = monotonic_ns()
        names = self._names(begin)
        if self.frame.get("places"):
            raise WorkerError("FAILED_PRECONDITION", "this engine writes no device memory: outputs have no places")
        inputs = self._inputs(None)
        computing = monotonic_ns()
        results = instance.run(inputs, names)  # type: ignore[arg-type]
        computed = monotonic_ns()
        outputs = write_outputs(results, self.model.outputs, names, self.peer.pool)
        # The arrays may look into the request's segment, which this answer frees.
        del inputs, results
        self._answer(outputs.described, begin, computing, computed)

    def begin(self, instance: PipelinedInstance) -> Callable[[], None]:
        begin = monotonic_ns()
        names = self._names(begin)
        peer, frame = self.peer, self.frame
        try:
            numbers = [segment for tensor in frame["inputs"] for segment, _, _ in pieces_of(tensor)]
            given = {str(tensor["name"]): tuple(int(d) for d in tensor["shape"]) for tensor in frame["inputs"]}
        except (KeyError, TypeError, ValueError) as error:
            raise _bad(error) from None
        memory = peer.memory()
        segments = peer.segments.hold(numbers, memory)
        segment: int | None = None
        try:
            inputs = self._inputs(peer.regions, join=False)
            known = instance.output_shapes(given)
            shapes = {name: known[name] for name in names}
            places = place_outputs(
                shapes, self.model.outputs, frame.get("places") or (), peer.pool, peer.regions, memory
            )
            segment = places.segment
            ticket = instance.begin(inputs, places.arrays)
            computing = monotonic_ns()
        except BaseException as error:
            segments.release()
            if segment is not None:
                peer.pool.release(segment)
            raise _bad(error) if isinstance(error, KeyError | TypeError) else error from None

        def finish() -> None:
            try:
                instance.finish(ticket)
            except BaseException:
                if segment is not None:
                    peer.pool.release(segment)
                raise
            finally:
                segments.release()
            self._answer(places.described, begin, computing, monotonic_ns())

        return finish

    def fail(self, error: WorkerError) -> None:
        self.hold.release()
        self.peer.error(self.id, error)

    def _names(self, now: int) -> list[str]:
        """The outputs to compute.

        Raises:
            WorkerError: DEADLINE_EXCEEDED when the deadline is past; INVALID_ARGUMENT for an unknown output.
        """
        known, deadline = self.model.outputs, self.frame.get("deadline")
        if deadline is not None and now >= int(deadline):
            raise WorkerError("DEADLINE_EXCEEDED", "the deadline passed before an instance was free")
        names = [str(n) for n in self.frame.get("outputs") or ()] or list(known)
        if unknown := [n for n in names if n not in known]:
            raise WorkerError("INVALID_ARGUMENT", f"unknown output {unknown[0]!r}; known: {', '.join(known)}")
        return names

    def _inputs(self, regions: RegionMap | None, *, join: bool = True) -> dict[str, Array | Pieces | DeviceArray]:
        try:
            return read_inputs(self.frame["inputs"], self.peer.segments, regions, join=join)
        except (KeyError, TypeError, ValueError) as error:
            raise _bad(error) from None

    def _answer(self, outputs: list[dict[str, Any]], begin: int, computing: int, computed: int) -> None:
        self.hold.release()
        self.peer.channel.send(
            {
                "type": "result",
                "id": self.frame["id"],
                "outputs": outputs,
                "queue_ns": begin - self.received_ns,
                "input_ns": computing - begin,
                "compute_ns": computed - computing,
                "output_ns": monotonic_ns() - computed,
            }
        )


@dataclass(frozen=True)
class Measurement:
    peer: Peer
    model: Model
    frame: Frame

    @property
    def id(self) -> int:
        return int(self.frame["id"])

    def begin(self, instance: PipelinedInstance) -> None:
        self.run(instance)

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


def _bad(error: BaseException) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"a bad infer frame: {type(error).__name__}: {error}")
