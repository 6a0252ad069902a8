"""How many requests may be sent again: a bound on what a client adds to servers that are in trouble."""

from __future__ import annotations


class RetryBudget:
    """A bucket of tokens: every request adds a part of one, sending one again takes a whole one.

    Args:
        ratio: the part that a request adds.
        burst: what the bucket holds, and begins with.
    """

    def __init__(self, ratio: float, burst: float) -> None:
        self._ratio = ratio
        self._burst = burst
        self._tokens = burst

    def request(self) -> None:
        """A request was made."""
        self._tokens = min(self._burst, self._tokens + self._ratio)

    def take(self) -> bool:
        """Whether one more may be sent, which is then counted."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
