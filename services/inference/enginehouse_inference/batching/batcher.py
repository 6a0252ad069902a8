"""The shell around the batch queue: waits, runs batches on free instances, and hands each request its rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Protocol

from enginehouse.errors import (
    DeadlineExceededError,
    EnginehouseError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from enginehouse.workers.link import InferenceResult
from enginehouse.workers.regions import Place
from enginehouse.workers.tensors import TensorInput
from enginehouse_inference.batching.policy import Batch, BatchPolicy, QueueFullError
from enginehouse_inference.batching.queue import BatchQueue
from enginehouse_inference.batching.request import (
    MAX_BATCHES,
    Answer,
    Request,
    inputs_of,
    join,
    latest_deadline,
    reject,
    wanted_outputs,
)
from enginehouse_inference.batching.rows import RequestInput, input_rows, output_rows
from enginehouse_inference.batching.turns import DeviceTurns, Turn

__all__ = ["Answer", "Batcher", "Observer", "Run"]


class Observer(Protocol):
    """Told what the batcher does, for statistics."""

    def executed(self, rows: int, result: InferenceResult) -> None: ...


class Run(Protocol):
    """Runs one batch."""

    def __call__(
        self, inputs: Sequence[TensorInput], outputs: Sequence[str], deadline_ns: int | None, places: Sequence[Place]
    ) -> Awaitable[InferenceResult]: ...


class Batcher:
    """Batches requests for one version of a model.

    Args:
        name: of the model, for messages.
        batched: whether dimension 0 of every tensor is the batch.
        instances: batches that are computed at once.
        concurrency: batches that one instance takes at once, to copy one while it computes another. Beyond the first,
            an instance gets large ones only: small ones do better to grow while they wait.
        outputs: all output names, in the signature's order.
        device: limits the batches of all models of a device; None does not.
        share: of the device's time, beside other models.
    """

    def __init__(
        self,
        name: str,
        *,
        policy: BatchPolicy,
        batched: bool,
        instances: int,
        outputs: Sequence[str],
        run: Run,
        observer: Observer,
        clock: Callable[[], int] = time.monotonic_ns,
        concurrency: int = 1,
        device: DeviceTurns | None = None,
        share: int = 1,
    ) -> None:
        self._name = name
        self._queue: BatchQueue[Request] = BatchQueue(policy)
        self._batched = batched
        self._instances = instances
        self._slots = instances * concurrency
        self._busy = 0
        self._outputs = tuple(outputs)
        self._run = run
        self._observer = observer
        self._clock = clock
        self._turns = device.join(self._pump, share) if device is not None else None
        # A batch could leave, and others compute.
        self._held = False
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._closed = ""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def policy(self) -> BatchPolicy:
        return self._queue.policy

    def set_policy(self, policy: BatchPolicy) -> None:
        """Batch by another policy from now on."""
        self._queue.policy = policy
        self._pump()

    def set_share(self, share: int) -> None:
        """Have another share of the device's time from now on."""
        if self._turns is not None:
            self._turns.share = share

    async def infer(
        self,
        inputs: Sequence[RequestInput],
        *,
        rows: int,
        shape: Hashable,
        outputs: frozenset[str],
        deadline_ns: int | None = None,
        alone: bool = False,
        places: Sequence[Place] = (),
        priority: int = 0,
        timeout_ns: int | None = None,
    ) -> Answer:
        """Queue a request, wait for its rows. Cancelling takes it out of the queue.

        Args:
            rows: dimension 0 of its inputs (1 when the model is not batched).
            shape: equal for requests that may share a batch.
            outputs: names to compute.
            deadline_ns: on the clock; a request not begun by then is not computed.
            alone: run it as a batch of its own, uncut, as one that uses device memory must be.
            places: outputs that the worker writes into device memory; only with `alone`.
            priority: from 1, which leaves first; 0 is the model's default.
            timeout_ns: how long to wait in the queue at most, where the policy lets requests say so.

        Raises:
            ResourceExhaustedError: the queue is full.
            DeadlineExceededError: the deadline passed in the queue.
            InvalidArgumentError: it would be too many batches.
            UnavailableError: the worker died, or the model is being unloaded.
        """
        if self._closed:
            raise UnavailableError(self._closed, retry_after_seconds=1.0)
        now = self._clock()
        if deadline_ns is not None and deadline_ns <= now:
            raise DeadlineExceededError(f"model {self._name}: the deadline passed before the request was queued")
        batches = 1 if alone else -(-rows // self.policy.max_batch_size)
        if batches > MAX_BATCHES:
            raise InvalidArgumentError(
                f"model {self._name}: {rows} rows make {batches} batches: expected at most {MAX_BATCHES}, which is "
                f"{MAX_BATCHES * self.policy.max_batch_size} rows: send several requests"
            )
        request = Request(inputs, outputs, asyncio.get_running_loop().create_future(), places)
        try:
            entry = self._queue.add(
                request, rows, shape, now, deadline_ns, alone=alone, priority=priority, timeout_ns=timeout_ns
            )
        except QueueFullError as full:
            raise self._queue_full(full) from None
        self._idle.clear()
        self._pump()
        try:
            return await request.future
        except asyncio.CancelledError:
            self._queue.remove(entry)
            self._settle()
            raise
        finally:
            # An error's traceback holds this frame: it must not hold the request, which holds the error and all inputs.
            del request, entry

    async def close(self, reason: str) -> None:
        """Take no more requests; return when those that wait or run are answered."""
        self._closed = reason
        await self._idle.wait()
        if self._turns is not None:
            self._turns.leave()

    def fail(self, error: EnginehouseError) -> None:
        """Answer everything that waits with an error."""
        for entry in self._queue.drain():
            reject(entry, error)
        self._settle()

    def _queue_full(self, full: QueueFullError) -> ResourceExhaustedError:
        where = f" at priority {full.level}" if full.level else ""
        return ResourceExhaustedError(
            f"model {self._name}: {full.limit} requests wait already{where}: try again later, raise the serving "
            "configuration's max_queue_size, or add instances",
            details={"model": self._name, "max_queue_size": str(full.limit)},
            retry_after_seconds=0.1,
        )

    def _pump(self) -> None:
        now = self._clock()
        for entry in self._queue.expire(now):
            waited = (now - entry.arrived_ns) / 1e6
            reject(
                entry,
                DeadlineExceededError(f"model {self._name}: the deadline passed after {waited:.1f} ms in the queue"),
            )
        self._held = False
        while self._busy < self._slots:
            turn = None
            # A batch grows, and its requests may leave, while it waits for the device.
            if self._turns is not None and self._queue.ready(now, self._least()):
                turn = self._turns.take()
                self._held = turn is None
            batch = None if self._held else self._queue.take(now, self._least())
            if batch is None:
                break
            self._busy += 1
            for part in batch.slices:
                part.entry.item.started_ns = part.entry.item.started_ns or now
            self._running.add(asyncio.create_task(self._execute(batch, turn)))
        self._set_timer(now)
        self._settle()

    def _least(self) -> int:
        """Rows that a batch should have to leave now: for an instance that computes already, half of the most."""
        return 0 if self._busy < self._instances else -(-self._queue.policy.max_batch_size // 2)

    def _settle(self) -> None:
        if not self._queue and not self._running:
            self._idle.set()

    def _set_timer(self, now: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._queue:
            return
        # Where all instances compute, or other models do, time alone lets nothing leave.
        idle = self._busy < self._instances and not self._held
        event = self._queue.next_event_ns() if idle else self._queue.next_alarm_ns()
        if event is not None:
            self._timer = asyncio.get_running_loop().call_later(max(event - now, 0) / 1e9, self._pump)

    async def _execute(self, batch: Batch[Request], turn: Turn | None) -> None:
        begin, used = self._clock(), None
        try:
            used = await self._attempt(batch)
        finally:
            self._busy -= 1
            # This task ends with the call that starts the next batch.
            task = asyncio.current_task()
            if task is not None:
                self._running.discard(task)
            # First it says what else it wants, so that the device chooses among all.
            self._pump()
            if turn is not None:
                turn.end(used if used is not None else self._clock() - begin)

    async def _attempt(self, batch: Batch[Request]) -> int | None:
        """Run a batch and answer its requests; returns the device time that it took, where that is known."""
        try:
            # Only a request that is alone has any.
            places = batch.slices[0].entry.item.places
            inputs = input_rows(batch, self._batched, inputs_of)
            result = await self._run(inputs, wanted_outputs(batch, self._outputs), latest_deadline(batch), places)
            self._observer.executed(batch.rows, result)
            self._hand_out(batch, result)
            return result.compute_ns
        except (InternalError, InvalidArgumentError) as error:
            if len(batch.slices) == 1:
                self._reject_all(batch, error)
                return None
            # One request's values may have failed the others': each on its own tells whose.
            for part in batch.slices:
                if not part.entry.item.future.done():
                    await self._attempt(Batch((part,)))
        except EnginehouseError as error:
            self._reject_all(batch, error)
        except Exception as error:
            self._reject_all(batch, InternalError(f"model {self._name}: {type(error).__name__}: {error}"))
        return None

    def _reject_all(self, batch: Batch[Request], error: EnginehouseError) -> None:
        for part in batch.slices:
            self._queue.remove(part.entry)
            reject(part.entry, error)

    def _hand_out(self, batch: Batch[Request], result: InferenceResult) -> None:
        shares = output_rows(result.outputs, [s.rows for s in batch.slices], self._batched, self._name)
        for part, share in zip(batch.slices, shares, strict=True):
            request = part.entry.item
            if request.future.done():
                continue
            request.keep(part.start, share, result)
            request.done += part.rows
            if request.done == part.entry.rows:
                try:
                    request.future.set_result(join(part.entry, self._outputs))
                except InternalError as error:  # of its pieces alone: not of the others of this batch
                    reject(part.entry, error)
