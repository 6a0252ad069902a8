"""Readers of the merged stream: each knows which nodes have news for it, and holds no samples of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from enginehouse_telemetry.aggregator.cluster import Node, NodeState
from enginehouse_telemetry.streams import StreamsClosed


@dataclass
class _Entry:
    """A node for one reader: when its next sample is due, whether one waits, and how many were skipped before it."""

    due: float = 0.0
    waiting: bool = False
    skipped: int = 0


@dataclass(frozen=True)
class News:
    """A node that has news, and the samples of it that were skipped because the reader was slow."""

    node: Node
    skipped: int


class Consumer:
    """One reader: a set of nodes that have news, each once. A context manager: leaving it ends it.

    Its memory does not grow when its reader is slow: a newer sample takes the place of the one that waits.

    Args:
        interval: seconds between a node's samples.
        tolerance: how early a sample may be and still count as the one that is due.
        wants: whether a node may be wanted.
    """

    def __init__(self, consumers: Consumers, interval: float, tolerance: float, wants: Callable[[str], bool]) -> None:
        self._consumers, self._interval, self._tolerance, self._wants = consumers, interval, tolerance, wants
        self._entries: dict[str, _Entry | None] = {}
        self._waiting: dict[str, Node] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, node: Node, at: float) -> None:
        """A node has a new sample or another state, at a time of the monotonic clock."""
        entry = self._entries.get(node.id, _UNKNOWN)
        if entry is _UNKNOWN:
            entry = self._entries[node.id] = _Entry() if self._wants(node.id) else None
        if entry is None:
            if node.state is NodeState.REMOVED:
                del self._entries[node.id]
            return
        if node.state is NodeState.LIVE:
            if at + self._tolerance < entry.due:
                return
            # On a grid, so that a late sample does not delay those after it, unless a whole interval was lost.
            entry.due = (at if at - entry.due > self._interval else entry.due) + self._interval
            entry.skipped += entry.waiting
        entry.waiting = True
        self._waiting[node.id] = node
        self._wake.set()

    @property
    def waiting(self) -> int:
        """How many nodes have news."""
        return len(self._waiting)

    async def take(self, most_bytes: int) -> list[News]:
        """Nodes that have news, those that wait longest first; waits until one has.

        Args:
            most_bytes: samples of about so many bytes, and one at least; the rest waits, and may be overtaken by newer
                ones of the same nodes.

        Raises:
            StreamsClosed: the server is stopping.
        """
        while not self._waiting:
            if self._closed:
                raise StreamsClosed
            self._wake.clear()
            await self._wake.wait()
        news: list[News] = []
        total = 0
        for node in list(self._waiting.values()):
            if total >= most_bytes:
                break
            total += node.size
            news.append(self._pop(node))
        return news

    def _pop(self, node: Node) -> News:
        del self._waiting[node.id]
        entry = self._entries[node.id]
        assert entry is not None  # or it would not wait
        news = News(node, entry.skipped)
        entry.waiting, entry.skipped = False, 0
        if node.state is NodeState.REMOVED:
            del self._entries[node.id]
        return news

    def close(self) -> None:
        """Nothing more comes. Any number of times."""
        self._closed = True
        self._consumers.remove(self)
        self._wake.set()

    def __enter__(self) -> Consumer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_UNKNOWN = _Entry()


class Consumers:
    """All readers.

    Args:
        interval: seconds between samples that agents are asked for.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._consumers: set[Consumer] = set()
        self._closed = False
        self.cut_off = 0

    def __len__(self) -> int:
        return len(self._consumers)

    def add(self, interval: float, wants: Callable[[str], bool]) -> Consumer:
        """A reader that gets a sample of each wanted node every `interval` seconds.

        Raises:
            StreamsClosed: the server is stopping.
        """
        if self._closed:
            raise StreamsClosed
        # As often as agents send, or more often: every sample, whenever it comes.
        tolerance = self._interval / 2 if interval > self._interval else float("inf")
        consumer = Consumer(self, interval, tolerance, wants)
        self._consumers.add(consumer)
        return consumer

    def remove(self, consumer: Consumer) -> None:
        self._consumers.discard(consumer)

    def publish(self, node: Node, at: float) -> None:
        """Offer a node's news to all."""
        for consumer in self._consumers:
            consumer.offer(node, at)

    def close(self) -> None:
        """End all, now and later."""
        self._closed = True
        for consumer in tuple(self._consumers):
            consumer.close()
