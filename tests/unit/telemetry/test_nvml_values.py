"""NVML's sentinels are no values, whatever their width."""

from __future__ import annotations

import pynvml
import pytest
from enginehouse_telemetry import nvml_values as v
from enginehouse_telemetry.backoff import Backoff
from enginehouse_telemetry.processes import ProcessNames, sees_host_pids


@pytest.mark.parametrize("convert", [v.number, v.percent, v.watts, v.pstate])
@pytest.mark.parametrize("sentinel", [None, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF])
def test_sentinels(convert, sentinel) -> None:  # type: ignore[no-untyped-def]
    assert convert(sentinel) is None
    assert convert(0) == 0


def test_others() -> None:
    assert v.pstate(15) == 15 and v.pstate(32) is None
    assert v.watts(70123) == 70.123
    assert v.text(b"x ") == "x" and v.text("N/A") is None and v.text("") is None and v.text(None) is None
    assert v.memory_celsius(0) is None and v.memory_celsius(41) == 41.0 and v.memory_celsius(None) is None
    assert v.cuda_version(12040) == "12.4" and v.cuda_version(13000) == "13.0"
    assert v.compute_mode(3) == "Exclusive_Process" and v.compute_mode(9) is None


def test_reasons() -> None:
    assert v.reason_names(0) == ()
    assert v.reason_names(0b101) == ("gpu_idle", "sw_power_cap")
    assert v.reason_names(1 << 40) == ("bit_40",)


@pytest.mark.parametrize(
    ("kind", "member", "value", "expected"),
    [
        (0, "dVal", 1.5, 1.5),
        (1, "uiVal", 7, 7),
        (1, "uiVal", 0xFFFFFFFF, None),
        (3, "ullVal", 2**40, 2**40),
        (5, "siVal", 3, 3),
        (99, "uiVal", 7, None),
    ],
)
def test_field_values(kind: int, member: str, value: float, expected: float | None) -> None:
    item = pynvml.c_nvmlFieldValue_t()
    item.valueType = kind
    setattr(item.value, member, value)
    assert v.field_value(item) == expected
    item.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert v.field_value(item) is None


def test_backoff_doubles_to_a_limit_and_starts_over() -> None:
    now = [0.0]
    backoff = Backoff(1.0, 4.0, lambda: now[0])
    assert backoff.due
    waits = []
    for _ in range(4):
        backoff.failed()
        began = now[0]
        while not backoff.due:
            now[0] += 0.5
        waits.append(now[0] - began)
    assert waits == [1.0, 2.0, 4.0, 4.0] and backoff.failures == 4
    backoff.succeeded()
    assert backoff.due and backoff.failures == 0


def test_names_are_asked_for_once_and_forgotten_with_the_process() -> None:
    asked: list[int] = []

    def name(pid: int) -> str:
        asked.append(pid)
        return f"process {pid}"

    names = ProcessNames(name)
    assert [names.name(1), names.name(1), names.name(2)] == ["process 1", "process 1", "process 2"]
    names.keep([2])
    names.name(1)
    names.name(2)
    assert asked == [1, 2, 1]


def test_host_pids_are_recognized(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for target, expected in (("pid:[4026531836]", True), ("pid:[4026532000]", False)):
        link = tmp_path / target
        link.symlink_to(target)
        assert sees_host_pids(link) is expected
    assert not sees_host_pids(tmp_path / "absent")
