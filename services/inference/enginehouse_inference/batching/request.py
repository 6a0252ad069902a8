"""A request on its way through the batcher, and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from enginehouse.errors import EnginehouseError
from enginehouse.workers.link import InferenceResult
from enginehouse.workers.regions import Place
from enginehouse_inference.batching.policy import Batch, Entry
from enginehouse_inference.batching.rows import OutputRows, RequestInput

# A request is cut into so many batches at most: what it sends costs the sender, what they cost does not, and rows of an
# empty shape would cost nothing at all.
MAX_BATCHES = 4096
# Of a request in more batches than these, what is computed is copied out of shared memory, of which each batch holds a
# segment and so a descriptor.
SHARED_PIECES = 16


@dataclass(frozen=True)
class Answer:
    """A request's rows of every output, and where its time went (the longest of its batches).

    `results` keep the shared memory that the outputs' parts look into; drop the answer when they have been read.
    """

    outputs: tuple[OutputRows, ...]
    results: tuple[InferenceResult, ...]
    queue_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int
    # Taken from the response cache.
    cached: bool = False


@dataclass(frozen=True)
class Times:
    """Where a batch's time went, once its outputs are copied."""

    queue_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int


@dataclass(eq=False)
class Request:
    """A request that waits or runs."""

    inputs: Sequence[RequestInput]
    outputs: frozenset[str]
    future: asyncio.Future[Answer]
    places: Sequence[Place] = ()
    # What is computed of it, by first row.
    pieces: dict[int, tuple[Mapping[str, OutputRows], InferenceResult | Times]] = field(default_factory=dict)
    done: int = 0
    started_ns: int = 0

    def keep(self, start: int, share: Mapping[str, OutputRows], result: InferenceResult) -> None:
        """Keep what is computed of it, from row `start` on."""
        if len(self.pieces) < SHARED_PIECES:
            self.pieces[start] = (share, result)
            return
        copied = {name: replace(rows, parts=tuple(map(bytes, rows.parts))) for name, rows in share.items()}
        self.pieces[start] = (
            copied,
            Times(result.queue_ns, result.input_ns, result.compute_ns, result.output_ns),
        )


def inputs_of(request: Request) -> Sequence[RequestInput]:
    """A request's inputs."""
    return request.inputs


def wanted_outputs(batch: Batch[Request], order: Sequence[str]) -> Sequence[str]:
    """The outputs, in `order`, that any request of a batch asks for."""
    first, *others = (part.entry.item.outputs for part in batch.slices)
    wanted = first.union(*others) if others else first
    if len(wanted) == len(order):  # as nearly always
        return order
    return [name for name in order if name in wanted]


def latest_deadline(batch: Batch[Request]) -> int | None:
    """When a batch is late: when all its requests are, or the worker would drop it for one of them. None: never."""
    latest = 0
    for part in batch.slices:
        deadline = part.entry.deadline_ns
        if deadline is None:
            return None
        latest = max(latest, deadline)
    return latest


def reject(entry: Entry[Request], error: EnginehouseError) -> None:
    """Answer a request with a copy of an error: its traceback is its own."""
    if not entry.item.future.done():
        copy = type(error)(error.message, details=error.details, retry_after_seconds=error.retry_after_seconds)
        entry.item.future.set_exception(copy)
        entry.item.pieces = {}


def join(entry: Entry[Request], order: Sequence[str]) -> Answer:
    """The answer of a request all of whose rows are computed, its outputs in `order`."""
    request = entry.item
    # Shared memory is freed when the answer is dropped, not when this request's entry is.
    found, request.pieces = request.pieces, {}
    if len(found) == 1:  # as nearly always
        ((share, result),) = found.values()
        return Answer(
            outputs=tuple(share[name] for name in order if name in request.outputs),
            results=(result,) if isinstance(result, InferenceResult) else (),
            queue_ns=request.started_ns - entry.arrived_ns + result.queue_ns,
            input_ns=result.input_ns,
            compute_ns=result.compute_ns,
            output_ns=result.output_ns,
        )
    pieces = [found[start] for start in sorted(found)]
    results = [result for _, result in pieces]
    return Answer(
        outputs=tuple(
            OutputRows.join([share[name] for share, _ in pieces]) for name in order if name in request.outputs
        ),
        results=tuple(result for result in results if isinstance(result, InferenceResult)),
        queue_ns=request.started_ns - entry.arrived_ns + max(r.queue_ns for r in results),
        input_ns=max(r.input_ns for r in results),
        compute_ns=max(r.compute_ns for r in results),
        output_ns=max(r.output_ns for r in results),
    )
