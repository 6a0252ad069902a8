"""Whether rows run sooner in a larger batch that is captured: decided by what each takes, and remembered. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable

# A larger batch must be this much faster: its rows cost power, and two timings of one graph differ by about as much.
MARGIN = 0.02
REMEMBERED = 1024


class PaddingPolicy:
    """Choices by group (the dimensions after the batch) and number of rows. Past `limit` the oldest are forgotten."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._choices: OrderedDict[tuple[Hashable, int], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._choices)

    def known(self, group: Hashable, rows: int) -> int | None:
        """The batch size chosen for so many rows; None when there is no choice yet."""
        choice = self._choices.get((group, rows))
        if choice is not None:
            self._choices.move_to_end((group, rows))
        return choice

    def choose(
        self, group: Hashable, rows: int, usual: int, captured: Collection[int], seconds: Callable[[int], float]
    ) -> int:
        """The batch size to run `rows` in: `rows` itself, or the next larger one that is captured (else `usual`).

        Args:
            usual: the batch size that the engine was tuned for; a candidate only where nothing larger is captured.
            captured: the sizes of this group that are captured.
            seconds: what a batch of a size takes, captured; called for two sizes at most, and for none when known.
        """
        choice = self.known(group, rows)
        if choice is not None:
            return choice
        larger = min((size for size in captured if size > rows), default=usual)
        if larger <= rows:
            return rows  # nothing was compared, so nothing is remembered
        own = seconds(rows)
        choice = larger if seconds(larger) < own * (1 - MARGIN) else rows
        while len(self._choices) >= self._limit:
            self._choices.popitem(last=False)
        self._choices[group, rows] = choice
        return choice
