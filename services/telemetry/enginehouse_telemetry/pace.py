"""When the next sample is due: on a grid, so that late samples do not shift the later ones."""

from __future__ import annotations


def next_due(due: float, now: float, period: float) -> tuple[float, int]:
    """The next time on the grid through `due` that is after `now`, and how many were missed in between."""
    following = due + period
    if following > now:
        return following, 0
    missed = int((now - following) // period) + 1
    return following + missed * period, missed
