"""A job's end is written, whatever the disk says first."""

from __future__ import annotations

import pytest
from enginehouse_optimizer.pipeline import manager

from enginehouse.errors import ResourceExhaustedError


async def test_an_end_that_a_full_disk_refuses_is_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "END_RETRY_SECONDS", 0.0)
    tries = 0

    def end() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ResourceExhaustedError("database or disk is full")

    await manager._written(end)
    assert tries == 3
