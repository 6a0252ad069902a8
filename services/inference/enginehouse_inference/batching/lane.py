"""The requests of one shape, in the order in which they leave."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from enginehouse_inference.batching.policy import Entry

T = TypeVar("T")


class Lane(Generic[T]):
    """Those of the lowest rank first, of one rank in the order in which they came to it."""

    def __init__(self) -> None:
        # Ordered dictionaries: a request that is cancelled leaves a long queue at once.
        self._ranks: dict[int, OrderedDict[Entry[T], None]] = {}
        # The lowest rank's.
        self._first: OrderedDict[Entry[T], None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._ranks)

    def __iter__(self) -> Iterator[Entry[T]]:
        if len(self._ranks) == 1:
            return iter(self._first)
        return itertools.chain.from_iterable(self._ranks[rank] for rank in sorted(self._ranks))

    @property
    def head(self) -> Entry[T]:
        """The one that leaves first."""
        return next(iter(self._first))

    def add(self, entry: Entry[T]) -> None:
        rank = entry.rank
        entries = self._ranks.get(rank)
        if entries is None:
            entries = self._ranks[rank] = OrderedDict()
            self._first = self._ranks[min(self._ranks)]
        entries[entry] = None

    def remove(self, entry: Entry[T]) -> None:
        rank = entry.rank
        entries = self._ranks[rank]
        del entries[entry]
        if not entries:
            del self._ranks[rank]
            if self._ranks:
                self._first = self._ranks[min(self._ranks)]

    def delay(self, entry: Entry[T]) -> None:
        """Put an entry behind those of its level."""
        self.remove(entry)
        entry.delayed = True
        self.add(entry)

    def patience_ns(self, delay_ns: int) -> int:
        """When it should leave, full or not, if each may wait `delay_ns` for others; those delayed wait no more."""
        heads = [next(iter(entries)) for entries in self._ranks.values()]
        return min([0 if head.delayed else head.arrived_ns + delay_ns for head in heads])
