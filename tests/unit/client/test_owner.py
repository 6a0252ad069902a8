"""Whose a thing is that belongs to one event loop."""

from __future__ import annotations

import asyncio

from enginehouse.client.owner import LoopOwner


def test_a_loop_in_the_place_of_another_is_another() -> None:
    """Python soon gives a new loop the memory, and so the id, of one that ended."""

    async def owner() -> LoopOwner:
        mine = LoopOwner()
        assert mine.runs
        return mine

    async def runs(other: LoopOwner) -> bool:
        return other.runs

    for _ in range(100):
        assert not asyncio.run(runs(asyncio.run(owner())))
