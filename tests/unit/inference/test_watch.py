"""Following the desired state."""

from __future__ import annotations

from typing import Any

from enginehouse_inference.desired.watch import Watcher

from enginehouse.v1 import serving_pb2


class FullDisk:
    def read(self) -> None:
        return None

    def write(self, state: Any) -> None:
        raise OSError(28, "No space left on device")


async def test_a_full_disk_does_not_keep_a_process_from_following() -> None:
    applied: list[int] = []
    watcher = Watcher(
        None,  # type: ignore[arg-type]
        "default",
        FullDisk(),  # type: ignore[arg-type]
        lambda state: applied.append(state.revision),
    )
    for revision in (1, 2):
        await watcher._hear(serving_pb2.WatchServingConfigsResponse(revision=revision))
    assert applied == [1, 2] and watcher.heard.is_set()
