"""Which server gets a request: of those that are well, the one with the fewest requests outstanding."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What a choice looks at."""

    @property
    def outstanding(self) -> int:
        """Requests that wait for its answer."""

    @property
    def down(self) -> bool:
        """Whether it did not answer when last asked."""

    def avoided_for(self, key: Hashable, now: float) -> float:
        """Seconds for which it is not to be asked about a model; 0 when it may be."""


_C = TypeVar("_C", bound=Candidate)


def well(candidates: Iterable[_C], key: Hashable, now: float) -> list[_C]:
    """Those that answer and may be asked about a model."""
    return [c for c in candidates if not c.down and not c.avoided_for(key, now)]


def choose(candidates: Sequence[_C], key: Hashable, now: float, dice: random.Random) -> _C:
    """The server for a request. Where none is well, one is asked nevertheless: what we know may be old.

    Args:
        candidates: at least one.
        key: the model.
    """
    best = well(candidates, key, now) or [c for c in candidates if not c.down] or candidates
    least = min(c.outstanding for c in best)
    equal = [c for c in best if c.outstanding == least]
    # At random, or all clients that start together would begin with the same one.
    return equal[0] if len(equal) == 1 else dice.choice(equal)
