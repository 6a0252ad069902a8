"""What the soak's verdict is of: memory that grows, requests that fail out of turn. Needs no GPU."""

from __future__ import annotations

import pytest
from verdict import Failure, Sample, judge

MIB = 1 << 20
AWAY = (100.0, 104.0)


def samples(leak_per_second: float = 0.0, files_per_second: float = 0.0, seconds: int = 480) -> list[Sample]:
    """A process that takes 400 MiB in its first half minute; its worker is replaced at 240 s."""
    return [
        Sample(
            at=float(at),
            front=int((100 + min(at, 30) * 10 + leak_per_second * at) * MIB),
            workers=int((300 + min(at % 240, 30) * 10) * MIB),
            pids=[1] if at < 240 else [2],
            files=30 + int(files_per_second * at),
            device=1000 * MIB,
        )
        for at in range(0, seconds, 2)
    ]


def test_what_settles_and_stays_passes() -> None:
    verdict = judge(samples(), [(101.0, "infer", "UNAVAILABLE: lost")], AWAY, 60.0)
    assert verdict["passed"], verdict["reasons"]
    assert set(verdict["memory"]) == {"front 0", "workers 0", "workers 1", "device 0", "device 1"}
    assert verdict["failed_while_away"] == 1


@pytest.mark.parametrize(
    ("run", "errors", "said"),
    [
        (samples(leak_per_second=0.05), [], "front 0 grew by"),
        (samples(files_per_second=0.1), [], "open files grew"),
        (samples(), [(50.0, "infer", "UNAVAILABLE")], "while no worker was away"),
        (samples(), [(102.0, "infer", "INTERNAL")], "another status"),
        (samples(seconds=30), [], "too short"),
    ],
    ids=["leak", "files", "failure", "status", "short"],
)
def test_what_does_not_is_named(run: list[Sample], errors: list[Failure], said: str) -> None:
    verdict = judge(run, errors, AWAY, 60.0)
    assert not verdict["passed"] and any(said in reason for reason in verdict["reasons"])
